# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""What the tasks of the role fleet have recorded about hosts. Only this file knows where they have recorded it."""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import name_of
from ansible_collections.hapgent.agent.plugins.plugin_utils._rolling import Turn

Result = t.Mapping[str, t.Any]
Hostvars = t.Mapping[str, t.Mapping[str, t.Any]]


class Settings(t.TypedDict):
    """What steps/check_variables.yml has recorded. C(min_up) and C(fleet) are there if the host may be drained."""

    server: str
    backends: list[str]
    load_balancers: list[str]
    load_balancer_pattern: str
    min_up: t.Any
    fleet: list[str]


def settings(hostvars: Hostvars, name: str) -> Settings:
    """The settings of a host, empty if its variables are invalid."""
    empty: Settings = {
        "server": "",
        "backends": [],
        "load_balancers": [],
        "load_balancer_pattern": "",
        # Nothing may leave by mistake.
        "min_up": "100%",
        "fleet": [],
    }
    return t.cast(Settings, {**empty, **hostvars[name].get("hapgent__settings", {})})


def agent(hostvars: Hostvars, name: str) -> Result:
    """The result of the module that has read the agent's state, empty if it did not run."""
    result: Result = hostvars[name].get("hapgent__agent", {})
    return result


def asked(hostvars: Hostvars, name: str) -> list[Result]:
    """What the load balancers of a host report about the host's backends.

    One host has queried all load balancers for all hosts, see steps/query_for_all.yml.
    """
    own = settings(hostvars, name)
    return [
        _narrowed(result, own["backends"])
        for result in _queried(hostvars, name, "hapgent__queried")
        if name_of(result) in own["load_balancers"]
    ]


def asked_by_all(hostvars: Hostvars, names: t.Iterable[str]) -> list[Result]:
    """What the load balancers of all these hosts report about all servers."""
    # A host whose variables are invalid does not take part in the query.
    return next(
        (_queried(hostvars, name, "hapgent__queried") for name in names if "hapgent__asker" in hostvars[name]), []
    )


def fleet_agents(hostvars: Hostvars, name: str) -> list[Result]:
    """The results of C(hapgent_info) for the fleet of a host, empty if the fleet does not include the host.

    Such a fleet says nothing about the servers that can replace the host.
    """
    members = settings(hostvars, name)["fleet"]
    if name not in members:
        return []
    return [result for result in _queried(hostvars, name, "hapgent__fleet_queried") if name_of(result) in members]


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
