# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The interface to systemd: socket activation, notifications and the journal. Without systemd, it does nothing."""

from __future__ import annotations

import os
import socket
import time

FIRST_DESCRIPTOR = 3


def activated_listener() -> socket.socket | None:
    """The listening socket from socket activation, or None. Raises ValueError unless it is exactly one TCP listener.

    Source: sd_listen_fds(3).
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS")
    if count != "1":
        raise ValueError(f"LISTEN_FDS must be 1, not {count!r}: the socket unit must have exactly one ListenStream=")
    try:
        listener = socket.socket(fileno=FIRST_DESCRIPTOR)
    except OSError as error:
        raise ValueError(f"LISTEN_FDS is 1, but descriptor 3 is not a socket: {error.strerror}") from error
    is_tcp = listener.family in (socket.AF_INET, socket.AF_INET6) and listener.type == socket.SOCK_STREAM
    if not (is_tcp and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        raise ValueError(
            "the socket of LISTEN_FDS must be a TCP listener: "
            "the socket unit must have ListenStream=ADDRESS:PORT and Accept=no"
        )
    return listener


class Manager:
    """The service manager that started this process, if any. Source: sd_notify(3), sd_watchdog_enabled(3).

    No method waits for the manager, because its queue may be full, or it may be stopped.
    """

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        # Kept open, because it is most important when no more descriptors are available.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        usec = os.environ.get("WATCHDOG_USEC", "")
        ours = os.environ.get("WATCHDOG_PID") == str(os.getpid())
        self._watchdog = int(usec) / 1e6 if self._socket and ours and usec.isdigit() else 0.0
        self._due = 0.0
        self._unsent: dict[str, bytes] = {}

    def notify(self, *assignments: str) -> None:
        """Send these assignments, after those that could not be sent before.

        Only one thread may call this method and retry().
        """
        kind = assignments[0].partition("=")[0]
        # Keep only the newest message of each kind, because the queue may stay full forever.
        self._unsent.pop(kind, None)
        self._unsent[kind] = "\n".join(assignments).encode()
        self.retry()

    def retry(self) -> None:
        """Send the messages that could not be sent before."""
        for kind, message in list(self._unsent.items()):
            if not self._send(message):
                return
            del self._unsent[kind]

    def alive(self) -> float | None:
        """Notify the watchdog if it is time to. Returns the milliseconds until the next call, or None."""
        if not self._watchdog:
            return None
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._watchdog / 3
            self._send(b"WATCHDOG=1")
        return (self._due - now) * 1000

    def _send(self, message: bytes) -> bool:
        """Send a message. Returns False if it must be sent again. If the manager is gone, it must not."""
        try:
            if self._socket:
                self._socket.sendto(message, socket.MSG_DONTWAIT, self._address)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


def logs_to_journal() -> bool:
    """Whether standard error goes to the journal, which reads priority prefixes. Source: systemd.exec(5)."""
    try:
        stderr = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
