# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _lock_outcome
short_description: Decide whether a run has the lock of its fleet
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: hosts, check
options:
  _input:
    description: The results of C(hapgent_lock) in a loop.
    type: list
    elements: dict
    required: true
  hosts:
    description: The hosts that are to be drained.
    type: list
    elements: str
    required: true
  check:
    description: Whether the run is in check mode. Then it has no lock, and only reports who has it.
    type: bool
    required: true
"""

EXAMPLES = r"""
- name: Check that this run has the lock
  hapgent.agent.hapgent_decision:
    decision: "{{ hapgent__first_lock.results | hapgent.agent._lock_outcome(['web1'], false) }}"
"""

RETURN = r"""
_value:
  description: The C(refusal), where to C(release) the lock, and a C(message) for the operator.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils._locking import outcome


def lock_outcome(taken: t.Sequence[t.Mapping[str, t.Any]], hosts: t.Sequence[str], check: bool) -> t.Any:
    """See DOCUMENTATION."""
    return outcome(taken, hosts, check=check)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_lock_outcome": lock_outcome}
