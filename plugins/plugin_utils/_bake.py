# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.


"""Watch servers that are back in rotation: whether they stay there, stay healthy, and fail no requests.

Each load balancer is queried for the servers of all hosts at once. All times are in seconds since 1970.
"""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import Result, name_of, query_problems

# A long bake makes longer rounds, because each further round is a file that is included in the one before.
MIN_ROUND_SECONDS, MAX_ROUNDS = 5.0, 30
MAX_SHOWN = 400
# HAProxy's counters of errors, and the one that grows each time a server goes down.
ERRORS, DOWN = ("hrsp_5xx", "econ", "eresp"), "chkdown"


class Seen(t.TypedDict):
    """The counters of a server as one load balancer last reported them, and its process, None if it is not known."""

    pid: int | None
    counters: dict[str, int]


class Host(t.TypedDict):
    """A host that bakes.

    C(seconds) is how long, and C(max_errors) how many errors are allowed. C(titles) has its servers, as
    backend/server, by load balancer, and C(pattern) is its hapgent_load_balancers. C(seen) has what was last reported
    about each server, and C(grown) by how much its counters have grown since the bake began. C(bakes) is whether the
    bake still lasts, until C(deadline), which is 0 before the first look. C(looked) is the time of the last look.
    C(problem) is why the bake failed, '' if it did not.
    """

    seconds: float
    max_errors: int
    titles: dict[str, list[str]]
    pattern: str
    seen: dict[str, Seen]
    grown: dict[str, int]
    bakes: bool
    deadline: float
    looked: float
    problem: str


class Bake(t.TypedDict):
    """The bake of several hosts.

    C(queries) has the servers to query next, by load balancer. That query lasts until C(round_ends). C(baking) has the
    hosts whose bake still lasts. C(messages) are for the operator.
    """

    hosts: dict[str, Host]
    baking: list[str]
    queries: dict[str, list[str]]
    round_ends: float
    messages: list[str]


def host(titles: t.Mapping[str, t.Mapping[str, list[str]]], seconds: float, max_errors: int, pattern: str) -> Host:
    """A host that is about to come back. C(titles) has its servers by load balancer and by service."""
    return {
        "seconds": seconds,
        "max_errors": max_errors,
        "titles": {name: [title for of_service in by.values() for title in of_service] for name, by in titles.items()},
        "pattern": pattern,
        "seen": {},
        "grown": {},
        "bakes": True,
        "deadline": 0.0,
        "looked": 0.0,
        "problem": "",
    }


def begin(hosts: t.Mapping[str, Host], asked: t.Sequence[Result], now: float) -> Bake:
    """Begin the bake with what the load balancers have counted before the servers come back."""
    return _bake({name: {**one, **_counted(one, asked)} for name, one in hosts.items()}, now, now)


def proceed(bake: Bake, asked: t.Sequence[Result], unhealthy: t.Mapping[str, str], now: float) -> Bake:
    """The bake after one more look.

    C(asked) has the results of C(haproxy_server_info) for its queries. C(unhealthy) is why the service of a host is not
    healthy, '' if it is.
    """
    hosts = {
        name: _look(one, asked, unhealthy.get(name, ""), now) if one["bakes"] else one
        for name, one in bake["hosts"].items()
    }
    seconds = max((one["seconds"] for one in hosts.values()), default=0.0)
    return _bake(hosts, now, now + max(MIN_ROUND_SECONDS, seconds / MAX_ROUNDS))


def _bake(hosts: dict[str, Host], now: float, round_ends: float) -> Bake:
    left = {name: one for name, one in hosts.items() if one["bakes"]}
    # Each host has a last look right after its deadline.
    ends = min((one["deadline"] for one in left.values()), default=now)
    queries: dict[str, dict[str, None]] = {}
    for one in left.values():
        for balancer, titles in one["titles"].items():
            if titles:
                queries.setdefault(balancer, {}).update(dict.fromkeys(titles))
    last = max((one["deadline"] for one in left.values()), default=now)
    return {
        "hosts": hosts,
        "baking": [*left],
        "queries": {balancer: [*titles] for balancer, titles in queries.items()},
        "round_ends": min(round_ends, ends),
        "messages": [f"Watching {printable(', '.join(left), MAX_SHOWN)} for {last - now:.0f} s more."]
        if last > now
        else [],
    }


def _look(one: Host, asked: t.Sequence[Result], unhealthy: str, now: float) -> Host:
    # What began after the deadline is the last look.
    is_last = 0 < one["deadline"] <= one["looked"]
    counted = _counted(one, asked)
    problems = [*_not_in(one, asked), *_of_counters(one, counted["grown"]), *([unhealthy] if unhealthy else [])]
    if is_last:
        problems += filter(None, [query_problems(_own(one, asked), one["pattern"])])
    return {
        **one,
        **counted,
        "deadline": one["deadline"] or now + one["seconds"],
        "looked": now,
        "bakes": not problems and not is_last,
        "problem": printable(" ".join(problems), MAX_SHOWN) if problems else "",
    }


def _not_in(one: Host, asked: t.Iterable[Result]) -> t.Iterator[str]:
    for balancer, row, _pid in _rows(one, asked):
        if not row["takes_new_sessions"]:
            yield f"{balancer}: {row['backend']}/{row['server']} is {row['status']}."


def _of_counters(one: Host, grown: t.Mapping[str, int]) -> t.Iterator[str]:
    if grown.get(DOWN):
        yield "HAProxy had the server DOWN meanwhile."
    errors = sum(grown.get(name, 0) for name in ERRORS)
    if errors > one["max_errors"]:
        counted = ", ".join(f"{name} {grown[name]}" for name in ERRORS if grown.get(name))
        yield f"HAProxy counted errors: {counted}. hapgent_bake_errors allows {one['max_errors']}."


class _Counted(t.TypedDict):
    seen: dict[str, Seen]
    grown: dict[str, int]


def _counted(one: Host, asked: t.Iterable[Result]) -> _Counted:
    """What the load balancers report, and the growth of the counters up to now, of all load balancers together."""
    seen, grown = {**one["seen"]}, {**one["grown"]}
    for balancer, row, pid in _rows(one, asked):
        title = f"{balancer} {row['backend']}/{row['server']}"
        new: Seen = {"pid": pid, "counters": {name: row["counters"].get(name) or 0 for name in (*ERRORS, DOWN)}}
        for name, growth in _growth(seen.get(title), new).items():
            grown[name] = grown.get(name, 0) + growth
        seen[title] = new
    return {"seen": seen, "grown": grown}


def _growth(old: Seen | None, new: Seen) -> dict[str, int]:
    if old is None:
        return {}
    before, now = old["counters"], new["counters"]
    # A process that was started or reloaded meanwhile counts from 0. The stats page does not report the process.
    is_other = old["pid"] != new["pid"] or any(now[name] < before[name] for name in now)
    return {name: value - (0 if is_other else before[name]) for name, value in now.items()}


def _own(one: Host, asked: t.Iterable[Result]) -> list[Result]:
    return [result for result in asked if one["titles"].get(name_of(result))]


def _rows(one: Host, asked: t.Iterable[Result]) -> t.Iterator[tuple[str, Result, int | None]]:
    for result in _own(one, asked):
        balancer = name_of(result)
        process = result.get("haproxy")
        for row in result.get("servers", []):
            if f"{row['backend']}/{row['server']}" in one["titles"][balancer]:
                yield balancer, row, process["pid"] if process else None
