# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work on a file follows only safe paths, has only the rights of the folder's owner, and ends by its deadline."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _as_owner
from ansible_collections.hapgent.agent.plugins.module_utils._as_owner import (
    MissingFolderError,
    NoOutcomeError,
    PathError,
    run,
)

# These users own nothing and have no name, so their group is not in the user database.
NEIGHBOUR, OTHER = 60123, 60124

# Only root can create files of other users. CI runs as root.
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can take the rights of others")


class OwnError(Exception):
    pass


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all users can enter but only the user who runs the tests can write."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def make(path: Path, owner: int = 0, mode: int = 0o755, group: int | None = None) -> Path:
    path.mkdir()
    if os.geteuid() == 0:
        os.chown(path, owner, owner if group is None else group)
    path.chmod(mode)
    return path


def in_seconds(seconds: float) -> float:
    return time.monotonic() + seconds


def rights(_folder: int, _name: str) -> list[object]:
    return [os.getresuid(), os.getresgid(), os.getgroups()]


def owned_by(user: int, group: int) -> list[object]:
    return [[user] * 3, [group] * 3, []]


def reads(folder: int, name: str) -> str:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    return os.read(descriptor, 100).decode()


def as_owner(path: Path | str, work: _as_owner.Work = rights) -> object:
    return run(str(path), work, in_seconds(30), (OwnError,))


# Rights


def test_work_gets_the_folder_of_the_file(folder: Path) -> None:
    (folder / "file").write_text("content")
    assert as_owner(folder / "file", reads) == "content"
    assert as_owner(f"/{folder}/.//file", reads) == "content"


@as_root
def test_work_in_a_folder_of_root_has_the_rights_of_root(folder: Path) -> None:
    assert as_owner(make(folder / "roots") / "file", lambda _folder, _name: os.geteuid()) == 0


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775, 0o777], ids=oct)
def test_work_in_a_folder_of_another_user_has_the_rights_of_that_user(folder: Path, mode: int) -> None:
    assert as_owner(make(folder / "his", NEIGHBOUR, mode) / "file") == owned_by(NEIGHBOUR, NEIGHBOUR)


@as_root
def test_group_is_that_of_the_user_and_not_of_the_folder(folder: Path) -> None:
    # On Debian, this is the user nobody with its group nogroup.
    assert as_owner(make(folder / "his", 65534, group=0) / "file") == owned_by(65534, 65534)


@as_root
def test_user_without_a_name_never_has_the_group_of_root(folder: Path) -> None:
    assert as_owner(make(folder / "his", NEIGHBOUR, group=0) / "file") == owned_by(NEIGHBOUR, 65534)


@as_root
def test_first_folder_that_does_not_belong_to_root_decides(folder: Path) -> None:
    inner = make(make(make(folder / "his", NEIGHBOUR) / "others", OTHER, 0o777) / "roots")
    (inner / "secret").write_text("secret")
    (inner / "secret").chmod(0o600)
    assert as_owner(inner / "file") == owned_by(NEIGHBOUR, NEIGHBOUR)
    with pytest.raises(PermissionError):
        as_owner(inner / "secret", reads)


@as_root
def test_folder_that_the_user_cannot_enter_is_an_error(folder: Path) -> None:
    inner = make(make(folder / "his", NEIGHBOUR) / "roots", mode=0o700)
    with pytest.raises(PathError, match=f"{NEIGHBOUR} .*{inner} .Permission denied."):
        as_owner(inner / "file")


@as_root
def test_parent_process_keeps_its_rights(folder: Path) -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups(), os.getcwd()
    as_owner(make(folder / "his", NEIGHBOUR) / "file")
    assert (os.getresuid(), os.getresgid(), os.getgroups(), os.getcwd()) == before


# Paths


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_link_in_any_component_is_refused(folder: Path, depth: int) -> None:
    components = ["real", "a", "b"]
    folder.joinpath(*components).mkdir(parents=True)
    file = folder.joinpath(*components, "file")
    file.write_text("content")
    link = folder.joinpath(*components[:depth])
    link.symlink_to(link.rename(folder / "moved"))
    assert file.read_text() == "content"
    with pytest.raises(PathError, match=f"{link} .*symbolic link"):
        as_owner(file, reads)


@pytest.mark.parametrize(
    "path",
    ["", "file", "./file", "~/file", "../file", "/", "/etc/", "/etc/.", "/etc/../etc/file", "/etc/..", "/etc/\0file"],
)
def test_path_that_is_not_absolute_or_names_no_file_is_refused(path: str) -> None:
    with pytest.raises(PathError):
        as_owner(path)


@pytest.mark.parametrize("depth", [1, 2])
def test_missing_folder_is_named(folder: Path, depth: int) -> None:
    missing = folder.joinpath(*["missing"] * depth)
    with pytest.raises(MissingFolderError, match=f"{folder / 'missing'} "):
        as_owner(missing / "file")


@pytest.mark.parametrize("make_it", [Path.touch, os.mkfifo])
def test_other_file_instead_of_a_folder_is_refused(folder: Path, make_it: Callable[[Path], None]) -> None:
    make_it(folder / "none")
    with pytest.raises(PathError, match=f"{folder / 'none'} is not a folder"):
        as_owner(folder / "none" / "file")


@as_root
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777], ids=oct)
@pytest.mark.parametrize("below", ["file", "roots/file"])
def test_folder_of_root_that_others_can_write_is_refused(folder: Path, mode: int, below: str) -> None:
    wide = make(folder / "wide", mode=mode)
    make(wide / "roots")
    with pytest.raises(PathError, match=f"chmod go-w {wide}$"):
        as_owner(wide / below)


@as_root
def test_sticky_folder_may_contain_folders_but_not_the_file(folder: Path) -> None:
    sticky = make(folder / "sticky", mode=0o1777)
    assert as_owner(make(sticky / "roots") / "file", lambda _folder, _name: os.geteuid()) == 0
    assert as_owner(make(sticky / "his", NEIGHBOUR) / "file") == owned_by(NEIGHBOUR, NEIGHBOUR)
    with pytest.raises(PathError, match=f"chmod go-w {sticky}$"):
        as_owner(sticky / "file")


# Results and errors


def fail(error: BaseException) -> _as_owner.Work:
    def work(_folder: int, _name: str) -> None:
        raise error

    return work


@pytest.mark.parametrize("result", [None, True, 0, "\udc80\x1b€", [1, [2]], {"a": {"b": None}}, "x" * 500_000])
def test_result_is_returned(folder: Path, result: object) -> None:
    assert as_owner(folder / "file", lambda _folder, _name: result) == result


def test_expected_errors_are_raised(folder: Path) -> None:
    with pytest.raises(OwnError, match="what is wrong"):
        as_owner(folder / "file", fail(OwnError("what is wrong")))
    with pytest.raises(FileNotFoundError) as caught:
        as_owner(folder / "file", reads)
    assert caught.value.strerror == "No such file or directory"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt("a bug"), SystemExit("a bug")])
def test_unexpected_errors_are_reported(folder: Path, error: BaseException) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        as_owner(folder / "file", fail(error))


def test_work_that_hangs_is_killed(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    before = children()
    began = time.monotonic()
    with pytest.raises(NoOutcomeError, match="in time"):
        run(str(folder / "fifo"), reads, in_seconds(0.2))
    assert time.monotonic() - began < 10
    assert children() == before


def test_killed_work_is_an_error(folder: Path) -> None:
    with pytest.raises(NoOutcomeError, match="killed"):
        as_owner(folder / "file", lambda _folder, _name: os.kill(os.getpid(), signal.SIGKILL))


def test_stopped_work_is_an_error(folder: Path) -> None:
    with pytest.raises(NoOutcomeError, match="in time"):
        run(str(folder / "file"), lambda _folder, _name: os.kill(os.getpid(), signal.SIGSTOP), in_seconds(0.2))


def test_result_that_is_too_long_is_an_error(folder: Path) -> None:
    with pytest.raises(NoOutcomeError, match="bytes"):
        as_owner(folder / "file", lambda _folder, _name: "x" * 3_000_000)


def test_work_leaves_no_process_and_no_descriptor(folder: Path) -> None:
    before = children(), os.listdir("/proc/self/fd")
    for _count in range(3):
        as_owner(folder / "file")
    assert (children(), os.listdir("/proc/self/fd")) == before


def children() -> list[str]:
    """The children of this process, including those that have ended but were not waited for."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()


def test_work_does_not_keep_the_modules_output_open(folder: Path) -> None:
    """Ansible waits until the output is closed, and a process that hangs in a file system cannot be killed."""

    def outputs(_folder: int, _name: str) -> list[str]:
        return [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in (0, 1, 2)]

    assert run(f"{folder}/file", outputs, in_seconds(10)) == ["/dev/null"] * 3


def test_work_that_hangs_does_not_delay_other_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads work on several files at once, and each must notice the end of its own process."""
    pipe = os.pipe

    def slow_pipe() -> tuple[int, int]:
        made = pipe()
        # This gives another thread time to fork.
        time.sleep(0.01)
        return made

    monkeypatch.setattr(os, "pipe", slow_pipe)

    def hang(_folder: int, _name: str) -> None:
        time.sleep(60)

    def at_once(number: int) -> object:
        if number % 2:
            return run(f"{folder}/file", rights, in_seconds(4)) is not None
        with pytest.raises(NoOutcomeError):
            run(f"{folder}/file", hang, in_seconds(6))
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(at_once, range(16)))
