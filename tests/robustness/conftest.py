# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures for tests that try to break an agent by floods and mounts: run them with tests/tools/isolated."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents

CLIENTS = Path(__file__).with_name("clients.py")
# Long enough for all checks of a test on a slow and busy machine. A test waits this long only if it fails.
PATIENCE_SECONDS = 240.0
# Enough for 5,000 connections and some more files.
NEEDED_DESCRIPTORS = 6000


class Figures(NamedTuple):
    """What must not grow in an agent: its private memory in kilobytes, its descriptors and its threads."""

    dirty: int
    descriptors: int
    threads: int


class Observer:
    """Measures an agent's memory, descriptors and threads, and reads its status."""

    @staticmethod
    def figures(agent: Agent) -> Figures:
        rollup = Path(f"/proc/{agent.pid}/smaps_rollup").read_text(encoding="ascii")
        threads = os.listdir(f"/proc/{agent.pid}/task")
        return Figures(int(rollup.partition("Private_Dirty:")[2].split()[0]), len(agent.opened()), len(threads))

    def assert_flat(self, agent: Agent, before: Figures, kilobytes: int = 512) -> None:
        """Fail if the agent needs more than before, apart from connections and files that are open at this moment."""
        now = self.figures(agent)
        deadline = time.monotonic() + 5
        while now.descriptors > before.descriptors + 1 and time.monotonic() < deadline:
            # The agent may be saving files, which takes as long as the disk needs.
            time.sleep(0.01)
            now = self.figures(agent)
        assert now.dirty <= before.dirty + kilobytes, f"{before} -> {now}"
        assert now.descriptors <= before.descriptors + 1, f"{before} -> {now}"
        assert now.threads == before.threads, f"{before} -> {now}"

    @staticmethod
    def status(path: Path) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as reader:
            reader.settimeout(15)
            reader.connect(str(path))
            document: dict[str, Any] = json.loads(b"".join(iter(lambda: reader.recv(65_536), b"")))
        return document


class Clients(Counter[str]):
    """Runs clients of one agent in a separate process, see clients.py. Then counts their answers and errors."""

    def __init__(self, agent: Agent, kind: str, count: int, checks: int = 0) -> None:
        super().__init__()
        command = [sys.executable, "-I", "-S", str(CLIENTS), kind, agent.ip, str(agent.port), str(count)]
        self._process = subprocess.Popen([*command, str(checks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout
        self._process.stdout.readline()

    def finish(self) -> None:
        """Wait until they have done all their checks."""
        self._process.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        """Let the clients finish their current checks, then collect the counts."""
        try:
            output, _nothing = self._process.communicate(timeout=30)
        finally:
            self._process.kill()
        self.update(json.loads(output))


ClientsOf = Callable[..., contextlib.AbstractContextManager[Clients]]


@pytest.fixture
def agents(zipapps: Agents) -> Agents:
    """Starts agents in the form that the role installs, because these tests measure their memory."""
    return zipapps


@pytest.fixture
def clients() -> ClientsOf:
    """A context manager in which this many clients of this kind use an agent."""

    @contextlib.contextmanager
    def at_work(agent: Agent, kind: str, count: int, checks: int = 0) -> Iterator[Clients]:
        started = Clients(agent, kind, count, checks)
        try:
            yield started
        finally:
            started.stop()

    return at_work


@pytest.fixture
def observer() -> Observer:
    """Measures an agent's memory, descriptors and threads, and reads its status."""
    return Observer()


@pytest.fixture(scope="session", autouse=True)
def _isolated() -> None:
    if "ISOLATED" not in os.environ:
        pytest.exit("these tests flood the network and mount file systems: run them with tests/tools/isolated", 2)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= NEEDED_DESCRIPTORS, f"needs {NEEDED_DESCRIPTORS} descriptors, see ulimit -Hn"
    resource.setrlimit(resource.RLIMIT_NOFILE, (NEEDED_DESCRIPTORS, hard))


class Disk:
    """A small disk that can be filled or made read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with self._filler.open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))

    def make_room(self) -> None:
        self._filler.unlink()

    def make_read_only(self) -> None:
        self._remount("ro")

    def make_writable(self) -> None:
        self._remount("rw")

    def _remount(self, option: str) -> None:
        # Remounting fails while the agent has a file open for writing, so try again.
        for _attempt in range(100):
            if subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=False).returncode == 0:
                return
        pytest.fail(f"the disk cannot be remounted {option}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A small disk for the agent's files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
    yield Disk(folder)
    # Agents may still be running and using the disk.
    subprocess.run(["umount", "--lazy", folder], check=True)
