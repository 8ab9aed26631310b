# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _words
short_description: Convert to a list of strings
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role and the playbooks of this collection only. It may change at any time.
options:
  _input:
    description: A list, or a comma-separated string.
    type: raw
    required: true
"""

EXAMPLES = r"""
backends: "{{ 'web, api' | hapgent.agent._words }}"
"""

RETURN = r"""
_value:
  description: The items, as strings.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import words


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_words": words}
