# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent keeps answering and recovers by itself if its disk is full or read-only or a file is not a regular file."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually
    from tests.robustness.conftest import ClientsOf, Disk, Observer


def full(disk: Disk) -> Iterator[str]:
    disk.fill()
    yield "No space left on device"
    disk.make_room()


def read_only(disk: Disk) -> Iterator[str]:
    disk.make_read_only()
    yield "Read-only file system"
    disk.make_writable()


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def remove(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()


def memory_of(agent: Agent) -> Path:
    return agent.state_file.with_name("state.json.memory")


def state_in(path: Path) -> object:
    document = json.loads(path.read_bytes())
    return document.get("state", document)


def lines_with(agent: Agent, text: str) -> list[str]:
    return [line for line in agent.log() if text in line]


@pytest.mark.parametrize("prevent_saving", [full, read_only])
def test_answers_and_recovers_on_a_full_or_read_only_disk(
    disk: Disk,
    agents: Agents,
    clients: ClientsOf,
    eventually: Eventually,
    prevent_saving: Callable[[Disk], Iterator[str]],
) -> None:
    agent = agents.start(state_file=disk.folder / "state.json")
    eventually(lambda: "peers" in json.loads(memory_of(agent).read_bytes()), "the memory file is saved")
    obstacle = prevent_saving(disk)
    problem = next(obstacle)
    names = set(os.listdir(disk.folder))

    with clients(agent, "ask", 4) as met:
        agent.send(signal.SIGUSR2)
        agent.await_answer(b"DOWN\n")
        agent.await_log("UP -> DOWN (SIGUSR2)")
        agent.await_log("not saved")
        (line,) = lines_with(agent, "not saved")
        assert str(agent.state_file) in line
        assert problem in line
        # Readers still see the old state, complete, and so does the agent on HUP.
        assert state_in(agent.state_file) == {"status": "UP"}
        agent.send(signal.SIGHUP)
        agent.await_answer(b"UP\n")
        agent.send(signal.SIGUSR2)
        agent.await_answer(b"DOWN\n")
        # A full disk still has room for an empty file, so the agent can create its lock when it tries to save.
        eventually(lambda: set(os.listdir(disk.folder)) - {"state.json.lock"} == names, "nothing is left behind")

    # The agent tries again each second, but logs the problem only once.
    of_memory = f"{memory_of(agent)}: "
    agent.await_log(of_memory)
    assert not agent.spins()
    (line,) = lines_with(agent, of_memory)
    assert problem in line
    assert state_in(memory_of(agent)) == {"status": "UP"}
    assert set(met) <= {"UP\n", "DOWN\n"}

    next(obstacle, None)
    with clients(agent, "ask", 4) as met:
        eventually(
            lambda: state_in(memory_of(agent)) == {"status": "DOWN"}, "the memory file is saved without a signal"
        )
        agent.send(signal.SIGUSR1)
        agent.await_answer(b"UP\n")
        agent.send(signal.SIGUSR2)
        agent.await_saved({"status": "DOWN"})
    assert set(met) <= {"UP\n", "DOWN\n"}
    files = {f"state.json{more}" for more in ("", ".lock", ".memory", ".memory.lock")}
    eventually(lambda: set(os.listdir(disk.folder)) == files, f"the folder contains {files}")

    # The next time, the agent logs the problem again.
    obstacle = prevent_saving(disk)
    next(obstacle)
    agent.send(signal.SIGUSR1)
    eventually(lambda: len(lines_with(agent, of_memory)) == 2, "the problem is logged again")
    next(obstacle, None)


@pytest.mark.parametrize("prevent_saving", [full, read_only])
def test_server_does_not_come_back_on_a_full_or_read_only_disk(
    disk: Disk, agents: Agents, clients: ClientsOf, prevent_saving: Callable[[Disk], Iterator[str]]
) -> None:
    agent = agents.start(state_file=disk.folder / "state.json")
    # On a busy machine, the moment may come before the disk is prepared.
    for seconds in (2, 4, 8, 16, 32):
        until = time.time() + seconds
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until))
        state = {"status": "DRAIN", "until": moment, "then": "UP"}
        agent.write_state(json.dumps(state).encode())
        agent.send(signal.SIGHUP)
        agent.await_log(f"until {moment}, then UP (SIGHUP)")
        obstacle = prevent_saving(disk)
        problem = next(obstacle)
        if time.time() < until - 1:
            break
        next(obstacle, None)
    with clients(agent, "ask", 4) as met:
        agent.await_log("not saved")
        (line,) = lines_with(agent, "not saved")
        assert problem in line
    assert set(met) == {"DRAIN\n"}
    assert not agent.spins()
    assert state_in(agent.state_file) == state
    assert len(lines_with(agent, "not saved")) == 1
    next(obstacle, None)
    agent.send(signal.SIGUSR1)
    agent.await_saved({"status": "UP"})


@pytest.mark.parametrize("prevent_saving", [full, read_only])
def test_starts_on_a_full_or_read_only_disk(
    disk: Disk, agents: Agents, eventually: Eventually, prevent_saving: Callable[[Disk], Iterator[str]]
) -> None:
    state_file = disk.folder / "state.json"
    state_file.write_bytes(b'{"status": "DRAIN"}')
    obstacle = prevent_saving(disk)
    next(obstacle)
    agent = agents.start(None, state_file=state_file)
    assert agent.ask() == b"DRAIN\n"
    assert lines_with(agent, f"{memory_of(agent)}: ") != []
    assert not memory_of(agent).exists()

    next(obstacle, None)
    eventually(memory_of(agent).exists, "the memory file is saved without a signal")
    assert state_in(memory_of(agent)) == {"status": "DRAIN"}


@pytest.mark.parametrize(
    ("make", "problem"),
    [(os.mkdir, "regular file"), (os.mkfifo, "regular file"), (make_link_to_itself, "symbolic link")],
    ids=["folder", "FIFO", "loop"],
)
def test_irregular_state_file_is_answered_with_fail_until_it_is_replaced(  # noqa: PLR0917
    agents: Agents,
    clients: ClientsOf,
    observer: Observer,
    eventually: Eventually,
    make: Callable[[Path], None],
    problem: str,
) -> None:
    agent = agents.start()
    before = observer.figures(agent)

    with clients(agent, "ask", 4) as met:
        for count in range(3):
            remove(agent.state_file)
            make(agent.state_file)
            agent.send(signal.SIGHUP)
            agent.await_answer(b"FAIL\n")
            assert problem in agent.log()[-1]
            # The save renames a new file into place, which replaces everything except a folder.
            agent.send(signal.SIGUSR2)
            agent.await_answer(b"DOWN\n")
            if make is os.mkdir:
                expected = count + 1
                eventually(lambda: len(lines_with(agent, "not saved")) == expected, "the failed save is logged")  # noqa: B023
                assert agent.state_file.is_dir()
            else:
                eventually(agent.state_file.is_file, "the state is saved")
                agent.await_saved({"status": "DOWN"})
            # Remove the obstacle: the agent can save again.
            remove(agent.state_file)
            agent.send(signal.SIGUSR1)
            agent.await_saved({"status": "UP"})
            agent.reload(b'{"status": "MAINT"}', b"MAINT\n")
    assert set(met) <= {f"{status}\n" for status in ("UP", "FAIL", "DOWN", "MAINT")}
    observer.assert_flat(agent, before)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, make_link_to_itself], ids=["folder", "FIFO", "loop"])
def test_irregular_memory_file_is_replaced(
    agents: Agents, clients: ClientsOf, tmp_path: Path, eventually: Eventually, make: Callable[[Path], None]
) -> None:
    state_file = tmp_path / "folder" / "state.json"
    state_file.parent.mkdir()
    memory = state_file.with_name("state.json.memory")
    make(memory)
    agent = agents.start(state_file=state_file)
    assert agent.log()[0].startswith(f"hapgent: {memory}: ")

    with clients(agent, "ask", 4) as met:
        # Replace the memory file again while the agent runs.
        if memory.is_file():
            memory.unlink()
            make(memory)
        agent.send(signal.SIGUSR2)
        agent.await_answer(b"DOWN\n")
        agent.await_saved({"status": "DOWN"})
        if make is os.mkdir:
            agent.await_log(f"{memory}: Is a directory")
            memory.rmdir()
        eventually(memory.is_file, "the memory file is saved without another signal")
        assert state_in(memory) == {"status": "DOWN"}
    assert set(met) <= {"UP\n", "DOWN\n"}
    assert not agent.spins()
