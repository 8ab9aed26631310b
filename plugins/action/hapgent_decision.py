# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fails with the refusal of a decision, or returns the decision. See plugins/modules/hapgent_decision.py."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Runs on the control node only, and changes nothing."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset({"decision"})

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return the result of the task."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        decision = self._task.args["decision"]
        if decision.get("refusal"):
            return {**result, "failed": True, "msg": decision["refusal"]}
        return {**result, **decision, "changed": False}
