# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _server_problems
short_description: Report the load balancers that did not answer or do not list a server
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: host
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  host:
    description: The host.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Check that each load balancer has the server
  ansible.builtin.assert:
    that: not hostvars | hapgent.agent._server_problems(inventory_hostname)
"""

RETURN = r"""
_value:
  description: The report, with advice. Empty if all load balancers list the server.
  type: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _balancers, _recorded


def server_problems(hostvars: _recorded.Hostvars, host: str) -> str:
    """See DOCUMENTATION."""
    asked, settings = _recorded.asked(hostvars, host), _recorded.settings(hostvars, host)
    return _balancers.query_problems(asked, settings["load_balancer_pattern"]) or _balancers.server_problems(
        asked, settings["server"], settings["backends"]
    )


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_server_problems": server_problems}
