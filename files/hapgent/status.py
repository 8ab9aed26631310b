# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The status socket: whoever may connect to it gets the agent's status and can change nothing."""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
import time
import typing as t

RETRY_SECONDS = 0.1
# A reader that does not take its status in this time goes without.
PATIENCE_SECONDS = 1.0
# So many at once, as each needs memory; the one that has had the longest time goes for the next.
MOST_READERS = 8


class StatusSocket:
    """A UNIX socket that tells one document to each reader, in a thread of its own. No reader waits for another."""

    def __init__(self, path: str) -> None:
        """Listen. Raises OSError, also if another agent listens there."""
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._remove_leftover()
        # Until the mode is set, nobody else can connect: that takes write permission.
        self._listener.bind(path)
        os.chmod(path, 0o660)
        self._listener.listen(64)

    def serve(self, document: t.Callable[[], bytes]) -> None:
        """Tell the document, as it is then, to everybody who comes."""
        threading.Thread(target=self._serve, args=(document,), daemon=True).start()

    def close(self) -> None:
        """Nobody can come any more."""
        try:
            os.unlink(self._path)
        except OSError:
            pass

    def _remove_leftover(self) -> None:
        """The socket of an agent that was killed is in the way, that of one that runs is its own."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.settimeout(PATIENCE_SECONDS)
            try:
                other.connect(self._path)
            except ConnectionRefusedError:
                # So does a file of any other kind, and that is not the agent's to remove.
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
        # In the order in which they came, and so in that of their deadlines.
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
                        # Out of descriptors or memory: the checks need them more.
                        time.sleep(RETRY_SECONDS)
                    break
                if len(readers) >= MOST_READERS:
                    leave(next(iter(readers)))
                readers[connection.fileno()] = _Reader(connection, document())
                waiting.register(connection, select.POLLOUT)
                # The others are looked at anew: one of them may have had to leave.
                break
            now = time.monotonic()
            for descriptor in [one for one, reader in readers.items() if now >= reader.deadline]:
                leave(descriptor)


class _Reader:
    """One who reads the status, and what is still to be sent."""

    def __init__(self, connection: socket.socket, document: bytes) -> None:
        self.connection = connection
        self.connection.setblocking(False)
        self.deadline = time.monotonic() + PATIENCE_SECONDS
        self._rest = memoryview(document)

    def take(self) -> bool:
        """Send what it takes now. Returns whether it is done, or gone."""
        try:
            self._rest = self._rest[self.connection.send(self._rest) :]
        except BlockingIOError:
            return False
        except OSError:
            return True
        return not self._rest
