# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent's settings: environment variables."""

from __future__ import annotations

import socket
import typing as t


class SettingsError(Exception):
    """A value that cannot be used. The text names the variable, the value and what is allowed."""


class Settings(t.NamedTuple):
    """Where the agent listens and where its state is kept."""

    family: socket.AddressFamily
    ip: str
    port: int
    state_file: str

    def open_listener(self) -> socket.socket:
        """Listen. Raises SettingsError where the host does not allow it."""
        try:
            listener = socket.socket(self.family, socket.SOCK_STREAM)
            # Connections that the agent closed keep the port for a minute. This lets a restart take it all the
            # same, and no second agent: that would be SO_REUSEPORT.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.ip, self.port))
            listener.listen(1024)
        except OSError as error:
            raise SettingsError(
                f"HAPGENT_IP {self.ip}, HAPGENT_PORT {self.port}: {error.strerror}: "
                "allowed are an address of this host and a port that is free and permitted to this user"
            ) from error
        return listener


def from_environment(environment: t.Mapping[str, str]) -> Settings:
    """The settings, with their defaults. Raises SettingsError."""
    ip = environment.get("HAPGENT_IP", "0.0.0.0")
    port = environment.get("HAPGENT_PORT", "9777")
    state_file = environment.get("HAPGENT_STATE_FILE", "/etc/hapgent/state.json")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise SettingsError(f"HAPGENT_PORT is {port!r}: allowed is a whole number from 1 to 65535")
    if not state_file:
        raise SettingsError("HAPGENT_STATE_FILE is '': allowed is the path of a file")
    return Settings(_family(ip), ip, int(port), state_file)


def _family(ip: str) -> socket.AddressFamily:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, ip)
        except (OSError, ValueError):
            continue
        return family
    raise SettingsError(f"HAPGENT_IP is {ip!r}: allowed is an IPv4 or IPv6 address such as 0.0.0.0 or ::1")
