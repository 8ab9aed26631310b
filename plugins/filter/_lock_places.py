# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _lock_places
short_description: List the hosts that have the lock of a fleet
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: hosts
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  hosts:
    description: The hosts to drain. Those whose variables have not been checked are left out.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show where the lock of web1 is
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._lock_places(['web1']) }}"
"""

RETURN = r"""
_value:
  description: The hosts, in the order in which every run takes the lock.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._locking import places


def lock_places(hostvars: _recorded.Hostvars, hosts: t.Iterable[str]) -> list[str]:
    """See DOCUMENTATION."""
    hostvars = _recorded.read_once(hostvars)
    found: set[str] = set()
    for host in hosts:
        if "services" in hostvars[host].get("hapgent__settings", {}):
            settings = _recorded.settings(hostvars, host)
            found.update(places(settings["load_balancers"], settings["fleet"], host))
    return sorted(found)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_lock_places": lock_places}
