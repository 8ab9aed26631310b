# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module reports what it changes, in check mode too. What it does on the disk is in test__folder.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from preloaded import run_preloaded

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders to other users")


def test_creates_and_removes_what_check_mode_predicts(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    where = {"state_file": str(tmp_path / "hapgent" / "shop" / "state.json")}
    folder = tmp_path / "hapgent" / "shop"
    for arguments, exists in (
        ({**where, "owner": "nobody", "group": "nogroup"}, True),
        ({**where, "state": "absent", "remove_files": True}, False),
    ):
        predicted = run_preloaded("hapgent_folder", arguments, check=True)
        assert folder.exists() != exists
        done = run_preloaded("hapgent_folder", arguments)
        assert folder.exists() == exists
        assert predicted["changed"] is done["changed"] is True
        assert predicted["diff"] == done["diff"]
        assert run_preloaded("hapgent_folder", arguments)["changed"] is False


def test_an_unknown_owner_is_an_error(tmp_path: Path) -> None:
    arguments = {"state_file": f"{tmp_path}/shop/state.json", "owner": "no-such-user", "group": "nogroup"}
    failed = run_preloaded("hapgent_folder", arguments)
    assert failed["failed"]
    assert "no-such-user" in failed["msg"]
    assert not (tmp_path / "shop").exists()
    # In check mode, the role has not created the user.
    assert run_preloaded("hapgent_folder", arguments, check=True)["changed"] is True
