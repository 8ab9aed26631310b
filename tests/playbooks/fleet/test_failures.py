# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""If a host of a batch fails in the middle, no host counts as drained or undrained that is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet

ROLE = {"name": "hapgent.agent.fleet"}
DRAIN: dict[str, Any] = {"ansible.builtin.import_role": {**ROLE, "tasks_from": "drain"}}
UNDRAIN: dict[str, Any] = {"ansible.builtin.import_role": {**ROLE, "tasks_from": "undrain"}}


def test_no_host_counts_as_drained_if_the_wait_fails(fleet: Fleet) -> None:
    """One host waits for all. Here the password of a load balancer cannot be read any more after the drain."""
    state_file = fleet.agents["web1"].state_file
    empty = fleet.project / "password"
    empty.touch()
    fleet.host_vars("lb1")["hapgent_haproxy_url_password"] = (
        f"{{{{ lookup('ansible.builtin.file', '/no/such/password'"
        f" if 'DRAIN' in lookup('ansible.builtin.file', '{state_file}') else '{empty}') }}}}"
    )
    variables = {"hapgent_load_balancers": "lb1"}
    played = fleet.play("hapgent.agent.drain", "--limit=web1,web2", succeeds=False, variables=variables)
    assert set(played.failures()) == {"web1", "web2"}
    assert "web2 stays in DRAIN" in played.failures()["web2"]


@pytest.mark.parametrize(
    ("hosts", "section", "state"),
    [("web1,web2", "always", "DRAIN"), ("web1", "always", "DRAIN"), ("web1,web2", "rescue", "UP")],
)
def test_host_that_failed_is_undrained_or_reported(fleet: Fleet, hosts: str, section: str, state: str) -> None:
    """In always, it still runs tasks, but is no longer in ansible_play_batch."""
    work = {"ansible.builtin.fail": {}, "when": "inventory_hostname == 'web1'"}
    play = {"hosts": hosts, "gather_facts": False, "tasks": [{"block": [DRAIN, work], section: [UNDRAIN]}]}
    (fleet.project / "play.yml").write_text(json.dumps([play]))
    succeeds = state == "UP"
    failures = fleet.play("play.yml", succeeds=succeeds, variables={"hapgent_load_balancers": "lb1"}).failures()
    assert fleet.state("web1")["status"] == state
    assert ("Nothing was changed on web1" in failures["web1"]) != succeeds
    # A host that has not failed is not undrained in rescue.
    assert fleet.state("web2")["status"] == ("DRAIN" if succeeds else "UP")
