# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _host_variable_problems
short_description: Find variables of the role that have an invalid value
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This filter is B(private) to the collection. It can have breaking changes at any time.
positional: listed, shipped
options:
  _input:
    description: The variables of the role, by name.
    type: dict
    required: true
  listed:
    description: The variable C(hapgent_instances).
    type: list
    elements: dict
    required: true
  shipped:
    description: The C(version), C(checksum) and C(original_checksum) of the agent that the role installs.
    type: dict
    required: true
  uninstall:
    description: Whether the role uninstalls the agent. If so, variables that only affect installation are not checked.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show the problems
  ansible.builtin.debug:
    msg: "{{ hapgent__variables | hapgent.agent._host_variable_problems(hapgent_instances, hapgent__shipped) }}"
"""

RETURN = r"""
_value:
  description: A sentence for each problem.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _preflight


def host_variable_problems(
    variables: t.Mapping[str, t.Any],
    listed: t.Sequence[t.Mapping[str, t.Any]] | None,
    shipped: t.Mapping[str, t.Any],
    uninstall: bool = False,
) -> list[str]:
    """See DOCUMENTATION."""
    return _preflight.variable_problems(variables, listed or [], _preflight.Shipped(**shipped), uninstall)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_host_variable_problems": host_variable_problems}
