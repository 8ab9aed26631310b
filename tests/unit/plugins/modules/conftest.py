# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fixture that runs modules with the real Ansible, which packs them and their imports for the host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _state

COLLECTIONS = Path(_state.__file__).parents[5]


class RunAnsible(Protocol):
    def __call__(self, module: str, arguments: str = "", command: Sequence[str] = ()) -> dict[str, Any]:
        """Run the module with Ansible, started by this command if one is given, and return its result."""


@pytest.fixture
def run_ansible(tmp_path: Path) -> RunAnsible:
    """A function that runs a module with the real Ansible."""

    def run(module: str, arguments: str = "", command: Sequence[str] = ()) -> dict[str, Any]:
        ansible = shutil.which("ansible", path=str(Path(sys.executable).parent))
        assert ansible
        options = ["-c", "local", "-m", f"hapgent.agent.{module}", "-a", arguments, "--one-line"]
        done = subprocess.run(
            [*command, ansible, "localhost", *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                # The user who runs the tests may not have a home directory.
                "ANSIBLE_HOME": str(tmp_path / "ansible"),
                "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout.split("=>", 1)[1])
        return result

    return run
