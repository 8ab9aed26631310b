# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the agent answers, and how it is stored on disk.

A signal changes the answer immediately, in memory. All operations that can be slow, on the disk, the log and the
service manager, run in a thread of their own, the keeper, and nothing else waits for them.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import stat
import threading
import time
import typing as t

from hapgent import log
from hapgent._ramp import ramped
from hapgent._state import FAIL, LOCK_POLL_SECONDS, LockedError, MissingError, State, StateError, StateFile
from hapgent.memory import Identity, Memory, MemoryUnusableError, Recalled
from hapgent.peers import ANYTHING, Change, Peers
from hapgent.systemd import Manager

# How long a save waits for a module that has locked the state file.
LOCK_SECONDS = 10.0
# How long a change at the moment in the state waits for it. That delays all other work of the keeper.
BRIEF_LOCK_SECONDS = 0.4
# When such a change is tried again if it was not saved.
RETRY_SECONDS = 60.0
# A disk that has not responded for this long is reported.
PATIENCE_SECONDS = 10.0


class Unsaved(t.NamedTuple):
    """A status that was set by a signal and is not in the file yet. C(deadline) is on the monotonic clock."""

    status: str
    cause: str
    deadline: float


class Keeper:
    """The state with which the agent answers, and its copies on disk.

    The main thread calls obey(), tick() and stop(), which never wait for the disk. Any thread may call note(). The
    keeper's thread calls all other methods.
    """

    def __init__(self, state_file: str, peers: Peers, manager: Manager) -> None:
        self.state_file = state_file
        self.state_file_ok = True
        self.last_error: tuple[str, float] | tuple[None, None] = (None, None)
        self.counters = dict.fromkeys(("changes", "reloads", "saves", "failed_saves"), 0)
        self.change = Change(FAIL, time.time())
        self.memory = Memory(state_file)
        self._peers = peers
        self._manager = manager
        self._identity: Identity = None
        self._memory_problem = ""
        # Protects change and unsaved. It is never held during a slow operation.
        self._changing = threading.Lock()
        self._unsaved: Unsaved | None = None
        self._reload = False
        self._last_moment = float("inf")
        self._retry_at = 0.0
        self._locked_since = float("inf")
        self._notes: collections.deque[tuple[t.Callable[[str], None], str]] = collections.deque(maxlen=100)
        self._due = threading.Event()
        self._working_since: float | None = None

    # The main thread

    def obey(self, number: int) -> None:
        """Handle a signal. For USR1 and USR2, the answer has changed when this returns."""
        if number == signal.SIGHUP:
            self._reload = True
        elif number in (signal.SIGUSR1, signal.SIGUSR2):
            status = "UP" if number == signal.SIGUSR1 else "DOWN"
            cause = signal.Signals(number).name
            with self._changing:
                self._unsaved = Unsaved(status, cause, time.monotonic() + LOCK_SECONDS)
                self._answer(self.change.state.with_status(status), cause)
        self._due.set()

    def tick(self) -> None:
        """Called once a second: wake the keeper to save the memory if needed, and report a disk that hangs."""
        since, now = self._working_since, time.monotonic()
        if since is not None and now - since > PATIENCE_SECONDS:
            self._working_since = None
            problem = f"{self.state_file}: the disk has not responded for {PATIENCE_SECONDS:g} s"
            self.last_error = (problem, time.time())
            self.note(problem)
        self._due.set()

    def note(self, text: str) -> None:
        """Queue an error for the log. The keeper's thread writes it, because only that thread may wait for the log."""
        self._notes.append((log.error, text))
        self._due.set()

    def stop(self, last_moment: float) -> None:
        """Stop waiting for locks after C(last_moment), on the monotonic clock."""
        self._last_moment = last_moment
        self._due.set()

    # The keeper's thread

    def begin(self) -> None:
        """Load the state and the memory. Afterwards the agent may answer the first peer."""
        was_complete = self._recall()
        if not self._remember() and was_complete:
            # The old memory claims to be complete, which is wrong as soon as the first peer is answered.
            self.memory.spoil()

    def work(self) -> None:
        """Wait until work is due, and do it."""
        self._due.wait()
        self._due.clear()
        self._working_since = time.monotonic()
        while self._notes:
            write, text = self._notes.popleft()
            write(text)
        if self._reload:
            self._reload = False
            self.counters["reloads"] += 1
            self._manager.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._load("SIGHUP")
            self._manager.notify("READY=1", self.summary())
        if self._unsaved:
            self._save(self._unsaved)
        self._end_status()
        if self._peers.unsaved:
            self._remember()
        self._manager.retry()
        self._working_since = None
        if self._unsaved:
            # A module holds the lock. Try again soon, but let other work be done in between.
            time.sleep(LOCK_POLL_SECONDS)
            self._due.set()

    def end(self) -> None:
        """Do all work that is still due, and save the memory as complete. No peer may be answered after this."""
        self._manager.notify("STOPPING=1")
        while self._reload or self._unsaved or self._notes:
            self._due.set()
            self.work()
        self._remember(complete=True)

    def summary(self) -> str:
        """The state in the form that the service manager shows."""
        change = self.change
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(change.since))
        return f"STATUS={change.state.answer()}{change.state.remarks()} since {since}"

    def _recall(self) -> bool:
        """Load the state and the memory. Returns whether the memory claims to be complete."""
        recalled: Recalled | None = None
        unusable = False
        try:
            recalled = self.memory.recall(self._peers.settle)
        except MemoryUnusableError as error:
            unusable = True
            log.error(
                f"{self.memory.path}: {error}: "
                "the states that load balancers have received are unknown, so every possible state is reset"
            )
        if recalled:
            for peer in recalled.peers:
                self._peers.add(peer)
            with self._changing:
                self.change = recalled.change
        self._load("start")
        with self._changing:
            if not recalled:  # Without a memory, the first load is not a change, and begins no ramp.
                self.change = Change(self.change.state, self.change.since)
                self.counters["changes"] = 0
            received = self._received_since(recalled, unusable)
            if received:
                self.change = self.change.unsure(received)
                for peer in self._peers.all():
                    peer.may_have_received(received)
        return recalled is not None and recalled.complete

    def _received_since(self, recalled: Recalled | None, unusable: bool) -> tuple[State, ...]:
        """The states that peers may have received after the memory was saved."""
        if not recalled:
            return ANYTHING if unusable else ()
        if recalled.complete:
            return ()
        if self._identity is None or self._identity != recalled.identity:
            log.info(
                "the previous agent was killed and the state file has changed since, so every possible state is reset"
            )
            return ANYTHING
        # The file is unchanged. Only signals change the answer before it is saved, so only their states are possible.
        state = recalled.change.state
        states = (state, state.with_status("UP"), state.with_status("DOWN"))
        # With a ramp, each of them may have been sent with a weight.
        return (*states, *(ramped(one, 100) for one in states)) if self._peers.ramp.percents else states

    def _load(self, cause: str) -> None:
        file = StateFile(os.path.realpath(self.state_file))
        problem = ""
        try:
            state = file.load()
        except StateError as error:
            state, problem = FAIL, f"{self.state_file}: {error}"
        self._adopt(file)
        old, new = self.change.state, self._with_unsaved(state)
        line = f"{old.answer()} -> {new.answer()}{new.remarks()} ({cause})"
        if problem:
            log.error(f"{line}: {problem}")
            # Set before state_file_ok, so that a reader that sees a problem also sees its cause.
            self.last_error = (problem, time.time())
        elif new != old:
            log.info(line)
        self.state_file_ok = not problem
        with self._changing:
            self._answer(self._with_unsaved(state))

    def _save(self, unsaved: Unsaved) -> None:
        """Save the status. The other fields are kept from the file, because a module may have just changed them."""
        fallback = self.change.state
        file = StateFile(os.path.realpath(self.state_file))
        problem = ""
        after = None
        try:
            _before, after = file.edit(
                lambda before: (before or fallback).with_status(unsaved.status), time.monotonic(), overwrite=True
            )
        except LockedError as error:
            if time.monotonic() < min(unsaved.deadline, self._last_moment):
                return
            problem = str(error)
        except OSError as error:
            problem = error.strerror or str(error)
        if after:
            self._adopt(file)
            self.counters["saves"] += 1
        else:
            self.counters["failed_saves"] += 1
            problem = f"not saved, kept in memory only: {self.state_file}: {problem}"
            log.error(f"{fallback.answer()} ({unsaved.cause}): {problem}")
            self.last_error = (problem, time.time())
        self.state_file_ok = not problem
        with self._changing:
            if self._unsaved is unsaved:
                self._unsaved = None
            if after:
                self._answer(self._with_unsaved(after), unsaved.cause)
        self._manager.notify(self.summary())

    def _end_status(self) -> None:
        """If it is time for the status that follows, set it. The answer changes only after the file was saved.

        What the file has now decides, and is answered, because a module may have just changed it.
        """
        ended = self.change.state
        if _now(ended) == ended or time.monotonic() < self._retry_at:
            return
        file = StateFile(os.path.realpath(self.state_file))
        problem = ""
        before = after = None
        self._locked_since = min(self._locked_since, time.monotonic())
        try:
            before, after = file.edit(_now, min(time.monotonic() + BRIEF_LOCK_SECONDS, self._last_moment))
        except LockedError as error:
            if time.monotonic() < self._locked_since + LOCK_SECONDS:
                return
            problem = str(error)
        except StateError as error:
            problem = str(error)
        except OSError as error:
            problem = error.strerror or str(error)
        self._locked_since = float("inf")
        cause = f"until {ended.until}, then {ended.then}"
        if after:
            self._adopt(file)
            self.counters["saves"] += before != after
            with self._changing:
                self._answer(self._with_unsaved(after), cause)
            self._manager.notify(self.summary())
        else:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self.counters["failed_saves"] += 1
            problem = f"not saved, tried again every {RETRY_SECONDS:g} s: {self.state_file}: {problem}"
            if problem != self.last_error[0]:
                log.error(f"{ended.answer()} ({cause}): {problem}")
            self.last_error = (problem, time.time())
        self.state_file_ok = not problem

    def _remember(self, complete: bool = False) -> bool:
        """Save the memory. Returns whether that succeeded. If it did not, it is tried again later."""
        self._peers.unsaved = False
        try:
            self.memory.save(self.change, self._peers, self._identity, complete)
        except (OSError, LockedError) as error:
            self._peers.unsaved = True
            if self._memory_problem != str(error):
                self._memory_problem = str(error)
                problem = error.strerror if isinstance(error, OSError) else error
                log.error(
                    f"{self.memory.path}: {problem}: "
                    "after a restart, the agent will not know which states load balancers have received"
                )
            return False
        self._memory_problem = ""
        return True

    def _adopt(self, file: StateFile) -> None:
        """Record the identity of the file from which the state comes, including that of a symbolic link to it."""
        identity = file.identity
        if identity:
            with contextlib.suppress(OSError):
                link = os.lstat(self.state_file)
                if stat.S_ISLNK(link.st_mode):
                    identity = [*identity, link.st_ino, link.st_ctime_ns]
        if identity != self._identity:
            self._identity = identity
            self._peers.unsaved = True

    def _with_unsaved(self, state: State) -> State:
        unsaved = self._unsaved
        return state.with_status(unsaved.status) if unsaved else state

    def _answer(self, state: State, cause: str = "") -> None:
        """Answer with this state from now on. If a cause is given, the change is logged."""
        if state != self.change.state:
            if cause:
                self._notes.append((log.info, f"{self.change.state.answer()} -> {state.answer()} ({cause})"))
            self.counters["changes"] += 1
            self.change = self.change.next(state, self._peers.ramp)
            self._peers.unsaved = True


def _now(state: State | None) -> State:
    """The state that a state has become by now. Raises MissingError if there is none."""
    if state is None:
        raise MissingError("does not exist")
    return state.at(time.time())
