# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _fleet_problems
short_description: Find settings that the playbooks reject
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: hostvars, groups
options:
  _input:
    description: The settings of the host, with the keys of C(Given) in C(_fleet_preflight.py).
    type: dict
    required: true
  hostvars:
    description: The variable C(hostvars), of which the variables of the load balancers are checked.
    type: dict
    required: true
  groups:
    description: The hosts of each group of the inventory, as in the variable C(groups).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the problems
  ansible.builtin.debug:
    msg: "{{ given | hapgent.agent._fleet_problems(hostvars, groups) }}"
"""

RETURN = r"""
_value:
  description: One or two sentences for each problem.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._fleet_preflight import Given, problems
from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import words


def fleet_problems(
    given: t.Mapping[str, t.Any],
    hostvars: t.Mapping[str, t.Mapping[str, t.Any]],
    groups: t.Mapping[str, t.Sequence[str]],
) -> list[str]:
    """See DOCUMENTATION."""
    there = [hostvars[host] for host in given["balancers"]]
    names = sorted({name for variables in there for name in variables})
    own = [word for variables in there for word in words(variables.get("hapgent_own_variables", []))]
    return problems(t.cast(Given, {**given, "names_there": names, "own_there": own}), groups)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_fleet_problems": fleet_problems}
