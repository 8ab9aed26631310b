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
  - The state file is locked while it is changed, so that no change of another run or of the agent is lost. If another
    change comes while the module waits, it goes on waiting if what was named still holds, and fails if it does not.
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
      - A number is taken as text. Quote a number such as V("4.10"), which YAML reads as 4.1.
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
  only_if:
    description:
      - Change the state only if it is one of these, and otherwise keep it as it is and return RV(kept=true). This is
        checked while the state file is locked, so no other change can come in between.
      - With O(wait=true), the module waits until the load balancers received the state, also if it was kept.
    type: dict
    suboptions:
      status:
        description: Statuses in which the state may be changed.
        type: list
        elements: str
        choices: [UP, DOWN, READY, DRAIN, FAIL, MAINT, STOPPED]
      reason:
        description: The reason with which the state may be changed; V("") means no reason.
        type: str
  create:
    description:
      - Create the state file with these fields if it does not exist. A file that exists is left as it is, whatever
        else is set, but it must be valid. O(status) is required.
      - Its folder must exist, except in check mode.
    type: bool
    default: false
  state_file:
    description:
      - Absolute path of the state file. It must be valid, and must exist unless O(create=true).
      - No part of the path may be a symbolic link.
      - If the module runs as root, it works with the rights of the owner of the first folder on the path that does not
        belong to root. A folder of root that other users can write is refused, unless it is sticky and not the last.
    type: path
    default: /etc/hapgent/state.json
  service:
    description:
      - The systemd service of the agent, which must serve O(state_file). Its main process is told to read the file
        again. If there is no such service, the module fails, names the services that run agents, and changes nothing.
      - If systemd does not run on the host, the C(hapgent) process that serves O(state_file) is told. Root or the owner
        of that file must run it.
    type: str
    default: hapgent
  address:
    description:
      - Address on which the agent answers, as seen from the managed host. Not used where the agent has a status
        socket (C(HAPGENT_SOCKET)), as the role sets it up.
    type: str
    default: 127.0.0.1
  port:
    description:
      - Port on which the agent answers. Used as O(address) is.
    type: int
    default: 9777
  timeout:
    description:
      - Seconds to wait for the lock of the state file and for the agent's new answer, V(0) to V(86400).
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
      - Seconds to wait for the load balancers, V(0) to V(86400).
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

- name: Take it out, but leave it alone if it is out already
  hapgent.agent.hapgent_state:
    status: DRAIN
    only_if:
      status: [UP, READY]
  register: drained

- name: Bring it back, unless it is out for another reason
  hapgent.agent.hapgent_state:
    status: UP
    only_if:
      reason: kernel upgrade, ask Ada

- name: Create the state file of a new agent, before it starts
  hapgent.agent.hapgent_state:
    create: true
    status: MAINT
    reason: not installed yet
    notify: false

- name: Drain the second instance of the host
  hapgent.agent.hapgent_state:
    status: DRAIN
    service: hapgent-api
    state_file: /etc/hapgent/api.json
"""

RETURN = r"""
before:
  description: The state in the file before, with the fields that were set; empty if there was no file.
  returned: success, and failure after the file was read
  type: dict
  sample: {"status": "UP", "weight": 77}
after:
  description: The state in the file now; in check mode, the state that would be in it.
  returned: success, and failure after the file was read
  type: dict
  sample: {"status": "DRAIN", "weight": 77}
kept:
  description: Whether the state was kept because of O(only_if), or because O(create=true) and the file existed.
  returned: success, and failure after the file was read
  type: bool
  sample: false
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

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hapgent.agent.plugins.module_utils import _as_owner
from ansible_collections.hapgent.agent.plugins.module_utils._agent_client import Instance, instance_of, why_fail
from ansible_collections.hapgent.agent.plugins.module_utils._agent_process import (
    DEFAULT_STATE_FILE,
    POLL_SECONDS,
    InstanceError,
    find_process,
)
from ansible_collections.hapgent.agent.plugins.module_utils._deadline import check_seconds
from ansible_collections.hapgent.agent.plugins.module_utils._peers import Account, Peer, WaitFor, WaitForError, polling
from ansible_collections.hapgent.agent.plugins.module_utils._state import (
    LIMITS,
    STATUSES,
    LockedError,
    MissingError,
    State,
    StateError,
    StateFile,
    dump,
    from_fields,
)

LAST_LOOK_SECONDS = 5.0
# What the disk may take, beyond the time for the lock and the agent.
DISK_SECONDS = 5.0

Fields = dict[str, t.Any]


class Change(t.NamedTuple):
    """What the options ask for.

    C(named) are the fields that get a value, C(unset) those that lose theirs. With C(create), they are for a new file
    only. C(statuses) and C(reason), if they are not None, are those with which a state may be changed.
    """

    named: Fields
    unset: list[str]
    create: bool = False
    statuses: list[str] | None = None
    reason: str | None = None

    def is_for(self, state: State | None) -> bool:
        """Whether this state, None if there is no file, may be changed."""
        if self.create or state is None:
            return self.create and state is None
        return (self.statuses is None or state.status in self.statuses) and (
            self.reason is None or (state.reason or "") == self.reason
        )

    def applied_to(self, state: State | None) -> State:
        """This state, None if there is no file, with what is named and without what is unset. Raises StateError."""
        status = self.named.get("status")
        kept = state.with_status(status or state.status).fields() if state else {}
        return from_fields({**kept, **self.named, **dict.fromkeys(self.unset)})

    def wanted(self, state: State | None) -> State:
        """The state that is wanted instead of this one, None if there is no file. Raises StateError."""
        if self.is_for(state):
            return self.applied_to(state)
        if state is None:
            raise MissingError("does not exist")
        return state


class HapgentState:
    """One change of one agent's state."""

    def __init__(self, module: AnsibleModule, change: Change, wait_for: WaitFor) -> None:
        self.module = module
        self.change = change
        self.wait_for = wait_for
        self.path: str = module.params["state_file"]
        self.deadline = time.monotonic() + module.params["timeout"]
        self.peers_before: list[Peer] = []
        # What a failure reports first: empty as long as nothing was changed.
        self.done = ""
        self.result: dict[str, t.Any] = {"changed": False}

    def run(self) -> None:
        """Do it, and leave the module with what was changed and what was not."""
        before = self._load()
        after = self._wanted(before)
        self._note(before, after)
        instance = self._find_instance() if self.module.params["notify"] else None
        answer = self._ask(instance) if instance else None
        if instance and answer is not None:
            # What undoes the state before is no difference.
            answer = before.answer() if before and instance.tells(before, answer) else answer
            self.result["answer"] = answer
        if after != before and not self.module.check_mode:
            before, after = self._edit(before)
            self._note(before, after)
        self._track(before, after, answer)
        if instance and not self.module.check_mode:
            after = self._have_it_told(instance, after)
        if instance:
            self.result["answer"] = after.answer()
        self.module.exit_json(**self.result)

    # The file

    def _load(self) -> State | None:
        """The state in the file, or None if there is none."""
        try:
            return _state(self._as_owner(_fields_in))
        except _as_owner.MissingFolderError as error:
            if not (self.change.create and self.module.check_mode):
                self._fail(f"{self.path}: {error}")
            return None
        except StateError as error:
            self._fail_for_file(error)
        except (_as_owner.PathError, _as_owner.NoOutcomeError, OSError) as error:
            self._fail(f"{self.path}: {error}")

    def _wanted(self, before: State | None) -> State:
        try:
            return self.change.wanted(before)
        except StateError as error:
            self._fail_for_file(error)

    def _edit(self, seen: State | None) -> tuple[State | None, State]:
        """Change the file under its lock: the state in it before, which need no longer be the one seen, and after."""

        def edit(folder: int, name: str) -> tuple[Fields | None, Fields]:
            # This process is one of its own: a new file gets its mode whatever the umask is.
            os.umask(0o022)
            before, after = StateFile(name, folder).edit(self.change.wanted, self.deadline)
            return before and before.fields(), after.fields()

        try:
            before, after = self._as_owner(edit)
        except StateError as error:
            self._fail_for_file(error)
        except (LockedError, _as_owner.PathError) as error:
            self._fail(f"{self.path}: {error}")
        except (_as_owner.NoOutcomeError, OSError) as error:
            self._fail_after_edit(seen, error)
        return _state(before), from_fields(after)

    def _fail_after_edit(self, seen: State | None, error: Exception) -> t.NoReturn:
        """The file may have been replaced all the same: look what is in it."""
        self.done = f"The file {self.path} may have been changed"
        self.result["changed"] = True
        found = self._load()
        if found == self._wanted(seen):
            self.done = f"The file {self.path} was changed"
            self._fail(f"its folder cannot be written: {error}")
        self.done = ""
        now = "" if found == seen or found is None else f". Something else has changed it to {found.answer()}"
        self._fail(f"cannot write {self.path}: {error}{now}")

    def _as_owner(self, work: _as_owner.Work) -> t.Any:
        deadline = max(self.deadline, time.monotonic()) + DISK_SECONDS
        return _as_owner.run(self.path, work, deadline, (StateError, MissingError, LockedError))

    # What is returned

    def _note(self, before: State | None, after: State) -> None:
        kept = before is not None and not self.change.is_for(before)
        self.result.update(before=before.fields() if before else {}, after=after.fields(), kept=kept)

    def _track(self, before: State | None, after: State, answer: str | None) -> None:
        """Tell the two sides apart, once for changed, check mode and diff."""
        old, new = dump(before).decode() if before else "", dump(after).decode()
        if answer is not None:
            old += f"agent answers: {answer}\n"
            new += f"agent answers: {after.answer()}\n"
        self.result["changed"] = old != new
        self.result["diff"] = {"before_header": self.path, "after_header": self.path, "before": old, "after": new}
        if before and before.maxconn is not None and after.maxconn is None:
            self.module.warn(
                f"HAProxy keeps maxconn {before.maxconn}: no word of an agent gives the configured one back. "
                "Tell the configured number with maxconn, or set it in HAProxy (set maxconn server)."
            )

    # The agent

    def _find_instance(self) -> Instance:
        params = self.module.params
        try:
            process = find_process(params["service"], self.path, self.module.run_command, self.deadline)
            instance = instance_of(process, params["address"], params["port"])
        except InstanceError as error:
            self._fail(str(error))
        if params["wait"] and not instance.status_socket:
            self._fail(
                f"wait needs the status socket of the agent, process {process.pid}: "
                "set HAPGENT_SOCKET for it, as the role does"
            )
        return instance

    def _ask(self, instance: Instance) -> str:
        try:
            if self.module.params["wait"]:
                self.peers_before = instance.status(self.deadline)["peers"]
            return instance.answer(self.deadline)
        except InstanceError as error:
            self._fail(str(error))

    def _have_it_told(self, instance: Instance, state: State) -> State:
        """Have the agent answer this state, and wait for it as asked. Returns the state that it answers then."""
        self.done = f"The file {self.path} says {state.answer()}"
        if self.result["changed"]:
            state = self._notify(instance, state)
        self.result["answer"] = state.answer()
        if self.module.params["wait"]:
            state = self._await_peers(instance, state)
        return state

    def _notify(self, instance: Instance, state: State) -> State:
        """Have the agent read the file, and wait until it answers what is in there. Returns that state."""
        try:
            instance.reload()
            while True:
                over = time.monotonic() >= self.deadline
                answer = instance.answer(max(self.deadline, time.monotonic()) + LAST_LOOK_SECONDS)
                if instance.tells(state, answer):
                    return state
                if over:
                    self._fail_for_answer(instance, answer, self.module.params["timeout"])
                time.sleep(POLL_SECONDS)
                # Another change may have come, and the agent have read that one.
                state = self._as_it_is_now(state)
        except InstanceError as error:
            self._fail(str(error))

    def _await_peers(self, instance: Instance, state: State) -> State:
        """Wait until the load balancers were told, and leave the module if they were not. Returns what they were."""
        deadline = time.monotonic() + self.module.params["wait_timeout"]
        self.done = f"The file {self.path} says {state.answer()} and the agent tells it"
        while True:
            over = time.monotonic() >= deadline
            try:
                # Also in the end, it is asked who does not have it.
                status = instance.status(max(deadline, time.monotonic()) + LAST_LOOK_SECONDS)
            except InstanceError as error:
                self._fail(f"whom is not known: {error}")
            if status["state"] != state.fields():
                state = self._as_it_is_now(state)
            is_told = status["state"] == state.fields()
            if is_told:
                account = self.wait_for.account(status["peers"], polling(self.peers_before))
                self.result.update(seen_by=account.seen_by, not_seen_by=account.not_seen_by)
                if account.complete:
                    return state
            if over and not is_told:
                self._fail_for_answer(instance, status["answer"], self.module.params["wait_timeout"])
            if over:
                # The agent may have forgotten some that it knew.
                self._fail(self._who_is_missing(account, [*self.peers_before, *status["peers"]]))
            time.sleep(POLL_SECONDS)

    def _who_is_missing(self, account: Account, peers: list[Peer]) -> str:
        within = f"{self.module.params['wait_timeout']:g} s"
        if account.not_seen_by:
            return f"not to {account.missing(peers)} within {within}"
        if account.seen_by:
            return f"only to {len(account.seen_by)} load balancers of {self.wait_for.count} within {within}"
        if polling(peers):
            return "all load balancers that ask it are in wait_except, so there is none to wait for"
        return (
            f"nobody has asked it for {within}: no load balancer acts on it. See that agent-check, and the right "
            "agent-port, are on the server line in HAProxy, and that no firewall is between"
        )

    def _as_it_is_now(self, state: State) -> State:
        """The state in the file now: another change may have come, but what was asked for must still be so."""
        now = self._load()
        if now == state:
            return state
        if now is None or not (self.result["kept"] or self.change.applied_to(now) == now):
            self.result.update(after=now.fields() if now else {}, answer=now.answer() if now else None)
            self._fail(f"the state was changed meanwhile, to {now.answer() if now else 'none'}")
        self.result["after"] = now.fields()
        return now

    # Failures

    def _fail_for_file(self, error: StateError) -> t.NoReturn:
        if isinstance(error, MissingError):
            self._fail(f"{self.path} does not exist: name the right file with state_file, or make it with create")
        self._fail(f"{self.path}: {error}. Repair the file or name the right one with state_file")

    def _fail_for_answer(self, instance: Instance, answer: str, seconds: float) -> t.NoReturn:
        params = self.module.params
        where = instance.status_socket or f"{params['address']} port {params['port']}"
        self.result["answer"] = answer
        self._fail(
            f"{where} still answers {answer} after {seconds:g} s{self._why(instance)}. "
            f"See that service {params['service']} serves this file there"
        )

    @staticmethod
    def _why(instance: Instance) -> str:
        """What the agent reports of why it answers FAIL, if it does so on its own account."""
        try:
            why = why_fail(instance.status(time.monotonic() + LAST_LOOK_SECONDS)) if instance.status_socket else ""
        except InstanceError:
            return ""
        return f", because {why}" if why else ""

    def _fail(self, problem: str) -> t.NoReturn:
        """Leave the module, and say what was changed."""
        if self.done:
            self.module.fail_json(msg=f"{self.done}, but {problem}.", **self.result)
        if "before" in self.result:
            self.result["after"] = self.result["before"]
        self.module.fail_json(msg=f"{problem}. Nothing was changed.", **{**self.result, "changed": False})


def _fields_in(folder: int, name: str) -> Fields | None:
    try:
        return StateFile(name, folder).load().fields()
    except MissingError:
        return None


def _state(fields: Fields | None) -> State | None:
    return from_fields(fields) if fields is not None else None


def _change(params: dict[str, t.Any]) -> Change:
    """What the options ask for. Raises ValueError, which says what is wrong with which of them."""
    for name in ("timeout", "wait_timeout"):
        check_seconds(name, params[name])
    for name in params["unset"]:
        if params[name] is not None:
            raise ValueError(f"{name} must not be both set and in unset")
    if not 1 <= params["port"] <= 65535:
        raise ValueError(f"port must be 1 to 65535, not {params['port']}")
    if params["wait"] and not params["notify"]:
        raise ValueError("wait must not be true if notify is false")
    if params["create"] and params["status"] is None:
        raise ValueError("create needs a status")
    named = {name: params[name] for name in State._fields if params[name] is not None}
    # The state before only adds fields that are valid.
    from_fields({"status": STATUSES[0], **named})
    only_if = params["only_if"] or {}
    return Change(named, params["unset"], params["create"], only_if.get("status"), only_if.get("reason"))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "status": {"type": "str", "choices": list(STATUSES)},
            "weight": {"type": "int"},
            "maxconn": {"type": "int"},
            "reason": {"type": "str"},
            "unset": {"type": "list", "elements": "str", "choices": [*LIMITS, "reason"], "default": []},
            "only_if": {
                "type": "dict",
                "options": {
                    "status": {"type": "list", "elements": "str", "choices": list(STATUSES)},
                    "reason": {"type": "str"},
                },
            },
            "create": {"type": "bool", "default": False},
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
        mutually_exclusive=[("create", "only_if")],
        supports_check_mode=True,
    )
    try:
        change = _change(module.params)
        wait_for = WaitFor(module.params["wait_for"], module.params["wait_except"])
    except (ValueError, StateError, WaitForError) as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")
    HapgentState(module, change, wait_for).run()


if __name__ == "__main__":
    main()
