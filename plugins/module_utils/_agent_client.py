# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Communicate with a running agent: query its status or its answer, and make it read its state file again."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import time
import typing as t

from ._agent_process import (
    POLL_SECONDS,
    InstanceError,
    Process,
)
from ._connection import connect
from ._deadline import seconds_until
from ._printable import printable
from ._ramp import parse_percents, ramped
from ._state import State, StateError, from_fields

# HAProxy reads no more of an answer by default. Source: tune.chksize in its configuration manual.
MAX_ANSWER_BYTES = 16384
# An agent with the maximum number of peers, each with the longest line, sends less than a megabyte.
MAX_STATUS_BYTES = 4 * 1024 * 1024
MAX_PEERS = 4096
MAX_COUNTERS = 256
MAX_TEXT_CHARACTERS = 1000
# The longest path with each of its bytes escaped.
MAX_PATH_CHARACTERS = 6 * 4096
# Larger than any counter or time.
MAX_NUMBER = 10**15

Status = dict[str, t.Any]


class NoStatusError(ValueError):
    """A document is not the status of an agent. The text describes the problem."""


class Instance(t.NamedTuple):
    """One agent: its process, its state file, its status socket or '', and the address on which it answers.

    Both paths are as seen by the agent. C(settles) is whether the agent may send keywords that reset the previous
    state, and C(percents) are those of its ramp.
    """

    process: Process
    state_file: str
    status_socket: str
    address: str = "127.0.0.1"
    port: int = 9777
    settles: bool = True
    percents: tuple[int, ...] = ()

    def reload(self) -> None:
        """Make the agent read its state file again. Raises InstanceError."""
        self.process.signal(signal.SIGHUP)

    def answer(self, deadline: float) -> str:
        """What the agent answers, as printable text. C(deadline) is on the monotonic clock.

        If the agent has a status socket, the answer comes from there. It then contains neither reset keywords nor a
        weight of the ramp, and the agent does not record this host as a load balancer. Raises InstanceError if there is
        no answer before the deadline.
        """
        if self.status_socket:
            return str(self.status(deadline)["answer"])
        return ask(self.address, self.port, deadline)

    def reports(self, state: State, answer: str) -> bool:
        """Whether this answer of the agent reports the state.

        Reset keywords and weights of the ramp are ignored if it may contain them.
        """
        states = {state} if self.status_socket else {state, *(ramped(state, percent) for percent in self.percents)}
        is_bare = self.status_socket or not self.settles
        lines = {line for one in states for line in ({one.answer()} if is_bare else one.answers())}
        return answer in {printable(line, MAX_TEXT_CHARACTERS) for line in lines}

    def status(self, deadline: float) -> Status:
        """The status that the agent reports on its status socket, see clean_status(). Raises InstanceError."""
        while True:
            try:
                return self._status(deadline)
            except (OSError, NoStatusError) as error:
                # These errors may be temporary: the agent may be restarting or too busy.
                passing = isinstance(error, (FileNotFoundError, ConnectionError, BlockingIOError, NoStatusError))
                if not passing or time.monotonic() + POLL_SECONDS >= deadline:
                    raise InstanceError(
                        f"the agent of {self.state_file} does not report its status on {self.status_socket} ({error}): "
                        "check its log. Restarting its service is safe"
                    ) from error
            time.sleep(POLL_SECONDS)

    def _status(self, deadline: float) -> Status:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            self.connect(connection, deadline)
            status = clean_status(_parse(_receive(connection, deadline, MAX_STATUS_BYTES)))
        if status["state_file"] != printable(self.state_file, MAX_PATH_CHARACTERS):
            raise InstanceError(
                f"{self.status_socket} belongs to the agent of {status['state_file']}, not to that of "
                f"{self.state_file}: set a separate HAPGENT_SOCKET for each agent"
            )
        return status

    def connect(self, connection: socket.socket, deadline: float) -> None:
        """Connect to the agent's status socket, and to nothing else that may be at its path. Raises OSError."""
        found = self.process.open(self.status_socket)
        try:
            status = os.fstat(found)
            if not stat.S_ISSOCK(status.st_mode):
                raise OSError("not a socket")
            if status.st_uid != self.process.user:
                raise OSError(f"it belongs to user {status.st_uid}, which is not the agent's user")
            connection.settimeout(seconds_until(deadline))
            # This is exactly the socket that was checked. Its own path may be too long for connect().
            connection.connect(f"/proc/self/fd/{found}")
        finally:
            os.close(found)
        pid, user = peer_of(connection)
        # The process ID is not compared, because it changes when the agent restarts. The user does not.
        if user != self.process.user:
            raise OSError(f"process {pid}, which answers there, runs as user {user}, which is not the agent's user")


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return the process ID and the user of the program that listens on a UNIX socket. Source: unix(7)."""
    size = struct.calcsize("3i")
    pid, user, _group = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, user


def instance_of(process: Process, address: str = "127.0.0.1", port: int = 9777) -> Instance:
    """Return the agent with this process. Raises InstanceError."""
    # Without the variable, this is either an agent with the default of 60 s or hapgent 0.3.2, which never settles.
    # They cannot be distinguished here, so assume that the agent settles.
    settles = process.variable("HAPGENT_SETTLE", "60").strip("0") != ""
    try:
        percents = parse_percents(process.variable("HAPGENT_RAMP", ""))
    except ValueError:
        percents = ()  # Not an agent of this release, which would not have started.
    return Instance(process, process.state_file(), process.path("HAPGENT_SOCKET", ""), address, port, settles, percents)


def why_fail(status: Status) -> str:
    """Return why the agent answers FAIL although its state is not set to FAIL, '' if it does not."""
    is_intended = status["state"] != {"status": "FAIL"} or status["state_file_ok"]
    return "" if is_intended else status["last_error"] or ""


def ask(address: str, port: int, deadline: float) -> str:
    """Return what an agent answers to HAProxy, as printable text without the LF. Raises InstanceError."""
    try:
        with connect(address, port, deadline) as connection:
            received = _receive(connection, deadline, MAX_ANSWER_BYTES, b"\n")
    except OSError as error:
        raise InstanceError(
            f"the agent does not respond on {address} port {port} ({error}): "
            "check that its service is running and listens on this address and port"
        ) from error
    line, end, _rest = received.partition(b"\n")
    if not end:
        raise InstanceError(
            f"the program on {address} port {port} is not an agent: it sent {received[:64]!r} instead of a line"
        )
    return printable(line, MAX_TEXT_CHARACTERS)


def _receive(connection: socket.socket, deadline: float, maximum: int, end: bytes = b"") -> bytes:
    """Receive until the connection ends or C(end) was received. Raises OSError, also for more than C(maximum) bytes."""
    received = bytearray()
    while not (end and end in received):
        connection.settimeout(seconds_until(deadline))
        piece = connection.recv(65536)
        if not piece:
            break
        received += piece
        if len(received) > maximum:
            raise OSError(f"it sent more than {maximum} bytes")
    return bytes(received)


# What an agent reports


def _parse(content: bytes) -> object:
    try:
        return json.loads(content, parse_int=_integer, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise NoStatusError(f"not JSON: {error}") from error


def _integer(digits: str) -> int:
    # Python needs minutes to convert millions of digits.
    if len(digits) > 20:
        raise ValueError(f"a number with {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> t.NoReturn:
    raise ValueError(f"{name} is not a number")


def clean_status(document: object) -> Status:
    """Return the status in this document, with exactly the fields that are known here. Raises NoStatusError.

    Agents of other releases may report more or fewer fields. Unknown fields are ignored. Optional fields that are
    missing or have another type are None. Strings are printable and have at most MAX_TEXT_CHARACTERS characters, paths
    MAX_PATH_CHARACTERS. Numbers are finite. C(state) has the fields that are set in a valid State.
    """
    if not isinstance(document, dict):
        raise NoStatusError("not an object")
    return _clean(document, FIELDS, REQUIRED)


Clean = t.Callable[[object], t.Any]


def _clean(document: dict[str, object], fields: dict[str, Clean], required: frozenset[str]) -> dict[str, t.Any]:
    cleaned = {}
    for name, clean in fields.items():
        try:
            cleaned[name] = clean(document.get(name))
        except ValueError as error:
            if name in required:
                raise NoStatusError(f"{name}: {error}") from error
            cleaned[name] = None
    return cleaned


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    return printable(value, MAX_TEXT_CHARACTERS)


def _path(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    return printable(value, MAX_PATH_CHARACTERS)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise ValueError("not a number")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("not a whole number")
    return int(_number(value))


def _counters(value: object) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > MAX_COUNTERS:
        raise ValueError("not an object with numbers")
    return {_text(name): _whole(number) for name, number in value.items()}


def _state(value: object) -> dict[str, str | int]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    try:
        return from_fields({name: value[name] for name in State._fields if name in value}).fields()
    except (StateError, TypeError) as error:
        raise ValueError(str(error)) from error


def _peers(value: object) -> list[dict[str, t.Any]]:
    if not isinstance(value, list) or len(value) > MAX_PEERS or not all(isinstance(peer, dict) for peer in value):
        raise ValueError("not a list of load balancers")
    return [_clean(peer, PEER_FIELDS, REQUIRED_OF_PEER) for peer in value]


FIELDS: dict[str, Clean] = {
    "state": _state,
    "answer": _text,
    "since": _number,
    "ramp_weight": _whole,
    "ramp_ends": _number,
    "version": _text,
    "settle": _whole,
    "state_file": _path,
    "state_file_ok": _boolean,
    "last_error": _text,
    "counters": _counters,
    "peers": _peers,
}
# A document without these fields is not the status of an agent.
REQUIRED = frozenset({"state", "answer", "state_file", "peers"})
PEER_FIELDS: dict[str, Clean] = {
    "address": _text,
    "first_seen": _number,
    "last_seen": _number,
    "checks": _whole,
    "interval": _number,
    "line": _text,
    "received": _boolean,
    "settles_for": _number,
    "polls": _boolean,
}
# Without these fields it is unknown whether a load balancer has received the state.
REQUIRED_OF_PEER = frozenset({"address", "last_seen", "received", "polls"})
