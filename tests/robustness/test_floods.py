# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Thousands of clients, idle or hostile, neither delay other clients nor make the agent need more resources."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually
    from tests.robustness.conftest import ClientsOf, Observer

LOAD_BALANCER = "127.0.0.9"
MAX_PEERS = 1024
MAX_READERS = 8
# Backslashes make the reason longest in JSON too, because JSON escapes each of them.
REASON = "\\" * 120
LONGEST = json.dumps({"status": "DRAIN", "weight": 255, "maxconn": 65535, "reason": REASON}).encode()
LONGEST_ANSWER = f"DRAIN UP 255% maxconn:65535 # {REASON}\n".encode()


def ask_from(agent: Agent, address: str) -> bytes:
    with socket.socket() as client:
        client.settimeout(15)
        client.bind((address, 0))
        client.connect((agent.ip, agent.port))
        return agent.read_to_end(client)


def many_addresses(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"127.{1 + number % 7}.{number // 250}.{1 + number % 250}"


@contextlib.contextmanager
def idle_clients(agent: Agent, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as idle:
        yield [idle.enter_context(agent.connect()) for _count in range(count)]


def socket_buffer_size() -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as writer:
        return writer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def assert_undisturbed(agent: Agent, clients: ClientsOf, checks: int = 2000) -> None:
    with clients(agent, "ask", 16, checks) as met:
        met.finish()
    assert met == {"UP\n": checks}


def test_5_000_idle_connections_do_not_delay_others(agents: Agents, clients: ClientsOf, observer: Observer) -> None:
    agent = agents.start()
    assert_undisturbed(agent, clients)
    before = observer.figures(agent)

    with idle_clients(agent, 5000) as idle:
        assert_undisturbed(agent, clients)
        observer.assert_flat(agent, before)
        assert not agent.spins()
        agent.reload(b'{"status": "DRAIN"}', b"DRAIN\n")
        # Each idle client was answered when it connected, before the state changed.
        assert {agent.read_to_end(client) for client in idle} == {b"UP\n"}
    observer.assert_flat(agent, before)


def test_64_descriptors_are_enough_for_300_idle_clients(agents: Agents, clients: ClientsOf, observer: Observer) -> None:
    agent = agents.start(before_exec="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))")
    assert resource.prlimit(agent.pid, resource.RLIMIT_NOFILE) == (64, 64)
    before = observer.figures(agent)

    with idle_clients(agent, 300) as idle:
        assert_undisturbed(agent, clients)
        assert not agent.spins()
        agent.send(signal.SIGUSR2)
        agent.await_answer(b"DOWN\n")
        assert {agent.read_to_end(client) for client in idle} == {b"UP\n"}
    observer.assert_flat(agent, before)
    agent.await_saved({"status": "DOWN"})
    assert "Too many open files" not in "".join(agent.log())


def take_down_and_up(agent: Agent) -> None:
    for number, status in ((signal.SIGUSR2, "DOWN"), (signal.SIGUSR1, "UP")):
        agent.send(number)
        agent.await_answer(f"{status}\n".encode())
        agent.await_saved({"status": status})


@pytest.mark.parametrize(("kind", "count"), [("send", 8), ("drip", 64), ("reset", 16)])
def test_hostile_clients_do_not_delay_others(
    agents: Agents, clients: ClientsOf, observer: Observer, kind: str, count: int
) -> None:
    agent = agents.start()
    # The first save and the first large payloads take memory once.
    take_down_and_up(agent)
    with clients(agent, kind, count):
        assert_undisturbed(agent, clients)
    before = observer.figures(agent)

    with clients(agent, kind, count) as hostile:
        assert_undisturbed(agent, clients, 5000)
        take_down_and_up(agent)
        # That is the space of two reads: what the agent reads stays in one buffer.
        observer.assert_flat(agent, before, kilobytes=128)

    assert hostile.total() > 100
    assert not agent.spins()
    assert_undisturbed(agent, clients)
    observer.assert_flat(agent, before, kilobytes=128)


def test_5_000_addresses_push_out_no_regular_load_balancer(
    agents: Agents, observer: Observer, tmp_path: Path, eventually: Eventually
) -> None:
    status_socket = tmp_path / "status.sock"
    agent = agents.start(LONGEST, environment={"HAPGENT_SOCKET": str(status_socket)})
    asked = 0

    def load_balancers() -> dict[str, int]:
        return {peer["address"]: peer["checks"] for peer in observer.status(status_socket)["peers"]}

    def await_remembered(address: str) -> None:
        """Wait until the memory file has this address: building the file needs most of the agent's memory."""
        memory = agent.state_file.with_name("state.json.memory")
        eventually(lambda: f'"{address}"' in memory.read_text(encoding="utf-8"), f"{address} is remembered")

    def ask_from_all(addresses: Iterable[str]) -> None:
        nonlocal asked
        for number, address in enumerate(addresses):
            assert ask_from(agent, address) == LONGEST_ANSWER
            if number % 50 == 0:
                # This load balancer polls less often than new addresses arrive, but regularly.
                assert ask_from(agent, LOAD_BALANCER) == LONGEST_ANSWER
                asked += 1

    addresses = list(many_addresses(5000))
    assert len(set(addresses)) == 5000
    ask_from_all(addresses[:2000])
    await_remembered(LOAD_BALANCER)
    assert len(load_balancers()) == MAX_PEERS
    before = observer.figures(agent)
    ask_from_all(addresses[2000:])
    await_remembered(addresses[4999])
    known = load_balancers()
    observer.assert_flat(agent, before)

    assert len(known) == MAX_PEERS
    assert known[LOAD_BALANCER] == asked
    # The other two addresses are LOAD_BALANCER and 127.0.0.1, which polled while the test waited for the start.
    assert observer.status(status_socket)["counters"]["forgotten_peers"] == 5000 + 2 - MAX_PEERS
    # A restarted agent still knows the load balancers.
    agent.send(signal.SIGTERM)
    assert agent.await_exit() == 0
    again = agents.start(None, state_file=agent.state_file, environment={"HAPGENT_SOCKET": str(status_socket)})
    assert again.ask() == LONGEST_ANSWER
    assert load_balancers()[LOAD_BALANCER] == asked
    assert "not known" not in "".join(again.log())


def test_flood_of_addresses_does_not_push_out_a_slow_load_balancer(
    agents: Agents, observer: Observer, tmp_path: Path
) -> None:
    status_socket = tmp_path / "status.sock"
    agent = agents.start(
        b'{"status": "DRAIN"}', environment={"HAPGENT_SOCKET": str(status_socket), "HAPGENT_SETTLE": "1"}
    )
    for _check in range(8):
        assert ask_from(agent, LOAD_BALANCER) == b"DRAIN\n"
    agent.reload(b'{"status": "UP"}', b"UP READY\n")
    # More addresses than the agent keeps arrive between two polls of the load balancer: as if it polled every two
    # seconds while 750 new addresses arrived each second.
    between = 1500
    turns = threading.Semaphore(0)
    passed = threading.Semaphore(0)
    enough = threading.Event()

    def flood() -> None:
        for number, address in enumerate(many_addresses(60_000)):
            if number % between == 0:
                passed.release()
                turns.acquire()
            if enough.is_set():
                return
            ask_from(agent, address)

    flooding = threading.Thread(target=flood)
    flooding.start()
    answers = []
    try:
        for _turn in range(60_000 // between):
            assert passed.acquire(timeout=60)
            # The flood continues while the load balancer polls.
            turns.release()
            answers.append(ask_from(agent, LOAD_BALANCER))
            if answers[-3:] == [b"UP\n"] * 3:
                break
    finally:
        enough.set()
        turns.release()
        flooding.join()
    settled = answers.index(b"UP\n")
    assert answers == [b"UP READY\n"] * settled + [b"UP\n"] * 3
    known = {peer["address"]: peer["checks"] for peer in observer.status(status_socket)["peers"]}
    assert len(known) == MAX_PEERS
    assert known[LOAD_BALANCER] == 8 + len(answers)


def test_stuck_readers_of_the_status_do_not_delay_others(
    agents: Agents, clients: ClientsOf, observer: Observer, tmp_path: Path
) -> None:
    path = tmp_path / "status.sock"
    agent = agents.start(environment={"HAPGENT_SOCKET": str(path)})
    agent.reload(LONGEST, LONGEST_ANSWER)
    # With that many load balancers, the status is larger than the socket buffer, so a reader that does not read blocks.
    for address in many_addresses(MAX_PEERS):
        assert ask_from(agent, address) == LONGEST_ANSWER
    agent.reload(b'{"status": "UP"}', b"UP\n")
    size = len(json.dumps(observer.status(path)))
    assert size > 2 * socket_buffer_size()
    assert_undisturbed(agent, clients)
    before = observer.figures(agent)

    def connect() -> socket.socket:
        reader = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        reader.settimeout(15)
        reader.connect(str(path))
        return reader

    with contextlib.ExitStack() as stuck, clients(agent, "ask", 16) as met:
        held = [stuck.enter_context(connect()) for _reader in range(3)]
        assert len(observer.status(path)["peers"]) == MAX_PEERS
        # No stuck reader was disconnected for that.
        waiting = select.poll()
        for reader in held:
            waiting.register(reader, 0)
        assert waiting.poll(0) == []
        # Some readers disconnect at once, and one sends data that the agent does not read.
        for _reader in range(20):
            connect().close()
        stuck.enter_context(connect()).sendall(b"x" * 10_000)
        assert len(observer.status(path)["peers"]) == MAX_PEERS
        # However many readers are stuck, the next one is served.
        for _reader in range(30):
            stuck.enter_context(connect())
        assert len(observer.status(path)["peers"]) == MAX_PEERS
        agent.send(signal.SIGUSR2)
        agent.await_answer(b"DOWN\n")
    assert set(met) <= {"UP\n", "DOWN\n"}
    assert observer.status(path)["state"] == {"status": "DOWN"}
    assert not agent.spins()
    # The agent may keep the memory that it allocated for simultaneous readers.
    observer.assert_flat(agent, before, kilobytes=2048 + MAX_READERS * size // 1024)
