# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host moves from the role of hapgent 0.3.2 to this one, and back, with its live state.

The agent of this collection stands in for the original program, which behaves alike.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from lab import HOSTS, Checks, ansible, ask, eventually, run

HOST = "role-bookworm"
ROLE = Path(__file__).parents[3] / "roles" / "hapgent"
# The variables that the original documents, with its defaults.
DOCUMENTED = {
    "hapgent_version": "0.3.2",
    "hapgent_user": "nobody",
    "hapgent_group": "nogroup",
    "hapgent_ip": "0.0.0.0",
    "hapgent_port": "9777",
    "hapgent_state_file": "/etc/hapgent/state.json",
    "hapgent_status": "FAIL",
}
ORIGINAL_CHECKSUM = "38b9b2f80fbdf046311127b22943efb464081812bf53de7ce0452968c916b434"
# What the role of the original writes: a service without a socket, and files that belong to root.
UNIT = """[Unit]
Description=HAProxy agent
[Service]
User=nobody
Group=nogroup
Environment=HAPGENT_IP=0.0.0.0
Environment=HAPGENT_PORT=9777
Environment=HAPGENT_STATE_FILE=/etc/hapgent/state.json
Environment=HAPGENT_SETTLE=0
ExecStart=/usr/local/bin/hapgent
[Install]
WantedBy=multi-user.target
"""
CHECKS_PER_SECOND = 50
# While the old program ends and systemd opens the port for the new one.
HANDOVER_SECONDS = 5


def converge(**variables: object) -> tuple[int, str]:
    extra_vars = [f"--extra-vars={name}={value}" for name, value in {**DOCUMENTED, **variables}.items()]
    done = ansible("ansible-playbook", "converge.yml", f"--limit={HOST}", *extra_vars)
    return done.returncode, " ".join(done.stdout.split())


def install_the_original() -> None:
    program = f"src={ROLE}/files/hapgent.pyz dest=/usr/local/bin/hapgent mode=0755"
    assert ansible("ansible", HOST, "--module-name=ansible.builtin.copy", f"--args={program}").returncode == 0
    run(
        HOST,
        f"""
        mkdir -p --mode=0755 /etc/hapgent && chown root:nogroup /etc/hapgent
        test -e /etc/hapgent/state.json || echo '{{"status": "UP", "weight": 77}}' >/etc/hapgent/state.json
        chown root:nogroup /etc/hapgent/state.json && chmod 0664 /etc/hapgent/state.json
        cat >/etc/systemd/system/hapgent.service <<'END'\n{UNIT}END
        systemctl daemon-reload
        systemctl enable --now hapgent
        """,
    )


@pytest.fixture(scope="module", autouse=True)
def _with_the_original() -> Generator[None]:
    assert converge(hapgent_uninstall=True, hapgent_uninstall_state_file=True)[0] == 0
    install_the_original()
    assert eventually(lambda: ask(HOSTS[HOST]), "UP 77%\n") == "UP 77%\n"
    yield
    run(HOST, "systemctl stop hapgent; rm -rf /etc/hapgent /etc/systemd/system/hapgent.service")
    assert converge()[0] == 0


def test_the_checksum_of_another_program_is_refused_and_changes_nothing() -> None:
    before = run(HOST, "systemctl show --property=MainPID hapgent; ls -lR /etc/hapgent /etc/systemd/system").stdout
    rc, output = converge(hapgent_checksum=ORIGINAL_CHECKSUM)
    assert rc != 0
    assert "Remove hapgent_checksum" in output
    assert (
        run(HOST, "systemctl show --property=MainPID hapgent; ls -lR /etc/hapgent /etc/systemd/system").stdout == before
    )


def test_takes_over_with_the_live_state() -> None:
    with Checks(HOSTS[HOST], per_second=CHECKS_PER_SECOND) as checks:
        rc, output = converge()
        assert rc == 0, output
    answered = {outcome for outcome in checks.outcomes if outcome.startswith("UP")}
    refused = checks.outcomes.total() - sum(checks.outcomes[outcome] for outcome in answered)
    # The answer may include keywords that reset an earlier state.
    assert {(answer.split()[0], answer.split()[-1]) for answer in answered} == {("UP", "77%")}
    assert refused < HANDOVER_SECONDS * CHECKS_PER_SECOND, checks.outcomes
    assert run(HOST, "systemctl is-active hapgent.socket hapgent.service").stdout.split() == ["active", "active"]
    assert "HAPGENT_PORT" not in run(HOST, "cat /etc/systemd/system/hapgent.service").stdout
    assert run(HOST, "stat --format='%U %a' /etc/hapgent").stdout.split() == ["nobody", "755"]
    assert "changed=0" in converge()[1]


def test_scripts_that_use_pkill_go_on_working() -> None:
    for signal, status in (("USR2", "DOWN"), ("USR1", "UP")):
        run(HOST, f"pkill -{signal} hapgent")
        assert eventually(lambda: ask(HOSTS[HOST]).split()[0], status) == status
    run(HOST, """echo '{"status": "MAINT", "weight": 5}' >/etc/hapgent/state.json; pkill -HUP hapgent""")
    assert eventually(lambda: ask(HOSTS[HOST]).split()[0], "MAINT") == "MAINT"
    run(HOST, "pkill -USR1 hapgent")


def test_goes_back_with_the_live_state() -> None:
    assert converge(hapgent_uninstall=True)[0] == 0
    assert run(HOST, "ls /etc/systemd/system | grep hapgent").stdout == ""
    install_the_original()
    assert eventually(lambda: ask(HOSTS[HOST]), "UP 5%\n") == "UP 5%\n"
    units = run(HOST, "systemctl list-units --all --plain --no-legend 'hapgent*'").stdout.split()
    assert "hapgent.socket" not in units
