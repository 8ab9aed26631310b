# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _instances
short_description: List the instances that the variables of the role describe
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This filter is B(private) to the collection. It can have breaking changes at any time.
positional: listed
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
"""

EXAMPLES = r"""
- name: Show the instances
  ansible.builtin.debug:
    msg: "{{ hapgent__variables | hapgent.agent._instances(hapgent_instances) }}"
"""

RETURN = r"""
_value:
  description: The instances, with C(name), C(service) and the values of their variables without the prefix.
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _instances


def instances(
    variables: t.Mapping[str, t.Any], listed: t.Sequence[t.Mapping[str, t.Any]] | None
) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    return _instances.instances(variables, listed or [])


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_instances": instances}
