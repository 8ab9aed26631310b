# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""What the tasks of the role fleet have recorded about hosts. Only this file knows where they have recorded it."""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import item_of, name_of
from ansible_collections.hapgent.agent.plugins.plugin_utils._rolling import Turn
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import DEFAULT, DEFAULT_STATE_FILE, Service

Result = t.Mapping[str, t.Any]
Hostvars = t.Mapping[str, t.Mapping[str, t.Any]]


class Settings(t.TypedDict):
    """What steps/check_variables.yml has recorded. C(min_up) and C(fleet) are there if the host may be drained."""

    services: list[Service]
    load_balancers: list[str]
    load_balancer_pattern: str
    min_up: t.Any
    fleet: list[str]


def settings(hostvars: Hostvars, name: str) -> Settings:
    """The settings of a host, empty if its variables are invalid."""
    empty: Settings = {
        "services": [{"name": "", "service": "", "state_file": "", "server": "", "backends": []}],
        "load_balancers": [],
        "load_balancer_pattern": "",
        # Nothing may leave by mistake.
        "min_up": "100%",
        "fleet": [],
    }
    return t.cast(Settings, {**empty, **hostvars[name].get("hapgent__settings", {})})


def agents(hostvars: Hostvars, name: str) -> list[tuple[Service, Result]]:
    """The services of a host with the result of the module that has read their states, empty if it did not run."""
    recorded = hostvars[name].get("hapgent__agent", {})
    services = settings(hostvars, name)["services"]
    # If the task failed before its loop, the loop has no results.
    return list(zip(services, recorded.get("results") or [recorded] * len(services)))


def states(hostvars: Hostvars, name: str, results: t.Sequence[Result]) -> list[tuple[Service, Result]]:
    """The services of a host with their states, from the results of the module that has read them in a loop."""
    return [(service, result["before"]) for service, result in zip(settings(hostvars, name)["services"], results)]


def asked(hostvars: Hostvars, name: str, service: Service) -> list[Result]:
    """What the load balancers of a host report about the backends of a service.

    One host has queried all load balancers for all hosts, see steps/query_for_all.yml.
    """
    balancers = settings(hostvars, name)["load_balancers"]
    return [
        _narrowed(result, service["backends"])
        for result in _queried(hostvars, name, "hapgent__queried")
        if name_of(result) in balancers
    ]


def asked_by_all(hostvars: Hostvars, names: t.Iterable[str]) -> list[Result]:
    """What the load balancers of all these hosts report about all servers."""
    # A host whose variables are invalid does not take part in the query.
    return next(
        (_queried(hostvars, name, "hapgent__queried") for name in names if "hapgent__asker" in hostvars[name]), []
    )


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
    return [result for result in _queried(hostvars, name, "hapgent__fleet_queried") if item_of(result) in wanted]


def turn(hostvars: Hostvars, name: str, *, plays: bool) -> Turn:
    """The progress of a host in a rolling update. C(plays) is whether Ansible still runs tasks on the host."""
    recorded = hostvars[name].get("hapgent__turn", {})
    return {
        "reason": recorded.get("reason", ""),
        "done": recorded.get("done", False),
        "kept_out": recorded.get("kept_out", ""),
        "sessions_left": recorded.get("sessions_left", ""),
        "plays": plays,
    }


def _queried(hostvars: Hostvars, name: str, register: str) -> list[Result]:
    results: list[Result] = hostvars[hostvars[name]["hapgent__asker"]["name"]].get(register, {}).get("results", [])
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
