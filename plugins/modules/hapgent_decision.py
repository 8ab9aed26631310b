# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hapgent_decision
short_description: Record a decision, or fail if it is a refusal
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This module is B(private) to the collection. It can have breaking changes at any time.
  - It does in one task what would otherwise need C(assert) and C(set_fact), because each task takes time on every host.
  - It runs on the control node.
extends_documentation_fragment:
  - hapgent.agent._attributes
  - hapgent.agent._attributes.info_module
attributes:
  platform:
    platforms: all
    support: full
options:
  decision:
    description: The decision. If its key C(refusal) is a text and not empty, the task fails with that text.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Decide whether the server may be drained
  hapgent.agent.hapgent_decision:
    decision:
      refusal: "{{ 'Maintenance is not possible before 22:00.' if now().hour < 22 else '' }}"
      reason: kernel upgrade
  register: plan

- name: Show the decision
  ansible.builtin.debug:
    msg: "{{ plan.reason }}"
"""

RETURN = r"""
refusal:
  description: Empty. The other keys of O(decision) are returned too.
  returned: if O(decision) has this key
  type: str
  sample: ""
"""
