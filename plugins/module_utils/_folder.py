# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""The folder of a state file: create it, give it to its owner, and remove what an agent has left in it.

Root works below folders of root only. From the first folder that belongs to another user on, everything is done with
the rights of that user. All steps are relative to an open folder and follow no links. With C(change) False, a function
only returns what it would change. All functions raise the exceptions of _as_owner.run().
"""

from __future__ import annotations

import errno
import os
import stat
import typing as t

from . import _as_owner

# What the agent may keep in the folder: the state, its memory, their locks, the record of hapgent weigh, and what an
# interrupted save has left.
SUFFIXES = ("", ".lock", ".tmp", ".memory", ".memory.lock", ".memory.tmp", ".weight", ".weight.tmp")
LOCKS = (".lock", ".memory.lock")


class Owner(t.NamedTuple):
    """The owner and the permissions of a folder. An ID is None if the account does not exist yet."""

    uid: int | None
    gid: int | None
    mode: int = 0o755


def create_parents(state_file: str, deadline: float, *, change: bool) -> list[str]:
    """Create the folders above the folder of the state file that do not exist. Returns their paths.

    They are created one by one, and belong to root, or to the owner of the folder in which they are.
    """
    above = os.path.dirname(os.path.dirname(state_file))
    missing: list[str] = []
    while not os.path.lexists(above):
        missing.insert(0, above)
        above = os.path.dirname(above)

    def create(parent: int, name: str) -> None:
        os.umask(0o022)
        os.mkdir(name, dir_fd=parent)

    for path in missing if change else []:
        _as_owner.run(path, create, deadline)
    return missing


def give(state_file: str, wanted: Owner, deadline: float, *, change: bool) -> tuple[Owner | None, Owner]:
    """Create the folder of the state file, or change its owner and permissions. Returns those before and after.

    Those before are None if the folder does not exist. Below a folder of another user, this folder belongs to that user
    and its group too, because only root can give it to others. Its group has no more rights than all other users have.
    """

    def work(parent: int, name: str) -> tuple[Owner | None, Owner]:
        target = wanted if os.geteuid() == 0 else wanted._replace(uid=os.geteuid(), gid=os.getegid())
        before = _owner(parent, name)
        if change and before != target:
            _give(parent, name, target, os.path.basename(state_file))
        return before, target

    try:
        before, after = _as_owner.run(os.path.dirname(state_file), work, deadline)
    except _as_owner.MissingFolderError:
        if change:
            raise
        return None, wanted
    return Owner(*before) if before else None, Owner(*after)


def _owner(parent: int, name: str) -> Owner | None:
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        raise _as_owner.PathError(f"{name} is not a folder")
    return Owner(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))


def _give(parent: int, name: str, target: Owner, state_name: str) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        pass
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    has_new_owner = os.fstat(folder).st_uid != target.uid
    os.fchown(folder, -1 if target.uid is None else target.uid, -1 if target.gid is None else target.gid)
    os.fchmod(folder, target.mode)
    if has_new_owner:
        # The new owner could not open the lock files of the previous one.
        _remove(folder, [state_name + suffix for suffix in LOCKS])


def remove_files(state_file: str, deadline: float, *, change: bool) -> list[str]:
    """Remove the regular files that the agent keeps. Returns their names."""

    def work(folder: int, name: str) -> list[str]:
        found = [file for file in (name + suffix for suffix in SUFFIXES) if _is_file(folder, file)]
        if change:
            _remove(folder, found)
        return found

    try:
        found: list[str] = _as_owner.run(state_file, work, deadline)
    except _as_owner.MissingFolderError:
        return []
    return found


def remove_folder(state_file: str, removed: t.Collection[str], deadline: float, *, change: bool) -> bool:
    """Remove the folder of the state file if it is empty, apart from the files C(removed). Returns whether it is."""

    def is_empty(folder: int, _name: str) -> bool:
        with os.scandir(folder) as entries:
            return all(entry.name in removed for entry in entries)

    def remove(parent: int, name: str) -> None:
        # This never removes a file that was put into the folder since it was inspected.
        os.rmdir(name, dir_fd=parent)

    try:
        empty = bool(_as_owner.run(state_file, is_empty, deadline))
        if empty and change:
            _as_owner.run(os.path.dirname(state_file), remove, deadline)
    except _as_owner.MissingFolderError:
        return False
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return False
    return empty


def _is_file(folder: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _remove(folder: int, names: t.Iterable[str]) -> None:
    for name in names:
        # This follows no link and removes no folder, even if the folder's owner puts one there at this moment.
        try:
            os.unlink(name, dir_fd=folder)
        except (FileNotFoundError, IsADirectoryError):
            continue
