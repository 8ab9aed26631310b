# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hanging disk, service manager or log never keeps the agent from obeying signals and answering checks.

The file has these parts:

- the disk: one system call hangs while signals and checks arrive (tests/hang.c);
- the lock: a module holds it between load and save;
- the service manager: it reads nothing, or only later;
- the log: it is a pipe that is full, or that is read only later;
- kill -9 right after an answer.

System calls hang until the test releases them. If the agent waited for one, the test would fail on any machine,
however fast.
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
    # The last state is saved as soon as the disk recovers.
    disk.recover()
    agent.await_saved({"status": "DOWN"})


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("hangs", ["before a signal", "after a signal", "since its start"])
def test_term_ends_the_agent_while_the_disk_hangs(agents: Agents, disk: HangingDisk, call: str, hangs: str) -> None:
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


def test_signal_is_not_lost_while_a_module_holds_the_lock(agents: Agents) -> None:
    agent = agents.start()
    lock = agent.state_file.with_name("state.json.lock")
    # The module holds the lock like this between load and save.
    holder = subprocess.Popen(
        ["flock", "--no-fork", lock, "sh", "-c", "echo held; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    send_and_await(agent, signal.SIGUSR2, b"DOWN\n")
    # The module now saves a state that it loaded before the signal, and sends HUP.
    agent.write_state(b'{"status": "UP", "weight": 50}')
    agent.send(signal.SIGHUP)
    agent.await_answer(b"DOWN 50%\n")
    assert agent.saved() == {"status": "UP", "weight": 50}
    holder.communicate(b"\n", timeout=15)
    agent.await_saved({"status": "DOWN", "weight": 50})
    assert agent.ask() == b"DOWN 50%\n"


def change_after_signals(agent: Agent, content: bytes, answer: bytes, eventually: Eventually) -> None:
    """Change the state file and send HUP until the agent answers with it.

    The agent applies a signal that it has not saved yet on top of the new file, so one attempt may not be enough.
    """

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


def test_obeys_signals_while_the_service_manager_reads_nothing(
    agents: Agents, eventually: Eventually, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        agent = agents.start(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert_obeys_100_signals(agent, eventually)


def test_service_manager_that_reads_late_gets_the_newest_state(
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
        # After a reload, systemd waits for both messages in this order.
        assert "RELOADING=1" in received[-2]


def test_obeys_signals_while_its_log_is_not_read(agents: Agents, eventually: Eventually) -> None:
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


def test_log_that_is_read_late_has_the_number_of_missing_lines(agents: Agents) -> None:
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
    # Missing are the lines about the start, the listening address and the first signal.
    assert line.startswith("hapgent: 3 ")
    assert "DOWN -> UP (SIGUSR1)" in line


def test_answer_right_before_a_kill_is_always_reset(agents: Agents) -> None:
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
