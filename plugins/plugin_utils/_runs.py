# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Which run of Ansible this is, and whether another one has ended.

A run is named by its process, and by the boot and the PID namespace of the control node, in which that process has its
number. So only a run that would be visible here can count as ended.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from pathlib import Path

PROC = Path("/proc")


def current() -> str:
    """The name of this run. Plugins run in processes of their own, which the process of the run has started."""
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent and parent.pid else os.getpid()
    return f"{_here()} {pid} {_started(pid)}"


def has_ended(run: str) -> bool:
    """Whether the run with this name has ended. It is False if that is not known."""
    here, _space, process = run.partition("] ")
    match = re.fullmatch("([1-9][0-9]{0,9}) ([0-9]+)", process)
    if not match or f"{here}]" != _here():
        return False
    pid, started = match.groups()
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        # It is a process of another user.
        pass
    now = _started(int(pid))
    return bool(now) and now != started


def _here() -> str:
    """The boot and the PID namespace, such as C(BOOT pid:[4026531836]), '' if they are not known."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process has started, as the kernel counts it, '' if that is not known. Source: proc_pid_stat(5)."""
    try:
        # The name of the process may contain spaces and brackets.
        return (PROC / f"{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
