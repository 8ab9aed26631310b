# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hapgent_info
short_description: Report the state of the agents on a host, and which load balancers have it
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - Asks one agent on the managed host, or all that run there, for what it answers to HAProxy, since when and why, and
    for the load balancers that ask it.
  - For an agent without a status socket (C(HAPGENT_SOCKET)), such as hapgent 0.3.2, it returns what its state file
    says. The file is read with the rights of the user who runs the agent.
  - If all agents are asked and one does not answer, that is a warning, RV(instances[].problem) says why, and what it
    would report is null.
  - Any user can start a process that is called hapgent. It counts as an agent only if it is the main process of a
    systemd service, or if root, the user who runs this module or the owner of its state file's folder runs it. Others
    are not asked, nothing that they name is opened, and a warning lists them.
  - A status socket counts only if the user who runs the agent owns it and answers there. Characters that are not
    printable are escaped in all that is returned.
  - Agents of other releases are understood. What they report more is ignored, and what they do not report is null.
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
      - The systemd service of the agent. It must run.
      - If neither this nor O(state_file) is set, all agents that run on the host are asked. One that runs in a
        container is none of them.
    type: str
  state_file:
    description:
      - The state file of the agent, which is the process that serves it. Root or the owner of the file must run it.
      - Not used if O(service) is set and systemd runs on the host.
    type: path
  timeout:
    description:
      - Seconds to wait, for all agents together, 0 to 86400.
    type: float
    default: 10
"""

EXAMPLES = r"""
- name: Ask all agents of the host
  hapgent.agent.hapgent_info:
  register: hapgent

- name: Show the load balancers that do not have the state yet
  ansible.builtin.debug:
    msg: "{{ item.service }}: {{ item.peers | rejectattr('has_it') | map(attribute='address') }}"
  loop: "{{ hapgent.instances }}"

- name: Ask one
  hapgent.agent.hapgent_info:
    service: hapgent-api

- name: Ask one on a host without systemd
  hapgent.agent.hapgent_info:
    state_file: /etc/hapgent/state.json
"""

RETURN = r"""
instances:
  description: The agents, ordered by their process numbers.
  returned: success
  type: list
  elements: dict
  contains:
    service:
      description:
        - The systemd service whose main process the agent is, without its suffix; null if there is none. Services of
          users' own managers do not count.
      type: str
      sample: hapgent
    pid:
      description: The agent's process.
      type: int
      sample: 512
    state_file:
      description: Path of the state file, as the agent sees it. Null if the user may not look into the process.
      type: str
      sample: /etc/hapgent/state.json
    status_socket:
      description:
        - Path of the status socket. If the agent has none this is null, and all below too, but for
          RV(instances[].problem), RV(instances[].state) and RV(instances[].answer).
      type: str
      sample: /run/hapgent/hapgent/status.sock
    problem:
      description:
        - Why the agent could not be asked, why its state file cannot be used, or why the agent answers FAIL although
          it was not told to; null if there is no problem.
      type: str
      sample: null
    state:
      description:
        - The fields of the state that are set. Null if the agent has no status socket and its state file is invalid.
      type: dict
      sample: {"status": "DRAIN", "reason": "kernel upgrade"}
    answer:
      description: What the agent answers to HAProxy, without what undoes the state before. Null like the state.
      type: str
      sample: "DRAIN UP # kernel upgrade"
    since:
      description: When the state was changed, in seconds since 1970. This and all below is null if it is not reported.
      type: float
      sample: 1795486180.4
    version:
      description: Release of the agent.
      type: str
      sample: 1.0.0
    settle:
      description: For how many seconds after a change each load balancer is sent what undoes the state before.
      type: int
      sample: 60
    state_file_ok:
      description: Whether the agent could use its state file when it last tried to.
      type: bool
      sample: true
    last_error:
      description: The last problem with the state file; null if there was none since the agent was started.
      type: str
      sample: null
    counters:
      description: What the agent has counted since it was started, by name.
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
    distrust,
    find_process,
    others,
    services,
)
from ansible_collections.hapgent.agent.plugins.module_utils._as_owner import NoOutcomeError, PathError
from ansible_collections.hapgent.agent.plugins.module_utils._as_owner import run as run_as_owner
from ansible_collections.hapgent.agent.plugins.module_utils._deadline import check_seconds
from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.module_utils._state import State, StateError, StateFile, from_fields
from ansible_collections.hapgent.agent.plugins.module_utils._systemd import is_running

# So many agents are asked at once.
MAX_THREADS = 16
# Who asks gives up at the deadline itself, unless a system call hangs.
GRACE_SECONDS = 0.5
# A path, with each byte escaped.
MAX_CHARACTERS = 6 * 4096
MOST_SHOWN = 5

Row = dict[str, t.Any]
T = t.TypeVar("T")


class Look(t.NamedTuple):
    """What was found out about a process: its row, None if it is no agent of this host, or why it is not believed."""

    row: Row | None
    distrust: str = ""


def look(process: Process, service: str | None, deadline: float) -> Look:
    """Look at a process that calls itself an agent, and ask it if it can be believed."""
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
    """Return the row of an agent that was not asked."""
    return {
        **dict.fromkeys(FIELDS),
        "service": service,
        "pid": process.pid,
        "status_socket": None,
        "problem": None,
    }


def paths(instance: Instance) -> Row:
    """Return where the agent has what it works with."""
    return {"state_file": instance.state_file, "status_socket": instance.status_socket or None}


def ask(instance: Instance, deadline: float) -> Row:
    """Return what the agent reports, or else its state file. Raises InstanceError."""
    if instance.status_socket:
        status = instance.status(deadline)
        return {**status, **paths(instance), "problem": why_fail(status) or None}
    try:
        state = saved_state(instance, deadline)
    except (StateError, PathError, NoOutcomeError, OSError) as error:
        return {"problem": f"{instance.state_file}: {error}"}
    return {"state": state.fields(), "answer": state.answer()}


def saved_state(instance: Instance, deadline: float) -> State:
    """Return the state in the agent's file, read with the rights that its process has at most.

    Raises StateError, PathError, NoOutcomeError, OSError.
    """
    process = instance.process

    def load(folder: int, name: str) -> dict[str, t.Any]:
        if os.geteuid() == 0 and process.user != 0:
            if process.user is None or process.group is None:
                raise StateError("the agent has the rights of several users")
            os.setgroups([process.group])
            os.setgid(process.group)
            os.setuid(process.user)
        return StateFile(name, folder).load().fields()

    # No link may be followed, but the agent may have been given one.
    path = process.real_path(instance.state_file)
    if not process.serves(path):
        raise StateError("cannot be seen from outside of the agent's container")
    fields = run_as_owner(path, load, deadline, (StateError,))
    if not isinstance(fields, dict):
        raise StateError("cannot be read")
    return from_fields(fields)


def at_once(jobs: list[t.Callable[[], T]], deadline: float) -> list[T | None]:
    """Return what each job returns, None for those that do not end before the deadline. The first begin first."""
    results: list[T | None] = [None] * len(jobs)
    waiting = collections.deque(enumerate(jobs))

    def work() -> None:
        while time.monotonic() < deadline:
            try:
                number, job = waiting.popleft()
            except IndexError:
                return
            results[number] = job()

    # One that hangs must not keep the module from ending.
    threads = [threading.Thread(target=work, daemon=True) for _number in range(min(MAX_THREADS, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline + GRACE_SECONDS - time.monotonic()))
    return list(results)


def ask_all(module: AnsibleModule, deadline: float) -> list[Row]:
    """Return the rows of all agents. Raises InstanceError."""
    named = services(module.run_command)
    rest, left_out = others({process.pid for process in named.values()})
    # Any user can start many that do not answer, so those of systemd come first.
    agents: list[tuple[Process, str | None]] = [(process, name) for name, process in named.items()]
    agents += [(process, None) for process in rest]
    looks = at_once([functools.partial(look, process, name, deadline) for process, name in agents], deadline)
    rows, distrusted = [], []
    for (process, name), found in zip(agents, looks):
        if found is None:
            problem = f"the agent's process {process.pid} did not answer within {module.params['timeout']:g} s"
            rows.append({**empty_row(process, name), "problem": problem})
        elif found.distrust:
            distrusted.append(f"process {process.pid} ({found.distrust})")
        elif found.row:
            rows.append(found.row)
    for row in rows:
        if row["problem"] and row["answer"] is None:
            module.warn(printable(f"{row['problem']}.", MAX_CHARACTERS))
    left_out += max(0, len(distrusted) - MOST_SHOWN)
    if distrusted or left_out:
        shown = [*distrusted[:MOST_SHOWN], *([f"{left_out} more"] if left_out else [])]
        module.warn(f"Called hapgent, and not believed to be agents: {', '.join(shown)}.")
    return sorted(rows, key=lambda row: int(row["pid"]))


def ask_one(module: AnsibleModule, deadline: float) -> Row:
    """Return the row of the agent that is named. Raises InstanceError."""
    service, state_file = module.params["service"], module.params["state_file"]
    if service is not None and is_running():
        state_file = None
    process = find_process(service, state_file, module.run_command, deadline)
    named = {found.pid: name for name, found in services(module.run_command).items()}
    instance = instance_of(process)
    return {**empty_row(process, named.get(process.pid)), **paths(instance), **ask(instance, deadline)}


def escaped(value: t.Any) -> t.Any:
    """Return the value with all texts in it made printable."""
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
        is_one = module.params["service"] is not None or module.params["state_file"] is not None
        rows = [ask_one(module, deadline)] if is_one else ask_all(module, deadline)
    except (ValueError, InstanceError) as error:
        module.fail_json(msg=f"{error}.")
    module.exit_json(changed=False, instances=escaped(rows))


if __name__ == "__main__":
    main()
