# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Where HAProxy says what its servers are: the stats socket and the CSV page."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import stat
import typing as t
import urllib.error
from urllib.parse import urlsplit, urlunsplit

from ansible.module_utils.urls import open_url
from ansible_collections.hapgent.agent.plugins.module_utils._deadline import seconds_until
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_stats import (
    COMMANDS,
    FormatError,
    HalfAnswerError,
    Statistics,
    parse_page,
    parse_socket,
)

DEFAULT_SOCKET = "/run/haproxy/admin.sock"
# Some kilobytes for each server: enough for a hundred thousand.
MAX_BYTES = 256 * 1024 * 1024
PIECE_BYTES = 65536


class SourceError(Exception):
    """HAProxy does not say what its servers are. The text says what to do."""


class PassingError(SourceError):
    """As it is for a moment while HAProxy reloads, or for longer."""


class Source(t.Protocol):
    """One HAProxy that can be asked."""

    def read(self, deadline: float) -> Statistics:
        """What it says now. C(deadline) is on the monotonic clock. Raises SourceError."""


class StatsSocket:
    """A stats socket: the path of a UNIX socket, or host:port."""

    def __init__(self, address: str) -> None:
        """Raises SourceError if this is neither."""
        self.address = address
        self._host_and_port: tuple[str, int] | None = None
        if "/" in address:
            return
        parts = re.fullmatch(r"(\[[^\]]+\]|[^:]+):(\d{1,5})", address)
        if not parts or not 1 <= int(parts[2]) <= 65535:
            raise SourceError(f"socket is {address}: allowed is a path with a slash, or host:port")
        self._host_and_port = parts[1].strip("[]"), int(parts[2])

    def read(self, deadline: float) -> Statistics:
        try:
            answer = self._ask(deadline)
        except PermissionError as error:
            raise SourceError(
                f"no permission for the stats socket {self.address}: be root (become) or in the socket's group"
            ) from error
        except socket.gaierror as error:
            raise SourceError(
                f"the host of {self.address} is not known ({error.strerror}): name the right one"
            ) from error
        except OSError as error:
            raise self._passing(error) from error
        if not answer:
            raise PassingError(
                f"{self.address} has ended the connection without an answer: is this HAProxy's stats socket?"
            )
        try:
            return parse_socket(answer.decode("utf-8", "backslashreplace"))
        except HalfAnswerError as error:
            raise PassingError(f"half an answer from {self.address}: {error}. See HAProxy's log") from error
        except FormatError as error:
            raise SourceError(f"what answers on {self.address} is no stats socket of HAProxy: {error}") from error

    def _ask(self, deadline: float) -> bytes:
        with self._connect(deadline) as connection:
            connection.sendall(f"{COMMANDS}\n".encode())
            received = bytearray()
            while len(received) < MAX_BYTES:
                connection.settimeout(seconds_until(deadline))
                try:
                    piece = connection.recv(PIECE_BYTES)
                except socket.timeout as error:
                    told = f"only {bytes(received[:64])!r}" if received else "nothing"
                    raise TimeoutError(f"it says {told} and does not come to an end") from error
                if not piece:
                    break
                received += piece
            return bytes(received)

    def _connect(self, deadline: float) -> socket.socket:
        if self._host_and_port:
            return socket.create_connection(self._host_and_port, seconds_until(deadline))
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(seconds_until(deadline))
            connection.connect(self.address)
        except OSError:
            connection.close()
            raise
        return connection

    def _passing(self, error: OSError) -> SourceError:
        if not self._host_and_port and _is_something_else(self.address):
            return SourceError(f"{self.address} is no socket: name the path that is behind stats socket in haproxy.cfg")
        return PassingError(
            f"HAProxy does not answer on {self.address} ({error.strerror or error}): see that it runs, and that "
            "haproxy.cfg has it in the section global: "
            f"stats socket {self.address} mode 660 level operator"
        )


class CsvPage:
    """The CSV form of a stats page, over HTTP or HTTPS."""

    def __init__(
        self, url: str, user: str | None, password: str | None, ca_path: str | None, validate_certs: bool
    ) -> None:
        """Raises SourceError if this is no URL."""
        try:
            parts = urlsplit(url)
            host, _port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise SourceError("url is no URL: allowed is http:// or https://, a host, and the path of the stats page")
        path = parts.path or "/"
        self._url = urlunsplit(parts._replace(path=path))
        if ";csv" not in self._url:
            self._url += ";csv"
        # Not with what is secret.
        self.shown = urlunsplit(urlsplit(self._url)._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._ca_path = ca_path
        self._options = {
            "url_username": user,
            "url_password": password,
            "force_basic_auth": user is not None,
            "ca_path": ca_path,
            "validate_certs": validate_certs,
        }

    def read(self, deadline: float) -> Statistics:
        try:
            text = self._get(deadline).decode("utf-8", "backslashreplace")
        except urllib.error.HTTPError as error:
            raise self._refused(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error
        try:
            return parse_page(text)
        except HalfAnswerError as error:
            raise PassingError(f"half an answer from {self.shown}: {error}. See HAProxy's log") from error
        except FormatError as error:
            raise SourceError(
                f"{self.shown} is no stats page of HAProxy: {error}. "
                "Name the path that is behind stats uri in haproxy.cfg"
            ) from error

    def _get(self, deadline: float) -> bytes:
        with open_url(
            self._url, timeout=seconds_until(deadline), use_proxy=False, decompress=False, **self._options
        ) as response:
            received = bytearray()
            while len(received) < MAX_BYTES:
                seconds_until(deadline)
                piece = response.read1(PIECE_BYTES)
                if not piece:
                    break
                received += piece
            return bytes(received)

    def _refused(self, error: urllib.error.HTTPError) -> SourceError:
        if error.code in (401, 403):
            return SourceError(
                f"no permission for {self.shown} (HTTP {error.code}): "
                "give url_username and url_password as behind stats auth in haproxy.cfg"
            )
        problem = f"{self.shown} answers HTTP {error.code} {error.reason}"
        if error.code >= 500:
            return PassingError(f"{problem}: see that the stats page is there, and that HAProxy is well")
        return SourceError(f"{problem}: name the path that is behind stats uri in haproxy.cfg")

    def _failed(self, error: Exception) -> SourceError:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            return SourceError(
                f"the certificate of {self.shown} is not trusted ({reason.verify_message}): give its CA with ca_path"
            )
        if isinstance(reason, ssl.SSLError):
            return SourceError(f"no TLS with {self.shown} ({reason}): is it http:// there?")
        if isinstance(reason, socket.gaierror):
            return SourceError(f"the host of {self.shown} is not known ({reason.strerror}): name the right one")
        if isinstance(reason, (FileNotFoundError, PermissionError)):
            return SourceError(f"cannot read {self._ca_path} ({reason.strerror}): name the right file with ca_path")
        if isinstance(error, http.client.IncompleteRead):
            return PassingError(f"half an answer from {self.shown}. See HAProxy's log")
        return PassingError(
            f"HAProxy does not answer on {self.shown} ({reason}): see that it runs, and that its stats page is there"
        )


def _is_something_else(path: str) -> bool:
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False
