# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _after_grace
short_description: Plan the changes of a host that has sessions left
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: host, step
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
    description: V(cut) to have HAProxy end the sessions, V(drain) to go on after that, or V(put_back).
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show what is changed
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._after_grace('web1', 'cut') }}"
"""

RETURN = r"""
_value:
  description: The changes, each with the options of M(hapgent.agent.hapgent_state).
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _drain, _recorded


def after_grace(hostvars: _recorded.Hostvars, host: str, step: str) -> list[_drain.Change]:
    """See DOCUMENTATION."""
    before = {service["service"]: state for service, state in _recorded.states(hostvars, host)}
    return _drain.after_grace(step, _recorded.changed_states(hostvars, host), before)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_after_grace": after_grace}
