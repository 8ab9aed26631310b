# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Combine what agents and load balancers report about a fleet: which servers are in, which may leave, what differs.

A result is what a task has registered: one of C(hapgent_info) with a service for each host, and one of
C(haproxy_server_info) for each load balancer in a loop.
"""

from __future__ import annotations

import re
import time
import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.module_utils._state import IN_ROTATION, State, timestamp
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import name_of, with_names

Result = t.Mapping[str, t.Any]

MARK = " !"
MAX_SHOWN = 2000
# The columns that the table has only if there is something in them.
OPTIONAL = ("by", "until")


class FleetError(Exception):
    """A variable of the playbooks has an invalid value. The text describes the valid values."""


class Pool(t.NamedTuple):
    """Servers that can replace each other: those of a backend on a load balancer, or the hosts of a fleet.

    C(members) has for each server whether it takes new sessions, None if that is not known, and its reported status.
    """

    title: str
    members: dict[str, tuple[bool | None, str]]

    def shortage(self, leaving: t.Collection[str], min_up: t.Any) -> str:
        """Why these servers must stay in rotation, '' if they may leave. Raises FleetError.

        The text does not contain the title of the pool.
        """
        is_in = [name for name, (takes, _reported) in self.members.items() if takes]
        staying = [name for name in is_in if name not in leaving]
        total = len(self.members)
        required = at_least(min_up, total)
        # A server that is already out does not count as leaving. One with an unknown status does.
        leaves = [name for name, (takes, _reported) in self.members.items() if name in leaving and takes is not False]
        if len(staying) >= required or not leaves:
            return ""
        not_in = [f"{name} is {reported}" for name, (takes, reported) in self.members.items() if not takes]
        never = f" With {_counted(total)}, none can ever leave: lower hapgent_min_up." if required >= total else ""
        return (
            f"{f'only {len(staying)}' if staying else 'none'} would stay in rotation, but hapgent_min_up requires "
            f"{min_up}{'' if str(min_up) == str(required) else f' ({required})'}.{never} "
            f"Leaving: {', '.join(leaves)}. Staying: {', '.join(staying) or 'none'}. "
            f"Not available: {', '.join(not_in) or 'none'}."
        )


def refusals(views: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """Why these hosts must not leave rotation at the same time, without duplicates. Raises FleetError.

    Each view has a C(host), its C(server) (the name in HAProxy), its C(min_up), and the results to check: C(asked), the
    results of its load balancers, or C(agents), the results of its fleet, if it has no load balancers. Both are empty
    if it has neither.
    """
    servers = [view["server"] for view in views]
    names = [view["host"] for view in views]
    found: dict[str, None] = {}
    for min_up in dict.fromkeys(str(view["min_up"]) for view in views):
        alike = [view for view in views if str(view["min_up"]) == min_up]
        balanced = [pool for view in alike for pool in backends(view["asked"], servers)]
        fleets = [hosts(view["agents"]) for view in alike if not view["asked"] and view["agents"]]
        unknown = [view["host"] for view in alike if not view["asked"] and not view["agents"]]
        at_least(min_up, 0)  # Reject an invalid value even if no server would leave.
        if unknown and min_up not in ("0", "0%"):
            found[_unknown(unknown, min_up)] = None
        found.update(dict.fromkeys([*_merged(balanced, servers, min_up), *_merged(fleets, names, min_up)]))
    return [printable(refusal, MAX_SHOWN) for refusal in found]


def _merged(pools: t.Iterable[Pool], leaving: t.Collection[str], min_up: t.Any) -> list[str]:
    """One refusal for all pools with the same shortage, such as the same backend on several load balancers."""
    alike: dict[str, dict[str, Pool]] = {}
    for pool in pools:
        alike.setdefault(pool.shortage(leaving, min_up), {})[pool.title] = pool
    return [
        f"Of the {_counted(len(next(iter(same.values())).members))} {' and '.join(same)}, {shortage}"
        for shortage, same in alike.items()
        if shortage
    ]


def _counted(servers: int) -> str:
    return "1 server" if servers == 1 else f"{servers} servers"


def _unknown(names: t.Sequence[str], min_up: str) -> str:
    return (
        f"hapgent_min_up {min_up} cannot be evaluated: set hapgent_load_balancers, or a hapgent_fleet that includes "
        f"{', '.join(names)}."
    )


def at_least(min_up: t.Any, total: int) -> int:
    """How many of C(total) servers must stay in rotation. Raises FleetError."""
    match = re.fullmatch(r"([0-9]{1,6})(%?)", str(min_up))
    if not match or (match[2] and int(match[1]) > 100):
        raise FleetError(f"hapgent_min_up must be a number from 0, or a percentage from 0% to 100%, not {min_up}")
    return -(-total * int(match[1]) // 100) if match[2] else int(match[1])


def backends(asked: t.Iterable[Result], leaving: t.Collection[str]) -> list[Pool]:
    """The backends, on each load balancer, that have one of these servers.

    Backup servers do not replace other servers, and servers that are never in rotation are not counted.
    """
    pools: dict[tuple[str, str], Pool] = {}
    for result, server in _servers(asked):
        if not server["backup"] and not _never_in(server):
            pool = pools.setdefault(
                (name_of(result), server["backend"]), Pool(f"of {server['backend']} on {name_of(result)}", {})
            )
            pool.members[server["server"]] = (server["takes_new_sessions"], server["status"])
    return [pool for pool in pools.values() if any(name in pool.members for name in leaving)]


def hosts(asked: t.Iterable[Result]) -> Pool:
    """The hosts of a fleet, with what their agents report."""
    members = {}
    for result in asked:
        agent = _agent(result)
        reported = _words(agent["state"]) if agent else f"unknown ({_problem(result)})"
        members[name_of(result)] = (is_in(agent["state"]) if agent and agent["answer"] else None, reported)
    return Pool("of hapgent_fleet", members)


def is_in(state: t.Mapping[str, t.Any] | None) -> bool:
    """Whether an agent with this state requests new sessions for its server."""
    return state is not None and state["status"] in IN_ROTATION and state.get("weight") != 0


def kept_out(state: t.Mapping[str, t.Any], reason: str, asked: t.Iterable[Result], server: str) -> str:
    """What else keeps the server out of rotation, or ''. An agent that drains it with this reason does not count."""
    ours = state["status"] == "DRAIN" and state.get("reason") == reason
    if not is_in(state) and not ours:
        known = State(**state)
        return f"its agent reports {printable(known.answer() + known.remarks(), MAX_SHOWN)}"
    # HAProxy does not distinguish a manual drain from that of the agent.
    expected = ("ready", "drain", None) if ours else ("ready", None)
    by_hand = [
        f"{name_of(result)} has {row['backend']}/{row['server']} in {_administrative(row)}"
        for result, row in _servers(asked)
        if row["server"] == server and row["admin_state"] not in expected
    ]
    return printable(f"{', '.join(by_hand)}, and its agent reports {state['status']}", MAX_SHOWN) if by_hand else ""


def table(
    names: t.Sequence[str],
    servers: t.Sequence[str],
    backends_of: t.Sequence[t.Sequence[str]],
    agents: t.Sequence[Result],
    asked: t.Sequence[Result],
    *,
    known: t.Mapping[str, str] | None = None,
) -> list[str]:
    """One line for each host, and below them explanations of inconsistencies.

    C(servers) has the name of each host's server in HAProxy, C(backends_of) the backends in which to look for it: an
    empty list means all. C(known) has the names of load balancers by address.
    """
    rows = [["host", "state", "since", "reason", "by", "until", "received", *(name_of(result) for result in asked)]]
    remarks = [
        f"{name_of(result)} cannot be queried: {_problem(result)}" for result in asked if "servers" not in result
    ]
    balancers = {name_of(result) for result in asked}
    for host, server, wanted, result in zip(names, servers, backends_of, agents):
        agent = _agent(result)
        views = [_narrowed(balancer, server, wanted) for balancer in asked]
        if not agent and host in balancers and not any(balancer["servers"] for balancer in views):
            continue  # The host is a load balancer and not a server.
        state = agent["state"] if agent else None
        cells = [_cell(state, balancer) for balancer in views]
        remarks += [f"{host}: {remark}" for remark in _remarks(agent, result, views, known or {})]
        rows.append([host, _words(state) + _ramp(agent), _since(agent), *_notes(state), _received(agent), *cells])
    remarks += sorted({warning for balancer in asked for warning in balancer.get("agent_check_warnings", [])})
    shown = [any(row[column] for row in rows[1:]) or name not in OPTIONAL for column, name in enumerate(rows[0])]
    safe = [[printable(cell) for cell, is_shown in zip(row, shown) if is_shown] for row in rows]
    return [*_aligned(safe), *([""] if remarks else []), *(printable(remark, MAX_SHOWN) for remark in remarks)]


def _servers(asked: t.Iterable[Result]) -> t.Iterator[tuple[Result, Result]]:
    for result in asked:
        for server in result.get("servers", []):
            yield result, server


def _never_in(server: Result) -> bool:
    """Whether the server is never in rotation, so that it must not count in a percentage of the servers.

    This applies to a host name without an address, such as a free slot of C(server-template), to a server that is
    C(disabled) in the configuration, and to one with the configured weight 0.
    """
    return bool({"resolution", "configuration"} & {*server["admin_by"]}) or server["configured_weight"] == 0


def _narrowed(balancer: Result, name: str, wanted: t.Collection[str]) -> Result:
    """The result of one load balancer reduced to one server, in the wanted backends, or in all if none are given."""
    rows = [row for _balancer, row in _servers([balancer]) if row["server"] == name]
    return {**balancer, "servers": [row for row in rows if not wanted or row["backend"] in wanted]}


def _administrative(row: Result) -> str:
    """The administrative state, with its details if the status has them. It does not if the server is also down."""
    state: str = row["admin_state"].upper()
    return row["status"] if row["status"].startswith(state) else state


def _agent(result: Result) -> Result | None:
    return result["instances"][0] if result.get("instances") else None


def _problem(result: Result) -> str:
    return str(result.get("msg", "unknown")).rstrip(".")


def _words(state: t.Mapping[str, t.Any] | None) -> str:
    """The state as the agent answers it, without the reason."""
    return State(**{**state, "reason": None}).answer() if state else "unknown"


def _ramp(agent: Result | None) -> str:
    return f" ({agent['ramp_weight']}% now)" if agent and agent["ramp_weight"] is not None else ""


def _since(agent: Result | None) -> str:
    return _date(agent["since"]) if agent and agent["since"] is not None else ""


def _notes(state: t.Mapping[str, t.Any] | None) -> list[str]:
    if not state:
        return [""] * 3
    until = _date(timestamp(state["until"])) if "until" in state else ""
    then = f", then {state['then']}" if "then" in state else ""
    return [state.get("reason", ""), state.get("by", ""), f"{until}{then}{MARK if _is_overdue(state) else ''}"]


def _is_overdue(state: t.Mapping[str, t.Any]) -> bool:
    """Whether the status of an agent was to end before now."""
    return "until" in state and timestamp(state["until"]) < time.time()


def _received(agent: Result | None) -> str:
    if not agent or agent["since"] is None:
        return ""
    polling = [peer for peer in agent["peers"] if peer["polls"]]
    received = sum(peer["received"] for peer in polling)
    return f"{received} of {len(polling)}{'' if received == len(polling) > 0 else MARK}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _cell(state: t.Mapping[str, t.Any] | None, balancer: Result) -> str:
    """The status of a server on one load balancer, shown once if it is the same in all backends."""
    reported = {row["backend"]: f"{row['status']}{_mark(state, row)}" for row in balancer["servers"]}
    if len(set(reported.values())) > 1:
        return ", ".join(f"{backend} {words}" for backend, words in reported.items())
    return next(iter(reported.values()), "-")


def _mark(state: t.Mapping[str, t.Any] | None, row: Result) -> str:
    return "" if state is None or row["takes_new_sessions"] == is_in(state) else MARK


def _remarks(
    agent: Result | None, result: Result, asked: t.Iterable[Result], known: t.Mapping[str, str]
) -> t.Iterator[str]:
    if not agent:
        yield f"its agent cannot be queried: {_problem(result)}"
        return
    if agent["problem"]:
        yield f"its agent has a problem: {agent['problem']}"
    elif agent["state"] is None:
        yield f"its agent has an invalid state file, {agent['state_file']}"
    if agent["state"] and _is_overdue(agent["state"]):
        yield f"its {agent['state']['status']} has been overdue since {_date(timestamp(agent['state']['until']))}"
    for balancer, row in _servers(asked):
        if _mark(agent["state"], row):
            new = "new sessions" if row["takes_new_sessions"] else "no new sessions"
            where = f"it is {row['status']} in {row['backend']}"
            yield f"its agent reports {_words(agent['state'])}, but {name_of(balancer)} sends it {new}: {where}"
    for peer in agent["peers"] or []:
        if peer["polls"] and not peer["received"]:
            yield f"{with_names(peer['address'], known)} has not received the state yet"
    if agent["peers"] is not None and not any(peer["polls"] for peer in agent["peers"]):
        yield "no load balancer polls its agent"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
