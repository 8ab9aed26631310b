# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The argument specs of the roles match their defaults, and list exactly the variables that each entry point uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import OF_FILTERS, OF_RESULTS

ROOT = Path(__file__).parents[2]
HAPGENT, FLEET = ROOT / "roles" / "hapgent", ROOT / "roles" / "fleet"
ROLES = (HAPGENT, FLEET)
PLAYBOOKS = {path.stem: path for path in (ROOT / "playbooks").glob("*.yml")}

Specs = dict[str, dict[str, Any]]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def entry_points(role: Path) -> dict[str, Specs]:
    return {name: specs["options"] for name, specs in read(role / "meta/argument_specs.yml")["argument_specs"].items()}


def specs_of(role: Path) -> Specs:
    """Return all variables of a role, each with its first description."""
    specs: Specs = {}
    for options in entry_points(role).values():
        specs |= {name: option for name, option in options.items() if name not in specs}
    return specs


DEFAULTS: dict[Path, dict[str, Any]] = {role: read(role / "defaults/main.yml") for role in ROLES}
ENTRY_POINTS = {name: role for role in ROLES for name in entry_points(role)}
VARIABLES = [
    pytest.param(option, DEFAULTS[role].get(name), id=f"{role.name}:{name}")
    for role in ROLES
    for name, option in specs_of(role).items()
]


@pytest.mark.parametrize("role", ROLES)
def test_specs_and_defaults_have_the_same_variables_in_the_same_order(role: Path) -> None:
    assert list(specs_of(role)) == list(DEFAULTS[role])


@pytest.mark.parametrize(("option", "default"), VARIABLES)
def test_specs_have_the_defaults_of_the_role(option: dict[str, Any], default: Any) -> None:
    # A variable that is not set by default is null in defaults/main.yml, and must have no default in the specs.
    assert option.get("default") == default
    assert ("default" in option) == (default is not None)


@pytest.mark.parametrize(("option", "default"), VARIABLES)
def test_default_matches_the_type_and_the_choices(option: dict[str, Any], default: Any) -> None:
    types: dict[str, type] = {"str": str, "path": str, "int": int, "bool": bool, "list": list, "raw": object}
    if default is not None:
        assert isinstance(default, types[option["type"]])
        assert isinstance(default, bool) == (option["type"] == "bool")
        assert default in option.get("choices", [default])


@pytest.mark.parametrize(("name", "role"), ENTRY_POINTS.items())
def test_descriptions_are_sentences(name: str, role: Path) -> None:
    for option in entry_points(role)[name].values():
        assert all(sentence.endswith(".") for sentence in option["description"])


@pytest.mark.parametrize(("name", "role"), ENTRY_POINTS.items())
def test_descriptions_match_between_entry_points(name: str, role: Path) -> None:
    described = entry_points(role)[name]
    for options in entry_points(role).values():
        for variable in described.keys() & options.keys():
            assert described[variable] == options[variable], variable


def test_variables_of_both_roles_differ_only_in_their_descriptions() -> None:
    one, other = specs_of(HAPGENT), specs_of(FLEET)
    both = one.keys() & other.keys()
    assert {"hapgent_service", "hapgent_state_file"} <= both
    for variable in both:
        assert {**one[variable], "description": ""} == {**other[variable], "description": ""}


# Where variables are used

# Variables of load balancers that plugins read from hostvars.
READ_BY_PLUGINS = {
    "hapgent_change": {"hapgent_source_addresses"},
    "_fleet_problems": {"hapgent_own_variables"},
    "_fleet_table": {"hapgent_source_addresses"},
}
CONDITIONS = ("when", "that", "until", "failed_when", "changed_when")
INCLUDES = ("ansible.builtin.import_tasks", "ansible.builtin.include_tasks")


def strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield all strings in YAML, each with its key."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, (dict, list)):
        for name, value in node.items() if isinstance(node, dict) else [(key, value) for value in node]:
            yield from strings(value, name)


def keys(node: Any) -> Iterator[str]:
    """Yield the keys of all dictionaries in YAML."""
    if isinstance(node, (dict, list)):
        yield from node if isinstance(node, dict) else []
        for value in node.values() if isinstance(node, dict) else node:
            yield from keys(value)


def variables(node: Any) -> set[str]:
    """Return the variables hapgent_* that expressions in YAML use. Names in messages do not count."""
    found = set().union(*(READ_BY_PLUGINS.get(key.rpartition(".")[2], set()) for key in keys(node)))
    for key, text in strings(node):
        for expression in [text] if key in CONDITIONS else re.findall(r"{{.*?}}", text, re.DOTALL):
            found |= set(re.findall(r"\bhapgent_\w+", re.sub(r"\bhapgent\.agent\.\w+", "", expression)))
            for name in re.findall(r"\bhapgent\.agent\.(\w+)", expression):
                found |= READ_BY_PLUGINS.get(name, set())
    return found


def parts_of_playbooks() -> set[str]:
    """Return the task files of the role fleet that the playbooks include."""
    return {text for path in PLAYBOOKS.values() for key, text in strings(read(path)) if key == "tasks_from"}


def names_in_expressions(node: Any) -> Iterator[str]:
    """Yield the names of task files in the expressions that choose which file to include."""
    for key, text in strings(node):
        if "{{" in text and (key in INCLUDES or key == "hapgent__query_file"):
            yield from re.findall(r"'(\w+\.yml)'", text)


def files_of(entry_point: str) -> list[Path]:
    """Return the task files of an entry point, including the files that they include."""
    # The playbook rolling runs the user's tasks between task files of the role.
    parts = sorted(parts_of_playbooks() - set(ENTRY_POINTS)) if entry_point == "rolling_batch" else []
    files = [ENTRY_POINTS[entry_point] / "tasks" / f"{name}.yml" for name in [entry_point, *parts]]
    for file in files:  # The loop also visits the files that it appends.
        included = [file.parent / text for key, text in strings(read(file)) if key in INCLUDES and "{{" not in text]
        # What an expression includes is beside the steps.
        included += [FLEET / "tasks" / "steps" / name for name in names_in_expressions(read(file))]
        files += [path for path in included if path not in files]
    return files


def used_by(entry_point: str) -> set[str]:
    """Return the variables that the tasks of an entry point use, directly or in defaults and vars."""
    role = ENTRY_POINTS[entry_point]
    made = {**DEFAULTS[role], **read(role / "vars/main.yml")}
    found: set[str] = set()
    new = set().union(*(variables(read(file)) for file in files_of(entry_point)))
    while new:
        found |= new
        new = variables([made.get(name) for name in new]) - found
    return {name for name in found if not name.startswith("hapgent__")}


# Only the playbooks use these: they set the hosts and serial keywords of the plays.
OF_PLAYBOOKS = {"hapgent_hosts", "hapgent_serial"}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_specs_of_an_entry_point_list_exactly_the_variables_that_its_tasks_use(entry_point: str) -> None:
    assert used_by(entry_point) - OF_PLAYBOOKS == set(entry_points(ENTRY_POINTS[entry_point])[entry_point])


def test_playbooks_use_all_entry_points_and_only_their_own_variables() -> None:
    assert set(entry_points(FLEET)) <= parts_of_playbooks()
    used = variables([read(path) for path in PLAYBOOKS.values()])
    assert {name for name in used if not name.startswith("hapgent__")} == {*OF_PLAYBOOKS, "hapgent_handlers"}


def test_variables_without_argument_specs_are_documented() -> None:
    readme = (FLEET / "README.md").read_text(encoding="utf-8")
    assert [name for name in [*OF_PLAYBOOKS, *OF_FILTERS, *OF_RESULTS, "reason"] if f"`{name}`" not in readme] == []


# Names in tasks


def tasks(node: Any) -> Iterator[dict[str, Any]]:
    """Yield all tasks in a file, including those in blocks."""
    for task in node or []:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks(task.get(part))


FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.glob("roles/*/tasks/**/*.yml"))}


def recorded_by(role: Path) -> set[str]:
    """Return the variables that the tasks of a role register or set as facts."""
    found: set[str] = set()
    for file in sorted((role / "tasks").rglob("*.yml")):
        for task in tasks(read(file)):
            found |= {task.get("register", ""), *task.get("ansible.builtin.set_fact", {})} - {""}
    return found


def variables_of_tasks(role: Path) -> set[str]:
    """Return the variables that the role gives to its tasks and to the files that it imports."""
    files = sorted((role / "tasks").rglob("*.yml"))
    return {name for file in files for task in tasks(read(file)) for name in task.get("vars", {})}


def test_the_roles_do_not_overwrite_what_the_other_has_recorded() -> None:
    # A play may drain a host, run the role hapgent and undrain the host.
    both = recorded_by(HAPGENT), recorded_by(FLEET)
    assert all(both)
    assert both[0] & both[1] == set()
    # What is recorded also overrides a variable of a task.
    assert both[0] & variables_of_tasks(FLEET) == set()
    assert both[1] & variables_of_tasks(HAPGENT) == set()
    # The role fleet forgets failures that are over, which Ansible would still report.
    forgotten = {"ansible_failed_task", "ansible_failed_result"}
    assert all(name.startswith("hapgent__") for names in both for name in names - forgotten)


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_no_loop_variable_clashes_with_a_loop_over_the_role(file: Path) -> None:
    for task in tasks(read(file)):
        if any(word == "loop" or word.startswith("with_") for word in task):
            assert task["loop_control"]["loop_var"].startswith("hapgent__"), task["name"]
    found = [text for _key, text in strings(read(file)) if re.search(r"\bitem\b|'item'", text)]
    assert found == []
