# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Thousands of signals, or kill -9 at any moment, leave no check unanswered and no answer or file incomplete."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually
    from tests.robustness.conftest import ClientsOf, Observer

SETTLING = {"HAPGENT_SETTLE": "3600"}

# This runs in a separate process, because the clients would slow it down. It spreads the signals evenly, because the
# kernel merges equal signals that are pending.
STORM = """
import os, random, signal, sys, time
pid, count, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
pick = random.Random(1)
numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]
start = time.monotonic()
for sent in range(count):
    while time.monotonic() < start + sent * seconds / count:
        time.sleep(0.0001)
    os.kill(pid, pick.choice(numbers))
"""


def send_storm(agent: Agent, count: int, seconds: float) -> None:
    subprocess.run([sys.executable, "-I", "-S", "-c", STORM, str(agent.pid), str(count), str(seconds)], check=True)


@contextlib.contextmanager
def read_all_the_time(path: Path) -> Iterator[Counter[bytes]]:
    """Keep reading this file, and count how often each content was read."""
    seen: Counter[bytes] = Counter()
    enough = threading.Event()

    def keep_reading() -> None:
        while not enough.is_set():
            try:
                seen[path.read_bytes()] += 1
            except FileNotFoundError:
                seen[b'"nothing"'] += 1

    thread = threading.Thread(target=keep_reading)
    thread.start()
    try:
        yield seen
    finally:
        enough.set()
        thread.join()


def state_with(status: str) -> dict[str, object]:
    return {"status": status, "weight": 77, "maxconn": 300}


def test_10_000_signals_in_2_s_with_64_clients(
    agents: Agents, clients: ClientsOf, observer: Observer, eventually: Eventually
) -> None:
    agent = agents.start(json.dumps(state_with("DRAIN")).encode(), environment=SETTLING)
    memory = agent.state_file.with_name("state.json.memory")
    before = observer.figures(agent)

    with (
        read_all_the_time(agent.state_file) as files,
        read_all_the_time(memory) as memories,
        clients(agent, "ask", 64) as met,
    ):
        send_storm(agent, 10_000, 2)

    # Answers contain READY because the agent started with DRAIN, which READY resets.
    lines = {f"{words} 77% maxconn:300\n" for words in ("DRAIN", "UP READY", "DOWN READY")}
    assert set(met) <= lines
    assert met["UP READY 77% maxconn:300\n"] > 64
    assert met["DOWN READY 77% maxconn:300\n"] > 64
    states = [state_with(status) for status in ("DRAIN", "UP", "DOWN")]
    assert files.total() > 1000
    assert [content for content in files if json.loads(content) not in states] == []
    assert memories.total() > 1000
    assert [content for content in memories if json.loads(content)["state"] not in states] == []

    for number, status in [(signal.SIGUSR2, "DOWN"), (signal.SIGUSR1, "UP"), (signal.SIGHUP, "UP")]:
        agent.await_signals_taken()
        agent.send(number)
        agent.await_answer(f"{status} READY 77% maxconn:300\n".encode())
        eventually(lambda: json.loads(agent.state_file.read_bytes()) == state_with(status), "the state is saved")  # noqa: B023
    assert "FAIL" not in "".join(agent.log()[1:])
    observer.assert_flat(agent, before, kilobytes=1024)


def test_pause_does_not_repeat_a_signal(agents: Agents, python: str) -> None:
    agent = agents.start(python=python)
    agent.send(signal.SIGUSR2)
    agent.await_saved({"status": "DOWN"})
    agent.reload(b'{"status": "DRAIN"}', b"DRAIN\n")
    lines = agent.log()
    # The pause is longer than the agent's timeout when it waits for a signal.
    with agent.paused():
        time.sleep(1.3)
    assert agent.ask() == b"DRAIN\n"
    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP\n")
    agent.await_log("SIGUSR1")
    assert agent.log() == [*lines, "hapgent: DRAIN -> UP (SIGUSR1)"]


# Two tests, which run side by side.
@pytest.mark.parametrize("seed", [1, 2])
def test_100_kills_during_saves_leave_whole_files(agents: Agents, tmp_path: Path, seed: int) -> None:
    # Neither signal sets READY, so READY shows that the agent was killed before its first save.
    state_file = tmp_path / "folder" / "state.json"
    state_file.parent.mkdir()
    state_file.write_text(json.dumps(state_with("READY")), encoding="utf-8")
    states = [state_with(status) for status in ("READY", "UP", "DOWN")]
    found = set()
    pick = random.Random(seed)

    for kills in range(1, 1001):
        agent = agents.start(None, state_file=state_file, logs=False)
        status = json.loads(state_file.read_bytes())["status"]
        assert agent.ask() == f"{status} 77% maxconn:300\n".encode()
        deadline = time.monotonic() + pick.uniform(0, 0.02)
        while time.monotonic() < deadline:
            agent.send(signal.SIGUSR2)
            agent.send(signal.SIGUSR1)
        agent.kill()

        assert json.loads(state_file.read_bytes()) in states
        assert json.loads(state_file.with_name("state.json.memory").read_bytes())["state"] in states
        names = set(os.listdir(state_file.parent))
        files = {f"state.json{more}" for more in ("", ".lock", ".tmp", ".memory", ".memory.lock", ".memory.tmp")}
        assert names <= files
        found |= names
        # At least one kill must have happened during a save.
        if kills >= 100 and "state.json.tmp" in found:
            break
    assert "state.json.tmp" in found


def test_10_000_reloads_leave_nothing_behind(agents: Agents, observer: Observer, tmp_path: Path) -> None:
    status_socket = tmp_path / "status.sock"
    agent = agents.start(environment={**SETTLING, "HAPGENT_SOCKET": str(status_socket)})
    contents = [b'{"status": "DRAIN", "weight": 7}', b"{", b'{"status": "UP", "reason": "again"}', b"x" * 100_000]

    def reload(wanted: int) -> None:
        deadline = time.monotonic() + 60
        while (done := observer.status(status_socket)["counters"]["reloads"]) < wanted:
            assert time.monotonic() < deadline, f"{done} reloads of {wanted}"
            agent.write_state(contents[done % len(contents)])
            for _signal in range(20):
                agent.send(signal.SIGHUP)
                time.sleep(0.0002)
            agent.ask()

    reload(1000)
    before = observer.figures(agent)
    reload(10_000)
    observer.assert_flat(agent, before)
    agent.await_signals_taken()
    agent.reload(b'{"status": "MAINT"}', b"MAINT UP 100%\n")
