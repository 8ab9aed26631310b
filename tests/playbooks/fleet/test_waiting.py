# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A drain waits until no load balancer sends new sessions, and then until the sessions end."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet, Played

OUTCOME = "Show the outcome of the drain"
MESSAGES = "Show what is waited for"


def drain(fleet: Fleet, *, succeeds: bool = True, **variables: object) -> Played:
    return fleet.play("hapgent.agent.drain", "--limit=web1", succeeds=succeeds, variables=variables)


def test_sessions_are_shown_while_they_are_waited_for(fleet: Fleet) -> None:
    with contextlib.ExitStack() as sessions:
        for _number in range(2):
            sessions.enter_context(fleet.load_balancers["lb1"].session("web1"))
        with fleet.once_recorded("lb1: web/web1", sessions.close):
            played = drain(fleet, hapgent_grace=300)
    ((web1, left),) = [result["msg"] for result in played.results(MESSAGES)][:1]
    assert re.search(r"^web1: lb1: web/web1 .*\b2\b", web1)
    assert re.search(r"\b2[0-9][0-9] s\b", left)
    assert "is over" not in str(played.results(OUTCOME))


def test_drain_ends_after_the_grace_period_and_undrain_does_not_wait_for_the_sessions(fleet: Fleet) -> None:
    with fleet.load_balancers["lb1"].session("web1"):
        played = drain(fleet, hapgent_grace=3)
        assert re.search(r"\b3 s is over\b.* web1: lb1: web/web1", str(played.results(OUTCOME)))
        fleet.await_statuses(web1="DRAIN (agent)")
        fleet.play("hapgent.agent.undrain", "--limit=web1")
        fleet.await_statuses(web1="UP")


def test_late_load_balancer_is_waited_for_even_without_a_grace_period(fleet: Fleet) -> None:
    """It stops polling the agent for a while, and the agent is not asked to wait for it."""
    late = fleet.load_balancers["lb2"]
    late.send("disable agent web/web1")
    with fleet.once_recorded("lb2: web/web1", lambda: late.send("enable agent web/web1")):
        played = drain(fleet, hapgent_grace=0, hapgent_wait_for=["127.0.0.11"], hapgent_wait_timeout=60)
    (web1, left), *_later = [result["msg"] for result in played.results(MESSAGES)]
    assert re.search(r"^web1: lb2: web/web1 .*takes new sessions", web1)
    assert re.search(r"\b[45][0-9] s\b", left)
    fleet.await_statuses(web1="DRAIN (agent)")


def test_drain_fails_if_a_load_balancer_sends_new_sessions_again(fleet: Fleet) -> None:
    """A load balancer does so after a reload, if it does not poll the agent any more."""
    again = fleet.load_balancers["lb2"]

    def put_back() -> None:
        again.send("disable agent web/web1")
        again.send("set server web/web1 state ready")

    with fleet.load_balancers["lb1"].session("web1"), fleet.once_recorded("lb1: web/web1", put_back):
        played = drain(fleet, succeeds=False, hapgent_grace=20)
    assert re.search(r"new sessions to web1\b.* lb2: web/web1 \(UP", played.failures()["web1"])
