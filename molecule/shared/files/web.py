# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A service for the test hosts that responds with its host's name and its version.

It stops without waiting for requests in progress, as many services do.

usage: web.py [ADDRESS]
"""

from __future__ import annotations

import socket
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PORT = 8080
VERSION = Path("/etc/web/version")
# While this file exists, requests for /held are not answered.
HOLD = Path("/run/hold")


class Server(socketserver.ThreadingTCPServer):
    """A server with one thread per connection. That of http.server would look up the host's name in the DNS first."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: str, version: str) -> None:
        super().__init__((address, PORT), Handler)
        self.page = f"{socket.gethostname()} {version}\n"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that HAProxy resets: this is normal and frequent."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """The requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # With a buffer, head and body are sent together.
    wbufsize = -1

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/slow":
            time.sleep(float(parse_qs(url.query)["seconds"][0]))
        while url.path == "/held" and HOLD.exists():
            time.sleep(0.1)
        pages = {**dict.fromkeys(("/", "/slow", "/held"), self.server.page), "/health": "ok\n"}
        if url.path in pages:
            self._respond(pages[url.path].encode())
        else:
            self.send_error(404)

    def _respond(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing, because there are hundreds of requests per second."""


def main() -> None:
    version = VERSION.read_text(encoding="utf-8").strip()
    if version.startswith("broken"):
        sys.exit(f"Version {version} does not start: {VERSION} contains a broken one.")
    Server("".join(sys.argv[1:2]), version).serve_forever()


if __name__ == "__main__":
    main()
