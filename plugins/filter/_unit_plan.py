# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _unit_plan
short_description: List the units or init scripts to stop, start and restart
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This filter is B(private) to the collection. It can have breaking changes at any time.
positional: described, changed, new_program, check_mode
options:
  _input:
    description: What M(hapgent.agent.hapgent_host_info) has returned.
    type: dict
    required: true
  described:
    description: The instances, as the filter C(_instances) returns them.
    type: list
    elements: dict
    required: true
  changed:
    description: The services of which a unit or the init script was changed.
    type: list
    elements: str
    required: true
  new_program:
    description: Whether the program was changed.
    type: bool
    required: true
  check_mode:
    description: Whether the role runs in check mode.
    type: bool
    required: true
"""

EXAMPLES = r"""
- name: Show the units to start
  ansible.builtin.debug:
    msg: "{{ (hapgent__host | hapgent.agent._unit_plan(hapgent__instances, [], false, false)).start }}"
"""

RETURN = r"""
_value:
  description:
    - The units to C(stop), C(start) and C(restart), and whether systemd must C(reload) the units before; on a host that
      sysvinit runs, the init scripts.
  type: dict
"""

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _host_plan


def unit_plan(
    host: _host_plan.Host,
    described: t.Sequence[_host_plan.Instance],
    changed: t.Collection[str],
    new_program: bool,
    check_mode: bool,
) -> _host_plan.Units:
    """See DOCUMENTATION."""
    plan = _host_plan.scripts if host["service_manager"] == "sysv" else _host_plan.units
    return plan(host, described, changed, new_program, check_mode)


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_unit_plan": unit_plan}
