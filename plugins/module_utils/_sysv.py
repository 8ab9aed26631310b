# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Find the init scripts of agents on a host that sysvinit runs. It answers what _systemd.py answers for systemd.

The init script of the role starts a loop as root, which starts the agent again when it ends. There is a file with the
process ID of each. The ID of an agent that has ended may belong to any process of any user now. So it counts only for
a child of the loop: no other user can start a process that is one.
"""

from __future__ import annotations

import os
import re
import stat
import typing as t

from ._systemd import PID, RunCommand, Service

SCRIPTS = "/etc/init.d"
PID_FILES = "/run"
OF_AGENT = ".pid"
OF_LOOP = ".supervisor"
AGENT = "hapgent"
ROOT = 0
SETTING = re.compile(r"^export ([A-Z_]+)=(\S*)$", re.MULTILINE)
MAX_SCRIPT_BYTES = 64 * 1024
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Status(t.NamedTuple):
    """What the kernel reports of a process: its name, its parent, and whether it has the rights of root alone."""

    name: str
    parent: int
    is_of_root: bool


def is_running() -> bool:
    """Return whether sysvinit, as Debian configures it, manages this host."""
    # Others also call the first process init, such as OpenRC and containers.
    return first_process() == "init" and all(map(os.path.exists, ("/etc/inittab", "/usr/sbin/update-rc.d")))


def first_process() -> str:
    """Return the name of the first process of the host."""
    try:
        with open("/proc/1/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read(64).strip()
    except OSError:
        return "unknown"


def service(name: str, _run_command: RunCommand) -> Service:
    """Return the state of this service: V(active), V(activating) while its agent is started again, or V(inactive).

    It is V(unsupervised) if its loop was killed. What has the process ID of the agent then may not be the agent.
    """
    if name not in scripts():
        return Service(name, False, "inactive", 0)
    loop, agent = (read_pid(os.path.join(PID_FILES, name + suffix)) for suffix in (OF_LOOP, OF_AGENT))
    loops, runs = read_status(loop), read_status(agent)
    if not (loops and loops.is_of_root):
        return Service(name, True, "unsupervised" if runs and runs.name == AGENT else "inactive", 0)
    # Before it is the agent, the process is the program that starts it.
    if not (runs and runs.parent == loop and runs.name == AGENT):
        return Service(name, True, "activating", 0)
    return Service(name, True, "active", agent)


def services(run_command: RunCommand) -> list[Service]:
    """Return all services whose scripts are those of agents."""
    return [service(name, run_command) for name in scripts()]


def environment(name: str, _run_command: RunCommand) -> dict[str, str]:
    """Return the variables that the script of this service exports."""
    return dict(SETTING.findall(scripts().get(name, "")))


def mentions(name: str, _word: str, _run_command: RunCommand) -> bool:
    """Return whether root has configured the service for an agent."""
    return name in scripts()


def with_state_file() -> list[str]:
    """Return the services whose files set the state file of an agent."""
    return list(scripts())


def command(action: str, name: str) -> str:
    """Return the command with which a person does this to a service, such as C(start)."""
    return f"service {name} {action}"


def scripts() -> dict[str, str]:
    """Return the init scripts of agents by the names of their services: those that export HAPGENT_STATE_FILE."""
    found = {}
    for name in sorted(os.listdir(SCRIPTS)) if os.path.isdir(SCRIPTS) else []:
        try:
            path = os.path.join(SCRIPTS, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, encoding="utf-8", errors="replace") as file:
                    found[name] = file.read(MAX_SCRIPT_BYTES)
        except OSError:
            continue  # It was removed meanwhile, or this user may not read it.
    return {name: text for name, text in found.items() if "HAPGENT_STATE_FILE" in dict(SETTING.findall(text))}


def read_pid(path: str) -> int:
    """Return the process ID in a file that only root can have written, otherwise 0."""
    try:
        folder = os.stat(os.path.dirname(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, encoding="ascii", errors="replace") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or any(
                status.st_uid != ROOT or status.st_mode & OTHERS_WRITE for status in (folder, found)
            ):
                return 0
            text = file.read(16).strip()
    except OSError:
        return 0
    return int(text) if PID.fullmatch(text) else 0


def read_status(pid: int) -> Status | None:
    """Return the status of a process, None if it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return parse_status(file.read(MAX_SCRIPT_BYTES))
    except OSError:
        return None


def parse_status(status: str) -> Status | None:
    """Return what is in the content of /proc/PID/status, None for a process that has ended. Source: proc_pid_status(5).

    The process chooses its own name, which comes first and may look like other lines. So the last ones count.
    """
    lines = dict(line.partition(":\t")[::2] for line in status.split("\n"))
    if lines.get("State", "Z")[:1] in ("Z", "X") or not PID.fullmatch(lines.get("PPid", "")):
        return None
    return Status(lines.get("Name", ""), int(lines["PPid"]), set(lines.get("Uid", "").split("\t")) == {str(ROOT)})
