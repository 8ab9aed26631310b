# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _serial
short_description: Validate the batch sizes of a play
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role and the playbooks of this collection only. It may change at any time.
options:
  _input:
    description: The variable C(hapgent_serial).
    type: raw
    required: true
"""

EXAMPLES = r"""
serial: "{{ [1, '25%'] | hapgent.agent._serial }}"
"""

RETURN = r"""
_value:
  description: The batch sizes.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.hapgent.agent.plugins.plugin_utils import _variables


def serial(*arguments: t.Any) -> t.Any:
    """See the documentation above."""
    try:
        return _variables.serial(*arguments)
    except _variables.VariableError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_serial": serial}
