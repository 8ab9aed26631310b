# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Wait until load balancers do what is wanted with the servers of many hosts: which to query, and what they report.

Each load balancer is queried for the servers of all hosts at once. Hosts may have different load balancers, and
different times until which they are waited for. All times are in seconds since 1970.
"""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import Result, name_of, query_problems

# A long wait makes longer queries, because each further round is a file that is included in the one before.
MIN_ROUND_SECONDS, MAX_ROUNDS = 5.0, 30
MAX_SHOWN, MAX_HOSTS = 400, 10
# What the module haproxy_server_info adds if a load balancer did not answer the last query.
OUTDATED = " This is the last known status"
UNFINISHED = "The load balancers could not be queried until the end of the wait, so it is not known what they do."


class Host(t.TypedDict):
    """A host, and what the load balancers do with its servers.

    C(waits) is whether it is still waited for, until C(deadline). C(titles) has its servers, as backend/server, by load
    balancer. C(outcome) is a sentence on what this run has changed, and C(pattern) its hapgent_load_balancers.
    C(pending) describes the load balancers without the wanted status, '' if all have it. C(problem) is why it is not
    known what the load balancers of the host do, '' if it is known. A host that is still waited for has one, so that a
    wait whose tasks fail does not count as a success. C(takes_new_sessions) is whether any of them sends new sessions,
    C(sessions) how many sessions and queued requests they have, and C(old_sessions) how many are in old workers.
    """

    waits: bool
    deadline: float
    titles: dict[str, list[str]]
    outcome: str
    pattern: str
    pending: str
    problem: str
    takes_new_sessions: bool
    sessions: int
    old_sessions: int


class Wait(t.TypedDict):
    """The wait for several hosts.

    C(until) and C(max_sessions) are options of C(haproxy_server_info). C(queries) has the servers to query, by load
    balancer, and is empty if the wait is over. One query takes at most C(round) seconds, and all end at C(deadline).
    C(messages) are for the operator: what is waited for after the first round.

    After this wait, that for sessions begins on the hosts in C(graces), which has their grace periods in seconds. It
    ends when a server has at most C(max_left) sessions. C(graces) is empty if no such wait follows.
    """

    until: str
    max_sessions: int
    hosts: dict[str, Host]
    queries: dict[str, list[str]]
    round: float
    deadline: float
    messages: list[str]
    graces: dict[str, float]
    max_left: int


def host(
    titles: t.Mapping[str, t.Mapping[str, list[str]]],
    services: t.Iterable[str],
    deadline: float,
    outcome: str,
    pattern: str,
) -> Host:
    """A host to wait for. C(titles) has its servers by load balancer and by service, and C(services) selects some."""
    wanted = [*services]
    of_balancers = {name: [title for service in wanted for title in by[service]] for name, by in titles.items()}
    return {
        "waits": any(of_balancers.values()),
        "deadline": deadline,
        "titles": of_balancers,
        "outcome": outcome,
        "pattern": pattern,
        "pending": "",
        "problem": "",
        "takes_new_sessions": False,
        "sessions": 0,
        "old_sessions": 0,
    }


def begin(
    until: str,
    hosts: t.Mapping[str, Host],
    now: float,
    *,
    max_sessions: int = 0,
    graces: t.Mapping[str, float] | None = None,
    max_left: int = 0,
) -> Wait:
    """Begin to wait for these hosts. The arguments are those of Wait."""
    deadline = max((one["deadline"] for one in hosts.values() if one["waits"]), default=now)
    return {
        "until": until,
        "max_sessions": max_sessions,
        "hosts": {name: {**one, "problem": one["problem"] or _unfinished(one)} for name, one in hosts.items()},
        "queries": _queries(hosts),
        "round": max(MIN_ROUND_SECONDS, (deadline - now) / MAX_ROUNDS),
        "deadline": deadline,
        "messages": [],
        "graces": dict(graces or {}),
        "max_left": max_left,
    }


def for_sessions(wait: Wait, graces: t.Mapping[str, float], now: float, *, max_sessions: int = 0) -> Wait:
    """Continue with the hosts that have sessions left, until their grace periods, in seconds, are over.

    Hosts without a grace period are not waited for.
    """
    hosts: dict[str, Host] = {
        name: {**one, "waits": name in graces and _may_have_sessions(one), "deadline": now + graces.get(name, 0.0)}
        for name, one in wait["hosts"].items()
    }
    return begin("drained", hosts, now, max_sessions=max_sessions)


def _may_have_sessions(one: Host) -> bool:
    # A load balancer that cannot count them is pending.
    left = one["sessions"] or one["old_sessions"] or one["pending"]
    return bool(left) and not one["takes_new_sessions"] and not one["problem"]


def has_current_sessions(one: Host) -> bool:
    """Whether sessions are left that HAProxy can end: those in old workers are not among them."""
    return bool(one["pending"] and one["sessions"]) and not one["takes_new_sessions"] and not one["problem"]


def proceed(wait: Wait, asked: t.Sequence[Result], now: float) -> Wait:
    """The wait after one more round, and that for sessions after the last one.

    C(asked) has the results of C(haproxy_server_info) for its queries.
    """
    hosts = {name: _look(one, asked, now) if one["waits"] else one for name, one in wait["hosts"].items()}
    left = {name: one for name, one in hosts.items() if one["waits"]}
    deadline = max((one["deadline"] for one in left.values()), default=now)
    proceeded: Wait = {
        **wait,
        "hosts": hosts,
        "queries": _queries(hosts),
        "deadline": deadline,
        "messages": _messages(left, deadline - now),
    }
    if left or not wait["graces"]:
        return proceeded
    return for_sessions(proceeded, wait["graces"], now, max_sessions=wait["max_left"])


def _messages(left: t.Mapping[str, Host], seconds: float) -> list[str]:
    if not left:
        return []
    shown = [printable(f"{name}: {one['pending']}", MAX_SHOWN) for name, one in [*left.items()][:MAX_HOSTS]]
    more = [f"And {len(left) - MAX_HOSTS} other hosts."] if len(left) > MAX_HOSTS else []
    return [*shown, *more, f"Waiting up to {seconds:.0f} s more."]


def _queries(hosts: t.Mapping[str, Host]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for one in hosts.values():
        for balancer, titles in one["titles"].items():
            if one["waits"] and titles:
                found.setdefault(balancer, {}).update(dict.fromkeys(titles))
    return {balancer: [*titles] for balancer, titles in found.items()}


def _look(one: Host, asked: t.Iterable[Result], now: float) -> Host:
    own = [result for result in asked if one["titles"].get(name_of(result))]
    problem = query_problems(own, one["pattern"])
    rows = [
        row
        for result in own
        for row in result.get("servers", [])
        if f"{row['backend']}/{row['server']}" in one["titles"][name_of(result)]
    ]
    pending = " ".join(text for result in own if (text := _pending(result, one["titles"][name_of(result)])))
    looked: Host = {
        **one,
        "waits": bool(pending) and not problem and now < one["deadline"],
        "pending": pending,
        "takes_new_sessions": any(row["takes_new_sessions"] for row in rows),
        "sessions": sum(row["sessions"] + row["queue"] for row in rows),
        "old_sessions": sum(row["old_sessions"] or 0 for row in rows),
    }
    return {**looked, "problem": f"{problem} {one['outcome']}" if problem else _unfinished(looked)}


def _unfinished(one: Host) -> str:
    return f"{UNFINISHED} {one['outcome']}" if one["waits"] else ""


def _pending(result: Result, titles: t.Collection[str]) -> str:
    """Which of these servers do not have the wanted status on a load balancer, '' if all have it."""
    left = [text for title, text in result.get("waiting_for", {}).items() if title in titles]
    outdated = "".join(str(result.get("msg", "")).partition(OUTDATED)[1:])
    return f"{name_of(result)}: {', '.join(left)}.{outdated}" if left else ""
