# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host that is sick: system calls that hang, a service manager and a log that nobody reads.

Signals are obeyed, checks are answered, and SIGTERM ends the agent, whatever the disk does. What hangs here hangs until
the test lets it go on, so that what waits for it fails however fast the machine is.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually, HangingDisk

CALLS = ["fsync", "rename", "write", "read", "open"]


def send_and_await(agent: Agent, number: signal.Signals, answer: bytes) -> None:
    agent.send(number)
    agent.await_answer(answer)


@pytest.mark.parametrize("call", CALLS)
def test_signals_are_obeyed_while_the_disk_hangs(agents: Agents, disk: HangingDisk, call: str) -> None:
    agent = agents.start(environment=disk.environment(call))
    disk.hang()
    for _round in range(3):
        send_and_await(agent, signal.SIGUSR2, b"DOWN\n")
        send_and_await(agent, signal.SIGUSR1, b"UP\n")
    send_and_await(agent, signal.SIGUSR2, b"DOWN\n")
    # The last one is saved as soon as that is possible.
    disk.recover()
    agent.await_saved({"status": "DOWN"})


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("hangs", ["before a signal", "after a signal", "since its start"])
def test_term_ends_it_while_the_disk_hangs(agents: Agents, disk: HangingDisk, call: str, hangs: str) -> None:
    if hangs == "since its start":
        disk.hang()
        agent = agents.start(environment=disk.environment(call), wait=False)
        agent.await_blocked(signal.SIGTERM)
    else:
        agent = agents.start(environment=disk.environment(call))
        disk.hang()
        if hangs == "after a signal":
            send_and_await(agent, signal.SIGUSR2, b"DOWN\n")
    agent.send(signal.SIGTERM)
    assert agent.await_exit() == 0


def test_a_signal_while_a_module_holds_the_lock(agents: Agents) -> None:
    agent = agents.start()
    lock = agent.state_file.with_name("state.json.lock")
    # As the module does between load and save.
    holder = subprocess.Popen(
        ["flock", "--no-fork", lock, "sh", "-c", "echo held; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    send_and_await(agent, signal.SIGUSR2, b"DOWN\n")
    # It saves a state that it loaded before the signal, and has it read.
    agent.write_state(b'{"status": "UP", "weight": 50}')
    agent.send(signal.SIGHUP)
    agent.await_answer(b"DOWN 50%\n")
    assert agent.saved() == {"status": "UP", "weight": 50}
    holder.communicate(b"\n", timeout=15)
    agent.await_saved({"status": "DOWN", "weight": 50})
    assert agent.ask() == b"DOWN 50%\n"


def change_after_signals(agent: Agent, content: bytes, answer: bytes, eventually: Eventually) -> None:
    """Put another state there. A signal that was not saved before that still counts: then once more."""

    def is_answered() -> bool:
        agent.write_state(content)
        agent.send(signal.SIGHUP)
        time.sleep(0.05)
        return agent.ask() == answer

    eventually(is_answered, f"answer {answer!r}")


def assert_obeys_100_signals(agent: Agent, eventually: Eventually) -> None:
    for _round in range(50):
        send_and_await(agent, signal.SIGUSR2, b"DOWN\n")
        send_and_await(agent, signal.SIGUSR1, b"UP\n")
    agent.await_saved({"status": "UP"})
    change_after_signals(agent, b'{"status": "DRAIN"}', b"DRAIN\n", eventually)
    agent.send(signal.SIGTERM)
    assert agent.await_exit() == 0


def test_service_manager_that_reads_nothing(agents: Agents, eventually: Eventually, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        agent = agents.start(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert_obeys_100_signals(agent, eventually)


def test_service_manager_that_was_away_gets_what_is_newest(
    agents: Agents, eventually: Eventually, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(15)
        manager.bind(str(tmp_path / "notify"))
        agent = agents.start(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _round in range(20):
            send_and_await(agent, signal.SIGUSR2, b"DOWN\n")
            send_and_await(agent, signal.SIGUSR1, b"UP\n")
        agent.await_saved({"status": "UP"})
        change_after_signals(agent, b'{"status": "MAINT"}', b"MAINT\n", eventually)
        received: list[str] = []
        while not (received and received[-1].startswith("READY=1\nSTATUS=MAINT since")):
            received.append(manager.recv(4096).decode())
        # systemd waits for both of them, in this order, after a reload.
        assert "RELOADING=1" in received[-2]


def test_log_that_nobody_reads(agents: Agents, eventually: Eventually) -> None:
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    agent = agents.start(before_exec=f"os.dup2({writer}, 2)", pass_fds=[writer], logs=False)
    assert_obeys_100_signals(agent, eventually)
    os.close(reader)
    os.close(writer)


def test_log_that_is_read_again_has_a_count_of_what_is_missing(agents: Agents) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = 0
    try:
        while True:
            filled += os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    agent = agents.start(before_exec=f"os.dup2({writer}, 2)", pass_fds=[writer], logs=False)
    send_and_await(agent, signal.SIGUSR2, b"DOWN\n")
    agent.await_saved({"status": "DOWN"})
    agent.await_loaded()
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as log:
        while filled:
            filled -= len(log.read(min(filled, 65_536)))
        send_and_await(agent, signal.SIGUSR1, b"UP\n")
        line = log.read(4096).decode()
    # Its start, that it answers, and the first signal.
    assert line.startswith("hapgent: 3 ")
    assert "DOWN -> UP (SIGUSR1)" in line


def test_sent_and_killed_at_once_is_undone_each_time(agents: Agents) -> None:
    settle = {"HAPGENT_SETTLE": "3600"}
    agent = agents.start(environment=settle)
    answers = []
    for _round in range(40):
        agent.write_state(b'{"status": "DRAIN"}')
        agent.send(signal.SIGHUP)
        while not agent.ask().startswith(b"DRAIN"):
            pass
        agent.kill()
        agent = agents.start(b'{"status": "UP"}', state_file=agent.state_file, port=agent.port, environment=settle)
        answers.append(agent.ask().split()[:2])
        assert json.loads(agent.state_file.read_bytes()) == {"status": "UP"}
    assert answers == [[b"UP", b"READY"]] * 40
