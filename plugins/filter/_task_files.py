# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _task_files
short_description: Find task files
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: required
options:
  _input:
    description: The paths of the files, each by the name of its variable. V('') means no file.
    type: dict
    required: true
  required:
    description: The name of the variable that must not be empty.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show where the file is
  ansible.builtin.debug:
    msg: "{{ ({'hapgent_tasks': 'deploy.yml'} | hapgent.agent._task_files('hapgent_tasks')).paths }}"
"""

RETURN = r"""
_value:
  description: The absolute C(paths) by the name of the variable, and the C(problem), V('') if there is none.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._task_files import find


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_task_files": find}
