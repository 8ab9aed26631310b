# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""All conditions in tasks and in documented examples compile on every supported release of Ansible.

Releases before 2.19 compile a condition as the text between "{% if" and "%}". A bare inline C(if) does not compile
there, although 2.16.16, 2.18.13 and 2.19 accept it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ("playbooks", "roles", "molecule")
BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTED = {
    "*.md": BLOCK,
    "docs/*.md": BLOCK,
    "roles/*/README.md": BLOCK,
    "plugins/*/*.py": re.compile(r'^EXAMPLES = r"""\n(.*?)"""$', re.MULTILINE | re.DOTALL),
    "plugins/filter/*.yml": re.compile(r"^EXAMPLES: \|\n(.*?)\n\n", re.MULTILINE | re.DOTALL),
}
KEYWORDS = {"when", "that", "until", "failed_when", "changed_when"}


# Modules with options of these names, which are not conditions.
OPTIONS = {"hapgent.agent.hapgent_state": {"until"}}


def conditions_in(node: Any, module: str = "") -> Iterator[str]:
    if isinstance(node, list):
        for value in node:
            yield from conditions_in(value)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in KEYWORDS - OPTIONS.get(module, set()):
                yield from (str(condition) for condition in (value if isinstance(value, list) else [value]))
            else:
                yield from conditions_in(value, key)


def texts() -> Iterator[tuple[Path, str]]:
    """Yield the YAML of all playbooks and tasks, and that of all documented examples."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.yml")):
            yield path, path.read_text(encoding="utf-8")
    for pattern, text in DOCUMENTED.items():
        for path in sorted(ROOT.glob(pattern)):
            for match in text.finditer(path.read_text(encoding="utf-8")):
                yield path, match[1]


CONDITIONS = [
    pytest.param(condition, id=f"{path.relative_to(ROOT)}: {condition}")
    for path, text in texts()
    for condition in conditions_in(yaml.safe_load(text))
]


def test_conditions_are_found() -> None:
    assert len(CONDITIONS) > 50
    documents = {str(condition.id).partition(":")[0] for condition in CONDITIONS}
    assert {"playbooks/rolling.yml", "plugins/filter/_drained.yml", "docs/fleet.md"} <= documents


@pytest.mark.parametrize("condition", CONDITIONS)
def test_condition_compiles_on_every_release(condition: str) -> None:
    jinja2.Environment().parse(f"{{% if {condition} %}} True {{% else %}} False {{% endif %}}")
