# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a state is: its rules, its JSON, its answer, its file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._state import (
    FAIL,
    LIMITS,
    STATUSES,
    State,
    StateError,
    dump,
    from_fields,
    load,
    parse,
    save,
)
from hypothesis import given, settings
from hypothesis import strategies as st

ONE_STATUS = "allowed is one of UP, DOWN, READY, DRAIN, FAIL, MAINT, STOPPED"
ONE_OBJECT = "allowed is one JSON object"

states = st.builds(
    State,
    st.sampled_from(STATUSES),
    st.none() | st.integers(0, LIMITS["weight"]),
    st.none() | st.integers(0, LIMITS["maxconn"]),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)
# Near to a state, so that more than the first rule is reached.
fields_near_a_state = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(STATUSES) | json_values,
        "weight": st.floats(-1, 300) | st.integers(-1, 300) | json_values,
        "maxconn": st.integers(-1, 70_000) | json_values,
    },
)
# The same examples in each run, and nothing written into the working folder.
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
    ],
)
def test_answer(state: State, answer: str) -> None:
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
    ],
)
def test_fields_of_a_state(fields: dict[str, Any], state: State) -> None:
    made = from_fields(fields)
    assert made == state
    # 50.0 would be another answer.
    assert not any(isinstance(value, float) for value in made)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, f"status is missing: {ONE_STATUS}"),
        ({"status": None}, f"status is missing: {ONE_STATUS}"),
        ({"status": "up"}, f'status is "up": {ONE_STATUS}'),
        ({"status": 1}, f"status is 1: {ONE_STATUS}"),
        ({"status": ["UP"]}, f'status is ["UP"]: {ONE_STATUS}'),
        ({"status": "UP" * 500}, f'status is "{"UP" * 30}...: {ONE_STATUS}'),
        ({"status": "UP", "weight": 256}, "weight is 256: allowed is a whole number from 0 to 255"),
        ({"status": "UP", "weight": -1}, "weight is -1: allowed is a whole number from 0 to 255"),
        ({"status": "UP", "weight": "50"}, 'weight is "50": allowed is a whole number from 0 to 255'),
        ({"status": "UP", "weight": True}, "weight is true: allowed is a whole number from 0 to 255"),
        ({"status": "UP", "weight": 0.5}, "weight is 0.5: allowed is a whole number from 0 to 255"),
        ({"status": "UP", "weight": float("nan")}, "weight is NaN: allowed is a whole number from 0 to 255"),
        ({"status": "UP", "maxconn": 65536}, "maxconn is 65536: allowed is a whole number from 0 to 65535"),
        ({"status": "UP", "maxconn": {}}, "maxconn is {}: allowed is a whole number from 0 to 65535"),
        ({"status": "UP", "wait": 1}, 'unknown field "wait": allowed are status, weight, maxconn'),
        ({"Status": "UP"}, 'unknown field "Status": allowed are status, weight, maxconn'),
    ],
)
def test_fields_of_no_state(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(StateError) as caught:
        from_fields(fields)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", f"not JSON (Expecting value: line 1 column 1 (char 0)): {ONE_OBJECT}"),
        (b"[]", f"content is []: {ONE_OBJECT}"),
        (b'"UP"', f'content is "UP": {ONE_OBJECT}'),
        (b'{"status": "\xff"}', f"not UTF-8 at byte 12: {ONE_OBJECT} in UTF-8"),
        (b'{"status": "UP", "status": "UP"}', 'field "status" is there more than once: allowed is once'),
        (b'{"status": "UP", "weight": 1, "weight": 2}', 'field "weight" is there more than once: allowed is once'),
    ],
)
def test_bytes_of_no_state(raw: bytes, message: str) -> None:
    with pytest.raises(StateError) as caught:
        parse(raw)
    assert str(caught.value) == message


@pytest.mark.parametrize("beginning", [b"", b'{"status":', b'{"status": "UP", "weight":', b'{"status": "UP", "x":'])
def test_any_depth_of_nesting_is_no_state(beginning: bytes) -> None:
    # Python gives up at a depth that depends on how deep the caller is, reading and writing at different ones.
    for depth in range(1, 1100):
        for opening, closing in [(b"[", b"]"), (b'{"a":', b"}")]:
            with pytest.raises(StateError):
                parse(beginning + opening * depth + b"1" + closing * depth + b"}" * bool(beginning))


@same_examples
@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_state_or_not(raw: bytes) -> None:
    try:
        state = parse(raw)
    except StateError as error:
        assert "\n" not in str(error)
    else:
        assert parse(dump(state)) == state


@same_examples
@given(fields_near_a_state)
def test_any_fields_are_a_state_or_not(fields: dict[str, Any]) -> None:
    try:
        state = from_fields(fields)
    except StateError as error:
        assert "allowed" in str(error)
        assert len(str(error)) < 200
    else:
        assert state.status in STATUSES
        for name in LIMITS:
            value = getattr(state, name)
            assert value == fields.get(name)
            assert value is None or 0 <= value <= LIMITS[name]


@same_examples
@given(states)
def test_what_is_written_is_read(state: State) -> None:
    assert parse(dump(state)) == state
    assert from_fields(state.fields()) == state


def test_written_as_people_read_it() -> None:
    assert dump(State("UP", 77, 300)) == b'{\n  "status": "UP",\n  "weight": 77,\n  "maxconn": 300\n}\n'
    assert dump(FAIL) == b'{\n  "status": "FAIL"\n}\n'


# The file


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_save_replaces_the_file_and_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"before")
    path.chmod(mode)
    with path.open("rb") as reader:
        save(str(path), State("DRAIN", 5), f"{path}.new")
        # Who has it open still reads the old file, whole.
        assert reader.read() == b"before"
    assert load(str(path)) == State("DRAIN", 5)
    assert path.stat().st_mode & 0o7777 == mode
    assert os.listdir(tmp_path) == ["state.json"]


def test_save_where_no_file_was(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    save(str(path), FAIL, f"{path}.new")
    assert load(str(path)) == FAIL


def test_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        save(str(path), FAIL, f"{path}.new")
    assert os.listdir(tmp_path) == ["state.json"]


def test_save_does_not_write_through_a_link_at_its_temporary_name(tmp_path: Path) -> None:
    path, other = tmp_path / "state.json", tmp_path / "other"
    other.write_bytes(b"not to be touched")
    Path(f"{path}.new").symlink_to(other)
    save(str(path), FAIL, f"{path}.new")
    assert other.read_bytes() == b"not to be touched"
    assert sorted(os.listdir(tmp_path)) == ["other", "state.json"]


def test_load_tells_what_the_system_says(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot be read.*No such file or directory"):
        load(str(tmp_path / "nothing"))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_load_leaves_no_descriptor_open(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "state.json"
    make(path)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StateError):
        load(str(path))
    assert os.listdir("/proc/self/fd") == before
