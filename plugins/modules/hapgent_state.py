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
    until it answers with the new state. With O(wait=true) it also waits until the load balancers were told.
  - What is not named stays as it is.
  - When nothing is to be changed in the file, but the agent answers something else than the file says, the agent
    is told to read it again, and the module reports a change.
  - Without a status socket, an agent with C(HAPGENT_SETTLE) other than 0 may answer C(UP 100%) for C(UP), to undo the
    state before. So there, words that may undo something are no difference.
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
      - V(UP) brings the server back, whatever it was before. V(DRAIN) lets it finish what it has and gives it no new
        sessions; V(MAINT) takes it out; V(DOWN), V(FAIL) and V(STOPPED) make it down at once.
      - V(READY) brings it back too, but while the agent tells it, it also ends every drain that somebody sets in
        HAProxy by hand.
      - For a while after a change, the agent also tells each load balancer what undoes the status before. An agent
        that does not, hapgent 0.3.2 or one with C(HAPGENT_SETTLE) 0, needs V(READY) after V(DRAIN) or V(MAINT), and
        V(UP) after the others.
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
  reason:
    description:
      - Why the server is in this state, for HAProxy's statistics (C(last_agt)); its stats page shows it for a server
        that is down. At most 120 bytes of UTF-8, without control characters and C(#).
      - It is kept until O(status) changes, or another one is given. hapgent 0.3.2 refuses a state with a reason, and
        answers FAIL.
    type: str
  unset:
    description:
      - Fields that the agent shall not tell any more.
      - Without V(weight), the server gets its configured weight back.
      - Without V(maxconn), HAProxy keeps the last one it was told. No word of an agent gives the configured one
        back; the module warns of it.
    type: list
    elements: str
    choices: [weight, maxconn, reason]
    default: []
  state_file:
    description:
      - Path of the state file. It must exist and be valid.
    type: path
    default: /etc/hapgent/state.json
  service:
    description:
      - The systemd service of the agent, which has to serve O(state_file). Its main process is told to read the file
        again.
      - Where systemd does not know it, or does not run, the C(hapgent) process that serves O(state_file) is told.
    type: str
    default: hapgent
  address:
    description:
      - Address on which the agent answers, as seen from the managed host. Not used where the agent has a status
        socket (C(HAPGENT_SOCKET)), as the role sets it up.
      - An agent that could not make its status socket is asked here too, with a warning, but not with O(wait=true).
    type: str
    default: 127.0.0.1
  port:
    description:
      - Port on which the agent answers. Used as O(address) is.
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
  wait:
    description:
      - Whether to wait until the load balancers were told the state. The agent knows who asks it, so this needs no
        access to the load balancers. It needs the agent's status socket (C(HAPGENT_SOCKET)).
      - A load balancer is an address that asks. With several backends on one load balancer, the first of them that
        asks counts; the others follow within C(agent-inter).
    type: bool
    default: false
  wait_for:
    description:
      - Whom to wait for.
      - V(auto) is every load balancer that polls the agent. One that did so before the change is waited for too,
        if it is silent since or the agent, which keeps 1024 of them, has forgotten it. If nobody polls at all, that is
        an error, because then nobody takes the server out.
      - A number, V(1) to V(1024), is that many load balancers that poll, whichever they are.
      - A list of addresses is those load balancers, as the agent sees them.
    type: raw
    default: auto
  wait_except:
    description:
      - Addresses of load balancers, as the agent sees them, that are not waited for, such as one that is down.
    type: list
    elements: str
    default: []
  wait_timeout:
    description:
      - Seconds to wait for the load balancers.
    type: float
    default: 60
seealso:
  - name: HAProxy's agent-check
    description: What HAProxy does with each word of the answer.
    link: https://docs.haproxy.org/3.0/configuration.html#5.2-agent-check
"""

EXAMPLES = r"""
- name: Take the server out, sessions under way may end
  hapgent.agent.hapgent_state:
    status: DRAIN

- name: Take it out, say why, and go on when all load balancers were told
  hapgent.agent.hapgent_state:
    status: DRAIN
    reason: kernel upgrade, ask Ada
    wait: true

- name: Bring it back
  hapgent.agent.hapgent_state:
    status: UP

- name: Give it half of its weight
  hapgent.agent.hapgent_state:
    weight: 50

- name: Give it its configured weight again
  hapgent.agent.hapgent_state:
    unset: [weight]

- name: Drain the second instance of the host
  hapgent.agent.hapgent_state:
    status: DRAIN
    service: hapgent-api
    state_file: /etc/hapgent/api.json
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
  description:
    - What the agent answers now; in check mode, what it would answer. For a while after a change, it also tells what
      undoes the state before; that is not shown here.
  returned: O(notify=true), when the agent answered
  type: str
  sample: DRAIN 77%
seen_by:
  description: The addresses of the load balancers that were told the state, of those that are waited for.
  returned: O(wait=true), but for check mode
  type: list
  elements: str
  sample: [198.51.100.11]
not_seen_by:
  description: The addresses of the load balancers that are waited for and were not told the state.
  returned: O(wait=true), but for check mode
  type: list
  elements: str
  sample: []
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
    instance_of,
)
from ansible_collections.hapgent.agent.plugins.module_utils._peers import Peer, WaitFor, WaitForError, polling
from ansible_collections.hapgent.agent.plugins.module_utils._state import (
    LIMITS,
    STATUSES,
    LockedError,
    State,
    StateError,
    StateFile,
    dump,
    from_fields,
)

LAST_LOOK_SECONDS = 5.0


class HapgentState:
    """One change of one agent's state."""

    def __init__(self, module: AnsibleModule, wait_for: WaitFor) -> None:
        self.module = module
        self.wait_for = wait_for
        # Resolved once: a link that is bent while root works here leads nowhere else.
        self.path: str = os.path.realpath(module.params["state_file"])
        self.deadline = time.monotonic() + module.params["timeout"]
        self.peers_before: list[Peer] = []
        self.result: dict[str, t.Any] = {"changed": False}

    def run(self) -> None:
        """Do it, and leave the module with what was changed and what was not."""
        lock = self._lock()
        before, after = self._plan()
        self.result.update(before=before.fields(), after=after.fields())
        instance = self._find_instance() if self.module.params["notify"] else None
        answer = self._ask(instance) if instance else None
        if instance and answer is not None:
            # What undoes the state before is no difference.
            answer = before.answer() if instance.tells(before, answer) else answer
            self.result["answer"] = answer
        self._track(before, after, answer)
        if self.result["changed"] and not self.module.check_mode:
            if after != before:
                self._save(after)
            if instance:
                self._notify(instance, after)
        if instance:
            self.result["answer"] = after.answer()
        if instance and self.module.params["wait"] and not self.module.check_mode:
            # Whoever has to change this state meanwhile, can.
            os.close(lock)
            self._await_peers(instance, after)
        self.module.exit_json(**self.result)

    def _lock(self) -> int:
        """One run at a time, while the descriptor is open: two would lose each other's changes."""
        folder = os.path.dirname(self.path)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._fail(f"{folder}: cannot be read ({error.strerror}). Name the right file with state_file")
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() >= self.deadline:
                    self._fail(f"another program has locked {folder} for {self.module.params['timeout']:g} s")
                time.sleep(POLL_SECONDS)

    def _plan(self) -> tuple[State, State]:
        """The state in the file, and the one that is wanted."""
        params = self.module.params
        try:
            before = StateFile(self.path).load()
        except StateError as error:
            self._fail(f"{self.path}: {error}. Repair the file or name the right one with state_file")
        named = {name: params[name] for name in State._fields if params[name] is not None}
        kept = before.with_status(named.get("status", before.status))
        try:
            after = from_fields({**kept.fields(), **named, **dict.fromkeys(params["unset"])})
        except StateError as error:
            self._fail(str(error))
        if before.maxconn is not None and after.maxconn is None:
            self.module.warn(
                f"HAProxy keeps maxconn {before.maxconn}: no word of an agent gives the configured one back. "
                "Tell the configured number with maxconn, or set it in HAProxy (set maxconn server)."
            )
        return before, after

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
            pid = find_pid(params["service"], self.path, self.module.run_command, self.deadline)
            instance = instance_of(pid, params["address"], params["port"])
        except InstanceError as error:
            self._fail(str(error))
        if params["wait"] and not instance.status_socket:
            self._fail(
                f"wait needs the status socket of the agent, process {pid}: set HAPGENT_SOCKET for it, as the role does"
            )
        if instance.status_socket and not params["wait"] and instance.goes_without_status(self.deadline):
            self.module.warn(
                f"The agent could not make its status socket {instance.status_socket}, its log says why. It is asked "
                f"on {params['address']} port {params['port']} instead, and takes this host for a load balancer."
            )
            instance = instance._replace(status_socket="")
        return instance

    def _ask(self, instance: Instance) -> str:
        try:
            if self.module.params["wait"]:
                self.peers_before = instance.status(self.deadline)["peers"]
            return instance.answer(self.deadline)
        except InstanceError as error:
            self._fail(str(error))

    def _save(self, state: State) -> None:
        try:
            StateFile(self.path).edit(lambda _before: state, self.deadline)
        except (LockedError, StateError) as error:
            self._fail(f"{self.path}: {error}")
        except OSError as error:
            self._fail(f"cannot write {self.path}: {error.strerror}")

    def _notify(self, instance: Instance, state: State) -> None:
        """Have the agent read the file, and see that it did."""
        written = f"The file {self.path} says {state.answer()}"
        try:
            instance.reload()
            answer = instance.await_state(state, self.deadline)
        except InstanceError as error:
            self.module.fail_json(msg=f"{written}, but {error}.", **self.result)
        if not instance.tells(state, answer):
            self.result["answer"] = answer
            params = self.module.params
            where = instance.status_socket or f"{params['address']} port {params['port']}"
            self.module.fail_json(
                msg=f"{written} and the agent was told to read it, but {where} still answers {answer} after "
                f"{params['timeout']:g} s. See that service {params['service']} serves this file there.",
                **self.result,
            )

    def _await_peers(self, instance: Instance, state: State) -> None:
        """Wait until the load balancers were told, and leave the module if they were not."""
        timeout = self.module.params["wait_timeout"]
        deadline = time.monotonic() + timeout
        told = f"The file {self.path} says {state.answer()} and the agent tells it"
        while True:
            over = time.monotonic() >= deadline
            try:
                # Also in the end, it is asked who does not have it.
                status = instance.status(max(deadline, time.monotonic()) + LAST_LOOK_SECONDS)
            except InstanceError as error:
                self.module.fail_json(msg=f"{told}, but whom is not known: {error}.", **self.result)
            if status["state"] != state.fields():
                self.result["answer"] = status["answer"]
                self.module.fail_json(
                    msg=f"{told}, but somebody has changed the state meanwhile: it answers {status['answer']}.",
                    **self.result,
                )
            account = self.wait_for.account(status["peers"], polling(self.peers_before))
            self.result.update(seen_by=account.seen_by, not_seen_by=account.not_seen_by)
            if account.complete:
                return
            if over:
                break
            time.sleep(POLL_SECONDS)
        if account.not_seen_by:
            # The agent may have forgotten some that it knew.
            missing = account.missing([*self.peers_before, *status["peers"]])
            problem = f"not to {missing} within {timeout:g} s"
        elif account.seen_by:
            problem = f"only to {len(account.seen_by)} load balancers of {self.wait_for.count} within {timeout:g} s"
        else:
            problem = (
                f"nobody has asked it for {timeout:g} s: no load balancer acts on it. See that agent-check, and the "
                "right agent-port, are on the server line in HAProxy, and that no firewall is between"
            )
        self.module.fail_json(msg=f"{told}, but {problem}.", **self.result)

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
            "reason": {"type": "str"},
            "unset": {"type": "list", "elements": "str", "choices": [*LIMITS, "reason"], "default": []},
            "state_file": {"type": "path", "default": DEFAULT_STATE_FILE},
            "service": {"type": "str", "default": "hapgent"},
            "address": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "default": 9777},
            "timeout": {"type": "float", "default": 10},
            "notify": {"type": "bool", "default": True},
            "wait": {"type": "bool", "default": False},
            "wait_for": {"type": "raw", "default": "auto"},
            "wait_except": {"type": "list", "elements": "str", "default": []},
            "wait_timeout": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    for name in module.params["unset"]:
        if module.params[name] is not None:
            module.fail_json(msg=f"{name} is both named and in unset: allowed is one of them. Nothing was changed.")
    if not 1 <= module.params["port"] <= 65535:
        module.fail_json(msg=f"port is {module.params['port']}: allowed is 1 to 65535. Nothing was changed.")
    if module.params["wait"] and not module.params["notify"]:
        module.fail_json(msg="wait is true and notify is false: allowed is wait with notify. Nothing was changed.")
    try:
        wait_for = WaitFor(module.params["wait_for"], module.params["wait_except"])
    except WaitForError as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")
    HapgentState(module, wait_for).run()


if __name__ == "__main__":
    main()
