# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _accounts
short_description: List the accounts to create or to remove
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This filter is B(private) to the collection. It can have breaking changes at any time.
options:
  _input:
    description: What M(hapgent.agent.hapgent_host_info) has returned.
    type: dict
    required: true
  uninstall:
    description: Whether the role uninstalls the agent.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show the accounts to create
  ansible.builtin.debug:
    msg: "{{ hapgent__host | hapgent.agent._accounts }}"
"""

RETURN = r"""
_value:
  description: The C(groups), and the C(users) with C(name), C(group) and C(comment).
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _host_plan


def accounts(host: _host_plan.Host, uninstall: bool = False) -> _host_plan.Accounts:
    """See DOCUMENTATION."""
    return _host_plan.removable_accounts(host) if uninstall else _host_plan.missing_accounts(host)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_accounts": accounts}
