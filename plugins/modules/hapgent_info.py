# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hapgent_info
short_description: Tell the state of the agents on a host, and which load balancers have it
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - Asks one agent on the managed host, or all that run there, for what it tells HAProxy, since when and why, and for
    the load balancers that ask it.
  - Of an agent without a status socket (C(HAPGENT_SOCKET)), such as hapgent 0.3.2, it tells what its state file says.
  - Where all agents are asked and one does not tell, that is a warning, and what it would tell is null.
  - The user must be root, or the one who runs the agent.
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
  service:
    description:
      - The systemd service of the agent. It has to run.
      - Without it, all agents that run on the host are asked. One that runs in a container is none of them.
    type: str
  timeout:
    description:
      - Seconds to wait for each agent.
    type: float
    default: 10
"""

EXAMPLES = r"""
- name: Ask all agents of the host
  hapgent.agent.hapgent_info:
  register: hapgent

- name: Show those that a load balancer does not know the state of
  ansible.builtin.debug:
    msg: "{{ item.service }}: {{ item.peers | rejectattr('has_it') | map(attribute='address') }}"
  loop: "{{ hapgent.instances }}"

- name: Ask one
  hapgent.agent.hapgent_info:
    service: hapgent-api
"""

RETURN = r"""
instances:
  description: The agents, ordered by their process numbers.
  returned: success
  type: list
  elements: dict
  contains:
    service:
      description: The systemd service that runs the agent, without its suffix; null if none does.
      type: str
      sample: hapgent
    pid:
      description: The agent's process.
      type: int
      sample: 512
    state_file:
      description: Path of the state file.
      type: str
      sample: /etc/hapgent/state.json
    status_socket:
      description:
        - Path of the status socket. If the agent has none this is null, and all below too, but for
          RV(instances[].state) and RV(instances[].answer).
      type: str
      sample: /run/hapgent/hapgent/status.sock
    state:
      description:
        - The fields of the state that are set. Null if the agent has no status socket and its state file is invalid.
      type: dict
      sample: {"status": "DRAIN", "reason": "kernel upgrade"}
    answer:
      description: What the agent answers to HAProxy, without what undoes the state before.
      type: str
      sample: "DRAIN UP # kernel upgrade"
    since:
      description: When the state was changed, in seconds since 1970.
      type: float
      sample: 1795486180.4
    version:
      description: Release of the agent.
      type: str
      sample: 1.0.0
    settle:
      description: For how many seconds after a change each load balancer is told what undoes the state before.
      type: int
      sample: 60
    last_error:
      description: The last problem with the state file; null if there was none since the agent was started.
      type: str
      sample: null
    counters:
      description: What the agent has counted since it was started.
      type: dict
      sample: {"checks": 1200, "changes": 2, "reloads": 2}
    peers:
      description: The load balancers, which are all addresses that ask.
      type: list
      elements: dict
      contains:
        address:
          description: The address.
          type: str
          sample: 198.51.100.11
        first_seen:
          description: When it asked first, in seconds since 1970.
          type: float
          sample: 1795480000.1
        last_seen:
          description: When it asked last, in seconds since 1970.
          type: float
          sample: 1795486190.4
        checks:
          description: How many of its checks were answered.
          type: int
          sample: 600
        interval:
          description: How often it asks, in seconds; null if it has asked once.
          type: float
          sample: 2.0
        line:
          description: The last line that it was given.
          type: str
          sample: "DRAIN UP # kernel upgrade"
        has_it:
          description: Whether that was the state.
          type: bool
          sample: true
        settles_for:
          description: For how many seconds more it is told what undoes the state before.
          type: float
          sample: 49.9
        polls:
          description: Whether it still asks, about as often as it used to.
          type: bool
          sample: true
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hapgent.agent.plugins.module_utils._instance import (
    TOLD,
    Instance,
    InstanceError,
    find_service_pid,
    instance_of,
    running,
    service_of,
)
from ansible_collections.hapgent.agent.plugins.module_utils._state import StateError, StateFile


def ask(instance: Instance, timeout: float) -> dict[str, t.Any]:
    """What the agent tells, or else its state file. Raises InstanceError."""
    if instance.status_socket:
        status = instance.status(time.monotonic() + timeout)
        return {name: status[name] for name in TOLD}
    try:
        state = StateFile(os.path.realpath(instance.state_file)).load()
    except StateError:
        return {}
    return {"state": state.fields(), "answer": state.answer()}


def describe(instance: Instance, told: dict[str, t.Any]) -> dict[str, t.Any]:
    """All that is returned of one agent."""
    return {
        **dict.fromkeys(TOLD),
        **told,
        "service": service_of(instance.pid),
        "pid": instance.pid,
        "state_file": instance.state_file,
        "status_socket": instance.status_socket or None,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={"service": {"type": "str"}, "timeout": {"type": "float", "default": 10}},
        supports_check_mode=True,
    )
    service, timeout = module.params["service"], module.params["timeout"]
    try:
        if service is not None:
            instance = instance_of(find_service_pid(service, module.run_command, time.monotonic() + timeout))
            module.exit_json(changed=False, instances=[describe(instance, ask(instance, timeout))])
        agents = running()
    except InstanceError as error:
        module.fail_json(msg=f"{error}.")
    instances = []
    for instance in agents:
        try:
            told = ask(instance, timeout)
        except InstanceError as error:
            module.warn(f"{error}.")
            told = {}
        instances.append(describe(instance, told))
    module.exit_json(changed=False, instances=instances)


if __name__ == "__main__":
    main()
