# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line."""

from __future__ import annotations

import os
import typing as t

from hapgent import ANSWERS_AS, VERSION, log, systemd
from hapgent.agent import Agent
from hapgent.settings import SettingsError, from_environment
from hapgent.status_socket import StatusSocket

if t.TYPE_CHECKING:
    from hapgent.usage import Command

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


def main(arguments: list[str]) -> int:
    """Run the agent, or a command. Returns the exit status."""
    return _command(arguments) if arguments else run()


def _command(arguments: list[str]) -> int:
    # Imported here, and by what this calls, to keep the running agent small.
    from hapgent import usage  # noqa: PLC0415

    _open_standard_streams()
    name, *rest = arguments
    if name in usage.COMMANDS:
        return _run_command(usage.COMMANDS[name], rest)
    if arguments == ["--version"]:
        print(f"hapgent {VERSION} (answers as hapgent {ANSWERS_AS})")
        return EXIT_OK
    if arguments in (["--help"], ["-h"]):
        print(usage.help_of_all(), end="")
        return EXIT_OK
    if arguments == ["--services"]:
        return _print_services()
    if name == "follow":
        # Only units run this, so the help does not mention it.
        from hapgent import follow  # noqa: PLC0415

        return follow.main(rest)
    known = [*usage.COMMANDS, *(option for option, _text in usage.OPTIONS)]
    log.error(
        f"arguments must be a command ({', '.join(usage.COMMANDS)}), --help, --version, --services, or none to run the "
        f"agent, not {arguments}{usage.suggestion(name, known) or '.'}"
    )
    return EXIT_USAGE


def _run_command(command: Command, arguments: list[str]) -> int:
    if "--help" in (arguments[:1] if command.runs else arguments) or arguments == ["-h"]:
        from hapgent.usage import help_of  # noqa: PLC0415

        print(help_of(command), end="")
        return EXIT_OK
    if command.name == "status":
        from hapgent import status_command  # noqa: PLC0415

        return status_command.main(arguments)
    if command.name == "weigh":
        from hapgent import weigh_command  # noqa: PLC0415

        return weigh_command.main(command, arguments)
    if command.name in ("load", "pressure"):
        from hapgent import measure  # noqa: PLC0415

        return measure.main(command, arguments)
    from hapgent import change_command  # noqa: PLC0415

    return change_command.main(command, arguments)


def _print_services() -> int:
    from hapgent import instances  # noqa: PLC0415
    from hapgent._agent_process import InstanceError  # noqa: PLC0415

    try:
        services = [found.service for found in instances.discover() if found.service]
    except InstanceError as error:
        log.error(str(error))
        return EXIT_FAILED
    print("".join(f"{service}\n" for service in services), end="")
    return EXIT_OK


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


def _open_standard_streams() -> None:
    """Open closed standard streams. Otherwise, a socket or pipe could get the number of one, and receive log lines."""
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
