# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _parents
short_description: List the folders above the folder of a state file
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This filter is B(private) to the collection. It can have breaking changes at any time.
options:
  _input:
    description: The path of the state file.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Show /, /var and /var/lib
  ansible.builtin.debug:
    msg: "{{ '/var/lib/hapgent/state.json' | hapgent.agent._parents }}"
"""

RETURN = r"""
_value:
  description: The paths of the folders, starting with C(/).
  type: list
  elements: path
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._preflight import parents


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_parents": parents}
