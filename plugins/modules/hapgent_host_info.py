# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hapgent_host_info
short_description: Gather what the role hapgent needs to know about a host
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This module is B(private) to the collection. It can have breaking changes at any time.
  - Reads the accounts, the Python interpreters, the paths to the state files, and the services of systemd or sysvinit
    that the role must know before it installs or removes agents.
  - The module must run as root.
extends_documentation_fragment:
  - hapgent.agent._attributes
  - hapgent.agent._attributes.info_module
attributes:
  platform:
    platforms: linux
    support: full
requirements:
  - Python 3.9 or later on the managed host
options:
  program:
    description: The path of the agent.
    type: path
    required: true
  instances:
    description:
      - The instances that the variables of the role describe, each with C(service), the name of its service
        without the suffix, C(user), C(group), C(python), the path of its interpreter, C(state_file),
        C(drain_with), the service with which it is drained, V('') for none, C(drain_unit), the unit that does that,
        and C(weight_unit), the name without suffix of the service and the timer that set its weight.
        Other keys are ignored.
      - The interpreters are started as an unprivileged user.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Inspect the host
  hapgent.agent.hapgent_host_info:
    program: /usr/local/bin/hapgent
    instances:
      - service: hapgent
        user: nobody
        group: nogroup
        python: /usr/bin/python3
        state_file: /etc/hapgent/state.json
        drain_with: shop.service
        drain_unit: hapgent-drain@hapgent.service
        weight_unit: hapgent-weight@hapgent
"""

RETURN = r"""
service_manager:
  description: V(systemd) or V(sysv), or the name of the first process of the host if it is neither.
  returned: always
  type: str
  sample: systemd
has_cron:
  description: Whether the host has a cron that runs the jobs in C(/etc/cron.d).
  returned: always
  type: bool
instances:
  description: What the host has for each of the instances, in their order.
  returned: always
  type: list
  elements: dict
  contains:
    user:
      description: The user. Null if it does not exist.
      type: dict
      contains:
        id:
          description: The user ID.
          type: int
        comment:
          description: The comment in the user database (GECOS).
          type: str
        primary_group:
          description: The ID of the primary group.
          type: int
    group:
      description: The group. Null if it does not exist.
      type: dict
      contains:
        id:
          description: The group ID.
          type: int
        members:
          description: The users that have the group as a supplementary group.
          type: list
          elements: str
    python_version:
      description: The version of the Python interpreter. Empty if the program is not one, or does not respond.
      type: str
      sample: "3.11"
    path:
      description:
        - The folders on the path to the state file and the file itself, starting with C(/).
        - The list ends before the first one that does not exist. Symbolic links are not followed.
      type: list
      elements: dict
      contains:
        path:
          description: The path of this folder or file.
          type: str
        uid:
          description: The user ID of the owner.
          type: int
        owner:
          description: The name of the owner.
          type: str
        mode:
          description: Type and permissions, as in C(st_mode).
          type: int
    has_instances:
      description: Whether the folder of the state file contains files or folders of the other instances.
      type: bool
    has_other_files:
      description: Whether the folder of the state file contains anything else, or cannot be listed.
      type: bool
    unit:
      description:
        - The units of the instance, or its init script. If sysvinit runs the host, it has no values about sockets and
          about other services. If neither runs the host, it is empty.
      type: dict
      contains:
        exists:
          description: Whether there is a service of this name.
          type: bool
        runs_agent:
          description: Whether that service runs the program.
          type: bool
        units:
          description: The units of this name that an administrator has configured, the socket first.
          type: list
          elements: str
        listens:
          description:
            - The addresses of the socket, as systemd prints them, or the address and port in the init script. Empty if
              there is none.
          type: str
          sample: 0.0.0.0:9777 (Stream)
        socket_runs:
          description: Whether the socket is active and enabled.
          type: bool
        service_runs:
          description: Whether the service is active and enabled.
          type: bool
        is_outdated:
          description: Whether the program or a unit was written after the service was started.
          type: bool
        drain_runs:
          description: Whether the unit that drains the instance is active and enabled.
          type: bool
        drain_enabled:
          description: Whether that unit is enabled.
          type: bool
        followed_exists:
          description: Whether systemd has the service of C(drain_with).
          type: bool
        followed_runs:
          description: Whether that service is active.
          type: bool
        weight_runs:
          description: Whether the timer that sets the weight is active and enabled.
          type: bool
installed:
  description: The instances that the role has installed.
  returned: always
  type: list
  elements: dict
  contains:
    service:
      description: The name of the service, without its suffix.
      type: str
    user:
      description: The user that runs the agent.
      type: str
    group:
      description: The group of the agent.
      type: str
    python:
      description: The path of the Python interpreter.
      type: str
    state_file:
      description: The path of the state file.
      type: str
    units:
      description: The units, the socket first, or the init script.
      type: list
      elements: str
    drain_units:
      description: The unit that drains the instance before another service stops, if there is one.
      type: list
      elements: str
    weight_units:
      description: The timer and the service that set its weight, or its cron job, if there are any.
      type: list
      elements: str
accounts:
  description: The users and groups of all these instances.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The name of the user.
      type: str
    group:
      description: The name of the group.
      type: str
    comment:
      description: The comment of the user. Null if the user does not exist.
      type: str
    is_primary:
      description: Whether the group is the primary group of the user.
      type: bool
    members:
      description: The users that have the group as a supplementary group. Null if the group does not exist.
      type: list
      elements: str
    other_services:
      description: The services that an administrator has configured, other than these instances, and that run as the
        user or the group.
      type: list
      elements: str
other_agents:
  description: The services that an administrator has configured, other than these instances, and that run the program.
  returned: always
  type: list
  elements: str
"""

import functools
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hapgent.agent.plugins.module_utils import _host
from ansible_collections.hapgent.agent.plugins.module_utils._systemd import RunCommand

# A Python that is started for the first time reads its library from the disk.
SECONDS = 10.0

Found = dict[str, t.Any]


@functools.cache
def python_version(program: str) -> str:
    """The version of an interpreter, which most instances share."""
    return _host.python_version(program, time.monotonic() + SECONDS)


def inspected(instance: Found, unit: Found, files: list[str]) -> Found:
    """What the host has for an instance. C(files) are the state files of all instances."""
    own = instance["state_file"]
    path = _host.path_to(own, time.monotonic() + SECONDS)
    contents = _host.contents(own, [file for file in files if file != own], time.monotonic() + SECONDS)
    return {
        "user": _host.user(instance["user"]),
        "group": _host.group(instance["group"]),
        "python_version": python_version(instance["python"]),
        "path": path,
        "has_instances": contents.has_instances,
        "has_other_files": contents.has_others,
        "unit": unit,
    }


def units_of(manager: str, described: t.Sequence[Found], program: str, run_command: RunCommand) -> list[Found]:
    """What the service manager has for each of the instances."""
    names = [
        _host.Names(one["service"], one["drain_unit"], one["drain_with"] or "", f"{one['weight_unit']}{_host.TIMER}")
        for one in described
    ]
    if manager == "systemd":
        return _host.services(names, program, run_command)
    return _host.scripts(names, program, run_command) if manager == "sysv" else [{} for _name in names]


def account(user: str, group: str, services: t.Collection[str]) -> Found:
    """A user and its group, and the services other than these that run as one of them."""
    found_user, found_group = _host.user(user), _host.group(group)
    return {
        "name": user,
        "group": group,
        "comment": found_user and found_user["comment"],
        "is_primary": bool(found_user and found_group and found_user["primary_group"] == found_group["id"]),
        "members": found_group and found_group["members"],
        "other_services": _host.other_services(services, _host.line_with_account(user, group)),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "required": True},
            "instances": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    program, described = module.params["program"], module.params["instances"]
    names = [instance["service"] for instance in described]
    files = [instance["state_file"] for instance in described]
    manager = _host.service_manager()
    shown = units_of(manager, described, program, module.run_command)
    installed = _host.installed()
    weights = {unit.removesuffix(".service") for found in installed for unit in found["weight_units"]}
    ours = {*names, *(found["service"] for found in installed), *weights}
    accounts = dict.fromkeys((instance["user"], instance["group"]) for instance in [*described, *installed])
    try:
        instances = [inspected(instance, unit, files) for instance, unit in zip(described, shown)]
    except TimeoutError as error:
        module.fail_json(msg=f"{error}. Use another state_file, or run this again when the cause is fixed.")
    module.exit_json(
        changed=False,
        service_manager=manager,
        has_cron=_host.has_cron(),
        instances=instances,
        installed=installed,
        accounts=[account(user, group, ours) for user, group in accounts],
        other_agents=_host.other_services(ours, _host.line_with_program(program)),
    )


if __name__ == "__main__":
    main()
