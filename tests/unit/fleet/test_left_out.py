# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Load balancers that do not act as they should: what is advised, and that the advice works."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.unit.fleet.conftest import Fleet

DRAIN = "hapgent.agent.drain"
LIMIT = "--limit=web1"
# As auto, however long a load balancer that is down has been silent.
BOTH = {"hapgent_wait_for": ["127.0.0.11", "127.0.0.12"]}


def advised(text: str) -> str:
    """The pattern of load balancers that a message advises, '' if it advises none."""
    found = re.search(r"hapgent_load_balancers='([^']*)'", text)
    return found[1] if found else ""


def test_load_balancer_that_has_gone_down_is_left_out_everywhere(fleet: Fleet) -> None:
    """Before the drain, and by the agent, which it has polled until then."""
    fleet.host_vars("lb2")["hapgent_source_addresses"] = ["127.0.0.12"]
    fleet.load_balancers["lb2"].stop()
    played = fleet.play(DRAIN, LIMIT, succeeds=False)
    pattern = advised(played.failures()["web1"])
    assert pattern == "lb,!lb2"
    assert fleet.state("web1") == {"status": "UP"}

    variables = {**BOTH, "hapgent_load_balancers": pattern, "hapgent_wait_timeout": 5}
    fleet.play(DRAIN, LIMIT, variables=variables)
    assert fleet.state("web1") == {"status": "DRAIN"}
    assert fleet.load_balancers["lb1"].statuses()["web1"].startswith("DRAIN")
    fleet.play("hapgent.agent.undrain", LIMIT, variables=variables)
    assert fleet.state("web1") == {"status": "UP"}


def test_load_balancer_that_is_left_out_without_its_address(fleet: Fleet) -> None:
    """The agent waits for it, and the message has the name of the host, the address, the state and what to set."""
    fleet.load_balancers["lb2"].stop()
    variables = {**BOTH, "hapgent_load_balancers": "lb,!lb2", "hapgent_wait_timeout": 1}
    failure = fleet.play(DRAIN, LIMIT, succeeds=False, variables=variables).failures()["web1"]
    assert fleet.state("web1") == {"status": "DRAIN"}
    for part in ("127.0.0.12", "lb2", "DRAIN", "hapgent_source_addresses"):
        assert part in failure
    assert advised(failure) == ""


def test_load_balancer_that_does_not_poll_is_named(fleet: Fleet) -> None:
    """It answers on its stats socket, and has stopped to ask the agent."""
    fleet.host_vars("lb2")["hapgent_source_addresses"] = ["127.0.0.12"]
    for server in ("web/web1", "80/7", "80/3e8"):
        fleet.load_balancers["lb2"].send(f"disable agent {server}")
    variables = {**BOTH, "hapgent_wait_timeout": 1}
    failure = fleet.play(DRAIN, LIMIT, succeeds=False, variables=variables).failures()["web1"]
    assert "127.0.0.12 (lb2" in failure
    assert "DRAIN" in failure
    assert advised(failure) == "lb,!lb2"


def test_load_balancer_without_the_backend_is_not_to_be_left_out(fleet: Fleet) -> None:
    failure = fleet.play(DRAIN, LIMIT, succeeds=False, variables={"hapgent_backend": ["api"]}).failures()["web1"]
    assert "api" in failure
    assert "hapgent_load_balancers" not in failure
    assert advised(failure) == ""
    assert fleet.state("web1") == {"status": "UP"}


def test_load_balancers_that_cannot_be_reached(fleet: Fleet) -> None:
    fleet.host_vars("lb2").update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    failure = fleet.play(DRAIN, LIMIT, succeeds=False).failures()["web1"]
    assert advised(failure) == "lb,!lb2"
