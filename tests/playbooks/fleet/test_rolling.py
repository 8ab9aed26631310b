# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rolling update begins, continues and ends as documented, with real agents and load balancers."""

from __future__ import annotations

import http.server
import json
import re
import ssl
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.playbooks.fleet.conftest import Fleet, Played

UP = {"status": "UP"}
REASON = "release 10"


def roll(
    fleet: Fleet,
    *arguments: str,
    succeeds: bool = True,
    tasks: Any = (),
    environment: dict[str, str] | None = None,
    **variables: object,
) -> Played:
    (fleet.project / "tasks.yml").write_text(json.dumps([{"name": "Work", "ansible.builtin.command": "true"}, *tasks]))
    given = {"hapgent_hosts": "web", "hapgent_tasks": "tasks.yml", "hapgent_reason": REASON, **variables}
    return fleet.play("hapgent.agent.rolling", *arguments, succeeds=succeeds, variables=given, environment=environment)


def worked_on(played: Played) -> set[str]:
    return {record["host"] for record in played.records if record["task"] == "Work"}


def test_update_fails_before_the_first_drain_if_a_host_is_down(fleet: Fleet) -> None:
    """One host is unreachable and another has no agent. With the advised limit, the rest is updated."""
    fleet.host_vars("web3").update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    fleet.host_vars("web2")["hapgent_state_file"] = "/no/such/folder/state.json"
    fleet.web_vars["hapgent_load_balancers"] = "lb1"
    played = roll(fleet, succeeds=False)
    failure = played.failures()["web1"]
    assert played.changed() == set()
    assert fleet.states() == dict.fromkeys(fleet.states(), UP)
    assert "--limit='all,!web2,!web3'" in failure
    assert worked_on(roll(fleet, "--limit=all,!web2,!web3")) == {"web1"}


def test_update_fails_at_or_skips_a_host_that_is_out_of_rotation(fleet: Fleet) -> None:
    fleet.set_state("web2", status="DRAIN", reason="disk")
    fleet.await_statuses(web2="DRAIN (agent)")
    both: dict[str, Any] = {"hapgent_hosts": "web1,web2", "hapgent_load_balancers": "lb1"}
    failure = roll(fleet, succeeds=False, **both).failures()["web1"]
    for part in ("web2", "disk", "--limit='all,!web2'"):
        assert part in failure
    assert fleet.state("web1") == UP

    played = roll(fleet, hapgent_kept_out="skip", **both)
    assert worked_on(played) == {"web1"}
    assert fleet.state("web2") == {"status": "DRAIN", "reason": "disk"}


def test_update_fails_at_the_end_if_a_host_left_rotation_meanwhile(fleet: Fleet) -> None:
    """All other hosts are updated. Here the tasks for web1 take web2 out of rotation."""
    content = json.dumps({"status": "MAINT", "reason": "disk"})
    path = str(fleet.agents["web2"].state_file)
    maint = {
        "ansible.builtin.copy": {"content": content, "dest": path, "mode": "0644"},
        "when": "inventory_hostname == 'web1'",
    }
    played = roll(fleet, "--limit=web1,web2", tasks=[maint], succeeds=False, hapgent_load_balancers="lb1")
    assert worked_on(played) == {"web1"}
    assert set(played.failures()) == {"web2"}
    # The reasons of the finished hosts remain, so that a second run continues with the rest.
    assert fleet.state("web1") == {"status": "UP", "reason": REASON}
    assert fleet.state("web2") == {"status": "MAINT", "reason": "disk"}


def test_reason_may_change_during_the_update(fleet: Fleet) -> None:
    """A rolling update keeps its first reason. Otherwise it would take its own drain for another operator's."""
    played = roll(fleet, "--limit=web1", hapgent_reason="{{ now() }}", hapgent_load_balancers="lb1")
    (ends,) = played.results("Show the result of the rolling update")
    assert re.match(r"Done: web1\. Not finished: none\. [^:]+: none\. Not touched: ", ends["msg"])
    assert "Sessions were left" not in ends["msg"]
    assert fleet.state("web1") == UP


def test_second_run_continues_with_the_remaining_hosts(fleet: Fleet) -> None:
    fleet.set_state("web1", status="UP", reason=REASON)
    fleet.set_state("web2", status="UP", reason=REASON)
    played = roll(fleet, hapgent_load_balancers="lb1")
    (begins,) = played.results("Show the progress of the rolling update", "web1")[:1]
    assert re.search(r"\brelease 10: 2 of 3 .* next web3\.", begins["msg"])
    assert worked_on(played) == {"web3"}
    assert fleet.states() == dict.fromkeys(fleet.states(), UP)


def test_sessions_left_after_the_grace_period_are_reported_at_the_end(fleet: Fleet) -> None:
    with fleet.load_balancers["lb1"].session("web1"):
        played = roll(fleet, "--limit=web1", hapgent_grace=1, hapgent_load_balancers="lb1")
    (ends,) = played.results("Show the result of the rolling update")
    assert "Sessions were left" in ends["msg"]
    assert "web/web1" in ends["msg"]
    assert re.search(r"\[WARNING\]: .*\b1 s\b", played.output)


class StatusHandler(http.server.BaseHTTPRequestHandler):
    """Responds with the status in the path, such as 302 for /302. As a proxy, it responds to everything with 200."""

    requested: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requested.append(self.path)
        status = 200 if self.path.startswith("http:") else int(self.path[1:])
        self.send_response(status)
        self.send_header("Location", "/200")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """The URL of a service that responds with the status in the path."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), StatusHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# Tests that are only about the health check need no load balancers and no grace period.
QUICK: dict[str, Any] = {
    "hapgent_load_balancers": [],
    "hapgent_min_up": 0,
    "hapgent_grace": 0,
    "hapgent_health_tries": 1,
}


def test_only_the_services_own_response_counts_as_healthy(fleet: Fleet, site: str) -> None:
    """Neither the target of a redirect, such as a login page, nor the response of a proxy counts."""
    roll(fleet, "--limit=web1", **QUICK, hapgent_health_url=f"{site}/302", succeeds=False)
    assert fleet.state("web1")["status"] == "DRAIN"
    assert StatusHandler.requested == ["/302"]
    through_proxy = {"http_proxy": site, "no_proxy": ""}
    url = "http://127.0.0.1:1/"
    played = roll(fleet, "--limit=web1", **QUICK, hapgent_health_url=url, succeeds=False, environment=through_proxy)
    assert "web1" in played.failures()
    assert fleet.state("web1")["status"] == "DRAIN"
    roll(fleet, "--limit=web1", **QUICK, hapgent_health_url=f"{site}/200", environment=through_proxy)
    assert fleet.state("web1") == UP


def test_own_certificate_authority_for_the_health_check(fleet: Fleet, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), StatusHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"https://127.0.0.1:{server.server_address[1]}/200"
        roll(fleet, "--limit=web1", **QUICK, hapgent_health_url=url, succeeds=False)
        assert fleet.state("web1")["status"] == "DRAIN"
        roll(fleet, "--limit=web1", **QUICK, hapgent_health_url=url, hapgent_health_ca_path=str(certificate))
        server.shutdown()
        thread.join()
    assert fleet.state("web1") == UP
