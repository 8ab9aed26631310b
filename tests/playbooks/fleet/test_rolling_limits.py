# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rolling update watches its hosts, pauses, and stops after too many failures."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet, Played

UP = {"status": "UP"}
REASON = "release 10"
DRAINED = {"status": "DRAIN", "reason": REASON}
DONE = {"status": "UP", "reason": REASON}


def roll(fleet: Fleet, *arguments: str, succeeds: bool = True, tasks: Any = (), **variables: object) -> Played:
    (fleet.project / "tasks.yml").write_text(json.dumps([{"name": "Work", "ansible.builtin.command": "true"}, *tasks]))
    given = {"hapgent_hosts": "web", "hapgent_tasks": "tasks.yml", "hapgent_reason": REASON, **variables}
    return fleet.play("hapgent.agent.rolling", *arguments, succeeds=succeeds, variables=given)


def worked_on(played: Played) -> list[str]:
    return [record["host"] for record in played.records if record["task"] == "Work"]


class Site(http.server.ThreadingHTTPServer):
    """The service of all hosts: /web1 is healthy until C(answer) returns another status for its request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[str] = []
        #: Is called with the host, and how often the host was requested before.
        self.answer: Callable[[str, int], int] = lambda _host, _before: 200


class Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        host = self.path[1:]
        before = self.server.requests.count(host)
        self.server.requests.append(host)
        self.send_response(self.server.answer(host, before))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_host_that_fails_while_it_bakes_is_drained(fleet: Fleet, site: Site) -> None:
    """One host causes an error in HAProxy, one was down for a moment, and one is not healthy any more."""
    lb = fleet.load_balancers["lb1"]

    def answer(host: str, before: int) -> int:
        if before == 1 and host == "web1":
            lb.fail_session("web1")
        if before == 1 and host == "web2":
            lb.send("set server web/web2 health down")
            lb.send("set server web/web2 health up")
        return 503 if before == 1 and host == "web3" else 200

    site.answer = answer
    given = {"hapgent_serial": 3, "hapgent_min_up": 0, "hapgent_bake": 60}
    played = roll(fleet, succeeds=False, hapgent_health_url=f"{site.url}/{{{{ inventory_hostname }}}}", **given)
    parts = {"web1": "econ 1", "web2": "DOWN", "web3": "503"}
    failures = played.failures()
    for host, part in parts.items():
        assert part in failures[host]
        assert not any(other in failures[host] for other in parts.values() if other != part), failures[host]
    assert fleet.states() == dict.fromkeys(fleet.states(), DRAINED)
