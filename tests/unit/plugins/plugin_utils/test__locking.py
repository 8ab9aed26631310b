# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run goes on only with the lock in all places, and otherwise gives it back in each."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.plugin_utils._locking import outcome, places

HELD = {
    "run": "x",
    "who": "deploy@control1",
    "work": "rolls",
    "reason": "release 4.2",
    "since": 1_795_773_720,
    "expires": 600,
    "age": 40.4,
}
BUSY = "deploy@control1 rolls 'release 4.2' since 2026-11-27 10:02 UTC, last sign 40 s ago."


def result(place: str, **fields: Any) -> dict[str, Any]:
    return {"item": place, "changed": False, **fields}


FREE = result("lb1", held={})
# The results, the beginning of the refusal, whether it advises to take the lock over, and where it is released.
OUTCOMES: dict[str, tuple[list[dict[str, Any]], str, bool, list[str]]] = {
    "nowhere": ([], "", False, []),
    "everywhere": ([FREE, result("lb2", held={})], "", False, []),
    "not on the first": ([result("lb1", held=HELD)], BUSY, True, []),
    "not on the second": ([FREE, result("lb2", held=HELD)], BUSY, True, ["lb1"]),
    "twice by the same run": (
        [FREE, result("lb2", held=HELD), result("lb3", held=HELD)],
        f"{BUSY} Wait",
        True,
        ["lb1"],
    ),
    "without a reason": ([result("lb1", held={**HELD, "reason": ""})], "deploy@control1 rolls since", True, []),
    "failed": (
        [FREE, result("lb2", failed=True, msg="/run/x.lock: it is not JSON")],
        "The lock cannot be taken on lb2: /run/x.lock: it is not JSON. Fix this",
        False,
        ["lb1"],
    ),
    "something else": (
        [FREE, result("lb2", held="root"), result("lb3", held={**HELD, "since": 1e30})],
        "The lock cannot be taken on lb2: who has it is not described as expected. ",
        True,
        ["lb1"],
    ),
    "unreachable": (
        [FREE, result("lb2", unreachable=True, msg="timed out.")],
        "The lock cannot be taken on lb2: timed out. Fix this",
        False,
        ["lb1"],
    ),
}


@pytest.mark.parametrize(("taken", "begin", "is_held", "release"), OUTCOMES.values(), ids=OUTCOMES)
def test_outcome(taken: list[dict[str, Any]], begin: str, is_held: bool, release: list[str]) -> None:
    found = outcome(taken, ["web1"], check=False)
    assert found["refusal"].startswith(begin)
    assert bool(found["refusal"]) == bool(begin)
    assert ("hapgent_lock_take" in found["refusal"]) == is_held
    assert found["release"] == release
    assert found["message"] == ""
    # In check mode, it is only reported.
    checked = outcome(taken, ["web1"], check=True)
    assert (checked["refusal"], checked["release"]) == ("", [])
    assert bool(checked["message"]) == bool(begin)


def test_hostile_text_is_escaped() -> None:
    assert outcome([result("lb1", msg="\x1b[2J")], ["web1"], check=False)["refusal"].isprintable()


def test_places() -> None:
    assert places(["lb1", "lb2"], ["web1", "web2"], "web1") == ["lb1", "lb2"]
    assert places([], ["web1", "web2"], "web1") == ["web1", "web2"]
    assert places([], [], "web1") == ["web1"]
