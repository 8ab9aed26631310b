# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A server leaves the load balancers before its service stops, whatever stops it, and returns when the service is back.

Each test takes the hosts as the test before has left them.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Generator

import pytest
from haproxy import servers
from lab import HOSTS, SSH_CONFIG, ansible, eventually, run
from traffic import Traffic

LOAD_BALANCERS = [address for name, address in HOSTS.items() if "-lb" in name]
HOST, OTHER = "following-web1", "following-web2"
GRACE = 20
FOLLOWS = {"hapgent_drain_with": "web.service", "hapgent_server_port": 8080, "hapgent_grace": GRACE}
UP = {"status": "UP"}
# A package whose upgrade restarts the service.
PACKAGE = """
mkdir -p /tmp/web/DEBIAN && cd /tmp/web/DEBIAN
printf 'Package: web\\nVersion: %s\\nArchitecture: all\\nMaintainer: nobody\\nDescription: a test\\n' VERSION >control
printf '#!/bin/sh\\ndeb-systemd-invoke restart web.service\\n' >postinst && chmod 0755 postinst
dpkg-deb --build /tmp/web /tmp/web.deb && dpkg --install /tmp/web.deb
"""


def converge(**variables: object) -> subprocess.CompletedProcess[str]:
    extra_vars = json.dumps(variables)
    return ansible("ansible-playbook", "../shared/converge_web.yml", f"--limit={HOST}", f"--extra-vars={extra_vars}")


def statuses(server: str) -> set[str]:
    return {servers(address)[server]["status"] for address in LOAD_BALANCERS}


def state() -> dict[str, str]:
    fields: dict[str, str] = json.loads(run(HOST, "cat /etc/hapgent/state.json").stdout)
    return fields


def await_return() -> None:
    assert eventually(state, UP, timeout=60) == UP
    assert eventually(lambda: statuses(HOST), {"UP"}, timeout=30) == {"UP"}


def lost(stop: Callable[[], object]) -> int:
    """How many requests fail while something stops the service and starts it again."""
    with Traffic("following-client", SSH_CONFIG, LOAD_BALANCERS, 100) as load:
        load.go_on_until(300)
        stop()
        await_return()
        load.go_on_until(load.so_far() + 300)
    failed: int = load.counted["failed"]
    return failed


@pytest.fixture(scope="module", autouse=True)
def _follows() -> Generator[None]:
    await_return()
    done = converge(**FOLLOWS)
    assert done.returncode == 0, done.stdout
    yield
    done = converge()
    assert done.returncode == 0, done.stdout
    await_return()


def test_a_second_run_changes_nothing() -> None:
    assert "changed=0" in converge(**FOLLOWS).stdout
    assert run(HOST, "systemctl is-enabled hapgent-drain@hapgent").stdout == "enabled\n"
    complaints = run(HOST, "systemd-analyze verify hapgent-drain@hapgent.service").stderr.splitlines()
    # systemd warns about nobody, which is the documented default user of the agent.
    assert [line for line in complaints if "Special user nobody" not in line] == []


def test_a_restart_loses_requests_only_without_it() -> None:
    assert lost(lambda: run(HOST, "systemctl restart web")) == 0
    assert lost(lambda: run(OTHER, "systemctl restart web")) > 0


def test_a_package_that_restarts_the_service_loses_no_request() -> None:
    before = run(HOST, "systemctl show --property=MainPID web").stdout
    assert lost(lambda: run(HOST, PACKAGE.replace("VERSION", "1"))) == 0
    assert run(HOST, "systemctl show --property=MainPID web").stdout != before


def test_a_reboot_loses_no_request() -> None:
    booted = "systemctl show --property=UserspaceTimestamp"
    before = run(HOST, booted).stdout
    assert before.startswith("UserspaceTimestamp=")

    def reboot() -> None:
        subprocess.run(["podman", "restart", "--time=90", HOST], check=True, stdout=subprocess.DEVNULL)
        is_up = "systemctl is-system-running --wait"
        assert eventually(lambda: run(HOST, is_up).returncode, 0, timeout=90) == 0

    assert lost(reboot) == 0
    assert run(HOST, booted).stdout != before


def test_a_drain_by_a_person_stays() -> None:
    assert run(HOST, "hapgent drain --wait --reason disk").returncode == 0
    assert run(HOST, "systemctl restart web").returncode == 0
    time.sleep(3)
    assert state() == {"status": "DRAIN", "reason": "disk", "by": f"root@{run(HOST, 'hostname').stdout.strip()}"}
    assert run(HOST, "hapgent up").returncode == 0


def test_stays_out_until_the_service_is_healthy() -> None:
    run(HOST, "systemctl stop web")
    assert state() == {"status": "DRAIN", "reason": "web.service has stopped"}
    # This answers, but not with 200.
    run(HOST, "systemd-run --unit=impostor python3 -m http.server 8080 --directory /var/empty")
    run(HOST, "systemctl start --no-block hapgent-drain@hapgent")
    time.sleep(3)
    assert state()["status"] == "DRAIN"
    run(HOST, "systemctl stop impostor; systemctl start web")
    await_return()


@pytest.mark.parametrize("hinders", ["a connection", "an agent that is down"])
def test_a_stop_takes_no_longer_than_its_limit(hinders: str) -> None:
    if hinders == "a connection":
        # An idle connection, which stays open for a minute.
        run(HOST, "nohup bash -c 'exec 3<>/dev/tcp/127.0.0.1/8080; sleep 60' >/dev/null 2>&1 & sleep 1")
    else:
        run(HOST, "systemctl stop hapgent.socket hapgent.service")
    begin = time.monotonic()
    assert run(HOST, "systemctl stop web").returncode == 0
    took = time.monotonic() - begin
    run(HOST, "systemctl start hapgent.socket hapgent.service web")
    if hinders == "a connection":
        assert GRACE - 1 < took < GRACE + 15
    else:
        assert took < GRACE / 2
    await_return()


def test_an_unknown_service_is_refused() -> None:
    done = converge(**{**FOLLOWS, "hapgent_drain_with": "no-such.service"})
    assert done.returncode != 0
    assert "no-such.service" in done.stdout
    assert "changed=0" in done.stdout


def test_removing_it_drains_nothing() -> None:
    assert converge().returncode == 0
    assert run(HOST, "systemctl cat hapgent-drain@hapgent").returncode != 0
    assert state() == UP
    assert lost(lambda: None) == 0
    assert "changed=0" in converge().stdout
