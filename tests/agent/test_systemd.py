# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent follows systemd's protocols for socket activation, notification and the journal; systemd is not needed."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agents

FULL = b'{"status": "UP", "weight": 77, "maxconn": 300}'
TO_JOURNAL = "found = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{found.st_dev}:{found.st_ino}'"


def hand_over(descriptor: int, count: str = "1", pid: str = "os.getpid()") -> str:
    """Return code that passes a socket as systemd does between fork and exec. Source: sd_listen_fds(3)."""
    return (
        f"os.dup2({descriptor}, 3); os.set_inheritable(3, True); "
        f"os.environ.update(LISTEN_PID=str({pid}), LISTEN_FDS={count!r})"
    )


class Manager:
    """The service manager's end of the notification socket. Source: sd_notify(3)."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(15)
        self._socket.bind(address.replace("@", "\0", 1))
        self.address = address

    def receive(self) -> list[str]:
        return self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


def assert_reports_status(line: str, answer: str) -> None:
    assert re.fullmatch(rf"STATUS={re.escape(answer)} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d \w+", line)


# Socket activation


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_listens_on_the_socket_from_systemd(agents: Agents, python: str, ip: str) -> None:
    if ip == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("needs IPv6")
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.create_server((ip, 0), family=family) as listener:
        # The agent's own settings must then be ignored.
        agent = agents.start(
            FULL,
            python=python,
            before_exec=hand_over(listener.fileno()),
            pass_fds=[listener.fileno()],
            ip=ip,
            port=listener.getsockname()[1],
            environment={"HAPGENT_IP": "192.0.2.1", "HAPGENT_PORT": "1"},
        )
        assert agent.ask() == b"UP 77% maxconn:300\n"
        assert agent.log()[-1] == f"hapgent: answering UP 77% maxconn:300 on {ip} port {agent.port}"


def test_ignores_a_socket_meant_for_another_process(agents: Agents) -> None:
    # The agent may inherit these variables from a parent process that systemd started.
    agent = agents.start(before_exec=hand_over(0, pid="os.getppid()"))
    assert agent.ask() == b"UP\n"


def test_nonblocking_socket_works_without_busy_waiting(agents: Agents) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        agent = agents.start(
            before_exec=hand_over(listener.fileno()),
            pass_fds=[listener.fileno()],
            port=listener.getsockname()[1],
        )
        assert not agent.spins()
        assert agent.ask() == b"UP\n"


def unusable_socket(kind: str, folder: Path) -> socket.socket:
    if kind == "Unix listener":
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(folder / "socket"))
        unix.listen()
        return unix
    other = socket.socket(type=socket.SOCK_DGRAM if kind == "UDP socket" else socket.SOCK_STREAM)
    other.bind(("127.0.0.1", 0))
    return other


@pytest.mark.parametrize("kind", ["TCP socket that does not listen", "UDP socket", "Unix listener"])
def test_socket_of_the_wrong_kind_is_an_error(agents: Agents, tmp_path: Path, kind: str) -> None:
    with unusable_socket(kind, tmp_path) as unusable:
        descriptor = unusable.fileno()
        agent = agents.start(before_exec=hand_over(descriptor), pass_fds=[descriptor], wait=False)
        assert agent.await_exit() == 2
    (line,) = agent.log()
    for word in ["LISTEN_FDS", "TCP listener", "ListenStream="]:
        assert word in line


@pytest.mark.parametrize("count", ["0", "2", "", "one"])
def test_wrong_number_of_sockets_is_an_error(agents: Agents, count: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor = listener.fileno()
        agent = agents.start(before_exec=hand_over(descriptor, count), pass_fds=[descriptor], wait=False)
        assert agent.await_exit() == 2
    (line,) = agent.log()
    for word in ["LISTEN_FDS", repr(count), "ListenStream="]:
        assert word in line


@pytest.mark.parametrize("what", [hand_over(0), f"{hand_over(0)}; os.close(3)"], ids=["a file", "nothing"])
def test_descriptor_that_is_not_a_socket_is_an_error(agents: Agents, what: str) -> None:
    agent = agents.start(before_exec=what, wait=False)
    assert agent.await_exit() == 2
    (line,) = agent.log()
    for word in ["LISTEN_FDS", "not a socket"]:
        assert word in line


# Notification


def test_reports_ready_when_it_answers(agents: Agents, python: str, manager: Manager) -> None:
    agent = agents.start(FULL, python=python, environment={"NOTIFY_SOCKET": manager.address}, wait=False)
    ready, status = manager.receive()
    # The agent must answer as soon as it is ready, because systemd then starts the units ordered after it.
    assert agent.ask() == b"UP 77% maxconn:300\n"
    assert ready == "READY=1"
    assert_reports_status(status, "UP 77% maxconn:300")


def test_reports_each_change(agents: Agents, python: str, manager: Manager) -> None:
    agent = agents.start(FULL, python=python, environment={"NOTIFY_SOCKET": manager.address})
    manager.receive()

    agent.send(signal.SIGUSR2)
    (status,) = manager.receive()
    assert_reports_status(status, "DOWN 77% maxconn:300")

    agent.send(signal.SIGUSR1)
    (status,) = manager.receive()
    assert_reports_status(status, "UP 77% maxconn:300")

    agent.write_state(b'{"status": "DRAIN"}')
    before = time.monotonic_ns() // 1000
    agent.send(signal.SIGHUP)
    reloading, moment = manager.receive()
    ready, status = manager.receive()
    assert reloading == "RELOADING=1"
    # systemd compares this with its own clock, to distinguish this reload from the previous one.
    name, _equals, value = moment.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000
    assert ready == "READY=1"
    assert_reports_status(status, "DRAIN")

    agent.send(signal.SIGTERM)
    assert manager.receive() == ["STOPPING=1"]
    assert agent.await_exit() == 0


def test_reports_fail_after_a_broken_state_file(agents: Agents, manager: Manager) -> None:
    agent = agents.start(environment={"NOTIFY_SOCKET": manager.address})
    manager.receive()
    agent.write_state(b"")
    agent.send(signal.SIGHUP)
    assert manager.receive()[0] == "RELOADING=1"
    ready, status = manager.receive()
    assert ready == "READY=1"
    assert_reports_status(status, "FAIL")


def test_reload_without_a_change_keeps_the_reported_status(agents: Agents, manager: Manager) -> None:
    agent = agents.start(environment={"NOTIFY_SOCKET": manager.address})
    _ready, status_before = manager.receive()
    lines_before = agent.log()
    agent.send(signal.SIGHUP)
    assert manager.receive()[0] == "RELOADING=1"
    # The status still has the time of the last change, and nothing was logged.
    assert manager.receive() == ["READY=1", status_before]
    assert agent.log() == lines_before


def test_notifies_an_abstract_address(agents: Agents) -> None:
    manager = Manager(f"@hapgent-tests-{os.getpid()}")
    agents.start(environment={"NOTIFY_SOCKET": manager.address})
    assert manager.receive()[0] == "READY=1"
    manager.close()


def test_works_without_the_manager_that_it_should_notify(agents: Agents, tmp_path: Path) -> None:
    agent = agents.start(environment={"NOTIFY_SOCKET": str(tmp_path / "missing")})
    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN\n")


# Journal


def test_lines_in_the_journal_have_priorities(agents: Agents, python: str) -> None:
    agent = agents.start(python=python, before_exec=TO_JOURNAL)
    agent.reload(b'{"status": "UP", "weight": 300}', b"FAIL\n")
    start, answering, problem = agent.log()
    assert start == "<6>FAIL -> UP (start)"
    assert answering == f"<6>answering UP on 127.0.0.1 port {agent.port}"
    assert problem.startswith("<3>UP -> FAIL (SIGHUP): ")


@pytest.mark.parametrize("stream", ["", "8:12345", "nonsense"])
def test_lines_elsewhere_have_no_priorities(agents: Agents, stream: str) -> None:
    # The agent may inherit JOURNAL_STREAM from a parent process although its own standard error goes elsewhere.
    agent = agents.start(environment={"JOURNAL_STREAM": stream})
    assert [line.partition(" ")[0] for line in agent.log()] == ["hapgent:", "hapgent:"]


def test_error_at_start_has_a_priority(agents: Agents) -> None:
    agent = agents.start(before_exec=TO_JOURNAL, environment={"HAPGENT_PORT": "0"}, wait=False)
    assert agent.await_exit() == 2
    (line,) = agent.log()
    assert line.startswith("<3>HAPGENT_PORT ")
