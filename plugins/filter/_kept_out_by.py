# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _kept_out_by
short_description: Report what else keeps a server out of rotation
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
  - The agent keeps a server out of rotation if it reports a status other than C(UP) and C(READY), or the weight 0,
    unless it reports C(DRAIN) with the given reason.
  - HAProxy keeps a server out of rotation if it was set to drain or maintenance manually or in the configuration.
    While the agent reports C(DRAIN) with the given reason, a drain in HAProxy is attributed to the agent.
  - A server that is only down is not considered to be kept out.
positional: host, reason, in_haproxy
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
    description: Your own reason. An agent that reports C(DRAIN) with this reason is not reported.
    type: str
    required: true
  in_haproxy:
    description: Whether to also report a server that HAProxy keeps out of rotation.
    type: bool
    required: true
"""

EXAMPLES = r"""
- name: Read the state
  hapgent.agent.hapgent_state:
  check_mode: true
  loop: [hapgent]
  register: states

- name: Work on the server unless something else keeps it out of rotation
  ansible.builtin.import_tasks: work.yml
  when: not hostvars | hapgent.agent._kept_out_by('web1', 'release 4.2', false)
"""

RETURN = r"""
_value:
  description: What else keeps a server of the host out of rotation. Empty if nothing does.
  type: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded, _rolling


def kept_out_by(hostvars: _recorded.Hostvars, host: str, reason: str, in_haproxy: bool) -> str:
    """See DOCUMENTATION."""
    return _rolling.kept_out_host(
        _recorded.states(hostvars, host),
        reason,
        lambda service: _recorded.asked(hostvars, host, service) if in_haproxy else [],
    )


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_kept_out_by": kept_out_by}
