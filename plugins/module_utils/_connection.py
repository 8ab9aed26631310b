# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Connect to a host within a deadline that includes the name lookup."""

from __future__ import annotations

import errno
import os
import queue
import socket
import threading
import typing as t

from ._deadline import seconds_until


def connect(host: str, port: int, deadline: float) -> socket.socket:
    """Connect to the first address of the host that accepts. Raises OSError.

    Each address gets an equal share of the time left until C(deadline), which is on the monotonic clock.
    """
    addresses = _resolve(host, port, deadline)
    problem: OSError = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for tried, (family, address) in enumerate(addresses):
        try:
            return connect_to(family, address, seconds_until(deadline) / (len(addresses) - tried))
        except OSError as error:
            problem = error
    raise problem


def connect_to(family: socket.AddressFamily, address: t.Any, seconds: float) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _resolve(host: str, port: int, deadline: float) -> list[tuple[socket.AddressFamily, t.Any]]:
    """The addresses of a host. The system's resolver has no deadline, so it runs in a thread."""
    found: queue.SimpleQueue[list[t.Any] | Exception] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.put(error)

    # A daemon thread does not keep the module from exiting.
    threading.Thread(target=resolve, daemon=True).start()
    try:
        result = found.get(timeout=seconds_until(deadline))
    except queue.Empty as error:
        raise TimeoutError("the name server does not respond") from error
    if isinstance(result, UnicodeError):
        raise socket.gaierror(socket.EAI_NONAME, "not a host name")
    if isinstance(result, Exception):
        raise result
    return [(family, address) for family, _type, _protocol, _name, address in result]
