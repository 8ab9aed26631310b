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
import threading
import time
import typing as t

from . import _as_owner, _systemd, _sysv
from ._folder import SUFFIXES
from ._printable import printable

UNITS = _systemd.UNITS
# The socket first: if it were stopped last, it would start the service again.
KINDS = ("socket", "service")
# The line with which a unit or an init script names itself as one that the role has installed. A copy under another
# name does not count.
MARK = "# Managed by the role hapgent.agent.hapgent: {}"
# The same line in the unit that drains an instance before another service stops.
DRAIN_MARK = "# Managed by the role hapgent.agent.hapgent, for {}"
# The same line in the service that sets the weight of an instance, and in its timer, or in its cron job.
WEIGHT_MARK = "# Managed by the role hapgent.agent.hapgent, weight of {}"
TIMER = ".timer"
# A user without rights, which need not have a name.
NOBODY = 65534
# What Debian's runlevels 2 to 5 start.
STARTED = "/etc/rc2.d"
JOBS = "/etc/cron.d"
# Every cron has this program. Packages that only bring jobs also create the folder.
CRONTAB = "/usr/bin/crontab"
MAX_UNIT_BYTES = 1024 * 1024
REAP_SECONDS = 1.0

Found = dict[str, t.Any]
Properties = dict[str, str]


def user(name: str) -> Found | None:
    """Return the ID, the comment and the ID of the primary group of a user, or None if there is no such user."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return {"id": found.pw_uid, "comment": printable(found.pw_gecos), "primary_group": found.pw_gid}


def group(name: str) -> Found | None:
    """Return the ID and the members of a group, or None if there is no such group."""
    try:
        found = grp.getgrnam(name)
    except KeyError:
        return None
    return {"id": found.gr_gid, "members": [printable(member) for member in found.gr_mem]}


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
    """Return V(systemd) or V(sysv), or the name of the first process if neither manages this host."""
    if _systemd.is_running():
        return "systemd"
    return "sysv" if _sysv.is_running() else printable(_sysv.first_process())


def has_cron() -> bool:
    """Return whether the host has a cron that runs the jobs in C(JOBS)."""
    return os.path.isdir(JOBS) and os.path.exists(CRONTAB)


def path_to(state_file: str, deadline: float) -> list[Found]:
    """Return owner and mode of each folder on the path, starting with C(/), and of the file. Links are not followed.

    The list ends before the first component that does not exist. Raises TimeoutError, because a file system of another
    user may never respond.
    """
    found: list[Found] = []
    # A daemon thread does not keep the module from exiting.
    thread = threading.Thread(target=_follow, args=(state_file, found), daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if thread.is_alive():
        raise TimeoutError(f"the file system of {state_file} did not respond in time")
    return found


def _follow(state_file: str, found: list[Found]) -> None:
    path = ""
    for component in state_file.split("/"):
        path = "/" if not component else os.path.join(path, component)
        try:
            status = os.lstat(path)
        except OSError:
            break
        found.append({"path": path, "uid": status.st_uid, "owner": _user_name(status.st_uid), "mode": status.st_mode})


class Contents(t.NamedTuple):
    """What is in the folder of a state file besides the agent's files.

    C(has_instances) is whether the folder has files or folders of the other instances, C(has_others) whether it has
    anything else, is not safe to enter, or does not respond.
    """

    has_instances: bool
    has_others: bool


def contents(state_file: str, others: t.Collection[str], deadline: float) -> Contents:
    """Inspect the folder of a state file. C(others) are the state files of the other instances."""
    folder = os.path.dirname(state_file)
    below = {os.path.relpath(path, folder) for path in others}
    files = {path + suffix for path in below if "/" not in path for suffix in SUFFIXES}
    folders = {path.partition("/")[0] for path in below if "/" in path} - {".."}

    def look(opened: int, name: str) -> tuple[bool, bool]:
        own = {name + suffix for suffix in SUFFIXES}
        has_instances = False
        with os.scandir(opened) as entries:
            for entry in entries:
                is_instance = (entry.name in files and entry.is_file(follow_symlinks=False)) or (
                    entry.name in folders and entry.is_dir(follow_symlinks=False)
                )
                has_instances = has_instances or is_instance
                # The first one is enough, because another user may have put very many files there.
                if not is_instance and not (entry.name in own and entry.is_file(follow_symlinks=False)):
                    return has_instances, True
        return has_instances, False

    try:
        return Contents(*_as_owner.run(state_file, look, deadline))
    except _as_owner.MissingFolderError:
        return Contents(False, False)
    except (_as_owner.PathError, _as_owner.NoOutcomeError, OSError):
        return Contents(False, True)


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


PROPERTIES = "LoadState,ActiveState,UnitFileState,ExecStart,ExecMainStartTimestamp,Listen"


class Names(t.NamedTuple):
    """The names of an instance: its service, the unit that drains it, the unit that it follows, '' for none, and the
    timer that sets its weight.
    """

    service: str
    drain_unit: str
    followed: str
    weight_timer: str


def services(names: t.Sequence[Names], program: str, run_command: _systemd.RunCommand) -> list[Found]:
    """Return what systemd has for each instance: whether it runs the program, and what a restart has to know."""
    units = [
        (
            *(f"{name.service}.{kind}" for kind in KINDS),
            name.drain_unit,
            name.followed or name.drain_unit,
            name.weight_timer,
        )
        for name in names
    ]
    shown = iter(_shown([unit for group in units for unit in group], run_command))
    return [_service(name, program, [next(shown) for _unit in group]) for name, group in zip(names, units)]


def _service(names: Names, program: str, shown: t.Sequence[Properties]) -> Found:
    socket, service, drain, followed, weight = shown
    name = names.service
    started = start_time(service.get("ExecMainStartTimestamp", ""))
    return {
        "exists": _exists(service),
        "runs_agent": program in service.get("ExecStart", ""),
        "units": _units(name),
        "listens": socket.get("Listen", ""),
        "socket_runs": _runs(socket),
        "service_runs": _runs(service),
        "is_outdated": max(map(_written, (program, *_paths(name)))) > started,
        "drain_runs": _runs(drain),
        "drain_enabled": drain.get("UnitFileState") == "enabled",
        "followed_exists": bool(names.followed) and _exists(followed),
        "followed_runs": bool(names.followed) and followed.get("ActiveState") == "active",
        "weight_runs": _runs(weight),
    }


def scripts(names: t.Sequence[Names], program: str, run_command: _systemd.RunCommand) -> list[Found]:
    """Return what services() returns, as far as a host that sysvinit runs has it."""
    return [_script(name.service, program, run_command) for name in names]


def _script(name: str, program: str, run_command: _systemd.RunCommand) -> Found:
    settings = _sysv.environment(name, run_command)
    links = os.listdir(STARTED) if os.path.isdir(STARTED) else []
    is_enabled = any(re.fullmatch(rf"S[0-9]{{2}}{re.escape(name)}", link) for link in links)
    # The file with the process ID is written when the agent starts.
    started = _written(os.path.join(_sysv.PID_FILES, name + _sysv.OF_AGENT))
    units = _units(name)
    return {
        "exists": bool(units),
        "runs_agent": any(program in line for line in _files().get(name, [])),
        "units": units,
        "listens": f"{settings.get('HAPGENT_IP')}:{settings.get('HAPGENT_PORT')}" if settings else "",
        "service_runs": is_enabled and _sysv.service(name, run_command).state == "active",
        "is_outdated": max(map(_written, (program, *_paths(name)))) > started,
    }


def _exists(unit: Properties) -> bool:
    return unit.get("LoadState", "not-found") != "not-found"


def _runs(unit: Properties) -> bool:
    """Whether the unit is active, and enabled for the next boot."""
    return (unit.get("ActiveState"), unit.get("UnitFileState")) == ("active", "enabled")


def _shown(units: t.Sequence[str], run_command: _systemd.RunCommand) -> list[Properties]:
    """The properties of each unit. A property that is printed several times has several lines."""
    if not units:
        return []
    show = ["systemctl", "show", f"--property={PROPERTIES}", "--", *units]
    _rc, printed, _error = run_command(["env", "TZ=UTC", "LC_ALL=C", *show])
    found = []
    for block in printed.strip("\n").split("\n\n"):
        properties: Properties = {}
        for line in block.splitlines():
            name, _equals, value = line.partition("=")
            properties[name] = f"{properties[name]}\n{value}" if name in properties else value
        found.append(properties)
    return [*found, *({} for _unit in units)][: len(units)]


def _paths(name: str) -> list[str]:
    if _sysv.is_running():
        return [os.path.join(_sysv.SCRIPTS, name)]
    return [os.path.join(UNITS, f"{name}.{kind}") for kind in KINDS]


def _units(name: str) -> list[str]:
    return [os.path.basename(path) for path in _paths(name) if os.path.lexists(path)]


def installed() -> list[Found]:
    """Return the instances that the role has installed, as their units or init scripts name themselves."""
    found = []
    files = _files()
    for name, lines in files.items():
        if MARK.format(name) not in lines:
            continue
        assignments = [re.sub("^(Environment=|export )", "", line) for line in lines]
        settings = {key.lower(): value for key, _equals, value in (line.partition("=") for line in assignments)}
        found.append(
            {
                "service": name,
                "user": settings.get("user", ""),
                "group": settings.get("group", ""),
                "python": settings.get("python") or settings.get("execstart", "").partition(" ")[0],
                "state_file": settings.get("hapgent_state_file", ""),
                "units": _units(name),
                "drain_units": [f"{other}.service" for other in files if DRAIN_MARK.format(name) in files[other]],
                "weight_units": _weight_units(name, files),
            }
        )
    return found


def _weight_units(name: str, files: t.Mapping[str, t.Collection[str]]) -> list[str]:
    """Return the units that set the weight of an instance, or its cron job.

    The timer comes first. It may be missing, the service is not.
    """
    if _sysv.is_running():
        return [job for job, lines in _regular_files(JOBS).items() if WEIGHT_MARK.format(name) in lines]
    of_weight = [other for other in files if WEIGHT_MARK.format(name) in files[other]]
    units = [f"{other}{kind}" for other in of_weight for kind in (TIMER, _systemd.SUFFIX)]
    return [unit for unit in units if os.path.lexists(os.path.join(UNITS, unit))]


def start_time(timestamp: str) -> float:
    """Return a time that systemd has printed, in seconds of Unix time, rounded up; 0 if the service never started.

    systemd prints whole seconds, such as C(Thu 2026-01-01 12:00:00 UTC), but file times have fractions.
    """
    try:
        return calendar.timegm(time.strptime(timestamp[4:23], "%Y-%m-%d %H:%M:%S")) + 1.0
    except ValueError:
        return 0.0


def other_services(names: t.Collection[str], pattern: str) -> list[str]:
    """Return the services of the administrator, without those named, in whose files a line matches this expression."""
    line = re.compile(pattern)
    return [
        name for name, lines in _files().items() if name not in names and any(line.fullmatch(text) for text in lines)
    ]


def line_with_program(program: str) -> str:
    """Return an expression for a line of a service file that starts this program."""
    return (
        rf"(?!\s*#).*{re.escape(program)}([^\w.-].*)?"
        if _sysv.is_running()
        else rf"ExecStart=(.* )?{re.escape(program)}"
    )


def line_with_account(user: str, group: str) -> str:
    """Return an expression for a line of a service file that names this user or group."""
    if _sysv.is_running():
        # Init scripts have no common way to name them.
        return rf".*\b({re.escape(user)}|{re.escape(group)})\b.*"
    return rf"User={re.escape(user)}|Group={re.escape(group)}"


def _files() -> dict[str, list[str]]:
    """The lines of each regular service file of the administrator, by the name of the service, sorted."""
    return _regular_files(_sysv.SCRIPTS) if _sysv.is_running() else _regular_files(UNITS, _systemd.SUFFIX)


def _regular_files(folder: str, suffix: str = "") -> dict[str, list[str]]:
    """The lines of each regular file of a folder with this suffix, by its name without the suffix, sorted."""
    found = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name)
        if name.endswith(suffix) and _is_file(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                found[name[: len(name) - len(suffix)]] = file.read(MAX_UNIT_BYTES).split("\n")
    return found


def _written(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
