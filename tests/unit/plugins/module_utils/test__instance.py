# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Finding the one right agent, asking it, telling it to read its file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _instance
from ansible_collections.hapgent.agent.plugins.module_utils._instance import (
    TOLD,
    EndedError,
    Instance,
    InstanceError,
    _is_of_this_host,
    _main_pid,
    find_pid,
    find_service_pid,
    instance_of,
    running,
    service_of,
)
from ansible_collections.hapgent.agent.plugins.module_utils._state import State

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents

# No systemd knows it, so the agent is found by its state file.
SERVICE = "no-service-of-this-name"


def run_command(command: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def in_seconds(seconds: float) -> float:
    return time.monotonic() + seconds


def instance_on_port(agent: Agent) -> Instance:
    return Instance(agent.pid, "", "", agent.ip, agent.port)


def start_with_status(agents: Agents, path: Path, *, settle: int = 0, **options: Any) -> tuple[Agent, Instance]:
    """An agent that tells its status at this path. Whoever asks it on a port asks somebody else."""
    environment = {"HAPGENT_SOCKET": str(path), "HAPGENT_SETTLE": str(settle)}
    agent = agents.start(environment=environment, **options)
    return agent, Instance(agent.pid, str(agent.state_file), str(path), "127.0.0.1", 1)


def namespaces(*wanted: str) -> list[str]:
    """The command that runs another one in namespaces of its own."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *as_root, *wanted]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode != 0:
        pytest.skip("needs namespaces")
    return command


# Finding it


def test_finds_the_agent_by_its_state_file(agents: Agents) -> None:
    wanted = agents.start()
    agents.start()
    assert find_pid(SERVICE, str(wanted.state_file), run_command, in_seconds(10)) == wanted.pid


def test_finds_the_agent_by_a_link_to_its_state_file(agents: Agents, tmp_path: Path) -> None:
    agent = agents.start()
    link = tmp_path / "link.json"
    link.symlink_to(agent.state_file)
    assert find_pid(SERVICE, str(link), run_command, in_seconds(10)) == agent.pid


def test_finds_the_agent_that_was_given_a_link(agents: Agents, tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    link = tmp_path / "link.json"
    link.symlink_to(target)
    agent = agents.start(state_file=link)
    assert find_pid(SERVICE, str(target), run_command, in_seconds(10)) == agent.pid


def test_finds_the_agent_that_was_given_a_relative_path(agents: Agents, tmp_path: Path) -> None:
    (tmp_path / "here.json").write_bytes(b'{"status": "UP"}')
    agent = agents.start(before_exec=f"os.chdir({str(tmp_path)!r})", environment={"HAPGENT_STATE_FILE": "here.json"})
    assert find_pid(SERVICE, str(tmp_path / "here.json"), run_command, in_seconds(10)) == agent.pid


def test_finds_no_agent(agents: Agents, tmp_path: Path) -> None:
    agents.start()
    with pytest.raises(InstanceError) as caught:
        find_pid(SERVICE, str(tmp_path / "other.json"), run_command, in_seconds(10))
    for word in ["no agent found", SERVICE, str(tmp_path / "other.json")]:
        assert word in str(caught.value)


def test_finds_no_agent_that_has_ended(agents: Agents) -> None:
    # Its parent has not asked for its exit status yet, so there is a process still.
    agent = agents.start()
    agent.process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, agent.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(InstanceError, match="no agent found"):
        find_pid(SERVICE, str(agent.state_file), run_command, in_seconds(10))


def test_finds_no_other_program_that_has_the_variable(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    other = subprocess.Popen(["sleep", "60"], env={"HAPGENT_STATE_FILE": path, "PATH": os.defpath})
    try:
        with pytest.raises(InstanceError, match="no agent found"):
            find_pid(SERVICE, path, run_command, in_seconds(10))
    finally:
        other.kill()
        other.wait()


def test_finds_two_agents_for_one_file(agents: Agents) -> None:
    first = agents.start()
    second = agents.start(state_file=first.state_file)
    with pytest.raises(InstanceError, match="several agents") as caught:
        find_pid(SERVICE, str(first.state_file), run_command, in_seconds(10))
    for word in [str(first.pid), str(second.pid), str(first.state_file)]:
        assert word in str(caught.value)


def test_finds_no_agent_of_a_container(agents: Agents, tmp_path: Path) -> None:
    # Containers run on the same host, and in each of them the default path leads to a file of its own.
    inside = tmp_path / "inside.json"
    inside.write_bytes(b'{"status": "DRAIN"}')
    outside = agents.start()
    # In a shell's words: the path of the host leads to the container's file, in the container's mount namespace alone.
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

    assert find_pid(SERVICE, str(outside.state_file), run_command, in_seconds(10)) == outside.pid


# All of them


def test_agents_that_run(agents: Agents, tmp_path: Path) -> None:
    mine = [agents.start().pid, agents.start().pid]
    other = subprocess.Popen(["sleep", "60"], env={"HAPGENT_STATE_FILE": str(tmp_path), "PATH": os.defpath})
    gone = agents.start()
    gone.kill()
    # Its parent has not asked for its exit status yet, so there is a process still.
    ended = agents.start()
    ended.send(signal.SIGKILL)
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    try:
        found = [instance.pid for instance in running()]
    finally:
        other.kill()
        other.wait()
    assert set(mine) <= set(found)
    assert not {other.pid, gone.pid, ended.pid, os.getpid()} & set(found)
    assert found == sorted(found)


def test_agents_of_containers_do_not_run_here(agents: Agents) -> None:
    unshare = namespaces("--pid", "--fork", "--kill-child")
    container = agents.start(
        before_exec=f"os.environ['PATH'] = {os.environ['PATH']!r}; os.execvp('unshare', {unshare} + sys.argv[1:])",
    )
    inside = int(Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text(encoding="ascii"))
    assert Path(f"/proc/{inside}/comm").read_text(encoding="ascii") == "hapgent\n"
    outside = agents.start()

    found = [instance.pid for instance in running()]

    assert outside.pid in found
    assert inside not in found


def test_process_that_has_ended_is_of_no_host(agents: Agents) -> None:
    # It may end while somebody looks at all of them.
    agent = agents.start()
    assert _is_of_this_host(agent.pid)
    agent.kill()
    with pytest.raises(EndedError):
        _is_of_this_host(agent.pid)


# What it was started with


@contextlib.contextmanager
def process_with(environment: dict[str, str], folder: Path) -> Iterator[int]:
    """A process that has this environment. Any will do, and one that is no agent writes nothing beside a state file."""
    process = subprocess.Popen(
        ["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=folder, bufsize=0
    )
    assert process.stdin
    assert process.stdout
    # The kernel shows nothing while a process becomes a program. When this answers, it is one.
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
        # As the agent itself would find them.
        ({"HAPGENT_STATE_FILE": "b.json", "HAPGENT_SOCKET": "c/d.sock"}, "{folder}/b.json", "{folder}/c/d.sock"),
        ({"HAPGENT_SOCKET": ""}, "/etc/hapgent/state.json", ""),
        ({"HAPGENT_SOCKET": "/a b/=c/ä\n"}, "/etc/hapgent/state.json", "/a b/=c/ä\n"),
        # Others.
        ({"XHAPGENT_SOCKET": "/c", "HAPGENT_SOCKETS": "/d", "hapgent_socket": "/e"}, "/etc/hapgent/state.json", ""),
    ],
)
def test_what_it_was_started_with(
    tmp_path: Path, environment: dict[str, str], state_file: str, status_socket: str
) -> None:
    with process_with(environment, tmp_path) as pid:
        found = instance_of(pid)
    assert found.state_file == state_file.format(folder=tmp_path)
    assert found.status_socket == status_socket.format(folder=tmp_path)


@pytest.mark.parametrize(
    ("seconds", "settles"), [(None, True), ("60", True), ("10", True), ("01", True), ("0", False), ("00", False)]
)
def test_whether_it_may_settle(tmp_path: Path, seconds: str | None, settles: bool) -> None:
    environment = {} if seconds is None else {"HAPGENT_SETTLE": seconds}
    with process_with(environment, tmp_path) as pid:
        assert instance_of(pid).settles == settles


def test_what_a_process_that_is_gone_was_started_with(agents: Agents) -> None:
    agent = agents.start()
    agent.kill()
    with pytest.raises(EndedError, match=f"the agent's process {agent.pid} has ended"):
        instance_of(agent.pid)


CGROUPS = {
    "0::/system.slice/hapgent.service\n": "hapgent",
    "0::/system.slice/system-hapgent.slice/hapgent@api.service\n": "hapgent@api",
    r"0::/system.slice/hapgent\x2dapi.service" + "\n": r"hapgent\x2dapi",
    # A user's manager is a service too, and not the one that is meant.
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/hapgent.service\n": "hapgent",
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/shell.scope\n": None,
    "0::/user.slice/user-1000.slice/session-3.scope\n": None,
    "0::/system.slice/hapgent.service.d\n": None,
    # The first version, and both.
    "12:cpu,cpuacct:/\n1:name=systemd:/system.slice/hapgent.service\n": "hapgent",
    "1:name=systemd:/system.slice/hapgent.service\n0::/system.slice/hapgent.service\n": "hapgent",
    # In a container.
    "0::/\n": None,
    "0::/../hapgent.service\n": "hapgent",
    "": None,
}


@pytest.mark.parametrize(("content", "service"), CGROUPS.items())
def test_service_of_a_process(tmp_path: Path, content: str, service: str | None) -> None:
    cgroup = tmp_path / "cgroup"
    cgroup.write_text(content, encoding="utf-8")
    # No test can put a process into a service. In a mount namespace, it can put a file over what the kernel says.
    shell = [*namespaces("--mount", "--propagation", "private"), "sh", "-c"]
    code = (
        f"import json, os; from {service_of.__module__} import service_of; print(json.dumps(service_of(os.getpid())))"
    )
    done = subprocess.run(
        [*shell, f'mount --bind {cgroup} /proc/$$/cgroup && exec "$@"', "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == service


def test_service_of_a_process_that_is_gone(agents: Agents) -> None:
    agent = agents.start()
    agent.kill()
    assert service_of(agent.pid) is None


def test_no_service_of_this_name(agents: Agents) -> None:
    # Not even where there are agents that no service runs.
    agents.start()
    with pytest.raises(InstanceError, match=f"there is no systemd service {SERVICE}"):
        find_service_pid(SERVICE, run_command, in_seconds(10))


# What systemctl show says

RUNNING = "LoadState=loaded\nActiveState=active\nMainPID=4711\n"


@pytest.mark.parametrize(
    ("service", "printed", "pid"),
    [
        ("hapgent", RUNNING, 4711),
        ("hapgent.service", RUNNING, 4711),
        # Properties come in systemd's order, whatever was asked for.
        ("hapgent", "MainPID=4711\nLoadState=loaded\nActiveState=reloading\n", 4711),
        ("hapgent", "LoadState=not-found\nActiveState=inactive\nMainPID=0\n", None),
    ],
)
def test_main_process_of_the_service(service: str, printed: str, pid: int | None) -> None:
    commands = []

    def systemctl(command: list[str]) -> tuple[int, str, str]:
        commands.append(command)
        return 0, printed, ""

    assert _main_pid(service, systemctl, in_seconds(10)) == pid
    (command,) = commands
    assert (command[:2], command[-1]) == (["systemctl", "show"], "hapgent.service")


@pytest.mark.parametrize(
    ("done", "named"),
    [
        ((0, "LoadState=loaded\nActiveState=failed\nMainPID=0\n", ""), ["hapgent", "does not run", "failed"]),
        ((0, "LoadState=loaded\nActiveState=inactive\nMainPID=0\n", ""), ["systemctl start hapgent"]),
        ((1, "", "Failed to connect to bus: Host is down\n"), ["hapgent.service", "Failed to connect to bus"]),
    ],
)
def test_service_without_a_main_process(done: tuple[int, str, str], named: list[str]) -> None:
    with pytest.raises(InstanceError) as caught:
        _main_pid("hapgent", lambda _command: done, in_seconds(10))
    for word in named:
        assert word in str(caught.value)


def test_waits_for_a_service_that_is_about_to_start() -> None:
    printed = iter(["LoadState=loaded\nActiveState=activating\nMainPID=0\n"] * 3 + [RUNNING])
    assert _main_pid("hapgent", lambda _command: (0, next(printed), ""), in_seconds(15)) == 4711


def test_does_not_wait_for_a_service_for_ever() -> None:
    deadline = in_seconds(0.3)

    def systemctl(_command: list[str]) -> tuple[int, str, str]:
        # After that, nobody would have to wait for this test to fail.
        return int(time.monotonic() > deadline + 10), "LoadState=loaded\nActiveState=activating\nMainPID=0\n", "late"

    with pytest.raises(InstanceError, match="service hapgent does not run, it is activating"):
        _main_pid("hapgent", systemctl, deadline)


@pytest.mark.parametrize(
    ("served", "found"),
    [("here.json", "itself"), ("other.json", "service hapgent serves {folder}/other.json, not {folder}/here.json")],
)
def test_service_has_to_serve_the_state_file(tmp_path: Path, served: str, found: str) -> None:
    for name in ("here.json", "other.json"):
        (tmp_path / name).write_bytes(b'{"status": "UP"}')
    # systemd runs where it has this folder. The service is the process that asks: a name and a variable make an agent.
    shell = [*namespaces("--mount", "--propagation", "private"), "sh", "-c"]
    script = 'mount -t tmpfs host /run && mkdir -p /run/systemd/system && exec "$@"'
    code = f"""
import os, sys, time
from {find_pid.__module__} import InstanceError, find_pid
with open("/proc/self/comm", "w") as comm:
    comm.write("hapgent")
printed = f"LoadState=loaded\\nActiveState=active\\nMainPID={{os.getpid()}}\\n"
try:
    pid = find_pid("hapgent", sys.argv[1], lambda command: (0, printed, ""), time.monotonic() + 10)
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
    assert done.stdout.startswith(found.format(folder=tmp_path))


# Asking it


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_asks(agents: Agents, ip: str) -> None:
    agent = agents.start(b'{"status": "UP", "weight": 77, "maxconn": 300}', ip=ip)
    assert instance_on_port(agent).answer(in_seconds(10)) == "UP 77% maxconn:300"


def test_waits_for_the_answer(agents: Agents) -> None:
    agent = agents.start()
    agent.write_state(b'{"status": "DRAIN"}')
    later = threading.Timer(0.2, agent.send, [signal.SIGHUP])
    later.start()
    assert instance_on_port(agent).await_state(State("DRAIN"), in_seconds(15)) == "DRAIN"
    later.join()


def test_returns_the_last_answer_at_the_deadline(agents: Agents) -> None:
    agent = agents.start()
    assert instance_on_port(agent).await_state(State("DRAIN"), in_seconds(0.2)) == "UP"


def test_reloads(agents: Agents) -> None:
    agent = agents.start()
    agent.write_state(b'{"status": "DRAIN"}')
    instance_on_port(agent).reload()
    agent.await_answer(b"DRAIN\n")


def test_reload_of_a_process_that_is_gone(agents: Agents) -> None:
    agent = agents.start()
    agent.kill()
    with pytest.raises(InstanceError, match=f"{agent.pid}: No such process"):
        instance_on_port(agent).reload()


def test_asks_where_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(InstanceError) as caught:
            Instance(1, "", "", "127.0.0.1", port).answer(in_seconds(10))
    for word in ["does not answer", "127.0.0.1", str(port), "Connection refused"]:
        assert word in str(caught.value)


def test_asks_an_agent_that_is_stopped(agents: Agents) -> None:
    agent = agents.start()
    with agent.paused(), pytest.raises(InstanceError, match=r"does not answer.*timed out"):
        instance_on_port(agent).answer(in_seconds(0.3))


def serve_one(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A listener that does this with its first client: what answers on a port may be no agent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            client = listener.accept()[0]
            with client:
                serve(client)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.fixture
def no_agent(request: pytest.FixtureRequest) -> Iterator[int]:
    yield from serve_one(request.param)


def close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_RDWR)


def send_no_line(client: socket.socket) -> None:
    client.sendall(b"SSH-2.0")


def send_without_end(client: socket.socket) -> None:
    client.settimeout(1)
    until = in_seconds(5)
    while time.monotonic() < until:
        try:
            client.sendall(b"x" * 1000)
        except OSError:
            return


def drip_without_end(client: socket.socket) -> None:
    until = in_seconds(5)
    while time.monotonic() < until:
        try:
            client.sendall(b"x")
        except OSError:
            return
        time.sleep(0.01)


def send_byte_by_byte(client: socket.socket) -> None:
    for byte in b"DRAIN 50%\n":
        client.sendall(bytes([byte]))
        time.sleep(0.01)


@pytest.mark.parametrize("no_agent", [close, send_no_line], indirect=True)
def test_asks_what_sends_no_line(no_agent: int) -> None:
    with pytest.raises(InstanceError, match="no agent"):
        Instance(1, "", "", "127.0.0.1", no_agent).answer(in_seconds(10))


@pytest.mark.parametrize("no_agent", [send_byte_by_byte], indirect=True)
def test_asks_what_answers_in_pieces(no_agent: int) -> None:
    assert Instance(1, "", "", "127.0.0.1", no_agent).answer(in_seconds(10)) == "DRAIN 50%"


@pytest.mark.parametrize("no_agent", [send_without_end, drip_without_end], indirect=True)
def test_asks_what_sends_without_end(no_agent: int) -> None:
    started = time.monotonic()
    with pytest.raises(InstanceError) as caught:
        Instance(1, "", "", "127.0.0.1", no_agent).answer(in_seconds(0.5))
    # The other side gives up after 5 s, the one who asks has to before.
    assert time.monotonic() - started < 4
    assert len(str(caught.value)) < 1000


# What it tells on its status socket


def test_tells_its_status(agents: Agents, tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    agent, instance = start_with_status(agents, path, state=b'{"status": "DRAIN", "weight": 5, "reason": "x"}')
    status = instance.status(in_seconds(10))
    assert (status["pid"], status["answer"]) == (agent.pid, "DRAIN UP 5% # x")
    assert [peer["address"] for peer in status["peers"]] == ["127.0.0.1"]


def test_answer_is_without_what_undoes_the_state_before(agents: Agents, tmp_path: Path) -> None:
    agent, instance = start_with_status(agents, tmp_path / "status.sock", settle=3600, state=b'{"status": "DRAIN"}')
    agent.reload(b'{"status": "UP"}', b"UP READY\n")
    assert instance.answer(in_seconds(10)) == "UP"


def test_who_asks_for_the_status_is_no_load_balancer(agents: Agents, tmp_path: Path) -> None:
    _agent, instance = start_with_status(agents, tmp_path / "status.sock")
    before = instance.status(in_seconds(10))
    instance.answer(in_seconds(10))
    instance.await_state(State("UP"), in_seconds(10))
    after = instance.status(in_seconds(10))
    assert after["counters"]["checks"] == before["counters"]["checks"]
    assert [peer["checks"] for peer in after["peers"]] == [peer["checks"] for peer in before["peers"]]


@pytest.mark.parametrize(
    ("state", "answer", "while_it_may_settle", "bare"),
    [
        (State("UP"), "UP", True, True),
        # The agent may settle, and tell that on its port alone.
        (State("UP"), "UP READY", True, False),
        (State("UP", 77), "UP READY 77%", True, False),
        (State("DRAIN"), "DRAIN UP 100%", True, False),
        (State("DRAIN", reason="x"), "DRAIN UP # x", True, True),
        (State("UP"), "DOWN", False, False),
        (State("UP"), "UP 77%", False, False),
        (State("UP"), "DOWN READY", False, False),
        (State("UP"), "READY UP", False, False),
        (State("DRAIN"), "DRAIN READY", False, False),
        (State("DRAIN", reason="x"), "DRAIN UP", False, False),
        (State("DRAIN"), "DRAIN UP # x", False, False),
        (State("UP", 77), "UP 100%", False, False),
    ],
)
def test_answers_that_a_state_makes(state: State, answer: str, while_it_may_settle: bool, bare: bool) -> None:
    assert Instance(1, "", "").tells(state, answer) == while_it_may_settle
    assert Instance(1, "", "", settles=False).tells(state, answer) == bare
    assert Instance(1, "", "/run/hapgent/hapgent/status.sock").tells(state, answer) == bare


def test_waits_for_the_state_in_the_status(agents: Agents, tmp_path: Path) -> None:
    agent, instance = start_with_status(agents, tmp_path / "status.sock", settle=3600, state=b'{"status": "DRAIN"}')
    agent.write_state(b'{"status": "UP"}')
    later = threading.Timer(0.2, agent.send, [signal.SIGHUP])
    later.start()
    assert instance.await_state(State("UP"), in_seconds(15)) == "UP"
    later.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_waits_for_the_status_of_an_agent_that_starts_again(
    agents: Agents, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "status.sock"
    agent, instance = start_with_status(agents, path)
    agent.send(number)
    agent.await_exit()
    # Both are met: no socket, and one where nobody listens.
    assert path.exists() == (number == signal.SIGKILL)
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(instance.status, in_seconds(15))
        again, _instance = start_with_status(agents, path, state_file=agent.state_file, port=agent.port)
        assert asked.result()["pid"] == again.pid


def test_agent_that_starts_again_goes_not_without_a_status(
    agents: Agents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than this test takes.
    monkeypatch.setattr(_instance, "STARTING_SECONDS", 60)
    path = tmp_path / "status.sock"
    agent, instance = start_with_status(agents, path)
    agent.send(signal.SIGTERM)
    agent.await_exit()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(instance._replace(port=agent.port).goes_without_status, in_seconds(120))
        start_with_status(agents, path, state_file=agent.state_file, port=agent.port, wait=False)
        assert asked.result() is False
    # Nor does it take the one who asks for a load balancer.
    assert instance.status(in_seconds(15))["counters"]["checks"] == 0


def test_agent_that_takes_long_to_start_goes_not_without_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_instance, "STARTING_SECONDS", 0)
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.create_server(("127.0.0.1", 0)) as server:

        def start() -> None:
            with server.accept()[0] as client:
                listener.bind(str(path))
                listener.listen()
                client.sendall(b"UP\n")

        thread = threading.Thread(target=start)
        thread.start()
        instance = Instance(1, "", str(path), "127.0.0.1", server.getsockname()[1])
        assert instance.goes_without_status(in_seconds(15)) is False
        thread.join()


def test_agent_that_does_not_run_goes_not_without_a_status(agents: Agents, tmp_path: Path) -> None:
    # Whoever asks for it waits for the agent to start.
    agent, instance = start_with_status(agents, tmp_path / "status.sock")
    agent.kill()
    assert instance.goes_without_status(in_seconds(0.2)) is False


def test_agent_that_is_stopped_goes_not_without_a_status(agents: Agents, tmp_path: Path) -> None:
    agent, instance = start_with_status(agents, tmp_path / "status.sock")
    with agent.paused():
        assert instance.goes_without_status(in_seconds(60)) is False


def test_asks_again_where_the_status_was_cut_off(tmp_path: Path) -> None:
    # The agent ends while it tells it, and starts again.
    whole = json.dumps({**dict.fromkeys(TOLD), "state_file": "/s.json", "answer": "UP"}).encode()
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            for content in [b"", whole[:20], whole]:
                client = listener.accept()[0]
                with client:
                    client.sendall(content)

        threading.Thread(target=run, daemon=True).start()
        assert Instance(1, "/s.json", str(path)).answer(in_seconds(15)) == "UP"


def test_socket_of_a_container(agents: Agents, tmp_path: Path) -> None:
    # What is in this folder, only the container sees.
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

    assert find_pid(SERVICE, str(container.state_file), run_command, in_seconds(10)) == pid
    assert instance_of(pid).answer(in_seconds(10)) == "DRAIN"


@pytest.mark.parametrize(
    ("number", "named"),
    [(signal.SIGTERM, "No such file or directory"), (signal.SIGKILL, "Connection refused")],
)
def test_status_of_an_agent_that_has_ended(agents: Agents, tmp_path: Path, number: signal.Signals, named: str) -> None:
    path = tmp_path / "status.sock"
    agent, instance = start_with_status(agents, path)
    agent.send(number)
    agent.await_exit()
    started = time.monotonic()
    with pytest.raises(InstanceError) as caught:
        instance.status(in_seconds(0.3))
    assert time.monotonic() - started < 10
    for word in ["does not tell its status", str(path), named, "its log says why"]:
        assert word in str(caught.value)


def test_status_of_an_agent_that_is_stopped(agents: Agents, tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    agent, instance = start_with_status(agents, path)
    with agent.paused():
        for ask in (instance.status, instance.answer):
            with pytest.raises(InstanceError) as caught:
                ask(in_seconds(0.3))
            for word in ["does not tell its status", str(path), "timed out"]:
                assert word in str(caught.value)


def test_status_where_waiting_does_not_help(tmp_path: Path) -> None:
    # No user may connect to it, not even root.
    path = tmp_path / ("x" * 120)
    started = time.monotonic()
    with pytest.raises(InstanceError, match="does not tell its status"):
        Instance(1, "", str(path)).status(in_seconds(60))
    assert time.monotonic() - started < 30


@pytest.fixture
def status_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A UNIX socket where the first client meets this: what listens there may be no agent."""
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            client = listener.accept()[0]
            with client:
                request.param(client)

        thread = threading.Thread(target=run)
        thread.start()
        yield path
        thread.join()


def send(content: bytes) -> Callable[[socket.socket], None]:
    def send_it(client: socket.socket) -> None:
        client.sendall(content)

    return send_it


NO_STATUS = {
    "nothing": b"",
    "a line": b"UP\n",
    "half of it": b'{"answer": "UP", "peers": [',
    "more than it": b'{"answer": "UP", "peers": []}\n{}',
    "a list": b'["answer", "peers"]',
    "text": b'"answer, peers"',
    "null": b"null",
    "no fields": b"{}",
    "no peers": b'{"answer": "UP"}',
    "no answer": b'{"peers": []}',
    "nested too deeply": b"[" * 100_000,
    "no UTF-8": b'{"answer": "\xff", "peers": []}',
}


@pytest.mark.parametrize(
    "status_socket", [send(content) for content in NO_STATUS.values()], indirect=True, ids=NO_STATUS
)
def test_status_that_is_none(status_socket: Path) -> None:
    # Another one may come, as from an agent that starts again, and here none does.
    with pytest.raises(InstanceError, match=f"does not tell its status on {status_socket}"):
        Instance(1, "", str(status_socket)).status(in_seconds(0.5))


def send_status_in_pieces(client: socket.socket) -> None:
    status = json.dumps({**dict.fromkeys(TOLD), "state_file": "/s.json", "answer": "UP"}).encode()
    for piece in [status[:9], status[9:30], status[30:]]:
        client.sendall(piece)
        time.sleep(0.05)


@pytest.mark.parametrize("status_socket", [send_status_in_pieces], indirect=True)
def test_status_that_comes_in_pieces(status_socket: Path) -> None:
    assert Instance(1, "/s.json", str(status_socket)).status(in_seconds(10))["answer"] == "UP"


def test_status_of_another_agent(agents: Agents, tmp_path: Path) -> None:
    other, _instance = start_with_status(agents, tmp_path / "status.sock")
    _agent, instance = start_with_status(agents, tmp_path / "status.sock")
    with pytest.raises(InstanceError) as caught:
        instance.status(in_seconds(60))
    for word in [str(other.state_file), instance.state_file, "HAPGENT_SOCKET of its own"]:
        assert word in str(caught.value)


@pytest.mark.parametrize("status_socket", [send_without_end, drip_without_end], indirect=True)
def test_status_without_end(status_socket: Path) -> None:
    started = time.monotonic()
    with pytest.raises(InstanceError) as caught:
        Instance(1, "", str(status_socket)).status(in_seconds(0.5))
    # The other side gives up after 5 s, the one who asks has to before.
    assert time.monotonic() - started < 4
    assert len(str(caught.value)) < 1000


def test_status_with_as_many_peers_as_an_agent_keeps(agents: Agents, tmp_path: Path) -> None:
    agent, instance = start_with_status(agents, tmp_path / "status.sock")
    addresses = [f"127.1.{number // 256}.{number % 256}" for number in range(1, 1024)]
    for address in addresses:
        with socket.create_connection((agent.ip, agent.port), 15, source_address=(address, 0)) as client:
            assert agent.read_to_end(client) == b"UP\n"
    peers = instance.status(in_seconds(15))["peers"]
    assert {peer["address"] for peer in peers} == {"127.0.0.1", *addresses}
