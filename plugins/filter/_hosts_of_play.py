# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _hosts_of_play
short_description: Check which hosts a play runs on
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role and the playbooks of this collection only. It may change at any time.
positional: groups, limit, changes
options:
  _input:
    description: The variable C(hapgent_hosts), or V('') if it is not set.
    type: raw
    required: true
  groups:
    description: The hosts of each group of the inventory, as in the variable C(groups).
    type: dict
    required: true
  limit:
    description: The value of C(--limit).
    type: str
  changes:
    description: What the play would do to all hosts if no hosts are named, such as V(drain). V('') if it does no harm.
    type: str
"""

EXAMPLES = r"""
hosts: "{{ hapgent_hosts | default('') | hapgent.agent._hosts_of_play(groups, ansible_limit | default('')) }}"
"""

RETURN = r"""
_value:
  description: The host pattern of the play.
  type: str
"""

import typing as t

from ansible import context
from ansible.errors import AnsibleFilterError
from ansible_collections.hapgent.agent.plugins.plugin_utils import _variables


def hosts_of_play(wanted: t.Any, *arguments: t.Any) -> str:
    """See the documentation above."""
    if context.CLIARGS.get("syntax"):
        # With --syntax-check nothing runs, and there may be no inventory.
        return "all"
    try:
        return _variables.hosts_of_play(wanted, *arguments)
    except _variables.VariableError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_hosts_of_play": hosts_of_play}
