# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""If systemd does not run, as in containers, the playbooks find agents by their state files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet


def test_status_finds_the_agents(fleet: Fleet) -> None:
    fleet.set_state("web1", status="DRAIN", reason="new disk")
    played = fleet.play("hapgent.agent.status")
    queried = [played.results("Query the agents", host)[0]["results"][0] for host in ("web1", "web2")]
    ((row,), (other,)) = (result["instances"] for result in queried)
    assert (row["state"], row["service"]) == ({"status": "DRAIN", "reason": "new disk"}, None)
    assert other["state"] == {"status": "UP"}


def test_all_services_are_not_drained_unless_all_could_be_searched(fleet: Fleet) -> None:
    variables = {"hapgent_hosts": "web1", "hapgent_services": "all"}
    failed = {"hapgent__searched": {"msg": "no access"}}
    played = fleet.play("hapgent.agent.drain", succeeds=False, variables={**variables, **failed})
    assert "no access" in played.failures()["web1"]
    # The search works. Without systemd, an agent can be found only by its state file.
    played = fleet.play("hapgent.agent.drain", succeeds=False, variables=variables)
    assert played.results("Read the states of the agents", "web1")


def test_min_up_counts_the_agents_if_there_are_no_load_balancers(fleet: Fleet) -> None:
    variables = {"hapgent_hosts": "web1", "hapgent_load_balancers": [], "hapgent_fleet": "web", "hapgent_min_up": 2}
    fleet.play("hapgent.agent.drain", variables=variables)
    assert fleet.state("web1")["status"] == "DRAIN"
    fleet.play("hapgent.agent.drain", succeeds=False, variables={**variables, "hapgent_hosts": "web2"})
    assert fleet.state("web2")["status"] == "UP"
