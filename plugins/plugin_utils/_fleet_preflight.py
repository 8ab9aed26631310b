# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Settings that the playbooks reject before they connect to a host."""

from __future__ import annotations

import contextlib
import re
import time
import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._state import FIELDS, StateError, moment, timestamp
from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import host_pattern, strangers, unknown, words

# A playbook puts the text into the name of a play if the variable is not defined when Ansible creates the play. If the
# host does have the variable, it is defined in the inventory, where it has no effect.
MISSING = {"hapgent_hosts": "the hosts of --limit", "hapgent_serial": "one at a time"}
# Numbers of hosts that may also be percentages.
SHARES = ("hapgent_min_up", "hapgent_max_failed", "hapgent_stop_after")
SHARE = re.compile("[0-9]{1,6}|([0-9]{1,2}|100)%")
DAY = 86400
RANGES = {
    "hapgent_min_up_wait": (0, DAY),
    "hapgent_grace": (0, DAY),
    "hapgent_max_sessions": (0, 2147483647),
    "hapgent_wait_timeout": (0, DAY),
    "hapgent_server_port": (1, 65535),
    "hapgent_health_tries": (1, DAY),
    "hapgent_bake": (0, DAY),
    "hapgent_bake_errors": (0, 1_000_000),
    "hapgent_pause": (0, DAY),
    "hapgent_lock_expires": (60, 7 * DAY),
}


class Given(t.TypedDict):
    """The settings of a host.

    C(names) are the names of its variables, C(own) is the value of hapgent_own_variables, C(play) the name of the play,
    C(stray_words) the words that Ansible has found outside of quotes, C(pattern) the value of hapgent_load_balancers
    and C(balancers) the hosts that it selects. C(names_there) and C(own_there) are the names and own variables of all
    these hosts together. C(numbers) is empty, or has hapgent_after_grace, hapgent_until, hapgent_then if it is used,
    hapgent_lock and variables of SHARES and RANGES; None is a port that is not set.
    """

    names: list[str]
    own: t.Any
    play: str
    stray_words: str
    pattern: t.Any
    balancers: list[str]
    names_there: list[str]
    own_there: list[str]
    numbers: t.Mapping[str, t.Any]


def problems(given: Given, groups: t.Mapping[str, t.Sequence[str]]) -> list[str]:
    """One or two sentences for each problem. C(groups) has the hosts of each group of the inventory."""
    return [
        *_misspelt(given),
        *_too_late(given),
        *_stray(given),
        *_strange_balancers(given, groups),
        *_numbers(given["numbers"]),
        *_cannot_cut(given),
        *_until(given["numbers"].get("hapgent_until", "")),
        *_then(given["numbers"]),
        *_lock(given["numbers"].get("hapgent_lock", "")),
    ]


def _misspelt(given: Given) -> t.Iterator[str]:
    here = unknown(given["names"], given["own"])
    there = unknown(given["names_there"], [*words(given["own"]), *given["own_there"]])
    # The same variables are often set for all hosts. Report them only once.
    there = [problem for problem in there if problem not in here]
    yield from here
    if there:
        yield f"Variables of {', '.join(given['balancers'])}: {' '.join(there)}"
    if here or there:
        yield "If these variables are your own, list them in hapgent_own_variables."


def _too_late(given: Given) -> t.Iterator[str]:
    late = [name for name, text in MISSING.items() if name in given["names"] and text in given["play"]]
    if late:
        yield (
            "hapgent_hosts and hapgent_serial work only on the command line (-e) and in the vars of import_playbook, "
            "because Ansible creates the play before it reads the variables of the inventory. "
            f"Remove {' and '.join(late)} from the inventory."
        )


def _stray(given: Given) -> t.Iterator[str]:
    if given["stray_words"]:
        yield (
            f"The command line has words outside of quotes, '{given['stray_words']}', which Ansible removes from the "
            "value before them. Quote the whole value, -e \"reason='kernel upgrade'\", or use JSON, "
            '-e \'{"reason": "kernel upgrade"}\'.'
        )


def _strange_balancers(given: Given, groups: t.Mapping[str, t.Sequence[str]]) -> t.Iterator[str]:
    pattern = host_pattern(given["pattern"])
    # Ansible ignores unknown names in a pattern, so a load balancer with a misspelled name would not be queried.
    strange = strangers(pattern, groups)
    if pattern and not given["balancers"]:
        yield f"hapgent_load_balancers must name hosts or groups of the inventory. {pattern} matches none."
    elif strange:
        yield f"hapgent_load_balancers must name hosts or groups of the inventory, which has no {', '.join(strange)}."


def _numbers(given: t.Mapping[str, t.Any]) -> t.Iterator[str]:
    """Problems with numeric variables. Without this check, they would fail only after the host has been drained."""
    for name in SHARES:
        if name in given and not SHARE.fullmatch(str(given[name])):
            yield f"{name} must be a number from 0, or a percentage from 0% to 100%, not {given[name]}."
    for name, (minimum, maximum) in RANGES.items():
        value = given.get(name)
        if value is not None and not _is_within(value, minimum, maximum):
            yield f"{name} must be {minimum} to {maximum}, not {value}."


def _cannot_cut(given: Given) -> t.Iterator[str]:
    if given["numbers"].get("hapgent_after_grace") == "cut" and not given["balancers"]:
        yield "hapgent_after_grace=cut requires hapgent_load_balancers, because only HAProxy can end the sessions."


def _until(given: str) -> t.Iterator[str]:
    """A moment that is over is an error, because it may be one of another time zone."""
    now = time.time()
    try:
        until = moment(given, now) if given else ""
    except StateError as error:
        yield f"hapgent_{error}."
    else:
        if until and timestamp(until) < now:
            yield f"hapgent_until must be in the future, not {until}."


def _then(numbers: t.Mapping[str, t.Any]) -> t.Iterator[str]:
    given, until = (str(numbers.get(name, "")) for name in ("hapgent_then", "hapgent_until"))
    if given and given not in FIELDS["then"].choices:
        yield f"hapgent_then must be {FIELDS['then'].range}, not {given}."
    elif given and not until:
        yield "hapgent_then requires hapgent_until, the moment at which the host comes back."
    elif given:
        yield from _too_early(numbers)


def _too_early(numbers: t.Mapping[str, t.Any]) -> t.Iterator[str]:
    """A host must not come back while the drain still waits for its sessions to end."""
    waits = ("hapgent_min_up_wait", "hapgent_wait_timeout", "hapgent_grace")
    now = time.time()
    with contextlib.suppress(ValueError, TypeError, StateError):
        longest = sum(float(numbers[name]) for name in waits)
        if timestamp(moment(str(numbers["hapgent_until"]), now)) < now + longest:
            yield (
                f"With hapgent_then, hapgent_until must be later than the drain can end, which is {longest:.0f} s from "
                f"now: the sum of {', '.join(waits)}."
            )


def _lock(given: str) -> t.Iterator[str]:
    if given and not re.fullmatch(r"/.*[^/]", given):
        yield f"hapgent_lock must be the absolute path of a file, such as /run/shop.lock, not {given}."


def _is_within(value: t.Any, minimum: int, maximum: int) -> bool:
    try:
        return minimum <= float(value) <= maximum
    except (TypeError, ValueError):
        return False
