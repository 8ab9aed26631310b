# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _server_problems
short_description: Report the load balancers that do not list a server
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: server, backends
options:
  _input:
    description: The results of M(hapgent.agent.haproxy_server_info) in a loop over the load balancers.
    type: list
    elements: dict
    required: true
  server:
    description: The name of the server in HAProxy.
    type: str
    required: true
  backends:
    description: The backends that were queried. An empty list means all backends.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Check that each load balancer has the server
  ansible.builtin.assert:
    that: not asked.results | hapgent.agent._server_problems('web1', [])
"""

RETURN = r"""
_value:
  description: The report, with advice. Empty if all load balancers list the server.
  type: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import server_problems


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_server_problems": server_problems}
