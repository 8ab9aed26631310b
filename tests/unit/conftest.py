# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures that run playbooks as users do.

Playbooks run on the release of Ansible that is installed for the tests. Tests with the marker oldest_too also run on
the oldest release that the collection supports. See also fleet/test_releases.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _state
from quick_python import quick_python

COLLECTIONS = Path(_state.__file__).parents[5]
# tests/tools/install installs both releases.
ANSIBLE = {"ansible": Path(sys.executable).parent, "oldest": Path(__file__).parents[2] / ".cache" / "oldest" / "bin"}


class RunPlaybook(Protocol):
    def __call__(self, *arguments: str, succeeds: bool = True) -> str:
        """Run ansible-playbook with these arguments in the folder of the test, and return its output."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "oldest_too: also run playbooks on the oldest supported release of Ansible")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "run_playbook" in metafunc.fixturenames:
        oldest_too = metafunc.definition.get_closest_marker("oldest_too")
        metafunc.parametrize("run_playbook", ANSIBLE if oldest_too else ["ansible"], indirect=True)


@pytest.fixture(scope="session")
def module_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python interpreter that runs modules for playbooks."""
    with quick_python(tmp_path_factory.mktemp("python")) as program:
        yield program


@pytest.fixture(scope="session")
def local_connection(module_python: Path) -> str:
    """The inventory variables of a host that is this machine."""
    return f"ansible_connection=local ansible_python_interpreter={module_python}"


@pytest.fixture
def run_playbook(request: pytest.FixtureRequest, tmp_path: Path, local_connection: str) -> RunPlaybook:
    """A function that runs playbooks on the host web1, which is this machine."""
    program = ANSIBLE[request.param] / "ansible-playbook"
    assert program.exists(), f"there is no {program}: run tests/tools/install"

    def run(*arguments: str, succeeds: bool = True) -> str:
        inventory = tmp_path / "inventory"
        inventory.write_text(f"web1 {local_connection}\n")
        done = subprocess.run(
            [program, "--inventory", inventory, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            cwd=tmp_path,
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                # Tests may run as a user without a home directory.
                "ANSIBLE_HOME": str(tmp_path / "ansible"),
                "ANSIBLE_PIPELINING": "true",
                "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
            },
        )
        output = done.stdout + done.stderr
        assert (done.returncode == 0) == succeeds, output
        # Ansible shows the messages of tasks as JSON, with quotes escaped.
        return output.replace('\\"', '"')

    return run


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with a certificate for 127.0.0.1 and its key."""
    path = tmp_path_factory.mktemp("tls") / "lb.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lb -addext subjectAltName=IP:127.0.0.1"
    made = subprocess.run([*command.split(), "-keyout", "-", "-out", "-"], capture_output=True, check=True)
    path.write_bytes(made.stdout)
    return path
