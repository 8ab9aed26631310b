# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent follows the rules of the state, and every change reaches every server whatever happens in between.

The tests compare the agent with models that share no code with it. The file has these parts:

- What a state is: the model. expected_state() decides which bytes are a state file, expected_line() what the agent
  answers for it.
- What a state is: generated documents that are close to a state file, and the tests that compare the agent's rules
  (hapgent/_state.py) with the model.
- HAProxy's servers: the model. Server applies answers as HAProxy does. The tests prove that each state and each change
  reaches such a server.
- The agent and load balancers: the simulation. RunningAgent is the real agent without its threads, signals and sockets,
  and Clock replaces the time. Backend and LoadBalancer record what the agent owes them.
- Changes: a state machine of Hypothesis that changes, signals, restarts and kills the agent, and polls, reloads and
  administers HAProxy, in random order. After each poll the server must have the agent's state. Known limits are part of
  the machine, marked "Limit:". ChangesWithoutSettling does the same with HAPGENT_SETTLE=0. Some sequences that random
  order rarely produces follow as separate tests.
- The agent killed at every system call: the next agent resets what the killed one sent.
- Which load balancers the agent remembers, and which it forgets first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib
import itertools
import json
import os
import random
import re
import signal
import sys
import tempfile
import time as system_time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

ROOT = Path(__file__).parents[2]
with mock.patch.object(sys, "path", [str(ROOT / "files"), *sys.path]):
    # Imported at run time, because mypy does not find the agent's package here.
    hapgent: Any = {
        name: importlib.import_module(f"hapgent.{name}")
        for name in ("agent", "keeper", "log", "memory", "peers", "settings", "_ramp", "_state")
    }

# Hypothesis must generate the same examples in each run and write nothing into the working folder.
same_examples = settings(derandomize=True, database=None, deadline=None)


# What a state is: the model


class Meant(NamedTuple):
    """A state as the models understand it. It shares no code with the agent's State."""

    status: str
    weight: int | None = None
    maxconn: int | None = None
    reason: str | None = None
    by: str | None = None
    until: str | None = None
    then: str | None = None


LIMITS = {"weight": 255, "maxconn": 65535}
NOTES = [name for name in Meant._fields[1:] if name not in (*LIMITS, "until", "then")]
UP_AND_DOWN = ("UP", "DOWN", "FAIL", "STOPPED")
ADMINISTRATIVE = ("READY", "DRAIN", "MAINT")
STATUSES = (*UP_AND_DOWN, *ADMINISTRATIVE)

# The part of the grammar of RFC 8259 that a state file may use: one object without nested objects or lists.
BLANK = r"[ \t\n\r]*"
STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
MEMBER = rf"{BLANK}({STRING}){BLANK}:{BLANK}({STRING}|{NUMBER}|null){BLANK}"
OBJECT = re.compile(rf"{BLANK}\{{(?:{MEMBER}(?:,{MEMBER})*)?\}}{BLANK}")
ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def expected_state(raw: bytes) -> Meant | None:
    """Return the state in a file with these bytes, or None if it is not a valid state."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not OBJECT.fullmatch(text):
        return None
    members = re.findall(MEMBER, text)
    fields = {decoded_string(name): value for name, value in members}
    if len(fields) != len(members) or not fields.keys() <= {*Meant._fields}:
        return None
    status = decoded_string(fields.get("status", ""))
    written = {name: fields.get(name, "null") for name in Meant._fields[1:]}
    values = [decoded_value(name, text) for name, text in written.items()]
    if status not in STATUSES or "wrong" in values:
        return None
    state = Meant(status, *values)  # type: ignore[arg-type]
    return None if state.then and not state.until else state


def decoded_value(name: str, written: str) -> int | str | None:
    if name in LIMITS:
        return decoded_number(written, LIMITS[name])
    if name == "then":
        return None if written == "null" else "UP" if decoded_string(written) == "UP" else "wrong"
    return decoded_moment(written) if name == "until" else decoded_note(written)


def decoded_string(written: str) -> str | None:
    """Decode a string in JSON; return None if it is not a string or not valid Unicode."""
    if not written.startswith('"'):
        return None
    unescaped = re.sub(
        r"\\(?:u(....)|(.))",
        lambda found: chr(int(found[1], 16)) if found[1] else ESCAPES.get(found[2], found[2]),
        written[1:-1],
    )
    try:
        return unescaped.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return None


def decoded_number(written: str, most: int) -> int | str | None:
    if written == "null":
        return None
    # JSON numbers are doubles, so 50.0 and 5e1 are 50.
    wrong = written.startswith('"') or not 0 <= float(written) <= most or float(written) != int(float(written))
    return "wrong" if wrong else int(float(written))


def decoded_note(written: str) -> str | None:
    """Decode a reason; return 'wrong' if it is not a valid one."""
    if written == "null":
        return None
    text = decoded_string(written)
    if text is None or len(text.encode()) > 120 or "#" in text:
        return "wrong"
    categories = {unicodedata.category(character) for character in text}
    # The category Cc consists of C0, DEL and C1.
    return "wrong" if "Cc" in categories or categories <= {"Zs", "Zl", "Zp"} else text


def decoded_moment(written: str) -> str | None:
    """Decode a moment; return 'wrong' if it is none, or not in the only form that a state may have."""
    if written == "null":
        return None
    text = decoded_string(written)
    try:
        found = datetime.datetime.strptime(text or "", "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return "wrong"
    # This also reads 1 for 01, and other digits than those of ASCII.
    return text if 2000 <= found.year < 3000 and f"{found:%Y-%m-%dT%H:%M:%SZ}" == text else "wrong"


def expected_line(state: Meant) -> str:
    """Return the agent's answer in this state if no previous state must be reset."""
    line = state.status
    if state.reason and state.status in ADMINISTRATIVE:
        # HAProxy shows a reason only if a health keyword precedes it.
        line += " UP"
    if state.weight is not None:
        line += f" {state.weight}%"
    if state.maxconn is not None:
        line += f" maxconn:{state.maxconn}"
    if state.reason:
        line += f" # {state.reason}"
    return line


# What a state is: documents that are close to a state file

plain_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="#"), max_size=40)
texts = plain_texts | st.text(max_size=5) | st.text(st.sampled_from(" \xa0\u2003\u2028\t#\x1f\x7f\x9f\ud83d\ude00a"))
# Reasons of exactly the maximum length, and one byte longer.
long_texts = st.builds(
    lambda character, more: character * (120 // len(character.encode())) + "." * more,
    st.sampled_from(["a", "é", "…", "🚦", '"']),
    st.integers(0, 1),
)
written_texts = st.builds(
    lambda text, write: write(text),
    texts | long_texts,
    st.sampled_from(
        [
            json.dumps,
            lambda text: json.dumps(text, ensure_ascii=False),
            # Leave control characters unescaped, which JSON does not allow.
            lambda text: f'"{text}"',
            lambda text: '"' + "".join(f"\\u{ord(character):04X}" for character in text if character < "\uffff") + '"',
        ]
    ),
)
good_numbers = st.integers(0, 255).map(str) | st.sampled_from(
    ["0", "-0", "0.0", "1", "50.0", "5e1", "5E+1", "2550e-1", "255.0", "null"]
)
bad_numbers = ["255.5", "-1", "1.5", "1e400", "00", "01", "+1", ".5", "5.", "1e", "0x10", "1_0", "٣", "NaN", "Infinity"]
written_numbers = (
    st.sampled_from(["0", "-0.0", "255", "256", "256.0", "65535", "65535.0", "65536", "1e-400", "true", "false"])
    | st.sampled_from(bad_numbers)
    | st.integers(-1, 70_000).map(str)
    | st.floats().map(json.dumps)
    | st.just("1" * 5000)
)
written_values = (
    written_texts
    | written_numbers
    | st.sampled_from(["null", "[]", "{}", '["UP"]', '{"status": "UP"}', '"50"', "[" * 3000, ""])
)
written_statuses = st.sampled_from(STATUSES).flatmap(
    lambda status: st.sampled_from(
        [*[f'"{status}"'] * 12, status, f'"{status.lower()}"', f'" {status}"', f'"\\u{ord(status[0]):04x}{status[1:]}"']
    )
)
moments = st.datetimes(datetime.datetime(2000, 1, 1), datetime.datetime(2999, 12, 31)).map(
    "{:%Y-%m-%dT%H:%M:%SZ}".format
)
written_moments = (
    moments
    | st.from_regex(r"\A[0-3]\d{3}-[01]\d-[0-3]\d[Tt ][0-2]\d:[0-6]\d:[0-6]\d(Z|z|\+00:00|)\Z")
    | st.sampled_from(["2h", "2026-11-28T06:00:00.0Z", "2026-02-29T06:00:00Z", "2026-1-2T3:4:5Z"])
).map(json.dumps)
good_values = {
    '"weight"': good_numbers,
    '"maxconn"': good_numbers,
    **{f'"{name}"': plain_texts.filter(bool).map(json.dumps) | st.just("null") for name in NOTES},
    '"until"': moments.map(json.dumps) | st.just("null"),
    '"then"': st.sampled_from(['"UP"', '"\\u0055P"', "null"]),
}
odd_members = st.sampled_from(
    [
        ('"status"', written_statuses),
        ('"st\\u0061tus"', written_statuses),
        ('"Status"', written_statuses),
        ('"weight"', written_numbers),
        ('"maxconn"', written_numbers),
        *((f'"{name}"', written_texts) for name in NOTES * 2),
        ('"until"', written_moments),
        ('"then"', written_statuses),
        ('"wait"', st.just("null")),
        *((f'"{name}"', written_values) for name in Meant._fields),
    ]
)
blanks = st.sampled_from(["", " ", "\n  ", "\t\r", "\xa0", "\ufeff", ","])


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """Generate documents that resemble a state file; about half of them are one."""
    members = {name: draw(values) for name, values in good_values.items() if draw(st.booleans())}
    members['"status"'] = draw(written_statuses)
    written = [f"{name}:{value}" for name, value in members.items()]
    if draw(st.booleans()):
        name, values = draw(odd_members)
        if draw(st.booleans()):
            # Replace the member of this name instead of adding a second one.
            written = [member for member in written if not member.startswith(f"{name}:")]
        written.append(f"{name}:{draw(values)}")
    written = draw(st.permutations(written))
    raw = f"{{{','.join(written)}}}".encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        # Insert the blank between two tokens of JSON.
        at = draw(st.sampled_from([match.end() for match in re.finditer(rb"^|[{:,]|}$", raw)]))
        raw = raw[:at] + draw(blanks).encode() + raw[at:]
    if draw(st.integers(0, 9)) == 5:
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=2)) + raw[at + draw(st.integers(0, 2)) :]
    return raw


meanings = st.builds(
    Meant,
    st.sampled_from(STATUSES),
    st.none() | st.integers(0, 255),
    st.none() | st.integers(0, 65535),
    **dict.fromkeys(
        NOTES, st.none() | plain_texts.filter(lambda text: text and not text.isspace() and len(text.encode()) <= 120)
    ),
    until=st.none() | moments,
    then=st.sampled_from([None, "UP"]),
).map(lambda state: state if state.until else state._replace(then=None))


def parsed(raw: bytes) -> Meant | None:
    try:
        return Meant(*hapgent["_state"].parse(raw))
    except hapgent["_state"].StateError:
        return None


# What a state is: the tests


def test_documents_include_both_valid_and_invalid_states() -> None:
    seen = []
    settings(same_examples, max_examples=300)(given(documents())(lambda raw: seen.append(expected_state(raw))))()
    found = [meant for meant in seen if meant]
    assert 0.2 < len(found) / len(seen) < 0.8
    for field in Meant._fields:
        # The last one has only one value.
        assert len({getattr(meant, field) for meant in found}) >= (2 if field == "then" else 7)


@settings(same_examples, max_examples=2500)
@given(documents())
def test_documents_are_read_as_the_rules_require(raw: bytes) -> None:
    assert parsed(raw) == expected_state(raw)


@settings(same_examples, max_examples=300)
@given(st.binary(max_size=100) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_as_the_rules_require(raw: bytes) -> None:
    assert parsed(raw) == expected_state(raw)


def test_each_character_in_a_reason_is_accepted_or_refused_as_the_rules_require() -> None:
    characters = itertools.chain(range(0x3100), range(0xD7F0, 0xE010), range(0xFE00, 0x10010), [0xE0001, 0x10FFFF])
    for character in map(chr, characters):
        for reason in (character, f"a{character}"):
            raw = json.dumps({"status": "UP", "reason": reason}).encode()
            assert parsed(raw) == expected_state(raw), repr(reason)


def test_duplicate_fields_are_refused_whatever_their_values() -> None:
    for name, value in [("status", '"UP"'), ("weight", "1"), ("weight", "null"), ("maxconn", "1"), ("reason", '"a"')]:
        member = f'"{name}": {value}'
        once = member if name == "status" else f'"status": "UP", {member}'
        assert parsed(f"{{{once}}}".encode()) is not None
        for again in (member, f'"\\u{ord(name[0]):04x}{name[1:]}": {value}', f'"{name}": null'):
            assert parsed(f"{{{once}, {again}}}".encode()) is None


@same_examples
@given(meanings)
def test_written_states_are_read_back_by_the_agent_the_model_and_json(meant: Meant) -> None:
    raw = hapgent["_state"].dump(hapgent["_state"].State(*meant))
    assert parsed(raw) == meant
    assert expected_state(raw) == meant
    written = {name: value for name, value in meant._asdict().items() if value is not None}
    assert json.loads(raw) == written
    assert raw.decode() == json.dumps(written, indent=2, ensure_ascii=False) + "\n"


@same_examples
@given(meanings)
def test_answers_are_as_the_rules_require(meant: Meant) -> None:
    assert hapgent["_state"].State(*meant).answer() == expected_line(meant)


# HAProxy's servers: the model

# The keywords that the agent may add for a while to reset the previous state.
UNDOING = {"UP", "READY", "100%"}
# What HAProxy shows on a new server for each status.
SHOWN = {
    "UP": "UP",
    "READY": "UP",
    "DOWN": "DOWN",
    "FAIL": "DOWN",
    "STOPPED": "DOWN",
    "DRAIN": "DRAIN",
    "MAINT": "MAINT",
}
HEALTH = {"up": True, "down": False, "fail": False, "stopped": False}


@dataclasses.dataclass
class Server:
    """A server in HAProxy with an agent-check, configured with weight 100.

    Source: src/tcpcheck.c in HAProxy's source, from "The agent supports strings made of a single line" on.
    """

    # Whether the server stays down when maintenance ends: false for HAProxy 2.6, true for 3.4.
    down_after_maint: bool
    administration: str = "ready"
    healthy: bool = True
    weight: int = 100
    maxconn: int | None = None
    text: str | None = None

    def reload(self) -> None:
        """Return to the configured state, as after a reload of HAProxy."""
        fresh = type(self)(self.down_after_maint)
        for field in dataclasses.fields(fresh):
            setattr(self, field.name, getattr(fresh, field.name))

    def administer(self, word: str) -> None:
        """Set the administrative state, as the agent does or an operator with C(set server ... state)."""
        if self.administration == "maint" != word and self.down_after_maint:
            self.healthy = False
        self.administration = word

    def obey(self, answer: bytes) -> None:
        """Apply an answer of the agent. What no keyword mentions stays unchanged."""
        line, end, _rest = answer.partition(b"\n")
        assert end, "HAProxy discards a line without a line feed"
        words, sharp, text = line.decode().partition("#")
        last: dict[str, str] = {}
        for word in re.split("[ \t,]+", words.strip(" \t,").lower()):
            if word in HEALTH:
                last["health"] = word
            elif word in ("ready", "drain", "maint"):
                last["administration"] = word
            elif re.fullmatch("[0-9]+%", word):
                last["weight"] = word[:-1]
            elif re.fullmatch("maxconn:[0-9]+", word):
                last["maxconn"] = word.partition(":")[2]
            else:
                raise AssertionError(f"HAProxy does not know the keyword {word!r}")
        if "administration" in last:
            self.administer(last["administration"])
        if "weight" in last:
            self.weight = int(last["weight"])
        if "maxconn" in last:
            self.maxconn = int(last["maxconn"])
        if "health" in last:
            self.healthy = HEALTH[last["health"]]
            self.text = text.lstrip(" \t") if sharp else None

    def shows(self) -> str:
        """Return the status on HAProxy's stats page."""
        if self.administration == "maint":
            return "MAINT"
        if not self.healthy:
            return "DOWN"
        return "DRAIN" if self.administration == "drain" else "UP"

    def differs_from(self, state: Meant, drained_by_hand: bool = False) -> str:
        """Describe how the server differs from what this state means, or return ''."""
        shows = SHOWN[state.status]
        administration = "ready" if shows in ("UP", "DOWN") else shows.lower()
        if drained_by_hand and state.status in UP_AND_DOWN:
            administration = "drain"
            shows = "DRAIN" if shows == "UP" else shows
        wanted = {
            "status": (self.shows(), shows),
            "administration": (self.administration, administration),
            "weight": (self.weight, 100 if state.weight is None else state.weight),
            # No keyword resets maxconn to its configured value.
            "maxconn": (self.maxconn, self.maxconn if state.maxconn is None else state.maxconn),
            "text": (self.text, state.reason),
        }
        return ", ".join(f"{name} is {has}, not {want}" for name, (has, want) in wanted.items() if has != want)


def server_after(lines: list[str], down_after_maint: bool) -> Server:
    server = Server(down_after_maint)
    for line in lines:
        server.obey(line.encode() + b"\n")
    return server


def test_model_of_servers_behaves_like_haproxy() -> None:
    # Source: experiments with HAProxy 2.6.12 and 3.4.0.
    for lines, shown in [
        (["drain", "up"], "DRAIN"),
        (["maint", "up"], "MAINT"),
        (["down", "ready"], "DOWN"),
        (["down", "drain"], "DOWN"),
        (["drain", "up ready"], "UP"),
        (["maint", "up ready"], "UP"),
    ]:
        assert server_after(lines, False).shows() == server_after(lines, True).shows() == shown
    for down_after_maint, right in [(False, 38), (True, 36)]:
        pairs = itertools.product(STATUSES, repeat=2)
        assert sum(server_after([*pair], down_after_maint).shows() == SHOWN[pair[1]] for pair in pairs) == right
    server = Server(True)
    server.obey(b"drain # kernel\n")
    assert server.text is None
    server.obey(b"UP,drain\t50%  maxconn:7 # kernel, new\n")
    assert not server.differs_from(Meant("DRAIN", 50, 7, "kernel, new"))


SOME_STATES = [
    Meant(status, weight, None, reason)
    for status, weight, reason in itertools.product(STATUSES, (None, 30, 0), (None, "one", "two"))
]


@pytest.mark.parametrize("down_after_maint", [False, True])
def test_each_state_takes_effect_on_a_new_server(down_after_maint: bool) -> None:
    for state in SOME_STATES:
        assert not server_after([expected_line(state)], down_after_maint).differs_from(state)


@pytest.mark.parametrize("down_after_maint", [False, True])
def test_each_change_takes_effect_and_stays(down_after_maint: bool) -> None:
    for before, state in itertools.product(SOME_STATES, repeat=2):
        was, is_ = (hapgent["_state"].State(*meant) for meant in (before, state))
        line = is_.answer(is_.undoing(was))
        server = server_after([was.answer(), line], down_after_maint)
        assert not server.differs_from(state), (before, line)
        server.obey(is_.answer().encode() + b"\n")
        assert not server.differs_from(state), (before, line)
        assert line in is_.answers()


# The agent and load balancers: the simulation


class Clock:
    """Replaces the module time in the agent's modules."""

    strftime = staticmethod(system_time.strftime)
    localtime = staticmethod(system_time.localtime)
    sleep = staticmethod(system_time.sleep)

    def __init__(self) -> None:
        # All times are multiples of a quarter of a second, so that no sum is rounded.
        self.wall = 1_800_000_000.0
        self.booted = self.wall - 1000.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.wall - self.booted

    def monotonic_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    def reboot(self) -> None:
        self.booted = self.wall


class Connection:
    """A load balancer's connection for one check, as the agent sees it."""

    def __init__(self, reset: bool) -> None:
        self._reset = reset
        self.answer = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def send(self, line: bytes, _flags: int) -> int:
        if self._reset:
            raise ConnectionResetError
        self.answer = line
        return len(line)

    def shutdown(self, _how: int) -> None:
        pass

    def recv_into(self, _buffer: bytearray, _size: int, _flags: int) -> int:
        return 0


class Listener:
    """The socket on which the agent listens."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Connection, tuple[str, int]]] = []

    def setblocking(self, _flag: bool) -> None:
        pass

    def getsockname(self) -> tuple[str, int]:
        return "192.0.2.7", 9777

    def accept(self) -> tuple[Connection, tuple[str, int]]:
        return self.waiting.pop()


class RunningAgent:
    """The real agent. Tests call what its two threads would do, and pass signals to it directly."""

    def __init__(self, state_file: Path, settle: int, ramp: dict[str, str] | None = None) -> None:
        self._listener = Listener()
        configured = hapgent["settings"].from_environment(
            {"HAPGENT_STATE_FILE": str(state_file), "HAPGENT_SETTLE": str(settle), **(ramp or {})}
        )
        self._agent = hapgent["agent"].Agent(self._listener, configured)
        self._agent._keeper.begin()

    @property
    def answers(self) -> str:
        """The agent's answer without reset keywords."""
        answer: str = json.loads(self._agent.status())["answer"]
        return answer

    def peers(self) -> list[dict[str, Any]]:
        peers: list[dict[str, Any]] = json.loads(self._agent.status())["peers"]
        return peers

    def ask(self, address: str, reset: bool = False) -> bytes:
        connection = Connection(reset)
        self._listener.waiting.append((connection, (address, 50000)))
        self._agent._answer_one()
        return connection.answer

    def receive(self, number: signal.Signals) -> None:
        """Handle a signal as the loop of the agent's thread does."""
        if number == signal.SIGALRM:
            self._agent._keeper.tick()
        else:
            self._agent._keeper.obey(number)
        self._agent._keeper.work()

    def stop(self) -> None:
        self._agent._keeper.end()
        self.kill()

    def kill(self) -> None:
        self._agent._keeper.memory._owned.close()
        os.close(self._agent._wake_read)
        os.close(self._agent._wake_write)


@contextlib.contextmanager
def simulated_system() -> Iterator[Clock]:
    """Let the test set the time, log nothing, and skip fsync, because the simulated disk loses nothing."""
    clock = Clock()
    with contextlib.ExitStack() as stack:
        for name in ("agent", "keeper", "memory", "peers"):
            stack.enter_context(mock.patch.object(hapgent[name], "time", clock))
        stack.enter_context(mock.patch.object(hapgent["log"], "_write"))
        stack.enter_context(mock.patch.object(os, "fsync"))
        yield clock


class Backend:
    """A server in one load balancer, and what the agent owes it."""

    def __init__(self, down_after_maint: bool) -> None:
        self.server = Server(down_after_maint)
        self.begin_anew()

    def begin_anew(self) -> None:
        self.server.reload()
        # Whether an operator set its current administrative state manually.
        self.by_hand = False
        # Whether that was a drain that must stay until the next change.
        self.drain_stays = False
        # Whether an answer has arrived since the last change, or none is needed.
        self.reached = True
        # If not, when the agent stops sending what this server must receive. The time is set when another server at the
        # same address polls, or when an answer to this one is lost.
        self.sent_until: float | None = None
        # Whether no answer reached it in that time.
        self.missed_it = False
        # Whether the server is unchanged since the agent's last answer.
        self.as_sent = False


class LoadBalancer:
    """A source address that polls for each of its backends."""

    def __init__(self, address: str, *backends: Backend) -> None:
        self.address = address
        self.backends = backends
        self.last_seen: float | None = None
        # Whether it had been offline for a week at a moment when the agent may have saved, and has not polled since.
        self.was_absent = False
        # Whether the agent would still know, after a kill, this load balancer and its first answer since the change.
        self.known = self.answer_known = False
        self.changes_since_seen = 0
        # When the agent must begin to send it the bare state. None until its first poll after a change.
        self.bare_from: float | None = None
        # Whether it received the bare state, and whether the agent would still know that after a kill.
        self.settled = False
        self.remembered = False
        # Whether the state has been administrative since it settled, or ever: answers may then contain READY.
        self.ready_may_be_due = False

    def expect_a_change(self) -> None:
        self.changes_since_seen += 1
        self.bare_from = None
        self.settled = self.remembered = False
        for backend in self.backends:
            backend.drain_stays = backend.reached = False

    def is_forgotten(self) -> None:
        """Limit: an unknown load balancer receives only what resets the state before the last change."""
        self.last_seen = self.bare_from = None
        self.ready_may_be_due = True
        self.known = self.settled = self.remembered = False
        for backend in self.backends:
            backend.drain_stays = False
            backend.missed_it |= self.changes_since_seen > 1 or backend.sent_until is not None


WEEK = 7 * 86400
# There are few values, so that the same ones recur.
changes = st.builds(
    Meant,
    st.sampled_from(STATUSES),
    st.sampled_from([None, None, 0, 30]),
    st.sampled_from([None, None, None, 7]),
    **dict.fromkeys(NOTES, st.sampled_from([None, None, "release 4.2", "é: kernel, maint 50%"])),
    until=st.sampled_from([None, "2026-11-28T06:00:00Z"]),
    # What the agent does by itself is in tests/agent/test_comes_back.py.
    then=st.none(),
)
settles = st.sampled_from([2, 5, 60])
balancer_numbers = st.integers(0, 2)
backend_numbers = st.integers(0, 1)


class Changes(RuleBasedStateMachine):
    """Changes of the state, polls, restarts, lost answers and manual changes, in any order and at any pace."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self._clock = self._stack.enter_context(simulated_system())
        self._file = Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "state.json"
        self._agent: RunningAgent | None = None
        self._stopped_at = self._clock.wall
        self._was_killed = False
        self._balancers = [
            LoadBalancer("198.51.100.11", Backend(False)),
            LoadBalancer("198.51.100.12", Backend(True), Backend(True)),
            LoadBalancer("2001:db8::13", Backend(True)),
        ]

    def teardown(self) -> None:
        if self._agent:
            self._agent.kill()
        self._stack.close()

    # The agent

    @initialize(state=changes, settle=settles)
    def begin(self, state: Meant, settle: int) -> None:
        self._state = state
        self._settle = settle
        self._write(state)
        self.start()

    def _write(self, state: Meant) -> None:
        self._in_file = state
        if self._file.exists():
            # Keep the old file open, so that no new file gets its inode number.
            self._stack.enter_context(self._file.open("rb"))
        new = self._file.with_name("new")
        new.write_bytes(json.dumps(state._asdict()).encode())
        new.replace(self._file)

    def _expect(self, state: Meant) -> None:
        """Note that the agent has loaded this state."""
        if state != self._state:
            self._state = state
            for balancer in self._balancers:
                balancer.expect_a_change()
                if balancer.last_seen is None:
                    balancer.is_forgotten()
        if state.status in ADMINISTRATIVE:
            for balancer in self._balancers:
                balancer.ready_may_be_due = True

    def _expect_memory(self) -> None:
        """Note that the agent has saved its memory file."""
        for balancer in self._balancers:
            balancer.known = balancer.answer_known = balancer.last_seen is not None
            balancer.was_absent = balancer.last_seen is not None and balancer.last_seen <= self._clock.wall - WEEK
            if balancer.settled:
                balancer.remembered = True
                if self._state.status in UP_AND_DOWN:
                    balancer.ready_may_be_due = False

    @precondition(lambda self: self._agent)
    @rule(state=changes)
    def change(self, state: Meant) -> None:
        self._write(state)
        self.reload()

    @precondition(lambda self: self._agent)
    @rule(status=st.sampled_from(STATUSES))
    def change_the_status_alone(self, status: str) -> None:
        self.change(self._state._replace(status=status))

    @precondition(lambda self: self._agent)
    @rule()
    def reload(self) -> None:
        """Reload the state file. As a step of its own, this reloads an unchanged file."""
        assert self._agent
        self._agent.receive(signal.SIGHUP)
        self._expect(self._in_file)
        self._expect_memory()

    @precondition(lambda self: self._agent)
    @rule()
    def break_the_file(self) -> None:
        assert self._agent
        self._file.write_bytes(b'{"status": "UP"')
        self._in_file = Meant("FAIL")
        self.reload()

    @precondition(lambda self: self._agent)
    @rule(number=st.sampled_from([signal.SIGUSR1, signal.SIGUSR2]))
    def send_a_signal(self, number: signal.Signals) -> None:
        assert self._agent
        self._agent.receive(number)
        status = "UP" if number == signal.SIGUSR1 else "DOWN"
        # A signal that changes the status removes the reason, which belonged to the previous status.
        state = self._state if self._state.status == status else Meant(status, *self._state[1:3])
        self._in_file = state
        self._expect(state)
        self._expect_memory()
        assert expected_state(self._file.read_bytes()) == state

    @precondition(lambda self: self._agent)
    @rule()
    def stop(self) -> None:
        assert self._agent
        self._agent.stop()
        self._agent = None
        self._was_killed = False
        self._stopped_at = self._clock.wall
        self._expect_memory()

    def _is_given_up(self, balancer: LoadBalancer) -> bool:
        """Limit: the load balancer came back after a week, and the agent was killed before it saved that."""
        if not balancer.was_absent:
            return False
        memory = json.loads(Path(f"{self._file}.memory").read_bytes())
        seen = {peer["address"]: peer["last_seen"] for peer in memory["peers"]}
        return bool(seen[balancer.address] <= memory["saved"] - WEEK)

    @precondition(lambda self: self._agent)
    @rule()
    def kill(self) -> None:
        """Limit: what happened in the last second before a kill is lost, so the next agent settles for longer."""
        assert self._agent
        self._agent.kill()
        self._agent = None
        self._was_killed = True
        self._stopped_at = self._clock.wall
        for balancer in self._balancers:
            if balancer.last_seen is not None and (not balancer.known or self._is_given_up(balancer)):
                balancer.is_forgotten()
            # A lost signal may have set UP or DOWN, so the next agent resets that.
            balancer.settled = False
            balancer.bare_from = None
            if not balancer.remembered:
                for backend in balancer.backends:
                    backend.drain_stays = False

    @precondition(lambda self: not self._agent)
    @rule(state=changes)
    def edit_while_stopped(self, state: Meant) -> None:
        self._write(state)
        if self._was_killed:
            # The next agent must assume that the load balancers received any state.
            for balancer in self._balancers:
                balancer.ready_may_be_due = True
                for backend in balancer.backends:
                    backend.drain_stays = False

    @precondition(lambda self: not self._agent)
    @rule(settle=st.sampled_from([None, None, 2, 5, 60]), reboot=st.booleans())
    def start(self, settle: int | None = None, reboot: bool = False) -> None:
        if settle is not None:
            self._settle = settle
        if reboot:
            self._clock.reboot()
        self._agent = RunningAgent(self._file, self._settle)
        # Time does not count while the agent is stopped, because no load balancer can poll. The remaining time is at
        # most the new setting.
        stopped_for = self._clock.wall - self._stopped_at
        for balancer in self._balancers:
            if balancer.bare_from is not None:
                balancer.bare_from = min(balancer.bare_from + stopped_for, self._clock.wall + self._settle)
            for backend in balancer.backends:
                if backend.sent_until is not None:
                    backend.sent_until = min(backend.sent_until + stopped_for, self._clock.wall + self._settle)
            if balancer.last_seen is not None and balancer.last_seen <= self._clock.wall - WEEK:
                balancer.is_forgotten()
        self._expect(self._in_file)
        self._expect_memory()

    @precondition(lambda self: self._agent)
    @rule(graceful=st.booleans())
    def restart(self, graceful: bool) -> None:
        if graceful:
            self.stop()
        else:
            self.kill()
        self.start()

    # Time

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 1.75, 3.0]))
    def wait(self, seconds: float) -> None:
        before = self._clock.wall
        self._clock.wall += seconds
        if self._agent and int(self._clock.wall) > int(before):
            self._agent.receive(signal.SIGALRM)
            self._expect_memory()

    @rule(times=st.sampled_from([0.5, 1, 1, 3, 1000, 20000]))
    def wait_for_long(self, times: float) -> None:
        self.wait(times * self._settle)

    # Load balancers

    @precondition(lambda self: self._agent)
    @rule(number=balancer_numbers, which=backend_numbers, fate=st.sampled_from(["arrives"] * 4 + ["lost", "reset"]))
    def poll(self, number: int, which: int, fate: str = "arrives") -> None:
        assert self._agent
        balancer = self._balancers[number]
        backend = balancer.backends[which % len(balancer.backends)]
        answer = self._agent.ask(balancer.address, reset=fate == "reset")
        if fate == "reset":  # The agent knows that its answer did not arrive.
            assert answer == b""
            return
        self._see_line(balancer, answer)
        for other in balancer.backends:
            if not other.reached and other.sent_until is None:
                other.sent_until = self._clock.wall + self._settle
            # Limit: the agent does not know which servers share an address or which answers are lost: docs/concepts.md.
            other.missed_it |= other.sent_until is not None and self._clock.wall >= other.sent_until
        if fate == "lost":  # The agent does not know that its answer did not arrive.
            backend.as_sent = False
            return
        backend.server.obey(answer)
        backend.reached = backend.as_sent = True
        backend.sent_until = None
        if {"READY", "DRAIN", "MAINT"} & set(answer.decode().partition("#")[0].split()):
            backend.by_hand = False
        self._see_server(backend)

    def _see_line(self, balancer: LoadBalancer, answer: bytes) -> None:
        line = answer.decode().removesuffix("\n")
        bare = expected_line(self._state)
        more = set(line.partition(" #")[0].split()) - set(bare.partition(" #")[0].split())
        assert more <= UNDOING
        assert line.partition(" #")[2] == bare.partition(" #")[2]
        if balancer.bare_from is None:
            balancer.bare_from = self._clock.wall + self._settle
            balancer.answer_known = False
        if balancer.settled or self._clock.wall >= balancer.bare_from or self._settle == 0:
            assert line == bare
        if line == bare:
            balancer.settled = True
        elif self._state.status in UP_AND_DOWN and "READY" in more:
            assert balancer.ready_may_be_due, f"{line} ends manual drains without need"
        balancer.last_seen = self._clock.wall
        balancer.changes_since_seen = 0

    def _see_server(self, backend: Backend) -> None:
        wrong = backend.server.differs_from(self._state, drained_by_hand=backend.by_hand)
        if wrong and backend.missed_it:
            backend.begin_anew()
        else:
            assert not wrong, f"{backend.server}: {wrong}"
        if backend.drain_stays:
            assert backend.server.administration == "drain", "a manual drain was ended"

    @precondition(lambda self: self._agent)
    @rule()
    def poll_all(self) -> None:
        for number, balancer in enumerate(self._balancers):
            for which in range(len(balancer.backends)):
                self.poll(number, which)

    @precondition(lambda self: self._agent)
    @rule()
    def let_all_settle(self) -> None:
        self.poll_all()
        self.wait(self._settle)
        self.poll_all()
        self.wait(1.0)
        for balancer in self._balancers:
            assert balancer.settled
            assert balancer.remembered

    @rule(number=balancer_numbers)
    def reload_haproxy(self, number: int) -> None:
        for backend in self._balancers[number].backends:
            backend.begin_anew()

    @rule(number=balancer_numbers, which=backend_numbers, word=st.sampled_from(["drain", "drain", "ready"]))
    def set_by_hand(self, number: int, which: int, word: str) -> None:
        balancer = self._balancers[number]
        backend = balancer.backends[which % len(balancer.backends)]
        backend.server.administer(word)
        backend.by_hand = word == "drain"
        backend.as_sent = False
        backend.drain_stays = backend.by_hand and balancer.settled and self._state.status in UP_AND_DOWN

    @invariant()
    def the_agent_knows_its_state_and_a_bounded_number_of_peers(self) -> None:
        if self._agent:
            assert self._agent.answers == expected_line(self._state)
            peers = self._agent.peers()
            assert len(peers) <= len(self._balancers)
            assert all(0 <= peer["settles_for"] <= self._settle for peer in peers)

    @invariant()
    def servers_reported_to_have_the_state_have_it(self) -> None:
        if self._agent and self._settle:
            have_received = [peer["address"] for peer in self._agent.peers() if peer["received"]]
            for balancer in self._balancers:
                # An address with several servers is reported to have the state as soon as one of them was answered.
                backend = balancer.backends[0]
                if balancer.address in have_received and len(balancer.backends) == 1 and backend.as_sent:
                    wrong = backend.server.differs_from(self._state, backend.by_hand)
                    assert not wrong, f"the agent reports that {backend.server} has the state, but {wrong}"


class ChangesWithoutSettling(Changes):
    """With HAPGENT_SETTLE=0 the agent answers as hapgent 0.3.2: it resets nothing, including manual drains."""

    @initialize(state=changes, settle=st.just(0))
    def begin(self, state: Meant, settle: int) -> None:
        super().begin(state, settle)

    @precondition(lambda self: not self._agent)
    @rule(settle=st.just(0), reboot=st.booleans())
    def start(self, settle: int | None = None, reboot: bool = False) -> None:
        super().start(settle, reboot)

    def _see_server(self, backend: Backend) -> None:
        if backend.drain_stays:
            assert backend.server.administration == "drain"


UP, DRAIN = Meant("UP"), Meant("DRAIN")
# A load balancer receives DRAIN, but the agent is killed before it saves that.
TOLD_AND_KILLED = [("poll", 0, 0), ("wait", 1.0), ("change", DRAIN), ("poll", 0, 0), ("kill",)]
AND_UP_AGAIN = {
    "while stopped": [("edit_while_stopped", UP), ("start",)],
    "after the start": [("start",), ("change", UP)],
    "after one more change and restart": [("start",), ("change", Meant("MAINT")), ("restart", True), ("change", UP)],
}
up_again = pytest.mark.parametrize("steps", AND_UP_AGAIN.values(), ids=AND_UP_AGAIN)


@up_again
def test_answer_in_the_second_before_a_kill_is_reset(steps: list[tuple[Any, ...]]) -> None:
    run_steps(UP, [*TOLD_AND_KILLED, *steps, ("poll", 0, 0)])


@up_again
def test_load_balancer_that_polled_in_the_second_before_a_kill_is_not_reported_to_have_the_state(
    steps: list[tuple[Any, ...]],
) -> None:
    run_steps(UP, [*TOLD_AND_KILLED, *steps, ("servers_reported_to_have_the_state_have_it",)])


def test_start_without_settling_ends_settling() -> None:
    run_steps(DRAIN, [("poll", 0, 0), ("change", UP), ("poll", 0, 0), ("stop",), ("start", 0), ("poll", 0, 0)])


def test_regular_load_balancer_is_known_after_a_kill_however_long_nothing_changed() -> None:
    eight_days = ("wait", 8 * 86400.0)
    run_steps(
        DRAIN,
        [
            *[("poll", 0, 0), ("change", UP), ("let_all_settle",), ("set_by_hand", 0, 0, "drain")],
            *[("poll", 0, 0), eight_days, ("poll", 0, 0), ("kill",), ("start",), ("poll", 0, 0)],
        ],
    )


def test_load_balancer_forgotten_after_a_week_receives_what_resets_the_last_change() -> None:
    weighted = Meant("UP", 0)
    killed = [("poll", 0, 0), ("wait", 9 * 86400.0), ("change", weighted), ("poll", 0, 0), ("kill",)]
    run_steps(UP, [*killed, ("edit_while_stopped", UP), ("start",), ("poll", 0, 0)])
    run_steps(UP, [*killed, ("edit_while_stopped", UP), ("start",), ("break_the_file",), ("let_all_settle",)])


def run_steps(state: Meant, steps: list[tuple[Any, ...]]) -> None:
    machine = Changes()
    try:
        machine.begin(state, 60)
        for name, *arguments in steps:
            getattr(machine, name)(*arguments)
    finally:
        machine.teardown()


# The agent killed at every point


class KilledError(BaseException):
    """Simulates SIGKILL. No code of the agent may catch it."""


@contextlib.contextmanager
def killed_at(point: int, last: Callable[[], None]) -> Iterator[None]:
    """Kill at a system call that opens or changes a file: C(point) is its number, from 1. Call C(last) just before."""
    calls = itertools.count(1)

    def traced(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == point:
                last()
                raise KilledError
            return real(*arguments, **options)

        return call

    with contextlib.ExitStack() as stack:
        for name in ("open", "unlink", "fchown", "fchmod", "fsync", "rename"):
            stack.enter_context(mock.patch.object(os, name, traced(getattr(os, name))))
        yield


def crash(folder: Path, before: Meant, act: Meant | signal.Signals, after: Meant | None, point: int) -> bool:
    """Kill the agent at this point of a change, and assert that the next agent resets what two load balancers received.

    Returns False if the change has fewer system calls.
    """
    folder.mkdir()
    file = folder / "state.json"
    file.write_bytes(json.dumps(before._asdict()).encode())
    old, new = Server(True), Server(False)
    agent = RunningAgent(file, 60)
    old.obey(agent.ask("198.51.100.11"))
    agent.receive(signal.SIGALRM)

    def poll_both() -> None:
        old.obey(agent.ask("198.51.100.11"))
        new.obey(agent.ask("198.51.100.12"))

    def put(state: Meant) -> None:
        (folder / "new").write_bytes(json.dumps(state._asdict()).encode())
        # Keep the old file, so that its inode number is not reused.
        os.link(file, folder / f"old-{len(os.listdir(folder))}")
        (folder / "new").rename(file)

    number = signal.SIGHUP
    if isinstance(act, Meant):
        put(act)
    else:
        number = act
    try:
        with killed_at(point, poll_both):
            agent.receive(number)
    except KilledError:
        killed = True
    else:
        killed = False
        poll_both()
    agent.kill()
    if after:
        put(after)
    state = expected_state(file.read_bytes())
    assert state
    agent = RunningAgent(file, 60)
    poll_both()
    for server in (old, new):
        assert not server.differs_from(state), f"{before}, {act}, killed at {point}, then {after}"
    agent.kill()
    return killed


@pytest.mark.parametrize("before", [Meant(status) for status in STATUSES], ids=STATUSES)
@pytest.mark.parametrize("after", [None, Meant("UP"), Meant("DRAIN"), Meant("READY", 50)], ids=str)
def test_answers_before_a_kill_at_any_point_are_reset(tmp_path: Path, before: Meant, after: Meant | None) -> None:
    weighted = [Meant(status, 30) for status in STATUSES]
    acts: list[Meant | signal.Signals] = [*weighted, signal.SIGUSR1, signal.SIGUSR2]
    with simulated_system():
        for number, act in enumerate(acts):
            points = itertools.count(1)
            while crash(tmp_path / f"{number}-{(point := next(points))}", before, act, after, point):
                pass
            # The agent opens at least the folder, the lock and the file.
            assert point > 3


# Which load balancers the agent remembers


def test_1024_peers_with_the_longest_answers_survive_a_restart(tmp_path: Path) -> None:
    # The longest possible state: JSON escapes each byte of the reason, in the state and again in the line.
    longest = Meant("STOPPED", 255, 65535, '"' * 120, '"' * 120, "2026-11-28T06:00:00Z")
    state_file = tmp_path / "state.json"
    with simulated_system() as clock:
        clock.wall += 1 / 3
        state_file.write_bytes(json.dumps(longest._replace(status="MAINT")._asdict()).encode())
        agent = RunningAgent(state_file, 60)
        state_file.write_bytes(json.dumps(longest._asdict()).encode())
        agent.receive(signal.SIGHUP)
        addresses = [f"2001:0db8:0000:0000:0000:0000:ffff:{number:04x}%enp0s31f6" for number in range(1100)]
        for _round in range(2):
            for address in addresses:
                clock.wall += 1 / 3
                agent.ask(address)
        kept = [peer["address"] for peer in agent.peers()]
        assert kept == addresses[-1024:]
        agent.stop()
        agent = RunningAgent(state_file, 60)
        assert [peer["address"] for peer in agent.peers()] == kept
        agent.kill()


# Ramps

RAMP = {"HAPGENT_RAMP": "10,50,100", "HAPGENT_RAMP_SECONDS": "5"}
ramp_steps = st.lists(
    st.one_of(
        changes,
        st.sampled_from([signal.SIGUSR1, signal.SIGUSR2]),
        # Polls of these load balancers, and waits of these seconds.
        st.integers(0, 2),
        st.sampled_from([0.25, 3.0, 6.0, 30.0]),
        st.sampled_from(["stop", "kill"]),
    ),
    max_size=25,
)


@settings(same_examples, max_examples=300)
@given(steps=ramp_steps)
@example(steps=[UP, 0, "kill", 6.0, 0])
@example(steps=[DRAIN, 0, UP, 0, 6.0, 0, DRAIN, 0, UP])
def test_each_server_has_the_weight_of_the_state_after_the_ramp(steps: list[Any]) -> None:
    with simulated_system() as clock, tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as files:
        state_file = Path(folder) / "state.json"
        state_file.write_bytes(b'{"status": "DRAIN"}')
        agent = RunningAgent(state_file, 60, RAMP)
        servers = [Server(True) for _number in range(3)]
        for step in steps:
            if isinstance(step, Meant):
                # The old file stays open, so that no new file gets its inode number.
                files.enter_context(state_file.open("rb"))
                state_file.with_name("new").write_bytes(json.dumps(step._asdict()).encode())
                state_file.with_name("new").replace(state_file)
                agent.receive(signal.SIGHUP)
            elif isinstance(step, signal.Signals):
                agent.receive(step)
            elif isinstance(step, float):
                clock.wall += step
                agent.receive(signal.SIGALRM)
            elif isinstance(step, str):
                getattr(agent, step)()
                agent = RunningAgent(state_file, 60, RAMP)
            else:
                servers[step].obey(agent.ask(f"198.51.100.{step}"))
        clock.wall += 15
        for number, server in enumerate(servers):
            server.obey(agent.ask(f"198.51.100.{number}"))
        state = expected_state(state_file.read_bytes())
        agent.kill()
    assert state
    assert [server.differs_from(state) for server in servers] == [""] * 3


class PeerTable:
    """The agent's table of peers, with polls at times that the test sets."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.peers = hapgent["peers"].Peers(60, hapgent["_ramp"].Ramp())
        self._change = hapgent["peers"].Change(hapgent["_state"].FAIL, 0.0)

    def poll(self, address: str, now: float) -> None:
        with mock.patch.object(hapgent["peers"], "MAX_PEERS", self._maximum):
            peer = self.peers.see(address, now)
        self.peers.given(peer, peer.answer(self._change, now, 60, self.peers.ramp), self._change)

    def known(self) -> set[str]:
        return {peer.address for peer in self.peers.all()}


def test_new_addresses_never_push_out_one_that_keeps_polling() -> None:
    table = PeerTable(maximum=100)
    chance = random.Random(1)
    with mock.patch.object(os, "urandom", chance.randbytes):
        for second in range(10):
            table.poll("regular", float(second))
        for number in range(4000):
            now = 10 + number / 40
            table.poll(f"once {number}", now)
            # This peer first polls during the flood, and then every 1.5 seconds: 60 others poll between its checks.
            if number % 60 == 0:
                table.poll("new", now)
    assert {"regular", "new", "once 3999"} <= table.known()
    assert len(table.known()) == 100
    assert next(peer for peer in table.peers.all() if peer.address == "new").checks > 40


def test_address_that_no_longer_polls_is_forgotten_first() -> None:
    table = PeerTable(maximum=3)
    for second in range(100):
        table.poll("offline", float(second))
    for number, address in enumerate(["a", "b", "c", "d"]):
        table.poll(address, 99 + 301 + number)
    assert "offline" not in table.known()


TestChanges = Changes.TestCase
TestChanges.settings = settings(same_examples, max_examples=400, stateful_step_count=40)
TestChangesWithoutSettling = ChangesWithoutSettling.TestCase
TestChangesWithoutSettling.settings = settings(same_examples, max_examples=30, stateful_step_count=30)
