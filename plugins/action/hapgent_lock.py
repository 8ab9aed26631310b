# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Takes and releases the lock of a fleet for this run of Ansible. See plugins/modules/hapgent_lock.py."""

from __future__ import annotations

import time
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.hapgent.agent.plugins.module_utils import _who
from ansible_collections.hapgent.agent.plugins.plugin_utils import _runs

Result = dict[str, t.Any]
MODULE = "hapgent.agent.hapgent_lock"


class ActionModule(ActionBase):
    """Names the run, and takes the lock over from a run of this control node that has ended."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"claim", "over", "path", "state"})

    def run(self, tmp: str | None = None, task_vars: Result | None = None) -> Result:
        """Return the result of the task."""
        result: Result = super().run(tmp, task_vars)
        given = {"run": _runs.current(), "who": _who.current(), "since": int(time.time())}
        arguments = {**self._task.args, "claim": {**self._task.args["claim"], **given}}
        done = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
        other = done.get("held", {}).get("run", "")
        if other and _runs.has_ended(other):
            done = self._execute_module(
                module_name=MODULE, module_args={**arguments, "over": other}, task_vars=task_vars
            )
        return {**result, **done}
