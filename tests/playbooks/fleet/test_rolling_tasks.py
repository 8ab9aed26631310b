# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rolling update finds mistakes in its tasks and handlers before the first drain."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from releases import EDGES, program

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet

UP = {"status": "UP"}
GIVEN = {"hapgent_hosts": "web1", "hapgent_tasks": "tasks.yml", "hapgent_reason": "release 10"}
WORK = {"name": "Work", "ansible.builtin.command": "true", "notify": "Restart"}

# The content of the task file, and what the message must name. test__task_files.py has the other cases.
WRONG: dict[str, tuple[Any, list[str]]] = {
    "unknown handler": ([WORK], ["Restart", "hapgent_handlers"]),
    "unknown role": ([{"ansible.builtin.include_role": {"name": "shop"}}], ["shop"]),
}


@pytest.mark.parametrize(("tasks", "parts"), WRONG.values(), ids=WRONG)
def test_update_with_wrong_tasks_drains_nothing(fleet: Fleet, tasks: Any, parts: list[str]) -> None:
    (fleet.project / "tasks.yml").write_text(json.dumps(tasks))
    played = fleet.play("hapgent.agent.rolling", succeeds=False, variables=GIVEN)
    for part in ["tasks.yml", "Nothing was changed", *parts]:
        assert part in played.failures()["web1"]
    assert played.changed() == set()
    assert fleet.state("web1") == UP


def test_handlers_from_a_file_run_while_the_server_is_drained(fleet: Fleet) -> None:
    seen = fleet.project / "seen.json"
    copy = {"src": str(fleet.agents["web1"].state_file), "dest": str(seen), "mode": "0644"}
    (fleet.project / "tasks.yml").write_text(json.dumps([WORK]))
    (fleet.project / "handlers.yml").write_text(json.dumps([{"name": "Restart", "ansible.builtin.copy": copy}]))
    fleet.play("hapgent.agent.rolling", variables={**GIVEN, "hapgent_handlers": "handlers.yml"})
    assert json.loads(seen.read_bytes())["status"] == "DRAIN"
    assert fleet.state("web1") == UP


@pytest.mark.parametrize("release", EDGES)
def test_handlers_run_after_the_tasks_that_notify_them(fleet: Fleet, release: str) -> None:
    """On web1, the rollback notifies one, and on web2, which is back in rotation by then, the tasks after that."""
    fails = {"ansible.builtin.fail": {"msg": "No disk."}, "when": "inventory_hostname == 'web1'"}
    files = {name: [{**WORK, "name": name}] for name in ("after", "rollback")}
    files["handlers"] = [{"name": "Restart", "ansible.builtin.command": "true"}]
    for name, content in {"tasks": [fails], **files}.items():
        (fleet.project / f"{name}.yml").write_text(json.dumps(content))
    given = {
        **GIVEN,
        "hapgent_hosts": "web1,web2",
        "hapgent_max_failed": 1,
        "hapgent_after_tasks": "after.yml",
        "hapgent_rollback_tasks": "rollback.yml",
        "hapgent_handlers": "handlers.yml",
    }
    played = fleet.play("hapgent.agent.rolling", succeeds=False, ansible=program(release), variables=given)
    ran = [(record["task"], record["host"]) for record in played.records if record["task"] in ("Restart", *files)]
    assert ran == [("rollback", "web1"), ("Restart", "web1"), ("after", "web2"), ("Restart", "web2")]
    assert set(played.failures()) == {"web1"}


def test_the_host_is_checked_again_after_the_tasks_before_its_drain(fleet: Fleet) -> None:
    """They take so long that another server leaves meanwhile."""
    fleet.web_vars.update(hapgent_load_balancers="lb1", hapgent_min_up=2)
    leave = {
        "hapgent.agent.hapgent_state": {
            "status": "DRAIN",
            "state_file": str(fleet.agents["web2"].state_file),
            "notify": False,
        }
    }
    command = f"kill -HUP {fleet.agents['web2'].pid}"
    wait = {"ansible.builtin.wait_for": {"timeout": 3}}
    (fleet.project / "before.yml").write_text(json.dumps([leave, {"ansible.builtin.command": command}, wait]))
    (fleet.project / "tasks.yml").write_text("[]")
    given = {**GIVEN, "hapgent_before_tasks": "before.yml"}
    played = fleet.play("hapgent.agent.rolling", succeeds=False, variables=given)
    assert "hapgent_min_up requires 2" in played.failures()["web1"]
    assert fleet.state("web1") == UP


def test_import_that_this_ansible_cannot_do_is_refused(fleet: Fleet) -> None:
    (fleet.project / "tasks.yml").write_text(json.dumps([{"import_tasks": "more.yml"}]))
    (fleet.project / "more.yml").write_text("[]")
    played = fleet.play("hapgent.agent.rolling", succeeds=False, variables=GIVEN, ansible=program(EDGES[0]))
    for part in ("tasks.yml", "include_tasks", "Nothing was changed"):
        assert part in played.failures()["web1"]
    assert fleet.state("web1") == UP


def test_update_with_a_missing_handlers_file_changes_nothing(fleet: Fleet) -> None:
    (fleet.project / "tasks.yml").write_text("[]")
    fleet.play("hapgent.agent.rolling", succeeds=False, variables={**GIVEN, "hapgent_handlers": "no/handlers.yml"})
    assert fleet.state("web1") == UP
