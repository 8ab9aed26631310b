# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _rolling_host_check
short_description: Determine the progress of one host in a rolling update
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
    description: The reason of the rolling update.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show whether web1 is done
  ansible.builtin.debug:
    msg: "{{ (hostvars | hapgent.agent._rolling_host_check('web1', 'release 4.2')).done }}"
"""

RETURN = r"""
_value:
  description:
    - C(done) is whether an earlier run has updated the host, C(begun) whether it has drained the host, C(kept_out) what
      else keeps the host out of rotation, and C(problem) why its state is unknown. C(host) is its name.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._rolling import HostCheck, host_check


def rolling_host_check(hostvars: _recorded.Hostvars, host: str, reason: str) -> HostCheck:
    """See DOCUMENTATION."""
    hostvars = _recorded.read_once(hostvars)
    return host_check(
        host, _recorded.agents(hostvars, host), reason, lambda service: _recorded.asked(hostvars, host, service)
    )


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_rolling_host_check": rolling_host_check}
