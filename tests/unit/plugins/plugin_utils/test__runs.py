# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run counts as ended only if its process would be visible here."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.plugin_utils import _runs


def run_of(pid: int) -> str:
    *here, _pid, _started = _runs.current().split(" ")
    return f"{' '.join(here)} {pid} {_runs._started(pid)}"


def test_plugins_name_the_run_that_has_started_them() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_runs.current) == _runs.current()


def test_run_has_ended_when_its_process_has() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        run = run_of(process.pid)
        assert _runs.has_ended(run) is False
        # Another process may get its number.
        assert _runs.has_ended(f"{run}1") is True
        process.communicate(b"\n")
    assert _runs.has_ended(run) is True


@pytest.mark.parametrize(
    "change",
    [
        lambda here, process: f"x{here} {process}",
        lambda here, process: f"{here[:-1]}1] {process}",
        lambda _here, process: process,
        lambda here, _process: here,
        lambda here, _process: f"{here} 99999999999 1",
        lambda here, _process: f"{here} -1 1",
        lambda here, _process: f"{here} 1 x",
        lambda here, _process: f"{here} 0 1",
        lambda _here, _process: "",
    ],
)
def test_unknown_run_does_not_count_as_ended(change: Any) -> None:
    here, _space, _process = _runs.current().partition("] ")
    assert _runs.has_ended(change(f"{here}]", "40000000 1")) is False
    assert _runs.has_ended(f"{here}] 40000000 1") is True


def test_nothing_is_known_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = _runs.current()
    monkeypatch.setattr(_runs, "PROC", tmp_path)
    assert _runs.has_ended(run) is False
    assert _runs.has_ended(_runs.current()) is False
