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
positional: hostvars
options:
  _input:
    description: The wait, as the filter C(_wait) returns it.
    type: dict
    required: true
  hostvars:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show which servers have sessions left
  ansible.builtin.debug:
    msg: "{{ (wait | hapgent.agent._wait_for_sessions(hostvars)).queries }}"
"""

RETURN = r"""
_value:
  description: The wait, with the keys of C(Wait) in C(_waiting.py).
  type: dict
"""

import time
import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded, _waiting


def wait_for_sessions(wait: _waiting.Wait, hostvars: _recorded.Hostvars) -> _waiting.Wait:
    """See DOCUMENTATION."""
    graces = {host: float(_recorded.settings(hostvars, host)["grace"]) for host in wait["hosts"]}
    return _waiting.for_sessions(wait, graces, time.time())


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_wait_for_sessions": wait_for_sessions}
