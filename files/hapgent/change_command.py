# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The commands that change the state: "hapgent drain" and the others. They share the change itself with the modules.

All instances are checked first, then all are changed, then all are waited for together.
"""

from __future__ import annotations

import errno
import io
import os
import pwd
import shutil
import signal
import sys
import time
import typing as t

from hapgent import SIGNALS, _who, instances, usage
from hapgent._agent_client import Instance
from hapgent._agent_process import POLL_SECONDS, InstanceError, NotRunningError, manager
from hapgent._change import AgentState, Change, ChangeError, FileError, InvalidFileError, NotReceivedError
from hapgent._deadline import check_seconds
from hapgent._printable import printable
from hapgent._state import (
    FIELDS,
    IN_ROTATION,
    STATUSES,
    UNSENT,
    MissingError,
    State,
    StateError,
    from_fields,
    moment,
    timestamp,
)
from hapgent._wait_for import WaitFor
from hapgent.instances import Found
from hapgent.usage import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOT_PERMITTED,
    EXIT_NOT_RECEIVED,
    EXIT_NOT_RUNNING,
    EXIT_OK,
    EXIT_USAGE,
)

STATUS_OF = {"drain": "DRAIN", "undrain": "UP", "up": "UP", "down": "DOWN", "maint": "MAINT", "ready": "READY"}
# For the first answer of the agent, the lock of the state file and the new answer.
PATIENCE_SECONDS = 10.0
# For one of the many queries of an agent while it is waited for.
LOOK_SECONDS = 2.0
LAST_LOOK_SECONDS = 5.0
REMOVES = "none"
# Longer text is cut. It may contain a path and a reason.
MAX_SHOWN = 8000


class ProblemError(Exception):
    """The command cannot do what is requested. C(code) is the exit status."""

    def __init__(self, text: str, code: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.code = code


class Request(t.NamedTuple):
    """What the arguments request. C(wait) is None without --wait. C(service) is None without --service."""

    change: Change
    wait: float | None
    service: str | None
    all_: bool


def main(command: usage.Command, arguments: list[str]) -> int:
    """Change the state. Returns the exit status."""
    try:
        request = _request(command, usage.read(command, arguments))
    except (usage.UsageError, StateError, ValueError) as error:
        _print_error(f"hapgent {command.name}: {error}")
        print(usage.usage_of(command), file=sys.stderr)
        return EXIT_USAGE
    # Signals end this program as they end others, except that Ctrl-C never comes between the steps of a change.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        targets = [Target(found, request) for found in _selected(command.name, request)]
        _check_all(targets)
    except KeyboardInterrupt:
        _print_error("Interrupted. Nothing was changed.")
        return EXIT_INTERRUPTED
    except ProblemError as problem:
        _print_error(f"{problem}. Nothing was changed.")
        return problem.code
    # Ctrl-C waits until all are changed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    for target in targets:
        target.apply()
    interrupted = False
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if request.wait is not None:
            _await_all(targets, request.wait)
    except KeyboardInterrupt:
        interrupted = True
    for target in targets:
        target.report(interrupted)
    if interrupted:
        return EXIT_INTERRUPTED
    codes = {target.code for target in targets}
    # The most serious one counts.
    serious = (EXIT_FAILED, EXIT_NOT_PERMITTED, EXIT_NOT_RUNNING, EXIT_NOT_RECEIVED)
    return next((code for code in serious if code in codes), EXIT_OK)


def _print_error(text: str) -> None:
    print(printable(text, MAX_SHOWN), file=sys.stderr)


# The arguments


def _request(command: usage.Command, given: usage.Arguments) -> Request:
    """Return what is requested. Raises UsageError, StateError and ValueError."""
    options = given.options
    wait = None
    if "--wait" in options:
        wait = _seconds(options["--wait"]) if options["--wait"] else float(usage.WAIT_SECONDS)
    fields = _assignments(given.words) if command.name == "set" else {"status": STATUS_OF[command.name]}
    for name in ("reason", "until", "then"):
        if f"--{name}" in options:
            if name in fields:
                raise usage.UsageError(f"{name} must not be set twice, as a field and with --{name}")
            fields[name] = options[f"--{name}"]
    if not fields:
        raise usage.UsageError(f"at least one field must be set: {', '.join(FIELDS)}")
    if fields.get("until") is not None:
        fields["until"] = _future(fields["until"])
    if fields.get("then") is not None:
        # The name of the command is accepted too.
        fields["then"] = fields["then"].upper()
    named = {name: value for name, value in fields.items() if value is not None}
    # A server in rotation needs no one to ask about it, unless there is a reason.
    if "by" not in fields and ({"reason", "until"} & named.keys() or named.get("status", "UP") not in IN_ROTATION):
        named["by"] = _who.current()
    # Checking these fields alone is enough: the previous state adds only valid ones, and may have the moment for then.
    added = {"until": moment("1d", time.time())} if command.name == "set" and "until" not in fields else {}
    checked = from_fields({"status": STATUSES[0], **added, **named}).fields()
    change = Change({name: checked[name] for name in named}, [name for name in fields if name not in named])
    return Request(change, wait, options.get("--service"), "--all" in options)


def _future(text: str) -> str:
    """Return the moment, in the form of a state. Raises StateError, and UsageError if it is over."""
    now = time.time()
    until = moment(text, now)
    if timestamp(until) < now:
        raise usage.UsageError(f"until must be in the future, not {until}")
    return until


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise usage.UsageError(f"--wait must be a number of seconds, not {text!r}") from None
    check_seconds("--wait", seconds)
    return seconds


def _assignments(words: t.Sequence[str]) -> dict[str, t.Any]:
    """Return the fields that these words set, None for those that they remove. Raises UsageError."""
    fields: dict[str, t.Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise usage.UsageError(f"fields are set as FIELD=VALUE, such as weight=50, not {word!r}")
        if name not in FIELDS:
            hint = ": use a command such as hapgent drain" if name == "status" else usage.suggestion(name, FIELDS)
            raise usage.UsageError(f"unknown field {name!r}{hint or ': the fields are ' + ', '.join(FIELDS)}")
        if name in fields:
            raise usage.UsageError(f"{name} must not be set twice")
        field = FIELDS[name]
        if value == REMOVES:
            fields[name] = None
        elif field.kind == "int" and not (value.isascii() and value.isdigit() and len(value) <= len(str(field.limit))):
            raise usage.UsageError(f"{name} must be a whole number from {field.range}, or {REMOVES}, not {value!r}")
        else:
            fields[name] = int(value) if field.kind == "int" else value
    return fields


def _selected(command: str, request: Request) -> list[Found]:
    """Return the instances that the options select. Raises ProblemError."""
    try:
        path = os.environ.get("HAPGENT_STATE_FILE")
        if path and request.service is None and not request.all_:
            return [instances.serving(path)]
        return instances.select(instances.discover(), request.service, all_=request.all_)
    except instances.SelectionError as error:
        raise ProblemError(f"hapgent {command}: {error}", EXIT_USAGE) from error
    except InstanceError as error:
        raise ProblemError(f"hapgent {command}: {error}") from error


# One instance


class Target:
    """An instance, and what was done to it so far.

    C(problem) is why that was not everything, '' if it was. C(missing) describes the load balancers that have not
    received the state. C(code) is the exit status that follows. C(was) is what was replaced, '' if nothing was.
    """

    def __init__(self, found: Found, request: Request) -> None:
        self.found = found
        self.agent = AgentState(found.state_file, request.change, time.monotonic() + PATIENCE_SECONDS)
        self.problem = ""
        self.missing = ""
        self.code = EXIT_OK
        self.was = ""
        self.is_over = False
        self._waits = request.wait is not None
        self._instance: Instance | None = None
        self._stopped = ""

    def check(self) -> None:
        """Check that the state can be changed, without changing anything. Raises ProblemError."""
        self.agent.deadline = time.monotonic() + PATIENCE_SECONDS
        self._check_permission()
        state: State | None = None
        try:
            state = self.agent.load()
            self.agent.plan(state)
            self._find()
            if self._instance:
                self.agent.ask(self._instance, with_peers=self._waits)
        except InvalidFileError as error:
            if isinstance(error.error, MissingError):
                raise ProblemError(f"{self.found.label}: {self.found.state_file} does not exist") from error
            # What is in the file may be valid, but not together with the change.
            raise ProblemError(f"{self.found.label}: {error}{'' if state else '. Fix the file'}") from error
        except (ChangeError, InstanceError) as error:
            raise ProblemError(f"{self.found.label}: {error}") from error

    def apply(self) -> None:
        """Change the file, and make the agent answer with it. Problems are recorded."""
        # The time that the user and other instances took does not count.
        self.agent.deadline = time.monotonic() + PATIENCE_SECONDS
        found, planned, answer = self.agent.before, self.agent.planned, self.agent.answer
        try:
            if planned != found:
                planned = self.agent.edit()
            before = self.agent.before
            if before and before != planned:
                self.was = described(before)
            elif answer not in (None, planned.answer()):
                self.was = answer or ""
            if self._instance and (self.was or planned != found):
                self.agent.await_answer(self._instance)
        except (ChangeError, InstanceError) as error:
            self._fail(error)
        self.is_over = bool(self.problem or not self._instance or not self._waits)

    def look(self, *, over: bool) -> None:
        """Query which load balancers have received the state. Problems are recorded."""
        assert self._instance
        try:
            query = time.monotonic() + (LAST_LOOK_SECONDS if over else LOOK_SECONDS)
            self.is_over = self.agent.look_at_peers(self._instance, WaitFor("auto"), query, over=over)
        except NotReceivedError as error:
            self._miss(error)
        except InstanceError as error:
            # The agent may be restarting.
            if over:
                self._fail(error, "it is unknown which load balancers received it: ")
        except ChangeError as error:
            self._fail(error)

    def progress(self) -> str:
        """Which load balancers have received the state so far, '' if the report follows anyway."""
        received = self.agent.received
        if self.is_over:
            return ""
        if not received:
            return f"{self.found.label}: waiting for load balancers"
        missing = ", ".join(received.not_received_by) or "load balancers"
        return f"{self.found.label}: {_received_by(received.received_by, 'not received yet')}, waiting for {missing}"

    def report(self, interrupted: bool) -> None:
        """Print what was done, and what was not."""
        label = self.found.label
        if self.problem:
            done = (
                f"{self.agent.done}, but {self.problem}" if self.agent.done else f"{self.problem}. Nothing was changed"
            )
            _print_error(f"{label}: {done}.")
            return
        planned = self.agent.planned
        # Who runs the command needs no name.
        new = described(planned._replace(by=None))
        done = f"{label}: {new} (was {self.was})" if self.was else f"{label}: already {described(planned)}"
        received = self.agent.received
        if self._stopped:
            _print_error(f"{done} in {self.found.state_file}, but the agent does not run{self._stopped}.")
        elif self.missing:
            _print_error(f"{done}{_received_by(received.received_by if received else (), '', ', ')}, {self.missing}.")
        elif interrupted and not self.is_over:
            missing = ", ".join(received.not_received_by) if received else ""
            has_it = _received_by(received.received_by if received else (), "received by no load balancer yet")
            _print_error(f"{done}. Interrupted: {has_it}{missing and f', not yet by {missing}'}.")
        else:
            print(printable(f"{done}{_received_by(received.received_by if received else (), '', ', ')}.", MAX_SHOWN))
        before, after = self.agent.before, self.agent.after
        if before and after and before.maxconn is not None and after.maxconn is None:
            _print_error(
                f"{label}: HAProxy keeps maxconn {before.maxconn}, because no agent response can reset it. Set maxconn "
                "to the configured value, or change it in HAProxy (set maxconn server)."
            )

    def _find(self) -> None:
        try:
            self._instance = self.found.find(self.agent.deadline)
        except NotRunningError as error:
            state = error.state or self.found.state
            self._stopped = f" ({state})" if state else ""
            managed = manager()
            if self.found.service and managed:
                self._stopped += f". Start it with {managed.command('start', self.found.service)}"
            self.code = EXIT_NOT_RUNNING
            self._stopped = self._stopped or " (no process serves this file)"
            return
        if self._waits and not self._instance.status_socket:
            raise ProblemError(
                f"{self.found.label}: --wait requires a status socket, and the agent has none: set its HAPGENT_SOCKET"
            )

    def _check_permission(self) -> None:
        """Check that this user may change the state. Raises ProblemError."""
        me = os.geteuid()
        if me == 0:
            return
        user = self._owner()
        folder = os.path.dirname(self.found.state_file)
        others = why = ""
        if user == me and self.found.is_hidden:
            why = ". The sandbox of its service hides the agent's process from other processes of its user"
        elif user == me and not os.access(folder, os.W_OK, effective_ids=True):
            why = f". {printable(folder)} must be writable for its user"
        elif user == me:
            return
        elif user and not self.found.is_hidden:
            others = f" and user {_user_name(user)}"
        raise ProblemError(
            f"{self.found.label}: user {_user_name(me)} may not change the state, only root{others} may{why}",
            EXIT_NOT_PERMITTED,
        )

    def _owner(self) -> int | None:
        """The user who may change the state besides root, None if it is not known."""
        if self.found.process:
            return self.found.process.user
        try:
            return os.stat(os.path.dirname(self.found.state_file)).st_uid
        except OSError:
            return None

    def _fail(self, error: Exception, before: str = "") -> None:
        self.is_over = True
        self.code = EXIT_FAILED
        if isinstance(error, FileError) and getattr(error.error, "errno", None) in (errno.EACCES, errno.EPERM):
            self.code = EXIT_NOT_PERMITTED
        self.problem = f"{before}{error}"

    def _miss(self, error: NotReceivedError) -> None:
        self.is_over = True
        self.code = EXIT_NOT_RECEIVED
        if error.result.not_received_by:
            self.missing = f"not received by {error.result.missing(error.peers)}"
        else:
            self.missing = (
                "but no load balancer polls the agent, so none acts on the state. Check that the server line in "
                "HAProxy has agent-check and the right agent-port, and that no firewall blocks it"
            )


def described(state: State) -> str:
    """Return the state as people read it: like the answer of the agent, but without keywords for HAProxy alone."""
    values = state.fields()
    words = [state.status]
    for name, field in FIELDS.items():
        if name in values and name not in UNSENT:
            words.append(f"{field.prefix}{values[name]}{field.unit}")
    return " ".join(words) + state.remarks()


def _received_by(addresses: t.Sequence[str], none: str, before: str = "") -> str:
    return f"{before}received by {', '.join(addresses)}" if addresses else none


def _user_name(user: int | None) -> str:
    try:
        return printable(pwd.getpwuid(user).pw_name) if user is not None else "unknown"
    except KeyError:
        return str(user)


# All of them


def _check_all(targets: list[Target]) -> None:
    """Check all before any is changed. Raises ProblemError, which describes the problems of all."""
    problems = []
    for target in targets:
        try:
            target.check()
        except ProblemError as problem:
            problems.append(problem)
    if problems:
        raise ProblemError(". ".join(map(str, problems)), problems[0].code)


def _await_all(targets: list[Target], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    with _Progress() as progress:
        while True:
            over = time.monotonic() >= deadline
            for target in targets:
                if not target.is_over:
                    target.look(over=over)
            progress.show([target.progress() for target in targets])
            if over or all(target.is_over for target in targets):
                return
            time.sleep(POLL_SECONDS)


class _Progress:
    """Shows lines that change: in place on a terminal, otherwise each line that has changed.

    What is shown in place is removed at the end, because the result repeats it.
    """

    def __init__(self) -> None:
        # Standard output is None if it is closed.
        self._in_place = sys.stdout is not None and sys.stdout.isatty()
        self._shown: list[str] = []

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._in_place:
            self._clear()
            sys.stdout.flush()

    def show(self, lines: list[str]) -> None:
        if lines == self._shown:
            return
        if self._in_place:
            self._clear()
            # A line that the terminal wraps would take more than one row.
            width = max(10, shutil.get_terminal_size().columns - 1)
            sys.stdout.writelines(f"{printable(line, width)}\n" for line in lines if line)
            sys.stdout.flush()
        else:
            before = self._shown or [""] * len(lines)
            for line in (line for line, shown in zip(lines, before) if line and line != shown):
                print(printable(line, MAX_SHOWN))
        self._shown = lines

    def _clear(self) -> None:
        rows = sum(1 for line in self._shown if line)
        if rows:
            sys.stdout.write(f"\x1b[{rows}F\x1b[J")
