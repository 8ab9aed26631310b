# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the agent remembers across restarts: its last change of state, and what it sent to each load balancer.

Without this memory, a restart soon after a change would end the reset of the previous state too early, and the agent
would not notice a change that was made while it was stopped. The memory is a file beside the state file, and belongs to
one agent as long as that agent runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import typing as t

from hapgent._state import (
    UNDOING,
    LockedError,
    MissingError,
    State,
    StateError,
    from_fields,
    locked,
    read,
    replace,
)
from hapgent.peers import MAX_PATIENCE_SECONDS, MAX_PEERS, WEEK_SECONDS, Change, Peer, Peers, perhaps

# Larger than the longest memory that an agent writes.
MAX_BYTES = 2 * 1024 * 1024
# Longer than any address with a scope, and longer than any answer.
MAX_ADDRESS, MAX_LINE = 64, 256
MAX_CHECKS = 2**53

# The identity of the state file when the memory was saved. None if it is not known.
Identity = t.Optional[list[int]]


class MemoryUnusableError(Exception):
    """The memory cannot be used. The text describes the problem."""


class Recalled(t.NamedTuple):
    """The content of the memory.

    C(complete) is whether the agent sent nothing after it saved the memory, because it ended cleanly.
    """

    change: Change
    peers: list[Peer]
    identity: Identity
    complete: bool


class Memory:
    """The file that stores the memory of an agent."""

    def __init__(self, state_file: str) -> None:
        """The file is beside the state file or, if that is a symbolic link, beside the link."""
        self.path = f"{state_file}.memory"
        self._owned = contextlib.ExitStack()
        self._is_owned = False

    def recall(self, settle: float) -> Recalled | None:
        """Read the memory. None if the file does not exist. Raises MemoryUnusableError.

        Reset keywords that are still due are limited to C(settle) seconds from now.
        """
        try:
            with contextlib.suppress(OSError), self._open_folder() as folder:
                # A memory that cannot be written can still be read.
                self._own(folder)
            return _parse(read(self.path, MAX_BYTES)[0], settle)
        except MissingError:
            return None
        except (LockedError, StateError) as error:
            raise MemoryUnusableError(str(error)) from error
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise MemoryUnusableError(f"the content was not written by an agent ({error!r})") from error

    def save(self, change: Change, peers: Peers, identity: Identity, complete: bool) -> None:
        """Write the memory. Raises OSError, and LockedError if another agent uses the same file."""
        with self._open_folder() as folder:
            self._own(folder)
            name = os.path.basename(self.path)
            replace(name, _dump(change, peers, identity, complete), f"{name}.tmp", folder)

    def spoil(self) -> None:
        """Make the memory unusable because it is outdated. This works even on a full disk, but may fail silently."""
        flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path, flags)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _own(self, folder: int) -> None:
        if not self._is_owned:
            self._owned.enter_context(locked(f"{os.path.basename(self.path)}.lock", folder, deadline=0.0))
            self._is_owned = True

    @contextlib.contextmanager
    def _open_folder(self) -> t.Iterator[int]:
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield folder
        finally:
            os.close(folder)


def _dump(change: Change, peers: Peers, identity: Identity, complete: bool) -> bytes:
    # From the monotonic clock to seconds since 1970.
    now = time.monotonic()
    offset = time.time() - now
    known = {
        "saved": offset + now,
        "complete": complete,
        "state_file": identity,
        "state": change.state.fields(),
        "since": change.since,
        "before": [state.fields() for state in change.before],
        "unsure_until": change.unsure_until,
        # None if no ramp goes on, so that a ramp that is set later does not reduce the weight of a server in rotation.
        "entered": offset + change.entered if change.sent(peers.ramp, now)[1] < math.inf else None,
        "peers": [
            {
                "received": [state.fields() for state in peer.received],
                "undo": {word: until - now for word, until in peer.undo.items()},
                "address": peer.address,
                "first_seen": offset + peer.first_seen,
                "last_seen": offset + peer.last_seen,
                "checks": peer.checks,
                # Without an interval, a peer that has stopped polling does not count as polling after a restart.
                "interval": peer.interval if peer.polls(now, peers.started) else None,
                "line": peer.line.decode(),
            }
            for peer in peers.all()
            if peer.received
        ],
    }
    return json.dumps(known, ensure_ascii=False).encode() + b"\n"


def _parse(raw: bytes, settle: float) -> Recalled:
    now = time.time()
    offset = now - time.monotonic()
    known = json.loads(raw, parse_constant=_refuse)
    # Agents of older releases do not record this.
    entered = known.get("entered")
    change = Change(
        from_fields(known["state"]),
        _number(known["since"], now),
        _states(known["before"]),
        _number(known["unsure_until"], now + WEEK_SECONDS),
        -math.inf if entered is None else _number(entered, now) - offset,
    )
    peers = [
        _peer(fields, now, settle)
        for fields in known["peers"][:MAX_PEERS]
        if fields["last_seen"] > known["saved"] - WEEK_SECONDS
    ]
    identity = known["state_file"]
    return Recalled(change, peers, None if identity is None else list(map(int, identity)), known["complete"] is True)


def _peer(fields: dict[str, t.Any], now: float, settle: float) -> Peer:
    offset = now - time.monotonic()
    peer = Peer(_text(fields["address"], MAX_ADDRESS), _number(fields["last_seen"], now) - offset)
    peer.first_seen = _number(fields["first_seen"], now) - offset
    peer.checks = int(_number(fields["checks"], MAX_CHECKS))
    peer.interval = None if fields["interval"] is None else _number(fields["interval"], MAX_PATIENCE_SECONDS)
    line = _text(fields["line"].removesuffix("\n"), MAX_LINE).encode()
    peer.line = line and line + b"\n"
    peer.received = _states(fields["received"])
    peer.undo = {
        word: _number(seconds, settle) + now - offset for word, seconds in fields["undo"].items() if word in UNDOING
    }
    return peer


def _states(values: list[dict[str, t.Any]]) -> tuple[State, ...]:
    states = tuple(from_fields(fields) for fields in values)
    return states if len(states) <= 1 else perhaps(states)


def _text(value: t.Any, maximum: int) -> str:
    """A string of at most C(maximum) bytes without control characters. Raises ValueError."""
    text = str(value)
    if len(text.encode()) > maximum or any(character < " " or "\x7f" <= character <= "\x9f" for character in text):
        raise ValueError(f"invalid text: {text[:maximum]!a}")
    return text


def _number(value: t.Any, maximum: float) -> float:
    return max(0.0, min(maximum, float(value)))


def _refuse(constant: str) -> t.NoReturn:
    raise ValueError(f"{constant} is not a valid number")
