# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Query HAProxy for its servers, over a stats socket or the CSV page, and send commands to its sockets.

One deadline and one size limit apply to a whole conversation: name lookup, connection, TLS, headers and body. Any
program may respond, and its response may never end.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import os
import re
import socket
import ssl
import stat
import typing as t
from urllib.parse import urlsplit, urlunsplit

from ._connection import connect, connect_to
from ._deadline import seconds_until
from ._haproxy_stats import (
    COMMANDS,
    DeniedError,
    FormatError,
    Statistics,
    TruncatedError,
    UnknownCommandError,
    parse_page,
    parse_socket,
)
from ._printable import printable

DEFAULT_SOCKET = "/run/haproxy/admin.sock"
# Enough for a hundred thousand servers with about 500 bytes each.
MAX_BYTES = 64 * 1024 * 1024
PIECE_BYTES = 65536
# The kernel does not accept a longer path for a socket.
MAX_PATH_BYTES = 107
PORTS = {"http": 80, "https": 443}

# The kind of problem, which determines the advice: HAProxy may be down only if it is silent.
Cause = t.Literal["permission", "silent", "answer", "settings"]


class SourceError(Exception):
    """HAProxy does not report its servers. The text gives advice, C(cause) is the kind of problem."""

    def __init__(self, text: str, cause: Cause) -> None:
        super().__init__(text)
        self.cause: Cause = cause


class TransientError(SourceError):
    """A problem that may be temporary, for example because HAProxy is reloading."""

    def __init__(self, text: str, cause: Cause = "silent") -> None:
        super().__init__(text, cause)


class Source(t.Protocol):
    """One HAProxy that can be queried."""

    def read(self, deadline: float) -> Statistics:
        """What HAProxy reports now. C(deadline) is on the monotonic clock. Raises SourceError."""


class OversizeError(Exception):
    """A response is larger than MAX_BYTES."""


class Conversation(io.RawIOBase):
    """A connection with one deadline and one size limit for the whole conversation.

    The timeout of a socket applies only to each step, and a response can have one step for each of its bytes.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._received = 0
        # The beginning of the response, which is shown if the response does not end.
        self._start = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        try:
            self._connection.settimeout(seconds_until(self._deadline))
            count = self._connection.recv_into(buffer)
        # Since Python 3.10, both are the same class.
        except (TimeoutError, socket.timeout) as error:
            sent = f"only '{printable(self._start, 64)}', and the response does not end" if self._start else "nothing"
            raise TimeoutError(f"it sends {sent}") from error
        self._received += count
        if self._received > MAX_BYTES:
            raise OversizeError
        if len(self._start) < PIECE_BYTES // 1024:
            self._start += bytes(buffer[:count])[:64]
        return count

    def sendall(self, data: bytes) -> None:
        self._connection.settimeout(seconds_until(self._deadline))
        self._connection.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """The same method as that of a socket, for http.client."""
        return io.BufferedReader(self, PIECE_BYTES)

    def close(self) -> None:
        self._connection.close()
        super().close()


class CommandSocket:
    """A socket on which HAProxy takes commands, given as the path of a UNIX socket or as host:port."""

    # The option with the address, what the socket is, what sets its path, and its lowest sufficient level.
    option: str
    kind: str
    origin: str
    level: str

    def __init__(self, address: str) -> None:
        """Raises SourceError if C(address) is neither of them."""
        self.address = address
        self.shown = printable(address)
        self._host_and_port: tuple[str, int] | None = None
        if "/" in address and "\0" not in address and len(os.fsencode(address)) <= MAX_PATH_BYTES:
            return
        parts = re.fullmatch(r"(\[[^\]/]+\]|[^:/]+):([0-9]{1,5})", address)
        if not parts or not 1 <= int(parts[2]) <= 65535:
            raise SourceError(
                f"{self.option} must be a path with a slash of at most {MAX_PATH_BYTES} bytes, or host:port, "
                f"not {self.shown}",
                "settings",
            )
        self._host_and_port = parts[1].strip("[]"), int(parts[2])

    @property
    def is_path(self) -> bool:
        return self._host_and_port is None

    @contextlib.contextmanager
    def ask(self, commands: str, deadline: float) -> t.Iterator[t.Iterable[str]]:
        """The lines of the answer to these commands. Raises SourceError, also for problems of the caller's parser."""
        try:
            with self._connect(deadline) as connection:
                conversation = Conversation(connection, deadline)
                conversation.sendall(f"{commands}\n".encode())
                # Only this makes a master of HAProxy 2.2 close the connection after its answer.
                connection.shutdown(socket.SHUT_WR)
                answer = conversation.makefile("rb")
                if not answer.peek(1):
                    raise TransientError(
                        f"{self.shown} closed the connection without a response: check that it is HAProxy's {self.kind}"
                    )
                yield _lines(answer)
        except OversizeError as error:
            raise _oversize(self.shown) from error
        except OSError as error:
            raise _unknown_host(error, self.shown) or self._failed(error) from error
        except TruncatedError as error:
            raise TransientError(f"incomplete response from {self.shown} ({error}): check HAProxy's log") from error
        except DeniedError as error:
            raise SourceError(
                f"no permission on the {self.kind} {self.shown}: {error}. "
                f"The level of the socket must be {self.level} or higher",
                "permission",
            ) from error
        except FormatError as error:
            raise self._wrong(error) from error

    def _connect(self, deadline: float) -> socket.socket:
        if self._host_and_port:
            return connect(*self._host_and_port, deadline)
        return connect_to(socket.AF_UNIX, self.address, seconds_until(deadline))

    def _failed(self, error: OSError) -> SourceError:
        # For host:port, this error comes from the local firewall.
        if isinstance(error, PermissionError) and self.is_path:
            return SourceError(
                f"no permission for the {self.kind} {self.shown}: run as root (become) or as a member of the socket's "
                "group",
                "permission",
            )
        if self.is_path and _is_something_else(self.address):
            return SourceError(
                f"{self.option} must be the path set with {self.origin}: {self.shown} is not a socket", "settings"
            )
        return self._silent(error)

    def _silent(self, error: OSError) -> SourceError:
        raise NotImplementedError

    def _wrong(self, error: FormatError) -> SourceError:
        raise NotImplementedError


class StatsSocket(CommandSocket):
    """A stats socket."""

    option = "socket"
    kind = "stats socket"
    origin = "stats socket in haproxy.cfg"
    level = "user"

    def read(self, deadline: float) -> Statistics:
        with self.ask(COMMANDS, deadline) as lines:
            return parse_socket(lines)

    def _silent(self, error: OSError) -> SourceError:
        return TransientError(
            f"HAProxy does not respond on {self.shown} ({error.strerror or error}): check that it is running, and that "
            f"the global section of haproxy.cfg contains: stats socket {self.shown} mode 660 level operator"
        )

    def _wrong(self, error: FormatError) -> SourceError:
        if isinstance(error, UnknownCommandError):
            return SourceError(
                f"{self.shown} is HAProxy's master socket: set master_socket to it, and socket to the path set with "
                f"{self.origin}",
                "settings",
            )
        return SourceError(f"{self.shown} is not a stats socket of HAProxy: {error}", "answer")


class CsvPage:
    """The CSV form of a stats page, over HTTP or HTTPS, without a proxy. Redirects are not followed."""

    def __init__(
        self, url: str, user: str | None, password: str | None, ca_path: str | None, validate_certs: bool
    ) -> None:
        """Raises SourceError if C(url) is not valid."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in PORTS or not re.fullmatch("[!-~]+", url):
            raise SourceError(
                "url must consist of http:// or https://, a host, and the path of the stats page, in ASCII", "settings"
            )
        if "@" in parts.netloc:
            raise SourceError(
                "url must not contain a user or a password: use url_username and url_password", "settings"
            )
        url = urlunsplit(parts._replace(path=parts.path or "/", fragment=""))
        self.shown = url if ";csv" in url else f"{url};csv"
        self._target = self.shown[len(f"{parts.scheme}://{parts.netloc}") :]
        self._scheme = parts.scheme
        self._host = host
        self._port = PORTS[parts.scheme] if port is None else port
        self._ca_path = ca_path
        self._validate_certs = validate_certs
        self._headers = {"Connection": "close"}
        if user is not None:
            credentials = base64.b64encode(f"{user}:{password or ''}".encode("utf-8", "surrogatepass")).decode()
            self._headers["Authorization"] = f"Basic {credentials}"

    def read(self, deadline: float) -> Statistics:
        try:
            tls = self._tls() if self._scheme == "https" else None
            with connect(self._host, self._port, deadline) as connection:
                if not tls:
                    return self._get(Conversation(connection, deadline))
                connection.settimeout(seconds_until(deadline))
                with tls.wrap_socket(connection, server_hostname=self._host) as encrypted:
                    return self._get(Conversation(encrypted, deadline))
        except OversizeError as error:
            raise _oversize(self.shown) from error
        # http.client raises ValueError for some responses that are not HTTP.
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(error) from error

    def _tls(self) -> ssl.SSLContext:
        try:
            if self._ca_path is not None and not stat.S_ISREG(os.stat(self._ca_path).st_mode):
                # Reading a FIFO would block forever.
                raise ValueError("not a regular file")
            context = ssl.create_default_context(cafile=self._ca_path)
        except (OSError, ValueError) as error:
            raise SourceError(
                f"cannot read CA certificates from {printable(self._ca_path)} ({_reason(error)}): "
                "set ca_path to a PEM file with CA certificates",
                "settings",
            ) from error
        if not self._validate_certs:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _get(self, conversation: Conversation) -> Statistics:
        client = http.client.HTTPConnection(self._host, self._port)
        # The client omits this port from the Host header.
        client.default_port = PORTS[self._scheme]
        client.sock = t.cast("socket.socket", conversation)
        client.request("GET", self._target, headers=self._headers)
        # Not with client.getresponse(), which closes the connection and relies on the socket counting its references.
        response = http.client.HTTPResponse(client.sock, method="GET")
        response.begin()
        if response.status != http.client.OK:
            raise self._refused(response)
        try:
            statistics = parse_page(_lines(io.BufferedReader(t.cast("io.RawIOBase", response), PIECE_BYTES)))
        except TruncatedError as error:
            raise TransientError(f"incomplete response from {self.shown} ({error}): check HAProxy's log") from error
        except FormatError as error:
            raise SourceError(
                f"{self.shown} is not a stats page of HAProxy: {error}. "
                "url must have the path set with stats uri in haproxy.cfg",
                "answer",
            ) from error
        # If the length left is not 0, the body ended before Content-Length bytes.
        if response.length:
            raise TransientError(f"incomplete response from {self.shown}: check HAProxy's log")
        return statistics

    def _refused(self, response: http.client.HTTPResponse) -> SourceError:
        if response.status in (401, 403):
            return SourceError(
                f"no permission for {self.shown} (HTTP {response.status}): "
                "set url_username and url_password to those of stats auth in haproxy.cfg",
                "permission",
            )
        problem = f"{self.shown} returned HTTP {response.status} {printable(response.reason, 64)}"
        if response.status >= 500:
            # HAProxy itself returns 503 if no server is available.
            return TransientError(f"{problem}: check that the stats page exists and that HAProxy is healthy", "answer")
        if 300 <= response.status < 400:
            location = printable(response.headers.get("Location", "nowhere"))
            return SourceError(f"{problem}, a redirect to {location}: set url to the stats page itself", "answer")
        return SourceError(f"{problem}: url must have the path set with stats uri in haproxy.cfg", "answer")

    def _failed(self, error: Exception) -> SourceError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return SourceError(
                f"the certificate of {self.shown} is not trusted ({printable(error.verify_message)}): "
                "set ca_path to its CA",
                "answer",
            )
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return SourceError(
                f"{self.shown} does not use TLS ({_reason(error)}): the URL may have to begin with http://", "answer"
            )
        if isinstance(error, http.client.IncompleteRead):
            return TransientError(f"incomplete response from {self.shown}: check HAProxy's log")
        if not isinstance(error, OSError):
            return SourceError(f"the program on {self.shown} is not an HTTP server ({_reason(error)})", "answer")
        return _unknown_host(error, self.shown) or TransientError(
            f"HAProxy does not respond on {self.shown} ({_reason(error)}): check that it is running and that its stats "
            "page exists"
        )


def _lines(answer: io.BufferedReader) -> t.Iterable[str]:
    # Only \n ends a line, because text of HAProxy can contain other line ends.
    return io.TextIOWrapper(answer, "utf-8", "backslashreplace", newline="\n")


def _unknown_host(error: Exception, shown: str) -> SourceError | None:
    """The error if the host name does not exist. None for other errors, such as a name server that does not respond."""
    if not isinstance(error, socket.gaierror) or error.errno == socket.EAI_AGAIN:
        return None
    return SourceError(f"the host of {shown} is unknown ({error.strerror}): set an existing host", "settings")


def _oversize(shown: str) -> SourceError:
    return SourceError(f"{shown} sends more than {MAX_BYTES >> 20} MiB, the maximum size of a response", "answer")


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return printable(reason)


def _is_something_else(path: str) -> bool:
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False
