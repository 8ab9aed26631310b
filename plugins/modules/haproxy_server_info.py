# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_server_info
short_description: Gather HAProxy server status, optionally waiting for a status
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - Queries the HAProxy on the managed host, or one that is reachable from there. Returns its servers with their status,
    weight, sessions and checks. Run the module on a load balancer, or delegate it to one.
  - With O(wait_until), the module queries HAProxy until all selected servers have the requested status. HAProxy may be
    reloaded in the meantime.
  - Issues a warning for each problem that makes agent checks ineffective, see RV(agent_check_warnings).
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
      - HAProxy's stats socket, as the path of a UNIX socket or as C(host:port).
      - The level C(user) is sufficient. HAProxy reports addresses and balancing algorithms only on a socket of level
        C(operator) or higher.
      - If neither this option nor O(url) is set, the module uses V(/run/haproxy/admin.sock).
      - Mutually exclusive with O(url).
    type: str
  master_socket:
    description:
      - The socket of HAProxy's master process, as the path of a UNIX socket or as C(host:port). HAProxy opens it if it
        is started with C(-W -S PATH). Over it, the module counts the sessions in workers from before a reload, which
        the current worker does not count.
      - The level C(user) is sufficient, but C(operator) for HAProxy before 2.5.
      - If this option is not set and O(socket) is a path, the module uses V(/run/haproxy-master.sock) if that exists,
        may be read, and belongs to the same HAProxy. Debian's unit of HAProxy opens it.
      - Mutually exclusive with O(url).
    type: str
  url:
    description:
      - URL of HAProxy's stats page, C(http) or C(https), to use instead of a socket. The module appends C(;csv) if the
        URL does not contain it.
      - The page does not report all values. See the descriptions of the return values.
      - The module does not use a proxy, not even one that is set in the environment, and does not follow redirects.
      - The URL must not contain a user or a password. Use O(url_username) and O(url_password) instead.
      - Mutually exclusive with O(socket).
    type: str
  url_username:
    description:
      - User name for O(url), as set with C(stats auth) in HAProxy's configuration.
    type: str
    aliases: [user]
  url_password:
    description:
      - Password for O(url). Requires O(url_username).
    type: str
    aliases: [password]
  ca_path:
    description:
      - PEM file on the managed host with the CA certificate for O(url). If not set, the module uses the CA certificates
        that the managed host trusts.
    type: path
  validate_certs:
    description:
      - Whether to validate the TLS certificate of O(url).
    type: bool
    default: true
  backend:
    description:
      - The backends whose servers to return. If empty, all backends. Each backend must exist.
    type: list
    elements: str
    default: []
  server:
    description:
      - The names of the servers to return, as C(server) or as C(backend/server). If empty, all servers. Each server
        must exist.
      - A server that is in several backends is returned once for each backend, and must reach O(wait_until) in each of
        them.
    type: list
    elements: str
    default: []
  wait_until:
    description:
      - The status to wait for.
      - V(drained) waits until the server takes no new sessions and has at most O(max_sessions) sessions left, including
        those in its queue and those in workers from before a reload (see O(master_socket)). Such a server is in drain
        or in maintenance, is down, or has weight 0. The sessions of a server that is down or in maintenance also count,
        because they continue until they end or until a timeout of HAProxy expires.
      - V(up) waits until the server takes new sessions. Such a server is up or has no health check, and its weight is
        not 0. If it has an agent check, HAProxy must have polled the agent since it was started or reloaded.
      - V(down) waits for a status that begins with C(DOWN), and V(maint) for one that begins with C(MAINT), whatever
        the cause.
    type: str
    choices: [drained, up, down, maint]
  max_sessions:
    description:
      - The number of sessions that a server may still have with O(wait_until=drained), V(0) to V(2147483647).
    type: int
    default: 0
  timeout:
    description:
      - Seconds to wait for O(wait_until), V(0) to V(86400).
      - For each query of HAProxy and its workers, from resolving the host name to the last byte, the module waits as
        long as is left of this time, but at least 2 and at most 10 seconds. It reads at most 64 MiB of each response,
        which is enough for a hundred thousand servers.
    type: float
    default: 60
  interval:
    description:
      - Seconds between two queries while the module waits, V(0.05) to V(86400).
    type: float
    default: 1
notes:
  - HAProxy does not report how often it polls an agent. To check whether C(agent-inter) is less than 1 s, which puts
    load on the servers, query the server for
    RV(hapgent.agent.hapgent_info#module:instances[].peers[].interval).
  - A drain honours persistence. Clients with a cookie or an entry in a stick table are still sent to the server.
  - After a reload, the old worker of HAProxy serves its sessions until they end, or until C(hard-stop-after). It runs
    no checks, so it never learns that a server is drained. The module counts its sessions over O(master_socket). If it
    waits for V(drained) and cannot count them, it issues a warning. A client that keeps its connection to an old worker
    may still send one more request to a server that has no sessions left.
  - If the module cannot read what HAProxy reports about a server, it issues a warning and returns the other servers. It
    fails if that server is listed in O(server), or if O(wait_until) applies to it.
  - In all returned text, control characters are replaced with escapes such as C(\x1b), and strings are cut after 1000
    characters.
seealso:
  - module: hapgent.agent.hapgent_state
  - module: hapgent.agent.hapgent_info
  - module: community.general.haproxy
  - name: HAProxy's statistics
    description: What each column means.
    link: https://docs.haproxy.org/3.0/management.html#9.1
"""

EXAMPLES = r"""
- name: Gather the servers of a load balancer
  hapgent.agent.haproxy_server_info:
  register: haproxy

- name: Show the servers that take no new sessions
  ansible.builtin.debug:
    msg: "{{ item.backend }}/{{ item.server }}: {{ item.status }} {{ item.agent_check.text | default('', true) }}"
  loop: "{{ haproxy.servers | rejectattr('takes_new_sessions') }}"

- name: Wait until this host has no sessions left on any load balancer
  hapgent.agent.haproxy_server_info:
    server: "{{ inventory_hostname }}"
    wait_until: drained
    timeout: 300
  delegate_to: "{{ item }}"
  loop: "{{ groups['load_balancers'] }}"

- name: Wait until a server is back in rotation, using the stats page of a load balancer without SSH access
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
    - The kind of problem that made the module fail.
    - V(silent) means that HAProxy sent no response or only part of one. It may be down or unreachable.
    - V(permission) means that access to the socket was denied, or that the page requires another user or password (HTTP
      status 401 or 403).
    - V(selection) means that HAProxy responded normally, but has no such backend or server.
    - V(answer) means that the response is not HAProxy's or cannot be read, that the page returned another HTTP status
      than 200, such as a redirect, 404 or 503, or that TLS fails, for example because the certificate is not trusted.
    - V(timeout) means that HAProxy responded normally, but not all servers reached O(wait_until) in time.
    - V(settings) means that an option has an invalid value, such as a host that does not exist, or a path that is not a
      socket.
    - Not returned if Ansible itself rejects an option, such as a word for a number.
  returned: on failure
  type: str
  sample: silent
unreadable:
  description:
    - The servers whose rows in HAProxy's report cannot be read, as C(backend/server), each with the reason. V(?)
      replaces a name that cannot be read either.
  returned: on success, and on failure after a timeout
  type: dict
  sample: {}
waiting_for:
  description:
    - The servers that have not reached O(wait_until), as C(backend/server), each with what it still lacks.
  returned: on failure after a timeout
  type: dict
  sample: {web/web7: web/web7 is DRAIN with 2 sessions}
servers:
  description: The servers, in the order in which HAProxy reports them.
  returned: on success, and on failure after a timeout
  type: list
  elements: dict
  contains:
    backend:
      description: Name of the backend.
      type: str
      sample: web
    server:
      description: Name of the server.
      type: str
      sample: web7
    address:
      description:
        - Address and port of the server. Null if the socket has level C(user), or if the page is configured without
          C(stats show-legends).
      type: str
      sample: 192.0.2.7:8080
    balance:
      description:
        - The balancing algorithm of the backend. Null in the same cases as RV(servers[].address). HAProxy reports some
          algorithms, such as C(random), as V(unknown).
      type: str
      sample: roundrobin
    backup:
      description: Whether it is a backup server.
      type: bool
      sample: false
    status:
      description:
        - The status as shown on the stats page.
        - V(DRAIN (agent\)) is reported for any drain of a server with an agent check, whatever set the drain.
      type: str
      sample: DRAIN (agent)
    takes_new_sessions:
      description:
        - Whether HAProxy balances new sessions to the server. It does if the server is up or has no health check, and
          its weight is not 0.
      type: bool
      sample: false
    admin_state:
      description:
        - The administrative state, V(ready), V(drain) or V(maint).
        - A server that is down may also be in drain. The page does not report the administrative state of such a
          server, so it is null there.
      type: str
      sample: drain
    admin_by:
      description:
        - What set RV(servers[].admin_state). Empty for V(ready). The page only reports V(tracking) and V(resolution),
          and only for maintenance.
        - V(operator) means that it was set manually, with C(set server) on the stats socket or on the stats page.
        - V(tracking) means that it is inherited from the server that this one tracks.
        - V(resolution) means that the server has a host name without an address, such as a placeholder of
          C(server-template).
        - V(configuration) means C(disabled) on the server line. A manual maintenance of such a server also counts as
          this if the server has no health check, or if it has not gone out of rotation before since HAProxy
          started.
        - V(agent_or_operator) means that it was set by the agent or manually. HAProxy uses the same bit for both, so
          they cannot be distinguished for a server with an agent check. Use M(hapgent.agent.hapgent_info) to see what
          the agent reports.
      type: list
      elements: str
      sample: [agent_or_operator]
    tracks:
      description: The server that it tracks, as C(backend/server). Null if it tracks none.
      type: str
      sample: null
    weight:
      description:
        - The weight that HAProxy uses for balancing. It is lower during a slow start (C(slowstart)). A drain does not
          change it.
      type: int
      sample: 50
    configured_weight:
      description: The weight on the server line of HAProxy's configuration. Null on the page.
      type: int
      sample: 100
    sessions:
      description: Number of current sessions.
      type: int
      sample: 3
    old_sessions:
      description:
        - Number of sessions in workers from before a reload, including those in the queue of the server there.
        - Null if they are not counted. See O(master_socket). They are also not counted with O(wait_until) other than
          V(drained).
      type: int
      sample: 0
    queue:
      description: Number of sessions in the queue of the server.
      type: int
      sample: 0
    last_change:
      description: Seconds since the status last changed.
      type: int
      sample: 12
    agent_check:
      description: The agent check. Null if the server has none or if it was disabled.
      type: dict
      contains:
        result:
          description:
            - The result of the last check, as reported by HAProxy.
            - V(L7OK) means that the agent reported C(up), V(L7STS) that it reported C(down), and V(CHECKED) that it
              did not report the health of the server. V(INI) means that HAProxy has not polled the agent yet.
            - V(L4CON), V(L4TOUT) and V(L7TOUT) mean that the agent did not respond.
          type: str
          sample: L7OK
        code:
          description: The code of the result. Null if there is none.
          type: int
          sample: 0
        text:
          description:
            - HAProxy's description of the response, including the reason that the agent sent. Null if there is none,
              and during a check that takes long.
          type: str
          sample: "via agent : up (kernel upgrade)"
        running:
          description: Whether a check is in progress.
          type: bool
          sample: false
      sample: {"result": "L7OK", "code": 0, "text": "via agent : up (kernel upgrade)", "running": false}
    health_check:
      description:
        - The health check, with the same fields as RV(servers[].agent_check). Null if the server has none or is in
          maintenance.
      type: dict
      sample: {"result": "L7OK", "code": 200, "text": "OK", "running": false}
    counters:
      description:
        - What HAProxy has counted for the server since it was started or reloaded. Values that it does not report are
          null.
      type: dict
      contains:
        chkdown:
          description: How often the server went down.
          type: int
          sample: 1
        econ:
          description: Requests for which no connection to the server could be made.
          type: int
          sample: 0
        eresp:
          description: Requests whose response failed, for example because it was cut.
          type: int
          sample: 0
        hrsp_5xx:
          description: Responses with an HTTP status from 500 to 599. Null in a TCP backend.
          type: int
          sample: 3
      sample: {"chkdown": 1, "econ": 0, "eresp": 0, "hrsp_5xx": 3}
haproxy:
  description: The HAProxy process that responded. Null on the page.
  returned: on success, and on failure after a timeout
  type: dict
  contains:
    version:
      description: Version of HAProxy.
      type: str
      sample: 2.6.12-1+deb12u4
    pid:
      description: Process ID.
      type: int
      sample: 612
    uptime:
      description: Seconds since HAProxy was started or reloaded.
      type: int
      sample: 86400
    old_processes:
      description:
        - Process IDs of the workers from before a reload that still run.
        - Null in the same cases as RV(servers[].old_sessions).
      type: list
      elements: int
      sample: [598]
  sample: {"version": "2.6.12-1+deb12u4", "pid": 612, "uptime": 86400, "old_processes": [598]}
agent_check_warnings:
  description:
    - Problems that make the agent checks of these servers ineffective. The module also issues each one as a warning.
    - A server has no C(agent-check), or tracks a server without one.
    - An agent check was disabled manually.
    - An agent does not respond, or sends something that HAProxy does not understand.
    - The balancing algorithm of the backend does not accept the weight. This is only detected once the agent reports
      that weight.
    - The configured weight is so low that a tenth of it rounds to 0, or a percentage of it has already been rounded to
      0. This is only detected on a socket.
  returned: on success, and on failure after a timeout
  type: list
  elements: str
  sample: ["web/web9: has no agent-check on its server line: no agent can drain it."]
"""

import os
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
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_master import DEFAULT_MASTER_SOCKET, MasterSocket
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_stats import (
    WAITS,
    SelectionError,
    Server,
    Statistics,
    UnreadableError,
    with_old_sessions,
)

# The longest time that a healthy HAProxy needs for one response.
ANSWER_SECONDS = 10.0
# How long to retry if HAProxy does not respond to the first query: it may be reloading.
RELOAD_SECONDS = 2.0
RETRY_SECONDS = 0.1
MORE_LOOKS = 3
MIN_INTERVAL = 0.05
# HAProxy counts sessions with 32 bits.
MAX_SESSIONS = 2147483647


class HaproxyServerInfo:
    """One query of HAProxy, or as many as the wait takes."""

    def __init__(self, module: AnsibleModule, source: Source, master: MasterSocket | None, uncounted: str) -> None:
        self.module = module
        self.source = source
        self.wanted: str | None = module.params["wait_until"]
        # Where sessions in old workers are counted, and why they are not counted if it is None.
        self.master = master if self.wanted in (None, "drained") else None
        self.uncounted = uncounted
        self.started: float = time.monotonic()
        self.deadline: float = self.started + module.params["timeout"]
        # The results of the last successful query, empty before the first one.
        self.statistics = Statistics(None, [], [])
        self.servers: list[Server] = []
        self.was_seen = False
        self.pids: list[int] = []

    def run(self) -> None:
        """Query HAProxy, wait if requested, and exit the module."""
        while True:
            over = time.monotonic() >= self.deadline
            problem = self._look()
            if not problem and not self._waited_for():
                self.module.exit_json(changed=False, **self._result())
            if over:
                self._fail(problem)
            self._pause(problem)

    def _look(self) -> TransientError | None:
        """Query HAProxy once. Returns the problem if it may be temporary, and exits the module on any other."""
        params = self.module.params
        try:
            # The last query starts after the deadline, so that it has a minimum time of its own.
            patience = self._patience(RELOAD_SECONDS)
            statistics = self.source.read(patience)
            servers = statistics.select(params["backend"], params["server"], all_readable=bool(self.wanted))
            statistics, servers = self._count_old(statistics, servers, patience)
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
                msg=f"No server was selected to wait for {self.wanted}: set a backend that has servers.",
                cause="selection",
            )
        self.statistics, self.servers, self.was_seen = statistics, servers, True
        if statistics.process and statistics.process.pid not in self.pids:
            self.pids.append(statistics.process.pid)
        return None

    def _count_old(
        self, statistics: Statistics, servers: list[Server], patience: float
    ) -> tuple[Statistics, list[Server]]:
        """Add the sessions in workers from before a reload. Raises SourceError if they must be counted but cannot be.

        The workers are listed after the statistics were read: a worker that is replaced in between is not missed.
        """
        process = statistics.process
        if not self.master or not process:
            return statistics, servers
        try:
            old = self.master.old_sessions(process.pid, [server.title for server in servers], patience)
        except SourceError as error:
            if self._must_count(error):
                if not self.was_seen and error.cause == "silent":
                    # HAProxy may take long to read its configuration, and the servers are known meanwhile.
                    self.statistics, self.servers, self.was_seen = statistics, servers, True
                raise
            self.master, self.uncounted = None, str(error)
            return statistics, servers
        counted = process._replace(old_processes=[*old])
        return statistics._replace(process=counted), with_old_sessions(servers, old)

    def _must_count(self, error: SourceError) -> bool:
        """Whether this problem is one of the module, although the default of O(master_socket) may not apply."""
        if self.module.params["master_socket"] is not None:
            return True
        if not self.wanted or error.cause == "permission":
            return False
        # A socket may only seem to be the wrong one while HAProxy is reloaded.
        may_pass = isinstance(error, TransientError) and time.monotonic() < self._first_deadline()
        return error.cause != "settings" or may_pass

    def _patience(self, minimum: float) -> float:
        now = time.monotonic()
        return now + min(ANSWER_SECONDS, max(self.deadline - now, minimum))

    def _first_deadline(self) -> float:
        return min(self.started + RELOAD_SECONDS, self.deadline)

    def _waited_for(self) -> list[Server]:
        """The servers that do not have the requested status yet."""
        if self.wanted is None:
            return []
        return [
            server
            for server in self.servers
            if not server.meets(self.wanted, self.module.params["max_sessions"])
            or (self.master and server.old_sessions is None)
        ]

    def _pause(self, problem: TransientError | None) -> None:
        seconds = RETRY_SECONDS if problem else self.module.params["interval"]
        time.sleep(max(0.0, min(seconds, self.deadline - time.monotonic())))

    def _fail(self, problem: TransientError | None) -> None:
        """Exit the module after the deadline."""
        left = {server.title: server.left() for server in self._waited_for()}
        listed = ", ".join(left.values()) or "unknown"
        msg = f"Not {self.wanted} after {self.module.params['timeout']:g} s: {listed}."
        if problem:
            msg += f" This is the last known status, because now {problem}."
        cause = problem.cause if problem else "timeout"
        self.module.fail_json(msg=msg, cause=cause, waiting_for=left, **self._result())

    def _result(self) -> dict[str, t.Any]:
        """What the module returns, after further queries for check texts that are missing."""
        self._see_answers()
        process = self.statistics.process
        return {
            "servers": [server.describe() for server in self.servers],
            "unreadable": dict(self.statistics.unreadable),
            "haproxy": process._asdict() if process else None,
            "agent_check_warnings": self._warn(),
        }

    def _warn(self) -> list[str]:
        """Issue all warnings. Returns those about agent checks."""
        warnings = self.statistics.warnings(self.servers)
        for warning in [*warnings, self.statistics.unreadable_warning(), self._uncounted_warning()]:
            if warning:
                self.module.warn(warning)
        return warnings

    def _uncounted_warning(self) -> str:
        if self.wanted != "drained" or self.master:
            return ""
        reloaded = (
            f"HAProxy was reloaded during the wait (process {self.pids[0]}, now {self.pids[-1]}). "
            if len(self.pids) > 1
            else ""
        )
        return (
            f"{reloaded}Sessions in HAProxy's workers from before a reload are not counted: {self.uncounted}. "
            "Set hard-stop-after in haproxy.cfg to limit how long such workers run."
        )

    def _see_answers(self) -> None:
        """Query HAProxy again for missing texts of agent checks.

        While an agent check is in progress, HAProxy does not report the text of the previous one.
        """
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
    """The stats socket or stats page that the options select. Raises SourceError."""
    if params["url"] is None:
        return StatsSocket(DEFAULT_SOCKET if params["socket"] is None else params["socket"])
    return CsvPage(
        params["url"], params["url_username"], params["url_password"], params["ca_path"], params["validate_certs"]
    )


def master_of(params: t.Mapping[str, t.Any], source: Source) -> tuple[MasterSocket | None, str]:
    """Where to count sessions in old workers, or None and the reason. Raises SourceError."""
    if params["master_socket"] is not None:
        return MasterSocket(params["master_socket"]), ""
    if not isinstance(source, StatsSocket):
        return None, "the stats page does not report them. Query a stats socket, with master_socket"
    if not source.is_path:
        return None, "master_socket is not set. Start HAProxy with -W -S PATH and set master_socket to the path"
    if not os.path.exists(DEFAULT_MASTER_SOCKET):
        return None, (
            f"there is no {DEFAULT_MASTER_SOCKET}. Start HAProxy with -W -S {DEFAULT_MASTER_SOCKET}, or set "
            "master_socket to the path that it uses"
        )
    return MasterSocket(DEFAULT_MASTER_SOCKET), ""


class Module(AnsibleModule):
    """A module that hides secrets in C(url), even if it fails for another reason before C(url) is checked."""

    def fail_json(self, msg: str, **result: t.Any) -> t.NoReturn:
        self.no_log_values.update(_secrets(str(self.params.get("url"))))
        super().fail_json(msg, **result)


def _secrets(url: str) -> set[str]:
    """The strings in a URL that are or may be a password. Such a URL is refused."""
    userinfo = url.partition("//")[2].rpartition("@")[0]
    return {userinfo, userinfo.partition(":")[2]} - {""}


def check_numbers(params: t.Mapping[str, t.Any]) -> None:
    """Check the ranges of the numeric options. Raises ValueError."""
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
            "master_socket": {"type": "str"},
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
        mutually_exclusive=[("socket", "url"), ("master_socket", "url")],
        required_by={"url_username": "url", "url_password": "url_username", "ca_path": "url"},
        supports_check_mode=True,
    )
    try:
        check_numbers(module.params)
        source = source_of(module.params)
        master, uncounted = master_of(module.params, source)
    except (ValueError, SourceError) as error:
        module.fail_json(msg=f"{error}.", cause="settings")
    HaproxyServerInfo(module, source, master, uncounted).run()


if __name__ == "__main__":
    main()
