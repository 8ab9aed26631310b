# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _changes_to_await
short_description: Replace changes that have been made by waiting for them
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: made
options:
  _input:
    description: The changes.
    type: list
    elements: dict
    required: true
  made:
    description: The results of the changes that were made without waiting, in the same order. Empty if none was.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the changes
  ansible.builtin.debug:
    msg: "{{ changes | hapgent.agent._changes_to_await([]) }}"
"""

RETURN = r"""
_value:
  description: The changes for C(hapgent_state).
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._drain import Change, to_await


def changes_to_await(changes: t.Sequence[Change], made: t.Sequence[t.Mapping[str, t.Any]]) -> list[Change]:
    """See DOCUMENTATION."""
    return [to_await(change, result) for change, result in zip(changes, made)] if made else [*changes]


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_changes_to_await": changes_to_await}
