# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""A running agent: find its process, ask it, tell it to read its state file again."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._deadline import seconds_until
from ansible_collections.hapgent.agent.plugins.module_utils._state import State

PROCESS_NAME = "hapgent"
DEFAULT_STATE_FILE = "/etc/hapgent/state.json"
POLL_SECONDS = 0.05
# An agent that starts, or starts again, has its status socket within this time.
STARTING_SECONDS = 2.0
# What HAProxy reads of an answer at most, by default: tune.chksize in its configuration manual.
MAX_ANSWER_BYTES = 16384
MAX_STATUS_BYTES = 4 * 1024 * 1024
# What each agent with a status socket tells there, at least.
TOLD = frozenset({"state", "state_file", "answer", "since", "version", "settle", "last_error", "counters", "peers"})

RunCommand = t.Callable[[list[str]], tuple[int, str, str]]
Status = dict[str, t.Any]


class InstanceError(Exception):
    """The agent cannot be found or does not answer. The text says what to do."""


class EndedError(InstanceError):
    """The agent's process has ended."""


class Instance(t.NamedTuple):
    """One agent on this host: its process, its state file, its status socket or '', the address on which it answers.

    C(state_file) is the path as the agent sees it. C(settles) is whether it may tell what undoes a state before.
    """

    pid: int
    state_file: str
    status_socket: str
    address: str = "127.0.0.1"
    port: int = 9777
    settles: bool = True

    def reload(self) -> None:
        """Tell the agent to read its state file again. Raises InstanceError."""
        try:
            os.kill(self.pid, signal.SIGHUP)
        except OSError as error:
            raise InstanceError(f"cannot send HUP to the agent's process {self.pid}: {error.strerror}") from error

    def answer(self, deadline: float) -> str:
        """What the agent tells, without a LF. C(deadline) is on the monotonic clock.

        Where it has a status socket, without what undoes the state before, and it does not take this host for a load
        balancer. Raises InstanceError if there is none until then.
        """
        return str(self.status(deadline)["answer"]) if self.status_socket else self._ask(deadline)

    def tells(self, state: State, answer: str) -> bool:
        """Whether this answer of the agent is the one that the state makes."""
        is_bare = self.status_socket or not self.settles
        return answer == state.answer() if is_bare else answer in state.answers()

    def await_state(self, state: State, deadline: float) -> str:
        """Ask until the agent tells C(state), or until the deadline. Returns its last answer."""
        answer = self.answer(deadline)
        while not self.tells(state, answer):
            time.sleep(POLL_SECONDS)
            if time.monotonic() >= deadline:
                break
            answer = self.answer(deadline + POLL_SECONDS)
        return answer

    def goes_without_status(self, deadline: float) -> bool:
        """Whether the agent answers on its port although it could not make its status socket."""
        now = time.monotonic()
        # Whoever asks on the port is taken for a load balancer, so one that starts again is given some time first.
        until = min(now + STARTING_SECONDS, (now + deadline) / 2)
        while not self._has_status_socket():
            if time.monotonic() >= until:
                # It does not answer there before it has tried to make the socket.
                return self._answers(deadline) and not self._has_status_socket()
            time.sleep(POLL_SECONDS)
        return False

    def _has_status_socket(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            try:
                connection.connect(self.status_socket)
            except (BlockingIOError, PermissionError):
                return True
            except OSError:
                return False
        return True

    def _answers(self, deadline: float) -> bool:
        try:
            self._ask(deadline)
        except InstanceError:
            return False
        return True

    def status(self, deadline: float) -> Status:
        """What the agent tells on its status socket. Raises InstanceError."""
        while True:
            try:
                return self._status(deadline)
            except (OSError, ValueError, RecursionError) as error:
                # The agent may be starting again.
                passing = isinstance(error, (FileNotFoundError, ConnectionError, ValueError))
                if not passing or time.monotonic() + POLL_SECONDS >= deadline:
                    raise InstanceError(
                        f"the agent of {self.state_file} does not tell its status on {self.status_socket} ({error}): "
                        "its log says why, and restarting its service does no harm"
                    ) from error
            time.sleep(POLL_SECONDS)

    def _status(self, deadline: float) -> Status:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds_until(deadline))
            connection.connect(self.status_socket)
            status = json.loads(_receive(connection, deadline, MAX_STATUS_BYTES))
        if not (isinstance(status, dict) and TOLD.issubset(status)):
            raise ValueError("what is told there is no status")
        if status["state_file"] != self.state_file:
            raise InstanceError(
                f"on {self.status_socket} there is the agent of {status['state_file']}, not that of {self.state_file}: "
                "give each a HAPGENT_SOCKET of its own"
            )
        return status

    def _ask(self, deadline: float) -> str:
        try:
            with socket.create_connection((self.address, self.port), seconds_until(deadline)) as connection:
                received = _receive(connection, deadline, MAX_ANSWER_BYTES, b"\n")
        except OSError as error:
            raise InstanceError(
                f"the agent does not answer on {self.address} port {self.port} ({error}): "
                "see that its service runs, and that address and port are those it listens on"
            ) from error
        line, end, _rest = received.partition(b"\n")
        if not end:
            raise InstanceError(
                f"what answers on {self.address} port {self.port} sent {received[:64]!r}, not a line: it is no agent"
            )
        return line.decode("utf-8", "backslashreplace")


def _receive(connection: socket.socket, deadline: float, most: int, end: bytes = b"") -> bytes:
    """What is sent, to its end, or to C(end)."""
    received = b""
    while len(received) < most and not (end and end in received):
        connection.settimeout(seconds_until(deadline))
        piece = connection.recv(65536)
        if not piece:
            break
        received += piece
    return received


def running() -> list[Instance]:
    """All agents on this host, but for those in its containers, by their processes. Raises InstanceError."""
    instances = []
    for pid in sorted(_agents()):
        try:
            if _is_of_this_host(pid):
                instances.append(instance_of(pid))
        except EndedError:
            continue
    return instances


def service_of(pid: int) -> str | None:
    """The systemd service of this process, without its suffix; None if there is none. Source: cgroups(7)."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as cgroup:
            units = [os.path.basename(line.rstrip("\n").rpartition(":")[2]) for line in cgroup]
    except OSError:
        return None
    services = [unit[: -len(".service")] for unit in units if unit.endswith(".service")]
    return services[0] if services else None


def instance_of(pid: int, address: str = "127.0.0.1", port: int = 9777) -> Instance:
    """The agent with this process. Raises InstanceError."""
    status_socket = _path(pid, "HAPGENT_SOCKET", "")
    if status_socket and not _is_of_this_host(pid):
        # In a container, the same path leads to another socket.
        status_socket = f"/proc/{pid}/root{status_socket}"
    return Instance(pid, _state_file_of(pid), status_socket, address, port, _settles(pid))


def find_pid(service: str, state_file: str, run_command: RunCommand, deadline: float) -> int:
    """The process of the one right agent. Raises InstanceError.

    Where systemd knows the service it is that service's main process, which has to serve this state file; elsewhere
    it is the process that does.
    """
    pid = _service_pid(service, run_command, deadline)
    if pid is None:
        return _pid_by_state_file(service, state_file)
    if not _serves(pid, state_file):
        raise InstanceError(f"service {service} serves {_state_file_of(pid)}, not {state_file}: name both of one agent")
    return pid


def find_service_pid(service: str, run_command: RunCommand, deadline: float) -> int:
    """The process of the agent that this systemd service runs. Raises InstanceError."""
    pid = _service_pid(service, run_command, deadline)
    if pid is None:
        raise InstanceError(f"there is no systemd service {service}: name the service of an agent")
    return pid


def _service_pid(service: str, run_command: RunCommand, deadline: float) -> int | None:
    """None if systemd does not know the service."""
    pid = _main_pid(service, run_command, deadline) if os.path.isdir("/run/systemd/system") else None
    if pid is not None and _comm(pid) != PROCESS_NAME:
        raise InstanceError(
            f"the main process {pid} of service {service} is {_comm(pid)}, not {PROCESS_NAME}: "
            "name the agent's service, or let the service start the agent itself"
        )
    return pid


def _main_pid(service: str, run_command: RunCommand, deadline: float) -> int | None:
    """The service's main process, or None if systemd has no such service."""
    while True:
        properties = _properties(service, run_command)
        # It may be starting, again.
        if properties["ActiveState"] != "activating" or time.monotonic() + POLL_SECONDS >= deadline:
            break
        time.sleep(POLL_SECONDS)
    if properties["LoadState"] == "not-found":
        return None
    if properties["MainPID"] == "0":
        raise InstanceError(
            f"service {service} does not run, it is {properties['ActiveState']}: start it with "
            f"systemctl start {service}, or see why it does not run with systemctl status {service}"
        )
    return int(properties["MainPID"])


def _properties(service: str, run_command: RunCommand) -> dict[str, str]:
    rc, out, err = run_command(["systemctl", "show", "--property=LoadState,ActiveState,MainPID", "--", _unit(service)])
    if rc != 0:
        raise InstanceError(f"systemctl show {_unit(service)} failed: {err.strip()}")
    return dict(line.partition("=")[::2] for line in out.splitlines())


def _unit(service: str) -> str:
    return service if service.endswith(".service") else f"{service}.service"


def _pid_by_state_file(service: str, state_file: str) -> int:
    pids = [pid for pid in _agents() if _serves(pid, state_file)]
    if not pids:
        raise InstanceError(
            f"no agent found: there is no systemd service {service}, "
            f"and no {PROCESS_NAME} process with HAPGENT_STATE_FILE {state_file}"
        )
    if len(pids) > 1:
        raise InstanceError(f"several agents serve {state_file}, processes {pids}: give each a state file of its own")
    return pids[0]


def _agents() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _comm(int(name)) == PROCESS_NAME]


def _comm(pid: int) -> str:
    """The name that pkill knows the process by, '' if it is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().rstrip("\n")
    except OSError:
        return ""


def _is_of_this_host(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError as error:
        raise _hidden(pid, error) from error


def _state_file_of(pid: int) -> str:
    """The state file that this agent serves, as the agent sees it. Raises InstanceError."""
    return _path(pid, "HAPGENT_STATE_FILE", DEFAULT_STATE_FILE)


def _settles(pid: int) -> bool:
    # Without the variable it is an agent that does by default, or hapgent 0.3.2: nobody can say.
    return _variable(pid, "HAPGENT_SETTLE", "60").strip("0") != ""


def _path(pid: int, name: str, default: str) -> str:
    path = _variable(pid, name, default)
    try:
        folder = os.readlink(f"/proc/{pid}/cwd")
    except OSError as error:
        raise _hidden(pid, error) from error
    return os.path.normpath(os.path.join(folder, path)) if path else ""


def _variable(pid: int, name: str, default: str) -> str:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            variables = dict(entry.partition(b"=")[::2] for entry in environ.read().split(b"\0"))
    except OSError as error:
        raise _hidden(pid, error) from error
    return os.fsdecode(variables.get(name.encode(), default.encode()))


def _hidden(pid: int, error: OSError) -> InstanceError:
    """What it is, when somebody could not look into this process."""
    if _has_ended(pid):
        return EndedError(f"the agent's process {pid} has ended: see that its service runs")
    return InstanceError(f"cannot look into the agent's process {pid} ({error.strerror}): be root or its user")


def _has_ended(pid: int) -> bool:
    """Also if its parent has not asked for its exit status yet. Source: proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as fields:
            return fields.read().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def _serves(pid: int, state_file: str) -> bool:
    try:
        # Through its root: in a container, the same path leads to another file.
        served = f"/proc/{pid}/root{_state_file_of(pid)}"
        # Between two looks, a save may put another file there.
        return any(os.path.samefile(served, state_file) for _attempt in range(3))
    except (InstanceError, OSError):
        return False
