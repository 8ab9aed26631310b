# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""hapgent_min_up limits how many servers may leave, as counted on real load balancers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Eventually
    from tests.playbooks.fleet.conftest import Fleet

UP = {"status": "UP"}


def test_refusal_is_reported_once_and_changes_nothing(fleet: Fleet) -> None:
    variables = {"hapgent_hosts": "web1,web2", "hapgent_min_up": "50%"}
    played = fleet.play("hapgent.agent.drain", succeeds=False, variables=variables)
    assert list(played.failures()) == ["web1"]
    refusal = played.failures()["web1"]
    for part in ("web on lb1", "web on lb2", "Leaving: web1, web2", "Staying: web3"):
        assert refusal.count(part) == 1
    assert list(fleet.states().values()) == [UP] * 3
    # The same servers may leave one at a time.
    fleet.play("hapgent.agent.drain", variables={**variables, "hapgent_hosts": "web1"})
    assert fleet.state("web1")["status"] == "DRAIN"


def test_others_are_waited_for(fleet: Fleet, eventually: Eventually) -> None:
    """web2 comes back as soon as the playbook waits for it."""
    fleet.set_state("web2", status="DRAIN", reason="disk")
    fleet.await_statuses(web2="DRAIN (agent)")
    variables = {"hapgent_hosts": "web1", "hapgent_min_up": 2, "hapgent_load_balancers": "lb1"}
    refused = fleet.play("hapgent.agent.drain", succeeds=False, variables={**variables, "hapgent_min_up_wait": 1})
    assert len(refused.results("Wait before the next look")) == 1
    assert "Leaving: web1" in refused.failures()["web1"]

    fleet.forget()

    def come_back() -> None:
        eventually(lambda: "Show which servers" in fleet.recorded(), "the playbook waits")
        fleet.set_state("web2", **UP)

    back = threading.Thread(target=come_back)
    back.start()
    fleet.play("hapgent.agent.drain", variables={**variables, "hapgent_min_up_wait": 60})
    back.join()
    assert fleet.state("web1")["status"] == "DRAIN"
