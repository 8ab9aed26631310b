# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes the states of all agents of a host together. See plugins/modules/hapgent_change.py."""

from __future__ import annotations

import time
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.hapgent.agent.plugins.plugin_utils import _balancers, _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import Change, after_ready, to_await
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import titled

Result = dict[str, t.Any]
MODULE = "hapgent.agent.hapgent_state"


class ActionModule(ActionBase):
    """Decides on the control node, and runs C(hapgent_state) on the host."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"excluded", "plan", "step", "wait_for", "wait_timeout"})

    def run(self, tmp: str | None = None, task_vars: Result | None = None) -> Result:
        """Return the result of the task."""
        result: Result = super().run(tmp, task_vars)
        self._made: list[str] = []
        variables = task_vars or {}
        plan = self._task.args["plan"]
        if plan["refusal"]:
            return {**result, "failed": True, "msg": plan["refusal"]}
        timeout = float(self._task.args["wait_timeout"])
        step = self._task.args["step"]
        before = variables.get("hapgent__changed") or {}
        # To cut the sessions is part of the drain before it.
        began = before["began"] if "cut" in (step, before.get("step")) else time.time()
        try:
            results = self._change(plan["changes"], time.time() + timeout, variables)
        except AnsibleConnectionFailure as error:
            # Ansible adds what it knows about the connection, but not what was done before it was lost.
            if not self._made:
                raise
            text = f"{str(error).rstrip('.: ')}. The state of {', '.join(self._made)} was changed"
            raise AnsibleConnectionFailure(text) from None
        outcome = self._outcome(results, variables)
        return {
            **result,
            **({"failed": True, "msg": outcome["refusal"]} if outcome["refusal"] else {}),
            "changed": any(changed["changed"] for changed in results if "changed" in changed),
            "diff": [changed["diff"] for changed in results if "diff" in changed],
            "warnings": [warning for changed in results for warning in changed.get("warnings", [])],
            "step": step,
            "began": began,
            "timeout": timeout,
            "reported": outcome["reported"],
            "services": [change["service"] for change in plan["changes"]],
            "messages": [
                _balancers.change_line(titled(variables["inventory_hostname"], done["item"]), done)
                for done in results
                if done.get("changed") and done.get("after")
            ],
            "results": results,
        }

    def _change(self, changes: t.Sequence[Change], deadline: float, variables: Result) -> list[Result]:
        """Return the results of the module for these changes."""
        excluded = list(self._addresses(self._task.args["excluded"], variables))
        waits = {"wait": True, "wait_for": self._task.args["wait_for"], "wait_except": excluded}

        def wait(change: Change) -> Result:
            return self._run(change, {**waits, "wait_timeout": max(0.0, deadline - time.time())}, variables)

        if not self._task.check_mode:
            changes = [after_ready(change, wait) for change in changes]
            # All are made before one is waited for, so that the agents of a host leave together.
            if len(changes) > 1:
                changes = [to_await(change, self._run(change, {}, variables)) for change in changes]
        results = []
        for change in changes:
            done = wait(change)
            results.append({**done, "changed": done.get("changed", False) or change["made"], "item": change})
        return results

    def _run(self, change: Change, waiting: Result, variables: Result) -> Result:
        names = ("status", "reason", "by", "until", "then", "only_if", "state_file")
        given = {name: value for name, value in change.items() if name in names and value}
        arguments = {**given, "unset": change["unset"], "service": change["service"], **waiting}
        done: Result = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=variables)
        if done.get("changed"):
            self._made.append(titled(variables["inventory_hostname"], change))
        return done

    def _outcome(self, results: t.Sequence[Result], variables: Result) -> _balancers.ChangeOutcome:
        settings = _recorded.settings(variables["hostvars"], variables["inventory_hostname"])
        excluded = self._task.args["excluded"]
        named = [(titled(variables["inventory_hostname"], result["item"]), result) for result in results]
        # Looking up addresses takes time, and only a problem needs them.
        known = self._addresses([*settings["load_balancers"], *excluded], variables) if _has_failed(results) else {}
        return _balancers.change_outcome(named, known, excluded, settings["load_balancer_pattern"])

    @staticmethod
    def _addresses(names: t.Sequence[str], variables: Result) -> dict[str, str]:
        return _balancers.addresses(_recorded.balancers(variables["hostvars"], names))


def _has_failed(results: t.Iterable[Result]) -> bool:
    return any(result.get("kept") or "msg" in result for result in results)
