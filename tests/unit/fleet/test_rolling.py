# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a rolling begins, goes on and ends, with real agents and load balancers."""

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

    from tests.unit.fleet.conftest import Fleet, Played

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


def test_host_that_is_down_is_found_before_anything_is_drained(fleet: Fleet) -> None:
    """The last one, and one whose agent does not run. Left out, the others are rolled."""
    fleet.host_vars("web3").update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    fleet.host_vars("web2")["hapgent_state_file"] = "/no/such/folder/state.json"
    played = roll(fleet, succeeds=False)
    failure = played.failures()["web1"]
    assert played.changed() == set()
    assert fleet.states() == dict.fromkeys(fleet.states(), UP)
    assert "--limit='all,!web2,!web3'" in failure
    assert worked_on(roll(fleet, "--limit=all,!web2,!web3")) == {"web1"}


def test_host_that_is_kept_out(fleet: Fleet) -> None:
    """By its agent, and by hand in HAProxy: the rolling fails at once, or skips it."""
    fleet.set_state("web2", status="DRAIN", reason="disk")
    fleet.await_statuses(web2="DRAIN (agent)")
    both: dict[str, Any] = {"hapgent_hosts": "web1,web2"}
    failure = roll(fleet, succeeds=False, **both).failures()["web1"]
    for part in ("web2", "disk", "--limit='all,!web2'"):
        assert part in failure
    assert fleet.state("web1") == UP

    played = roll(fleet, hapgent_kept_out="skip", **both)
    assert worked_on(played) == {"web1"}
    assert fleet.state("web2") == {"status": "DRAIN", "reason": "disk"}


def test_host_that_is_taken_out_meanwhile_fails_the_rolling_in_the_end(fleet: Fleet) -> None:
    """All others are rolled. Here web1's tasks take out web2."""
    content = json.dumps({"status": "MAINT", "reason": "disk"})
    path = str(fleet.agents["web2"].state_file)
    maint = {
        "ansible.builtin.copy": {"content": content, "dest": path, "mode": "0644"},
        "when": "inventory_hostname == 'web1'",
    }
    played = roll(fleet, tasks=[maint], succeeds=False, hapgent_load_balancers="lb1")
    assert worked_on(played) == {"web1", "web3"}
    assert set(played.failures()) == {"web2"}
    # The second run goes on with what is missing.
    assert fleet.state("web1") == fleet.state("web3") == {"status": "UP", "reason": REASON}
    assert fleet.state("web2") == {"status": "MAINT", "reason": "disk"}


def test_reason_that_is_another_one_each_time(fleet: Fleet) -> None:
    """A rolling keeps the reason with which it began. Otherwise its own drain would look like another one."""
    played = roll(fleet, "--limit=web1", hapgent_reason="{{ now() }}", hapgent_load_balancers="lb1")
    (ends,) = played.results("Show the result of the rolling update")
    assert re.match(r"Done: web1\. Not finished: none\. [^:]+: none\. Not touched: ", ends["msg"])
    assert fleet.state("web1") == UP


def test_second_run_goes_on(fleet: Fleet) -> None:
    fleet.set_state("web1", status="UP", reason=REASON)
    fleet.set_state("web2", status="UP", reason=REASON)
    played = roll(fleet, hapgent_load_balancers="lb1")
    (begins,) = played.results("Show the progress of the rolling update", "web1")[:1]
    assert re.search(r"\brelease 10: 2 of 3 .* next web3\.", begins["msg"])
    assert worked_on(played) == {"web3"}
    assert fleet.states() == dict.fromkeys(fleet.states(), UP)


def test_sessions_that_are_left_after_the_grace_are_reported_in_the_end(fleet: Fleet) -> None:
    with fleet.load_balancers["lb1"].session("web1"):
        played = roll(fleet, "--limit=web1", hapgent_grace=1)
    (ends,) = played.results("Show the result of the rolling update")
    assert "Sessions were left" in ends["msg"]
    assert "web/web1" in ends["msg"]
    assert re.search(r"\[WARNING\]: .*\b1 s\b", played.output)
    (ends,) = roll(fleet, "--limit=web1", hapgent_grace=1).results("Show the result of the rolling update")
    assert "Sessions were left" not in ends["msg"]


class Answers(http.server.BaseHTTPRequestHandler):
    """/302 refers to /200, and so on. As a proxy, it finds everything well."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status = 200 if self.path.startswith("http:") else int(self.path[1:])
        self.send_response(status)
        self.send_header("Location", "/200")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def site() -> Iterator[str]:
    """A service that answers with the status that is its path."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# No load balancer and no grace: for what is about the health of the service alone.
QUICK: dict[str, Any] = {
    "hapgent_load_balancers": [],
    "hapgent_min_up": 0,
    "hapgent_grace": 0,
    "hapgent_health_tries": 1,
}


def test_service_is_well_only_if_it_says_so_itself(fleet: Fleet, site: str) -> None:
    """Neither a login page that it refers to, nor a proxy, answers for it."""
    roll(fleet, "--limit=web1", **QUICK, hapgent_health_url=f"{site}/302", succeeds=False)
    assert fleet.state("web1")["status"] == "DRAIN"
    assert Answers.asked == ["/302"]
    through_proxy = {"http_proxy": site, "no_proxy": ""}
    url = "http://127.0.0.1:1/"
    dead = roll(fleet, "--limit=web1", **QUICK, hapgent_health_url=url, succeeds=False, environment=through_proxy)
    assert "web1" in dead.failures()
    assert fleet.state("web1")["status"] == "DRAIN"
    roll(fleet, "--limit=web1", **QUICK, hapgent_health_url=f"{site}/200", environment=through_proxy)
    assert fleet.state("web1") == UP


def test_service_with_a_certificate_of_ones_own(fleet: Fleet, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
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
