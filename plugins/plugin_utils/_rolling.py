# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""How far a rolling update is: before its first drain, as agents and load balancers report it, and during it."""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.module_utils._state import IN_ROTATION
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import Change, Notes, change, up
from ansible_collections.hapgent.agent.plugins.plugin_utils._fleet import kept_out
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import Service
from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import host_pattern

Result = t.Mapping[str, t.Any]
Agent = tuple[Service, Result]

MAX_SHOWN = 400


class HostCheck(t.TypedDict):
    """One host of a rolling update.

    C(problem) is why its state is not known, C(kept_out) what else keeps it out of rotation, both '' if there is
    nothing. C(done) is whether an earlier run with the same reason has updated the host, C(begun) whether such a run
    has drained it.
    """

    host: str
    problem: str
    kept_out: str
    done: bool
    begun: bool


class Turn(t.TypedDict):
    """What a rolling update has recorded about a host.

    C(reason) is the reason of the update in which the host has had its turn, '' before that. C(refused) is why it was
    not updated when it was next. C(done) is whether the host is updated, C(was_done) whether an earlier run has done
    that. C(kept_out) is why it is left alone, such as what else keeps it out of rotation, C(failed) what failed on it,
    and C(sessions_left) which sessions its drain has left. Each text is '' if there is nothing. C(put_back) is whether
    it was put back into rotation because of these sessions. C(seconds_out) is for how long this run has taken it out of
    rotation, 0 if it has not or if that is not known, and C(plays) whether Ansible still runs tasks on the host.
    """

    reason: str
    refused: str
    done: bool
    was_done: bool
    kept_out: str
    failed: str
    sessions_left: str
    put_back: bool
    seconds_out: int
    plays: bool


class Limits(t.TypedDict):
    """On how many hosts an update may fail, and on how many a run updates: numbers or percentages of all its hosts.

    A run with 0 for C(stop_after) updates all.
    """

    max_failed: t.Any
    stop_after: t.Any


class Data(t.TypedDict):
    """The progress as data for the next job of a workflow. C(status) is V(finished), V(incomplete) if some
    hosts are not updated or have failed, V(paused) or V(stopped).

    C(failed) is why each host failed, C(refused) why a host was not updated when it was next, C(kept_out) what else
    keeps a host out of rotation, and C(put_back) why a host was put back into rotation before your tasks.
    C(seconds_out) has the hosts that this run has updated.
    """

    status: str
    reason: str
    done: list[str]
    not_finished: list[str]
    not_touched: list[str]
    failed: dict[str, str]
    refused: dict[str, str]
    kept_out: dict[str, str]
    put_back: dict[str, str]
    seconds_out: dict[str, int]


class Progress(t.TypedDict):
    """The hosts that are done, not finished, kept out of rotation by something else, and open; and a summary of these.

    C(worked) are the hosts on which this run has worked, C(failed) those on which it failed. C(stops) is whether these
    are too many, and C(halted) are the hosts because of which no other batch may begin: those of C(failed) and
    C(refused), which must not be updated now, and those whose tasks ended the play. C(paused) is why the run ends
    although nothing failed, '' if it does not. C(sessions_left) names the sessions that were left on all hosts, and
    C(lines) has what was done with each host on which this run has worked. C(data) is the same for programs.
    """

    done: list[str]
    unfinished: list[str]
    kept_out: list[str]
    open: list[str]
    worked: list[str]
    failed: list[str]
    refused: list[str]
    stops: bool
    halted: list[str]
    paused: str
    sessions_left: str
    summary: str
    lines: list[str]
    data: Data


class Decision(t.TypedDict):
    """Why a rolling update cannot start, '' if it can, and what it is about to do."""

    refusal: str
    summary: str


def host_check(
    host: str, agents: t.Sequence[Agent], reason: str, asked: t.Callable[[Service], t.Iterable[Result]]
) -> HostCheck:
    """Determine the progress of one host.

    C(agents) has its services with the results of C(hapgent_state) in check mode. C(asked) returns what its load
    balancers report about a service.
    """
    problems = [problem for service, result in agents if (problem := _problem(service, result))]
    if problems or not agents:
        problem = "; ".join(dict.fromkeys(problems)) or "does not report its state: unknown"
        return {"host": host, "problem": problem, "kept_out": "", "done": False, "begun": False}
    states = [(service, result["before"]) for service, result in agents]
    return {
        "host": host,
        "problem": "",
        "kept_out": kept_out_host(states, reason, asked),
        "done": is_done(states, reason),
        "begun": any(state["status"] == "DRAIN" and state.get("reason") == reason for _service, state in states),
    }


def _problem(service: Service, result: Result) -> str:
    if "before" in result and not result.get("unreachable") and not result.get("msg"):
        return ""
    what = "is unreachable" if result.get("unreachable") else "does not report its state"
    return f"{_prefix(service)}{what}: {printable(result.get('msg', 'unknown'), MAX_SHOWN).rstrip('.')}"


def is_done(states: t.Iterable[Agent], reason: str) -> bool:
    """Whether all agents of a host report UP with this reason."""
    return all(state["status"] == "UP" and state.get("reason", "") == reason for _service, state in states)


def kept_out_host(
    states: t.Iterable[Agent], reason: str, asked: t.Callable[[Service], t.Iterable[Result]] = lambda _service: ()
) -> str:
    """What else keeps a server of a host out of rotation, '' if nothing does. The host is then left alone."""
    found = [
        f"{_prefix(service)}{why}"
        for service, state in states
        if (why := kept_out(state, reason, asked(service), service["server"]))
    ]
    return printable("; ".join(found), MAX_SHOWN) if found else ""


def _prefix(service: Service) -> str:
    return f"{service['name']}: " if service["name"] else ""


def changes(step: str, states: t.Iterable[Agent], notes: Notes) -> list[Change]:
    """What a rolling update changes on the agents of a host.

    C(step) is V(up) to bring the host back, V(halt) to keep it out after a failure, or V(finish) to remove the reason
    when all hosts are done. C(notes) have the reason of the update.
    """
    reason = notes["reason"]
    if step == "up":
        return [up(service, state, reason) for service, state in states]
    if step == "halt":
        return [
            change(service, state, status="DRAIN", notes=notes)
            for service, state in states
            if state["status"] in IN_ROTATION
        ]
    return [
        change(service, state, unset=["reason"])
        for service, state in states
        if state["status"] == "UP" and state.get("reason", "") == reason
    ]


def decision(checks: t.Sequence[HostCheck], reason: str, when_kept_out: str, limit: str) -> Decision:
    """Decide whether a rolling update of these hosts, in this order, can start.

    C(when_kept_out) is V(fail) or V(skip), C(limit) is the C(--limit) of this run, V('') if it has none.
    """
    problems = [seen for seen in checks if seen["problem"]]
    kept = [seen for seen in checks if seen["kept_out"]]
    if problems:
        listed = "; ".join(f"{seen['host']} {seen['problem']}" for seen in problems)
        return {
            "refusal": f"{listed}. Fix this, or exclude hosts that are down: {_limit(problems, limit)}. "
            "Nothing was changed.",
            "summary": "",
        }
    if kept and when_kept_out == "fail":
        return {
            "refusal": f"Something else keeps hosts out of rotation: {_kept(kept)}. Bring them back, exclude them "
            f"({_limit(kept, limit)}), or continue without them: hapgent_kept_out=skip. Nothing was changed.",
            "summary": "",
        }
    return {"refusal": "", "summary": _summary(checks, reason)}


def progress(turns: t.Mapping[str, Turn], reason: str, limits: Limits) -> Progress:
    """Determine the progress of the rolling update with this reason, from the turns of its hosts in their order."""
    done = [host for host, turn in turns.items() if turn["done"]]
    put_back = [host for host, turn in turns.items() if turn["put_back"]]
    kept = [host for host, turn in turns.items() if turn["kept_out"] and not turn["put_back"]]
    started = [host for host, turn in turns.items() if turn["reason"] == reason and not turn["refused"]]
    unfinished = [host for host in started if host not in (*done, *kept, *put_back)]
    untouched = [host for host in turns if host not in (*started, *done, *kept)]
    skipped = "".join(f" Skipped: {turns[host]['kept_out']}" for host in put_back)
    reasons = "; ".join(f"{host}: {turns[host]['kept_out']}" for host in kept)
    worked = [host for host in started if not turns[host]["was_done"] and (host in done or host not in kept)]
    refused = [host for host, turn in turns.items() if turn["refused"]]
    failed = [host for host, turn in turns.items() if turn["failed"] or not (turn["plays"] or turn["refused"])]
    stuck = [host for host in turns if host in (*failed, *refused, *unfinished)]
    max_failed = _part(limits["max_failed"], len(turns))
    halted = stuck if len(stuck) > max_failed else []
    updated = len([host for host in worked if host in done])
    stop_after = _part(limits["stop_after"], len(turns), rounds_up=True)
    is_paused = not halted and untouched and 0 < stop_after <= updated
    stops = len(failed) > max_failed
    if halted or stops:
        status = "stopped"
    elif is_paused:
        status = "paused"
    else:
        status = "incomplete" if stuck or len(done) < len(turns) else "finished"
    return {
        "done": done,
        "unfinished": unfinished,
        "kept_out": kept,
        "open": untouched,
        "worked": worked,
        "failed": failed,
        "refused": refused,
        "stops": stops,
        "halted": halted,
        "paused": f"Paused: {len(done)} of {len(turns)} done. Run the same command to go on." if is_paused else "",
        "sessions_left": " ".join(
            f"{host}: {turn['sessions_left']}" for host, turn in turns.items() if turn["sessions_left"]
        ),
        "summary": f"Done: {_listed(done)}. Not finished: {_listed(unfinished)}. "
        f"Kept out by something else: {reasons or 'none'}. Not touched: {_listed(untouched)}.{skipped}",
        "lines": [f"{host}: {_outcome(turns[host])}" for host in worked],
        "data": {
            "status": status,
            "reason": reason,
            "done": done,
            "not_finished": unfinished,
            "not_touched": untouched,
            "failed": {host: turns[host]["failed"] or "Ansible does not run tasks on it any more." for host in failed},
            "refused": {host: turns[host]["refused"] for host in refused},
            "kept_out": {host: turns[host]["kept_out"] for host in kept},
            "put_back": {host: turns[host]["kept_out"] for host in put_back},
            "seconds_out": {host: turns[host]["seconds_out"] for host in worked if host in done},
        },
    }


def _outcome(turn: Turn) -> str:
    """What this run has done with a host that had its turn."""
    left = f" Sessions left: {turn['sessions_left']}" if turn["sessions_left"] else ""
    if turn["failed"]:
        return f"failed. {turn['failed']}{left}"
    if turn["put_back"]:
        return "put back into rotation, not updated."
    if not turn["done"]:
        return f"not finished.{left}"
    out = f", out of rotation for {turn['seconds_out']} s" if turn["seconds_out"] else ""
    return f"updated{out}.{left}"


def _part(share: t.Any, total: int, *, rounds_up: bool = False) -> int:
    """How many of C(total) hosts this number or percentage is."""
    text = str(share)
    if not text.endswith("%"):
        return int(text)
    hundredfold = total * int(text[:-1])
    return -(-hundredfold // 100) if rounds_up else hundredfold // 100


def _listed(hosts: t.Sequence[str]) -> str:
    return ", ".join(hosts) or "none"


def _summary(checks: t.Sequence[HostCheck], reason: str) -> str:
    kept = [seen for seen in checks if seen["kept_out"]]
    done = [seen for seen in checks if seen["done"] and not seen["kept_out"]]
    open_ones = [seen["host"] for seen in checks if not seen["done"] and not seen["kept_out"]]
    stays = f" Skipping hosts that something else keeps out of rotation: {_kept(kept)}." if kept else ""
    if not done and not any(seen["begun"] for seen in checks):
        return f"Starting {printable(reason)}: {', '.join(open_ones) or 'no host'}.{stays}"
    following = f", next {open_ones[0]}" if open_ones else ""
    return f"Continuing {printable(reason)}: {len(done)} of {len(checks)} hosts done{following}.{stays}"


def _kept(checks: t.Iterable[HostCheck]) -> str:
    return "; ".join(f"{seen['host']}: {seen['kept_out']}" for seen in checks)


def _limit(checks: t.Iterable[HostCheck], limit: str) -> str:
    # If --limit is given twice, only the last one counts, so this one must repeat the current limit. It uses commas,
    # because Ansible does not split IPv6 addresses in a pattern that contains one.
    return f"--limit='{','.join([host_pattern(limit) or 'all', *('!' + seen['host'] for seen in checks)])}'"
