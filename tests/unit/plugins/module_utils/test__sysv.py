# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""On a host that sysvinit runs, only a child of the loop that root has started counts as the agent of a service."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _agent_process, _systemd, _sysv

# A process that names itself like an agent, prints its ID, and ends with its standard input.
NAMED = "open('/proc/self/comm', 'w').write(sys.argv[1]); print(os.getpid(), flush=True); sys.stdin.read()"
# A loop that starts one.
LOOP = (
    f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', 'import os, sys; ' + {NAMED!r}, sys.argv[1]])"
)
SCRIPT = "#!/bin/sh\nexport HAPGENT_STATE_FILE=/etc/hapgent/state.json\nexport HAPGENT_PORT=9777\n"


def run_command(_command: list[str]) -> tuple[int, str, str]:
    raise AssertionError("no program is needed")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the init script of an agent, in which the files with process IDs are, too."""
    monkeypatch.setattr(_sysv, "is_running", lambda: True)
    monkeypatch.setattr(_systemd, "is_running", lambda: False)
    monkeypatch.setattr(_sysv, "SCRIPTS", str(tmp_path / "init.d"))
    monkeypatch.setattr(_sysv, "PID_FILES", str(tmp_path))
    # Tests may run as another user.
    monkeypatch.setattr(_sysv, "ROOT", os.geteuid())
    tmp_path.chmod(0o755)
    (tmp_path / "init.d").mkdir()
    (tmp_path / "init.d" / "hapgent").write_text(SCRIPT, encoding="utf-8")
    return tmp_path


@contextmanager
def loop(name: str = "hapgent") -> Iterator[tuple[int, int]]:
    """The process IDs of a loop and of its child, which has this name."""
    with subprocess.Popen(
        [sys.executable, "-c", LOOP, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout
        yield running.pid, int(running.stdout.readline())
        running.communicate()


def write_pids(folder: Path, supervisor: int, agent: int) -> None:
    for suffix, pid in ((".supervisor", supervisor), (".pid", agent)):
        (folder / f"hapgent{suffix}").write_text(f"{pid}\n", encoding="ascii")
        (folder / f"hapgent{suffix}").chmod(0o644)


def service(name: str = "hapgent") -> _systemd.Service:
    return _sysv.service(name, run_command)


def state() -> tuple[str, int]:
    found = service()
    return found.state, found.main_pid


def test_an_agent_that_its_loop_has_started(folder: Path) -> None:
    assert state() == ("inactive", 0)
    with loop() as (supervisor, agent):
        write_pids(folder, supervisor, agent)
        assert state() == ("active", agent)
        assert {name: process.pid for name, process in _agent_process.services(run_command).items()} == {
            "hapgent": agent
        }
    assert state() == ("inactive", 0)


def test_a_program_that_is_not_the_agent_yet(folder: Path) -> None:
    with loop("python3") as (supervisor, agent):
        write_pids(folder, supervisor, agent)
        assert state() == ("activating", 0)


def test_a_process_that_is_no_child_of_the_loop(folder: Path) -> None:
    with loop() as (supervisor, _agent), loop() as (_supervisor, other):
        # Such as one that has the process ID of an agent that has ended.
        write_pids(folder, supervisor, other)
        assert state() == ("activating", 0)
        write_pids(folder, 0, other)
        assert state() == ("unsupervised", 0)


def test_a_loop_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loop() as (supervisor, agent):
        write_pids(folder, supervisor, agent)
        status = _sysv.read_status

        def of_another_user(pid: int) -> _sysv.Status | None:
            found = status(pid)
            return found and found._replace(is_of_root=pid != supervisor)

        monkeypatch.setattr(_sysv, "read_status", of_another_user)
        assert state() == ("unsupervised", 0)


def test_files_that_others_can_write(folder: Path) -> None:
    file = folder / "hapgent.pid"
    file.write_text("1\n", encoding="ascii")
    file.chmod(0o644)
    assert _sysv.read_pid(str(file)) == 1
    for path in (file, folder):
        before = path.stat().st_mode
        path.chmod(before | 0o002)
        assert _sysv.read_pid(str(file)) == 0
        path.chmod(before)
    for text in ("", "x", "-1", "1 2", "9" * 20):
        file.write_text(text, encoding="ascii")
        assert _sysv.read_pid(str(file)) == 0
    file.rename(folder / "real")
    file.symlink_to("real")
    assert _sysv.read_pid(str(file)) == 0
    file.unlink()
    os.mkfifo(file)
    assert _sysv.read_pid(str(file)) == 0


def test_files_of_other_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pids(folder, 1, 1)
    monkeypatch.setattr(_sysv, "ROOT", os.geteuid() + 1)
    assert _sysv.read_pid(str(folder / "hapgent.pid")) == 0


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("Name:\tx\nState:\tS (sleeping)\nPPid:\t7\nUid:\t0\t0\t0\t0\n", _sysv.Status("x", 7, True)),
        ("Name:\tx\nState:\tS (sleeping)\nPPid:\t7\nUid:\t0\t0\t5\t0\n", _sysv.Status("x", 7, False)),
        # A process chooses its name, but not the lines after it.
        ("Name:\tx\rPPid:\t1\nState:\tR\nPPid:\t7\nUid:\t1\t1\t1\t1\n", _sysv.Status("x\rPPid:\t1", 7, False)),
        ("Name:\tx\nPPid:\t1\nState:\tR\nPPid:\t7\nUid:\t1\t1\t1\t1\n", _sysv.Status("x", 7, False)),
        ("Name:\tx\nState:\tZ (zombie)\nPPid:\t7\nUid:\t0\t0\t0\t0\n", None),
        ("", None),
    ],
)
def test_status_of_a_process(monkeypatch: pytest.MonkeyPatch, status: str, found: _sysv.Status | None) -> None:
    monkeypatch.setattr(_sysv, "ROOT", 0)
    assert _sysv.parse_status(status) == found


def test_only_scripts_of_agents_are_services(folder: Path) -> None:
    (folder / "init.d" / "hapgent@person").write_text("#!/bin/sh\n# export HAPGENT_STATE_FILE=/x\n", encoding="utf-8")
    (folder / "init.d" / "link").symlink_to("hapgent")
    (folder / "init.d" / "binary").write_bytes(b"\xff")
    (folder / "init.d" / "hapgent@shop").write_text(SCRIPT.replace("state", "shop"), encoding="utf-8")
    assert list(_agent_process.all_services(run_command)) == ["hapgent", "hapgent@shop"]
    assert _sysv.environment("hapgent", run_command) == {
        "HAPGENT_STATE_FILE": "/etc/hapgent/state.json",
        "HAPGENT_PORT": "9777",
    }
    assert (service("hapgent@person").exists, service("hapgent@shop").exists) == (False, True)
    assert [_agent_process.manages(name, run_command) for name in ("hapgent", "cron")] == [True, False]


def test_the_state_file_of_a_service(folder: Path) -> None:
    (folder / "init.d" / "hapgent").unlink()
    (folder / "init.d" / "hapgent@shop").write_text(SCRIPT.replace("state", "shop"), encoding="utf-8")
    assert _agent_process.find_state_file("hapgent@shop", run_command) == "/etc/hapgent/shop.json"
    assert _agent_process.find_state_file("hapgent", run_command, may_be_missing=True) == "/etc/hapgent/state.json"
    for name in ("hapgent", "hapgent@api"):
        with pytest.raises(_agent_process.InstanceError, match=f"there is no service {name}"):
            _agent_process.find_state_file(name, run_command)


def test_a_service_that_does_not_run() -> None:
    with pytest.raises(_agent_process.NotRunningError, match="service hapgent start"):
        _agent_process.find_process("hapgent", None, run_command, 0)
