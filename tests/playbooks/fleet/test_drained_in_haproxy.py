# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""HAProxy keeps a server drained whose agent has been UP for long: after a manual drain, or with a state file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet

UP = {"status": "UP"}


@pytest.mark.parametrize("state", [UP, {"status": "UP", "reason": "release 4"}])
def test_undrain_ends_a_drain_that_haproxy_keeps(fleet: Fleet, state: dict[str, str]) -> None:
    with fleet.settled("web1"):
        fleet.set_state("web1", **state)
        fleet.load_balancers["lb1"].send("set server web/web1 state drain")
        for arguments, status in ((["--check"], "DRAIN (agent)"), ([], "UP")):
            played = fleet.play("hapgent.agent.undrain", "--limit=web1", *arguments)
            assert "web/web1 on lb1" in played.output
            assert fleet.statuses() == {
                "lb1": {"web1": status, "web2": "UP", "web3": "UP"},
                "lb2": {"web1": "UP", "web2": "UP", "web3": "UP"},
            }
            assert fleet.state("web1") == (state if arguments else UP)
        # The drain has ended, so that there is nothing to do.
        played = fleet.play("hapgent.agent.undrain", "--limit=web1")
        assert "web/web1 on lb1" not in played.output
        assert played.changed() == set()


def test_load_balancer_that_does_not_receive_ready_is_named(fleet: Fleet) -> None:
    """The agent then stays READY, and nothing else is said to have set that."""
    waits = {"hapgent_wait_for": ["127.0.0.11", "127.0.0.99"], "hapgent_wait_timeout": 3}
    variables = {"hapgent_load_balancers": "lb1", **waits}
    with fleet.settled("web1"):
        fleet.load_balancers["lb1"].send("set server web/web1 state drain")
        played = fleet.play("hapgent.agent.undrain", "--limit=web1", succeeds=False, variables=variables)
        assert fleet.state("web1") == {"status": "READY"}
    failure = played.failures()["web1"]
    assert "127.0.0.99" in failure
    assert "The agent stays in READY." in failure
    assert "something else" not in failure


# Runs two modules on this machine, and then loses the connection.
SSH = """#!/bin/sh
for command; do :; done
case "$command" in
*python*) ;;
*) exec sh -c "$command" ;;
esac
[ "$(cat {folder}/runs 2>/dev/null)" != 11 ] || exit 255
printf 1 >>{folder}/runs
exec sh -c "$command"
"""


def test_what_was_changed_before_the_connection_was_lost_is_reported(fleet: Fleet) -> None:
    ssh = fleet.project / "ssh"
    ssh.write_text(SSH.format(folder=fleet.project), encoding="utf-8")
    ssh.chmod(0o755)
    fleet.host_vars("web1").update(ansible_connection="ssh", ansible_ssh_executable=str(ssh))
    with fleet.settled("web1"):
        fleet.load_balancers["lb1"].send("set server web/web1 state drain")
        # The state is read, and set to READY.
        played = fleet.play("hapgent.agent.undrain", "--limit=web1", succeeds=False)
        assert fleet.state("web1") == {"status": "READY"}
    assert played.hosts("unreachable") == {"web1"}
    assert "The state of web1 was changed" in played.failures()["web1"]
