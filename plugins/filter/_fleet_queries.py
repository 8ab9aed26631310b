# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _fleet_queries
short_description: List the agents of the fleets of hosts
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
    description: The hosts that leave rotation.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show the agents
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._fleet_queries(['web7']) }}"
"""

RETURN = r"""
_value:
  description:
    - The agents to query, each with C(host), C(service) and C(state_file).
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded


def fleet_queries(hostvars: _recorded.Hostvars, hosts: t.Iterable[str]) -> list[_recorded.FleetQuery]:
    """See DOCUMENTATION."""
    return _recorded.fleet_queries(_recorded.read_once(hostvars), hosts)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_fleet_queries": fleet_queries}
