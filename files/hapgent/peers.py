# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The load balancers: what each was told, and what it still has to be told to undo what it was told before.

A peer is an address that asks. Nobody introduces it, and it never says good-bye.
"""

from __future__ import annotations

import math
import time

from hapgent.state import State

MOST_PEERS = 1024
# Longer gaps say that a peer was away, not how often it asks.
LONG_GAP_SECONDS = 10.0


class Change:
    """The agent's state, since when it is that, and what undoes the state before for a peer not known then.

    C(since) is in seconds since 1970. An object stands for one change: the same state later is another one.
    """

    __slots__ = ("line", "since", "state", "undo")

    def __init__(self, state: State, since: float, undo: frozenset[str] = frozenset()) -> None:
        self.state = state
        self.since = since
        self.undo = undo
        self.line = state.answer().encode() + b"\n"

    def next(self, state: State, settle: float) -> Change:
        """The change from this one to C(state), now."""
        now = time.time()
        undo = state.undoing(self.state)
        if now - self.since < settle:
            # Somebody may have seen this change's predecessor, and not this one.
            undo |= self.undo
        return Change(state, now, undo)


class Peer:
    """An address that asks. Its times are on the monotonic clock, in seconds."""

    __slots__ = (
        "_change",
        "_until",
        "address",
        "checks",
        "first_seen",
        "interval",
        "last_seen",
        "line",
        "told",
        "undo",
    )

    def __init__(self, address: str, now: float) -> None:
        self.address = address
        self.first_seen = now
        self.last_seen = now
        self.checks = 0
        self.interval: float | None = None
        self.line = b""
        self.told: State | None = None
        self.undo: frozenset[str] = frozenset()
        self._change: Change | None = None
        self._until = math.inf

    def see(self, now: float) -> None:
        """It asks again."""
        gap = now - self.last_seen
        self.last_seen = now
        if self.interval is None:
            self.interval = gap
        else:
            if gap > LONG_GAP_SECONDS:
                gap = min(gap, 3 * self.interval)
            self.interval += (gap - self.interval) / 8

    def line_for(self, change: Change, now: float, settle: float) -> bytes:
        """What it is to be answered."""
        if self._change is not change:
            return change.state.answer(self._undo_for(change) if settle else ()).encode() + b"\n"
        if now >= self._until:
            return change.line
        return self.line

    def given(self, line: bytes, change: Change, now: float, settle: float) -> bool:
        """It was answered with that line. Returns whether that is to be remembered."""
        self.checks += 1
        if self._change is change and line == self.line:
            return False
        if line == change.line:
            self.undo, self._until = frozenset(), math.inf
        else:
            self.undo, self._until = self._undo_for(change), now + settle
        self._change, self.told, self.line = change, change.state, line
        return True

    def settles_for(self, now: float) -> float:
        """How many seconds more it is told what undoes the state before."""
        return 0.0 if self._until == math.inf else max(0.0, self._until - now)

    def polls(self, now: float, started: float) -> bool:
        """Whether it still asks: it did not miss more than three of its checks, or had no time to."""
        return self.interval is not None and now - max(self.last_seen, started) <= 3 * self.interval + 1

    def _undo_for(self, change: Change) -> frozenset[str]:
        if self.told is None:
            return change.undo
        return change.state.undoing(self.told) | self.undo


class Peers:
    """The peers seen last, a bounded number of them. One thread meets them, others may look."""

    def __init__(self, settle: float) -> None:
        self.settle = settle
        self.started = time.monotonic()
        self.checks = 0
        self.forgotten = 0
        self.unsaved = False
        self._peers: dict[str, Peer] = {}

    def see(self, address: str, now: float) -> Peer:
        """The peer with this address, which asks."""
        peer = self._peers.get(address)
        if peer is None:
            peer = Peer(address, now)
            self.add(peer)
            self.unsaved = True
        else:
            peer.see(now)
        return peer

    def add(self, peer: Peer) -> None:
        """Keep this peer; forget the one that was not seen for the longest time, if there are too many."""
        if len(self._peers) >= MOST_PEERS:
            del self._peers[min(self._peers.values(), key=lambda kept: kept.last_seen).address]
            self.forgotten += 1
        self._peers[peer.address] = peer

    def given(self, peer: Peer, line: bytes, change: Change, now: float) -> None:
        """The peer was answered with that line."""
        self.checks += 1
        if peer.given(line, change, now, self.settle):
            self.unsaved = True

    def suspect(self, undo: frozenset[str]) -> None:
        """Undo that for each of them: an agent that was killed may have told them what it did not remember."""
        for peer in self._peers.values():
            peer.undo |= undo

    def all(self) -> list[Peer]:
        """All peers as of now, ordered by address."""
        return sorted(self._peers.copy().values(), key=lambda peer: peer.address)
