# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each load balancer is queried for all hosts at once, and each host is waited for until its own deadline."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.plugin_utils._waiting import (
    MAX_ROUNDS,
    MIN_ROUND_SECONDS,
    Host,
    begin,
    for_sessions,
    host,
    proceed,
)

Result = dict[str, Any]
NOW = 1000.0


def of(*titles: str, deadline: float = NOW + 60, balancers: tuple[str, ...] = ("lb1", "lb2")) -> Host:
    """A host with these servers on each of its load balancers."""
    by_service = {balancer: {"hapgent": [*titles], "hapgent@other": ["web/other"]} for balancer in balancers}
    return host(by_service, ["hapgent"], deadline, "It stays in DRAIN.", "lb*")


def asked(name: str, left: tuple[str, ...] = (), *, takes: bool = False, **sessions: int) -> Result:
    """The result of a load balancer whose servers have these sessions; those in C(left) are waited for."""
    usual = {"queue": 0, "old_sessions": None}
    rows = [
        {"backend": "web", "server": server, "takes_new_sessions": takes, **usual, "sessions": count}
        for server, count in sessions.items()
    ]
    failed = {"msg": "Not drained after 5 s.", "waiting_for": {f"web/{server}": f"{server} waits" for server in left}}
    return {"item": name, "servers": rows, **(failed if left else {})}


def test_each_load_balancer_is_queried_once_for_all_hosts() -> None:
    wait = begin("up", {"web1": of("web/web1"), "web2": of("web/web2", balancers=("lb2",))}, NOW)
    assert wait["queries"] == {"lb1": ["web/web1"], "lb2": ["web/web1", "web/web2"]}


@pytest.mark.parametrize("one", [of(), of("web/web1", balancers=())])
def test_host_without_servers_is_not_waited_for(one: Host) -> None:
    wait = begin("up", {"web1": one}, NOW)
    assert (wait["queries"], wait["deadline"]) == ({}, NOW)


def test_rounds_of_a_long_wait_are_longer() -> None:
    for seconds, length in ((20, MIN_ROUND_SECONDS), (3000, 3000 / MAX_ROUNDS)):
        assert begin("up", {"web1": of("web/web1", deadline=NOW + seconds)}, NOW)["round"] == length


def test_wait_continues_only_for_hosts_that_are_left() -> None:
    wait = begin("drained", {"web1": of("web/web1"), "web2": of("web/web2")}, NOW)
    wait = proceed(wait, [asked("lb1", web1=0, web2=0), asked("lb2", ("web2",), web1=0, web2=3)], NOW + 5)
    assert wait["queries"] == {"lb1": ["web/web2"], "lb2": ["web/web2"]}
    assert any("web2 waits" in line for line in wait["messages"])
    assert not any("web1" in line for line in wait["messages"])
    assert [wait["hosts"][name]["sessions"] for name in ("web1", "web2")] == [0, 3]
    wait = proceed(wait, [asked("lb1", web2=0), asked("lb2", web2=0)], NOW + 10)
    assert (wait["queries"], wait["messages"]) == ({}, [])
    assert not wait["hosts"]["web2"]["sessions"]


def test_host_whose_time_is_over_is_left_as_it_is() -> None:
    wait = begin("drained", {"web1": of("web/web1", deadline=NOW + 4), "web2": of("web/web2")}, NOW)
    wait = proceed(wait, [asked("lb1", ("web1", "web2"), web1=1, web2=1)], NOW + 5)
    assert wait["queries"] == {"lb1": ["web/web2"], "lb2": ["web/web2"]}
    assert wait["hosts"]["web1"]["pending"] == "lb1: web1 waits."


def test_load_balancer_that_fails_is_a_problem_of_its_hosts_only() -> None:
    hosts = {"web1": of("web/web1", balancers=("lb1",)), "web2": of("web/web2", balancers=("lb2",))}
    wait = proceed(
        begin("drained", hosts, NOW), [{"item": "lb1", "msg": "It is silent."}, asked("lb2", ("web2",), web2=1)], NOW
    )
    assert wait["queries"] == {"lb2": ["web/web2"]}
    assert "lb1" in wait["hosts"]["web1"]["problem"]
    assert wait["hosts"]["web1"]["problem"].endswith("It stays in DRAIN.")
    assert "lb1" not in wait["hosts"]["web2"]["problem"]


def test_host_has_a_problem_until_the_wait_for_it_is_over() -> None:
    """The tasks that query may fail before the first round, or between two rounds."""
    wait = begin("drained", {"web1": of("web/web1", balancers=("lb1",))}, NOW, max_sessions=1000)
    assert wait["hosts"]["web1"]["problem"].endswith("It stays in DRAIN.")
    for seconds, left in ((5, ("web1",)), (6, ())):
        wait = proceed(wait, [asked("lb1", left, web1=2)], NOW + seconds)
        assert bool(wait["hosts"]["web1"]["problem"]) == bool(left)


def test_wait_for_sessions_follows_that_for_new_ones() -> None:
    hosts = {"web1": of("web/web1", balancers=("lb1",))}
    wait = begin("drained", hosts, NOW, max_sessions=1000, graces={"web1": 300.0}, max_left=3)
    wait = proceed(wait, [asked("lb1", ("web1",), web1=5)], NOW + 5)
    assert (wait["max_sessions"], wait["deadline"]) == (1000, NOW + 60)
    wait = proceed(wait, [asked("lb1", web1=5)], NOW + 6)
    assert (wait["queries"], wait["max_sessions"], wait["deadline"]) == ({"lb1": ["web/web1"]}, 3, NOW + 306)
    assert wait["hosts"]["web1"]["problem"].endswith("It stays in DRAIN.")
    wait = proceed(wait, [asked("lb1", ("web1",), web1=5)], NOW + 306)
    assert (wait["queries"], wait["hosts"]["web1"]["sessions"]) == ({}, 5)
    assert (wait["hosts"]["web1"]["problem"], wait["hosts"]["web1"]["pending"]) == ("", "lb1: web1 waits.")


def test_status_that_may_be_outdated_is_reported_as_such() -> None:
    failed = asked("lb1", ("web1",), web1=1)
    failed["msg"] += " This is the last known status, because now it is silent."
    wait = proceed(begin("drained", {"web1": of("web/web1", balancers=("lb1",))}, NOW), [failed], NOW)
    assert "it is silent" in wait["hosts"]["web1"]["pending"]


def test_sessions_are_waited_for_only_on_servers_that_get_no_new_ones() -> None:
    hosts = {name: of(f"web/{name}", balancers=("lb1",)) for name in ("idle", "busy", "open")}
    wait = begin("drained", hosts, NOW, max_sessions=1000)
    rows = [asked("lb1", idle=0, busy=2), asked("lb1", ("open",), takes=True, open=5)]
    wait = proceed(wait, [{**rows[1], "servers": [*rows[0]["servers"], *rows[1]["servers"]]}], NOW + 60)
    assert [name for name, one in wait["hosts"].items() if one["takes_new_sessions"]] == ["open"]
    wait = for_sessions(wait, dict.fromkeys(hosts, 300.0), NOW + 60)
    assert (wait["queries"], wait["deadline"], wait["max_sessions"]) == ({"lb1": ["web/busy"]}, NOW + 360, 0)
    # What was found out about the others is kept.
    assert wait["hosts"]["open"]["pending"]


def test_servers_of_other_services_do_not_count() -> None:
    result = asked("lb1", ("other",), other=7)
    wait = proceed(begin("drained", {"web1": of("web/web1", balancers=("lb1",))}, NOW), [result], NOW)
    assert (wait["hosts"]["web1"]["pending"], wait["hosts"]["web1"]["sessions"]) == ("", 0)


def test_messages_about_many_hosts_fit_on_a_screen() -> None:
    names = [f"web{number}" for number in range(40)]
    wait = begin("drained", {name: of(f"web/{name}", balancers=("lb1",)) for name in names}, NOW)
    wait = proceed(wait, [asked("lb1", tuple(names), takes=False, **dict.fromkeys(names, 1))], NOW + 5)
    *_hosts, more, left = wait["messages"]
    assert "30 other hosts" in more
    assert "55 s" in left
    assert len(wait["messages"]) == 12


@pytest.mark.parametrize(
    ("row", "left", "goes_on"),
    [
        ({}, (), False),
        ({"old_sessions": 0}, (), False),
        ({"old_sessions": 2}, (), True),
        ({"queue": 1}, (), True),
        # HAProxy's master did not answer, so that it is not known whether old workers have sessions.
        ({}, ("web1",), True),
    ],
)
def test_what_may_be_a_session_is_waited_for(row: Result, left: tuple[str, ...], goes_on: bool) -> None:
    wait = begin("drained", {"web1": of("web/web1", balancers=("lb1",))}, NOW, max_sessions=1000)
    result = asked("lb1", left, web1=0)
    result["servers"][0].update(row)
    wait = for_sessions(proceed(wait, [result], NOW + 60), {"web1": 300.0}, NOW + 60)
    assert bool(wait["queries"]) == goes_on


def test_hosts_without_a_grace_period_are_not_waited_for() -> None:
    hosts = {name: of(f"web/{name}", balancers=("lb1",)) for name in ("web1", "web2")}
    wait = proceed(begin("drained", hosts, NOW, max_sessions=1000), [asked("lb1", web1=1, web2=1)], NOW)
    wait = for_sessions(wait, {"web2": 60.0}, NOW, max_sessions=3)
    assert (wait["queries"], wait["deadline"], wait["max_sessions"]) == ({"lb1": ["web/web2"]}, NOW + 60, 3)
