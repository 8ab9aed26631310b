# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What tests need that takes long to make: made once for all test processes that run side by side."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ZIPAPP = ROOT / "roles" / "hapgent" / "files" / "hapgent.pyz"


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, which C(make) fills unless it exists."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f"{folder.name}.{os.getpid()}")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            new.mkdir()
            make(new)
            new.rename(folder)
    return folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder of this name for temporary files, which C(make) fills once in this run of the tests."""
    is_one_of_many = "PYTEST_XDIST_WORKER" in os.environ
    return _made((factory.getbasetemp().parent if is_one_of_many else factory.getbasetemp()) / name, make)


def _unpack(folder: Path) -> None:
    with zipfile.ZipFile(ZIPAPP) as archive:
        archive.extractall(folder)


# The agent that the role ships, as a folder. Python runs it like the zipapp, but uses what it has compiled there, so
# that an agent starts in half the time.
UNPACKED = _made(ROOT / ".cache" / "unpacked" / hashlib.sha256(ZIPAPP.read_bytes()).hexdigest(), _unpack)


@functools.cache
def compiled_for(python: str) -> Path:
    """The agent as a folder that this interpreter has compiled, so that an agent writes nothing there at its start."""

    def compile_all(_marker: Path) -> None:
        subprocess.run([python, "-I", "-m", "compileall", "-q", UNPACKED], check=True)

    _made(UNPACKED.with_name(f"{UNPACKED.name}-{hashlib.sha256(python.encode()).hexdigest()}"), compile_all)
    return UNPACKED
