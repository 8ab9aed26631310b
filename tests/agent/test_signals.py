# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent obeys signals from its first statement on, and saves the states that they set."""

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


def other_files(agent: Agent) -> list[str]:
    """Return the files in the agent's folder except its memory file and locks."""
    kept = {f"{agent.state_file.name}.{name}" for name in ("lock", "memory", "memory.lock")}
    return sorted(set(os.listdir(agent.state_file.parent)) - kept)


def await_other_files(agent: Agent, expected: list[str], eventually: Eventually) -> None:
    """Wait until only these files are there: the agent may be saving its memory file under a temporary name."""
    eventually(lambda: other_files(agent) == expected, f"the folder contains {expected}")


def test_usr2_sets_down_and_usr1_up(agents: Agents, python: str, eventually: Eventually) -> None:
    agent = agents.start(FULL, python=python)

    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN 77% maxconn:300\n")
    agent.await_saved({"status": "DOWN", "weight": 77, "maxconn": 300})

    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP 77% maxconn:300\n")
    agent.await_saved({"status": "UP", "weight": 77, "maxconn": 300})
    await_other_files(agent, ["state.json"], eventually)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, "UP"), (signal.SIGUSR2, "DOWN")])
@pytest.mark.parametrize("before", ["UP", "DOWN", "READY", "DRAIN", "FAIL", "MAINT", "STOPPED"])
def test_usr1_and_usr2_from_each_status(lasting_agent: Agent, before: str, number: signal.Signals, status: str) -> None:
    lasting_agent.reload(json.dumps({"status": before, "maxconn": 9}).encode(), f"{before} maxconn:9\n".encode())
    if before == status:
        # Without the file, its return shows when the unchanged state has been saved.
        lasting_agent.state_file.unlink()
    lasting_agent.send(number)
    lasting_agent.await_answer(f"{status} maxconn:9\n".encode())
    lasting_agent.await_saved({"status": status, "maxconn": 9})


def test_hup_reloads_the_state_file(agents: Agents, python: str) -> None:
    agent = agents.start(python=python)
    agent.reload(b'{"status": "DRAIN", "weight": 5}', b"DRAIN 5%\n")
    agent.reload(b'{"status": "READY"}', b"READY\n")
    assert agent.state_file.read_bytes() == b'{"status": "READY"}'


def test_usr1_replaces_an_invalid_state_file(agents: Agents) -> None:
    agent = agents.start(b'{"status": "UP", "weight": 300}')
    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP\n")
    agent.await_saved({"status": "UP"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_term_and_int_end_the_agent(agents: Agents, python: str, number: signal.Signals) -> None:
    agent = agents.start(python=python)
    agent.send(number)
    assert agent.await_exit() == 0
    with pytest.raises(ConnectionRefusedError):
        agent.ask()


def test_int_does_not_overtake_a_change(agents: Agents) -> None:
    agent = agents.start()
    # All signals are pending when the agent continues, and SIGINT has the lowest number.
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
    # The state is already DOWN: it is saved again, but that is not a change.
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


def test_save_creates_a_missing_file(agents: Agents) -> None:
    agent = agents.start(None)
    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP\n")
    agent.await_saved({"status": "UP"})


def test_save_replaces_the_remains_of_a_killed_save(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    other = tmp_path / "other"
    other.write_text("must not change", encoding="utf-8")
    agent = agents.start()
    # A link is the worst case: a save that followed it would destroy another file.
    agent.state_file.with_name("state.json.tmp").symlink_to(other)

    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN\n")

    await_other_files(agent, ["state.json"], eventually)
    assert not agent.state_file.is_symlink()
    agent.await_saved({"status": "DOWN"})
    assert other.read_text(encoding="utf-8") == "must not change"


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


# Root may run these tests, and permissions would not stop root.
@pytest.mark.parametrize("prevent_saving", [remove_folder, occupy_temporary_name, make_state_file_a_folder])
def test_keeps_a_state_that_it_cannot_save(
    agents: Agents, eventually: Eventually, prevent_saving: Callable[[Agent], Callable[[], None]]
) -> None:
    agent = agents.start(FULL)
    # The agent saves its memory file after the first check. Wait for that, or it would interfere.
    await_other_files(agent, ["state.json"], eventually)
    allow_saving = prevent_saving(agent)
    left_before = other_files(agent) if agent.state_file.parent.exists() else []
    lines_before = len(agent.log())

    agent.send(signal.SIGUSR2)
    agent.await_answer(b"DOWN 77% maxconn:300\n")

    agent.await_log("not saved")
    lines = [line for line in agent.log()[lines_before:] if f"{agent.state_file}.memory: " not in line]
    assert lines[0] == "hapgent: UP 77% maxconn:300 -> DOWN 77% maxconn:300 (SIGUSR2)"
    (problem,) = lines[1:]
    assert str(agent.state_file) in problem
    if agent.state_file.parent.exists():
        await_other_files(agent, left_before, eventually)

    allow_saving()
    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP 77% maxconn:300\n")
    agent.await_saved({"status": "UP", "weight": 77, "maxconn": 300})
    await_other_files(agent, ["state.json"], eventually)


def test_saves_a_file_whose_owner_is_not_mapped_in_its_user_namespace(agents: Agents) -> None:
    # PrivateUsers= in the unit creates such a namespace. It maps the agent's user, but not necessarily the user who
    # last edited the file.
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


def test_readers_see_whole_files_and_clients_whole_answers(agents: Agents, python: str, eventually: Eventually) -> None:
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
    # The agent still obeys signals.
    for number, answer in [(signal.SIGUSR2, b"DOWN 77% maxconn:300\n"), (signal.SIGUSR1, b"UP 77% maxconn:300\n")]:
        agent.await_signals_taken()
        agent.send(number)
        agent.await_answer(answer)


def test_kill_during_a_save_leaves_a_whole_file(agents: Agents) -> None:
    for _round in range(10):
        agent = agents.start(FULL)
        for _round in range(20):
            agent.send(signal.SIGUSR2)
            agent.send(signal.SIGUSR1)
        agent.kill()

        state = agent.saved()
        assert isinstance(state, dict)
        assert (state["weight"], state["maxconn"]) == (77, 300)
        assert set(other_files(agent)) <= {"state.json", "state.json.tmp", "state.json.memory.tmp"}


# pkill, and signals during the start


def test_pkill_finds_the_agent_by_name(agents: Agents, python: str) -> None:
    if not shutil.which("pkill"):
        pytest.skip("needs pkill")
    agent = agents.start(python=python)
    assert Path(f"/proc/{agent.pid}/comm").read_text(encoding="utf-8") == "hapgent\n"

    # Other agents may run on this machine, so select only children of this process.
    only_ours = ["--exact", "--parent", str(os.getpid()), "hapgent"]
    subprocess.run(["pkill", "--signal", "USR2", *only_ours], check=True)
    agent.await_answer(b"DOWN\n")
    subprocess.run(["pkill", "--signal", "USR1", *only_ours], check=True)
    agent.await_answer(b"UP\n")


@pytest.mark.parametrize(("number", "answer"), [(signal.SIGUSR2, b"DOWN\n"), (signal.SIGHUP, b"UP\n")])
def test_signal_during_the_start_is_obeyed(agents: Agents, python: str, number: signal.Signals, answer: bytes) -> None:
    # The agent accepts signals from its first statement on. Python needs 10 to 30 ms from exec to that statement, and
    # a signal in that time kills the process. Only the parent process can prevent this, as in the next test.
    agent = agents.start(python=python, wait=False)
    agent.await_blocked(number)
    agent.send(number)
    agent.await_log("answering")
    agent.await_answer(answer)


def test_signal_that_the_parent_blocked_is_obeyed(agents: Agents, python: str) -> None:
    agent = agents.start(
        python=python, wait=False, before_exec="signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})"
    )
    agent.await_blocked(signal.SIGUSR2)
    agent.send(signal.SIGUSR2)
    agent.await_log("answering")
    agent.await_answer(b"DOWN\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_term_and_int_during_the_start_end_the_agent(agents: Agents, python: str, number: signal.Signals) -> None:
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
