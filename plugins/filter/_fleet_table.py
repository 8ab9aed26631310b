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
positional: servers, backends, agents, asked
options:
  _input:
    description: The names of the hosts.
    type: list
    elements: str
    required: true
  servers:
    description: The name of each host's server in HAProxy, in the order of the hosts.
    type: list
    elements: str
    required: true
  backends:
    description: The backends to show for each host. An empty list means all backends that have the host's server.
    type: list
    elements: list
    required: true
  agents:
    description: The result of M(hapgent.agent.hapgent_info) for each host, run with a service.
    type: list
    elements: dict
    required: true
  asked:
    description: The results of M(hapgent.agent.haproxy_server_info) in a loop over the load balancers.
    type: list
    elements: dict
    required: true
  known:
    description: The names of the load balancers, by source address.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Query the agent
  hapgent.agent.hapgent_info:
    service: hapgent
  register: agent

- name: Query the load balancers
  hapgent.agent.haproxy_server_info:
  delegate_to: "{{ item }}"
  loop: [lb1, lb2]
  register: asked

- name: Show the table
  ansible.builtin.debug:
    msg: "{{ ['web1'] | hapgent.agent._fleet_table(['web1'], [[]], [agent], asked.results) }}"
"""

RETURN = r"""
_value:
  description: The lines of the table.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._fleet import table


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_fleet_table": table}
