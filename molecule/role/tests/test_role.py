# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role refuses, uninstalling, the oldest Ansible, and a run after one that was interrupted.

A run of the role takes a quarter of a minute, so tests take the host as the test before has left it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from lab import HOSTS, ansible, ask, run

HOST = "role-bookworm"
OLDEST = Path(__file__).parents[3] / ".cache" / "oldest" / "bin"


def converge(*arguments: str, **variables: object) -> tuple[int, str]:
    extra = [f"--extra-vars={name}={value}" for name, value in variables.items()]
    done = ansible("ansible-playbook", "converge.yml", f"--limit={HOST}", *arguments, *extra)
    return done.returncode, " ".join(done.stdout.split())


# What is wrong with each form of a value, and what the error says, is in test__preflight.py.
REFUSED: list[tuple[str, object]] = [
    ("hapgent_version", "0.3.1"),
    ("hapgent_checksum", "38b9b2f80fbdf046311127b22943efb464081812bf53de7ce0452968c916b434"),
    ("hapgent_port", "70000"),
    ("hapgent_port", "9777.0"),
    ("hapgent_settle", "6_0"),
    ("hapgent_ip", "10.0.0.300"),
    ("hapgent_status", "up"),
    ("hapgent_service", "haproxy"),
    ("hapgent_state_file", "/etc/hapgent/../hapgent/state.json"),
    # A folder that root has for something else.
    ("hapgent_state_file", "/etc/haproxy/state.json"),
    # Folders, the first of which belongs to the agent.
    ("hapgent_state_file", "/etc/hapgent"),
    ("hapgent_state_file", "/var/lib/systemd"),
    ("hapgent_instances", [{"name": "all", "port": 1}]),
    ("hapgent_instances", [{"name": "shop", "prot": 1}]),
    # The port of the default instance.
    ("hapgent_instances", [{"name": "shop"}]),
    # Below a folder of the default instance's user.
    ("hapgent_instances", [{"name": "shop", "port": 1, "user": "www-data", "group": "www-data"}]),
    # Debian's staff may write there.
    ("hapgent_state_file", "/var/local/hapgent/state.json"),
    ("hapgent_user", "no-such-user"),
    # It would stay for ever: nothing records who created it.
    ("hapgent_group", "shops"),
    ("hapgent_python", "/home/ops/venv/bin/python"),
    ("hapgent_python", "/bin/true"),
]
UNINSTALL_REFUSED = [("hapgent_state_file", "/var/lib/systemd"), ("hapgent_state_file", "/etc/haproxy/errors")]


def test_refuses(tmp_path: Path) -> None:
    """Each value on a host of its own, all of which are this host."""
    hosts = {}
    for number, (variable, value) in enumerate([*REFUSED, *UNINSTALL_REFUSED]):
        uninstalls = number >= len(REFUSED)
        more = {"hapgent_uninstall": True, "hapgent_uninstall_state_file": True} if uninstalls else {}
        manages = {"hapgent_user": "www-data", "hapgent_manage_user": True} if variable == "hapgent_group" else {}
        hosts[f"refused{number}"] = {"ansible_host": HOST, variable: value, **more, **manages}
    inventory, playbook = tmp_path / "refused.json", tmp_path / "play.json"
    inventory.write_text(json.dumps({"all": {"children": {"refused": {"hosts": hosts}}}}), encoding="utf-8")
    playbook.write_text(json.dumps([{"hosts": "refused", "roles": ["hapgent.agent.hapgent"]}]), encoding="utf-8")
    before = files()
    done = ansible("ansible-playbook", str(playbook), f"--inventory={inventory}", "--forks=4")
    assert done.returncode != 0
    assert files() == before
    for number, (variable, _value) in enumerate([*REFUSED, *UNINSTALL_REFUSED]):
        (error,) = re.findall(rf"^fatal: \[refused{number}\]: (.*)", done.stdout, re.MULTILINE)
        assert variable in error
        assert re.search(rf"^refused{number} .* changed=0 .* failed=1 ", done.stdout, re.MULTILINE)


def files() -> str:
    """What is on the host, but for the memory of agents, which they save at any time."""
    find = "find /etc /usr/local /var/lib -type f ! -name 'state.json.memory*' -print0"
    return run(HOST, f"{find} | sort -z | xargs -0 sha256sum").stdout


def test_verifies_the_agent_on_the_host(tmp_path: Path) -> None:
    """An agent that was altered on its way, not the checksum, is what the role has to find."""
    shutil.copytree(os.environ["ANSIBLE_COLLECTIONS_PATH"], tmp_path, dirs_exist_ok=True)
    with (tmp_path / "ansible_collections/hapgent/agent/roles/hapgent/files/hapgent.pyz").open("ab") as agent:
        agent.write(b"altered")
    before = files()
    done = ansible("ansible-playbook", "converge.yml", f"--limit={HOST}", ANSIBLE_COLLECTIONS_PATH=str(tmp_path))
    assert done.returncode != 0
    assert "failed to validate" in done.stdout
    assert files() == before


def uninstall(**variables: object) -> tuple[int, str]:
    return converge(hapgent_uninstall=True, **variables)


def left() -> list[str]:
    return run(HOST, "find / -xdev -name '*hapgent*' -not -path '/proc/*' -not -path '/sys/*' | sort").stdout.split()


@pytest.fixture
def _installed() -> None:
    """The host has the agent, in whichever state."""
    if ask_or_nothing() == "":
        assert converge()[0] == 0


@pytest.fixture
def _removed() -> None:
    """The host has nothing of the agent."""
    if left():
        assert uninstall(hapgent_uninstall_state_file=True)[0] == 0
    assert left() == []


def ask_or_nothing() -> str:
    try:
        return ask(HOSTS[HOST])
    except ConnectionError:
        return ""


@pytest.mark.usefixtures("_installed")
def test_uninstall_leaves_the_state_unless_asked() -> None:
    assert run(HOST, "hapgent maint --reason kept").returncode == 0
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


@pytest.mark.usefixtures("_installed")
def test_uninstall_removes_its_own_files_and_nothing_else() -> None:
    """The agent's user has put other things into its folder, of the names of files too."""
    run(
        HOST,
        "cd /etc/hapgent && mkdir state.json.tmp && touch state.json.tmp/kept kept"
        " && ln -sfn /etc/hostname state.json.lock",
    )
    hostname = run(HOST, "stat /etc/hostname").stdout
    rc, output = uninstall(hapgent_uninstall_state_file=True)
    assert rc == 0, output
    assert run(HOST, "cd /etc/hapgent && find . | sort").stdout.split() == [
        ".",
        "./kept",
        "./state.json.lock",
        "./state.json.tmp",
        "./state.json.tmp/kept",
    ]
    assert run(HOST, "stat /etc/hostname").stdout == hostname
    run(HOST, "rm -r /etc/hapgent")
    assert left() == []


OF_ITS_OWN = {"hapgent_user": "shop", "hapgent_group": "shops", "hapgent_manage_user": True}


@pytest.mark.usefixtures("_removed")
def test_uninstall_removes_the_user_and_the_group_that_the_role_created() -> None:
    accounts = run(HOST, "cat /etc/passwd /etc/group").stdout
    assert converge(**OF_ITS_OWN)[0] == 0
    assert run(HOST, "id --name --group shop").stdout == "shops\n"
    before = files()
    changes = []
    for check in (["--check"], []):
        rc, output = converge(*check, **OF_ITS_OWN, hapgent_uninstall=True, hapgent_uninstall_state_file=True)
        assert rc == 0, output
        changes += re.findall(r"changed=([0-9]+)", output)
        assert (files() == before) == bool(check)
    assert changes[0] == changes[1]
    assert run(HOST, "cat /etc/passwd /etc/group").stdout == accounts

    # A group that was there before stays.
    run(HOST, "groupadd shops")
    assert converge(**OF_ITS_OWN)[0] == 0
    assert uninstall(**OF_ITS_OWN, hapgent_uninstall_state_file=True)[0] == 0
    assert run(HOST, "getent passwd shop").stdout == ""
    assert run(HOST, "groupdel shops").returncode == 0


@pytest.mark.usefixtures("_removed")
def test_the_oldest_ansible_allowed_installs_drains_and_uninstalls() -> None:
    versions = run_oldest("ansible", "--version")
    assert "core 2.16." in versions
    assert "failed=0" in run_oldest("ansible-playbook", "converge.yml", f"--limit={HOST}")
    assert "changed=0" in run_oldest("ansible-playbook", "converge.yml", f"--limit={HOST}")
    assert "CHANGED" in run_oldest("ansible", HOST, "--module-name=hapgent.agent.hapgent_state", "--args=status=DRAIN")
    assert ask(HOSTS[HOST]).startswith("DRAIN")
    assert "failed=0" in run_oldest(
        "ansible-playbook", "converge.yml", f"--limit={HOST}", "--extra-vars=hapgent_uninstall=true"
    )
    assert left() == ["/etc/hapgent"]
    run(HOST, "rm -r /etc/hapgent")


def run_oldest(command: str, *arguments: str) -> str:
    return ansible(str(OLDEST / command), *arguments).stdout


@pytest.mark.usefixtures("_installed")
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


@pytest.mark.usefixtures("_installed")
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
