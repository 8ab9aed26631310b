# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _listens
short_description: Return the address of the socket of an instance
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This filter is B(private) to the collection. It can have breaking changes at any time.
options:
  _input:
    description: An instance, as the filter C(_instances) returns it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the address
  ansible.builtin.debug:
    msg: "{{ hapgent__instances | map('hapgent.agent._listens') | list }}"
"""

RETURN = r"""
_value:
  description: The address and the port, as in a socket unit.
  type: str
  sample: 0.0.0.0:9777
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _host_plan


def listens(instance: _host_plan.Instance) -> str:
    """See DOCUMENTATION."""
    return _host_plan.listens(instance)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_listens": listens}
