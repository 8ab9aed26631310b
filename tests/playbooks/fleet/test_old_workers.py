# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A drain also waits for sessions in HAProxy's workers from before a reload."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.playbooks.fleet.conftest import Fleet

MASTER = "hapgent_haproxy_master_socket"
OUTCOME = "Show the outcome of the drain"


def test_drain_waits_until_a_session_in_an_old_worker_ends(fleet: Fleet, eventually: Eventually) -> None:
    balancer = fleet.load_balancers["lb1"]
    with contextlib.ExitStack() as session:
        session.enter_context(balancer.session("web1"))
        left = f"1 session in an old worker (pid {balancer.reload(eventually)})"
        fleet.await_statuses(web1="UP")
        with fleet.once_recorded(left, session.close):
            played = fleet.play("hapgent.agent.drain", "--limit=web1", variables={"hapgent_grace": 120})
    assert left in played.output
    assert "is over" not in str(played.results(OUTCOME))


def test_session_in_an_old_worker_is_reported_after_the_grace_period(fleet: Fleet, eventually: Eventually) -> None:
    balancer = fleet.load_balancers["lb1"]
    with balancer.session("web1"):
        old = balancer.reload(eventually)
        fleet.await_statuses(web1="UP")
        played = fleet.play("hapgent.agent.drain", "--limit=web1", variables={"hapgent_grace": 1})
    assert "is over" in str(played.results(OUTCOME))
    assert f"1 session in an old worker (pid {old})" in played.output


def test_session_in_an_old_worker_is_missed_without_the_master_socket(fleet: Fleet, eventually: Eventually) -> None:
    """The drain ends at once, with one warning, whatever the number of load balancers and queries."""
    for name in fleet.load_balancers:
        del fleet.host_vars(name)[MASTER]
    balancer = fleet.load_balancers["lb1"]
    with balancer.session("web1"):
        balancer.reload(eventually)
        fleet.await_statuses(web1="UP")
        played = fleet.play("hapgent.agent.drain", "--limit=web1,web2")
    assert "is over" not in str(played.results(OUTCOME))
    assert played.output.count("[WARNING]") == 1
    assert "hard-stop-after" in played.output
    assert fleet.play("hapgent.agent.status").output.count("[WARNING]") == 0


def test_named_master_socket_that_is_missing_is_an_error(fleet: Fleet) -> None:
    fleet.host_vars("lb2")[MASTER] = "/no/such/master.sock"
    failure = fleet.play("hapgent.agent.drain", "--limit=web1", succeeds=False).failures()["web1"]
    assert "lb2 cannot be queried: there is no master socket /no/such/master.sock" in failure
    assert "Nothing was changed on web1" in failure
    assert fleet.state("web1") == {"status": "UP"}
