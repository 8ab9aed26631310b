# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the agent remembers across restarts: its last change of state, and what each load balancer was told.

Without it, a change would be forgotten by a restart in the middle of it, and one made while the agent was stopped
would not be noticed. It is kept beside the state file; the agent alone reads and writes it.
"""

from __future__ import annotations

import json
import os
import time
import typing as t

from hapgent.peers import MOST_PATIENCE_SECONDS, Change, Peer, Peers
from hapgent.state import UNDOING, State, StateError, from_fields, read, replace

MAX_BYTES = 1024 * 1024
# Whoever had not been seen for so long when this was saved is forgotten.
MOST_ABSENCE_SECONDS = 7 * 86400


class MemoryUnusableError(Exception):
    """The file of the memory cannot be used."""


def path_of(state_file: str) -> str:
    """Where the memory for this state file is kept: beside it, or if it is a link, beside that."""
    return f"{state_file}.memory"


def save(path: str, change: Change, peers: Peers) -> None:
    """Remember. Raises OSError."""
    # From the monotonic clock to seconds since 1970.
    now = time.monotonic()
    offset = time.time() - now
    known = {
        "saved": offset + now,
        "state": change.state.fields(),
        "since": change.since,
        "undo": sorted(change.undo),
        "peers": [
            {
                "told": [state.fields() for state in peer.told],
                "undo": {word: until - now for word, until in peer.undo.items()},
                "address": peer.address,
                "first_seen": offset + peer.first_seen,
                "last_seen": offset + peer.last_seen,
                "checks": peer.checks,
                # One that has stopped asking does not begin again with the agent.
                "interval": peer.interval if peer.polls(now, peers.started) else None,
                "line": peer.line.decode(),
            }
            for peer in peers.all()
            if peer.told
        ],
    }
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = os.path.basename(path)
        replace(name, json.dumps(known, ensure_ascii=False).encode() + b"\n", f"{name}.tmp", folder)
    finally:
        os.close(folder)


def load(path: str, settle: float) -> tuple[Change, list[Peer]]:
    """The last change, and the peers: what is still to be undone is for C(settle) seconds at most.

    Raises MemoryUnusableError.
    """
    now = time.time()
    try:
        known = json.loads(read(path, MAX_BYTES))
        undo = UNDOING & frozenset(known["undo"])
        change = Change(from_fields(known["state"]), _number(known["since"], now), undo)
        peers = [
            _peer(fields, now, change.state, settle)
            for fields in known["peers"]
            if fields["last_seen"] > known["saved"] - MOST_ABSENCE_SECONDS
        ]
    except StateError as error:
        raise MemoryUnusableError(str(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise MemoryUnusableError(f"not what an agent has written there ({error!r})") from error
    return change, peers


def _peer(fields: dict[str, t.Any], now: float, state: State, settle: float) -> Peer:
    offset = now - time.monotonic()
    peer = Peer(str(fields["address"]), _number(fields["last_seen"], now) - offset)
    peer.address.encode()  # What cannot be written again is an error here.
    peer.first_seen = _number(fields["first_seen"], now) - offset
    peer.checks = int(fields["checks"])
    peer.interval = None if fields["interval"] is None else _number(fields["interval"], MOST_PATIENCE_SECONDS)
    peer.line = str(fields["line"]).encode()
    peer.told = tuple(from_fields(told) for told in fields["told"])
    if state not in peer.told:
        # An agent that was killed may have told it, and not have remembered that.
        peer.told += (state,)
    peer.undo = {
        word: _number(seconds, settle) + now - offset for word, seconds in fields["undo"].items() if word in UNDOING
    }
    return peer


def _number(value: t.Any, most: float) -> float:
    return max(0.0, min(most, float(value)))
