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
  - Reads C(ansible_host) and C(hapgent_source_addresses) of the load balancers.
positional: hosts
options:
  _input:
    description: The variable C(hostvars).
    type: dict
    required: true
  hosts:
    description: The load balancers.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show the source addresses of lb1
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._addresses(['lb1']) }}"
"""

RETURN = r"""
_value:
  description: The names of the load balancers, by address.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import addresses


def addresses_of(hostvars: t.Mapping[str, t.Mapping[str, t.Any]], hosts: t.Iterable[str]) -> dict[str, str]:
    """See DOCUMENTATION."""
    return addresses(
        (host, hostvars[host].get("ansible_host", ""), hostvars[host].get("hapgent_source_addresses", []))
        for host in hosts
    )


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_addresses": addresses_of}
