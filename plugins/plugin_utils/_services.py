# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""The agents of a host that a playbook works on, each for one server in HAProxy."""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import words

ALL = "all"
DEFAULT = "hapgent"
DEFAULT_STATE_FILE = "/etc/hapgent/state.json"
PREFIX = "hapgent@"


class Service(t.TypedDict):
    """An agent of a host.

    C(name) is how messages name it: '' if it is the only one, for which the name of the host is enough. C(service) is
    its service. C(state_file) is '' unless it selects the agent if there is no such service. C(server) is its server in
    HAProxy, C(backends) those in which to look for it: an empty list means all.
    """

    name: str
    service: str
    state_file: str
    server: str
    backends: list[str]


class ServicesError(Exception):
    """A variable does not fit the services. The text describes the problem."""


class Variables(t.NamedTuple):
    """The variables of a host: hapgent_services, hapgent_service, hapgent_state_file, hapgent_server, hapgent_backend.

    C(server) and C(backend) may be dictionaries, with the name of a service as key.
    """

    services: t.Any
    service: t.Any
    state_file: t.Any
    server: t.Any
    backend: t.Any


def services(variables: Variables, found: t.Sequence[str]) -> list[Service]:
    """The agents of a host that its variables select, in their order. Raises ServicesError.

    C(found) has the services of the host, which are needed for V(all). If there are none, the default instance is
    selected, so that reading its state reports the problem.
    """
    wanted = words(variables.services)
    # The role hapgent installs no default instance if hapgent_service is empty.
    default = "" if variables.service is None else str(variables.service)
    if not wanted and not default:
        raise ServicesError("hapgent_services must name the instances to work on, because hapgent_service is empty")
    if wanted == [ALL]:
        all_services = sorted(found) or [default or DEFAULT]
        selected = _named(all_services)
    elif wanted:
        selected = _named([_service_of(name, default) for name in wanted])
    else:
        selected = _named([default])
    names = list(selected)
    servers = _of_each("hapgent_server", variables.server, names)
    backends = _of_each("hapgent_backend", variables.backend, names)
    return [
        {
            "name": name if len(names) > 1 else "",
            "service": selected[name],
            "state_file": "" if wanted else str(variables.state_file),
            "server": str(servers[name]),
            "backends": words(backends[name]),
        }
        for name in names
    ]


def name_of(service: str) -> str:
    """The name of an instance: NAME for the service hapgent@NAME, and the name of any other service."""
    return service[len(PREFIX) :] if service.startswith(PREFIX) else service


def _named(selected: t.Sequence[str]) -> dict[str, str]:
    """These services by name. The name of hapgent@NAME is not short if another of them is the service NAME."""
    return {service if name_of(service) in selected else name_of(service): service for service in selected}


def _service_of(name: str, default: str) -> str:
    """The service of an instance, which may be named by its service. C(default) is that of the default instance."""
    return name if name in (DEFAULT, default) or name.startswith(PREFIX) else PREFIX + name


def _of_each(variable: str, value: t.Any, names: t.Sequence[str]) -> dict[str, t.Any]:
    """The value for each of these instances. A dictionary has their names as keys; any other value is for all."""
    if not isinstance(value, t.Mapping):
        return dict.fromkeys(names, value)
    # YAML reads a name such as 7 as a number.
    by_name = {str(name): of_one for name, of_one in value.items()}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ServicesError(f"{variable} must have an entry for each service, but has none for {', '.join(missing)}")
    return {name: by_name[name] for name in names}


def titled(host: str, service: t.Mapping[str, object]) -> str:
    """How messages name an agent of a host. C(service) has its C(name), see Service."""
    return f"{host} {service['name']}" if service["name"] else host
