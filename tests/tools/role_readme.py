# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write the role's table of variables into its README, from its argument specs; with --check, only compare."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

ROLE = Path(__file__).parents[2] / "roles" / "hapgent"
BEGIN, END = "<!-- variables -->\n", "<!-- end of variables -->\n"
# Ansible's markup, O(a=b), V(a), M(a.b.c), C(a): https://docs.ansible.com/ansible/latest/dev_guide/ansible_markup.html
MARKUP = re.compile(r"\b[OVMC]\(([^)]*)\)")


def table() -> str:
    specs = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    rows = ["| Variable | Default | Meaning |\n| --- | --- | --- |\n"]
    for name, option in specs["argument_specs"]["main"]["options"].items():
        default = option.get("default", "none")
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if "default" in option else "none"
        words = list(option["description"])
        if "choices" in option:
            words.append(f"One of {', '.join(option['choices'])}.")
        meaning = MARKUP.sub(r"`\1`", " ".join(words))
        rows.append(f"| `{name}` | {shown} | {meaning} |\n")
    return "".join(rows)


def main() -> None:
    readme = ROLE / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" not in sys.argv:
        readme.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        sys.exit("roles/hapgent/README.md is not what meta/argument_specs.yml says: run make docs")


if __name__ == "__main__":
    main()
