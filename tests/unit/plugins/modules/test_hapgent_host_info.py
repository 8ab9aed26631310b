# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module returns what its documentation promises. How each value is read is in test__host.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml
from ansible_collections.hapgent.agent.plugins.modules.hapgent_host_info import RETURN

if TYPE_CHECKING:
    from tests.unit.plugins.modules.conftest import RunAnsible


def test_returns_all_documented_values(run_ansible: RunAnsible) -> None:
    found = run_ansible(
        "hapgent_host_info",
        "user=root group=no-such-group python=/usr/bin/python3 program=/no/such/program state_file=/etc/passwd "
        "service=no-such-service",
    )
    assert not found["changed"]
    assert set(yaml.safe_load(RETURN)) <= set(found)
    assert found["user"] == {"id": 0, "comment": "root"}
    assert found["group"] is None
    assert found["python_version"].startswith("3.")
    assert [component["path"] for component in found["path"]] == ["/", "/etc", "/etc/passwd"]
    assert found["own_files"] == ["/etc/passwd"]
    assert found["has_other_files"]
    assert (found["service"] is None) == (found["service_manager"] != "systemd")
