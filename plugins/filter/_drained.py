# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _drained
short_description: Decide how the drain of a host ends
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: host, changed, when_left, left
options:
  _input:
    description: What the load balancers do with the servers of the host, with the keys of C(Host) in C(_waiting.py).
    type: dict
    required: true
  host:
    description: The host.
    type: str
    required: true
  changed:
    description: The result of M(hapgent.agent.hapgent_change).
    type: dict
    required: true
  when_left:
    description: The value of C(hapgent_after_grace).
    type: str
    required: true
  left:
    description: Which sessions are left. V('') if none are.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Fail if HAProxy still sends new sessions
  ansible.builtin.assert:
    that: not (waited | hapgent.agent._drained('web1', changed, 'go_on', '')).refusal
"""

RETURN = r"""
_value:
  description: The end of the drain, with the keys of C(Drained) in C(_drain.py).
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _drain


def drained(waited: _drain.Fields, host: str, changed: _drain.Fields, when_left: str, left: str) -> _drain.Drained:
    """See DOCUMENTATION."""
    return _drain.drained(host, waited, changed, when_left, left)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_drained": drained}
