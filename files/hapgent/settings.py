# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The settings of the agent, which are environment variables."""

from __future__ import annotations

import socket
import typing as t

from hapgent._printable import printable
from hapgent._ramp import Ramp, parse_percents

MAX_SHOWN = 100


class SettingsError(Exception):
    """A setting has an invalid value. The text names the variable, the value and the valid values."""


class Settings(t.NamedTuple):
    """The address on which the agent listens, its state file, and optional features.

    C(settle) is for how many seconds after a change, 0 to 86400, the agent also sends the keywords that reset the
    previous state. C(ramp) is how the weight of a server grows after it has come into rotation. C(status_socket) is the
    path of the status socket, '' for none.
    """

    family: socket.AddressFamily
    ip: str
    port: int
    state_file: str
    settle: int
    ramp: Ramp
    status_socket: str

    def open_listener(self) -> socket.socket:
        """Start to listen. Raises SettingsError if the host does not allow it."""
        try:
            listener = socket.socket(self.family, socket.SOCK_STREAM)
            # Connections that the agent closed occupy the port for a minute. SO_REUSEADDR lets a restarted agent bind
            # it anyway. Unlike SO_REUSEPORT, it does not let a second agent bind it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.ip, self.port))
            listener.listen(1024)
        except OSError as error:
            raise SettingsError(
                f"cannot listen on HAPGENT_IP {self.ip}, HAPGENT_PORT {self.port}: {error.strerror}. "
                "They must be an address of this host and a free port that this user may use"
            ) from error
        return listener


def from_environment(environment: t.Mapping[str, str]) -> Settings:
    """The settings in these environment variables, or their defaults. Raises SettingsError."""
    ip = environment.get("HAPGENT_IP", "0.0.0.0")
    state_file = environment.get("HAPGENT_STATE_FILE", "/etc/hapgent/state.json")
    port = _whole_number(environment, "HAPGENT_PORT", 9777, 1, 65535)
    settle = _whole_number(environment, "HAPGENT_SETTLE", 60, 0, 86400)
    if not state_file:
        raise SettingsError("HAPGENT_STATE_FILE must be the path of a file, not ''")
    return Settings(
        _family(ip), ip, port, state_file, settle, _ramp(environment), environment.get("HAPGENT_SOCKET", "")
    )


def _ramp(environment: t.Mapping[str, str]) -> Ramp:
    value = environment.get("HAPGENT_RAMP", "")
    seconds = _whole_number(environment, "HAPGENT_RAMP_SECONDS", Ramp().seconds, 1, 86400)
    try:
        return Ramp(parse_percents(value), seconds)
    except ValueError as error:
        raise SettingsError(
            "HAPGENT_RAMP must be ascending percentages that end with 100, such as 10,50,100, or empty, not "
            f"{printable(repr(value), MAX_SHOWN)}"
        ) from error


def _whole_number(environment: t.Mapping[str, str], name: str, default: int, minimum: int, maximum: int) -> int:
    value = environment.get(name, str(default))
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and minimum <= int(value) <= maximum):
        raise SettingsError(f"{name} must be a whole number from {minimum} to {maximum}, not {printable(repr(value))}")
    return int(value)


def _family(ip: str) -> socket.AddressFamily:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, ip)
        except (OSError, ValueError):
            continue
        return family
    raise SettingsError(f"HAPGENT_IP must be an IPv4 or IPv6 address such as 0.0.0.0 or ::1, not {printable(repr(ip))}")
