# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes the tables of variables in the READMEs of the roles from their argument specs; --check only compares them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).parents[2] / "roles"
# The entry points of the role fleet that each playbook uses.
PLAYBOOKS = {
    "drain": ["drain"],
    "undrain": ["undrain"],
    "rolling": ["rolling_check", "rolling_batch", "rolling_finish"],
    "reboot": ["reboot_check", "rolling_check", "rolling_batch", "rolling_finish"],
    "status": ["status"],
}
# Ansible's markup, O(a=b), V(a), M(a.b.c), C(a): https://docs.ansible.com/ansible/latest/dev_guide/ansible_markup.html
MARKUP = re.compile(r"\b[OVMC]\(([^)]*)\)")
# The option of another plugin or role: O(a.b.c#module:d), O(a.b.c#role:main:d).
ELSEWHERE = re.compile(r"([a-z._]+)#([a-z]+):(?:main:)?(.*)")
BEGIN, END = "<!-- variables -->\n", "<!-- end of variables -->\n"

Option = dict[str, Any]


def code(text: str) -> str:
    elsewhere = ELSEWHERE.fullmatch(text)
    if elsewhere:
        plugin, kind, option = elsewhere.groups()
        return f"`{option}` of the role `{plugin}`" if kind == "role" else f"`{option}` of `{plugin}`"
    return f"`{text}`"


def default(option: Option) -> str:
    value = option.get("default")
    if value is None:
        return "none"
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return code(str(value).lower())
    # A Jinja expression is no use in a table; the description explains it.
    return "see meaning" if "{{" in str(value) else code(str(value))


def meaning(option: Option) -> str:
    words = list(option["description"])
    if "choices" in option:
        words.append(f"One of {', '.join(option['choices'])}.")
    return MARKUP.sub(lambda match: code(match[1]), " ".join(words))


def table(*rows: tuple[str, ...]) -> str:
    head, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *body))


def of_hapgent(specs: dict[str, Any]) -> str:
    options = specs["main"]["options"]
    rows = [(code(name), default(option), meaning(option)) for name, option in options.items()]
    return table(("Variable", "Default", "Meaning"), *rows)


def of_fleet(specs: dict[str, Any]) -> str:
    having: dict[str, list[str]] = {}
    options: dict[str, Option] = {}
    for playbook, entry_points in PLAYBOOKS.items():
        of_playbook = {
            name: option for point in entry_points for name, option in specs[point].get("options", {}).items()
        }
        options.update(of_playbook)
        for name in of_playbook:
            having.setdefault(name, []).append(playbook)
    rows = [
        (
            code(name),
            "all" if len(having[name]) == len(PLAYBOOKS) else ", ".join(having[name]),
            default(option),
            meaning(option),
        )
        for name, option in options.items()
    ]
    return table(("Variable", "Playbooks", "Default", "Meaning"), *rows)


def main() -> None:
    for role, describe in (("hapgent", of_hapgent), ("fleet", of_fleet)):
        readme = ROLES / role / "README.md"
        text = readme.read_text(encoding="utf-8")
        specs = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
        before, rest = text.split(BEGIN)
        wanted = f"{before}{BEGIN}\n{describe(specs['argument_specs'])}\n{END}{rest.split(END)[1]}"
        if "--check" not in sys.argv:
            readme.write_text(wanted, encoding="utf-8")
        elif text != wanted:
            sys.exit(f"roles/{role}/README.md does not match meta/argument_specs.yml: run make docs")


if __name__ == "__main__":
    main()
