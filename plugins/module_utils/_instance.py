# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""A running agent: find its process, ask it, tell it to read its state file again."""

from __future__ import annotations

import os
import signal
import socket
import time
import typing as t

PROCESS_NAME = "hapgent"
DEFAULT_STATE_FILE = "/etc/hapgent/state.json"
POLL_SECONDS = 0.05
# What HAProxy reads of an answer at most, by default: tune.chksize in its configuration manual.
MAX_ANSWER_BYTES = 16384

RunCommand = t.Callable[[list[str]], tuple[int, str, str]]


class InstanceError(Exception):
    """The agent cannot be found or does not answer. The text says what to do."""


class Instance(t.NamedTuple):
    """One agent on this host: its process and the address on which it answers."""

    pid: int
    address: str
    port: int

    def reload(self) -> None:
        """Tell the agent to read its state file again. Raises InstanceError."""
        try:
            os.kill(self.pid, signal.SIGHUP)
        except OSError as error:
            raise InstanceError(f"cannot send HUP to the agent's process {self.pid}: {error.strerror}") from error

    def ask(self, deadline: float) -> str:
        """The agent's answer to a check, without its LF. C(deadline) is on the monotonic clock.

        Raises InstanceError if there is none until then.
        """
        received = b""
        try:
            with socket.create_connection((self.address, self.port), _seconds_until(deadline)) as connection:
                while b"\n" not in received and len(received) < MAX_ANSWER_BYTES:
                    connection.settimeout(_seconds_until(deadline))
                    piece = connection.recv(4096)
                    if not piece:
                        break
                    received += piece
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
        return line.decode("ascii", "backslashreplace")

    def await_answer(self, expected: str, deadline: float) -> str:
        """Ask until the agent answers C(expected), or until the deadline. Returns its last answer."""
        answer = self.ask(deadline)
        while answer != expected:
            time.sleep(POLL_SECONDS)
            if time.monotonic() >= deadline:
                break
            answer = self.ask(deadline + POLL_SECONDS)
        return answer


def _seconds_until(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining


def find_pid(service: str, state_file: str, run_command: RunCommand) -> int:
    """The process of the one right agent. Raises InstanceError.

    Where systemd knows the service it is that service's main process; elsewhere it is the process that
    serves this state file.
    """
    pid = _main_pid(service, run_command) if os.path.isdir("/run/systemd/system") else None
    if pid is None:
        return _pid_by_state_file(service, state_file)
    if _comm(pid) != PROCESS_NAME:
        raise InstanceError(
            f"the main process {pid} of service {service} is {_comm(pid)}, not {PROCESS_NAME}: "
            "name the agent's service, or let the service start the agent itself"
        )
    return pid


def _main_pid(service: str, run_command: RunCommand) -> int | None:
    """The service's main process, or None if systemd has no such service."""
    rc, out, err = run_command(["systemctl", "show", "--property=LoadState,ActiveState,MainPID", "--", _unit(service)])
    if rc != 0:
        raise InstanceError(f"systemctl show {_unit(service)} failed: {err.strip()}")
    properties = dict(line.partition("=")[::2] for line in out.splitlines())
    if properties["LoadState"] == "not-found":
        return None
    if properties["MainPID"] == "0":
        raise InstanceError(
            f"service {service} does not run, it is {properties['ActiveState']}: start it with "
            f"systemctl start {service}, or see why it does not run with systemctl status {service}"
        )
    return int(properties["MainPID"])


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


def _serves(pid: int, state_file: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            variables = dict(entry.partition(b"=")[::2] for entry in environ.read().split(b"\0"))
        folder = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return False
    served = os.fsdecode(variables.get(b"HAPGENT_STATE_FILE", DEFAULT_STATE_FILE.encode()))
    try:
        # Through its root: in a container, the same path leads to another file.
        return os.path.samefile(f"/proc/{pid}/root{os.path.join(folder, served)}", state_file)
    except OSError:
        return False
