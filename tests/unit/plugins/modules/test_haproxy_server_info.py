# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""haproxy_server_info reads servers from a real HAProxy, waits for their statuses, and reports useless agent checks."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ansible
import pytest
import real_haproxy
from ansible_collections.hapgent.agent.plugins.module_utils import _state
from preloaded import run_preloaded

if TYPE_CHECKING:
    from tests.conftest import Agents, Eventually, FreePort
    from tests.unit.plugins.modules.conftest import RunAnsible

MODULE = "ansible_collections.hapgent.agent.plugins.modules.haproxy_server_info"
# The folders of the collections and of Ansible, for interpreters without them.
IMPORTS = [Path(_state.__file__).parents[5], Path(ansible.__file__).parents[1]]
PATIENCE_SECONDS = 15.0
CAPTURED = Path(__file__).parent.with_name("module_utils") / "haproxy" / "2.6-page.csv"

Result = dict[str, Any]


def command_of(python: str, arguments: Result, check: bool = False) -> tuple[list[str], str, dict[str, str]]:
    given = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, IMPORTS))}
    return [python, "-m", MODULE], json.dumps(given), environment


def run_module(
    *, python: str = sys.executable, check: bool = False, as_nobody: bool = False, **arguments: Any
) -> Result:
    """Run the module with these arguments and return its result."""
    if python == sys.executable and not as_nobody:
        result: Result = run_preloaded("haproxy_server_info", arguments, check=check)
        assert not result.get("changed")
        return result
    command, given, environment = command_of(python, arguments, check)
    done = subprocess.run(
        command,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
        cwd="/",
        user=65534 if as_nobody else None,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert done.returncode == (1 if result.get("failed") else 0)
    assert not result.get("changed")
    return result


def assert_failed(result: Result, cause: str, *named: str) -> None:
    assert result.get("failed"), result
    assert result.get("cause", "") == cause, result
    for word in named:
        assert word in result["msg"]


def warnings(result: Result) -> str:
    return json.dumps(result.get("warnings", []))


class Waiting:
    """The module running in the background while it waits."""

    def __init__(self, arguments: Result) -> None:
        command, self._given, environment = command_of(sys.executable, arguments)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        assert self._process.stdin
        self._process.stdin.write(self._given)
        self._process.stdin.close()
        self._process.stdin = None

    def still_waits(self, seconds: float = 1.5) -> bool:
        """Whether the module still waits after this time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            # Pytest shows this if the test fails.
            print(self._process.communicate())
        return self._process.poll() is None

    def result(self) -> Result:
        out, err = self._process.communicate(timeout=PATIENCE_SECONDS)
        assert out, err
        result: Result = json.loads(out)
        return result

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class LineAgent(socketserver.ThreadingTCPServer):
    """An agent that responds to every check with the same line."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, line: str) -> None:
        self.line = line
        super().__init__(("127.0.0.1", 0), LineHandler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class LineHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        agent = cast("LineAgent", self.server)
        self.request.sendall(f"{agent.line}\n".encode())


class LoadBalancer(real_haproxy.LoadBalancer):
    """A real HAProxy whose servers have agents of these tests, and on which the module runs."""

    def agent(self, line: str) -> LineAgent:
        agent = self._stack.enter_context(LineAgent(line))
        self._stack.callback(agent.shutdown)
        return agent

    def run_module(self, **arguments: Any) -> Result:
        return run_module(socket=str(self.socket), **arguments)

    def servers(self, **arguments: Any) -> dict[str, Result]:
        """The servers that the module returns, by backend/server."""
        result = self.run_module(**arguments)
        assert not result.get("failed"), result
        return {f"{server['backend']}/{server['server']}": server for server in result["servers"]}

    @contextlib.contextmanager
    def waiting(self, **arguments: Any) -> Iterator[Waiting]:
        """Run the module in the background, and wait until it has queried HAProxy, if HAProxy runs."""
        before = self.connections() if self._process else 0
        waiting = Waiting({"socket": str(self.socket), "interval": 0.1, **arguments})
        own = 1
        while self._process and self.connections() - before <= own:
            own += 1
            assert own * 0.05 < PATIENCE_SECONDS, "the module does not query HAProxy"
            time.sleep(0.05)
        try:
            yield waiting
        finally:
            waiting.end()


@pytest.fixture
def balancer(tmp_path: Path, free_port: FreePort) -> Iterator[LoadBalancer]:
    balancer = LoadBalancer(tmp_path, free_port)
    yield balancer
    balancer.end()


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory, free_port: FreePort) -> Iterator[LoadBalancer]:
    """Another HAProxy, which runs."""
    other = LoadBalancer(tmp_path_factory.mktemp("other"), free_port)
    try:
        simple(other)
        yield other
    finally:
        other.end()


def not_its_master_socket(balancer: LoadBalancer, other: LoadBalancer) -> Iterator[tuple[Path, str]]:
    """Paths that are not the master socket of the first HAProxy, each with a part of the problem."""
    yield balancer.folder / "none.sock", "there is no "
    yield balancer.folder / "haproxy.cfg", "is not a socket"
    yield balancer.socket, "is not HAProxy's master socket"
    yield other.master_socket, "is the master socket of another HAProxy"


CHECKS = "check inter 200ms agent-check agent-inter 100ms weight 100"


def with_agent(balancer: LoadBalancer, name: str, line: str, more: str = "") -> tuple[str, LineAgent]:
    agent = balancer.agent(line)
    return f"server {name} SERVICE {CHECKS} agent-port {agent.port} {more}", agent


def simple(balancer: LoadBalancer, line: str = "up") -> LineAgent:
    """Start a HAProxy with the backend web and its only server web7, and return the agent."""
    server, agent = with_agent(balancer, "web7", line)
    balancer.backend("web", server)
    balancer.start()
    return agent


# Results


def test_all_fields_of_servers_are_returned(balancer: LoadBalancer, eventually: Eventually) -> None:
    lines = [
        with_agent(balancer, "up", "up 50%")[0],
        with_agent(balancer, "drained", 'drain up # new disk, "2 TB"')[0],
        with_agent(balancer, "kept", "maint up # disk")[0],
        with_agent(balancer, "down", "down # bad disk")[0],
        with_agent(balancer, "configured", "up", "disabled")[0],
        "server hand SERVICE check inter 200ms weight 100",
        "server free SERVICE backup weight 20",
    ]
    balancer.backend("web", *lines)
    balancer.backend("api", "balance leastconn", "server drained SERVICE track web/drained")
    balancer.start()
    balancer.send("set server web/hand state drain")
    balancer.await_status(
        eventually,
        up="UP",
        drained="DRAIN (agent)",
        kept="MAINT",
        down="DOWN (agent)",
        configured="MAINT",
        hand="DRAIN",
        free="no check",
    )
    client = balancer.session("web")

    servers = balancer.servers()

    keys = ("status", "takes_new_sessions", "admin_state", "admin_by", "weight", "configured_weight", "sessions")
    assert {name: tuple(server[key] for key in keys) for name, server in servers.items()} == {
        "web/up": ("UP", True, "ready", [], 50, 100, 1),
        "web/drained": ("DRAIN (agent)", False, "drain", ["agent_or_operator"], 100, 100, 0),
        "web/kept": ("MAINT", False, "maint", ["agent_or_operator"], 100, 100, 0),
        "web/down": ("DOWN (agent)", False, "ready", [], 100, 100, 0),
        "web/configured": ("MAINT", False, "maint", ["configuration"], 100, 100, 0),
        "web/hand": ("DRAIN", False, "drain", ["operator"], 100, 100, 0),
        "web/free": ("no check", True, "ready", [], 20, 20, 0),
        "api/drained": ("DRAIN (agent)", False, "drain", ["tracking"], 1, 1, 0),
    }
    client.close()
    drained = servers["web/drained"]["agent_check"]
    assert (drained["result"], drained["text"]) == ("L7OK", 'via agent : up (new disk, "2 TB")')
    assert servers["web/down"]["agent_check"]["text"] == "via agent : down (bad disk)"
    assert servers["web/hand"]["agent_check"] is None
    assert servers["web/hand"]["health_check"]["result"] == "L4OK"
    assert servers["web/free"]["health_check"] is None
    assert [name for name, server in servers.items() if server["backup"]] == ["web/free"]
    assert servers["api/drained"]["tracks"] == "web/drained"
    assert {server["balance"] for server in servers.values()} == {"roundrobin", "leastconn"}
    assert all(server["address"].startswith("127.0.0.1:") and server["queue"] == 0 for server in servers.values())
    assert all(0 <= server["last_change"] < 60 for server in servers.values())


def test_version_and_process_are_returned(balancer: LoadBalancer) -> None:
    simple(balancer)
    reported = dict(line.split(": ", 1) for line in balancer.send("show info").splitlines() if ": " in line)
    result = balancer.run_module()
    assert (result["haproxy"]["version"], result["haproxy"]["pid"]) == (reported["Version"], int(reported["Pid"]))
    assert 0 <= result["haproxy"]["uptime"] < 60


def test_servers_are_selected_by_backend_and_name(balancer: LoadBalancer) -> None:
    balancer.backend("web", "server a SERVICE", "server b SERVICE")
    balancer.backend("api", "server b SERVICE", "server c SERVICE")
    balancer.backend("empty")
    balancer.start()
    assert list(balancer.servers()) == ["web/a", "web/b", "api/b", "api/c"]
    assert list(balancer.servers(backend="api")) == ["api/b", "api/c"]
    assert list(balancer.servers(server="b")) == ["web/b", "api/b"]
    assert list(balancer.servers(server=["a", "c"])) == ["web/a", "api/c"]
    assert list(balancer.servers(backend=["web"], server=["b"])) == ["web/b"]
    assert list(balancer.servers(backend=["empty"])) == []

    assert_failed(
        balancer.run_module(backend="shop"), "selection", "HAProxy has no backend shop: it has web, api, empty"
    )
    assert_failed(
        balancer.run_module(server="d"), "selection", "HAProxy has no server d: it has web/a, web/b, api/b, api/c"
    )
    assert_failed(
        balancer.run_module(backend="web", server="c"), "selection", "web has no server c: it has web/a, web/b"
    )
    assert_failed(
        balancer.run_module(backend="empty", server="c"), "selection", "backend empty has no server c: it has none"
    )
    assert_failed(balancer.run_module(backend="empty", wait_until="drained"), "selection", "drained", "backend")


@pytest.mark.parametrize("check", [False, True], ids=["", "check"])
def test_module_changes_nothing(balancer: LoadBalancer, check: bool) -> None:
    simple(balancer)
    before = balancer.send("show servers state")
    assert balancer.run_module(check=check)["changed"] is False
    assert balancer.send("show servers state").split()[:8] == before.split()[:8]


def test_module_runs_with_each_python(balancer: LoadBalancer, python: str) -> None:
    simple(balancer)
    on_socket: Result = {"socket": str(balancer.socket)}
    on_page: Result = {"url": balancer.page, "user": "ada", "password": "secret"}
    for arguments in (on_socket, on_page):
        result = run_module(python=python, **arguments)
        assert [server["server"] for server in result["servers"]] == ["web7"]


def test_ansible_can_run_the_module(balancer: LoadBalancer, agents: Agents, run_ansible: RunAnsible) -> None:
    # This test uses a real agent.
    agent = agents.start(b'{"status": "DRAIN", "reason": "new disk"}')
    balancer.backend("web", f"server web7 SERVICE {CHECKS} agent-port {agent.port}")
    balancer.start()
    arguments = f"socket={balancer.socket} server=web7 wait_until=drained timeout=10"
    result = run_ansible("haproxy_server_info", arguments)
    (server,) = result["servers"]
    assert not result["changed"]
    assert (server["status"], server["agent_check"]["text"]) == ("DRAIN (agent)", "via agent : UP (new disk)")


# Waiting


def test_wait_until_all_sessions_have_ended(balancer: LoadBalancer, eventually: Eventually) -> None:
    agent = simple(balancer)
    clients = [balancer.session("web") for _number in range(3)]
    with balancer.waiting(server="web7", wait_until="drained", timeout=30) as waiting:
        assert waiting.still_waits()
        agent.line = "drain"
        balancer.await_status(eventually, web7="DRAIN (agent)")
        for client in clients:
            assert waiting.still_waits(0.5)
            client.close()
        result = waiting.result()
    assert [(server["status"], server["sessions"]) for server in result["servers"]] == [("DRAIN (agent)", 0)]


def test_wait_until_max_sessions_are_left(balancer: LoadBalancer) -> None:
    agent = simple(balancer)
    clients = [balancer.session("web") for _number in range(3)]
    agent.line = "drain"
    with balancer.waiting(server="web7", wait_until="drained", max_sessions=2, timeout=30) as waiting:
        assert waiting.still_waits()
        clients[0].close()
        assert [server["sessions"] for server in waiting.result()["servers"]] == [2]


def test_server_without_sessions_is_not_drained_while_it_takes_new_ones(balancer: LoadBalancer) -> None:
    simple(balancer)
    result = balancer.run_module(wait_until="drained", timeout=0.5)
    assert_failed(result, "timeout", "Not drained after 0.5 s: web/web7 (UP, 0 sessions, takes new sessions).")


def test_error_at_the_timeout_describes_the_servers(balancer: LoadBalancer, eventually: Eventually) -> None:
    agent = simple(balancer)
    balancer.session("web")
    balancer.session("web")
    agent.line = "drain"
    balancer.await_status(eventually, web7="DRAIN (agent)")
    result = balancer.run_module(wait_until="drained", timeout=0.5, interval=10)
    assert_failed(result, "timeout", "drained", "0.5 s", "web/web7 (DRAIN (agent), 2 sessions)")
    # The failed result contains the servers too.
    assert [server["sessions"] for server in result["servers"]] == [2]
    assert result["haproxy"]["pid"]
    assert result["agent_check_warnings"] == []
    # With timeout 0, the module checks only once.
    result = balancer.run_module(wait_until="maint", timeout=0)
    assert_failed(result, "timeout", "maint", "0 s", "web/web7 (DRAIN (agent), 2 sessions)")
    assert not balancer.run_module(wait_until="drained", max_sessions=2, timeout=0).get("failed")


# The agent's line, an operator's command, the resulting status, and the conditions that it meets and does not meet.
CONDITIONS: dict[str, tuple[str, str, str, list[str], list[str]]] = {
    "up": ("up", "", "UP", ["up"], ["drained", "down", "maint"]),
    "drained by the agent": ("drain", "", "DRAIN (agent)", ["drained"], ["up", "down", "maint"]),
    "drained manually": ("up", "state drain", "DRAIN (agent)", ["drained"], ["up", "down", "maint"]),
    "down by the agent": ("down", "", "DOWN (agent)", ["drained", "down"], ["up", "maint"]),
    "down, and drained": ("drain down", "", "DOWN (agent)", ["drained", "down"], ["up", "maint"]),
    "in maintenance by the agent": ("maint", "", "MAINT", ["drained", "maint"], ["up", "down"]),
    "in maintenance manually": ("up", "state maint", "MAINT", ["drained", "maint"], ["up", "down"]),
    "without weight": ("up 0%", "", "UP", ["drained"], ["up", "down", "maint"]),
}


@pytest.mark.parametrize("row", CONDITIONS.values(), ids=CONDITIONS)
def test_statuses_that_meet_each_condition(
    balancer: LoadBalancer, eventually: Eventually, row: tuple[str, str, str, list[str], list[str]]
) -> None:
    line, command, status, met, unmet = row
    simple(balancer, line)
    eventually(lambda: "L7OK" in balancer.send("show stat") or line != "up", "the agent was polled")
    if command:
        balancer.send(f"set server web/web7 {command}")
    balancer.await_status(eventually, web7=status)
    if line == "up 0%":
        eventually(lambda: ",UP,0," in balancer.send("show stat"), "weight 0")
    for wanted in met:
        result = balancer.run_module(server="web7", wait_until=wanted, timeout=3)
        assert not result.get("failed"), result
    for wanted in unmet:
        result = balancer.run_module(server="web7", wait_until=wanted, timeout=0)
        assert_failed(result, "timeout", wanted, "0 s", f" web/web7 ({status}, 0 sessions")


def test_sessions_of_a_server_in_maintenance_are_waited_for(balancer: LoadBalancer, eventually: Eventually) -> None:
    agent = simple(balancer)
    client = balancer.session("web")
    agent.line = "maint"
    balancer.await_status(eventually, web7="MAINT")
    with balancer.waiting(wait_until="drained", timeout=30) as waiting:
        assert waiting.still_waits()
        client.sendall(b"still here")
        assert client.recv(64) == b"still here"
        client.close()
        assert not waiting.result().get("failed")


def test_wait_for_a_server_that_tracks_another(balancer: LoadBalancer, eventually: Eventually) -> None:
    server, _agent = with_agent(balancer, "web7", "maint")
    balancer.backend("web", server)
    balancer.backend("api", "server web7 SERVICE track web/web7")
    balancer.start()
    balancer.await_status(eventually, web7="MAINT")
    result = balancer.run_module(backend="api", wait_until="maint", timeout=3)
    assert [server["status"] for server in result["servers"]] == ["MAINT (via web/web7)"]
    assert not balancer.run_module(backend="api", wait_until="drained", timeout=3).get("failed")


def test_condition_must_be_met_in_all_backends(balancer: LoadBalancer, eventually: Eventually) -> None:
    first, first_agent = with_agent(balancer, "web7", "drain")
    second, second_agent = with_agent(balancer, "web7", "up")
    other, _other_agent = with_agent(balancer, "web8", "up")
    balancer.backend("web", first, other)
    balancer.backend("api", second)
    balancer.start()
    balancer.await_status(eventually, web7="DRAIN (agent)")
    with balancer.waiting(server="web7", wait_until="drained", timeout=30) as waiting:
        assert waiting.still_waits()
        second_agent.line = "drain"
        assert {server["backend"] for server in waiting.result()["servers"]} == {"web", "api"}
    first_agent.line = "up ready"
    result = balancer.run_module(server="web7", wait_until="up", timeout=1)
    assert_failed(result, "timeout", "up", "1 s", ": api/web7 (DRAIN (agent), 0 sessions).")


def test_wait_continues_after_a_reload_with_a_warning(balancer: LoadBalancer, eventually: Eventually) -> None:
    agent = simple(balancer)
    pid = balancer.run_module()["haproxy"]["pid"]
    with balancer.waiting(wait_until="drained", timeout=30) as waiting:
        assert waiting.still_waits()
        balancer.reload()
        eventually(lambda: f"Pid: {pid}\n" not in balancer.send("show info"), "another process")
        assert waiting.still_waits()
        agent.line = "drain"
        result = waiting.result()
    assert not result.get("failed"), result
    assert result["haproxy"]["pid"] != pid
    assert f"process {pid}, now {result['haproxy']['pid']}" in warnings(result)


def test_wait_continues_after_a_stop_and_start(balancer: LoadBalancer) -> None:
    agent = simple(balancer)
    with balancer.waiting(wait_until="drained", timeout=30) as waiting:
        assert waiting.still_waits()
        balancer.stop()
        # Connections are refused at first, then the socket is missing, then HAProxy runs again.
        assert waiting.still_waits()
        balancer.socket.unlink()
        assert waiting.still_waits()
        agent.line = "drain"
        balancer.start()
        assert not waiting.result().get("failed")


def test_error_if_haproxy_stops_while_the_module_waits(balancer: LoadBalancer) -> None:
    simple(balancer)
    with balancer.waiting(wait_until="drained", timeout=4) as waiting:
        assert waiting.still_waits(2)
        balancer.stop()
        result = waiting.result()
    # The message has the last known servers, and why HAProxy does not respond now.
    seen = "web/web7 (UP, 0 sessions, takes new sessions)"
    assert_failed(result, "silent", "drained", "4 s", seen, f" {balancer.socket} (")


def test_server_is_not_up_before_its_agent_was_polled(balancer: LoadBalancer) -> None:
    """After it starts, HAProxy sends sessions to a server before it polls the server's agent."""
    may_answer = threading.Event()

    def answer() -> bytes:
        may_answer.wait(PATIENCE_SECONDS)
        return b"up\n"

    with FakeServer(answer, listens=False) as agent:
        port = agent.address.rpartition(":")[2]
        balancer.backend("web", f"server web7 SERVICE agent-check agent-inter 20s agent-port {port}")
        balancer.start()
        (server,) = balancer.servers().values()
        assert (server["status"], server["agent_check"]["result"]) == ("no check", "INI")
        with balancer.waiting(wait_until="up", timeout=30) as waiting:
            assert waiting.still_waits()
            may_answer.set()
            (server,) = waiting.result()["servers"]
        assert (server["status"], server["agent_check"]["result"]) == ("no check", "L7OK")


# Workers from before a reload


def reloaded(balancer: LoadBalancer, eventually: Eventually) -> int:
    """Reload HAProxy, wait until its new worker responds, and return the PID of the old one."""

    def pid() -> int:
        return int(balancer.send("show info").partition("\nPid: ")[2].split()[0])

    old = pid()
    balancer.reload()
    eventually(lambda: pid() != old, "another worker responds")
    return old


def drained_after_a_reload(balancer: LoadBalancer, eventually: Eventually) -> tuple[socket.socket, int]:
    """Start HAProxy, reload it during a session, and drain the server. Returns the session and the old worker's PID."""
    agent = simple(balancer)
    session = balancer.session("web")
    old = reloaded(balancer, eventually)
    agent.line = "drain"
    balancer.await_status(eventually, web7="DRAIN (agent)")
    return session, old


def test_session_in_an_old_worker_is_waited_for(balancer: LoadBalancer, eventually: Eventually) -> None:
    session, old = drained_after_a_reload(balancer, eventually)
    # Without the master socket, the server seems to have no sessions.
    result = balancer.run_module(wait_until="drained", timeout=10)
    assert not result.get("failed"), result
    assert (result["servers"][0]["old_sessions"], result["haproxy"]["old_processes"]) == (None, None)
    assert "hard-stop-after" in warnings(result)
    assert len(result["warnings"]) == 1
    master = str(balancer.master_socket)
    result = balancer.run_module(master_socket=master, wait_until="drained", timeout=0)
    left = f"web/web7 (DRAIN (agent), 0 sessions, 1 session in an old worker (pid {old}))"
    assert_failed(result, "timeout", left)
    assert result["waiting_for"] == {"web/web7": left}
    result = balancer.run_module(master_socket=master)
    assert (result["servers"][0]["old_sessions"], result["haproxy"]["old_processes"]) == (1, [old])
    assert not balancer.run_module(master_socket=master, wait_until="drained", max_sessions=1).get("failed")
    with balancer.waiting(master_socket=master, wait_until="drained", timeout=30) as waiting:
        assert waiting.still_waits()
        session.close()
        result = waiting.result()
    assert not result.get("failed"), result
    assert result["servers"][0]["old_sessions"] == 0
    assert warnings(result) == "[]"


def test_sessions_that_get_into_old_workers_during_the_wait_are_waited_for(
    balancer: LoadBalancer, eventually: Eventually
) -> None:
    agent = simple(balancer)
    sessions, pids = [], []
    agent.line = "up"
    with balancer.waiting(master_socket=str(balancer.master_socket), wait_until="drained", timeout=60) as waiting:
        for _reload in range(2):
            sessions.append(balancer.session("web"))
            pids.append(reloaded(balancer, eventually))
            assert waiting.still_waits()
        agent.line = "drain"
        balancer.await_status(eventually, web7="DRAIN (agent)")
        failed = balancer.run_module(
            master_socket=str(balancer.master_socket), wait_until="drained", timeout=0, interval=0.1
        )
        assert_failed(failed, "timeout", f"2 sessions in old workers (pids {pids[1]}, {pids[0]})")
        for session in sessions:
            assert waiting.still_waits()
            session.close()
        result = waiting.result()
    assert not result.get("failed"), result
    assert warnings(result) == "[]"


def test_old_worker_that_hangs_does_not_end_the_wait(balancer: LoadBalancer, eventually: Eventually) -> None:
    session, old = drained_after_a_reload(balancer, eventually)
    session.close()
    os.kill(old, signal.SIGSTOP)
    try:
        result = balancer.run_module(master_socket=str(balancer.master_socket), wait_until="drained", timeout=1)
        assert_failed(result, "silent", "Not drained", str(balancer.master_socket))
        assert "web/web7" in result["waiting_for"]
        # A query without a wait has no last known status.
        result = balancer.run_module(master_socket=str(balancer.master_socket))
        assert_failed(result, "silent", str(balancer.master_socket))
    finally:
        os.kill(old, signal.SIGCONT)
    assert not balancer.run_module(master_socket=str(balancer.master_socket), wait_until="drained").get("failed")


@pytest.mark.parametrize("wait", [{}, {"wait_until": "drained", "timeout": 60}])
def test_error_if_the_master_socket_is_wrong(balancer: LoadBalancer, other: LoadBalancer, wait: Result) -> None:
    agent = simple(balancer)
    agent.line = "drain"
    for path, why in not_its_master_socket(balancer, other):
        named = "there is no master socket" if why == "there is no " else why
        assert_failed(balancer.run_module(master_socket=str(path), **wait), "settings", named, str(path))
    result = run_module(socket=str(balancer.master_socket), **wait)
    assert_failed(result, "settings", f"{balancer.master_socket} is HAProxy's master socket", "set master_socket")
    arguments: Result = {"url": balancer.page, "master_socket": str(balancer.master_socket)}
    assert_failed(run_module(**arguments, **wait), "", "mutually exclusive: master_socket|url")


def test_one_warning_if_sessions_in_old_workers_cannot_be_counted(balancer: LoadBalancer) -> None:
    agent = simple(balancer)
    agent.line = "drain"
    page: Result = {"url": balancer.page, "url_username": "ada", "url_password": "secret"}
    for arguments in (page, {"socket": balancer.tcp}):
        result = run_module(wait_until="drained", **arguments)
        assert not result.get("failed"), result
        assert len(result["warnings"]) == 1
        assert "hard-stop-after" in warnings(result)
        assert result["servers"][0]["old_sessions"] is None
        assert run_module(**arguments).get("warnings", []) == []
    agent.line = "up ready"
    assert balancer.run_module(wait_until="up").get("warnings", []) == []


def run_with_default(path: Path, *, as_nobody: bool = False, **arguments: Any) -> Result:
    """Run the module with another default of master_socket."""
    code = f"import {MODULE} as module; module.DEFAULT_MASTER_SOCKET = {str(path)!r}; module.main()"
    _command, given, environment = command_of(sys.executable, arguments)
    user = 65534 if as_nobody else None
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
        user=user,
        cwd="/",
    )
    assert done.stdout, done.stderr
    result: Result = json.loads(done.stdout)
    return result


def test_default_master_socket_is_used_if_it_is_that_of_this_haproxy(
    balancer: LoadBalancer, other: LoadBalancer, eventually: Eventually
) -> None:
    _session, old = drained_after_a_reload(balancer, eventually)
    arguments: Result = {"socket": str(balancer.socket)}
    drained: Result = {**arguments, "wait_until": "drained", "timeout": 3}
    result = run_with_default(balancer.master_socket, **{**drained, "timeout": 0})
    assert_failed(result, "timeout", f"1 session in an old worker (pid {old})")
    assert run_with_default(balancer.master_socket, **arguments)["haproxy"]["old_processes"] == [old]
    for path, why in not_its_master_socket(balancer, other):
        result = run_with_default(path, **drained)
        assert not result.get("failed"), result
        assert len(result["warnings"]) == 1
        assert why in warnings(result)
        result = run_with_default(path, **arguments)
        assert (result["haproxy"]["old_processes"], result.get("warnings", [])) == (None, [])
    # With a socket that an earlier process has left, it cannot be known whether HAProxy has old workers.
    stale = balancer.folder / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    assert_failed(run_with_default(stale, **drained), "silent", str(stale), "remove this file")
    assert run_with_default(stale, **arguments)["haproxy"]["old_processes"] is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_warning_if_the_default_master_socket_is_not_accessible(balancer: LoadBalancer, eventually: Eventually) -> None:
    drained_after_a_reload(balancer, eventually)
    for folder in (balancer.folder, *balancer.folder.parents):
        if "pytest-of-" in str(folder):
            folder.chmod(0o755)
    balancer.socket.chmod(0o666)
    balancer.master_socket.chmod(0o600)
    arguments: Result = {"socket": str(balancer.socket), "wait_until": "drained", "timeout": 3}
    result = run_with_default(balancer.master_socket, as_nobody=True, **arguments)
    assert not result.get("failed"), result
    assert len(result["warnings"]) == 1
    assert f"no permission for the master socket {balancer.master_socket}" in warnings(result)


# Errors


@pytest.mark.parametrize("wait", [{}, {"wait_until": "up"}], ids=["", "wait"])
def test_error_if_no_haproxy_listens(tmp_path: Path, free_port: FreePort, wait: Result) -> None:
    path = tmp_path / "admin.sock"
    started = time.monotonic()
    result = run_module(socket=str(path), **wait)
    assert_failed(result, "silent", f" {path} (No such file or directory)", f"stats socket {path} ")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert_failed(run_module(socket=str(path), **wait), "silent", f" {path} (Connection refused)")
    port = free_port()
    result = run_module(socket=f"127.0.0.1:{port}", **wait)
    assert_failed(result, "silent", f" 127.0.0.1:{port} (Connection refused)")
    result = run_module(url=f"http://127.0.0.1:{port}/stats", **wait)
    assert_failed(result, "silent", f" http://127.0.0.1:{port}/stats;csv (Connection refused)")
    assert time.monotonic() - started < 30


def test_haproxy_that_starts_late_is_waited_for(balancer: LoadBalancer) -> None:
    simple(balancer)
    balancer.stop()
    with balancer.waiting() as waiting:
        balancer.start()
        assert not waiting.result().get("failed")


def test_error_if_the_path_is_not_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("", encoding="utf-8")
    assert_failed(run_module(socket=str(path)), "settings", str(path), "stats socket")


@pytest.mark.parametrize(
    "named",
    [
        *("admin.sock", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1", "a:b", ""),
        *("/run/\0", "/" + 107 * "a", "a/b:9" + 107 * "9"),
    ],
)
def test_invalid_socket_is_refused(named: str) -> None:
    assert_failed(run_module(socket=named), "settings", "socket must be a path", "or host:port, not ")


@pytest.mark.parametrize(
    "named", ["haproxy", "ftp://127.0.0.1/", "http://", "http://127.0.0.1:x/", "file:///etc/passwd"]
)
def test_invalid_url_is_refused(named: str) -> None:
    assert_failed(run_module(url=named), "settings", "url", "http://", "https://")


def test_inconsistent_options_are_refused() -> None:
    assert_failed(run_module(socket="/run/x", url="http://127.0.0.1/"), "", "mutually exclusive: socket|url")
    assert_failed(run_module(url_username="ada"), "", "url")
    assert_failed(
        run_module(socket="/run/x", max_sessions=-1), "settings", "max_sessions must be 0 to 2147483647, not -1."
    )


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "1e10"])
@pytest.mark.parametrize("name", ["timeout", "interval"])
def test_invalid_times_are_refused(name: str, number: str) -> None:
    arguments: Result = {"socket": "/run/x", "wait_until": "up", name: number}
    assert_failed(run_module(**arguments), "settings", f"{name} must be 0 to 86400 seconds, not ")


@pytest.mark.parametrize("number", [-1, 10**10])
def test_invalid_max_sessions_is_refused(number: int) -> None:
    result = run_module(socket="/run/x", max_sessions=number)
    assert_failed(result, "settings", f"max_sessions must be 0 to 2147483647, not {number}.")


def test_interval_that_is_too_short_is_refused() -> None:
    assert_failed(run_module(socket="/run/x", interval=0), "settings", "interval must be 0.05 seconds or more, not 0.")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_error_if_the_socket_is_not_accessible(balancer: LoadBalancer) -> None:
    simple(balancer)
    # Other users can enter the folder, but cannot connect to the socket.
    for folder in [balancer.folder, *balancer.folder.parents][:3]:
        folder.chmod(0o755)
    result = balancer.run_module(as_nobody=True)
    assert_failed(result, "permission", str(balancer.socket), "become")


class FakeServer(socketserver.ThreadingTCPServer):
    """Sends these bytes to every client, and then closes the connection unless it hangs."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, sent: bytes | Callable[[], bytes], hangs: bool = False, listens: bool = True) -> None:
        self.sent = sent
        self.over = threading.Event()
        self.hangs = hangs
        self.listens = listens
        super().__init__(("127.0.0.1", 0), FakeServerHandler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def server_close(self) -> None:
        self.over.set()
        self.shutdown()
        super().server_close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class FakeServerHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        fake = cast("FakeServer", self.server)
        if fake.listens:
            self.request.recv(4096)
        sent = fake.sent() if callable(fake.sent) else fake.sent
        self.request.sendall(sent)
        if fake.hangs:
            fake.over.wait(PATIENCE_SECONDS)


INFO = b"Name: HAProxy\nVersion: 2.6.12\nPid: 7\n\n"


@pytest.mark.parametrize(
    ("sent", "cause", "named"),
    [
        (b"", "silent", "closed the connection"),
        (b"UP 50%\n", "answer", "'UP 50%'"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "answer", "'HTTP/1.1 400"),
        (b"\x1b[2J\0\xff\x80", "answer", r"'\x1b[2J\x00\xff\x80'"),
        (INFO[:20], "silent", "incomplete"),
        (INFO, "silent", "incomplete"),
        (b"Permission denied\n\n", "permission", "level"),
        (INFO + b"Permission denied\n\n", "permission", "level"),
        (b"Unknown command: 'show'\n\n", "settings", "is HAProxy's master socket"),
        (INFO + b"Unknown command\n\n", "answer", "'Unknown command'"),
        (INFO.replace(b"Pid: 7", b"Pid: seven"), "answer", "Pid"),
    ],
)
def test_error_if_the_peer_is_not_a_stats_socket(sent: bytes, cause: str, named: str) -> None:
    with FakeServer(sent) as fake:
        assert_failed(run_module(socket=fake.address), cause, named, fake.address)


def test_error_if_the_peer_stays_silent() -> None:
    for sent, named in [
        (b"", "nothing"),
        (b"* OK ready", "'* OK ready'"),
        (b"\0", r"'\x00'"),
    ]:
        with FakeServer(sent, hangs=True) as fake:
            started = time.monotonic()
            result = run_module(socket=fake.address, timeout=1)
            assert_failed(result, "silent", named, fake.address)
            assert time.monotonic() - started < 10


def test_endless_answer_is_an_error_with_each_python(python: str) -> None:
    """Before Python 3.10, sockets raise another exception at a timeout."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0"
    for sent, option in ((chunked, "url"), (INFO, "socket")):
        with FakeServer(sent, hangs=True) as fake:
            address = f"http://{fake.address}/" if option == "url" else fake.address
            arguments: Result = {option: address, "timeout": 0.5}
            assert_failed(run_module(python=python, **arguments), "silent", "does not end")


def test_incomplete_answers_are_read_again_while_the_module_waits(balancer: LoadBalancer) -> None:
    """An incomplete answer neither ends the wait nor is taken for a complete one."""
    simple(balancer, "drain")
    balancer.backend("never", "server used SERVICE")
    commands = "show info;show stat;show servers state"
    lengths: list[int] = []

    def cut() -> bytes:
        answer = balancer.send(commands).encode()
        lengths.append(len(answer))
        return answer[: len(answer) * len(lengths) // 6] if len(lengths) < 6 else answer

    with FakeServer(cut) as fake:
        result = run_module(socket=fake.address, wait_until="drained", timeout=30, interval=0.1)
        assert not result.get("failed"), result
    assert len(lengths) >= 6


# Special answers of HAProxy


def test_haproxy_enterprise_is_accepted(balancer: LoadBalancer) -> None:
    """HAProxy Enterprise differs only in its name."""
    simple(balancer)

    def answer() -> bytes:
        reported = balancer.send("show info;show stat;show servers state").encode()
        return reported.replace(b"Name: HAProxy\n", b"Name: hapee-lb\n")

    with FakeServer(answer) as fake:
        result = run_module(socket=fake.address)
        assert [server["server"] for server in result["servers"]] == ["web7"]


def test_unreadable_row_affects_only_its_server(balancer: LoadBalancer) -> None:
    balancer.backend("web", "server web6 SERVICE", "server web7 SERVICE")
    balancer.start()

    def answer() -> bytes:
        reported = balancer.send("show info;show stat;show servers state").encode()
        return reported.replace(b"\nweb,web7,", b"\nweb,web7,one more column,")

    with FakeServer(answer) as fake:
        result = run_module(socket=fake.address)
        assert [server["server"] for server in result["servers"]] == ["web6"]
        assert "web/web7" in warnings(result)
        assert not run_module(socket=fake.address, server="web6", wait_until="up").get("failed")
        assert_failed(run_module(socket=fake.address, server="web7"), "answer", "web/web7")
        assert_failed(run_module(socket=fake.address, wait_until="up"), "answer", "web/web7")


BODY = b'Error: database down\n\nTraceback:\n  File x, "y" \x1b[2J\n'


def with_text_of_the_second(query: Callable[[], Result], eventually: Eventually) -> Result:
    """Repeat a query until it returns a text of the second server's health check: there is none during a check."""
    result: Result = {}

    def has_text() -> bool:
        result.update(query())
        return result["servers"][1]["health_check"]["text"] is not None

    eventually(has_text, "the text of a health check")
    return result


def test_text_of_a_health_check_may_contain_empty_lines(balancer: LoadBalancer, eventually: Eventually) -> None:
    """The text must not end the table, and must not reach a terminal unescaped."""
    sick = FakeServer(b"HTTP/1.0 503 Sorry\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))
    well = FakeServer(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
    checks = "check inter 100ms rise 1 fall 1"
    with sick, well:
        balancer.backend(
            "web",
            "mode http",
            "option httpchk GET /health",
            'http-check expect status 200 on-error "%[res.body]"',
            f"server web6 {well.address} {checks}",
            f"server web7 {sick.address} {checks}",
            f"server web8 {well.address} {checks}",
        )
        balancer.start()
        balancer.await_status(eventually, web6="UP", web7="DOWN", web8="UP")
        for query in (balancer.run_module, lambda: on_page(balancer)):
            result = with_text_of_the_second(query, eventually)
            assert [server["server"] for server in result["servers"]] == ["web6", "web7", "web8"]
            text = result["servers"][1]["health_check"]["text"]
            assert text.startswith("Error: database down Traceback: File x,")
            assert r"\x1b[2J" in text
        for wanted, server in (("down", "web7"), ("up", "web8")):
            assert not balancer.run_module(wait_until=wanted, server=server, timeout=5).get("failed")


def test_servers_that_were_never_in_rotation_are_recognizable(
    balancer: LoadBalancer, free_port: FreePort, eventually: Eventually
) -> None:
    """Placeholders without an address and servers that the configuration disables differ from drained ones."""
    balancer.section("resolvers dns", f"    nameserver a 127.0.0.1:{free_port()}", "    resolve_retries 1")
    balancer.section("    timeout resolve 200ms", "    timeout retry 200ms", "    hold other 200ms")
    line, _agent = with_agent(balancer, "web1", "up")
    balancer.backend(
        "web",
        line,
        f"server-template auto 1-2 auto.svc.invalid:80 resolvers dns init-addr none {CHECKS} agent-port 9",
        f"server spare SERVICE {CHECKS} agent-port 9 disabled",
        "server spareunchecked SERVICE disabled",
        "server enabled SERVICE check inter 100ms disabled",
        "server kept SERVICE check inter 100ms",
        "server backup SERVICE backup",
    )
    balancer.start()
    balancer.send("set server web/enabled state ready")
    balancer.await_status(eventually, web1="UP", enabled="UP", auto1="MAINT (resolution)", spare="MAINT")
    for name in ("enabled", "kept"):
        balancer.send(f"set server web/{name} state maint")
    balancer.await_status(eventually, enabled="MAINT", kept="MAINT")
    never = {"auto1": ["resolution"], "auto2": ["resolution"]}
    disabled = {"spare": ["configuration"], "spareunchecked": ["configuration"]}
    was_in = {"web1": [], "enabled": ["operator"], "kept": ["operator"], "backup": []}
    result = balancer.run_module()
    assert {server["server"]: server["admin_by"] for server in result["servers"]} == {**never, **disabled, **was_in}
    # A server without an address has no agent that could respond.
    assert not any("web/auto" in warning for warning in result["agent_check_warnings"])
    on_the_page = {server["server"]: server["admin_by"] for server in on_page(balancer)["servers"]}
    assert on_the_page == {**never, **{name: [] for name in [*disabled, *was_in]}}


# The stats page


def on_page(balancer: LoadBalancer, **arguments: Any) -> Result:
    return run_module(**{"url": balancer.page, "user": "ada", "password": "secret", **arguments})


def test_page_has_fewer_fields(balancer: LoadBalancer, eventually: Eventually) -> None:
    simple(balancer, "drain up # new disk")
    balancer.await_status(eventually, web7="DRAIN (agent)")
    for url in (balancer.page, f"{balancer.page};csv"):
        result = on_page(balancer, url=url, wait_until="drained", timeout=5)
        (server,) = result["servers"]
        assert (server["status"], server["admin_state"], server["admin_by"]) == ("DRAIN (agent)", "drain", [])
        assert (server["weight"], server["configured_weight"], server["balance"]) == (100, None, "roundrobin")
        assert server["agent_check"]["text"] == "via agent : up (new disk)"
        assert result["haproxy"] is None
        assert "secret" not in json.dumps(result)
    assert_failed(on_page(balancer, server="web8"), "selection", "HAProxy has no server web8: it has web/web7")


def test_wrong_password_of_the_page_is_an_error(balancer: LoadBalancer) -> None:
    simple(balancer)
    for arguments in ({"password": "wrong"}, {"user": None, "password": None}):
        result = on_page(balancer, **arguments)
        assert_failed(result, "permission", f"{balancer.page};csv (HTTP 401)", "url_username", "url_password")


@pytest.mark.parametrize("userinfo", ["eve:geheim", "geheim", ":geheim", "eve:geheim@home", "eve:geheim:x"])
@pytest.mark.parametrize("more", [{}, {"timeout": "soon"}, {"socket": "/run/x"}], ids=["", "type", "exclusive"])
def test_password_in_the_url_is_refused_and_hidden(userinfo: str, more: Result) -> None:
    """The password is hidden even if the module fails for another reason before it reads the URL."""
    result = run_module(url=f"http://{userinfo}@127.0.0.1:1/stats", **more)
    assert result["failed"]
    assert result["invocation"]["module_args"]["url"].startswith("http://")
    assert "geheim" not in json.dumps(result)
    if not more:
        assert_failed(result, "settings", "url_username", "url_password")


class OtherPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        codes = {"/page": 200, "/broken": 500, "/moved": 302}
        self.send_response(codes.get(self.path.split(";")[0], 404))
        self.send_header("Location", "http://127.0.0.1:1/else\x1b[2J")
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_error_if_the_url_is_not_a_stats_page() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OtherPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert_failed(run_module(url=f"{url}/page"), "answer", f"{url}/page;csv", "'<html>hello</html>'")
        assert_failed(run_module(url=f"{url}/none"), "answer", f"{url}/none;csv", "HTTP 404", "stats uri")
        assert_failed(run_module(url=f"{url}/broken"), "answer", f"{url}/broken;csv", "HTTP 500")
        moved = run_module(url=f"{url}/moved", user="ada", password="secret")
        assert_failed(moved, "answer", f"{url}/moved;csv", "HTTP 302", r"http://127.0.0.1:1/else\x1b[2J")
        server.shutdown()
    with FakeServer(b"hello\n") as fake:
        result = run_module(url=f"http://{fake.address}/")
        assert_failed(result, "answer", f"http://{fake.address}/;csv", "HTTP server", "(hello")
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + CAPTURED.read_bytes()[:-1]
    for sent in (half, half.replace(b"Content-Length: 99999\r\n", b"")):
        with FakeServer(sent) as fake:
            assert_failed(run_module(url=f"http://{fake.address}/"), "silent", "incomplete")


def test_page_may_use_https(balancer: LoadBalancer, tmp_path: Path, free_port: FreePort) -> None:
    pem, ca = tmp_path / "lb.pem", tmp_path / "ca.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lb -addext subjectAltName=IP:127.0.0.1"
    key = subprocess.run([*command.split(), "-keyout", "-", "-out", ca], capture_output=True, check=True).stdout
    pem.write_bytes(ca.read_bytes() + key)
    port = free_port()
    balancer.section("frontend tls", "    mode http", f"    bind 127.0.0.1:{port} ssl crt {pem}", "    stats enable")
    balancer.section("    stats uri /stats")
    simple(balancer)
    url = f"https://127.0.0.1:{port}/stats"
    assert [server["server"] for server in run_module(url=url, ca_path=str(ca))["servers"]] == ["web7"]
    assert [server["server"] for server in run_module(url=url, validate_certs=False)["servers"]] == ["web7"]
    assert_failed(run_module(url=url), "answer", f"{url};csv", "ca_path")
    os.mkfifo(tmp_path / "fifo.pem")
    (tmp_path / "empty.pem").touch()
    for name in ("none.pem", "fifo.pem", "empty.pem"):
        assert_failed(run_module(url=url, ca_path=str(tmp_path / name)), "settings", name, "ca_path")
    plain = f"https://{balancer.page.split('/')[2]}/stats"
    assert_failed(run_module(url=plain), "answer", f"{plain};csv", "TLS", " http://")


def test_stats_socket_may_use_tcp(balancer: LoadBalancer) -> None:
    simple(balancer)
    assert [server["server"] for server in run_module(socket=balancer.tcp)["servers"]] == ["web7"]


# Warnings about agent checks


def test_useless_agent_checks_cause_warnings(
    balancer: LoadBalancer, eventually: Eventually, free_port: FreePort
) -> None:
    gone = free_port()
    web = [
        with_agent(balancer, "well", "up")[0],
        f"server deaf SERVICE {CHECKS} agent-port {gone}",
        with_agent(balancer, "junk", "hello")[0],
        with_agent(balancer, "light", "up 50%")[0].replace("weight 100", "weight 1"),
        with_agent(balancer, "rounded", "up 4%")[0].replace("weight 100", "weight 20"),
        with_agent(balancer, "zero", "up 0%")[0],
        with_agent(balancer, "nothing", "up")[0].replace("weight 100", "weight 0"),
        with_agent(balancer, "disabled", "up")[0],
        "server none SERVICE check",
    ]
    balancer.backend("web", *web)
    balancer.backend("api", "server tracking SERVICE track web/none", "server well SERVICE track web/well")
    balancer.backend("fixed", "balance static-rr", with_agent(balancer, "half", "up 50%")[0], web[0])
    balancer.backend("hashed", "balance source", with_agent(balancer, "half", "up 50%")[0])
    balancer.backend("moving", "balance source", "hash-type consistent", with_agent(balancer, "half", "up 50%")[0])
    balancer.start()
    balancer.send("disable agent web/disabled")

    def all_were_polled() -> bool:
        stat = balancer.send("show stat")
        return "L4CON" in stat and stat.count("static LB") == 2 and "reports an error" in stat and ",INI," not in stat

    eventually(all_were_polled, "all agents were polled")
    expected = {
        "web/deaf": ["(L4CON"],
        "web/junk": ["(agent reports an error : hello)"],
        "web/light": ["weight 1,", " 100%"],
        "web/rounded": ["weight 20,", " 5%"],
        "web/nothing": ["weight is 0,"],
        "web/disabled": ["enable agent"],
        "web/none": ["no agent-check on its server line: "],
        "api/tracking": ["web/none"],
        "fixed/half": ["balance static-rr "],
        "hashed/half": ["balance source "],
    }
    result: Result = {}

    def reported() -> dict[str, str]:
        return dict(warning.split(": ", 1) for warning in result["agent_check_warnings"])

    def has_expected_warnings() -> bool:
        # HAProxy does not show the response of an agent that it is polling at the moment.
        result.update(balancer.run_module())
        return set(reported()) == set(expected)

    eventually(has_expected_warnings, "there are exactly the expected warnings")
    for server, words in expected.items():
        assert all(word in reported()[server] for word in words), reported()[server]
    for warning in result["agent_check_warnings"]:
        assert json.dumps(warning) in warnings(result)
    assert balancer.run_module(server="well")["agent_check_warnings"] == []


def test_response_of_a_slow_agent_is_returned(balancer: LoadBalancer, eventually: Eventually) -> None:
    """While HAProxy polls an agent, it does not show the agent's previous response."""
    simple(balancer, "drain up # new disk")
    balancer.await_status(eventually, web7="DRAIN (agent)")
    texts = {balancer.servers()["web/web7"]["agent_check"]["text"] for _look in range(10)}
    # The module reads again a few times, but on a busy machine every time may be too early.
    assert "via agent : up (new disk)" in texts
    assert texts <= {"via agent : up (new disk)", None}
