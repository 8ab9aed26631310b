# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _outcomes
short_description: Report what a drain or an undrain has done with hosts
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This filter is B(private) to the collection. It can have breaking changes at any time.
positional: names, step
options:
  _input:
    description: The variables of all hosts.
    type: dict
    required: true
  names:
    description: The hosts.
    type: list
    elements: str
    required: true
  step:
    description: What was done, V(drain) or V(undrain).
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show what was done
  ansible.builtin.debug:
    msg: "{{ (hostvars | hapgent.agent._outcomes(['web1'], 'drain')).done }}"
"""

RETURN = r"""
_value:
  description:
    - A line for each host. C(left) has those with sessions that are left after the grace period, and C(done) the others
      that were changed.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_outcomes": _recorded.outcomes}
