# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A message that is written in several lines of YAML is shown in one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("roles", "playbooks") for path in sorted((ROOT / folder).rglob("*.yml"))]
JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)


def folded_scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        if node.style == ">":
            yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from folded_scalars(item)
    elif isinstance(node, yaml.MappingNode):
        for _key, value in node.value:
            yield from folded_scalars(value)


def broken_lines(text: str) -> list[int]:
    """Return the lines of folded scalars in which a line is broken outside of Jinja expressions."""
    scalars = (scalar for document in yaml.compose_all(text) for scalar in folded_scalars(document))
    return [scalar.start_mark.line + 1 for scalar in scalars if "\n" in JINJA.sub("", scalar.value)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_folded_text_has_no_line_breaks(path: Path) -> None:
    # YAML keeps the break before and after a line that is indented more than the first.
    assert broken_lines(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("lines", "broken"),
    [
        ("a: >-\n  one\n  two\n", []),
        ("a: >-\n  {{ one\n     if two }}\n", []),
        ("a: >-\n  {{ one\n     if two }}.\n  three\n", [1]),
        ("a:\n  - b: >-\n      one\n        two\n", [2]),
        ("a: >\n  one\n", [1]),
    ],
)
def test_line_breaks_are_found(lines: str, broken: list[int]) -> None:
    assert broken_lines(lines) == broken
