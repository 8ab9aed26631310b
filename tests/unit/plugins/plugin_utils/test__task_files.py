# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mistakes in task files are found, and whatever Ansible accepts is accepted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.plugin_utils import _task_files
from prepared import made_once

COLLECTIONS = Path(_task_files.__file__).parents[5]
CACHE = Path(__file__).parents[4] / ".cache"
NEWEST = (Path(__file__).parents[3] / "ansible-releases.txt").read_text(encoding="utf-8").split()[-2]
# The Ansible that the tests are installed with, and the oldest and newest supported ones: see tests/tools/install.
PYTHONS = {
    "ansible": Path(sys.executable),
    "oldest": CACHE / "oldest" / "bin" / "python",
    "newest": CACHE / "ansible" / NEWEST / "bin" / "python",
}
# Set up Ansible as ansible-playbook hapgent.agent.rolling does. In the process of the tests, Ansible could find modules
# only by replacing the import of collections.
PROGRAM = """
import json, sys
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader()
from ansible.utils.collection_loader import AnsibleCollectionConfig
AnsibleCollectionConfig.default_collection = "hapgent.agent"
from ansible_collections.hapgent.agent.plugins.plugin_utils._task_files import problems
json.dump([problems(*case) for case in json.load(sys.stdin)], sys.stdout)
"""
COMMAND = {"ansible.builtin.command": "true"}
NOTIFYING = {**COMMAND, "notify": "Restart"}
RESTART = {**COMMAND, "name": "Restart"}

# A file that ansible-vault has encrypted.
VAULT = "$ANSIBLE_VAULT;1.1;AES256\n" + "6162" * 20 + "\n"

Tasks = list[Any]
Files = dict[str, Any]


def role(name: str, **more: Any) -> dict[str, Any]:
    return {"include_role": {"name": name, **more}}


# The tasks, other files, and parts of the only problem.
WRONG: dict[str, tuple[Any, Files, list[str]]] = {
    "an unknown handler": ([NOTIFYING], {}, ["Restart", "hapgent_handlers"]),
    "an unknown handler, in a block": ([{"block": [COMMAND], "rescue": [NOTIFYING]}], {}, ["Restart"]),
    "an unknown handler, with a role": (
        [role("shop"), NOTIFYING],
        {"roles/shop/tasks/main.yml": [COMMAND]},
        ["Restart"],
    ),
    "an unknown module": ([{"comand": "true"}], {}, ["comand"]),
    "an unknown keyword": ([{**COMMAND, "whenn": True}], {}, ["whenn"]),
    "an unknown keyword, of a block": ([{"block": [COMMAND], "loop": [1]}], {}, ["loop"]),
    "an unknown keyword, of a file": ([{"include_tasks": "more.yml", "whenn": True}], {"more.yml": []}, ["whenn"]),
    "an unknown keyword, of a role": (
        [{**role("shop"), "whenn": True}],
        {"roles/shop/tasks/main.yml": [COMMAND]},
        ["whenn"],
    ),
    "an unknown option, of a role": (
        [role("shop", task_from="deploy")],
        {"roles/shop/tasks/main.yml": [COMMAND]},
        ["task_from"],
    ),
    "no file to include": ([{"include_tasks": ""}], {}, ["file"]),
    "a block that is not a list": ([{"block": COMMAND}], {}, ["block", "list"]),
    "a block with an invalid task": ([{"block": ["true"]}], {}, ["task"]),
    "a missing file": ([{"include_tasks": "more.yml"}], {}, ["more.yml"]),
    "a mistake in an included file": (
        [{"include_tasks": {"file": "more.yml"}}],
        {"more.yml": [{"comand": "true"}]},
        ["more.yml", "comand"],
    ),
    "a missing role": ([role("shop")], {}, ["shop"]),
    "a missing file of a role": (
        [role("shop", tasks_from="deploy")],
        {"roles/shop/tasks/main.yml": [COMMAND]},
        ["shop", "deploy"],
    ),
    "a role with an unknown module": (
        [{"import_role": {"name": "shop"}}],
        {"roles/shop/tasks/main.yml": [{"comand": "true"}]},
        ["shop", "comand"],
    ),
    "a missing dependency of a role": (
        [role("shop")],
        {"roles/shop/tasks/main.yml": [COMMAND], "roles/shop/meta/main.yml": {"dependencies": ["base"]}},
        ["shop", "base"],
    ),
    "an unknown handler that a role notifies": (
        [role("shop")],
        {"roles/shop/tasks/main.yml": [NOTIFYING]},
        ["Restart"],
    ),
    "a missing role, after a file with an unknown name": (
        [{"include_tasks": "{{ version }}.yml"}, role("shop")],
        {},
        ["shop"],
    ),
    "not YAML": ("[", {}, ["deploy.yml"]),
    "not a list": (COMMAND, {}, ["list"]),
    "not a task": (["true"], {}, ["task"]),
}


# The tasks, other files, and the handlers file.
RIGHT: dict[str, tuple[Tasks, Files, str]] = {
    "no task": ([], {}, ""),
    "a handler in the file": ([NOTIFYING], {"handlers.yml": [RESTART]}, "handlers.yml"),
    "a topic that a handler listens to": (
        [NOTIFYING],
        {"handlers.yml": [{**COMMAND, "name": "Restart the shop", "listen": ["Restart"]}]},
        "handlers.yml",
    ),
    "a handler of a role": (
        [NOTIFYING, role("shop")],
        {"roles/shop/tasks/main.yml": [COMMAND], "roles/shop/handlers/main.yml": [RESTART]},
        "",
    ),
    "a handler of a role that listens, in another file": (
        [NOTIFYING, role("shop", handlers_from="more")],
        {
            "roles/shop/tasks/main.yml": [COMMAND],
            "roles/shop/handlers/more.yml": [{**COMMAND, "name": "Reload", "listen": "Restart"}],
        },
        "",
    ),
    "a handler with its role's name": (
        [{**COMMAND, "notify": "shop : Restart"}, role("shop")],
        {"roles/shop/tasks/main.yml": [COMMAND], "roles/shop/handlers/main.yml": [RESTART]},
        "",
    ),
    "a handler of a role that the role depends on": (
        [NOTIFYING, role("shop")],
        {
            "roles/shop/tasks/main.yml": [COMMAND],
            "roles/shop/meta/main.yml": {"dependencies": ["base"]},
            "roles/base/handlers/main.yml": [RESTART],
        },
        "",
    ),
    "a handler of a role that the role includes": (
        [NOTIFYING, role("shop")],
        {"roles/shop/tasks/main.yml": [{"block": [role("base")]}], "roles/base/handlers/main.yml": [RESTART]},
        "",
    ),
    "a handler of a role that the role imports": (
        [NOTIFYING, role("shop")],
        {
            "roles/shop/tasks/main.yml": [{"import_role": {"name": "base"}}],
            "roles/base/tasks/main.yml": [COMMAND],
            "roles/base/handlers/main.yml": [RESTART],
        },
        "",
    ),
    "a handler of a role, with a variable in its name": (
        [NOTIFYING, role("shop")],
        {
            "roles/shop/tasks/main.yml": [COMMAND],
            "roles/shop/handlers/main.yml": [{**COMMAND, "name": "{{ 'Restart' }}"}],
        },
        "",
    ),
    "a role with an encrypted file": (
        [role("shop")],
        {"roles/shop/tasks/main.yml": [COMMAND], "roles/shop/vars/main.yml": VAULT},
        "",
    ),
    "keywords of a block, a file and a role": (
        [
            {"block": [COMMAND], "rescue": None, "become": True, "when": "version is defined", "tags": ["x"]},
            {"include_tasks": {"file": "more.yml", "apply": {"become": True}}, "loop": [1], "vars": {"x": 1}},
            {**role("shop", apply={"become": True}, public=True), "loop": [1], "loop_control": {"loop_var": "one"}},
        ],
        {"more.yml": [COMMAND], "roles/shop/tasks/main.yml": [COMMAND]},
        "",
    ),
    "a module of this collection, as its playbooks may name it": ([{"hapgent_info": {}}], {}, ""),
    "a module of a role": (
        [role("shop")],
        {"roles/shop/tasks/main.yml": [{"restock": {}}], "roles/shop/library/restock.py": "#!/usr/bin/python\n"},
        "",
    ),
    "a role with a variable in its name": (
        [role("hapgent.agent.fleet", tasks_from="drain"), role("{{ any }}"), NOTIFYING],
        {},
        "",
    ),
    "a file with a variable in its name": ([{"include_tasks": "{{ version }}.yml"}, NOTIFYING], {}, ""),
    "a role that imports a file with a variable in its name": (
        [role("shop"), NOTIFYING],
        {"roles/shop/tasks/main.yml": [{"import_tasks": "{{ version }}.yml"}]},
        "",
    ),
    "a handler with a variable in its name": ([{**COMMAND, "notify": "Restart {{ name }}"}], {}, ""),
}


CASES: dict[str, tuple[Any, Files, str]] = {
    **{name: (tasks, files, "") for name, (tasks, files, _parts) in WRONG.items()},
    **RIGHT,
    "an imported file": ([{"import_tasks": "more.yml", "become": True}], {"more.yml": [COMMAND]}, ""),
    "a block of handlers": ([COMMAND], {"handlers.yml": [{"block": [RESTART]}]}, "handlers.yml"),
    "files that include each other": (
        [{"include_tasks": "b.yml"}],
        {"b.yml": [{"include_tasks": "deploy.yml"}, {"comand": "true"}]},
        "",
    ),
}


@pytest.fixture(scope="module", params=PYTHONS)
def problems(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The problems of each case. One process checks all cases with an Ansible release."""

    def check(folder: Path) -> None:
        arguments = []
        for number, (tasks, files, handlers) in enumerate(CASES.values()):
            project = folder / str(number)
            for name, content in {"deploy.yml": tasks, **files}.items():
                path = project / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
            arguments.append(([str(project / "deploy.yml")], str(project / handlers) if handlers else "", str(project)))
        with (folder / "problems.json").open("w") as output:
            subprocess.run(
                [PYTHONS[request.param], "-c", PROGRAM],
                input=json.dumps(arguments),
                stdout=output,
                text=True,
                check=True,
                timeout=240,
                env={
                    **os.environ,
                    "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                    "ANSIBLE_HOME": str(folder / "ansible"),
                },
            )

    checked = made_once(tmp_path_factory, f"task-files-{request.param}", check) / "problems.json"
    return dict(zip(CASES, json.loads(checked.read_text(encoding="utf-8")), strict=True))


GIVEN = {"hapgent_tasks": "deploy.yml", "hapgent_after_tasks": "", "hapgent_rollback_tasks": None}


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({}, []),
        ({"hapgent_tasks": 3}, []),
        ({"hapgent_tasks": ""}, ["hapgent_tasks"]),
        ({"hapgent_tasks": "."}, ["hapgent_tasks"]),
        (
            {"hapgent_after_tasks": "a.yml", "hapgent_rollback_tasks": 0},
            ["hapgent_after_tasks", "hapgent_rollback_tasks"],
        ),
    ],
)
def test_files_are_found_where_ansible_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], wrong: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("deploy.yml", "3"):
        (tmp_path / name).touch()
    found = _task_files.find({**GIVEN, **given}, "hapgent_tasks")
    assert found["problem"].count(" must be ") == len(wrong)
    assert all(name in found["problem"] for name in wrong)
    if not wrong:
        path = str(tmp_path / str(given.get("hapgent_tasks", "deploy.yml")))
        assert found["paths"] == {"hapgent_tasks": path, "hapgent_after_tasks": "", "hapgent_rollback_tasks": ""}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_named(problems: dict[str, list[str]], case: str) -> None:
    (problem,) = problems[case]
    assert problem.isprintable()
    for part in WRONG[case][2]:
        assert part in problem


@pytest.mark.parametrize("case", RIGHT)
def test_valid_tasks_are_accepted(problems: dict[str, list[str]], case: str) -> None:
    assert problems[case] == []


def test_import_is_refused_if_this_ansible_cannot_do_it(
    problems: dict[str, list[str]], request: pytest.FixtureRequest
) -> None:
    found = " ".join(problems["an imported file"])
    assert ("include_tasks" in found) == (request.node.callspec.params["problems"] == "oldest")


def test_files_that_include_each_other_are_read_once(problems: dict[str, list[str]]) -> None:
    assert len(problems["files that include each other"]) == 1


def test_block_of_handlers_is_refused(problems: dict[str, list[str]]) -> None:
    (problem,) = problems["a block of handlers"]
    assert problem.endswith("handlers.yml: a handler must not be a block")
