# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _undrain_plan
short_description: Plan how to bring one host back into rotation
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: reason, found_out
options:
  _input:
    description: The state of the host's agent, as M(hapgent.agent.hapgent_state) returns it.
    type: dict
    required: true
  reason:
    description: Only a state with this reason is ended. V('') means any state.
    type: str
    required: true
  found_out:
    description: What a drain in the same run has left unchanged. V('') means nothing.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the state that would be ended
  ansible.builtin.debug:
    msg: "{{ ({'status': 'DRAIN', 'reason': 'disk'} | hapgent.agent._undrain_plan('', '')).note }}"
"""

RETURN = r"""
_value:
  description:
    - C(change) is whether to set the state of the agent to C(UP), C(note) is what to report, and C(keeps) is the reason
      that the agent continues to report.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import undrain


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_undrain_plan": undrain}
