# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the instances of the agent on this host, running or not, and select those that a command is for.

Root trusts a process only as _agent_process.py describes. The running agent does not import this.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import time
import typing as t

from hapgent import _systemd
from hapgent._agent_client import Instance, instance_of, peer_of
from hapgent._agent_process import (
    DEFAULT_SERVICE,
    DEFAULT_STATE_FILE,
    PROCESS_NAME,
    EndedError,
    InstanceError,
    NotRunningError,
    Process,
    distrust,
    find_process,
    others,
    services,
)
from hapgent._deadline import seconds_until
from hapgent._printable import printable
from hapgent._systemd import Service, SystemdError

PREFIX = f"{DEFAULT_SERVICE}@"
# What the unit of an agent sets, whatever its name is.
OF_AN_AGENT = re.compile(r"^Environment=.*\bHAPGENT_STATE_FILE=", re.MULTILINE)
MAX_UNIT_BYTES = 64 * 1024
MAX_SHOWN = 20


class SelectionError(Exception):
    """The selection is not one instance, or is unknown. The text names the instances of the host."""


class Found(t.NamedTuple):
    """An instance of the agent.

    C(service) is '' if it is not a service. C(process) is None if it does not run; then C(state) is what systemd
    reports, such as C(inactive). C(state_file) and C(status_socket) are as seen by the agent, and '' if there is none
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
    if _systemd.is_running():
        running = services(run_command)
        try:
            loaded = {service.name: service for service in _systemd.services(run_command)}
            names = service_names(loaded.values(), unit_files(), running)
            found = [_of_service(name, running.get(name), loaded.get(name)) for name in names]
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
    name = name[: -len(_systemd.SUFFIX)] if name.endswith(_systemd.SUFFIX) else name
    for candidate in (name,) if name == DEFAULT_SERVICE else (f"{PREFIX}{name}", name):
        if candidate in named:
            return candidate
    here = f"the instances of this host are {listed(named)}" if named else "no service of this host runs an agent"
    raise SelectionError(f"there is no instance {printable(name)}: {here}")


def listed(names: t.Collection[str]) -> str:
    """Return the names in one text, without those after MAX_SHOWN."""
    return ", ".join(map(printable, list(names)[:MAX_SHOWN])) + (", ..." if len(names) > MAX_SHOWN else "")


def service_names(loaded: t.Iterable[Service], files: t.Mapping[str, str], running: t.Collection[str]) -> list[str]:
    """Return the names of the services that are instances, sorted.

    C(loaded) are the services that systemd has loaded, C(files) the contents of unit files by the names of their
    services, and C(running) the names of the services that run an agent. A service that does not run is an instance if
    its name is that of the default instance or begins with PREFIX, or if its file sets the state file of an agent.
    """
    stopped = [service.name for service in loaded if service.exists and _has_name_of_instance(service.name)]
    in_files = [name for name, text in files.items() if _has_name_of_instance(name) or OF_AN_AGENT.search(text)]
    # A name that ends with @ is that of a template, which is no service.
    return sorted(name for name in {*running, *stopped, *in_files} if not name.endswith("@"))


def _has_name_of_instance(name: str) -> bool:
    return name == DEFAULT_SERVICE or name.startswith(PREFIX)


def unit_files() -> dict[str, str]:
    """Return the contents of the regular service files of the administrator, by the names of their services."""
    found = {}
    for name in os.listdir(_systemd.UNITS) if os.path.isdir(_systemd.UNITS) else []:
        if name.endswith(_systemd.SUFFIX):
            try:
                path = os.path.join(_systemd.UNITS, name)
                if stat.S_ISREG(os.lstat(path).st_mode):
                    with open(path, encoding="utf-8", errors="replace") as file:
                        found[name[: -len(_systemd.SUFFIX)]] = file.read(MAX_UNIT_BYTES)
            except OSError:
                continue  # It was removed meanwhile, or this user may not read it.
    return found


def _of_service(name: str, process: Process | None, service: Service | None) -> Found:
    state = service.state if service else "inactive"
    if process:
        try:
            return _of_process(name, process)._replace(state=state)
        except EndedError:
            process = None
        except InstanceError:
            pass  # It belongs to another user. What its unit sets is known to everyone.
    unit = _systemd.environment(name, run_command)
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
