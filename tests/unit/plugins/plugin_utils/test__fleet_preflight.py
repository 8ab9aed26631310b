# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks refuse wrong variables before they query a host."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.plugin_utils._fleet_preflight import Given, problems

GROUPS = {"all": ["web1", "lb1", "lb2"], "web": ["web1"], "lb": ["lb1", "lb2"]}
GIVEN: Given = {
    "names": ["hapgent_hosts", "hapgent_reason"],
    "own": [],
    "play": "Drain web",
    "stray_words": "",
    "pattern": "lb",
    "balancers": ["lb1", "lb2"],
    "names_there": ["hapgent_haproxy_socket"],
    "own_there": [],
    "numbers": {},
}
FROM_THE_INVENTORY = {"play": "Drain the hosts of --limit, one at a time"}

NUMBERS = {
    "hapgent_until": "",
    "hapgent_lock": "",
    "hapgent_min_up": 1,
    "hapgent_min_up_wait": 0,
    "hapgent_grace": 300,
    "hapgent_wait_timeout": "60",
    "hapgent_server_port": None,
}

TOO_EARLY = "With hapgent_then, hapgent_until must be later than the drain can end, which is 360 s from now"

# The changed inputs, and parts of each problem.
CASES: dict[str, tuple[dict[str, Any], list[list[str]]]] = {
    "nothing": ({}, []),
    "no load balancers": ({"pattern": "", "balancers": [], "names_there": []}, []),
    "misspelt": ({"names": ["hapgent_resaon"]}, [["hapgent_reason?"], ["hapgent_own_variables"]]),
    "misspelt, but declared as own": ({"names": ["hapgent_resaon"], "own": "hapgent_resaon"}, []),
    "misspelt on a load balancer": (
        {"names_there": ["hapgent_haproxy_sockte"]},
        [["lb1, lb2", "hapgent_haproxy_socket?"], ["hapgent_own_variables"]],
    ),
    "misspelt everywhere": (
        {"names": ["hapgent_resaon"], "names_there": ["hapgent_resaon"]},
        [["hapgent_reason?"], ["hapgent_own_variables"]],
    ),
    "own variable of a load balancer": ({"names_there": ["hapgent_color"], "own_there": ["hapgent_color"]}, []),
    "own variable, on a load balancer": ({"names_there": ["hapgent_color"], "own": ["hapgent_color"]}, []),
    "hosts from the inventory": (
        FROM_THE_INVENTORY,
        [["hapgent_hosts and hapgent_serial", "-e", "Remove hapgent_hosts from the inventory"]],
    ),
    "hosts and batch size from the inventory": (
        {**FROM_THE_INVENTORY, "names": ["hapgent_hosts", "hapgent_serial"]},
        [["Remove hapgent_hosts and hapgent_serial from"]],
    ),
    "a limit": ({**FROM_THE_INVENTORY, "names": []}, []),
    "words outside quotes": ({"stray_words": "upgrade"}, [["'upgrade'", "Quote"]]),
    "a pattern that matches nothing": ({"pattern": "lbs", "balancers": []}, [["lbs matches none"]]),
    "a name that is not in the inventory": ({"pattern": "lb,lb9"}, [["hapgent_load_balancers must", "has no lb9."]]),
    "a list that excludes a name that is not in the inventory": ({"pattern": ["lb", "!lb9"]}, [["lb9."]]),
    "sessions cut by load balancers": ({"numbers": {**NUMBERS, "hapgent_after_grace": "cut"}}, []),
    "sessions cut without load balancers": (
        {"pattern": "", "balancers": [], "names_there": [], "numbers": {**NUMBERS, "hapgent_after_grace": "cut"}},
        [["hapgent_after_grace=cut requires hapgent_load_balancers"]],
    ),
    "two problems": ({"stray_words": "x", "pattern": "lb9", "balancers": []}, [["'x'"], ["lb9"]]),
}


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES)
def test_problems_of_variables(given: Any, expected: list[list[str]]) -> None:
    found = problems({**GIVEN, **given}, GROUPS)
    assert len(found) == len(expected)
    for problem, parts in zip(found, expected, strict=True):
        assert problem.endswith((".", "?"))
        assert all(part in problem for part in parts)


@pytest.mark.parametrize(
    ("name", "value", "is_right"),
    [
        *(("hapgent_min_up", value, True) for value in (0, "2", "0%", "100%", "75%", 999999)),
        *(("hapgent_min_up", value, False) for value in (-1, "two", "101%", "", None, "1 ", "7\n", "5%%", 1.5)),
        *(("hapgent_grace", value, True) for value in (0, "0", 86400)),
        *(("hapgent_grace", value, False) for value in (-1, 86401, "x", "nan", "inf", "")),
        *(("hapgent_max_sessions", value, True) for value in (0, "5", 2147483647)),
        *(("hapgent_max_sessions", value, False) for value in (-1, 2147483648, "x")),
        *(("hapgent_max_failed", value, True) for value in (0, "2", "5%")),
        *(("hapgent_max_failed", value, False) for value in (-1, "", "few", None)),
        *(("hapgent_stop_after", value, True) for value in (0, "1", "100%")),
        *(("hapgent_stop_after", value, False) for value in (-1, "101%", [1])),
        *(("hapgent_pause", value, True) for value in (0, 600)),
        *(("hapgent_pause", value, False) for value in (-1, "long", 86401)),
        *(("hapgent_min_up_wait", value, True) for value in (0, "60")),
        *(("hapgent_min_up_wait", value, False) for value in (-1, 86401, "long")),
        *(("hapgent_bake", value, True) for value in (0, 86400)),
        *(("hapgent_bake", value, False) for value in (-1, 86401)),
        *(("hapgent_bake_errors", value, True) for value in (0, "5")),
        *(("hapgent_bake_errors", value, False) for value in (-1, "few")),
        *(("hapgent_wait_timeout", value, True) for value in (0.5, "86400")),
        *(("hapgent_wait_timeout", value, False) for value in (-0.1, 1e10)),
        *(("hapgent_server_port", value, True) for value in (None, 1, "65535")),
        *(("hapgent_server_port", value, False) for value in (0, 65536, "http")),
        *(("hapgent_lock", value, True) for value in ("/run/shop.lock", "/x")),
        *(("hapgent_lock", value, False) for value in ("shop.lock", "true", "/run/", "/", "~/shop.lock")),
        *(("hapgent_lock_expires", value, True) for value in (60, "604800")),
        *(("hapgent_lock_expires", value, False) for value in (59, 604801, "1h")),
        *(("hapgent_until", value, True) for value in ("2h", "2999-01-01T00:00:00Z", "2999-01-01 00:00:00+00:00")),
        *(("hapgent_until", value, False) for value in ("2", "06:00", "2999-01-01T00:00:00", "2020-01-01T00:00:00Z")),
    ],
)
def test_problems_of_numbers(name: str, value: Any, is_right: bool) -> None:
    found = problems({**GIVEN, "numbers": {**NUMBERS, name: value}}, GROUPS)
    assert [problem.partition(" ")[0] for problem in found] == ([] if is_right else [name])


@pytest.mark.parametrize(
    ("until", "then", "expected"),
    [
        ("2h", "UP", []),
        ("2h", "", []),
        ("", "UP", ["hapgent_then requires hapgent_until"]),
        ("2h", "up", ["hapgent_then must be UP, not up"]),
        ("5m", "UP", [f"{TOO_EARLY}: the sum of hapgent_min_up_wait, hapgent_wait_timeout, hapgent_grace"]),
        ("7m", "UP", []),
        ("", "READY", ["hapgent_then must be UP, not READY"]),
    ],
)
def test_what_follows_is_up_at_a_moment(until: str, then: str, expected: list[str]) -> None:
    found = problems({**GIVEN, "numbers": {**NUMBERS, "hapgent_until": until, "hapgent_then": then}}, GROUPS)
    assert [
        problem.partition(",")[0] if "requires" in problem else problem.rstrip(".") for problem in found
    ] == expected
