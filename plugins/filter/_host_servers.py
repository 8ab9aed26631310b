# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _host_servers
short_description: Find the servers of a host on its load balancers
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
- name: Show the servers
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._host_servers('web7') }}"
"""

RETURN = r"""
_value:
  description:
    - C(refusal) is why they cannot be determined. C(titles) has the servers, as C(backend/server), by load balancer and
      by service.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _balancers, _recorded


def host_servers(hostvars: _recorded.Hostvars, host: str) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    hostvars = _recorded.read_once(hostvars)
    settings = _recorded.settings(hostvars, host)
    titles: dict[str, dict[str, list[str]]] = {name: {} for name in settings["load_balancers"]}
    problems = []
    for service in settings["services"]:
        asked = _recorded.asked(hostvars, host, service)
        unanswered = _balancers.query_problems(asked, settings["load_balancer_pattern"])
        if unanswered:
            problems = [unanswered]
            break
        problems.append(_balancers.server_problems(asked, service["server"], service["backends"]))
        for result in asked:
            titles[_balancers.name_of(result)][service["service"]] = [
                f"{row['backend']}/{row['server']}" for row in result["servers"] if row["server"] == service["server"]
            ]
    refusal = " ".join(problem for problem in dict.fromkeys(problems) if problem)
    return {"refusal": refusal and f"{refusal} Nothing was changed on {host}.", "titles": titles}


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_host_servers": host_servers}
