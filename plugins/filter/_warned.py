# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _warned
short_description: Show text as a warning of Ansible
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
options:
  _input:
    description: The text of the warning.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show a text both as the result of a task and as a warning
  ansible.builtin.debug:
    msg: "{{ 'Sessions are left.' | hapgent.agent._warned }}"
"""

RETURN = r"""
_value:
  description: The text as it was shown, printable and of at most 1000 characters.
  type: str
"""

import typing as t

from ansible.utils.display import Display
from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable

MAX_SHOWN = 1000


def warned(text: str) -> str:
    """Show the text as a warning, and return it as shown."""
    shown = printable(text, MAX_SHOWN)
    Display().warning(shown)
    return shown


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_warned": warned}
