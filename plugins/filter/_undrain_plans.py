# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _undrain_plans
short_description: Plan how to bring hosts back into rotation
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
    description: The hosts.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show which states the undrain ends, and which it leaves unchanged
  ansible.builtin.debug:
    msg: "{{ (hostvars | hapgent.agent._undrain_plans(['web1'])).messages }}"
"""

RETURN = r"""
_value:
  description:
    - C(hosts) has for each host the C(changes) for C(hapgent_state), C(notes) by service, and the C(refusal), why the
      host cannot be undrained. C(messages) are to be shown.
  type: dict
"""

import functools
import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import HostPlan, Plans, together, undrain_host


def undrain_plans(hostvars: _recorded.Hostvars, hosts: t.Iterable[str]) -> Plans:
    """See DOCUMENTATION."""
    hostvars = _recorded.read_once(hostvars)

    def plan(host: str) -> HostPlan:
        own = _recorded.settings(hostvars, host)
        states = _recorded.states(hostvars, host)
        asked = functools.partial(_recorded.asked, hostvars, host)
        return undrain_host(host, states, own["reason"], own["found_out"], asked)

    return together({host: plan(host) for host in hosts})


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_undrain_plans": undrain_plans}
