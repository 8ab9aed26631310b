# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules find exactly the agent that serves a state file, and trust only processes and paths that are safe."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _systemd
from ansible_collections.hapgent.agent.plugins.module_utils._agent_client import instance_of
from ansible_collections.hapgent.agent.plugins.module_utils._agent_process import (
    EndedError,
    InstanceError,
    Process,
    _main_pid,
    distrust,
    find_process,
    open_within,
    others,
)

if TYPE_CHECKING:
    from tests.conftest import Agents

# systemd does not run in these tests, so agents are found by their state files.
SERVICE = "no-service-of-this-name"


def run_command(command: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def in_seconds(seconds: float) -> float:
    return time.monotonic() + seconds


def namespaces(*wanted: str) -> list[str]:
    """The beginning of a command that runs a program in its own namespaces."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *as_root, *wanted]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode != 0:
        pytest.skip("needs namespaces")
    return command


# One agent


def test_agent_is_found_by_its_state_file(agents: Agents) -> None:
    wanted = agents.start()
    agents.start()
    assert find_process(SERVICE, str(wanted.state_file), run_command, in_seconds(10)).pid == wanted.pid


def test_agent_is_found_by_a_link_to_its_state_file(agents: Agents, tmp_path: Path) -> None:
    agent = agents.start()
    link = tmp_path / "link.json"
    link.symlink_to(agent.state_file)
    assert find_process(SERVICE, str(link), run_command, in_seconds(10)).pid == agent.pid


def test_agent_that_was_started_with_a_link_is_found(agents: Agents, tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    link = tmp_path / "link.json"
    link.symlink_to(target)
    agent = agents.start(state_file=link)
    assert find_process(SERVICE, str(target), run_command, in_seconds(10)).pid == agent.pid


def test_agent_that_was_started_with_a_relative_path_is_found(agents: Agents, tmp_path: Path) -> None:
    (tmp_path / "here.json").write_bytes(b'{"status": "UP"}')
    agent = agents.start(before_exec=f"os.chdir({str(tmp_path)!r})", environment={"HAPGENT_STATE_FILE": "here.json"})
    assert find_process(SERVICE, str(tmp_path / "here.json"), run_command, in_seconds(10)).pid == agent.pid


@pytest.mark.parametrize("elsewhere", [False, True])
def test_agent_is_found_even_if_its_state_file_is_missing(agents: Agents, tmp_path: Path, elsewhere: bool) -> None:
    agent = agents.start()
    agent.state_file.unlink()
    if not elsewhere:
        assert find_process(SERVICE, str(agent.state_file), run_command, in_seconds(10)).pid == agent.pid
        return
    for missing in (tmp_path / agent.state_file.name, agent.state_file.with_name("other.json")):
        with pytest.raises(InstanceError, match=f"{missing}, .*HAPGENT_STATE_FILE"):
            find_process(SERVICE, str(missing), run_command, in_seconds(10))


def test_path_of_a_file_that_is_constantly_replaced_is_stable(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.touch()
    process = Process(os.getpid())
    ended = threading.Event()

    def replace() -> None:
        while not ended.is_set():
            path.with_name("new").touch()
            path.with_name("new").rename(path)

    replacing = threading.Thread(target=replace)
    replacing.start()
    found = set()
    for _attempt in range(3000):
        with contextlib.suppress(FileNotFoundError):
            found.add(process.real_path(str(path)))
    ended.set()
    replacing.join()
    assert found == {str(path)}


def test_error_if_no_agent_serves_the_state_file(agents: Agents, tmp_path: Path) -> None:
    agents.start()
    with pytest.raises(InstanceError) as caught:
        find_process(SERVICE, str(tmp_path / "other.json"), run_command, in_seconds(10))
    for word in ["no agent found", SERVICE, str(tmp_path / "other.json"), "HAPGENT_STATE_FILE"]:
        assert word in str(caught.value)


def test_agent_that_has_ended_is_not_found(agents: Agents) -> None:
    # The process still exists because its parent has not waited for it yet.
    agent = agents.start()
    agent.process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, agent.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(InstanceError, match=f"{agent.state_file}, .*HAPGENT_STATE_FILE"):
        find_process(SERVICE, str(agent.state_file), run_command, in_seconds(10))


def test_other_program_with_the_variable_is_not_found(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    other = subprocess.Popen(["sleep", "60"], env={"HAPGENT_STATE_FILE": path, "PATH": os.defpath})
    try:
        with pytest.raises(InstanceError, match=f"{path}, .*HAPGENT_STATE_FILE"):
            find_process(SERVICE, path, run_command, in_seconds(10))
    finally:
        other.kill()
        other.wait()


def test_error_if_two_agents_serve_the_state_file(agents: Agents) -> None:
    first = agents.start()
    second = agents.start(state_file=first.state_file)
    with pytest.raises(InstanceError) as caught:
        find_process(SERVICE, str(first.state_file), run_command, in_seconds(10))
    for word in [str(first.pid), str(second.pid), str(first.state_file)]:
        assert word in str(caught.value)


def test_agent_in_a_container_is_not_found(agents: Agents, tmp_path: Path) -> None:
    # In each container on the host, the default path leads to a different file.
    inside = tmp_path / "inside.json"
    inside.write_bytes(b'{"status": "DRAIN"}')
    outside = agents.start()
    # Only in the container's mount namespace, the path on the host leads to the container's file.
    script = f'mount --bind {inside} {outside.state_file} && exec "$@"'
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        pytest.skip("needs mount namespaces")
    container = agents.start(
        None,
        state_file=outside.state_file,
        before_exec=f"os.environ['PATH'] = {os.environ['PATH']!r}; os.execvp('unshare', {unshare} + sys.argv[1:])",
    )
    assert (outside.ask(), container.ask()) == (b"UP\n", b"DRAIN\n")

    assert find_process(SERVICE, str(outside.state_file), run_command, in_seconds(10)).pid == outside.pid


# All agents


def test_only_running_agents_are_listed(agents: Agents, tmp_path: Path) -> None:
    mine = [agents.start().pid, agents.start().pid]
    other = subprocess.Popen(["sleep", "60"], env={"HAPGENT_STATE_FILE": str(tmp_path), "PATH": os.defpath})
    gone = agents.start()
    gone.kill()
    # The process still exists because its parent has not waited for it yet.
    ended = agents.start()
    ended.send(signal.SIGKILL)
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    try:
        found = [process.pid for process in others(())[0]]
    finally:
        other.kill()
        other.wait()
    assert set(mine) <= set(found)
    assert not {other.pid, gone.pid, ended.pid, os.getpid()} & set(found)


def test_agents_in_containers_are_recognized(agents: Agents) -> None:
    unshare = namespaces("--pid", "--fork", "--kill-child")
    container = agents.start(
        before_exec=f"os.environ['PATH'] = {os.environ['PATH']!r}; os.execvp('unshare', {unshare} + sys.argv[1:])",
    )
    inside = int(Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text(encoding="ascii"))
    assert Path(f"/proc/{inside}/comm").read_text(encoding="ascii") == "hapgent\n"
    outside = agents.start()

    assert Process(inside).is_in_container()
    assert not Process(outside.pid).is_in_container()


def test_container_check_fails_for_a_process_that_has_ended(agents: Agents) -> None:
    # A process may end while all processes are examined.
    agent = agents.start()
    process = Process(agent.pid)
    agent.kill()
    with pytest.raises(EndedError):
        process.is_in_container()


# Environment of an agent


@contextlib.contextmanager
def process_with(environment: dict[str, str], folder: Path) -> Iterator[int]:
    """Run a process with this environment. It is not an agent, which would write files next to the state file."""
    process = subprocess.Popen(
        ["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=folder, bufsize=0
    )
    assert process.stdin
    assert process.stdout
    # During exec, the kernel shows no environment. Once the program responds, exec is over.
    process.stdin.write(b"x")
    assert process.stdout.read(1) == b"x"
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("environment", "state_file", "status_socket"),
    [
        ({}, "/etc/hapgent/state.json", ""),
        ({"HAPGENT_STATE_FILE": "/a/b.json", "HAPGENT_SOCKET": "/c/d.sock"}, "/a/b.json", "/c/d.sock"),
        # Relative paths start at the agent's working directory.
        ({"HAPGENT_STATE_FILE": "b.json", "HAPGENT_SOCKET": "c/d.sock"}, "{folder}/b.json", "{folder}/c/d.sock"),
        ({"HAPGENT_SOCKET": ""}, "/etc/hapgent/state.json", ""),
        ({"HAPGENT_SOCKET": "/a b/=c/ä\n"}, "/etc/hapgent/state.json", "/a b/=c/ä\n"),
        # Variables with similar names do not count.
        ({"XHAPGENT_SOCKET": "/c", "HAPGENT_SOCKETS": "/d", "hapgent_socket": "/e"}, "/etc/hapgent/state.json", ""),
    ],
)
def test_paths_are_read_from_the_environment(
    tmp_path: Path, environment: dict[str, str], state_file: str, status_socket: str
) -> None:
    with process_with(environment, tmp_path) as pid:
        found = instance_of(Process(pid))
    assert found.state_file == state_file.format(folder=tmp_path)
    assert found.status_socket == status_socket.format(folder=tmp_path)


@pytest.mark.parametrize(
    ("seconds", "settles"), [(None, True), ("60", True), ("10", True), ("01", True), ("0", False), ("00", False)]
)
def test_settling_is_read_from_the_environment(tmp_path: Path, seconds: str | None, settles: bool) -> None:
    environment = {} if seconds is None else {"HAPGENT_SETTLE": seconds}
    with process_with(environment, tmp_path) as pid:
        assert instance_of(Process(pid)).settles == settles


@pytest.mark.parametrize(
    ("text", "percents"), [(None, ()), ("", ()), ("10,100", (10, 100)), ("x", ()), ("9" * 5000, ())]
)
def test_ramp_is_read_from_the_environment(tmp_path: Path, text: str | None, percents: tuple[int, ...]) -> None:
    environment = {} if text is None else {"HAPGENT_RAMP": text}
    with process_with(environment, tmp_path) as pid:
        assert instance_of(Process(pid)).percents == percents


def test_reading_a_process_that_has_ended_fails(agents: Agents) -> None:
    agent = agents.start()
    agent.kill()
    with pytest.raises(EndedError, match=f" {agent.pid} "):
        Process(agent.pid)


# Output of systemctl show

RUNNING = "Id=hapgent.service\nLoadState=loaded\nActiveState=active\nMainPID=4711\n"
UNKNOWN = "Id=hapgent.service\nLoadState=not-found\nActiveState=inactive\nMainPID=0\n"


def shown(state: str, load: str = "loaded") -> tuple[int, str, str]:
    return 0, f"Id=hapgent.service\nLoadState={load}\nActiveState={state}\nMainPID=0\n", ""


@pytest.mark.parametrize(
    ("service", "printed"),
    [
        ("hapgent", RUNNING),
        ("hapgent.service", RUNNING),
        # systemd prints properties in its own order.
        ("hapgent", "MainPID=4711\nLoadState=loaded\nActiveState=reloading\nId=hapgent.service\n"),
    ],
)
def test_main_process_of_a_service_is_found(service: str, printed: str) -> None:
    commands = []

    def systemctl(command: list[str]) -> tuple[int, str, str]:
        commands.append(command)
        return 0, printed, ""

    assert _main_pid(_systemd, service, systemctl, in_seconds(10)) == 4711
    (command,) = commands
    assert (command[:2], command[-1]) == (["systemctl", "show"], "hapgent.service")


@pytest.mark.parametrize(
    ("done", "named"),
    [
        (shown("failed"), ["service hapgent is not running (failed)"]),
        (shown("inactive"), ["systemctl start hapgent"]),
        (shown("inactive", "not-found"), ["there is no service hapgent"]),
        ((1, "", "Failed to connect to bus: Host is down\n"), ["hapgent.service", "Failed to connect to bus"]),
        ((0, "", ""), ["hapgent.service", "printed no service"]),
    ],
)
def test_error_if_the_service_has_no_main_process(done: tuple[int, str, str], named: list[str]) -> None:
    with pytest.raises(InstanceError) as caught:
        _main_pid(_systemd, "hapgent", lambda _command: done, in_seconds(10))
    for word in named:
        assert word in str(caught.value)


@pytest.mark.parametrize("service", ["hap*", "a b", "--all", "", "x" * 300, "hapgent\n", "../hapgent", "[h]apgent"])
def test_invalid_service_names_are_refused(service: str) -> None:
    def systemctl(command: list[str]) -> tuple[int, str, str]:
        assert command[-2:] == ["--", f"{service}.service"]
        return shown("inactive")

    if service == "--all":
        # This is a valid name, and it must not be taken for an option.
        with pytest.raises(InstanceError, match=f"{service} .*inactive"):
            _main_pid(_systemd, service, systemctl, in_seconds(10))
    else:
        with pytest.raises(InstanceError, match="is not the name of a systemd service"):
            _main_pid(_systemd, service, systemctl, in_seconds(10))


def test_starting_service_is_waited_for() -> None:
    printed = iter([shown("activating")] * 3 + [(0, RUNNING, "")])
    assert _main_pid(_systemd, "hapgent", lambda _command: next(printed), in_seconds(15)) == 4711


def test_waiting_for_a_service_ends_at_the_deadline() -> None:
    with pytest.raises(InstanceError, match=r"hapgent .*activating"):
        _main_pid(_systemd, "hapgent", lambda _command: shown("activating"), in_seconds(0.3))


@pytest.mark.parametrize(
    ("served", "found"),
    [("here.json", ["itself\n"]), ("other.json", ["hapgent", "{folder}/other.json, ", "{folder}/here.json: "])],
)
def test_service_must_serve_the_state_file(tmp_path: Path, served: str, found: list[str]) -> None:
    for name in ("here.json", "other.json"):
        (tmp_path / name).write_bytes(b'{"status": "UP"}')
    # This folder means that systemd runs. The Python process below is the service itself: its name and its environment
    # make it look like an agent.
    shell = [*namespaces("--mount", "--propagation", "private"), "sh", "-c"]
    script = 'mount -t tmpfs host /run && mkdir -p /run/systemd/system && exec "$@"'
    code = f"""
import os, sys, time
from {find_process.__module__} import InstanceError, find_process
with open("/proc/self/comm", "w") as comm:
    comm.write("hapgent")
printed = f"Id=hapgent.service\\nLoadState=loaded\\nActiveState=active\\nMainPID={{os.getpid()}}\\n"
try:
    pid = find_process("hapgent", sys.argv[1], lambda command: (0, printed, ""), time.monotonic() + 10).pid
    print("itself" if pid == os.getpid() else pid)
except InstanceError as error:
    print(error)
"""
    done = subprocess.run(
        [*shell, script, "sh", sys.executable, "-c", code, str(tmp_path / "here.json")],
        env={**os.environ, "HAPGENT_STATE_FILE": str(tmp_path / served)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(word.format(folder=tmp_path) in done.stdout for word in found), done.stdout


def test_status_socket_inside_a_container_is_reached(agents: Agents, tmp_path: Path) -> None:
    # Only the container sees the content of this folder.
    inside = tmp_path / "run"
    inside.mkdir()
    unshare = namespaces("--pid", "--mount", "--propagation", "private", "--fork", "--kill-child")
    shell = [*unshare, "sh", "-c", f'mount -t tmpfs host {inside} && exec "$@"', "sh"]
    container = agents.start(
        b'{"status": "DRAIN"}',
        before_exec=f"os.environ['PATH'] = {os.environ['PATH']!r}; os.execvp('unshare', {shell} + sys.argv[1:])",
        environment={"HAPGENT_SOCKET": str(inside / "status.sock")},
    )
    assert not (inside / "status.sock").exists()
    pid = int(Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text(encoding="ascii"))

    assert find_process(SERVICE, str(container.state_file), run_command, in_seconds(10)).pid == pid
    assert instance_of(Process(pid)).answer(in_seconds(10)) == "DRAIN"


# Signals


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_signal_never_reaches_another_process(agents: Agents, monkeypatch: pytest.MonkeyPatch, has_pidfd: bool) -> None:
    if not has_pidfd:
        # Linux before 5.1 has no pidfd_send_signal.
        monkeypatch.delattr(signal, "pidfd_send_signal")
    agent = agents.start()
    process = Process(agent.pid)
    agent.write_state(b'{"status": "DRAIN"}')
    process.signal(signal.SIGHUP)
    agent.await_answer(b"DRAIN\n")
    agent.kill()
    # Another process may have received the same ID, and must not receive the signal.
    monkeypatch.setattr(process, "pid", os.getpid())
    with pytest.raises(InstanceError, match="No such process"):
        process.signal(signal.SIGKILL)


# Trust


@pytest.mark.parametrize("starter", [0, 65534])
def test_set_user_id_program_is_not_trusted(tmp_path: Path, starter: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs another user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        program = Path(folder) / "hapgent"
        shutil.copy("/bin/sleep", program)
        program.chmod(0o4755)
        process = subprocess.Popen([program, "60"], user=starter, env={"HAPGENT_STATE_FILE": str(tmp_path)})
        try:
            assert distrust(Process(process.pid)) == "another user may have started it"
        finally:
            process.kill()
            process.wait()


# Paths from a process


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """The root folder of a container, with a file inside it and another one outside."""
    (tmp_path / "root" / "run" / "hapgent").mkdir(parents=True)
    (tmp_path / "root" / "run" / "hapgent" / "file").write_bytes(b"inside")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_bytes(b"outside")
    descriptor = os.open(tmp_path / "root", os.O_PATH)
    yield descriptor
    os.close(descriptor)


def found_within(root: int, path: str) -> Path:
    """The real path of what the path leads to."""
    descriptor = open_within(root, path, {os.geteuid()})
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("link", "target", "path"),
    [
        ("x", "run", "/run/hapgent/file"),
        ("x", "run", "run//./hapgent/../hapgent/file"),
        ("x", "run", "/../../run/hapgent/file"),
        ("var", "/run", "/var/hapgent/file"),
        ("var", "../../../run", "/var/hapgent/file"),
        ("run/link", "../run/hapgent", "/run/link/file"),
        ("run/link", "/run/hapgent/file", "/run/link"),
        # This link would lead to the root folder of this process, outside the container.
        ("magic", "/proc/self/root", None),
    ],
)
def test_path_never_leads_out_of_a_container(
    tmp_path: Path, root: int, link: str, target: str, path: str | None
) -> None:
    (tmp_path / "root" / link).symlink_to(target)
    if path is None:
        with pytest.raises(FileNotFoundError):
            found_within(root, "/magic/run/hapgent/file")
    else:
        assert found_within(root, path) == tmp_path / "root" / "run" / "hapgent" / "file"


@pytest.mark.parametrize(
    "path", ["/loop", "/loop/x", "/" + "a/" * 3000, "/deep" + "/x" * 100, "/run/hapgent/file/x", ""]
)
def test_invalid_path_leaks_no_descriptor(tmp_path: Path, root: int, path: str) -> None:
    (tmp_path / "root" / "loop").symlink_to("loop")
    (tmp_path / "root" / ("deep" + "/x" * 100)).mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    if path:
        with pytest.raises(OSError):
            found_within(root, path)
    else:
        assert found_within(root, path) == tmp_path / "root"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("mode", "owner", "is_safe"),
    [
        (0o755, 0, True),
        (0o1777, 0, True),
        (0o777, 0, False),
        (0o775, 0, False),
        # The owner may share the folder with a group.
        (0o775, 4711, True),
        (0o777, 4711, False),
        (0o755, 4712, False),
    ],
)
def test_folder_that_untrusted_users_can_write_is_refused(
    tmp_path: Path, root: int, mode: int, owner: int, is_safe: bool
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs other users")
    folder = tmp_path / "root" / "run" / "hapgent"
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    if is_safe:
        os.close(open_within(root, "/run/hapgent/file", {0, 4711}))
    else:
        with pytest.raises(PermissionError):
            open_within(root, "/run/hapgent/file", {0, 4711})
