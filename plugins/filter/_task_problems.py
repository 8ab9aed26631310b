# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _task_problems
short_description: Report problems in task files
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: handlers, playbook_dir
options:
  _input:
    description: The absolute paths of the task files.
    type: list
    elements: str
    required: true
  handlers:
    description: The absolute path of a file with handlers. V('') means no file.
    type: str
    required: true
  playbook_dir:
    description: The variable C(playbook_dir), which Ansible uses to find roles.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Fail before anything is changed
  ansible.builtin.assert:
    that: not ['/srv/deploy.yml'] | hapgent.agent._task_problems('/srv/handlers.yml', playbook_dir)
"""

RETURN = r"""
_value:
  description: The problems. Empty if there are none.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._task_files import problems


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_task_problems": problems}
