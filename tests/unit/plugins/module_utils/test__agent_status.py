# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Statuses of agents, /proc and the output of systemctl are parsed safely, even if an attacker wrote them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._agent_client import (
    FIELDS,
    PEER_FIELDS,
    REQUIRED,
    REQUIRED_OF_PEER,
    NoStatusError,
    _parse,
    clean_status,
    why_fail,
)
from ansible_collections.hapgent.agent.plugins.module_utils._agent_process import (
    parse_environment,
    parse_id,
    parse_state,
)
from ansible_collections.hapgent.agent.plugins.module_utils._systemd import (
    Service,
    SystemdError,
    parse_services,
    parse_unit_environment,
)
from hypothesis import given, settings
from hypothesis import strategies as st

same_examples = settings(derandomize=True, database=None, deadline=None)
PEER = {
    "address": "198.51.100.11",
    "first_seen": 1.5,
    "last_seen": 2.5,
    "checks": 3,
    "interval": 2.0,
    "line": "UP",
    "received": True,
    "settles_for": 0.0,
    "polls": True,
}
STATUS: dict[str, Any] = {
    "state": {"status": "UP", "weight": 50},
    "answer": "UP 50%",
    "since": 1795486180.4,
    "ramp_weight": 5,
    "ramp_ends": 1795486300.0,
    "version": "1.0.0",
    "settle": 60,
    "state_file": "/etc/hapgent/state.json",
    "state_file_ok": True,
    "last_error": "x",
    "counters": {"checks": 12},
    "peers": [PEER],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(st.characters()), values, max_size=4),
    max_leaves=20,
)


def test_status_of_this_release_is_kept() -> None:
    assert clean_status(STATUS) == STATUS


def test_unknown_fields_of_a_newer_release_are_removed() -> None:
    peer = {**PEER, "new": 1}
    newer = {**STATUS, "new": {}, "peers": [peer], "state": {**STATUS["state"], "new": 1}}
    assert clean_status(newer) == STATUS


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [None, object(), ["x"], {"x": []}])
def test_missing_or_wrong_field_is_none_or_refused(name: str, value: object) -> None:
    changed = {**STATUS, name: value}
    if value is None:
        del changed[name]
    if name in REQUIRED:
        with pytest.raises(NoStatusError, match=name):
            clean_status(changed)
    else:
        assert clean_status(changed) == {**STATUS, name: None}


@pytest.mark.parametrize("name", PEER_FIELDS)
def test_missing_field_of_a_load_balancer_is_none_or_refused(name: str) -> None:
    changed = {**STATUS, "peers": [{key: value for key, value in PEER.items() if key != name}]}
    if name in REQUIRED_OF_PEER:
        # Modules would not wait for a load balancer that is skipped.
        with pytest.raises(NoStatusError, match=name):
            clean_status(changed)
    else:
        assert clean_status(changed)["peers"] == [{**PEER, name: None}]


@pytest.mark.parametrize(
    ("name", "value", "cleaned"),
    [
        ("answer", "UP\x1b[2J\u202e", r"UP\x1b[2J\u202e"),
        ("last_error", "x" * 5000, "x" * 997 + "..."),
        ("since", float("nan"), None),
        ("since", float("inf"), None),
        ("since", 10**400, None),
        ("since", True, None),
        ("settle", 1.5, None),
        ("counters", {"\n": 1}, {r"\n": 1}),
        ("counters", dict.fromkeys(map(str, range(1000)), 1), None),
    ],
)
def test_odd_values_are_cleaned(name: str, value: object, cleaned: object) -> None:
    assert clean_status({**STATUS, name: value})[name] == cleaned


@pytest.mark.parametrize(
    ("state", "state_file_ok", "last_error", "why"),
    [
        ("FAIL", False, "x", "x"),
        # FAIL was set on purpose.
        ("FAIL", True, "x", ""),
        ("UP", False, "x", ""),
        # Older releases do not report state_file_ok.
        ("FAIL", None, "x", "x"),
        ("FAIL", False, None, ""),
    ],
)
def test_reason_for_fail(state: str, state_file_ok: bool | None, last_error: str | None, why: str) -> None:
    assert why_fail({"state": {"status": state}, "state_file_ok": state_file_ok, "last_error": last_error}) == why


def assert_clean(document: object) -> None:
    """Check that a status is either refused or clean."""
    try:
        status = clean_status(document)
    except NoStatusError:
        return
    assert set(status) == set(FIELDS)
    shown = {**status, "state": None}
    # All numbers are finite, and all text is printable.
    assert json.dumps(shown, ensure_ascii=False, allow_nan=False).isprintable()


@same_examples
@given(JSON)
def test_any_document_is_refused_or_cleaned(document: object) -> None:
    assert_clean(document)


@same_examples
@given(st.dictionaries(st.sampled_from(list(FIELDS)), JSON))
def test_any_fields_of_a_status_are_refused_or_cleaned(changes: dict[str, object]) -> None:
    assert_clean({**STATUS, **changes})


@same_examples
@given(st.dictionaries(st.sampled_from(list(PEER_FIELDS)), JSON))
def test_any_fields_of_a_load_balancer_are_refused_or_cleaned(changes: dict[str, object]) -> None:
    assert_clean({**STATUS, "peers": [{**PEER, **changes}]})


@same_examples
@given(st.binary() | st.text().map(str.encode) | st.integers(0, 100_000).map(lambda count: b"[" * count))
def test_any_bytes_are_refused_or_cleaned(content: bytes) -> None:
    try:
        assert_clean(_parse(content))
    except NoStatusError:
        pass


@pytest.mark.parametrize(
    "content", [b"1" * 4_000_000, b'{"since": NaN}', b'{"since": -Infinity}', b'"\xff"', b"", b"{}{}"]
)
def test_invalid_json_is_refused(content: bytes) -> None:
    with pytest.raises(NoStatusError):
        _parse(content)


# Files in /proc and output of systemctl


@pytest.mark.parametrize(
    ("content", "user"),
    [
        (b"Name:\thapgent\nUid:\t1000\t1000\t1000\t1000\nGid:\t7\t7\t7\t7\n", 1000),
        (b"Name:\thapgent\nUid:\t0\t0\t0\t0\n", 0),
        # The real and effective users of a set-user-ID program differ.
        (b"Name:\thapgent\nUid:\t1000\t0\t0\t0\n", None),
        (b"Name:\tUid:\t0\t0\t0\t0\nUid:\t1\t1\t1\t1\n", 1),
        (b"Name:\tx\nUid:\t0\t0\t0\t0\nUid:\t1\t1\t1\t1\n", 1),
        (b"Uid:\t10\t1\t1\t1\n", None),
        (b"", None),
    ],
)
def test_user_of_a_process_is_parsed(content: bytes, user: int | None) -> None:
    assert parse_id("Uid", content) == user


@pytest.mark.parametrize(
    ("content", "state"), [(b"1 (hapgent) S 1", "S"), (b"1 (a) Z (b) R) S 1", "S"), (b"1 ()", ""), (b"", "")]
)
def test_state_of_a_process_is_parsed(content: bytes, state: str) -> None:
    assert parse_state(content) == state


@pytest.mark.parametrize(
    ("content", "variables"),
    [
        (b"A=1\0B=2=3\0C=\0", {"A": "1", "B": "2=3", "C": ""}),
        # The first value counts, as for getenv().
        (b"A=1\0A=2\0", {"A": "1"}),
        (b"A\0\0=x\0\xff=\xff\0", {"": "x", "\udcff": "\udcff"}),
        (b"", {}),
    ],
)
def test_environment_is_parsed(content: bytes, variables: dict[str, str]) -> None:
    assert parse_environment(content) == variables


@same_examples
@given(st.binary())
def test_any_content_of_proc_raises_no_error(content: bytes) -> None:
    parse_id("Uid", content)
    parse_state(content)
    parse_environment(content)


@pytest.mark.parametrize(
    ("printed", "services"),
    [
        (
            "Id=a.service\nMainPID=7\nLoadState=loaded\nActiveState=active\n\nId=b.service\nMainPID=0\n"
            "LoadState=not-found\nActiveState=inactive\n",
            [Service("a", True, "active", 7), Service("b", False, "inactive", 0)],
        ),
        ("Id=a.service\nMainPID=x\n", [Service("a", True, "unknown", 0)]),
        ("Id=a.socket\nMainPID=7\n", []),
        ("", []),
    ],
)
def test_services_are_parsed(printed: str, services: list[Service]) -> None:
    assert parse_services(printed) == services


@same_examples
@given(st.text())
def test_any_output_of_systemctl_raises_no_error(printed: str) -> None:
    parse_services(printed)


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("", {}),
        ("Environment=\n", {}),
        ("Environment=A=1 B=/x=y C=\n", {"A": "1", "B": "/x=y", "C": ""}),
        ('Environment=A=1 "B=a \\"b\\" \\$c" A=2\n', {"A": "2", "B": 'a "b" $c'}),
        ("Id=a.service\nEnvironment=A=1\nMainPID=0\n", {"A": "1"}),
    ],
)
def test_environment_of_a_unit_is_read(printed: str, found: dict[str, str]) -> None:
    assert parse_unit_environment(printed) == found


def test_environment_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(SystemdError, match="cannot be read"):
        parse_unit_environment('Environment="A=1\n')
