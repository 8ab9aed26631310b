# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""What a drain and an undrain change on one host, and what they leave unchanged.

A drain must never give a server more traffic than before. It would do so in two cases: HAProxy turns a manual
maintenance into a drain, and treats C(DRAIN UP) from an agent that reported C(DOWN) before as a recovery, after which
clients with a cookie return.
"""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.module_utils._state import IN_ROTATION, NOTES, State
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import name_of
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import Service, titled

Fields = t.Mapping[str, t.Any]

MAX_SHOWN = 400


class Plan(t.TypedDict):
    """Whether to change the state of the agent, what to report about it, and why it cannot be changed.

    C(note) and C(refusal) are '' if there is nothing to report. C(keeps) is the reason that the agent continues to
    report for a server that is back in rotation, '' if there is none.
    """

    change: bool
    note: str
    refusal: str
    keeps: str


class Change(t.TypedDict):
    """The options of C(hapgent_state) for one agent. Those that are empty are omitted.

    C(name) is that of the service, and C(made) whether the change has been made, so that only the waiting is left.
    C(ready_first) is whether every load balancer must receive READY before, which ends a drain in HAProxy.
    """

    name: str
    made: bool
    ready_first: bool
    service: str
    state_file: str
    status: str
    reason: str
    by: str
    until: str
    then: str
    unset: list[str]
    only_if: Fields


class HostPlan(t.TypedDict):
    """What to change on all agents of a host, what to report about it, and why nothing can be changed.

    C(notes) has the note about each service. C(message) is for the operator. It and C(refusal) are '' if there is
    nothing to report.
    """

    changes: list[Change]
    notes: dict[str, str]
    message: str
    refusal: str


class Plans(t.TypedDict):
    """The plans of several hosts, and what to show about them."""

    hosts: dict[str, HostPlan]
    messages: list[str]


class Notes(t.TypedDict):
    """Why a host is out of rotation, who has taken it out, when that is overdue, and which status follows then.

    Each is '' if it is not known.
    """

    reason: str
    by: str
    until: str
    then: str


Agent = tuple[Service, Fields]
NO_NOTES: Notes = {"reason": "", "by": "", "until": "", "then": ""}


def together(plans: dict[str, HostPlan]) -> Plans:
    """Combine the plans of these hosts."""
    return {"hosts": plans, "messages": [plan["message"] for plan in plans.values() if plan["message"]]}


def drain_host(
    host: str,
    agents: t.Sequence[Agent],
    notes: Notes,
    asked: t.Callable[[Service], t.Iterable[Fields]],
) -> HostPlan:
    """Plan the drain of all these agents of a host, with their states. If one cannot be drained, none is.

    C(notes) explain the drain. C(asked) returns what the load balancers report about a service.
    """
    plans = [(service, state, drain(state, notes, asked(service), service["server"])) for service, state in agents]
    refusals = [
        f"{titled(host, service)} cannot be drained: {plan['refusal']}."
        for service, _state, plan in plans
        if plan["refusal"]
    ]
    reports = [
        f"{titled(host, service)} is already out of rotation: {plan['note']}. "
        "This run only waits until its sessions end."
        for service, _state, plan in plans
        if plan["note"]
    ]
    # A server that an earlier drain would bring back must not come back during what follows this one.
    stays = () if notes["then"] else ("then",)
    return {
        "changes": [
            change(service, state, status="DRAIN", notes=notes, unset=stays) if plan["change"] else change(service)
            for service, state, plan in plans
        ],
        "notes": {service["service"]: plan["note"] for service, _state, plan in plans},
        "message": " ".join(reports),
        "refusal": f"{' '.join(refusals)} Nothing was changed on {host}." if refusals else "",
    }


def undrain_host(
    host: str,
    agents: t.Sequence[Agent],
    reason: str,
    found_out: t.Mapping[str, str],
    asked: t.Callable[[Service], t.Iterable[Fields]],
) -> HostPlan:
    """Plan how to bring back these agents of a host. C(found_out) has the notes of a drain in the same run.

    C(asked) returns what the load balancers report about a service.
    """
    changes = []
    notes = {}
    reports = []
    for service, state in agents:
        plan = undrain(state, reason, found_out.get(service["service"], ""))
        stuck = _drained_in_haproxy(state, asked(service), service["server"]) if plan["change"] else ""
        if plan["change"]:
            changes.append({**up(service, state, plan["keeps"]), "ready_first": bool(stuck)})
        notes[service["service"]] = plan["note"]
        reports += [f"{titled(host, service)}: {note}." for note in (plan["note"], stuck) if note]
    return {"changes": t.cast(list[Change], changes), "notes": notes, "message": " ".join(reports), "refusal": ""}


def _drained_in_haproxy(state: Fields, asked: t.Iterable[Fields], server: str) -> str:
    """Which drain in HAProxy an undrain ends, '' if the server is not drained or its agent is not in rotation.

    HAProxy keeps such a drain although the agent reports UP: one that was set manually, or that of the agent from a
    state file of HAProxy that is older than the agent's return.
    """
    if state["status"] not in IN_ROTATION:
        return ""
    drained = [
        f"{row['backend']}/{server} on {name_of(result)}"
        for result in asked
        for row in result.get("servers", [])
        if row["server"] == server and row["admin_state"] == "drain" and row["agent_check"] is not None
    ]
    return f"this ends the drain in HAProxy of {printable(', '.join(drained))}" if drained else ""


def after_ready(change: Change, make: t.Callable[[Change], Fields]) -> Change:
    """What is left of a change after all load balancers have received READY, if that ends a drain in HAProxy.

    C(make) makes a change and waits for the load balancers. If it fails, the change to READY is left, to fail again. If
    the state was changed, only the waiting is left.
    """
    if not change["ready_first"]:
        return change
    ready: Change = {**change, "status": "READY", "ready_first": False}
    result = make(ready)
    only_if = {"status": ["READY"], "reason": change["reason"]}
    is_ready: Change = {**change, "ready_first": False, "only_if": only_if}
    if not _is_not_made(result):
        return is_ready
    return {**is_ready, **NO_NOTES, "made": True, "status": "", "unset": []} if result.get("changed") else ready


def _is_not_made(result: Fields) -> bool:
    return bool(result.get("kept") or "msg" in result)


def up(service: Service, state: Fields, reason: str) -> Change:
    """Change an agent with this state to UP, with this reason, '' for none."""
    return change(service, state, status="UP", notes={**NO_NOTES, "reason": reason}, unset=() if reason else NOTES)


def change(
    service: Service,
    expected: Fields | None = None,
    *,
    status: str = "",
    notes: Notes | None = None,
    unset: t.Iterable[str] = (),
) -> Change:
    """Change an agent unless its state is no longer the expected one. Without an expected state, nothing is changed."""
    only_if = {"status": [expected["status"]], "reason": expected.get("reason", "")} if expected else {}
    return {
        "name": service["name"],
        "made": False,
        "ready_first": False,
        "service": service["service"],
        "state_file": service["state_file"],
        "status": status,
        **(notes or NO_NOTES),
        "unset": [*unset],
        "only_if": only_if,
    }


def to_await(change: Change, result: Fields) -> Change:
    """What is left of a change after it was made with this result of C(hapgent_state).

    If it failed, it is left as it is, so that it fails again while the other agents of the host are waited for.
    """
    if _is_not_made(result) or not change["only_if"]:
        return change
    after = result["after"]
    return {
        **change,
        **NO_NOTES,
        "made": change["made"] or bool(result["changed"]),
        "status": "",
        "unset": [],
        "only_if": {"status": [after["status"]], "reason": after.get("reason", "")},
    }


def drain(state: Fields, notes: Notes, asked: t.Iterable[Fields], server: str) -> Plan:
    """Plan the drain of a host whose agent has this state.

    C(notes) explain the drain. C(asked) has the results of C(haproxy_server_info) in a loop over the load balancers.
    """
    reported = f"its agent reports {answer_of(state)}"
    if state["status"] == "DRAIN" and state.get("reason", "") == notes["reason"]:
        return _plan(change=True)
    if state["status"] not in IN_ROTATION:
        if "then" in state and not notes["then"]:
            # What follows this drain may take longer.
            advice = "Drain it again with that reason, or remove this first (hapgent set then=none)"
            return _plan(change=False, refusal=f"{reported}, so it would come back by itself. {advice}")
        return _plan(change=False, note=f"{reported}, which is kept")
    rows = [(name_of(result), row) for result in asked for row in result.get("servers", []) if row["server"] == server]
    in_maint = [f"{row['backend']}/{row['server']} on {name}" for name, row in rows if _agent_would_end(row)]
    if not in_maint:
        return _plan(change=True)
    is_in_maint = f"{printable(', '.join(in_maint))} {'is' if len(in_maint) == 1 else 'are'} in MAINT"
    if all(row["admin_state"] == "maint" for _name, row in rows):
        return _plan(change=False, note=f"{is_in_maint}, which is kept")
    return _plan(
        change=False,
        refusal=f"{is_in_maint} in HAProxy, but not everywhere. HAProxy would end the MAINT if "
        "the agent reported DRAIN. Set the server to MAINT on the other load balancers too, "
        "or end its MAINT (set server ... state ready)",
    )


def undrain(state: Fields, reason: str, found_out: str) -> Plan:
    """Plan how to bring back a host whose agent has this state.

    With a reason, only a state with that reason is ended. C(found_out) describes the state that a drain in the same run
    has left unchanged, '' if there is none: such a state is not ended either.
    """
    if state["status"] in IN_ROTATION and not found_out:
        their_reason = state.get("reason", "")
        if their_reason in ("", reason):
            return _plan(change=True)
        if reason:
            return _plan(change=True, keeps=their_reason)
        return _plan(change=True, note=f"this removes the reason: its agent reports {answer_of(state)}")
    if found_out:
        return _plan(change=False, note=f"it was out of rotation before this run, and stays out ({found_out})")
    if reason and state.get("reason", "") != reason:
        return _plan(
            change=False,
            note=f"it stays out of rotation: its agent reports {answer_of(state)}, and hapgent_reason is "
            f"{printable(reason)}",
        )
    return _plan(change=True, note=f"this ends {answer_of(state)}")


class Drained(t.TypedDict):
    """The end of a drain: which sessions are left, that the host is to be put back into rotation, and why it fails.

    Each is '' if there is nothing to report. C(began) is the Unix time at which the drain has taken the host out of
    rotation, None if something else had done so before.
    """

    sessions_left: str
    put_back: str
    refusal: str
    began: float | None


def drained(host: str, waited: Fields, changed: Fields, when_left: str, left: str) -> Drained:
    """What follows from the wait for the sessions of a host.

    C(waited) is what the load balancers do with its servers, C(changed) the result of C(hapgent_change), C(when_left)
    the value of hapgent_after_grace, and C(left) which sessions are left.
    """
    is_ours = any(result["item"]["only_if"] for result in changed["results"])
    found: Drained = {
        "sessions_left": left,
        "put_back": "",
        "refusal": "",
        "began": changed["began"] if changed["changed"] else None,
    }
    if waited["problem"] or waited["takes_new_sessions"]:
        return {**found, "refusal": waited["problem"] or _not_out(host, waited, changed)}
    if left and when_left == "cut" and is_ours:
        return {**found, "sessions_left": left + _not_cut(waited)}
    if not left or when_left in ("go_on", "cut"):
        return found
    why = f"because sessions are left after hapgent_grace: {left.rstrip('.')}."
    # A host that was drained before may be broken.
    was_in_rotation = is_ours and all(result["changed"] for result in changed["results"] if result["item"]["only_if"])
    if when_left == "put_back" and was_in_rotation:
        return {**found, "put_back": f"{host} was put back into rotation, {why}"}
    refusal = (
        f"{host} stays in {changed['reported']}, {why} Run this again to wait longer, or set hapgent_after_grace=go_on."
    )
    return {**found, "refusal": refusal}


def _not_out(host: str, waited: Fields, changed: Fields) -> str:
    return (
        f"HAProxy still sends new sessions to {host}, although its agent was polled and reports {changed['reported']}. "
        f"{waited['pending']} Check that this HAProxy polls this agent. {host} stays in {changed['reported']}."
    )


def _not_cut(waited: Fields) -> str:
    """Why sessions are left although they should have been cut."""
    current = (
        " They did not end in MAINT: the server line lacks on-marked-down shutdown-sessions."
        if waited["sessions"]
        else ""
    )
    old = (
        " Sessions in old workers cannot be cut. They end by themselves, or after hard-stop-after."
        if waited["old_sessions"]
        else ""
    )
    return current + old


def after_grace(step: str, ours: t.Iterable[tuple[Change, Fields]], before: t.Mapping[str, Fields]) -> list[Change]:
    """What to change on the agents of a host because sessions are left.

    C(step) is V(cut) to have HAProxy end them, V(drain) to go on after that, or V(put_back). C(ours) has the changes of
    the drain with the states after them, C(before) the states before it, by service.
    """
    if step == "put_back":
        return [up(_service(made), state, _reason_to_restore(before[made["service"]])) for made, state in ours]
    status = {"cut": "MAINT", "drain": "DRAIN"}[step]
    return [change(_service(made), state, status=status, notes=_notes(state)) for made, state in ours]


def _service(made: Change) -> Service:
    names = {"name": made["name"], "service": made["service"], "state_file": made["state_file"]}
    return t.cast(Service, {**names, "server": "", "backends": []})


def _notes(state: Fields) -> Notes:
    return t.cast(Notes, {name: state.get(name, "") for name in NO_NOTES})


def _reason_to_restore(state: Fields) -> str:
    """The reason of a host that was in rotation. If it was drained, the reason was that of the drain."""
    return str(state.get("reason", "")) if state["status"] in IN_ROTATION else ""


def answer_of(state: Fields) -> str:
    """What an agent with this state answers, who has set it and until when, as printable text."""
    known = State(**state)
    return printable(known.answer() + known.remarks(), MAX_SHOWN)


def _agent_would_end(row: Fields) -> bool:
    """Whether the server is in a maintenance that ends when its agent reports DRAIN.

    A maintenance that is inherited from a tracked server, or that is due to a name without an address, does not end
    that way. The CSV page reports no cause for a maintenance that was set manually.
    """
    others = {"tracking", "resolution"}
    return row["admin_state"] == "maint" and row["agent_check"] is not None and not set(row["admin_by"]) & others


def _plan(*, change: bool, note: str = "", refusal: str = "", keeps: str = "") -> Plan:
    return {"change": change, "note": note, "refusal": refusal, "keeps": keeps}
