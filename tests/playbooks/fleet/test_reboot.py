# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook reboot works on the hosts that need a reboot.

Ansible refuses to reboot the control node, and so the hosts of these tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _who
from releases import EDGES, NEWEST, program

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet, Played

UP = {"status": "UP"}
REASON = "kernel 6.1"


def shown(played: Played) -> str:
    (result,) = played.results("Show the hosts to reboot")
    return str(result["msg"]).strip()


@pytest.mark.parametrize("release", EDGES)
def test_only_hosts_that_need_it_are_rebooted(fleet: Fleet, release: str) -> None:
    ansible = program(release)
    fleet.web_vars["hapgent_load_balancers"] = "lb1"
    needed = fleet.project / "web2"
    needed.touch()
    given = {
        "hapgent_hosts": "web",
        "reason": REASON,
        "hapgent_reboot_command": f"test -e {fleet.project}/{{{{ inventory_hostname }}}}",
    }
    played = fleet.play("hapgent.agent.reboot", ansible=ansible, variables=given, succeeds=False)
    assert shown(played) == "Hosts to reboot: web2."
    assert set(played.failures()) == {"web2"}
    assert "would reboot the control node" in played.failures()["web2"]
    assert fleet.states() == {
        "web1": UP,
        "web2": {"status": "DRAIN", "reason": REASON, "by": _who.current()},
        "web3": UP,
    }

    # The next run does not reboot it again, but brings it back.
    needed.unlink()
    played = fleet.play("hapgent.agent.reboot", ansible=ansible, variables=given)
    assert shown(played) == "Hosts to reboot: none. An earlier run has begun on web2."
    assert played.changed() == {"web2"}
    assert fleet.states() == dict.fromkeys(fleet.states(), UP)
    if release != NEWEST:
        return

    played = fleet.play("hapgent.agent.reboot", "--check", ansible=ansible, variables=given)
    assert shown(played) == "Hosts to reboot: none."
    (passed_on,) = played.results("Pass the result to the next job if there is no host to reboot")
    result = passed_on["ansible_stats"]["data"]["hapgent_rolling"]
    assert (result["status"], result["not_touched"]) == ("finished", ["web1", "web2", "web3"])
    assert not any("Drain" in record["task"] for record in played.records)

    # The command of one host fails.
    fleet.host_vars("web1")["hapgent_reboot_command"] = "exit 127"
    needed.touch()
    command = given.pop("hapgent_reboot_command")
    fleet.host_vars("web2")["hapgent_reboot_command"] = command
    played = fleet.play("hapgent.agent.reboot", ansible=ansible, variables=given, succeeds=False)
    assert "web1" in played.failures()
    assert fleet.states() == dict.fromkeys(fleet.states(), UP)
