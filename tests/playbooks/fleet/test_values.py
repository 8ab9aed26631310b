# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text variables may be numbers, as YAML, INI inventories and Jinja2's native types can turn text into numbers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible_collections.hapgent.agent.plugins.module_utils import _who

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet

ROOT = Path(__file__).parents[3]
OLDEST = ROOT / ".cache" / "oldest" / "bin"

# Every text variable that can look like a number, with a number as its value.
NUMBERS = {
    "hapgent_reason": 4.2,
    "hapgent_service": 5,
    "hapgent_load_balancers": 10,
    "hapgent_backend": 80,
    "hapgent_server": 7,
    "hapgent_fleet": 7,
    "hapgent_tasks": 3,
    "hapgent_stop_after": 1,
    "hapgent_max_failed": 1,
    "hapgent_wait_for": 2,
    "hapgent_min_up": 0,
}
# The other text variables: they are never numbers, or only passed to a module, which converts them to text.
OTHERS = {
    "hapgent_own_variables",
    "hapgent_until",
    "hapgent_then",
    "hapgent_lock",
    "hapgent_state_file",
    # Without systemd, only the default instance can be found. See test__services.py.
    "hapgent_services",
    "hapgent_haproxy_socket",
    "hapgent_haproxy_master_socket",
    "hapgent_haproxy_url",
    "hapgent_haproxy_url_username",
    "hapgent_haproxy_url_password",
    "hapgent_haproxy_ca_path",
    "hapgent_source_addresses",
    "hapgent_health_url",
    "hapgent_health_ca_path",
    "hapgent_handlers",
    # Found in the same way as hapgent_tasks.
    "hapgent_before_tasks",
    "hapgent_after_tasks",
    "hapgent_rollback_tasks",
    "hapgent_reboot_command",
    "hapgent_kept_out",
    "hapgent_after_grace",
}


def test_every_text_variable_is_listed_above() -> None:
    specs = yaml.safe_load((ROOT / "roles/fleet/meta/argument_specs.yml").read_text(encoding="utf-8"))
    options = {name: option for spec in specs["argument_specs"].values() for name, option in spec["options"].items()}
    text = {name for name, option in options.items() if option["type"] in ("str", "path", "raw", "list")}
    assert text == set(NUMBERS) | OTHERS


@pytest.mark.parametrize(
    ("ansible", "name"), [("of the tests", "7"), ("oldest", "7"), ("oldest, native", "7"), ("oldest, native", "3e8")]
)
def test_numbers_work_as_text(fleet: Fleet, ansible: str, name: str) -> None:
    """A rolling update of a host named 7 or 3e8 in the backend 80, with its load balancers in the group 10."""
    groups = fleet.inventory["all"]["children"]
    host = {**groups["web"]["hosts"]["web1"], **NUMBERS, "hapgent_wait_timeout": 15}
    variables = {}
    if name != "7" or ansible != "oldest, native":
        del host["hapgent_server"]
    if name != "7":
        # This reason would change if it were converted to a number.
        del host["hapgent_reason"]
        variables["reason"] = "4.10"
    balancers = groups["lb"]
    fleet.inventory["all"]["children"] = {"web": {"hosts": {name: host}}, "10": balancers}
    tasks = [{"name": "See", "ansible.builtin.slurp": {"src": "{{ hapgent_state_file }}"}}]
    (fleet.project / "3").write_text(json.dumps(tasks), encoding="utf-8")
    more: dict[str, Any] = {} if ansible == "of the tests" else {"ansible": OLDEST}
    environment = {"ANSIBLE_JINJA2_NATIVE": "true"} if "native" in ansible else {}
    played = fleet.play(
        "hapgent.agent.rolling", f"--limit={name}", environment=environment, variables=variables, **more
    )
    (seen,) = played.results("See")
    reason = variables.get("reason", "4.2")
    assert json.loads(base64.b64decode(seen["content"])) == {"status": "DRAIN", "reason": reason, "by": _who.current()}
    assert fleet.state("web1") == {"status": "UP"}
    # The host was changed, so the playbook found its server on the load balancers.
    assert played.changed() == {name}
