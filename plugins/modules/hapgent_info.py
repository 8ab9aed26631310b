# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hapgent_info
short_description: Gather the state of the agents on a host, and which load balancers have received it
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - Queries one agent on the managed host, or all agents that run there. Returns what each agent answers to HAProxy,
    since when and why, and which load balancers poll it.
  - For an agent without a status socket (C(HAPGENT_SOCKET)), such as hapgent 0.3.2, the module returns the contents of
    its state file. It reads the file with the rights of the user who runs the agent.
  - If the module queries all agents and one of them does not respond, the module issues a warning. The reason is in
    RV(instances[].problem), and the values that this agent would have reported are null.
  - Any user can start a process named C(hapgent). The module treats such a process as an agent only if it is the main
    process of a service, or if it is run by root, by the user who runs this module, or by the owner of the
    folder that contains its state file. Outside of services, a set-user-ID or set-group-ID program is never treated as
    an agent. The module lists all others in a warning. It does not query them, and does not open any file that they
    name.
  - The module uses a status socket only if the user who runs the agent owns the socket and also runs the process that
    answers there. All returned text has non-printable characters escaped.
  - Agents of other releases are supported. Fields that only they report are ignored, and fields that they do not
    report are null.
  - The module must run as root or as the user who runs the agent.
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
      - The service of the agent. The service must be running.
      - If neither this option nor O(state_file) is set, the module queries all agents that run on the host, except
        those that run in containers, which means in another PID namespace.
    type: str
  state_file:
    description:
      - The state file of the agent, as seen on the managed host. The module queries the C(hapgent) process that serves
        this file, even if it runs in a container. That process must be run by root or by the owner of the file.
      - Ignored if O(service) is set, unless the host has neither systemd nor an init script of that name.
    type: path
  timeout:
    description:
      - Seconds to wait for all agents together, V(0) to V(86400).
    type: float
    default: 10
"""

EXAMPLES = r"""
- name: Query all agents on the host
  hapgent.agent.hapgent_info:
  register: hapgent

- name: Show the load balancers that have not received the state yet
  ansible.builtin.debug:
    msg: "{{ item.service }}: {{ item.peers | rejectattr('received') | map(attribute='address') }}"
  loop: "{{ hapgent.instances }}"

- name: Query the agent of the instance shop
  hapgent.agent.hapgent_info:
    service: hapgent@shop

- name: Query one agent that is not a service
  hapgent.agent.hapgent_info:
    state_file: /etc/hapgent/state.json
"""

RETURN = r"""
services:
  description:
    - The names of all services that run an agent or would if they were running.
  returned: success, if all agents are queried
  type: list
  elements: str
  sample: [hapgent, hapgent@shop]
instances:
  description: The agents, ordered by process ID.
  returned: success
  type: list
  elements: dict
  contains:
    service:
      description:
        - The service whose main process is the agent, without the C(.service) suffix. Null if there is none.
          Services of user managers (C(systemctl --user)) are not considered.
      type: str
      sample: hapgent
    pid:
      description: Process ID of the agent.
      type: int
      sample: 512
    state_file:
      description:
        - Path of the state file, as seen by the agent. For an agent in a container, it is a path inside the container,
          and so is RV(instances[].status_socket). Null if the user who runs the module has no permission to inspect the
          process.
      type: str
      sample: /etc/hapgent/state.json
    status_socket:
      description:
        - Path of the status socket. If the agent has none, this and all following fields are null, except
          RV(instances[].problem), RV(instances[].state) and RV(instances[].answer).
      type: str
      sample: /run/hapgent/hapgent/status.sock
    problem:
      description:
        - Why the agent could not be queried, why its state file cannot be used, or why the agent answers C(FAIL)
          although its state is not set to C(FAIL). Null if there is no problem.
      type: str
      sample: null
    state:
      description:
        - The fields of the state that are set. Null if the agent could not be queried, or if it has no status socket
          and its state file is invalid.
      type: dict
      sample: {"status": "DRAIN", "reason": "kernel upgrade"}
    answer:
      description:
        - What the agent answers to HAProxy, without the keywords that reset the previous state, and with the weight of
          the state even if the agent sends RV(instances[].ramp_weight). Null if RV(instances[].state) is null.
      type: str
      sample: "DRAIN UP # kernel upgrade"
    since:
      description:
        - When the state last changed, in seconds since 1970. This and all following fields are null if the agent does
          not report them.
      type: float
      sample: 1795486180.4
    ramp_weight:
      description:
        - The weight that the agent sends while a ramp goes on, instead of that of the state. Null if none goes on.
      type: int
      sample: null
    ramp_ends:
      description:
        - When the agent will send the whole weight, in seconds since 1970. Null if no ramp goes on.
      type: float
      sample: null
    version:
      description: Release of the agent.
      type: str
      sample: 1.0.0
    settle:
      description:
        - For how many seconds after a change the agent also sends each load balancer the keywords that reset the
          previous state.
      type: int
      sample: 60
    state_file_ok:
      description: Whether the last attempt of the agent to read or write its state file succeeded.
      type: bool
      sample: true
    last_error:
      description: The last problem with the state file. Null if there was none since the agent started.
      type: str
      sample: null
    counters:
      description: The counters of the agent since it started, by name.
      type: dict
      sample: {"checks": 1200, "changes": 2, "reloads": 2}
    peers:
      description: The load balancers. The agent identifies a load balancer by its source address.
      type: list
      elements: dict
      contains:
        address:
          description: The source address.
          type: str
          sample: 198.51.100.11
        first_seen:
          description: When it first polled the agent, in seconds since 1970.
          type: float
          sample: 1795480000.1
        last_seen:
          description: When it last polled the agent, in seconds since 1970.
          type: float
          sample: 1795486190.4
        checks:
          description: How many of its checks the agent has answered.
          type: int
          sample: 600
        interval:
          description:
            - The recent average interval between its checks, in seconds. Gaps of more than five minutes do not count.
              Null if it has polled only once, or only with such gaps.
          type: float
          sample: 2.0
        line:
          description: The last line that the agent sent to it.
          type: str
          sample: "DRAIN UP # kernel upgrade"
        received:
          description: Whether it has received the current state.
          type: bool
          sample: true
        settles_for:
          description: For how many more seconds the agent sends it the keywords that reset the previous state.
          type: float
          sample: 49.9
        polls:
          description: Whether it still polls the agent about as often as before.
          type: bool
          sample: true
"""

import collections
import functools
import os
import threading
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hapgent.agent.plugins.module_utils._agent_client import (
    FIELDS,
    Instance,
    instance_of,
    why_fail,
)
from ansible_collections.hapgent.agent.plugins.module_utils._agent_process import (
    EndedError,
    InstanceError,
    Process,
    all_services,
    distrust,
    find_process,
    manages,
    others,
    services,
)
from ansible_collections.hapgent.agent.plugins.module_utils._as_owner import NoOutcomeError, PathError
from ansible_collections.hapgent.agent.plugins.module_utils._as_owner import run as run_as_owner
from ansible_collections.hapgent.agent.plugins.module_utils._deadline import check_seconds
from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.module_utils._state import State, StateError, StateFile, from_fields

# The number of agents that are queried at the same time.
MAX_THREADS = 16
# Each query gives up at the deadline by itself. This is exceeded only if a system call hangs.
GRACE_SECONDS = 0.5
# The longest path with each of its bytes escaped.
MAX_CHARACTERS = 6 * 4096
MAX_SHOWN = 5

Row = dict[str, t.Any]
T = t.TypeVar("T")


class Look(t.NamedTuple):
    """The result for one process.

    C(row) is None if the process is not an agent of this host. C(distrust) is the reason why the process is not trusted
    to be an agent, '' if it is trusted.
    """

    row: Row | None
    distrust: str = ""


def look(process: Process, service: str | None, deadline: float) -> Look:
    """Inspect a process that claims to be an agent, and query it if it can be trusted."""
    row = empty_row(process, service)
    try:
        if service is None:
            why = distrust(process)
            if why:
                return Look(None, why)
            if process.is_in_container():
                return Look(None)
        instance = instance_of(process)
        row.update(paths(instance))
        row.update(ask(instance, deadline))
    except EndedError:
        return Look(None)
    except InstanceError as error:
        row["problem"] = str(error)
    return Look(row)


def empty_row(process: Process, service: str | None) -> Row:
    """Return the row of an agent that was not queried."""
    return {
        **dict.fromkeys(FIELDS),
        "service": service,
        "pid": process.pid,
        "status_socket": None,
        "problem": None,
    }


def paths(instance: Instance) -> Row:
    """Return the paths of the agent's state file and status socket."""
    return {"state_file": instance.state_file, "status_socket": instance.status_socket or None}


def ask(instance: Instance, deadline: float) -> Row:
    """Return what the agent reports, or the contents of its state file if it has no socket. Raises InstanceError."""
    if instance.status_socket:
        status = instance.status(deadline)
        return {**status, **paths(instance), "problem": why_fail(status) or None}
    try:
        state = saved_state(instance, deadline)
    except (StateError, PathError, NoOutcomeError) as error:
        return {"problem": f"{instance.state_file}: {error}"}
    except OSError as error:
        return {"problem": f"{instance.state_file} cannot be read ({error.strerror})"}
    return {"state": state.fields(), "answer": state.answer()}


def saved_state(instance: Instance, deadline: float) -> State:
    """Return the state in the agent's file, which is read with no more rights than the agent's process has.

    Raises StateError, PathError, NoOutcomeError and OSError.
    """
    process = instance.process

    def load(folder: int, name: str) -> dict[str, t.Any]:
        if os.geteuid() == 0 and process.user != 0:
            if process.user is None or process.group is None:
                raise StateError(
                    "the agent's process has several user or group IDs, so it is unclear whose rights to use"
                )
            os.setgroups([process.group])
            os.setgid(process.group)
            os.setuid(process.user)
        return StateFile(name, folder).load().fields()

    # The file is read without following links, but the path in the agent's environment may contain one.
    path = process.real_path(instance.state_file)
    if not process.serves(path):
        raise StateError("it cannot be accessed from outside the agent's container")
    fields = run_as_owner(path, load, deadline, (StateError,))
    if not isinstance(fields, dict):
        raise StateError("it cannot be read")
    return from_fields(fields)


def at_once(jobs: list[t.Callable[[], T]], deadline: float) -> list[T | None]:
    """Run the jobs concurrently, in the given order, and return their results.

    The result is None for each job that does not end before the deadline.
    """
    results: list[T | None] = [None] * len(jobs)
    waiting = collections.deque(enumerate(jobs))

    def work() -> None:
        while time.monotonic() < deadline:
            try:
                number, job = waiting.popleft()
            except IndexError:
                return
            results[number] = job()

    # Daemon threads, because a job that hangs must not keep the module from exiting.
    threads = [threading.Thread(target=work, daemon=True) for _number in range(min(MAX_THREADS, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline + GRACE_SECONDS - time.monotonic()))
    return list(results)


def ask_all(module: AnsibleModule, named: t.Mapping[str, Process], deadline: float) -> list[Row]:
    """Return the rows of all agents. C(named) are those that are services."""
    rest, left_out = others({process.pid for process in named.values()})
    # Any user can start many processes that do not answer, so the services come first.
    agents: list[tuple[Process, str | None]] = [(process, name) for name, process in named.items()]
    agents += [(process, None) for process in rest]
    looks = at_once([functools.partial(look, process, name, deadline) for process, name in agents], deadline)
    rows, distrusted = [], []
    for (process, name), found in zip(agents, looks):
        if found is None:
            problem = f"the agent's process {process.pid} did not respond within {module.params['timeout']:g} s"
            rows.append({**empty_row(process, name), "problem": problem})
        elif found.distrust:
            distrusted.append(f"process {process.pid} ({found.distrust})")
        elif found.row:
            rows.append(found.row)
    for row in rows:
        if row["problem"] and row["answer"] is None:
            module.warn(printable(f"{row['problem']}.", MAX_CHARACTERS))
    left_out += max(0, len(distrusted) - MAX_SHOWN)
    if distrusted or left_out:
        shown = [*distrusted[:MAX_SHOWN], *([f"{left_out} more"] if left_out else [])]
        module.warn(f"Ignored processes that are named hapgent but are not trusted to be agents: {', '.join(shown)}.")
    return sorted(rows, key=lambda row: int(row["pid"]))


def ask_one(module: AnsibleModule, deadline: float) -> Row:
    """Return the row of the agent that the options select. Raises InstanceError."""
    service, state_file = module.params["service"], module.params["state_file"]
    if service is not None and manages(service, module.run_command):
        state_file = None
    process = find_process(service, state_file, module.run_command, deadline)
    named = {found.pid: name for name, found in services(module.run_command).items()}
    instance = instance_of(process)
    return {**empty_row(process, named.get(process.pid)), **paths(instance), **ask(instance, deadline)}


def escaped(value: t.Any) -> t.Any:
    """Return the value with all strings in it made printable."""
    if isinstance(value, dict):
        return {name: escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return printable(value, MAX_CHARACTERS) if isinstance(value, str) else value


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "service": {"type": "str"},
            "state_file": {"type": "path"},
            "timeout": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    try:
        check_seconds("timeout", module.params["timeout"])
        deadline = time.monotonic() + module.params["timeout"]
        if module.params["service"] is not None or module.params["state_file"] is not None:
            module.exit_json(changed=False, instances=escaped([ask_one(module, deadline)]))
        found = all_services(module.run_command)
        rows = ask_all(module, {name: process for name, process in found.items() if process}, deadline)
    except (ValueError, InstanceError) as error:
        module.fail_json(msg=f"{error}.")
    module.exit_json(changed=False, instances=escaped(rows), services=escaped(list(found)))


if __name__ == "__main__":
    main()
