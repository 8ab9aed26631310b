# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: concise
type: stdout
short_description: Show one line for each thing that happens while hosts are drained, updated and undrained
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - Shows the steps of the playbooks of this collection, and of the role P(hapgent.agent.fleet#role), as one line for
    each thing that happens, with the time of day. Steps that find nothing to report, or do not apply, show nothing.
  - All other tasks, such as those of an update, are shown as P(ansible.builtin.default#callback) shows them. So are
    failures.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - Set it as C(stdout_callback) in C(ansible.cfg), or as E(ANSIBLE_STDOUT_CALLBACK) in the environment.
"""

import time
import typing as t

from ansible import constants
from ansible.plugins.callback.default import CallbackModule as Default

if t.TYPE_CHECKING:
    from ansible.playbook.task import Task

ROLE = "hapgent.agent.fleet"
PLAYBOOKS = "/ansible_collections/hapgent/agent/playbooks/"


class CallbackModule(Default):
    """Shows the tasks of one role briefly. Releases before 2.20 know a result's parts only with an underscore."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "hapgent.agent.concise"

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        """Show the title of a task, but not that of a step, which only a failure of the step shows."""
        if _is_step(task):
            self._last_task_name = None
        else:
            super().v2_playbook_on_task_start(task, is_conditional)

    def v2_runner_on_ok(self, result: t.Any) -> None:
        """Show what a step reports or has changed."""
        if not _is_step(result._task):
            super().v2_runner_on_ok(result)
            return
        self._handle_warnings(result._result)
        # The time once for all lines, because they may be a table.
        now = time.strftime("%H:%M:%S")
        for number, line in enumerate(_lines(result)):
            self._display.display(f"{' ' * len(now) if number else now} {line}")

    def v2_runner_item_on_ok(self, result: t.Any) -> None:
        """Show an item, but not that of a step."""
        if not _is_step(result._task):
            super().v2_runner_item_on_ok(result)

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        """Show a skipped task, but not a step."""
        if not _is_step(result._task):
            super().v2_runner_on_skipped(result)

    def v2_runner_item_on_skipped(self, result: t.Any) -> None:
        """Show a skipped item, but not that of a step."""
        if not _is_step(result._task):
            super().v2_runner_item_on_skipped(result)

    def v2_playbook_on_include(self, included_file: t.Any) -> None:
        """Show an included file, but not that of a step."""
        if not _is_step(included_file._task):
            super().v2_playbook_on_include(included_file)


def _is_step(task: Task) -> bool:
    """Whether a task is one of the role or of the playbooks of this collection."""
    return (bool(task._role) and task._role.get_name() == ROLE) or PLAYBOOKS in (task.get_path() or "")


def _lines(result: t.Any) -> list[str]:
    """The lines of a result: those of a message, or C(messages) if something was changed."""
    if result._task.action in constants._ACTION_DEBUG:
        shown = result._result.get("msg", [])
    else:
        shown = result._result.get("messages", []) if result._result.get("changed") else []
    return shown if isinstance(shown, list) else [str(shown)]
