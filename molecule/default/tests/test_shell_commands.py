# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The commands on a host change the state of its services, and each HAProxy acts on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from subprocess import CompletedProcess

import pytest
from lab import HOSTS, eventually, haproxy, run

SERVER = "hapgent-bookworm"
# This host has a second instance.
SERVER_OF_TWO = "hapgent-trixie"
ADDRESSES = ", ".join(HOSTS.values())
STATE_FILE = "/etc/hapgent/state.json"


def haproxies() -> set[str]:
    """The statuses that HAProxy 2.2, 2.6 and 3.0 show for the server."""
    return {haproxy(address)[SERVER] for address in HOSTS.values()}


def polling() -> set[str]:
    """The addresses that poll the agent."""
    status = json.loads(run(SERVER, "hapgent status --json --service hapgent").stdout)
    return {peer["address"] for peer in status["peers"] if peer["polls"]}


def hapgent(arguments: str, host: str = SERVER, user: str = "root") -> CompletedProcess[str]:
    """Run a command of the agent's program as a user of the host."""
    return run(host, f"cd / && setpriv --reuid={user} --regid={user} --init-groups hapgent {arguments}")


@pytest.fixture(scope="module", autouse=True)
def _without_other_pollers() -> None:
    """Let the agent forget the other tests, which have polled it, and would be waited for."""
    units = "hapgent.socket hapgent.service"
    run(SERVER, f"systemctl stop {units}; rm -f {STATE_FILE}.memory; systemctl start {units}")
    assert eventually(polling, {*HOSTS.values()}, timeout=30) == {*HOSTS.values()}


@pytest.fixture(autouse=True)
def _up() -> Iterator[None]:
    """The server is in rotation before and after each test."""
    run(SERVER, "hapgent set weight=none maxconn=none reason=none")
    # If the host's agent is new, it does not know that it has to end a drain.
    assert hapgent("ready --wait").returncode == 0
    assert hapgent("up --wait").returncode == 0
    assert eventually(haproxies, {"UP"}) == {"UP"}
    yield
    hapgent("up --wait")


def who() -> str:
    """Who runs the commands, as the state has it."""
    return f"root@{run(SERVER, 'hostname').stdout.strip()}"


def saved(host: str = SERVER, path: str = STATE_FILE) -> object:
    return json.loads(run(host, f"cat {path}").stdout)


def test_drain_and_up_wait_for_each_haproxy() -> None:
    done = hapgent("drain --wait --reason 'kernel upgrade'")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"hapgent: DRAIN # kernel upgrade (was UP), received by {ADDRESSES}."
    # Each HAProxy has received it already.
    assert eventually(haproxies, {"DRAIN (agent)"}, timeout=1) == {"DRAIN (agent)"}
    assert hapgent("drain").stdout == f"hapgent: already DRAIN # kernel upgrade, by {who()}.\n"
    done = hapgent("up --wait")
    assert (
        done.stdout.splitlines()[-1]
        == f"hapgent: UP (was DRAIN # kernel upgrade, by {who()}), received by {ADDRESSES}."
    )
    assert eventually(haproxies, {"UP"}) == {"UP"}


def test_set_changes_fields() -> None:
    assert hapgent("set weight=50 maxconn=10").returncode == 0
    assert saved() == {"status": "UP", "weight": 50, "maxconn": 10}
    assert hapgent("set weight=none maxconn=none").returncode == 0
    assert saved() == {"status": "UP"}
    # The file still belongs to the agent's user, with the mode that it had.
    assert run(SERVER, f"stat --format='%U %a' {STATE_FILE}").stdout == "nobody 644\n"


def test_state_of_a_stopped_service_is_written() -> None:
    run(SERVER, "systemctl stop hapgent.service hapgent.socket")
    try:
        done = hapgent("maint --wait")
        status = hapgent("status")
    finally:
        run(SERVER, "systemctl start hapgent.socket hapgent.service")
    assert done.returncode == 5
    assert "(inactive). Start it with systemctl start hapgent" in done.stderr
    assert saved() == {"status": "MAINT", "by": who()}
    assert status.returncode == 1
    # The agent has started with the new state.
    assert eventually(haproxies, {"MAINT"}) == {"MAINT"}


def test_other_users_change_nothing() -> None:
    done = hapgent("drain", user="daemon")
    assert done.returncode == 4
    assert done.stderr == "hapgent: user daemon may not change the state, only root may. Nothing was changed.\n"
    assert saved() == {"status": "UP"}


def test_one_of_two_instances_must_be_selected() -> None:
    before = saved(SERVER_OF_TWO, "/var/lib/hapgent/api.json")
    done = hapgent("maint", host=SERVER_OF_TWO)
    assert done.returncode == 2
    assert "several instances: hapgent, hapgent@api. " in done.stderr
    done = hapgent("maint --service hapgent@api", host=SERVER_OF_TWO)
    assert done.returncode == 0
    status = json.loads(hapgent("status --json --service hapgent@api", host=SERVER_OF_TWO).stdout)
    assert (status["state"]["status"], status["state_file"]) == ("MAINT", "/var/lib/hapgent/api.json")
    assert hapgent("up --service hapgent@api", host=SERVER_OF_TWO).returncode == 0
    assert saved(SERVER_OF_TWO, "/var/lib/hapgent/api.json") == before


@pytest.mark.parametrize("host", HOSTS)
def test_status_shows_each_instance(host: str) -> None:
    services = run(host, "hapgent --services").stdout.split()
    assert "hapgent" in services
    found = json.loads(run(host, "hapgent status --json").stdout)["instances"]
    assert [one["service"] for one in found] == services
    assert [one["problem"] for one in found] == [None] * len(services)
