# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""What the tasks of the role fleet have recorded about hosts. Only this file knows where they have recorded it."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils import _who
from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.module_utils._state import moment
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import item_of, name_of
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import Change, Notes
from ansible_collections.hapgent.agent.plugins.plugin_utils._rolling import Limits, Turn
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import DEFAULT, DEFAULT_STATE_FILE, Service

Result = t.Mapping[str, t.Any]
Hostvars = t.Mapping[str, t.Mapping[str, t.Any]]

HEALTHY = 200
MAX_SHOWN = 400


class _Once(dict[str, t.Any]):
    """A mapping whose values are computed only once."""

    def __init__(self, source: t.Mapping[str, t.Any], wrap: t.Callable[[t.Any], t.Any] = lambda value: value) -> None:
        super().__init__()
        self._source = source
        self._wrap = wrap

    def __missing__(self, key: str) -> t.Any:
        self[key] = value = self._wrap(self._source[key])
        return value

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self._source

    def get(self, key: str, default: t.Any = None) -> t.Any:
        # dict.get does not call __missing__.
        return self[key] if key in self else default  # noqa: SIM401


def read_once(hostvars: Hostvars) -> Hostvars:
    """The same variables. Ansible templates them at each access, which takes long if it is done for many hosts."""
    return _Once(hostvars, _Once)


class Settings(t.TypedDict):
    """What steps/check_variables.yml has recorded.

    C(min_up), C(fleet), C(grace), C(max_sessions) and C(until) are there if the host may be drained, C(then) in a drain
    alone, C(bake), C(bake_errors), C(max_failed) and C(stop_after) in a rolling update. C(found_out) has the notes of a
    drain in the same run.
    """

    services: list[Service]
    load_balancers: list[str]
    load_balancer_pattern: str
    reason: str
    found_out: dict[str, str]
    grace: t.Any
    max_sessions: t.Any
    until: str
    then: str
    min_up: t.Any
    fleet: list[str]
    bake: t.Any
    bake_errors: t.Any
    max_failed: t.Any
    stop_after: t.Any


def settings(hostvars: Hostvars, name: str) -> Settings:
    """The settings of a host, empty if its variables are invalid."""
    empty: Settings = {
        "services": [{"name": "", "service": "", "state_file": "", "server": "", "backends": []}],
        "load_balancers": [],
        "load_balancer_pattern": "",
        "reason": "",
        "found_out": {},
        "grace": 0,
        "max_sessions": 0,
        "until": "",
        "then": "",
        # Nothing may leave by mistake.
        "min_up": "100%",
        "fleet": [],
        "bake": 0,
        "bake_errors": 0,
        "max_failed": 0,
        "stop_after": 0,
    }
    return t.cast(Settings, {**empty, **hostvars[name].get("hapgent__settings", {})})


def notes(hostvars: Hostvars, name: str, reason: str) -> Notes:
    """The notes of a drain of this host with this reason that begins now."""
    found = settings(hostvars, name)
    until = moment(found["until"], time.time()) if found["until"] else ""
    return {"reason": reason, "by": _who.current(), "until": until, "then": found["then"]}


def balancers(hostvars: Hostvars, names: t.Iterable[str]) -> list[tuple[str, t.Any, t.Any]]:
    """The name, ansible_host and hapgent_source_addresses of each of these load balancers."""
    return [
        (name, hostvars[name].get("ansible_host", ""), hostvars[name].get("hapgent_source_addresses", []))
        for name in names
    ]


def agents(hostvars: Hostvars, name: str) -> list[tuple[Service, Result]]:
    """The services of a host with the result of the module that has read their states, empty if it did not run."""
    recorded = hostvars[name].get("hapgent__agent", {})
    services = settings(hostvars, name)["services"]
    # If the task failed before its loop, the loop has no results.
    return list(zip(services, recorded.get("results") or [recorded] * len(services)))


def states(hostvars: Hostvars, name: str) -> list[tuple[Service, Result]]:
    """The services of a host with the states that were read last."""
    return [(service, result["before"]) for service, result in agents(hostvars, name)]


def asked(hostvars: Hostvars, name: str, service: Service) -> list[Result]:
    """What the load balancers of a host report about the backends of a service.

    One host has queried all load balancers for all hosts, see steps/query_for_all.yml. If its task has failed, each has
    a result without servers, as if its query had failed.
    """
    results = {name_of(result): result for result in _queried(hostvars, name)}
    return [
        _narrowed(
            results.get(balancer, {"item": balancer, "msg": "the task that queries it failed"}), service["backends"]
        )
        for balancer in settings(hostvars, name)["load_balancers"]
    ]


def asked_by_all(hostvars: Hostvars, names: t.Iterable[str]) -> list[Result]:
    """What the load balancers of all these hosts report about all servers."""
    # A host whose variables are invalid does not take part in the query.
    return next((_queried(hostvars, name) for name in names if "hapgent__asker" in hostvars[name]), [])


def titles(hostvars: Hostvars, name: str) -> dict[str, dict[str, list[str]]]:
    """The servers of a host, as backend/server, by load balancer and by service. See steps/check_load_balancers.yml."""
    found: dict[str, dict[str, list[str]]] = hostvars[name]["hapgent__servers"]["titles"]
    return found


class Changed(t.TypedDict):
    """What the last change of a host's agents has recorded: see C(hapgent_change)."""

    step: str
    began: float
    changed: bool
    timeout: float
    reported: str
    services: list[str]


def changed(hostvars: Hostvars, name: str, step: str) -> Changed | None:
    """The change of a host's agents for this step, None if there was none, or if it failed."""
    recorded = hostvars[name].get("hapgent__changed", {})
    return recorded if recorded.get("step") == step and not recorded.get("failed") else None


def changed_states(hostvars: Hostvars, name: str) -> list[tuple[Change, Result]]:
    """The changes that the last change of a host's agents has made or confirmed, with the states after them.

    A change that failed before it had an effect has no such state.
    """
    results = hostvars[name]["hapgent__changed"]["results"]
    return [
        (result["item"], result["after"]) for result in results if result["item"]["only_if"] and result.get("after")
    ]


class FleetQuery(t.TypedDict):
    """An agent of the fleet to query: its host, and its service or state file."""

    host: str
    service: str
    state_file: str


def fleet_queries(hostvars: Hostvars, names: t.Iterable[str]) -> list[FleetQuery]:
    """The agents to query about the fleets of these hosts, without duplicates."""
    found: dict[tuple[str, ...], FleetQuery] = {}
    for name in names:
        for member in settings(hostvars, name)["fleet"]:
            for service in settings(hostvars, name)["services"]:
                query = _fleet_query(hostvars, member, service)
                found[tuple(query.values())] = query  # type: ignore[arg-type]
    return list(found.values())


def _fleet_query(hostvars: Hostvars, member: str, service: Service) -> FleetQuery:
    """The agent of another host that serves the same purpose as this service."""
    if not service["state_file"]:
        return {"host": member, "service": service["service"], "state_file": ""}
    variables = hostvars[member]
    return {
        "host": member,
        "service": variables.get("hapgent_service", DEFAULT),
        # Only used if the host has no such service.
        "state_file": variables.get("hapgent_state_file", DEFAULT_STATE_FILE),
    }


def fleet_agents(hostvars: Hostvars, name: str, service: Service) -> list[Result]:
    """The results of C(hapgent_info) for the fleet of a host, empty if the fleet does not include the host.

    Such a fleet says nothing about the servers that can replace the host.
    """
    members = settings(hostvars, name)["fleet"]
    if name not in members:
        return []
    wanted = [_fleet_query(hostvars, member, service) for member in members]
    return [result for result in hostvars[name]["hapgent__fleet"]["agents"] if item_of(result) in wanted]


# What a drain and an undrain have recorded at their end.
OUTCOMES = {"drain": "hapgent__drained", "undrain": "hapgent__undrained"}


class Outcomes(t.TypedDict):
    """A line for each host: those with sessions that are left after the grace period, and others that were changed."""

    left: list[str]
    done: list[str]


def outcomes(hostvars: Hostvars, names: t.Iterable[str], step: str) -> Outcomes:
    """What the drain or the undrain that has just ended has done with these hosts. C(step) is that of the change."""
    found: Outcomes = {"left": [], "done": []}
    now = time.time()
    for name in names:
        change = changed(hostvars, name, step)
        ended = hostvars[name].get(OUTCOMES[step]) or {}
        left = ended.get("sessions_left", "")
        if left:
            grace = settings(hostvars, name)["grace"]
            found["left"].append(f"The grace period of {grace} s is over, but sessions are left. {name}: {left}")
        elif change and change["changed"] and ended and not ended.get("failed"):
            left_at = (hostvars[name].get("hapgent__drained") or {}).get("began")
            found["done"].append(_outcome(name, step, now - change["began"], left_at, now))
    return found


def _outcome(name: str, step: str, seconds: float, left_at: float | None, now: float) -> str:
    if step == "drain":
        return f"{name}: drained after {seconds:.0f} s, no sessions are left"
    out = f", it was out for {now - left_at:.0f} s" if left_at else ""
    return f"{name}: back in rotation after {seconds:.0f} s{out}"


def unhealthy(hostvars: Hostvars, name: str) -> str:
    """Why the service of a host was not healthy when it was last requested during a bake, '' if it was."""
    result = hostvars[name].get("hapgent__bake_health", {"skipped": True})
    if result.get("skipped") or result.get("status") == HEALTHY:
        return ""
    return f"hapgent_health_url: {printable(result.get('msg', 'unknown'), MAX_SHOWN).rstrip('.')}."


def limits(hostvars: Hostvars, name: str) -> Limits:
    """The limits of a rolling update, as this host has them."""
    found = settings(hostvars, name)
    return {"max_failed": found["max_failed"], "stop_after": found["stop_after"]}


def turn(hostvars: Hostvars, name: str, *, plays: bool) -> Turn:
    """The progress of a host in a rolling update. C(plays) is whether Ansible still runs tasks on the host."""
    recorded = hostvars[name].get("hapgent__turn", {})
    return {
        "reason": recorded.get("reason", ""),
        "refused": recorded.get("refused", ""),
        "done": recorded.get("done", False),
        "was_done": recorded.get("was_done", False),
        "kept_out": recorded.get("kept_out", ""),
        "failed": recorded.get("failed", ""),
        "sessions_left": recorded.get("sessions_left", ""),
        "put_back": recorded.get("put_back", False),
        "seconds_out": recorded.get("seconds_out", 0),
        "plays": plays,
    }


def _queried(hostvars: Hostvars, name: str) -> list[Result]:
    asker = hostvars[hostvars[name]["hapgent__asker"]["name"]]
    results: list[Result] = asker.get("hapgent__queried", {}).get("results", [])
    return results


def _narrowed(result: Result, backends: t.Collection[str]) -> Result:
    """The result of one load balancer reduced to these backends; none means all."""
    if not backends or "servers" not in result:
        return result
    return {
        **result,
        "servers": [row for row in result["servers"] if row["backend"] in backends],
        "unreadable": {
            title: why for title, why in result["unreadable"].items() if title.rpartition("/")[0] in (*backends, "?")
        },
    }
