# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _refusals
short_description: Report why hosts must stay in rotation
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
options:
  _input:
    description:
      - The hosts to take out of rotation at the same time, each with C(host), C(server), C(min_up), C(asked) and
        C(agents).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Fail if too few servers would stay in rotation
  ansible.builtin.assert:
    that: not views | hapgent.agent._refusals
  vars:
    views:
      - {host: web1, server: web1, min_up: 75%, asked: "{{ asked.results }}", agents: []}
"""

RETURN = r"""
_value:
  description: The reasons, without duplicates. Empty if the hosts may be taken out of rotation.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.hapgent.agent.plugins.plugin_utils import _fleet


def refusals(views: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """Return why these hosts must stay in rotation. Raises AnsibleFilterError."""
    try:
        return _fleet.refusals(views)
    except _fleet.FleetError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_refusals": refusals}
