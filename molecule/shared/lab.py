# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Helpers for the scenarios' tests: query agents and HAProxy from outside, run playbooks and send checks.

Pytest also loads this file as a plugin, which adds the agents' journals to each failure, and the failure to the table
of stages.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

import failed_tests
import pytest
import yaml
from haproxy import servers
from quick_python import quick_python

T = TypeVar("T")

pytest_runtest_logreport = failed_tests.pytest_runtest_logreport

AGENT_PORT = 9777

SCENARIO = yaml.safe_load(Path(os.environ["MOLECULE_FILE"]).read_text(encoding="utf-8"))
HOSTS: dict[str, str] = {platform["name"]: platform["address"] for platform in SCENARIO["platforms"]}
SSH_CONFIG = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "ssh_config")


def ask(address: str, port: int = AGENT_PORT) -> str:
    """An agent's whole response to one check, as HAProxy would read it."""
    with socket.create_connection((address, port), timeout=5) as connection:
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


def haproxy(address: str) -> dict[str, str]:
    """The status of each server of the backend web in this HAProxy's statistics."""
    return {name: row["status"] for name, row in servers(address).items()}


def eventually(look: Callable[[], T], wanted: T, timeout: float = 15) -> T:
    """Call C(look) until it returns what is wanted or the timeout ends, and return its last result."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            seen = look()
        except OSError:
            if time.monotonic() > deadline:
                raise
        else:
            if seen == wanted or time.monotonic() > deadline:
                return seen
        time.sleep(0.1)


def ansible_command(command: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """A command line of ansible or ansible-playbook against the scenario's inventory, and its environment."""
    config = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "ansible.cfg")
    # The variable names the file with the hosts; their groups are in another file of the same folder.
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent
    environment = {**os.environ, "ANSIBLE_CONFIG": str(config), "ANSIBLE_FORCE_COLOR": "0"}
    return [command, f"--inventory={inventory}", *arguments], environment


@functools.cache
def python_with_ansible() -> Path:
    """A Python that has imported Ansible with the scenario's configuration."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    environment = ansible_command("ansible")[1]
    return stack.enter_context(quick_python(Path(folder), preloaded="imports_of_ansible", environment=environment))


def ansible(command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ansible or ansible-playbook against the scenario's inventory."""
    command_line, variables = ansible_command(command, *arguments)
    program = shutil.which(command)
    # Another release must import its own Ansible. The configuration is read when Ansible is imported.
    if program and program != command and not environment:
        command_line = [str(python_with_ansible()), program, *command_line[1:]]
    return subprocess.run(
        command_line,
        cwd=os.environ["MOLECULE_SCENARIO_DIRECTORY"],
        env={**variables, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def module(host: str, name: str, arguments: str, *options: str) -> dict[str, Any]:
    """Run one of the collection's modules on a host and return its result."""
    command_line = [host, "--one-line", f"--module-name=hapgent.agent.{name}", f"--args={arguments}", *options]
    done = ansible("ansible", *command_line)
    assert " | " in done.stdout, done.stdout
    result: dict[str, Any] = json.loads(done.stdout.split("=>", 1)[1])
    return result


def agents(host: str) -> dict[str, dict[str, Any]]:
    """What hapgent_info returns for each agent on a host, by service."""
    return {instance["service"]: instance for instance in module(host, "hapgent_info", "")["instances"]}


def shown(server: str, column: str = "status") -> dict[str, str]:
    """One column of the statistics for a server of the backend web, by the host of the HAProxy."""
    return {host: servers(address)[server][column] for host, address in HOSTS.items()}


def ssh(host: str, command: str) -> list[str]:
    """The command line that runs a shell command on a host."""
    return ["ssh", "-F", str(SSH_CONFIG), host, command]


def run(host: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command on a host."""
    return subprocess.run(ssh(host, command), stdin=subprocess.DEVNULL, text=True, capture_output=True, check=False)


def operator_command(command: str) -> str:
    """A shell command that sends a command to HAProxy's stats socket, as operators do."""
    return (
        "python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); "
        f"s.sendall(b'{command}\\n'); print(''.join(iter(lambda: s.recv(4096).decode(), '')).strip())\""
    )


class Checks:
    """Send checks like those of many load balancers while the context lasts, and count their outcomes."""

    def __init__(self, address: str, port: int = AGENT_PORT, per_second: int = 200) -> None:
        self.outcomes: Counter[str] = Counter()
        self._target = (address, port)
        self._per_second = per_second
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._check) for _number in range(4)]

    def __enter__(self) -> Checks:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _check(self) -> None:
        while not self._over.wait(len(self._threads) / self._per_second):
            try:
                outcome = ask(*self._target)
            except OSError as error:
                outcome = repr(error)
            self.outcomes[outcome] += 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the agents have logged to the report of a failure."""
    report = yield
    if report.failed:
        for host in HOSTS:
            journal = "journalctl --no-pager --lines=30 --unit='hapgent*'"
            syslog = "logread | grep ' hapgent' | tail"
            log = run(host, f"if command -v journalctl >/dev/null; then {journal}; else {syslog}; fi")
            report.sections.append((f"log of {host}", log.stdout))
    return report
