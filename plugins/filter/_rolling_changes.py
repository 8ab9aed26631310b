# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _rolling_changes
short_description: List what a rolling update changes on the agents of a host
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: host, step, reason
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  host:
    description: The host.
    type: str
    required: true
  step:
    description: With V(up) to bring the host back, V(halt) to keep it out, V(finish) to remove the reason.
    type: str
    required: true
  reason:
    description: The reason. V('') means no reason.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the changes
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._rolling_changes('web1', 'up', 'release 4.2') }}"
"""

RETURN = r"""
_value:
  description:
    - The changes for C(hapgent_state).
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded, _rolling
from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import Change


def rolling_changes(hostvars: _recorded.Hostvars, host: str, step: str, reason: str) -> list[Change]:
    """See DOCUMENTATION."""
    return _rolling.changes(step, _recorded.states(hostvars, host), _recorded.notes(hostvars, host, reason))


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_rolling_changes": rolling_changes}
