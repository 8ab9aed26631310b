# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Only one run has a lock at a time, and only a file that can be trusted is a lock."""

from __future__ import annotations

import json
import os
import pwd
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._as_owner import PathError
from ansible_collections.hapgent.agent.plugins.module_utils._lock import (
    ANY,
    Claim,
    Held,
    LockFileError,
    from_object,
    keeps,
    look,
    parse,
    release,
    take,
)
from ansible_collections.hapgent.agent.plugins.module_utils._state import StateError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")

OURS = Claim("run 1", "ada@control1", "rolls", "release 4.2", 1_795_780_800, 600)
THEIRS = OURS._replace(run="run 2", who="bob@control2", work="drains", reason="")


# The claim


def test_claim_is_read_as_it_was_written() -> None:
    for claim in (OURS, THEIRS):
        assert parse(json.dumps(claim._asdict()).encode()) == claim


def wrong_values(name: str, *values: Any) -> dict[str, Any]:
    return {f"{name} {value!r:.20}": {name: value} for value in values}


WRONG: dict[str, Any] = {
    **wrong_values("run", "", "x" * 201, "a\nb", 7, None),
    **wrong_values("who", "", "#", "x" * 121, "\x1b[2J", 7, None),
    **wrong_values("reason", "#", "x" * 121, "\x1b[2J", 7, None, []),
    **wrong_values("work", "", "rolls out", None, []),
    **wrong_values("since", -1, 1.5, True, "1", None, 10**12),
    **wrong_values("expires", -1, 1.5, True, "1", None, 604801),
    "another field": {"more": 1},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_claims_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LockFileError):
        from_object({**OURS._asdict(), **wrong})


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 3000, b'{"run": "x"}', b"1e999"])
def test_other_content_is_refused(raw: bytes) -> None:
    with pytest.raises(LockFileError):
        parse(raw)


# Who keeps it


@pytest.mark.parametrize(
    ("held", "over", "kept"),
    {
        "free": (None, "", False),
        "ours": (Held(OURS, 0.0), "", False),
        "theirs": (Held(THEIRS, 0.0), "", True),
        "theirs, just not expired": (Held(THEIRS, 599.9), "", True),
        "theirs, expired": (Held(THEIRS, 600.0), "", False),
        "theirs, that has ended": (Held(THEIRS, 0.0), "run 2", False),
        "theirs, while another one has ended": (Held(THEIRS, 0.0), "run 3", True),
        "taken over": (Held(THEIRS, 0.0), ANY, False),
    }.values(),
)
def test_who_keeps_the_lock(held: Held | None, over: str, kept: bool) -> None:
    assert keeps(held, OURS.run, over) is kept


# The file


@pytest.fixture
def path(tmp_path: Path) -> str:
    tmp_path.chmod(0o755)
    return str(tmp_path / "shop.lock")


def test_lock_is_taken_renewed_and_released(path: str) -> None:
    assert look(path, OURS.run, "") is None
    assert take(path, OURS, "") is None
    held = take(path, THEIRS, "")
    assert held and held.claim == OURS
    seen = look(path, THEIRS.run, "")
    assert seen and seen.claim == OURS
    # Its age is that of the last sign. The run has begun with the first one.
    os.utime(path, (0, time.time() - 599))
    assert take(path, OURS._replace(since=OURS.since + 1), "") is None
    held = look(path, THEIRS.run, "")
    assert held and held.claim == OURS
    assert held.age < 500
    # Only the run that has it releases it.
    assert release(path, THEIRS.run) is False
    assert release(path, OURS.run) is True
    assert release(path, OURS.run) is False
    assert take(path, THEIRS, "") is None


def test_lock_expires_by_the_clock_of_its_host(path: str) -> None:
    take(path, OURS, "")
    os.utime(path, (0, time.time() - 600))
    assert look(path, THEIRS.run, "") is None
    assert take(path, THEIRS, "") is None
    # The first run learns that it has lost the lock.
    held = take(path, OURS, "")
    assert held and held.claim == THEIRS
    # A clock that was set back is no reason to take a lock away.
    os.utime(path, (0, time.time() + 3600))
    assert take(path, OURS, "") is not None


def test_lock_is_taken_over(path: str) -> None:
    take(path, OURS, "")
    assert take(path, THEIRS, ANY) is None
    assert take(path, OURS, THEIRS.run) is None
    assert take(path, THEIRS, "run 3") is not None


def test_only_one_of_many_has_it(path: str) -> None:
    claims = [OURS._replace(run=f"run {number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        taken = [held is None for held in pool.map(lambda claim: take(path, claim, ""), claims)]
    assert taken.count(True) == 1


STRANGER = pwd.getpwnam("nobody").pw_uid
UNTRUSTED: dict[str, tuple[Any, Any]] = {
    "a link": (lambda path: os.symlink("/etc/hostname", path), StateError),
    "a folder": (os.mkdir, StateError),
    "a FIFO": (os.mkfifo, StateError),
    "too large": (lambda path: Path(path).write_bytes(b" " * 5000), StateError),
    "no lock": (lambda path: Path(path).write_bytes(b'{"run": "x"}'), LockFileError),
    "a folder for all": (lambda path: os.chmod(os.path.dirname(path), 0o777), (PathError, LockFileError)),
    "a sticky folder for all": (lambda path: os.chmod(os.path.dirname(path), 0o1777), (PathError, LockFileError)),
    "a folder for a group": (lambda path: os.chmod(os.path.dirname(path), 0o775), (PathError, LockFileError)),
}


@pytest.mark.parametrize(("make", "error"), UNTRUSTED.values(), ids=UNTRUSTED)
def test_other_files_and_folders_are_refused(path: str, make: Any, error: Any) -> None:
    def written() -> tuple[int, int] | None:
        # The whole status would include the access time.
        return (os.lstat(path).st_ino, os.lstat(path).st_ctime_ns) if os.path.lexists(path) else None

    make(path)
    before = written()
    for call in (lambda: take(path, OURS, ANY), lambda: look(path, OURS.run, ""), lambda: release(path, OURS.run)):
        with pytest.raises(error):
            call()
    assert written() == before


@needs_root
def test_file_of_another_user_is_refused(path: str) -> None:
    take(path, OURS, "")
    os.chown(path, STRANGER, -1)
    with pytest.raises(LockFileError, match="belongs to user"):
        take(path, THEIRS, ANY)


@needs_root
def test_root_has_only_the_rights_of_the_owner_of_the_folder(path: str) -> None:
    os.chown(os.path.dirname(path), STRANGER, -1)
    assert take(path, OURS, "") is None
    assert os.stat(path).st_uid == STRANGER


def test_relative_path_is_refused() -> None:
    with pytest.raises(PathError):
        take("shop.lock", OURS, "")
