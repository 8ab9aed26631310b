# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Log lines to standard error, with the priority that the journal understands where it listens.

A line that a pipe or the journal does not take at once is dropped and counted: nothing waits for a reader of the log.
"""

from __future__ import annotations

import os
import select
import threading

from hapgent import systemd

_IN_JOURNAL = systemd.logs_to_journal()
# What a pipe takes as a whole, once it takes anything: PIPE_BUF.
_MAX_BYTES = 4096


class _Lines:
    """Standard error, for whole lines from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dropped = 0

    def write(self, prefix: str, text: str) -> None:
        """Write a line, and before it how many were dropped."""
        with self._lock:
            if not self._takes_one():
                self._dropped += 1
                return
            if self._dropped:
                text = f"{self._dropped} lines of this log were dropped, as it was not read\n{prefix}{text}"
                self._dropped = 0
            line = f"{prefix}{text}".encode("utf-8", "backslashreplace")[: _MAX_BYTES - 1]
            try:
                os.write(2, line + b"\n")
            except OSError:
                pass  # Nowhere to log it; the checks are more important.

    @staticmethod
    def _takes_one() -> bool:
        waiting = select.poll()
        waiting.register(2, select.POLLOUT)
        return bool(waiting.poll(0))


_write = _Lines().write


def info(text: str) -> None:
    """Something happened as it should."""
    _write("<6>" if _IN_JOURNAL else "hapgent: ", text)


def error(text: str) -> None:
    """Somebody has to look at this."""
    _write("<3>" if _IN_JOURNAL else "hapgent: ", text)
