# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rolling update recognizes its progress from the hosts, and begins only if all hosts allow it."""

from __future__ import annotations

import typing as t
from typing import Any

import pytest
from ansible.inventory.manager import InventoryManager
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import Notes
from ansible_collections.hapgent.agent.plugins.plugin_utils._rolling import (
    Limits,
    Turn,
    changes,
    decision,
    host_check,
    progress,
)
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import Service

Result = dict[str, Any]

OURS = "release 10"
ONE: Service = {"name": "", "service": "hapgent", "state_file": "", "server": "s1", "backends": []}
SHOP: Service = {"name": "shop", "service": "hapgent@shop", "state_file": "", "server": "s1", "backends": ["shop"]}
API: Service = {"name": "api", "service": "hapgent@api", "state_file": "", "server": "s1", "backends": ["api"]}


def balancer(backend: str, admin: str) -> Result:
    row = {"backend": backend, "server": "s1", "status": admin.upper(), "admin_state": admin}
    return {"item": "lb1", "servers": [row]}


# The results of the agent and the load balancers; whether there is a problem and what keeps it out, done and begun.
HOST_CHECKS: dict[str, tuple[Result, list[Result], tuple[bool, bool, bool, bool]]] = {
    "open": ({"before": {"status": "UP"}}, [], (False, False, False, False)),
    "done": ({"before": {"status": "UP", "reason": OURS}}, [balancer("web", "ready")], (False, False, True, False)),
    "done by another update": ({"before": {"status": "UP", "reason": "release 9"}}, [], (False, False, False, False)),
    "begun": ({"before": {"status": "DRAIN", "reason": OURS}}, [balancer("web", "drain")], (False, False, False, True)),
    "drained with another reason": ({"before": {"status": "DRAIN", "reason": "disk"}}, [], (False, True, False, False)),
    "in maintenance": ({"before": {"status": "MAINT"}}, [], (False, True, False, False)),
    "drained in HAProxy": ({"before": {"status": "UP"}}, [balancer("web", "drain")], (False, True, False, False)),
    "a load balancer that is silent": ({"before": {"status": "UP"}}, [{"item": "lb1"}], (False, False, False, False)),
    "cannot be reached": ({"unreachable": True, "msg": "No route"}, [], (True, False, False, False)),
    "no agent": ({"msg": "No service hapgent runs."}, [], (True, False, False, False)),
    "an invalid reason": (
        {"before": {"status": "UP"}, "msg": "reason is long."},
        [],
        (True, False, False, False),
    ),
    "nothing": ({}, [], (True, False, False, False)),
}


@pytest.mark.parametrize(("agent", "asked", "expected"), HOST_CHECKS.values(), ids=HOST_CHECKS)
def test_progress_of_a_host(agent: Result, asked: list[Result], expected: tuple[bool, ...]) -> None:
    seen = host_check("web1", [(ONE, agent)], OURS, lambda _service: asked)
    assert (bool(seen["problem"]), bool(seen["kept_out"]), seen["done"], seen["begun"]) == expected
    assert seen["host"] == "web1"


@pytest.mark.parametrize(
    ("shop", "api", "expected"),
    [
        ({"status": "UP", "reason": OURS}, {"status": "UP", "reason": OURS}, ("", True, False)),
        ({"status": "UP", "reason": OURS}, {"status": "UP"}, ("", False, False)),
        ({"status": "DRAIN", "reason": OURS}, {"status": "UP"}, ("", False, True)),
        ({"status": "UP"}, {"status": "MAINT"}, ("api: its agent reports MAINT", False, False)),
    ],
)
def test_progress_of_a_host_with_several_services(shop: Result, api: Result, expected: tuple[str, bool, bool]) -> None:
    seen = host_check("web1", [(SHOP, {"before": shop}), (API, {"before": api})], OURS, lambda _service: [])
    assert (seen["kept_out"], seen["done"], seen["begun"]) == expected


def test_problems_of_services_name_them_unless_they_are_the_same() -> None:
    silent: Result = {"msg": "No agent."}
    unreachable: Result = {"unreachable": True, "msg": "No route"}
    agents: list[tuple[Service, Result]] = [(SHOP, {"before": {"status": "UP"}}), (API, silent)]
    assert host_check("web1", agents, OURS, lambda _service: [])["problem"].startswith("api: does not report")
    agents = [(ONE, unreachable), (ONE, unreachable)]
    assert host_check("web1", agents, OURS, lambda _service: [])["problem"] == "is unreachable: No route"


UP, OURS_UP = {"status": "UP", "weight": 50}, {"status": "UP", "reason": OURS}
DRAINED, MAINT = {"status": "DRAIN", "reason": OURS}, {"status": "MAINT"}


@pytest.mark.parametrize(
    ("step", "states", "expected"),
    [
        ("up", [DRAINED, UP], [("shop", "UP", OURS, []), ("api", "UP", OURS, [])]),
        ("halt", [UP, DRAINED], [("shop", "DRAIN", OURS, [])]),
        ("halt", [MAINT, {"status": "READY"}], [("api", "DRAIN", OURS, [])]),
        ("finish", [OURS_UP, OURS_UP], [("shop", "", "", ["reason"]), ("api", "", "", ["reason"])]),
        ("finish", [{**OURS_UP, "reason": "disk"}, DRAINED], []),
    ],
)
def test_changes_of_each_step(step: str, states: list[Result], expected: list[tuple[str, str, str, list[str]]]) -> None:
    notes: Notes = {"reason": OURS, "by": "ada", "until": "2h", "then": ""}
    found = changes(step, list(zip([SHOP, API], states, strict=True)), notes)
    assert [(change["name"], change["status"], change["reason"], change["unset"]) for change in found] == expected
    by_name = {"shop": states[0], "api": states[1]}
    for change in found:
        # The state may have been changed since it was read.
        state = by_name[change["name"]]
        assert change["only_if"] == {"status": [state["status"]], "reason": state.get("reason", "")}
        assert (change["by"], change["until"]) == (("ada", "2h") if step == "halt" else ("", ""))


def host(name: str, **fields: Any) -> Any:
    return {"host": name, "problem": "", "kept_out": "", "done": False, "begun": False, **fields}


DOWN, KEPT = host("a", problem="is down"), host("b", kept_out="in MAINT")
DONE, BEGUN, OPEN = host("c", done=True), host("d", begun=True), host("e")


@pytest.mark.parametrize("mode", ["fail", "skip"])
def test_update_does_not_begin_with_an_unknown_host(mode: str) -> None:
    refusal = decision([OPEN, DOWN, host("f", problem="no agent")], OURS, mode, "")["refusal"]
    assert (
        refusal
        == "a is down; f no agent. Fix this, or exclude hosts that are down: --limit='all,!a,!f'. Nothing was changed."
    )


def test_update_does_not_begin_if_something_else_keeps_a_host_out() -> None:
    refusal = decision([OPEN, KEPT], OURS, "fail", "web")["refusal"]
    assert refusal == (
        "Something else keeps hosts out of rotation: b: in MAINT. Bring them back, exclude them (--limit='web,!b'), "
        "or continue without them: hapgent_kept_out=skip. Nothing was changed."
    )
    skipped = decision([OPEN, KEPT], OURS, "skip", "")
    assert skipped["refusal"] == ""
    assert "b: in MAINT" in skipped["summary"]


@pytest.mark.parametrize(
    ("checks", "summary"),
    [
        ([OPEN, host("f")], "Starting release 10: e, f."),
        ([DONE, BEGUN, OPEN], "Continuing release 10: 1 of 3 hosts done, next d."),
        ([BEGUN, OPEN], "Continuing release 10: 0 of 2 hosts done, next d."),
        ([DONE, OPEN, DONE], "Continuing release 10: 2 of 3 hosts done, next e."),
        ([DONE], "Continuing release 10: 1 of 1 hosts done."),
        (
            [DONE, KEPT],
            "Continuing release 10: 1 of 2 hosts done. "
            "Skipping hosts that something else keeps out of rotation: b: in MAINT.",
        ),
        (
            [KEPT],
            "Starting release 10: no host. Skipping hosts that something else keeps out of rotation: b: in MAINT.",
        ),
    ],
)
def test_summary_of_the_progress(checks: list[Any], summary: str) -> None:
    assert decision(checks, OURS, "skip", "")["summary"] == summary


def test_text_from_agents_is_escaped() -> None:
    assert host_check("web1", [(ONE, {"msg": "\x1b[2J"})], OURS, lambda _service: [])["problem"].isprintable()
    agent = {"before": {"status": "MAINT", "reason": "\u202e"}}
    assert host_check("web1", [(ONE, agent)], OURS, lambda _service: [])["kept_out"].isprintable()


@pytest.mark.parametrize("limit", ["", "web:!away", "web,!away", "!away"])
def test_advised_limit_excludes_the_named_hosts(limit: str) -> None:
    """This includes IPv6 addresses, and hosts that the present limit excludes stay excluded."""
    inventory = InventoryManager(None, parse=False)
    inventory.add_group("web")
    for name in ("web1", "away", "2001:db8::10"):
        inventory.add_host(name, group="web")
    inventory.reconcile_inventory()
    refusal = decision([OPEN, host("2001:db8::10", problem="no agent")], OURS, "fail", limit)["refusal"]
    inventory.subset(refusal.partition("--limit='")[2].partition("'")[0])
    left = {found.name for found in inventory.get_hosts()}
    assert left == ({"web1"} if limit else {"web1", "away"})


# Progress during the update


def turn(reason: str = "", **fields: Any) -> Turn:
    usual = {"refused": "", "done": False, "was_done": False, "kept_out": "", "failed": "", "sessions_left": ""}
    return t.cast(Turn, {**usual, "put_back": False, "seconds_out": 0, "plays": True, "reason": reason, **fields})


NO_LIMITS: Limits = {"max_failed": 0, "stop_after": "0"}


# The turns of hosts; those that are done, unfinished, kept out and halted.
PROGRESS: dict[str, tuple[dict[str, Turn], tuple[str, str, str, str]]] = {
    "nothing was started": ({"web1": turn(), "web2": turn()}, ("", "", "", "")),
    "one is done": ({"web1": turn(OURS, done=True), "web2": turn()}, ("web1", "", "", "")),
    "one was done by an earlier run": ({"web1": turn(done=True), "web2": turn()}, ("web1", "", "", "")),
    "one failed": ({"web1": turn(OURS, plays=False), "web2": turn()}, ("", "web1", "", "web1")),
    "the tasks ended the play of one": ({"web1": turn(OURS), "web2": turn()}, ("", "web1", "", "web1")),
    "one was lost before its turn": (
        {"web1": turn(OURS, done=True), "web2": turn(plays=False)},
        ("web1", "", "", "web2"),
    ),
    "one is kept out": ({"web1": turn(OURS, kept_out="a"), "web2": turn()}, ("", "", "web1", "")),
    "one is done and kept out since": ({"web1": turn(OURS, done=True, kept_out="a")}, ("web1", "", "web1", "")),
    "one was put back": ({"web1": turn(OURS, kept_out="a", put_back=True), "web2": turn()}, ("", "", "", "")),
    "one was refused": ({"web1": turn(OURS, done=True), "web2": turn(OURS, refused="a")}, ("web1", "", "", "web2")),
    "another update in the same run": ({"web1": turn("release 9"), "web2": turn(OURS)}, ("", "web2", "", "web2")),
}


@pytest.mark.parametrize(("turns", "expected"), PROGRESS.values(), ids=PROGRESS)
def test_progress_of_the_update(turns: dict[str, Turn], expected: tuple[str, ...]) -> None:
    found = progress(turns, OURS, NO_LIMITS)
    assert (found["done"], found["unfinished"], found["kept_out"], found["halted"]) == tuple(
        hosts.split() for hosts in expected
    )


DONE_NOW, DONE_BEFORE = turn(OURS, done=True), turn(OURS, done=True, was_done=True)
FAILED = turn(OURS, failed="No disk.")
# The limits and the turns of hosts a, b ...; the halted hosts, whether the rescue stops, and whether the run is paused.
LIMITS: dict[str, tuple[Any, Any, list[Turn], tuple[str, bool, bool]]] = {
    "no failure is allowed": (0, 0, [DONE_NOW, FAILED, turn()], ("b", True, False)),
    "one is allowed": (1, 0, [DONE_NOW, FAILED, turn()], ("", False, False)),
    "one is allowed, two failed": ("1", 0, [FAILED, FAILED, turn()], ("a b", True, False)),
    "one that was lost counts": (1, 0, [turn(plays=False), FAILED, turn()], ("a b", True, False)),
    "one whose play ended counts for the next batch": (1, 0, [turn(OURS), FAILED, turn()], ("a b", False, False)),
    "one that is done can fail": (0, 0, [turn(OURS, done=True, failed="No mail."), turn()], ("a", True, False)),
    "a percentage is rounded down": ("50%", 0, [FAILED, FAILED, turn()], ("a b", True, False)),
    "a percentage of all hosts": ("50%", 0, [FAILED, FAILED, turn(), turn()], ("", False, False)),
    "pause after one": (0, 1, [DONE_NOW, turn()], ("", False, True)),
    "pause after more than one": (0, "1", [DONE_NOW, DONE_NOW, turn()], ("", False, True)),
    "pause after two": (0, 2, [DONE_NOW, turn()], ("", False, False)),
    "what an earlier run has done does not count": (0, 1, [DONE_BEFORE, turn()], ("", False, False)),
    "pause after what earlier runs have done": (0, 1, [DONE_BEFORE, DONE_NOW, turn()], ("", False, True)),
    "one that is kept out now was updated": (0, 1, [turn(OURS, done=True, kept_out="x"), turn()], ("", False, True)),
    "one that was skipped does not count": (0, 1, [turn(OURS, kept_out="x"), turn()], ("", False, False)),
    "failures do not count": (1, 1, [FAILED, turn()], ("", False, False)),
    "nothing is left": (0, 1, [DONE_NOW, turn(kept_out="x"), turn(done=True)], ("", False, False)),
    "a percentage is rounded up": (0, "10%", [DONE_NOW, turn(), turn()], ("", False, True)),
    "a failure comes first": (0, 1, [DONE_NOW, FAILED, turn()], ("b", True, False)),
}


@pytest.mark.parametrize(("max_failed", "stop_after", "turns", "expected"), LIMITS.values(), ids=LIMITS)
def test_limits_of_the_update(max_failed: Any, stop_after: Any, turns: list[Turn], expected: tuple[Any, ...]) -> None:
    found = progress(dict(zip("abcd", turns, strict=False)), OURS, {"max_failed": max_failed, "stop_after": stop_after})
    assert (" ".join(found["halted"]), found["stops"], bool(found["paused"])) == expected


def test_pause_is_reported_with_what_all_runs_have_done() -> None:
    found = progress({"a": DONE_BEFORE, "b": DONE_NOW, "c": turn()}, OURS, {"max_failed": 0, "stop_after": 1})
    assert found["paused"] == "Paused: 2 of 3 done. Run the same command to go on."
    assert (found["worked"], found["open"]) == (["b"], ["c"])


@pytest.mark.parametrize(
    ("last", "status"), [(turn(), "paused"), (turn(plays=False), "stopped"), (turn(done=True), "incomplete")]
)
def test_result_as_data(last: Turn, status: str) -> None:
    turns = {"a": FAILED, "b": DONE_NOW, "c": turn(kept_out="disk"), "d": last}
    data = progress(turns, OURS, {"max_failed": 1, "stop_after": 1})["data"]
    assert (data["status"], data["reason"], data["kept_out"]) == (status, OURS, {"c": "disk"})
    assert data["failed"]["a"] == "No disk."
    assert data["not_finished"] == ["a"]
    assert "b" in data["done"]
    assert ("d" in data["not_touched"]) == (not last["done"])


@pytest.mark.parametrize(("max_failed", "status"), [(0, "stopped"), (1, "incomplete")])
def test_hosts_that_were_refused_have_not_failed(max_failed: int, status: str) -> None:
    turns = {"a": DONE_NOW, "b": turn(OURS, refused="min_up", plays=False)}
    data = progress(turns, OURS, {"max_failed": max_failed, "stop_after": 0})["data"]
    assert (data["status"], data["refused"], data["failed"]) == (status, {"b": "min_up"}, {})
    assert (data["not_finished"], data["not_touched"]) == ([], ["b"])


def test_summary_of_an_update_names_all_hosts() -> None:
    turns = {"web1": turn(OURS, done=True), "web2": turn(OURS), "web3": turn(kept_out="disk"), "web4": turn()}
    assert progress(turns, OURS, NO_LIMITS)["summary"] == (
        "Done: web1. Not finished: web2. Kept out by something else: web3: disk. Not touched: web4."
    )


def test_summary_of_an_update_names_hosts_that_were_put_back() -> None:
    turns = {"web1": turn(OURS, done=True), "web2": turn(OURS, kept_out="web2 was put back.", put_back=True)}
    assert progress(turns, OURS, NO_LIMITS)["summary"].endswith("Not touched: none. Skipped: web2 was put back.")


def test_sessions_that_were_left_are_listed_by_host() -> None:
    turns = {"web1": turn(OURS, sessions_left="lb1: 2 sessions"), "web2": turn(OURS), "web3": turn(sessions_left="x")}
    assert progress(turns, OURS, NO_LIMITS)["sessions_left"] == "web1: lb1: 2 sessions web3: x"


def test_result_of_an_update_of_all_hosts() -> None:
    turns = {"a": turn(OURS, done=True), "b": turn(OURS, done=True, was_done=True)}
    assert progress(turns, OURS, NO_LIMITS)["data"]["status"] == "finished"


def test_each_host_on_which_a_run_has_worked_has_a_line() -> None:
    turns = {
        "web1": turn(OURS, done=True, was_done=True),
        "web2": turn(OURS, done=True, seconds_out=41),
        "web3": turn(OURS, done=True, sessions_left="lb1: 2 sessions."),
        "web4": turn(OURS, failed="Failed task: Deploy."),
        "web5": turn(OURS, kept_out="web5 was put back", put_back=True),
        "web6": turn(OURS),
        "web7": turn(),
    }
    found = progress(turns, OURS, NO_LIMITS)
    parts = [("web2", "updated", "41 s"), ("web3", "updated", "2 sessions"), ("web4", "failed", "Deploy")]
    for line, words in zip(found["lines"], [*parts, ("web5", "not updated"), ("web6", "not finished")], strict=True):
        assert all(word in line for word in words)
    assert found["data"]["seconds_out"] == {"web2": 41, "web3": 0}
