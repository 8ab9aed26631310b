# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Another release comes in, and goes again, while load balancers go on asking."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import HOSTS, Checks, ansible, ask, run

ROOT = Path(__file__).parents[3]
OTHER_VERSION = "0.9.0"


@pytest.fixture
def other_release(tmp_path: Path) -> str:
    """Where Ansible finds a collection with an agent of another version."""
    shutil.copytree(os.environ["ANSIBLE_COLLECTIONS_PATH"], tmp_path, dirs_exist_ok=True)
    collection = tmp_path / "ansible_collections" / "hapgent" / "agent"
    shutil.copytree(ROOT / "files", collection / "files")
    package = collection / "files" / "hapgent" / "__init__.py"
    package.write_text(package.read_text(encoding="utf-8").replace('"1.0.0"', f'"{OTHER_VERSION}"'), encoding="utf-8")
    subprocess.run([sys.executable, collection / "files" / "build.py"], check=True)
    return str(tmp_path)


def test_upgrade_and_downgrade_refuse_no_check(other_release: str) -> None:
    answered = {host: ask(address).split()[0] for host, address in HOSTS.items()}
    shipped = versions()
    with contextlib.ExitStack() as asking:
        checks = {host: asking.enter_context(Checks(address, per_second=50)) for host, address in HOSTS.items()}
        there = ansible("ansible-playbook", "converge.yml", ANSIBLE_COLLECTIONS_PATH=other_release)
        assert there.returncode == 0, there.stdout
        assert versions() == {f"hapgent {OTHER_VERSION} (answers as hapgent 0.3.2)"}
        back = ansible("ansible-playbook", "converge.yml")
        assert back.returncode == 0, back.stdout
        while any(check.outcomes.total() < 1000 for check in checks.values()):
            time.sleep(0.1)
    assert versions() == shipped
    for host, check in checks.items():
        assert {outcome.split()[0] for outcome in check.outcomes} == {answered[host]}


def versions() -> set[str]:
    """Of the agents as installed; that these also run, the role sees to."""
    return {run(host, "hapgent --version").stdout.strip() for host in HOSTS}
