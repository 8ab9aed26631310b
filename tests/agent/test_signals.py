# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent obeys signals, and saves what they change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually

FULL = b'{"status": "UP", "weight": 77, "maxconn": 300}'


def names_beside(agent: Agent) -> list[str]:
    """The files in its folder, but for its memory and locks."""
    kept = {f"{agent.state_file.name}.{name}" for name in ("lock", "memory", "memory.lock")}
    return sorted(set(os.listdir(agent.state_file.parent)) - kept)


def await_names_beside(agent: Agent, expected: list[str], eventually: Eventually) -> None:
    """It may be saving its memory at this moment, under the temporary name."""
    eventually(lambda: names_beside(agent) == expected, f"beside it are {expected}")


def test_usr2_sets_down_and_usr1_up(agents: Agents, python: str, eventually: Eventually) -> None:
    agent = agents.start(FULL, python=python)

    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN 77% maxconn:300\n")
    agent.await_saved({"status": "DOWN", "weight": 77, "maxconn": 300})

    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP 77% maxconn:300\n")
    agent.await_saved({"status": "UP", "weight": 77, "maxconn": 300})
    await_names_beside(agent, ["state.json"], eventually)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, "UP"), (signal.SIGUSR2, "DOWN")])
@pytest.mark.parametrize("before", ["UP", "DOWN", "READY", "DRAIN", "FAIL", "MAINT", "STOPPED"])
def test_usr1_and_usr2_from_each_status(lasting_agent: Agent, before: str, number: signal.Signals, status: str) -> None:
    lasting_agent.reload(json.dumps({"status": before, "maxconn": 9}).encode(), f"{before} maxconn:9\n".encode())
    if before == status:
        # Else nothing would show when it has been saved.
        lasting_agent.state_file.unlink()
    lasting_agent.send(number)
    lasting_agent.await_answer(f"{status} maxconn:9\n".encode())
    lasting_agent.await_saved({"status": status, "maxconn": 9})


def test_hup_reads_again(agents: Agents, python: str) -> None:
    agent = agents.start(python=python)
    agent.reload(b'{"status": "DRAIN", "weight": 5}', b"DRAIN 5%\n")
    agent.reload(b'{"status": "READY"}', b"READY\n")
    assert agent.state_file.read_bytes() == b'{"status": "READY"}'


def test_usr1_overwrites_a_file_that_made_fail(agents: Agents) -> None:
    agent = agents.start(b'{"status": "UP", "weight": 300}')
    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP\n")
    agent.await_saved({"status": "UP"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_term_and_int_end_it(agents: Agents, python: str, number: signal.Signals) -> None:
    agent = agents.start(python=python)
    agent.send(number)
    assert agent.await_exit() == 0
    with pytest.raises(ConnectionRefusedError):
        agent.ask()


def test_int_overtakes_no_change(agents: Agents) -> None:
    agent = agents.start()
    # All of them at once, and in the order of their numbers, SIGINT is the first.
    for number in (signal.SIGSTOP, signal.SIGUSR2, signal.SIGINT, signal.SIGCONT):
        agent.send(number)
    assert agent.await_exit() == 0
    assert json.loads(agent.state_file.read_bytes()) == {"status": "DOWN"}


def test_one_log_line_for_each_change_and_none_for_a_check(agents: Agents, python: str, eventually: Eventually) -> None:
    agent = agents.start(FULL, python=python)
    for _round in range(20):
        agent.ask(b"\n")
    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN 77% maxconn:300\n")
    agent.await_saved({"status": "DOWN", "weight": 77, "maxconn": 300})
    agent.await_loaded()
    # Down already: saved again, but no change.
    agent.state_file.unlink()
    agent.send(signal.SIGUSR2)
    eventually(agent.state_file.exists, "the state is saved")
    agent.reload(b'{"status": "DRAIN"}', b"DRAIN\n")
    agent.reload(b'{"status": "READY", "weight": 0}', b"READY 0%\n")

    assert agent.log() == [
        "hapgent: FAIL -> UP 77% maxconn:300 (start)",
        f"hapgent: answering UP 77% maxconn:300 on 127.0.0.1 port {agent.port}",
        "hapgent: UP 77% maxconn:300 -> DOWN 77% maxconn:300 (SIGUSR2)",
        "hapgent: DOWN 77% maxconn:300 -> DRAIN (SIGHUP)",
        "hapgent: DRAIN -> READY 0% (SIGHUP)",
    ]


# Saving


def test_save_keeps_mode_and_owner(agents: Agents) -> None:
    agent = agents.start()
    agent.state_file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(agent.state_file, 12345, 54321)
    before = agent.state_file.stat()

    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN\n")

    agent.await_saved({"status": "DOWN"})
    after = agent.state_file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_save_follows_a_link(agents: Agents, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    target = folder / "real.json"
    link = tmp_path / "state.json"
    link.symlink_to("elsewhere/real.json")
    agent = agents.start(FULL, state_file=link)

    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN 77% maxconn:300\n")

    assert link.is_symlink()
    agent.await_saved({"status": "DOWN", "weight": 77, "maxconn": 300})
    assert not target.is_symlink()
    assert sorted(os.listdir(folder)) == ["real.json", "real.json.lock"]


def test_save_makes_a_file_that_was_missing(agents: Agents) -> None:
    agent = agents.start(None)
    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP\n")
    agent.await_saved({"status": "UP"})


def test_save_replaces_what_a_killed_save_left(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    other = tmp_path / "other"
    other.write_text("not to be touched", encoding="utf-8")
    agent = agents.start()
    # A link is the worst that can be there: written through, it would destroy another file.
    agent.state_file.with_name("state.json.tmp").symlink_to(other)

    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN\n")

    await_names_beside(agent, ["state.json"], eventually)
    assert not agent.state_file.is_symlink()
    agent.await_saved({"status": "DOWN"})
    assert other.read_text(encoding="utf-8") == "not to be touched"


def remove_folder(agent: Agent) -> Callable[[], None]:
    shutil.rmtree(agent.state_file.parent)
    return agent.state_file.parent.mkdir


def occupy_temporary_name(agent: Agent) -> Callable[[], None]:
    occupied = agent.state_file.with_name("state.json.tmp")
    occupied.mkdir()
    return occupied.rmdir


def make_state_file_a_folder(agent: Agent) -> Callable[[], None]:
    agent.state_file.unlink()
    agent.state_file.mkdir()
    return agent.state_file.rmdir


# Permissions would not stop root, who may run these tests.
@pytest.mark.parametrize("prevent_saving", [remove_folder, occupy_temporary_name, make_state_file_a_folder])
def test_keeps_in_memory_what_it_cannot_save(
    agents: Agents, eventually: Eventually, prevent_saving: Callable[[Agent], Callable[[], None]]
) -> None:
    agent = agents.start(FULL)
    # It saves its memory after the first check, and that would be in the way.
    await_names_beside(agent, ["state.json"], eventually)
    allow_saving = prevent_saving(agent)
    left_before = names_beside(agent) if agent.state_file.parent.exists() else []
    lines_before = len(agent.log())

    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN 77% maxconn:300\n")

    agent.await_log("not saved")
    lines = [line for line in agent.log()[lines_before:] if f"{agent.state_file}.memory: " not in line]
    assert lines[0] == "hapgent: UP 77% maxconn:300 -> DOWN 77% maxconn:300 (SIGUSR2)"
    (problem,) = lines[1:]
    assert str(agent.state_file) in problem
    if agent.state_file.parent.exists():
        await_names_beside(agent, left_before, eventually)

    allow_saving()
    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP 77% maxconn:300\n")
    agent.await_saved({"status": "UP", "weight": 77, "maxconn": 300})
    await_names_beside(agent, ["state.json"], eventually)


def test_saves_a_file_whose_owner_its_user_namespace_does_not_know(agents: Agents) -> None:
    # PrivateUsers= of its unit is such a namespace. It knows the agent's user, and maybe not the one who edited the
    # file last.
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file to another user")
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "--map-root-user", "true"], check=False).returncode != 0:
        pytest.skip("needs user namespaces")
    command = f"[{unshare!r}, '--map-root-user', *sys.argv[1:]]"
    agent = agents.start(before_exec=f"os.execv({unshare!r}, {command})")
    os.chown(agent.state_file, 12345, 54321)

    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN\n")

    agent.await_saved({"status": "DOWN"})


def test_no_reader_sees_half_a_file_and_no_client_half_an_answer(
    agents: Agents, python: str, eventually: Eventually
) -> None:
    agent = agents.start(FULL, python=python)
    states = [{"status": status, "weight": 77, "maxconn": 300} for status in ("UP", "DOWN")]
    whole = {b"UP 77% maxconn:300\n", b"DOWN 77% maxconn:300\n"}
    rounds = iter(range(100, 0, -1))

    def signal_and_read() -> bool:
        for number in (signal.SIGUSR2, signal.SIGUSR1):
            agent.send(number)
            assert agent.saved() in states
        return next(rounds, 0) <= 1 and whole <= set(answers)

    with agent.asked_by(clients=2) as answers:
        eventually(signal_and_read, "the answers of both states")
    assert set(answers) == whole
    # It still obeys.
    for number, answer in [(signal.SIGUSR2, b"DOWN 77% maxconn:300\n"), (signal.SIGUSR1, b"UP 77% maxconn:300\n")]:
        agent.await_signals_taken()
        agent.send(number)
        agent.await_answer(answer)


def test_killed_while_it_saves(agents: Agents) -> None:
    for _round in range(10):
        agent = agents.start(FULL)
        for _round in range(20):
            agent.send(signal.SIGUSR2)
            agent.send(signal.SIGUSR1)
        agent.kill()

        state = agent.saved()
        assert isinstance(state, dict)
        assert (state["weight"], state["maxconn"]) == (77, 300)
        assert set(names_beside(agent)) <= {"state.json", "state.json.tmp", "state.json.memory.tmp"}


# Finding it, and the moments after its start


def test_pkill_finds_it_by_its_name(agents: Agents, python: str) -> None:
    if not shutil.which("pkill"):
        pytest.skip("needs pkill")
    agent = agents.start(python=python)
    assert Path(f"/proc/{agent.pid}/comm").read_text(encoding="utf-8") == "hapgent\n"

    # Of this process alone: other agents may run on the machine.
    only_ours = ["--exact", "--parent", str(os.getpid()), "hapgent"]
    subprocess.run(["pkill", "--signal", "USR2", *only_ours], check=True)
    agent.await_answer(b"DOWN\n")
    subprocess.run(["pkill", "--signal", "USR1", *only_ours], check=True)
    agent.await_answer(b"UP\n")


@pytest.mark.parametrize(("number", "answer"), [(signal.SIGUSR2, b"DOWN\n"), (signal.SIGHUP, b"UP\n")])
def test_signal_while_it_starts(agents: Agents, python: str, number: signal.Signals, answer: bytes) -> None:
    # From its first statement on it takes signals. Python needs 10 to 30 ms from exec until then, and in these a
    # signal ends it: only who starts it can help that, as in the next test.
    agent = agents.start(python=python, wait=False)
    agent.await_blocked(number)
    agent.send(number)
    agent.await_log("answering")
    agent.await_answer(answer)


def test_signal_before_its_first_statement(agents: Agents, python: str) -> None:
    agent = agents.start(
        python=python, wait=False, before_exec="signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})"
    )
    agent.await_blocked(signal.SIGUSR2)
    agent.send(signal.SIGUSR2)
    agent.await_log("answering")
    agent.await_answer(b"DOWN\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_while_it_starts(agents: Agents, python: str, number: signal.Signals) -> None:
    agent = agents.start(python=python, wait=False)
    agent.await_blocked(number)
    agent.send(number)
    assert agent.await_exit() == 0


def test_obeys_signals_that_nohup_and_shells_ignore(agents: Agents, python: str) -> None:
    ignore = "for number in (signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)"
    agent = agents.start(python=python, before_exec=ignore)
    agent.reload(b'{"status": "DRAIN"}', b"DRAIN\n")
    agent.send(signal.SIGINT)
    assert agent.await_exit() == 0
