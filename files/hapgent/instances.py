# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the instances of the agent on this host, running or not, and select those that a command is for.

Root trusts a process only as _agent_process.py describes. The running agent does not import this.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import typing as t

from hapgent._agent_client import Instance, instance_of, peer_of
from hapgent._agent_process import (
    DEFAULT_SERVICE,
    DEFAULT_STATE_FILE,
    PREFIX,
    PROCESS_NAME,
    EndedError,
    InstanceError,
    Manager,
    NotRunningError,
    Process,
    all_services,
    distrust,
    find_process,
    manager,
    others,
)
from hapgent._deadline import seconds_until
from hapgent._printable import printable
from hapgent._systemd import SUFFIX, SystemdError

MAX_SHOWN = 20


class SelectionError(Exception):
    """The selection is not one instance, or is unknown. The text names the instances of the host."""


class Found(t.NamedTuple):
    """An instance of the agent.

    C(service) is '' if it is not a service. C(process) is None if it does not run; then C(state) is the state of its
    service, such as C(inactive). C(state_file) and C(status_socket) are as seen by the agent, and '' if there is none,
    or if this user may not know it. C(is_hidden) is whether this user may not inspect the process.
    """

    service: str
    process: Process | None
    state: str
    state_file: str
    status_socket: str
    is_hidden: bool = False

    @property
    def label(self) -> str:
        """How messages name the instance."""
        pid = f"process {self.process.pid}" if self.process else ""
        return printable(self.service or self.state_file or pid)

    def find(self, deadline: float) -> Instance:
        """Return the running agent, which serves the state file. Raises InstanceError, also NotRunningError."""
        try:
            process = find_process(self.service or None, self.state_file, run_command, deadline)
        except NotRunningError:
            # The sandbox of a service hides which file its agent serves from other processes of its user.
            if self.service or not self.status_socket or os.geteuid() == 0:
                raise
            return _behind(self.status_socket, self.state_file, deadline)
        return _client(process)


def run_command(command: list[str]) -> tuple[int, str, str]:
    """Run a command, and return its exit status, output and errors."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="surrogateescape",
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        return 127, "", f"{command[0]}: {error.strerror}"
    return done.returncode, done.stdout, done.stderr


def discover() -> list[Found]:
    """Return the instances of this host, first the services, by name. Raises InstanceError.

    If there are services, agents that are none count only if root or this user runs them.
    """
    found = []
    managed = manager()
    if managed:
        try:
            found = [_of_service(managed, name, process) for name, process in all_services(run_command).items()]
        except SystemdError as error:
            raise InstanceError(str(error)) from error
    # Beside services, any other user could add an instance, so that a command no longer knows which one is meant.
    trusted = {0, os.geteuid()} if found else None
    known = {one.process.pid for one in found if one.process}
    for process in others({*known, os.getpid()})[0]:
        try:
            # The user first, because a file system of another user may never respond.
            is_trusted = (trusted is None or process.user in trusted) and not distrust(process)
            if is_trusted and not process.is_in_container():
                found.append(_of_process("", process))
        except InstanceError:
            continue  # It has ended, or belongs to another user.
    return found


def serving(state_file: str, status_socket: str = "") -> Found:
    """Return the agent that serves this file, or its description if it does not run. Raises InstanceError.

    With C(status_socket), its user finds it there if its sandbox hides which file it serves.
    """
    path = os.path.abspath(state_file)
    try:
        process = find_process(None, path, run_command, time.monotonic())
    except NotRunningError:
        return Found("", None, "", path, status_socket)
    return _of_process("", process)._replace(state_file=path)


def select(found: list[Found], service: str | None, *, all_: bool = False) -> list[Found]:
    """Return the instances that the options select. Raises SelectionError, or InstanceError if there is none."""
    named = [one.service for one in found if one.service]
    if service is not None:
        name = resolve(service, named)
        return [one for one in found if one.service == name]
    if not found:
        raise InstanceError("no agent was found on this host")
    if not all_ and len(found) > 1:
        raise SelectionError(
            f"this host has several instances: {listed([one.label for one in found])}. "
            "Choose one with --service NAME, or all with --all"
        )
    return found


def resolve(name: str, named: t.Collection[str]) -> str:
    """Return the service that this name means, out of those that exist. Raises SelectionError."""
    name = name[: -len(SUFFIX)] if name.endswith(SUFFIX) else name
    for candidate in (name,) if name == DEFAULT_SERVICE else (f"{PREFIX}{name}", name):
        if candidate in named:
            return candidate
    here = f"the instances of this host are {listed(named)}" if named else "no service of this host runs an agent"
    raise SelectionError(f"there is no instance {printable(name)}: {here}")


def listed(names: t.Collection[str]) -> str:
    """Return the names in one text, without those after MAX_SHOWN."""
    return ", ".join(map(printable, list(names)[:MAX_SHOWN])) + (", ..." if len(names) > MAX_SHOWN else "")


def _of_service(managed: Manager, name: str, process: Process | None) -> Found:
    state = managed.service(name, run_command).state
    if process:
        try:
            return _of_process(name, process)._replace(state=state)
        except EndedError:
            process = None
        except InstanceError:
            pass  # It belongs to another user. What its unit sets is known to everyone.
    unit = managed.environment(name, run_command)
    return Found(
        name,
        process,
        printable(state),
        unit.get("HAPGENT_STATE_FILE", DEFAULT_STATE_FILE),
        unit.get("HAPGENT_SOCKET", ""),
        is_hidden=process is not None,
    )


def _of_process(name: str, process: Process) -> Found:
    return Found(name, process, "active", process.state_file(), process.path("HAPGENT_SOCKET", ""))


class _Neighbour(Instance):
    """An agent of this user, whose sandbox hides the paths that it sees."""

    def connect(self, connection: socket.socket, deadline: float) -> None:
        """Connect to the agent's status socket. Raises OSError."""
        connection.settimeout(seconds_until(deadline))
        connection.connect(self.status_socket)


def _behind(status_socket: str, state_file: str, deadline: float) -> Instance:
    """Return the agent of this user that listens on this status socket. Raises InstanceError.

    Only the rights of this user are at stake, who can send signals to all of its own processes anyway.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds_until(deadline))
            connection.connect(status_socket)
            pid, user = peer_of(connection)
        process = Process(pid)
    except (OSError, EndedError) as error:
        raise NotRunningError(f"no agent listens on {status_socket}") from error
    if user != os.geteuid() or process.name != PROCESS_NAME:
        raise InstanceError(f"process {pid} of user {user}, which listens on {status_socket}, is not this user's agent")
    return _Neighbour(process, state_file, status_socket)


def _client(process: Process) -> Instance:
    """Return the running agent, with the address on which it answers if it has no status socket."""
    ip = process.variable("HAPGENT_IP", "")
    address = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip)
    port = process.variable("HAPGENT_PORT", "")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535
    return instance_of(process, address, int(port) if is_port else 9777)
