# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _rolling_is_done
short_description: Check whether a rolling update has updated a host
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: host, reason
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  host:
    description: The host.
    type: str
    required: true
  reason:
    description: The reason. V('') means no reason.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show whether the host is done
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._rolling_is_done('web1', 'release 4.2') }}"
"""

RETURN = r"""
_value:
  description:
    - Whether all agents of the host report C(UP) with this reason.
  type: bool
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded, _rolling


def rolling_is_done(hostvars: _recorded.Hostvars, host: str, reason: str) -> bool:
    """See DOCUMENTATION."""
    return _rolling.is_done(_recorded.states(hostvars, host), reason)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_rolling_is_done": rolling_is_done}
