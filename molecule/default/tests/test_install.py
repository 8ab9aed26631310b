# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role put on the hosts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lab import HOSTS, SSH_CONFIG, ansible, ask, eventually, haproxy, run
from testinfra.host import Host

testinfra_hosts = [f"ssh://{host}?ssh_config={SSH_CONFIG}" for host in HOSTS]

ROLE = Path(__file__).parents[3] / "roles" / "hapgent"
CHECKSUM = hashlib.sha256((ROLE / "files" / "hapgent.pyz").read_bytes()).hexdigest()

# Host: user, group and state file that its host_vars name.
OWNERS = {
    "hapgent-bullseye": ("hapgent", "hapgent", "/etc/hapgent/state.json"),
    "hapgent-bookworm": ("nobody", "nogroup", "/etc/hapgent/state.json"),
    "hapgent-trixie": ("www-data", "www-data", "/var/lib/hapgent/state.json"),
}


def name(host: Host) -> str:
    return str(host.backend.get_hostname())


def test_program(host: Host) -> None:
    program = host.file("/usr/local/bin/hapgent")
    assert (program.user, program.group, program.mode) == ("root", "root", 0o755)
    assert program.sha256sum == CHECKSUM
    assert host.check_output("/usr/local/bin/hapgent --version").endswith("(answers as hapgent 0.3.2)")


def test_only_the_agent_can_save(host: Host) -> None:
    user, group, state_file = OWNERS[name(host)]
    file = host.file(state_file)
    folder = host.file(str(Path(state_file).parent))
    assert (file.user, file.group, file.mode) == (user, group, 0o644)
    assert (folder.user, folder.group, folder.mode) == (user, group, 0o755)


def test_units_run_now_and_after_a_boot(host: Host) -> None:
    for unit in ("hapgent.socket", "hapgent.service"):
        assert host.service(unit).is_running
        assert host.service(unit).is_enabled


def test_units_are_what_systemd_expects(host: Host) -> None:
    complaints = host.run("systemd-analyze verify hapgent.service hapgent.socket")
    # The documented default user is one that systemd advises against.
    rest = [line for line in complaints.stderr.splitlines() if "Special user nobody" not in line]
    assert (complaints.rc, complaints.stdout, rest) == (0, "", [])


def test_listens_on_the_socket_of_systemd_alone(host: Host) -> None:
    listeners = host.check_output("ss --tcp --listening --processes --numeric --no-header 'sport = :9777'").splitlines()
    assert len(listeners) == 1
    assert '"systemd"' in listeners[0]
    assert '"hapgent"' in listeners[0]


def test_status_reports_the_state(host: Host) -> None:
    answer = ask(HOSTS[name(host)]).split()[0]
    assert f'Status: "{answer}' in host.check_output("systemctl status hapgent")


def test_journal_has_priorities(host: Host) -> None:
    host.check_output("systemctl restart hapgent")
    wanted = "journalctl --unit=hapgent PRIORITY=6 SYSLOG_IDENTIFIER=hapgent | grep --quiet answering"
    assert eventually(lambda: host.run(wanted).rc, 0) == 0


def test_second_instance_has_a_state_of_its_own() -> None:
    asked = "import socket; s = socket.create_connection(('::1', 9778)); print(s.recv(99).decode(), end='')"
    assert run("hapgent-trixie", f'python3 -c "{asked}"').stdout == "UP maxconn:20\n"
    assert ask(HOSTS["hapgent-trixie"]) == "READY\n"


def test_reboot_kept_the_drain() -> None:
    # The side effect drained the host, then rebooted it.
    assert ask(HOSTS["hapgent-bookworm"]).split()[0] == "DRAIN"
    for address in HOSTS.values():
        seen = eventually(lambda: haproxy(address)["hapgent-bookworm"], "DRAIN (agent)")  # noqa: B023
        assert seen == "DRAIN (agent)"


def states() -> list[str]:
    return [run(host, f"cat {state_file}").stdout for host, (_user, _group, state_file) in OWNERS.items()]


def test_another_run_leaves_live_states_alone() -> None:
    before = states()
    run_again = ansible("ansible-playbook", "converge.yml")
    assert run_again.returncode == 0, run_again.stdout
    assert run_again.stdout.count("changed=0") == len(HOSTS), run_again.stdout
    assert states() == before
