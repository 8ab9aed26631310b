# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""At the moment in its state, the agent brings the server back by itself, if that was requested.

The file has these parts:

- the change: what it keeps, removes and reports, also after a restart;
- what has changed meanwhile: another state in the file, or a signal, is not lost;
- a state that cannot be saved: the server stays out of rotation, and the agent tries again later.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually, HangingDisk

ROOT = Path(__file__).parents[2]
with mock.patch.object(sys, "path", [str(ROOT / "files"), *sys.path]):
    # Imported at run time, because mypy does not find the agent's package here.
    hapgent: Any = {
        name: importlib.import_module(f"hapgent.{name}") for name in ("keeper", "peers", "systemd", "_ramp")
    }

LATER = "2999-11-28T06:00:00Z"


def in_seconds(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def returns(until: str, **fields: object) -> bytes:
    return json.dumps({"status": "DRAIN", **fields, "until": until, "then": "UP"}).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the status socket."""
    return tmp_path / "status.sock"


def status(path: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(path))
        return json.loads(b"".join(iter(lambda: reader.recv(65_536), b"")))


@contextlib.contextmanager
def at_the_moment(
    agents: Agents, prepare: Callable[[Agent], contextlib.AbstractContextManager[str]], environment: dict[str, str]
) -> Iterator[tuple[Agent, str]]:
    """Start an agent whose moment comes after this was prepared. A busy machine may need more than one attempt."""
    for seconds in (2, 4, 8, 16, 32):
        until = in_seconds(seconds)
        agent = agents.start(returns(until, reason="disk"), environment=environment)
        with prepare(agent) as prepared:
            if in_seconds(0) < until:
                yield agent, prepared
                return
        agent.kill()
    pytest.fail("this machine is too busy")


# The change


def test_server_comes_back_at_the_moment(agents: Agents, python: str, path: Path) -> None:
    until = in_seconds(2)
    drained = returns(until, weight=50, maxconn=9, reason="disk", by="ada@control1")
    agent = agents.start(drained, python=python, environment={"HAPGENT_SOCKET": str(path)})
    agent.await_answer(b"UP 50% maxconn:9\n")
    # What is answered is already saved.
    assert agent.saved() == {"status": "UP", "weight": 50, "maxconn": 9}
    agent.await_log(f": DRAIN UP 50% maxconn:9 # disk -> UP 50% maxconn:9 (until {until}, then UP)")
    found = status(path)
    assert found["state"] == agent.saved()
    assert found["state_file_ok"] is True
    assert {name: found["counters"][name] for name in ("changes", "saves", "failed_saves", "reloads")} == {
        **dict.fromkeys(("changes", "saves"), 1),
        **dict.fromkeys(("failed_saves", "reloads"), 0),
    }


@pytest.mark.parametrize("before", ["DOWN", "READY", "MAINT", "FAIL", "STOPPED"])
def test_server_comes_back_from_each_status(lasting_agent: Agent, before: str) -> None:
    # A moment that is over counts too.
    lasting_agent.write_state(returns("2020-11-28T06:00:00Z", status=before))
    lasting_agent.send(signal.SIGHUP)
    lasting_agent.await_saved({"status": "UP"})
    lasting_agent.await_answer(b"UP\n")


def test_previous_status_is_reset_and_a_ramp_begins_also_after_a_restart(agents: Agents) -> None:
    settings = {"HAPGENT_SETTLE": "60", "HAPGENT_RAMP": "10,100", "HAPGENT_RAMP_SECONDS": "3600"}
    until = in_seconds(2)
    agent = agents.start(returns(until), environment=settings)
    agent.send(signal.SIGTERM)
    agent.await_exit()
    while in_seconds(0) < until:
        time.sleep(0.05)
    agent = agents.start(None, state_file=agent.state_file, port=agent.port, environment=settings)
    agent.await_answer(b"UP READY 10%\n")
    assert agent.saved() == {"status": "UP"}


def test_a_server_that_is_up_and_one_without_a_request_stay(agents: Agents) -> None:
    over = in_seconds(0)
    up = agents.start(returns(over, status="UP"))
    drained = agents.start(json.dumps({"status": "DRAIN", "until": over}).encode())
    # Another agent that has started later has come back.
    agents.start(returns(over)).await_answer(b"UP\n")
    assert (up.ask(), drained.ask()) == (b"UP\n", b"DRAIN\n")
    assert (up.saved(), drained.saved()) == (
        json.loads(returns(over, status="UP")),
        {"status": "DRAIN", "until": over},
    )


# What has changed meanwhile


@pytest.mark.parametrize(
    "replaced", [b'{"status": "MAINT"}', returns(LATER, reason="disk"), b'{"status": "DRAIN", "reason": "disk"}']
)
def test_a_state_that_has_replaced_it_stays(
    agents: Agents, path: Path, eventually: Eventually, replaced: bytes
) -> None:
    @contextlib.contextmanager
    def replace(agent: Agent) -> Iterator[str]:
        # A module has replaced the file, and is about to send HUP.
        agent.write_state(replaced)
        yield ""

    with at_the_moment(agents, replace, {"HAPGENT_SOCKET": str(path)}) as (agent, _prepared):
        eventually(lambda: status(path)["state"] == json.loads(replaced), "the agent has read the file")
        assert agent.state_file.read_bytes() == replaced


def test_signal_during_the_save_is_not_lost(agents: Agents, disk: HangingDisk, eventually: Eventually) -> None:
    @contextlib.contextmanager
    def hang(agent: Agent) -> Iterator[str]:
        memory = agent.state_file.with_name("state.json.memory")

        def is_saved() -> bool:
            # A memory of a check that is not answered yet is saved again.
            peers = json.loads(memory.read_bytes())["peers"]
            return bool(peers and peers[0]["received"])

        eventually(is_saved, "the memory of the first check is saved")
        disk.hang()
        yield ""
        disk.recover()

    # What is left of saving the memory after its file was renamed does not hang.
    with at_the_moment(agents, hang, disk.environment("rename")) as (agent, _prepared):
        eventually(agent.state_file.with_name("state.json.tmp").exists, "the agent saves the new state")
        # The answer changes only after the save, but a signal is obeyed at once.
        assert agent.ask() == b"DRAIN UP # disk\n"
        agent.send(signal.SIGUSR2)
        agent.await_answer(b"DOWN\n")
        assert json.loads(agent.state_file.read_bytes())["status"] == "DRAIN"
    agent.await_saved({"status": "DOWN"})
    assert agent.ask() == b"DOWN\n"
    # Not even for a moment was another answer given.
    assert "-> UP" not in "".join(agent.log())


# A state that cannot be saved


@contextlib.contextmanager
def locked(agent: Agent) -> Iterator[str]:
    lock = agent.state_file.with_name("state.json.lock")
    command = ["flock", "--no-fork", str(lock), "sh", "-c", "echo held; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        yield "state.json.lock is locked by process"
        holder.communicate(b"\n")


@contextlib.contextmanager
def occupied(agent: Agent) -> Iterator[str]:
    folder = agent.state_file.with_name("state.json.tmp")
    folder.mkdir()
    yield "Is a directory"
    folder.rmdir()


@contextlib.contextmanager
def missing(agent: Agent) -> Iterator[str]:
    agent.state_file.unlink()
    yield "does not exist"


@contextlib.contextmanager
def invalid(agent: Agent) -> Iterator[str]:
    agent.write_state(b'{"status": "up"}')
    yield "status must be one of"


@pytest.mark.parametrize("prevented", [locked, occupied, missing, invalid])
def test_server_stays_out_if_the_state_cannot_be_saved(
    agents: Agents, path: Path, prevented: Callable[[Agent], contextlib.AbstractContextManager[str]]
) -> None:
    with at_the_moment(agents, prevented, {"HAPGENT_SOCKET": str(path)}) as (agent, problem):
        agent.await_log("not saved")
        (line,) = [line for line in agent.log() if "not saved" in line]
        assert "DRAIN UP # disk (until " in line
        assert str(agent.state_file) in line
        assert problem in line
        found = status(path)
        assert (found["answer"], found["state_file_ok"]) == ("DRAIN UP # disk", False)
        assert problem in found["last_error"]
        assert found["counters"]["failed_saves"] == 1
        # Signals are obeyed meanwhile.
        agent.send(signal.SIGUSR2)
        agent.await_answer(b"DOWN\n")
    agent.send(signal.SIGUSR1)
    agent.await_saved({"status": "UP"})


OF_TIME = ("strftime", "localtime", "monotonic_ns")


class Clock(SimpleNamespace):
    """The time module of the keeper, in which only advance() lets time pass."""

    def __init__(self) -> None:
        super().__init__(now=1_795_834_800.0, **{name: getattr(time, name) for name in OF_TIME})

    def time(self) -> float:
        return float(self.now)

    def monotonic(self) -> float:
        return float(self.now) - 1_795_000_000

    def advance(self, keeper: Any, seconds: int) -> None:
        """Let this many seconds pass, with a tick in each."""
        for _second in range(seconds):
            self.now += 1
            keeper.tick()
            keeper.work()


def test_a_failed_save_is_tried_again_each_minute_and_reported_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, obstacle = tmp_path / "state.json", tmp_path / "state.json.tmp"
    file.write_bytes(returns("2026-11-28T03:00:10Z"))
    obstacle.mkdir()
    clock = Clock()
    with mock.patch.object(hapgent["keeper"], "time", clock):
        ramp = hapgent["_ramp"].Ramp()
        keeper = hapgent["keeper"].Keeper(str(file), hapgent["peers"].Peers(0.0, ramp), hapgent["systemd"].Manager())
        keeper.begin()
        for seconds, failed in [(9, 0), (1, 1), (59, 1), (1, 2), (60, 3)]:
            clock.advance(keeper, seconds)
            assert keeper.counters["failed_saves"] == failed
        assert (keeper.change.state.status, keeper.state_file_ok) == ("DRAIN", False)
        assert capfd.readouterr().err.count("not saved") == 1
        obstacle.rmdir()
        clock.advance(keeper, 59)
        assert keeper.change.state.status == "DRAIN"
        clock.advance(keeper, 1)
        assert (keeper.change.state.status, keeper.state_file_ok) == ("UP", True)
        assert json.loads(file.read_bytes()) == {"status": "UP"}
        # Another drain need not wait for the next attempt.
        file.write_bytes(returns("2026-11-28T03:03:15Z"))
        keeper.obey(signal.SIGHUP)
        clock.advance(keeper, 5)
        assert keeper.counters["saves"] == 2
