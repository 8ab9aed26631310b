# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start the agent."""

import signal
import sys

from hapgent import SIGNALS

# Block signals before the slower imports, so that a signal during the start waits instead of ending the agent.
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

from hapgent.cli import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
