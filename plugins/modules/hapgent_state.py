# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hapgent_state
short_description: Change the state that an agent tells HAProxy
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - Changes the state file of an agent on the managed host, tells the agent to read it again, and asks the agent
    until it answers with the new state.
  - What is not named stays as it is.
  - When nothing is to be changed in the file, but the agent answers something else than the file says, the agent
    is told to read it again, and the module reports a change.
  - Works with the agent of this collection and with hapgent 0.3.2.
extends_documentation_fragment:
  - hapgent.agent._attributes
  - hapgent.agent._attributes.actiongroup_hapgent
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: linux
    support: full
requirements:
  - Python 3.9 or later on the managed host
options:
  status:
    description:
      - The status that HAProxy is told.
      - V(DRAIN) lets the server finish what it has and gives it no new sessions; V(MAINT) takes it out; V(READY)
        ends both.
      - V(DOWN), V(FAIL) and V(STOPPED) make the server down at once; V(UP) ends that.
      - HAProxy keeps the two apart. After V(DRAIN) or V(MAINT) it is V(READY) that brings the server back, after
        V(DOWN), V(FAIL) or V(STOPPED) it is V(UP).
    type: str
    choices: [UP, DOWN, READY, DRAIN, FAIL, MAINT, STOPPED]
  weight:
    description:
      - Percentage of the weight that is configured in HAProxy, V(0) to V(255).
    type: int
  maxconn:
    description:
      - Maximum of connections to the server, V(0) to V(65535); V(0) is unlimited. It holds for each HAProxy process
        and each backend.
    type: int
  unset:
    description:
      - Fields that the agent shall not tell any more.
      - HAProxy keeps the last value it was told. Set O(weight=100) to get the configured weight back.
    type: list
    elements: str
    choices: [weight, maxconn]
    default: []
  state_file:
    description:
      - Path of the state file. It must exist and be valid.
    type: path
    default: /etc/hapgent/state.json
  service:
    description:
      - The systemd service of the agent. Its main process is told to read the file again.
      - Where systemd does not know it, or does not run, the C(hapgent) process that serves O(state_file) is told.
    type: str
    default: hapgent
  address:
    description:
      - Address on which the agent answers, as seen from the managed host.
    type: str
    default: 127.0.0.1
  port:
    description:
      - Port on which the agent answers.
    type: int
    default: 9777
  timeout:
    description:
      - Seconds to wait for the agent's new answer.
    type: float
    default: 10
  notify:
    description:
      - Whether to ask the agent and to tell it. With V(false), only the file is written.
    type: bool
    default: true
seealso:
  - name: HAProxy's agent-check
    description: What HAProxy does with each word of the answer.
    link: https://docs.haproxy.org/3.0/configuration.html#5.2-agent-check
"""

EXAMPLES = r"""
- name: Take the server out, sessions under way may end
  hapgent.agent.hapgent_state:
    status: DRAIN

- name: Bring it back
  hapgent.agent.hapgent_state:
    status: READY

- name: Give it half of its weight
  hapgent.agent.hapgent_state:
    weight: 50

- name: Give it its full weight again, and no longer tell a maxconn
  hapgent.agent.hapgent_state:
    weight: 100
    unset: [maxconn]

- name: Drain the second instance of the host
  hapgent.agent.hapgent_state:
    status: DRAIN
    service: hapgent-api
    state_file: /etc/hapgent/api.json
    port: 9778
"""

RETURN = r"""
before:
  description: The state in the file before, with the fields that were set.
  returned: success, and failure after the file was read
  type: dict
  sample: {"status": "UP", "weight": 77}
after:
  description: The state in the file now; in check mode, the state that would be in it.
  returned: success, and failure after the file was read
  type: dict
  sample: {"status": "DRAIN", "weight": 77}
answer:
  description: What the agent answers now; in check mode, what it would answer.
  returned: O(notify=true), when the agent answered
  type: str
  sample: DRAIN 77%
"""

import fcntl
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hapgent.agent.plugins.module_utils._instance import (
    DEFAULT_STATE_FILE,
    POLL_SECONDS,
    Instance,
    InstanceError,
    find_pid,
)
from ansible_collections.hapgent.agent.plugins.module_utils._state import (
    LIMITS,
    STATUSES,
    State,
    StateError,
    dump,
    from_fields,
    load,
    save,
)


class HapgentState:
    """One change of one agent's state."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        # Resolved once: a link that is bent while root works here leads nowhere else.
        self.path: str = os.path.realpath(module.params["state_file"])
        self.deadline = time.monotonic() + module.params["timeout"]
        self.result: dict[str, t.Any] = {"changed": False}

    def run(self) -> None:
        """Do it, and leave the module with what was changed and what was not."""
        self._lock()
        before, after = self._plan()
        self.result.update(before=before.fields(), after=after.fields())
        instance = self._find_instance() if self.module.params["notify"] else None
        answer = self._ask(instance) if instance else None
        if answer is not None:
            self.result["answer"] = answer
        self._track(before, after, answer)
        if self.result["changed"] and not self.module.check_mode:
            if after != before:
                self._save(after)
            if instance:
                self._notify(instance, after)
        if instance:
            self.result["answer"] = after.answer()
        self.module.exit_json(**self.result)

    def _lock(self) -> None:
        """One run at a time, until this process ends: two would lose each other's changes."""
        folder = os.path.dirname(self.path)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._fail(f"{folder}: cannot be read ({error.strerror}). Name the right file with state_file")
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= self.deadline:
                    self._fail(f"another program has locked {folder} for {self.module.params['timeout']:g} s")
                time.sleep(POLL_SECONDS)

    def _plan(self) -> tuple[State, State]:
        """The state in the file, and the one that is wanted."""
        params = self.module.params
        try:
            before = load(self.path)
        except StateError as error:
            self._fail(f"{self.path}: {error}. Repair the file or name the right one with state_file")
        named = {name: params[name] for name in State._fields if params[name] is not None}
        try:
            return before, from_fields({**before.fields(), **named, **dict.fromkeys(params["unset"])})
        except StateError as error:
            self._fail(str(error))

    def _track(self, before: State, after: State, answer: str | None) -> None:
        """Tell the two sides apart, once for changed, check mode and diff."""
        old, new = dump(before).decode(), dump(after).decode()
        if answer is not None:
            old += f"agent answers: {answer}\n"
            new += f"agent answers: {after.answer()}\n"
        self.result["changed"] = old != new
        self.result["diff"] = {"before_header": self.path, "after_header": self.path, "before": old, "after": new}

    def _find_instance(self) -> Instance:
        params = self.module.params
        try:
            pid = find_pid(params["service"], self.path, self.module.run_command)
        except InstanceError as error:
            self._fail(str(error))
        return Instance(pid, params["address"], params["port"])

    def _ask(self, instance: Instance) -> str:
        try:
            return instance.ask(self.deadline)
        except InstanceError as error:
            self._fail(str(error))

    def _save(self, state: State) -> None:
        try:
            save(self.path, state, f"{self.path}.ansible.tmp")
        except OSError as error:
            self._fail(f"cannot write {self.path}: {error.strerror}")

    def _notify(self, instance: Instance, state: State) -> None:
        """Have the agent read the file, and see that it did."""
        written = f"The file {self.path} says {state.answer()}"
        try:
            instance.reload()
            answer = instance.await_answer(state.answer(), self.deadline)
        except InstanceError as error:
            self.module.fail_json(msg=f"{written}, but {error}.", **self.result)
        if answer != state.answer():
            self.result["answer"] = answer
            params = self.module.params
            self.module.fail_json(
                msg=f"{written} and the agent was told to read it, but {params['address']} port {params['port']} still "
                f"answers {answer} after {params['timeout']:g} s. See that service {params['service']} serves this "
                "file on this port.",
                **self.result,
            )

    def _fail(self, problem: str) -> t.NoReturn:
        """Leave the module before anything was changed."""
        if "before" in self.result:
            self.result["after"] = self.result["before"]
        self.module.fail_json(msg=f"{problem}. Nothing was changed.", **{**self.result, "changed": False})


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "status": {"type": "str", "choices": list(STATUSES)},
            "weight": {"type": "int"},
            "maxconn": {"type": "int"},
            "unset": {"type": "list", "elements": "str", "choices": list(LIMITS), "default": []},
            "state_file": {"type": "path", "default": DEFAULT_STATE_FILE},
            "service": {"type": "str", "default": "hapgent"},
            "address": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "default": 9777},
            "timeout": {"type": "float", "default": 10},
            "notify": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    for name in module.params["unset"]:
        if module.params[name] is not None:
            module.fail_json(msg=f"{name} is both named and in unset: allowed is one of them. Nothing was changed.")
    if not 1 <= module.params["port"] <= 65535:
        module.fail_json(msg=f"port is {module.params['port']}: allowed is 1 to 65535. Nothing was changed.")
    HapgentState(module).run()


if __name__ == "__main__":
    main()
