# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line."""

from __future__ import annotations

import os

from hapgent import ANSWERS_AS, VERSION, log, systemd
from hapgent.agent import Agent
from hapgent.settings import SettingsError, from_environment
from hapgent.state import FIELDS, STATUSES
from hapgent.status_socket import StatusSocket

EXIT_OK, EXIT_CANNOT_LISTEN, EXIT_USAGE = 0, 1, 2

_FIELDS = "\n".join(f"  {name:<20}optional: {field.meaning}, {field.range}" for name, field in FIELDS.items())
USAGE = f"""\
usage: hapgent [--help | --version]
       hapgent status [--help] [--json | --prometheus] [SOCKET]

Reports the state of a server to HAProxy: answers each agent-check with the state in a JSON file.

Environment:
  HAPGENT_IP          address to listen on, IPv4 or IPv6 (default: 0.0.0.0)
  HAPGENT_PORT        port to listen on (default: 9777)
  HAPGENT_STATE_FILE  path of the state file (default: /etc/hapgent/state.json)
  HAPGENT_SETTLE      seconds after a change, 0 to 86400, for which each load balancer
                      is also sent the keywords that reset the previous state
                      (default: 60; 0: never)
  HAPGENT_SOCKET      UNIX socket that reports the status (default: none)

State file: a JSON object, for example {{"status": "UP"}}.
  status              one of {" ".join(STATUSES)}
{_FIELDS}

Signals:
  USR1                set status UP and save it
  USR2                set status DOWN and save it
  HUP                 read the state file again
  TERM, INT           exit
"""


def main(arguments: list[str]) -> int:
    """Run the agent, or print its help, version or status. Returns the exit status."""
    if arguments == ["--help"]:
        print(USAGE, end="")
        return EXIT_OK
    if arguments == ["--version"]:
        print(f"hapgent {VERSION} (answers as hapgent {ANSWERS_AS})")
        return EXIT_OK
    if arguments[:1] == ["status"]:
        # Imported here to keep the running agent small.
        from hapgent import status_command  # noqa: PLC0415

        return status_command.main(arguments[1:])
    if arguments:
        log.error(
            f"arguments must be status, --help, --version or none to run the agent, not {arguments}."
            f"{_suggestion(arguments[0])}"
        )
        return EXIT_USAGE
    return run()


def _suggestion(word: str) -> str:
    # Imported here to keep the running agent small.
    from difflib import get_close_matches  # noqa: PLC0415

    nearest = get_close_matches(word, ("status", "--help", "--version"), n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def run() -> int:
    """Run the agent until it receives a signal to end. Returns the exit status."""
    _open_standard_streams()
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
        return EXIT_CANNOT_LISTEN
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


def _open_standard_streams() -> None:
    """Open closed standard streams. Otherwise, a socket could get the number of one, and receive log lines."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _take_the_name() -> None:
    """Set the process name to hapgent, so that pkill finds it however Python was started. Source: proc_pid_comm(5)."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write("hapgent")
    except OSError as error:
        log.error(f"cannot set the process name to hapgent: {error.strerror}. pkill hapgent will not find this process")
