# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _names_of_nobody
short_description: List the parts of a pattern of hosts that match nothing
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: groups
options:
  _input:
    description: The pattern.
    type: str
    required: true
  groups:
    description: The hosts of each group of the inventory, as in the variable C(groups).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Check the pattern
  ansible.builtin.assert:
    that: not 'lb,!lb2' | hapgent.agent._names_of_nobody(groups)
"""

RETURN = r"""
_value:
  description: The parts, without C(!) and C(&).
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import strangers


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_names_of_nobody": strangers}
