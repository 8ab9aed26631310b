# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent answers with the state in its state file, and with FAIL and a log line if it cannot use the file."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually

STATUSES = ["UP", "DOWN", "READY", "DRAIN", "FAIL", "MAINT", "STOPPED"]
MAX_BYTES = 64 * 1024

ACCEPTED = {
    "only a status": (b'{"status": "UP"}', b"UP\n"),
    "all fields": (b'{"status": "UP", "weight": 77, "maxconn": 300}', b"UP 77% maxconn:300\n"),
    "all fields, another order": (b'{"maxconn": 300, "weight": 77, "status": "UP"}', b"UP 77% maxconn:300\n"),
    "maxconn without weight": (b'{"status": "DRAIN", "maxconn": 10}', b"DRAIN maxconn:10\n"),
    "smallest weight": (b'{"status": "UP", "weight": 0}', b"UP 0%\n"),
    "largest weight": (b'{"status": "UP", "weight": 255}', b"UP 255%\n"),
    "smallest maxconn": (b'{"status": "UP", "maxconn": 0}', b"UP maxconn:0\n"),
    "largest maxconn": (b'{"status": "UP", "maxconn": 65535}', b"UP maxconn:65535\n"),
    "weight with a fraction of zero": (b'{"status": "UP", "weight": 50.0}', b"UP 50%\n"),
    "weight with an exponent": (b'{"status": "UP", "weight": 1e2}', b"UP 100%\n"),
    "weight with both": (b'{"status": "UP", "weight": 25.5E+1}', b"UP 255%\n"),
    "maxconn with an exponent": (b'{"status": "UP", "maxconn": 6.5535e4}', b"UP maxconn:65535\n"),
    "weight null": (b'{"status": "UP", "weight": null}', b"UP\n"),
    "maxconn null": (b'{"status": "UP", "maxconn": null}', b"UP\n"),
    "a reason": ('{"status": "UP", "reason": "kernel \u2192 6.1"}'.encode(), "UP # kernel \u2192 6.1\n".encode()),
    "a reason to drain": (b'{"status": "DRAIN", "weight": 5, "reason": "x"}', b"DRAIN UP 5% # x\n"),
    "the longest reason": (b'{"status": "UP", "reason": "%s"}' % (b"x" * 120), b"UP # " + b"x" * 120 + b"\n"),
    "reason null": (b'{"status": "UP", "reason": null}', b"UP\n"),
    "white space": (b'\r\n\t{ "status"\n:\n"UP" }\r\n\r\n', b"UP\n"),
    "escaped letters": (b'{"st\\u0061tus": "\\u0055P"}', b"UP\n"),
    "as large as allowed": (b'{"status": "UP"}'.ljust(MAX_BYTES), b"UP\n"),
}

STATUS = "UP, DOWN, READY, DRAIN, FAIL, MAINT, STOPPED"
WEIGHT = "0 to 255"
MAXCONN = "0 to 65535"
REASON = "1 to 120 bytes"
FIELDS = "status, weight, maxconn, reason, by, until, then"

# The content of the file, and what the log line must name: the field, its value, what it must be.
REJECTED = {
    "lower case": (b'{"status": "up"}', "status", '"up"', STATUS),
    "mixed case": (b'{"status": "Drain"}', "status", '"Drain"', STATUS),
    "extra space": (b'{"status": "UP "}', "status", '"UP "', STATUS),
    "a letter that looks the same": ('{"status": "U\u0420"}'.encode(), "status", STATUS),
    "half a surrogate pair": (b'{"status": "\\ud83d"}', "status", STATUS),
    "another word": (b'{"status": "OK"}', "status", '"OK"', STATUS),
    "an answer": (b'{"status": "UP 50%"}', "status", '"UP 50%"', STATUS),
    "empty status": (b'{"status": ""}', "status", '""', STATUS),
    "status a number": (b'{"status": 3}', "status", "3", STATUS),
    "status true": (b'{"status": true}', "status", "true", STATUS),
    "status a list": (b'{"status": ["UP"]}', "status", '["UP"]', STATUS),
    "status an object": (b'{"status": {"UP": 1}}', "status", '{"UP": 1}', STATUS),
    "status null": (b'{"status": null}', "status", "missing", STATUS),
    "no status": (b'{"weight": 50}', "status", "missing", STATUS),
    "no field": (b"{}", "status", "missing", STATUS),
    "weight a string": (b'{"status": "UP", "weight": "50"}', "weight", '"50"', WEIGHT),
    "weight with a percent sign": (b'{"status": "UP", "weight": "50%"}', "weight", '"50%"', WEIGHT),
    "weight true": (b'{"status": "UP", "weight": true}', "weight", "true", WEIGHT),
    "weight a list": (b'{"status": "UP", "weight": [50]}', "weight", "[50]", WEIGHT),
    "weight a fraction": (b'{"status": "UP", "weight": 1.5}', "weight", "1.5", WEIGHT),
    "weight a small fraction": (b'{"status": "UP", "weight": 1e-1}', "weight", "0.1", WEIGHT),
    "weight too large": (b'{"status": "UP", "weight": 256}', "weight", "256", WEIGHT),
    "weight slightly too large": (b'{"status": "UP", "weight": 255.5}', "weight", "255.5", WEIGHT),
    "weight too small": (b'{"status": "UP", "weight": -1}', "weight", "-1", WEIGHT),
    "weight beyond every float": (b'{"status": "UP", "weight": 1e400}', "weight", WEIGHT),
    "weight of 400 digits": (b'{"status": "UP", "weight": 1' + b"0" * 399 + b"}", "weight", "1000", WEIGHT),
    # Python refuses to convert this many digits to a number.
    "weight of 5000 digits": (b'{"status": "UP", "weight": 1' + b"0" * 4999 + b"}",),
    "weight not a number": (b'{"status": "UP", "weight": NaN}', "weight", "NaN", WEIGHT),
    "weight infinite": (b'{"status": "UP", "weight": -Infinity}', "weight", "-Infinity", WEIGHT),
    "maxconn a string": (b'{"status": "UP", "maxconn": "10"}', "maxconn", '"10"', MAXCONN),
    "maxconn false": (b'{"status": "UP", "maxconn": false}', "maxconn", "false", MAXCONN),
    "maxconn a fraction": (b'{"status": "UP", "maxconn": 0.5}', "maxconn", "0.5", MAXCONN),
    "maxconn too large": (b'{"status": "UP", "maxconn": 65536}', "maxconn", "65536", MAXCONN),
    "maxconn too small": (b'{"status": "UP", "maxconn": -1}', "maxconn", "-1", MAXCONN),
    "reason a number": (b'{"status": "UP", "reason": 3}', "reason", "3", REASON),
    "empty reason": (b'{"status": "UP", "reason": ""}', "reason", '""', REASON),
    "blank reason": (b'{"status": "UP", "reason": " "}', "reason", '" "', REASON),
    "reason too long": (b'{"status": "UP", "reason": "%s"}' % (b"x" * 121), "reason", "xxx", REASON),
    "reason too long in bytes": (
        ('{"status": "UP", "reason": "' + "\u00e9" * 61 + '"}').encode(),
        "reason",
        REASON,
    ),
    "reason with a number sign": (b'{"status": "UP", "reason": "see #7"}', "reason", "see #7", REASON),
    "reason with a line break": (b'{"status": "UP", "reason": "a\\nb"}', "reason", "a\\nb", REASON),
    "reason with a control character": (b'{"status": "UP", "reason": "a\\u009bb"}', "reason", REASON),
    "reason with half a surrogate pair": (b'{"status": "UP", "reason": "\\ud83d"}', "reason", REASON),
    "then another status": (
        b'{"status": "DRAIN", "until": "2999-11-28T06:00:00Z", "then": "READY"}',
        "then must be UP",
        '"READY"',
    ),
    "then without until": (b'{"status": "DRAIN", "then": "UP"}', "then requires until"),
    "unknown field": (b'{"status": "UP", "wieght": 50}', '"wieght"', FIELDS),
    "field in upper case": (b'{"STATUS": "UP"}', '"STATUS"', FIELDS),
    "field without a name": (b'{"status": "UP", "": null}', '""', FIELDS),
    "field with a line break": (b'{"status": "UP", "a\\nb": 1}', '"a\\nb"', FIELDS),
    "duplicate field": (b'{"status": "DOWN", "status": "UP"}', "status", "once"),
    "duplicate field, the same value": (b'{"status": "UP", "weight": 1, "weight": 1}', "weight", "once"),
    "empty file": (b"", "JSON", "one JSON object"),
    "only a line break": (b"\n", "JSON", "one JSON object"),
    "a word": (b"UP\n", "JSON", "one JSON object"),
    "a string": (b'"UP"', '"UP"', "one JSON object"),
    "a list": (b"[]", "[]", "one JSON object"),
    "a number": (b"3", "3", "one JSON object"),
    "null": (b"null", "null", "one JSON object"),
    "trailing comma": (b'{"status": "UP",}', "JSON", "one JSON object"),
    "trailing garbage": (b'{"status": "UP"} x', "JSON", "one JSON object"),
    "two objects": (b'{"status": "UP"}\n{"status": "UP"}', "JSON", "one JSON object"),
    "cut off": (b'{"status": "UP", "wei', "JSON", "one JSON object"),
    "single quotes": (b"{'status': 'UP'}", "JSON", "one JSON object"),
    "comment": (b'{"status": "UP"} // now', "JSON", "one JSON object"),
    "byte order mark": (b'\xef\xbb\xbf{"status": "UP"}', "BOM", "one JSON object"),
    "UTF-16": ('{"status": "UP"}'.encode("utf-16"), "UTF-8", "one JSON object"),
    "not UTF-8": (b'{"status": "\xffUP"}', "UTF-8", "one JSON object"),
    "zero byte": (b'{"status": "UP\x00"}', "JSON", "one JSON object"),
    "nested too deeply": (b"[" * 30_000, "JSON", "one JSON object"),
    "larger than allowed": (b'{"status": "UP"}'.ljust(MAX_BYTES + 1), f"{MAX_BYTES} bytes"),
    "much larger than allowed": (b'{"status": "UP"}'.ljust(100 * MAX_BYTES), f"{MAX_BYTES} bytes"),
}


def fingerprint(path: Path) -> tuple[int, ...] | None:
    """Return what changes if the file is modified or replaced, but not if it is only read."""
    if not os.path.lexists(path):
        return None
    found = path.lstat()
    return found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns


def make_socket(path: str | Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


# What may be at the path instead of a regular file: how to make it, and what the log line must name.
SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (Path.absolute, "No such file"),
    "FIFO": (os.mkfifo, "regular file"),
    "folder": (os.mkdir, "regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "regular file"),
    "socket": (make_socket, "cannot be read"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "No such file"),
    "link to itself": (lambda path: path.symlink_to(path.name), "symbolic link"),
    "file in a file": (lambda path: path.symlink_to("/etc/passwd/state.json"), "Not a directory"),
}


@pytest.mark.parametrize("status", STATUSES)
def test_answers_each_status(lasting_agent: Agent, status: str) -> None:
    lasting_agent.reload(b'{"status": "UP", "weight": 1}', b"UP 1%\n")
    lasting_agent.reload(b'{"status": "%s"}' % status.encode(), status.encode() + b"\n")


@pytest.mark.parametrize(("content", "answer"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted_file_is_answered(lasting_agent: Agent, content: bytes, answer: bytes) -> None:
    lasting_agent.reload(b'{"status": "STOPPED", "weight": 1}', b"STOPPED 1%\n")
    lasting_agent.reload(content, answer)


@pytest.mark.parametrize("case", REJECTED.values(), ids=REJECTED)
def test_rejected_file_on_hup_is_answered_with_fail(lasting_agent: Agent, case: tuple[bytes, *tuple[str, ...]]) -> None:
    content, *named = case
    lasting_agent.reload(b'{"status": "READY", "weight": 1}', b"READY 1%\n")
    lines_before = len(lasting_agent.log())

    lasting_agent.reload(content, b"FAIL\n")

    (line,) = lasting_agent.log()[lines_before:]
    for word in ["READY 1% -> FAIL", str(lasting_agent.state_file), *named]:
        assert word in line
    assert lasting_agent.state_file.read_bytes() == content


@pytest.mark.parametrize("case", REJECTED.values(), ids=REJECTED)
def test_rejected_file_at_start_is_answered_with_fail(agents: Agents, case: tuple[bytes, *tuple[str, ...]]) -> None:
    content, *named = case
    agent = agents.start(content)

    assert agent.ask() == b"FAIL\n"
    problem, answering = agent.log()
    for word in [str(agent.state_file), *named]:
        assert word in problem
    assert "answering FAIL" in answering
    assert agent.state_file.read_bytes() == content


@pytest.mark.parametrize(("make", "named"), SPECIAL.values(), ids=SPECIAL)
def test_irregular_file_on_hup_is_answered_with_fail(
    lasting_agent: Agent, make: Callable[[Path], object], named: str
) -> None:
    path = lasting_agent.state_file
    lasting_agent.reload(b'{"status": "READY", "weight": 1}', b"READY 1%\n")
    lines_before = len(lasting_agent.log())
    path.unlink()
    make(path)
    before = fingerprint(path)

    lasting_agent.send(signal.SIGHUP)
    lasting_agent.await_answer(b"FAIL\n")

    (line,) = lasting_agent.log()[lines_before:]
    for word in ["READY 1% -> FAIL", str(path), named]:
        assert word in line
    assert fingerprint(path) == before


@pytest.mark.parametrize(("make", "named"), SPECIAL.values(), ids=SPECIAL)
def test_irregular_file_at_start_is_answered_with_fail(
    agents: Agents, tmp_path: Path, make: Callable[[Path], object], named: str
) -> None:
    path = tmp_path / "state.json"
    make(path)
    before = fingerprint(path)

    agent = agents.start(None, state_file=path)

    assert agent.ask() == b"FAIL\n"
    problem, _answering = agent.log()
    assert str(path) in problem
    assert named in problem
    assert fingerprint(path) == before


@pytest.mark.parametrize(("make", "named"), SPECIAL.values(), ids=SPECIAL)
def test_reading_leaves_no_descriptor_open(
    agents: Agents, eventually: Eventually, make: Callable[[Path], object], named: str
) -> None:
    agent = agents.start()

    for _round in range(3):
        agent.state_file.unlink()
        make(agent.state_file)
        agent.send(signal.SIGHUP)
        agent.await_answer(b"FAIL\n")
        agent.reload(b'{"status": "UP"}', b"UP\n")

    # The agent may be saving its memory file at this moment, so wait until that is done.
    lock = f"{agent.state_file}.memory.lock"
    eventually(
        lambda: {path for path in agent.opened() if path.startswith(str(agent.state_file))} == {lock},
        "only the lock of the memory file is open",
    )
    assert named in "".join(agent.log())


@pytest.mark.parametrize("content", [b'{"status": %s}', b'{"status": "UP", "weight": %s}', b"%s"])
def test_survives_every_depth_of_nesting(agents: Agents, python: str, content: bytes) -> None:
    # Python's recursion limit is 1000, and the depth that reaches it depends on the current depth of the call stack.
    agent = agents.start(python=python)
    for depth in range(975, 1005):
        agent.reload(content % (b"[" * depth + b"]" * depth), b"FAIL\n")
        agent.reload(b'{"status": "UP"}', b"UP\n")


def test_state_file_name_need_not_be_utf8(agents: Agents, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json"))
    agent = agents.start(b'{"status": "UP", "weight": 300}', state_file=path)
    assert WEIGHT in agent.log()[0]
    agent.reload(b'{"status": "UP"}', b"UP\n")


def test_state_file_path_may_be_relative(agents: Agents, tmp_path: Path) -> None:
    (tmp_path / "here.json").write_bytes(b'{"status": "DRAIN"}')
    agent = agents.start(before_exec=f"os.chdir({str(tmp_path)!r})", environment={"HAPGENT_STATE_FILE": "here.json"})
    assert agent.ask() == b"DRAIN\n"
