# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""A lock that only one run of the playbooks has at a time: a small file that names the run.

The run writes the file again as a sign that it goes on. How long ago that was is the age of the file, by the clock of
the host where it is, so that the clocks of control nodes do not matter.
"""

from __future__ import annotations

import json
import os
import stat
import time
import typing as t

from . import _as_owner
from ._state import LockedError, MissingError, StateError, from_fields, locked, read, replace

MAX_BYTES = 4096
MAX_RUN = 200
WORK = ("drains", "rolls")
# The end of the year 9999.
MAX_TIMESTAMP = 253402300799
MAX_SECONDS = 7 * 86400
# How long the lock of the file may be held, which is only while another run reads or writes it.
PATIENCE_SECONDS = 5.0
# As the run that has the lock: whichever has it.
ANY = "*"

# What passes from the process that accesses the file, which may have the rights of another user.
Found = t.Optional[list[t.Any]]


class LockFileError(Exception):
    """The file is not a lock that can be trusted. The text describes the problem."""


class Claim(t.NamedTuple):
    """The run that has the lock, or asks for it.

    C(run) identifies the run, C(who) is the user at the control node, C(work) what the run does with its C(reason), ''
    if it has none. C(since), in seconds since 1970, is when the run began, and C(expires) the number of seconds without
    a sign after which the lock is free.
    """

    run: str
    who: str
    work: str
    reason: str
    since: int
    expires: int


class Held(t.NamedTuple):
    """The lock as another run has it, and how many seconds ago that run gave its last sign."""

    claim: Claim
    age: float


def from_object(fields: t.Any) -> Claim:
    """Check a claim. Raises LockFileError."""
    if not isinstance(fields, dict) or fields.keys() != {*Claim._fields}:
        raise LockFileError(f"it must be one JSON object with {', '.join(Claim._fields)}")
    claim = Claim(**fields)
    try:
        # Both are texts of the state.
        from_fields({"status": "UP", "by": claim.who, "reason": claim.reason or None})
    except StateError as error:
        raise LockFileError(str(error)) from error
    if not (isinstance(claim.run, str) and claim.run.isprintable() and 1 <= len(claim.run) <= MAX_RUN):
        raise LockFileError(f"run must be text of 1 to {MAX_RUN} characters")
    if not isinstance(claim.who, str) or not isinstance(claim.reason, str) or claim.work not in WORK:
        raise LockFileError(f"who and reason must be text, and work one of {', '.join(WORK)}")
    for name, limit in (("since", MAX_TIMESTAMP), ("expires", MAX_SECONDS)):
        value = getattr(claim, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
            raise LockFileError(f"{name} must be a whole number from 0 to {limit}")
    return claim


def parse(raw: bytes) -> Claim:
    """The claim in the content of the file. Raises LockFileError."""
    try:
        return from_object(json.loads(raw))
    except (ValueError, RecursionError) as error:
        raise LockFileError("it is not JSON") from error


def keeps(held: Held | None, run: str, over: str) -> bool:
    """Whether another run keeps the lock from this one, which may take it over from the run C(over)."""
    return bool(held and held.claim.run not in (run, over) and over != ANY and held.age < held.claim.expires)


def take(path: str, claim: Claim, over: str) -> Held | None:
    """Take the lock, or give another sign if this run has it. Returns the run that keeps it, None if it is taken.

    It may be taken over from the run C(over). Raises LockFileError, LockedError, StateError, and the exceptions of
    _as_owner.run().
    """

    def work(folder: int, name: str) -> Found:
        _check_folder(folder)
        with locked(f"{name}.lock", folder, time.monotonic() + PATIENCE_SECONDS):
            held = _held(folder, name)
            if not keeps(held, claim.run, over):
                is_ours = held and held.claim.run == claim.run
                kept = claim._replace(since=held.claim.since) if held and is_ours else claim
                replace(name, json.dumps(kept._asdict()).encode() + b"\n", f"{name}.tmp", folder)
                held = None
            return _found(held)

    return _known(_run(path, work))


def look(path: str, run: str, over: str) -> Held | None:
    """The run that would keep the lock from this run, None if it could take it. Raises as take() does."""

    def work(folder: int, name: str) -> Found:
        _check_folder(folder)
        held = _held(folder, name)
        return _found(held if keeps(held, run, over) else None)

    return _known(_run(path, work))


def release(path: str, run: str) -> bool:
    """Remove the lock if this run has it. Returns whether it had it. Raises as take() does."""

    def work(folder: int, name: str) -> bool:
        _check_folder(folder)
        with locked(f"{name}.lock", folder, time.monotonic() + PATIENCE_SECONDS):
            held = _held(folder, name)
            if not held or held.claim.run != run:
                return False
            os.unlink(name, dir_fd=folder)
            return True

    return bool(_run(path, work))


def _found(held: Held | None) -> Found:
    return held and [held.claim._asdict(), held.age]


def _known(found: Found) -> Held | None:
    return Held(from_object(found[0]), float(found[1])) if found else None


def _run(path: str, work: _as_owner.Work) -> t.Any:
    deadline = time.monotonic() + 2 * PATIENCE_SECONDS
    return _as_owner.run(path, work, deadline, (LockFileError, LockedError, StateError))


def _check_folder(folder: int) -> None:
    """Refuse a folder in which other users could put a lock of another run, or remove that of this one."""
    status = os.fstat(folder)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LockFileError("other users can write to its folder: use another one, such as /run if you log in as root")


def _held(folder: int, name: str) -> Held | None:
    try:
        raw, status = read(name, MAX_BYTES, folder)
    except MissingError:
        return None
    if status.st_uid not in (0, os.geteuid()):
        raise LockFileError(f"it belongs to user {status.st_uid}")
    # If the clock was set back, the sign counts as one that was just given.
    return Held(parse(raw), max(0.0, time.time() - status.st_mtime))
