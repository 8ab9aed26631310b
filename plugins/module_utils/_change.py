# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Change the state of an agent: its file, what the agent answers, and what its load balancers have received.

The module hapgent_state and the agent's commands both use this, so that they agree on every step of a change.
"""

from __future__ import annotations

import os
import time
import typing as t

from . import _as_owner
from ._agent_client import Instance, why_fail
from ._agent_process import POLL_SECONDS, InstanceError
from ._state import NOTES, LockedError, MissingError, State, StateError, StateFile, from_fields
from ._wait_for import Peer, WaitFor, WaitResult, polling

LAST_LOOK_SECONDS = 5.0
# How long the disk may take, in addition to the time for the lock and the agent.
DISK_SECONDS = 5.0

Fields = dict[str, t.Any]


class Change(t.NamedTuple):
    """A change of a state.

    C(named) has the fields to set with their values, C(unset) the names of the fields to remove. With C(create), they
    apply only to a new file. C(statuses), C(reason) and the whole state C(known) are the conditions under which a state
    may be changed; None means no condition.
    """

    named: Fields
    unset: t.Sequence[str] = ()
    create: bool = False
    statuses: list[str] | None = None
    reason: str | None = None
    known: State | None = None

    def is_for(self, state: State | None) -> bool:
        """Whether this state may be changed. C(state) is None if there is no file."""
        if self.create or state is None:
            return self.create and state is None
        return (
            (self.statuses is None or state.status in self.statuses)
            and (self.reason is None or (state.reason or "") == self.reason)
            and self.known in (None, state)
        )

    def applied_to(self, state: State | None) -> State:
        """This state with the fields of C(named) set and those of C(unset) removed. Raises StateError.

        C(state) is None if there is no file. Who asks for what is already there has not done it, so a state that would
        differ only in C(by) stays as it is, unless nothing else is set. Who gave the previous reason, and until when,
        does not apply to another one, and what follows at a moment does not follow at another one.
        """
        status = self.named.get("status")
        kept = state.with_status(status or state.status).fields() if state else {}
        if self.named.get("reason", kept.get("reason")) != kept.get("reason"):
            kept = {name: value for name, value in kept.items() if name not in NOTES}
        if "until" in self.unset or self.named.get("until", kept.get("until")) != kept.get("until"):
            kept.pop("then", None)
        after = from_fields({**kept, **self.named, **dict.fromkeys(self.unset)})
        return state if state and self.named.keys() > {"by"} and after._replace(by=state.by) == state else after

    def wanted(self, state: State | None) -> State:
        """The state that must replace this one. Raises StateError.

        C(state) is None if there is no file.
        """
        if self.is_for(state):
            return self.applied_to(state)
        if state is None:
            raise MissingError("does not exist")
        return state


class ChangeError(Exception):
    """The change failed. The text describes the problem; AgentState.done describes what was changed anyway."""


class FileError(ChangeError):
    """The state file cannot be accessed. C(error) is the error that accessing it raised."""

    def __init__(self, text: str, error: Exception) -> None:
        super().__init__(text)
        self.error = error


class InvalidFileError(FileError):
    """The state file is missing or does not contain a valid state. C(error) is a StateError."""


class AnswerError(ChangeError):
    """The agent still answers something else: C(where) it was queried, what it answers, and C(why) it does, or ''."""

    def __init__(self, where: str, answer: str, why: str) -> None:
        self.where, self.answer, self.why = where, answer, why
        super().__init__(f"the agent on {where} still answers {answer}{why and f', because {why}'}")


class NotReceivedError(ChangeError):
    """Not all load balancers have received the state. C(peers) are those that polled the agent at any time."""

    def __init__(self, result: WaitResult, peers: list[Peer]) -> None:
        super().__init__("not all load balancers have received the state")
        self.result = result
        self.peers = peers


class AgentState:
    """The state of one agent while it is changed.

    C(before) is the state before the change, None if there was no file. C(after) is the state in the file now or, until
    edit() is called, the state that the file will have; None until the file was read, or if it was removed since.
    C(kept) is whether the change does not apply to the state. C(answer) is what the agent answers, None if it is not
    known. C(received) lists the load balancers that were waited for. C(done) is what was changed so far, as the
    beginning of a sentence; '' as long as nothing was changed. C(is_read) is whether the file was read.
    """

    def __init__(self, path: str, change: Change, deadline: float) -> None:
        """C(deadline), on the monotonic clock, is that of the lock and of the agent's answer."""
        self.path = path
        self.change = change
        self.deadline = deadline
        self.is_read = False
        self.before: State | None = None
        self.after: State | None = None
        self.kept = False
        self.answer: str | None = None
        self.received: WaitResult | None = None
        self.done = ""
        self._peers_before: list[Peer] = []

    # The file

    def load(self) -> State | None:
        """Return the state in the file, or None if the file does not exist. Raises FileError."""
        try:
            return _state(self._as_owner(_fields_in))
        except StateError as error:
            raise InvalidFileError(f"{self.path}: {error}", error) from error
        except (_as_owner.PathError, _as_owner.NoOutcomeError, OSError) as error:
            raise FileError(f"{self.path}: {error}", error) from error

    def plan(self, found: State | None) -> State:
        """Return the state that replaces the one that was found, and record both. Raises InvalidFileError."""
        after = self._wanted(found)
        self._note(found, after)
        return after

    def edit(self) -> State:
        """Change the file under its lock, and return the new state. Raises FileError.

        The state before may differ from the one that was found, because another change may have been made since.
        """

        def edit(folder: int, name: str) -> tuple[Fields | None, Fields]:
            # A new file must get its mode regardless of the umask. This affects only the child process.
            os.umask(0o022)
            before, after = StateFile(name, folder).edit(self.change.wanted, self.deadline)
            return before and before.fields(), after.fields()

        try:
            before, after = self._as_owner(edit)
        except StateError as error:
            raise InvalidFileError(f"{self.path}: {error}", error) from error
        except (LockedError, _as_owner.PathError) as error:
            raise FileError(f"{self.path}: {error}", error) from error
        except (_as_owner.NoOutcomeError, OSError) as error:
            self._fail_after_edit(error)
        self._note(_state(before), from_fields(after))
        return from_fields(after)

    def _wanted(self, found: State | None) -> State:
        try:
            return self.change.wanted(found)
        except StateError as error:
            raise InvalidFileError(f"{self.path}: {error}", error) from error

    def _note(self, before: State | None, after: State) -> None:
        self.is_read = True
        self.before, self.after = before, after
        self.kept = before is not None and not self.change.is_for(before)

    def _fail_after_edit(self, error: Exception) -> t.NoReturn:
        """Raise a FileError after an error. The file may have been replaced anyway, so it is read again."""
        self.done = f"The file {self.path} may have been changed"
        found = self.load()
        if found == self._wanted(self.before):
            self.done = f"The file {self.path} was changed"
            raise FileError(f"an error occurred while its folder was written to the disk: {error}", error) from error
        self.done = ""
        now = "" if found == self.before or found is None else f". It was meanwhile changed to {found.answer()}"
        raise FileError(f"cannot write {self.path}: {error}{now}", error) from error

    def _as_owner(self, work: _as_owner.Work) -> t.Any:
        deadline = max(self.deadline, time.monotonic()) + DISK_SECONDS
        return _as_owner.run(self.path, work, deadline, (StateError, MissingError, LockedError))

    # The agent

    def ask(self, instance: Instance, *, with_peers: bool) -> str:
        """Return what the agent answers, with reset keywords ignored. Raises InstanceError.

        Call this after plan() and before edit(). C(with_peers) is whether await_peers() will be called.
        """
        if with_peers:
            self._peers_before = instance.status(self.deadline)["peers"]
        answer = instance.answer(self.deadline)
        self.answer = self.before.answer() if self.before and instance.reports(self.before, answer) else answer
        return self.answer

    def await_answer(self, instance: Instance) -> State:
        """Make the agent read the file, and wait until it answers with the state in it. Returns that state.

        Raises ChangeError and InstanceError.
        """
        state = self.planned
        self.done = f"The file {self.path} contains {state.answer()}"
        instance.reload()
        while True:
            over = time.monotonic() >= self.deadline
            answer = instance.answer(max(self.deadline, time.monotonic()) + LAST_LOOK_SECONDS)
            if instance.reports(state, answer):
                self.answer = state.answer()
                return state
            if over:
                self._fail_for_answer(instance, answer)
            time.sleep(POLL_SECONDS)
            # The file may have been changed again, and the agent may have read the newer state.
            state = self._as_it_is_now(state)

    def await_peers(self, instance: Instance, wait_for: WaitFor, seconds: float) -> State:
        """Wait until the load balancers have received the state. Returns the state that they received.

        Raises ChangeError, also NotReceivedError, and InstanceError.
        """
        deadline = time.monotonic() + seconds
        while True:
            over = time.monotonic() >= deadline
            # Query once more after the deadline, so that the failure can name those without the state.
            if self.look_at_peers(instance, wait_for, max(deadline, time.monotonic()) + LAST_LOOK_SECONDS, over=over):
                return self.planned
            time.sleep(POLL_SECONDS)

    def look_at_peers(self, instance: Instance, wait_for: WaitFor, deadline: float, *, over: bool) -> bool:
        """Query the agent once, record in C(received) what it reports, and return whether the wait is over.

        With C(over), this is the last query, and it raises NotReceivedError instead of returning False. Raises
        ChangeError and InstanceError. C(deadline), on the monotonic clock, is that of this query.
        """
        state = self.planned
        self.done = f"The file {self.path} contains {state.answer()} and the agent reports it"
        status = instance.status(deadline)
        if status["state"] != state.fields():
            state = self._as_it_is_now(state)
        is_reported = status["state"] == state.fields()
        if is_reported:
            self.answer = state.answer()
            self.received = wait_for.result(status["peers"], polling(self._peers_before))
            if self.received.complete:
                return True
        if over and not is_reported:
            self._fail_for_answer(instance, status["answer"])
        if over and self.received:
            # The agent may have dropped some of the load balancers that it listed before.
            raise NotReceivedError(self.received, [*self._peers_before, *status["peers"]])
        return False

    @property
    def planned(self) -> State:
        """The state C(after), which must be known."""
        if self.after is None:
            raise RuntimeError("the state was not read")
        return self.after

    def _as_it_is_now(self, state: State) -> State:
        """The state in the file now. It may differ from C(state) because of another change.

        Raises ChangeError if the values of the change are no longer in effect.
        """
        now = self.load()
        if now == state:
            return state
        self.after = now
        if now is None or not (self.kept or self.change.applied_to(now) == now):
            self.answer = now.answer() if now else None
            raise ChangeError(f"the state was changed by something else to {now.answer() if now else 'none'}")
        return now

    def _fail_for_answer(self, instance: Instance, answer: str) -> t.NoReturn:
        self.answer = answer
        where = instance.status_socket or f"{instance.address} port {instance.port}"
        raise AnswerError(where, answer, _why(instance))


def _fields_in(folder: int, name: str) -> Fields | None:
    try:
        return StateFile(name, folder).load().fields()
    except MissingError:
        return None


def _state(fields: Fields | None) -> State | None:
    return from_fields(fields) if fields is not None else None


def _why(instance: Instance) -> str:
    """The reason that the agent reports for answering FAIL although its state is not set to FAIL, or ''."""
    try:
        return why_fail(instance.status(time.monotonic() + LAST_LOOK_SECONDS)) if instance.status_socket else ""
    except InstanceError:
        return ""
