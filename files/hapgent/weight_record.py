# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file beside the state file with what one run of "hapgent weigh" leaves to the next, and to "hapgent status"."""

from __future__ import annotations

import json
import os
import time
import typing as t

from hapgent import _as_owner
from hapgent._printable import printable
from hapgent._state import FIELDS, LockedError, MissingError, StateError, locked, read, replace
from hapgent.weight import Fields, Reading, Record, is_number, is_whole_number, refuse

SUFFIX = ".weight"
MAX_BYTES = 64 * 1024
# For the lock and for the disk.
PATIENCE_SECONDS = 5.0
# The end of the year 9999, the last one that Python can print.
MAX_TIMESTAMP = 253402300799.0
ERRORS = (StateError, MissingError)
SAVE_ERRORS = (OSError, LockedError, _as_owner.PathError, _as_owner.NoOutcomeError)


def load(state_file: str) -> Record | None:
    """Return the record of the last run, None if there is no valid one. Raises no exception."""

    def work(folder: int, name: str) -> str:
        return read(name + SUFFIX, MAX_BYTES, folder)[0].decode("ascii", "replace")

    try:
        return parse(_as_owner.run(state_file, work, time.monotonic() + PATIENCE_SECONDS, ERRORS))
    except (*ERRORS, ValueError, OSError, _as_owner.PathError, _as_owner.NoOutcomeError):
        return None


def save(state_file: str, record: Record | None) -> None:
    """Write the record, or remove it if it is None. Raises SAVE_ERRORS."""
    deadline = time.monotonic() + PATIENCE_SECONDS

    def work(folder: int, name: str) -> None:
        os.umask(0o022)
        # There is no separate lock, because a run does not hold this one any more when it saves its record.
        with locked(f"{name}.lock", folder, deadline):
            if record:
                replace(name + SUFFIX, _dump(record), f"{name}{SUFFIX}.tmp", folder)
            else:
                os.unlink(name + SUFFIX, dir_fd=folder)

    _as_owner.run(state_file, work, deadline + PATIENCE_SECONDS, (LockedError,))


def _dump(record: Record) -> bytes:
    """The content of the file that stores a record."""
    return json.dumps(record._asdict()).encode() + b"\n"


def parse(raw: str) -> Record:
    """The record in the content of a file, which any program of its owner may have written. Raises ValueError."""
    try:
        found = json.loads(raw, parse_constant=refuse)
        problem, readings = found["problem"], found["readings"]
        if not isinstance(problem, str) or not isinstance(readings, list) or not all(map(is_number, readings)):
            raise ValueError("not a record")
        return Record(
            printable(problem),
            _timestamp(found["since"]),
            _timestamp(found["succeeded"]),
            [float(reading) for reading in readings],
            _fields(found["applied"]),
            _fields(found["configured"]),
        )
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError("not a record") from error


def _fields(value: t.Any) -> Fields:
    for name, number in value.items() if isinstance(value, dict) else [("", 0)]:
        is_valid = name in Reading._fields and (number is None or is_whole_number(number, 0, FIELDS[name].limit))
        if not is_valid:
            raise ValueError("not the fields of a state")
    return dict(value)


def _timestamp(value: t.Any) -> float:
    if not is_number(value) or not 0 <= value <= MAX_TIMESTAMP:
        raise ValueError("not a time")
    return float(value)
