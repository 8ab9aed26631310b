# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Read what the role has to know about a host: accounts, Python, the way to the state file, services."""

from __future__ import annotations

import calendar
import grp
import os
import pwd
import re
import select
import signal
import stat
import subprocess
import time
import typing as t

from . import _as_owner, _systemd
from ._printable import printable

UNITS = _systemd.UNITS
# What the agent may keep in the folder: the state, its memory, their locks, and what an interrupted save has left.
OWN_FILES = ("", ".lock", ".tmp", ".memory", ".memory.lock", ".memory.tmp")
# A user without rights, which need not have a name.
NOBODY = 65534
MAX_UNIT_BYTES = 1024 * 1024
REAP_SECONDS = 1.0

Found = dict[str, t.Any]


def user(name: str) -> Found | None:
    """Return the ID and the comment of a user, or None if there is no such user."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return {"id": found.pw_uid, "comment": printable(found.pw_gecos)}


def group(name: str) -> Found | None:
    """Return the members of a group, or None if there is no such group."""
    try:
        return {"members": [printable(member) for member in grp.getgrnam(name).gr_mem]}
    except KeyError:
        return None


def python_version(program: str, deadline: float) -> str:
    """Return the version of a Python interpreter, such as V(3.11), or '' if the program is not one.

    The program does not run as root, because another user may be able to change it.
    """
    rights: t.Any = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        process = subprocess.Popen(
            [program, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            start_new_session=True,
            **rights,
        )
    except OSError:
        return ""
    with t.cast(t.IO[bytes], process.stdout) as output:
        ready, _writable, _exceptional = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
        printed = os.read(output.fileno(), 32) if ready else b""
    # With all the processes that it started. It may have ended, but it has not been reaped, so the ID is still its own.
    os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(REAP_SECONDS)
    except subprocess.TimeoutExpired:
        pass  # It hangs in a system call that cannot be interrupted.
    match = re.fullmatch(rb"([0-9]{1,3}\.[0-9]{1,3})\n", printed)
    return match[1].decode() if match else ""


def service_manager() -> str:
    """Return V(systemd), or the name of the first process if systemd does not manage this host."""
    if _systemd.is_running():
        return "systemd"
    try:
        with open("/proc/1/comm", encoding="utf-8", errors="replace") as comm:
            return printable(comm.read(64).strip())
    except OSError:
        return "unknown"


def path_to(state_file: str) -> list[Found]:
    """Return owner and mode of each folder on the path, starting with C(/), and of the file. Links are not followed.

    The list ends before the first component that does not exist.
    """
    found = []
    path = ""
    for component in state_file.split("/"):
        path = "/" if not component else os.path.join(path, component)
        try:
            status = os.lstat(path)
        except OSError:
            break
        found.append({"path": path, "uid": status.st_uid, "owner": _user_name(status.st_uid), "mode": status.st_mode})
    return found


def own_files(state_file: str) -> list[str]:
    """Return the paths of the regular files that the agent keeps: the state, and those beside it."""
    return [path for path in (state_file + suffix for suffix in OWN_FILES) if _is_file(path)]


def has_other_files(state_file: str, deadline: float) -> bool:
    """Return whether the state file's folder contains anything other than OWN_FILES.

    This includes a folder that is not safe to enter or does not respond.
    """
    try:
        return bool(_as_owner.run(state_file, _has_others, deadline))
    except _as_owner.MissingFolderError:
        return False
    except (_as_owner.PathError, _as_owner.NoOutcomeError, OSError):
        return True


def _has_others(folder: int, state_file: str) -> bool:
    own = {state_file + suffix for suffix in OWN_FILES}
    # The first one is enough, because another user may have put very many files there.
    with os.scandir(folder) as entries:
        return any(entry.name not in own or not entry.is_file(follow_symlinks=False) for entry in entries)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _user_name(uid: int) -> str:
    try:
        return printable(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return f"user {uid}"


def service(name: str, program: str, run_command: _systemd.RunCommand) -> Found:
    """Return what systemd has under this name: whether it runs the program, and what a restart has to know."""
    rc, units, _error = run_command(["systemctl", "cat", "--", f"{name}.service"])
    paths = [os.path.join(UNITS, f"{name}.{kind}") for kind in ("socket", "service")]
    started = start_time(_property(f"{name}.service", "ExecMainStartTimestamp", run_command))
    return {
        "exists": rc == 0,
        "runs_agent": rc == 0 and program in units,
        "units": [os.path.basename(path) for path in paths if os.path.lexists(path)],
        "listens": _property(f"{name}.socket", "Listen", run_command),
        "is_outdated": max(map(_written, (program, *paths))) > started,
    }


def start_time(timestamp: str) -> float:
    """Return a time that systemd has printed, in seconds of Unix time, rounded up; 0 if the service never started.

    systemd prints whole seconds, such as C(Thu 2026-01-01 12:00:00 UTC), but file times have fractions.
    """
    try:
        return calendar.timegm(time.strptime(timestamp[4:23], "%Y-%m-%d %H:%M:%S")) + 1.0
    except ValueError:
        return 0.0


def other_services(name: str, pattern: str) -> list[str]:
    """Return the names of the services in UNITS, without this one, in which a line matches this regular expression."""
    line = re.compile(f"^(?:{pattern})$", re.MULTILINE)
    found = []
    for unit in sorted(os.listdir(UNITS)) if os.path.isdir(UNITS) else []:
        path = os.path.join(UNITS, unit)
        if unit.endswith(_systemd.SUFFIX) and unit != name + _systemd.SUFFIX and _is_file(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                if line.search(file.read(MAX_UNIT_BYTES)):
                    found.append(unit[: -len(_systemd.SUFFIX)])
    return found


def _property(unit: str, name: str, run_command: _systemd.RunCommand) -> str:
    show = ["systemctl", "show", f"--property={name}", "--value", "--", unit]
    _rc, printed, _error = run_command(["env", "TZ=UTC", "LC_ALL=C", *show])
    return printed.strip()


def _written(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
