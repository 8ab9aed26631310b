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
positional: host, results, reason, found_out
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
  found_out:
    description: What a drain in the same run has found, by service.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the plan
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._undrain_plan('web1', agents.results, '', {}) }}"
"""

RETURN = r"""
_value:
  description:
    - The C(changes) for C(hapgent_state), and a C(message) to show.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import HostPlan, undrain_host


def undrain_plan(
    hostvars: _recorded.Hostvars,
    host: str,
    results: t.Sequence[_recorded.Result],
    reason: str,
    found_out: t.Mapping[str, str],
) -> HostPlan:
    """See DOCUMENTATION."""
    return undrain_host(host, _recorded.states(hostvars, host, results), reason, found_out)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_undrain_plan": undrain_plan}
