# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _unchanged
short_description: Make changes that change nothing, to wait for the current states
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
options:
  _input:
    description: The agents of a host, as the filter C(_services) returns them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the changes
  ansible.builtin.debug:
    msg: "{{ hapgent__settings.services | hapgent.agent._unchanged }}"
"""

RETURN = r"""
_value:
  description: The changes for C(hapgent_state).
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import Change, change
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import Service


def unchanged(services: t.Iterable[Service]) -> list[Change]:
    """See DOCUMENTATION."""
    return [change(service) for service in services]


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_unchanged": unchanged}
