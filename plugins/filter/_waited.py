# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _waited
short_description: Continue to wait for load balancers
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
positional: results
options:
  _input:
    description: The wait, as the filter C(_wait) returns it.
    type: dict
    required: true
  results:
    description: The results of M(hapgent.agent.haproxy_server_info) for the queries of the wait.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what is waited for
  ansible.builtin.debug:
    msg: "{{ (wait | hapgent.agent._waited(queried.results)).messages }}"
"""

RETURN = r"""
_value:
  description: The wait, with the keys of C(Wait) in C(_waiting.py).
  type: dict
"""

import time
import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded, _waiting


def waited(wait: _waiting.Wait, results: t.Sequence[_recorded.Result]) -> _waiting.Wait:
    """See DOCUMENTATION."""
    return _waiting.proceed(wait, results, time.time())


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_waited": waited}
