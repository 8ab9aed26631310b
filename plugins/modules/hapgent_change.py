# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hapgent_change
short_description: Change the states of all agents of a host together
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This module is B(private) to the collection. It can have breaking changes at any time.
  - Runs M(hapgent.agent.hapgent_state) for each agent of the host, and waits until every load balancer has received the
    states, except those that are excluded. All states are changed before one is waited for.
  - Fails if a state is no longer what the plan expects. What was changed is then reported.
  - It does in one task what would otherwise need several, because each task takes time on every host.
extends_documentation_fragment:
  - hapgent.agent._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: all
    support: full
options:
  plan:
    description: The C(changes), and the C(refusal), with which the task fails if it is not empty. See C(_drain.py).
    type: dict
    required: true
  step:
    description: What the change is for. What waits for the load balancers afterwards compares it.
    type: str
    required: true
  wait_for:
    description: The load balancers to wait for. See O(hapgent.agent.hapgent_state#module:wait_for).
    type: raw
    required: true
  wait_timeout:
    description: Seconds to wait for all agents together.
    type: float
    required: true
  excluded:
    description: The names of load balancers that are not waited for.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Wait until every load balancer has received the state
  hapgent.agent.hapgent_change:
    plan:
      changes: "{{ hapgent__settings.services | hapgent.agent._unchanged }}"
      refusal: ""
    step: wait
    wait_for: auto
    wait_timeout: 60
    excluded: []
"""

RETURN = r"""
step:
  description: The option O(step).
  returned: always
  type: str
  sample: drain
began:
  description: When the task has begun, as a Unix time. After the step V(cut), when the one before that has.
  returned: always
  type: float
  sample: 1764244933.5
timeout:
  description: The option O(wait_timeout), which also limits the wait for what load balancers do with the states.
  returned: always
  type: float
  sample: 60.0
reported:
  description: The statuses that the agents now report.
  returned: always
  type: str
  sample: DRAIN
services:
  description: The services of the agents.
  returned: always
  type: list
  elements: str
  sample: [hapgent]
messages:
  description: A line for each agent that was changed, which the callback P(hapgent.agent.concise#callback) shows.
  returned: always
  type: list
  elements: str
  sample: ["web7: DRAIN UP # kernel upgrade (was UP), received by 2 load balancers"]
results:
  description: What M(hapgent.agent.hapgent_state) has returned for each agent.
  returned: always
  type: list
  elements: dict
  sample: []
"""
