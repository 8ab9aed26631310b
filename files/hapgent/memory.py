# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the agent remembers across restarts: its last change of state, and what each load balancer was told.

Without it, a change would be forgotten by a restart in the middle of it, and one made while the agent was stopped
would not be noticed. It is kept beside the state file; the agent alone reads and writes it.
"""

from __future__ import annotations

import json
import time
import typing as t

from hapgent.peers import Change, Peer, Peers
from hapgent.state import UNDOING, State, StateError, from_fields, read, replace

MAX_BYTES = 1024 * 1024
MOST_INTERVAL_SECONDS = 1e6


class MemoryUnusableError(Exception):
    """The file of the memory cannot be used."""


def path_of(state_file: str) -> str:
    """Where the memory for this state file is kept: beside it, or if it is a link, beside that."""
    return f"{state_file}.memory"


def save(path: str, temporary: str, change: Change, peers: Peers) -> None:
    """Remember. Raises OSError."""
    # From the monotonic clock to seconds since 1970.
    offset = time.time() - time.monotonic()
    known = {
        **_told(change.state, change.undo),
        "since": change.since,
        "peers": [
            {
                **_told(peer.told, peer.undo),
                "address": peer.address,
                "first_seen": offset + peer.first_seen,
                "last_seen": offset + peer.last_seen,
                "checks": peer.checks,
                "interval": peer.interval,
                "line": peer.line.decode(),
            }
            for peer in peers.all()
            if peer.told
        ],
    }
    replace(path, json.dumps(known, ensure_ascii=False).encode() + b"\n", temporary)


def load(path: str) -> tuple[Change, list[Peer]]:
    """The last change, and the peers. Raises MemoryUnusableError."""
    try:
        known = json.loads(read(path, MAX_BYTES))
        change = Change(from_fields(known["state"]), _number(known["since"], time.time()), _undo(known))
        return change, [_peer(fields) for fields in known["peers"]]
    except StateError as error:
        raise MemoryUnusableError(str(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise MemoryUnusableError(f"not what an agent has written there ({error!r})") from error


def _told(state: State | None, undo: frozenset[str]) -> dict[str, t.Any]:
    return {"state": state and state.fields(), "undo": sorted(undo)}


def _undo(fields: dict[str, t.Any]) -> frozenset[str]:
    return frozenset(fields["undo"]) & UNDOING


def _number(value: t.Any, most: float) -> float:
    return max(0.0, min(most, float(value)))


def _peer(fields: dict[str, t.Any]) -> Peer:
    offset = time.time() - time.monotonic()
    peer = Peer(str(fields["address"]), _number(fields["last_seen"], time.time()) - offset)
    peer.first_seen = _number(fields["first_seen"], time.time()) - offset
    peer.checks = int(fields["checks"])
    peer.interval = None if fields["interval"] is None else _number(fields["interval"], MOST_INTERVAL_SECONDS)
    peer.line = str(fields["line"]).encode()
    peer.told = from_fields(fields["state"])
    peer.undo = _undo(fields)
    return peer
