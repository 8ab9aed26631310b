# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Log lines to standard error, with the priority that the journal understands where it listens."""

from __future__ import annotations

import os

from hapgent import systemd

_IN_JOURNAL = systemd.logs_to_journal()


def info(text: str) -> None:
    """Something happened as it should."""
    _write("<6>" if _IN_JOURNAL else "hapgent: ", text)


def error(text: str) -> None:
    """Somebody has to look at this."""
    _write("<3>" if _IN_JOURNAL else "hapgent: ", text)


def _write(prefix: str, text: str) -> None:
    try:
        os.write(2, f"{prefix}{text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # Nowhere to tell it; the checks are more important.
