# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: haproxy_servers
short_description: Write the server lines of HAProxy for hosts of the inventory
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - Returns a C(server) line with C(agent-check) for each host, for a template of C(haproxy.cfg).
  - The name of the server is the host's C(hapgent_server), or its name in the inventory, so it is the name that the
    playbooks of this collection look for in HAProxy.
  - A host can override most options with the dictionary C(hapgent_haproxy_server) in its variables. Its keys are
    C(address), O(port), O(weight), O(check), O(inter), O(agent_port), C(agent_addr), O(agent_inter), O(cookie) and
    O(options). Its key C(services) is a dictionary with such a dictionary for each service, which is merged with the
    rest.
  - Each value is checked, so that nothing in the variables of a host except O(options) can add a keyword to its line,
    and nothing can add another line. An invalid value is an error that names the host.
  - Only keywords that all versions since HAProxy 2.2 have are used. Add others with O(options) or with
    C(default-server).
notes:
  - The filter does not see variables of plays and parameters of roles, because they are not in C(hostvars). Set them in
    the inventory, or give the filter the corresponding option.
  - The filter runs on the control node and does not run HAProxy. Let C(ansible.builtin.template) check the result with
    C(validate).
positional: hostvars
options:
  _input:
    description:
      - The names of the hosts, such as C(groups['web']).
    type: list
    elements: str
    required: true
  hostvars:
    description:
      - The variable C(hostvars).
    type: dict
    required: true
  service:
    description:
      - The service of the backend, if the hosts have several instances of the agent. It is the C(name) of an entry in
        C(hapgent_instances), or the name of its systemd service, such as V(hapgent@shop).
      - It selects the port of the agent, the entry of C(hapgent_server) if that is a dictionary with a name for each
        service, and the entry of C(services) in C(hapgent_haproxy_server).
    type: str
    default: hapgent
  address_variable:
    description:
      - The variable of each host that contains the address of its server, such as V(private_ip) or
        V(ansible_facts.default_ipv4.address).
      - By default, the address is C(ansible_host), or the host's name if that is not set.
    type: str
  port:
    description:
      - The port of the service. Without O(service), the default is the host's C(hapgent_server_port).
    type: int
  weight:
    description:
      - The weight, V(0) to V(256). The weight of an agent is a percentage of it.
      - With V(none), the line has no weight. HAProxy then uses that of C(default-server), or 1, of which every
        percentage below 100 is 0.
    type: int
    default: 100
  check:
    description:
      - Whether HAProxy also checks the health of the service.
    type: bool
    default: true
  inter:
    description:
      - The interval of the health checks, with its unit, such as V(2s). By default, it is left to C(default-server).
    type: str
  agent_port:
    description:
      - The port of the agent. The default is the port of the host's instance in C(hapgent_instances), or its
        C(hapgent_port), or V(9777).
      - If the agent listens on one address only, C(hapgent_ip) or that of its instance, and that is not the address of
        the server, the line has C(agent-addr) too. This is not so if O(agent_port) is set.
    type: int
  agent_inter:
    description:
      - How often HAProxy polls the agent, with its unit. A change of state takes this long to arrive.
      - With V(none), it is left to C(default-server).
    type: str
    default: 2s
  cookie:
    description:
      - Whether each line has a C(cookie) with the name of the server as its value. The backend needs a C(cookie)
        keyword too. A host can set another value.
    type: bool
    default: false
  options:
    description:
      - More keywords for the end of each line, such as V(ssl verify required ca-file /etc/ssl/certs/ca.pem). Those of a
        host are added after them. They must not contain C(#) or a backslash.
    type: str
    default: ""
seealso:
  - plugin: ansible.builtin.template
    plugin_type: module
"""

EXAMPLES = r"""
- name: Write the configuration of HAProxy
  ansible.builtin.copy:
    dest: /etc/haproxy/haproxy.cfg
    mode: "0644"
    validate: haproxy -c -f %s
    content: |
      defaults
          mode http
          timeout connect 2s
          timeout client 30s
          timeout server 30s

      frontend users
          bind :80
          default_backend web

      backend web
          option httpchk GET /health
          default-server check inter 2s rise 2 fall 3 agent-check
      {% for line in groups['web'] | hapgent.agent.haproxy_servers(hostvars, port=8080) %}
          {{ line }}
      {% endfor %}

- name: Show the server lines of one of several services on the hosts
  ansible.builtin.debug:
    msg: "{{ groups['web'] | hapgent.agent.haproxy_servers(hostvars, service='shop', port=8081, cookie=true) }}"
"""

RETURN = r"""
_value:
  description: A line for each host, in the order of the hosts, without indentation.
  type: list
  elements: str
  sample:
    - server web1 192.0.2.1:8080 check agent-check agent-port 9777 agent-inter 2s weight 100
    - server web2 192.0.2.2:8080 check agent-check agent-port 9777 agent-inter 2s weight 50 backup
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.hapgent.agent.plugins.plugin_utils._haproxy_servers import Options, ServerError, server_lines


def haproxy_servers(
    hosts: t.Iterable[str], hostvars: t.Mapping[str, t.Mapping[str, t.Any]], **options: t.Any
) -> list[str]:
    """See DOCUMENTATION."""
    try:
        return server_lines(hosts, hostvars, Options(**options))
    except TypeError as error:
        unknown = sorted({*options} - {*Options._fields})
        if not unknown:
            raise
        raise AnsibleFilterError(f"haproxy_servers has no option {', '.join(unknown)}.") from error
    except ServerError as error:
        raise AnsibleFilterError(f"haproxy_servers: {error}") from error


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"haproxy_servers": haproxy_servers}
