# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Where the lock of a fleet is, and whether a run may go on: it must have the lock in all these places, or in none."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import Result, name_of

MAX_SHOWN = 400


class Outcome(t.TypedDict):
    """Why this run may not go on, '' if it may; where it must give the lock back; and a message for the operator."""

    refusal: str
    release: list[str]
    message: str


def places(load_balancers: t.Sequence[str], fleet: t.Sequence[str], host: str) -> list[str]:
    """Where a host has its lock: on its load balancers or, without them, on the hosts of its fleet, or on itself."""
    return [*(load_balancers or fleet or [host])]


def outcome(taken: t.Sequence[Result], hosts: t.Sequence[str], *, check: bool) -> Outcome:
    """Combine the results of C(hapgent_lock) for its places, before these hosts are drained.

    C(check) is whether this run changes nothing.
    """
    # A run that has the lock in several places is reported once.
    problems = {_run(result) or problem: problem for result in taken if (problem := _problem(result))}
    text = printable(" ".join(problems.values()), MAX_SHOWN)
    if not text:
        return {"refusal": "", "release": [], "message": ""}
    if check:
        return {"refusal": "", "release": [], "message": text}
    is_held = any(result.get("held") for result in taken)
    advice = (
        " Wait for its end or, if it will not go on, take the lock over with hapgent_lock_take=true."
        if is_held
        else " Fix this or, if the host is down, exclude it from hapgent_load_balancers or from hapgent_fleet."
    )
    return {
        "refusal": f"{text}{advice} Nothing was changed on {', '.join(hosts)}.",
        "release": [name_of(result) for result in taken if not _problem(result)],
        "message": "",
    }


def _problem(result: Result) -> str:
    if result.get("unreachable") or "held" not in result:
        return f"The lock cannot be taken on {name_of(result)}: {str(result.get('msg', 'unknown')).rstrip('.')}."
    try:
        return described(result["held"]) if result["held"] else ""
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return f"The lock cannot be taken on {name_of(result)}: who has it is not described as expected."


def _run(result: Result) -> str:
    """The run that has the lock, '' if it is not known. A host may answer with anything."""
    held = result.get("held")
    return str(held.get("run", "")) if isinstance(held, dict) else ""


def described(held: Result) -> str:
    """Who keeps the lock, in a sentence."""
    reason = f" '{held['reason']}'" if held["reason"] else ""
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(held["since"]))
    return f"{held['who']} {held['work']}{reason} since {since}, last sign {held['age']:.0f} s ago."
