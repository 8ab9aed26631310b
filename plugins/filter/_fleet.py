# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters of the role fleet and of the playbooks. Each has its documentation in a file beside this one.

They are in one file, because Ansible looks at all files of filters each time a template names one.
"""

from __future__ import annotations

import functools
import time
import typing as t

from ansible import context
from ansible.errors import AnsibleFilterError
from ansible.utils.display import Display
from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.plugin_utils import (
    _bake,
    _balancers,
    _drain,
    _fleet,
    _recorded,
    _rolling,
    _task_files,
    _variables,
    _waiting,
)
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import addresses, query_problems
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import (
    Change,
    HostPlan,
    Plans,
    change,
    drain_host,
    together,
    undrain_host,
)
from ansible_collections.hapgent.agent.plugins.plugin_utils._fleet import table
from ansible_collections.hapgent.agent.plugins.plugin_utils._fleet_preflight import Given, problems
from ansible_collections.hapgent.agent.plugins.plugin_utils._locking import outcome, places
from ansible_collections.hapgent.agent.plugins.plugin_utils._rolling import (
    HostCheck,
    Progress,
    decision,
    host_check,
    progress,
)
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import (
    Service,
    ServicesError,
    Variables,
    services,
    titled,
)
from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import host_pattern, words

# While sessions may be left, only new ones are waited for.
UNTIL = {"drain": ("drained", 1000000000), "undrain": ("up", 0)}
OUTCOME = {"drain": "{host} stays in {reported}.", "undrain": "The agent of {host} reports {reported}."}
# Of a warning.
MAX_SHOWN = 1000


def after_grace(hostvars: _recorded.Hostvars, host: str, step: str) -> list[_drain.Change]:
    """See _after_grace.yml."""
    before = {service["service"]: state for service, state in _recorded.states(hostvars, host)}
    return _drain.after_grace(step, _recorded.changed_states(hostvars, host), before)


def bake(hostvars: _recorded.Hostvars, hosts: t.Sequence[str]) -> _bake.Bake:
    """See _bake.yml."""
    hostvars = _recorded.read_once(hostvars)
    return _bake.begin(
        {host: _baked_host(hostvars, host) for host in hosts}, _recorded.asked_by_all(hostvars, hosts), time.time()
    )


def _baked_host(hostvars: _recorded.Hostvars, host: str) -> _bake.Host:
    settings = _recorded.settings(hostvars, host)
    return _bake.host(
        _recorded.titles(hostvars, host),
        float(settings["bake"]),
        int(settings["bake_errors"]),
        settings["load_balancer_pattern"],
    )


def baked(bake: _bake.Bake, results: t.Sequence[_recorded.Result], hostvars: _recorded.Hostvars) -> _bake.Bake:
    """See _baked.yml."""
    unhealthy = {host: _recorded.unhealthy(hostvars, host) for host in bake["baking"]}
    return _bake.proceed(bake, results, unhealthy, time.time())


def can_be_cut(wait: _waiting.Wait, hostvars: _recorded.Hostvars, host: str) -> bool:
    """See _can_be_cut.yml."""
    waited = wait["hosts"].get(host)
    return bool(waited and _waiting.has_current_sessions(waited) and after_grace(hostvars, host, "cut"))


def drain_plans(hostvars: _recorded.Hostvars, hosts: t.Iterable[str], reason: str = "") -> Plans:
    """See _drain_plans.yml."""
    hostvars = _recorded.read_once(hostvars)

    def plan(host: str) -> HostPlan:
        notes = _recorded.notes(hostvars, host, reason or _recorded.settings(hostvars, host)["reason"])
        states = _recorded.states(hostvars, host)
        return drain_host(host, states, notes, functools.partial(_recorded.asked, hostvars, host))

    return together({host: plan(host) for host in hosts})


def drained(waited: _drain.Fields, host: str, changed: _drain.Fields, when_left: str, left: str) -> _drain.Drained:
    """See _drained.yml."""
    return _drain.drained(host, waited, changed, when_left, left)


def fleet_problems(
    given: t.Mapping[str, t.Any],
    hostvars: t.Mapping[str, t.Mapping[str, t.Any]],
    groups: t.Mapping[str, t.Sequence[str]],
) -> list[str]:
    """See _fleet_problems.yml."""
    there = [hostvars[host] for host in given["balancers"]]
    names = sorted({name for variables in there for name in variables})
    own = [word for variables in there for word in words(variables.get("hapgent_own_variables", []))]
    return problems(t.cast(Given, {**given, "names_there": names, "own_there": own}), groups)


def fleet_queries(hostvars: _recorded.Hostvars, hosts: t.Iterable[str]) -> list[_recorded.FleetQuery]:
    """See _fleet_queries.yml."""
    return _recorded.fleet_queries(_recorded.read_once(hostvars), hosts)


def fleet_table(hostvars: _recorded.Hostvars, hosts: t.Sequence[str], balancers: t.Iterable[str]) -> list[str]:
    """See _fleet_table.yml."""
    hostvars = _recorded.read_once(hostvars)
    agents = [(host, service, result) for host in hosts for service, result in _recorded.agents(hostvars, host)]
    return table(
        [titled(host, service) for host, service, _result in agents],
        [service["server"] for _host, service, _result in agents],
        [service["backends"] for _host, service, _result in agents],
        [result for _host, _service, result in agents],
        _recorded.asked_by_all(hostvars, hosts),
        known=addresses(_recorded.balancers(hostvars, balancers)),
    )


def host_servers(hostvars: _recorded.Hostvars, host: str) -> dict[str, t.Any]:
    """See _host_servers.yml."""
    hostvars = _recorded.read_once(hostvars)
    settings = _recorded.settings(hostvars, host)
    titles: dict[str, dict[str, list[str]]] = {name: {} for name in settings["load_balancers"]}
    problems = []
    for service in settings["services"]:
        asked = _recorded.asked(hostvars, host, service)
        unanswered = _balancers.query_problems(asked, settings["load_balancer_pattern"])
        if unanswered:
            problems = [unanswered]
            break
        problems.append(_balancers.server_problems(asked, service["server"], service["backends"]))
        for result in asked:
            titles[_balancers.name_of(result)][service["service"]] = [
                f"{row['backend']}/{row['server']}" for row in result["servers"] if row["server"] == service["server"]
            ]
    refusal = " ".join(problem for problem in dict.fromkeys(problems) if problem)
    return {"refusal": refusal and f"{refusal} Nothing was changed on {host}.", "titles": titles}


def hosts_of_play(wanted: t.Any, *arguments: t.Any) -> str:
    """See _hosts_of_play.yml. Raises AnsibleFilterError."""
    if context.CLIARGS.get("syntax"):
        # With --syntax-check nothing runs, and there may be no inventory.
        return "all"
    try:
        return _variables.hosts_of_play(wanted, *arguments)
    except _variables.VariableError as error:
        raise AnsibleFilterError(str(error)) from error


def kept_out_by(hostvars: _recorded.Hostvars, host: str, reason: str, in_haproxy: bool) -> str:
    """See _kept_out_by.yml."""
    return _rolling.kept_out_host(
        _recorded.states(hostvars, host),
        reason,
        lambda service: _recorded.asked(hostvars, host, service) if in_haproxy else [],
    )


def lock_outcome(taken: t.Sequence[t.Mapping[str, t.Any]], hosts: t.Sequence[str], check: bool) -> t.Any:
    """See _lock_outcome.yml."""
    return outcome(taken, hosts, check=check)


def lock_places(hostvars: _recorded.Hostvars, hosts: t.Iterable[str]) -> list[str]:
    """See _lock_places.yml."""
    hostvars = _recorded.read_once(hostvars)
    found: set[str] = set()
    for host in hosts:
        if "services" in hostvars[host].get("hapgent__settings", {}):
            settings = _recorded.settings(hostvars, host)
            found.update(places(settings["load_balancers"], settings["fleet"], host))
    return sorted(found)


def refusals(hostvars: _recorded.Hostvars, leaving: t.Iterable[str]) -> list[str]:
    """See _refusals.yml. Raises AnsibleFilterError."""
    hostvars = _recorded.read_once(hostvars)
    views = [view for host in leaving for view in _views(hostvars, host)]
    # While others are waited for, a load balancer may stop answering.
    asked = {_balancers.name_of(result): result for view in views for result in view["asked"]}
    unanswered = _balancers.query_problems(asked.values(), "")
    try:
        return [*([unanswered] if unanswered else []), *_fleet.refusals(views)]
    except _fleet.FleetError as error:
        raise AnsibleFilterError(str(error)) from error


def _views(hostvars: _recorded.Hostvars, host: str) -> list[dict[str, t.Any]]:
    settings = _recorded.settings(hostvars, host)
    return [
        {
            "host": host,
            "server": service["server"],
            "min_up": settings["min_up"],
            "asked": _recorded.asked(hostvars, host, service),
            "agents": _recorded.fleet_agents(hostvars, host, service),
        }
        for service in settings["services"]
    ]


def rolling_changes(hostvars: _recorded.Hostvars, host: str, step: str, reason: str) -> list[Change]:
    """See _rolling_changes.yml."""
    return _rolling.changes(step, _recorded.states(hostvars, host), _recorded.notes(hostvars, host, reason))


def rolling_host_check(hostvars: _recorded.Hostvars, host: str, reason: str) -> HostCheck:
    """See _rolling_host_check.yml."""
    hostvars = _recorded.read_once(hostvars)
    return host_check(
        host, _recorded.agents(hostvars, host), reason, lambda service: _recorded.asked(hostvars, host, service)
    )


def rolling_is_done(hostvars: _recorded.Hostvars, host: str, reason: str) -> bool:
    """See _rolling_is_done.yml."""
    return _rolling.is_done(_recorded.states(hostvars, host), reason)


def rolling_progress(
    hostvars: _recorded.Hostvars, hosts: t.Sequence[str], plays: t.Collection[str], reason: str
) -> Progress:
    """See _rolling_progress.yml."""
    turns = {host: _recorded.turn(hostvars, host, plays=host in plays) for host in hosts}
    # All hosts have the limits of the first one.
    return progress(turns, reason, _recorded.limits(hostvars, hosts[0]))


def serial(*arguments: t.Any) -> t.Any:
    """See _serial.yml. Raises AnsibleFilterError."""
    try:
        return _variables.serial(*arguments)
    except _variables.VariableError as error:
        raise AnsibleFilterError(str(error)) from error


def services_of(variables: t.Mapping[str, t.Any], found: t.Sequence[str]) -> list[Service]:
    """See _services.yml. Raises AnsibleFilterError."""
    try:
        return services(Variables(**variables), found)
    except ServicesError as error:
        raise AnsibleFilterError(f"{error}. Nothing was changed.") from error


def unchanged(services: t.Iterable[Service]) -> list[Change]:
    """See _unchanged.yml."""
    return [change(service) for service in services]


def undrain_plans(hostvars: _recorded.Hostvars, hosts: t.Iterable[str]) -> Plans:
    """See _undrain_plans.yml."""
    hostvars = _recorded.read_once(hostvars)

    def plan(host: str) -> HostPlan:
        own = _recorded.settings(hostvars, host)
        states = _recorded.states(hostvars, host)
        asked = functools.partial(_recorded.asked, hostvars, host)
        return undrain_host(host, states, own["reason"], own["found_out"], asked)

    return together({host: plan(host) for host in hosts})


def wait(hostvars: _recorded.Hostvars, hosts: t.Iterable[str], step: str) -> _waiting.Wait:
    """See _wait.yml."""
    hostvars = _recorded.read_once(hostvars)
    until, max_sessions = UNTIL[step]
    changed = {host: found for host in hosts if (found := _recorded.changed(hostvars, host, step))}
    waited = {host: _waited_host(hostvars, host, found) for host, found in changed.items()}
    if step == "undrain":
        return _waiting.begin(until, waited, time.time(), max_sessions=max_sessions)
    settings = {host: _recorded.settings(hostvars, host) for host in waited}
    return _waiting.begin(
        until,
        waited,
        time.time(),
        max_sessions=max_sessions,
        graces={host: float(found["grace"]) for host, found in settings.items()},
        max_left=min((int(found["max_sessions"]) for found in settings.values()), default=0),
    )


def _waited_host(hostvars: _recorded.Hostvars, host: str, changed: _recorded.Changed) -> _waiting.Host:
    return _waiting.host(
        _recorded.titles(hostvars, host),
        changed["services"],
        # This wait has the whole time again, however long the agents of all hosts have waited for polls.
        time.time() + changed["timeout"],
        OUTCOME[changed["step"]].format(host=host, reported=changed["reported"]),
        _recorded.settings(hostvars, host)["load_balancer_pattern"],
    )


def wait_for_cut(wait: _waiting.Wait, hostvars: _recorded.Hostvars) -> _waiting.Wait:
    """See _wait_for_cut.yml."""
    changed = {host: found for host in wait["hosts"] if (found := _recorded.changed(hostvars, host, "cut"))}
    return _waiting.for_sessions(wait, {host: found["timeout"] for host, found in changed.items()}, time.time())


def waited(wait: _waiting.Wait, results: t.Sequence[_recorded.Result]) -> _waiting.Wait:
    """See _waited.yml."""
    return _waiting.proceed(wait, results, time.time())


def warned(text: str) -> str:
    """See _warned.yml."""
    shown = printable(text, MAX_SHOWN)
    Display().warning(shown)
    return shown


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return them by name."""
        return {
            "_after_grace": after_grace,
            "_bake": bake,
            "_baked": baked,
            "_can_be_cut": can_be_cut,
            "_drain_plans": drain_plans,
            "_drained": drained,
            "_fleet_problems": fleet_problems,
            "_fleet_queries": fleet_queries,
            "_fleet_table": fleet_table,
            "_host_pattern": host_pattern,
            "_host_servers": host_servers,
            "_hosts_of_play": hosts_of_play,
            "_kept_out_by": kept_out_by,
            "_lock_outcome": lock_outcome,
            "_lock_places": lock_places,
            "_outcomes": _recorded.outcomes,
            "_query_problems": query_problems,
            "_refusals": refusals,
            "_rolling_changes": rolling_changes,
            "_rolling_decision": decision,
            "_rolling_host_check": rolling_host_check,
            "_rolling_is_done": rolling_is_done,
            "_rolling_progress": rolling_progress,
            "_serial": serial,
            "_services": services_of,
            "_task_files": _task_files.find,
            "_task_problems": _task_files.problems,
            "_unchanged": unchanged,
            "_undrain_plans": undrain_plans,
            "_wait": wait,
            "_wait_for_cut": wait_for_cut,
            "_waited": waited,
            "_warned": warned,
            "_words": words,
        }
