# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reports about load balancers name the right hosts, addresses and remedies."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.plugin_utils import _balancers
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import (
    addresses,
    change_line,
    change_outcome,
    change_problem,
    name_of,
    query_problems,
    server_problems,
    with_names,
    without,
)

Result = dict[str, Any]

FINE: Result = {"item": "lb1", "servers": []}
KNOWN = {"198.51.100.11": "lb1", "198.51.100.12": "lb2", "2001:db8::12": "lb2"}


def failed(item: str, cause: str | None = None, msg: str = "It failed.") -> Result:
    return {"item": item, "msg": msg, **({"cause": cause} if cause else {})}


# Failed queries, and the load balancers that may be down, which the report advises to exclude.
FAILED: dict[str, tuple[list[Result], list[str]]] = {
    "none": ([], []),
    "silent": ([failed("lb2", "silent")], ["lb2"]),
    "cannot be reached": ([{**failed("lb2"), "unreachable": True}], ["lb2"]),
    "refuses the login": (
        [{**failed("lb2", msg="Failed to connect: admin@lb2: Permission denied (publickey)."), "unreachable": True}],
        [],
    ),
    "no such backend": ([failed("lb2", "selection")], []),
    "not permitted": ([failed("lb2", "permission")], []),
    "unexpected answer": ([failed("lb2", "answer")], []),
    "unknown": ([failed("lb2")], []),
    "two kinds": ([failed("lb2", "selection"), failed("lb3", "silent"), failed("lb4", "silent")], ["lb3", "lb4"]),
}


@pytest.mark.parametrize(("results", "down"), FAILED.values(), ids=FAILED)
def test_report_on_failed_queries(results: list[Result], down: list[str]) -> None:
    report = query_problems([FINE, *results], "lb")
    assert bool(report) == bool(results)
    assert all(result["item"] in report for result in results)
    assert "lb1" not in report
    excluded = "".join(f",!{name}" for name in down)
    assert (f"hapgent_load_balancers='lb{excluded}'" in report) == bool(down)
    assert ("hapgent_load_balancers" in report) == bool(down)


def rows(name: str, *servers: str, unreadable: str = "") -> Result:
    return {
        "item": name,
        "servers": [{"backend": "web", "server": server} for server in servers],
        "unreadable": {unreadable: "7 of 90 columns\x1b"} if unreadable else {},
    }


@pytest.mark.parametrize(
    ("asked", "backends", "parts"),
    [
        ([], [], []),
        ([rows("lb1", "web1"), rows("lb2", "web2", "web1", unreadable="web/web1")], [], []),
        (
            [rows("lb1", "web1"), rows("lb2"), rows("lb3")],
            [],
            [
                "HAProxy on lb2, lb3 has no server web1 in any backend: "
                "set hapgent_server to the server's name in HAProxy."
            ],
        ),
        ([rows("lb1", "web2")], ["web", "api"], ["lb1", "web1", "web, api", "hapgent_server"]),
        ([rows("lb1", unreadable="web/web1")], [], ["lb1: ", "web/web1", "7 of 90 columns"]),
        ([rows("lb1", unreadable="web/?")], [], ["lb1: ", "web/?"]),
        ([rows("lb1", unreadable="web/web2")], [], ["lb1", "web1", "hapgent_server"]),
        ([rows("lb1", unreadable="web/web1"), rows("lb2")], [], ["lb1: ", "web/web1", "lb2", "hapgent_server"]),
    ],
)
def test_report_on_missing_and_unreadable_servers(asked: list[Result], backends: list[str], parts: list[str]) -> None:
    report = server_problems(asked, "web1", backends)
    assert bool(report) == bool(parts)
    assert all(part in report for part in parts)
    assert report.isprintable()
    assert ("hapgent_server" in report) == any("hapgent_server" in part for part in parts)


@pytest.mark.parametrize("variable", ["item", "hapgent__balancer"])
def test_name_is_found_under_any_loop_variable(variable: str) -> None:
    result = {**failed("not of this loop", "silent"), "ansible_loop_var": variable, variable: "lb2"}
    assert name_of(result) == "lb2"
    assert "!lb2'" in query_problems([result], "lb")


def test_report_on_failed_queries_is_printable_and_short() -> None:
    report = query_problems([failed("lb\x1b[2J", "silent", "\x1b]0;" + "x" * 10**6)], "lb\x07")
    assert report.isprintable()
    assert len(report) < 3000


@pytest.mark.parametrize(
    ("pattern", "names", "advised"),
    [
        ("lb", ["lb2"], "lb,!lb2"),
        ("lb:other", ["lb2"], "lb,other,!lb2"),
        ("lb:!lb3", ["lb2"], "lb,!lb3,!lb2"),
        ("lb, other", ["lb1", "lb2"], "lb,other,!lb1,!lb2"),
        (["lb1", "lb2"], ["lb2"], "lb1,lb2,!lb2"),
        ("lb", ["2001:db8::10"], "lb,!2001:db8::10"),
        ("2001:db8::9,2001:db8::10", ["2001:db8::10"], "2001:db8::9,2001:db8::10,!2001:db8::10"),
    ],
)
def test_advised_pattern(pattern: Any, names: list[str], advised: str) -> None:
    assert without(pattern, names) == advised


# The module's result, the excluded load balancers, their pattern, and what must and must not be in the report.
CHANGE_PROBLEMS: dict[str, tuple[Result, list[str], str, list[str], list[str]]] = {
    "a known load balancer": (
        {
            "msg": "not to 198.51.100.12 (never seen).",
            "not_received_by": ["198.51.100.12"],
            "after": {"status": "DRAIN"},
        },
        [],
        "lb",
        ["198.51.100.12 (lb2)", " The agent stays in DRAIN. ", "hapgent_load_balancers='lb,!lb2'"],
        ["hapgent_source_addresses"],
    ),
    "a load balancer with two addresses": (
        {"msg": "not to some.", "not_received_by": ["198.51.100.12", "2001:db8::12"]},
        [],
        "lb",
        ["'lb,!lb2'"],
        ["stays", "!lb2,!lb2"],
    ),
    "hosts with different load balancers": (
        {"msg": "not to 198.51.100.12.", "not_received_by": ["198.51.100.12"]},
        [],
        "",
        ["hapgent_load_balancers"],
        ["hapgent_load_balancers=", "!"],
    ),
    "an unknown address": (
        {"msg": "not to 192.0.2.9.", "not_received_by": ["192.0.2.9"]},
        [],
        "lb",
        ["192.0.2.9", "hapgent_source_addresses"],
        ["!"],
    ),
    "an unknown address, and one load balancer is excluded": (
        {"msg": "not to 192.0.2.9.", "not_received_by": ["192.0.2.9"]},
        ["lb3"],
        "lb,!lb3",
        ["192.0.2.9", "lb3", "hapgent_source_addresses"],
        ["hapgent_load_balancers"],
    ),
    "no load balancers configured": (
        {"msg": "not to 192.0.2.9.", "not_received_by": ["192.0.2.9"], "received_by": ["192.0.2.7", "192.0.2.8"]},
        [],
        "",
        ["hapgent_wait_for='192.0.2.7,192.0.2.8'"],
        ["hapgent_source_addresses"],
    ),
    "nothing was changed": (
        {"msg": "No agent. Nothing was changed.", "after": {"status": "UP"}},
        [],
        "lb",
        ["No agent. Nothing was changed."],
        ["stays", "hapgent_"],
    ),
    "changed by another run and therefore kept": (
        {
            "kept": True,
            "after": {"status": "MAINT", "reason": "disk\u202e"},
            "received_by": [],
            "not_received_by": ["192.0.2.9"],
        },
        [],
        "lb",
        ["MAINT UP # disk", "This run did not change it"],
        ["stays", "hapgent_"],
    ),
    "only a message": ({"msg": "MODULE FAILURE"}, [], "lb", ["MODULE FAILURE."], ["hapgent_"]),
}


@pytest.mark.parametrize(
    ("result", "left_out", "pattern", "parts", "others"), CHANGE_PROBLEMS.values(), ids=CHANGE_PROBLEMS
)
def test_report_on_a_failed_change(
    result: Result, left_out: list[str], pattern: str, parts: list[str], others: list[str]
) -> None:
    report = change_problem(result, KNOWN, left_out, pattern)
    for part in parts:
        assert part in report
    for part in others:
        assert part not in report
    assert report.isprintable()


def changed(state: Result, *, made: bool = False, **result: Any) -> Result:
    return {"item": {"made": made}, "changed": True, "kept": False, "after": state, **result}


def test_outcome_of_a_change_of_several_agents() -> None:
    drained, up = {"status": "DRAIN"}, {"status": "UP"}
    done = changed(drained, made=True)
    assert change_outcome([("web1 shop", done), ("web1 api", done)], {}, [], "lb") == {
        "reported": "DRAIN",
        "refusal": "",
    }
    assert change_outcome([("web1 shop", done), ("web1 api", changed(up))], {}, [], "lb")["reported"] == "DRAIN and UP"
    kept = changed({"status": "MAINT"}, kept=True)
    refusal = change_outcome([("web1 shop", done), ("web1 api", kept)], {}, [], "lb")["refusal"]
    assert "Nothing was changed" not in refusal
    assert refusal.startswith("web1 api: the state was changed meanwhile")
    assert refusal.endswith("The state of web1 shop was changed.")
    assert change_outcome([("web1", kept)], {}, [], "lb")["refusal"].startswith("web1: the state was changed meanwhile")


@pytest.mark.parametrize(
    ("received_by", "end"),
    [([], "(was UP)"), (["192.0.2.1"], "(was UP), received by 1 load balancer"), (["192.0.2.1"] * 2, " balancers")],
)
def test_line_about_a_change(received_by: list[str], end: str) -> None:
    after = {"status": "DRAIN", "reason": "disk"}
    line = change_line("web1 shop", {"before": {"status": "UP"}, "after": after, "received_by": received_by})
    assert line.startswith("web1 shop: DRAIN UP # disk (was UP)")
    assert line.endswith(end)


DOWN = "If lb2 is down and sends no sessions, exclude it"
ARE_DOWN = "If lb2, lb3 are down and send no sessions, exclude them"


@pytest.mark.parametrize(
    ("names", "pattern", "advice"),
    [
        (["lb2"], "lb", f"{DOWN}: hapgent_load_balancers='lb,!lb2'."),
        (["lb2", "lb3"], "lb", f"{ARE_DOWN}: hapgent_load_balancers='lb,!lb2,!lb3'."),
        # If hosts have different load balancers, no value is right for all of them.
        (["lb2"], "", f"{DOWN} from hapgent_load_balancers."),
        (["lb2", "lb3"], "", f"{ARE_DOWN} from hapgent_load_balancers."),
    ],
)
def test_advice_about_load_balancers_that_may_be_down(names: list[str], pattern: str, advice: str) -> None:
    assert query_problems([failed(name, "silent") for name in names], pattern).endswith(f" {advice}")


ONE, TWO = ["192.0.2.9"], ["192.0.2.9", "192.0.2.10"]


@pytest.mark.parametrize(
    ("missing", "left_out", "pattern", "advice"),
    [
        (ONE, ["lb3"], "lb", "If 192.0.2.9 belongs to lb3, set hapgent_source_addresses of that host."),
        (
            TWO,
            ["lb3", "lb4"],
            "lb",
            "If 192.0.2.9, 192.0.2.10 belong to lb3 or lb4, set hapgent_source_addresses of that host.",
        ),
        (
            ONE,
            [],
            "lb",
            "If 192.0.2.9 belongs to one of the load balancers, set hapgent_source_addresses of that host.",
        ),
        (
            TWO,
            [],
            "lb",
            "If 192.0.2.9, 192.0.2.10 belong to one of the load balancers, set hapgent_source_addresses of that host.",
        ),
        (ONE, [], "", "If 192.0.2.9 is down and sends no sessions, exclude it: hapgent_wait_for='192.0.2.7'."),
        (
            TWO,
            [],
            "",
            "If 192.0.2.9, 192.0.2.10 are down and send no sessions, exclude them: hapgent_wait_for='192.0.2.7'.",
        ),
    ],
)
def test_advice_about_addresses_without_a_name(
    missing: list[str], left_out: list[str], pattern: str, advice: str
) -> None:
    result = {"msg": "not to some.", "not_received_by": missing, "received_by": ["192.0.2.7"]}
    assert change_problem(result, {}, left_out, pattern) == f"not to some. {advice}"


def test_names_are_added_to_addresses() -> None:
    text = "not to 198.51.100.12, 198.51.100.121, 2001:db8::12 and 198.51.100.11."
    assert with_names(text, KNOWN) == (
        "not to 198.51.100.12 (lb2), 198.51.100.121, 2001:db8::12 (lb2) and 198.51.100.11 (lb1)."
    )
    assert with_names("polled lb2", {}) == "polled lb2"


def test_addresses_of_hosts() -> None:
    hosts = [
        ("lb1", "198.51.100.11", []),
        # This host connects from other addresses.
        ("lb2", "198.51.100.12", ["203.0.113.2", "2001:DB8:0::2"]),
        ("198.51.100.13", "", []),
        ("localhost", "", []),
        ("lb.invalid", "", []),
    ]
    found = addresses(hosts)
    assert found.pop("::1", "localhost") == "localhost"
    assert found == {
        "198.51.100.11": "lb1",
        "203.0.113.2": "lb2",
        "2001:db8::2": "lb2",
        "198.51.100.13": "198.51.100.13",
        "127.0.0.1": "localhost",
    }
    assert addresses([]) == {}


def test_addresses_do_not_wait_for_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*_arguments: object) -> list[object]:
        over.wait(60)
        return []

    monkeypatch.setattr("socket.getaddrinfo", hang)
    monkeypatch.setattr(_balancers, "LOOKUP_SECONDS", 0.2)
    started = time.monotonic()
    assert addresses([("lb1", "a", []), ("lb2", "b", []), ("lb3", "192.0.2.3", None)]) == {"192.0.2.3": "lb3"}
    over.set()
    assert time.monotonic() - started < 30
