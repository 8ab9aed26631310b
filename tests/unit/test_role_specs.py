# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role's variables are described as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).parent.parent.parent / "roles" / "hapgent"


def read(name: str) -> Any:
    return yaml.safe_load((ROLE / name).read_text(encoding="utf-8"))


SPECS: dict[str, dict[str, Any]] = read("meta/argument_specs.yml")["argument_specs"]["main"]["options"]
DEFAULTS: dict[str, Any] = read("defaults/main.yml")


def test_same_variables_in_the_same_order() -> None:
    assert list(SPECS) == list(DEFAULTS)


@pytest.mark.parametrize("name", SPECS)
def test_same_default(name: str) -> None:
    # A variable that is not set by default is null there: a default in the specs would be a value.
    assert SPECS[name].get("default") == DEFAULTS[name]
    assert ("default" in SPECS[name]) == (DEFAULTS[name] is not None)


@pytest.mark.parametrize("name", SPECS)
def test_default_has_the_type_and_is_a_choice(name: str) -> None:
    types: dict[str, type] = {"str": str, "path": str, "int": int, "bool": bool}
    default = DEFAULTS[name]
    if default is not None:
        assert isinstance(default, types[SPECS[name]["type"]])
        assert isinstance(default, bool) == (SPECS[name]["type"] == "bool")
        assert default in SPECS[name].get("choices", [default])


@pytest.mark.parametrize("name", SPECS)
def test_described(name: str) -> None:
    assert all(sentence.endswith(".") for sentence in SPECS[name]["description"])
