# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The commands find the instances of a host, change their states, wait for load balancers, and report what they did.

The agents, their files and the load balancers are real. systemd is simulated: the host is a namespace with a systemctl
of its own. All tests share one host with these services, each of which has its own user and folder:

- hapgent and hapgent@shop run;
- hapgent@old is stopped, and is known only from its unit file.

The wording of each message is in MESSAGES and nowhere else.
"""

from __future__ import annotations

import calendar
import contextlib
import http.server
import importlib
import json
import os
import pty
import pwd
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from prepared import compiled_for
from simulated_host import Host, outer_pid, pid_on_host, poll_from, set_services

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually

ROOT = Path(__file__).parents[2]
PYTHON = os.path.realpath(sys.executable)
PROGRAM = str(compiled_for(PYTHON))
# The users of the agents, and an unrelated one. They have no names.
OWNERS = {"hapgent": 60201, "hapgent@shop": 60202, "hapgent@old": 60203}
STRANGER = 60209
FAST, SLOW = "127.0.0.2", "127.0.0.3"
# The only load balancers of the shared agents: one of another test would be waited for until it counts as gone.
OF_DEFAULT, OF_SHOP = {"b4": 0.1}, {"b5": 0.2}
# The commands have no variables of sudo, unless a test sets them.
BY = f"{pwd.getpwuid(os.geteuid()).pw_name}@{socket.gethostname()}"
UP, DRAIN = {"status": "UP"}, {"status": "DRAIN", "by": BY}

# Some tests call the shipped code directly.
with mock.patch.object(sys, "path", [str(ROOT / "files"), *sys.path]):
    _agent_process: Any = importlib.import_module("hapgent._agent_process")
    _systemd: Any = importlib.import_module("hapgent._systemd")
    instances: Any = importlib.import_module("hapgent.instances")
    change_command: Any = importlib.import_module("hapgent.change_command")
    follow: Any = importlib.import_module("hapgent.follow")

Done = subprocess.CompletedProcess[str]

# What each command prints; {NAME} are parts that depend on the test.
MESSAGES = {
    "changed": "{service}: {now} (was {was}).",
    "same": "{service}: already {now}.",
    "received": "{service}: {now} (was {was}), received by {addresses}.",
    "received before": "{service}: already {now}, received by {addresses}.",
    "not received": "{service}: {now} (was {was}), received by {addresses}, not received by {missing} (last seen {ago} "
    "s ago).",
    "no load balancer": "{service}: {now} (was {was}), but no load balancer polls the agent, so none acts on the "
    "state. Check that the server line in HAProxy has agent-check and the right agent-port, and that no firewall "
    "blocks it.",
    "interrupted": "{service}: {now} (was {was}). Interrupted: received by {addresses}, not yet by {missing}.",
    "stopped": "{service}: {now} (was {was}) in {file}, but the agent does not run (inactive). Start it with systemctl "
    "start {service}.",
    "no service runs": "{service}: {now} (was {was}) in {file}, but the agent does not run (no process serves this "
    "file).",
    "maxconn stays": "{service}: HAProxy keeps maxconn {maxconn}, because no agent response can reset it. Set maxconn "
    "to the configured value, or change it in HAProxy (set maxconn server).",
    "several": "hapgent {command}: this host has several instances: {names}. Choose one with --service NAME, or all "
    "with --all. Nothing was changed.",
    "unknown": "hapgent {command}: there is no instance {name}: the instances of this host are {names}. Nothing was "
    "changed.",
    "not permitted": "{service}: user {user} may not change the state, only root may. Nothing was changed.",
    "only the owner": "{service}: user {user} may not change the state, only root and user {owner} may. Nothing was "
    "changed.",
    "hidden": "{service}: user {user} may not change the state, only root may. The sandbox of its service hides the "
    "agent's process from other processes of its user",
    "invalid file": "{service}: {file}: {error}. Fix the file. Nothing was changed.",
    "missing file": "{service}: {file} does not exist. Nothing was changed.",
    "no status socket": "{service}: --wait requires a status socket, and the agent has none: set its HAPGENT_SOCKET. "
    "Nothing was changed.",
    "hangs": "{service}: the agent of {file} does not report its status on {socket} (timed out): check its log. "
    "Restarting its service is safe. Nothing was changed.",
    "still answers": "{service}: The file {file} contains {now}, but the agent on {socket} still answers {was}.",
    "overridden": "{service}: The file {file} contains {now} and the agent reports it, but the state was changed by "
    "something else to {other}.",
    "not writable": "{service}: cannot write {file}: {error}. Nothing was changed.",
}


def message(kind: str, **parts: object) -> str:
    """The pattern of a whole line. Parts that are compiled patterns match as such."""
    marks = {key: f"\0{key}\0" for key in parts}
    pattern = re.escape(MESSAGES[kind].format(**marks))
    for key, part in parts.items():
        shown = f"(?:{part.pattern})" if isinstance(part, re.Pattern) else re.escape(str(part))
        pattern = pattern.replace(re.escape(marks[key]), shown)
    return pattern


def read_status(status_socket: Path) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(15)
        reader.connect(str(status_socket))
        status: dict[str, Any] = json.loads(b"".join(iter(lambda: reader.recv(65536), b"")))
    return status


class Commands:
    """The simulated host with its agents."""

    def __init__(self, host: Host, folder: Path, eventually: Eventually) -> None:
        self._eventually = eventually
        self.host = host
        self.folder = folder
        self.programs = host.boot_systemd(folder)
        self.agents: dict[str, Agent] = {}
        for service, user in OWNERS.items():
            file, own = self.file(service), user if os.geteuid() == 0 else 0
            file.parent.mkdir()
            os.chown(file.parent, own or -1, own or -1)
            if service != "hapgent@old":
                self.agents[service] = host.start(
                    state_file=file, status_socket=self.socket(service), settle=60, user=own
                )
                os.chown(file, own or -1, own or -1)
        unit = "\n".join(["[Service]", f"Environment=HAPGENT_STATE_FILE={self.file('hapgent@old')}"])
        self.enter("sh", "-c", f"echo '{unit}' >/etc/systemd/system/hapgent@old.service", check=True)
        self.reset()

    def file(self, service: str) -> Path:
        return self.folder / service / "state.json"

    def socket(self, service: str) -> Path:
        return self.folder / service / "status.sock"

    def saved(self, service: str) -> object:
        return json.loads(self.file(service).read_bytes())

    def services(self) -> dict[str, tuple[str, int, str]]:
        environments = {
            name: f"HAPGENT_STATE_FILE={self.file(name)} HAPGENT_SOCKET={self.socket(name)}" for name in OWNERS
        }
        # systemd does not list a stopped service that nothing has loaded, but knows it when it is asked.
        running = {name: ("active", pid_on_host(agent), environments[name]) for name, agent in self.agents.items()}
        return {**running, "hapgent@old": ("inactive", 0, environments["hapgent@old"]), "cron": ("active", 1, "")}

    def reset(self) -> None:
        """Let all agents be UP, as if no load balancer had ever polled."""
        set_services(self.folder, self.services())
        for service in OWNERS:
            self.write(service, UP)

    def write(self, service: str, state: object) -> None:
        """Replace the state file, and wait until the agent answers with this state."""
        file = self.file(service)
        new = file.with_name("new")
        new.write_text(json.dumps(state), encoding="utf-8")
        os.chown(new, file.parent.stat().st_uid, file.parent.stat().st_gid)
        new.replace(file)
        # If it answers this already, no test could see when it has read the file, and it would read it during the test.
        if service in self.agents and not self.answers(service, state):
            os.kill(outer_pid(self.agents[service]), signal.SIGHUP)
            self._eventually(lambda: self.answers(service, state), f"state {state}")

    def answers(self, service: str, state: object) -> bool:
        return bool(read_status(self.socket(service))["state"] == state)

    def enter(self, *command: str, check: bool = False) -> Done:
        return subprocess.run([*self.host.enter(), *command], capture_output=True, text=True, check=check)

    def command(self, *arguments: str, user: int = 0) -> list[str]:
        """The command line of a command on the host."""
        drop = f"setpriv --reuid={user} --regid={user} --clear-groups".split() if user else []
        return [*self.host.enter(), *drop, PYTHON, "-I", "-S", PROGRAM, *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": f"{self.programs}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", **more}

    def run(self, *arguments: str, user: int = 0, environment: Mapping[str, str] | None = None) -> Done:
        return subprocess.run(
            self.command(*arguments, user=user),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            check=False,
            timeout=60,
            env=self.environment(**(environment or {})),
        )


@pytest.fixture(scope="module")
def commands_of_module(agents_in: Callable[[Path], Agents], eventually: Eventually) -> Iterator[Commands]:
    # Only the user who runs pytest can enter pytest's own folder.
    folder = Path(tempfile.mkdtemp(prefix="hapgent"))
    folder.chmod(0o755)
    host = Host(agents_in(folder))
    yield Commands(host, folder, eventually)
    host.end()
    shutil.rmtree(folder)


@pytest.fixture
def commands(commands_of_module: Commands) -> Commands:
    commands_of_module.reset()
    return commands_of_module


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs other users")


def assert_done(done: Done, code: int, *lines: str) -> None:
    """Assert that the command exited with this status and printed these lines, the patterns of which are given."""
    printed = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    assert done.returncode == code, printed
    assert len(printed) == len(lines), printed
    for line, pattern in zip(printed, lines, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"
        assert line.isprintable()


@contextlib.contextmanager
def polled(agent: Agent, status_socket: Path, eventually: Eventually, **addresses: float) -> Iterator[None]:
    """Let load balancers poll the agent at these intervals, and wait until it counts them. b2 is 127.0.0.2."""
    over = threading.Event()
    inters = {f"127.0.0.{name[1:]}": inter for name, inter in addresses.items()}

    def poll(address: str, inter: float) -> None:
        while not over.wait(inter):
            poll_from(agent, address)

    threads = [threading.Thread(target=poll, args=item) for item in inters.items()]
    for thread in threads:
        thread.start()

    def polls() -> set[str]:
        return {peer["address"] for peer in read_status(status_socket)["peers"] if peer["polls"]}

    try:
        eventually(lambda: polls() >= set(inters), "the load balancers poll")
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


# Changes


UNTIL = "2999-11-28T06:00:00Z"
FORMS = {"weight": " {}%", "maxconn": " maxconn:{}", "reason": " # {}"}
LATER = {"until": ", until {}", "then": ", then {}"}


@pytest.mark.parametrize(
    ("arguments", "after"),
    [
        (["drain"], {"status": "DRAIN", "weight": 50, "by": BY}),
        (["drain", "--reason", "release 4.2"], {"status": "DRAIN", "weight": 50, "reason": "release 4.2", "by": BY}),
        (["drain", f"--until={UNTIL}"], {"status": "DRAIN", "weight": 50, "by": BY, "until": UNTIL}),
        (
            ["drain", f"--until={UNTIL}", "--then", "up"],
            {"status": "DRAIN", "weight": 50, "by": BY, "until": UNTIL, "then": "UP"},
        ),
        (["maint", "--reason=disk"], {"status": "MAINT", "weight": 50, "reason": "disk", "by": BY}),
        (["down"], {"status": "DOWN", "weight": 50, "by": BY}),
        (["ready"], {"status": "READY", "weight": 50}),
        (["set", "weight=7", "maxconn=9"], {"status": "UP", "weight": 7, "maxconn": 9}),
        (["set", "reason=all is well"], {"status": "UP", "weight": 50, "reason": "all is well", "by": BY}),
        (["set", "--reason", "x", "weight=none"], {"status": "UP", "reason": "x", "by": BY}),
        (["set", "by=ada", f"until={UNTIL}"], {"status": "UP", "weight": 50, "by": "ada", "until": UNTIL}),
        (
            ["set", f"until={UNTIL}", "then=UP"],
            {"status": "UP", "weight": 50, "by": BY, "until": UNTIL, "then": "UP"},
        ),
    ],
    ids=" ".join,
)
def test_state_is_changed_once(commands: Commands, arguments: list[str], after: dict[str, Any]) -> None:
    commands.write("hapgent@shop", {"status": "UP", "weight": 50})
    now = f"{after['status']}{shown(after, {**FORMS, **LATER})}"
    for service in ("shop", "hapgent@shop", "hapgent@shop.service"):
        done = commands.run(*arguments, "--service", service)
        if service == "shop":
            assert_done(done, 0, message("changed", service="hapgent@shop", now=now, was="UP 50%"))
        else:
            assert_done(done, 0, message("same", service="hapgent@shop", now=f"{after['status']}{shown(after)}"))
        assert commands.saved("hapgent@shop") == after
    status = json.loads(commands.run("status", "--json", "--service", "shop").stdout)
    assert status["state"] == after
    assert commands.saved("hapgent") == UP
    owner = commands.file("hapgent@shop").stat().st_uid
    assert owner == commands.file("hapgent@shop").parent.stat().st_uid


def shown(state: dict[str, Any], forms: Mapping[str, str] | None = None) -> str:
    """The fields of a state after its status. What a command has just set does not name who runs it."""
    forms = forms or {**FORMS, "by": ", by {}", **LATER}
    return "".join(form.format(state[name]) for name, form in forms.items() if name in state)


@pytest.mark.parametrize("command", ["up", "undrain"])
def test_up_and_undrain_are_the_same(commands: Commands, command: str) -> None:
    commands.write("hapgent", {"status": "DRAIN", "reason": "disk"})
    done = commands.run(command, "--service", "hapgent")
    assert_done(done, 0, message("changed", service="hapgent", now="UP", was="DRAIN # disk"))
    assert commands.saved("hapgent") == UP


def test_maxconn_that_haproxy_keeps_is_reported(commands: Commands) -> None:
    commands.write("hapgent", {"status": "UP", "maxconn": 300})
    done = commands.run("set", "maxconn=none", "--service=hapgent")
    changed = message("changed", service="hapgent", now="UP", was="UP maxconn:300")
    assert_done(done, 0, changed, message("maxconn stays", service="hapgent", maxconn=300))


def test_agent_that_has_not_read_its_file_is_reloaded(commands: Commands) -> None:
    commands.file("hapgent").write_text(json.dumps(DRAIN), encoding="utf-8")
    done = commands.run("drain", "--service", "hapgent")
    assert_done(done, 0, message("changed", service="hapgent", now="DRAIN", was="UP"))
    assert_done(
        commands.run("drain", "--service", "hapgent"), 0, message("same", service="hapgent", now=f"DRAIN, by {BY}")
    )


def test_commands_run_with_each_python(commands: Commands, python: str) -> None:
    line = commands.command("drain", "--service", "hapgent")
    line[line.index(PYTHON)] = python
    done = subprocess.run(line, capture_output=True, encoding="utf-8", check=False, env=commands.environment())
    assert_done(done, 0, message("changed", service="hapgent", now="DRAIN", was="UP"))


# Which instance


def test_one_of_several_instances_must_be_selected(commands: Commands) -> None:
    done = commands.run("drain")
    names = "hapgent, hapgent@old, hapgent@shop"
    assert_done(done, 2, message("several", command="drain", names=names))
    assert [commands.saved(service) for service in OWNERS] == [UP, UP, UP]


def test_unknown_instance_is_an_error_that_names_those_that_are_there(commands: Commands) -> None:
    names = "hapgent, hapgent@old, hapgent@shop"
    for name in ("shpo", "cron", "hapgent@"):
        assert_done(
            commands.run("drain", "--service", name), 2, message("unknown", command="drain", name=name, names=names)
        )


def test_the_only_agent_needs_no_option(agents: Agents, tmp_path: Path) -> None:
    """This host has no systemd, so the agent is known by its state file only."""
    host = Host(agents)
    try:
        subprocess.run([*host.enter(), "mount", "-t", "tmpfs", "host", "/run"], check=True)
        first = host.start(status_socket=tmp_path / "first.sock")
        line = [*host.enter(), PYTHON, "-I", "-S", PROGRAM]

        def run(*arguments: str, **environment: str) -> Done:
            environment = {"PATH": os.environ["PATH"], **environment}
            return subprocess.run(
                [*line, *arguments], capture_output=True, encoding="utf-8", check=False, env=environment
            )

        file = str(first.state_file)
        assert_done(run("drain"), 0, message("changed", service=file, now="DRAIN", was="UP"))
        assert run("status").stdout.startswith("state       DRAIN\n")
        assert run("--services").stdout == ""

        # With two, the variable of the agent selects one.
        other = str(host.start().state_file)
        names = re.compile(f"{file}, {other}|{other}, {file}")
        assert_done(run("maint"), 2, message("several", command="maint", names=names))
        done = run("maint", HAPGENT_STATE_FILE=other)
        assert_done(done, 0, message("changed", service=other, now="MAINT", was="UP"))
        for agent, status in ((first, "DRAIN"), (None, "MAINT")):
            path = agent.state_file if agent else Path(other)
            assert json.loads(path.read_bytes()) == {"status": status, "by": BY}

        # A file that no agent serves is written, too.
        os.kill(outer_pid(first), signal.SIGKILL)
        first.await_exit()
        done = run("up", HAPGENT_STATE_FILE=file)
        assert_done(done, 5, message("no service runs", service=file, now="UP", was=f"DRAIN, by {BY}", file=file))
        assert json.loads(first.state_file.read_bytes()) == UP
    finally:
        host.end()


def test_all_instances_are_changed(commands: Commands) -> None:
    done = commands.run("drain", "--all")
    assert_done(
        done,
        5,
        message("changed", service="hapgent", now="DRAIN", was="UP"),
        message("changed", service="hapgent@shop", now="DRAIN", was="UP"),
        message("stopped", service="hapgent@old", now="DRAIN", was="UP", file=commands.file("hapgent@old")),
    )
    assert [commands.saved(service) for service in OWNERS] == [DRAIN, DRAIN, DRAIN]


INVALID: dict[str, Callable[[Commands], object]] = {
    "invalid file": lambda commands: commands.file("hapgent@shop").write_text("{}"),
    "missing file": lambda commands: commands.file("hapgent@shop").unlink(),
}


@pytest.mark.parametrize("name", INVALID)
def test_nothing_is_changed_if_one_of_all_cannot_be(commands: Commands, name: str) -> None:
    INVALID[name](commands)
    done = commands.run("drain", "--all")
    parts = {"service": "hapgent@shop", "file": commands.file("hapgent@shop"), "error": re.compile(".*status.*")}
    assert_done(done, 1, message(name, **parts))
    assert [commands.saved(service) for service in ("hapgent", "hapgent@old")] == [UP, UP]


def test_file_of_a_stopped_service_is_written(commands: Commands) -> None:
    for _run in range(2):
        done = commands.run("maint", "--service", "old", "--wait")
        assert done.returncode == 5
        assert commands.saved("hapgent@old") == {"status": "MAINT", "by": BY}
    assert f"already MAINT, by {BY} in " in done.stderr


@needs_root
def test_agents_of_other_users_do_not_count_beside_services(commands: Commands) -> None:
    folder = commands.folder / "stranger"
    folder.mkdir()
    os.chown(folder, STRANGER, STRANGER)
    agent = commands.host.start(state_file=folder / "state.json", user=STRANGER)
    names = "hapgent, hapgent@old, hapgent@shop"
    try:
        assert_done(commands.run("drain"), 2, message("several", command="drain", names=names))
        found = json.loads(commands.run("status", "--json").stdout)["instances"]
        assert ", ".join(str(one["service"]) for one in found) == names
    finally:
        os.kill(outer_pid(agent), signal.SIGKILL)
        agent.await_exit()


def test_processes_of_other_users_are_not_inspected_beside_services(monkeypatch: pytest.MonkeyPatch) -> None:
    # The file system with their state file may never respond.
    process = SimpleNamespace(user=os.geteuid() + 1, pid=7)
    stopped = _systemd.Service("hapgent", True, "inactive", 0)
    managed = SimpleNamespace(service=lambda _name, _run: stopped, environment=lambda _name, _run: {})
    monkeypatch.setattr(instances, "manager", lambda: managed)
    monkeypatch.setattr(instances, "all_services", lambda _run: {"hapgent": None})
    monkeypatch.setattr(instances, "others", lambda _known: ([process], 0))
    monkeypatch.setattr(instances, "distrust", lambda one: pytest.fail(f"process {one.pid} was inspected"))
    assert [found.service for found in instances.discover()] == ["hapgent"]


@needs_root
def test_services_of_other_programs_do_not_count(commands: Commands) -> None:
    # A user may have renamed the manager of their own services, which is the main process of a service.
    folder = commands.folder / "renamed"
    folder.mkdir()
    os.chown(folder, STRANGER, STRANGER)
    agent = commands.host.start(state_file=folder / "state.json", user=STRANGER)
    manager = ("active", pid_on_host(agent), "")
    try:
        set_services(commands.folder, {**commands.services(), f"user@{STRANGER}": manager})
        assert_done(commands.run("--services"), 0, "hapgent", "hapgent@old", "hapgent@shop")
        # The unit of a service is trusted, whatever its name is.
        agent_of_unit = (*manager[:2], f"HAPGENT_STATE_FILE={folder}/state.json")
        set_services(commands.folder, {**commands.services(), "agent": agent_of_unit})
        assert_done(commands.run("--services"), 0, "agent", "hapgent", "hapgent@old", "hapgent@shop")
    finally:
        os.kill(outer_pid(agent), signal.SIGKILL)
        agent.await_exit()


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_works_with_closed_standard_streams(commands: Commands, closed: str) -> None:
    poll_from(commands.agents["hapgent@shop"], FAST)
    command = shlex.join(commands.command("drain", "--wait=0", "--service", "shop"))
    done = subprocess.run(
        ["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False, env=commands.environment()
    )
    # The load balancer does not poll again.
    assert (done.returncode, done.stdout) == (3, "")
    assert "Traceback" not in done.stderr
    assert commands.saved("hapgent@shop") == DRAIN


# Who, and until when


@needs_root
def test_who_did_it_is_recorded(commands: Commands) -> None:
    def run(name: str, *arguments: str) -> Done:
        sudo = {"SUDO_UID": str(pwd.getpwnam(name).pw_uid), "SUDO_USER": "anyone"}
        return commands.run(*arguments, "--service", "shop", environment=sudo if name != "root" else {})

    host = socket.gethostname()
    drained = {"status": "DRAIN", "reason": "disk", "by": f"nobody@{host}"}
    run("nobody", "drain", "--reason", "disk")
    assert commands.saved("hapgent@shop") == drained
    # Who repeats it has not done it, and other fields do not belong to the status.
    done = run("root", "drain", "--reason", "disk")
    assert_done(done, 0, message("same", service="hapgent@shop", now=f"DRAIN # disk, by nobody@{host}"))
    run("root", "set", "weight=50")
    assert commands.saved("hapgent@shop") == {**drained, "weight": 50}
    run("root", "drain", "--reason", "kernel")
    assert commands.saved("hapgent@shop") == {"status": "DRAIN", "weight": 50, "reason": "kernel", "by": f"root@{host}"}
    run("nobody", "up")
    assert commands.saved("hapgent@shop") == {"status": "UP", "weight": 50}


def test_duration_is_stored_as_a_moment(commands: Commands) -> None:
    before = int(time.time())
    commands.run("drain", "--until", "3h", "--service", "shop")
    state: Any = commands.saved("hapgent@shop")
    until = calendar.timegm(time.strptime(state["until"], "%Y-%m-%dT%H:%M:%SZ"))
    assert before + 3 * 3600 <= until <= time.time() + 3 * 3600
    assert ", in 3 h\n" in commands.run("status", "--service", "shop").stdout
    commands.run("set", "until=none", "--service", "shop")
    assert commands.saved("hapgent@shop") == DRAIN


def test_what_follows_belongs_to_its_moment(commands: Commands) -> None:
    def after(*arguments: str) -> Any:
        assert commands.run(*arguments, "--service", "shop").returncode == 0
        return commands.saved("hapgent@shop")

    returns = after("drain", "--until", UNTIL, "--then", "up")
    assert after("set", "weight=7") == {**returns, "weight": 7}
    assert after("drain", "--until", UNTIL) == {**returns, "weight": 7}
    assert "then" not in after("drain", "--until", "3h")
    assert after("drain", "--until", UNTIL, "--then", "UP")["then"] == "UP"
    assert after("set", "until=none", "weight=none") == DRAIN
    after("drain", "--until", UNTIL, "--then", "up")
    assert after("set", "then=none") == {**DRAIN, "until": UNTIL}
    assert after("set", "then=UP") == returns
    after("set", "until=none")
    refused = commands.run("set", "then=UP", "--service", "shop")
    assert (refused.returncode, "Fix the file" in refused.stderr) == (1, False)
    assert "then requires until" in refused.stderr
    assert commands.saved("hapgent@shop") == DRAIN


# Exit statuses


@needs_root
def test_other_users_are_not_permitted(commands: Commands) -> None:
    for service, owner in OWNERS.items():
        done = commands.run("drain", "--service", service, user=STRANGER)
        # A running process is hidden from this user. Who owns the folder of a stopped agent is known.
        kind = "only the owner" if service == "hapgent@old" else "not permitted"
        assert_done(done, 4, message(kind, **{"service": service, "user": STRANGER, "owner": owner}))
        assert commands.saved(service) == UP


@needs_root
def test_user_of_the_agent_is_permitted(commands: Commands) -> None:
    user = OWNERS["hapgent@shop"]
    done = commands.run("drain", "--service", "shop", user=user)
    assert_done(done, 0, message("changed", service="hapgent@shop", now="DRAIN", was="UP"))
    done = commands.run("drain", "--service", "hapgent", user=user)
    assert_done(done, 4, message("not permitted", service="hapgent", user=user))
    assert commands.saved("hapgent") == UP


def test_user_of_an_agent_in_a_sandbox_is_not_permitted(tmp_path: Path) -> None:
    """PrivateUsers= hides a process from its own user, so the agent cannot be found safely."""
    user = 60210
    process = SimpleNamespace(pid=1, user=user)
    found = instances.Found("hapgent", process, "active", str(tmp_path / "state.json"), "", is_hidden=True)
    request = change_command.Request(change_command.Change({"status": "DRAIN"}), None, None, False)
    with (
        mock.patch("os.geteuid", return_value=user),
        pytest.raises(change_command.ProblemError, match=message("hidden", service="hapgent", user=user)) as caught,
    ):
        change_command.Target(found, request).check()
    assert caught.value.code == 4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["drain", "--wait", "-1"], "-1"),
        (["drain", "--wait=soon"], "'soon'"),
        (["drain", "--wait=86401"], "0 to 86400"),
        (["drain", "now"], "'now'"),
        (["drain", "--reason"], "--reason requires a value"),
        (["drain", "--reason", "disk #3"], "#"),
        (["drain", "--reason="], "1 to 120 bytes"),
        (["drain", "--until"], "--until requires a value"),
        (["drain", "--until", "06:00"], "offset from UTC"),
        (["drain", "--until=2020-11-28T06:00:00Z"], "until must be in the future"),
        (["set", "until=soon"], "offset from UTC"),
        (["set", "until=2h", "--until=2h"], "twice"),
        (["drain", "--then", "up"], "then requires until"),
        (["drain", "--until=2h", "--then=down"], "then must be UP, not"),
        (["set", "then=UP", "until=none"], "then requires until"),
        (["drain", "--service", "shop", "--all"], "--service and --all"),
        (["drain", "--al"], "Did you mean --all?"),
        (["drain", "--all=yes"], "--all takes no value"),
        (["set"], "weight, maxconn, reason"),
        (["set", "--all"], "weight, maxconn, reason"),
        (["set", "weight"], "weight=50"),
        (["set", "weight=256"], "0 to 255"),
        (["set", "weight=50%"], "0 to 255"),
        (["set", "weight=1", "weight=2"], "twice"),
        (["set", "reason=x", "--reason=y"], "twice"),
        (["set", "wieght=1"], "Did you mean weight?"),
        (["set", "status=UP"], "hapgent drain"),
        (["set", "\x1b[2J=1"], r"\x1b[2J"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_change_nothing(commands: Commands, arguments: list[str], named: str) -> None:
    done = commands.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    error, usage, *_more = done.stderr.splitlines()
    assert named in error
    assert error.isprintable()
    assert usage.startswith(f"usage: hapgent {arguments[0]} ")
    assert [commands.saved(service) for service in OWNERS] == [UP, UP, UP]


def test_misspelled_command_gets_a_suggestion(commands: Commands) -> None:
    for wrong, right in {"drian": "drain", "stat": "status", "undrian": "undrain", "--servces": "--services"}.items():
        done = commands.run(wrong)
        assert done.returncode == 2
        assert done.stderr.endswith(f"Did you mean {right}?\n")


def test_agent_that_hangs_is_an_error(commands: Commands) -> None:
    pid = outer_pid(commands.agents["hapgent"])
    os.kill(pid, signal.SIGSTOP)
    try:
        done = commands.run("drain", "--all")
    finally:
        os.kill(pid, signal.SIGCONT)
    parts = {"file": commands.file("hapgent"), "socket": commands.socket("hapgent")}
    assert_done(done, 1, message("hangs", service="hapgent", **parts))
    assert [commands.saved(service) for service in OWNERS] == [UP, UP, UP]


def test_file_that_cannot_be_written_is_an_error(commands: Commands) -> None:
    file = commands.file("hapgent")
    obstacle = file.with_name("state.json.tmp")
    obstacle.mkdir()
    try:
        done = commands.run("drain", "--service", "hapgent")
    finally:
        obstacle.rmdir()
    assert_done(done, 1, message("not writable", service="hapgent", file=file, error=re.compile(".*directory.*")))
    assert commands.saved("hapgent") == UP


@needs_root
def test_root_follows_no_link_of_the_agents_user(commands: Commands) -> None:
    file = commands.file("hapgent")
    secret = commands.folder / "secret"
    secret.write_text('{"status": "s3cret"}', encoding="utf-8")
    secret.chmod(0o600)
    file.unlink()
    file.symlink_to(secret)
    try:
        done = commands.run("drain", "--service", "hapgent")
    finally:
        file.unlink()
    assert done.returncode == 1
    assert "symbolic link" in done.stderr
    assert "s3cret" not in done.stderr
    assert secret.read_text(encoding="utf-8") == '{"status": "s3cret"}'


def test_control_characters_are_escaped(commands: Commands) -> None:
    done = commands.run("drain", environment={"HAPGENT_STATE_FILE": "/no\x1b[2J\u202e/state.json"})
    assert done.returncode == 1
    assert r"/no\x1b[2J\u202e/state.json" in done.stderr
    assert done.stderr.rstrip("\n").isprintable()


# Waiting for load balancers


class Alone:
    """An agent without a service, which no load balancer has polled. HAPGENT_STATE_FILE selects it."""

    def __init__(self, agents: Agents, folder: Path) -> None:
        self.socket = folder / "status.sock"
        self.agent = agents.start(
            state_file=folder / "state.json", environment={"HAPGENT_SOCKET": str(self.socket)}, wait=False
        )
        self.agent.await_log("answering")
        self.name = str(self.agent.state_file)
        self.environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HAPGENT_STATE_FILE": self.name}

    def run(self, *arguments: str) -> Done:
        return subprocess.run(
            [*COMMAND, *arguments], capture_output=True, encoding="utf-8", check=False, env=self.environment
        )


COMMAND = [PYTHON, "-I", "-S", PROGRAM]


@pytest.fixture
def alone(agents: Agents, tmp_path: Path) -> Alone:
    return Alone(agents, tmp_path)


def test_wait_reports_who_has_received_the_state(alone: Alone, eventually: Eventually) -> None:
    with polled(alone.agent, alone.socket, eventually, b2=0.05, b3=0.4):
        done = alone.run("drain", "--wait")
        *progress, last = done.stdout.splitlines()
        received = {"service": alone.name, "now": "DRAIN", "addresses": f"{FAST}, {SLOW}"}
        assert re.fullmatch(message("received", was="UP", **received), last)
        # Not on a terminal, each change is a line.
        assert (done.returncode, done.stderr) == (0, "")
        assert len(set(progress)) == len(progress) <= 3
        assert all(SLOW in line.partition("waiting for")[2] for line in progress)
        done = alone.run("drain", "--wait", "5")
        assert_done(done, 0, message("received before", **{**received, "now": f"DRAIN, by {BY}"}))


def test_wait_for_all_instances_together(commands: Commands, eventually: Eventually) -> None:
    shop, default = (
        polled(commands.agents[service], commands.socket(service), eventually, **addresses)
        for service, addresses in {"hapgent@shop": OF_SHOP, "hapgent": OF_DEFAULT}.items()
    )
    with shop, default:
        done = commands.run("maint", "--all", "--wait=20")
    old = message("stopped", service="hapgent@old", now="MAINT", was="UP", file=commands.file("hapgent@old"))
    assert done.returncode == 5
    assert re.fullmatch(old, done.stderr.rstrip("\n"))
    *_progress, first, second = done.stdout.splitlines()
    parts = {"now": "MAINT", "was": "UP"}
    assert re.fullmatch(message("received", service="hapgent", addresses="127.0.0.4", **parts), first)
    assert re.fullmatch(message("received", service="hapgent@shop", addresses="127.0.0.5", **parts), second)


def test_load_balancer_that_has_not_received_the_state_is_named(alone: Alone, eventually: Eventually) -> None:
    for _poll in range(2):
        poll_from(alone.agent, "127.0.0.9")
    with polled(alone.agent, alone.socket, eventually, b2=0.1):
        done = alone.run("drain", "--wait=1")
    parts = {"service": alone.name, "now": "DRAIN", "was": "UP", "addresses": FAST, "missing": "127.0.0.9"}
    assert done.returncode == 3
    assert re.fullmatch(message("not received", ago=re.compile(r"\d+"), **parts), done.stderr.rstrip("\n"))
    assert alone.agent.saved() == DRAIN


def test_wait_without_load_balancers_fails(alone: Alone) -> None:
    done = alone.run("drain", "--wait", "0")
    assert done.returncode == 3
    line = done.stderr.rstrip("\n")
    assert re.fullmatch(message("no load balancer", service=alone.name, now="DRAIN", was="UP"), line), line


def test_wait_fails_if_the_state_is_changed_meanwhile(alone: Alone) -> None:
    for _poll in range(2):
        poll_from(alone.agent, FAST)
    with waiting_for(alone, FAST) as waiting:
        alone.agent.send(signal.SIGUSR2)
        assert waiting.stderr
        line = waiting.stderr.read().rstrip("\n")
    assert waiting.returncode == 1
    parts = {"service": alone.name, "file": alone.name, "now": "DRAIN", "other": "DOWN"}
    assert re.fullmatch(message("overridden", **parts), line), line


def test_interrupted_wait_reports_who_has_the_state(alone: Alone, eventually: Eventually) -> None:
    for _poll in range(2):
        poll_from(alone.agent, "127.0.0.9")
    with polled(alone.agent, alone.socket, eventually, b2=0.1):
        with waiting_for(alone, "received by") as waiting:
            waiting.send_signal(signal.SIGINT)
            assert waiting.stderr
            line = waiting.stderr.read().rstrip("\n")
        assert waiting.returncode == 130
    parts = {"service": alone.name, "now": "DRAIN", "was": "UP", "addresses": FAST, "missing": "127.0.0.9"}
    assert re.fullmatch(message("interrupted", **parts), line), line


@contextlib.contextmanager
def waiting_for(alone: Alone, words: str) -> Iterator[subprocess.Popen[str]]:
    """Drain, and wait until the progress contains these words."""
    with subprocess.Popen(
        [*COMMAND, "drain", "--wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=alone.environment,
    ) as waiting:
        assert waiting.stdout
        while words not in (line := waiting.stdout.readline()):
            assert line, "the command has ended"
        yield waiting


def test_wait_needs_a_status_socket(agents: Agents) -> None:
    agent = agents.start()
    environment = {"PATH": os.environ["PATH"], "HAPGENT_STATE_FILE": str(agent.state_file)}

    def run(*arguments: str) -> Done:
        return subprocess.run(
            [*COMMAND, *arguments], capture_output=True, encoding="utf-8", check=False, env=environment
        )

    assert_done(run("drain", "--wait"), 1, message("no status socket", service=agent.state_file))
    assert agent.saved() == UP
    # Without it, the agent is asked on its own address and port.
    assert_done(run("drain"), 0, message("changed", service=agent.state_file, now="DRAIN", was="UP"))
    assert agent.ask() == b"DRAIN\n"


def test_progress_is_shown_in_place_on_a_terminal(alone: Alone) -> None:
    for _poll in range(2):
        poll_from(alone.agent, FAST)
    # It polls again when the command shows that it waits for it.
    shown = f"{alone.name}: not received yet, waiting for {FAST}\n"
    text = on_terminal([*COMMAND, "maint", "--wait"], alone.environment, shown, lambda: poll_from(alone.agent, FAST))
    # What is shown in place is removed before the result.
    progress, erased, result = text.rpartition("\x1b[1F\x1b[J")
    assert progress.endswith(shown)
    assert erased
    pattern = message("received", service=alone.name, now="MAINT", was="UP", addresses=FAST)
    assert re.fullmatch(pattern, result.rstrip("\n")), result


def on_terminal(
    command: list[str], environment: Mapping[str, str], until: str, act: Callable[[], object] | None = None
) -> str:
    """What the command shows on a wide terminal. When C(until) is shown, C(act) is called, or else Ctrl-C is sent."""
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        # In its own session, so that Ctrl-C is for this command alone.
        ["setsid", "--ctty", "--wait", *command],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**environment, "COLUMNS": "300"},
    )
    os.close(terminal)
    text, has_acted = "", False
    deadline = time.monotonic() + 60
    while select.select([main], [], [], 60)[0] and time.monotonic() < deadline:
        try:
            piece = os.read(main, 65536)
        except OSError:
            break  # The other side has closed.
        text += piece.decode().replace("\r\n", "\n")
        if until in text and not has_acted:
            has_acted = True
            if act:
                act()
            else:
                os.write(main, b"\x03")
    os.close(main)
    assert process.wait(10) == 0, text
    return text


# hapgent status


def test_status_shows_all_instances(commands: Commands) -> None:
    commands.write("hapgent@shop", DRAIN)
    done = commands.run("status")
    assert done.returncode == 1
    parts = [part.splitlines() for part in done.stdout.split("\n\nhapgent")]
    assert [part[0] for part in parts] == ["hapgent", "@old", "@shop"]
    assert [part[1] for part in parts] == [
        "  state       UP",
        "  problem     the agent does not run (inactive)",
        "  state       DRAIN",
    ]
    assert "hapgent@old" in done.stderr
    done = commands.run("status", "--service", "shop")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("state       DRAIN\n")


def test_json_of_all_instances(commands: Commands) -> None:
    done = commands.run("status", "--json")
    found = {one["service"]: one for one in json.loads(done.stdout)["instances"]}
    assert done.returncode == 1
    assert list(found) == ["hapgent", "hapgent@old", "hapgent@shop"]
    for service, one in found.items():
        assert list(one) == ["service", "state_file", "status_socket", "problem", "status", "weighing"]
        assert one["state_file"] == str(commands.file(service))
        if service != "hapgent@old":
            assert (one["status"]["state"], one["problem"]) == (UP, None)
            assert one["status_socket"] == str(commands.socket(service))
    assert found["hapgent@old"]["status"] is None
    assert found["hapgent@old"]["problem"]
    assert json.loads(commands.run("status", "--json", "--service=hapgent").stdout)["state"] == UP


def test_metrics_of_all_instances(commands: Commands) -> None:
    done = commands.run("status", "--prometheus")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    for service, up in {"hapgent": 1, "hapgent@old": 0, "hapgent@shop": 1}.items():
        assert f'hapgent_up{{socket="{commands.socket(service)}",service="{service}"}} {up}' in lines
    # All samples of a metric follow its description, which comes once.
    names = [re.split(r"[ {]", line.removeprefix("# HELP ").removeprefix("# TYPE "))[0] for line in lines]
    groups = [name for number, name in enumerate(names) if number == 0 or names[number - 1] != name]
    assert len(groups) == len(set(groups))
    promtool = ROOT / ".cache" / "prometheus" / "usr" / "bin" / "promtool"
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=done.stdout, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


WEIGHED = {"problem": "", "since": 0, "succeeded": 1800000000, "readings": [40, 62], "applied": {}, "configured": {}}


@pytest.mark.parametrize(
    ("change", "shown", "samples"),
    [
        ({}, r"last reading .* ago: 62%", ("1", "1800000000")),
        (
            {"problem": "exit\x1b[2J", "since": 1800000001},
            r"has failed since 2027-01-15 .*, last reading .* ago: exit\\x1b\[2J",
            ("0", "1800000000"),
        ),
        (
            {"problem": "exit", "since": 1800000001, "succeeded": 0, "readings": []},
            r"has failed since 2027-01-15 .*, no reading yet: exit",
            ("0", None),
        ),
    ],
)
def test_status_shows_how_the_weight_follows(
    commands: Commands, change: dict[str, Any], shown: str, samples: tuple[str, str | None]
) -> None:
    record = commands.file("hapgent").with_name("state.json.weight")
    record.write_text(json.dumps({**WEIGHED, **change}), encoding="utf-8")
    try:
        table = commands.run("status", "--service=hapgent").stdout
        one = json.loads(commands.run("status", "--json", "--service=hapgent").stdout)
        found = json.loads(commands.run("status", "--json").stdout)["instances"]
        printed = commands.run("status", "--prometheus").stdout
    finally:
        record.unlink()
    assert re.search(rf"^weighing    {shown}$", table, re.MULTILINE), table
    assert one["weighing"]["reading"] == (62 if samples[1] else None)
    assert (one["weighing"]["problem"] is None) == (samples[0] == "1")
    assert [instance["weighing"] for instance in found] == [one["weighing"], None, None]
    for name, sample in zip(("weighing_ok", "weighing_reading_timestamp_seconds"), samples, strict=True):
        assert re.findall(rf"^hapgent_{name}{{.*}} (.*)$", printed, re.MULTILINE) == ([sample] if sample else [])


@needs_root
def test_status_of_other_users(commands: Commands) -> None:
    # The group of an agent may read its status; the socket is known from the unit.
    os.chown(commands.socket("hapgent@shop"), OWNERS["hapgent@shop"], STRANGER)
    try:
        done = commands.run("status", user=STRANGER)
        assert done.returncode == 1
        assert "hapgent (" in done.stderr
        assert "Permission denied" in done.stderr
        assert "hapgent@shop (" not in done.stderr
        done = commands.run("status", "--service", "shop", user=STRANGER)
        assert done.stdout.startswith("state       UP\n")
    finally:
        os.chown(commands.socket("hapgent@shop"), OWNERS["hapgent@shop"], OWNERS["hapgent@shop"])


def test_watch_shows_the_status_again(commands: Commands) -> None:
    with subprocess.Popen(
        commands.command("status", "--watch", "--service", "shop"),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=commands.environment(),
    ) as watching:
        assert watching.stdout
        assert watching.stdout.readline() == "state       UP\n"
        commands.write("hapgent@shop", DRAIN)
        while watching.stdout.readline() != "state       DRAIN\n":
            pass
        # nsenter waits for the program, because that is in another namespace.
        child = Path(f"/proc/{watching.pid}/task/{watching.pid}/children").read_text(encoding="ascii")
        os.kill(int(child), signal.SIGINT)
    assert watching.returncode == 0


def test_watch_on_a_terminal_replaces_what_it_showed(alone: Alone) -> None:
    text = on_terminal([*COMMAND, "status", "--watch", str(alone.socket)], alone.environment, "load balancer")
    # Each line is cleared to its end, and then the rest of the screen.
    assert text.startswith("\x1b[Hstate       UP\x1b[K\n")
    assert "\x1b[K\n\x1b[J" in text


@pytest.mark.parametrize("arguments", [["--watch", "--json"], ["--service=shop", "/x.sock"], ["--service"]])
def test_wrong_arguments_of_status(commands: Commands, arguments: list[str]) -> None:
    done = commands.run("status", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: hapgent status " in done.stderr


def test_services_are_listed(commands: Commands) -> None:
    assert_done(commands.run("--services"), 0, "hapgent", "hapgent@old", "hapgent@shop")


# Which services are instances


SETS = {"HAPGENT_STATE_FILE": "/x.json"}


@pytest.mark.parametrize(
    ("loaded", "with_state_file", "running", "names"),
    [
        ({}, [], [], []),
        ({"hapgent": {}}, [], ["hapgent"], ["hapgent"]),
        # Another name counts if an agent runs, or if the unit is that of an agent.
        ({}, [], ["agent"], ["agent"]),
        ({}, ["agent"], [], ["agent"]),
        # Stopped services are known by what they set. Only the default one needs to set nothing.
        (
            {"hapgent@shop": SETS, "hapgent@api": SETS, "hapgent": {}},
            [],
            [],
            ["hapgent", "hapgent@api", "hapgent@shop"],
        ),
        ({"hapgent@person": {}, "hapgent@other": {"HAPGENT_PORT": "1"}}, [], [], []),
        ({"hapgent@person": {}}, [], ["hapgent@person"], ["hapgent@person"]),
        # Templates are no services.
        ({}, ["hapgent@"], [], []),
    ],
)
def test_services_that_are_instances(
    loaded: dict[str, dict[str, str]], with_state_file: list[str], running: list[str], names: list[str]
) -> None:
    assert _agent_process.service_names(loaded, with_state_file, running) == names


@pytest.mark.parametrize(
    ("unit", "is_one"),
    [
        ("[Service]\nEnvironment=HAPGENT_STATE_FILE=/x.json\n", True),
        ('[Service]\nEnvironment="A=1" "HAPGENT_STATE_FILE=/x y"\n', True),
        ("#Environment=HAPGENT_STATE_FILE=/x.json\n", False),
        ("ExecStart=hapgent status\n", False),
        ("", False),
    ],
)
def test_units_that_are_those_of_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, is_one: bool
) -> None:
    monkeypatch.setattr(_systemd, "UNITS", str(tmp_path))
    (tmp_path / "agent.service").write_text(unit, encoding="utf-8")
    (tmp_path / "binary.service").write_bytes(b"\xff")
    (tmp_path / "link.service").symlink_to("agent.service")
    assert _systemd.with_state_file() == ["agent"] * is_one


def test_a_unit_of_another_program_is_no_instance(commands: Commands) -> None:
    """Otherwise a command would write the state of the default instance."""
    unit = "/etc/systemd/system/hapgent@person.service"
    commands.enter("sh", "-c", f"echo '[Service]' >{unit}", check=True)
    try:
        set_services(commands.folder, {**commands.services(), "hapgent@person": ("inactive", 0, "")})
        assert_done(commands.run("--services"), 0, "hapgent", "hapgent@old", "hapgent@shop")
        done = commands.run("drain", "--service=person")
        assert (done.returncode, "there is no instance person" in done.stderr) == (2, True)
    finally:
        commands.enter("rm", unit, check=True)
        commands.reset()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hapgent", "hapgent"),
        ("hapgent.service", "hapgent"),
        ("shop", "hapgent@shop"),
        ("shop.service", "hapgent@shop"),
        ("hapgent@shop", "hapgent@shop"),
        ("agent", "agent"),
        ("api", "hapgent@api"),
        ("hapgent@hapgent", "hapgent@hapgent"),
        ("hapgent@agent", None),
        ("", None),
        ("sho", None),
        ("hapgent@", None),
        ("*", None),
    ],
)
def test_name_of_an_instance(name: str, found: str | None) -> None:
    named = ["hapgent", "hapgent@shop", "agent", "api", "hapgent@api", "hapgent@hapgent"]
    if found is None:
        with pytest.raises(instances.SelectionError, match="hapgent@shop, agent"):
            instances.resolve(name, named)
    else:
        assert instances.resolve(name, named) == found


# Following a service


def test_a_stop_drains_and_a_start_brings_back(commands: Commands, eventually: Eventually) -> None:
    ours = {"status": "DRAIN", "reason": "web.service has stopped"}
    with polled(commands.agents["hapgent"], commands.socket("hapgent"), eventually, **OF_DEFAULT):
        done = commands.run("follow", "stop", "hapgent", "web.service", "--grace=9", "--port=1")
        assert (done.returncode, commands.saved("hapgent")) == (0, ours), done
        assert "127.0.0.4" in done.stdout
    # A second stop, such as that of a shutdown, changes nothing.
    assert commands.run("follow", "stop", "hapgent", "web.service", "--grace=1", "--port=1").returncode == 0
    assert commands.saved("hapgent") == ours
    # Another service brings nothing back.
    assert commands.run("follow", "start", "hapgent", "api.service").returncode == 0
    assert commands.saved("hapgent") == ours
    assert commands.run("follow", "start", "hapgent", "web.service").returncode == 0
    assert commands.saved("hapgent") == UP


@pytest.mark.parametrize("state", [{"status": "DRAIN", "reason": "disk"}, {"status": "MAINT"}, {"status": "DOWN"}])
def test_a_state_that_a_person_has_set_stays(commands: Commands, state: dict[str, str]) -> None:
    commands.write("hapgent", state)
    for event in ("stop", "start"):
        done = commands.run("follow", event, "hapgent", "web.service")
        assert done.returncode == 0, done
        assert commands.saved("hapgent") == state


def test_a_problem_is_reported_and_never_a_failure(commands: Commands) -> None:
    commands.file("hapgent").write_text("{", encoding="utf-8")
    for event in ("stop", "start"):
        for service in ("no-such", "hapgent"):
            done = commands.run("follow", event, service, "web.service", "--grace=9", "--port=1")
            assert (done.returncode, done.stderr) == (0, "")
            assert service in done.stdout


def test_an_agent_that_does_not_run_delays_nothing(commands: Commands) -> None:
    begin = time.monotonic()
    done = commands.run("follow", "stop", "hapgent@old", "web.service", "--grace=60", "--port=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - begin < 30
    assert commands.saved("hapgent@old") == UP


def test_a_stop_waits_for_connections_up_to_its_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert follow.connections(port) == 0
        client = socket.create_connection(("127.0.0.1", port))
        server = listener.accept()[0]
        assert follow.connections(port) == 1
        begin = time.monotonic()
        follow._await_end_of_connections(port, begin + 0.5)
        assert 0.5 <= time.monotonic() - begin < 5
        for end in (client, server):
            threading.Timer(0.5, end.close).start()
        follow._await_end_of_connections(port, time.monotonic() + 60)
        assert time.monotonic() - begin < 30
        assert follow.connections(port) == 0


def test_a_start_waits_until_the_service_itself_answers_200(capsys: pytest.CaptureFixture[str]) -> None:
    codes = iter([503, 302, 404, 200])

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(next(codes))
            self.send_header("Location", "/")
            self.end_headers()

        def log_request(self, *_arguments: object) -> None:
            pass

    with (
        http.server.HTTPServer(("127.0.0.1", 0), Health) as server,
        mock.patch.object(follow, "HEALTH_POLL_SECONDS", 0.01),
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        follow._await_health(f"http://127.0.0.1:{server.server_port}/health")
        server.shutdown()
    assert list(codes) == []
    printed = capsys.readouterr().out
    assert [code for code in ("503", "302", "404") if code in printed] == ["503", "302", "404"]
