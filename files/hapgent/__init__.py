# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""hapgent: reports the state of a server to HAProxy."""

import signal

VERSION = "1.0.0"
ANSWERS_AS = "0.3.2"

# SIGALRM comes from the agent's own timer.
SIGNALS = frozenset({signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGALRM})
