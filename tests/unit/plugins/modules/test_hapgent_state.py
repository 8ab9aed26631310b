# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module hapgent_state, run as Ansible runs it, against real agents."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ansible
import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _state

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents

MODULE = "ansible_collections.hapgent.agent.plugins.modules.hapgent_state"
# The folders of the collections and of Ansible, for interpreters that have neither.
IMPORTS = [Path(_state.__file__).parents[5], Path(ansible.__file__).parents[1]]
# No systemd knows it, so the agent is found by its state file.
SERVICE = "no-service-of-this-name"

Result = dict[str, Any]


def run_module(*, python: str = sys.executable, check: bool = False, **arguments: Any) -> Result:
    """What the module returns when it is called with these arguments."""
    given = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, IMPORTS))}
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
    """Have the module change this agent's state."""
    where = {"state_file": str(agent.state_file), "service": SERVICE, "address": agent.ip, "port": agent.port}
    return run_module(**{**where, **arguments})


def saved(agent: Agent) -> object:
    return json.loads(agent.state_file.read_bytes())


def looks(path: Path) -> tuple[bytes, int, int]:
    """What would be different if somebody had written the file."""
    return path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns


def assert_nothing_changed(result: Result, *named: str) -> None:
    """The module failed before it touched anything, and says so."""
    assert result["failed"]
    assert not result.get("changed")
    for word in [*named, "Nothing was changed"]:
        assert word in result["msg"]


FULL = b'{"status": "UP", "weight": 77, "maxconn": 300}'

# What was in the file, what is asked for, what is in the file then, what the agent answers then.
CHANGES: dict[str, tuple[bytes, Result, Result, str]] = {
    "status": (
        FULL,
        {"status": "DRAIN"},
        {"status": "DRAIN", "weight": 77, "maxconn": 300},
        "DRAIN 77% maxconn:300",
    ),
    "weight": (FULL, {"weight": 5}, {"status": "UP", "weight": 5, "maxconn": 300}, "UP 5% maxconn:300"),
    "maxconn": (FULL, {"maxconn": 5}, {"status": "UP", "weight": 77, "maxconn": 5}, "UP 77% maxconn:5"),
    "least values": (FULL, {"weight": 0, "maxconn": 0}, {"status": "UP", "weight": 0, "maxconn": 0}, "UP 0% maxconn:0"),
    "greatest values": (
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
    "one named, one unset": (
        FULL,
        {"status": "MAINT", "weight": 100, "unset": ["maxconn"]},
        {"status": "MAINT", "weight": 100},
        "MAINT 100%",
    ),
    "number written otherwise": (
        b'{"status": "UP", "weight": 5e1}',
        {"maxconn": 9},
        {"status": "UP", "weight": 50, "maxconn": 9},
        "UP 50% maxconn:9",
    ),
}


@pytest.mark.parametrize(("content", "wanted", "after", "answer"), CHANGES.values(), ids=CHANGES)
def test_changes_what_is_named_and_then_nothing(
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
    assert os.listdir(agent.state_file.parent) == ["state.json"]

    # Check mode had told all of this.
    for key in ("changed", "before", "after", "answer", "diff"):
        assert predicted[key] == done[key]

    found = looks(agent.state_file)
    again = change(agent, **wanted)
    assert (again["changed"], again["before"], again["after"], again["answer"]) == (False, after, after, answer)
    assert again["diff"]["before"] == again["diff"]["after"]
    assert looks(agent.state_file) == found


def test_drains_with_each_python(agents: Agents, python: str) -> None:
    agent = agents.start(FULL)
    assert change(agent, python=python, status="DRAIN")["answer"] == "DRAIN 77% maxconn:300"
    assert agent.ask() == b"DRAIN 77% maxconn:300\n"


@pytest.mark.parametrize("status", _state.STATUSES)
def test_sets_each_status(agents: Agents, status: str) -> None:
    agent = agents.start(b'{"status": "%s"}' % (b"DOWN" if status == "UP" else b"UP"))
    assert change(agent, status=status)["changed"]
    assert agent.ask() == f"{status}\n".encode()


def test_names_nothing_and_changes_nothing(agents: Agents) -> None:
    agent = agents.start(FULL)
    result = change(agent)
    assert not result["changed"]
    assert result["answer"] == "UP 77% maxconn:300"


def test_unsets_what_is_not_set(agents: Agents) -> None:
    assert not change(agents.start(), unset=["weight"])["changed"]


def test_shows_the_difference(agents: Agents) -> None:
    agent = agents.start(b'{"weight": 50, "status": "UP"}')
    assert change(agent, status="DRAIN")["diff"] == {
        "before_header": str(agent.state_file),
        "after_header": str(agent.state_file),
        "before": '{\n  "status": "UP",\n  "weight": 50\n}\nagent answers: UP 50%\n',
        "after": '{\n  "status": "DRAIN",\n  "weight": 50\n}\nagent answers: DRAIN 50%\n',
    }


def test_agent_with_an_ipv6_address(agents: Agents) -> None:
    agent = agents.start(ip="::1")
    assert change(agent, status="DRAIN")["answer"] == "DRAIN"


# The file


def test_keeps_mode_and_owner(agents: Agents) -> None:
    agent = agents.start()
    agent.state_file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(agent.state_file, 12345, 54321)
    before = agent.state_file.stat()

    assert change(agent, status="DRAIN")["changed"]

    after = agent.state_file.stat()
    assert after.st_ino != before.st_ino, "the file was not replaced at once"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_follows_a_link(agents: Agents, tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    agent = agents.start(state_file=link)
    assert change(agent, status="DRAIN")["answer"] == "DRAIN"
    assert link.is_symlink()
    assert json.loads(target.read_bytes()) == {"status": "DRAIN"}


def test_replaces_what_a_killed_run_left(agents: Agents, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"not to be touched")
    agent = agents.start()
    agent.state_file.with_name("state.json.ansible.tmp").symlink_to(other)
    assert change(agent, status="DRAIN")["changed"]
    assert other.read_bytes() == b"not to be touched"
    assert os.listdir(agent.state_file.parent) == ["state.json"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"status": "UP", "weight": 300}', "weight is 300"),
        (b'{"status": "up"}', 'status is "up"'),
        (b"", "not JSON"),
        (None, "No such file or directory"),
    ],
)
@pytest.mark.parametrize("notify", [True, False])
def test_file_that_is_invalid(agents: Agents, content: bytes | None, named: str, notify: bool) -> None:
    agent = agents.start(content)
    result = change(agent, status="UP", notify=notify)
    assert_nothing_changed(result, str(agent.state_file), named)
    assert agent.ask() == b"FAIL\n"
    assert (agent.state_file.read_bytes() if agent.state_file.exists() else None) == content


def test_file_that_cannot_be_written(agents: Agents) -> None:
    agent = agents.start()
    # Permissions would not stop root, who may run these tests.
    agent.state_file.with_name("state.json.ansible.tmp").mkdir()
    result = change(agent, status="DRAIN")
    assert_nothing_changed(result, f"cannot write {agent.state_file}")
    assert result["before"] == result["after"] == {"status": "UP"}
    assert agent.ask() == b"UP\n"


# Arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weight": 256}, ["weight is 256", "0 to 255"]),
        ({"weight": -1}, ["weight is -1", "0 to 255"]),
        ({"maxconn": 65536}, ["maxconn is 65536", "0 to 65535"]),
        ({"maxconn": -1}, ["maxconn is -1", "0 to 65535"]),
        ({"weight": 5, "unset": ["weight"]}, ["weight", "named", "unset"]),
        ({"maxconn": 5, "unset": ["maxconn"]}, ["maxconn", "named", "unset"]),
        ({"port": 0}, ["port", "0"]),
        ({"port": -1}, ["port", "-1"]),
        ({"port": 65536}, ["port", "65536"]),
    ],
)
def test_argument_out_of_its_range(agents: Agents, arguments: Result, named: list[str]) -> None:
    agent = agents.start(FULL)
    result = change(agent, status="DRAIN", **arguments)
    assert_nothing_changed(result, *named)
    assert agent.state_file.read_bytes() == FULL
    assert agent.ask() == b"UP 77% maxconn:300\n"


def test_port_out_of_its_range_is_no_other_port(agents: Agents) -> None:
    # The system takes the port modulo 65536.
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
        ({"unset": ["status"]}, ["unset", "weight, maxconn"]),
        ({"state": "UP"}, ["state", "Supported parameters"]),
    ],
)
def test_argument_that_ansible_refuses(agents: Agents, arguments: Result, named: list[str]) -> None:
    agent = agents.start(FULL)
    result = change(agent, **arguments)
    assert result["failed"]
    for word in named:
        assert word in result["msg"]
    assert agent.state_file.read_bytes() == FULL


# The agent


@pytest.mark.parametrize("check", [False, True], ids=["", "check"])
def test_agent_that_does_not_run(agents: Agents, check: bool) -> None:
    agent = agents.start(FULL)
    agent.kill()
    result = change(agent, check=check, status="DRAIN")
    assert_nothing_changed(result, "no agent found", SERVICE, str(agent.state_file))
    assert agent.state_file.read_bytes() == FULL


def test_agent_that_listens_elsewhere(agents: Agents) -> None:
    agent = agents.start(FULL)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        result = change(agent, status="DRAIN", port=port)
    assert_nothing_changed(result, "127.0.0.1", str(port))
    assert agent.state_file.read_bytes() == FULL
    assert agent.ask() == b"UP 77% maxconn:300\n"


def test_agent_that_hangs(agents: Agents) -> None:
    agent = agents.start(FULL)
    with agent.paused():
        result = change(agent, status="DRAIN", timeout=0.5)
    assert_nothing_changed(result, "does not answer", "timed out")
    assert agent.state_file.read_bytes() == FULL


def test_agent_of_another_file_answers(agents: Agents) -> None:
    agent = agents.start()
    other = agents.start(b'{"status": "MAINT"}')

    result = change(agent, status="DRAIN", port=other.port, timeout=0.5)

    assert result["failed"]
    # What was changed, and what was not.
    assert result["changed"]
    assert (result["before"], result["after"]) == ({"status": "UP"}, {"status": "DRAIN"})
    assert result["answer"] == "MAINT"
    for word in [f"{agent.state_file} says DRAIN", str(other.port), "still answers MAINT", "0.5 s"]:
        assert word in result["msg"]
    assert saved(agent) == {"status": "DRAIN"}
    assert saved(other) == {"status": "MAINT"}
    assert other.ask() == b"MAINT\n"


def test_agent_that_dies_of_the_reload(agents: Agents) -> None:
    # It answers the first question, and no more.
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
    assert f"{agent.state_file} says DRAIN" in result["msg"]
    assert saved(agent) == {"status": "DRAIN"}


def test_two_agents_for_one_file(agents: Agents) -> None:
    first = agents.start(FULL)
    second = agents.start(FULL, state_file=first.state_file)
    assert_nothing_changed(change(first, status="DRAIN"), "several agents", str(first.pid), str(second.pid))
    assert first.state_file.read_bytes() == FULL


def test_other_agents_are_left_alone(agents: Agents) -> None:
    agent = agents.start()
    other = agents.start()
    # Were it told to read its file, it would answer this.
    other.write_state(b'{"status": "MAINT"}')
    assert change(agent, status="DRAIN")["answer"] == "DRAIN"
    assert other.ask() == b"UP\n"


# Reload alone


def edit(agent: Agent) -> str:
    agent.write_state(b'{"status": "DRAIN"}')
    return "DRAIN"


def forget(agent: Agent) -> str:
    """The agent has changed its state and could not save it."""
    agent.reload(b'{"status": "MAINT"}', b"MAINT\n")
    agent.write_state(b'{"status": "UP"}')
    return "UP"


@pytest.mark.parametrize("drift", [edit, forget])
def test_agent_that_answers_something_else_than_its_file_says(agents: Agents, drift: Callable[[Agent], str]) -> None:
    agent = agents.start()
    status = drift(agent)
    answer_before = agent.ask().decode().strip()
    found = looks(agent.state_file)

    predicted = change(agent, check=True, status=status)
    assert (predicted["changed"], predicted["answer"]) == (True, status)
    assert agent.ask().decode().strip() == answer_before

    done = change(agent, status=status)
    assert (done["changed"], done["answer"]) == (True, status)
    assert done["before"] == done["after"] == {"status": status}
    assert f"agent answers: {answer_before}" in done["diff"]["before"]
    assert f"agent answers: {status}" in done["diff"]["after"]
    assert agent.ask() == f"{status}\n".encode()
    assert looks(agent.state_file) == found

    assert not change(agent, status=status)["changed"]


def test_file_written_otherwise_is_left_as_it_is(agents: Agents) -> None:
    content = b'{"maxconn":1e2,"weight":5.0,   "status":"UP"}'
    agent = agents.start(content)
    assert not change(agent, status="UP", weight=5, maxconn=100)["changed"]
    assert agent.state_file.read_bytes() == content


# The file alone


def test_without_notify_it_writes_the_file_only(agents: Agents) -> None:
    agent = agents.start()
    result = change(agent, status="DRAIN", notify=False)
    assert (result["changed"], result["after"]) == (True, {"status": "DRAIN"})
    assert "answer" not in result
    assert "answers" not in result["diff"]["after"]
    assert saved(agent) == {"status": "DRAIN"}
    assert agent.ask() == b"UP\n"
    assert not change(agent, status="DRAIN", notify=False)["changed"]


def test_without_notify_it_needs_no_agent(agents: Agents) -> None:
    agent = agents.start()
    agent.kill()
    assert change(agent, status="DRAIN", notify=False)["changed"]
    assert saved(agent) == {"status": "DRAIN"}
    assert not change(agent, status="DRAIN", notify=False, check=True)["changed"]


def test_runs_as_ansible_runs_it(agents: Agents, tmp_path: Path) -> None:
    """The whole way once: Ansible packs the module, with what it imports, for the host."""
    agent = agents.start(FULL)
    ansible_command = shutil.which("ansible", path=str(Path(sys.executable).parent))
    assert ansible_command
    arguments = {
        "status": "DRAIN",
        "state_file": str(agent.state_file),
        "service": SERVICE,
        "port": agent.port,
    }
    done = subprocess.run(
        [ansible_command, "localhost", "-c", "local", "-m", "hapgent.agent.hapgent_state", "-a", json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(IMPORTS[0]),
            # Not everybody who runs tests has a home.
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
        },
    )
    assert "CHANGED" in done.stdout, done.stdout + done.stderr
    assert agent.ask() == b"DRAIN 77% maxconn:300\n"


def test_two_runs_at_once_lose_none_of_their_changes(agents: Agents) -> None:
    agent = agents.start()
    with ThreadPoolExecutor() as runs:
        for number in range(5):
            weight = runs.submit(change, agent, weight=number)
            maxconn = runs.submit(change, agent, maxconn=number)
            # The one that comes second may find the other's answer, but both find theirs in the end.
            assert weight.result().get("changed")
            assert maxconn.result().get("changed")
            assert saved(agent) == {"status": "UP", "weight": number, "maxconn": number}


def test_does_not_wait_for_another_run_for_ever(agents: Agents) -> None:
    agent = agents.start(FULL)
    folder = os.open(agent.state_file.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    assert_nothing_changed(change(agent, status="DRAIN", timeout=0.5), "locked", str(agent.state_file.parent))
    assert agent.state_file.read_bytes() == FULL
    os.close(folder)
    assert change(agent, status="DRAIN")["changed"]
