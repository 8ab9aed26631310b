# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Drain and undrain change an agent only if its state and its server in HAProxy allow it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._state import STATUSES
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import (
    Notes,
    after_grace,
    after_ready,
    change,
    drain,
    drain_host,
    drained,
    to_await,
    undrain,
    undrain_host,
)
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import Service

Row = dict[str, Any]

OURS = "release 4.2"
CHECK = {"result": "L7OK", "code": 0, "text": None, "running": False}


def row(admin: str = "ready", *causes: str, name: str = "web1", **more: Any) -> Row:
    return {"backend": "web", "server": name, "admin_state": admin, "admin_by": causes, "agent_check": CHECK, **more}


def asked(*rows: Row) -> list[dict[str, Any]]:
    """One load balancer for each row, and another one that does not respond."""
    return [*({"item": f"lb{number}", "servers": [shown]} for number, shown in enumerate(rows, 1)), {"item": "lb9"}]


def for_reason(reason: str, then: str = "") -> Notes:
    return {"reason": reason, "by": "ada@control1", "until": "2026-11-28T06:00:00Z" if then else "", "then": then}


IN_USE = asked(row(), row(), row("maint", "agent_or_operator", name="web2"))


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("reason", ["", OURS])
@pytest.mark.parametrize("their_reason", [None, OURS, "disk"])
def test_drain_changes_only_servers_in_rotation(status: str, reason: str, their_reason: str | None) -> None:
    state = {"status": status, **({"reason": their_reason} if their_reason else {})}
    plan = drain(state, for_reason(reason), IN_USE, "web1")
    ours = status == "DRAIN" and (their_reason or "") == reason
    assert plan["change"] == (status in ("UP", "READY") or ours)
    assert bool(plan["note"]) != plan["change"]
    assert plan["refusal"] == ""
    if not plan["change"]:
        assert status in plan["note"]
        assert (their_reason or "") in plan["note"]


@pytest.mark.parametrize("status", ["DRAIN", "MAINT", "FAIL"])
def test_host_that_would_come_back_by_itself_during_what_follows_is_refused(status: str) -> None:
    state = {"status": status, "reason": "disk", "until": "2026-11-28T06:00:00Z", "then": "UP"}
    refusal = drain(state, for_reason(OURS), IN_USE, "web1")["refusal"]
    assert "2026-11-28T06:00:00Z, then UP" in refusal
    # This run requests the same.
    assert drain(state, for_reason(OURS, "UP"), IN_USE, "web1")["refusal"] == ""


# The server in HAProxy, and whether the drain is refused, changes the agent's state, or leaves it.
IN_HAPROXY: dict[str, tuple[list[Row], str]] = {
    "no load balancers": ([], "changed"),
    "in rotation everywhere": ([row(), row()], "changed"),
    "drained manually": ([row(), row("drain", "agent_or_operator")], "changed"),
    "maintenance on one": ([row(), row("maint", "agent_or_operator")], "refused"),
    "maintenance on one, the other drained": ([row("drain", "operator"), row("maint", "agent_or_operator")], "refused"),
    "maintenance on one, from its page": ([row(), row("maint")], "refused"),
    "maintenance by configuration on one": ([row(), row("maint", "configuration")], "refused"),
    "maintenance everywhere": ([row("maint", "agent_or_operator"), row("maint", "configuration")], "left"),
    "maintenance, one by tracking": ([row("maint", "agent_or_operator"), row("maint", "tracking")], "left"),
    "tracking": ([row(), row("maint", "tracking")], "changed"),
    "not resolved": ([row(), row("maint", "resolution")], "changed"),
    "maintenance, which no agent can end": ([row(), row("maint", "operator", agent_check=None)], "changed"),
    "another server": ([row(), row("maint", "agent_or_operator", name="web2")], "changed"),
}


@pytest.mark.parametrize(("rows", "outcome"), IN_HAPROXY.values(), ids=IN_HAPROXY)
def test_drain_never_ends_maintenance_in_haproxy(rows: list[Row], outcome: str) -> None:
    plan = drain({"status": "UP"}, for_reason(OURS), asked(*rows), "web1")
    got = "refused" if plan["refusal"] else "changed" if plan["change"] else "left"
    assert got == outcome
    assert bool(plan["note"]) == (outcome == "left")
    if outcome == "refused":
        assert "web/web1 on lb2" in plan["refusal"]
        assert "lb1" not in plan["refusal"]
    # If the agent is drained already, the change ends no maintenance.
    assert drain({"status": "DRAIN", "reason": OURS}, for_reason(OURS), asked(*rows), "web1")["change"]


# The state, the given reason, why this run's drain left the server; whether undrain changes it, and its report.
UNDRAINS: dict[str, tuple[Row, str, str, bool, str]] = {
    "in rotation": ({"status": "UP"}, "", "", True, ""),
    "in rotation with another reason": ({"status": "UP", "reason": "disk"}, "", "", True, "UP # disk"),
    "in rotation with another reason, which stays": ({"status": "UP", "reason": "disk"}, OURS, "", True, ""),
    "in rotation with our reason": ({"status": "UP", "reason": OURS}, OURS, "", True, ""),
    "drained": ({"status": "DRAIN"}, "", "", True, "DRAIN"),
    "drained with a reason": ({"status": "DRAIN", "reason": "disk"}, "", "", True, "disk"),
    "maintenance": ({"status": "MAINT", "reason": "disk"}, "", "", True, "MAINT UP # disk"),
    "down": ({"status": "DOWN"}, "", "", True, "DOWN"),
    "drained with our reason": ({"status": "DRAIN", "reason": OURS}, OURS, "", True, OURS),
    "drained with another reason": ({"status": "DRAIN", "reason": "disk"}, OURS, "", False, "disk"),
    "no reason, but one is given": ({"status": "MAINT"}, OURS, "", False, "MAINT"),
    "out of rotation before this run": ({"status": "MAINT"}, "", "its agent reports MAINT UP", False, "MAINT"),
    "out of rotation in HAProxy": ({"status": "UP"}, "", "web/web1 on lb1 is in MAINT", False, "lb1"),
}


@pytest.mark.parametrize(("state", "reason", "found_out", "change", "note"), UNDRAINS.values(), ids=UNDRAINS)
def test_undrain_ends_only_states_with_the_given_reason(
    state: Row, reason: str, found_out: str, change: bool, note: str
) -> None:
    plan = undrain(state, reason, found_out)
    assert plan["change"] == change
    assert note in plan["note"]
    assert bool(note) == bool(plan["note"])


@pytest.mark.parametrize(
    ("their_reason", "reason", "keeps"),
    [(None, "", ""), ("disk", "", ""), (OURS, OURS, ""), ("disk", OURS, "disk"), (None, OURS, "")],
)
def test_undrain_keeps_the_reason_of_another_operator(their_reason: str | None, reason: str, keeps: str) -> None:
    state = {"status": "UP", **({"reason": their_reason} if their_reason else {})}
    assert undrain(state, reason, "")["keeps"] == keeps


# Several services on a host

SHOP: Service = {"name": "shop", "service": "hapgent@shop", "state_file": "", "server": "web1", "backends": ["shop"]}
API: Service = {"name": "api", "service": "hapgent@api", "state_file": "", "server": "web1", "backends": ["api"]}
UP, OUT = {"status": "UP"}, {"status": "MAINT", "reason": "disk"}
REMOVED = ["reason", "by", "until", "then"]
NOTES: Notes = {"reason": OURS, "by": "ada@control1", "until": "2026-11-28T06:00:00Z", "then": ""}


def test_all_services_of_a_host_are_drained() -> None:
    plan = drain_host("web1", [(SHOP, UP), (API, OUT)], NOTES, lambda _service: [])
    shop, api = plan["changes"]
    assert (shop["service"], shop["status"]) == ("hapgent@shop", "DRAIN")
    assert NOTES.items() <= shop.items()
    assert shop["only_if"] == {"status": ["UP"], "reason": ""}
    # This one is out already. It is only waited for.
    assert (api["service"], api["status"], api["by"], api["until"], api["only_if"]) == ("hapgent@api", "", "", "", {})
    assert plan["message"].startswith("web1 api is already out")
    assert plan["refusal"] == ""


@pytest.mark.parametrize(("then", "unset"), [("UP", []), ("", ["then"])])
def test_only_the_last_drain_brings_a_host_back_by_itself(then: str, unset: list[str]) -> None:
    drained = {"status": "DRAIN", "reason": OURS, "until": "2026-11-28T06:00:00Z", "then": "UP"}
    plan = drain_host("web1", [(SHOP, drained)], {**NOTES, "then": then}, lambda _service: [])
    (made,) = plan["changes"]
    assert (made["status"], made["then"], made["unset"]) == ("DRAIN", then, unset)


def test_no_service_of_a_host_is_drained_if_one_cannot_be() -> None:
    in_maint = asked(row(), row("maint", "agent_or_operator"))
    plan = drain_host("web1", [(SHOP, UP), (API, UP)], NOTES, lambda service: in_maint if service is API else [])
    assert plan["refusal"].startswith("web1 api cannot be drained")
    assert plan["refusal"].endswith("Nothing was changed on web1.")


def test_operators_learn_who_keeps_a_host_out() -> None:
    plan = drain_host("web1", [(SHOP, {**OUT, "by": "bob@control2"})], NOTES, lambda _service: [])
    assert "MAINT UP # disk, by bob@control2" in plan["message"]


def test_undrain_removes_all_notes() -> None:
    (plain,) = undrain_host("web1", [(SHOP, {**UP, "by": "bob"})], "", {}, lambda _service: [])["changes"]
    assert plain["unset"] == REMOVED


def test_undrain_brings_back_those_that_the_drain_took_out() -> None:
    drained = {"status": "DRAIN", "reason": OURS}
    plan = undrain_host("web1", [(SHOP, drained), (API, OUT)], OURS, {}, lambda _service: [])
    assert [change["service"] for change in plan["changes"]] == ["hapgent@shop"]
    assert "web1 api: it stays out" in plan["message"]
    out = {"hapgent@api": "its agent reports MAINT"}
    plan = undrain_host("web1", [(SHOP, drained), (API, OUT)], "", out, lambda _service: [])
    assert [change["service"] for change in plan["changes"]] == ["hapgent@shop"]


@pytest.mark.parametrize(
    ("state", "rows", "ends"),
    [
        (UP, [row("drain"), row()], True),
        ({"status": "READY"}, [row(), row("drain")], True),
        (UP, [row(), row("maint")], False),
        # HAProxy cannot be told by an agent that it does not check.
        (UP, [row("drain", agent_check=None)], False),
        (UP, [row("drain", name="web2")], False),
        # The change from DRAIN to UP ends it anyway.
        ({"status": "DRAIN"}, [row("drain")], False),
    ],
)
def test_undrain_ends_a_drain_in_haproxy(state: Row, rows: list[Row], ends: bool) -> None:
    plan = undrain_host("web1", [(SHOP, state)], "", {}, lambda _service: asked(*rows))
    (own,) = plan["changes"]
    assert own["ready_first"] == ends
    assert ("web/web1 on lb" in plan["message"]) == ends


def test_a_drain_in_haproxy_ends_before_the_change() -> None:
    wanted = change(SHOP, {"status": "UP", "reason": "x"}, status="UP", unset=["reason"])
    wanted["ready_first"] = True
    made: list[Any] = []

    def make(step: Any, **result: Any) -> dict[str, Any]:
        made.append(step)
        return {"changed": True, "kept": False, **result}

    left = after_ready(wanted, make)
    (ready,) = made
    assert (ready["status"], ready["unset"]) == ("READY", wanted["unset"])
    assert ready["only_if"] == {"status": ["UP"], "reason": "x"}
    assert (left["status"], left["unset"]) == ("UP", wanted["unset"])
    assert left["only_if"] == {"status": ["READY"], "reason": ""}
    # If it fails after the change, only the waiting is left and fails again, and what was changed is reported.
    left = after_ready(wanted, lambda step: make(step, msg="It was not received."))
    assert (left["status"], left["made"], left["only_if"]) == ("", True, {"status": ["READY"], "reason": ""})
    # So it is if the other agents of the host are changed in between.
    assert to_await(left, {"changed": False, "after": {"status": "READY"}})["made"]
    assert after_ready({**wanted, "ready_first": False}, make)["status"] == "UP"
    assert len(made) == 2


def test_a_change_that_was_made_is_only_waited_for() -> None:
    wanted = change(SHOP, UP, status="DRAIN", notes=NOTES)
    after = {"status": "DRAIN", "reason": OURS}
    made = to_await(wanted, {"changed": True, "kept": False, "after": after})
    assert (made["made"], made["status"], made["by"], made["until"], made["unset"]) == (True, "", "", "", [])
    assert made["only_if"] == {"status": ["DRAIN"], "reason": OURS}
    # What has failed fails again, and what changes nothing stays as it is.
    assert to_await(wanted, {"changed": False, "kept": True, "after": OUT}) is wanted
    assert to_await(wanted, {"msg": "It failed."}) is wanted
    waiting = change(API)
    assert to_await(waiting, {"changed": False, "kept": False, "after": OUT}) is waiting


def test_text_from_agents_and_haproxy_is_escaped() -> None:
    state = {"status": "MAINT", "reason": "gone\u202e"}
    for plan in (drain(state, for_reason(""), [], "web1"), undrain(state, "", ""), undrain(state, OURS, "")):
        assert plan["note"].isprintable()
    hostile = asked(row(), {**row("maint", "agent_or_operator"), "backend": "\x1b[2J"})
    assert drain({"status": "UP"}, for_reason(""), hostile, "web1")["refusal"].isprintable()


WEB: Service = {"name": "", "service": "hapgent", "state_file": "/srv/state.json", "server": "s1", "backends": []}
QUIET = {"problem": "", "pending": "", "takes_new_sessions": False, "sessions": 0, "old_sessions": 0}
BUSY = {**QUIET, "pending": "lb1: 2 sessions.", "sessions": 2}
OLD = {**QUIET, "pending": "lb1: 1 session in an old worker.", "old_sessions": 1}
TIMES = {"changed": True, "began": 5.0}
DRAINS = change(WEB, {"status": "UP"}, status="DRAIN")
CHANGED = {"reported": "DRAIN", "results": [{"item": DRAINS, "changed": True}], **TIMES}
DRAINED_BEFORE = {"reported": "DRAIN", "results": [{"item": DRAINS, "changed": False}], **TIMES, "changed": False}
LEFT_ALONE = {"reported": "MAINT", "results": [{"item": change(WEB)}], **TIMES, "changed": False}

# What the load balancers do, what was changed and hapgent_after_grace; parts of sessions_left, put_back and refusal.
ENDS: dict[str, tuple[Row, Row, str, tuple[str, str, str]]] = {
    **{f"no sessions, {mode}": (QUIET, CHANGED, mode, ("", "", "")) for mode in ("go_on", "fail", "put_back", "cut")},
    **{
        f"a problem, {mode}": (
            {**BUSY, "problem": "lb1 is silent."},
            CHANGED,
            mode,
            ("2 sessions", "", "lb1 is silent."),
        )
        for mode in ("go_on", "fail", "put_back", "cut")
    },
    "new sessions": ({**BUSY, "takes_new_sessions": True}, CHANGED, "put_back", ("2 sessions", "", "still sends new")),
    "go on": (BUSY, CHANGED, "go_on", ("lb1: 2 sessions.", "", "")),
    "fail": (BUSY, CHANGED, "fail", ("2 sessions", "", "web1 stays in DRAIN, because sessions are left")),
    "put back": (BUSY, CHANGED, "put_back", ("2 sessions", "web1 was put back into rotation", "")),
    "drained before": (BUSY, DRAINED_BEFORE, "put_back", ("2 sessions", "", "web1 stays in DRAIN")),
    "not ours to put back": (BUSY, LEFT_ALONE, "put_back", ("2 sessions", "", "web1 stays in MAINT")),
    "not cut": (BUSY, CHANGED, "cut", ("lacks on-marked-down shutdown-sessions", "", "")),
    "not ours to cut": (BUSY, LEFT_ALONE, "cut", ("lb1: 2 sessions.", "", "")),
    "in an old worker": (OLD, CHANGED, "cut", ("Sessions in old workers cannot be cut", "", "")),
}


@pytest.mark.parametrize(("waited", "changed", "when_left", "expected"), ENDS.values(), ids=ENDS)
def test_end_of_a_drain(waited: Row, changed: Row, when_left: str, expected: tuple[str, str, str]) -> None:
    found = drained("web1", waited, changed, when_left, waited["pending"])
    for part, text in zip(expected, (found["sessions_left"], found["put_back"], found["refusal"]), strict=True):
        assert bool(text) == bool(part)
        assert part in text
    assert found["began"] == (5.0 if changed is CHANGED else None)
    if waited is OLD:
        assert "on-marked-down" not in found["sessions_left"]


@pytest.mark.parametrize(
    ("step", "before", "now", "expected"),
    [
        ("cut", {"status": "UP"}, {"status": "DRAIN", "reason": OURS}, ("MAINT", OURS, [])),
        ("drain", {"status": "UP"}, {"status": "MAINT"}, ("DRAIN", "", [])),
        ("put_back", {"status": "UP"}, {"status": "DRAIN", "reason": OURS}, ("UP", "", REMOVED)),
        ("put_back", {"status": "READY", "reason": "a"}, {"status": "DRAIN", "reason": OURS}, ("UP", "a", [])),
        # An earlier run has drained it. With its reason, it would count as updated.
        ("put_back", {"status": "DRAIN", "reason": OURS}, {"status": "DRAIN", "reason": OURS}, ("UP", "", REMOVED)),
    ],
)
def test_changes_after_the_grace_period(step: str, before: Row, now: Row, expected: tuple[str, str, list[str]]) -> None:
    made = change(WEB, before, status="DRAIN", notes=NOTES)
    (found,) = after_grace(step, [(made, now)], {"hapgent": before})
    assert (found["status"], found["reason"], found["unset"]) == expected
    assert found["only_if"] == {"status": [now["status"]], "reason": now.get("reason", "")}
    assert (found["service"], found["state_file"]) == ("hapgent", "/srv/state.json")
