# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs many clients of one agent, well-behaved or hostile, in a separate process.

usage: clients.py KIND IP PORT COUNT [CHECKS]

COUNT clients run the function KIND at the same time, until standard input closes or they have done CHECKS checks. The
program prints one line when they have started, and at the end a JSON object with how often each answer or error
occurred.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

PATIENCE_SECONDS = 15.0
# The same timeout as the value of SO_RCVTIMEO.
PATIENCE = struct.pack("@ll", int(PATIENCE_SECONDS), 0)
# The value of SO_LINGER that makes close() send a reset.
RESET = b"\1\0\0\0\0\0\0\0"

Address = tuple[str, int]

enough = threading.Event()
met: Counter[str] = Counter()


def ask(address: Address, count: int, checks: int) -> None:
    """Poll like HAProxy: connect, read to the end, close. COUNT clients are connected at any time."""
    waiting: deque[socket.socket] = deque()
    started = 0
    while waiting or not started:
        while len(waiting) < count and not enough.is_set() and (not checks or started < checks):
            started += 1
            client = socket.socket()
            # settimeout would make Python call poll() before each operation.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, PATIENCE)
            try:
                client.connect(address)
            except OSError as error:
                met[failed(error)] += 1
            else:
                waiting.append(client)
        if waiting:
            met[answer_to(waiting.popleft())] += 1


def failed(error: OSError) -> str:
    """Stop after the first error: each further one might take PATIENCE_SECONDS."""
    enough.set()
    return repr(error)


def answer_to(client: socket.socket) -> str:
    answer = b""
    try:
        with client:
            while some := client.recv(4096):
                answer += some
    except OSError as error:
        return failed(error)
    return answer.decode("latin-1")


def send(address: Address, count: int, _checks: int) -> None:
    """Send without end."""
    in_threads(count, lambda: until_it_fails(address, b"x" * 65_536, 0))


def drip(address: Address, count: int, _checks: int) -> None:
    """Send byte by byte."""
    in_threads(count, lambda: until_it_fails(address, b"x", 0.001))


def reset(address: Address, count: int, _checks: int) -> None:
    """Connect and reset, at once or after the answer."""

    def connect_and_reset() -> None:
        for wait_for_answer in (False, True):
            client = socket.create_connection(address, PATIENCE_SECONDS)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if wait_for_answer:
                client.recv(4096)
            client.close()
            met["reset"] += 1

    in_threads(count, connect_and_reset)


def until_it_fails(address: Address, payload: bytes, pause: float) -> None:
    with socket.create_connection(address, PATIENCE_SECONDS) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not enough.wait(pause):
            client.sendall(payload)
            met["sent"] += 1


def in_threads(count: int, work: Callable[[], None]) -> None:
    def repeat() -> None:
        while not enough.is_set():
            try:
                work()
            except OSError:
                pass

    threads = [threading.Thread(target=repeat) for _count in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def await_end_of_input() -> None:
    sys.stdin.read()
    enough.set()


def report_start() -> None:
    while not met:
        time.sleep(0.005)
    print("started", flush=True)


def main() -> None:
    kind, ip, port, count, *rest = sys.argv[1:]
    reporting = threading.Thread(target=report_start)
    reporting.start()
    threading.Thread(target=await_end_of_input, daemon=True).start()
    kinds = {"ask": ask, "send": send, "drip": drip, "reset": reset}
    kinds[kind]((ip, int(port)), int(count), int(rest[0]) if rest else 0)
    reporting.join()
    print(json.dumps(met), flush=True)


if __name__ == "__main__":
    main()
