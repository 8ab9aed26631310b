# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: _services
short_description: List the agents of a host that a playbook works on
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - For the role of this collection only. It may change at any time.
options:
  _input:
    description:
      - The values of the variables C(hapgent_services), C(hapgent_service), C(hapgent_state_file), C(hapgent_server)
        and C(hapgent_backend), without the prefix.
    type: dict
    required: true
  found:
    description: The services that run an agent on the host, if they are known.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show the agents
  ansible.builtin.debug:
    msg: "{{ variables | hapgent.agent._services(['hapgent@shop']) }}"
"""

RETURN = r"""
_value:
  description:
    - The agents, with the keys of C(Service) in C(_services.py).
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import Service, ServicesError, Variables, services


def services_of(variables: t.Mapping[str, t.Any], found: t.Sequence[str]) -> list[Service]:
    """See DOCUMENTATION. Raises AnsibleFilterError."""
    try:
        return services(Variables(**variables), found)
    except ServicesError as error:
        raise AnsibleFilterError(f"{error}. Nothing was changed.") from error


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"_services": services_of}
