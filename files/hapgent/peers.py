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
import typing as t

from hapgent._ramp import Ramp
from hapgent._state import IN_ROTATION, STATUSES, State

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
    Both times are in seconds since 1970. C(entered) is when the server came into rotation, on the monotonic clock, or
    minus infinity if it is out of rotation or that time is not known. Changes are compared by identity: a later change
    to the same state is a different one.
    """

    __slots__ = ("before", "entered", "line", "since", "state", "undo", "unsure_until")

    def __init__(
        self,
        state: State,
        since: float,
        before: tuple[State, ...] = (),
        unsure_until: float = 0.0,
        entered: float = -math.inf,
    ) -> None:
        self.state = state
        self.since = since
        self.before = before
        self.unsure_until = unsure_until
        self.entered = entered
        self.undo = _undoing(state, before)
        self.line = state.answer().encode() + b"\n"

    def next(self, state: State, ramp: Ramp) -> Change:
        """The change that follows this one, to C(state), now."""
        now = time.time()
        sent, _until = self.sent(ramp, time.monotonic())
        before = perhaps((*self.before, sent)) if now < self.unsure_until else (sent,)
        since = self.since if state.changes_only_notes(self.state) else now
        return Change(state, since, before, self.unsure_until, self._entered_by(state))

    def _entered_by(self, state: State) -> float:
        if state.status not in IN_ROTATION:
            return -math.inf
        return self.entered if self.state.status in IN_ROTATION else time.monotonic()

    def sent(self, ramp: Ramp, now: float) -> tuple[State, float]:
        """The state to send at the time C(now), and until when, both on the monotonic clock."""
        sent, seconds = ramp.sent(self.state.as_sent(), now - self.entered)
        return sent, now + seconds

    def unsure(self, received: tuple[State, ...]) -> Change:
        """The same change, for the case that peers may have received any of these states before it."""
        before = perhaps((*self.before, *received))
        return Change(self.state, self.since, before, time.time() + WEEK_SECONDS, self.entered)


class Answer(t.NamedTuple):
    """An answer to a peer: the line, the state in it, the reset keywords in it with their times, and its own time."""

    line: bytes
    sent: State
    undo: dict[str, float]
    until: float


class Peer:
    """A source address that polls the agent. All times are in seconds, on the monotonic clock.

    C(received) has the state that the peer last received: it is empty if there is none, and has several if it is
    uncertain which one. C(undo) has the keywords that reset earlier states, with the times until which each is sent.
    C(interval) is the recent average interval between checks, None if it is not known yet.
    """

    __slots__ = (
        "_answer",
        "_change",
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
        self._answer: Answer | None = None

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

    def answer(self, change: Change, now: float, settle: float, ramp: Ramp) -> Answer:
        """The answer to this peer."""
        if self._answer and self._change is change and now < self._answer.until:
            return self._answer
        sent, until = change.sent(ramp, now)
        # A new step of the ramp resets what the one before has set, as a change does. The same state resets nothing.
        words = _undoing(sent, self.received) if self.received else change.undo
        # Keywords that reset an older state keep their time. Otherwise, frequent changes, for example of the weight,
        # would extend them forever.
        undo = {**self.undo, **dict.fromkeys(words, now + settle)}
        undo = {word: until for word, until in undo.items() if now < until}
        return Answer(sent.answer(undo).encode() + b"\n", sent, undo, min([until, *undo.values()]))

    def given(self, answer: Answer, change: Change) -> bool:
        """Record that the peer received this answer. Returns whether the memory must be saved."""
        self.checks += 1
        if self._change is change and answer is self._answer:
            return False
        # The order matters: the memory may be saved in between, and must not lose keywords that are still due.
        self.undo = answer.undo
        self.received, self.line, self._change = (answer.sent,), answer.line, change
        self._answer = answer
        return True

    def may_have_received(self, states: tuple[State, ...]) -> None:
        """Record that the peer may have received one of these states last, from an agent that was killed."""
        self.received = perhaps((*self.received, *states))

    def has_received(self, change: Change) -> bool:
        """Whether the peer last received the state of this change, with whatever weight of the ramp."""
        return self._change is change or self.received == (change.state.as_sent(),)

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

    def __init__(self, settle: float, ramp: Ramp) -> None:
        self.settle = settle
        self.ramp = ramp
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

    def given(self, peer: Peer, answer: Answer, change: Change) -> None:
        """Record that the peer received this answer."""
        self.checks += 1
        if peer.given(answer, change):
            self.unsaved = True

    def all(self) -> list[Peer]:
        """All current peers, sorted by address."""
        return sorted(self._peers.copy().values(), key=lambda peer: peer.address)
