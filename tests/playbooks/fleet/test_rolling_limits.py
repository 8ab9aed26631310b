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
from ansible_collections.hapgent.agent.plugins.module_utils import _who
from releases import EDGES, NEWEST, RELEASES, program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.playbooks.fleet.conftest import Fleet, Played

UP = {"status": "UP"}
REASON = "release 10"
DRAINED = {"status": "DRAIN", "reason": REASON, "by": _who.current()}
DONE = {"status": "UP", "reason": REASON}


def roll(
    fleet: Fleet,
    *arguments: str,
    succeeds: bool = True,
    tasks: Any = (),
    ansible: Path = RELEASES["of the tests"],
    **variables: object,
) -> Played:
    (fleet.project / "tasks.yml").write_text(json.dumps([{"name": "Work", "ansible.builtin.command": "true"}, *tasks]))
    given = {"hapgent_hosts": "web", "hapgent_tasks": "tasks.yml", "hapgent_reason": REASON, **variables}
    return fleet.play("hapgent.agent.rolling", *arguments, succeeds=succeeds, ansible=ansible, variables=given)


def worked_on(played: Played) -> list[str]:
    return [record["host"] for record in played.records if record["task"] == "Work"]


def passed_on(played: Played) -> Any:
    """The result that the next job of a workflow gets."""
    return played.results("Pass the result to the next job")[-1]["ansible_stats"]["data"]["hapgent_rolling"]


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


# What happens to web1 at the first check of its bake, and a part of the message. The releases have different ones.
TROUBLES = {EDGES[0]: ("an error", "econ 1."), "of the tests": ("no health", "503")}


@pytest.mark.parametrize("release", TROUBLES)
def test_host_that_fails_while_it_bakes_is_drained(fleet: Fleet, site: Site, release: str) -> None:
    """One host causes an error in HAProxy or is not healthy, one is down for a moment, and one is watched further."""
    lb = fleet.load_balancers["lb1"]
    trouble, part = TROUBLES[release]

    def answer(host: str, before: int) -> int:
        if before == 1 and host == "web1":
            if trouble == "no health":
                return 503
            lb.fail_session("web1")
        if before == 1 and host == "web2":
            lb.send("set server web/web2 health down")
            lb.send("set server web/web2 health up")
        return 200

    site.answer = answer
    given: dict[str, Any] = {"hapgent_serial": 3, "hapgent_min_up": 0, "hapgent_bake": 1}
    url = f"{site.url}/{{{{ inventory_hostname }}}}"
    played = roll(fleet, ansible=program(release), succeeds=False, hapgent_health_url=url, **given)
    failures = played.failures()
    assert part in failures["web1"]
    assert "DOWN" in failures["web2"]
    assert set(failures) == {"web1", "web2"}
    assert fleet.states() == {"web1": DRAINED, "web2": DRAINED, "web3": DONE}
    assert site.requests.count("web3") > site.requests.count("web1") == 2


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "ansible.builtin.command": "true", **more}


# The failure of a host's tasks, after they have notified a handler.
FAIL = [
    named("Break", changed_when=True, notify="Restart"),
    {"name": "Fail", "ansible.builtin.fail": {"msg": "No disk."}, "when": "inventory_hostname in failing"},
]
FILES = {f"hapgent_{name}": f"{name}.yml" for name in ("before_tasks", "after_tasks", "rollback_tasks", "handlers")}


def write_files(fleet: Fleet, **more: list[Any]) -> None:
    """Write a file with one task for each of FILES, and these tasks."""
    for name in FILES.values():
        stem = name.partition(".")[0]
        task = named("Restart" if stem == "handlers" else stem)
        (fleet.project / name).write_text(json.dumps([task, *more.get(stem, [])]))


def own_tasks(played: Played) -> list[tuple[str, str]]:
    """The names and hosts of the tasks in the files of the user that ran, in their order."""
    names = {"Work", "Restart", *(name.partition(".")[0] for name in FILES.values())}
    return [(record["task"], record["host"]) for record in played.records if record["task"] in names]


@pytest.mark.parametrize("release", EDGES)
def test_update_tolerates_a_failure_pauses_and_continues(fleet: Fleet, site: Site, release: str) -> None:
    """The first run fails on web1, rolls it back, waits, and stops after web2. The next run begins with web1 again."""
    fleet.web_vars["hapgent_load_balancers"] = "lb1"
    write_files(fleet)
    given: dict[str, Any] = {**FILES, "hapgent_max_failed": 1, "hapgent_stop_after": 1}
    first: dict[str, Any] = {
        "hapgent_pause": 1,
        "hapgent_bake": 1,
        "hapgent_health_url": f"{site.url}/{{{{ inventory_hostname }}}}",
    }
    played = roll(fleet, tasks=FAIL, succeeds=False, ansible=program(release), failing="web1", **first, **given)
    assert own_tasks(played) == [
        *(("before_tasks", "web1"), ("Work", "web1"), ("rollback_tasks", "web1"), ("Restart", "web1")),
        *(("before_tasks", "web2"), ("Work", "web2"), ("Restart", "web2"), ("after_tasks", "web2")),
    ]
    (waited,) = played.results("Wait before the next batch")
    assert waited["delta"] >= 1
    assert "No disk." in played.failures()["web1"]
    assert fleet.states() == {"web1": DRAINED, "web2": DONE, "web3": UP}
    (ends,) = played.results("Show the result of the rolling update")
    assert ends["msg"].startswith("Paused: 1 of 3 done.")
    assert (passed_on(played)["status"], passed_on(played)["not_touched"]) == ("paused", ["web3"])
    # Before web2 comes back, right after that, and at the end of its bake.
    assert site.requests.count("web2") >= 3
    if release != NEWEST:
        return

    given["ansible"] = program(release)
    played = roll(fleet, tasks=FAIL, failing="none", **given)
    assert worked_on(played) == ["web1"]
    assert fleet.states() == {"web1": DONE, "web2": DONE, "web3": UP}
    (ends,) = played.results("Show the result of the rolling update")
    assert ends["msg"].startswith("Paused: 2 of 3 done.")

    # What fails after the host is back does not take it out again.
    write_files(fleet, after_tasks=[{"name": "Break", "ansible.builtin.fail": {"msg": "No mail."}}])
    played = roll(fleet, tasks=FAIL, succeeds=False, failing="none", **given)
    assert worked_on(played) == ["web3"]
    assert "No mail." in played.failures()["web3"]
    assert fleet.states() == dict.fromkeys(fleet.states(), DONE)
    assert passed_on(played)["status"] == "incomplete"


def test_update_stops_after_too_many_failures(fleet: Fleet) -> None:
    """One host fails before it is drained and stays in rotation, and one fails with its tasks and its rollback."""
    fleet.web_vars["hapgent_load_balancers"] = "lb1"
    broken = {"name": "Break", "ansible.builtin.fail": {"msg": "No mail."}}
    write_files(fleet, before_tasks=[{**broken, "when": "inventory_hostname == 'web1'"}], rollback_tasks=[broken])
    given: dict[str, Any] = {**FILES, "hapgent_serial": 2, "hapgent_max_failed": 1}
    played = roll(fleet, tasks=FAIL, succeeds=False, failing="web2", **given)
    ran = {(task, host) for task, host in own_tasks(played) if task != "before_tasks"}
    assert ran == {("Work", "web2"), ("rollback_tasks", "web2")}
    failures = played.failures()
    assert set(failures) == {"web1", "web2"}
    assert "No mail." in failures["web1"]
    assert "No disk." in failures["web2"]
    assert "roll back failed too" in failures["web2"]
    assert (passed_on(played)["status"], set(passed_on(played)["failed"])) == ("stopped", {"web1", "web2"})
    assert fleet.states() == {"web1": UP, "web2": DRAINED, "web3": UP}


def test_check_mode_waits_for_nothing(fleet: Fleet) -> None:
    fleet.web_vars["hapgent_load_balancers"] = "lb1"
    write_files(fleet)
    given: dict[str, Any] = {**FILES, "hapgent_bake": 86400, "hapgent_pause": 86400, "hapgent_stop_after": "50%"}
    played = roll(fleet, "--check", **given)
    assert played.results("Show the result of the rolling update")[0]["msg"].startswith("Paused: 2 of 3 done.")
    assert fleet.states() == dict.fromkeys(fleet.states(), UP)


def test_invalid_limits_and_missing_files_are_refused(fleet: Fleet) -> None:
    values = {"web1": ("hapgent_stop_after", "half"), "web2": ("hapgent_max_failed", -1), "web3": ("hapgent_bake", -1)}
    for host, (name, value) in values.items():
        fleet.host_vars(host)[name] = value
    failures = roll(fleet, succeeds=False).failures()
    for host, (name, value) in values.items():
        for part in (name, str(value), "Nothing was changed"):
            assert part in failures[host]
    for host, (name, _value) in values.items():
        del fleet.host_vars(host)[name]
    failure = roll(fleet, succeeds=False, hapgent_rollback_tasks="back.yml").failures()["web1"]
    for part in ("hapgent_rollback_tasks", "back.yml", "Nothing was changed"):
        assert part in failure
    assert fleet.states() == dict.fromkeys(fleet.states(), UP)
