# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Work on a file in a folder that may belong to another user, with no more rights than that user has.

Root never follows a path through a folder that another user can write: that user could make it lead anywhere.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import stat
import threading
import time
import traceback
import typing as t

# Gets a descriptor of the file's folder and the file's name in it; returns what JSON can keep.
Work = t.Callable[[int, str], t.Any]
Outcome = dict[str, t.Any]
Errors = tuple[type[Exception], ...]

MAX_OUTCOME_BYTES = 1024 * 1024
# A killed process is gone at once, unless it hangs in a system call that cannot be interrupted.
REAP_SECONDS = 1.0
# The group of nobody, who owns nothing.
NO_GROUP = 65534

_forking = threading.Lock()


class PathError(Exception):
    """The path is not safe to follow. The text names the component, and says what to do."""


class MissingFolderError(PathError):
    """A folder on the path does not exist."""


class NoOutcomeError(Exception):
    """The work did not end in time, or its process was killed. It is not known what it did."""


def run(path: str, work: Work, deadline: float, errors: Errors = ()) -> t.Any:
    """Return what C(work) returns for the file C(path), done with the rights of the owner of its folder.

    No component of the path may be a symbolic link. If root runs this, the first folder on the way that is not root's
    decides: from there on, its owner's rights are all there is. A folder of root's that others can write is refused,
    unless it is sticky and not the last one.

    The work is done in a process of its own, which is killed at C(deadline), on the monotonic clock: a file system of
    another user may never answer. Raises PathError, NoOutcomeError, OSError, and those of C(errors) that the work
    raises; these must be made from one text.
    """
    *folders, name = _components(path)
    # One fork at a time: a process that inherits another one's pipe keeps it open.
    with _forking:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _work_and_exit(folders, name, work, errors, writing)
        os.close(writing)
    try:
        received = _receive(reading, deadline)
    finally:
        os.close(reading)
        _end(pid)
    return _result(received, errors)


def _components(path: str) -> list[str]:
    components = [component for component in path.split("/") if component not in ("", ".")]
    if not path.startswith("/") or "\0" in path:
        raise PathError(f"{path!r} is not an absolute path")
    if ".." in components:
        raise PathError(f"{path} contains ..: name the folder itself")
    if not components or path.endswith(("/", "/.")):
        raise PathError(f"{path} names a folder, not a file")
    return components


def _known(errors: Errors) -> Errors:
    return (PathError, MissingFolderError, *errors)


# In the process that does the work


def _work_and_exit(folders: list[str], name: str, work: Work, errors: Errors, writing: int) -> t.NoReturn:
    """Do the work, send its outcome, and leave nothing of the parent's to be run twice."""
    try:
        # Ansible waits for the end of the module's output, and a file system that hangs may keep this process for ever.
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(_outcome(folders, name, work, errors)).encode())
    finally:
        os._exit(0)


def _outcome(folders: list[str], name: str, work: Work, errors: Errors) -> Outcome:
    try:
        return {"result": work(_enter(folders), name)}
    except OSError as error:
        return {"os_error": [error.errno or 0, error.strerror or str(error)]}
    except _known(errors) as error:
        return {"error": type(error).__name__, "text": str(error)}
    except BaseException:
        return {"unexpected": traceback.format_exc()}


def _enter(folders: list[str]) -> int:
    """A descriptor of the folder, which is entered with the rights that the way to it calls for."""
    shown = "/"
    # O_PATH needs no permission to read the folder, and does nothing to it.
    folder = os.open(shown, os.O_PATH | os.O_DIRECTORY)
    _take_rights(folder, shown, is_last=not folders)
    for number, component in enumerate(folders, 1):
        shown = os.path.join(shown, component)
        folder = _step(folder, component, shown)
        _take_rights(folder, shown, is_last=number == len(folders))
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    except OSError as error:
        raise _cannot_open(shown, error) from error


def _step(folder: int, component: str, shown: str) -> int:
    try:
        return os.open(component, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError as error:
        raise MissingFolderError(f"the folder {shown} does not exist") from error
    except NotADirectoryError as error:
        if stat.S_ISLNK(os.stat(component, dir_fd=folder, follow_symlinks=False).st_mode):
            raise PathError(f"{shown} is a symbolic link: name the folder itself") from error
        raise PathError(f"{shown} is not a folder") from error
    except OSError as error:
        raise _cannot_open(shown, error) from error


def _take_rights(folder: int, shown: str, *, is_last: bool) -> None:
    """Give root's rights up in a folder that is another user's, and refuse one where others can bend the path."""
    if os.geteuid() != 0:
        return
    status = os.fstat(folder)
    if status.st_uid != 0:
        _become(status.st_uid, status.st_gid, shown)
        return
    is_writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # In a sticky folder, only its owner can replace what is there, but anyone can add what is not there yet.
    is_sticky = status.st_mode & stat.S_ISVTX
    if is_writable and (is_last or not is_sticky):
        raise PathError(f"other users than root can write {shown}: use another folder, or chmod go-w {shown}")


def _become(user: int, group_of_folder: int, shown: str) -> None:
    try:
        group = pwd.getpwuid(user).pw_gid
    except KeyError:
        # Of the folder's group, the user need not be a member: never that of root.
        group = group_of_folder or NO_GROUP
    try:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    except OSError as error:
        raise PathError(f"cannot take the rights of user {user}, who owns {shown} ({error.strerror})") from error


def _cannot_open(shown: str, error: OSError) -> PathError:
    return PathError(f"user {os.geteuid()} cannot open the folder {shown} ({error.strerror})")


# In the process that waits for it


def _receive(reading: int, deadline: float) -> bytes:
    """All that the other process sends until it ends."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    received = b""
    while len(received) <= MAX_OUTCOME_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise NoOutcomeError("the file system did not answer in time")
        piece = os.read(reading, 65536)
        if not piece:
            return received
        received += piece
    raise NoOutcomeError(f"the process that works on the file sent more than {MAX_OUTCOME_BYTES} bytes")


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + REAP_SECONDS
    while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.001)


def _result(received: bytes, errors: Errors) -> t.Any:
    """What the work returned, or the error that it raised.

    Its process may be another user's: what it sent is only taken for what it is by type.
    """
    try:
        outcome = json.loads(received)
    except ValueError as error:
        raise NoOutcomeError("the process that works on the file was killed") from error
    known = {error.__name__: error for error in _known(errors)}
    if "result" in outcome:
        return outcome["result"]
    if "os_error" in outcome:
        raise OSError(*outcome["os_error"])
    if outcome.get("error") in known:
        raise known[outcome["error"]](outcome["text"])
    raise RuntimeError(outcome.get("unexpected"))
