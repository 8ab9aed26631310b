# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Query systemd for services. The name of a service may be given with or without its suffix."""

from __future__ import annotations

import os
import re
import stat
import typing as t

SUFFIX = ".service"
UNITS = "/etc/systemd/system"
# Names that systemctl treats as the name of one unit rather than as a pattern. Source: systemd.unit(5).
UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]{1,247}\.service")
PID = re.compile(r"[0-9]{1,10}")
# systemctl quotes an assignment that contains blanks, and escapes what is special in a shell's double quotes.
ASSIGNMENT = re.compile(r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s"]\S*))(?:\s+|$)')
ESCAPED = re.compile(r"\\(.)")
# What the unit of an agent sets, whatever its name is.
OF_AN_AGENT = re.compile(r"^Environment=.*\bHAPGENT_STATE_FILE=", re.MULTILINE)
MAX_UNIT_BYTES = 64 * 1024

RunCommand = t.Callable[[list[str]], tuple[int, str, str]]


class SystemdError(Exception):
    """systemctl failed, or the name is not that of a service. The text describes the problem."""


class Service(t.NamedTuple):
    """A service.

    C(exists) is whether systemd has the service, C(state) its state, such as V(active), and C(main_pid) the ID of its
    main process, 0 if it has none.
    """

    name: str
    exists: bool
    state: str
    main_pid: int


def is_running() -> bool:
    """Return whether systemd manages this host. Source: sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")


def service(name: str, run_command: RunCommand) -> Service:
    """Return what systemd reports about this service. Raises SystemdError."""
    unit = _unit(name)
    found = _show(unit, run_command)
    if len(found) != 1:
        raise SystemdError(f"systemctl show {unit} printed no service")
    return found[0]


def services(run_command: RunCommand) -> list[Service]:
    """Return all services that systemd has loaded, without those of user managers. Raises SystemdError."""
    return _show("*.service", run_command)


def environment(name: str, run_command: RunCommand) -> dict[str, str]:
    """Return the variables that the unit of this service sets with Environment=. Raises SystemdError."""
    unit = _unit(name)
    rc, out, err = run_command(["systemctl", "show", "--property=Environment", "--", unit])
    if rc != 0:
        raise SystemdError(f"systemctl show {unit} failed: {err.strip()}")
    return parse_unit_environment(out)


def mentions(name: str, word: str, run_command: RunCommand) -> bool:
    """Return whether a service has this word in its name, its command or its environment. Raises SystemdError.

    Unlike the name of its process, these are set by root.
    """
    unit = _unit(name)
    if word in unit:
        return True
    properties = "--property=ExecStart,Environment,EnvironmentFiles"
    rc, out, err = run_command(["systemctl", "show", properties, "--", unit])
    if rc != 0:
        raise SystemdError(f"systemctl show {unit} failed: {err.strip()}")
    return word in out


def with_state_file() -> list[str]:
    """Return the services whose files of the administrator set the state file of an agent."""
    return [name for name, text in unit_files().items() if OF_AN_AGENT.search(text)]


def unit_files() -> dict[str, str]:
    """Return the contents of the regular service files of the administrator, by the names of their services."""
    found = {}
    for name in os.listdir(UNITS) if os.path.isdir(UNITS) else []:
        if name.endswith(SUFFIX):
            try:
                path = os.path.join(UNITS, name)
                if stat.S_ISREG(os.lstat(path).st_mode):
                    with open(path, encoding="utf-8", errors="replace") as file:
                        found[name[: -len(SUFFIX)]] = file.read(MAX_UNIT_BYTES)
            except OSError:
                continue  # It was removed meanwhile, or this user may not read it.
    return found


def command(action: str, name: str) -> str:
    """Return the command with which a person does this to a service, such as C(start)."""
    return f"systemctl {action} {name}"


def _unit(name: str) -> str:
    unit = name if name.endswith(SUFFIX) else name + SUFFIX
    # A pattern would match other services.
    if not UNIT_NAME.fullmatch(unit):
        raise SystemdError(f"{name} is not the name of a systemd service")
    return unit


def _show(pattern: str, run_command: RunCommand) -> list[Service]:
    rc, out, err = run_command(["systemctl", "show", "--property=Id,LoadState,ActiveState,MainPID", "--", pattern])
    if rc != 0:
        raise SystemdError(f"systemctl show {pattern} failed: {err.strip()}")
    return parse_services(out)


def parse_services(printed: str) -> list[Service]:
    """Return the services in the output of C(systemctl show), which separates them with blank lines."""
    found = []
    for block in printed.split("\n\n"):
        properties = dict(line.partition("=")[::2] for line in block.split("\n"))
        name, pid = properties.get("Id", ""), properties.get("MainPID", "")
        if name.endswith(SUFFIX):
            found.append(
                Service(
                    name[: -len(SUFFIX)],
                    properties.get("LoadState") != "not-found",
                    properties.get("ActiveState", "unknown"),
                    int(pid) if PID.fullmatch(pid) else 0,
                )
            )
    return found


def parse_unit_environment(printed: str) -> dict[str, str]:
    """Return the variables in the output of C(systemctl show --property=Environment). Raises SystemdError."""
    found: dict[str, str] = {}
    for line in printed.split("\n"):
        key, _equals, rest = line.partition("=")
        while rest and key == "Environment":
            word = ASSIGNMENT.match(rest)
            if not word:
                raise SystemdError(f"systemctl show printed an Environment that cannot be read: {rest}")
            name, _equals, value = (word["plain"] or ESCAPED.sub(r"\1", word["quoted"])).partition("=")
            # If a variable is set twice, the last one counts. Source: systemd.exec(5).
            found[name] = value
            rest = rest[word.end() :]
    return found
