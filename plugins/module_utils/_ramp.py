# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# The agent ships the same file: standard library only, Python 3.9 and later.

"""The ramp: after a server has come into rotation, the agent sends a growing part of its weight."""

from __future__ import annotations

import math
import re
import typing as t

from ._state import IN_ROTATION, State


class Ramp(t.NamedTuple):
    """Percentages of the weight, each of which is sent for C(seconds). Without percentages, there is no ramp.

    The last one is 100. It is sent for as long as the others, because a load balancer keeps the last weight that it
    received, and the state may have none.
    """

    percents: tuple[int, ...] = ()
    seconds: int = 60

    @property
    def climbs_for(self) -> int:
        """How many seconds it takes until a server has its whole weight."""
        return self.seconds * max(0, len(self.percents) - 1)

    def sent(self, state: State, elapsed: float) -> tuple[State, float]:
        """The state to send C(elapsed) seconds after its server came into rotation, and for how many seconds."""
        if elapsed >= self.seconds * len(self.percents):
            return state, math.inf
        number = int(max(0.0, elapsed) // self.seconds)
        return ramped(state, self.percents[number]), self.seconds * (number + 1) - elapsed


def ramped(state: State, percent: int) -> State:
    """This state with a percentage of its weight, which is 100 if it has none. Only the weight 0 becomes 0."""
    if state.status not in IN_ROTATION or state.weight == 0:
        return state
    weight = 100 if state.weight is None else state.weight
    return state._replace(weight=max(1, weight * percent // 100))


def parse_percents(text: str) -> tuple[int, ...]:
    """The percentages in a text that separates them with commas. Raises ValueError.

    They must ascend and end with 100. An empty text has none.
    """
    words = text.split(",") if text else []
    percents = tuple(int(word) for word in words if re.fullmatch(r"[1-9][0-9]?|100", word))
    if len(percents) < len(words) or [*percents] != sorted({*percents}) or percents[-1:] not in ((), (100,)):
        raise ValueError(text)
    return percents
