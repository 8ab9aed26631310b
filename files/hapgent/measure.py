# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The commands "hapgent load" and "hapgent pressure", which print the weight that suits the load of this host."""

from __future__ import annotations

import os
import re
import sys
import typing as t

from hapgent import usage

PRESSURE = "/proc/pressure"
RESOURCES = ("cpu", "memory", "io")
# The share of the last ten seconds in which at least one process waited. Source: Documentation/accounting/psi.rst in
# the source code of Linux.
AVG10 = re.compile(r"^some avg10=([0-9]{1,3}\.[0-9]{1,2}) ", re.MULTILINE)
MAX_BYTES = 4096


class MeasureError(Exception):
    """The load cannot be measured. The text gives advice."""


def main(command: usage.Command, arguments: list[str]) -> int:
    """Print a weight. Returns the exit status."""
    try:
        words = usage.read(command, arguments).words
        for word in words:
            if word not in RESOURCES:
                raise usage.UsageError(f"RESOURCE must be one of {', '.join(RESOURCES)}, not {word!r}")
        if command.name == "load":
            weight = weight_of_load(os.getloadavg()[0], len(os.sched_getaffinity(0)))
        else:
            weight = weight_of_pressure([_pressure(name) for name in words or RESOURCES])
    except usage.UsageError as error:
        print(f"hapgent {command.name}: {error}\n{usage.usage_of(command)}", file=sys.stderr)
        return usage.EXIT_USAGE
    except (MeasureError, OSError) as error:
        print(f"hapgent {command.name}: {error}.", file=sys.stderr)
        return usage.EXIT_FAILED
    print(weight)
    return usage.EXIT_OK


def weight_of_load(load: float, cores: int) -> int:
    """The weight for this load average: as long as each process has a core, 100; with twice as many, 50, and so on."""
    return round(100 * cores / max(load, cores))


def weight_of_pressure(shares: t.Collection[float]) -> int:
    """The weight for these pressures, in percent: what the highest of them leaves of 100."""
    return round(100 - max(shares))


def parse_pressure(text: str) -> float:
    """The pressure in the content of a file of PRESSURE, in percent. Raises MeasureError."""
    match = AVG10.search(text)
    if not match or float(match[1]) > 100:
        raise MeasureError("its content is not that of Linux")
    return float(match[1])


def _pressure(resource: str) -> float:
    path = os.path.join(PRESSURE, resource)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return parse_pressure(file.read(MAX_BYTES))
    except OSError as error:
        raise MeasureError(
            f"cannot read {path} ({error.strerror}): the kernel does not measure pressure. Start it with psi=1, or use "
            "hapgent load"
        ) from error
    except MeasureError as error:
        raise MeasureError(f"cannot read {path}: {error}") from error
