# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module returns what its documentation promises. How each value is read is in test__host.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import yaml
from ansible_collections.hapgent.agent.plugins.modules.hapgent_host_info import RETURN

if TYPE_CHECKING:
    from tests.unit.plugins.modules.conftest import RunAnsible


INSTANCE = {
    "service": "no-such-service",
    "user": "root",
    "group": "no-such-group",
    "python": "/usr/bin/python3",
    "state_file": "/etc/passwd",
    "drain_with": "",
    "drain_unit": "no-such-drain.service",
    "weight_unit": "no-such-weight",
}


def test_returns_all_documented_values(run_ansible: RunAnsible) -> None:
    others = [{**INSTANCE, "python": "/no/python"}, {**INSTANCE, "group": "root"}]
    arguments = {"program": "/no/such/program", "instances": [INSTANCE, *others]}
    found = run_ansible("hapgent_host_info", json.dumps(arguments))
    assert not found["changed"]
    documented = yaml.safe_load(RETURN)
    assert set(documented) <= set(found)
    first, second, _third = found["instances"]
    assert set(first) == set(documented["instances"]["contains"])
    assert first["user"] == {"id": 0, "comment": "root", "primary_group": 0}
    assert first["group"] is None
    assert first["python_version"].startswith("3.")
    assert second == {**first, "python_version": ""}
    assert [component["path"] for component in first["path"]] == ["/", "/etc", "/etc/passwd"]
    assert first["has_other_files"]
    assert (first["unit"] == {}) == (found["service_manager"] != "systemd")
    account, primary = found["accounts"]
    assert set(account) == set(documented["accounts"]["contains"])
    assert (account["name"], account["group"], account["comment"]) == ("root", "no-such-group", "root")
    assert account["members"] is None
    assert (account["is_primary"], primary["is_primary"]) == (False, True)
