# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _wait_for_sessions
short_description: Continue to wait until sessions end
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: hostvars, step
options:
  _input:
    description: The wait, as the filter C(_wait) returns it.
    type: dict
    required: true
  hostvars:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  step:
    description: V(drain) to wait for the grace period of each host, or V(cut) for the hosts whose sessions are cut.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show which servers have sessions left
  ansible.builtin.debug:
    msg: "{{ (wait | hapgent.agent._wait_for_sessions(hostvars, 'drain')).queries }}"
"""

RETURN = r"""
_value:
  description: The wait, with the keys of C(Wait) in C(_waiting.py).
  type: dict
"""

import time
import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded, _waiting


def wait_for_sessions(wait: _waiting.Wait, hostvars: _recorded.Hostvars, step: str) -> _waiting.Wait:
    """See DOCUMENTATION."""
    if step == "cut":
        changed = {host: found for host in wait["hosts"] if (found := _recorded.changed(hostvars, host, step))}
        return _waiting.for_sessions(wait, {host: found["timeout"] for host, found in changed.items()}, time.time())
    settings = {host: _recorded.settings(hostvars, host) for host in wait["hosts"]}
    graces = {host: float(found["grace"]) for host, found in settings.items()}
    max_sessions = min((int(found["max_sessions"]) for found in settings.values()), default=0)
    return _waiting.for_sessions(wait, graces, time.time(), max_sessions=max_sessions)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_wait_for_sessions": wait_for_sessions}
