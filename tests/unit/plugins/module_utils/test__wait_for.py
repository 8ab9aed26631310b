# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""WaitFor decides which load balancers to wait for, and which of them have received a state."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._wait_for import WaitFor, WaitForError, polling

A, B, C = "198.51.100.11", "198.51.100.12", "2001:db8::13"


def peer(address: str, *words: str, last_seen: float = 0.0) -> dict[str, Any]:
    """What an agent reports about a load balancer, which received or polls if these words are given."""
    assert set(words) <= {"received", "polls"}
    return {"address": address, "received": "received" in words, "polls": "polls" in words, "last_seen": last_seen}


# The option wait_for


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
        # Addresses are converted to the agent's notation.
        (["2001:DB8:0:0:0:0:0:13"], 0, [C]),
        (["::FFFF"], 0, ["::ffff"]),
        ([f"::ffff:{A}"], 0, [A]),
        # Duplicates are removed.
        ([B, A, B], 0, [B, A]),
        ([A, f"::ffff:{A}"], 0, [A]),
        (f"{A},{A}", 0, [A]),
    ],
)
def test_valid_values_are_parsed(wanted: object, count: int, addresses: list[str]) -> None:
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
def test_invalid_values_are_refused(wanted: object) -> None:
    with pytest.raises(WaitForError) as caught:
        WaitFor(wanted)
    allowed = "auto, a number from 1 to 1024, or a list of addresses"
    assert str(caught.value).startswith(f"wait_for must be {allowed}, not {wanted!r}")


@pytest.mark.parametrize("wanted", [["198.51.100.11", "haproxy1"], "198.51.100.11,haproxy1"])
def test_error_names_the_invalid_address(wanted: object) -> None:
    with pytest.raises(WaitForError, match=r"\('haproxy1' "):
        WaitFor(wanted)


@pytest.mark.parametrize("wanted", ["9" * 5000, "0" * 5000, ["9" * 5000], "x" * 5000, [A] * 5000 + ["haproxy1"]])
def test_error_about_a_long_value_is_short(wanted: object) -> None:
    with pytest.raises(WaitForError, match=r"^wait_for .*1024") as caught:
        WaitFor(wanted)
    assert len(str(caught.value)) < 400


# Load balancers that have received the state

# wait_for, the load balancers that polled before the change, and the agent's report; then the load balancers that have
# received the state, those that have not, and whether waiting is complete.
Row = tuple[object, list[str], list[dict[str, Any]], list[str], list[str], bool]
RESULTS: dict[str, Row] = {
    "no load balancer": ("auto", [], [], [], [], False),
    "one has it": ("auto", [A], [peer(A, "received", "polls")], [A], [], True),
    "one does not have it": ("auto", [A], [peer(A, "polls")], [], [A], False),
    "both have it": ("auto", [A, B], [peer(A, "received", "polls"), peer(B, "received", "polls")], [A, B], [], True),
    "one of two has it": ("auto", [A, B], [peer(A, "received", "polls"), peer(B, "polls")], [A], [B], False),
    "one appeared after the change without it": (
        "auto",
        [A],
        [peer(A, "received", "polls"), peer(B, "polls")],
        [A],
        [B],
        False,
    ),
    "one appeared after the change with it": ("auto", [], [peer(A, "received", "polls")], [A], [], True),
    # A silent load balancer may continue to send sessions to the server.
    "one became silent without it": ("auto", [A, B], [peer(A, "received", "polls"), peer(B)], [A], [B], False),
    "one became silent with it": (
        "auto",
        [A, B],
        [peer(A, "received", "polls"), peer(B, "received")],
        [A, B],
        [],
        True,
    ),
    "all became silent with it": ("auto", [A, B], [peer(A, "received"), peer(B, "received")], [A, B], [], True),
    "one was forgotten": ("auto", [A, B], [peer(A, "received", "polls")], [A], [B], False),
    "one that was forgotten has returned": (
        "auto",
        [A, B],
        [peer(A, "received", "polls"), peer(B, "received")],
        [A, B],
        [],
        True,
    ),
    "all were forgotten": ("auto", [B, A], [], [], [A, B], False),
    "one was always silent": ("auto", [A], [peer(A, "received", "polls"), peer(B)], [A], [], True),
    "one that was always silent has it": ("auto", [], [peer(B, "received")], [], [], False),
    "all were always silent": ("auto", [], [peer(A), peer(B)], [], [], False),
    "addresses are sorted": (
        "auto",
        [],
        [peer(C, "polls"), peer(B, "received", "polls"), peer(A, "received", "polls")],
        [A, B],
        [C],
        False,
    ),
    "one is wanted, none has it": (1, [A], [peer(A, "polls")], [], [], False),
    "one is wanted, one has it": (1, [A], [peer(A, "received", "polls")], [A], [], True),
    "two are wanted, one has it": (2, [A, B], [peer(A, "received", "polls"), peer(B, "polls")], [A], [], False),
    "two are wanted, two have it": (
        2,
        [],
        [peer(B, "received", "polls"), peer(A, "received", "polls")],
        [A, B],
        [],
        True,
    ),
    "one is wanted, two have it": (
        1,
        [],
        [peer(A, "received", "polls"), peer(B, "received", "polls")],
        [A, B],
        [],
        True,
    ),
    "one is wanted, one of two has it": (1, [A, B], [peer(A, "received", "polls"), peer(B, "polls")], [A], [], True),
    "two are wanted, one of them became silent": (
        2,
        [],
        [peer(A, "received", "polls"), peer(B, "received")],
        [A],
        [],
        False,
    ),
    "one is wanted, none polls": (1, [], [], [], [], False),
    "an address that has it": ([A], [], [peer(A, "received", "polls")], [A], [], True),
    "an address that has it and is silent": ([A], [], [peer(A, "received")], [A], [], True),
    "an address that does not have it": ([A], [], [peer(A, "polls")], [], [A], False),
    "an address that was never seen": ([A], [], [peer(B, "received", "polls")], [], [A], False),
    "another address does not have it": ([A], [A, B], [peer(A, "received", "polls"), peer(B, "polls")], [A], [], True),
    "one of two addresses has it": ([B, A], [], [peer(A, "received", "polls"), peer(B, "polls")], [A], [B], False),
    "addresses keep their order": ([B, A], [], [peer(A, "received"), peer(B, "received")], [B, A], [], True),
    "an address in another notation": (["2001:DB8::0:13"], [], [peer(C, "received")], [C], [], True),
}


@pytest.mark.parametrize("row", RESULTS.values(), ids=RESULTS)
def test_received_and_missing_load_balancers(row: Row) -> None:
    wanted, polled_before, peers, *expected = row
    assert WaitFor(wanted).result(peers, polled_before) == tuple(expected)


def test_polling_load_balancers_are_listed() -> None:
    assert polling([peer(A, "polls"), peer(B, "received"), peer(C, "received", "polls")]) == [A, C]
    assert polling([]) == []


def test_missing_load_balancers_are_listed_with_their_last_poll() -> None:
    now = time.time()
    peers = [peer(A, "received", "polls"), peer(B, last_seen=now - 300), peer(C, last_seen=now - 7200)]
    result = WaitFor([A, B, C, "198.51.100.14"]).result(peers, [])
    earlier = [peer(B, "polls", last_seen=now - 900)]
    missing = re.fullmatch(
        rf"{B} \(last seen (\d+) s ago\), {C} \(last seen (\d+) s ago\), 198\.51\.100\.14 \(never seen\)",
        result.missing([*earlier, *peers]),
    )
    assert missing
    # The numbers depend on how long the test takes.
    assert 300 <= int(missing[1]) < 360
    assert 7200 <= int(missing[2]) < 7260


def test_no_load_balancer_is_missing() -> None:
    peers = [peer(A, "received", "polls")]
    assert WaitFor("auto").result(peers, []).missing(peers) == ""


# The option wait_except


def test_excluded_load_balancers_are_not_waited_for() -> None:
    """This holds for load balancers that poll, that polled before, and that wait_for lists.

    If no load balancer is left, waiting is not complete.
    """
    silent = [peer(A, "polls", "received"), peer(B, "polls"), peer(C, "polls", "received")]
    assert not WaitFor("auto").result(silent, [A, B]).complete
    for wanted, seen in (("auto", [A, C]), (2, [A, C]), ([A, B], [A])):
        result = WaitFor(wanted, [f"::ffff:{B}"]).result(silent, [A, B])
        assert (result.received_by, result.not_received_by, result.complete) == (seen, [], True)
    assert not WaitFor("auto", [A, B, C]).result(silent, [A, B]).complete
    assert not WaitFor(3, [B]).result(silent, []).complete


def test_excluded_values_must_be_addresses() -> None:
    with pytest.raises(WaitForError, match=r"^wait_except "):
        WaitFor("auto", ["lb2"])
