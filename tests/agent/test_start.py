# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent starts with valid settings and arguments and a free port, and otherwise exits with one clear log line."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prepared import ZIPAPP

if TYPE_CHECKING:
    from tests.conftest import Agents

# The settings, and what the line must name besides the variable: its value, what it must be.
SETTINGS_ERRORS = {
    "port zero": ({"HAPGENT_PORT": "0"}, "'0'", "1 to 65535"),
    "port too large": ({"HAPGENT_PORT": "65536"}, "'65536'", "1 to 65535"),
    "port far too large": ({"HAPGENT_PORT": "9" * 5000}, "999", "1 to 65535"),
    "port negative": ({"HAPGENT_PORT": "-1"}, "'-1'", "1 to 65535"),
    "port with a sign": ({"HAPGENT_PORT": "+9777"}, "'+9777'", "1 to 65535"),
    "port a fraction": ({"HAPGENT_PORT": "9777.5"}, "'9777.5'", "1 to 65535"),
    "port with a space": ({"HAPGENT_PORT": " 9777"}, "' 9777'", "1 to 65535"),
    "port with a line break": ({"HAPGENT_PORT": "9777\n"}, "'9777\\n'", "1 to 65535"),
    "port in Arabic digits": ({"HAPGENT_PORT": "\u0669\u0667\u0667\u0667"}, "1 to 65535"),
    "port a name": ({"HAPGENT_PORT": "http"}, "'http'", "1 to 65535"),
    "port empty": ({"HAPGENT_PORT": ""}, "''", "1 to 65535"),
    "address a name": ({"HAPGENT_IP": "localhost"}, "'localhost'", "0.0.0.0 or ::1"),
    "address with a port": ({"HAPGENT_IP": "127.0.0.1:9777"}, "'127.0.0.1:9777'", "0.0.0.0 or ::1"),
    "address too short": ({"HAPGENT_IP": "127.1"}, "'127.1'", "0.0.0.0 or ::1"),
    "address out of range": ({"HAPGENT_IP": "127.0.0.256"}, "'127.0.0.256'", "0.0.0.0 or ::1"),
    "address in brackets": ({"HAPGENT_IP": "[::1]"}, "'[::1]'", "0.0.0.0 or ::1"),
    "address not ASCII": ({"HAPGENT_IP": "\uff11\uff12\uff17.0.0.1"}, "0.0.0.0 or ::1"),
    "address empty": ({"HAPGENT_IP": ""}, "''", "0.0.0.0 or ::1"),
    "state file empty": ({"HAPGENT_STATE_FILE": ""}, "''", "path"),
}

ROOT = Path(__file__).parent.parent.parent


def galaxy() -> Any:
    return yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", SETTINGS_ERRORS.values(), ids=SETTINGS_ERRORS)
def test_invalid_setting_is_an_error(agents: Agents, case: tuple[dict[str, str], *tuple[str, ...]]) -> None:
    environment, *named = case
    (variable,) = environment

    agent = agents.start(environment=environment, wait=False)

    assert agent.await_exit() == 2
    (line,) = agent.log()
    for word in [variable, *named]:
        assert word in line


def test_invalid_setting_is_an_error_on_each_python(agents: Agents, python: str) -> None:
    agent = agents.start(python=python, environment={"HAPGENT_IP": "localhost"}, wait=False)
    assert agent.await_exit() == 2
    (line,) = agent.log()
    for word in ["HAPGENT_IP", "'localhost'", "0.0.0.0 or ::1"]:
        assert word in line


@pytest.mark.parametrize("reuse_port", [0, 1], ids=["a listener", "a listener with SO_REUSEPORT"])
def test_port_in_use_is_an_error(agents: Agents, reuse_port: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        agent = agents.start(port=port, wait=False)

        assert agent.await_exit() == 1
        (line,) = agent.log()
        for word in ["HAPGENT_IP 127.0.0.1", f"HAPGENT_PORT {port}", os.strerror(errno.EADDRINUSE)]:
            assert word in line


def test_second_agent_on_the_same_port_is_refused(agents: Agents, python: str) -> None:
    # The kernel would distribute the checks between two agents, and HAProxy would alternate between their states.
    first = agents.start(python=python)
    second = agents.start(b'{"status": "DOWN"}', python=python, port=first.port, wait=False)
    assert second.await_exit() == 1
    assert first.ask() == b"UP\n"


def test_address_of_another_host_is_an_error(agents: Agents) -> None:
    # This address is reserved for documentation (RFC 5737), so this machine does not have it.
    agent = agents.start(environment={"HAPGENT_IP": "192.0.2.1"}, wait=False)
    assert agent.await_exit() == 1
    (line,) = agent.log()
    assert "HAPGENT_IP 192.0.2.1" in line
    assert os.strerror(errno.EADDRNOTAVAIL) in line


def test_reuses_its_port_after_a_restart(agents: Agents) -> None:
    # Connections that the first agent closed occupy the port for a minute.
    first = agents.start()
    first.ask()
    first.send(signal.SIGTERM)
    assert first.await_exit() == 0
    second = agents.start(b'{"status": "DRAIN"}', port=first.port)
    assert second.ask() == b"DRAIN\n"


@pytest.mark.parametrize("ip", ["::1", "::"])
def test_listens_on_ipv6(agents: Agents, python: str, ip: str) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("needs IPv6")
    agent = agents.start(python=python, ip=ip)
    assert agent.ask() == b"UP\n"
    assert agent.log()[-1] == f"hapgent: answering UP on {ip} port {agent.port}"


def test_default_address_and_port(agents: Agents) -> None:
    # The port may be in use on this machine, so the test makes sure that it is: the error names what the agent tried.
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("0.0.0.0", 9777))
            other.listen()
        except OSError:
            pass
        forget = "for name in list(os.environ): del os.environ[name]"
        agent = agents.start(before_exec=forget, wait=False)
        assert agent.await_exit() == 1
    (line,) = agent.log()
    assert "HAPGENT_IP 0.0.0.0, HAPGENT_PORT 9777" in line


def test_version(agents: Agents, python: str) -> None:
    agent = agents.start(python=python, arguments=["--version"], wait=False)
    assert agent.await_exit() == 0
    assert agent.log() == [f"hapgent {galaxy()['version']} (answers as hapgent 0.3.2)"]


def test_help(agents: Agents, python: str) -> None:
    agent = agents.start(python=python, arguments=["--help"], wait=False)
    assert agent.await_exit() == 0
    text = "\n".join(agent.log())
    for word in [
        *["HAPGENT_IP", "0.0.0.0", "HAPGENT_PORT", "9777", "HAPGENT_STATE_FILE", "/etc/hapgent/state.json"],
        *["HAPGENT_SETTLE", "86400", "60", "HAPGENT_SOCKET", "weight", "255", "maxconn", "65535", "reason", "120"],
        *["UP", "DOWN", "READY", "DRAIN", "FAIL", "MAINT", "STOPPED"],
        *["USR1", "USR2", "HUP", "TERM", "INT"],
    ]:
        assert word in text


@pytest.mark.parametrize("arguments", [["--verison"], ["help"], ["--help", "--version"], [""]])
def test_unknown_argument_is_an_error(agents: Agents, arguments: list[str]) -> None:
    agent = agents.start(arguments=arguments, wait=False)
    assert agent.await_exit() == 2
    (line,) = agent.log()
    for word in [str(arguments), "--help", "--version"]:
        assert word in line


def test_misspelled_argument_gets_a_suggestion(agents: Agents) -> None:
    agent = agents.start(arguments=["stat"], wait=False)
    assert agent.await_exit() == 2
    assert agent.log()[0].endswith("Did you mean status?")


def test_runs_as_a_program(python: str, tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(python)
    environment = {"PATH": f"{tmp_path}:{os.defpath}"}
    printed = subprocess.run([ZIPAPP, "--version"], capture_output=True, text=True, check=True, env=environment)
    assert printed.stdout.startswith("hapgent ")


def test_the_zipapp_answers(zipapps: Agents, python: str) -> None:
    assert zipapps.start(python=python).ask() == b"UP\n"


def test_works_with_closed_standard_error(agents: Agents) -> None:
    # Some programs that start daemons close it. The next file that the agent opens then gets descriptor 2, and must not
    # receive the log lines.
    agent = agents.start(before_exec="for descriptor in range(3): os.close(descriptor)", logs=False)
    for _round in range(3):
        agent.send(signal.SIGUSR2)
        agent.await_answer(b"DOWN\n")
        agent.send(signal.SIGUSR1)
        agent.await_answer(b"UP\n")
    assert not agent.spins()
