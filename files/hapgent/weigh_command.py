# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command "hapgent weigh": run a command that prints a weight, and set what follows from it.

The unit hapgent-weight@NAME.service runs this regularly, or cron.
"""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import time
import typing as t

from hapgent import SIGNALS, instances, log, usage, weight, weight_record
from hapgent._agent_process import InstanceError
from hapgent._change import AgentState, Change, ChangeError
from hapgent._printable import printable
from hapgent._state import FIELDS, State
from hapgent.change_command import PATIENCE_SECONDS, ProblemError, Request, Target, described
from hapgent.instances import Found, SelectionError
from hapgent.usage import COMMAND_SECONDS, EXIT_FAILED, EXIT_NOT_PERMITTED, EXIT_OK, EXIT_USAGE
from hapgent.weight import Limits, Reading, ReadingError, Record

MAX_OUTPUT_BYTES = 4096
# How often to look whether the command has ended.
POLL_SECONDS = 0.02


class Plan(t.NamedTuple):
    """What the arguments request. C(command) is empty with --restore."""

    command: list[str]
    limits: Limits
    configured: weight.Fields
    service: str | None


def main(command: usage.Command, arguments: list[str]) -> int:
    """Run the command and set the weight. Returns the exit status."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        plan = _plan(usage.read(command, arguments))
        found = _found(plan.service)
    except (usage.UsageError, SelectionError, ValueError) as error:
        print(printable(f"hapgent weigh: {error}", 1000), usage.usage_of(command), sep="\n", file=sys.stderr)
        return EXIT_USAGE
    except InstanceError as error:
        log.error(f"{error}. Nothing was changed")
        return EXIT_FAILED
    if not plan.command:
        return _restore(found)
    if os.geteuid() == 0:
        log.error("root must not run the command of hapgent weigh: run this as the user of the agent")
        return EXIT_NOT_PERMITTED
    return _weigh(found, plan)


# The arguments


def _plan(given: usage.Arguments) -> Plan:
    """Return what is requested. Raises UsageError and ValueError."""
    options = given.options
    if ("--restore" in options) == bool(given.words):
        raise usage.UsageError("either COMMAND or --restore must be given")
    default = usage.DEFAULTS
    highest = FIELDS["weight"].limit
    limits = Limits(
        _number(options, "--min", 0, highest, default.minimum),
        _number(options, "--max", 0, highest, default.maximum),
        _number(options, "--step", 1, highest, default.step),
        _number(options, "--smoothing", 1, 100, default.smoothing),
        _number(options, "--fallback", 0, 86400, int(default.fallback)),
    )
    if limits.minimum > limits.maximum:
        raise usage.UsageError(f"--min must not be higher than --max, but {limits.minimum} is than {limits.maximum}")
    configured = {
        name: _number(options, f"--{name}", 0, FIELDS[name].limit, 0) if f"--{name}" in options else None
        for name in Reading._fields
    }
    return Plan(given.words, limits, configured, options.get("--service"))


def _number(options: t.Mapping[str, str], name: str, minimum: int, maximum: int, default: int) -> int:
    text = options.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and minimum <= int(text) <= maximum):
        raise usage.UsageError(f"{name} must be a whole number from {minimum} to {maximum}, not {text!r}")
    return int(text)


def _found(service: str | None) -> Found:
    """Return the instance. Raises SelectionError and InstanceError."""
    path = os.environ.get("HAPGENT_STATE_FILE")
    if path and service is None:
        return instances.serving(path, os.environ.get("HAPGENT_SOCKET", ""))
    return instances.select(instances.discover(), service)[0]


# One run


def _weigh(found: Found, plan: Plan) -> int:
    before = (weight_record.load(found.state_file) or weight.NO_RECORD)._replace(configured=plan.configured)
    reading: Reading | None = None
    state: State | None = None
    problem = ""
    try:
        reading = weight.parse_reading(_output(plan.command))
    except ReadingError as error:
        problem = str(error)
    try:
        state = AgentState(found.state_file, Change({}), time.monotonic() + PATIENCE_SECONDS).load()
    except ChangeError as error:
        problem = problem or str(error)
    now = time.time()
    if reading and state:
        after, fields = weight.decide(reading, before, plan.limits, state, now)
    else:
        problem = problem or f"{found.state_file} does not exist"
        after, fields = weight.decide_failure(problem, before, plan.limits, state, now)
    after, change = _apply(found, fields, state, before, after) if fields else (after, "")
    try:
        weight_record.save(found.state_file, after)
    except weight_record.SAVE_ERRORS as error:
        file = f"{found.state_file}{weight_record.SUFFIX}"
        log.error(f"{found.label}: cannot write {file}: {error}. {change or 'Nothing was changed'}")
        return EXIT_FAILED
    _report(found, before, after, change)
    return EXIT_FAILED if after.problem else EXIT_OK


def _apply(
    found: Found, fields: weight.Fields, state: State | None, before: Record, after: Record
) -> tuple[Record, str]:
    """Set these fields, unless something else has changed the state since they were decided.

    Returns the record of that, and the change of the state in words, '' if it has not changed.
    """
    now = time.time()
    try:
        target = _set(found, fields, state)
    except ProblemError as error:
        problem = str(error).removeprefix(f"{found.label}: ")
        return after._replace(problem=before.problem, since=before.since).failed(problem, now), ""
    agent = target.agent
    if target.problem:
        after = after._replace(problem=before.problem, since=before.since)
        after = after.failed(f"{agent.done}, but {target.problem}" if agent.done else target.problem, now)
    if agent.kept or (target.problem and not agent.done):
        return after, ""
    change = f"{described(agent.planned)} (was {target.was})" if target.was else ""
    return after._replace(applied={**before.applied, **fields}), change


def _set(found: Found, fields: weight.Fields, known: State | None) -> Target:
    """Set these fields, and remove those that are None, if the state is still C(known). Raises ProblemError."""
    named = {name: value for name, value in fields.items() if value is not None}
    change = Change(named, [name for name in fields if name not in named], known=known)
    target = Target(found, Request(change, None, None, False))
    target.check()
    target.apply()
    return target


def _report(found: Found, before: Record, after: Record, change: str) -> None:
    """Print what has changed for people: not each weight, and not that the same problem persists."""
    label = found.label
    if after.problem and change:
        seconds = time.time() - after.since
        log.error(f"{label}: no weight for {seconds:.0f} s, so the configured one is back, {change}: {after.problem}")
    elif after.problem and not before.problem:
        log.error(f"{label}: no new weight, so the last one stays: {after.problem}")
    elif before.problem and not after.problem:
        log.notice(f"{label}: there is a weight again, after {time.time() - before.since:.0f} s")
    elif sys.stdout is not None and sys.stdout.isatty():
        print(printable(f"{label}: {after.problem or change or 'unchanged'}.", 1000))


def _restore(found: Found) -> int:
    """Set the configured values of the last run, except where something else was set since, and remove the record."""
    record = weight_record.load(found.state_file)
    if not record:
        return EXIT_OK
    try:
        state = AgentState(found.state_file, Change({}), time.monotonic() + PATIENCE_SECONDS).load()
        fields = record.fallback(state) if state else {}
        if fields:
            target = _set(found, fields, None)
            target.report(interrupted=False)
            if target.problem:
                return target.code
        weight_record.save(found.state_file, None)
    except (ProblemError, ChangeError, *weight_record.SAVE_ERRORS) as error:
        log.error(f"{error}. hapgent weigh --restore has not finished: run it again when that is fixed")
        return EXIT_FAILED
    return EXIT_OK


# The command


def _output(command: list[str]) -> bytes:
    """Run a command, and return what it prints. All processes of its group are killed. Raises ReadingError."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise ReadingError(f"cannot run {command[0]} ({error.strerror})") from error
    try:
        printed, errors = _collect(process, time.monotonic() + COMMAND_SECONDS)
    finally:
        # It has not been reaped, so the ID is still its own.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        how = "exited with" if process.returncode > 0 else "was killed by signal"
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        raise ReadingError(f"the command {how} {abs(process.returncode)}{f': {lines[-1]}' if lines else ''}")
    return printed


def _collect(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes]:
    """Return what the process prints until it ends, to both streams. Raises ReadingError."""
    assert process.stdout and process.stderr
    streams = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    opened = set(streams)
    has_ended = False
    while opened or not has_ended:
        if time.monotonic() >= deadline:
            raise ReadingError(f"the command did not end within {COMMAND_SECONDS} seconds")
        ready = select.select(opened, [], [], 0 if has_ended else POLL_SECONDS)[0]
        # Another process that it has left may keep the streams open.
        if has_ended and not ready:
            break
        for descriptor in ready:
            piece = os.read(descriptor, MAX_OUTPUT_BYTES)
            streams[descriptor] = (streams[descriptor] + piece)[: MAX_OUTPUT_BYTES + 1]
            opened -= set() if piece else {descriptor}
        if len(streams[process.stdout.fileno()]) > MAX_OUTPUT_BYTES:
            raise ReadingError(f"the command printed more than {MAX_OUTPUT_BYTES} bytes")
        has_ended = has_ended or bool(os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))
    printed, errors = streams.values()
    return printed, errors
