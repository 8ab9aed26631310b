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
  - Reads the accounts, the Python interpreter, the path to the state file, and the services of systemd that the role
    must know before it installs or removes an agent.
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
  user:
    description: The user that runs the agent.
    type: str
    required: true
  group:
    description: The group of the agent.
    type: str
    required: true
  python:
    description: The Python interpreter that runs the agent. It is started as an unprivileged user.
    type: path
    required: true
  program:
    description: The path of the agent.
    type: path
    required: true
  state_file:
    description: The path of the state file.
    type: path
    required: true
  service:
    description: The name of the systemd service, without its suffix.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Inspect the host
  hapgent.agent.hapgent_host_info:
    user: nobody
    group: nogroup
    python: /usr/bin/python3
    program: /usr/local/bin/hapgent
    state_file: /etc/hapgent/state.json
    service: hapgent
"""

RETURN = r"""
user:
  description: The user. Null if it does not exist.
  returned: always
  type: dict
  contains:
    id:
      description: The user ID.
      type: int
    comment:
      description: The comment in the user database (GECOS).
      type: str
group:
  description: The group. Null if it does not exist.
  returned: always
  type: dict
  contains:
    members:
      description: The users that have the group as a supplementary group.
      type: list
      elements: str
python_version:
  description: The version of the Python interpreter. Empty if the program is not one, or does not respond.
  returned: always
  type: str
  sample: "3.11"
service_manager:
  description: V(systemd), or the name of the first process of the host.
  returned: always
  type: str
  sample: systemd
path:
  description:
    - The folders on the path to the state file and the file itself, starting with C(/).
    - The list ends before the first one that does not exist. Symbolic links are not followed.
  returned: always
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
own_files:
  description: The regular files that the agent keeps, which are the state file and those beside it.
  returned: always
  type: list
  elements: path
has_other_files:
  description: Whether the folder of the state file contains anything else, or cannot be listed.
  returned: always
  type: bool
service:
  description: The service. Null if systemd does not manage the host.
  returned: always
  type: dict
  contains:
    exists:
      description: Whether systemd has a service of this name.
      type: bool
    runs_agent:
      description: Whether that service runs the program.
      type: bool
    units:
      description: The units of this name that an administrator has configured, the socket first.
      type: list
      elements: str
    listens:
      description: The addresses of the socket, as systemd prints them. Empty if there is no socket.
      type: str
      sample: 0.0.0.0:9777 (Stream)
    is_outdated:
      description: Whether the program or a unit was written after the service was started.
      type: bool
other_agents:
  description: The other services that an administrator has configured and that run the program.
  returned: always
  type: list
  elements: str
other_services:
  description: The other services that an administrator has configured and that run as the user or the group.
  returned: always
  type: list
  elements: str
"""

import re
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hapgent.agent.plugins.module_utils import _host

# A Python that is started for the first time reads its library from the disk.
SECONDS = 10.0


def main() -> None:
    text, path = {"type": "str", "required": True}, {"type": "path", "required": True}
    module = AnsibleModule(
        argument_spec={
            "user": text,
            "group": text,
            "python": path,
            "program": path,
            "state_file": path,
            "service": text,
        },
        supports_check_mode=True,
    )
    user, group, program, state_file, service = (
        module.params[name] for name in ("user", "group", "program", "state_file", "service")
    )
    manager = _host.service_manager()
    has_systemd = manager == "systemd"
    module.exit_json(
        changed=False,
        user=_host.user(user),
        group=_host.group(group),
        python_version=_host.python_version(module.params["python"], time.monotonic() + SECONDS),
        service_manager=manager,
        path=_host.path_to(state_file),
        own_files=_host.own_files(state_file),
        has_other_files=_host.has_other_files(state_file, time.monotonic() + SECONDS),
        service=_host.service(service, program, module.run_command) if has_systemd else None,
        other_agents=_host.other_services(service, rf"ExecStart=(.* )?{re.escape(program)}"),
        other_services=_host.other_services(service, f"User={re.escape(user)}|Group={re.escape(group)}"),
    )


if __name__ == "__main__":
    main()
