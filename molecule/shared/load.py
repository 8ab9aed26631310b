# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keep a steady load on load balancers, then report the outcomes of the requests.

usage: load.py [--rate REQUESTS_PER_SECOND] [--slow SECONDS] ADDRESS...

It runs until its stdin is closed or it receives SIGTERM. Then it completes the requests in progress and prints one
JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import re
import select
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

PORT = 80
TIMEOUT_SECONDS = 20.0
# The load stays steady as long as responses take less than this on average.
STEADY_SECONDS = 1.0
# One client out of this number opens a new connection for each request.
FRESH_CLIENTS = 5
# Each address also receives slow requests, so many that each of a few servers nearly always has some.
SLOW_REQUESTS_PER_SECOND = 4.0
# If a connection was closed while idle, a request on it fails at once. A later failure is a request lost in progress.
IDLE_CLOSE_SECONDS = 1.0

STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CONNECTION_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


# Outcomes


class Outcome(NamedTuple):
    """The outcome of a request: either server or failure is empty."""

    address: str
    requested_seconds: float
    seconds: float
    server: str
    failure: str
    reconnected: bool


def summarize(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """The JSON object that is printed at the end; longest is the highest response time beyond the requested delay."""
    requests = Counter(outcome.address for outcome in outcomes)
    failed = Counter(outcome.address for outcome in outcomes if outcome.failure)
    return {
        "requests": len(outcomes),
        "failed": count_failed(outcomes),
        "failures": Counter(outcome.failure for outcome in outcomes if outcome.failure),
        "by_server": Counter(outcome.server for outcome in outcomes if outcome.server),
        "by_address": {address: [count, failed[address]] for address, count in requests.items()},
        "slow": sum(outcome.requested_seconds > 0 for outcome in outcomes),
        "reconnected": sum(outcome.reconnected for outcome in outcomes),
        "seconds": round(seconds, 1),
        "longest": round(max((outcome.seconds - outcome.requested_seconds for outcome in outcomes), default=0.0), 3),
    }


def count_failed(outcomes: list[Outcome]) -> int:
    return sum(bool(outcome.failure) for outcome in outcomes)


# HTTP


class RequestError(Exception):
    """A request got no complete response."""


class UnansweredError(RequestError):
    """A request got not even one byte of a response."""


class Response(NamedTuple):
    """A complete HTTP response."""

    status: int
    body: str
    closes: bool


def parse(received: bytes) -> Response | None:
    """The response, or None if it is not complete yet."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    status, length = STATUS.match(head), CONTENT_LENGTH.search(head)
    if not status or not length:
        raise RequestError("a response without status or Content-Length")
    if len(body) < int(length[1]):
        return None
    return Response(int(status[1]), body.decode(errors="replace"), bool(CONNECTION_CLOSE.search(head)))


def find_fault(response: Response) -> str:
    """What is wrong with a complete response, or ''."""
    if response.status != 200:
        return f"status {response.status}"
    if len(response.body.split()) != 2:
        return "not a page of the service"
    return ""


def describe(error: OSError) -> str:
    """A short text that is the same for equal errors."""
    return error.strerror or str(error)


def seconds_until(deadline: float) -> float:
    """A timeout for a socket. It is never zero, which would make the socket non-blocking."""
    return max(deadline - time.monotonic(), 0.001)


def connect(address: str, deadline: float) -> socket.socket:
    """Open a connection to HAProxy."""
    try:
        connection = socket.create_connection((address, PORT), timeout=seconds_until(deadline))
    except OSError as error:
        raise RequestError(f"no connection: {describe(error)}") from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(connection: socket.socket, request: bytes, deadline: float) -> Response:
    """Send a request and receive its response."""
    received = b""
    try:
        connection.settimeout(seconds_until(deadline))
        connection.sendall(request)
        while True:
            connection.settimeout(seconds_until(deadline))
            more = connection.recv(65536)
            if not more:
                raise ConnectionError("connection closed")
            received += more
            response = parse(received)
            if response:
                return response
    except OSError as error:
        if received:
            raise RequestError(f"incomplete response: {describe(error)}") from error
        raise UnansweredError(f"no response: {describe(error)}") from error


# Clients


class Pace:
    """Spreads the requests of several clients evenly or randomly; the first client that is free sends the next one."""

    def __init__(self, per_second: float, *, randomly: bool = False) -> None:
        self._seconds = 1 / per_second
        self._randomly = randomly
        self._due = time.monotonic()
        self._lock = threading.Lock()

    def next_due(self) -> float:
        """When to send the next request. Late requests are not made up for, which would cause a flood after a pause."""
        with self._lock:
            seconds = random.expovariate(1 / self._seconds) if self._randomly else self._seconds
            self._due = max(self._due + seconds, time.monotonic())
            return self._due


class Client:
    """Sends one request after the other, on one connection or a new one each time."""

    def __init__(self, address: str, pace: Pace, keeps_alive: bool, slow: float) -> None:
        self._address = address
        self._pace = pace
        self._keeps_alive = keeps_alive
        self._slow = slow
        self._connection: socket.socket | None = None

    def keep_sending(self, outcomes: list[Outcome], over: threading.Event) -> None:
        """Send requests at the given pace until the event is set."""
        while not over.wait(seconds_until(self._pace.next_due())):
            outcomes.append(self._send())
        self._close()

    def _send(self) -> Outcome:
        seconds = round(random.uniform(self._slow / 2, self._slow), 1)
        path = f"/slow?seconds={seconds}" if seconds else "/"
        server = failure = ""
        reconnected = False
        start = time.monotonic()
        try:
            response, reconnected = self._exchange_with_retry(path, start)
            failure = find_fault(response)
            if not failure:
                server = " ".join(response.body.split())
        except RequestError as error:
            failure = str(error)
        return Outcome(self._address, seconds, time.monotonic() - start, server, failure, reconnected)

    def _exchange_with_retry(self, path: str, start: float) -> tuple[Response, bool]:
        """Retry once if a reused connection was closed, as HTTP clients do: RFC 9112, section 9.3.1."""
        used_before = self._connection is not None
        try:
            return self._exchange(path, start + TIMEOUT_SECONDS), False
        except UnansweredError:
            if not used_before or time.monotonic() - start > IDLE_CLOSE_SECONDS:
                raise
        return self._exchange(path, start + TIMEOUT_SECONDS), True

    def _exchange(self, path: str, deadline: float) -> Response:
        if not self._connection:
            self._connection = connect(self._address, deadline)
        option = "" if self._keeps_alive else "Connection: close\r\n"
        request = f"GET {path} HTTP/1.1\r\nHost: {self._address}\r\n{option}\r\n"
        try:
            response = exchange(self._connection, request.encode(), deadline)
        except RequestError:
            self._close()
            raise
        if response.closes or not self._keeps_alive:
            self._close()
        return response

    def _close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


def clients(address: str, per_second: float, slow: float) -> Iterator[Client]:
    """The clients that send this many fast requests per second to an address, and some of up to C(slow) seconds."""
    pace = Pace(per_second)
    for number in range(math.ceil(per_second * STEADY_SECONDS)):
        yield Client(address, pace, keeps_alive=number % FRESH_CLIENTS != 0, slow=0.0)
    # If both paces were even, HAProxy's round robin would send all slow requests to the same servers.
    pace = Pace(SLOW_REQUESTS_PER_SECOND, randomly=True)
    for number in range(math.ceil(SLOW_REQUESTS_PER_SECOND * slow)):
        yield Client(address, pace, keeps_alive=number % 2 != 0, slow=slow)


# The program


def stdin_closed(within_seconds: float) -> bool:
    """Wait at most this long for the end of stdin, and return whether it ended."""
    readable, _writable, _failed = select.select([sys.stdin], [], [], within_seconds)
    return bool(readable) and not os.read(sys.stdin.fileno(), 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description="Keep a steady load on load balancers.")
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS")
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second, over all addresses")
    parser.add_argument("--slow", type=float, default=5.0, help="seconds that a slow request takes at most")
    options = parser.parse_args()

    outcomes: list[Outcome] = []
    over = threading.Event()
    threads = [
        threading.Thread(target=client.keep_sending, args=(outcomes, over))
        for address in options.addresses
        for client in clients(address, options.rate / len(options.addresses), options.slow)
    ]
    start = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for thread in threads:
            thread.start()
        while not stdin_closed(within_seconds=1):
            print(f"{len(outcomes)} requests, {count_failed(outcomes)} failed", file=sys.stderr, flush=True)
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps(summarize(outcomes, time.monotonic() - start)))


if __name__ == "__main__":
    main()
