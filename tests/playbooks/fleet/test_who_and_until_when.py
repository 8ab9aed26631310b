# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks record who has drained a host and until when, and report what is overdue."""

from __future__ import annotations

import calendar
import json
import signal
import time
from typing import TYPE_CHECKING

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _who

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet

DRAIN, STATUS = "hapgent.agent.drain", "hapgent.agent.status"
LATER = "2999-11-28T06:00:00Z"
REASON = {"reason": "disk"}


def test_a_drain_records_who_and_until_when(fleet: Fleet) -> None:
    # Another user has drained web2, with the same reason.
    by_bob = {"status": "DRAIN", "reason": "disk", "by": "bob@control2"}
    fleet.set_state("web2", **by_bob)
    variables = {**REASON, "hapgent_until": "2999-11-28 07:00:00+01:00", "hapgent_min_up": 0}
    fleet.play(DRAIN, "--limit=web1", variables=variables)
    ours = {"status": "DRAIN", "reason": "disk", "by": _who.current(), "until": LATER}
    assert fleet.state("web1") == ours
    # A second run has nothing to change, no matter who runs it.
    played = fleet.play(DRAIN, "--limit=web1,web2", variables={**REASON, "hapgent_min_up": 0})
    assert played.changed() == set()
    assert (fleet.state("web1"), fleet.state("web2")) == (ours, by_bob)
    (table,) = fleet.play(STATUS, "--limit=web", variables={"hapgent_status_strict": True}).results("Show the fleet")
    head, *rows = table["msg"]
    assert head.split()[3:7] == ["reason", "by", "until", "received"]
    assert [" 2999-11-28 06:00:00 UTC  2 of 2 " in row for row in rows] == [True, False, False]
    assert [_who.current() in row for row in rows] == [True, False, False]
    # Another moment is a change, and who sets it is recorded.
    fleet.play(DRAIN, "--limit=web2", variables={**variables, "hapgent_until": LATER})
    assert fleet.state("web2") == ours
    fleet.play("hapgent.agent.undrain", "--limit=web")
    assert list(fleet.states().values()) == [{"status": "UP"}] * 3


def test_status_reports_what_is_overdue(fleet: Fleet) -> None:
    fleet.set_state("web1", status="DRAIN", by="bob@control2", until="2020-11-28T06:00:00Z")
    strict = {"hapgent_status_strict": True}
    (table,) = fleet.play(STATUS, "--limit=web", variables=strict, succeeds=False).results("Show the fleet")
    assert table["msg"][1].count(" 2020-11-28 06:00:00 UTC !") == 1
    assert table["msg"][-1] == "web1: its DRAIN has been overdue since 2020-11-28 06:00:00 UTC"


def test_a_drained_host_comes_back_by_itself_if_that_was_requested(fleet: Fleet) -> None:
    returns = {**REASON, "hapgent_until": LATER, "hapgent_then": "UP"}
    fleet.play(DRAIN, "--limit=web1,web2", variables=returns)
    ours = {"status": "DRAIN", "reason": "disk", "by": _who.current(), "until": LATER}
    assert (fleet.state("web1"), fleet.state("web2")) == ({**ours, "then": "UP"}, {**ours, "then": "UP"})
    assert fleet.play(DRAIN, "--limit=web1,web2", variables=returns).changed() == set()
    (table,) = fleet.play(STATUS, "--limit=web1").results("Show the fleet")
    assert " 2999-11-28 06:00:00 UTC, then UP " in table["msg"][1]
    # A drain that does not request it cancels it, because its host must stay out during what follows.
    fleet.play(DRAIN, "--limit=web2", variables=REASON)
    assert fleet.state("web2") == ours
    # The moment of web1 has come.
    fleet.agents["web1"].write_state(json.dumps({**fleet.state("web1"), "until": "2020-11-28T06:00:00Z"}).encode())
    fleet.agents["web1"].send(signal.SIGHUP)
    fleet.await_statuses(web1="UP")
    assert fleet.state("web1") == {"status": "UP"}
    assert {statuses["web2"] for statuses in fleet.statuses().values()} == {"DRAIN (agent)"}


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"hapgent_then": "UP"}, "hapgent_then requires hapgent_until"),
        ({"hapgent_then": "up", "hapgent_until": "2h"}, "hapgent_then must be UP"),
    ],
)
def test_a_host_does_not_come_back_in_a_wrong_way(fleet: Fleet, variables: dict[str, str], problem: str) -> None:
    failures = fleet.play(DRAIN, "--limit=web1", variables={**REASON, **variables}, succeeds=False).failures()
    assert problem in failures["web1"]
    assert failures["web1"].endswith("Nothing was changed.")
    assert fleet.state("web1") == {"status": "UP"}


@pytest.mark.parametrize("until", ["06:00", "2999-11-28T06:00:00", "2020-11-28T06:00:00Z", "soon"])
@pytest.mark.parametrize("playbook", ["drain", "rolling"])
def test_a_wrong_moment_changes_nothing(fleet: Fleet, playbook: str, until: str) -> None:
    (fleet.project / "tasks.yml").write_text("[]")
    variables = {**REASON, "hapgent_until": until, "hapgent_tasks": "tasks.yml", "hapgent_hosts": "web1"}
    (failure,) = fleet.play(f"hapgent.agent.{playbook}", variables=variables, succeeds=False).failures().values()
    assert "hapgent_until must be" in failure
    assert failure.endswith("Nothing was changed.")
    assert fleet.state("web1") == {"status": "UP"}


def test_a_rolling_update_records_who_and_counts_from_each_drain(fleet: Fleet) -> None:
    # A drain has requested a return, which would come in the middle of the tasks.
    fleet.set_state("web2", status="DRAIN", reason="disk", by="bob@control2", until=LATER, then="UP")
    fails = [{"name": "Fail", "ansible.builtin.fail": {}, "when": "inventory_hostname == 'web2'"}]
    (fleet.project / "tasks.yml").write_text(json.dumps(fails))
    variables = {
        **REASON,
        "hapgent_until": "1h",
        "hapgent_then": "UP",
        "hapgent_tasks": "tasks.yml",
        "hapgent_hosts": "web1,web2",
    }
    started = int(time.time())
    fleet.play("hapgent.agent.rolling", variables=variables, succeeds=False)
    assert fleet.state("web1") == {"status": "UP", "reason": "disk"}
    state = fleet.state("web2")
    until = calendar.timegm(time.strptime(state.pop("until"), "%Y-%m-%dT%H:%M:%SZ"))
    assert state == {"status": "DRAIN", "reason": "disk", "by": _who.current()}
    # It was drained after web1.
    assert started + 3600 < until <= time.time() + 3600
