# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Conditions, as releases of Ansible before 2.19 compile them: as the text between "{% if" and "%}".

A bare inline C(if) is no such condition, although 2.16.16, 2.18.13 and 2.19 take it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ("playbooks", "roles", "molecule")
KEYWORDS = {"when", "that", "until", "failed_when", "changed_when"}


def conditions_in(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for value in node:
            yield from conditions_in(value)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in KEYWORDS:
                yield from (str(condition) for condition in (value if isinstance(value, list) else [value]))
            else:
                yield from conditions_in(value)


CONDITIONS = [
    pytest.param(condition, id=f"{path.relative_to(ROOT)}: {condition}")
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.yml"))
    for condition in conditions_in(yaml.safe_load(path.read_text(encoding="utf-8")))
]


def test_conditions_are_found() -> None:
    assert len(CONDITIONS) > 50


@pytest.mark.parametrize("condition", CONDITIONS)
def test_condition_compiles_on_every_release(condition: str) -> None:
    jinja2.Environment().parse(f"{{% if {condition} %}} True {{% else %}} False {{% endif %}}")
