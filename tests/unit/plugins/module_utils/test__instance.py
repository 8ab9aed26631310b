# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Finding the one right agent, asking it, telling it to read its file."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._instance import (
    Instance,
    InstanceError,
    _main_pid,
    find_pid,
)

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents

# No systemd knows it, so the agent is found by its state file.
SERVICE = "no-service-of-this-name"


def run_command(command: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def in_seconds(seconds: float) -> float:
    return time.monotonic() + seconds


def instance_of(agent: Agent) -> Instance:
    return Instance(agent.pid, agent.ip, agent.port)


# Finding it


def test_finds_the_agent_by_its_state_file(agents: Agents) -> None:
    wanted = agents.start()
    agents.start()
    assert find_pid(SERVICE, str(wanted.state_file), run_command) == wanted.pid


def test_finds_the_agent_by_a_link_to_its_state_file(agents: Agents, tmp_path: Path) -> None:
    agent = agents.start()
    link = tmp_path / "link.json"
    link.symlink_to(agent.state_file)
    assert find_pid(SERVICE, str(link), run_command) == agent.pid


def test_finds_the_agent_that_was_given_a_link(agents: Agents, tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    link = tmp_path / "link.json"
    link.symlink_to(target)
    agent = agents.start(state_file=link)
    assert find_pid(SERVICE, str(target), run_command) == agent.pid


def test_finds_the_agent_that_was_given_a_relative_path(agents: Agents, tmp_path: Path) -> None:
    (tmp_path / "here.json").write_bytes(b'{"status": "UP"}')
    agent = agents.start(before_exec=f"os.chdir({str(tmp_path)!r})", environment={"HAPGENT_STATE_FILE": "here.json"})
    assert find_pid(SERVICE, str(tmp_path / "here.json"), run_command) == agent.pid


def test_finds_no_agent(agents: Agents, tmp_path: Path) -> None:
    agents.start()
    with pytest.raises(InstanceError) as caught:
        find_pid(SERVICE, str(tmp_path / "other.json"), run_command)
    for word in ["no agent found", SERVICE, str(tmp_path / "other.json")]:
        assert word in str(caught.value)


def test_finds_no_agent_that_has_ended(agents: Agents) -> None:
    # Its parent has not asked for its exit status yet, so there is a process still.
    agent = agents.start()
    agent.process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, agent.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(InstanceError, match="no agent found"):
        find_pid(SERVICE, str(agent.state_file), run_command)


def test_finds_no_other_program_that_has_the_variable(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    other = subprocess.Popen(["sleep", "60"], env={"HAPGENT_STATE_FILE": path, "PATH": os.defpath})
    try:
        with pytest.raises(InstanceError, match="no agent found"):
            find_pid(SERVICE, path, run_command)
    finally:
        other.kill()
        other.wait()


def test_finds_two_agents_for_one_file(agents: Agents) -> None:
    first = agents.start()
    second = agents.start(state_file=first.state_file)
    with pytest.raises(InstanceError, match="several agents") as caught:
        find_pid(SERVICE, str(first.state_file), run_command)
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

    assert find_pid(SERVICE, str(outside.state_file), run_command) == outside.pid


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

    assert _main_pid(service, systemctl) == pid
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
        _main_pid("hapgent", lambda _command: done)
    for word in named:
        assert word in str(caught.value)


# Asking it


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_asks(agents: Agents, ip: str) -> None:
    agent = agents.start(b'{"status": "UP", "weight": 77, "maxconn": 300}', ip=ip)
    assert instance_of(agent).ask(in_seconds(10)) == "UP 77% maxconn:300"


def test_waits_for_the_answer(agents: Agents) -> None:
    agent = agents.start()
    agent.write_state(b'{"status": "DRAIN"}')
    later = threading.Timer(0.2, agent.send, [signal.SIGHUP])
    later.start()
    assert instance_of(agent).await_answer("DRAIN", in_seconds(15)) == "DRAIN"
    later.join()


def test_returns_the_last_answer_at_the_deadline(agents: Agents) -> None:
    agent = agents.start()
    assert instance_of(agent).await_answer("DRAIN", in_seconds(0.2)) == "UP"


def test_reloads(agents: Agents) -> None:
    agent = agents.start()
    agent.write_state(b'{"status": "DRAIN"}')
    instance_of(agent).reload()
    agent.await_answer(b"DRAIN\n")


def test_reload_of_a_process_that_is_gone(agents: Agents) -> None:
    agent = agents.start()
    agent.kill()
    with pytest.raises(InstanceError, match=f"{agent.pid}: No such process"):
        instance_of(agent).reload()


def test_asks_where_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(InstanceError) as caught:
            Instance(1, "127.0.0.1", port).ask(in_seconds(10))
    for word in ["does not answer", "127.0.0.1", str(port), "Connection refused"]:
        assert word in str(caught.value)


def test_asks_an_agent_that_is_stopped(agents: Agents) -> None:
    agent = agents.start()
    with agent.paused(), pytest.raises(InstanceError, match=r"does not answer.*timed out"):
        instance_of(agent).ask(in_seconds(0.3))


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
        Instance(1, "127.0.0.1", no_agent).ask(in_seconds(10))


@pytest.mark.parametrize("no_agent", [send_byte_by_byte], indirect=True)
def test_asks_what_answers_in_pieces(no_agent: int) -> None:
    assert Instance(1, "127.0.0.1", no_agent).ask(in_seconds(10)) == "DRAIN 50%"


@pytest.mark.parametrize("no_agent", [send_without_end, drip_without_end], indirect=True)
def test_asks_what_sends_without_end(no_agent: int) -> None:
    started = time.monotonic()
    with pytest.raises(InstanceError) as caught:
        Instance(1, "127.0.0.1", no_agent).ask(in_seconds(0.5))
    # The other side gives up after 5 s, the one who asks has to before.
    assert time.monotonic() - started < 4
    assert len(str(caught.value)) < 1000
