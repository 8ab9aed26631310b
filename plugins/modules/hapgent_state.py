# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hapgent_state
short_description: Manage the state that an agent reports to HAProxy
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - Changes the state file of an agent on the managed host, signals the agent to read the file again, and waits until
    the agent answers with the new state. With O(wait=true), the module also waits until the load balancers have
    received the new state.
  - Fields that are not specified keep their values.
  - The module locks the state file while it changes the file, so that no change made by another run or by the agent is
    lost. If the state is changed again while the module waits, the module continues to wait if the requested values
    are still in effect, and fails otherwise.
  - If the file needs no change but the answer of the agent differs from the file, the module signals the agent to read
    the file again, and reports a change.
  - An agent whose C(HAPGENT_SETTLE) is not 0 may answer C(UP 100%) instead of C(UP), to reset the previous state. If
    such an agent has no status socket, the module ignores these reset keywords when it compares answers.
  - Supports the agent of this collection and hapgent 0.3.2.
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
      - The status that the agent reports to HAProxy.
      - V(UP) brings the server back into rotation, whatever its previous status was. V(DRAIN) sends the server no new
        sessions and lets existing sessions finish. V(MAINT) puts the server into maintenance. V(DOWN), V(FAIL) and
        V(STOPPED) mark the server as down immediately.
      - V(READY) also brings the server back into rotation. As long as the agent reports it, it also ends any drain or
        maintenance set manually in HAProxy.
      - For a while after a change, the agent also sends each load balancer the keywords that reset the previous status.
        An agent that does not do this, which is hapgent 0.3.2 or an agent with C(HAPGENT_SETTLE) 0, needs V(READY)
        after V(DRAIN) or V(MAINT), and V(UP) after any other status.
    type: str
    choices: [UP, DOWN, READY, DRAIN, FAIL, MAINT, STOPPED]
  weight:
    description:
      - Weight as a percentage of the weight configured in HAProxy, V(0) to V(255).
    type: int
  maxconn:
    description:
      - Maximum number of connections to the server, V(0) to V(65535). V(0) means unlimited.
      - The limit applies to each HAProxy process and each backend separately.
    type: int
  reason:
    description:
      - Why the server is in this state. HAProxy reports it in its statistics (C(last_agt)), and its stats page shows it
        for a server that is down.
      - It must be at most 120 bytes of UTF-8, without control characters and without C(#).
      - The reason is kept until O(status) changes or another reason is set. hapgent 0.3.2 does not accept a state with
        a reason, and answers C(FAIL).
      - A number is converted to text. Quote a number such as V("4.10"), because YAML reads it as 4.1.
    type: str
  by:
    description:
      - Who has set the status, such as V(ada@control1). HAProxy does not receive it. C(hapgent status) and the playbook
        C(hapgent.agent.status) show it.
      - It must be at most 120 bytes of UTF-8, without control characters and without C(#).
      - It is kept until O(status) changes or something else is set with another O(by). If all other fields already have
        the requested values, it is not changed, because that run has not set them.
    type: str
  until:
    description:
      - The moment after which the status is overdue, as a date and time with its offset from UTC, such as
        V(2026-11-28T06:00:00Z), or as a duration from now, such as V(90m), V(2h) or V(1d).
      - HAProxy does not receive it, and the state does not change at that moment, unless O(then) is set. C(hapgent
        status), the metrics and the playbook C(hapgent.agent.status) show that it is overdue.
      - The moment is kept until O(status) changes or another one is set. With a duration, each run sets another one.
      - It is stored in UTC, in seconds.
    type: str
  then:
    description:
      - V(UP) to let the agent change the status to V(UP) at the moment O(until), as this module would. Requires
        O(until).
      - The agent does not check whether the service works. That is left to the health checks of HAProxy.
      - It is kept until O(status) changes, or O(until) is set to another moment without it.
    type: str
    choices: [UP]
  unset:
    description:
      - Fields to remove from the state, so that the agent no longer reports them.
      - If you remove V(weight), HAProxy returns to the configured weight.
      - If you remove V(maxconn), HAProxy keeps the last value that it received, because no agent response can reset it
        to the configured value. The module issues a warning.
    type: list
    elements: str
    choices: [weight, maxconn, reason, by, until, then]
    default: []
  only_if:
    description:
      - Change the state only if the current state meets these conditions. Otherwise, the module keeps the current state
        and returns RV(kept=true).
      - The module checks the conditions while it holds the lock of the state file, so that no other change can happen
        in between.
      - With O(wait=true), the module waits until the load balancers have received the state, even if it was kept.
      - Mutually exclusive with O(create).
    type: dict
    suboptions:
      status:
        description: The state may be changed only if its status is one of these.
        type: list
        elements: str
        choices: [UP, DOWN, READY, DRAIN, FAIL, MAINT, STOPPED]
      reason:
        description: The state may be changed only if it has this reason. V("") means no reason.
        type: str
  create:
    description:
      - Create the state file with the specified fields if it does not exist. O(status) is required.
      - An existing file is not changed, whatever other options are set, but it must be valid.
      - The folder of the file must exist, except in check mode.
      - Mutually exclusive with O(only_if).
    type: bool
    default: false
  state_file:
    description:
      - Absolute path of the state file. The file must be valid, and must exist unless O(create=true).
      - The default is the state file of the agent of O(service), which is the C(HAPGENT_STATE_FILE) of its process or,
        if the service is not running, of its unit (C(Environment=)) or init script (C(export)). If a running agent or
        the service V(hapgent) does not set it, or if neither systemd nor sysvinit runs the host, the default is
        V(/etc/hapgent/state.json). It also is with O(notify=false) if the service V(hapgent) does not exist yet.
      - No component of the path may be a symbolic link.
      - If the module runs as root, it accesses the file with the rights of the owner of the first folder on the path
        that does not belong to root. The module fails if other users can write to a folder that belongs to root, unless
        that folder is sticky and is not the last one on the path.
    type: path
  service:
    description:
      - The service of the agent, such as V(hapgent@shop). It must serve O(state_file), if that is set. The
        module signals the main process of the service to read the file again.
      - If the service does not exist, the module fails, lists the services that run agents, and changes nothing.
      - On a host that systemd does not run, the service is the init script of the role. If there is none of this name,
        the module signals the C(hapgent) process that serves O(state_file), if that is set. That process must be run by
        root or by the owner of the file, and its program must not be set-user-ID or set-group-ID.
    type: str
    default: hapgent
  address:
    description:
      - Address on which the agent answers, as seen from the managed host.
      - Ignored if the agent has a status socket (C(HAPGENT_SOCKET)), which the role configures.
    type: str
    default: 127.0.0.1
  port:
    description:
      - Port on which the agent answers, V(1) to V(65535).
      - Ignored if the agent has a status socket.
    type: int
    default: 9777
  timeout:
    description:
      - Seconds in total for the first query of the agent, the lock of the state file and the new answer of the agent,
        V(0) to V(86400).
      - The last query after this time may take up to 5 seconds more, and so may each access to the state file if its
        file system hangs.
    type: float
    default: 10
  notify:
    description:
      - Whether to contact the agent. With V(false), the module only writes the file.
    type: bool
    default: true
  wait:
    description:
      - Whether to wait until the load balancers have received the state.
      - The agent records which state each load balancer last received, so no access to the load balancers is needed.
        The agent must have a status socket (C(HAPGENT_SOCKET)).
      - The agent identifies a load balancer by its source address. If several backends of one load balancer poll the
        agent, the load balancer counts as soon as the first of them has received the state. The others follow within
        C(agent-inter).
    type: bool
    default: false
  wait_for:
    description:
      - Which load balancers to wait for.
      - V(auto) waits for every load balancer that polls the agent. This includes those that polled before the change
        and have not polled since, and those that the agent has dropped because it records at most 1024 load balancers.
        If no load balancer polls the agent at all, the module fails, because no load balancer would act on the change.
      - A number, V(1) to V(1024), waits for that many of the load balancers that poll the agent.
      - A list, or text with commas, waits for the load balancers with these source addresses, as seen by the agent.
    type: raw
    default: auto
  wait_except:
    description:
      - Source addresses of load balancers not to wait for, as seen by the agent. For example, list a load balancer that
        is down.
    type: list
    elements: str
    default: []
  wait_timeout:
    description:
      - Seconds to wait for the load balancers with O(wait=true), V(0) to V(86400). The last query of the agent after
        this time may take up to 5 seconds more.
    type: float
    default: 60
seealso:
  - name: HAProxy's agent-check
    description: How HAProxy handles each keyword of an agent's response.
    link: https://docs.haproxy.org/3.0/configuration.html#5.2-agent-check
"""

EXAMPLES = r"""
- name: Drain the server and let its sessions finish
  hapgent.agent.hapgent_state:
    status: DRAIN

- name: Drain the server with a reason, and wait until all load balancers have received the state
  hapgent.agent.hapgent_state:
    status: DRAIN
    reason: kernel upgrade, ask Ada
    wait: true

- name: Drain the server for two hours, and record who did
  hapgent.agent.hapgent_state:
    status: DRAIN
    by: nightly backup
    until: 2h
    then: UP

- name: Bring the server back into rotation
  hapgent.agent.hapgent_state:
    status: UP

- name: Set the weight to half of the configured weight
  hapgent.agent.hapgent_state:
    weight: 50

- name: Return to the configured weight
  hapgent.agent.hapgent_state:
    unset: [weight]

- name: Drain the server unless it is already out of rotation
  hapgent.agent.hapgent_state:
    status: DRAIN
    only_if:
      status: [UP, READY]
  register: drained

- name: Bring the server back unless it is out of rotation for another reason
  hapgent.agent.hapgent_state:
    status: UP
    only_if:
      reason: kernel upgrade, ask Ada

- name: Create the state file of a new agent before the agent starts
  hapgent.agent.hapgent_state:
    create: true
    status: MAINT
    reason: not installed yet
    notify: false

- name: Drain the server of the instance shop
  hapgent.agent.hapgent_state:
    status: DRAIN
    service: hapgent@shop
"""

RETURN = r"""
before:
  description: The fields that were set in the file before the change. Empty if the file did not exist.
  returned: on success, and on failure after the file was read
  type: dict
  sample: {"status": "UP", "weight": 77}
after:
  description: The fields that are set in the file now. In check mode, the fields that would be set.
  returned: on success, and on failure after the file was read
  type: dict
  sample: {"status": "DRAIN", "weight": 77}
kept:
  description: Whether the state was kept because of O(only_if), or because O(create=true) and the file existed.
  returned: on success, and on failure after the file was read
  type: bool
  sample: false
answer:
  description:
    - What the agent answers now. In check mode, what it would answer.
    - The keywords that reset the previous state, which the agent also sends for a while after a change, are omitted.
  returned: if O(notify=true) and the agent answered
  type: str
  sample: DRAIN 77%
received_by:
  description: The addresses of the load balancers that the module waited for and that have received the state.
  returned: if O(wait=true), except in check mode
  type: list
  elements: str
  sample: [198.51.100.11]
not_received_by:
  description: The addresses of the load balancers that the module waited for and that have not received the state.
  returned: if O(wait=true), except in check mode
  type: list
  elements: str
  sample: []
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hapgent.agent.plugins.module_utils._agent_client import Instance, instance_of
from ansible_collections.hapgent.agent.plugins.module_utils._agent_process import (
    DEFAULT_SERVICE,
    InstanceError,
    find_process,
    find_state_file,
)
from ansible_collections.hapgent.agent.plugins.module_utils._as_owner import MissingFolderError
from ansible_collections.hapgent.agent.plugins.module_utils._change import (
    AgentState,
    AnswerError,
    Change,
    ChangeError,
    FileError,
    InvalidFileError,
    NotReceivedError,
)
from ansible_collections.hapgent.agent.plugins.module_utils._deadline import check_seconds
from ansible_collections.hapgent.agent.plugins.module_utils._state import (
    FIELDS,
    STATUSES,
    MissingError,
    State,
    StateError,
    dump,
    from_fields,
    moment,
)
from ansible_collections.hapgent.agent.plugins.module_utils._wait_for import WaitFor, WaitForError, polling


class HapgentState:
    """One change of one agent's state, as the options of the module request it."""

    def __init__(self, module: AnsibleModule, change: Change, wait_for: WaitFor) -> None:
        self.module = module
        self.wait_for = wait_for
        self.changed = False
        self.diff: dict[str, str] = {}
        deadline = time.monotonic() + module.params["timeout"]
        try:
            path = module.params["state_file"] or self._find_state_file()
        except InstanceError as error:
            module.fail_json(msg=f"{error}. Nothing was changed.", changed=False)
        self.agent = AgentState(path, change, deadline)

    def run(self) -> None:
        """Make the change, and exit the module with its result."""
        try:
            self._run()
        except NotReceivedError as error:
            self._fail(self._who_is_missing(error))
        except InvalidFileError as error:
            if isinstance(error.error, MissingError):
                self._fail(f"{self.agent.path} does not exist: set state_file to the right file, or set create")
            self._fail(f"{error}. Fix the file, or set state_file to the right one")
        except (ChangeError, InstanceError) as error:
            self._fail(str(error))

    def _run(self) -> None:
        found = self._load()
        after = self.agent.plan(found)
        instance = self._find_instance() if self.module.params["notify"] else None
        answer = self.agent.ask(instance, with_peers=self.module.params["wait"]) if instance else None
        if after != found and not self.module.check_mode:
            after = self._edit()
        self._track(answer)
        if instance and not self.module.check_mode:
            self._apply(instance)
        elif instance:
            self.agent.answer = after.answer()
        self.module.exit_json(**self._result())

    def _find_state_file(self) -> str:
        params = self.module.params
        return find_state_file(params["service"], self.module.run_command, may_be_missing=not params["notify"])

    def _load(self) -> State | None:
        try:
            return self.agent.load()
        except FileError as error:
            is_new = self.agent.change.create and self.module.check_mode
            if is_new and isinstance(error.error, MissingFolderError):
                return None
            raise

    def _edit(self) -> State:
        try:
            return self.agent.edit()
        except FileError:
            self.changed = bool(self.agent.done)
            raise

    def _find_instance(self) -> Instance:
        params = self.module.params
        process = find_process(params["service"], self.agent.path, self.module.run_command, self.agent.deadline)
        instance = instance_of(process, params["address"], params["port"])
        if params["wait"] and not instance.status_socket:
            self._fail(
                f"wait requires a status socket, and the agent (process {process.pid}) has none: "
                "set its HAPGENT_SOCKET, as the role does"
            )
        return instance

    def _track(self, answer: str | None) -> None:
        """Compare before and after, and use the same comparison for changed, check mode and diff."""
        before, after = self.agent.before, self.agent.planned
        old, new = dump(before).decode() if before else "", dump(after).decode()
        if answer is not None:
            old += f"agent answers: {answer}\n"
            new += f"agent answers: {after.answer()}\n"
        self.changed = old != new
        self.diff = {"before_header": self.agent.path, "after_header": self.agent.path, "before": old, "after": new}
        if before and before.maxconn is not None and after.maxconn is None:
            self.module.warn(
                f"HAProxy keeps maxconn {before.maxconn}, because no agent response can reset it to the configured "
                "value. Set maxconn to the configured value, or change it in HAProxy (set maxconn server)."
            )

    def _apply(self, instance: Instance) -> None:
        """Make the agent answer with the state in the file, and wait as the options request."""
        params = self.module.params
        seconds = params["timeout"]
        try:
            if self.changed:
                self.agent.await_answer(instance)
            self.agent.answer = self.agent.planned.answer()
            if params["wait"]:
                seconds = params["wait_timeout"]
                self._await_peers(instance, seconds)
        except AnswerError as error:
            self._fail(
                f"the agent on {error.where} still answers {error.answer} after {seconds:g} s"
                f"{error.why and f', because {error.why}'}. "
                f"Check that it is service {params['service']} and serves this file"
            )

    def _await_peers(self, instance: Instance, seconds: float) -> None:
        try:
            self.agent.await_peers(instance, self.wait_for, seconds)
        except InstanceError as error:
            self._fail(f"it is unknown which load balancers received it: {error}")

    def _who_is_missing(self, error: NotReceivedError) -> str:
        within = f"{self.module.params['wait_timeout']:g} s"
        result, peers = error.result, error.peers
        if result.not_received_by:
            return f"these load balancers did not receive it within {within}: {result.missing(peers)}"
        polling_now = [address for address in polling(peers) if address not in self.wait_for.left_out]
        if self.wait_for.count and polling_now:
            return f"only {len(result.received_by)} of {self.wait_for.count} load balancers received it within {within}"
        if polling(peers):
            return "all load balancers that poll the agent are in wait_except, so there is none to wait for"
        return (
            f"no load balancer polled the agent within {within}, so no load balancer acts on the state. Check that the "
            "server line in HAProxy has agent-check and the right agent-port, and that no firewall blocks it"
        )

    def _result(self) -> dict[str, t.Any]:
        agent = self.agent
        result: dict[str, t.Any] = {"changed": self.changed}
        if agent.is_read:
            result["before"] = agent.before.fields() if agent.before else {}
            result["after"] = agent.after.fields() if agent.after else {}
            result["kept"] = agent.kept
        if agent.answer is not None or (agent.is_read and not agent.after):
            result["answer"] = agent.answer
        if self.diff:
            result["diff"] = self.diff
        if agent.received:
            result.update(agent.received._asdict())
            del result["complete"]
        return result

    def _fail(self, problem: str) -> t.NoReturn:
        """Exit the module with this problem and with what was changed."""
        result = self._result()
        if self.agent.done:
            self.module.fail_json(msg=f"{self.agent.done}, but {problem}.", **result)
        if "before" in result:
            result["after"] = result["before"]
        self.module.fail_json(msg=f"{problem}. Nothing was changed.", **{**result, "changed": False})


def _change(params: dict[str, t.Any]) -> Change:
    """The change that the options request. Raises ValueError with the wrong option and its valid values."""
    for name in ("timeout", "wait_timeout"):
        check_seconds(name, params[name])
    for name in params["unset"]:
        if params[name] is not None:
            raise ValueError(f"{name} must not be set and listed in unset at the same time")
    if not 1 <= params["port"] <= 65535:
        raise ValueError(f"port must be 1 to 65535, not {params['port']}")
    if params["wait"] and not params["notify"]:
        raise ValueError("wait must not be true if notify is false")
    if params["create"] and params["status"] is None:
        raise ValueError("create requires a status")
    named = {name: params[name] for name in State._fields if params[name] is not None}
    if "until" in named:
        named["until"] = moment(named["until"], time.time())
    # Checking the named fields alone is enough: the previous state adds only valid fields.
    from_fields({"status": STATUSES[0], **named})
    only_if = params["only_if"] or {}
    return Change(named, params["unset"], params["create"], only_if.get("status"), only_if.get("reason"))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "status": {"type": "str", "choices": list(STATUSES)},
            **{
                name: {"type": field.kind, **({"choices": list(field.choices)} if field.choices else {})}
                for name, field in FIELDS.items()
            },
            "unset": {"type": "list", "elements": "str", "choices": list(FIELDS), "default": []},
            "only_if": {
                "type": "dict",
                "options": {
                    "status": {"type": "list", "elements": "str", "choices": list(STATUSES)},
                    "reason": {"type": "str"},
                },
            },
            "create": {"type": "bool", "default": False},
            "state_file": {"type": "path"},
            "service": {"type": "str", "default": DEFAULT_SERVICE},
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
