# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _drain_plan
short_description: Plan the drain of one host
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: host, state, reason
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  host:
    description: The host.
    type: str
    required: true
  state:
    description: The state of the host's agent, as M(hapgent.agent.hapgent_state) returns it.
    type: dict
    required: true
  reason:
    description: The reason of the drain. V('') means no reason.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Fail if the host cannot be drained
  ansible.builtin.assert:
    that: not (hostvars | hapgent.agent._drain_plan('web1', state.after, 'release 4.2')).refusal
"""

RETURN = r"""
_value:
  description:
    - C(change) is whether to set the state of the agent to C(DRAIN), C(note) is what to report, and C(refusal) is why
      the host cannot be drained.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import Plan, drain


def drain_plan(hostvars: _recorded.Hostvars, host: str, state: t.Mapping[str, t.Any], reason: str) -> Plan:
    """See DOCUMENTATION."""
    plan = drain(state, reason, _recorded.asked(hostvars, host), _recorded.settings(hostvars, host)["server"])
    if plan["refusal"]:
        plan["refusal"] = f"{host} cannot be drained: {plan['refusal']}. Nothing was changed on it."
    return plan


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_drain_plan": drain_plan}
