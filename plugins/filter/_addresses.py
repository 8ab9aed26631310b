# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _addresses
short_description: Map source addresses to names of load balancers
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
options:
  _input:
    description: "Lists of three items: the name of a host, its C(ansible_host) and its C(hapgent_source_addresses)."
    type: list
    elements: list
    required: true
"""

EXAMPLES = r"""
- name: Show the source addresses of lb1
  ansible.builtin.debug:
    msg: "{{ [['lb1', '198.51.100.11', []]] | hapgent.agent._addresses }}"
"""

RETURN = r"""
_value:
  description: The names of the load balancers, by address.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import addresses


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_addresses": addresses}
