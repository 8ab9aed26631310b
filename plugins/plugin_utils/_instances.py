# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""The instances of the agent that the variables of the role hapgent describe, and what they must not share."""

from __future__ import annotations

import ipaddress
import itertools
import posixpath
import re
import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._folder import SUFFIXES
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import PREFIX, name_of

Variables = t.Mapping[str, t.Any]

# The variables that each instance has, without their prefix.
OF_INSTANCE = (
    *("ip", "port", "state_file", "status", "weight", "maxconn", "settle", "ramp", "ramp_seconds"),
    *("user", "group", "python"),
    *("drain_with", "grace", "server_port", "health_url"),
    *("weight_command", "weight_interval", "weight_min", "weight_max"),
    *("weight_step", "weight_smoothing", "weight_fallback"),
)


def instances(variables: Variables, listed: t.Sequence[Variables]) -> list[dict[str, t.Any]]:
    """The instances: the default one, unless C(hapgent_service) is empty, and one for each entry of the list.

    An entry has the values of the plain variables, except for what it sets itself and for its state file. The C(name)
    of the default instance is None. The values of C(OF_INSTANCE) are beside them.
    """
    plain = {key: variables[f"hapgent_{key}"] for key in OF_INSTANCE}
    default = variables["hapgent_service"]
    found = [_instance(None, str(default), plain)] if default not in (None, "") else []
    for entry in listed:
        own = {key: entry[key] for key in OF_INSTANCE if entry.get(key) is not None}
        name = str(entry["name"])
        file = {"state_file": f"/etc/hapgent/{name}/state.json"}
        found.append(_instance(name, f"{PREFIX}{name}", {**plain, **file, **own}))
    return found


def _instance(name: str | None, service: str, values: Variables) -> dict[str, t.Any]:
    # The unit that drains the instance before another service stops, the service and the timer that set its weight, and
    # the cron job that does so on a host without systemd.
    units = {
        "drain_unit": f"hapgent-drain@{name or service}.service",
        "weight_unit": f"hapgent-weight@{name or service}",
        "weight_job": f"hapgent-weight-{_escaped(name or service)}",
    }
    return {"name": name, "service": service, **units, **values}


def _escaped(name: str) -> str:
    """The name in characters that cron accepts in the name of a file. No two names become the same."""
    return re.sub("[^A-Za-z0-9-]", lambda found: f"_{ord(found[0]):02x}", name)


def variable(instance: Variables, key: str) -> str:
    """How a message names a variable of an instance."""
    return f"hapgent_{key}" if instance["name"] is None else f"hapgent_instances: {key} of {instance['name']}"


def conflicts(found: t.Sequence[Variables]) -> list[str]:
    """A sentence for each two instances that cannot run on one host. Their values are valid."""
    problems = []
    for one, other in itertools.combinations(found, 2):
        both = f"{_shown(one)} and {_shown(other)}"
        # The playbooks and the commands also know the service hapgent@NAME by its short name.
        if name_of(one["service"]) == name_of(other["service"]):
            problems.append(
                f"Two instances have the name {name_of(one['service'])}. Give each a name of its own in "
                "hapgent_instances."
            )
            continue
        if _listen_on_one_address(one, other):
            problems.append(
                f"{both} would both listen on port {one['port']} of {_address_of_both(one, other)}. "
                "Give each instance a port of its own in hapgent_instances."
            )
        problem = _path_problem(one, other) or _path_problem(other, one)
        if problem:
            problems.append(f"{both} {problem}. Set another state_file in hapgent_instances.")
    return problems


def _shown(instance: Variables) -> str:
    return str(instance["name"] or instance["service"])


def _listen_on_one_address(one: Variables, other: Variables) -> bool:
    if int(one["port"]) != int(other["port"]):
        return False
    mine, theirs = (ipaddress.ip_address(str(instance["ip"])) for instance in (one, other))
    # A socket on :: also accepts IPv4, as systemd opens it.
    return mine == theirs or any(
        address.is_unspecified and (address.version == 6 or peer.version == 4)
        for address, peer in ((mine, theirs), (theirs, mine))
    )


def _address_of_both(one: Variables, other: Variables) -> str:
    return str(one["ip"]) if one["ip"] == other["ip"] else f"{one['ip']} and {other['ip']}"


def _path_problem(instance: Variables, other: Variables) -> str:
    """Return why the files of another instance cannot be beside or below those of this one, or ''."""
    path, their_path = str(instance["state_file"]), str(other["state_file"])
    if path == their_path:
        return f"would share the state file {path}"
    if their_path in (path + suffix for suffix in SUFFIXES):
        return f"would share the file {their_path}"
    folder, their_folder = posixpath.dirname(path), posixpath.dirname(their_path)
    if instance["user"] == other["user"] or not (their_folder + "/").startswith(folder + "/"):
        return ""
    # The owner of a folder can replace everything in it.
    if folder == their_folder:
        return f"have different users, but share the folder {folder}"
    return (
        f"have different users, but the folder {their_folder} of user {other['user']} would be in {folder}, which "
        f"belongs to user {instance['user']}"
    )
