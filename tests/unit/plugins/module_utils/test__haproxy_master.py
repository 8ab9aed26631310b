# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sessions in workers from before a reload are counted, as HAProxy 2.2, 2.6 and 3.0 report them.

The recorded answers are those of HAProxy after two reloads. The older worker, -old2, had two sessions of web/web1 and
one in the queue of the backend, the other one, -old1, a session of web/web1 and one of api/web1.
"""

from __future__ import annotations

import io
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_client import SourceError, TransientError
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_master import (
    MAX_OLD,
    MasterSocket,
    parse_list,
    parse_sessions,
    parse_workers,
)
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_stats import FormatError, TruncatedError

FOLDER = Path(__file__).parent / "haproxy"
# The PIDs of the current worker and of the old ones.
WORKERS = {"2.2": (19468, 19449, 19413), "2.6": (19655, 19615, 19524), "3.0": (19925, 19904, 19822)}
SESSIONS = {
    "old1": {"web/web1": 1, "web/web2": 0, "api/web1": 1},
    "old2": {"web/web1": 2, "web/web2": 0, "api/web1": 0},
}
TITLES = ["web/web1", "web/web2", "api/web1"]
# Before HAProxy 2.5, the statistics of an old worker lack its servers.
WITHOUT_SERVERS = ("2.2",)
ENDED = "Can't find the target PID matching the prefix '@!19413'\n"
SECONDS = 5.0


def recorded(version: str, name: str) -> str:
    return (FOLDER / f"{version}-{name}.txt").read_text(encoding="utf-8")


def lines(text: str) -> io.StringIO:
    return io.StringIO(text, newline="\n")


def parse_stat_of_worker(rest: Iterator[str]) -> Any:
    return parse_sessions(next(rest, ""), rest)


@pytest.mark.parametrize("version", WORKERS)
def test_workers_are_parsed(version: str) -> None:
    current, *old = WORKERS[version]
    assert parse_workers(lines(recorded(version, "processes"))) == ([current], old)


@pytest.mark.parametrize("worker", SESSIONS)
@pytest.mark.parametrize("version", WORKERS)
def test_sessions_are_parsed(version: str, worker: str) -> None:
    listed = parse_list(lines(recorded(version, f"{worker}-sess")))
    assert listed is not None
    assert {title: listed.get(title, 0) for title in TITLES} == SESSIONS[worker]
    counted = parse_stat_of_worker(lines(recorded(version, f"{worker}-stat")))
    assert counted == ({} if version in WITHOUT_SERVERS else SESSIONS[worker])


@pytest.mark.parametrize("parse", [parse_list, parse_stat_of_worker])
def test_worker_that_has_ended_has_no_sessions(parse: Callable[[Any], Any]) -> None:
    assert parse(lines(ENDED)) is None


@pytest.mark.parametrize(
    ("parse", "name"),
    [(parse_workers, "processes"), (parse_list, "old1-sess"), (parse_stat_of_worker, "old1-stat")],
)
def test_incomplete_answers_are_recognized(parse: Callable[[Any], Any], name: str) -> None:
    answer = recorded("2.6", name)
    for end in range(1, len(answer.rstrip("\n"))):
        with pytest.raises(TruncatedError):
            parse(lines(answer[:end]))
    for other in ("\n", "HTTP/1.1 400 Bad Request\n", "Unknown command: 'show'\n\n"):
        if (parse, other) != (parse_list, "\n"):
            with pytest.raises(FormatError):
                parse(lines(other))


def test_too_many_workers_are_refused() -> None:
    answer = recorded("2.6", "processes")
    row = "19524           worker          2               0d00h00m01s     2.6.12-1+deb12u4\n"
    assert row in answer
    with pytest.raises(FormatError, match=f"more than {MAX_OLD} workers"):
        parse_workers(lines(answer.replace(row, row * MAX_OLD)))


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        command = self.rfile.readline().decode().strip()
        # HAProxy 2.2 keeps the connection open until the client has sent everything.
        self.wfile.write(self.server.answers.get(command, "").encode())  # type: ignore[attr-defined]
        self.server.commands.append(command)  # type: ignore[attr-defined]
        self.wfile.flush()
        while self.rfile.read(1):
            pass


@contextmanager
def master(path: Path, answers: dict[str, str]) -> Iterator[tuple[MasterSocket, list[str]]]:
    """A master that gives these answers, and the commands that it has received."""
    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        server.answers, server.commands = answers, []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield MasterSocket(str(path)), server.commands  # type: ignore[attr-defined]
        server.shutdown()


def answers_of(version: str) -> dict[str, str]:
    _current, *old = WORKERS[version]
    named = {
        f"@!{pid} show {what}": recorded(version, f"old{number}-{what}")
        for number, pid in enumerate(old, 1)
        for what in ("stat", "sess")
    }
    return {"show proc": recorded(version, "processes"), **named}


@pytest.mark.parametrize("version", WORKERS)
def test_sessions_of_all_old_workers_are_counted(tmp_path: Path, version: str) -> None:
    current, first, second = WORKERS[version]
    with master(tmp_path / "master.sock", answers_of(version)) as (client, commands):
        found = client.old_sessions(current, TITLES, time.monotonic() + SECONDS)
    assert {pid: {title: counts.get(title, 0) for title in TITLES} for pid, counts in found.items()} == {
        first: SESSIONS["old1"],
        second: SESSIONS["old2"],
    }
    # All sessions are listed only if the statistics lack the servers.
    assert any("show sess" in command for command in commands) == (version in WITHOUT_SERVERS)


def test_sessions_are_listed_for_a_server_that_the_worker_does_not_have(tmp_path: Path) -> None:
    current, first, _second = WORKERS["2.6"]
    with master(tmp_path / "master.sock", answers_of("2.6")) as (client, _commands):
        found = client.old_sessions(current, ["web/new"], time.monotonic() + SECONDS)
    assert found[first].get("web/new", 0) == 0


def test_worker_whose_statistics_were_read_is_not_counted_again(tmp_path: Path) -> None:
    """It may have been replaced since."""
    _current, first, second = WORKERS["2.6"]
    with master(tmp_path / "master.sock", answers_of("2.6")) as (client, _commands):
        assert [*client.old_sessions(second, TITLES, time.monotonic() + SECONDS)] == [first]


@pytest.mark.parametrize("what", ["stat", "sess"])
def test_worker_that_ends_meanwhile_is_not_counted(tmp_path: Path, what: str) -> None:
    current, first, second = WORKERS["2.2"]
    answers = {**answers_of("2.2"), f"@!{second} show {what}": ENDED}
    with master(tmp_path / "master.sock", answers) as (client, _commands):
        assert [*client.old_sessions(current, TITLES, time.monotonic() + SECONDS)] == [first]


PROCESSES = recorded("2.6", "processes")
FIRST = f"@!{WORKERS['2.6'][1]} show stat"


@pytest.mark.parametrize(
    ("changes", "is_transient", "cause", "named"),
    [
        ({"show proc": "Unknown command: 'show'\n\n"}, False, "settings", "is not HAProxy's master socket"),
        ({"show proc": "HTTP/1.1 400 \x1b[2J\n"}, False, "settings", r"'HTTP/1.1 400 \x1b[2J'"),
        ({"show proc": PROCESSES.replace("19655", "19656")}, True, "settings", "no worker with PID 19655"),
        ({"show proc": ""}, True, "silent", "closed the connection"),
        ({"show proc": PROCESSES[:200]}, True, "silent", "incomplete"),
        ({FIRST: ""}, True, "silent", "closed the connection"),
        ({FIRST: recorded("2.6", "old1-stat")[:2000]}, True, "silent", "incomplete"),
        ({FIRST: "Permission denied\n\n"}, False, "permission", "must be operator"),
        ({FIRST: "# pxname,svname,type\n\n"}, False, "settings", "lack required columns"),
    ],
)
def test_error_if_sessions_cannot_be_counted(
    tmp_path: Path, changes: dict[str, str], is_transient: bool, cause: str, named: str
) -> None:
    path = tmp_path / "master.sock"
    with master(path, {**answers_of("2.6"), **changes}) as (client, _commands), pytest.raises(SourceError) as caught:
        client.old_sessions(WORKERS["2.6"][0], TITLES, time.monotonic() + SECONDS)
    assert isinstance(caught.value, TransientError) == is_transient
    assert caught.value.cause == cause
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_master_socket_is_a_setting(tmp_path: Path) -> None:
    for path, cause, named in (
        (tmp_path / "none.sock", "settings", "there is no master socket"),
        (tmp_path, "settings", "is not a socket"),
    ):
        with pytest.raises(SourceError, match=named) as caught:
            MasterSocket(str(path)).old_sessions(1, TITLES, time.monotonic() + SECONDS)
        assert caught.value.cause == cause
    with pytest.raises(SourceError, match="master_socket must be a path"):
        MasterSocket("master")
