# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whom to wait for, and who of them has a state: by what the agent tells of its peers."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._wait_for import WaitFor, WaitForError, polling

A, B, C = "198.51.100.11", "198.51.100.12", "2001:db8::13"


def peer(address: str, *words: str, last_seen: float = 0.0) -> dict[str, Any]:
    """What the agent tells of a load balancer: whether it received, whether it polls."""
    assert set(words) <= {"received", "polls"}
    return {"address": address, "received": "received" in words, "polls": "polls" in words, "last_seen": last_seen}


# Whom to wait for


@pytest.mark.parametrize(
    ("wanted", "count", "addresses"),
    [
        ("auto", 0, []),
        (1, 1, []),
        (2, 2, []),
        (1024, 1024, []),
        # Ansible's key=value arguments are strings.
        ("1", 1, []),
        ("12", 12, []),
        (A, 0, [A]),
        (f"{A},{B}", 0, [A, B]),
        (f" {A} , {B} ", 0, [A, B]),
        (C, 0, [C]),
        ([A], 0, [A]),
        ([B, A], 0, [B, A]),
        ([f" {A} "], 0, [A]),
        ([A, C], 0, [A, C]),
        # As the agent writes them.
        (["2001:DB8:0:0:0:0:0:13"], 0, [C]),
        (["::FFFF"], 0, ["::ffff"]),
        ([f"::ffff:{A}"], 0, [A]),
        # Each once.
        ([B, A, B], 0, [B, A]),
        ([A, f"::ffff:{A}"], 0, [A]),
        (f"{A},{A}", 0, [A]),
    ],
)
def test_whom_to_wait_for(wanted: object, count: int, addresses: list[str]) -> None:
    wait_for = WaitFor(wanted)
    assert (wait_for.count, wait_for.addresses) == (count, addresses)


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        2.0,
        "",
        "0",
        "00",
        "-1",
        "+1",
        1025,
        "99999",
        "\u00b2",
        "1.5",
        "all",
        "AUTO",
        "haproxy1.example.org",
        [],
        {},
        {A: True},
        [""],
        ["auto"],
        [2],
        ["2"],
        [None],
        [[A]],
        [A, "haproxy1"],
        ["198.51.100.256"],
        ["198.51.100.11/32"],
        ["198.51.100.11:9777"],
        ["[2001:db8::13]"],
        f"{A};{B}",
        f"{A} {B}",
        f"{A},,{B}",
    ],
)
def test_whom_nobody_can_wait_for(wanted: object) -> None:
    with pytest.raises(WaitForError) as caught:
        WaitFor(wanted)
    allowed = "auto, a number from 1 to 1024, or a list of addresses"
    assert str(caught.value).startswith(f"wait_for must be {allowed}, not {wanted!r}")


@pytest.mark.parametrize("wanted", [["198.51.100.11", "haproxy1"], "198.51.100.11,haproxy1"])
def test_the_one_that_is_no_address_is_named(wanted: object) -> None:
    with pytest.raises(WaitForError, match=r"\('haproxy1' "):
        WaitFor(wanted)


@pytest.mark.parametrize("wanted", ["9" * 5000, "0" * 5000, ["9" * 5000], "x" * 5000, [A] * 5000 + ["haproxy1"]])
def test_the_error_is_no_longer_than_somebody_reads(wanted: object) -> None:
    with pytest.raises(WaitForError, match=r"^wait_for .*1024") as caught:
        WaitFor(wanted)
    assert len(str(caught.value)) < 400


# Who of them has it

# Whom to wait for, who polled before the change, what the agent tells, then who has it, who does not, and whether
# that is all of them.
Row = tuple[object, list[str], list[dict[str, Any]], list[str], list[str], bool]
RESULTS: dict[str, Row] = {
    "nobody is nobody": ("auto", [], [], [], [], False),
    "one has it": ("auto", [A], [peer(A, "received", "polls")], [A], [], True),
    "one has not": ("auto", [A], [peer(A, "polls")], [], [A], False),
    "both have it": ("auto", [A, B], [peer(A, "received", "polls"), peer(B, "received", "polls")], [A, B], [], True),
    "one of two has it": ("auto", [A, B], [peer(A, "received", "polls"), peer(B, "polls")], [A], [B], False),
    "one has come after the change": ("auto", [A], [peer(A, "received", "polls"), peer(B, "polls")], [A], [B], False),
    "one has come and has it": ("auto", [], [peer(A, "received", "polls")], [A], [], True),
    # It may go on sending sessions to the server.
    "one has fallen silent without it": ("auto", [A, B], [peer(A, "received", "polls"), peer(B)], [A], [B], False),
    "one has fallen silent with it": (
        "auto",
        [A, B],
        [peer(A, "received", "polls"), peer(B, "received")],
        [A, B],
        [],
        True,
    ),
    "all have fallen silent with it": ("auto", [A, B], [peer(A, "received"), peer(B, "received")], [A, B], [], True),
    "one was forgotten": ("auto", [A, B], [peer(A, "received", "polls")], [A], [B], False),
    "one that was forgotten has come again": (
        "auto",
        [A, B],
        [peer(A, "received", "polls"), peer(B, "received")],
        [A, B],
        [],
        True,
    ),
    "all were forgotten": ("auto", [B, A], [], [], [A, B], False),
    "one was silent all the time": ("auto", [A], [peer(A, "received", "polls"), peer(B)], [A], [], True),
    "one that was silent all the time has it": ("auto", [], [peer(B, "received")], [], [], False),
    "all were silent all the time": ("auto", [], [peer(A), peer(B)], [], [], False),
    "ordered": (
        "auto",
        [],
        [peer(C, "polls"), peer(B, "received", "polls"), peer(A, "received", "polls")],
        [A, B],
        [C],
        False,
    ),
    "none of one": (1, [A], [peer(A, "polls")], [], [], False),
    "one of one": (1, [A], [peer(A, "received", "polls")], [A], [], True),
    "one of two": (2, [A, B], [peer(A, "received", "polls"), peer(B, "polls")], [A], [], False),
    "two of two": (2, [], [peer(B, "received", "polls"), peer(A, "received", "polls")], [A, B], [], True),
    "two of one": (1, [], [peer(A, "received", "polls"), peer(B, "received", "polls")], [A, B], [], True),
    "one of one, and one without it": (1, [A, B], [peer(A, "received", "polls"), peer(B, "polls")], [A], [], True),
    "two of two, one of them has gone": (2, [], [peer(A, "received", "polls"), peer(B, "received")], [A], [], False),
    "a number of nobody": (1, [], [], [], [], False),
    "an address that has it": ([A], [], [peer(A, "received", "polls")], [A], [], True),
    "an address that has it and is silent": ([A], [], [peer(A, "received")], [A], [], True),
    "an address that has not": ([A], [], [peer(A, "polls")], [], [A], False),
    "an address that was never seen": ([A], [], [peer(B, "received", "polls")], [], [A], False),
    "another that has not": ([A], [A, B], [peer(A, "received", "polls"), peer(B, "polls")], [A], [], True),
    "one of two addresses": ([B, A], [], [peer(A, "received", "polls"), peer(B, "polls")], [A], [B], False),
    "addresses as they are listed": ([B, A], [], [peer(A, "received"), peer(B, "received")], [B, A], [], True),
    "addresses written otherwise": (["2001:DB8::0:13"], [], [peer(C, "received")], [C], [], True),
}


@pytest.mark.parametrize("row", RESULTS.values(), ids=RESULTS)
def test_result(row: Row) -> None:
    wanted, polled_before, peers, *expected = row
    assert WaitFor(wanted).result(peers, polled_before) == tuple(expected)


def test_those_who_poll() -> None:
    assert polling([peer(A, "polls"), peer(B, "received"), peer(C, "received", "polls")]) == [A, C]
    assert polling([]) == []


def test_those_who_miss_it_are_reported_with_when_they_were_seen() -> None:
    now = time.time()
    peers = [peer(A, "received", "polls"), peer(B, last_seen=now - 300), peer(C, last_seen=now - 7200)]
    result = WaitFor([A, B, C, "198.51.100.14"]).result(peers, [])
    earlier = [peer(B, "polls", last_seen=now - 900)]
    missing = re.fullmatch(
        rf"{B} \(last seen (\d+) s ago\), {C} \(last seen (\d+) s ago\), 198\.51\.100\.14 \(never seen\)",
        result.missing([*earlier, *peers]),
    )
    assert missing
    # Time goes on while this runs.
    assert 300 <= int(missing[1]) < 360
    assert 7200 <= int(missing[2]) < 7260


def test_nobody_misses_it() -> None:
    peers = [peer(A, "received", "polls")]
    assert WaitFor("auto").result(peers, []).missing(peers) == ""


# Who is left out


def test_left_out_is_not_waited_for() -> None:
    """Whether it polls, polled before, or is named; and without it, nobody may be left to wait for."""
    silent = [peer(A, "polls", "received"), peer(B, "polls"), peer(C, "polls", "received")]
    assert not WaitFor("auto").result(silent, [A, B]).complete
    for wanted, seen in (("auto", [A, C]), (2, [A, C]), ([A, B], [A])):
        result = WaitFor(wanted, [f"::ffff:{B}"]).result(silent, [A, B])
        assert (result.received_by, result.not_received_by, result.complete) == (seen, [], True)
    assert not WaitFor("auto", [A, B, C]).result(silent, [A, B]).complete
    assert not WaitFor(3, [B]).result(silent, []).complete


def test_left_out_that_are_no_addresses() -> None:
    with pytest.raises(WaitForError, match=r"^wait_except "):
        WaitFor("auto", ["lb2"])
