# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The client reads real sockets and TLS safely, even if the peer never ends, sends too much or is not HAProxy."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_client import (
    CsvPage,
    Source,
    SourceError,
    StatsSocket,
)
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.conftest import Eventually

FOLDER = Path(__file__).parent / "haproxy"
SOCKET_ANSWER = (FOLDER / "2.6-socket.txt").read_bytes()
PAGE = (FOLDER / "2.6-page.csv").read_bytes()
OK = b"HTTP/1.1 200 OK\r\n"
# The client's deadline, and how long an endless peer sends. A read that takes as long as the peer has no deadline.
DEADLINE_SECONDS = 0.5
ENDLESS_SECONDS = 20.0


class Peer:
    """Accepts connections and sends each of them the same: first the start, then the piece again and again."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self.start = b""
        self.piece = b""
        self.pause = 0.02
        self.requests: list[bytes] = []
        name = listener.getsockname()
        self.address: str = name if isinstance(name, str) else f"127.0.0.1:{name[1]}"
        self._tls = tls
        self._listener = listener
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            # Closing the listener alone does not interrupt accept().
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        # The client may close the connection at any time.
        with connection, contextlib.suppress(OSError):
            connection.settimeout(ENDLESS_SECONDS)
            if not self._tls:
                self._answer(connection)
                return
            with self._tls.wrap_socket(connection, server_side=True) as encrypted:
                self._answer(encrypted)

    def _answer(self, connection: socket.socket) -> None:
        self.requests.append(connection.recv(65536))
        connection.sendall(self.start)
        deadline = time.monotonic() + ENDLESS_SECONDS
        while self.pause and time.monotonic() < deadline and not self._over.wait(self.pause):
            connection.sendall(self.piece)
        while self.piece and time.monotonic() < deadline and not self._over.is_set():
            connection.sendall(self.piece)


def listen_tcp() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=64)


@pytest.fixture
def tcp_peer() -> Iterator[Peer]:
    peer = Peer(listen_tcp())
    yield peer
    peer.close()


@pytest.fixture
def unix_peer(tmp_path: Path) -> Iterator[Peer]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "admin.sock"))
    listener.listen(64)
    peer = Peer(listener)
    yield peer
    peer.close()


@pytest.fixture
def tls_peer(certificate: Path) -> Iterator[Peer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    peer = Peer(listen_tcp(), context)
    yield peer
    peer.close()


def page_of(peer: Peer, certificate: Path | None = None) -> CsvPage:
    scheme = "https" if certificate else "http"
    return CsvPage(f"{scheme}://{peer.address}/stats", None, None, str(certificate) if certificate else None, True)


def problem_of(source: Source, seconds: float) -> SourceError:
    """Read the source, check that this ends in time, and return the error."""
    started = time.monotonic()
    with pytest.raises(SourceError) as caught:
        source.read(started + seconds)
    # On a busy machine, this takes longer, but not as long as without a deadline.
    assert time.monotonic() - started < seconds + ENDLESS_SECONDS / 2
    return caught.value


# Deadlines: what the peer sends in each phase, first once and then endlessly

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HTTP_PHASES: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "status line": (OK[:-2], b"K"),
    "interim responses": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers of interim responses": (b"HTTP/1.1 100 Continue\r\n", b"A: b\r\n"),
    "header": (OK + b"A: ", b"b"),
    "headers": (OK, b"A: b\r\n"),
    "body of a known length": (OK + b"Content-Length: 99999999\r\n\r\n" + PAGE[:5000], b"x"),
    "body of a known length, rows": (OK + b"Content-Length: 99999999\r\n\r\n" + PAGE, b"a,FRONTEND,\n"),
    "body": (OK + b"\r\n" + PAGE[:5000], b"x"),
    "size of a chunk": (CHUNKED, b"0"),
    "extension of a chunk": (CHUNKED + b"10;", b"a"),
    "chunk": (CHUNKED + b"fffffff\r\n" + PAGE[:5000], b"x"),
    "chunks": (CHUNKED, b"1\r\n#\r\n"),
    "trailer": (CHUNKED + b"%x\r\n%s\r\n0\r\n" % (len(PAGE), PAGE), b"A: b\r\n"),
}
INFO, _end, TABLES = SOCKET_ANSWER.partition(b"\n\n")
STATISTICS, _end, STATES = TABLES.partition(b"\n\n")
SOCKET_PHASES: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "first line": (INFO[:7], b"x"),
    "process": (INFO + b"\n", b"a: b\n"),
    "description": (INFO + b"\n\n", b"more\n"),
    "statistics": (INFO + b"\n\n" + STATISTICS + b"\n", b"a,FRONTEND,\n"),
    "row": (INFO + b"\n\n" + STATISTICS, b"x"),
    "quoted text": (INFO + b"\n\n" + STATISTICS + b'\nweb,a,"', b"x\n"),
    "version of states": (INFO + b"\n\n" + STATISTICS + b"\n\n", b"1"),
    "states": (SOCKET_ANSWER[:-1], b"1 a 1 a\n"),
    "end": (SOCKET_ANSWER[:-1], b""),
}


@pytest.mark.parametrize("phase", HTTP_PHASES)
def test_reading_a_page_ends_at_the_deadline(tcp_peer: Peer, phase: str) -> None:
    tcp_peer.start, tcp_peer.piece = HTTP_PHASES[phase]
    assert problem_of(page_of(tcp_peer), DEADLINE_SECONDS).cause == "silent"


@pytest.mark.parametrize("phase", HTTP_PHASES)
def test_reading_a_page_with_tls_ends_at_the_deadline(tls_peer: Peer, certificate: Path, phase: str) -> None:
    tls_peer.start, tls_peer.piece = HTTP_PHASES[phase]
    seconds = DEADLINE_SECONDS
    # On a busy machine, the handshake alone may take longer than the deadline.
    while not tls_peer.requests and seconds < ENDLESS_SECONDS:
        assert problem_of(page_of(tls_peer, certificate), seconds).cause == "silent"
        seconds *= 2
    assert tls_peer.requests


@pytest.mark.parametrize(
    ("start", "piece"), [(b"", b""), (b"\x16\x03\x03\x3f\xff\x02", b"\0")], ids=["nothing", "record"]
)
def test_tls_handshake_ends_at_the_deadline(tcp_peer: Peer, certificate: Path, start: bytes, piece: bytes) -> None:
    tcp_peer.start, tcp_peer.piece = start, piece
    assert problem_of(page_of(tcp_peer, certificate), DEADLINE_SECONDS).cause == "silent"


@pytest.mark.parametrize("kind", ["tcp_peer", "unix_peer"])
@pytest.mark.parametrize("phase", SOCKET_PHASES)
def test_reading_a_stats_socket_ends_at_the_deadline(request: pytest.FixtureRequest, kind: str, phase: str) -> None:
    peer: Peer = request.getfixturevalue(kind)
    peer.start, peer.piece = SOCKET_PHASES[phase]
    assert problem_of(StatsSocket(peer.address), DEADLINE_SECONDS).cause == "silent"


@pytest.mark.parametrize("kind", ["socket", "page", "page with TLS"])
def test_connecting_ends_at_the_deadline(certificate: Path, kind: str, eventually: Eventually) -> None:
    """The listener accepts no connections and its queue is full, so its host does not even respond to a SYN."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()

        def is_full() -> bool:
            client = stack.enter_context(socket.socket())
            client.settimeout(0.2)
            try:
                client.connect(address)
            except TimeoutError:
                return True
            return False

        eventually(is_full, "the queue is full")
        host = f"127.0.0.1:{address[1]}"
        sources: dict[str, Source] = {
            "socket": StatsSocket(host),
            "page": CsvPage(f"http://{host}/", None, None, None, True),
            "page with TLS": CsvPage(f"https://{host}/", None, None, str(certificate), True),
        }
        assert problem_of(sources[kind], DEADLINE_SECONDS).cause == "silent"


# Size


@pytest.mark.parametrize(
    "start", [OK + b"\r\n", OK + b"\r\n# pxname,svname,", CHUNKED + b"fffffff\r\n# pxname,svname,"]
)
def test_page_that_is_too_long_is_refused(tcp_peer: Peer, start: bytes) -> None:
    tcp_peer.start, tcp_peer.piece, tcp_peer.pause = start, 65536 * b"x", 0
    problem = problem_of(page_of(tcp_peer), 60)
    assert problem.cause == "answer"
    assert "64 MiB" in str(problem)


@pytest.mark.parametrize("start", [b"", b"Name: ", INFO + b"\n\n" + STATISTICS + b'\nweb,a,"'])
def test_answer_of_a_stats_socket_that_is_too_long_is_refused(tcp_peer: Peer, start: bytes) -> None:
    tcp_peer.start, tcp_peer.piece, tcp_peer.pause = start, 65536 * b"x", 0
    problem = problem_of(StatsSocket(tcp_peer.address), 60)
    assert problem.cause == "answer"
    assert "64 MiB" in str(problem)


# getrusage() would not work: its maximum includes that of the parent process.
READ = """
import pathlib, sys, time
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_client import StatsSocket
def most_kilobytes():
    return int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = most_kilobytes()
statistics = StatsSocket(sys.argv[1]).read(time.monotonic() + 300)
print(len(statistics.servers), (most_kilobytes() - before) * 1024)
"""


def test_memory_is_proportional_to_the_answer(tcp_peer: Peer) -> None:
    header, *rows = STATISTICS.split(b"\n")
    (row,) = (row for row in rows if row.startswith(b"web,drainreason,"))
    (backend,) = (row for row in rows if row.startswith(b"web,BACKEND,"))
    version, names, *states = STATES.split(b"\n")
    (state,) = (state for state in states if b" drainreason " in state)
    count = 20000
    servers = [row.replace(b"drainreason", b"server%06d" % number) for number in range(count)]
    known = [state.replace(b"drainreason", b"server%06d" % number) for number in range(count)]
    answer = b"\n".join([INFO, b"", header, *servers, backend, b"", version, names, *known, b"", b""])
    tcp_peer.start, tcp_peer.pause = answer, 0
    command = [sys.executable, "-c", READ, tcp_peer.address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found, kept = map(int, done.stdout.split())
    assert found == count
    assert kept < 6 * len(answer)


# Requests


def test_request_has_the_expected_path_and_headers(tcp_peer: Peer) -> None:
    tcp_peer.start, tcp_peer.pause = OK + b"Content-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE), 0
    CsvPage(f"http://{tcp_peer.address}", "ada", "pässword", None, True).read(time.monotonic() + 30)
    (request,) = tcp_peer.requests
    lines = request.decode().split("\r\n")
    assert lines[0] == "GET /;csv HTTP/1.1"
    assert f"Host: {tcp_peer.address}" in lines
    assert "Authorization: Basic YWRhOnDDpHNzd29yZA==" in lines


def test_page_ends_after_its_content_length(tcp_peer: Peer) -> None:
    """The client must not wait for the end of the connection, which a proxy may keep open."""
    tcp_peer.start = OK + b"Content-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE)
    assert page_of(tcp_peer).read(time.monotonic() + 10).servers


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(tcp_peer: Peer, code: int) -> None:
    other = Peer(listen_tcp())
    try:
        tcp_peer.start = b"HTTP/1.1 %d Moved\r\nLocation: http://%s/a\x1b[2J\r\n\r\n" % (code, other.address.encode())
        tcp_peer.pause = 0
        page = CsvPage(f"http://{tcp_peer.address}/stats", "ada", "secret", None, True)
        problem = problem_of(page, 30)
    finally:
        other.close()
    assert problem.cause == "answer"
    assert rf"http://{other.address}/a\x1b[2J" in str(problem)
    assert other.requests == []


def test_proxy_of_the_environment_is_not_used(tcp_peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Peer(listen_tcp())
    proxy.start = tcp_peer.start = OK + b"Content-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE)
    proxy.pause = tcp_peer.pause = 0
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{proxy.address}")
    try:
        assert page_of(tcp_peer).read(time.monotonic() + 30).servers
    finally:
        proxy.close()
    assert len(tcp_peer.requests) == 1
    assert proxy.requests == []


# Fuzzing

HEADS = [OK + b"\r\n", OK + b"Content-Length: 17071\r\n\r\n", CHUNKED + b"42af\r\n", CHUNKED + b"fffffffffff\r\n", b""]
PIECES = [b"", b"\n", b"\r\n", b"\r\n\r\n", b",", b'"', b"\0", b"\xff", b"-1\r\n", b"0\r\n", b" ", b":", 5000 * b"9"]


@st.composite
def mutated(draw: st.DrawFn, answers: list[bytes]) -> bytes:
    """An answer with random changes, most of them near its beginning."""
    answer = bytearray(draw(st.sampled_from(answers)))
    for _change in range(draw(st.integers(0, 5))):
        start = draw(st.one_of(st.integers(0, 120), st.integers(0, len(answer))))
        length = draw(st.one_of(st.integers(0, 8), st.integers(0, len(answer))))
        answer[start : start + length] = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=40)))
    return bytes(answer)


@pytest.fixture(scope="module")
def fuzzing_peer() -> Iterator[Peer]:
    peer = Peer(listen_tcp())
    peer.pause = 0
    yield peer
    peer.close()


def assert_only_source_errors(source: Source) -> None:
    started = time.monotonic()
    try:
        source.read(started + 10)
    except SourceError as error:
        assert str(error).isprintable()
    assert time.monotonic() - started < 10


@settings(max_examples=200, derandomize=True, deadline=None)
@given(answer=st.one_of(mutated([head + PAGE for head in HEADS]), st.binary(max_size=200)))
def test_fuzzed_page_raises_only_source_errors(fuzzing_peer: Peer, answer: bytes) -> None:
    fuzzing_peer.start = answer
    assert_only_source_errors(page_of(fuzzing_peer))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(answer=st.one_of(mutated([SOCKET_ANSWER, INFO + b"\n\n"]), st.binary(max_size=200)))
def test_fuzzed_stats_socket_raises_only_source_errors(fuzzing_peer: Peer, answer: bytes) -> None:
    fuzzing_peer.start = answer
    assert_only_source_errors(StatsSocket(fuzzing_peer.address))
