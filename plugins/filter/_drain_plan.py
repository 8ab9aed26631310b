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
positional: host, results, reason
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  host:
    description: The host.
    type: str
    required: true
  results:
    description:
      - The results of M(hapgent.agent.hapgent_state) for each service of the host, which have read the states.
    type: list
    elements: dict
    required: true
  reason:
    description: The reason. V('') means no reason.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the plan
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._drain_plan('web1', agents.results, 'release 4.2') }}"
"""

RETURN = r"""
_value:
  description:
    - The C(changes) for C(hapgent_state), a C(message) to show, C(notes) by service, and the C(refusal), why the host
      cannot be drained.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import HostPlan, drain_host


def drain_plan(hostvars: _recorded.Hostvars, host: str, results: t.Sequence[_recorded.Result], reason: str) -> HostPlan:
    """See DOCUMENTATION."""
    states = _recorded.states(hostvars, host, results)
    return drain_host(host, states, reason, lambda service: _recorded.asked(hostvars, host, service))


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_drain_plan": drain_plan}
