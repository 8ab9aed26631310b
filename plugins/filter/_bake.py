# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _bake
short_description: Begin to watch hosts that are about to come back into rotation
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
    description: The hosts.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show which servers to watch
  ansible.builtin.debug:
    msg: "{{ (hostvars | hapgent.agent._bake(['web1'])).queries }}"
"""

RETURN = r"""
_value:
  description: The bake, with the keys of C(Bake) in C(_bake.py).
  type: dict
"""

import time
import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _bake, _recorded


def bake(hostvars: _recorded.Hostvars, hosts: t.Sequence[str]) -> _bake.Bake:
    """See DOCUMENTATION."""
    hostvars = _recorded.read_once(hostvars)
    return _bake.begin(
        {host: _host(hostvars, host) for host in hosts}, _recorded.asked_by_all(hostvars, hosts), time.time()
    )


def _host(hostvars: _recorded.Hostvars, host: str) -> _bake.Host:
    settings = _recorded.settings(hostvars, host)
    return _bake.host(
        _recorded.titles(hostvars, host),
        float(settings["bake"]),
        int(settings["bake_errors"]),
        settings["load_balancer_pattern"],
    )


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_bake": bake}
