# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role installs the program, its units and its state file, and they survive a reboot and a second run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import releases
from lab import HOSTS, SSH_CONFIG, ansible, ask, eventually, haproxy, run
from testinfra.host import Host

testinfra_hosts = [f"ssh://{host}?ssh_config={SSH_CONFIG}" for host in HOSTS]

ROLE = Path(__file__).parents[3] / "roles" / "hapgent"
CHECKSUM = hashlib.sha256((ROLE / "files" / "hapgent.pyz").read_bytes()).hexdigest()

# The user, group and state file of each host, as in its host_vars.
OWNERS = {
    "hapgent-bullseye": ("hapgent", "hapgent", "/etc/hapgent/state.json"),
    "hapgent-bookworm": ("nobody", "nogroup", "/etc/hapgent/state.json"),
    "hapgent-trixie": ("www-data", "www-data", "/var/lib/hapgent/state.json"),
}


def states() -> list[str]:
    return [run(host, f"cat {state_file}").stdout for host, (_user, _group, state_file) in OWNERS.items()]


def test_running_the_role_again_keeps_the_states() -> None:
    """This is the first test, so two of the hosts are as the first run has left them. The third was rebooted."""
    before = states()
    run_again = ansible("ansible-playbook", "converge.yml")
    assert run_again.returncode == 0, run_again.stdout
    assert run_again.stdout.count("changed=0") == len(HOSTS), run_again.stdout
    assert states() == before


# The newest of each minor release. The tests install the agent with others of 2.16 and 2.19.
NEWEST_OF_EACH = {
    minor: release for release in releases.BY_NUMBER if (minor := release.rpartition(".")[0]) not in ("2.16", "2.19")
}


@pytest.mark.parametrize("release", NEWEST_OF_EACH.values())
def test_a_second_run_with_each_ansible(release: str) -> None:
    done = ansible(
        str(releases.program(release) / "ansible-playbook"),
        "converge.yml",
        "--check",
        "--limit=hapgent-bullseye",
        ANSIBLE_DEPRECATION_WARNINGS="true",
    )
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    if release == releases.NEWEST:
        assert "DEPRECATION" not in done.stdout


def hostname(host: Host) -> str:
    return str(host.backend.get_hostname())


def test_program_is_installed(host: Host) -> None:
    program = host.file("/usr/local/bin/hapgent")
    assert (program.user, program.group, program.mode) == ("root", "root", 0o755)
    assert program.sha256sum == CHECKSUM
    assert host.check_output("/usr/local/bin/hapgent --version").endswith("(answers as hapgent 0.3.2)")


def test_only_the_agents_user_can_write_the_state_file(host: Host) -> None:
    user, group, state_file = OWNERS[hostname(host)]
    file = host.file(state_file)
    folder = host.file(str(Path(state_file).parent))
    assert (file.user, file.group, file.mode) == (user, group, 0o644)
    assert (folder.user, folder.group, folder.mode) == (user, group, 0o755)


def test_units_are_running_and_enabled(host: Host) -> None:
    for unit in ("hapgent.socket", "hapgent.service"):
        assert host.service(unit).is_running
        assert host.service(unit).is_enabled


def test_systemd_accepts_the_units(host: Host) -> None:
    complaints = host.run("systemd-analyze verify hapgent.service hapgent.socket")
    # systemd warns about nobody, which is the documented default user.
    unexpected = [line for line in complaints.stderr.splitlines() if "Special user nobody" not in line]
    assert (complaints.rc, complaints.stdout, unexpected) == (0, "", [])


def test_agent_listens_only_on_the_socket_that_systemd_opened(host: Host) -> None:
    listeners = host.check_output("ss --tcp --listening --processes --numeric --no-header 'sport = :9777'").splitlines()
    assert len(listeners) == 1
    assert '"systemd"' in listeners[0]
    assert '"hapgent"' in listeners[0]


def test_systemctl_status_shows_the_state(host: Host) -> None:
    answered = ask(HOSTS[hostname(host)]).split()[0]
    assert f'Status: "{answered}' in host.check_output("systemctl status hapgent")


def test_journal_entries_have_priorities(host: Host) -> None:
    host.check_output("systemctl restart hapgent")
    search = "journalctl --unit=hapgent PRIORITY=6 SYSLOG_IDENTIFIER=hapgent | grep --quiet answering"
    assert eventually(lambda: host.run(search).rc, 0) == 0


def test_second_instance_has_its_own_state() -> None:
    program = "import socket; s = socket.create_connection(('::1', 9778)); print(s.recv(99).decode(), end='')"
    assert run("hapgent-trixie", f'python3 -c "{program}"').stdout == "UP maxconn:20\n"
    assert ask(HOSTS["hapgent-trixie"]) == "READY\n"


def test_drain_survives_a_reboot() -> None:
    # side_effect.yml drained the host, then rebooted it.
    assert ask(HOSTS["hapgent-bookworm"]).split()[0] == "DRAIN"
    for address in HOSTS.values():
        seen = eventually(lambda: haproxy(address)["hapgent-bookworm"], "DRAIN (agent)")  # noqa: B023
        assert seen == "DRAIN (agent)"
