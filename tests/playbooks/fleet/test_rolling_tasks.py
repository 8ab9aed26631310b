# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rolling update finds mistakes in its tasks and handlers before the first drain."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

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


def test_update_with_a_missing_handlers_file_changes_nothing(fleet: Fleet) -> None:
    (fleet.project / "tasks.yml").write_text("[]")
    fleet.play("hapgent.agent.rolling", succeeds=False, variables={**GIVEN, "hapgent_handlers": "no/handlers.yml"})
    assert fleet.state("web1") == UP
