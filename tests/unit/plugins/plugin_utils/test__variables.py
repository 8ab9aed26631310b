# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names, lists and patterns are read from variables in all their notations."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.plugin_utils import _variables

WORDS: list[tuple[Any, list[str]]] = [
    ("", []),
    (None, []),
    ([], []),
    ("web", ["web"]),
    ("web, other", ["web", "other"]),
    (" web,,other ,", ["web", "other"]),
    (["web", "other"], ["web", "other"]),
    ([80, "web"], ["80", "web"]),
    (80, ["80"]),
    (4.2, ["4.2"]),
]


@pytest.mark.parametrize(("value", "expected"), WORDS)
def test_words_are_split(value: Any, expected: list[str]) -> None:
    assert _variables.words(value) == expected


PATTERNS: list[tuple[Any, str]] = [
    ("", ""),
    (None, ""),
    ([], ""),
    ("lb", "lb"),
    ("lb1, lb2", "lb1,lb2"),
    ("lb:!lb2", "lb,!lb2"),
    ("lb[1:2]", "lb[1:2]"),
    (["lb1", "lb2"], "lb1,lb2"),
    (["lb:!lb2", "lb3, lb4"], "lb,!lb2,lb3,lb4"),
    ("2001:db8::10", "2001:db8::10"),
    ("!2001:db8::10", "!2001:db8::10"),
    ("lb,!2001:db8::10", "lb,!2001:db8::10"),
    (["2001:db8::10", "2001:db8::11"], "2001:db8::10,2001:db8::11"),
    (["all", "!2001:db8::10"], "all,!2001:db8::10"),
    ("!a:b:c", "!a,b,c"),
    (10, "10"),
    ([10, 11], "10,11"),
]


@pytest.mark.parametrize(("value", "expected"), PATTERNS)
def test_host_patterns_are_normalized(value: Any, expected: str) -> None:
    assert _variables.host_pattern(value) == expected
    # A normalized pattern does not change again.
    assert _variables.host_pattern(expected) == expected


GROUPS = {
    "all": ["web1", "web2", "lb1", "2001:db8::10", "10"],
    "ungrouped": ["2001:db8::10", "10"],
    "web": ["web1", "web2"],
    "empty": [],
    "lb": ["lb1"],
}

HOSTS: list[tuple[Any, str | None, str]] = [
    ("web", None, "web"),
    ("web:!web2", None, "web,!web2"),
    (["web1", "web2"], None, "web1,web2"),
    ("web", "web1", "web"),
    (10, None, "10"),
    ("2001:db8::10", None, "2001:db8::10"),
    ("all,!2001:db8::10", None, "all,!2001:db8::10"),
    ("localhost", None, "localhost"),
    ("", "web1", "all"),
]


@pytest.mark.parametrize(("wanted", "limit", "expected"), HOSTS)
def test_hosts_of_a_play_are_found(wanted: Any, limit: str | None, expected: str) -> None:
    assert _variables.hosts_of_play(wanted, GROUPS, limit, "drain") == expected


def test_no_hosts_means_all_hosts_for_a_harmless_playbook() -> None:
    assert _variables.hosts_of_play("", GROUPS) == "all"


NO_HOSTS: list[tuple[Any, str | None]] = [
    ("", None),
    (None, ""),
    ([], None),
    ("wbe", None),
    ("empty", None),
    ("web,!web", None),
    ("web", "lb"),
    ("~(", None),
    ("web[5:]", None),
    ("web,wbe2", None),
    ("web,!wbe2", None),
    ("web:&wbe", None),
]


@pytest.mark.parametrize(("wanted", "limit"), NO_HOSTS)
def test_missing_or_unknown_hosts_of_a_play_are_refused(wanted: Any, limit: str | None) -> None:
    with pytest.raises(_variables.VariableError):
        _variables.hosts_of_play(wanted, GROUPS, limit, "drain")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", []),
        ("web,!web1", []),
        ("web:empty", []),
        ("~web[0-9],localhost,web[0]", []),
        ("web,wbe,!bad,&worse", ["bad", "wbe", "worse"]),
        (["web", "2001:db8::99"], ["2001:db8::99"]),
    ],
)
def test_unknown_names_in_a_pattern_are_listed(pattern: Any, expected: list[str]) -> None:
    assert _variables.strangers(pattern, GROUPS) == expected


SERIALS: list[tuple[Any, list[str]]] = [
    (1, ["1"]),
    ("2", ["2"]),
    ("25%", ["25%"]),
    ([1, "25%"], ["1", "25%"]),
    ("1, 100%", ["1", "100%"]),
]


@pytest.mark.parametrize(("value", "expected"), SERIALS)
def test_batch_sizes_are_parsed(value: Any, expected: list[str]) -> None:
    assert _variables.serial(value) == expected


@pytest.mark.parametrize("value", ["", [], 0, "0%", -1, "101%", "two", 1.5, "1 2", "9" * 9, [1, "x"], True])
def test_invalid_batch_sizes_are_refused(value: Any) -> None:
    with pytest.raises(_variables.VariableError, match="hapgent_serial must be"):
        _variables.serial(value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("hapgent_min_upp", "hapgent_min_up"),
        ("hapgent_resaon", "hapgent_reason"),
        ("hapgent_host", "hapgent_hosts"),
        ("hapgent_load_balancer", "hapgent_load_balancers"),
        ("hapgent_Port", "hapgent_port"),
        ("hapgent_haproxy_servers", "hapgent_haproxy_server"),
    ],
)
def test_unknown_variable_gets_a_suggestion(name: str, nearest: str) -> None:
    (problem,) = _variables.unknown([name, "hapgent_port", "hapgent__private", "other"])
    assert f"{name} is " in problem
    assert problem.endswith(f" {nearest}?")
    assert _variables.unknown([name], [name]) == []


def test_unknown_variable_without_a_similar_one_gets_no_suggestion() -> None:
    (problem,) = _variables.unknown(["hapgent_qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq"], "hapgent_x, hapgent_y")
    assert "?" not in problem
