# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""If a host of a batch fails in the middle, no host counts as drained or undrained that is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet


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
