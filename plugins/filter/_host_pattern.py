# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _host_pattern
short_description: Convert to one host pattern
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role and the playbooks of this collection only. It may change at any time.
options:
  _input:
    description: A pattern, or a list of patterns and hosts.
    type: raw
    required: true
"""

EXAMPLES = r"""
hosts: "{{ groups['lb'] | hapgent.agent._host_pattern }}"
"""

RETURN = r"""
_value:
  description: The pattern, with its parts separated by commas.
  type: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import host_pattern


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_host_pattern": host_pattern}
