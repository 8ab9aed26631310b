# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _unknown_variables
short_description: Find variables that the collection does not have
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role and the playbooks of this collection only. It may change at any time.
positional: own
options:
  _input:
    description: Names of the variables to check.
    type: list
    elements: str
    required: true
  own:
    description: Names that begin with C(hapgent_) but do not belong to the collection.
    type: list
    elements: str
"""

EXAMPLES = r"""
problems: "{{ query('ansible.builtin.varnames', '^hapgent_') | hapgent.agent._unknown_variables([]) }}"
"""

RETURN = r"""
_value:
  description: A sentence for each variable that the collection does not have.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import unknown


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_unknown_variables": unknown}
