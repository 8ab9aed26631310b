# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The load balancers: what each was told, and what it still has to be told to undo what it was told before.

A peer is an address that asks. Peers are discovered by their first check and never deregister.
"""

from __future__ import annotations

import math
import os
import time

from hapgent.state import STATUSES, State

MOST_PEERS = 1024
WEEK_SECONDS = 7 * 86400.0
# A check may be late by so much, whatever the interval.
LEAST_PATIENCE_SECONDS = 10.0
MOST_PATIENCE_SECONDS = 300.0
# Longer gaps may say that a peer was away, rather than how often it asks.
LONG_GAP_SECONDS = 60.0


# What a peer was told if nothing is known of that, as far as it has to be undone.
ANYTHING = tuple(State(status, 100, None, "any") for status in STATUSES)


def perhaps(states: tuple[State, ...]) -> tuple[State, ...]:
    """What undoing these states depends on, for a peer that may have been told any of them: a bounded number."""
    kinds = dict.fromkeys(
        State(state.status, None if state.weight is None else 100, None, "any" if state.reason else None)
        for state in states
    )
    return tuple(kinds) if len(kinds) <= len(ANYTHING) else ANYTHING


def _undoing(state: State, told: tuple[State, ...]) -> frozenset[str]:
    return frozenset(word for before in told for word in state.undoing(before))


class Change:
    """The agent's state, since when it is that, and what a peer that is not known may have been told before.

    C(since) is in seconds since 1970, and so is C(unsure_until): until then, such a peer may have been told more than
    the state before, as an agent was killed. An object stands for one change: the same state later is another one.
    """

    __slots__ = ("before", "line", "since", "state", "undo", "unsure_until")

    def __init__(self, state: State, since: float, before: tuple[State, ...] = (), unsure_until: float = 0.0) -> None:
        self.state = state
        self.since = since
        self.before = before
        self.unsure_until = unsure_until
        self.undo = _undoing(state, before)
        self.line = state.answer().encode() + b"\n"

    def next(self, state: State) -> Change:
        """The change from this one to C(state), now."""
        now = time.time()
        before = perhaps((*self.before, self.state)) if now < self.unsure_until else (self.state,)
        return Change(state, now, before, self.unsure_until)

    def unsure(self, told: tuple[State, ...]) -> Change:
        """The same change, if peers may have been told any of these states before it."""
        return Change(self.state, self.since, perhaps((*self.before, *told)), time.time() + WEEK_SECONDS)


class Peer:
    """An address that asks. Its times are on the monotonic clock, in seconds.

    C(told) is the state that it was told last, none if it was told nothing, several if it may have been any of them.
    C(undo) has the words that undo what it was told before, and until when each goes along. C(interval) is how often
    it asks, of late; None as long as nobody can say.
    """

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
        self.told: tuple[State, ...] = ()
        self.undo: dict[str, float] = {}
        self._change: Change | None = None
        self._until = math.inf

    def see(self, now: float) -> None:
        """It asks again."""
        gap = now - self.last_seen
        self.last_seen = now
        if gap > MOST_PATIENCE_SECONDS:
            return
        if self.interval is None:
            self.interval = gap
            return
        if gap > LONG_GAP_SECONDS:
            gap = min(gap, 3 * self.interval + 1)
        # The longer a gap, the more it counts: one that asks for several backends may ask for all of them at once.
        self.interval += (gap - self.interval) * gap / (gap + 7 * self.interval + 1e-9)

    def answer(self, change: Change, now: float, settle: float) -> tuple[bytes, dict[str, float]]:
        """What it is to be answered, and what is undone with that."""
        if self._change is change and now < self._until:
            return self.line, self.undo
        undo = self.undo
        if self._change is not change:
            words = _undoing(change.state, self.told) if self.told else change.undo
            # What undoes an older state keeps its time. Else it would never end where the weight changes all the time.
            undo = {**undo, **dict.fromkeys(words, now + settle)}
        undo = {word: until for word, until in undo.items() if now < until}
        return change.state.answer(undo).encode() + b"\n", undo

    def given(self, line: bytes, undo: dict[str, float], change: Change) -> bool:
        """It was answered with that. Returns whether that is to be remembered."""
        self.checks += 1
        if self._change is change and line is self.line:
            return False
        # In this order: the memory may be saved in between, and is to forget nothing that is owed.
        self.undo = undo
        self.told, self.line, self._change = (change.state,), line, change
        self._until = min(undo.values(), default=math.inf)
        return True

    def may_have_been_told(self, states: tuple[State, ...]) -> None:
        """An agent that was killed may have told it one of these last."""
        self.told = perhaps((*self.told, *states))

    def has(self, state: State) -> bool:
        """Whether that is the state it was told last."""
        return self.told == (state,)

    def settles_for(self, now: float) -> float:
        """How many seconds more it is told what undoes the state before."""
        return max([0.0, *(until - now for until in self.undo.values())])

    def polls(self, now: float, started: float) -> bool:
        """Whether it still asks: it did not miss more than three of its checks, or had no time to."""
        if self.interval is None:
            return False
        patience = max(LEAST_PATIENCE_SECONDS, min(MOST_PATIENCE_SECONDS, 3 * self.interval))
        return now - max(self.last_seen, started) <= patience


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
        """Keep this peer; forget another one if there are too many."""
        if len(self._peers) >= MOST_PEERS:
            del self._peers[self._least_missed(peer.last_seen).address]
            self.forgotten += 1
        self._peers[peer.address] = peer

    def _least_missed(self, now: float) -> Peer:
        """One that no longer asks, or else one of those that asked least.

        So new addresses, however many, never push out one that has been asking for longer. Which of them goes is left
        to chance: so one that asks again and again has soon been asking for longer too.
        """
        oldest = min(self._peers.values(), key=lambda kept: kept.last_seen)
        if now - oldest.last_seen > MOST_PATIENCE_SECONDS:
            return oldest
        least = min(peer.checks.bit_length() for peer in self._peers.values())
        candidates = [peer for peer in self._peers.values() if peer.checks.bit_length() == least]
        return candidates[int.from_bytes(os.urandom(2), "big") % len(candidates)]

    def given(self, peer: Peer, line: bytes, undo: dict[str, float], change: Change) -> None:
        """The peer was answered with that line, and that undid so much."""
        self.checks += 1
        if peer.given(line, undo, change):
            self.unsaved = True

    def all(self) -> list[Peer]:
        """All peers as of now, ordered by address."""
        return sorted(self._peers.copy().values(), key=lambda peer: peer.address)
