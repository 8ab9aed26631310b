# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a drain and a rolling update do with sessions that are left after the grace period: hapgent_after_grace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _who

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.playbooks.fleet.conftest import Fleet, LoadBalancer, Played

UP, DRAIN = {"status": "UP"}, {"status": "DRAIN", "by": _who.current()}
CHANGE = "Change the agent's state and wait until every load balancer has received it"
OUTCOME = "Show the outcome of the drain"


@pytest.fixture
def balancer(fleet: Fleet) -> Iterator[LoadBalancer]:
    """The only load balancer that the playbooks query, with a session to web1 that does not end."""
    fleet.web_vars.update(hapgent_load_balancers="lb1", hapgent_grace=1)
    balancer = fleet.load_balancers["lb1"]
    with balancer.session("web1"):
        yield balancer


def drain(fleet: Fleet, after_grace: str, *, succeeds: bool = True, hosts: str = "web1", **variables: object) -> Played:
    given = {"hapgent_after_grace": after_grace, **variables}
    return fleet.play("hapgent.agent.drain", f"--limit={hosts}", succeeds=succeeds, variables=given)


def roll(fleet: Fleet, after_grace: str, *, succeeds: bool = True) -> Played:
    (fleet.project / "tasks.yml").write_text(json.dumps([{"name": "Work", "ansible.builtin.command": "true"}]))
    given = {"hapgent_hosts": "web1,web2", "hapgent_tasks": "tasks.yml", "hapgent_reason": "release 10"}
    variables = {**given, "hapgent_after_grace": after_grace}
    return fleet.play("hapgent.agent.rolling", succeeds=succeeds, variables=variables)


def worked_on(played: Played) -> set[str]:
    return {record["host"] for record in played.records if record["task"] == "Work"}


@pytest.mark.usefixtures("balancer")
def test_sessions_up_to_a_number_may_be_left(fleet: Fleet) -> None:
    played = drain(fleet, "fail", hapgent_max_sessions=1)
    assert "is over" not in str(played.results(OUTCOME))
    assert fleet.state("web1") == DRAIN


@pytest.mark.usefixtures("balancer")
def test_host_with_sessions_fails(fleet: Fleet) -> None:
    played = drain(fleet, "fail", succeeds=False, hosts="web1,web2")
    assert set(played.failures()) == {"web1"}
    assert "web1 stays in DRAIN" in played.failures()["web1"]
    assert "web/web1 (DRAIN (agent), 1 session)" in played.failures()["web1"]
    assert [fleet.state("web1"), fleet.state("web2")] == [DRAIN, DRAIN]


@pytest.mark.usefixtures("balancer")
def test_host_with_sessions_is_put_back(fleet: Fleet) -> None:
    fleet.set_state("web1", status="UP", reason="release 9")
    played = drain(fleet, "put_back", succeeds=False, hosts="web1,web2")
    assert set(played.failures()) == {"web1"}
    assert "put back into rotation" in played.failures()["web1"]
    assert [fleet.state("web1"), fleet.state("web2")] == [{"status": "UP", "reason": "release 9"}, DRAIN]
    assert fleet.load_balancers["lb1"].statuses()["web1"] == "UP"


@pytest.mark.usefixtures("balancer")
def test_state_that_the_drain_has_not_set_is_not_put_back(fleet: Fleet) -> None:
    fleet.set_state("web1", status="MAINT", reason="disk")
    fleet.await_statuses(web1="MAINT")
    played = drain(fleet, "put_back", succeeds=False)
    assert "web1 stays in MAINT" in played.failures()["web1"]
    assert fleet.state("web1") == {"status": "MAINT", "reason": "disk"}


@pytest.mark.usefixtures("balancer")
def test_rolling_update_skips_a_host_that_is_put_back(fleet: Fleet) -> None:
    played = roll(fleet, "put_back")
    assert worked_on(played) == {"web2"}
    assert [fleet.state("web1"), fleet.state("web2")] == [UP, {"status": "UP", "reason": "release 10"}]
    (ends,) = played.results("Show the result of the rolling update")
    assert "Done: web2. Not finished: none." in ends["msg"]
    assert "Skipped: web1 was put back into rotation" in ends["msg"]
    # The next run has only web1 left.
    fleet.web_vars["hapgent_max_sessions"] = 1
    assert worked_on(roll(fleet, "put_back")) == {"web1"}
    assert [fleet.state("web1"), fleet.state("web2")] == [UP, UP]


@pytest.mark.usefixtures("balancer")
def test_rolling_update_stops_at_a_host_that_fails(fleet: Fleet) -> None:
    played = roll(fleet, "fail", succeeds=False)
    assert worked_on(played) == set()
    assert "sessions are left" in played.failures()["web1"]
    assert [fleet.state("web1"), fleet.state("web2")] == [{**DRAIN, "reason": "release 10"}, UP]


def test_sessions_are_cut(fleet: Fleet) -> None:
    fleet.web_vars.update(hapgent_load_balancers="lb2", hapgent_grace=1)
    balancer = fleet.load_balancers["lb2"]
    with balancer.session("web1"), balancer.session("web2"):
        played = drain(fleet, "cut", hapgent_reason="release 10")
        assert "is over" not in str(played.results(OUTCOME))
        # DRAIN, MAINT and DRAIN again.
        assert len(played.results(CHANGE)) == 3
        assert balancer.statuses() == {"web1": "DRAIN (agent)", "web2": "UP", "web3": "UP"}
        assert fleet.state("web1") == {**DRAIN, "reason": "release 10"}


@pytest.mark.usefixtures("balancer")
def test_sessions_that_cannot_be_cut_are_left(fleet: Fleet) -> None:
    played = drain(fleet, "cut", hapgent_wait_timeout=3)
    assert "lacks on-marked-down shutdown-sessions" in str(played.results(OUTCOME))
    assert fleet.state("web1") == DRAIN
    assert fleet.load_balancers["lb1"].statuses()["web1"] == "DRAIN (agent)"


def test_session_in_an_old_worker_is_not_cut(fleet: Fleet, balancer: LoadBalancer, eventually: Eventually) -> None:
    balancer.reload(eventually)
    fleet.await_statuses(web1="UP")
    played = drain(fleet, "cut")
    assert "Sessions in old workers cannot be cut" in str(played.results(OUTCOME))
    # The agent has not sent MAINT for nothing.
    assert len(played.results(CHANGE)) == 1
    assert fleet.state("web1") == DRAIN


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"hapgent_after_grace": "kill"}, "must be one of"),
        ({"hapgent_after_grace": "cut", "hapgent_load_balancers": ""}, "requires hapgent_load_balancers"),
        ({"hapgent_max_sessions": -1}, "hapgent_max_sessions must be 0 to 2147483647"),
    ],
)
def test_bad_values_are_refused(fleet: Fleet, variables: dict[str, object], named: str) -> None:
    (fleet.project / "tasks.yml").write_text("[]")
    rolling = {"hapgent_hosts": "web1", "hapgent_tasks": "tasks.yml", "hapgent_reason": "release 10"}
    for playbook, more in (("drain", {"hapgent_hosts": "web1"}), ("rolling", rolling)):
        played = fleet.play(f"hapgent.agent.{playbook}", succeeds=False, variables={**more, **variables})
        assert named in played.failures()["web1"]
        assert played.changed() == set()
    assert fleet.state("web1") == UP
