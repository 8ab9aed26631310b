# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _sessions_left
short_description: Report which sessions are left after the grace period
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: hosts
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  hosts:
    description: The hosts.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show which sessions are left
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._sessions_left(['web1']) }}"
"""

RETURN = r"""
_value:
  description: A report for each host that has sessions left.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_sessions_left": _recorded.sessions_left}
