# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real HAProxy for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Eventually, FreePort

CACHE = Path(__file__).parents[2] / ".cache" / "haproxy"
# tests/tools/install downloads HAProxy; without it, the tests use the one of the machine.
HAPROXY = str(CACHE / "usr/sbin/haproxy") if CACHE.exists() else shutil.which("haproxy") or "haproxy"
LIBRARIES = os.pathsep.join(str(folder) for folder in CACHE.glob("usr/lib/*-linux-gnu*"))
PATIENCE_SECONDS = 15.0


class Service(socketserver.ThreadingTCPServer):
    """A service whose sessions last until the client ends them."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ServiceHandler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class ServiceHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while received := self.request.recv(4096):
            self.request.sendall(received)


class LoadBalancer:
    """A real HAProxy in front of one service, with a stats socket and a stats page."""

    def __init__(self, folder: Path, free_port: FreePort) -> None:
        self.folder = folder
        self.socket = folder / "admin.sock"
        self.master_socket = folder / "master.sock"
        self.tcp = f"127.0.0.1:{free_port()}"
        self.page = f"http://127.0.0.1:{free_port()}/stats"
        self.ports: dict[str, int] = {}
        self._free_port = free_port
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._service = self._stack.enter_context(Service())
        self._stack.callback(self._service.shutdown)
        self._sections: list[str] = []

    def backend(self, name: str, *lines: str) -> None:
        """Add a backend and its frontend. In the lines, SERVICE stands for the address of the service."""
        self.ports[name] = self._free_port()
        self._sections += [
            f"frontend to_{name}",
            f"    bind 127.0.0.1:{self.ports[name]}",
            f"    default_backend {name}",
            f"backend {name}",
            *(f"    {line.replace('SERVICE', f'127.0.0.1:{self._service.port}')}" for line in lines),
        ]

    def section(self, *lines: str) -> None:
        self._sections += lines

    def start(self) -> None:
        config = self.folder / "haproxy.cfg"
        lines = [
            "global",
            f"    stats socket {self.socket} mode 600 level admin",
            f"    stats socket {self.tcp} level admin",
            # After a reload, sessions continue in the old process, but not for ever.
            "    hard-stop-after 60s",
            "defaults",
            "    mode tcp",
            "    timeout connect 2s",
            "    timeout client 60s",
            "    timeout server 60s",
            "frontend stats",
            "    mode http",
            f"    bind {self.page.split('/')[2]}",
            "    stats enable",
            "    stats uri /stats",
            "    stats auth ada:secret",
            "    stats show-legends",
            *self._sections,
        ]
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with (self.folder / "haproxy.log").open("ab") as log:
            self._process = subprocess.Popen(
                [HAPROXY, "-W", "-S", self.master_socket, "-db", "-f", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LD_LIBRARY_PATH": LIBRARIES},
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._answers():
            if time.monotonic() >= deadline or self._process.poll() is not None:
                pytest.fail(f"HAProxy does not start: {(self.folder / 'haproxy.log').read_text(encoding='utf-8')}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            # The master ignores a reload before it answers itself.
            return "Uptime" in self.send("show info") and "# workers" in self._send("show proc", self.master_socket)
        except OSError:
            return False

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def reload(self) -> None:
        """Reload HAProxy as systemctl reload does."""
        assert self._process
        self._process.send_signal(signal.SIGUSR2)

    def end(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self.stop()
        self._stack.close()

    def send(self, command: str) -> str:
        return self._send(command, self.socket)

    @staticmethod
    def _send(command: str, path: Path) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(str(path))
            connection.sendall(f"{command}\n".encode())
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def session(self, backend: str) -> socket.socket:
        """Open a session to the service, which lasts until it is closed."""
        client = socket.create_connection(("127.0.0.1", self.ports[backend]), PATIENCE_SECONDS)
        self._stack.callback(client.close)
        client.sendall(b"hello")
        assert client.recv(64) == b"hello"
        return client

    def await_status(self, eventually: Eventually, **statuses: str) -> None:
        """Wait until servers of the backend web have these statuses, without using the module."""

        def have_statuses() -> bool:
            lines = [line.split(",") for line in self.send("show stat").splitlines()]
            found = {line[1]: line[17] for line in lines if line[0] == "web"}
            return statuses.items() <= found.items()

        eventually(have_statuses, f"{statuses}")

    def connections(self) -> int:
        """How often anyone has connected to this HAProxy, including this call."""
        return int(self.send("show info").partition("\nCumConns: ")[2].split()[0])
