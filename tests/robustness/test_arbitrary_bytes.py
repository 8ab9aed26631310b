# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""No bytes crash the agent, whether they are in its state file, in its memory file or sent by a client."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually
    from tests.robustness.conftest import Observer

ANSWER = re.compile(
    rb"(UP|DOWN|FAIL|STOPPED|(READY|DRAIN|MAINT)( UP)?)( \d{1,3}%)?( maxconn:\d{1,5})?( # [^\x00-\x1f\x7f#]{1,120})?\n"
)
GOOD = b'{"status": "READY", "weight": 1}'

numbers = st.integers() | st.integers(0, 70_000) | st.floats()
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text() | st.sampled_from(["UP", "DRAIN"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["status", "weight", "maxconn", "reason"])
# Documents that resemble a state, and sometimes are one.
documents = (
    st.fixed_dictionaries(
        {"status": st.sampled_from(["UP", "DOWN", "READY", "DRAIN", "FAIL", "MAINT", "STOPPED"])},
        optional={"weight": numbers, "maxconn": numbers, "reason": st.text(max_size=130)},
    )
    | st.dictionaries(names | st.text(), values, max_size=4)
    | values
)
cut_off = st.tuples(documents, st.integers(0, 60)).map(lambda pair: json.dumps(pair[0]).encode()[: pair[1]])
contents = st.binary(max_size=300) | documents.map(lambda found: json.dumps(found).encode()) | cut_off


def are_no_state(content: bytes) -> bool:
    try:
        fields = json.loads(content)
    except ValueError:
        return True
    return not isinstance(fields, dict) or "status" not in fields


class Subject:
    """An agent that is tested with one example after another."""

    def __init__(self, agent: Agent, status_socket: Path, observer: Observer, eventually: Eventually) -> None:
        self.agent = agent
        self._status_socket = status_socket
        self._observer = observer
        self._eventually = eventually

    def reloads(self) -> int:
        counted: int = self._observer.status(self._status_socket)["counters"]["reloads"]
        return counted

    def reload(self, content: bytes) -> bytes:
        """Return the agent's answer after it has loaded this state file."""
        before = self.reloads()
        self.agent.write_state(content)
        self.agent.send(signal.SIGHUP)
        # A reload is counted before the file is read, so wait until a second one has been counted.
        self._eventually(lambda: self.reloads() == before + 1, "the signal is obeyed")
        self.agent.send(signal.SIGHUP)
        self._eventually(lambda: self.reloads() == before + 2, "the file has been read")
        return self.agent.ask()

    def assert_still_works(self) -> None:
        self.agent.assert_running()
        # The next example counts reloads, so all signals must have been counted by then.
        assert self.reload(GOOD) == b"READY 1%\n"


@pytest.fixture
def subject(agents: Agents, tmp_path: Path, observer: Observer, eventually: Eventually) -> Subject:
    path = tmp_path / "status.sock"
    return Subject(agents.start(environment={"HAPGENT_SOCKET": str(path)}), path, observer, eventually)


def test_any_state_file_is_answered(subject: Subject) -> None:
    answers = set()

    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    @given(contents)
    def see(content: bytes) -> None:
        answer = subject.reload(content)
        assert ANSWER.fullmatch(answer)
        if are_no_state(content):
            assert answer == b"FAIL\n"
        answers.add(answer.split()[0])
        subject.assert_still_works()

    see()
    # The examples included valid states with each status.
    assert answers == {b"UP", b"DOWN", b"READY", b"DRAIN", b"FAIL", b"MAINT", b"STOPPED"}


def test_any_payload_is_ignored(subject: Subject) -> None:
    agent = subject.agent

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.binary(min_size=1, max_size=2000), max_size=20))
    def see(payload: list[bytes]) -> None:
        # The whole payload arrives before the agent accepts: data that arrives after its answer is rightly reset.
        with agent.paused():
            client = agent.connect()
            for part in payload:
                client.sendall(part)
        with client:
            assert agent.read_to_end(client) == b"UP\n"

    see()
    assert len(agent.log()) == len(["start", "answering"])
    subject.assert_still_works()


def test_any_memory_file_is_read_or_replaced(agents: Agents, tmp_path: Path) -> None:
    state_file = tmp_path / "folder" / "state.json"
    state_file.parent.mkdir()
    memory = state_file.with_name("state.json.memory")
    true_fields = {"state": {"status": "UP"}, "undo": ["READY"], "saved": 1e9, "since": 1e9, "peers": []}
    peer = {
        **{"received": [{"status": "UP"}], "undo": {"READY": 50.0}},
        **{"address": "127.0.0.1", "first_seen": 1e9, "last_seen": 1e9, "checks": 1, "interval": 2.0, "line": "UP\n"},
    }
    mistakes = st.fixed_dictionaries({}, optional=dict.fromkeys(true_fields, values)).map(
        lambda wrong: {**true_fields, **wrong}
    ) | st.fixed_dictionaries({}, optional=dict.fromkeys(peer, values)).map(
        lambda wrong: {**true_fields, "peers": [{**peer, **wrong}]}
    )

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=300) | mistakes.map(lambda found: json.dumps(found).encode()))
    def see(content: bytes) -> None:
        memory.write_bytes(content)
        agent = agents.start(GOOD, state_file=state_file, environment={"HAPGENT_SETTLE": "60"})
        assert ANSWER.fullmatch(agent.ask())
        agent.send(signal.SIGUSR2)
        agent.await_answer(b"DOWN READY 1%\n")
        agent.send(signal.SIGTERM)
        assert agent.await_exit() == 0
        assert json.loads(memory.read_bytes())["state"] == {"status": "DOWN", "weight": 1}

    see()
