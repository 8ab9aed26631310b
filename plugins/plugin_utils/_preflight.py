# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""What the role rejects before it changes a host: invalid variables, and hosts on which it cannot work safely."""

from __future__ import annotations

import ipaddress
import posixpath
import re
import stat
import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.module_utils._ramp import parse_percents
from ansible_collections.hapgent.agent.plugins.module_utils._state import FIELDS
from ansible_collections.hapgent.agent.plugins.plugin_utils._instances import conflicts, instances, variable

Instance = t.Mapping[str, t.Any]

NUMBERS = {
    "port": (1, 65535),
    "settle": (0, 86400),
    "ramp_seconds": (1, 86400),
    # The fields that the first state of a new host can have.
    "weight": (0, FIELDS["weight"].limit),
    "maxconn": (0, FIELDS["maxconn"].limit),
    "grace": (0, 86400),
    "server_port": (1, 65535),
    "weight_interval": (1, 86400),
    "weight_min": (0, FIELDS["weight"].limit),
    "weight_max": (1, FIELDS["weight"].limit),
    "weight_step": (1, FIELDS["weight"].limit),
    "weight_smoothing": (1, 100),
    "weight_fallback": (1, 86400),
}
OPTIONAL = ("weight", "maxconn", "server_port")
CRON_SECONDS = 60
# Nine digits are more than any limit needs. Leading zeros are rejected, because some programs read them as octal.
WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")

# The values become part of systemd units, init scripts and cron jobs, in which %, spaces and what is special in a shell
# have a meaning.
NAME = r"[A-Za-z_][A-Za-z0-9_.-]{0,30}"
COMPONENT = r"/[A-Za-z0-9_@:+-][A-Za-z0-9_.@:+-]*"
# The path of a socket must not exceed 107 bytes, and the status socket is /run/hapgent/SERVICE/status.sock.
SERVICE = r"(?!.*\.(service|socket)\Z)[A-Za-z0-9_][A-Za-z0-9_.@-]{0,78}[A-Za-z0-9_-]|[A-Za-z0-9_]"
# The names that hapgent_services uses for the default instance and for all.
INSTANCE = r"(?!(hapgent|all)\Z)(?!.*\.(service|socket)\Z)[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-]|[A-Za-z0-9_]"
FORMS = {
    "user": (NAME, "a user name of at most 31 letters, digits and _.-"),
    "group": (NAME, "a group name of at most 31 letters, digits and _.-"),
    "python": (f"({COMPONENT})+", "an absolute path of letters, digits and _./@:+-, without .."),
    "state_file": (
        f"({COMPONENT}){{3,}}",
        "an absolute path with at least two folders, of letters, digits and _./@:+-, without .., "
        "such as /etc/hapgent/state.json",
    ),
    "drain_with": (r"|[A-Za-z0-9:_.@-]{1,200}\.service", "the name of a service, with .service, or empty"),
    "health_url": (
        r"|https?://[A-Za-z0-9._~:/?#\[\]@!&()*+,;=-]{1,500}",
        "a URL without quotes, spaces and %, or empty",
    ),
    "weight_command": (
        r"|[A-Za-z0-9_/][A-Za-z0-9 _./:=,@+-]{0,500}",
        "a program with its arguments, of letters, digits, spaces and _./:=,@+-, without .., or empty",
    ),
}
# The agent's sandbox hides these folders, or a reboot empties them.
HIDDEN = re.compile(r"/(dev|home|proc|root|run|sys|tmp|var/run|var/tmp)(/.*)?")
MIN_PYTHON = (3, 9)
SEEN = {"python": "/usr/bin/python3", "state_file": "/etc/hapgent/state.json"}

# What an instance has and the argument specs do not check.
CHECKED = (*NUMBERS, *FORMS, "ip", "ramp")

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Shipped(t.NamedTuple):
    """The agent that the collection ships: its release, its SHA-256, and that of the original binary."""

    version: str
    checksum: str
    original_checksum: str


class Found(t.NamedTuple):
    """The owner (ID and name) and the mode of a folder or a file. Symbolic links are not followed."""

    path: str
    uid: int
    owner: str
    mode: int


def variable_problems(
    variables: t.Mapping[str, t.Any], listed: t.Sequence[Instance], shipped: Shipped, uninstall: bool
) -> list[str]:
    """Return a sentence for each variable of the role that has an invalid value.

    C(listed) is the variable hapgent_instances. With C(uninstall), the version and the checksum are not checked. Values
    may be strings or of the type that YAML gives them, because the validation of argument specs does not convert them.
    """
    problems = [_service_name_problem(variables["hapgent_service"])]
    problems += [_value_problem(key, f"hapgent_{key}", variables[f"hapgent_{key}"]) for key in CHECKED]
    for entry in listed:
        named = {"name": printable(entry["name"])}
        problems.append(_instance_name_problem(entry["name"]))
        problems += [
            _value_problem(key, variable(named, key), entry[key]) for key in CHECKED if entry.get(key) is not None
        ]
    if not uninstall:
        problems += [
            _version_problem(str(variables["hapgent_version"]), shipped),
            _checksum_problem(str(variables["hapgent_checksum"]), shipped),
        ]
    found = [problem for problem in problems if problem]
    if found:
        return found
    described = instances(variables, listed)
    if not described and not uninstall:
        return [
            "hapgent_service is empty and hapgent_instances has no entry, so there is no instance to install. "
            "Name at least one, or set hapgent_uninstall=true."
        ]
    problems = [check(instance) for instance in described for check in (_drain_with_problem, _weight_problem)]
    return [*filter(None, problems), *conflicts(described)]


def _drain_with_problem(instance: Instance) -> str:
    if not instance["drain_with"] or instance["server_port"] is not None:
        return ""
    return (
        f"{variable(instance, 'server_port')} must be the port of {instance['drain_with']}, so that its connections "
        "can be counted before it stops."
    )


def _weight_problem(instance: Instance) -> str:
    if not instance["weight_command"]:
        return ""
    minimum, maximum, interval, fallback = (
        int(instance[f"weight_{key}"]) for key in ("min", "max", "interval", "fallback")
    )
    if minimum > maximum:
        return (
            f"{variable(instance, 'weight_min')} must not be higher than {variable(instance, 'weight_max')}, but "
            f"{minimum} is higher than {maximum}."
        )
    if fallback < interval:
        return (
            f"{variable(instance, 'weight_fallback')} must be at least {variable(instance, 'weight_interval')}, which "
            f"is {interval}, not {fallback}. Otherwise, a single failure would bring the configured weight back."
        )
    return ""


def parents(state_file: str) -> list[str]:
    """Return the folders above the folder of the state file, starting with C(/)."""
    above = posixpath.dirname(posixpath.dirname(state_file))
    names = [name for name in above.split("/") if name]
    return ["/", *("/" + "/".join(names[:count]) for count in range(1, len(names) + 1))]


def host_problems(
    host: t.Mapping[str, t.Any],
    described: t.Sequence[Instance],
    manage_user: bool,
    uninstall: bool,
    service_manager: str = "auto",
) -> list[str]:
    """Return a sentence for each reason why the role cannot work on a host, without duplicates.

    C(host) is what the module hapgent_host_info has returned for these instances, and C(service_manager) the variable.
    With C(uninstall), what an agent needs to run is not checked.
    """
    problem = _manager_problem(host["service_manager"], service_manager)
    if problem:
        return [problem]
    problems = []
    for instance, found in zip(described, host["instances"]):
        problems += [_path_problem(found, instance, uninstall), _service_problem(found, instance)]
        if not uninstall:
            problems += [_python_problem(found, instance), _account_problem(found, instance, manage_user)]
            problems += [_followed_problem(host["service_manager"], found, instance)]
            if host["service_manager"] == "sysv":
                problems.append(_cron_problem(host["has_cron"], instance))
    return list(dict.fromkeys(problem for problem in problems if problem))


def _manager_problem(runs: str, wanted: str) -> str:
    if runs not in ("systemd", "sysv"):
        return (
            f"This role needs systemd, or sysvinit as Debian configures it, but the host runs {printable(runs)}. The "
            'agent itself needs neither: see "Without systemd" in docs/host.md of the collection.'
        )
    if wanted in ("auto", runs):
        return ""
    return (
        f"hapgent_service_manager must be {runs}, which runs the host, or auto, not {_shown(wanted)}. Remove it from "
        "your inventory: its default is auto."
    )


def _path_problem(host: t.Mapping[str, t.Any], instance: Instance, uninstall: bool) -> str:
    """Return why it is not safe to work in the folder of the state file, or ''.

    If all folders above it belong to root and no other user can write to them, no other user can replace the folder
    with a link, now or later. A folder of the agent's own user is safe too, because from there on the role has only the
    rights of that user.
    """
    state_file = instance["state_file"]
    uid = host["user"]["id"] if host["user"] else 0
    found = {component["path"]: Found(**component) for component in host["path"]}
    folder = found.get(posixpath.dirname(state_file))
    file = found.get(state_file)
    problems = [_parent_problem(found[path], uid) for path in parents(state_file) if path in found]
    if folder:
        problems.append(_folder_problem(folder) or ("" if uninstall else _owner_problem(folder, file, host, instance)))
    if file:
        problems.append(_file_problem(file, uninstall))
    problem = next(filter(None, problems), "")
    return problem and f"{variable(instance, 'state_file')} is {state_file}, and {problem}."


def _parent_problem(found: Found, uid: int) -> str:
    problem = _folder_problem(found)
    if problem:
        return problem
    if found.uid not in (0, uid):
        return (
            f"{found.path} belongs to {printable(found.owner)}. It must belong to root, because another user could "
            "replace its contents with a link: use another folder, or change the owner with chown"
        )
    if found.mode & OTHERS_WRITE:
        return (
            f"users other than {printable(found.owner)} can write to {found.path} and could replace its contents with "
            "a link: use another folder, or run chmod go-w"
        )
    return ""


def _folder_problem(found: Found) -> str:
    if stat.S_ISLNK(found.mode):
        return f"{found.path} must not be a symbolic link: use the folder to which it leads"
    return "" if stat.S_ISDIR(found.mode) else f"{found.path} is not a folder"


def _owner_problem(folder: Found, file: Found | None, host: t.Mapping[str, t.Any], instance: Instance) -> str:
    is_its_own = host["user"] is not None and host["user"]["id"] == folder.uid
    # The folder of an agent that had another user, or one in which only the folders of other instances are.
    is_an_agents = (file is not None or host["has_instances"]) and not host["has_other_files"]
    if is_its_own or is_an_agents:
        return ""
    return (
        f"{folder.path} belongs to {printable(folder.owner)}. It must belong to {instance['user']}, the user that runs "
        "the agent, because the agent replaces files in it: use a folder that does not exist yet, or change the owner "
        "with chown"
    )


def _file_problem(found: Found, uninstall: bool) -> str:
    if stat.S_ISREG(found.mode):
        return ""
    if stat.S_ISDIR(found.mode):
        return f"it must be a file, such as {found.path}/state.json, but {found.path} is a folder"
    # Uninstalling ignores such a file, so that the agent's user cannot prevent it by creating one.
    return "" if uninstall else f"it must be a regular file, but {found.path} is not one: remove it"


def _service_problem(host: t.Mapping[str, t.Any], instance: Instance) -> str:
    if not host["unit"]["exists"] or host["unit"]["runs_agent"]:
        return ""
    name = "hapgent_service" if instance["name"] is None else "hapgent_instances: name"
    return (
        f"{name} must not be the name of another service, but the host has a service {instance['service']} that does "
        "not run the agent. Choose another name."
    )


def _followed_problem(manager: str, host: t.Mapping[str, t.Any], instance: Instance) -> str:
    if not instance["drain_with"]:
        return ""
    if manager != "systemd":
        return f"{variable(instance, 'drain_with')} needs systemd, but sysvinit runs the host. Remove it for this host."
    if host["unit"]["followed_exists"]:
        return ""
    return (
        f"{variable(instance, 'drain_with')} must be a service of the host, but systemd has no "
        f"{instance['drain_with']}. Install the service first, or correct the name."
    )


def _cron_problem(has_cron: bool, instance: Instance) -> str:
    """Return why cron cannot set the weight of an instance, or ''."""
    if not instance["weight_command"]:
        return ""
    if not has_cron:
        return (
            f"{variable(instance, 'weight_command')} needs cron on a host that sysvinit runs, but the host has no "
            "folder /etc/cron.d or no program /usr/bin/crontab. Install cron, or remove the variable for this host."
        )
    interval, fallback = (int(instance[f"weight_{key}"]) for key in ("interval", "fallback"))
    if interval > CRON_SECONDS:
        return (
            f"{variable(instance, 'weight_interval')} must be at most {CRON_SECONDS} on a host that sysvinit runs, "
            f"where cron runs the command once a minute, not {interval}."
        )
    if fallback < CRON_SECONDS:
        return (
            f"{variable(instance, 'weight_fallback')} must be at least {CRON_SECONDS} on a host that sysvinit runs, "
            f"where cron runs the command once a minute, not {fallback}. Otherwise, a single failure would bring the "
            "configured weight back."
        )
    return ""


def _python_problem(host: t.Mapping[str, t.Any], instance: Instance) -> str:
    version = host["python_version"]
    if version and tuple(map(int, version.split("."))) >= MIN_PYTHON:
        return ""
    found = f"Python {version}" if version else "not such a Python"
    return (
        f"{variable(instance, 'python')} must be the path of Python {'.'.join(map(str, MIN_PYTHON))} or later that "
        f"every user can run, but {instance['python']} is {found}."
    )


def _account_problem(host: t.Mapping[str, t.Any], instance: Instance, manage_user: bool) -> str:
    has_both = host["user"] is not None and host["group"] is not None
    # Uninstalling removes the group that was created with the user. It could not recognize a group that was created for
    # an existing user.
    if has_both or (manage_user and host["user"] is None):
        return ""
    return (
        f"{variable(instance, 'user')} and {variable(instance, 'group')} must exist, but user {instance['user']} or "
        f"group {instance['group']} does not exist. Create the missing one, set other names, or set "
        "hapgent_manage_user=true, which creates a missing user together with its group."
    )


def _service_name_problem(value: t.Any) -> str:
    text = "" if value is None else str(value)
    if not text or (re.fullmatch(SERVICE, text) and ".." not in text):
        return ""
    return (
        "hapgent_service must be a name without .service, of at most 80 letters, digits and _.@-, or empty, not "
        f"{_shown(value)}."
    )


def _instance_name_problem(value: t.Any) -> str:
    if re.fullmatch(INSTANCE, str(value)) and ".." not in str(value):
        return ""
    return (
        "hapgent_instances: name must be at most 64 letters, digits and _.-, without .service, and not hapgent or all, "
        f"but one is {_shown(value)}."
    )


def _value_problem(key: str, name: str, value: t.Any) -> str:
    if key in NUMBERS:
        return "" if value is None and key in OPTIONAL else _number_problem(name, value, *NUMBERS[key])
    if key == "ramp":
        return _ramp_problem(name, value)
    return _form_problem(key, name, value) if key in FORMS else _address_problem(name, value)


def _number_problem(name: str, value: t.Any, minimum: int, maximum: int) -> str:
    text = "" if isinstance(value, (bool, float)) else str(value)
    if WHOLE_NUMBER.fullmatch(text) and minimum <= int(text) <= maximum:
        return ""
    return f"{name} must be a whole number from {minimum} to {maximum}, not {_shown(value)}."


def _ramp_problem(name: str, value: t.Any) -> str:
    try:
        # On the command line, a list is text with commas.
        parse_percents(",".join(map(str, value)) if isinstance(value, list) else str(value))
    except ValueError:
        return (
            f"{name} must be a list of ascending percentages that ends with 100, such as [10, 50, 100], or empty, not "
            f"{_shown(value)}."
        )
    return ""


def _form_problem(key: str, name: str, value: t.Any) -> str:
    form, allowed = FORMS[key]
    text = "" if value is None else str(value)
    if not re.fullmatch(form, text) or ".." in text:
        return f"{name} must be {allowed}, not {_shown(value)}."
    if key in SEEN and HIDDEN.fullmatch(text):
        return (
            f"{name} must be a path such as {SEEN[key]}, not {text}: "
            "the agent's sandbox hides that folder, or a reboot empties it."
        )
    return ""


def _address_problem(name: str, value: t.Any) -> str:
    text = str(value)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        # A % introduces an interface name (scope), but systemd would read it as a specifier.
        if "%" not in text:
            return ""
    return f"{name} must be an IPv4 or IPv6 address, not {_shown(value)}."


def _version_problem(version: str, shipped: Shipped) -> str:
    if version == shipped.version:
        return ""
    return (
        f"hapgent_version must be {shipped.version}, the release that the agent of this collection is compatible with, "
        f"not {_shown(version)}. Remove it from your inventory, or set it to {shipped.version}."
    )


def _checksum_problem(checksum: str, shipped: Shipped) -> str:
    if checksum == shipped.checksum:
        return ""
    if checksum == shipped.original_checksum:
        return (
            f"hapgent_checksum is the checksum of the original hapgent {shipped.version} binary, but this collection "
            "ships its own agent. Remove hapgent_checksum from your inventory: its default is correct."
        )
    return (
        f"hapgent_checksum must be {shipped.checksum}, the checksum of the agent in this release of the collection, "
        f"not {_shown(checksum)}. Remove it from your inventory, or pin it to that checksum."
    )


def _shown(value: t.Any) -> str:
    return printable(value, 100) or "empty"
