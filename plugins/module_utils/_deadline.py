# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Time that is left: a deadline holds for all of a conversation, a socket's timeout for each of its steps."""

from __future__ import annotations

import time

MAX_SECONDS = 86400


def check_seconds(name: str, seconds: float) -> None:
    """See that the option C(name) is a time that can be waited for: 0 to MAX_SECONDS. Raises ValueError."""
    # Written so that NaN, which is neither less nor more than any number, is refused too.
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{name} must be 0 to {MAX_SECONDS} seconds, not {seconds:g}")


def seconds_until(deadline: float) -> float:
    """What is left until C(deadline), on the monotonic clock. Raises TimeoutError if that is nothing."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining
