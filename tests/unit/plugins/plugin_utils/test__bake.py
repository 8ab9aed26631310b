# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host that is back in rotation is watched until its bake is over, or until it leaves rotation or causes errors."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.plugin_utils._bake import (
    MAX_ROUNDS,
    MIN_ROUND_SECONDS,
    Bake,
    Host,
    begin,
    host,
    proceed,
)

Result = dict[str, Any]
NOW = 1000.0


def of(server: str, *, seconds: float = 10, max_errors: int = 0, balancers: tuple[str, ...] = ("lb1", "lb2")) -> Host:
    return host({name: {"hapgent": [f"web/{server}"]} for name in balancers}, seconds, max_errors, "lb*")


def asked(name: str, server: str = "web1", *, takes: bool = True, pid: int | None = 1, **counters: int) -> Result:
    """What a load balancer reports about a server. Counters that are not given are 0; hrsp_5xx is null."""
    every = {"chkdown": 0, "econ": 0, "eresp": 0, "hrsp_5xx": None, **counters}
    row = {"backend": "web", "server": server, "status": "UP" if takes else "MAINT", "takes_new_sessions": takes}
    return {"item": name, "servers": [{**row, "counters": every}], "haproxy": pid and {"pid": pid}}


def baked(before: list[Result], *looks: list[Result], max_errors: int = 0, unhealthy: str = "") -> Bake:
    """The bake of web1 after these looks, one second apart, which its 10 seconds outlast."""
    bake = begin({"web1": of("web1", max_errors=max_errors)}, before, NOW)
    for second, look in enumerate(looks):
        bake = proceed(bake, look, {"web1": unhealthy}, NOW + second)
    return bake


def both(**counters: Any) -> list[Result]:
    return [asked("lb1", **counters), asked("lb2", **counters)]


# The arguments of baked(), and a part of the problem, '' if there is none.
PROBLEMS: dict[str, tuple[list[list[Result]], str]] = {
    "nothing happens": ([both(), both(), both()], ""),
    "old errors": ([both(econ=3, hrsp_5xx=2), both(econ=3, hrsp_5xx=2)], ""),
    "a failed connection": ([both(econ=3), both(econ=4)], "econ 2."),
    "a response 500, at first": ([both(hrsp_5xx=7), [asked("lb1", hrsp_5xx=8)]], "hrsp_5xx 1."),
    "a failed response, later": ([both(), both(), [asked("lb1", eresp=1), asked("lb2")]], "eresp 1."),
    "out of rotation on one": ([both(), [asked("lb1"), asked("lb2", takes=False)]], "lb2: web/web1 is MAINT."),
    "down for a moment": ([both(chkdown=2), both(chkdown=2), [asked("lb1", chkdown=3)]], "DOWN"),
    "a reload": ([both(econ=9), [asked("lb1", pid=2), asked("lb2", econ=9)]], ""),
    "an error after a reload": ([both(econ=9), [asked("lb1", pid=2, econ=1), asked("lb2", econ=9)]], "econ 1."),
    "as many errors as before a reload": ([both(econ=9), [asked("lb1", pid=2, econ=9)]], "econ 9."),
    "a restart, seen by a page": ([[asked("lb1", pid=None, econ=9)], [asked("lb1", pid=None, econ=2)]], "econ 2."),
    "an error long after a reload": ([both(), [asked("lb1", pid=2)], [asked("lb1", pid=2, econ=1)]], "econ 1."),
    "one that did not answer at first": ([[asked("lb1", econ=5)], both(econ=5), both(econ=5)], ""),
    "one that does not answer for a while": ([both(), [asked("lb1"), {"item": "lb2", "msg": "No."}], both()], ""),
    "an error while one did not answer": ([both(), [{"item": "lb1", "msg": "No."}], both(econ=1)], "econ 2."),
    "other servers": ([both(), [asked("lb1", "web2", econ=1), asked("lb9", econ=1)]], ""),
}


@pytest.mark.parametrize(("looks", "part"), PROBLEMS.values(), ids=PROBLEMS)
def test_host_fails_as_soon_as_it_has_a_problem(looks: list[list[Result]], part: str) -> None:
    bake = baked(*looks)
    problem = bake["hosts"]["web1"]["problem"]
    assert part in problem if part else not problem
    assert bake["baking"] == ([] if part else ["web1"])


@pytest.mark.parametrize(("max_errors", "fails"), [(3, True), (4, False)])
def test_errors_of_all_kinds_and_load_balancers_count_together(max_errors: int, fails: bool) -> None:
    bake = baked(both(), both(econ=1), both(econ=1, eresp=1), max_errors=max_errors)
    assert bool(bake["hosts"]["web1"]["problem"]) == fails


def test_unhealthy_service_is_a_problem() -> None:
    assert baked(both(), both(), unhealthy="Status 503.")["hosts"]["web1"]["problem"] == "Status 503."


def test_bake_lasts_from_the_first_look_to_one_after_its_end() -> None:
    bake = baked(both())
    assert bake["round_ends"] <= NOW
    bake = proceed(bake, both(), {}, NOW + 3)
    assert (bake["round_ends"], bake["messages"]) == (NOW + 3 + MIN_ROUND_SECONDS, ["Watching web1 for 10 s more."])
    bake = proceed(bake, both(), {}, NOW + 9)
    assert bake["round_ends"] == NOW + 13
    # This look may have begun before the end.
    bake = proceed(bake, both(), {}, NOW + 13.1)
    assert bake["baking"] == ["web1"]
    assert bake["round_ends"] <= NOW + 13.1
    failed = proceed(bake, [asked("lb1"), {"item": "lb2", "msg": "No."}], {}, NOW + 13.2)
    assert "lb2" in failed["hosts"]["web1"]["problem"]
    bake = proceed(bake, both(), {}, NOW + 13.2)
    assert (bake["baking"], bake["queries"], bake["hosts"]["web1"]["problem"]) == ([], {}, "")


def test_hosts_bake_for_their_own_times_and_fail_alone() -> None:
    hosts = {"web1": of("web1", seconds=600), "web2": of("web2", seconds=0, balancers=("lb2",)), "web3": of("web3")}
    bake = begin(hosts, [], NOW)
    assert bake["queries"] == {"lb1": ["web/web1", "web/web3"], "lb2": ["web/web1", "web/web2", "web/web3"]}
    bake = proceed(bake, [asked("lb2", "web3", takes=False)], {}, NOW)
    assert bake["baking"] == ["web1", "web2"]
    bake = proceed(bake, [asked("lb2", "web2")], {}, NOW)
    assert bake["baking"] == ["web1"]
    assert bake["queries"] == {"lb1": ["web/web1"], "lb2": ["web/web1"]}
    assert bake["round_ends"] == NOW + 600 / MAX_ROUNDS


def test_host_without_load_balancers_is_only_checked_for_its_health() -> None:
    bake = proceed(begin({"web1": of("web1", balancers=())}, [], NOW), [], {}, NOW)
    assert (bake["baking"], bake["queries"]) == (["web1"], {})


def test_text_of_load_balancers_is_escaped() -> None:
    look = asked("lb1", takes=False)
    look["servers"][0]["status"] = "\x1b[2J"
    assert baked(both(), [look])["hosts"]["web1"]["problem"].isprintable()
