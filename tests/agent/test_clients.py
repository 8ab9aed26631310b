# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""No client can keep the agent from answering others, whether it floods, stalls, resets or sends nothing."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually

# Enough for standard input, output and error, but not for a client.
NO_DESCRIPTORS_LEFT = 3


def assert_answers_others(agent: Agent) -> None:
    for _round in range(20):
        assert agent.ask() == b"UP\n"


@pytest.mark.parametrize("size", [1, 6, 4096, 16_384, 60_000])
def test_payload_does_not_reset_the_connection(lasting_agent: Agent, size: int) -> None:
    lasting_agent.reload(b'{"status": "UP"}', b"UP\n")
    # The whole payload arrives before the agent accepts: data that arrives after its answer is rightly reset.
    with lasting_agent.paused():
        client = lasting_agent.connect()
        client.sendall(b"x" * size)
    with client:
        assert lasting_agent.read_to_end(client) == b"UP\n"
        # Once the agent answers the next client, it has closed this connection.
        assert lasting_agent.ask() == b"UP\n"
        # The client has read the answer to its end, so only this option would still show a reset.
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize(
    "payload", [b"UP 50%\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00", b"\0" * 99]
)
def test_payload_is_ignored(agents: Agents, payload: bytes) -> None:
    agent = agents.start(b'{"status": "MAINT"}')
    with agent.paused():
        client = agent.connect()
        client.sendall(payload)
    with client:
        assert agent.read_to_end(client) == b"MAINT\n"
    assert len(agent.log()) == len(["start", "answering"])


def test_silent_client_is_answered_at_once(agents: Agents, python: str) -> None:
    # HAProxy sends nothing unless agent-send is configured.
    agent = agents.start(python=python)
    with agent.connect() as client:
        assert agent.read_to_end(client) == b"UP\n"


def test_client_that_sends_byte_by_byte_does_not_delay_others(agents: Agents) -> None:
    agent = agents.start()
    with agent.connect() as slow:
        assert slow.recv(3) == b"UP\n"
        for _round in range(20):
            # The agent has answered and no longer reads from this client.
            with contextlib.suppress(ConnectionError):
                slow.send(b"x")
            assert agent.ask() == b"UP\n"


def test_clients_that_never_stop_sending_do_not_delay_others(agents: Agents) -> None:
    agent = agents.start()
    with endless_senders(agent, 3):
        assert_answers_others(agent)


@contextlib.contextmanager
def endless_senders(agent: Agent, count: int) -> Iterator[None]:
    enough = threading.Event()

    def keep_sending() -> None:
        while not enough.is_set():
            with contextlib.suppress(ConnectionError), agent.connect() as client:
                while not enough.is_set():
                    client.sendall(b"x" * 65_536)

    threads = [threading.Thread(target=keep_sending) for _count in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def test_clients_that_neither_read_nor_close_do_not_delay_others(agents: Agents, python: str) -> None:
    agent = agents.start(python=python)
    with contextlib.ExitStack() as idle:
        clients = [idle.enter_context(agent.connect()) for _count in range(400)]
        assert_answers_others(agent)
        # The agent keeps no descriptors for them, so thousands of such clients could not exhaust its limit.
        assert len(agent.opened()) < 20
        for client in clients:
            assert agent.read_to_end(client) == b"UP\n"


def test_clients_that_reset_do_not_delay_others(agents: Agents) -> None:
    agent = agents.start()
    for _round in range(20):
        with agent.paused():
            client = agent.connect()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        assert agent.ask() == b"UP\n"


def test_300_clients_at_once_are_all_answered(agents: Agents) -> None:
    # HAProxy may check all its backends at the same moment, which most listen backlogs could not hold.
    agent = agents.start()
    with contextlib.ExitStack() as waiting:
        with agent.paused():
            clients = [waiting.enter_context(agent.connect()) for _count in range(300)]
        for client in clients:
            assert agent.read_to_end(client) == b"UP\n"


def test_recovers_after_running_out_of_descriptors(agents: Agents) -> None:
    agent = agents.start()
    limits = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (NO_DESCRIPTORS_LEFT, limits[1]))

    with agent.connect() as client:
        agent.await_log("Too many open files")
        assert not agent.spins()
        assert sum("cannot accept" in line for line in agent.log()) == 1
        # The agent still obeys signals, although it cannot save.
        agent.send(signal.SIGUSR2)
        agent.await_log("not saved")

        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, limits)
        assert agent.read_to_end(client) == b"DOWN\n"
    assert agent.ask() == b"DOWN\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_during_checks_cuts_no_answer(agents: Agents, python: str, number: signal.Signals) -> None:
    agent = agents.start(b'{"status": "UP", "weight": 77, "maxconn": 300}', python=python)
    with agent.asked_by(clients=4) as answers:
        agent.send(number)
        assert agent.await_exit() == 0
    # A client that was not accepted is refused or receives nothing, but no client receives part of an answer.
    received = {answer for answer in answers if isinstance(answer, bytes)}
    assert received <= {b"UP 77% maxconn:300\n", b""}
    assert b"UP 77% maxconn:300\n" in received


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_restart_with_socket_activation_leaves_no_client_without_an_answer(
    agents: Agents, python: str, tmp_path: Path, eventually: Eventually, number: signal.Signals
) -> None:
    # The first agent answers the clients that it has accepted. The others wait in the backlog for the second agent.
    state_file = tmp_path / "state.json"
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        take_over = f"os.dup2({listener.fileno()}, 3); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')"

        def start() -> Agent:
            return agents.start(
                python=python,
                state_file=state_file,
                port=listener.getsockname()[1],
                before_exec=take_over,
                pass_fds=[listener.fileno()],
                wait=False,
            )

        def restart(agent: Agent) -> Agent:
            agent.await_log("answering")
            wanted = len(answers) + 20
            eventually(lambda: len(answers) > wanted, "clients are answered again")
            agent.send(number)
            assert agent.await_exit() == 0
            return start()

        agent = start()
        with agent.asked_by(clients=4) as answers:
            for _round in range(5):
                agent = restart(agent)
    assert set(answers) == {b"UP\n"}
