# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each field of the state is documented with the rules that its line in State has."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.hapgent.agent.plugins.module_utils._state import FIELDS, STATUSES, Field, State
from ansible_collections.hapgent.agent.plugins.modules import hapgent_state

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = yaml.safe_load(hapgent_state.DOCUMENTATION)["options"]
NAMED = pytest.mark.parametrize(("name", "field"), FIELDS.items(), ids=FIELDS)


def test_each_field_but_the_status_has_rules() -> None:
    assert ("status", *FIELDS) == State._fields
    assert OPTIONS["status"]["choices"] == list(STATUSES)


@NAMED
def test_rules_fit_the_type(name: str, field: Field) -> None:
    kinds = {"int": int | None, "str": str | None}
    assert typing.get_type_hints(State)[name] == kinds[field.kind]


def test_a_comment_ends_the_answer() -> None:
    sent = [field.prefix for field in FIELDS.values() if field.prefix is not None]
    assert [prefix for prefix in sent[:-1] if "#" in prefix] == []


@NAMED
def test_module_documents_the_option(name: str, field: Field) -> None:
    assert OPTIONS[name]["type"] == field.kind
    text = " ".join(OPTIONS[name]["description"])
    limits = f"V(0) to V({field.limit})" if field.kind == "int" else f"{field.limit} bytes"
    assert OPTIONS[name].get("choices", []) == [*field.choices]
    assert field.choices or ("V(2026-11-28T06:00:00Z)" if field.is_moment else limits) in text


def test_module_can_unset_each_field() -> None:
    assert OPTIONS["unset"]["choices"] == list(FIELDS)


@NAMED
def test_state_file_is_documented(name: str, field: Field) -> None:
    row = re.search(rf"^\| `{name}` \|.*$", (ROOT / "docs/state.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert row, "the table of fields in docs/state.md"
    limits = field.range if field.choices else str(field.limit)
    assert ("2026-11-28T06:00:00Z" if field.is_moment else limits) in row[0]


@NAMED
def test_role_documents_the_limits_of_those_that_it_sets(name: str, field: Field) -> None:
    specs = yaml.safe_load((ROOT / "roles/hapgent/meta/argument_specs.yml").read_text(encoding="utf-8"))
    option = specs["argument_specs"]["main"]["options"].get(f"hapgent_{name}")
    if option:
        assert option["type"] == field.kind
        assert f"V({field.limit})" in " ".join(option["description"])
