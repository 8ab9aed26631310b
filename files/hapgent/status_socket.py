# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The status socket. Programs that connect to it receive the agent's status, and cannot change anything."""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
import time
import typing as t

RETRY_SECONDS = 0.1
# A reader that does not receive the whole status within this time is disconnected.
PATIENCE_SECONDS = 1.0
# The number of concurrent readers, because each needs memory. If there is one more, the oldest one is disconnected.
MAX_READERS = 8


class StatusSocket:
    """A UNIX socket that sends one document to each reader, in its own thread. No reader waits for another."""

    def __init__(self, path: str) -> None:
        """Start to listen. Raises OSError, also if another agent listens on the same path."""
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._remove_leftover()
        # No other user can connect before the mode is set, because connecting requires write permission.
        self._listener.bind(path)
        os.chmod(path, 0o660)
        self._listener.listen(64)

    def serve(self, document: t.Callable[[], bytes]) -> None:
        """Send the document to each program that connects. C(document) is called for each connection."""
        threading.Thread(target=self._serve, args=(document,), daemon=True).start()

    def close(self) -> None:
        """Remove the socket, so that no program can connect any more."""
        try:
            os.unlink(self._path)
        except OSError:
            pass

    def _remove_leftover(self) -> None:
        """Remove the socket of an agent that was killed. Raises OSError if a running agent uses it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.settimeout(PATIENCE_SECONDS)
            try:
                other.connect(self._path)
            except ConnectionRefusedError:
                # Connecting to any other kind of file is refused too, but the agent must not remove such a file.
                if stat.S_ISSOCK(os.lstat(self._path).st_mode):
                    os.unlink(self._path)
            except FileNotFoundError:
                pass
            else:
                raise OSError(None, "another agent listens there")

    def _serve(self, document: t.Callable[[], bytes]) -> None:
        self._listener.setblocking(False)
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        # In the order of connecting, which is also the order of deadlines.
        readers: dict[int, _Reader] = {}

        def leave(descriptor: int) -> None:
            waiting.unregister(descriptor)
            readers.pop(descriptor).connection.close()

        while True:
            patience = min((reader.deadline for reader in readers.values()), default=None)
            timeout = None if patience is None else max(0.0, patience - time.monotonic()) * 1000
            for descriptor, _event in waiting.poll(timeout):
                if descriptor != self._listener.fileno():
                    if readers[descriptor].take():
                        leave(descriptor)
                    continue
                try:
                    connection = self._listener.accept()[0]
                except OSError as error:
                    if not isinstance(error, (BlockingIOError, ConnectionError)):
                        # Descriptors or memory have run out, and checks need them more.
                        time.sleep(RETRY_SECONDS)
                    break
                if len(readers) >= MAX_READERS:
                    leave(next(iter(readers)))
                readers[connection.fileno()] = _Reader(connection, document())
                waiting.register(connection, select.POLLOUT)
                # Poll again, because the event of a reader that was just disconnected may still be in the list.
                break
            now = time.monotonic()
            for descriptor in [one for one, reader in readers.items() if now >= reader.deadline]:
                leave(descriptor)


class _Reader:
    """One connected reader, and the part of the document that is still to be sent."""

    def __init__(self, connection: socket.socket, document: bytes) -> None:
        self.connection = connection
        self.connection.setblocking(False)
        self.deadline = time.monotonic() + PATIENCE_SECONDS
        self._rest = memoryview(document)

    def take(self) -> bool:
        """Send as much as the reader accepts now. Returns whether it has everything or has disconnected."""
        try:
            self._rest = self._rest[self.connection.send(self._rest) :]
        except BlockingIOError:
            return False
        except OSError:
            return True
        return not self._rest
