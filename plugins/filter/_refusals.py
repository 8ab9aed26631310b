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
positional: leaving
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  leaving:
    description: The hosts to take out of rotation at the same time.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Fail if too few servers would stay in rotation
  ansible.builtin.assert:
    that: not hostvars | hapgent.agent._refusals(['web1'])
"""

RETURN = r"""
_value:
  description: The reasons, without duplicates. Empty if the hosts may be taken out of rotation.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.hapgent.agent.plugins.plugin_utils import _balancers, _fleet, _recorded


def refusals(hostvars: _recorded.Hostvars, leaving: t.Iterable[str]) -> list[str]:
    """Return why these hosts must stay in rotation. Raises AnsibleFilterError."""
    hostvars = _recorded.read_once(hostvars)
    views = [view for host in leaving for view in _views(hostvars, host)]
    # While others are waited for, a load balancer may stop answering.
    asked = {_balancers.name_of(result): result for view in views for result in view["asked"]}
    unanswered = _balancers.query_problems(asked.values(), "")
    try:
        return [*([unanswered] if unanswered else []), *_fleet.refusals(views)]
    except _fleet.FleetError as error:
        raise AnsibleFilterError(str(error)) from error


def _views(hostvars: _recorded.Hostvars, host: str) -> list[dict[str, t.Any]]:
    settings = _recorded.settings(hostvars, host)
    return [
        {
            "host": host,
            "server": service["server"],
            "min_up": settings["min_up"],
            "asked": _recorded.asked(hostvars, host, service),
            "agents": _recorded.fleet_agents(hostvars, host, service),
        }
        for service in settings["services"]
    ]


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_refusals": refusals}
