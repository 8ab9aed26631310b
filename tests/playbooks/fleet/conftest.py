# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A simulated fleet of real agents and real HAProxy processes on loopback, in an inventory of local connections."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually, FreePort
    from tests.playbooks.conftest import AnsiblePlaybook

ROOT = Path(__file__).parents[3]
CACHE = ROOT / ".cache"
HAPROXY = CACHE / "haproxy"
# tests/tools/install downloads HAProxy; without it, the tests use the one of the machine.
HAPROXY_PROGRAM = str(HAPROXY / "usr/sbin/haproxy") if HAPROXY.exists() else shutil.which("haproxy") or "haproxy"
HAPROXY_LIBRARIES = os.pathsep.join(str(folder) for folder in HAPROXY.glob("usr/lib/*-linux-gnu*"))
PATIENCE_SECONDS = 15.0
CHECKS = "check inter 500ms agent-check agent-inter 200ms agent-addr 127.0.0.1 weight 100"

# The Ansible that the tests are installed with.
ANSIBLE = Path(sys.executable).parent
UP = {"status": "UP"}
WEB = ("web1", "web2", "web3")
# The source address of each load balancer's checks, by which the agents identify it.
LOAD_BALANCERS = {"lb1": "127.0.0.11", "lb2": "127.0.0.12"}
# This one ends the sessions of a server in maintenance.
CUTS = {"lb2": "on-marked-down shutdown-sessions"}

Variables = dict[str, Any]


class Played:
    """The result of one run of ansible-playbook."""

    def __init__(self, done: subprocess.CompletedProcess[str], records: Path) -> None:
        self.exit_code = done.returncode
        self.output = done.stdout + done.stderr
        lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
        #: The result of each task: C(status) (ok, failed, ignored, skipped, unreachable), C(host), C(task), C(result).
        self.records: list[Variables] = [json.loads(line) for line in lines]

    def hosts(self, status: str) -> set[str]:
        """The hosts with a task of this status."""
        return {record["host"] for record in self.records if record["status"] == status}

    def changed(self) -> set[str]:
        """The hosts on which a task changed something."""
        return {record["host"] for record in self.records if record["result"].get("changed")}

    def results(self, task: str, host: str | None = None) -> list[Variables]:
        """The results of the tasks with this name that were not skipped."""
        return [
            record["result"]
            for record in self.records
            if record["task"] == task and record["status"] != "skipped" and host in (None, record["host"])
        ]

    def failures(self) -> dict[str, str]:
        """The last error message of each host that failed."""
        return {
            record["host"]: str(record["result"].get("msg"))
            for record in self.records
            if record["status"] in ("failed", "unreachable")
        }


class EchoHandler(socketserver.BaseRequestHandler):
    """A session that lasts until the client ends it."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while received := self.request.recv(4096):
                self.request.sendall(received)


class EchoService(socketserver.ThreadingTCPServer):
    """The service that runs on all hosts of the fleet."""

    daemon_threads = True


class LoadBalancer:
    """A HAProxy with the fleet's servers in its backend web, which polls their agents five times a second."""

    def __init__(self, name: str, folder: Path, servers: Mapping[str, int], service: int, free_port: FreePort) -> None:
        self.folder = folder
        self.socket = folder / f"{name}.sock"
        self.master_socket = folder / f"{name}-master.sock"
        self.source = LOAD_BALANCERS[name]
        self._ports = {server: free_port() for server in servers}
        self._config = folder / f"{name}.cfg"
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            "global",
            f"    stats socket {self.socket} mode 600 level admin",
            "defaults",
            "    mode tcp",
            "    timeout connect 2s",
            "    retries 0",
            "    timeout client 10m",
            "    timeout server 10m",
            "frontend to_web",
            *(f"    bind 127.0.0.1:{port}" for port in self._ports.values()),
            "    default_backend web",
            "backend web",
            *(f"    use-server {server} if {{ dst_port {port} }}" for server, port in self._ports.items()),
            f"    default-server {CHECKS} source {self.source} {CUTS.get(name, '')}",
            *(f"    server {server} 127.0.0.1:{service} agent-port {port}" for server, port in servers.items()),
            # YAML and Ansible may take these names for numbers.
            "backend 80",
            f"    default-server {CHECKS} source {self.source}",
            f"    server 7 127.0.0.1:{service} agent-port {servers['web1']}",
            f"    server 3e8 127.0.0.1:{service} agent-port {servers['web1']}",
        ]
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def start(self) -> None:
        """Start HAProxy if it does not run, without waiting until it is ready."""
        if self._process and self._process.poll() is None:
            return
        with (self.folder / "haproxy.log").open("ab") as log:
            self._process = subprocess.Popen(
                [HAPROXY_PROGRAM, "-W", "-S", self.master_socket, "-db", "-f", self._config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LD_LIBRARY_PATH": HAPROXY_LIBRARIES},
            )

    def stop(self) -> None:
        """Kill HAProxy."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def reload(self, eventually: Eventually) -> int:
        """Reload HAProxy, wait until its new worker responds, and return the PID of the old one."""
        assert self._process
        old = self._pid()
        # The master ignores a reload before it answers itself.
        eventually(lambda: "# workers" in self.send("show proc", self.master_socket), "the master responds")
        self._process.send_signal(signal.SIGUSR2)
        eventually(lambda: self._pid() != old and bool(self.statuses()), "another worker responds")
        return old

    def _pid(self) -> int:
        return int(self.send("show info").partition("\nPid: ")[2].split()[0])

    def send(self, command: str, path: Path | None = None) -> str:
        """Send a command to the stats socket, or to another one, and return its answer. Raises OSError."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(str(path or self.socket))
            connection.sendall(f"{command}\n".encode())
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def statuses(self) -> dict[str, str]:
        """The status of each server in the statistics; empty if HAProxy does not run."""
        try:
            lines = [line.split(",") for line in self.send("show stat").splitlines()]
        except OSError:
            return {}
        return {line[1]: line[17] for line in lines if line[0] == "web" and line[1] != "BACKEND"}

    @contextlib.contextmanager
    def session(self, server: str) -> Iterator[None]:
        """Keep a session with a server while the context lasts."""
        with socket.create_connection(("127.0.0.1", self._ports[server]), PATIENCE_SECONDS) as client:
            client.sendall(b"hello")
            assert client.recv(64) == b"hello"
            yield

    def fail_session(self, server: str) -> None:
        """Let HAProxy count a failed connection to a server that stays UP."""
        (row,) = [line.split(",") for line in self.send("show stat").splitlines() if line.startswith(f"web,{server},")]
        self.send(f"disable health web/{server}")
        self.send(f"set server web/{server} addr 127.0.0.1 port 1")
        with socket.create_connection(("127.0.0.1", self._ports[server]), PATIENCE_SECONDS) as client:
            assert client.recv(64) == b""
        self.send(f"set server web/{server} addr 127.0.0.1 port {row[73].rpartition(':')[2]}")
        self.send(f"enable health web/{server}")

    def reset(self) -> None:
        """Undo all manual changes to the servers."""
        for server in self._ports:
            for change in ("state ready", "health up", "agent up", "weight 100%"):
                self.send(f"set server web/{server} {change}")
            self.send(f"enable agent web/{server}")
        self.send("enable agent 80/7")
        self.send("enable agent 80/3e8")


class Fleet:
    """Three hosts with an agent, two load balancers, and an inventory that tests may change."""

    def __init__(
        self,
        folder: Path,
        ansible_playbook: AnsiblePlaybook,
        agents: Agents,
        free_port: FreePort,
        eventually: Eventually,
    ) -> None:
        self._folder = folder
        self._records = folder / "records.json"
        self._ansible_playbook = ansible_playbook
        self._agents = agents
        self._eventually = eventually
        self._stack = contextlib.ExitStack()
        service = self._stack.enter_context(EchoService(("127.0.0.1", 0), EchoHandler))
        self._stack.callback(service.shutdown)
        threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._ports = {name: free_port() for name in WEB}
        self.agents: dict[str, Agent] = {}
        self.load_balancers = {
            name: LoadBalancer(name, folder, self._ports, service.server_address[1], free_port)
            for name in LOAD_BALANCERS
        }
        self.inventory: Variables = {}
        #: The folder in which ansible-playbook runs; it is empty at the beginning of each test.
        self.project = folder / "project"

    def reset(self) -> None:
        """Restore the initial situation: every server is UP on every load balancer, without a reason."""
        shutil.rmtree(self.project, ignore_errors=True)
        self.project.mkdir()
        local = {"ansible_connection": "local", "ansible_python_interpreter": str(self._ansible_playbook.module_python)}
        web = {name: {"hapgent_state_file": str(self._state_file(name))} for name in WEB}
        balancers = {
            name: {"hapgent_haproxy_socket": str(lb.socket), "hapgent_haproxy_master_socket": str(lb.master_socket)}
            for name, lb in self.load_balancers.items()
        }
        of_web = {
            "hapgent_load_balancers": "lb",
            # systemd does not manage these agents, so modules find them by their state files.
            "hapgent_service": "no-service-of-this-name",
            "hapgent_wait_timeout": 15,
            "hapgent_grace": 5,
        }
        groups = {"web": {"hosts": web, "vars": of_web}, "lb": {"hosts": balancers, "vars": {}}}
        self.inventory = {"all": {"vars": local, "children": groups}}
        for name in WEB:
            self._reset_agent(name)
        for balancer in self.load_balancers.values():
            balancer.start()
        self._eventually(self._has_load_balancers, "HAProxy runs")
        for balancer in self.load_balancers.values():
            balancer.reset()
        self._eventually(self._is_up, "all servers are UP on all load balancers")

    @property
    def web_vars(self) -> Variables:
        """The variables of the group web, which tests may change."""
        variables: Variables = self.inventory["all"]["children"]["web"]["vars"]
        return variables

    def host_vars(self, name: str) -> Variables:
        """The variables of a host, which tests may change."""
        for group in self.inventory["all"]["children"].values():
            if name in group["hosts"]:
                variables: Variables = group["hosts"][name]
                return variables
        raise KeyError(name)

    def play(
        self,
        playbook: str | Path,
        *arguments: str,
        succeeds: bool | None = True,
        ansible: Path = ANSIBLE,
        environment: Mapping[str, str] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Played:
        """Run ansible-playbook on the inventory with these extra variables and check its exit status.

        C(ansible) is the folder with the programs of an Ansible release. C(succeeds) is None if the status does not
        matter. Several threads may do this at the same time.
        """
        inventory = self._folder / f"inventory-{threading.get_ident()}.yml"
        inventory.write_text(json.dumps(self.inventory), encoding="utf-8")
        # Several threads may play.
        records = self._records = self._folder / f"records-{threading.get_ident()}.json"
        self.forget()
        done = self._ansible_playbook.run(
            "--inventory",
            inventory,
            *(["--extra-vars", json.dumps(variables)] if variables else []),
            playbook,
            *arguments,
            cwd=self.project,
            records=records,
            ansible=ansible,
            environment=environment,
        )
        played = Played(done, records)
        assert succeeds in (None, played.exit_code == 0), played.output
        return played

    def recorded(self) -> str:
        """The results of the tasks that the last ansible-playbook to start has recorded so far."""
        try:
            return self._records.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    @contextlib.contextmanager
    def once_recorded(self, text: str, act: Callable[[], object]) -> Iterator[None]:
        """Act as soon as the ansible-playbook that runs in the context has recorded a result with this text."""

        def wait_and_act() -> None:
            self._eventually(lambda: text in self.recorded(), f"a task has the result {text}")
            act()

        with ThreadPoolExecutor() as pool:
            acts = pool.submit(wait_and_act)
            yield
        acts.result()

    def forget(self) -> None:
        """Remove the results of the last ansible-playbook."""
        self._records.unlink(missing_ok=True)

    def state(self, name: str) -> Variables:
        """The content of a host's state file."""
        state: Variables = json.loads(self._state_file(name).read_bytes())
        return state

    def states(self) -> dict[str, Variables]:
        """The content of each host's state file."""
        return {name: self.state(name) for name in WEB}

    def set_state(self, name: str, **state: Any) -> None:
        """Change a host's state as an operator does, and wait until its agent has the new state."""
        self.agents[name].write_state(json.dumps(state).encode())
        self.agents[name].process.send_signal(1)
        self._eventually(lambda: self.status(name)["state"] == state, f"{name} has the state {state}")

    def status(self, name: str) -> Variables:
        """What an agent reports on its status socket.

        A check on its port would make the agent take this test for a load balancer.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(str(self._status_socket(name)))
            status: Variables = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
        return status

    def statuses(self) -> dict[str, dict[str, str]]:
        """The status of each server on each load balancer."""
        return {name: balancer.statuses() for name, balancer in self.load_balancers.items()}

    def await_statuses(self, **statuses: str) -> None:
        """Wait until these servers have this status on all load balancers."""
        self._eventually(
            lambda: all(statuses.items() <= balancer.statuses().items() for balancer in self.load_balancers.values()),
            f"{statuses}",
        )

    def end(self) -> None:
        for balancer in self.load_balancers.values():
            balancer.stop()
        self._stack.close()

    def _state_file(self, name: str) -> Path:
        return self._folder / name / "state.json"

    def _status_socket(self, name: str) -> Path:
        return self._folder / f"{name}.sock"

    def _reset_agent(self, name: str) -> None:
        if name in self.agents and self.agents[name].process.poll() is None:
            self.agents[name].process.send_signal(18)  # CONT: a test may have stopped it.
            self.set_state(name, **UP)
            return
        # UP ends a drain only while the agent also sends the keywords that reset the previous state.
        self._start_agent(name, settle=60)

    @contextlib.contextmanager
    def settled(self, name: str) -> Iterator[None]:
        """Replace a host's agent with one that sends the bare state, as if it had settled long ago."""
        self.agents[name].kill()
        self._start_agent(name, settle=0)
        self._eventually(self._is_up, "all servers are UP on all load balancers")
        try:
            yield
        finally:
            self.agents[name].kill()

    def _start_agent(self, name: str, settle: int) -> None:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        (self._folder / name).mkdir()
        self.agents[name] = self._agents.start(
            state_file=self._state_file(name),
            port=self._ports[name],
            environment={"HAPGENT_SETTLE": str(settle), "HAPGENT_SOCKET": str(self._status_socket(name))},
            # Waiting would poll the agent on its port, and it would take the test for a load balancer.
            wait=False,
        )
        self.agents[name].await_log("answering")

    def _has_load_balancers(self) -> bool:
        return all(balancer.statuses() for balancer in self.load_balancers.values())

    def _is_up(self) -> bool:
        seen = [
            {peer["address"] for peer in self.status(name)["peers"] if peer["polls"] and peer["received"]}
            for name in WEB
        ]
        return self.statuses() == dict.fromkeys(LOAD_BALANCERS, dict.fromkeys(WEB, "UP")) and all(
            set(LOAD_BALANCERS.values()) <= addresses for addresses in seen
        )


@pytest.fixture(scope="session")
def lasting_fleet(
    tmp_path_factory: pytest.TempPathFactory,
    ansible_playbook: AnsiblePlaybook,
    agents_in: Callable[[Path], Agents],
    lasting_port: FreePort,
    eventually: Eventually,
) -> Iterator[Fleet]:
    """The fleet that all tests share, in the condition in which the previous test left it."""
    folder = tmp_path_factory.mktemp("fleet")
    fleet = Fleet(folder, ansible_playbook, agents_in(folder), lasting_port, eventually)
    try:
        yield fleet
    finally:
        fleet.end()


@pytest.fixture
def fleet(lasting_fleet: Fleet) -> Fleet:
    """The fleet with all servers UP, the inventory as in Fleet.reset, and an empty project folder."""
    lasting_fleet.reset()
    return lasting_fleet
