# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module hapgent_state, run by root, beside users who would like to have the rights of root."""

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

# CI runs as root: nobody else could give rights away.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can lose the rights of root")

# The agent's user, and one who has nothing to do with it. Neither has a name, so that nothing else is theirs.
OWNER, OTHER = 60123, 60124
# All of this user's processes are stopped, also those of tests that run at the same time.
STOPPED = 60125
# A user who can read no more than everybody else needs a Python that everybody can read.
PYTHON = os.path.realpath(sys.executable)
IMPORTS = [Path(_state.__file__).parents[5], Path(ansible.__file__).parents[1]]

# What would be shown of a file that is no state.
SECRET = "root-only-" * 6
STATE = b'{"status": "UP", "weight": 77}'
RUNS = 60

# Runs the module so often with these arguments, each in a process of its own, and prints the results.
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

# Puts one thing after the other in place of the file, of what is beside it, and of its folder, until it is killed.
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

# Locks what is there, as far as it can be opened, until its input ends.
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

# Stops all other processes of its user, until it is killed.
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


class House:
    """A folder of the agent's user in one of root's, and files of root's beside it."""

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
        # As if the kernel let everybody make hard links to everything: fs.protected_hardlinks may be off.
        os.link(self.secret, self.aside / "hard")

    @staticmethod
    def _make(path: Path) -> Path:
        path.mkdir()
        os.chown(path, OWNER, OWNER)
        return path

    def of_root(self) -> dict[str, tuple[Any, ...]]:
        """All that would be different if something of root's had been changed."""
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
def house() -> Iterator[House]:
    # Not below pytest's folder, which only its user can enter.
    base = Path(tempfile.mkdtemp(dir="/tmp"))
    yield House(base)
    shutil.rmtree(base)


def run_module(file: Path, runs: int = 1, **arguments: Any) -> list[dict[str, Any]]:
    """What the module returns, run by root so often."""
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


# What the agent's user puts in place of what.
TRAPS: dict[str, Callable[[House], object]] = {
    "the file is a link to a secret": lambda house: replace(house.file).symlink_to(house.secret),
    "the file is a link to a state of root": lambda house: replace(house.file).symlink_to(house.roots / "state.json"),
    "the file is a link to what waits": lambda house: replace(house.file).symlink_to("/proc/kmsg"),
    "the file is a secret": lambda house: (house.aside / "hard").rename(house.file),
    "the file is a pipe": lambda house: os.mkfifo(replace(house.file)),
    "the file is a folder": lambda house: replace(house.file).mkdir(),
    "the folder is a link": lambda house: replace(house.inner).symlink_to(house.roots),
    "the folder is a link to nothing": lambda house: replace(house.inner).symlink_to(house.roots / "new"),
}

# For these, it does not matter whether there is a file.
LOCK_TRAPS: dict[str, Callable[[House], object]] = {
    "the lock is a link to a secret": lambda house: beside(house, ".lock").symlink_to(house.secret),
    "the lock is a link to nothing": lambda house: beside(house, ".lock").symlink_to(house.roots / "new"),
    "the lock is a secret": lambda house: (house.aside / "hard").rename(beside(house, ".lock")),
    "the lock is a pipe": lambda house: os.mkfifo(beside(house, ".lock")),
    "the lock is a folder": lambda house: beside(house, ".lock").mkdir(),
}


def replace(path: Path) -> Path:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return path


def beside(house: House, suffix: str) -> Path:
    return house.file.with_name(house.file.name + suffix)


@pytest.mark.parametrize("create", [False, True], ids=["", "create"])
@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
def test_a_trap_is_an_error(house: House, trap: Callable[[House], object], create: bool) -> None:
    trap(house)
    assert_refused(house, create)


@pytest.mark.parametrize("create", [False, True], ids=["", "create"])
@pytest.mark.parametrize("trap", LOCK_TRAPS.values(), ids=LOCK_TRAPS)
def test_a_trap_instead_of_the_lock_is_an_error(house: House, trap: Callable[[House], object], create: bool) -> None:
    if create:
        house.file.unlink()
    trap(house)
    assert_refused(house, create)


def assert_refused(house: House, create: bool) -> None:
    before = house.of_root()
    [result] = run_module(house.file, status="DRAIN", create=create)
    assert result["failed"]
    assert "Nothing was changed" in result["msg"]
    assert house.of_root() == before


def test_what_a_link_in_place_of_the_temporary_file_leads_to_is_not_touched(house: House) -> None:
    beside(house, ".tmp").symlink_to(house.secret)
    before = house.of_root()
    [result] = run_module(house.file, status="DRAIN")
    assert result["changed"]
    assert house.of_root() == before


def test_the_file_and_what_is_beside_it_belong_to_the_owner_of_the_folder(house: House) -> None:
    [result] = run_module(house.file, status="DRAIN")
    assert result["changed"]
    replace(house.file)
    [result] = run_module(house.file, status="DRAIN", create=True)
    assert result["changed"]
    assert {path.name: path.stat().st_uid for path in house.inner.iterdir()} == {
        "state.json": OWNER,
        "state.json.lock": OWNER,
    }


def test_the_agents_user_swaps_everything_while_root_works(house: House) -> None:
    before = house.of_root()
    attack = as_user(OWNER, ATTACK, str(house.inner), str(house.roots), str(house.aside))
    try:
        assert attack.stdout
        assert attack.stdout.readline() == "attacking\n"
        results = run_module(house.file, RUNS, status="DRAIN")
        results += run_module(house.file, RUNS, status="DRAIN", create=True)
        assert attack.poll() is None
    finally:
        attack.kill()
        attack.communicate()
    assert house.of_root() == before
    # None has asked for more than it may, and none has crashed.
    assert all("msg" in result if result.get("failed") else "changed" in result for result in results)


def test_another_user_locks_all_that_can_be_opened(house: House) -> None:
    run_module(house.file, status="UP")
    lock = beside(house, ".lock")
    paths = [str(path) for path in (house.outer, house.inner, house.file, lock)]
    neighbour = as_user(OTHER, LOCK, *paths)
    try:
        assert neighbour.stdout
        said = [neighbour.stdout.readline() for _path in paths]
        assert said == [*(f"locked {path}\n" for path in paths[:3]), f"not permitted {lock}\n"]
        [result] = run_module(house.file, status="DRAIN", timeout=1)
        assert result["changed"]
    finally:
        neighbour.kill()
        neighbour.communicate()


def test_the_agents_user_stops_what_works_for_root(house: House) -> None:
    for folder in (house.outer, house.inner):
        os.chown(folder, STOPPED, STOPPED)
    run_module(house.file, status="UP")
    before = house.file.read_bytes()
    # While it waits for the lock, there is time to stop it.
    lock = as_user(STOPPED, LOCK, str(beside(house, ".lock")))
    assert lock.stdout
    assert lock.stdout.readline() == f"locked {beside(house, '.lock')}\n"
    attack = as_user(STOPPED, STOP)
    try:
        [result] = run_module(house.file, status="DRAIN", timeout=3)
    finally:
        for process in (attack, lock):
            process.kill()
            process.communicate()
    assert result["failed"]
    assert house.file.read_bytes() == before
