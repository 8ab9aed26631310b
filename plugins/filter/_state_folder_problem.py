# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _state_folder_problem
short_description: Report why the folder of a state file is not safe for root
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This filter is B(private) to the collection. It can have breaking changes at any time.
options:
  _input:
    description: The output of C(stat --format='%u %f %n %U') for the parents of the folder, the folder, and the file.
    type: str
    required: true
  state_file:
    description: The path of the state file.
    type: path
    required: true
  uid:
    description: The user ID of the agent's user. Null if the user does not exist.
    type: int
  only_own_files:
    description: Whether the folder contains only the state file and the files that the agent keeps beside it.
    type: bool
    default: false
  uninstall:
    description: Whether the role uninstalls the agent. If so, the folder may belong to any user.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show the problem
  ansible.builtin.debug:
    msg: "{{ found.stdout | hapgent.agent._state_folder_problem('/etc/hapgent/state.json', 65534) }}"
"""

RETURN = r"""
_value:
  description: The problem. Empty if there is none.
  type: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _preflight


def state_folder_problem(
    listed: str, state_file: str, uid: t.Any = None, only_own_files: bool = False, uninstall: bool = False
) -> str:
    """See DOCUMENTATION."""
    return _preflight.state_folder_problem(
        listed, state_file, None if uid is None else int(uid), only_own_files, uninstall
    )


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_state_folder_problem": state_folder_problem}
