# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _server_traffic
short_description: Determine what load balancers still do with a server
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
options:
  _input:
    description: The results of M(hapgent.agent.haproxy_server_info), for one server, in a loop over the load balancers.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show which load balancers are pending
  ansible.builtin.debug:
    msg: "{{ (asked.results | hapgent.agent._server_traffic).pending }}"
"""

RETURN = r"""
_value:
  description: What they do, with the keys of C(Traffic) in C(_balancers.py).
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import traffic


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_server_traffic": traffic}
