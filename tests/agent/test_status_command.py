# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""C(hapgent status) handles sockets whose other end is not an agent, is hostile, or is an agent of another release."""

from __future__ import annotations

import contextlib
import copy
import importlib
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import compiled_for

ROOT = Path(__file__).parent.parent.parent
PROMTOOL = ROOT / ".cache" / "prometheus" / "usr" / "bin" / "promtool"

MEBIBYTE = b" " * (1 << 20)
# Far more than a status has. It is sent in pieces and is finite, so the test also ends if the reader never stops.
MAX_MEBIBYTES = 256
# Much longer than the command may take, but short enough that a failing test ends.
DRIP_SECONDS = 60.0
FORMATS: dict[str, list[str]] = {"table": [], "json": ["--json"], "prometheus": ["--prometheus"]}

# The property tests call the shipped code directly: a process for each example would take too long.
with mock.patch.object(sys, "path", [str(ROOT / "files"), *sys.path]):
    command: Any = importlib.import_module("hapgent.status_command")

# Hypothesis must generate the same examples in each run.
same_examples = settings(derandomize=True, database=None, deadline=None)

# The fields that agents of all releases report.
MINIMAL: dict[str, Any] = {
    "version": "0.9.0",
    "state": {"status": "DRAIN"},
    "since": 1_790_000_000,
    "state_file": "/etc/hapgent/state.json",
    "peers": [{"address": "192.0.2.1", "received": True}],
}
ALL: dict[str, Any] = {
    **MINIMAL,
    "answers_as": "0.3.2",
    "pid": 12,
    "address": "::",
    "port": 9777,
    "started": 1_780_000_000.5,
    "state": {
        "status": "DRAIN",
        "weight": 50,
        "maxconn": 9,
        "reason": "kernel upgrade",
        "by": "ada@control1",
        "until": "2026-11-28T06:00:00Z",
        "then": "UP",
    },
    "answer": "DRAIN UP 50% maxconn:9 # kernel upgrade",
    "settle": 60,
    "state_file_ok": False,
    "last_error": "not saved",
    "last_error_at": 1_790_000_001.0,
    "counters": {"checks": 7, "saves": 1},
    "peers": [
        {
            "address": "192.0.2.1",
            "first_seen": 1_780_000_001.0,
            "last_seen": 1_790_000_002.0,
            "checks": 7,
            "interval": 2.0,
            "line": "DRAIN",
            "received": False,
            "settles_for": 3.5,
            "polls": True,
        }
    ],
}
# ESC, BEL, a C1 control character, DEL, a line feed, a right-to-left override and a zero-width space.
HOSTILE = '\x1b]0;owned\x07\x9b31m\x7f\nstate       UP\r\u202e\u200b"\\'


class Conversation:
    """Records whether the client closed its connection early."""

    hung_up = False


@contextlib.contextmanager
def responding(path: Path, pieces: Callable[[], Iterator[bytes]]) -> Iterator[Conversation]:
    """Send these pieces to the first client on this socket, and then close."""
    conversation = Conversation()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        # A test that fails before it connects must not hang here.
        listener.settimeout(DRIP_SECONDS)

        def serve() -> None:
            with listener.accept()[0] as client:
                try:
                    for piece in pieces():
                        client.sendall(piece)
                except OSError:
                    conversation.hung_up = True

        thread = threading.Thread(target=serve)
        thread.start()
        yield conversation
        thread.join()


def run(*arguments: Path | str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run C(hapgent status) with these arguments and an empty environment."""
    program = [python, "-I", "-S", compiled_for(python), "status", *arguments]
    return subprocess.run(program, capture_output=True, encoding="utf-8", check=False, env={})


def sent(document: Any) -> Callable[[], Iterator[bytes]]:
    return lambda: iter([json.dumps(document).encode()])


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


def drip() -> Iterator[bytes]:
    """Send a byte at intervals shorter than any timeout of a single read."""
    until = time.monotonic() + DRIP_SECONDS
    while time.monotonic() < until:
        yield b" "
        time.sleep(0.2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "status.sock"


def assert_refused(done: subprocess.CompletedProcess[str], path: Path, arguments: list[str]) -> None:
    """Assert that the command failed with one printable line; for Prometheus, it instead reports hapgent_up 0."""
    (line,) = done.stderr.splitlines()
    assert line.isprintable()
    assert str(path) in line
    if arguments == FORMATS["prometheus"]:
        assert done.returncode == 0
        assert done.stdout.splitlines()[-1] == f'hapgent_up{{socket="{path}"}} 0'
        assert done.stdout.count("\n") == 3
    else:
        assert (done.returncode, done.stdout) == (1, "")


# Responses that are not a status


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


BAD_PEER = {"address": "192.0.2.1", "received": 1}
NOT_A_STATUS: dict[str, Callable[[], Iterator[bytes]]] = {
    "empty object": sent({}),
    "another object": sent({"status": "ok", "uptime": 7}),
    "error of another service": sent({"state": "running", "version": "2"}),
    "number": sent(3),
    "null": sent(None),
    "status that is a list": sent({**ALL, "state": {"status": ["UP"]}}),
    "weight that is a text": sent({**ALL, "state": {"status": "UP", "weight": "50"}}),
    "reason that is an object": sent({**ALL, "state": {"status": "UP", "reason": {}}}),
    "time that is a text": sent({**ALL, "since": "now"}),
    "time that is true": sent({**ALL, "since": True}),
    "time after the year 9999": sent({**ALL, "since": 1e300}),
    "peers that are an object": sent({**ALL, "peers": {"192.0.2.1": True}}),
    "too many peers": sent({**ALL, "peers": ALL["peers"] * 4097}),
    "peer that is a text": sent({**ALL, "peers": ["192.0.2.1"]}),
    "peer with a number for a flag": sent({**ALL, "peers": [BAD_PEER]}),
    "counters that are a list": sent({**ALL, "counters": [1]}),
    "error that is a number": sent({**ALL, "last_error": 7}),
    "NaN": lambda: iter([json.dumps({**ALL, "since": float("nan")}).encode()]),
    "infinity": lambda: iter([json.dumps(ALL).replace("1790000000", "1e999").encode()]),
    "infinity in an unknown field": lambda: iter([json.dumps({**ALL, "new": 0}).encode()[:-2] + b"1e999}"]),
    "deep lists in an unknown field": sent({**ALL, "new": nested(40)}),
    "number of a megabyte": lambda: iter([b'{"since": ' + b"9" * (1 << 20) + b"}"]),
    "deep lists": lambda: iter([b"[" * 100_000]),
    "deep objects": lambda: iter([b'{"state":' * 100_000]),
    "names with escapes": sent({**ALL, "since": HOSTILE}),
    "256 MiB": lambda: itertools.repeat(MEBIBYTE, MAX_MEBIBYTES),
    "half a status": lambda: iter([json.dumps(ALL).encode()[:-20]]),
    "two statuses": lambda: iter([json.dumps(ALL).encode() * 2]),
    "nothing": lambda: iter([]),
    "no UTF-8": lambda: iter([b'{"version": "\xff"}']),
}


@pytest.mark.parametrize("arguments", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("pieces", NOT_A_STATUS.values(), ids=NOT_A_STATUS)
def test_invalid_status_is_refused(path: Path, pieces: Callable[[], Iterator[bytes]], arguments: list[str]) -> None:
    with responding(path, pieces):
        done = run(*arguments, path)
    assert_refused(done, path, arguments)


@pytest.mark.parametrize("name", MINIMAL)
def test_each_field_that_every_agent_reports_is_required(path: Path, name: str) -> None:
    with responding(path, sent(without(ALL, name))):
        done = run(path)
    assert_refused(done, path, [])
    assert name in done.stderr


def test_stops_reading_a_huge_response(path: Path) -> None:
    with responding(path, NOT_A_STATUS["256 MiB"]) as conversation:
        run(path)
    assert conversation.hung_up


def test_slow_drip_ends_at_one_deadline(path: Path, python: str) -> None:
    with responding(path, drip) as conversation:
        done = run("--prometheus", path, python=python)
    # The command gave up before everything was sent.
    assert conversation.hung_up
    assert_refused(done, path, FORMATS["prometheus"])
    assert " 5 s" in done.stderr


@pytest.mark.parametrize("clients", [0, 2], ids=["free queue", "full queue"])
def test_listener_that_never_accepts_ends_at_one_deadline(path: Path, clients: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, contextlib.ExitStack() as others:
        listener.bind(str(path))
        listener.listen(1)
        for _client in range(clients):
            others.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)).connect(str(path))
        done = run(path)
    assert_refused(done, path, [])
    assert " 5 s" in done.stderr


def test_waits_while_the_agent_serves_others(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
            first.connect(str(path))
            program: list[Path | str] = [sys.executable, "-I", "-S", compiled_for(sys.executable), "status", path]
            with subprocess.Popen(program, stdout=subprocess.PIPE, encoding="utf-8", env={}) as waiting:
                # The command must succeed whether or not it tried to connect while the queue was full.
                time.sleep(0.5)
                listener.accept()[0].close()
                with listener.accept()[0] as client:
                    client.sendall(json.dumps(MINIMAL).encode())
                assert waiting.stdout
                assert waiting.stdout.readline() == "state       DRAIN\n"


# Agents of other releases


def test_missing_optional_fields_are_left_out(path: Path, python: str) -> None:
    with responding(path, sent(MINIMAL)):
        table = run(path, python=python).stdout.splitlines()
    assert [line.partition("  ")[0] for line in table[:4]] == ["state", "since", "state file", ""]
    assert re.fullmatch(r"192\.0\.2\.1 +- +- +received", table[-1])


@pytest.mark.parametrize("document", [MINIMAL, ALL], ids=["less", "all"])
def test_unknown_fields_are_ignored(path: Path, document: dict[str, Any]) -> None:
    newer = copy.deepcopy(document)
    newer["state"]["status"] = "PAUSED"
    for fields in [newer, newer["state"], newer["peers"][0], newer.setdefault("counters", {})]:
        fields["new"] = {"of": ["another", "kind"]}
    newer["counters"]["new_kind"] = 4
    shown = {}
    for name, arguments in FORMATS.items():
        with responding(path, sent(newer)):
            done = run(*arguments, path)
        path.unlink()
        assert (done.returncode, done.stderr) == (0, "")
        shown[name] = done.stdout
    assert shown["table"].startswith("state       PAUSED\n")
    assert json.loads(shown["json"]) == newer
    assert f'hapgent_state{{socket="{path}",status="PAUSED"}} 1' in shown["prometheus"].splitlines()
    assert f'hapgent_new_kind_total{{socket="{path}"}} 4' in shown["prometheus"].splitlines()


@pytest.mark.parametrize(
    ("until", "shown"),
    [
        ("2026-11-28T06:00:00Z", r"2026-11-2\d \S+ \S+, in 3 h"),
        ("2026-11-28T02:59:00Z", r"2026-11-2\d \S+ \S+, overdue for 60 s"),
        ("2026-11-25T03:00:00Z", r"2026-11-2\d \S+ \S+, overdue for 3 d"),
        # An agent of another release may report another form.
        ("tomorrow", "tomorrow"),
    ],
)
def test_what_is_overdue_is_shown(until: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1795834800.0)
    status = command.known({**ALL, "state": {"status": "DRAIN", "until": until}})
    assert re.search(f"^until       {shown}$", command.table(status), re.MULTILINE)
    assert ("hapgent_until_timestamp_seconds" in command.metrics([({}, status)])) == until.startswith("2026")


# Control characters


def hostile() -> dict[str, Any]:
    """Return a status in which every text that is shown contains control characters."""
    document = copy.deepcopy(ALL)
    document.update(version=HOSTILE, address=HOSTILE, state_file=HOSTILE, last_error=HOSTILE)
    document["state"].update(status=HOSTILE, reason=HOSTILE, by=HOSTILE, until=HOSTILE, then=HOSTILE)
    document["peers"][0]["address"] = HOSTILE
    document["counters"][HOSTILE] = 1
    return document


@pytest.mark.parametrize("arguments", FORMATS.values(), ids=FORMATS)
def test_control_characters_are_escaped(path: Path, python: str, arguments: list[str]) -> None:
    with responding(path, sent(hostile())):
        done = run(*arguments, path, python=python)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.split("\n")
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line == "state       UP"]
    if arguments == FORMATS["json"]:
        assert json.loads(done.stdout) == hostile()


def test_each_hostile_text_is_shown(path: Path) -> None:
    with responding(path, sent(hostile())):
        lines = run(path).stdout.splitlines()
    begun = [line.split(r"\x1b]0;owned\x07\x9b31m\x7f\nstate", 1)[0].strip() for line in lines if "owned" in line]
    assert begun == ["state", "error", "reason", "by", "until", "then", "answers on", "state file", ""]


def test_path_is_escaped_in_the_error(tmp_path: Path) -> None:
    done = run(tmp_path / "\x1b[2Jno.sock")
    assert_refused(done, Path(str(tmp_path), r"\x1b[2Jno.sock"), [])


# Any document


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from([HOSTILE, 10**400, -1, 1e308, 2**63]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
PLACES: list[tuple[str | int, ...]] = [
    *((name,) for name in ALL),
    *(("state", name) for name in ALL["state"]),
    *(("peers", 0, name) for name in ALL["peers"][0]),
    ("peers", 0),
    ("counters", "checks"),
    ("counters", "peer_checks"),
    ("counters", "checks{}"),
]
SERIES = re.compile(r'(hapgent_[a-z_]+\{socket="[^"]*"(?:,[a-z]+="(?:[^"\\\n]|\\["\\n])*")?\}) \d+(?:\.\d+)?')


@st.composite
def statuses(draw: st.DrawFn) -> Any:
    """Generate a status with wrong values in some places and, at times, each load balancer twice."""
    document = copy.deepcopy(ALL)
    for place in draw(st.lists(st.sampled_from(PLACES), max_size=3)):
        inner: Any = document
        try:
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = draw(JSON)
        except (IndexError, KeyError, TypeError):
            continue  # An earlier wrong value has replaced the container.
    if draw(st.booleans()) and isinstance(document["peers"], list):
        document["peers"] = document["peers"] * 2
    return document


@same_examples
@given(document=statuses() | JSON)
def test_any_document_is_shown_or_refused(document: Any) -> None:
    with mock.patch.object(command, "_receive", return_value=json.dumps(document).encode()):
        try:
            read = command.ask(None)
            status = command.known(read)
        except ValueError:
            return
    assert json.loads(command.as_json(read)) == read
    metrics = command.metrics([({"socket": "/run/status.sock"}, status)])
    for text in [command.as_json(read), command.table(status), metrics]:
        assert not [char for char in text if char != "\n" and unicodedata.category(char)[0] == "C"]
    lines = metrics.splitlines()
    samples = [SERIES.fullmatch(line) for line in lines if not line.startswith("# ")]
    assert None not in samples
    series = [sample[1] for sample in samples if sample]
    assert len(set(series)) == len(series)


@same_examples
@given(raw=st.binary(max_size=64) | st.text(alphabet='[]{}":,.-eE0123456789 ntf', max_size=64).map(str.encode))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with mock.patch.object(command, "_receive", return_value=raw), contextlib.suppress(ValueError):
        command.known(command.ask(None))


@pytest.mark.parametrize("document", [MINIMAL, ALL, hostile()], ids=["minimal", "all", "hostile"])
@pytest.mark.parametrize("peers", [0, 1, 2], ids=["no peer", "a peer", "a peer twice"])
def test_promtool_accepts_the_metrics_of_odd_agents(path: Path, document: dict[str, Any], peers: int) -> None:
    assert PROMTOOL.exists(), f"there is no {PROMTOOL}: run tests/tools/install"
    with responding(path, sent({**document, "peers": document["peers"] * peers})):
        metrics = run("--prometheus", path).stdout
    judged = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=metrics, capture_output=True, encoding="utf-8", check=False
    )
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, "", "")
