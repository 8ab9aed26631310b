# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The folder of a state file is created and removed with no more rights than needed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _as_owner, _folder
from ansible_collections.hapgent.agent.plugins.module_utils._folder import Owner

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders to other users")

AGENT, OTHER = 4711, 4712


def soon() -> float:
    return time.monotonic() + 15


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    # Other users must be able to enter the folders of the test.
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/tmp"):
            parent.chmod(0o755)
    return tmp_path / "lib" / "hapgent" / "shop" / "state.json"


def owner(path: Path) -> Owner:
    status = path.stat()
    return Owner(status.st_uid, status.st_gid, status.st_mode & 0o7777)


def create(state_file: Path, uid: int = AGENT) -> tuple[Owner | None, Owner]:
    _folder.create_parents(str(state_file), soon(), change=True)
    return _folder.give(str(state_file), Owner(uid, uid), soon(), change=True)


def test_creates_the_folder_and_those_above_it(state_file: Path) -> None:
    above = [str(state_file.parents[2]), str(state_file.parents[1])]
    assert _folder.create_parents(str(state_file), soon(), change=False) == above
    assert _folder.give(str(state_file), Owner(AGENT, AGENT), soon(), change=False) == (None, Owner(AGENT, AGENT))
    assert not state_file.parents[2].exists()

    assert create(state_file) == (None, Owner(AGENT, AGENT))
    assert owner(state_file.parent) == Owner(AGENT, AGENT)
    assert owner(state_file.parents[1]) == owner(state_file.parents[2]) == Owner(0, 0)

    assert _folder.create_parents(str(state_file), soon(), change=True) == []
    assert create(state_file) == (Owner(AGENT, AGENT), Owner(AGENT, AGENT))


def test_gives_the_folder_to_another_user_without_the_locks(state_file: Path) -> None:
    create(state_file, OTHER)
    state_file.parent.chmod(0o2777)
    for suffix in _folder.SUFFIXES:
        Path(f"{state_file}{suffix}").touch()
    Path(f"{state_file}.memory.lock").unlink()
    Path(f"{state_file}.memory.lock").mkdir()
    assert create(state_file) == (Owner(OTHER, OTHER, 0o2777), Owner(AGENT, AGENT))
    assert owner(state_file.parent) == Owner(AGENT, AGENT)
    left = {path.name for path in state_file.parent.iterdir()}
    # The folder in place of a lock stays too, because it is not a file of the agent.
    assert left == {f"state.json{suffix}" for suffix in _folder.SUFFIXES if suffix != ".lock"}


def test_works_in_a_folder_of_a_user_with_the_rights_of_that_user(state_file: Path) -> None:
    state_file.parents[2].mkdir(mode=0o755)
    os.chown(state_file.parents[2], AGENT, AGENT)
    assert create(state_file)[1].uid == AGENT
    assert owner(state_file.parents[1]) == owner(state_file.parent) == Owner(AGENT, AGENT)
    # That user cannot give the folder away, not even to a group. So an instance may have another group.
    for _run in range(2):
        _before, after = _folder.give(str(state_file), Owner(AGENT, OTHER), soon(), change=True)
        assert after == owner(state_file.parent) == Owner(AGENT, AGENT)


def test_another_users_folder_below_that_of_a_user_is_not_changed(state_file: Path) -> None:
    create(state_file, OTHER)
    os.chown(state_file.parents[1], AGENT, AGENT)
    with pytest.raises(PermissionError):
        create(state_file)
    assert owner(state_file.parent) == Owner(OTHER, OTHER)


@pytest.mark.parametrize("depth", [0, 1])
def test_follows_no_links(state_file: Path, tmp_path: Path, depth: int) -> None:
    create(state_file)
    target = tmp_path / "target"
    (target / "shop").mkdir(parents=True)
    for name in ("state.json", "shop/state.json"):
        (target / name).touch()
    link = state_file.parents[depth]
    link.rename(tmp_path / "moved")
    link.symlink_to(target)
    before = owner(target), owner(target / "shop")
    for attempt in (
        lambda: create(state_file, OTHER),
        lambda: _folder.remove_files(str(state_file), soon(), change=True),
        lambda: _folder.remove_folder(str(state_file), [], soon(), change=True),
    ):
        with pytest.raises(_as_owner.PathError):
            attempt()
    assert (owner(target), owner(target / "shop")) == before
    assert (target / "state.json").exists()
    assert (target / "shop" / "state.json").exists()


def test_removes_its_own_files_and_then_the_empty_folder(state_file: Path) -> None:
    create(state_file)
    for suffix in ("", ".memory"):
        Path(f"{state_file}{suffix}").touch()
    own = ["state.json", "state.json.memory"]
    assert not _folder.remove_folder(str(state_file), [], soon(), change=True)
    for change in (False, True):
        assert _folder.remove_files(str(state_file), soon(), change=change) == own
        assert _folder.remove_folder(str(state_file), own, soon(), change=change)
        assert state_file.parent.exists() != change
    assert state_file.parents[1].exists()
    assert _folder.remove_files(str(state_file), soon(), change=True) == []
    assert not _folder.remove_folder(str(state_file), [], soon(), change=True)


def test_keeps_what_is_not_a_file_of_the_agent(state_file: Path, tmp_path: Path) -> None:
    create(state_file)
    (tmp_path / "kept").touch()
    Path(f"{state_file}.lock").symlink_to(tmp_path / "kept")
    Path(f"{state_file}.tmp").mkdir()
    (state_file.parent / "other").touch()
    assert _folder.remove_files(str(state_file), soon(), change=True) == []
    assert not _folder.remove_folder(str(state_file), [], soon(), change=True)
    assert len(list(state_file.parent.iterdir())) == 3
    assert (tmp_path / "kept").exists()
