# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role's other ways: input it refuses, a host that the original role set up, uninstalling."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from lab import HOSTS, ansible, ask, eventually, run

HOST = "hapgent-bookworm"
OLDEST = Path(__file__).parents[3] / ".cache" / "oldest" / "bin"


def converge(**variables: object) -> tuple[int, str]:
    extra = [f"--extra-vars={name}={value}" for name, value in variables.items()]
    done = ansible("ansible-playbook", "converge.yml", f"--limit={HOST}", *extra)
    return done.returncode, " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("hapgent_version", "0.3.1", "hapgent_version is 0.3.1: allowed is 0.3.2"),
        (
            "hapgent_checksum",
            "38b9b2f80fbdf046311127b22943efb464081812bf53de7ce0452968c916b434",
            "Remove hapgent_checksum from your inventory",
        ),
        ("hapgent_checksum", "0" * 64, "hapgent_checksum is 0000"),
        ("hapgent_port", "70000", "hapgent_port is 70000: allowed is a whole number from 1 to 65535"),
        ("hapgent_weight", "256", "hapgent_weight is 256: allowed is a whole number from 0 to 255"),
        ("hapgent_maxconn", "-1", "hapgent_maxconn is -1: allowed is a whole number from 0 to 65535"),
        ("hapgent_ip", "localhost", "hapgent_ip is 'localhost': allowed is an IPv4 or IPv6 address"),
        ("hapgent_status", "up", "value of hapgent_status must be one of"),
        ("hapgent_service", "a/b", "hapgent_service is 'a/b': allowed is a name"),
        ("hapgent_state_file", "state.json", "allowed is an absolute path"),
        ("hapgent_state_file", "/tmp/hapgent/state.json", "Allowed is a path such as /etc/hapgent/state.json"),
        ("hapgent_state_file", "/etc/hapgent/", "allowed is an absolute path"),
        ("hapgent_state_file", "/etc/state.json", "allowed is an absolute path"),
        ("hapgent_state_file", "/etc/../tmp/hapgent/state.json", "allowed is an absolute path"),
        ("hapgent_state_file", "/etc/haproxy/state.json", "/etc/haproxy belongs to root, not to nobody"),
        ("hapgent_service", "haproxy", "has a service of that name that does not run"),
        ("hapgent_ip", "10.0.0.300", "hapgent_ip is '10.0.0.300'"),
        ("hapgent_python", "/home/ops/venv/bin/python", "hapgent_python is /home/ops/venv/bin/python: a reboot"),
        ("hapgent_user", "no-such-user", "no-such-user"),
        ("hapgent_python", "/bin/true", "hapgent_python is /bin/true, and that is no Python"),
    ],
)
def test_refuses(variable: str, value: str, complaint: str) -> None:
    before = files()
    rc, output = converge(**{variable: value})
    assert rc != 0
    assert complaint in output
    assert files() == before


def files() -> str:
    return run(HOST, "find /etc /usr/local /var/lib -type f -print0 | sort -z | xargs -0 sha256sum").stdout


def test_verifies_the_agent_on_the_host(tmp_path: Path) -> None:
    """An agent that was altered on its way, not the checksum, is what the role has to find."""
    installed, community = os.environ["ANSIBLE_COLLECTIONS_PATH"].split(":")
    shutil.copytree(installed, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "ansible_collections/hapgent/agent/roles/hapgent/files/hapgent.pyz").open("ab") as agent:
        agent.write(b"altered")
    before = files()
    done = ansible(
        "ansible-playbook", "converge.yml", f"--limit={HOST}", ANSIBLE_COLLECTIONS_PATH=f"{tmp_path}:{community}"
    )
    assert done.returncode != 0
    assert "failed to validate" in done.stdout
    assert files() == before


def uninstall(**variables: object) -> tuple[int, str]:
    return converge(hapgent_uninstall=True, **variables)


def left() -> list[str]:
    return run(HOST, "find / -xdev -name '*hapgent*' -not -path '/proc/*' -not -path '/sys/*' | sort").stdout.split()


def test_uninstall_leaves_the_state_unless_asked() -> None:
    state = run(HOST, "cat /etc/hapgent/state.json").stdout
    assert uninstall()[0] == 0
    assert left() == ["/etc/hapgent"]
    assert run(HOST, "cat /etc/hapgent/state.json").stdout == state
    assert "changed=0" in uninstall()[1]

    assert converge()[0] == 0
    assert run(HOST, "cat /etc/hapgent/state.json").stdout == state

    assert uninstall(hapgent_uninstall_state_file=True)[0] == 0
    assert left() == []
    assert run(HOST, "systemctl list-units --all --no-legend 'hapgent*'").stdout == ""
    assert converge(hapgent_weight=50)[0] == 0
    assert ask(HOSTS[HOST]) == "FAIL 50%\n"


def test_the_oldest_ansible_allowed_installs_drains_and_uninstalls() -> None:
    versions = run_oldest("ansible", "--version")
    assert "core 2.16." in versions
    assert uninstall()[0] == 0
    assert "failed=0" in run_oldest("ansible-playbook", "converge.yml", f"--limit={HOST}")
    assert "changed=0" in run_oldest("ansible-playbook", "converge.yml", f"--limit={HOST}")
    assert "CHANGED" in run_oldest("ansible", HOST, "--module-name=hapgent.agent.hapgent_state", "--args=status=DRAIN")
    assert ask(HOSTS[HOST]).startswith("DRAIN")
    assert "failed=0" in run_oldest(
        "ansible-playbook", "converge.yml", f"--limit={HOST}", "--extra-vars=hapgent_uninstall=true"
    )
    assert left() == ["/etc/hapgent"]
    assert converge()[0] == 0


def run_oldest(command: str, *arguments: str) -> str:
    return ansible(str(OLDEST / command), *arguments).stdout


def test_a_run_after_one_that_was_interrupted_restarts_what_that_changed() -> None:
    """The agent and its unit came in, and then the connection was lost."""
    run(
        HOST,
        "sleep 2; cp /usr/local/bin/hapgent /var/tmp/new && cp /var/tmp/new /usr/local/bin/hapgent && rm /var/tmp/new",
    )
    before = run(HOST, "systemctl show --property=MainPID hapgent").stdout
    assert "changed=1 " in converge()[1]
    assert run(HOST, "systemctl show --property=MainPID hapgent").stdout != before
    assert "changed=0" in converge()[1]


def test_check_mode_of_a_move_to_a_user_of_its_own() -> None:
    arguments = ["hapgent_user=newcomer", "hapgent_group=newcomer", "hapgent_manage_user=true"]
    done = ansible(
        "ansible-playbook",
        "converge.yml",
        "--check",
        f"--limit={HOST}",
        *(f"--extra-vars={word}" for word in arguments),
    )
    # The folder belongs to nobody and has the state file alone, so it may change hands.
    assert done.returncode == 0, done.stdout
    assert run(HOST, "getent passwd newcomer").stdout == ""


def test_takes_over_from_the_role_of_the_original() -> None:
    run(HOST, "cp /usr/local/bin/hapgent /var/tmp/program")
    assert uninstall(hapgent_uninstall_state_file=True)[0] == 0
    run(
        HOST,
        """
        mkdir --mode=0755 /etc/hapgent && chgrp nogroup /etc/hapgent
        echo '{"status": "UP", "weight": 77}' >/etc/hapgent/state.json
        chgrp nogroup /etc/hapgent/state.json && chmod 0664 /etc/hapgent/state.json
        mv /var/tmp/program /usr/local/bin/hapgent
        cat >/etc/systemd/system/hapgent.service <<END
[Service]
User=nobody
Environment=HAPGENT_PORT=9777
ExecStart=/usr/local/bin/hapgent
[Install]
WantedBy=multi-user.target
END
        systemctl daemon-reload
        systemctl enable --now hapgent
        """,
    )
    answer = "UP 77%\n"
    assert eventually(lambda: ask(HOSTS[HOST]), answer) == answer
    rc, output = converge()
    assert rc == 0, output
    assert ask(HOSTS[HOST]) == answer
    assert run(HOST, "systemctl is-active hapgent.socket hapgent.service").stdout.split() == ["active", "active"]
    assert run(HOST, "stat --format='%U %a' /etc/hapgent").stdout.split() == ["nobody", "755"]
    assert "changed=0" in converge()[1]
