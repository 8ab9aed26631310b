# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _baked
short_description: Continue to watch hosts that are back in rotation
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: results, hostvars
options:
  _input:
    description: The bake, as the filter C(_bake) returns it.
    type: dict
    required: true
  results:
    description: The results of M(hapgent.agent.haproxy_server_info) for the queries of the bake.
    type: list
    elements: dict
    required: true
  hostvars:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what is watched
  ansible.builtin.debug:
    msg: "{{ (bake | hapgent.agent._baked(queried.results, hostvars)).messages }}"
"""

RETURN = r"""
_value:
  description: The bake, with the keys of C(Bake) in C(_bake.py).
  type: dict
"""

import time
import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _bake, _recorded


def baked(bake: _bake.Bake, results: t.Sequence[_recorded.Result], hostvars: _recorded.Hostvars) -> _bake.Bake:
    """See DOCUMENTATION."""
    unhealthy = {host: _recorded.unhealthy(hostvars, host) for host in bake["baking"]}
    return _bake.proceed(bake, results, unhealthy, time.time())


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_baked": baked}
