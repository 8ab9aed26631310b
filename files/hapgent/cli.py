# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line."""

from __future__ import annotations

import os
import typing as t

from hapgent import ANSWERS_AS, VERSION, log

if t.TYPE_CHECKING:
    from hapgent.usage import Command


def main(arguments: list[str]) -> int:
    """Run the agent, or a command. Returns the exit status."""
    _open_standard_streams()
    if arguments:
        return _command(arguments)
    # Each import is where it is needed: Python compiles a zipapp at each start, and the running agent stays small.
    from hapgent import start  # noqa: PLC0415

    return start.run()


def _command(arguments: list[str]) -> int:
    from hapgent import usage  # noqa: PLC0415

    name, *rest = arguments
    if name in usage.COMMANDS:
        return _run_command(usage.COMMANDS[name], rest)
    if arguments == ["--version"]:
        print(f"hapgent {VERSION} (answers as hapgent {ANSWERS_AS})")
        return usage.EXIT_OK
    if arguments in (["--help"], ["-h"]):
        print(usage.help_of_all(), end="")
        return usage.EXIT_OK
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
    return usage.EXIT_USAGE


def _run_command(command: Command, arguments: list[str]) -> int:
    from hapgent import usage  # noqa: PLC0415

    if "--help" in (arguments[:1] if command.runs else arguments) or arguments == ["-h"]:
        print(usage.help_of(command), end="")
        return usage.EXIT_OK
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
    from hapgent import instances, usage  # noqa: PLC0415
    from hapgent._agent_process import InstanceError  # noqa: PLC0415

    try:
        services = [found.service for found in instances.discover() if found.service]
    except InstanceError as error:
        log.error(str(error))
        return usage.EXIT_FAILED
    print("".join(f"{service}\n" for service in services), end="")
    return usage.EXIT_OK


def _open_standard_streams() -> None:
    """Open closed standard streams. Otherwise, a socket or pipe could get the number of one, and receive log lines."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
