# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keep a steady load on load balancers, then tell what became of each request.

usage: load.py [--rate REQUESTS_PER_SECOND] ADDRESS...

It goes on until its stdin is closed or it gets SIGTERM. Then what is under way ends, and stdout gets one JSON object.
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
# The load is steady as long as answers take less, on average.
STEADY_SECONDS = 1.0
# One client in so many opens a connection for each request.
FRESH_CLIENTS = 5
# To each address, beside the fast ones.
SLOW_REQUESTS_PER_SECOND = 2.0
SLOW_SECONDS = (2.0, 5.0)
# A connection that was closed while idle says so at once. Later, it is a request under way that got lost.
IDLE_CLOSE_SECONDS = 1.0

STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CONNECTION_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


# What became of requests


class Outcome(NamedTuple):
    """What became of a request. Either the server that answered is empty, or what went wrong."""

    address: str
    asked_seconds: float
    seconds: float
    server: str
    failure: str
    reconnected: bool


def account(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """What is printed in the end. The longest is how much longer than it asked for a request took."""
    requests = Counter(outcome.address for outcome in outcomes)
    failed = Counter(outcome.address for outcome in outcomes if outcome.failure)
    return {
        "requests": len(outcomes),
        "failed": count_failed(outcomes),
        "failures": Counter(outcome.failure for outcome in outcomes if outcome.failure),
        "by_server": Counter(outcome.server for outcome in outcomes if outcome.server),
        "by_address": {address: [count, failed[address]] for address, count in requests.items()},
        "slow": sum(outcome.asked_seconds > 0 for outcome in outcomes),
        "reconnected": sum(outcome.reconnected for outcome in outcomes),
        "seconds": round(seconds, 1),
        "longest": round(max((outcome.seconds - outcome.asked_seconds for outcome in outcomes), default=0.0), 3),
    }


def count_failed(outcomes: list[Outcome]) -> int:
    """How many of them failed."""
    return sum(bool(outcome.failure) for outcome in outcomes)


# HTTP


class RequestError(Exception):
    """A request has no complete answer."""


class UnansweredError(RequestError):
    """Not a byte of an answer came."""


class Answer(NamedTuple):
    """A complete answer."""

    status: int
    body: str
    last: bool


def parse(received: bytes) -> Answer | None:
    """The answer, if it is complete."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    status, length = STATUS.match(head), CONTENT_LENGTH.search(head)
    if not status or not length:
        raise RequestError("an answer without status or Content-Length")
    if len(body) < int(length[1]):
        return None
    return Answer(int(status[1]), body.decode(errors="replace"), bool(CONNECTION_CLOSE.search(head)))


def judge(answer: Answer) -> str:
    """What is wrong with a complete answer. Empty: nothing."""
    if answer.status != 200:
        return f"status {answer.status}"
    if len(answer.body.split()) != 2:
        return "not a page of the service"
    return ""


def describe(error: OSError) -> str:
    """An error in few words, the same each time."""
    return error.strerror or str(error)


def seconds_until(deadline: float) -> float:
    """A timeout for a socket. Zero would have another meaning: do not block."""
    return max(deadline - time.monotonic(), 0.001)


def connect(address: str, deadline: float) -> socket.socket:
    """A connection to HAProxy."""
    try:
        connection = socket.create_connection((address, PORT), timeout=seconds_until(deadline))
    except OSError as error:
        raise RequestError(f"no connection: {describe(error)}") from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(connection: socket.socket, request: bytes, deadline: float) -> Answer:
    """Send a request and receive its answer."""
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
            answer = parse(received)
            if answer:
                return answer
    except OSError as error:
        if received:
            raise RequestError(f"half an answer: {describe(error)}") from error
        raise UnansweredError(f"no answer: {describe(error)}") from error


# Clients


class Pace:
    """When the requests of some clients are due: evenly, and each is made by the client that is free first."""

    def __init__(self, per_second: float) -> None:
        self._seconds = 1 / per_second
        self._due = time.monotonic()
        self._lock = threading.Lock()

    def next_due(self) -> float:
        """What is late is not made up for: it would be a flood after a standstill."""
        with self._lock:
            self._due = max(self._due + self._seconds, time.monotonic())
            return self._due


class Client:
    """Asks one request after the other, on one connection or each on its own."""

    def __init__(self, address: str, pace: Pace, keeps_alive: bool, slow: bool) -> None:
        self._address = address
        self._pace = pace
        self._keeps_alive = keeps_alive
        self._slow = slow
        self._connection: socket.socket | None = None

    def keep_asking(self, outcomes: list[Outcome], over: threading.Event) -> None:
        """Ask at the pace that is given."""
        while not over.wait(seconds_until(self._pace.next_due())):
            outcomes.append(self._ask())
        self._close()

    def _ask(self) -> Outcome:
        seconds = round(random.uniform(*SLOW_SECONDS), 1) if self._slow else 0.0
        path = f"/slow?seconds={seconds}" if self._slow else "/"
        server = failure = ""
        reconnected = False
        start = time.monotonic()
        try:
            answer, reconnected = self._exchange_again(path, start)
            failure = judge(answer)
            if not failure:
                server = " ".join(answer.body.split())
        except RequestError as error:
            failure = str(error)
        return Outcome(self._address, seconds, time.monotonic() - start, server, failure, reconnected)

    def _exchange_again(self, path: str, start: float) -> tuple[Answer, bool]:
        """As HTTP clients do if a connection that they have used before ends: RFC 9112, section 9.3.1."""
        used_before = self._connection is not None
        try:
            return self._exchange(path, start + TIMEOUT_SECONDS), False
        except UnansweredError:
            if not used_before or time.monotonic() - start > IDLE_CLOSE_SECONDS:
                raise
        return self._exchange(path, start + TIMEOUT_SECONDS), True

    def _exchange(self, path: str, deadline: float) -> Answer:
        if not self._connection:
            self._connection = connect(self._address, deadline)
        option = "" if self._keeps_alive else "Connection: close\r\n"
        request = f"GET {path} HTTP/1.1\r\nHost: {self._address}\r\n{option}\r\n"
        try:
            answer = exchange(self._connection, request.encode(), deadline)
        except RequestError:
            self._close()
            raise
        if answer.last or not self._keeps_alive:
            self._close()
        return answer

    def _close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


def clients(address: str, per_second: float) -> Iterator[Client]:
    """Those that ask an address so many fast requests, and some slow ones."""
    pace = Pace(per_second)
    for number in range(math.ceil(per_second * STEADY_SECONDS)):
        yield Client(address, pace, keeps_alive=number % FRESH_CLIENTS != 0, slow=False)
    pace = Pace(SLOW_REQUESTS_PER_SECOND)
    for number in range(math.ceil(SLOW_REQUESTS_PER_SECOND * max(SLOW_SECONDS))):
        yield Client(address, pace, keeps_alive=number % 2 != 0, slow=True)


# The program


def stdin_closed(within_seconds: float) -> bool:
    """Wait so long for the end of stdin."""
    readable, _writable, _failed = select.select([sys.stdin], [], [], within_seconds)
    return bool(readable) and not os.read(sys.stdin.fileno(), 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description="Keep a steady load on load balancers.")
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS")
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second, over all addresses")
    options = parser.parse_args()

    outcomes: list[Outcome] = []
    over = threading.Event()
    threads = [
        threading.Thread(target=client.keep_asking, args=(outcomes, over))
        for address in options.addresses
        for client in clients(address, options.rate / len(options.addresses))
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
    print(json.dumps(account(outcomes, time.monotonic() - start)))


if __name__ == "__main__":
    main()
