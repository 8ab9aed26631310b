# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A state set by the module reaches HAProxy: through the state file, a signal, the agent and its response."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import HOSTS, ask, eventually, haproxy, module, run

SERVER = "hapgent-bookworm"
ADDRESS = HOSTS[SERVER]


def set_state(arguments: str, *options: str, host: str = SERVER) -> dict[str, object]:
    """Run hapgent_state on a host and return its result."""
    return module(host, "hapgent_state", arguments, *options)


def haproxies() -> set[str]:
    """The statuses that HAProxy 2.2, 2.6 and 3.0 show for the server."""
    return {haproxy(address)[SERVER] for address in HOSTS.values()}


def await_status(status: str) -> None:
    assert eventually(haproxies, {status}) == {status}


@pytest.fixture(autouse=True, scope="module")
def _ready() -> None:
    # test_neighbours reinstalled the agent on this host, and a new agent does not know that it has to end a drain.
    # Each HAProxy must receive READY before UP.
    set_state(f"status=READY unset=weight,maxconn,reason wait=true wait_for={','.join(HOSTS.values())}")


@pytest.fixture(autouse=True)
def _up(_ready: None) -> None:
    """The server is in rotation, as most tests leave it, and the agent's state is only that."""
    if json.loads(run(SERVER, "cat /etc/hapgent/state.json").stdout) != {"status": "UP"}:
        set_state("status=UP unset=weight,maxconn,reason")
    await_status("UP")


@pytest.mark.parametrize(
    ("status", "seen"),
    [
        ("UP", "UP"),
        ("READY", "UP"),
        ("DOWN", "DOWN (agent)"),
        ("FAIL", "DOWN (agent)"),
        ("STOPPED", "DOWN (agent)"),
        ("DRAIN", "DRAIN (agent)"),
        ("MAINT", "MAINT"),
    ],
)
def test_each_status_reaches_haproxy(status: str, seen: str) -> None:
    result = set_state(f"status={status} weight=50 maxconn=10")
    assert result["answer"] == f"{status} 50% maxconn:10"
    answered = ask(ADDRESS).split()
    # Keywords that reset the previous state may come in between; the scenario settling tests them.
    assert (answered[0], answered[-2:]) == (status, ["50%", "maxconn:10"])
    await_status(seen)
    again = set_state(f"status={status}")
    assert again["changed"] is False


def test_check_mode_changes_nothing() -> None:
    result = set_state("status=DRAIN", "--check", "--diff")
    assert result["changed"] is True
    assert result["after"] == {"status": "DRAIN"}
    assert ask(ADDRESS).split()[0] == "UP"


def test_stopped_service_fails_before_the_state_file_is_written() -> None:
    run(SERVER, "systemctl stop hapgent.service hapgent.socket")
    before = run(SERVER, "cat /etc/hapgent/state.json").stdout
    result = set_state("status=DRAIN")
    after = run(SERVER, "cat /etc/hapgent/state.json").stdout
    run(SERVER, "systemctl start hapgent.socket hapgent.service")
    assert "service hapgent " in str(result["msg"])
    assert "(inactive)" in str(result["msg"])
    assert "Nothing was changed" in str(result["msg"])
    assert before == after


def test_only_the_named_service_is_changed() -> None:
    api = "service=hapgent@api"
    assert set_state(f"status=MAINT {api}", host="hapgent-trixie")["answer"] == "MAINT maxconn:20"
    assert set_state(f"status=UP {api}", host="hapgent-trixie")["answer"] == "UP maxconn:20"


def test_service_that_is_not_an_agent_is_refused() -> None:
    result = set_state("status=DRAIN service=page")
    assert "service page must be hapgent, not " in str(result["msg"])
    assert ask(ADDRESS).split()[0] == "UP"


def test_deployment_script_of_the_original_agent_works() -> None:
    script = """
    stop_service() { sleep 4; }
    deploy_new_version() { sleep 1; }
    start_service() { sleep 1; }

    echo "Removing the instance from LB"
    pkill -USR2 hapgent # assuming that we have only one hapgent per instance

    stop_service ${SERVICE_NAME}
    deploy_new_version ${SERVICE_NAME}
    start_service ${SERVICE_NAME}

    echo "Putting the instance back to LB"
    pkill -USR1 hapgent
    """
    with ThreadPoolExecutor() as other_shell:
        deployment = other_shell.submit(run, SERVER, script)
        await_status("DOWN (agent)")
        assert not deployment.done()
        assert deployment.result().returncode == 0
    await_status("UP")


def test_unknown_service_changes_nothing() -> None:
    before = run(SERVER, "cat /etc/hapgent/state.json").stdout
    result = set_state("status=DRAIN service=hapgent-nowhere")
    assert result["changed"] is False
    assert str(result["msg"]).endswith(" hapgent. Nothing was changed.")
    assert run(SERVER, "cat /etc/hapgent/state.json").stdout == before
    assert ask(ADDRESS).split()[0] == "UP"


def test_process_of_another_user_is_not_taken_for_an_agent() -> None:
    # The process is named hapgent and has the real agent's state file in its environment.
    start = (
        "cp /usr/bin/sleep /tmp/hapgent && "
        "setpriv --reuid=12345 --regid=12345 --clear-groups env HAPGENT_STATE_FILE=/etc/hapgent/state.json "
        "sh -c '/tmp/hapgent 30 >/dev/null 2>&1 & echo $!'"
    )
    pid = int(run(SERVER, start).stdout)
    try:
        found = module(SERVER, "hapgent_info", "")
        assert [instance["service"] for instance in found["instances"]] == ["hapgent"]
        assert pid not in [instance["pid"] for instance in found["instances"]]
    finally:
        run(SERVER, f"kill {pid}; rm /tmp/hapgent")
