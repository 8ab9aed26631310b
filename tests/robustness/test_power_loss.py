# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A power failure right after a save does not lose what was saved.

The disk is a file system in an image file, mounted so that it writes nothing on its own for ten minutes. A copy of the
image is what remains after a power failure. To prove that the tests would notice a missing sync, each one also runs
with fsync disabled for files or folders: the change must then be lost.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

ZIPAPP = Path(__file__).parents[2] / "roles" / "hapgent" / "files" / "hapgent.pyz"

if TYPE_CHECKING:
    from tests.conftest import Agents

EDIT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from hapgent._state import StateFile
StateFile(sys.argv[2]).edit(lambda before: before.with_status("DOWN"), time.monotonic() + 15)
"""


class PowerLoss:
    """A disk whose power can fail."""

    def __init__(self, folder: Path) -> None:
        self._image = folder / "image"
        self._copy = folder / "copy"
        self._after = folder / "after"
        self.folder = folder / "disk"
        self._after.mkdir()
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(16 * 1024 * 1024)
        subprocess.run(["mkfs.ext4", "-q", self._image], check=True)
        # Without noauto_da_alloc, ext4 would write the content at a rename, for programs that do not sync.
        subprocess.run(["mount", "-o", "loop,commit=600,noauto_da_alloc", self._image, self.folder], check=True)

    def begin(self) -> None:
        """Write everything that is there now to the disk."""
        subprocess.run(["sync", "--file-system", self.folder], check=True)

    def what_is_left(self, name: str) -> Any:
        """Return the content of this file if the power failed now, or None if it could not be read."""
        shutil.copyfile(self._image, self._copy)
        subprocess.run(["mount", "-o", "loop", self._copy, self._after], check=True)
        try:
            return json.loads((self._after / name).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        finally:
            subprocess.run(["umount", self._after], check=True)

    def end(self) -> None:
        # Agents may still be running and using the disk.
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[PowerLoss]:
    loss = PowerLoss(tmp_path)
    yield loss
    loss.end()


@pytest.fixture(scope="module")
def library(compiled: Callable[[Path], Path]) -> Path:
    return compiled(Path(__file__).with_name("nosync.c"))


@pytest.mark.parametrize("forgotten", ["", "file", "folder"])
def test_state_survives_after_an_edit_has_returned(disk: PowerLoss, library: Path, forgotten: str) -> None:
    state_file = disk.folder / "state.json"
    state_file.write_bytes(b'{"status": "UP"}')
    disk.begin()
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", EDIT, ZIPAPP, state_file],
        env={"LD_PRELOAD": str(library), "NO_SYNC": forgotten},
        check=True,
    )
    assert json.loads(state_file.read_bytes()) == {"status": "DOWN"}
    assert (disk.what_is_left("state.json") == {"status": "DOWN"}) is not bool(forgotten)


@pytest.mark.parametrize("forgotten", ["", "file", "folder", "file and folder"])
def test_state_and_memory_survive_after_the_agent_has_saved(
    disk: PowerLoss, library: Path, agents: Agents, tmp_path: Path, forgotten: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(15)
        manager.bind(str(tmp_path / "notify"))
        agent = agents.start(
            state_file=disk.folder / "state.json",
            environment={
                "LD_PRELOAD": str(library),
                "NO_SYNC": forgotten,
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
            },
        )
        disk.begin()
        agent.send(signal.SIGUSR2)
        # The agent notifies the service manager after it has saved.
        while not manager.recv(4096).startswith(b"STATUS=DOWN"):
            pass
    # If fsync is disabled only for files or only for folders, a save of the memory file may still write the state.
    if forgotten in {"", "file and folder"}:
        assert (disk.what_is_left("state.json") == {"status": "DOWN"}) is not bool(forgotten)
    agent.await_answer(b"DOWN\n")
    agent.send(signal.SIGTERM)
    assert agent.await_exit() == 0
    memory = disk.what_is_left("state.json.memory")
    is_there = bool(memory) and memory["complete"] and memory["state"] == {"status": "DOWN"}
    assert is_there is not bool(forgotten)
