# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _query_problems
short_description: Report load balancers that did not return their servers
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: pattern
options:
  _input:
    description: The results of M(hapgent.agent.haproxy_server_info) in a loop over the load balancers.
    type: list
    elements: dict
    required: true
  pattern:
    description:
      - The host pattern that selects the load balancers. V('') means that it is not known, for example because hosts
        have different load balancers.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Fail if a load balancer cannot be queried
  ansible.builtin.assert:
    that: not asked.results | hapgent.agent._query_problems('lb')
"""

RETURN = r"""
_value:
  description: The report, with advice. Empty if all load balancers returned their servers.
  type: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import query_problems


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_query_problems": query_problems}
