# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _host_problems
short_description: Find reasons why the role cannot work on a host
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
  manage_user:
    description: Whether the role creates missing accounts.
    type: bool
    default: false
  uninstall:
    description: Whether the role uninstalls the agent. If so, what an agent needs to run is not checked.
    type: bool
    default: false
  service_manager:
    description: The variable C(hapgent_service_manager).
    type: str
    default: auto
"""

EXAMPLES = r"""
- name: Show the problems
  ansible.builtin.debug:
    msg: "{{ hapgent__host | hapgent.agent._host_problems(hapgent__instances) }}"
"""

RETURN = r"""
_value:
  description: A sentence for each problem.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _preflight


def host_problems(
    host: t.Mapping[str, t.Any],
    described: t.Sequence[t.Mapping[str, t.Any]],
    manage_user: bool = False,
    uninstall: bool = False,
    service_manager: str = "auto",
) -> list[str]:
    """See DOCUMENTATION."""
    return _preflight.host_problems(host, described, manage_user, uninstall, service_manager)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_host_problems": host_problems}
