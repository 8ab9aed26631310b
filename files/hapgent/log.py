# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Log lines to standard error, with a priority prefix if it is connected to the journal.

A line that a pipe or the journal does not accept immediately is dropped and counted, so that nothing waits for a reader
of the log.
"""

from __future__ import annotations

import os
import select
import threading

from hapgent import systemd

_IN_JOURNAL = systemd.logs_to_journal()
# PIPE_BUF: a pipe that is ready for writing accepts this many bytes in one piece.
_MAX_BYTES = 4096


class _Lines:
    """Writes whole lines to standard error. May be used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dropped = 0

    def write(self, prefix: str, text: str) -> None:
        """Write a line. If lines were dropped before, write their number first."""
        with self._lock:
            if not self._takes_one():
                self._dropped += 1
                return
            if self._dropped:
                text = f"{self._dropped} log lines were dropped because the log was not read\n{prefix}{text}"
                self._dropped = 0
            line = f"{prefix}{text}".encode("utf-8", "backslashreplace")[: _MAX_BYTES - 1]
            try:
                os.write(2, line + b"\n")
            except OSError:
                pass  # There is nowhere to log this, and answering checks is more important.

    @staticmethod
    def _takes_one() -> bool:
        waiting = select.poll()
        waiting.register(2, select.POLLOUT)
        return bool(waiting.poll(0))


_write = _Lines().write


def info(text: str) -> None:
    """Log a normal event."""
    _write("<6>" if _IN_JOURNAL else "hapgent: ", text)


def notice(text: str) -> None:
    """Log a normal event that is kept where others are not."""
    _write("<5>" if _IN_JOURNAL else "hapgent: ", text)


def error(text: str) -> None:
    """Log a problem that needs attention."""
    _write("<3>" if _IN_JOURNAL else "hapgent: ", text)
