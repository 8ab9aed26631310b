# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules keep their deadlines if the name server does not respond, although the system's resolver waits longer."""

from __future__ import annotations

import fcntl
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible
import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _state
from ansible_collections.hapgent.agent.plugins.module_utils._agent_client import ask
from ansible_collections.hapgent.agent.plugins.module_utils._agent_process import InstanceError

IMPORTS = [Path(_state.__file__).parents[5], Path(ansible.__file__).parents[1]]
RESOLVER_SECONDS = 30
LOCK = Path(__file__).parents[2] / ".cache" / "name_server.lock"


@pytest.fixture
def name_server(tmp_path: Path) -> Iterator[socket.socket]:
    """The machine's name server: this socket, which never responds. Only safe in a separate mount namespace."""
    # Tests that run side by side share the namespace, so only one of them at a time can replace the name server.
    with LOCK.open("wb") as lock, socket.socket(type=socket.SOCK_DGRAM) as server:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server.bind(("127.0.0.1", 53))
        server.settimeout(15)
        config = tmp_path / "resolv.conf"
        config.write_text(f"nameserver 127.0.0.1\noptions timeout:{RESOLVER_SECONDS}\n", encoding="ascii")
        subprocess.run(["mount", "--bind", config, Path("/etc/resolv.conf").resolve()], check=True)
        yield server
        subprocess.run(["umount", Path("/etc/resolv.conf").resolve()], check=True)


@pytest.mark.parametrize("source", [{"socket": "lb.example.org:9999"}, {"url": "https://lb.example.org/stats"}])
def test_haproxy_server_info_does_not_wait_for_the_resolver(name_server: socket.socket, source: dict[str, Any]) -> None:
    module = "ansible_collections.hapgent.agent.plugins.modules.haproxy_server_info"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {**source, "timeout": 1}}),
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * RESOLVER_SECONDS,
        env={"PYTHONPATH": ":".join(map(str, IMPORTS))},
    )
    seconds = time.monotonic() - started
    result = json.loads(done.stdout)
    assert b"example" in name_server.recv(4096)
    assert (result["failed"], result["cause"]) == (True, "silent")
    assert seconds < RESOLVER_SECONDS


def test_query_of_an_agent_does_not_wait_for_the_resolver(name_server: socket.socket) -> None:
    started = time.monotonic()
    with pytest.raises(InstanceError, match="name server"):
        ask("agent.example.org", 9777, started + 1)
    assert time.monotonic() - started < RESOLVER_SECONDS
    assert b"example" in name_server.recv(4096)
