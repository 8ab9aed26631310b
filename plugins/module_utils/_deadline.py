# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Deadlines. A deadline applies to a whole conversation, while the timeout of a socket applies to each step of it."""

from __future__ import annotations

import time

MAX_SECONDS = 86400


def check_seconds(name: str, seconds: float) -> None:
    """Check that the option C(name) is 0 to MAX_SECONDS seconds. Raises ValueError."""
    # The negated form also rejects NaN, because all comparisons with NaN are false.
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{name} must be 0 to {MAX_SECONDS} seconds, not {seconds:g}")


def seconds_until(deadline: float) -> float:
    """The seconds until C(deadline), on the monotonic clock. Raises TimeoutError if it has passed."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining
