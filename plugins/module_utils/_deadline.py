# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Time that is left: a deadline holds for all of a conversation, a socket's timeout for each of its steps."""

from __future__ import annotations

import time


def seconds_until(deadline: float) -> float:
    """What is left until C(deadline), on the monotonic clock. Raises TimeoutError if that is nothing."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining
