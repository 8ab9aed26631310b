# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""hapgent_state changes state files and real agents as documented, and waits for load balancers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ansible
import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _state
from preloaded import run_preloaded

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually, HangingDisk
    from tests.unit.plugins.modules.conftest import RunAnsible

MODULE = "ansible_collections.hapgent.agent.plugins.modules.hapgent_state"
# The folders of the collections and of Ansible, for interpreters without them.
IMPORTS = [Path(_state.__file__).parents[5], Path(ansible.__file__).parents[1]]
# systemd does not know this service, so the agent is found by its state file.
SERVICE = "no-service-of-this-name"

Result = dict[str, Any]
TIMES = ("timeout", "wait_timeout")


def run_module(
    *, python: str = sys.executable, check: bool = False, disk: Mapping[str, str] | None = None, **arguments: Any
) -> Result:
    """Run the module with these arguments, and possibly with the environment of a hanging disk."""
    if python == sys.executable and not disk:
        return run_preloaded("hapgent_state", arguments, check=check)
    given = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, IMPORTS)), **(disk or {})}
    done = subprocess.run(
        [python, "-m", MODULE],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )
    assert done.stdout, done.stderr
    result: Result = json.loads(done.stdout)
    assert done.returncode == (1 if result.get("failed") else 0)
    return result


def change(agent: Agent, **arguments: Any) -> Result:
    """Run the module to change this agent's state."""
    where = {"state_file": str(agent.state_file), "service": SERVICE, "address": agent.ip, "port": agent.port}
    return run_module(**{**where, **arguments})


def saved(agent: Agent) -> object:
    return json.loads(agent.state_file.read_bytes())


def names_beside(agent: Agent) -> list[str]:
    """The files in the agent's folder, except locks and its memory, which it may be saving."""
    kept = {f"{agent.state_file.name}.{name}" for name in ("lock", "memory", "memory.lock", "memory.tmp")}
    return sorted(set(os.listdir(agent.state_file.parent)) - kept)


def fingerprint(path: Path) -> tuple[bytes, int, int]:
    """Values that differ after the file was written."""
    return path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns


def assert_nothing_changed(result: Result, *named: str) -> None:
    """Check that the module failed before it changed anything, and that its message contains these words."""
    assert result["failed"]
    assert not result.get("changed")
    for word in [*named, "Nothing was changed"]:
        assert word in result["msg"]


def warnings(result: Result) -> str:
    return json.dumps(result.get("warnings", []))


FULL = b'{"status": "UP", "weight": 77, "maxconn": 300}'

# The previous file content, the module's arguments, the resulting state, and the agent's answer to it.
CHANGES: dict[str, tuple[bytes, Result, Result, str]] = {
    "status": (
        FULL,
        {"status": "DRAIN"},
        {"status": "DRAIN", "weight": 77, "maxconn": 300},
        "DRAIN 77% maxconn:300",
    ),
    "weight": (FULL, {"weight": 5}, {"status": "UP", "weight": 5, "maxconn": 300}, "UP 5% maxconn:300"),
    "maxconn": (FULL, {"maxconn": 5}, {"status": "UP", "weight": 77, "maxconn": 5}, "UP 77% maxconn:5"),
    "minimum values": (
        FULL,
        {"weight": 0, "maxconn": 0},
        {"status": "UP", "weight": 0, "maxconn": 0},
        "UP 0% maxconn:0",
    ),
    "maximum values": (
        b'{"status": "UP"}',
        {"weight": 255, "maxconn": 65535},
        {"status": "UP", "weight": 255, "maxconn": 65535},
        "UP 255% maxconn:65535",
    ),
    "all at once": (
        b'{"status": "UP"}',
        {"status": "READY", "weight": 1, "maxconn": 2},
        {"status": "READY", "weight": 1, "maxconn": 2},
        "READY 1% maxconn:2",
    ),
    "unset weight": (FULL, {"unset": ["weight"]}, {"status": "UP", "maxconn": 300}, "UP maxconn:300"),
    "unset both": (FULL, {"unset": ["weight", "maxconn"]}, {"status": "UP"}, "UP"),
    "one set, one unset": (
        FULL,
        {"status": "MAINT", "weight": 100, "unset": ["maxconn"]},
        {"status": "MAINT", "weight": 100},
        "MAINT 100%",
    ),
    "number in another notation": (
        b'{"status": "UP", "weight": 5e1}',
        {"maxconn": 9},
        {"status": "UP", "weight": 50, "maxconn": 9},
        "UP 50% maxconn:9",
    ),
    "reason": (
        FULL,
        {"reason": "all is well"},
        {"status": "UP", "weight": 77, "maxconn": 300, "reason": "all is well"},
        "UP 77% maxconn:300 # all is well",
    ),
    "status and reason": (
        b'{"status": "UP"}',
        {"status": "DRAIN", "reason": "€" * 40},
        {"status": "DRAIN", "reason": "€" * 40},
        f"DRAIN UP # {'€' * 40}",
    ),
    "reason stays with the same status": (
        b'{"status": "DRAIN", "reason": "no disk"}',
        {"status": "DRAIN", "weight": 5},
        {"status": "DRAIN", "weight": 5, "reason": "no disk"},
        "DRAIN UP 5% # no disk",
    ),
    "reason stays without a status": (
        b'{"status": "DOWN", "reason": "no disk"}',
        {"unset": ["weight"], "maxconn": 5},
        {"status": "DOWN", "maxconn": 5, "reason": "no disk"},
        "DOWN maxconn:5 # no disk",
    ),
    "reason is removed with its status": (
        b'{"status": "DRAIN", "weight": 5, "reason": "no disk"}',
        {"status": "UP"},
        {"status": "UP", "weight": 5},
        "UP 5%",
    ),
    "same reason for another status": (
        b'{"status": "DRAIN", "reason": "no disk"}',
        {"status": "MAINT", "reason": "no disk"},
        {"status": "MAINT", "reason": "no disk"},
        "MAINT UP # no disk",
    ),
    "another reason": (
        b'{"status": "DRAIN", "reason": "no disk"}',
        {"reason": "new disk"},
        {"status": "DRAIN", "reason": "new disk"},
        "DRAIN UP # new disk",
    ),
    "unset reason": (
        b'{"status": "DRAIN", "weight": 5, "reason": "no disk"}',
        {"unset": ["reason"]},
        {"status": "DRAIN", "weight": 5},
        "DRAIN 5%",
    ),
}


@pytest.mark.parametrize(("content", "wanted", "after", "answer"), CHANGES.values(), ids=CHANGES)
def test_only_given_fields_change_and_a_second_run_changes_nothing(
    agents: Agents, content: bytes, wanted: Result, after: Result, answer: str
) -> None:
    agent = agents.start(content)
    before = saved(agent)

    predicted = change(agent, check=True, **wanted)
    assert agent.state_file.read_bytes() == content
    assert agent.ask() != f"{answer}\n".encode()

    done = change(agent, **wanted)
    assert (done["changed"], done["before"], done["after"], done["answer"]) == (True, before, after, answer)
    assert agent.ask() == f"{answer}\n".encode()
    assert saved(agent) == after
    assert names_beside(agent) == ["state.json"]

    # Check mode must have predicted all of this.
    for key in ("changed", "before", "after", "answer", "diff"):
        assert predicted[key] == done[key]

    found = fingerprint(agent.state_file)
    again = change(agent, **wanted)
    assert (again["changed"], again["before"], again["after"], again["answer"]) == (False, after, after, answer)
    assert again["diff"]["before"] == again["diff"]["after"]
    assert fingerprint(agent.state_file) == found


def test_module_runs_with_each_python(agents: Agents, python: str) -> None:
    agent = agents.start(FULL)
    assert change(agent, python=python, status="DRAIN")["answer"] == "DRAIN 77% maxconn:300"
    assert agent.ask() == b"DRAIN 77% maxconn:300\n"


@pytest.mark.parametrize("status", _state.STATUSES)
def test_each_status_can_be_set(agents: Agents, status: str) -> None:
    agent = agents.start(b'{"status": "%s"}' % (b"DOWN" if status == "UP" else b"UP"))
    assert change(agent, status=status)["changed"]
    assert agent.ask() == f"{status}\n".encode()


def test_no_arguments_change_nothing(agents: Agents) -> None:
    agent = agents.start(FULL)
    result = change(agent)
    assert not result["changed"]
    assert result["answer"] == "UP 77% maxconn:300"


@pytest.mark.parametrize(("reason", "text"), [(4.2, "4.2"), (2026, "2026"), ("4.10", "4.10"), (True, "True")])
def test_reason_may_be_a_number(agents: Agents, reason: object, text: str) -> None:
    agent = agents.start()
    first = change(agent, status="DRAIN", reason=reason)
    assert (first["after"], warnings(first)) == ({"status": "DRAIN", "reason": text}, "[]")
    assert not change(agent, status="DRAIN", reason=reason)["changed"]
    result = change(agent, status="UP", only_if={"reason": reason})
    assert (result["kept"], result["changed"]) == (False, True)


def test_unset_of_missing_fields_changes_nothing(agents: Agents) -> None:
    assert not change(agents.start(), unset=["weight", "maxconn", "reason"])["changed"]


def test_unset_maxconn_causes_a_warning(agents: Agents) -> None:
    agent = agents.start(FULL)
    for check in (True, False):
        assert "HAProxy keeps maxconn 300" in warnings(change(agent, check=check, unset=["maxconn"]))
    # The warning appears only if maxconn was set.
    assert warnings(change(agent, unset=["maxconn"])) == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        {"maxconn": 5},
        {"maxconn": 300},
        {"status": "DRAIN"},
        {"unset": ["weight"]},
        {"weight": 300, "unset": ["maxconn"]},
    ],
)
def test_other_changes_cause_no_warning(agents: Agents, arguments: Result) -> None:
    assert warnings(change(agents.start(FULL), **arguments)) == "[]"


def test_diff_shows_file_and_answer(agents: Agents) -> None:
    agent = agents.start(b'{"weight": 50, "status": "UP"}')
    assert change(agent, status="DRAIN")["diff"] == {
        "before_header": str(agent.state_file),
        "after_header": str(agent.state_file),
        "before": '{\n  "status": "UP",\n  "weight": 50\n}\nagent answers: UP 50%\n',
        "after": '{\n  "status": "DRAIN",\n  "weight": 50\n}\nagent answers: DRAIN 50%\n',
    }


def test_agent_may_have_an_ipv6_address(agents: Agents) -> None:
    agent = agents.start(ip="::1")
    assert change(agent, status="DRAIN")["answer"] == "DRAIN"


# State file


def test_change_keeps_mode_and_owner(agents: Agents) -> None:
    agent = agents.start()
    agent.state_file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(agent.state_file, 12345, 54321)
    before = agent.state_file.stat()

    assert change(agent, status="DRAIN")["changed"]

    after = agent.state_file.stat()
    assert after.st_ino != before.st_ino, "the file was not replaced at once"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_link_to_a_state_file_is_refused(agents: Agents, tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    agent = agents.start(state_file=target)
    link.symlink_to(target)
    assert_nothing_changed(change(agent, state_file=str(link), status="DRAIN"), str(link), "symbolic link")
    assert saved(agent) == {"status": "UP"}


def test_leftover_temporary_file_is_replaced(agents: Agents, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"not to be touched")
    agent = agents.start()
    agent.state_file.with_name("state.json.tmp").symlink_to(other)
    assert change(agent, status="DRAIN")["changed"]
    assert other.read_bytes() == b"not to be touched"
    assert names_beside(agent) == ["state.json"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"status": "UP", "weight": 300}', ["weight", "300"]),
        (b'{"status": "up"}', ["status", '"up"']),
        (b"", ["JSON"]),
        (None, ["create"]),
    ],
)
@pytest.mark.parametrize("notify", [True, False])
def test_invalid_file_is_an_error(agents: Agents, content: bytes | None, named: list[str], notify: bool) -> None:
    agent = agents.start(content)
    result = change(agent, status="UP", notify=notify)
    assert_nothing_changed(result, str(agent.state_file), "state_file", *named)
    assert agent.ask() == b"FAIL\n"
    assert (agent.state_file.read_bytes() if agent.state_file.exists() else None) == content


def test_error_if_the_file_cannot_be_written(agents: Agents) -> None:
    agent = agents.start()
    # Permissions would not stop root, who may run these tests.
    agent.state_file.with_name("state.json.tmp").mkdir()
    result = change(agent, status="DRAIN")
    assert_nothing_changed(result, f"cannot write {agent.state_file}: ")
    assert result["before"] == result["after"] == {"status": "UP"}
    assert agent.ask() == b"UP\n"


# Runs the module on a simulated disk where folders cannot be synced.
SYNCS_NO_FOLDER = f"""
import errno, os, stat
from {MODULE} import main
sync = os.fsync
def fsync(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    sync(descriptor)
os.fsync = fsync
main()
"""


def test_failed_sync_of_the_folder_is_reported_as_a_change(new_file: Path) -> None:
    new_file.write_bytes(b'{"status": "UP"}')
    given = {"ANSIBLE_MODULE_ARGS": {"state_file": str(new_file), "status": "DRAIN", "notify": False}}
    done = subprocess.run(
        [sys.executable, "-c", SYNCS_NO_FOLDER],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, IMPORTS))},
    )
    result = json.loads(done.stdout)
    # The file has been replaced, so the failed run must report the change.
    assert result["failed"]
    assert (result["changed"], result["before"], result["after"]) == (True, {"status": "UP"}, {"status": "DRAIN"})
    assert json.loads(new_file.read_bytes()) == {"status": "DRAIN"}
    assert "Nothing was changed" not in result["msg"]
    assert result["msg"].startswith(f"The file {new_file} was changed, but ")
    assert "Input/output error" in result["msg"]


# Option create


@pytest.fixture
def new_file(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "state.json"


def create(path: Path, **arguments: Any) -> Result:
    return run_module(state_file=str(path), create=True, notify=False, **arguments)


def test_create_makes_the_file_once(new_file: Path) -> None:
    wanted = {"status": "MAINT", "weight": 5, "maxconn": 7, "reason": "not installed yet"}

    predicted = create(new_file, check=True, **wanted)
    assert os.listdir(new_file.parent) == []
    # The umask must not affect the file's mode.
    before = os.umask(0o077)
    try:
        done = create(new_file, **wanted)
    finally:
        os.umask(before)
    assert json.loads(new_file.read_bytes()) == wanted
    assert stat.S_IMODE(new_file.stat().st_mode) == 0o644
    assert (done["changed"], done["kept"], done["before"], done["after"]) == (True, False, {}, wanted)
    for key in ("changed", "kept", "before", "after", "diff"):
        assert predicted[key] == done[key]

    found = fingerprint(new_file)
    for check in (True, False):
        again = create(new_file, check=check, status="UP", weight=9)
        assert (again["changed"], again["kept"], again["before"], again["after"]) == (False, True, wanted, wanted)
        assert fingerprint(new_file) == found


def test_create_makes_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "state.json"
    assert_nothing_changed(create(file, status="UP"), f"{file}: ", f" {file.parent} ")
    # In check mode, earlier tasks have not created the folder either.
    predicted = create(file, check=True, status="UP")
    assert (predicted["changed"], predicted["before"], predicted["after"]) == (True, {}, {"status": "UP"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("reason", "keeps"), [("disk", True), ("kernel", False)])
def test_another_reason_forgets_who_gave_the_previous_one(new_file: Path, reason: str, keeps: bool) -> None:
    notes = {"by": "ada@control1", "until": "2026-11-28T06:00:00Z"}
    new_file.write_text(json.dumps({"status": "DRAIN", "reason": "disk", **notes}), encoding="utf-8")
    result = run_module(state_file=str(new_file), notify=False, status="DRAIN", reason=reason)
    assert result["changed"] is not keeps
    assert result["after"] == {"status": "DRAIN", "reason": reason, **(notes if keeps else {})}


def test_then_requires_until(new_file: Path) -> None:
    new_file.write_bytes(b'{"status": "UP"}')
    arguments: Any = {"state_file": str(new_file), "notify": False, "status": "DRAIN"}
    assert_nothing_changed(run_module(**arguments, then="UP"), "then requires until")
    assert "READY" in run_module(**arguments, until="2h", then="READY")["msg"]
    assert new_file.read_bytes() == b'{"status": "UP"}'
    notes: Any = {"until": "2999-11-28T06:00:00Z", "then": "UP"}
    assert run_module(**arguments, **notes)["after"] == {"status": "DRAIN", **notes}
    again = run_module(**arguments, **notes)
    assert (again["changed"], again["after"]) == (False, {"status": "DRAIN", **notes})
    # Without what follows, another moment removes it.
    notes = {"until": "2999-11-28T07:00:00Z"}
    assert run_module(**arguments, **notes)["after"] == {"status": "DRAIN", **notes}


def test_missing_file_is_an_error_without_create(new_file: Path) -> None:
    result = run_module(state_file=str(new_file), notify=False, status="UP")
    assert_nothing_changed(result, f"{new_file} ", "state_file", "create")
    assert not new_file.exists()


def test_create_restores_the_file_of_a_running_agent(agents: Agents) -> None:
    agent = agents.start()
    agent.state_file.unlink()
    agent.send(signal.SIGHUP)
    agent.await_answer(b"FAIL\n")
    done = change(agent, create=True, status="MAINT")
    assert (done["before"], done["after"], done["answer"]) == ({}, {"status": "MAINT"}, "MAINT")
    assert agent.ask() == b"MAINT\n"


def test_create_does_not_replace_an_invalid_file(new_file: Path) -> None:
    new_file.write_bytes(b"{}")
    assert_nothing_changed(create(new_file, status="UP"), str(new_file), "status", "UP, DOWN, READY")
    assert new_file.read_bytes() == b"{}"


def test_only_one_of_simultaneous_runs_creates_the_file(new_file: Path) -> None:
    with ThreadPoolExecutor() as runs:
        results = list(runs.map(lambda weight: create(new_file, status="UP", weight=weight), range(4)))
    made = [result["after"] for result in results if result["changed"]]
    assert made == [json.loads(new_file.read_bytes())]


# Option only_if


DRAINED = b'{"status": "DRAIN", "reason": "disk"}'
# The file content, the option only_if, and whether the state is kept.
ONLY_IF: dict[str, tuple[bytes, Result, bool]] = {
    "this status": (FULL, {"status": ["UP", "READY"]}, False),
    "another status": (DRAINED, {"status": ["UP", "READY"]}, True),
    "no status": (FULL, {"status": []}, True),
    "this reason": (DRAINED, {"reason": "disk"}, False),
    "another reason": (DRAINED, {"reason": "dis"}, True),
    "no reason": (FULL, {"reason": ""}, False),
    "a reason instead of none": (DRAINED, {"reason": ""}, True),
    "none instead of a reason": (FULL, {"reason": "disk"}, True),
    "both": (DRAINED, {"status": ["DRAIN"], "reason": "disk"}, False),
    "only the status": (DRAINED, {"status": ["DRAIN"], "reason": "release"}, True),
    "only the reason": (DRAINED, {"status": ["MAINT"], "reason": "disk"}, True),
    "nothing": (DRAINED, {}, False),
}


@pytest.mark.parametrize(("content", "only_if", "kept"), ONLY_IF.values(), ids=ONLY_IF)
def test_state_is_kept_if_only_if_does_not_match(agents: Agents, content: bytes, only_if: Result, kept: bool) -> None:
    agent = agents.start(content)
    before, answer = saved(agent), agent.ask()
    predicted = change(agent, check=True, status="DOWN", reason="mine", only_if=only_if)
    done = change(agent, status="DOWN", reason="mine", only_if=only_if)
    for key in ("changed", "kept", "before", "after", "answer", "diff"):
        assert predicted[key] == done[key]
    assert (done["changed"], done["kept"], done["before"]) == (not kept, kept, before)
    assert done["after"] == saved(agent)
    assert (done["after"] == before) == kept
    assert (agent.ask() == answer) == kept


def test_kept_state_is_loaded_and_waited_for(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    agent = start_with_status(agents, tmp_path)
    # The agent has not read this state yet.
    agent.write_state(DRAINED)
    with polled(agent, eventually, {FAST: 0.1}) as balancers:
        result = change(agent, status="UP", only_if={"reason": "release"}, wait=True)
    assert (result["kept"], result["changed"], result["received_by"]) == (True, True, [FAST])
    assert saved(agent) == json.loads(DRAINED)
    assert balancers[FAST].received[-1] == b"DRAIN UP # disk\n"


# Arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weight": 256}, ["weight", "256", "0 to 255"]),
        ({"weight": -1}, ["weight", "-1", "0 to 255"]),
        ({"maxconn": 65536}, ["maxconn", "65536", "0 to 65535"]),
        ({"maxconn": -1}, ["maxconn", "-1", "0 to 65535"]),
        ({"weight": 5, "unset": ["weight"]}, ["weight", "set", "unset"]),
        ({"maxconn": 5, "unset": ["maxconn"]}, ["maxconn", "set", "unset"]),
        ({"reason": "x", "unset": ["reason"]}, ["reason", "set", "unset"]),
        ({"reason": ""}, ["reason", '""', "1 to 120 bytes"]),
        ({"reason": " "}, ["reason", '" "', "1 to 120 bytes"]),
        ({"reason": "x" * 121}, ["reason", "1 to 120 bytes"]),
        ({"reason": "ä" * 61}, ["reason", "1 to 120 bytes"]),
        ({"reason": "disk #3"}, ["reason", '"disk #3"', "control characters and #"]),
        ({"reason": "no\ndisk"}, ["reason", r'"no\ndisk"', "control characters and #"]),
        *(({name: value}, [name, "0 to 86400"]) for name in TIMES for value in ("nan", "inf", "-inf", -1, 86401, 1e10)),
        ({"create": True}, ["create", "status"]),
        ({"port": 0}, ["port", "0"]),
        ({"port": -1}, ["port", "-1"]),
        ({"port": 65536}, ["port", "65536"]),
    ],
)
def test_argument_out_of_range_is_refused(agents: Agents, arguments: Result, named: list[str]) -> None:
    agent = agents.start(FULL)
    status = {} if "create" in arguments else {"status": "DRAIN"}
    result = change(agent, **status, **arguments)
    assert_nothing_changed(result, *named)
    assert agent.state_file.read_bytes() == FULL
    assert agent.ask() == b"UP 77% maxconn:300\n"


def test_port_out_of_range_is_not_taken_modulo_65536(agents: Agents) -> None:
    # The system itself takes the port modulo 65536.
    agent = agents.start(FULL)
    port = agent.port + 65536
    assert_nothing_changed(change(agent, status="DRAIN", port=port), "port", str(port))
    assert agent.state_file.read_bytes() == FULL
    assert agent.ask() == b"UP 77% maxconn:300\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"status": "up"}, ["status", "READY"]),
        ({"status": ""}, ["status", "READY"]),
        ({"weight": "50%"}, ["weight", "int"]),
        ({"weight": 1.5}, ["weight", "int"]),
        ({"unset": ["status"]}, ["unset", "weight, maxconn, reason"]),
        ({"wait": "for me"}, ["wait", "bool"]),
        ({"wait_timeout": "a minute"}, ["wait_timeout", "float"]),
        ({"only_if": {"status": ["up"]}}, ["status", "READY"]),
        ({"only_if": {"state": "UP"}}, ["state", "Supported parameters"]),
        ({"only_if": {"reason": ""}, "create": True, "status": "UP"}, ["mutually exclusive", "create", "only_if"]),
        ({"state": "UP"}, ["state", "Supported parameters"]),
    ],
)
def test_arguments_that_ansible_refuses(agents: Agents, arguments: Result, named: list[str]) -> None:
    agent = agents.start(FULL)
    result = change(agent, **arguments)
    assert result["failed"]
    for word in named:
        assert word in result["msg"]
    assert agent.state_file.read_bytes() == FULL


# Agents


@pytest.mark.parametrize("check", [False, True], ids=["", "check"])
def test_error_if_the_agent_does_not_run(agents: Agents, check: bool) -> None:
    agent = agents.start(FULL)
    agent.kill()
    result = change(agent, check=check, status="DRAIN")
    assert_nothing_changed(result, SERVICE, str(agent.state_file), "HAPGENT_STATE_FILE")
    assert agent.state_file.read_bytes() == FULL


def test_error_if_the_agent_does_not_listen_on_the_port(agents: Agents) -> None:
    agent = agents.start(FULL)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        result = change(agent, status="DRAIN", port=port)
    assert_nothing_changed(result, "127.0.0.1", str(port))
    assert agent.state_file.read_bytes() == FULL
    assert agent.ask() == b"UP 77% maxconn:300\n"


def test_error_if_the_agent_hangs(agents: Agents) -> None:
    agent = agents.start(FULL)
    with agent.paused():
        result = change(agent, status="DRAIN", timeout=0.5)
    assert_nothing_changed(result, f"{agent.ip} port {agent.port} ", "timed out")
    assert agent.state_file.read_bytes() == FULL


def test_error_if_another_agent_answers_on_the_port(agents: Agents) -> None:
    agent = agents.start()
    other = agents.start(b'{"status": "MAINT"}')

    result = change(agent, status="DRAIN", port=other.port, timeout=3)

    assert result["failed"]
    # The file was changed, but the agent on the port does not have the new state.
    assert result["changed"]
    assert (result["before"], result["after"]) == ({"status": "UP"}, {"status": "DRAIN"})
    assert result["answer"] == "MAINT"
    for word in [f"{agent.state_file} ", " DRAIN", str(other.port), " MAINT", " 3 s", SERVICE]:
        assert word in result["msg"]
    assert saved(agent) == {"status": "DRAIN"}
    assert saved(other) == {"status": "MAINT"}
    assert other.ask() == b"MAINT\n"


def test_error_if_the_agent_ends_at_the_reload(agents: Agents) -> None:
    # The listener answers only the first poll.
    agent = agents.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            client = listener.accept()[0]
            with client:
                client.sendall(b"UP\n")
            listener.close()

        thread = threading.Thread(target=answer_once)
        thread.start()
        result = change(agent, status="DRAIN", port=listener.getsockname()[1], timeout=1)
        thread.join()
    assert result["failed"]
    assert result["changed"]
    for word in [f"{agent.state_file} ", " DRAIN"]:
        assert word in result["msg"]
    assert saved(agent) == {"status": "DRAIN"}


def test_error_if_two_agents_serve_the_file(agents: Agents) -> None:
    first = agents.start(FULL)
    second = agents.start(FULL, state_file=first.state_file)
    assert_nothing_changed(change(first, status="DRAIN"), str(first.state_file), str(first.pid), str(second.pid))
    assert first.state_file.read_bytes() == FULL


def test_other_agents_are_left_alone(agents: Agents) -> None:
    agent = agents.start()
    other = agents.start()
    # A reload would make the other agent answer MAINT.
    other.write_state(b'{"status": "MAINT"}')
    assert change(agent, status="DRAIN")["answer"] == "DRAIN"
    assert other.ask() == b"UP\n"


# Agents whose state differs from their file


def edit(agent: Agent) -> str:
    agent.write_state(b'{"status": "DRAIN"}')
    return "DRAIN"


def forget(agent: Agent) -> str:
    """Make the agent's state differ from its file, as if the agent had failed to save it."""
    agent.reload(b'{"status": "MAINT"}', b"MAINT\n")
    agent.write_state(b'{"status": "UP"}')
    return "UP"


@pytest.mark.parametrize("drift", [edit, forget])
def test_agent_is_reloaded_if_its_answer_differs_from_its_file(agents: Agents, drift: Callable[[Agent], str]) -> None:
    agent = agents.start()
    status = drift(agent)
    answer_before = agent.ask().decode().strip()
    found = fingerprint(agent.state_file)

    predicted = change(agent, check=True, status=status)
    assert (predicted["changed"], predicted["answer"]) == (True, status)
    assert agent.ask().decode().strip() == answer_before

    done = change(agent, status=status)
    assert (done["changed"], done["answer"]) == (True, status)
    assert done["before"] == done["after"] == {"status": status}
    assert f"agent answers: {answer_before}" in done["diff"]["before"]
    assert f"agent answers: {status}" in done["diff"]["after"]
    assert agent.ask() == f"{status}\n".encode()
    assert fingerprint(agent.state_file) == found

    assert not change(agent, status=status)["changed"]


@pytest.mark.parametrize(
    ("reported", "edited"),
    [
        ({"status": "UP", "weight": 100}, {"status": "UP"}),
        ({"status": "DRAIN", "weight": 100, "maxconn": 5}, {"status": "DRAIN", "maxconn": 5}),
    ],
)
def test_agent_is_reloaded_if_weight_100_was_removed_from_its_file(
    agents: Agents, reported: Result, edited: Result
) -> None:
    agent = agents.start(json.dumps(reported).encode())
    agent.write_state(json.dumps(edited).encode())
    done = change(agent, status=edited["status"])
    assert (done["changed"], done["before"], done["after"]) == (True, edited, edited)
    assert b"100%" not in agent.ask()
    assert not change(agent, status=edited["status"])["changed"]


def test_equal_file_in_another_notation_is_not_written(agents: Agents) -> None:
    content = b'{"maxconn":1e2,"weight":5.0,   "status":"UP"}'
    agent = agents.start(content)
    assert not change(agent, status="UP", weight=5, maxconn=100)["changed"]
    assert agent.state_file.read_bytes() == content


# Option notify


def test_without_notify_only_the_file_changes(agents: Agents) -> None:
    agent = agents.start()
    result = change(agent, status="DRAIN", notify=False)
    assert (result["changed"], result["after"]) == (True, {"status": "DRAIN"})
    assert "answer" not in result
    assert "answers" not in result["diff"]["after"]
    assert saved(agent) == {"status": "DRAIN"}
    assert agent.ask() == b"UP\n"
    assert not change(agent, status="DRAIN", notify=False)["changed"]


def test_without_notify_no_agent_is_needed(agents: Agents) -> None:
    agent = agents.start()
    agent.kill()
    assert change(agent, status="DRAIN", notify=False)["changed"]
    assert saved(agent) == {"status": "DRAIN"}
    assert not change(agent, status="DRAIN", notify=False, check=True)["changed"]


def test_ansible_can_run_the_module(agents: Agents, run_ansible: RunAnsible) -> None:
    agent = agents.start(FULL)
    arguments = {
        "status": "DRAIN",
        "state_file": str(agent.state_file),
        "service": SERVICE,
        "port": agent.port,
    }
    assert run_ansible("hapgent_state", json.dumps(arguments))["changed"]
    assert agent.ask() == b"DRAIN 77% maxconn:300\n"


def test_simultaneous_runs_lose_no_changes(agents: Agents) -> None:
    agent = agents.start()
    with ThreadPoolExecutor() as runs:
        for number in range(5):
            weight = runs.submit(change, agent, weight=number)
            maxconn = runs.submit(change, agent, maxconn=number)
            # The agent's answer may contain only one of the changes at first, but in the end it contains both.
            assert weight.result().get("changed")
            assert maxconn.result().get("changed")
            assert saved(agent) == {"status": "UP", "weight": number, "maxconn": number}


def test_waiting_for_the_lock_ends_at_the_timeout(agents: Agents) -> None:
    agent = agents.start(FULL)
    assert change(agent, weight=77, maxconn=301)["changed"]
    before = agent.state_file.read_bytes()
    with locked(agent.state_file.with_name("state.json.lock")):
        result = change(agent, status="DRAIN", timeout=3)
    # The message names the process that holds the lock.
    assert_nothing_changed(result, "state.json.lock", str(os.getpid()))
    assert agent.state_file.read_bytes() == before
    assert change(agent, status="DRAIN")["changed"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR2, "DOWN"), (signal.SIGUSR1, "UP")])
def test_signal_during_a_change_loses_neither_change(
    agents: Agents, disk: HangingDisk, eventually: Eventually, number: signal.Signals, status: str
) -> None:
    """The agent sends the signal's status at once, and saves it after the module has saved its change."""
    agent = agents.start(b'{"status": "MAINT"}')
    disk.hang()
    with ThreadPoolExecutor() as pool:
        changed = pool.submit(change, agent, weight=50, disk=disk.environment("fsync"))
        eventually(lambda: "state.json.tmp" in names_beside(agent), "the module saves")
        agent.send(number)
        agent.await_answer(f"{status}\n".encode())
        disk.recover()
        assert changed.result()["changed"]
    agent.await_saved({"status": status, "weight": 50})
    agent.await_answer(f"{status} 50%\n".encode())


def test_change_by_another_process_is_not_reported_as_own(
    agents: Agents, disk: HangingDisk, eventually: Eventually
) -> None:
    agent = agents.start()
    new = agent.state_file.with_name("state.json.tmp")
    disk.hang()
    with ThreadPoolExecutor() as pool:
        run = pool.submit(change, agent, status="DRAIN", disk=disk.environment("rename"))
        eventually(lambda: new.exists() and b"DRAIN" in new.read_bytes(), "the module saves")
        new.unlink()
        agent.write_state(b'{"status": "MAINT"}')
        disk.recover()
    assert_nothing_changed(run.result(), f"{agent.state_file}: ", " MAINT")
    assert saved(agent) == {"status": "MAINT"}


def test_lock_on_the_folder_has_no_effect(agents: Agents) -> None:
    agent = agents.start(FULL)
    with locked(agent.state_file.parent):
        assert change(agent, status="DRAIN", timeout=5)["changed"]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


# Agents that settle, and agents with a status socket

# Longer than any test takes.
LONG = 3600


def start_with_status(agents: Agents, tmp_path: Path, state: bytes = b'{"status": "UP"}', **options: Any) -> Agent:
    """Start an agent that has a status socket, settles, and was not polled yet."""
    agent = agents.start(
        state,
        state_file=tmp_path / "state.json",
        environment={"HAPGENT_SOCKET": str(tmp_path / "status.sock"), "HAPGENT_SETTLE": str(LONG)},
        wait=False,
        **options,
    )
    agent.await_log("answering")
    return agent


def start_without_status(agents: Agents, _tmp_path: Path, state: bytes = b'{"status": "UP"}') -> Agent:
    """Start an agent that settles but has no status socket."""
    return agents.start(state, environment={"HAPGENT_SETTLE": str(LONG)})


def read_status(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(15)
        reader.connect(str(path))
        return b"".join(iter(lambda: reader.recv(65536), b""))


def status(agent: Agent) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(read_status(agent.state_file.with_name("status.sock")))
    return document


with_and_without_status = pytest.mark.parametrize(
    "start", [start_with_status, start_without_status], ids=["status socket", "no status socket"]
)

# The arguments, the resulting answer, and the response to load balancers while the agent settles.
WHILE_IT_SETTLES: list[tuple[Result, str, str]] = [
    ({"status": "DRAIN", "reason": "no disk"}, "DRAIN UP # no disk", "DRAIN UP # no disk"),
    ({"status": "UP"}, "UP", "UP READY"),
    ({"weight": 50}, "UP 50%", "UP READY 50%"),
    ({"unset": ["weight"]}, "UP", "UP READY 100%"),
    ({"status": "MAINT"}, "MAINT", "MAINT UP 100%"),
]


@with_and_without_status
def test_second_run_changes_nothing_while_the_agent_settles(
    agents: Agents, tmp_path: Path, start: Callable[..., Agent]
) -> None:
    agent = start(agents, tmp_path)
    assert agent.ask() == b"UP\n"
    for wanted, answer, sent in WHILE_IT_SETTLES:
        done = change(agent, **wanted)
        assert (done["changed"], done["answer"]) == (True, answer)
        assert f"agent answers: {answer}\n" in done["diff"]["after"]
        assert agent.ask() == f"{sent}\n".encode()

        again = change(agent, **wanted)
        assert (again["changed"], again["answer"]) == (False, answer)
        assert again["diff"]["before"] == again["diff"]["after"]
        assert "received_by" not in done
        assert "not_received_by" not in done


@with_and_without_status
def test_settling_agent_is_reloaded_if_its_answer_differs_from_its_file(
    agents: Agents, tmp_path: Path, start: Callable[..., Agent]
) -> None:
    agent = start(agents, tmp_path, b'{"status": "DRAIN"}')
    agent.reload(b'{"status": "UP"}', b"UP READY\n")
    agent.write_state(b'{"status": "DOWN"}')

    predicted = change(agent, check=True, status="DOWN")
    done = change(agent, status="DOWN")

    assert (done["changed"], done["answer"]) == (True, "DOWN")
    for key in ("changed", "before", "after", "answer", "diff"):
        assert predicted[key] == done[key]
    assert done["before"] == done["after"] == {"status": "DOWN"}
    assert "agent answers: UP" in done["diff"]["before"]
    assert agent.ask() == b"DOWN READY\n"
    assert not change(agent, status="DOWN")["changed"]


def test_module_is_not_taken_for_a_load_balancer(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    agent = start_with_status(agents, tmp_path)
    with polled(agent, eventually, {FAST: 0.1}):
        # With a status socket, the module never polls the port.
        assert change(agent, status="DRAIN", port=1, address="192.0.2.1")["answer"] == "DRAIN"
        assert change(agent, status="UP", port=1, wait=True)["answer"] == "UP"
        assert not change(agent, status="UP", port=1)["changed"]
    assert [peer["address"] for peer in status(agent)["peers"]] == [FAST]


@pytest.mark.parametrize("check", [False, True], ids=["", "check"])
def test_error_if_the_agent_with_a_status_socket_hangs(agents: Agents, tmp_path: Path, check: bool) -> None:
    agent = start_with_status(agents, tmp_path, FULL)
    with agent.paused():
        result = change(agent, check=check, status="DRAIN", timeout=0.5)
    assert_nothing_changed(result, str(tmp_path / "status.sock"), "timed out")
    assert agent.state_file.read_bytes() == FULL


def start_without_room_for_status(agents: Agents, path: Path) -> Agent:
    """Start an agent that cannot create its status socket at this path."""
    agent = agents.start(FULL, environment={"HAPGENT_SOCKET": str(path)})
    agent.await_log("HAPGENT_SOCKET")
    return agent


@pytest.mark.parametrize(
    "name", ["none/status.sock", "file", "x" * 120], ids=["no folder", "a file is there", "too long a path"]
)
def test_error_if_the_agent_could_not_create_its_status_socket(agents: Agents, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (tmp_path / "file").write_bytes(b"")
    agent = start_without_room_for_status(agents, path)
    for check in (True, False):
        result = change(agent, check=check, status="DRAIN", timeout=0.5)
        assert_nothing_changed(result, f"{path} ", "log")
    assert agent.state_file.read_bytes() == FULL


def test_wait_fails_if_the_agent_could_not_create_its_status_socket(agents: Agents, tmp_path: Path) -> None:
    path = tmp_path / "none" / "status.sock"
    agent = start_without_room_for_status(agents, path)
    result = change(agent, status="DRAIN", wait=True, timeout=0.5)
    assert_nothing_changed(result, f"{path} ", "log")
    assert agent.state_file.read_bytes() == FULL


# Waiting for load balancers

# The addresses of load balancers that poll often, rarely, or never. The agent itself listens on 127.0.0.1.
FAST, SLOW, UNKNOWN = "127.0.0.2", "127.0.0.3", "127.0.0.9"


def poll_from(agent: Agent, address: str) -> bytes:
    with socket.create_connection((agent.ip, agent.port), 15, source_address=(address, 0)) as client:
        return agent.read_to_end(client)


class LoadBalancer:
    """Polls the agent from its own address at this interval until it is stopped."""

    def __init__(self, agent: Agent, address: str, inter: float) -> None:
        self.address = address
        self.received: list[bytes] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._poll, args=(agent, inter))
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _poll(self, agent: Agent, inter: float) -> None:
        while not self._stopped.is_set():
            # The agent may still be starting.
            with contextlib.suppress(ConnectionError):
                self.received.append(poll_from(agent, self.address))
            self._stopped.wait(inter)


@contextlib.contextmanager
def polled(agent: Agent, eventually: Eventually, inters: dict[str, float]) -> Iterator[dict[str, LoadBalancer]]:
    """Let load balancers with these addresses and intervals poll the agent, and wait until it reports them."""
    balancers = {address: LoadBalancer(agent, address, inter) for address, inter in inters.items()}
    try:
        eventually(
            lambda: {peer["address"] for peer in status(agent)["peers"] if peer["polls"]} >= set(inters), "polls"
        )
        yield balancers
    finally:
        for balancer in balancers.values():
            balancer.stop()


class Relay:
    """Stands between a client and the agent's status socket, and lets a function inspect or change each status."""

    def __init__(self, agent: Agent, inspect: Callable[[Relay, dict[str, Any]], None]) -> None:
        path = agent.state_file.with_name("status.sock")
        self._behind = path.rename(path.with_name("behind.sock"))
        self._inspect = inspect
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Stop listening on the socket."""
        # Closing the socket alone would not wake the thread.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def join(self) -> None:
        self.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                reader = self._listener.accept()[0]
            except OSError:
                return
            with reader:
                status = json.loads(read_status(self._behind))
                self._inspect(self, status)
                # The client may have closed the connection.
                with contextlib.suppress(BrokenPipeError):
                    reader.sendall(json.dumps(status).encode())


@contextlib.contextmanager
def relayed(agent: Agent, inspect: Callable[[Relay, dict[str, Any]], None]) -> Iterator[None]:
    relay = Relay(agent, inspect)
    try:
        yield
    finally:
        relay.join()


def hold_until_sent(eventually: Eventually, *balancers: LoadBalancer) -> Callable[[Relay, dict[str, Any]], None]:
    """Hold back the first status after the change until these load balancers have received the change.

    The module starts to wait after that, so the load balancers cannot be too late on a slow machine.
    """

    def inspect(_relay: Relay, status: dict[str, Any]) -> None:
        if status["answer"] == "DRAIN":
            eventually(
                lambda: all(balancer.received[-1] == b"DRAIN UP\n" for balancer in balancers), "all have received it"
            )

    return inspect


def assert_not_received(result: Result, agent: Agent, *named: str) -> None:
    """Check that the module failed because not all load balancers received its change, and its message."""
    assert result["failed"]
    assert result["changed"]
    assert (result["before"], result["after"]) == ({"status": "UP"}, {"status": "DRAIN"})
    assert result["answer"] == "DRAIN"
    assert saved(agent) == {"status": "DRAIN"}
    for word in [f"The file {agent.state_file} contains DRAIN and the agent reports it, but ", *named]:
        assert word in result["msg"]


def test_wait_includes_all_load_balancers_that_poll(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    agent = start_with_status(agents, tmp_path)
    # A load balancer that polled only once is not waited for.
    poll_from(agent, UNKNOWN)
    with polled(agent, eventually, {FAST: 0.3, SLOW: 1.5}) as balancers:
        result = change(agent, status="DRAIN", wait=True)
    assert (result["changed"], result["answer"]) == (True, "DRAIN")
    assert (result["received_by"], result["not_received_by"]) == ([FAST, SLOW], [])
    for balancer in balancers.values():
        assert balancer.received[0] == b"UP\n"
        assert balancer.received[-1] == b"DRAIN UP\n"


# The option wait_for, and the possible values of seen_by.
WAIT_FOR: dict[str, tuple[object, list[list[str]]]] = {
    "a number": (2, [[FAST, SLOW]]),
    "the number of a key=value argument": ("2", [[FAST, SLOW]]),
    # Any of the load balancers may be the first.
    "fewer than there are": (1, [[FAST], [SLOW], [FAST, SLOW]]),
    "one address": ([SLOW], [[SLOW]]),
    "addresses, in their order": ([SLOW, FAST], [[SLOW, FAST]]),
    "the address of a key=value argument": (SLOW, [[SLOW]]),
    "the addresses of a key=value argument": (f"{SLOW}, {FAST}", [[SLOW, FAST]]),
}


@pytest.mark.parametrize(("wait_for", "received_by"), WAIT_FOR.values(), ids=WAIT_FOR)
def test_wait_for_selects_the_load_balancers(
    agents: Agents, tmp_path: Path, eventually: Eventually, wait_for: object, received_by: list[list[str]]
) -> None:
    agent = start_with_status(agents, tmp_path)
    with polled(agent, eventually, {FAST: 0.05, SLOW: 0.2}) as balancers:
        result = change(agent, status="DRAIN", wait=True, wait_for=wait_for)
    assert result["changed"]
    assert result["received_by"] in received_by
    assert result["not_received_by"] == []
    for address in result["received_by"]:
        assert balancers[address].received[-1] == b"DRAIN UP\n"


def test_wait_for_accepts_any_notation_of_an_ipv6_address(
    agents: Agents, tmp_path: Path, eventually: Eventually
) -> None:
    agent = start_with_status(agents, tmp_path, ip="::1")
    with polled(agent, eventually, {"::1": 0.1}):
        result = change(agent, status="DRAIN", wait=True, wait_for=["0:0:0:0:0:0:0:1"])
    assert result["received_by"] == ["::1"]


def test_ansible_can_pass_wait_for_as_text(
    agents: Agents, tmp_path: Path, eventually: Eventually, run_ansible: RunAnsible
) -> None:
    agent = start_with_status(agents, tmp_path)
    arguments = f"status=DRAIN wait=yes wait_for={FAST},{SLOW} state_file={agent.state_file} service={SERVICE}"
    with polled(agent, eventually, {FAST: 0.1, SLOW: 0.2}):
        result = run_ansible("hapgent_state", arguments)
    assert (result["received_by"], result["not_received_by"]) == ([FAST, SLOW], [])


@pytest.mark.parametrize("forgets", [False, True], ids=["", "forgotten"])
def test_load_balancer_that_stops_polling_during_the_change_is_waited_for(
    agents: Agents, tmp_path: Path, eventually: Eventually, forgets: bool
) -> None:
    agent = start_with_status(agents, tmp_path)
    with polled(agent, eventually, {FAST: 0.2, SLOW: 0.3}) as balancers:
        hold = hold_until_sent(eventually, balancers[FAST])

        def stop(relay: Relay, status: dict[str, Any]) -> None:
            # The load balancer stops after the module has read that it polls.
            balancers[SLOW].stop()
            if status["answer"] == "DRAIN":
                # The agent would report for ten more seconds that it polls.
                for peer in status["peers"]:
                    peer["polls"] = peer["address"] != SLOW
                if forgets:
                    status["peers"] = [peer for peer in status["peers"] if peer["polls"]]
            hold(relay, status)

        with relayed(agent, stop):
            result = change(agent, status="DRAIN", wait=True, wait_timeout=0.5)
    assert_not_received(result, agent, f" {SLOW} (last seen ", " 0.5 s")
    assert (result["received_by"], result["not_received_by"]) == ([FAST], [SLOW])
    assert set(balancers[SLOW].received) == {b"UP\n"}


def test_error_if_no_load_balancer_polls(agents: Agents, tmp_path: Path) -> None:
    agent = start_with_status(agents, tmp_path)
    result = change(agent, status="DRAIN", wait=True, wait_timeout=0.5)
    assert_not_received(result, agent, "no load balancer ", " 0.5 s", "agent-check", "agent-port", "firewall")
    assert (result["received_by"], result["not_received_by"]) == ([], [])


def test_error_if_fewer_load_balancers_than_requested_receive_it(
    agents: Agents, tmp_path: Path, eventually: Eventually
) -> None:
    agent = start_with_status(agents, tmp_path)

    def receive_nothing(_relay: Relay, status: dict[str, Any]) -> None:
        for peer in status["peers"]:
            peer["received"] = False

    with polled(agent, eventually, {FAST: 0.1}), relayed(agent, receive_nothing):
        result = change(agent, status="DRAIN", wait=True, wait_for=2, wait_timeout=0.5)
    assert_not_received(result, agent, "only 0 of 2 ", " 0.5 s")


def test_error_if_all_load_balancers_are_excluded(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    agent = start_with_status(agents, tmp_path)
    with polled(agent, eventually, {FAST: 0.1}):
        result = change(agent, status="DRAIN", wait=True, wait_except=[FAST], wait_timeout=0.5)
    assert_not_received(result, agent, "wait_except")
    assert "agent-check" not in result["msg"]


@pytest.mark.parametrize("address", ["x" * 64, ".example"])
def test_invalid_host_name_as_address_is_an_error(agents: Agents, address: str) -> None:
    agent = agents.start()
    result = change(agent, status="DRAIN", address=address)
    assert result["failed"]
    assert address in result["msg"]


@pytest.mark.parametrize(
    ("wait_for", "named"),
    [
        (3, [" 2 of 3 ", " 1 s"]),
        ([FAST, UNKNOWN], [f": {UNKNOWN} (never seen).", " 1 s"]),
        (f"{UNKNOWN},{SLOW},198.51.100.11", [f": {UNKNOWN} (never seen), 198.51.100.11 (never seen).", " 1 s"]),
    ],
)
def test_error_if_not_all_load_balancers_receive_the_change(
    agents: Agents, tmp_path: Path, eventually: Eventually, wait_for: object, named: list[str]
) -> None:
    agent = start_with_status(agents, tmp_path)
    with (
        polled(agent, eventually, {FAST: 0.1, SLOW: 0.2}) as balancers,
        relayed(agent, hold_until_sent(eventually, *balancers.values())),
    ):
        result = change(agent, status="DRAIN", wait=True, wait_for=wait_for, wait_timeout=1)
    assert_not_received(result, agent, *named)
    listed = str(wait_for)
    assert result["received_by"] == [address for address in (FAST, SLOW) if wait_for == 3 or address in listed]
    assert result["not_received_by"] == [address for address in (UNKNOWN, "198.51.100.11") if address in listed]


def test_missing_load_balancers_are_named_even_if_the_agent_is_slow(agents: Agents, tmp_path: Path) -> None:
    agent = start_with_status(agents, tmp_path)
    # The timeout ends while the module reads the status for the last time.
    with relayed(agent, lambda _relay, _status: time.sleep(0.2)):
        result = change(agent, status="DRAIN", wait=True, wait_for=[UNKNOWN], wait_timeout=0.5)
    assert_not_received(result, agent, f": {UNKNOWN} (never seen).", " 0.5 s")


def test_time_of_the_last_poll_is_named(agents: Agents, tmp_path: Path) -> None:
    agent = start_with_status(agents, tmp_path)
    poll_from(agent, UNKNOWN)
    result = change(agent, status="DRAIN", wait=True, wait_for=[UNKNOWN], wait_timeout=0.5)
    assert_not_received(result, agent, f": {UNKNOWN} (last seen ", " 0.5 s")


def test_wait_works_even_if_nothing_changes(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    agent = start_with_status(agents, tmp_path)
    # An earlier run may have failed, or may not have waited.
    assert change(agent, status="DRAIN", wait=True, wait_timeout=0.2)["failed"]
    with polled(agent, eventually, {FAST: 0.2, SLOW: 0.4}):
        result = change(agent, status="DRAIN", wait=True)
    assert (result["changed"], result["answer"]) == (False, "DRAIN")
    assert (result["received_by"], result["not_received_by"]) == ([FAST, SLOW], [])


def test_error_if_no_load_balancer_polls_and_nothing_changes(agents: Agents, tmp_path: Path) -> None:
    agent = start_with_status(agents, tmp_path)
    result = change(agent, status="UP", wait=True, wait_timeout=0.5)
    assert result["failed"]
    assert not result["changed"]
    for word in [f"{agent.state_file} ", " UP ", " 0.5 s", "agent-check", "agent-port", "firewall"]:
        assert word in result["msg"]


def test_wait_works_if_only_the_agent_is_reloaded(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    agent = start_with_status(agents, tmp_path)
    agent.write_state(b'{"status": "DRAIN"}')
    with polled(agent, eventually, {FAST: 0.1}) as balancers:
        result = change(agent, status="DRAIN", wait=True)
    assert (result["changed"], result["received_by"]) == (True, [FAST])
    assert balancers[FAST].received[-1] == b"DRAIN UP\n"


def test_check_mode_does_not_wait(agents: Agents, tmp_path: Path) -> None:
    agent = start_with_status(agents, tmp_path)
    result = change(agent, check=True, status="DRAIN", wait=True)
    assert (result["changed"], result["answer"]) == (True, "DRAIN")
    assert not {"received_by", "not_received_by"} & set(result)
    assert saved(agent) == {"status": "UP"}


@pytest.mark.parametrize("check", [False, True], ids=["", "check"])
def test_wait_fails_without_a_status_socket(agents: Agents, check: bool) -> None:
    agent = agents.start(FULL)
    result = change(agent, check=check, status="DRAIN", wait=True)
    assert_nothing_changed(result, "wait ", str(agent.pid), "HAPGENT_SOCKET")
    assert agent.state_file.read_bytes() == FULL
    assert agent.ask() == b"UP 77% maxconn:300\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"wait": True, "notify": False}, ["wait ", "notify"]),
        ({"wait": True, "wait_for": "all"}, ["wait_for ", "'all'", "1 to 1024"]),
        ({"wait": True, "wait_for": 0}, ["wait_for ", " 0", "1 to 1024"]),
        ({"wait": True, "wait_for": "9" * 5000}, ["wait_for ", "'9999", "1 to 1024"]),
        ({"wait": True, "wait_for": []}, ["wait_for ", "[]", "1 to 1024"]),
        ({"wait": True, "wait_for": [FAST, "lb1"]}, ["wait_for ", "('lb1' "]),
        # wait_for is checked even if wait is not set.
        ({"wait_for": -1}, ["wait_for ", " -1"]),
    ],
)
def test_invalid_arguments_for_waiting_are_refused(
    agents: Agents, tmp_path: Path, arguments: Result, named: list[str]
) -> None:
    agent = start_with_status(agents, tmp_path, FULL)
    assert_nothing_changed(change(agent, status="DRAIN", **arguments), *named)
    assert agent.state_file.read_bytes() == FULL
    assert status(agent)["answer"] == "UP 77% maxconn:300"


def test_wait_fails_if_another_run_changes_the_status(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    agent = start_with_status(agents, tmp_path)
    with ThreadPoolExecutor() as runs:
        run = runs.submit(change, agent, status="DRAIN", wait=True, wait_for=[UNKNOWN], wait_timeout=30)
        eventually(lambda: bool(status(agent)["answer"] == "DRAIN"), "DRAIN")
        # A run that waits does not block other runs.
        assert change(agent, status="UP")["changed"]
        result = run.result()
    assert result["failed"]
    assert result["changed"]
    assert result["msg"].endswith(" UP.")
    assert (result["answer"], result["after"]) == ("UP", {"status": "UP"})


def test_wait_continues_if_another_run_changes_another_field(
    agents: Agents, tmp_path: Path, eventually: Eventually
) -> None:
    agent = start_with_status(agents, tmp_path)
    with ThreadPoolExecutor() as runs:
        run = runs.submit(change, agent, status="DRAIN", wait=True, wait_for=[FAST], wait_timeout=30)
        eventually(lambda: bool(status(agent)["answer"] == "DRAIN"), "DRAIN")
        assert change(agent, weight=5)["changed"]
        with polled(agent, eventually, {FAST: 0.1}) as balancers:
            result = run.result()
    assert (result["changed"], result["received_by"]) == (True, [FAST])
    assert (result["after"], result["answer"]) == ({"status": "DRAIN", "weight": 5}, "DRAIN 5%")
    assert b"DRAIN" in balancers[FAST].received[-1].split()
    assert b"5%" in balancers[FAST].received[-1].split()


def test_wait_reports_why_the_agent_sends_fail(agents: Agents, tmp_path: Path) -> None:
    agent = start_with_status(agents, tmp_path)
    answers: list[str] = []

    def fail(_relay: Relay, status: dict[str, Any]) -> None:
        answers.append(status["answer"])
        # The first status after the change shows the module that the agent has read the file.
        if answers.count("DRAIN") > 1:
            status.update(state={"status": "FAIL"}, answer="FAIL", state_file_ok=False, last_error="no \x1b[31mdisk")

    with relayed(agent, fail):
        result = change(agent, status="DRAIN", wait=True, wait_timeout=0.5, timeout=30)
    assert result["failed"]
    assert (result["changed"], result["answer"]) == (True, "FAIL")
    assert "no \\x1b[31mdisk" in result["msg"]


def test_status_socket_of_another_agent_is_refused(agents: Agents, tmp_path: Path) -> None:
    other = start_with_status(agents, tmp_path)
    agent = agents.start(environment={"HAPGENT_SOCKET": str(tmp_path / "status.sock")})
    result = change(agent, status="DRAIN")
    assert_nothing_changed(result, str(other.state_file), str(agent.state_file), "HAPGENT_SOCKET")
    assert (saved(agent), saved(other)) == ({"status": "UP"}, {"status": "UP"})


def test_error_if_the_agent_ends_while_the_module_waits(agents: Agents, tmp_path: Path) -> None:
    agent = start_with_status(agents, tmp_path)

    def kill(relay: Relay, status: dict[str, Any]) -> None:
        # The module reads that the agent has the state, and nothing after that.
        if status["answer"] == "DRAIN":
            agent.kill()
            relay.close()

    with relayed(agent, kill):
        result = change(agent, status="DRAIN", wait=True, wait_for=[FAST], wait_timeout=0.5)
    assert_not_received(result, agent, "unknown", str(tmp_path / "status.sock"))


def test_wait_continues_if_the_agent_restarts(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    agent = start_with_status(agents, tmp_path)
    with ThreadPoolExecutor() as runs:
        run = runs.submit(change, agent, status="DRAIN", wait=True, wait_for=[FAST], wait_timeout=30)
        eventually(lambda: bool(status(agent)["answer"] == "DRAIN"), "DRAIN")
        agent.kill()
        again = agents.start(
            None,
            state_file=agent.state_file,
            port=agent.port,
            environment={"HAPGENT_SOCKET": str(tmp_path / "status.sock"), "HAPGENT_SETTLE": str(LONG)},
        )
        assert poll_from(again, FAST).split()[0] == b"DRAIN"
        result = run.result()
    assert (result["changed"], result["received_by"], result["not_received_by"]) == (True, [FAST], [])
