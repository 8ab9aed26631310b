# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""States follow their rules, and their JSON, agent responses and files are correct."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._state import (
    FAIL,
    STATUSES,
    UNDOING,
    LockedError,
    MissingError,
    State,
    StateError,
    StateFile,
    dump,
    from_fields,
    moment,
    parse,
    timestamp,
)
from hypothesis import given, settings
from hypothesis import strategies as st

# Messages name the valid statuses, fields, numbers and lengths.
ONE_STATUS = "UP, DOWN, READY, DRAIN, FAIL, MAINT, STOPPED"
FIELDS = "status, weight, maxconn, reason, by, until, then"
WEIGHT = "0 to 255"
MAXCONN = "0 to 65535"
REASON = "1 to 120 bytes"
MOMENT = "such as 2026-11-28T06:00:00Z"
THEN = "then must be UP"
ONE_OBJECT = "one JSON object"

# A character has at most four bytes. Cc are control characters, Cs are halves of surrogate pairs.
reasons = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="#"), min_size=1, max_size=30
).filter(str.strip)
LIMITS = {"weight": 255, "maxconn": 65535}
NOON = "2026-11-27T12:00:00Z"
states = st.builds(
    State,
    st.sampled_from(STATUSES),
    **{name: st.none() | st.integers(0, limit) for name, limit in LIMITS.items()},
    **dict.fromkeys(("reason", "by"), st.none() | reasons),
    until=st.sampled_from([None, NOON, "2000-02-29T23:59:59Z"]),
    then=st.sampled_from([None, "UP"]),
).map(lambda state: state if state.until else state._replace(then=None))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)
# These fields are almost valid, so that more than the first rule is tested.
fields_near_a_state = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(STATUSES) | json_values,
        "weight": st.floats(-1, 300) | st.integers(-1, 300) | json_values,
        "maxconn": st.integers(-1, 70_000) | json_values,
        "reason": st.text(max_size=130) | json_values,
        "until": st.sampled_from([NOON, NOON.lower(), "2h", "2026-02-29T12:00:00Z"]) | json_values,
        "then": st.sampled_from(["UP", "up", "READY", ""]) | json_values,
    },
)
# Every run has the same examples and writes nothing to the working folder.
same_examples = settings(derandomize=True, database=None, deadline=None)


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        (State("UP"), "UP"),
        (State("UP", 77), "UP 77%"),
        (State("UP", None, 300), "UP maxconn:300"),
        (State("UP", 77, 300), "UP 77% maxconn:300"),
        (State("DRAIN", 0, 0), "DRAIN 0% maxconn:0"),
        (FAIL, "FAIL"),
        # HAProxy shows a reason only with a health keyword, so administrative keywords get UP in addition.
        (State("UP", reason="all is well"), "UP # all is well"),
        (State("DOWN", reason="no disk"), "DOWN # no disk"),
        (State("FAIL", reason="no disk"), "FAIL # no disk"),
        (State("STOPPED", reason="no disk"), "STOPPED # no disk"),
        (State("READY", reason="no disk"), "READY UP # no disk"),
        (State("DRAIN", reason="no disk"), "DRAIN UP # no disk"),
        (State("MAINT", reason="no disk"), "MAINT UP # no disk"),
        (State("DRAIN", 77, 300, "no disk"), "DRAIN UP 77% maxconn:300 # no disk"),
        (State("UP", reason="für Ödön, 5 €"), "UP # für Ödön, 5 €"),
    ],
)
def test_answer_of_a_state(state: State, answer: str) -> None:
    assert state.answer() == answer


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"status": "UP"}, State("UP")),
        ({"status": "UP", "weight": None, "maxconn": None}, State("UP")),
        ({"maxconn": 1, "weight": 2, "status": "UP"}, State("UP", 2, 1)),
        ({"status": "UP", "weight": 50.0, "maxconn": 1e2}, State("UP", 50, 100)),
        ({"status": "UP", "weight": 0, "maxconn": 0}, State("UP", 0, 0)),
        ({"status": "UP", "weight": 255, "maxconn": 65535}, State("UP", 255, 65535)),
        ({"reason": "x", "status": "UP"}, State("UP", reason="x")),
        ({"status": "UP", "reason": None}, State("UP")),
    ],
)
def test_valid_fields_make_a_state(fields: dict[str, Any], state: State) -> None:
    made = from_fields(fields)
    assert made == state
    # 50.0 would lead to a different agent response.
    assert not any(isinstance(value, float) for value in made)


@pytest.mark.parametrize(
    "reason",
    [
        "x",
        "0",
        "x" * 120,
        # The limit counts bytes: these characters have two, three and four bytes.
        "ä" * 60,
        "€" * 40,
        "😀" * 30,
        # The reason is sent unchanged.
        " x ",
        '"quoted", \\ and %s',
        # These are the allowed characters next to forbidden ones: space, ~ and the first after the control characters.
        "a b~\xa0c",
        # After the #, keywords have no effect.
        "DOWN 0% maxconn:1",
        "a\u2028b",
    ],
)
def test_valid_reasons_are_kept(reason: str) -> None:
    assert from_fields({"status": "UP", "reason": reason}) == State("UP", reason=reason)
    assert parse(dump(State("UP", reason=reason))) == State("UP", reason=reason)


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("", '""'),
        (" ", '" "'),
        ("\xa0\u2003", r'"\u00a0\u2003"'),
        ("x" * 121, f'"{"x" * 60}...'),
        # These have at most 120 characters, but more bytes.
        ("x" * 119 + "ä", f'"{"x" * 60}...'),
        ("ä" * 61, '"' + r"\u00e4" * 10 + "..."),
        ("€" * 40 + "x", '"' + r"\u20ac" * 10 + "..."),
        ("😀" * 30 + "x", '"' + r"\ud83d\ude00" * 5 + "..."),
        ("a#b", '"a#b"'),
        ("#", '"#"'),
        ("a\0b", r'"a\u0000b"'),
        ("a\tb", r'"a\tb"'),
        # HAProxy ends the line at both characters.
        ("a\nb", r'"a\nb"'),
        ("a\rb", r'"a\rb"'),
        ("a\n", r'"a\n"'),
        ("a\x1fb", r'"a\u001fb"'),
        ("a\x7fb", r'"a\u007fb"'),
        ("a\x80b", r'"a\u0080b"'),
        ("a\x9fb", r'"a\u009fb"'),
        ("\ud83d", r'"\ud83d"'),
        ("a\udcffb", r'"a\udcffb"'),
        (5, "5"),
        (0, "0"),
        (True, "true"),
        (False, "false"),
        (["x"], '["x"]'),
        ({}, "{}"),
    ],
)
def test_invalid_reasons_are_refused(reason: object, shown: str) -> None:
    with pytest.raises(StateError) as caught:
        from_fields({"status": "UP", "reason": reason})
    assert str(caught.value).startswith("reason ")
    assert REASON in str(caught.value)
    assert str(caught.value).endswith(f", not {shown}")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ["status", ONE_STATUS]),
        ({"status": None}, ["status", ONE_STATUS]),
        ({"status": "up"}, ["status", '"up"', ONE_STATUS]),
        ({"status": 1}, ["status", " 1", ONE_STATUS]),
        ({"status": ["UP"]}, ["status", '["UP"]', ONE_STATUS]),
        ({"status": "UP" * 500}, ["status", f'"{"UP" * 30}...', ONE_STATUS]),
        ({"status": "UP", "weight": 256}, ["weight", " 256", WEIGHT]),
        ({"status": "UP", "weight": -1}, ["weight", " -1", WEIGHT]),
        ({"status": "UP", "weight": "50"}, ["weight", '"50"', WEIGHT]),
        ({"status": "UP", "weight": True}, ["weight", "true", WEIGHT]),
        ({"status": "UP", "weight": 0.5}, ["weight", " 0.5", WEIGHT]),
        ({"status": "UP", "weight": float("nan")}, ["weight", "NaN", WEIGHT]),
        ({"status": "UP", "maxconn": 65536}, ["maxconn", " 65536", MAXCONN]),
        ({"status": "UP", "maxconn": {}}, ["maxconn", "{}", MAXCONN]),
        ({"status": "UP", "wait": 1}, ['"wait"', FIELDS]),
        ({"Status": "UP"}, ['"Status"', FIELDS]),
    ],
)
def test_invalid_fields_are_refused(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(StateError) as caught:
        from_fields(fields)
    for word in words:
        assert word in str(caught.value)


def test_wording_of_an_error() -> None:
    with pytest.raises(StateError) as caught:
        from_fields({"status": "UP", "weight": 300})
    assert str(caught.value) == "weight must be a whole number from 0 to 255, not 300"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", ["JSON", "Expecting value: line 1 column 1 (char 0)", ONE_OBJECT]),
        (b"[]", ["[]", ONE_OBJECT]),
        (b'"UP"', ['"UP"', ONE_OBJECT]),
        (b'{"status": "\xff"}', ["UTF-8", "byte 12", ONE_OBJECT]),
        (b'{"status": "UP", "status": "UP"}', ['"status"', "once"]),
        (b'{"status": "UP", "weight": 1, "weight": 2}', ['"weight"', "once"]),
        (b'{"status": "UP", "reason": "\\ud83d"}', ["reason", r'"\ud83d"', REASON]),
    ],
)
def test_invalid_bytes_are_refused(raw: bytes, words: list[str]) -> None:
    with pytest.raises(StateError) as caught:
        parse(raw)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("beginning", [b"", b'{"status":', b'{"status": "UP", "weight":', b'{"status": "UP", "x":'])
def test_nested_json_of_any_depth_is_refused(beginning: bytes) -> None:
    # Python's recursion limit depends on the depth of the caller, and differs for reading and writing JSON.
    # Python's limit is 1000, and the tests' own call stack is less than 300 deep.
    for depth in [*range(1, 20), *range(700, 1100)]:
        for opening, closing in [(b"[", b"]"), (b'{"a":', b"}")]:
            with pytest.raises(StateError):
                parse(beginning + opening * depth + b"1" + closing * depth + b"}" * bool(beginning))


@same_examples
@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_state_or_refused(raw: bytes) -> None:
    try:
        state = parse(raw)
    except StateError as error:
        assert "\n" not in str(error)
    else:
        assert parse(dump(state)) == state


@same_examples
@given(fields_near_a_state)
def test_any_fields_are_a_state_or_refused(fields: dict[str, Any]) -> None:
    try:
        state = from_fields(fields)
    except StateError as error:
        valid = (ONE_STATUS, FIELDS, WEIGHT, MAXCONN, REASON, MOMENT, THEN, "then requires until")
        assert any(text in str(error) for text in valid)
        assert len(str(error)) < 200
    else:
        assert state.status in STATUSES
        for name, limit in LIMITS.items():
            value = getattr(state, name)
            assert value == fields.get(name)
            assert value is None or 0 <= value <= limit
        assert state.until == fields.get("until")
        assert state.until in (None, NOON)
        assert state.then == fields.get("then")
        assert (state.then, state.until) == ("UP", NOON) or state.then is None
        assert state.reason == fields.get("reason")
        assert state.reason is None or (state.reason.strip() and 1 <= len(state.reason.encode()) <= 120)
        assert not {"#", "\n", "\r"} & set(state.answer().partition(" # ")[2])


@same_examples
@given(states)
def test_written_states_can_be_read(state: State) -> None:
    assert parse(dump(state)) == state
    assert from_fields(state.fields()) == state


def test_json_is_readable_for_people() -> None:
    assert dump(State("UP", 77, 300)) == b'{\n  "status": "UP",\n  "weight": 77,\n  "maxconn": 300\n}\n'
    assert dump(FAIL) == b'{\n  "status": "FAIL"\n}\n'
    assert dump(State("UP", reason="für 5 €")) == '{\n  "status": "UP",\n  "reason": "für 5 €"\n}\n'.encode()


# Who, and until when

# At this moment, in seconds since 1970, it is noon.
AT_NOON = 1795780800.0


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (NOON, NOON),
        ("2026-11-27t12:00:00z", NOON),
        ("2026-11-27 12:00:00+00:00", NOON),
        ("2026-11-27T13:30:00+01:30", NOON),
        ("2026-11-26T23:00:00-13:00", NOON),
        ("2026-11-27T12:00:00.999999Z", NOON),
        ("30s", "2026-11-27T12:00:30Z"),
        ("90m", "2026-11-27T13:30:00Z"),
        ("2h", "2026-11-27T14:00:00Z"),
        ("4d", "2026-12-01T12:00:00Z"),
    ],
)
def test_moments_are_stored_in_one_form(given: str, stored: str) -> None:
    assert moment(given, AT_NOON) == stored
    assert from_fields({"status": "DRAIN", "until": stored}).until == stored


@pytest.mark.parametrize(
    "given",
    [
        *("", "2", "h", "0h", "-2h", "1.5h", "2 h", "2H", "1w", "9999999d", "\u0662h", "now", "12:00", "2026-11-27"),
        *("2026-11-27T12:00:00", "2026-11-27T12:00Z", "2026-02-29T12:00:00Z", "2026-11-27T24:00:01Z", f" {NOON}"),
        *(
            "1999-12-31T23:59:59Z",
            "2026-11-27T12:00:60Z",
            "2026-11-27T12:00:00+25:00",
            f"{NOON}\n",
            "2026-11-2\u0667T12:00:00Z",
        ),
    ],
)
def test_other_moments_are_refused(given: str) -> None:
    with pytest.raises(StateError, match="until must be a date and time with its offset"):
        moment(given, AT_NOON)
    with pytest.raises(StateError, match="until must be a moment in UTC"):
        from_fields({"status": "DRAIN", "until": given})


def test_timestamp_of_a_moment() -> None:
    assert timestamp(NOON) == AT_NOON


NOTED = State("DRAIN", reason="disk", by="ada@control1", until=NOON)


def test_haproxy_receives_neither_who_nor_until_when() -> None:
    assert NOTED.answer() == "DRAIN UP # disk"
    assert NOTED.as_sent() == State("DRAIN", reason="disk")
    assert NOTED.remarks() == f", by ada@control1, until {NOON}"
    assert State("DRAIN", reason="disk").remarks() == ""


@pytest.mark.parametrize(
    ("before", "after", "only_notes"),
    [
        (NOTED, NOTED._replace(by="bob@control1"), True),
        (NOTED, NOTED._replace(by=None, until=None), True),
        (State("DRAIN"), State("DRAIN", by="ada", until=NOON), True),
        (NOTED, NOTED._replace(reason=None), True),
        (NOTED, NOTED._replace(reason="kernel"), False),
        (NOTED, NOTED._replace(weight=7), False),
        (NOTED, NOTED.with_status("UP"), False),
    ],
)
def test_the_state_is_the_same_with_other_notes(before: State, after: State, only_notes: bool) -> None:
    assert after.changes_only_notes(before) == only_notes


def test_a_new_status_removes_all_notes() -> None:
    assert NOTED._replace(then="UP").with_status("UP") == State("UP")


@pytest.mark.parametrize("given", ["up", "READY", "DRAIN", "", 1, True, ["UP"], {}])
def test_only_up_follows(given: object) -> None:
    with pytest.raises(StateError, match="then must be UP, not "):
        from_fields({"status": "DRAIN", "until": NOON, "then": given})


def test_a_status_follows_only_at_a_moment() -> None:
    with pytest.raises(StateError, match="then requires until"):
        from_fields({"status": "DRAIN", "then": "UP"})
    assert from_fields({"status": "DRAIN", "until": NOON, "then": "UP"}).remarks() == f", until {NOON}, then UP"


RETURNS = State("DRAIN", 50, 9, "disk", "ada@control1", NOON, "UP")


@pytest.mark.parametrize(
    ("state", "now", "expected"),
    [
        (RETURNS, AT_NOON - 0.001, RETURNS),
        (RETURNS, AT_NOON, State("UP", 50, 9)),
        (RETURNS, AT_NOON + 86400, State("UP", 50, 9)),
        *((RETURNS._replace(status=status), AT_NOON, State("UP", 50, 9)) for status in ("DOWN", "READY", "MAINT")),
        (RETURNS._replace(status="UP"), AT_NOON, RETURNS._replace(status="UP")),
        (RETURNS._replace(then=None), AT_NOON, RETURNS._replace(then=None)),
        (State("DRAIN"), AT_NOON, State("DRAIN")),
    ],
)
def test_state_that_follows(state: State, now: float, expected: State) -> None:
    assert state.at(now) == expected


# Keywords that reset another state


@pytest.mark.parametrize(
    ("state", "undoing", "answer"),
    [
        # The response has a health keyword already, so UP is not added.
        (State("UP"), "UP", "UP"),
        (State("DOWN"), "UP", "DOWN"),
        (State("UP"), "READY", "UP READY"),
        (State("DOWN"), "READY UP", "DOWN READY"),
        (State("STOPPED"), "READY", "STOPPED READY"),
        # The response has an administrative keyword already, so READY is not added.
        (State("DRAIN"), "READY", "DRAIN"),
        (State("DRAIN"), "UP", "DRAIN UP"),
        (State("MAINT"), "UP READY", "MAINT UP"),
        (State("READY"), "UP READY", "READY UP"),
        (State("DRAIN", reason="no disk"), "UP", "DRAIN UP # no disk"),
        (State("UP", reason="no disk"), "UP READY", "UP READY # no disk"),
        (State("UP"), "100%", "UP 100%"),
        (State("UP", 77), "100%", "UP 77%"),
        (State("UP", 0), "100%", "UP 0%"),
        (State("UP", None, 300), "100%", "UP 100% maxconn:300"),
        (State("UP", 77, 300, "no disk"), "UP READY 100%", "UP READY 77% maxconn:300 # no disk"),
        (State("DRAIN", None, 300, "no disk"), "UP READY 100%", "DRAIN UP 100% maxconn:300 # no disk"),
    ],
)
def test_answer_with_reset_keywords(state: State, undoing: str, answer: str) -> None:
    assert state.answer(frozenset(undoing.split())) == answer
    assert answer in state.answers()


# The response for each previous status (row) and new status (column). It resets what the previous status has changed in
# HAProxy: administrative state or health.
LINES_AFTER_STATUSES = """
before   UP        DOWN        READY     DRAIN     FAIL        MAINT     STOPPED
UP       UP        DOWN        READY_UP  DRAIN_UP  FAIL        MAINT_UP  STOPPED
DOWN     UP        DOWN        READY_UP  DRAIN_UP  FAIL        MAINT_UP  STOPPED
READY    UP_READY  DOWN_READY  READY     DRAIN_UP  FAIL_READY  MAINT_UP  STOPPED_READY
DRAIN    UP_READY  DOWN_READY  READY_UP  DRAIN     FAIL_READY  MAINT_UP  STOPPED_READY
FAIL     UP        DOWN        READY_UP  DRAIN_UP  FAIL        MAINT_UP  STOPPED
MAINT    UP_READY  DOWN_READY  READY_UP  DRAIN_UP  FAIL_READY  MAINT     STOPPED_READY
STOPPED  UP        DOWN        READY_UP  DRAIN_UP  FAIL        MAINT_UP  STOPPED
"""


def pairs(table: str) -> list[tuple[str, str, str]]:
    """The table's cells, each with its previous and its new status."""
    header, *lines = (line.split() for line in table.strip().splitlines())
    return [(line[0], after, cell) for line in lines for after, cell in zip(header[1:], line[1:], strict=True)]


def test_table_has_each_pair_of_statuses() -> None:
    assert [(before, after) for before, after, _cell in pairs(LINES_AFTER_STATUSES)] == [
        (before, after) for before in STATUSES for after in STATUSES
    ]


@pytest.mark.parametrize(("before", "after", "line"), pairs(LINES_AFTER_STATUSES))
def test_answer_resets_the_previous_status(before: str, after: str, line: str) -> None:
    state = State(after)
    assert state.answer(state.undoing(State(before))) == line.replace("_", " ")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        # The configured weight is restored only if the new state has no weight.
        (State("UP", 50), State("UP"), {"100%"}),
        (State("UP", 0), State("UP"), {"100%"}),
        (State("UP", 100), State("UP"), {"100%"}),
        (State("UP", 50), State("UP", 60), set()),
        (State("UP"), State("UP", 60), set()),
        (State("UP", 50), State("UP", 50), set()),
        # No keyword restores the configured maxconn.
        (State("UP", None, 300), State("UP"), set()),
        (State("UP"), State("UP", None, 300), set()),
        # The next health keyword removes the reason.
        (State("UP", reason="x"), State("UP"), set()),
        (State("DRAIN", reason="x"), State("DRAIN"), {"UP"}),
        (State("DRAIN", reason="x"), State("DRAIN", reason="y"), set()),
        (State("DRAIN"), State("DRAIN", reason="x"), set()),
        # All fields may change at once.
        (State("DRAIN", 50, 300, "x"), State("UP"), {"READY", "100%"}),
        (State("DRAIN", 50, 300, "x"), State("DRAIN"), {"UP", "100%"}),
        (State("DOWN", 50), State("FAIL", 60), set()),
    ],
)
def test_weight_and_reason_are_reset(before: State, after: State, words: set[str]) -> None:
    assert after.undoing(before) == words


def in_haproxy(*lines: str) -> dict[str, object]:
    """A model of a server in HAProxy after these responses, without its maxconn: each keyword changes one field.

    Source: agent-check in section 5.2 of HAProxy's configuration manual.
    """
    server: dict[str, object] = {"administration": "READY", "health": "UP", "weight": "100%", "text": ""}
    for line in lines:
        words, _mark, text = line.partition(" # ")
        for word in words.split():
            if word in ("READY", "DRAIN", "MAINT"):
                server["administration"] = word
            elif word in ("UP", "DOWN", "FAIL", "STOPPED"):
                server.update(health=word, text=text)
            elif word.endswith("%"):
                server["weight"] = word
    return server


@same_examples
@given(states, states)
def test_reset_keywords_leave_nothing_of_the_previous_state(before: State, after: State) -> None:
    line = after.answer(after.undoing(before))
    assert in_haproxy(before.answer(), line) == in_haproxy(after.answer())


@same_examples
@given(states, states, states)
def test_reset_keywords_leave_nothing_of_two_previous_states(first: State, second: State, third: State) -> None:
    # It is unknown whether a load balancer has received the second state.
    line = third.answer(third.undoing(second) | second.undoing(first))
    for received in ([first], [first, second], [second]):
        assert in_haproxy(*(state.answer() for state in received), line) == in_haproxy(third.answer())


# Keywords that a state sends all the time

HEALTH = {"UP", "DOWN", "FAIL", "STOPPED"}


def keywords(line: str) -> set[str]:
    return set(line.partition("#")[0].split())


@pytest.mark.parametrize("reason", [None, "kernel upgrade"])
@pytest.mark.parametrize("status", STATUSES)
def test_states_without_a_health_keyword(status: str, reason: str | None) -> None:
    """HAProxy 3.3 and 3.4 may leave a server DOWN until there is one: docs/haproxy.md lists the states."""
    has_none = status in ("READY", "DRAIN", "MAINT") and reason is None
    assert (not keywords(State(status, reason=reason).answer()) & HEALTH) is has_none


@pytest.mark.parametrize("after", ["UP", "READY"])
@pytest.mark.parametrize("before", STATUSES)
def test_return_into_rotation_sends_up(before: str, after: str) -> None:
    """So a server that HAProxy 3.3 or 3.4 has left DOWN comes back, whatever it was before."""
    if before != after:
        new = State(after)
        assert "UP" in keywords(new.answer(new.undoing(State(before))))


# All responses of one state


@pytest.mark.parametrize(
    ("state", "lines"),
    [
        (State("UP"), {"UP", "UP READY", "UP 100%", "UP READY 100%"}),
        (State("DRAIN"), {"DRAIN", "DRAIN UP", "DRAIN 100%", "DRAIN UP 100%"}),
        (State("UP", 77), {"UP 77%", "UP READY 77%"}),
        (State("MAINT", 0, 5), {"MAINT 0% maxconn:5", "MAINT UP 0% maxconn:5"}),
        (State("DRAIN", 77, reason="x"), {"DRAIN UP 77% # x"}),
        (State("DOWN", reason="x"), {"DOWN # x", "DOWN READY # x", "DOWN 100% # x", "DOWN READY 100% # x"}),
    ],
)
def test_answers_are_all_possible_responses(state: State, lines: set[str]) -> None:
    assert state.answers() == lines


@same_examples
@given(states, st.sets(st.sampled_from(sorted(UNDOING))))
def test_every_response_is_among_the_answers(state: State, undoing: set[str]) -> None:
    assert state.answer(undoing) in state.answers()
    assert state.answer() in state.answers()


@pytest.mark.parametrize(
    ("state", "status", "changed"),
    [
        (State("UP"), "DRAIN", State("DRAIN")),
        (State("UP", 77, 300), "DRAIN", State("DRAIN", 77, 300)),
        # The reason belonged to the previous status.
        (State("DRAIN", 77, 300, "no disk"), "UP", State("UP", 77, 300)),
        (State("DRAIN", 77, 300, "no disk"), "DRAIN", State("DRAIN", 77, 300, "no disk")),
        (State("DOWN", reason="no disk"), "FAIL", State("FAIL")),
    ],
)
def test_new_status_keeps_weight_and_maxconn(state: State, status: str, changed: State) -> None:
    assert state.with_status(status) == changed


# The file


def edit(path: Path, state: State, **options: Any) -> tuple[State | None, State]:
    return StateFile(str(path)).edit(lambda _before: state, time.monotonic(), **options)


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_edit_replaces_the_file_and_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b'{"status": "UP"}')
    path.chmod(mode)
    before = descriptors()
    with path.open("rb") as reader:
        assert edit(path, State("DRAIN", 5)) == (State("UP"), State("DRAIN", 5))
        # A process that has the file open still reads the complete old file.
        assert reader.read() == b'{"status": "UP"}'
    assert StateFile(str(path)).load() == State("DRAIN", 5)
    assert path.stat().st_mode & 0o7777 == mode
    assert sorted(os.listdir(tmp_path)) == ["state.json", "state.json.lock"]
    assert stat.S_IMODE((tmp_path / "state.json.lock").stat().st_mode) == 0o600
    assert descriptors() == before


def test_edit_creates_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert edit(path, FAIL) == (None, FAIL)
    assert StateFile(str(path)).load() == FAIL


def test_edit_does_not_write_an_equal_state(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b'{"weight": 5.0, "status": "UP"}')
    before = path.stat()
    assert edit(path, State("UP", 5)) == (State("UP", 5), State("UP", 5))
    # The whole status would include the access time.
    assert (path.stat().st_ino, path.stat().st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


def test_file_that_another_program_writes_during_a_save_has_not_been_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "state.json", tmp_path / "other"
    other.write_bytes(b'{"status": "MAINT"}')
    rename = os.rename

    def rename_and_be_overtaken(*arguments: Any, **keywords: Any) -> None:
        rename(*arguments, **keywords)
        other.replace(path)

    monkeypatch.setattr(os, "rename", rename_and_be_overtaken)
    saved, reader = StateFile(str(path)), StateFile(str(path))
    saved.edit(lambda _before: State("DRAIN"), time.monotonic())
    assert reader.load() == State("MAINT")
    assert saved.identity is not None
    assert saved.identity != reader.identity


def test_edit_stays_in_the_folder_that_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = os.open(there, os.O_RDONLY)
    try:
        file = StateFile("state.json", folder)
        # Another folder has the name of the opened one now.
        there.rename(tmp_path / "moved")
        there.symlink_to(elsewhere)
        assert file.edit(lambda _before: State("DRAIN"), time.monotonic()) == (None, State("DRAIN"))
        assert file.load() == State("DRAIN")
    finally:
        os.close(folder)
    assert sorted(os.listdir(tmp_path / "moved")) == ["state.json", "state.json.lock"]
    assert os.listdir(elsewhere) == []


@pytest.mark.parametrize("content", [b"", b'{"status": "up"}', None])
def test_edit_refuses_an_invalid_file_or_overwrites_it(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state.json"
    if content is None:
        path.symlink_to("other.json")
        (tmp_path / "other.json").write_bytes(b'{"status": "UP"}')
    else:
        path.write_bytes(content)
    with pytest.raises(StateError):
        edit(path, FAIL)
    assert path.is_symlink() == (content is None)
    assert content is None or path.read_bytes() == content
    # The agent overwrites the file, because it has a valid state.
    assert edit(path, FAIL, overwrite=True) == (None, FAIL)
    assert not path.is_symlink()
    assert StateFile(str(path)).load() == FAIL


def test_edit_that_raises_an_error_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b'{"status": "UP"}')

    def refuse(before: State | None) -> State:
        raise StateError(f"not after {before}")

    with pytest.raises(StateError, match="not after"):
        StateFile(str(path)).edit(refuse, time.monotonic())
    assert path.read_bytes() == b'{"status": "UP"}'
    assert edit(path, FAIL) == (State("UP"), FAIL)


def test_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.mkdir()
    before = descriptors()
    with pytest.raises(IsADirectoryError):
        edit(path, FAIL, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["state.json", "state.json.lock"]
    assert descriptors() == before


def test_edit_fails_if_the_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        edit(tmp_path / "nothing" / "state.json", FAIL)


@pytest.mark.parametrize("name", ["state.json.tmp", "state.json.lock"])
def test_edit_follows_no_links_at_its_helper_files(tmp_path: Path, name: str) -> None:
    path, other = tmp_path / "state.json", tmp_path / "other"
    other.write_bytes(b"not to be touched")
    other.chmod(0o640)
    (tmp_path / name).symlink_to(other)
    if name == "state.json.lock":
        with pytest.raises(OSError, match="symbolic link"):
            edit(path, FAIL)
    else:
        edit(path, FAIL)
    assert other.read_bytes() == b"not to be touched"
    assert stat.S_IMODE(other.stat().st_mode) == 0o640


def test_edits_never_overlap(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b'{"status": "UP", "weight": 0}')
    script = (
        "import sys, time\n"
        "from ansible_collections.hapgent.agent.plugins.module_utils._state import StateFile\n"
        "for _round in range(40):\n"
        "    StateFile(sys.argv[1]).edit(lambda old: old._replace(weight=old.weight + 1), time.monotonic() + 60)\n"
    )
    editors = [subprocess.Popen([sys.executable, "-c", script, path]) for _editor in range(3)]
    assert [editor.wait(60) for editor in editors] == [0, 0, 0]
    assert StateFile(str(path)).load() == State("UP", 120)


def test_edit_of_a_locked_file_fails_at_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    edit(path, FAIL)
    before = descriptors()
    with (tmp_path / "state.json.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        start = time.monotonic()
        command = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
        with pytest.raises(LockedError, match=re.escape(f"process {os.getpid()} ({command})")):
            StateFile(str(path)).edit(lambda _before: State("UP"), start + 0.3)
        assert time.monotonic() - start >= 0.3
        # Reading needs no lock.
        assert StateFile(str(path)).load() == FAIL
    assert descriptors() == before
    assert edit(path, State("UP")) == (FAIL, State("UP"))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_lock_of_another_user_is_refused(tmp_path: Path) -> None:
    path, lock = tmp_path / "state.json", tmp_path / "state.json.lock"
    edit(path, FAIL)
    os.chown(lock, 65534, 65534)
    with pytest.raises(LockedError, match="user 0 or root"):
        edit(path, State("UP"))
    assert StateFile(str(path)).load() == FAIL


def test_lock_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    os.mkfifo(tmp_path / "state.json.lock")
    with pytest.raises(LockedError, match="regular file"):
        edit(path, FAIL)


def test_load_reports_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"cannot be read.*No such file or directory"):
        StateFile(str(tmp_path / "nothing")).load()


def test_load_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_bytes(b'{"status": "UP"}')
    link = tmp_path / "state.json"
    link.symlink_to("real.json")
    with pytest.raises(StateError, match="symbolic link"):
        StateFile(str(link)).load()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_load_leaves_no_descriptor_open(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "state.json"
    make(path)
    before = descriptors()
    with pytest.raises(StateError):
        StateFile(str(path)).load()
    assert descriptors() == before
