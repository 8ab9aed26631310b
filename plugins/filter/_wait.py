# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _wait
short_description: Begin to wait for load balancers
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
  - Waits for the hosts whose agents were changed for this step and that have load balancers.
positional: hosts, step
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  hosts:
    description: The hosts.
    type: list
    elements: str
    required: true
  step:
    description: The step, V(drain) or V(undrain), whose changes are waited for.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show which servers to query
  ansible.builtin.debug:
    msg: "{{ (hostvars | hapgent.agent._wait(['web1'], 'drain')).queries }}"
"""

RETURN = r"""
_value:
  description: The wait, with the keys of C(Wait) in C(_waiting.py).
  type: dict
"""

import time
import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded, _waiting

# While sessions may be left, only new ones are waited for.
UNTIL = {"drain": ("drained", 1000000000), "undrain": ("up", 0)}
OUTCOME = {"drain": "{host} stays in {reported}.", "undrain": "The agent of {host} reports {reported}."}


def wait(hostvars: _recorded.Hostvars, hosts: t.Iterable[str], step: str) -> _waiting.Wait:
    """See DOCUMENTATION."""
    hostvars = _recorded.read_once(hostvars)
    until, max_sessions = UNTIL[step]
    changed = {host: found for host in hosts if (found := _recorded.changed(hostvars, host, step))}
    waited = {host: _host(hostvars, host, found) for host, found in changed.items()}
    return _waiting.begin(until, waited, time.time(), max_sessions=max_sessions)


def _host(hostvars: _recorded.Hostvars, host: str, changed: _recorded.Changed) -> _waiting.Host:
    return _waiting.host(
        _recorded.titles(hostvars, host),
        changed["services"],
        # This wait has the whole time again, however long the agents of all hosts have waited for polls.
        time.time() + changed["timeout"],
        OUTCOME[changed["step"]].format(host=host, reported=changed["reported"]),
        _recorded.settings(hostvars, host)["load_balancer_pattern"],
    )


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_wait": wait}
