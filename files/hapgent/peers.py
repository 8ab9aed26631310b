# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The load balancers: the state that each has received, and the reset keywords that it must still receive.

A peer is a source address that polls the agent. Peers are discovered by their first check and never deregister.
"""

from __future__ import annotations

import math
import os
import time

from hapgent._state import STATUSES, State

MAX_PEERS = 1024
WEEK_SECONDS = 7 * 86400.0
# How late a check may be: three intervals, but at least and at most this long.
MIN_PATIENCE_SECONDS = 10.0
MAX_PATIENCE_SECONDS = 300.0
# Longer gaps probably mean the peer was offline, not that it polls this rarely.
LONG_GAP_SECONDS = 60.0


# The states that a peer may have received if nothing is known about it. Resets do not depend on more detail.
ANYTHING = tuple(State(status, weight=100, reason="any") for status in STATUSES)


def perhaps(states: tuple[State, ...]) -> tuple[State, ...]:
    """Reduce states that a peer may have received to the details on which a reset depends.

    The result has at most as many states as ANYTHING, and needs the same reset keywords or more.
    """
    kinds = dict.fromkeys(
        State(state.status, weight=None if state.weight is None else 100, reason="any" if state.reason else None)
        for state in states
    )
    return tuple(kinds) if len(kinds) <= len(ANYTHING) else ANYTHING


def _undoing(state: State, received: tuple[State, ...]) -> frozenset[str]:
    return frozenset(word for before in received for word in state.undoing(before))


class Change:
    """A change of the agent's state.

    C(state) is the new state, and C(since) the time of the change. C(before) has the states that an unknown peer may
    have received before. Until C(unsure_until), these may be more than the previous state, because an agent was killed.
    Both times are in seconds since 1970. Changes are compared by identity: a later change to the same state is a
    different one.
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
        """The change that follows this one, to C(state), now."""
        now = time.time()
        before = perhaps((*self.before, self.state)) if now < self.unsure_until else (self.state,)
        since = self.since if state.drops_only_notes(self.state) else now
        return Change(state, since, before, self.unsure_until)

    def unsure(self, received: tuple[State, ...]) -> Change:
        """The same change, for the case that peers may have received any of these states before it."""
        return Change(self.state, self.since, perhaps((*self.before, *received)), time.time() + WEEK_SECONDS)


class Peer:
    """A source address that polls the agent. All times are in seconds, on the monotonic clock.

    C(received) has the state that the peer last received: it is empty if there is none, and has several if it is
    uncertain which one. C(undo) has the keywords that reset earlier states, with the times until which each is sent.
    C(interval) is the recent average interval between checks, None if it is not known yet.
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
        "received",
        "undo",
    )

    def __init__(self, address: str, now: float) -> None:
        self.address = address
        self.first_seen = now
        self.last_seen = now
        self.checks = 0
        self.interval: float | None = None
        self.line = b""
        self.received: tuple[State, ...] = ()
        self.undo: dict[str, float] = {}
        self._change: Change | None = None
        self._until = math.inf

    def see(self, now: float) -> None:
        """Record another check of this peer."""
        gap = now - self.last_seen
        self.last_seen = now
        if gap > MAX_PATIENCE_SECONDS:
            return
        if self.interval is None:
            self.interval = gap
            return
        if gap > LONG_GAP_SECONDS:
            gap = min(gap, 3 * self.interval + 1)
        # Long gaps count more, because a load balancer with several backends may poll for all of them at once.
        self.interval += (gap - self.interval) * gap / (gap + 7 * self.interval + 1e-9)

    def answer(self, change: Change, now: float, settle: float) -> tuple[bytes, dict[str, float]]:
        """The line with which to answer this peer, and the reset keywords that are due, with their times."""
        if self._change is change and now < self._until:
            return self.line, self.undo
        undo = self.undo
        if self._change is not change:
            words = _undoing(change.state, self.received) if self.received else change.undo
            # Keywords that reset an older state keep their time. Otherwise, frequent changes, for example of the
            # weight, would extend them forever.
            undo = {**undo, **dict.fromkeys(words, now + settle)}
        undo = {word: until for word, until in undo.items() if now < until}
        return change.state.answer(undo).encode() + b"\n", undo

    def given(self, line: bytes, undo: dict[str, float], change: Change) -> bool:
        """Record that the peer received this answer. Returns whether the memory must be saved."""
        self.checks += 1
        if self._change is change and line is self.line:
            return False
        # The order matters: the memory may be saved in between, and must not lose keywords that are still due.
        self.undo = undo
        self.received, self.line, self._change = (change.state,), line, change
        self._until = min(undo.values(), default=math.inf)
        return True

    def may_have_received(self, states: tuple[State, ...]) -> None:
        """Record that the peer may have received one of these states last, from an agent that was killed."""
        self.received = perhaps((*self.received, *states))

    def has_received(self, state: State) -> bool:
        """Whether this is the state that the peer last received."""
        return self.received == (state,)

    def settles_for(self, now: float) -> float:
        """The number of seconds for which the peer still receives reset keywords."""
        return max([0.0, *(until - now for until in self.undo.values())])

    def polls(self, now: float, started: float) -> bool:
        """Whether the peer still polls: it has missed at most three checks, or the agent only just started."""
        if self.interval is None:
            return False
        patience = max(MIN_PATIENCE_SECONDS, min(MAX_PATIENCE_SECONDS, 3 * self.interval))
        return now - max(self.last_seen, started) <= patience


class Peers:
    """The peers, at most MAX_PEERS. Only one thread may call see(), add() and given(). Others may read."""

    def __init__(self, settle: float) -> None:
        self.settle = settle
        self.started = time.monotonic()
        self.checks = 0
        self.forgotten = 0
        self.unsaved = False
        self._peers: dict[str, Peer] = {}

    def see(self, address: str, now: float) -> Peer:
        """Record a check from this address, and return the peer."""
        peer = self._peers.get(address)
        if peer is None:
            peer = Peer(address, now)
            self.add(peer)
            self.unsaved = True
        else:
            peer.see(now)
        return peer

    def add(self, peer: Peer) -> None:
        """Add this peer. If there are too many, drop another one."""
        if len(self._peers) >= MAX_PEERS:
            del self._peers[self._least_missed(peer.last_seen).address]
            self.forgotten += 1
        self._peers[peer.address] = peer

    def _least_missed(self, now: float) -> Peer:
        """The peer to drop: one that no longer polls or, if there is none, one of those with the fewest checks.

        So new addresses, however many, never displace a peer that has been polling for longer. The choice among those
        with the fewest checks is random, so that a new peer that keeps polling soon counts as a long-standing one too.
        """
        oldest = min(self._peers.values(), key=lambda kept: kept.last_seen)
        if now - oldest.last_seen > MAX_PATIENCE_SECONDS:
            return oldest
        fewest = min(peer.checks.bit_length() for peer in self._peers.values())
        candidates = [peer for peer in self._peers.values() if peer.checks.bit_length() == fewest]
        return candidates[int.from_bytes(os.urandom(2), "big") % len(candidates)]

    def given(self, peer: Peer, line: bytes, undo: dict[str, float], change: Change) -> None:
        """Record that the peer received this line, with these reset keywords still due."""
        self.checks += 1
        if peer.given(line, undo, change):
            self.unsaved = True

    def all(self) -> list[Peer]:
        """All current peers, sorted by address."""
        return sorted(self._peers.copy().values(), key=lambda peer: peer.address)
