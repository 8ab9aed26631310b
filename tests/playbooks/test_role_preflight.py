# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role hapgent refuses invalid variables as Ansible passes them; test__preflight.py tests what is invalid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.playbooks.conftest import RunPlaybook


@pytest.fixture
def playbook(tmp_path: Path) -> Path:
    """A play that runs all tasks of the role, in check mode because the role must not change this machine."""
    play = {
        "hosts": "web1",
        "gather_facts": False,
        "check_mode": True,
        "tasks": [{"ansible.builtin.include_role": {"name": "hapgent.agent.hapgent"}}],
    }
    path = tmp_path / "playbook.yml"
    path.write_text(json.dumps([play]), encoding="utf-8")
    return path


@pytest.mark.oldest_too
@pytest.mark.parametrize("uninstall", [False, True])
def test_names_all_invalid_variables_and_changes_nothing(
    run_playbook: RunPlaybook, playbook: Path, uninstall: bool
) -> None:
    invalid: dict[str, Any] = {
        # Ansible's validation of the argument specs accepts these.
        "hapgent_port": "6_0",
        "hapgent_settle": "6_00",
        "hapgent_service": "hapgent\n",
        "hapgent_user": "nobody\n",
        "hapgent_state_file": "/etc/hapgent/../x/state.json",
        "hapgent_ip": 10.1,
    }
    variables = json.dumps({**invalid, "hapgent_version": 0.3, "hapgent_uninstall": uninstall})
    output = run_playbook(str(playbook), f"--extra-vars={variables}", succeeds=False)
    for name in invalid:
        assert f"{name} must be" in output
    assert ("hapgent_version must be" in output) != uninstall
    assert "Nothing was changed." in output
    assert "changed=0" in output
    assert "Look up the user" not in output
