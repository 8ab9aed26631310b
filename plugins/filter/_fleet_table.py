# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _fleet_table
short_description: Format what agents and load balancers report about a fleet as a table
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
  - Formats the table of the playbook C(hapgent.agent.status). Inconsistencies are marked with C(!) and explained
    below the table.
positional: hosts, balancers
options:
  _input:
    description: The variable C(hostvars), with what C(status.yml) has recorded.
    type: dict
    required: true
  hosts:
    description: The hosts to show.
    type: list
    elements: str
    required: true
  balancers:
    description: The load balancers.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show the table
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._fleet_table(ansible_play_hosts_all, ['lb1', 'lb2']) }}"
"""

RETURN = r"""
_value:
  description: The lines of the table.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import addresses
from ansible_collections.hapgent.agent.plugins.plugin_utils._fleet import table
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import titled


def fleet_table(hostvars: _recorded.Hostvars, hosts: t.Sequence[str], balancers: t.Iterable[str]) -> list[str]:
    """See DOCUMENTATION."""
    hostvars = _recorded.read_once(hostvars)
    agents = [(host, service, result) for host in hosts for service, result in _recorded.agents(hostvars, host)]
    return table(
        [titled(host, service) for host, service, _result in agents],
        [service["server"] for _host, service, _result in agents],
        [service["backends"] for _host, service, _result in agents],
        [result for _host, _service, result in agents],
        _recorded.asked_by_all(hostvars, hosts),
        known=addresses(_recorded.balancers(hostvars, balancers)),
    )


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_fleet_table": fleet_table}
