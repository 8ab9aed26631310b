# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""With hapgent_status_strict, the playbook status fails if it finds a problem."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet

STATUS = "hapgent.agent.status"
HOSTS = {"hapgent_hosts": "web1,web3"}
# Ansible passes values of this form as text.
STRICT = ("-e", "hapgent_status_strict=true")
# How long a load balancer that has stopped still counts as polling, at least.
COUNTS_AS_POLLING_SECONDS = 10


def test_strict_status_fails_if_a_host_cannot_be_queried(fleet: Fleet) -> None:
    fleet.play(STATUS, *STRICT, variables=HOSTS)
    fleet.host_vars("web3").update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    played = fleet.play(STATUS, *STRICT, variables=HOSTS, succeeds=False)
    assert played.hosts("failed") == {"web1"}
    fleet.play(STATUS, "-e", "hapgent_status_strict=false", variables=HOSTS)


def test_strict_status_fails_if_agent_and_haproxy_are_inconsistent(fleet: Fleet) -> None:
    # For a minute after a change, each check of the agent would end the drain.
    fleet.load_balancers["lb1"].send("disable agent web/web1")
    fleet.load_balancers["lb1"].send("set server web/web1 state drain")
    played = fleet.play(STATUS, *STRICT, variables=HOSTS, succeeds=False)
    (table,) = played.results("Show the fleet")
    assert any(line.startswith("web1  ") and "DRAIN !" in line for line in table["msg"]), table["msg"]
    assert set(played.failures()) == {"web1"}


def test_load_balancer_that_has_not_received_the_state_is_named(fleet: Fleet) -> None:
    for name, balancer in fleet.load_balancers.items():
        fleet.host_vars(name)["hapgent_source_addresses"] = [balancer.source]
    for weight in range(50, 55):
        fleet.load_balancers["lb2"].start()
        fleet.await_statuses(web1="UP")
        fleet.load_balancers["lb2"].stop()
        begin = time.monotonic()
        fleet.set_state("web1", status="UP", weight=weight)
        played = fleet.play(STATUS, variables={"hapgent_hosts": "web1"})
        if time.monotonic() < begin + COUNTS_AS_POLLING_SECONDS:
            break
    (table,) = played.results("Show the fleet")
    assert any(f"{fleet.load_balancers['lb2'].source} (lb2)" in line for line in table["msg"])
