# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The start of the agent, from its settings and what systemd has opened for it."""

from __future__ import annotations

import os

from hapgent import log, systemd
from hapgent.agent import Agent
from hapgent.settings import SettingsError, from_environment
from hapgent.status_socket import StatusSocket

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


def run() -> int:
    """Run the agent until it receives a signal to end. Returns the exit status."""
    _take_the_name()
    try:
        settings = from_environment(os.environ)
        activated = systemd.activated_listener()
    except (SettingsError, ValueError) as error:
        log.error(str(error))
        return EXIT_USAGE
    try:
        listener = activated or settings.open_listener()
    except SettingsError as error:
        log.error(str(error))
        return EXIT_FAILED
    Agent(listener, settings, _open_status_socket(settings.status_socket)).run()
    return EXIT_OK


def _open_status_socket(path: str) -> StatusSocket | None:
    """Open the status socket, if one is set. If that fails, the agent still runs, because checks are more important."""
    if not path:
        return None
    try:
        return StatusSocket(path)
    except OSError as error:
        log.error(
            f"cannot listen on HAPGENT_SOCKET {path!r}: {error.strerror or error}. "
            "The agent runs without a status socket"
        )
        return None


def _take_the_name() -> None:
    """Set the process name to hapgent, so that pkill finds it however Python was started. Source: proc_pid_comm(5)."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write("hapgent")
    except OSError as error:
        log.error(f"cannot set the process name to hapgent: {error.strerror}. pkill hapgent will not find this process")
