# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_server_info
short_description: Tell what HAProxy does with its servers, and wait until it does something else
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - Asks the HAProxy on the managed host, or one that can be reached from there, for its servers with their status,
    weight, sessions and checks. Run it on a load balancer, or delegate it to one.
  - With O(wait_until) it asks until all servers that are named are so. Meanwhile HAProxy may be reloaded.
  - Warns of what makes agent checks useless, see RV(agent_check_warnings).
extends_documentation_fragment:
  - hapgent.agent._attributes
  - hapgent.agent._attributes.info_module
attributes:
  platform:
    platforms: posix
    support: full
requirements:
  - Python 3.9 or later on the managed host
  - HAProxy 2.2 or later
options:
  socket:
    description:
      - HAProxy's stats socket, the path of a UNIX socket, or C(host:port).
      - The level C(user) is enough. The address and the algorithm are told from the level C(operator) on.
      - Without it and without O(url), it is V(/run/haproxy/admin.sock).
    type: str
  url:
    description:
      - HAProxy's stats page, C(http) or C(https), in place of a socket. Where C(;csv) is not in it, it is added.
      - The page does not tell all; see what is returned.
      - No proxy is used, also not one of the environment, and no redirect is followed.
      - Must not contain a user or a password. Use O(url_username) and O(url_password).
    type: str
  url_username:
    description:
      - User for O(url), as behind C(stats auth) in HAProxy's configuration.
    type: str
    aliases: [user]
  url_password:
    description:
      - Password for O(url).
    type: str
    aliases: [password]
  ca_path:
    description:
      - PEM file with the CA of O(url), on the managed host. Without it, it is one that the managed host trusts.
    type: path
  validate_certs:
    description:
      - Whether the certificate of O(url) has to be valid.
    type: bool
    default: true
  backend:
    description:
      - The backends to tell of. Without it, all. Each has to exist.
    type: list
    elements: str
    default: []
  server:
    description:
      - The names of the servers to tell of. Without it, all. Each has to exist.
      - A server that is in several backends is told of in each, and each has to be as O(wait_until) says.
    type: list
    elements: str
    default: []
  wait_until:
    description:
      - What to wait for.
      - V(drained) is a server that takes no new sessions, and has at most O(max_sessions) left, including those in its
        queue. It is in drain or in maintenance, or it is down, or its weight is 0. Sessions of a server that is down or
        in maintenance go on until they end or HAProxy's timeouts are over, so they are waited for too.
      - V(up) is a server that takes new sessions. It is up or has no health check, its weight is not 0, and if it has
        an agent check, its agent was asked since HAProxy was started or reloaded.
      - V(down) is a server with a status C(DOWN), V(maint) one with C(MAINT), whatever the reason.
    type: str
    choices: [drained, up, down, maint]
  max_sessions:
    description:
      - How many sessions a server may have left to be V(drained), 0 to 2147483647.
    type: int
    default: 0
  timeout:
    description:
      - Seconds to wait for O(wait_until), 0 to 86400.
      - For each answer of HAProxy, from the name of its host to the last byte, the module waits so long at most, but at
        least 2 and never longer than 10 seconds. It reads 64 MiB at most, enough for a hundred thousand servers.
    type: float
    default: 60
  interval:
    description:
      - Seconds between two looks at HAProxy while it waits, 0.05 to 86400.
    type: float
    default: 1
notes:
  - HAProxy does not tell how often it asks an agent. Whether C(agent-inter) is under 1 s, which loads the servers, is
    seen on the server, in RV(hapgent.agent.hapgent_info#module:instances[].peers[].interval).
  - A drain honours persistence. Clients with a cookie or an entry in a stick table still come to the server.
  - After a reload, the old process of HAProxy serves its sessions to their end, and the new one does not count them.
    When that happens while the module waits on a socket, it warns.
  - If HAProxy's report about one server cannot be read, the module warns and returns the others. It fails if that
    server is named in O(server), or if it is among those that O(wait_until) is about.
  - In all that is returned, control characters are replaced by escapes such as C(\x1b), and a text ends after 1000
    characters.
seealso:
  - module: hapgent.agent.hapgent_state
  - module: hapgent.agent.hapgent_info
  - module: community.general.haproxy
  - name: HAProxy's statistics
    description: What each of its columns means.
    link: https://docs.haproxy.org/3.0/management.html#9.1
"""

EXAMPLES = r"""
- name: Look at the servers of a load balancer
  hapgent.agent.haproxy_server_info:
  register: haproxy

- name: Show those that take no new sessions
  ansible.builtin.debug:
    msg: "{{ item.backend }}/{{ item.server }}: {{ item.status }} {{ item.agent_check.text | default('', true) }}"
  loop: "{{ haproxy.servers | rejectattr('takes_new_sessions') }}"

- name: Wait on each load balancer until this host has no sessions left
  hapgent.agent.haproxy_server_info:
    server: "{{ inventory_hostname }}"
    wait_until: drained
    timeout: 300
  delegate_to: "{{ item }}"
  loop: "{{ groups['load_balancers'] }}"

- name: Wait until HAProxy takes it back, by the stats page of a load balancer that nobody can log in to
  hapgent.agent.haproxy_server_info:
    url: https://lb1.example.org:8404/stats
    url_username: ada
    url_password: "{{ stats_password }}"
    ca_path: /etc/ssl/certs/example.pem
    backend: web
    server: web7
    wait_until: up
  delegate_to: localhost
"""

RETURN = r"""
cause:
  description:
    - What kind of problem made the module fail.
    - V(silent) is a HAProxy that does not answer, or only partly, so that it may be down or unreachable.
    - V(permission) is a socket that may not be used, or a page that needs another user and password.
    - V(selection) is a HAProxy that answers well, and has no such backend or server.
    - V(answer) is an answer that is not HAProxy's, or that cannot be read, a page that answers with HTTP status 500 or
      more, or a certificate that is not trusted.
    - V(timeout) is a HAProxy that answers well, while not all servers are as O(wait_until) says.
    - V(settings) is an option that cannot be, such as a host that does not exist.
    - Options that Ansible itself refuses, such as a word for a number, have none.
  returned: failure
  type: str
  sample: silent
unreadable:
  description:
    - The servers of which HAProxy's report cannot be read, as backend/server, each with the reason. V(?) is a name that
      cannot be read either.
  returned: success, and failure after a timeout
  type: dict
  sample: {}
servers:
  description: The servers, in HAProxy's order.
  returned: success, and failure after a timeout
  type: list
  elements: dict
  contains:
    backend:
      description: The backend.
      type: str
      sample: web
    server:
      description: The server's name.
      type: str
      sample: web7
    address:
      description:
        - Address and port. Null on a socket of level C(user), and on a page without C(stats show-legends).
      type: str
      sample: 192.0.2.7:8080
    balance:
      description:
        - The backend's algorithm. Null as RV(servers[].address). HAProxy calls some V(unknown), such as C(random).
      type: str
      sample: roundrobin
    backup:
      description: Whether it is a backup server.
      type: bool
      sample: false
    status:
      description:
        - The status as on the stats page.
        - V(DRAIN (agent\)) is every drain of a server with an agent check, whoever set it.
      type: str
      sample: DRAIN (agent)
    takes_new_sessions:
      description: Whether HAProxy balances new sessions to it. It is up, and its weight is not 0.
      type: bool
      sample: false
    admin_state:
      description:
        - The administrative part, V(ready), V(drain) or V(maint). A server that is down may be in drain too; there, it
          is null on the page.
      type: str
      sample: drain
    admin_by:
      description:
        - What set RV(servers[].admin_state), empty for V(ready). The page reports V(tracking) and V(resolution) only,
          and those for maintenance only.
        - V(hand) is C(set server) on the stats socket, or the stats page. V(tracking) is the server that it tracks.
        - V(resolution) is a name without an address, such as a placeholder of C(server-template). V(configuration) is
          C(disabled) on the server line, for a server that has not been in rotation since HAProxy was started.
        - V(agent_or_hand) is the agent or somebody by hand. HAProxy keeps the same bit for both, so for a server with
          an agent check it cannot be told; M(hapgent.agent.hapgent_info) tells what the agent says.
      type: list
      elements: str
      sample: [agent_or_hand]
    tracks:
      description: The server that it tracks, as backend/server; else null.
      type: str
      sample: null
    weight:
      description:
        - The weight with which HAProxy balances, less than usual while the server starts slowly. A drain does not
          change it.
      type: int
      sample: 50
    configured_weight:
      description: The weight on the server line. Null on the page.
      type: int
      sample: 100
    sessions:
      description: Current sessions.
      type: int
      sample: 3
    queue:
      description: Sessions in the queue of the server.
      type: int
      sample: 0
    last_change:
      description: For how many seconds the status is as it is.
      type: int
      sample: 12
    agent_check:
      description: The agent check. Null if the server has none, or if it was disabled.
      type: dict
      contains:
        result:
          description:
            - What HAProxy calls the result. V(L7OK) is an agent that says V(up), V(L7STS) one that says V(down),
              V(CHECKED) one that says nothing of its health, V(INI) one that was not asked yet. V(L4CON), V(L4TOUT)
              and V(L7TOUT) are agents that do not answer.
          type: str
          sample: L7OK
        code:
          description: The code of the result, or null.
          type: int
          sample: 0
        text:
          description:
            - What HAProxy says of the answer, with the agent's reason. Null if that is nothing, and while a check runs
              that takes long.
          type: str
          sample: "via agent : up (kernel upgrade)"
        running:
          description: Whether a check runs at this moment.
          type: bool
          sample: false
      sample: {"result": "L7OK", "code": 0, "text": "via agent : up (kernel upgrade)", "running": false}
    health_check:
      description: The health check, in the same form. Null if the server has none, and in maintenance.
      type: dict
      sample: {"result": "L7OK", "code": 200, "text": "OK", "running": false}
haproxy:
  description: The process that has answered. Null on the page.
  returned: success, and failure after a timeout
  type: dict
  contains:
    version:
      description: HAProxy's version.
      type: str
      sample: 2.6.12-1+deb12u4
    pid:
      description: The process.
      type: int
      sample: 612
    uptime:
      description: Seconds since it was started or reloaded.
      type: int
      sample: 86400
  sample: {"version": "2.6.12-1+deb12u4", "pid": 612, "uptime": 86400}
agent_check_warnings:
  description:
    - What makes the agent checks of these servers useless. The module warns of the same.
    - A server without C(agent-check), or that tracks one without; an agent check that was disabled by hand; an agent
      that does not answer, or something that HAProxy does not understand; a weight that the algorithm of the backend
      does not take, which is seen when the agent tells it; a configured weight so low that a tenth of it rounds to 0,
      or that has rounded to 0 (on a socket only).
  returned: success, and failure after a timeout
  type: list
  elements: str
  sample: ["web/web9: has no agent-check on its server line: no agent can drain it."]
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hapgent.agent.plugins.module_utils._deadline import check_seconds
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_client import (
    DEFAULT_SOCKET,
    CsvPage,
    Source,
    SourceError,
    StatsSocket,
    TransientError,
)
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_stats import (
    WAITS,
    SelectionError,
    Server,
    Statistics,
    UnreadableError,
)

# One answer takes no longer, of a HAProxy that is well.
ANSWER_SECONDS = 10.0
# For so long a HAProxy may be away that was not seen yet: it may be reloading.
RELOAD_SECONDS = 2.0
RETRY_SECONDS = 0.1
MORE_LOOKS = 3
MIN_INTERVAL = 0.05
# HAProxy counts them with 32 bits.
MAX_SESSIONS = 2147483647


class HaproxyServerInfo:
    """One look at HAProxy, or as many as it takes."""

    def __init__(self, module: AnsibleModule, source: Source) -> None:
        self.module = module
        self.source = source
        self.wanted: str | None = module.params["wait_until"]
        self.started: float = time.monotonic()
        self.deadline: float = self.started + module.params["timeout"]
        # As seen last; before that, there is nothing.
        self.statistics = Statistics(None, [], [])
        self.servers: list[Server] = []
        self.was_seen = False
        self.pids: list[int] = []

    def run(self) -> None:
        """Look, wait, and leave the module."""
        while True:
            over = time.monotonic() >= self.deadline
            problem = self._look()
            if not problem and not self._waited_for():
                self.module.exit_json(changed=False, **self._result())
            if over:
                self._fail(problem)
            self._pause(problem)

    def _look(self) -> TransientError | None:
        """Ask once. Returns what is in the way, if that may pass; leaves the module if it does not."""
        params = self.module.params
        try:
            # The last look begins when the time is over.
            statistics = self.source.read(self._patience(RELOAD_SECONDS))
            servers = statistics.select(params["backend"], params["server"], all_readable=bool(self.wanted))
        except TransientError as error:
            if not (self.wanted and self.was_seen) and time.monotonic() >= self._first_deadline():
                self.module.fail_json(msg=f"{error}.", cause=error.cause)
            return error
        except SourceError as error:
            self.module.fail_json(msg=f"{error}.", cause=error.cause)
        except SelectionError as error:
            self.module.fail_json(msg=f"{error}.", cause="selection")
        except UnreadableError as error:
            self.module.fail_json(msg=f"{error}.", cause="answer")
        if self.wanted and not servers:
            self.module.fail_json(
                msg=f"There is no server that could be {self.wanted}: name a backend that has some.", cause="selection"
            )
        self.statistics, self.servers, self.was_seen = statistics, servers, True
        if statistics.process and statistics.process.pid not in self.pids:
            self.pids.append(statistics.process.pid)
        return None

    def _patience(self, least: float) -> float:
        now = time.monotonic()
        return now + min(ANSWER_SECONDS, max(self.deadline - now, least))

    def _first_deadline(self) -> float:
        return min(self.started + RELOAD_SECONDS, self.deadline)

    def _waited_for(self) -> list[Server]:
        """The servers that are not yet what they have to be."""
        if self.wanted is None:
            return []
        return [server for server in self.servers if not server.meets(self.wanted, self.module.params["max_sessions"])]

    def _pause(self, problem: TransientError | None) -> None:
        seconds = RETRY_SECONDS if problem else self.module.params["interval"]
        time.sleep(max(0.0, min(seconds, self.deadline - time.monotonic())))

    def _fail(self, problem: TransientError | None) -> None:
        """Leave the module when the time is over."""
        left = ", ".join(server.left() for server in self._waited_for())
        msg = f"After {self.module.params['timeout']:g} s, not {self.wanted}: {left or 'not known'}."
        if problem:
            msg += f" This is as seen last, since now {problem}."
        self.module.fail_json(msg=msg, cause=problem.cause if problem else "timeout", **self._result())

    def _result(self) -> dict[str, t.Any]:
        """What the module returns, after one more look for the texts that are missing."""
        self._see_answers()
        process = self.statistics.process
        return {
            "servers": [server.describe() for server in self.servers],
            "unreadable": dict(self.statistics.unreadable),
            "haproxy": process._asdict() if process else None,
            "agent_check_warnings": self._warn(),
        }

    def _warn(self) -> list[str]:
        """Warn of all that is known. Returns the warnings about agent checks."""
        warnings = self.statistics.warnings(self.servers)
        for warning in [*warnings, self.statistics.unreadable_warning(), self._reload_warning()]:
            if warning:
                self.module.warn(warning)
        return warnings

    def _reload_warning(self) -> str:
        if len(self.pids) < 2:
            return ""
        return (
            f"HAProxy was reloaded meanwhile, its process was {self.pids[0]} and is {self.pids[-1]}. "
            "Sessions that an old process still has are not counted."
        )

    def _see_answers(self) -> None:
        """While an agent is asked, HAProxy does not say what it answered before: look again for that."""
        for _look in range(MORE_LOOKS):
            if not any(server.is_being_asked for server in self.servers):
                return
            time.sleep(RETRY_SECONDS)
            try:
                later = {server.title: server for server in self.source.read(self._patience(RETRY_SECONDS)).servers}
            except SourceError:
                return
            self.servers = [
                server._replace(agent_check=later[server.title].agent_check)
                if server.is_being_asked and server.title in later
                else server
                for server in self.servers
            ]


def source_of(params: t.Mapping[str, t.Any]) -> Source:
    """What is asked. Raises SourceError."""
    if params["url"] is None:
        return StatsSocket(DEFAULT_SOCKET if params["socket"] is None else params["socket"])
    return CsvPage(
        params["url"], params["url_username"], params["url_password"], params["ca_path"], params["validate_certs"]
    )


class Module(AnsibleModule):
    """A module that hides what is secret in C(url), even if it fails for another reason before that is looked at."""

    def fail_json(self, msg: str, **result: t.Any) -> t.NoReturn:
        self.no_log_values.update(_secrets(str(self.params.get("url"))))
        super().fail_json(msg, **result)


def _secrets(url: str) -> set[str]:
    """The password, or what may be one, in a URL that is refused because of it."""
    userinfo = url.partition("//")[2].rpartition("@")[0]
    return {userinfo, userinfo.partition(":")[2]} - {""}


def check_numbers(params: t.Mapping[str, t.Any]) -> None:
    """Raises ValueError if a number is not one that its option takes."""
    for name in ("timeout", "interval"):
        check_seconds(name, params[name])
    if params["interval"] < MIN_INTERVAL:
        raise ValueError(f"interval must be {MIN_INTERVAL:g} seconds or more, not {params['interval']:g}")
    if not 0 <= params["max_sessions"] <= MAX_SESSIONS:
        raise ValueError(f"max_sessions must be 0 to {MAX_SESSIONS}, not {params['max_sessions']}")


def main() -> None:
    module = Module(
        argument_spec={
            "socket": {"type": "str"},
            "url": {"type": "str"},
            "url_username": {"type": "str", "aliases": ["user"]},
            "url_password": {"type": "str", "aliases": ["password"], "no_log": True},
            "ca_path": {"type": "path"},
            "validate_certs": {"type": "bool", "default": True},
            "backend": {"type": "list", "elements": "str", "default": []},
            "server": {"type": "list", "elements": "str", "default": []},
            "wait_until": {"type": "str", "choices": list(WAITS)},
            "max_sessions": {"type": "int", "default": 0},
            "timeout": {"type": "float", "default": 60},
            "interval": {"type": "float", "default": 1},
        },
        mutually_exclusive=[("socket", "url")],
        required_by={"url_username": "url", "url_password": "url_username", "ca_path": "url"},
        supports_check_mode=True,
    )
    try:
        check_numbers(module.params)
        source = source_of(module.params)
    except (ValueError, SourceError) as error:
        module.fail_json(msg=f"{error}.", cause="settings")
    HaproxyServerInfo(module, source).run()


if __name__ == "__main__":
    main()
