# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Adds each failed test to the table of stages, because what a stage prints after a failure is long.

With the first one of a stage are the last lines that were logged, because later ones are often its consequence.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / ".cache" / "stages"
LOGGED_LINES = 4
WIDTH = 160

_failed: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add the test and the error. Pytest calls this in each plugin and conftest.py that has it.

    With several workers, each report arrives in the process that started them too; only that one records it.
    """
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        errors = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        text = " ".join(errors[0][1:].split()) if errors else f"failed in {report.when}"
        lines = [f"  {report.nodeid.rpartition('/')[2]}: {text}"]
        if not _failed:
            for title, log in report.sections:
                if title.startswith("log of "):
                    lines += [f"    {title}: {line}" for line in log.splitlines()[-LOGGED_LINES:]]
        _failed.append(report.nodeid)
        with TABLE.open("a", encoding="utf-8") as table:
            table.writelines(f"{line[:WIDTH]}\n" for line in lines)
