# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The client polls an agent, reads its status socket and makes it reload, within its deadline and whatever responds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._agent_client import Instance, NoStatusError, ask
from ansible_collections.hapgent.agent.plugins.module_utils._agent_process import InstanceError, Process
from ansible_collections.hapgent.agent.plugins.module_utils._state import State

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents


def in_seconds(seconds: float) -> float:
    return time.monotonic() + seconds


def instance_on_port(agent: Agent) -> Instance:
    return Instance(Process(agent.pid), "", "", agent.ip, agent.port)


def start_with_status(agents: Agents, path: Path, *, settle: int = 0, **options: Any) -> tuple[Agent, Instance]:
    """Start an agent with a status socket at this path; the instance's port belongs to no agent."""
    environment = {"HAPGENT_SOCKET": str(path), "HAPGENT_SETTLE": str(settle)}
    agent = agents.start(environment=environment, **options)
    return agent, Instance(Process(agent.pid), str(agent.state_file), str(path), "127.0.0.1", 1)


# Polling the port and reloading


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_answer_is_read_from_the_port(agents: Agents, ip: str) -> None:
    agent = agents.start(b'{"status": "UP", "weight": 77, "maxconn": 300}', ip=ip)
    assert instance_on_port(agent).answer(in_seconds(10)) == "UP 77% maxconn:300"


def test_reload_makes_the_agent_read_its_state(agents: Agents) -> None:
    agent = agents.start()
    agent.write_state(b'{"status": "DRAIN"}')
    instance_on_port(agent).reload()
    agent.await_answer(b"DRAIN\n")


def test_reload_fails_if_the_process_has_ended(agents: Agents) -> None:
    agent = agents.start()
    instance = instance_on_port(agent)
    agent.kill()
    with pytest.raises(InstanceError, match=f"{agent.pid}: No such process"):
        instance.reload()


def test_polling_fails_if_no_process_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(InstanceError) as caught:
            ask("127.0.0.1", port, in_seconds(10))
    for word in ["127.0.0.1", str(port), "Connection refused"]:
        assert word in str(caught.value)


def test_polling_a_stopped_agent_times_out(agents: Agents) -> None:
    agent = agents.start()
    with agent.paused(), pytest.raises(InstanceError, match=f"{agent.port} .*timed out"):
        instance_on_port(agent).answer(in_seconds(0.3))


def serve_one(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A listener that handles its first client like this, because a process on the port need not be an agent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            client = listener.accept()[0]
            with client:
                serve(client)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.fixture
def no_agent(request: pytest.FixtureRequest) -> Iterator[int]:
    yield from serve_one(request.param)


def close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_RDWR)


def send_no_line(client: socket.socket) -> None:
    client.sendall(b"SSH-2.0")


def send_without_end(client: socket.socket) -> None:
    client.settimeout(1)
    until = in_seconds(5)
    while time.monotonic() < until:
        try:
            client.sendall(b"x" * 1000)
        except OSError:
            return


def drip_without_end(client: socket.socket) -> None:
    until = in_seconds(5)
    while time.monotonic() < until:
        try:
            client.sendall(b"x")
        except OSError:
            return
        time.sleep(0.01)


def send_byte_by_byte(client: socket.socket) -> None:
    for byte in b"DRAIN 50%\n":
        client.sendall(bytes([byte]))
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("no_agent", "received"), [(close, "b''"), (send_no_line, "b'SSH-2.0'")], indirect=["no_agent"]
)
def test_polling_fails_if_the_response_is_not_a_line(no_agent: int, received: str) -> None:
    with pytest.raises(InstanceError, match=f"{no_agent} .*{received} "):
        ask("127.0.0.1", no_agent, in_seconds(10))


@pytest.mark.parametrize("no_agent", [send_byte_by_byte], indirect=True)
def test_polling_accepts_a_response_in_pieces(no_agent: int) -> None:
    assert ask("127.0.0.1", no_agent, in_seconds(10)) == "DRAIN 50%"


@pytest.mark.parametrize("no_agent", [send_without_end, drip_without_end], indirect=True)
def test_polling_an_endless_response_times_out(no_agent: int) -> None:
    started = time.monotonic()
    with pytest.raises(InstanceError) as caught:
        ask("127.0.0.1", no_agent, in_seconds(0.5))
    # The other side gives up after 5 s, so the client must give up earlier.
    assert time.monotonic() - started < 4
    assert len(str(caught.value)) < 1000


# Status socket


def test_status_is_read_from_the_socket(agents: Agents, tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    agent, instance = start_with_status(agents, path, state=b'{"status": "DRAIN", "weight": 5, "reason": "x"}')
    status = instance.status(in_seconds(10))
    assert (status["state_file"], status["answer"]) == (str(agent.state_file), "DRAIN UP 5% # x")
    assert [peer["address"] for peer in status["peers"]] == ["127.0.0.1"]


def test_answer_contains_no_keywords_that_reset_the_previous_state(agents: Agents, tmp_path: Path) -> None:
    agent, instance = start_with_status(agents, tmp_path / "status.sock", settle=3600, state=b'{"status": "DRAIN"}')
    agent.reload(b'{"status": "UP"}', b"UP READY\n")
    assert instance.answer(in_seconds(10)) == "UP"


def test_reading_the_status_does_not_count_as_a_poll(agents: Agents, tmp_path: Path) -> None:
    _agent, instance = start_with_status(agents, tmp_path / "status.sock")
    before = instance.status(in_seconds(10))
    instance.answer(in_seconds(10))
    after = instance.status(in_seconds(10))
    assert after["counters"]["checks"] == before["counters"]["checks"]
    assert [peer["checks"] for peer in after["peers"]] == [peer["checks"] for peer in before["peers"]]


@pytest.mark.parametrize(
    ("state", "answer", "while_it_may_settle", "bare"),
    [
        (State("UP"), "UP", True, True),
        # Only the responses on the port contain the keywords of an agent that is settling.
        (State("UP"), "UP READY", True, False),
        (State("UP", 77), "UP READY 77%", True, False),
        (State("DRAIN"), "DRAIN UP 100%", True, False),
        (State("DRAIN", reason="x"), "DRAIN UP # x", True, True),
        (State("UP"), "DOWN", False, False),
        (State("UP"), "UP 77%", False, False),
        (State("UP"), "DOWN READY", False, False),
        (State("UP"), "READY UP", False, False),
        (State("DRAIN"), "DRAIN READY", False, False),
        (State("DRAIN", reason="x"), "DRAIN UP", False, False),
        (State("DRAIN"), "DRAIN UP # x", False, False),
        (State("UP", 77), "UP 100%", False, False),
    ],
)
def test_answer_matches_the_state(state: State, answer: str, while_it_may_settle: bool, bare: bool) -> None:
    assert Instance(Process(os.getpid()), "", "").reports(state, answer) == while_it_may_settle
    assert Instance(Process(os.getpid()), "", "", settles=False).reports(state, answer) == bare
    assert Instance(Process(os.getpid()), "", "/run/hapgent/hapgent/status.sock").reports(state, answer) == bare


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_status_waits_for_an_agent_that_restarts(agents: Agents, tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "status.sock"
    agent, instance = start_with_status(agents, path)
    agent.send(number)
    agent.await_exit()
    # After SIGKILL, a socket without a listener remains; after SIGTERM, there is none.
    assert path.exists() == (number == signal.SIGKILL)
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(instance.status, in_seconds(15))
        start_with_status(agents, path, state=b'{"status": "DRAIN"}', state_file=agent.state_file, port=agent.port)
        assert asked.result()["answer"] == "DRAIN"


def test_status_that_was_cut_off_is_read_again(tmp_path: Path) -> None:
    # An agent may end while it sends its status, and then start again.
    whole = json.dumps({"state": {"status": "UP"}, "peers": [], "state_file": "/s.json", "answer": "UP"}).encode()
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            for content in [b"", whole[:20], whole]:
                client = listener.accept()[0]
                with client:
                    client.sendall(content)

        threading.Thread(target=run, daemon=True).start()
        assert Instance(Process(os.getpid()), "/s.json", str(path)).answer(in_seconds(15)) == "UP"


@pytest.mark.parametrize(
    ("number", "named"),
    [(signal.SIGTERM, "No such file or directory"), (signal.SIGKILL, "Connection refused")],
)
def test_status_fails_if_the_agent_has_ended(
    agents: Agents, tmp_path: Path, number: signal.Signals, named: str
) -> None:
    path = tmp_path / "status.sock"
    agent, instance = start_with_status(agents, path)
    agent.send(number)
    agent.await_exit()
    started = time.monotonic()
    with pytest.raises(InstanceError) as caught:
        instance.status(in_seconds(0.3))
    assert time.monotonic() - started < 10
    for word in [instance.state_file, str(path), named, "check its log. Restarting"]:
        assert word in str(caught.value)


def test_status_of_a_stopped_agent_times_out(agents: Agents, tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    agent, instance = start_with_status(agents, path)
    with agent.paused():
        for ask in (instance.status, instance.answer):
            with pytest.raises(InstanceError) as caught:
                ask(in_seconds(0.3))
            for word in [instance.state_file, str(path), "timed out"]:
                assert word in str(caught.value)


def test_status_does_not_wait_if_the_path_is_not_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    path.write_bytes(b"")
    started = time.monotonic()
    with pytest.raises(InstanceError, match=f"{path} .not a socket.") as caught:
        Instance(Process(os.getpid()), "", str(path)).status(in_seconds(60))
    assert isinstance(caught.value.__cause__, OSError)
    assert time.monotonic() - started < 30


@pytest.fixture
def status_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A UNIX socket that handles its first client like this, because a process there need not be an agent."""
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            client = listener.accept()[0]
            with client:
                request.param(client)

        thread = threading.Thread(target=run)
        thread.start()
        yield path
        thread.join()


def send(content: bytes) -> Callable[[socket.socket], None]:
    def send_it(client: socket.socket) -> None:
        client.sendall(content)

    return send_it


NO_STATUS = {
    "nothing": b"",
    "a line": b"UP\n",
    "incomplete": b'{"answer": "UP", "peers": [',
    "two documents": b'{"answer": "UP", "peers": []}\n{}',
    "a list": b'["answer", "peers"]',
    "text": b'"answer, peers"',
    "null": b"null",
    "no fields": b"{}",
    "no peers": b'{"answer": "UP"}',
    "no answer": b'{"peers": []}',
    "nested too deeply": b"[" * 100_000,
    "not UTF-8": b'{"answer": "\xff", "peers": []}',
}


@pytest.mark.parametrize(
    "status_socket", [send(content) for content in NO_STATUS.values()], indirect=True, ids=NO_STATUS
)
def test_invalid_status_is_refused(status_socket: Path) -> None:
    # The client waits because an agent that restarts could still send a valid status; here none does.
    with pytest.raises(InstanceError, match=str(status_socket)) as caught:
        Instance(Process(os.getpid()), "", str(status_socket)).status(in_seconds(0.5))
    assert isinstance(caught.value.__cause__, (NoStatusError, TimeoutError))


def send_status_in_pieces(client: socket.socket) -> None:
    status = json.dumps({"state": {"status": "UP"}, "peers": [], "state_file": "/s.json", "answer": "UP"}).encode()
    for piece in [status[:9], status[9:30], status[30:]]:
        client.sendall(piece)
        time.sleep(0.05)


@pytest.mark.parametrize("status_socket", [send_status_in_pieces], indirect=True)
def test_status_may_arrive_in_pieces(status_socket: Path) -> None:
    assert Instance(Process(os.getpid()), "/s.json", str(status_socket)).status(in_seconds(10))["answer"] == "UP"


def test_status_of_another_agent_is_refused(agents: Agents, tmp_path: Path) -> None:
    other, _instance = start_with_status(agents, tmp_path / "status.sock")
    _agent, instance = start_with_status(agents, tmp_path / "status.sock")
    with pytest.raises(InstanceError) as caught:
        instance.status(in_seconds(60))
    for word in [str(other.state_file), instance.state_file, "HAPGENT_SOCKET"]:
        assert word in str(caught.value)


@pytest.mark.parametrize("status_socket", [send_without_end, drip_without_end], indirect=True)
def test_endless_status_times_out(status_socket: Path) -> None:
    started = time.monotonic()
    with pytest.raises(InstanceError) as caught:
        Instance(Process(os.getpid()), "", str(status_socket)).status(in_seconds(0.5))
    # The other side gives up after 5 s, so the client must give up earlier.
    assert time.monotonic() - started < 4
    assert len(str(caught.value)) < 1000


def test_status_may_contain_the_maximum_number_of_peers(agents: Agents, tmp_path: Path) -> None:
    agent, instance = start_with_status(agents, tmp_path / "status.sock")
    addresses = [f"127.1.{number // 256}.{number % 256}" for number in range(1, 1024)]
    for address in addresses:
        with socket.create_connection((agent.ip, agent.port), 15, source_address=(address, 0)) as client:
            assert agent.read_to_end(client) == b"UP\n"
    peers = instance.status(in_seconds(15))["peers"]
    assert {peer["address"] for peer in peers} == {"127.0.0.1", *addresses}


def test_status_times_out_if_the_queue_of_the_socket_is_full(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(str(path))
        listener.listen(0)
        with pytest.raises(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        started = time.monotonic()
        with pytest.raises(InstanceError, match=f"/s.json .*{path}"):
            Instance(Process(os.getpid()), "/s.json", str(path)).status(in_seconds(0.5))
    assert 0.3 < time.monotonic() - started < 10


def test_polling_times_out_if_the_queue_of_the_port_is_full() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as waiting:
        for _client in range(3):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        started = time.monotonic()
        with pytest.raises(InstanceError, match="timed out"):
            ask("127.0.0.1", listener.getsockname()[1], in_seconds(0.5))
    assert 0.3 < time.monotonic() - started < 10
