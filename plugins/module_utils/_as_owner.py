# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Work on a file in a folder that may belong to another user, with no more rights than that user has.

Root must never follow a path through a folder to which another user can write, because that user could redirect it.
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

# Receives a descriptor of the file's folder and the file's name in it, and returns a value that JSON can represent.
Work = t.Callable[[int, str], t.Any]
Outcome = dict[str, t.Any]
Errors = tuple[type[Exception], ...]

MAX_OUTCOME_BYTES = 1024 * 1024
# A killed process ends immediately, unless it hangs in a system call that cannot be interrupted.
REAP_SECONDS = 1.0
# The group of the user nobody, which owns no files.
NO_GROUP = 65534

_forking = threading.Lock()


class PathError(Exception):
    """The path is not safe to follow. The text names the component and gives advice."""


class MissingFolderError(PathError):
    """A folder on the path does not exist."""


class NoOutcomeError(Exception):
    """The work did not end in time, or its process was killed. It is unknown what it did."""


def run(path: str, work: Work, deadline: float, errors: Errors = ()) -> t.Any:
    """Run C(work) on the file C(path) with the rights of the owner of its folder, and return its result.

    No component of the path may be a symbolic link. If root runs this, it takes the rights of the owner of the first
    folder on the path that does not belong to root, and keeps them from there on. A folder of root to which others can
    write is refused, unless it is sticky and not the last one.

    The work runs in a child process that is killed at C(deadline), on the monotonic clock, because a file system of
    another user may never respond. Raises PathError, NoOutcomeError, OSError, and those of C(errors) that the work
    raises. The constructors of C(errors) must accept one string.
    """
    *folders, name = _components(path)
    # One fork at a time, because a child that inherits the pipe of another one would keep it open.
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
        raise PathError(f"{path!r} must be an absolute path")
    if ".." in components:
        raise PathError(f"{path} must not contain ..: set the path without it")
    if not components or path.endswith(("/", "/.")):
        raise PathError(f"{path} must be the path of a file, not of a folder")
    return components


def _known(errors: Errors) -> Errors:
    return (PathError, MissingFolderError, *errors)


# In the child process, which does the work


def _work_and_exit(folders: list[str], name: str, work: Work, errors: Errors, writing: int) -> t.NoReturn:
    """Do the work, send its outcome, and exit without running exit handlers of the parent a second time."""
    try:
        # Ansible waits until the module's output is closed, and this process may hang forever on a file system.
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
    """Return a descriptor of the folder, opened with the rights that the folders on the path require."""
    shown = "/"
    # O_PATH needs no read permission for the folder and does not access it.
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
            raise PathError(f"{shown} must not be a symbolic link: set the path to which it leads") from error
        raise PathError(f"{shown} is not a folder") from error
    except OSError as error:
        raise _cannot_open(shown, error) from error


def _take_rights(folder: int, shown: str, *, is_last: bool) -> None:
    """Give up the rights of root in a folder of another user, and refuse one in which others can redirect the path."""
    if os.geteuid() != 0:
        return
    status = os.fstat(folder)
    if status.st_uid != 0:
        _become(status.st_uid, status.st_gid, shown)
        return
    is_writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # In a sticky folder, only the owner of an entry can replace it, but any user can create one that does not exist.
    is_sticky = status.st_mode & stat.S_ISVTX
    if is_writable and (is_last or not is_sticky):
        raise PathError(f"users other than root can write to {shown}: use another folder, or run chmod go-w {shown}")


def _become(user: int, group_of_folder: int, shown: str) -> None:
    try:
        group = pwd.getpwuid(user).pw_gid
    except KeyError:
        # The user need not be a member of the folder's group, so never take the group of root.
        group = group_of_folder or NO_GROUP
    try:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    except OSError as error:
        raise PathError(f"cannot take the rights of user {user}, the owner of {shown} ({error.strerror})") from error


def _cannot_open(shown: str, error: OSError) -> PathError:
    return PathError(f"user {os.geteuid()} cannot open the folder {shown} ({error.strerror})")


# In the parent process, which waits for the child


def _receive(reading: int, deadline: float) -> bytes:
    """Return all bytes that the child sends until it ends. Raises NoOutcomeError."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    received = b""
    while len(received) <= MAX_OUTCOME_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise NoOutcomeError("the file system did not respond in time")
        piece = os.read(reading, 65536)
        if not piece:
            return received
        received += piece
    raise NoOutcomeError(f"the process that accesses the file sent more than {MAX_OUTCOME_BYTES} bytes")


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + REAP_SECONDS
    while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.001)


def _result(received: bytes, errors: Errors) -> t.Any:
    """Return the result of the work, or raise the error that it raised.

    The child may run as another user, so what it sent is not trusted beyond its type.
    """
    try:
        outcome = json.loads(received)
    except ValueError as error:
        raise NoOutcomeError("the process that accesses the file was killed") from error
    known = {error.__name__: error for error in _known(errors)}
    if "result" in outcome:
        return outcome["result"]
    if "os_error" in outcome:
        raise OSError(*outcome["os_error"])
    if outcome.get("error") in known:
        raise known[outcome["error"]](outcome["text"])
    raise RuntimeError(outcome.get("unexpected"))
