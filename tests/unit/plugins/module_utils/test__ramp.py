# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The weight that is sent at each moment of a ramp, and the texts that describe one."""

from __future__ import annotations

import math

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._ramp import Ramp, parse_percents, ramped
from ansible_collections.hapgent.agent.plugins.module_utils._state import STATUSES, State

RAMP = Ramp((10, 50, 100), 60)


@pytest.mark.parametrize(
    ("elapsed", "weight", "seconds"),
    [
        # The clock of a memory may be a little ahead.
        (-1e-9, 10, 60),
        (0, 10, 60),
        (59.5, 10, 0.5),
        (60, 50, 60),
        (119.5, 50, 0.5),
        (120, 100, 60),
        (179.5, 100, 0.5),
        (180, None, math.inf),
        (math.inf, None, math.inf),
    ],
)
def test_weight_grows_with_the_time(elapsed: float, weight: int | None, seconds: float) -> None:
    sent, left = RAMP.sent(State("UP"), elapsed)
    assert sent == State("UP", weight)
    assert left == pytest.approx(seconds)


def test_without_percentages_the_state_is_sent() -> None:
    assert Ramp().sent(State("UP"), 0) == (State("UP"), math.inf)


@pytest.mark.parametrize(("percents", "seconds"), [((), 0), ((100,), 0), ((50, 100), 60), ((10, 50, 100), 120)])
def test_time_until_the_whole_weight(percents: tuple[int, ...], seconds: int) -> None:
    assert Ramp(percents).climbs_for == seconds


@pytest.mark.parametrize(
    ("weight", "percent", "sent"),
    [(None, 10, 10), (50, 10, 5), (255, 50, 127), (5, 10, 1), (1, 99, 1), (0, 10, 0), (50, 100, 50), (255, 100, 255)],
)
def test_weight_of_a_percentage(weight: int | None, percent: int, sent: int) -> None:
    before = State("READY", weight, 9, "note")
    assert ramped(before, percent) == before._replace(weight=sent)


def test_only_servers_in_rotation_ramp() -> None:
    assert [status for status in STATUSES if ramped(State(status), 10) != State(status)] == ["UP", "READY"]


@pytest.mark.parametrize(
    ("text", "percents"), [("", ()), ("100", (100,)), ("10,50,100", (10, 50, 100)), ("1,2,99,100", (1, 2, 99, 100))]
)
def test_percentages(text: str, percents: tuple[int, ...]) -> None:
    assert parse_percents(text) == percents


@pytest.mark.parametrize(
    "text",
    [
        *["50", "0,100", "100,100", "50,10,100", "10,50", "101", "10,100,101", "10,10,100", "-1,100", "010,100"],
        *["10, 100", " 100", "100\n", "10,,100", ",100", "100,", ",", "1.5,100", "x", "\u0661,100", "9" * 5000],
    ],
)
def test_invalid_percentages(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(?!invalid literal)"):
        parse_percents(text)
