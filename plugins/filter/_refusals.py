# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _refusals
short_description: Report why hosts must stay in rotation
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: leaving, first
options:
  _input:
    description: The variable C(hostvars), with what C(steps/check_capacity.yml) has recorded.
    type: dict
    required: true
  leaving:
    description: The hosts to take out of rotation at the same time.
    type: list
    elements: str
    required: true
  first:
    description: The host that has queried the agents of the fleet.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Fail if too few servers would stay in rotation
  ansible.builtin.assert:
    that: not hostvars | hapgent.agent._refusals(['web1'], 'web1')
"""

RETURN = r"""
_value:
  description: The reasons, without duplicates. Empty if the hosts may be taken out of rotation.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.hapgent.agent.plugins.plugin_utils import _fleet
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import name_of


def refusals(hostvars: t.Mapping[str, t.Mapping[str, t.Any]], leaving: t.Iterable[str], first: str) -> list[str]:
    """Return why these hosts must stay in rotation. Raises AnsibleFilterError."""
    agents = hostvars[first].get("hapgent__fleet_queried", {}).get("results", [])
    try:
        return _fleet.refusals([_view(host, hostvars[host]["hapgent__capacity_view"], agents) for host in leaving])
    except _fleet.FleetError as error:
        raise AnsibleFilterError(str(error)) from error


def _view(host: str, recorded: t.Mapping[str, t.Any], agents: t.Iterable[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    # A fleet that does not include the host says nothing about the servers that can replace it.
    members = recorded["fleet"] if host in recorded["fleet"] else []
    return {**recorded, "host": host, "agents": [agent for agent in agents if name_of(agent) in members]}


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_refusals": refusals}
