# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""hapgent_state, run by root, gives other users of the host no way to gain root's rights or to block it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ansible
import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _state

# Only root can give up its rights. CI runs as root.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can lose the rights of root")

# The agent's user and an unrelated user. Neither has a name, so they own nothing else.
OWNER, OTHER = 60123, 60124
# All processes of this user are stopped, so no other test may use it.
STOPPED = 60125
# These users can run only a Python that all users can read.
PYTHON = os.path.realpath(sys.executable)
IMPORTS = [Path(_state.__file__).parents[5], Path(ansible.__file__).parents[1]]

# This content would appear in an error message about an invalid state.
SECRET = "root-only-" * 6
STATE = b'{"status": "UP", "weight": 77}'
RUNS = 60

# Runs the module this many times with these arguments, each time in a new process, and prints the results.
RUN_MODULE = """
import json, os, sys
from ansible.module_utils import basic
from ansible_collections.hapgent.agent.plugins.modules import hapgent_state

basic._ANSIBLE_PROFILE = "legacy"
for number in range(int(sys.argv[1])):
    arguments = {**json.loads(sys.argv[2]), "weight": number}
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
    pid = os.fork()
    if pid == 0:
        hapgent_state.main()
    os.waitpid(pid, 0)
"""

# Replaces the file, the files beside it and its folder by links, pipes, folders and files until it is killed.
ATTACK = """
import contextlib, itertools, os, shutil, sys

inner, roots, aside = sys.argv[1:]
names = ["state.json", "state.json.tmp", "state.json.lock", "state.json.ansible.tmp", ""]

def write(path):
    with open(path, "w") as file:
        file.write('{"status": "DOWN"}')

def put_hard_link(path):
    os.rename(aside + "/hard", path)

puts = [
    lambda path: os.symlink(roots + "/secret", path),
    lambda path: os.symlink(roots + "/state.json", path),
    lambda path: os.symlink(roots, path),
    lambda path: os.symlink("/proc/kmsg", path),
    put_hard_link,
    os.mkfifo,
    os.mkdir,
    write,
    write,
]

def clear(path):
    with contextlib.suppress(OSError):
        if not os.path.islink(path) and os.stat(path).st_uid == 0:
            os.rename(path, aside + "/hard")
    with contextlib.suppress(OSError):
        os.unlink(path)
    shutil.rmtree(path, ignore_errors=True)

for count, (put, name) in enumerate(itertools.cycle(itertools.product(puts, names))):
    with contextlib.suppress(OSError):
        path = os.path.join(inner, name).rstrip("/")
        if not os.path.isdir(inner) or os.path.islink(inner):
            clear(inner)
            os.mkdir(inner)
            write(inner + "/state.json")
        clear(path)
        put(path)
    if count == 100:
        print("attacking", flush=True)
"""

# Locks these files and folders if it can open them, until its input ends.
LOCK = """
import fcntl, os, sys
for path in sys.argv[1:]:
    try:
        fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
        print("locked", path)
    except PermissionError:
        print("not permitted", path)
sys.stdout.flush()
sys.stdin.read()
"""

# Stops all other processes of its user until it is killed.
STOP = """
import contextlib, os, signal
print("stopping", flush=True)
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.stat("/proc/" + name).st_uid == os.getuid():
                    os.kill(int(name), signal.SIGSTOP)
"""


class Folders:
    """A folder of the agent's user inside a folder of root, with files of root beside it."""

    def __init__(self, base: Path) -> None:
        base.chmod(0o755)
        self.roots = base / "roots"
        self.roots.mkdir()
        self.secret = self.roots / "secret"
        self.secret.write_text(json.dumps(SECRET))
        self.secret.chmod(0o600)
        (self.roots / "state.json").write_bytes(STATE)
        (self.roots / "private").mkdir(mode=0o700)
        self.outer = self._make(base / "outer")
        self.aside = self._make(self.outer / "aside")
        self.inner = self._make(self.outer / "inner")
        self.file = self.inner / "state.json"
        self.file.write_bytes(STATE)
        os.chown(self.file, OWNER, OWNER)
        # If fs.protected_hardlinks is off, users can create hard links to any file.
        os.link(self.secret, self.aside / "hard")

    @staticmethod
    def _make(path: Path) -> Path:
        path.mkdir()
        os.chown(path, OWNER, OWNER)
        return path

    def of_root(self) -> dict[str, tuple[Any, ...]]:
        """Values that differ after a file or folder of root was changed."""
        found = {}
        for path in [self.roots, *sorted(self.roots.rglob("*"))]:
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (
                status.st_ino,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                content,
            )
        return found


@pytest.fixture
def folders() -> Iterator[Folders]:
    # Only the user who runs pytest can enter pytest's own folder.
    base = Path(tempfile.mkdtemp(dir="/tmp"))
    yield Folders(base)
    shutil.rmtree(base)


def run_module(file: Path, runs: int = 1, **arguments: Any) -> list[dict[str, Any]]:
    """Run the module as root this many times, and return its results."""
    given = json.dumps({"state_file": str(file), "notify": False, "timeout": 5, **arguments})
    done = subprocess.run(
        [sys.executable, "-c", RUN_MODULE, str(runs), given],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, IMPORTS))},
    )
    assert SECRET[:20] not in done.stdout + done.stderr
    assert done.stderr == ""
    results = [json.loads(line) for line in done.stdout.splitlines() if line]
    assert len(results) == runs
    return results


def as_user(user: int, code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PYTHON, "-I", "-S", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        user=user,
        group=user,
        extra_groups=[],
    )


# What the agent's user does to the file or its folder.
TRAPS: dict[str, Callable[[Folders], object]] = {
    "the file is a link to a secret": lambda folders: replace(folders.file).symlink_to(folders.secret),
    "the file is a link to a state of root": lambda folders: replace(folders.file).symlink_to(
        folders.roots / "state.json"
    ),
    "the file is a link to a device that blocks": lambda folders: replace(folders.file).symlink_to("/proc/kmsg"),
    "the file is a secret": lambda folders: (folders.aside / "hard").rename(folders.file),
    "the file is a pipe": lambda folders: os.mkfifo(replace(folders.file)),
    "the file is a folder": lambda folders: replace(folders.file).mkdir(),
    "the folder is a link": lambda folders: replace(folders.inner).symlink_to(folders.roots),
    "the folder is a link to nothing": lambda folders: replace(folders.inner).symlink_to(folders.roots / "new"),
}

# What the agent's user does to the lock, with or without a state file.
LOCK_TRAPS: dict[str, Callable[[Folders], object]] = {
    "the lock is a link to a secret": lambda folders: beside(folders, ".lock").symlink_to(folders.secret),
    "the lock is a link to nothing": lambda folders: beside(folders, ".lock").symlink_to(folders.roots / "new"),
    "the lock is a secret": lambda folders: (folders.aside / "hard").rename(beside(folders, ".lock")),
    "the lock is a pipe": lambda folders: os.mkfifo(beside(folders, ".lock")),
    "the lock is a folder": lambda folders: beside(folders, ".lock").mkdir(),
}


def replace(path: Path) -> Path:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return path


def beside(folders: Folders, suffix: str) -> Path:
    return folders.file.with_name(folders.file.name + suffix)


@pytest.mark.parametrize("create", [False, True], ids=["", "create"])
@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
def test_trap_is_an_error(folders: Folders, trap: Callable[[Folders], object], create: bool) -> None:
    trap(folders)
    assert_refused(folders, create)


@pytest.mark.parametrize("create", [False, True], ids=["", "create"])
@pytest.mark.parametrize("trap", LOCK_TRAPS.values(), ids=LOCK_TRAPS)
def test_trap_instead_of_the_lock_is_an_error(
    folders: Folders, trap: Callable[[Folders], object], create: bool
) -> None:
    if create:
        folders.file.unlink()
    trap(folders)
    assert_refused(folders, create)


def assert_refused(folders: Folders, create: bool) -> None:
    before = folders.of_root()
    [result] = run_module(folders.file, status="DRAIN", create=create)
    assert result["failed"]
    assert "Nothing was changed" in result["msg"]
    assert folders.of_root() == before


def test_link_instead_of_the_temporary_file_is_not_followed(folders: Folders) -> None:
    beside(folders, ".tmp").symlink_to(folders.secret)
    before = folders.of_root()
    [result] = run_module(folders.file, status="DRAIN")
    assert result["changed"]
    assert folders.of_root() == before


def test_new_files_belong_to_the_owner_of_the_folder(folders: Folders) -> None:
    [result] = run_module(folders.file, status="DRAIN")
    assert result["changed"]
    replace(folders.file)
    [result] = run_module(folders.file, status="DRAIN", create=True)
    assert result["changed"]
    assert {path.name: path.stat().st_uid for path in folders.inner.iterdir()} == {
        "state.json": OWNER,
        "state.json.lock": OWNER,
    }


def test_files_of_root_are_safe_while_the_agents_user_replaces_its_own(folders: Folders) -> None:
    before = folders.of_root()
    attack = as_user(OWNER, ATTACK, str(folders.inner), str(folders.roots), str(folders.aside))
    try:
        assert attack.stdout
        assert attack.stdout.readline() == "attacking\n"
        results = run_module(folders.file, RUNS, status="DRAIN")
        results += run_module(folders.file, RUNS, status="DRAIN", create=True)
        assert attack.poll() is None
    finally:
        attack.kill()
        attack.communicate()
    assert folders.of_root() == before
    # Every run has ended with a regular result and without a crash.
    assert all("msg" in result if result.get("failed") else "changed" in result for result in results)


def test_another_user_cannot_block_the_module_with_locks(folders: Folders) -> None:
    run_module(folders.file, status="UP")
    lock = beside(folders, ".lock")
    paths = [str(path) for path in (folders.outer, folders.inner, folders.file, lock)]
    neighbour = as_user(OTHER, LOCK, *paths)
    try:
        assert neighbour.stdout
        output = [neighbour.stdout.readline() for _path in paths]
        assert output == [*(f"locked {path}\n" for path in paths[:3]), f"not permitted {lock}\n"]
        [result] = run_module(folders.file, status="DRAIN", timeout=1)
        assert result["changed"]
    finally:
        neighbour.kill()
        neighbour.communicate()


def test_module_ends_if_the_agents_user_stops_its_process(folders: Folders) -> None:
    for folder in (folders.outer, folders.inner):
        os.chown(folder, STOPPED, STOPPED)
    run_module(folders.file, status="UP")
    before = folders.file.read_bytes()
    # The held lock gives the attack time to stop the module's process.
    lock = as_user(STOPPED, LOCK, str(beside(folders, ".lock")))
    assert lock.stdout
    assert lock.stdout.readline() == f"locked {beside(folders, '.lock')}\n"
    attack = as_user(STOPPED, STOP)
    try:
        [result] = run_module(folders.file, status="DRAIN", timeout=3)
    finally:
        for process in (attack, lock):
            process.kill()
            process.communicate()
    assert result["failed"]
    assert folders.file.read_bytes() == before
