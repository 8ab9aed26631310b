# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Playbooks as users run them, on the Ansible of the tests.

Tests with the marker oldest_too run on the oldest one that the collection allows, too. See also fleet/test_releases.py.
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
# See tests/tools/install.
ANSIBLE = {"ansible": Path(sys.executable).parent, "oldest": Path(__file__).parents[2] / ".cache" / "oldest" / "bin"}


class RunPlaybook(Protocol):
    def __call__(self, *arguments: str, succeeds: bool = True) -> str:
        """What ansible-playbook says when it is called with these arguments, in the folder of the test."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "oldest_too: run playbooks on the oldest Ansible that is allowed, too")


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
    """The variables of a host in an inventory that is this machine."""
    return f"ansible_connection=local ansible_python_interpreter={module_python}"


@pytest.fixture
def run_playbook(request: pytest.FixtureRequest, tmp_path: Path, local_connection: str) -> RunPlaybook:
    """Runs playbooks on the host web1, which is this machine."""
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
                # Not everybody who runs tests has a home.
                "ANSIBLE_HOME": str(tmp_path / "ansible"),
                "ANSIBLE_PIPELINING": "true",
                "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
            },
        )
        said = done.stdout + done.stderr
        assert (done.returncode == 0) == succeeds, said
        # The text of a task is shown as JSON.
        return said.replace('\\"', '"')

    return run


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with a certificate of 127.0.0.1 and its key."""
    path = tmp_path_factory.mktemp("tls") / "lb.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lb -addext subjectAltName=IP:127.0.0.1"
    made = subprocess.run([*command.split(), "-keyout", "-", "-out", "-"], capture_output=True, check=True)
    path.write_bytes(made.stdout)
    return path
