# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _change_problem
short_description: Report why a state has not reached the load balancers
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: known, left_out, pattern
options:
  _input:
    description: The result of M(hapgent.agent.hapgent_state), which failed or kept the state.
    type: dict
    required: true
  known:
    description: The names of the load balancers, by address.
    type: dict
    required: true
  left_out:
    description: The names of the load balancers that are not waited for.
    type: list
    elements: str
    required: true
  pattern:
    description: The host pattern that selects the load balancers.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Show the problem and what to do
  ansible.builtin.debug:
    msg: "{{ changed | hapgent.agent._change_problem({'198.51.100.11': 'lb1'}, [], 'lb') }}"
"""

RETURN = r"""
_value:
  description: The report, with advice.
  type: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import change_problem


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_change_problem": change_problem}
