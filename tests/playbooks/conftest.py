# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures that run playbooks as users do, with the Ansible release that the tests are installed with.

Tests with the marker oldest_too also run with the oldest supported Ansible. fleet/test_releases.py covers the others.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _state
from quick_python import quick_python

COLLECTIONS = Path(_state.__file__).parents[5]
CALLBACKS = Path(__file__).parent / "callback"
# tests/tools/install installs both.
ANSIBLE = {"ansible": Path(sys.executable).parent, "oldest": Path(__file__).parents[2] / ".cache" / "oldest" / "bin"}


class RunPlaybook(Protocol):
    def __call__(self, *arguments: str, succeeds: bool = True, environment: Mapping[str, str] | None = None) -> str:
        """Run ansible-playbook with these arguments in the test's folder and return its output."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "oldest_too: also run playbooks with the oldest supported Ansible")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "run_playbook" in metafunc.fixturenames:
        oldest_too = metafunc.definition.get_closest_marker("oldest_too")
        metafunc.parametrize("run_playbook", ANSIBLE if oldest_too else ["ansible"], indirect=True)


class AnsiblePlaybook:
    """Runs ansible-playbook of any release."""

    def __init__(self, folder: Path, module_python: Path, stack: contextlib.ExitStack) -> None:
        #: The Python interpreter with which playbooks run modules.
        self.module_python = module_python
        self._folder = folder
        self._stack = stack
        self._pythons: dict[Path, Path] = {}
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "records",
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            # The user who runs the tests may not have a home directory.
            "ANSIBLE_HOME": str(folder / "home"),
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
        }

    def run(
        self,
        *arguments: str | Path,
        cwd: Path,
        records: Path | str = os.devnull,
        ansible: Path = ANSIBLE["ansible"],
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the program of the release in the folder C(ansible); it writes the results of tasks to C(records).

        It runs in a Python that has already imported Ansible, unless C(environment) contains settings of Ansible:
        those are read during the import.
        """
        given = environment or {}
        command: list[str | Path] = [ansible / "ansible-playbook", *arguments]
        if not any(name.startswith("ANSIBLE_") for name in given):
            command.insert(0, self._python(ansible.resolve()))
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            cwd=cwd,
            env={**self._environment, "FLEET_RECORDS": str(records), **given},
        )

    def _python(self, programs: Path) -> Path:
        """The Python that has imported the release with these programs."""
        if programs not in self._pythons:
            folder = self._folder / str(len(self._pythons))
            folder.mkdir()
            self._pythons[programs] = self._stack.enter_context(
                quick_python(
                    folder,
                    python=str(programs / "python"),
                    preloaded="imports_of_ansible",
                    environment=self._environment,
                )
            )
        return self._pythons[programs]


@pytest.fixture(scope="session")
def ansible_playbook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnsiblePlaybook]:
    with contextlib.ExitStack() as stack:
        module_python = stack.enter_context(quick_python(tmp_path_factory.mktemp("python")))
        yield AnsiblePlaybook(tmp_path_factory.mktemp("ansible"), module_python, stack)


@pytest.fixture(scope="session")
def local_connection(ansible_playbook: AnsiblePlaybook) -> str:
    """The inventory variables of a host that is this machine."""
    return f"ansible_connection=local ansible_python_interpreter={ansible_playbook.module_python}"


@pytest.fixture
def run_playbook(
    request: pytest.FixtureRequest, tmp_path: Path, local_connection: str, ansible_playbook: AnsiblePlaybook
) -> RunPlaybook:
    """A function that runs playbooks on the host web1, which is this machine."""
    ansible = ANSIBLE[request.param]
    assert ansible.exists(), f"{ansible} does not exist: run tests/tools/install"

    def run(*arguments: str, succeeds: bool = True, environment: Mapping[str, str] | None = None) -> str:
        inventory = tmp_path / "inventory"
        inventory.write_text(f"web1 {local_connection}\n")
        done = ansible_playbook.run(
            "--inventory", inventory, *arguments, cwd=tmp_path, ansible=ansible, environment=environment
        )
        output = done.stdout + done.stderr
        assert (done.returncode == 0) == succeeds, output
        # Ansible prints the results of tasks as JSON, with escaped quotes.
        return output.replace('\\"', '"')

    return run
