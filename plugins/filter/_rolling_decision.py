# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _rolling_decision
short_description: Decide whether a rolling update can start
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: reason, when_kept_out, limit
options:
  _input:
    description: The results of P(hapgent.agent._rolling_host_check#filter), one for each host.
    type: list
    elements: dict
    required: true
  reason:
    description: The reason of the rolling update.
    type: str
    required: true
  when_kept_out:
    description: What to do with hosts that something else keeps out of rotation, V(fail) or V(skip).
    type: str
    required: true
  limit:
    description: The C(--limit) of this run. V('') means no limit.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show what the rolling update is about to do
  ansible.builtin.debug:
    msg: "{{ ([] | hapgent.agent._rolling_decision('release 4.2', 'fail', '')).summary }}"
"""

RETURN = r"""
_value:
  description: C(refusal) is why the rolling update cannot start, and C(summary) is what it is about to do.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._rolling import decision


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_rolling_decision": decision}
