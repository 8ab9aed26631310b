# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""hapgent_info finds and describes all agents of a host, even if other users run hostile processes there.

Namespaces simulate the hosts; the agents are real.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ansible
import pytest
import yaml
from ansible_collections.hapgent.agent.plugins.module_utils import _state
from ansible_collections.hapgent.agent.plugins.modules import hapgent_info
from simulated_host import Host, outer_pid, pid_on_host, poll_from, set_services

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually
    from tests.unit.plugins.modules.conftest import RunAnsible

MODULE = "ansible_collections.hapgent.agent.plugins.modules.hapgent_info"
# The folders of the collections and of Ansible, for interpreters without them.
IMPORTS = [Path(_state.__file__).parents[5], Path(ansible.__file__).parents[1]]
# systemd does not know this service.
SERVICE = "no-service-of-this-name"
# Longer than any test takes.
LONG = 3600

Result = dict[str, Any]


class ModuleHost(Host):
    """A simulated host on which modules run."""

    def run(
        self,
        command: Sequence[str] = (),
        python: str = sys.executable,
        check: bool = False,
        module: str = MODULE,
        **arguments: Any,
    ) -> Result:
        """Run the module on this host with these arguments, started by this command, and return its result."""
        given = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}}
        done = subprocess.run(
            [*self.enter(), *command, python, "-m", module],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, IMPORTS))},
        )
        assert done.stdout, done.stderr
        result: Result = json.loads(done.stdout)
        assert done.returncode == (1 if result.get("failed") else 0)
        return result

    def instances(self, **options: Any) -> list[Result]:
        """The agents that the module finds on this host."""
        result = self.run(**options)
        assert not result.get("failed"), result
        assert result["changed"] is False
        found: list[Result] = result["instances"]
        return found


@pytest.fixture
def host(agents: Agents) -> Iterator[ModuleHost]:
    host = ModuleHost(agents)
    yield host
    host.end()


def reload(host: ModuleHost, agent: Agent, content: bytes, answer: str, eventually: Eventually) -> None:
    """Replace the agent's state file and make the agent read it, without polling it like a load balancer."""
    agent.write_state(content)
    os.kill(outer_pid(agent), signal.SIGHUP)
    eventually(lambda: host.instances()[0]["answer"] == answer, answer)


def known(instance: Result) -> Result:
    return {name: value for name, value in instance.items() if value is not None}


# Agents with a status socket


def test_state_and_load_balancers_are_returned(host: ModuleHost, tmp_path: Path, eventually: Eventually) -> None:
    path = tmp_path / "status.sock"
    agent = host.start(b'{"status": "DRAIN", "weight": 5}', status_socket=path, settle=LONG)
    before = time.time()
    assert poll_from(agent, "127.0.0.2") == b"DRAIN 5%\n"
    assert poll_from(agent, "127.0.0.3") == b"DRAIN 5%\n"
    reload(host, agent, b'{"status": "UP", "weight": 5, "reason": "new disk"}', "UP 5% # new disk", eventually)
    assert poll_from(agent, "127.0.0.3") == b"UP READY 5% # new disk\n"

    (instance,) = host.instances()

    assert instance["pid"] == pid_on_host(agent)
    assert instance["state_file"] == str(agent.state_file)
    assert instance["status_socket"] == str(path)
    assert instance["state"] == {"status": "UP", "weight": 5, "reason": "new disk"}
    assert instance["answer"] == "UP 5% # new disk"
    assert before <= instance["since"] <= time.time()
    assert instance["settle"] == LONG
    assert instance["last_error"] is None
    assert (instance["counters"]["checks"], instance["counters"]["reloads"]) == (3, 1)
    # The module itself does not count as a load balancer.
    missed, seen = instance["peers"]
    assert (missed["address"], missed["checks"], missed["interval"]) == ("127.0.0.2", 1, None)
    assert (missed["received"], missed["line"]) == (False, "DRAIN 5%")
    assert (seen["address"], seen["checks"], seen["polls"]) == ("127.0.0.3", 2, True)
    assert (seen["received"], seen["line"]) == (True, "UP READY 5% # new disk")
    assert before <= seen["first_seen"] < seen["last_seen"] <= time.time()
    assert 0 < seen["interval"] <= seen["last_seen"] - seen["first_seen"] + 1
    assert 0 < seen["settles_for"] <= LONG


def test_invalid_state_file_is_a_problem(host: ModuleHost, tmp_path: Path) -> None:
    agent = host.start(b'{"status": "up"}', status_socket=tmp_path / "status.sock")
    (instance,) = host.instances()
    assert (instance["state"], instance["answer"]) == ({"status": "FAIL"}, "FAIL")
    for word in [str(agent.state_file), "status", '"up"']:
        assert word in instance["last_error"]
        assert word in instance["problem"]
    assert instance["state_file_ok"] is False


def test_fail_that_was_set_on_purpose_is_no_problem(host: ModuleHost, tmp_path: Path) -> None:
    host.start(b'{"status": "FAIL"}', status_socket=tmp_path / "status.sock")
    (instance,) = host.instances()
    assert (instance["answer"], instance["problem"]) == ("FAIL", None)


def test_state_is_that_of_the_agent_and_not_of_its_file(host: ModuleHost, tmp_path: Path) -> None:
    agent = host.start(status_socket=tmp_path / "status.sock")
    agent.write_state(b'{"status": "DRAIN"}')
    (instance,) = host.instances()
    assert (instance["state"], instance["answer"]) == ({"status": "UP"}, "UP")


def test_results_match_the_documentation(host: ModuleHost, tmp_path: Path) -> None:
    documented = yaml.safe_load(hapgent_info.RETURN)["instances"]["contains"]
    agent = host.start(status_socket=tmp_path / "status.sock")
    host.start()
    # A load balancer has an interval only after its second poll, so one polls once and one twice.
    for address in ["127.0.0.2", "127.0.0.3", "127.0.0.3"]:
        poll_from(agent, address)

    received, not_received = sorted(host.instances(), key=lambda instance: instance["status_socket"] is None)

    assert set(received) == set(not_received) == set(documented)
    assert_types(received, documented)
    for peer in received["peers"]:
        assert set(peer) == set(documented["peers"]["contains"])
        assert_types(peer, documented["peers"]["contains"])


def assert_types(values: Result, documented: Result) -> None:
    types: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "dict": dict, "list": list}
    for name, value in values.items():
        if value is None:
            assert "null" in str(documented[name]["description"]).lower()
        else:
            assert isinstance(value, types[documented[name]["type"]])
            assert isinstance(value, bool) == (documented[name]["type"] == "bool")


# Agents without a status socket


def test_state_is_that_of_the_file_without_a_status_socket(host: ModuleHost) -> None:
    agent = host.start(b'{"status": "DRAIN", "maxconn": 3e2, "reason": "no disk"}')
    (instance,) = host.instances()
    assert known(instance) == known(
        {
            "pid": pid_on_host(agent),
            "state_file": str(agent.state_file),
            "state": {"status": "DRAIN", "maxconn": 300, "reason": "no disk"},
            "answer": "DRAIN UP maxconn:300 # no disk",
        }
    )


@pytest.mark.parametrize("content", [b'{"status": "up"}', b"", b'{"status": "UP", "reason": "#"}'])
def test_invalid_file_is_a_problem_without_a_status_socket(host: ModuleHost, content: bytes) -> None:
    agent = host.start(content)
    (instance,) = host.instances()
    assert (instance["pid"], instance["state_file"]) == (pid_on_host(agent), str(agent.state_file))
    assert (instance["state"], instance["answer"]) == (None, None)
    assert str(agent.state_file) in instance["problem"]


def test_agent_without_a_status_socket_is_not_polled(host: ModuleHost) -> None:
    # A hanging agent does not matter, because only its file is read.
    agent = host.start()
    os.kill(outer_pid(agent), signal.SIGSTOP)
    (instance,) = host.instances(timeout=0.5)
    assert instance["answer"] == "UP"


# All agents of a host


def test_all_agents_of_a_host_are_found(host: ModuleHost, tmp_path: Path) -> None:
    agents = {
        pid_on_host(agent): agent
        for agent in [
            host.start(b'{"status": "UP"}', status_socket=tmp_path / "0.sock"),
            host.start(b'{"status": "DRAIN"}'),
            host.start(b'{"status": "MAINT"}', status_socket=tmp_path / "2.sock"),
        ]
    }
    instances = host.instances()
    assert [instance["pid"] for instance in instances] == sorted(agents)
    for instance in instances:
        agent = agents[instance["pid"]]
        assert instance["state_file"] == str(agent.state_file)
        assert instance["state"] == json.loads(agent.state_file.read_bytes())
    assert {instance["status_socket"] for instance in instances} == {
        str(tmp_path / "0.sock"),
        None,
        str(tmp_path / "2.sock"),
    }


def test_agents_of_other_hosts_are_not_found(host: ModuleHost, agents: Agents) -> None:
    # This agent runs outside the simulated host.
    agents.start()
    assert host.instances() == []


def test_agent_that_has_ended_is_not_found(host: ModuleHost, tmp_path: Path, eventually: Eventually) -> None:
    path = tmp_path / "status.sock"
    agent = host.start(status_socket=path)
    os.kill(outer_pid(agent), signal.SIGKILL)
    agent.await_exit()
    assert path.exists()
    # The process disappears after its parent has waited for it.
    eventually(lambda: host.instances() == [], "no agent")


def test_agent_that_ends_does_not_hide_others(host: ModuleHost, tmp_path: Path, eventually: Eventually) -> None:
    host.start(b'{"status": "DRAIN"}', status_socket=tmp_path / "status.sock")
    ended = host.start()
    process = Path(f"/proc/{outer_pid(ended)}")
    # The process still exists because its parent, which is paused, does not wait for it.
    with ended.paused():
        os.kill(outer_pid(ended), signal.SIGKILL)
        eventually(lambda: "State:\tZ" in (process / "status").read_text(encoding="utf-8"), "a process that has ended")
        result = host.run()
    assert [instance["answer"] for instance in result["instances"]] == ["DRAIN"]
    assert "warnings" not in result


def test_agent_of_another_user_is_found_with_a_problem(host: ModuleHost, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs another user")
    path = tmp_path / "status.sock"
    agent = host.start(status_socket=path)
    # An unprivileged user still finds the agent, but cannot read its environment.
    (instance,) = host.instances(command=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
    assert instance["pid"] == pid_on_host(agent)
    assert (instance["state"], instance["state_file"], instance["status_socket"]) == (None, None, None)
    assert f" {pid_on_host(agent)} (Permission denied)" in str(instance["problem"])


@pytest.mark.parametrize("check", [False, True], ids=["", "check"])
def test_module_changes_nothing(host: ModuleHost, tmp_path: Path, check: bool) -> None:
    content = b'{"status":"DRAIN"}'
    agent = host.start(content, status_socket=tmp_path / "status.sock")
    for _round in range(2):
        (instance,) = host.instances(check=check)
        assert (instance["pid"], instance["answer"]) == (pid_on_host(agent), "DRAIN")
        assert (instance["peers"], instance["counters"]["checks"], instance["counters"]["reloads"]) == ([], 0, 0)
    assert agent.state_file.read_bytes() == content


def test_module_runs_with_each_python(host: ModuleHost, tmp_path: Path, python: str) -> None:
    host.start(status_socket=tmp_path / "status.sock")
    (instance,) = host.instances(python=python)
    assert instance["answer"] == "UP"


@pytest.mark.parametrize("others", [0, 1])
def test_agent_that_hangs_does_not_hide_others(host: ModuleHost, tmp_path: Path, others: int) -> None:
    path = tmp_path / "status.sock"
    for number in range(others):
        host.start(status_socket=tmp_path / f"{number}.sock")
    agent = host.start(status_socket=path)
    os.kill(outer_pid(agent), signal.SIGSTOP)
    started = time.monotonic()
    result = host.run(timeout=0.5)
    assert time.monotonic() - started < 15
    (warning,) = result["warnings"]
    for word in [str(agent.state_file), str(path), "timed out", "log"]:
        assert word in str(warning)
    answers = {instance["status_socket"]: instance["answer"] for instance in result["instances"]}
    assert answers == {str(path): None, **{str(tmp_path / f"{number}.sock"): "UP" for number in range(others)}}


def test_error_if_the_only_selected_agent_hangs(host: ModuleHost, tmp_path: Path) -> None:
    agent = host.start(status_socket=tmp_path / "status.sock")
    command = with_systemd(host, tmp_path, hapgent_api=("active", pid_on_host(agent)))
    os.kill(outer_pid(agent), signal.SIGSTOP)
    result = host.run(command=command, service="hapgent-api", timeout=0.5)
    assert result["failed"]
    for word in [str(agent.state_file), str(tmp_path / "status.sock"), "timed out"]:
        assert word in result["msg"]


# The agent of one service


def test_error_if_the_service_is_unknown(host: ModuleHost, tmp_path: Path) -> None:
    host.start(status_socket=tmp_path / "status.sock")
    result = host.run(service=SERVICE)
    assert result["failed"]
    for word in [f" {SERVICE} ", "systemd", "state_file"]:
        assert word in result["msg"]


def test_agent_is_selected_by_its_state_file(host: ModuleHost, tmp_path: Path) -> None:
    host.start(status_socket=tmp_path / "other.sock")
    wanted = host.start(b'{"status": "DRAIN"}', status_socket=tmp_path / "wanted.sock")
    for named in ({}, {"service": SERVICE}):
        (instance,) = host.instances(state_file=str(wanted.state_file), **named)
        assert (instance["pid"], instance["answer"], instance["service"]) == (pid_on_host(wanted), "DRAIN", None)


def with_systemd(host: ModuleHost, folder: Path, environment: str = "", **services: tuple[str, int]) -> list[str]:
    """The beginning of a command that runs a program on the host as if systemd ran there with these services.

    Each service has a state and a main process. _ in its name stands for -. All units set this environment.
    """
    programs = host.boot_systemd(folder)
    set_services(folder, {name.replace("_", "-"): (state, pid, environment) for name, (state, pid) in services.items()})
    return ["env", f"PATH={programs}:{os.environ['PATH']}"]


def test_agent_is_selected_by_its_service(host: ModuleHost, tmp_path: Path) -> None:
    wanted = host.start(b'{"status": "DRAIN"}', status_socket=tmp_path / "wanted.sock")
    other = host.start(status_socket=tmp_path / "other.sock")
    # The other agent hangs, and must not be queried.
    os.kill(outer_pid(other), signal.SIGSTOP)
    command = with_systemd(host, tmp_path, hapgent_api=("active", pid_on_host(wanted)))

    # The service takes precedence over the state file.
    (instance,) = host.instances(command=command, service="hapgent-api", state_file=str(other.state_file))

    assert (instance["pid"], instance["service"]) == (pid_on_host(wanted), "hapgent-api")
    assert (instance["answer"], instance["status_socket"]) == ("DRAIN", str(tmp_path / "wanted.sock"))


@pytest.mark.parametrize(
    ("state", "pid", "named"),
    [
        ("inactive", 0, ["hapgent-api ", "(inactive)"]),
        ("failed", 0, ["(failed)", "systemctl status hapgent-api"]),
        # This is the first process of the host, which is not an agent.
        ("active", 1, [" 1 ", "hapgent-api ", " cat"]),
    ],
)
def test_error_if_the_service_runs_no_agent(
    host: ModuleHost, tmp_path: Path, state: str, pid: int, named: list[str]
) -> None:
    host.start(status_socket=tmp_path / "status.sock")
    result = host.run(command=with_systemd(host, tmp_path, hapgent_api=(state, pid)), service="hapgent-api")
    assert result["failed"]
    for word in named:
        assert word in result["msg"]


def test_error_about_an_unknown_service_names_services_with_agents(host: ModuleHost, tmp_path: Path) -> None:
    # No other agent is taken instead, even if it serves the default state_file.
    api, web = host.start(), host.start()
    host.start()
    command = with_systemd(
        host,
        tmp_path,
        hapgent_api=("active", pid_on_host(api)),
        hapgent=("active", pid_on_host(web)),
        cron=("active", 1),
    )
    result = host.run(command=command, service="hapgent-ap1")
    assert result["failed"]
    assert " hapgent-ap1: " in result["msg"]
    assert result["msg"].endswith(" hapgent, hapgent-api.")


def test_services_of_all_agents_are_found(host: ModuleHost, tmp_path: Path) -> None:
    api, web, none = host.start(), host.start(), host.start()
    command = with_systemd(
        host,
        tmp_path,
        hapgent_api=("active", pid_on_host(api)),
        hapgent=("active", pid_on_host(web)),
        cron=("active", 1),
    )
    result = host.run(command=command)
    found = {instance["pid"]: instance["service"] for instance in result["instances"]}
    assert found == {pid_on_host(api): "hapgent-api", pid_on_host(web): "hapgent", pid_on_host(none): None}
    assert result["services"] == ["hapgent", "hapgent-api"]


def test_hapgent_state_changes_nothing_for_an_unknown_service(host: ModuleHost, tmp_path: Path) -> None:
    # The agent serves the given file, but belongs to another service.
    agent = host.start(status_socket=tmp_path / "status.sock")
    command = with_systemd(host, tmp_path, hapgent=("active", pid_on_host(agent)))
    result = host.run(
        module=MODULE.replace("hapgent_info", "hapgent_state"),
        command=command,
        service="hapgent-api",
        state_file=str(agent.state_file),
        status="DRAIN",
    )
    assert result["failed"]
    assert not result["changed"]
    assert result["msg"].endswith(" hapgent. Nothing was changed.")
    assert agent.state_file.read_bytes() == b'{"status": "UP"}'
    (instance,) = host.instances(command=command)
    assert instance["answer"] == "UP"


# hapgent_state takes the state file from the service


STATE_MODULE = MODULE.replace("hapgent_info", "hapgent_state")


def test_state_file_is_that_of_the_service(host: ModuleHost, tmp_path: Path) -> None:
    shop, other = (host.start(status_socket=tmp_path / f"{name}.sock") for name in ("shop", "other"))
    services = {"hapgent@shop": ("active", pid_on_host(shop)), "hapgent": ("active", pid_on_host(other))}
    # The process counts, not the unit, which may have changed since the process was started.
    command = with_systemd(host, tmp_path, f"HAPGENT_STATE_FILE={tmp_path}/new.json", **services)
    for check in (True, False):
        result = host.run(module=STATE_MODULE, command=command, check=check, service="hapgent@shop", status="DRAIN")
        assert (result["changed"], result["answer"]) == (True, "DRAIN")
        assert result["diff"]["before_header"] == str(shop.state_file)
    (instance,) = host.instances(command=command, service="hapgent@shop")
    assert (instance["service"], instance["answer"]) == ("hapgent@shop", "DRAIN")
    assert other.state_file.read_bytes() == b'{"status": "UP"}'
    # If both are set, they must belong together.
    both: Result = {"service": "hapgent@shop", "state_file": str(other.state_file)}
    result = host.run(module=STATE_MODULE, command=command, status="UP", **both)
    assert f"serves {shop.state_file}, not {other.state_file}" in result["msg"]


def test_state_file_of_a_stopped_service_is_that_of_its_unit(host: ModuleHost, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    environment = f'HAPGENT_SETTLE=60 "HAPGENT_STATE_FILE={folder}/state.json"'
    command = with_systemd(host, tmp_path, environment, **{"hapgent@shop": ("inactive", 0), "page": ("active", 1)})
    options: Result = {"module": STATE_MODULE, "command": command, "service": "hapgent@shop"}
    created = host.run(**options, create=True, notify=False, status="MAINT")
    assert (created["changed"], created["after"]) == (True, {"status": "MAINT"})
    assert json.loads((folder / "state.json").read_bytes()) == {"status": "MAINT"}
    assert host.run(**options, notify=False, status="UP")["before"] == {"status": "MAINT"}
    # With notify, the agent must run.
    result = host.run(**options, status="DRAIN")
    assert "hapgent@shop is not running (inactive)" in result["msg"]
    assert json.loads((folder / "state.json").read_bytes()) == {"status": "UP"}
    # No other service of the host has a state file.
    for service in ("page", "hapgent@shpo"):
        result = host.run(**{**options, "service": service}, notify=False, create=True, status="UP")
        assert service in result["msg"]
        assert result["msg"].endswith("Nothing was changed.")


@pytest.mark.parametrize("environment", ["", "HAPGENT_STATE_FILE=state.json"], ids=["default", "relative path"])
def test_state_file_of_a_unit_that_names_none(host: ModuleHost, tmp_path: Path, environment: str) -> None:
    command = with_systemd(host, tmp_path, environment, **{"hapgent@shop": ("inactive", 0)})
    # The folder of the default may not exist, or may contain a state. In check mode, neither matters.
    options: Result = {"module": STATE_MODULE, "command": command, "check": True, "create": True, "notify": False}
    result = host.run(**options, service="hapgent@shop", status="UP")
    if environment:
        assert "must be an absolute path, not 'state.json'" in result["msg"]
    else:
        # It may be the unit of another program, which must not count as an agent that serves the default file.
        assert "hapgent@shop does not run, and it sets no HAPGENT_STATE_FILE" in result["msg"]
        # The first state may be created before the default service.
        assert host.run(**options, status="UP")["diff"]["before_header"] == "/etc/hapgent/state.json"


@pytest.mark.parametrize("seconds", ["nan", "inf", -1, 10**10])
def test_invalid_timeout_is_refused(host: ModuleHost, seconds: Any) -> None:
    result = host.run(timeout=seconds)
    assert result["failed"]
    assert "timeout must be 0 to 86400 " in result["msg"]


# Hostile users

OTHER = 65534
# These constants are from Linux's inotify.h.
IN_ACCESS, IN_OPEN = 1, 0x20
SECRET = '{"status": "s3cret"}'
ESCAPES = "\x1b[2J\u202e\x9b"


class Neighbour:
    """Another user of the host, with their own folder and processes that are named hapgent."""

    def __init__(self, host: ModuleHost) -> None:
        self._host = host
        self._processes: list[subprocess.Popen[str]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="neighbour"))
        os.chown(self.folder, OTHER, OTHER)
        # A valid state file that belongs to this user.
        self.state_file = self.folder / "state.json"
        self.state_file.write_text('{"status": "DRAIN"}', encoding="utf-8")
        os.chown(self.state_file, OTHER, OTHER)
        self.socket = self.folder / "status.sock"

    def start(self, state_file: Path, status_socket: Path | None = None, serves: str = "") -> None:
        """Start a process with this state file and socket in its environment, which then runs C(serves)."""
        code = f"""
import json, os, socket, sys, time
with open("/proc/self/comm", "w") as comm:
    comm.write("hapgent")
listener = socket.socket(socket.AF_UNIX)
state_file = {str(state_file)!r}
def listen():
    listener.bind({str(status_socket)!r})
    listener.listen()
    print("ready", flush=True)
    return listener.accept()[0]
{serves}
print("ready", flush=True)
time.sleep(60)
"""
        process = subprocess.Popen(
            [
                *self._host.enter(),
                *("setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"),
                *("/usr/bin/python3", "-I", "-S", "-c", code),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={
                "PATH": os.defpath,
                "HAPGENT_STATE_FILE": str(state_file),
                **({"HAPGENT_SOCKET": str(status_socket)} if status_socket else {}),
            },
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        self._processes.append(process)

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        shutil.rmtree(self.folder)


@pytest.fixture
def neighbour(host: ModuleHost) -> Iterator[Neighbour]:
    if os.geteuid() != 0:
        pytest.skip("needs another user")
    neighbour = Neighbour(host)
    yield neighbour
    # Processes that hang end with their host.
    host.end()
    neighbour.end()


@contextlib.contextmanager
def assert_not_opened(*paths: Path) -> Iterator[None]:
    """Check that no process opens or reads these files while the context lasts. Source: inotify(7)."""
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    for path in paths:
        assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN | IN_ACCESS) >= 0
    yield
    try:
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
    finally:
        os.close(watch)


def query_beside_a_real_agent(host: ModuleHost, real: Agent, timeout: float = 3) -> tuple[list[Result], str]:
    """Query all agents, and check that the real one's row is right and that this took no longer than the timeout.

    Return the other rows, and the whole result as text.
    """
    started = time.monotonic()
    result = host.run(timeout=timeout)
    # Starting Python on a busy machine may take some seconds more.
    assert time.monotonic() - started < timeout + 10
    assert not result.get("failed"), result
    rows = {row["pid"]: row for row in result["instances"]}
    row = rows.pop(pid_on_host(real))
    assert (row["answer"], row["problem"], row["state_file"]) == ("UP", None, str(real.state_file))
    text = json.dumps(result, ensure_ascii=False)
    assert "s3cret" not in text
    assert not set(ESCAPES) & set(text) - set("[2J")
    return list(rows.values()), text


@pytest.mark.parametrize("kind", ["FIFO", "file", "device", "link to a FIFO", "link to a file", "hard link"])
def test_files_that_a_neighbour_names_are_not_opened_with_the_rights_of_root(
    host: ModuleHost, tmp_path: Path, neighbour: Neighbour, kind: str
) -> None:
    real = host.start(status_socket=tmp_path / "status.sock")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    os.mkfifo(private / "fifo", 0o600)
    (private / "file").write_text(SECRET, encoding="utf-8")
    (private / "file").chmod(0o600)
    target = private / ("fifo" if "FIFO" in kind else "file")
    named = Path("/proc/kmsg") if kind == "device" else target
    if "link" in kind:
        named = neighbour.state_file
        named.unlink()
        if kind == "hard link":
            named.hardlink_to(target)
        else:
            named.symlink_to(target)
    neighbour.start(named)
    neighbour.start(neighbour.state_file, named)

    with assert_not_opened(private / "fifo", private / "file"):
        rows, text = query_beside_a_real_agent(host, real)

    # If only the file belongs to another user, the process still has a row, but with a problem.
    assert [row["answer"] for row in rows] == [None] * len(rows)
    assert all(row["problem"] for row in rows)
    assert "warnings" in text


SERVES = {
    "silence": "client = listen(); time.sleep(60)",
    "byte by byte": "client = listen()\nwhile True: client.sendall(b'['); time.sleep(0.02)",
    "endless": "client = listen()\nwhile True: client.sendall(b' ' * 65536)",
    "many digits": "client = listen(); client.sendall(b'1' * 4000000); client.close()",
    "deep nesting": "client = listen(); client.sendall(b'[' * 1000000); client.close()",
    "not an object": "client = listen(); client.sendall(b'[1]'); client.close()",
    "escapes": f"""
client = listen()
bad = {ESCAPES!r}
client.sendall(json.dumps(dict(state=dict(status="UP", reason=chr(0x202e)), answer="UP" + bad, state_file=state_file,
    last_error=bad, version=bad, counters={{bad: 1}}, since=1e300, settle=bad,
    peers=[dict(address=bad, line=bad, received=True, polls=True, last_seen=1)])).encode())
client.close()
""",
}


@pytest.mark.parametrize("serves", SERVES)
def test_status_of_a_neighbour_does_not_hide_other_agents(
    host: ModuleHost, tmp_path: Path, neighbour: Neighbour, serves: str
) -> None:
    real = host.start(status_socket=tmp_path / "status.sock")
    neighbour.start(neighbour.state_file, neighbour.socket, SERVES[serves])
    ((row,), _text) = query_beside_a_real_agent(host, real)
    if serves == "escapes":
        assert (row["version"], row["since"], row["settle"]) == (r"\x1b[2J\u202e\x9b", None, None)
    else:
        assert row["answer"] is None
        assert str(neighbour.socket) in row["problem"]


def test_many_silent_neighbours_do_not_hide_other_agents(
    host: ModuleHost, tmp_path: Path, neighbour: Neighbour
) -> None:
    for number in range(20):
        neighbour.start(neighbour.state_file, neighbour.folder / f"{number}.sock", SERVES["silence"])
    real = host.start(status_socket=tmp_path / "status.sock")
    rows, _text = query_beside_a_real_agent(host, real)
    assert len(rows) == 20
    assert all(row["problem"] for row in rows)


def test_socket_of_another_user_is_refused(host: ModuleHost, tmp_path: Path, neighbour: Neighbour) -> None:
    real = host.start(status_socket=tmp_path / "status.sock")
    neighbour.socket.symlink_to(tmp_path / "status.sock")
    neighbour.start(neighbour.state_file, tmp_path / "status.sock")
    neighbour.start(neighbour.state_file, neighbour.socket)
    rows, _text = query_beside_a_real_agent(host, real)
    assert [row["answer"] for row in rows] == [None, None]
    # The socket belongs to another user than the process.
    assert all(f" user {os.geteuid()}," in row["problem"] for row in rows)


def test_neighbour_cannot_claim_the_file_of_another_agent(
    host: ModuleHost, tmp_path: Path, neighbour: Neighbour
) -> None:
    real = host.start(status_socket=tmp_path / "status.sock")
    neighbour.start(real.state_file, neighbour.socket, SERVES["silence"])
    rows, text = query_beside_a_real_agent(host, real)
    assert rows == []
    # A warning names the neighbour's process and user.
    assert re.search(rf" [0-9]+ \(user {OTHER} ", text)
    (instance,) = host.instances(state_file=str(real.state_file))
    assert instance["pid"] == pid_on_host(real)


def test_ansible_can_run_the_module(host: ModuleHost, tmp_path: Path, run_ansible: RunAnsible) -> None:
    agent = host.start(status_socket=tmp_path / "status.sock")
    result = run_ansible("hapgent_info", command=host.enter())
    (instance,) = result["instances"]
    assert not result["changed"]
    assert (instance["pid"], instance["answer"]) == (pid_on_host(agent), "UP")
