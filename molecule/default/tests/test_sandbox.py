# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""systemd enforces the sandbox that the unit configures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lab import HOSTS, SSH_CONFIG, eventually
from testinfra.host import Host

testinfra_hosts = [f"ssh://{host}?ssh_config={SSH_CONFIG}" for host in HOSTS]


@pytest.fixture
def pid(host: Host) -> str:
    return str(host.check_output("systemctl show --property=MainPID --value hapgent"))


def test_systemd_rates_the_exposure_as_minimal(host: Host) -> None:
    verdict = host.check_output("systemd-analyze security --no-pager hapgent.service").splitlines()[-1]
    exposure = re.search(r"Overall exposure level for hapgent.service: ([0-9.]+)", verdict)
    assert exposure, verdict
    assert float(exposure[1]) <= 1.0


def test_agent_runs_without_privileges(host: Host, pid: str) -> None:
    status = dict(
        line.split(":", 1) for line in host.check_output(f"cat /proc/{pid}/status").splitlines() if ":" in line
    )
    assert status["Uid"].split()[0] != "0"
    assert {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"


def test_agent_has_no_network_but_loopback(host: Host, pid: str) -> None:
    interfaces = host.check_output(f"nsenter --target {pid} --net ip -oneline link").splitlines()
    assert len(interfaces) == 1
    assert "lo:" in interfaces[0]


@pytest.fixture
def state_file(host: Host) -> str:
    environment = host.check_output("systemctl show --property=Environment --value hapgent")
    return str(dict(assignment.split("=", 1) for assignment in environment.split())["HAPGENT_STATE_FILE"])


def test_agent_can_write_only_to_the_state_folder(host: Host, pid: str, state_file: str) -> None:
    inside = f"nsenter --target {pid} --mount"
    for path in ("/etc", "/usr/local/bin", "/var/lib", "/run", "/root", "/home"):
        assert host.run(f"{inside} touch {path}/written").rc != 0, path
    folder = Path(state_file).parent
    host.check_output(f"{inside} touch {folder}/written")
    host.check_output(f"rm {folder}/written")


def test_agent_sees_no_other_process(host: Host, pid: str) -> None:
    options = host.check_output(f"grep ' /proc ' /proc/{pid}/mounts")
    assert re.search(r"hidepid=(invisible|2)", options)
    assert "subset=pid" in options


def test_agent_can_still_save_its_state(host: Host, state_file: str) -> None:
    for signal, status in (("USR2", "DOWN"), ("USR1", "UP")):
        host.check_output(f"pkill -{signal} --exact hapgent")
        saved = eventually(lambda: json.loads(host.file(state_file).content)["status"], status)
        assert saved == status
