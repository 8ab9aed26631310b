# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _rolling_progress
short_description: Determine the progress of a rolling update
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: hosts, plays, reason
options:
  _input:
    description: The variable C(hostvars).
    type: dict
    required: true
  hosts:
    description: All hosts of the rolling update, in their order.
    type: list
    elements: str
    required: true
  plays:
    description: The hosts on which Ansible still runs tasks.
    type: list
    elements: str
    required: true
  reason:
    description: The reason of the rolling update.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the progress
  ansible.builtin.debug:
    msg: >-
      {{ (hostvars | hapgent.agent._rolling_progress(ansible_play_hosts_all, ansible_play_hosts, 'release 4.2'))
         .summary }}
"""

RETURN = r"""
_value:
  description: The progress, with the keys of C(Progress) in C(_rolling.py).
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._rolling import Progress, progress


def rolling_progress(
    hostvars: _recorded.Hostvars, hosts: t.Sequence[str], plays: t.Collection[str], reason: str
) -> Progress:
    """See DOCUMENTATION."""
    turns = {host: _recorded.turn(hostvars, host, plays=host in plays) for host in hosts}
    # All hosts have the limits of the first one.
    return progress(turns, reason, _recorded.limits(hostvars, hosts[0]))


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_rolling_progress": rolling_progress}
