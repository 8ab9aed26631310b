# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _drain_plans
short_description: Plan the drain of hosts
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: hosts, reason
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  hosts:
    description: The hosts.
    type: list
    elements: str
    required: true
  reason:
    description: The reason for all hosts. V('') means the reason of each host.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show what is already out of rotation
  ansible.builtin.debug:
    msg: "{{ (hostvars | hapgent.agent._drain_plans(['web1'], 'release 4.2')).messages }}"
"""

RETURN = r"""
_value:
  description:
    - C(hosts) has for each host the C(changes) for C(hapgent_state), C(notes) by service, and the C(refusal), why the
      host cannot be drained. C(messages) are to be shown.
  type: dict
"""

import functools
import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import HostPlan, Plans, drain_host, together


def drain_plans(hostvars: _recorded.Hostvars, hosts: t.Iterable[str], reason: str = "") -> Plans:
    """See DOCUMENTATION."""
    hostvars = _recorded.read_once(hostvars)

    def plan(host: str) -> HostPlan:
        notes = _recorded.notes(hostvars, host, reason or _recorded.settings(hostvars, host)["reason"])
        states = _recorded.states(hostvars, host)
        return drain_host(host, states, notes, functools.partial(_recorded.asked, hostvars, host))

    return together({host: plan(host) for host in hosts})


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_drain_plans": drain_plans}
