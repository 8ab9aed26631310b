# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decide which weight follows from what a weight command reports. Nothing here reads or writes anything.

A reading is smoothed (the median of the last ones, so that a single outlier changes nothing), limited to a range, and
approached in steps. If the command keeps failing, the configured values come back.
"""

from __future__ import annotations

import json
import math
import typing as t

from hapgent._printable import printable
from hapgent._state import FIELDS, State

# Out of rotation, a weight has no effect, and a change of the state would only delay what waits for the drain.
IN_ROTATION = ["UP", "READY"]
# HAProxy uses the weight of its configuration, which is 100%, until it has received another one.
UNSET_WEIGHT = 100

Fields = dict[str, t.Optional[int]]


class ReadingError(Exception):
    """The output of the command is not a reading. The text describes the problem."""


class Reading(t.NamedTuple):
    """What the command has reported. Either may be None, but not both."""

    weight: float | None = None
    maxconn: int | None = None


class Limits(t.NamedTuple):
    """How the weight may change.

    C(step) is the largest change at a time, C(smoothing) the number of readings whose median counts, and C(fallback)
    for how many seconds the command may fail until the configured values come back.
    """

    minimum: int = 1
    maximum: int = 100
    step: int = 20
    smoothing: int = 3
    fallback: float = 300.0


class Record(t.NamedTuple):
    """What one run leaves to the next.

    C(problem) is why the last run has failed, '' if it has not, and C(since) when the first of these runs was.
    C(succeeded) is when the last reading was, 0 if there was none, and C(readings) are the last ones. C(applied) are
    the fields that were set last, and C(configured) the values that come back; None means that the field is not set.
    """

    problem: str
    since: float
    succeeded: float
    readings: list[float]
    applied: Fields
    configured: Fields

    def failed(self, problem: str, now: float) -> Record:
        """This record after a run that has failed."""
        # The clock may have been set back.
        since = min(self.since, now) if self.problem else now
        return self._replace(problem=printable(problem), since=since)

    def fallback(self, state: State) -> Fields:
        """The fields that must change for the configured values to come back.

        What was changed otherwise since stays.
        """
        current = state.fields()
        ours = [name for name, value in self.applied.items() if value is not None and value == current.get(name)]
        return {name: self.configured.get(name) for name in ours}


# What there is before the first run.
NO_RECORD = Record("", 0.0, 0.0, [], {}, {})


def parse_reading(output: bytes) -> Reading:
    """The reading in the output of a command: a number, or an object with weight and maxconn. Raises ReadingError."""
    shown = printable(output.strip(), 60)
    try:
        found = json.loads(output.decode("ascii"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ReadingError(f"it must print a number or a JSON object, not {shown!r}") from error
    values = found if isinstance(found, dict) else {"weight": found}
    if not values or not values.keys() <= {*Reading._fields}:
        raise ReadingError(f"its JSON object must have weight or maxconn, and nothing else, not {shown!r}")
    if "weight" in values and not is_number(values["weight"]):
        raise ReadingError(f"the weight must be a number, not {shown!r}")
    maximum = FIELDS["maxconn"].limit
    if "maxconn" in values and not is_whole_number(values["maxconn"], 1, maximum):
        # HAProxy takes 0 as no limit.
        raise ReadingError(f"maxconn must be a whole number from 1 to {maximum}, not {shown!r}")
    return Reading(**values)


def decide(reading: Reading, record: Record, limits: Limits, state: State, now: float) -> tuple[Record, Fields]:
    """The record after this reading, and the fields that the state must have."""
    # Readings from before a long failure are outdated.
    is_outdated = record.problem and now - record.since >= limits.fallback
    readings = [] if is_outdated else record.readings
    if reading.weight is not None:
        readings = [*readings, float(reading.weight)][-limits.smoothing :]
    after = record._replace(problem="", since=0.0, succeeded=now, readings=readings)
    if state.status not in IN_ROTATION:
        return after, {}
    fields: Fields = {} if reading.maxconn is None else {"maxconn": reading.maxconn}
    # A weight of 0 that was set otherwise keeps new sessions away, like a drain.
    is_kept_out = state.weight == 0 and record.applied.get("weight") != 0
    if reading.weight is not None and not is_kept_out:
        fields["weight"] = _approach(state.weight, _median(readings), limits)
    return after, fields


def decide_failure(
    problem: str, record: Record, limits: Limits, state: State | None, now: float
) -> tuple[Record, Fields]:
    """The record after a run that has failed, and the fields that the state must have. C(state) is None if unknown."""
    after = record.failed(problem, now)
    is_over = now - after.since >= limits.fallback
    return after, after.fallback(state) if is_over and state and state.status in IN_ROTATION else {}


def _median(values: list[float]) -> float:
    # The module statistics takes as long to import as a whole run.
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _approach(current: int | None, wanted: float, limits: Limits) -> int:
    target = round(max(limits.minimum, min(limits.maximum, wanted)))
    now = UNSET_WEIGHT if current is None else current
    return max(now - limits.step, min(now + limits.step, target))


def is_number(value: t.Any) -> bool:
    """Whether a value in JSON is a number that can be calculated with."""
    # Also false for infinity, which JSON can write as 1e999, and for integers that no float can represent.
    is_numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_numeric and abs(value) <= 1e15 and not math.isnan(value)


def is_whole_number(value: t.Any, minimum: int, maximum: int) -> bool:
    """Whether a value in JSON is an integer in this range."""
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def refuse(constant: str) -> t.NoReturn:
    """Raise ValueError for a constant that is not JSON."""
    raise ValueError(f"{constant} is not a number")
