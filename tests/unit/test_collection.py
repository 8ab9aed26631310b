# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""ansible-galaxy builds a small tarball, and the collection works without the files that Ansible does not need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prepared import made_once

if TYPE_CHECKING:
    from tests.conftest import Agents

ROOT = Path(__file__).parents[2]
NEEDED = {"meta", "plugins", "roles", "playbooks"}
PACKAGED = NEEDED | {"MANIFEST.json", "FILES.json", "README.md", "CHANGELOG.md", "LICENSES", "changelogs", "docs"}


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, text=True, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(folder: Path) -> None:
        run("ansible-galaxy", "collection", "build", "--output-path", folder, ROOT)

    return next(made_once(tmp_path_factory, "tarball", build).glob("hapgent-agent-*.tar.gz"))


@pytest.fixture(scope="module")
def stripped(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collections folder that contains only what Ansible needs of the collection."""

    def install(folder: Path) -> None:
        run("ansible-galaxy", "collection", "install", "--force", "--offline", "--collections-path", folder, tarball)
        for path in (folder / "ansible_collections/hapgent/agent").iterdir():
            if path.name not in NEEDED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return made_once(tmp_path_factory, "stripped", install)


def test_tarball_is_small_and_has_only_what_users_need(tarball: Path) -> None:
    assert tarball.stat().st_size < 350_000
    with tarfile.open(tarball) as archive:
        assert {name.split("/")[0] for name in archive.getnames()} <= PACKAGED
        agent = archive.getmember("roles/hapgent/files/hapgent.pyz")
        assert agent.mode & 0o111


def test_module_works_when_stripped(stripped: Path, agents: Agents) -> None:
    agent = agents.start()
    output = run(
        "ansible",
        "localhost",
        "--connection=local",
        "--one-line",
        "--module-name=hapgent.agent.hapgent_state",
        f"--args=status=DRAIN state_file={agent.state_file} port={agent.port}",
        "--extra-vars=ansible_python_interpreter=/usr/bin/python3",
        ANSIBLE_COLLECTIONS_PATH=str(stripped),
    )
    assert json.loads(output.split("=>")[1])["answer"] == "DRAIN"
    assert agent.ask() == b"DRAIN\n"


def test_module_defaults_apply_to_the_action_group(stripped: Path, agents: Agents, tmp_path: Path) -> None:
    agent = agents.start()
    defaults = {"state_file": str(agent.state_file), "port": agent.port}
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": "/usr/bin/python3"},
        "module_defaults": {"group/hapgent.agent.hapgent": defaults},
        "tasks": [{"hapgent.agent.hapgent_state": {"status": "MAINT"}}],
    }
    playbook = tmp_path / "playbook.yml"
    playbook.write_text(json.dumps([play]), encoding="utf-8")
    run("ansible-playbook", playbook, ANSIBLE_COLLECTIONS_PATH=str(stripped))
    assert agent.ask() == b"MAINT\n"


def test_playbooks_work_when_stripped(stripped: Path) -> None:
    names = [f"hapgent.agent.{name}" for name in ("drain", "reboot", "rolling", "status", "undrain")]
    checked = run("ansible-playbook", "--syntax-check", *names, ANSIBLE_COLLECTIONS_PATH=str(stripped))
    assert checked.count("playbook: ") == len(names)


def test_documentation_is_complete_when_stripped(stripped: Path) -> None:
    listed = json.loads(
        run("ansible-doc", "--json", "--metadata-dump", "hapgent.agent", ANSIBLE_COLLECTIONS_PATH=str(stripped))
    )
    modules = listed["all"]["module"]
    returned = {
        "hapgent.agent.hapgent_change": {"step", "began", "timeout", "reported", "services", "messages", "results"},
        "hapgent.agent.hapgent_decision": {"refusal"},
        "hapgent.agent.hapgent_folder": set(),
        "hapgent.agent.hapgent_host_info": {
            *("service_manager", "has_cron", "instances", "installed", "accounts", "other_agents"),
        },
        "hapgent.agent.hapgent_lock": {"held"},
        "hapgent.agent.hapgent_info": {"instances", "services"},
        "hapgent.agent.hapgent_state": {"before", "after", "kept", "answer", "received_by", "not_received_by"},
        "hapgent.agent.haproxy_server_info": {
            "cause",
            "waiting_for",
            "servers",
            "unreadable",
            "haproxy",
            "agent_check_warnings",
        },
    }
    assert set(modules) == set(returned)
    for name, module in modules.items():
        assert module["doc"]["version_added"] == "1.0.0"
        assert {"check_mode", "diff_mode", "idempotent", "platform"} <= set(module["doc"]["attributes"])
        assert set(module["return"] or ()) == returned[name]
    filters = listed["all"]["filter"]
    public = {name for name in filters if not name.startswith("hapgent.agent._")}
    assert public == {"hapgent.agent.haproxy_servers"}
    for plugin in filters.values():
        assert plugin["doc"]["version_added"] == "1.0.0"
        assert plugin["examples"]
        assert set(plugin["return"]) == {"_value"}
    entry_points = {name: set(role["entry_points"]) for name, role in listed["all"]["role"].items()}
    rolling = {"rolling_check", "rolling_batch", "rolling_finish"}
    assert entry_points == {
        "hapgent.agent.hapgent": {"main"},
        "hapgent.agent.fleet": {"drain", "undrain", "status", "reboot_check", *rolling},
    }
