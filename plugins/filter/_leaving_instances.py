# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _leaving_instances
short_description: List what to remove of instances that are not described any more
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This filter is B(private) to the collection. It can have breaking changes at any time.
positional: described
options:
  _input:
    description: What M(hapgent.agent.hapgent_host_info) has returned.
    type: dict
    required: true
  described:
    description: The instances, as the filter C(_instances) returns them.
    type: list
    elements: dict
    required: true
  uninstall:
    description: Whether the role uninstalls the agent.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show what leaves
  ansible.builtin.debug:
    msg: "{{ hapgent__host | hapgent.agent._leaving_instances(hapgent__instances) }}"
"""

RETURN = r"""
_value:
  description: The C(units) to remove and the C(state_files) of the instances.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _host_plan


def leaving_instances(
    host: _host_plan.Host, described: t.Sequence[_host_plan.Instance], uninstall: bool = False
) -> _host_plan.Leaving:
    """See DOCUMENTATION."""
    return _host_plan.leaving(host, described, uninstall)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_leaving_instances": leaving_instances}
