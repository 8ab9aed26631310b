# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""If a load balancer fails, the message advises a pattern that leaves it out, and the pattern works."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet

DRAIN = "hapgent.agent.drain"
LIMIT = "--limit=web1"
# Wait for both, as auto would do, no matter how long ago a stopped load balancer polled.
BOTH = {"hapgent_wait_for": ["127.0.0.11", "127.0.0.12"]}


def advised_pattern(text: str) -> str:
    """The pattern for hapgent_load_balancers that a message advises, or ''."""
    found = re.search(r"hapgent_load_balancers='([^']*)'", text)
    return found[1] if found else ""


def test_leaving_out_a_stopped_load_balancer_works(fleet: Fleet) -> None:
    """Neither the playbook nor the agent, which it has polled before, waits for it any more."""
    fleet.host_vars("lb2")["hapgent_source_addresses"] = ["127.0.0.12"]
    fleet.load_balancers["lb2"].stop()
    played = fleet.play(DRAIN, LIMIT, succeeds=False)
    pattern = advised_pattern(played.failures()["web1"])
    assert pattern == "lb,!lb2"
    assert fleet.state("web1") == {"status": "UP"}

    variables = {**BOTH, "hapgent_load_balancers": pattern, "hapgent_wait_timeout": 5}
    fleet.play(DRAIN, LIMIT, variables=variables)
    assert fleet.state("web1")["status"] == "DRAIN"
    assert fleet.load_balancers["lb1"].statuses()["web1"].startswith("DRAIN")
    fleet.play("hapgent.agent.undrain", LIMIT, variables=variables)
    assert fleet.state("web1") == {"status": "UP"}


def test_leaving_out_a_load_balancer_requires_its_source_addresses(fleet: Fleet) -> None:
    """Without them, the module still waits for it; the message names host, address, state and what to set."""
    fleet.load_balancers["lb2"].stop()
    variables = {**BOTH, "hapgent_load_balancers": "lb,!lb2", "hapgent_wait_timeout": 1}
    failure = fleet.play(DRAIN, LIMIT, succeeds=False, variables=variables).failures()["web1"]
    assert fleet.state("web1")["status"] == "DRAIN"
    for part in ("127.0.0.12", "lb2", "DRAIN", "hapgent_source_addresses"):
        assert part in failure
    assert advised_pattern(failure) == ""


def test_load_balancer_that_stopped_polling_is_named(fleet: Fleet) -> None:
    """Its stats socket responds, but it does not poll the agent any more."""
    fleet.host_vars("lb2")["hapgent_source_addresses"] = ["127.0.0.12"]
    for server in ("web/web1", "80/7", "80/3e8"):
        fleet.load_balancers["lb2"].send(f"disable agent {server}")
    variables = {**BOTH, "hapgent_wait_timeout": 1}
    failure = fleet.play(DRAIN, LIMIT, succeeds=False, variables=variables).failures()["web1"]
    assert "127.0.0.12 (lb2" in failure
    assert "DRAIN" in failure
    assert advised_pattern(failure) == "lb,!lb2"


def test_leaving_out_is_not_advised_for_a_missing_backend(fleet: Fleet) -> None:
    failure = fleet.play(DRAIN, LIMIT, succeeds=False, variables={"hapgent_backend": ["api"]}).failures()["web1"]
    assert "api" in failure
    assert "hapgent_load_balancers" not in failure
    assert advised_pattern(failure) == ""
    assert fleet.state("web1") == {"status": "UP"}


def test_leaving_out_is_advised_for_an_unreachable_load_balancer(fleet: Fleet) -> None:
    fleet.host_vars("lb2").update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    failure = fleet.play(DRAIN, LIMIT, succeeds=False).failures()["web1"]
    assert advised_pattern(failure) == "lb,!lb2"
