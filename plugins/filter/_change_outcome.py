# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _change_outcome
short_description: Report why a change of state did not take effect on all agents of a host
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: host, results, excluded
options:
  _input:
    description: The variable C(hostvars), with what the tasks of the role have recorded.
    type: dict
    required: true
  host:
    description: The host.
    type: str
    required: true
  results:
    description: The results of M(hapgent.agent.hapgent_state) in a loop over changes.
    type: list
    elements: dict
    required: true
  excluded:
    description: The load balancers that are left out.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show the outcome
  ansible.builtin.debug:
    msg: "{{ hostvars | hapgent.agent._change_outcome('web7', change.results, []) }}"
"""

RETURN = r"""
_value:
  description:
    - C(refusal) is why the change did not take effect, V('') if it did. C(reported) has the statuses that the agents
      report.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.filter._addresses import addresses_of
from ansible_collections.hapgent.agent.plugins.plugin_utils import _balancers, _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import titled


def change_outcome(
    hostvars: _recorded.Hostvars, host: str, results: t.Iterable[_recorded.Result], excluded: t.Sequence[str]
) -> _balancers.ChangeOutcome:
    """See DOCUMENTATION."""
    settings = _recorded.settings(hostvars, host)
    titles = [(titled(host, _balancers.item_of(result)), result) for result in results]
    known = addresses_of(hostvars, [*settings["load_balancers"], *excluded])
    return _balancers.change_outcome(titles, known, excluded, settings["load_balancer_pattern"])


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_change_outcome": change_outcome}
