# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role refuses wrong variables as Ansible gives them to it. What is wrong is in test__preflight.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.playbooks.conftest import RunPlaybook


@pytest.fixture
def playbook(tmp_path: Path) -> Path:
    """A play that has the role run all of its tasks; in check mode, since this machine is no host of its."""
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
def test_names_all_wrong_variables_and_changes_nothing(
    run_playbook: RunPlaybook, playbook: Path, uninstall: bool
) -> None:
    wrong: dict[str, Any] = {
        # Validating the argument specs lets these pass.
        "hapgent_port": "6_0",
        "hapgent_settle": "6_00",
        "hapgent_service": "hapgent\n",
        "hapgent_user": "nobody\n",
        "hapgent_state_file": "/etc/hapgent/../x/state.json",
        "hapgent_ip": 10.1,
    }
    variables = json.dumps({**wrong, "hapgent_version": 0.3, "hapgent_uninstall": uninstall})
    said = run_playbook(str(playbook), f"--extra-vars={variables}", succeeds=False)
    for name in wrong:
        assert f"{name} must be" in said
    assert ("hapgent_version must be" in said) != uninstall
    assert "Nothing was changed." in said
    assert "changed=0" in said
    assert "Look up the user" not in said
