# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""The variables of the roles and the playbooks: their names, and lists and host patterns in all accepted forms."""

from __future__ import annotations

import difflib
import functools
import ipaddress
import re
import typing as t
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager, split_host_pattern
from ansible.module_utils.common.yaml import yaml_load

# Variables that Ansible uses before it reads the variables of the inventory.
OF_PLAYS = ("hapgent_hosts", "hapgent_serial")
# Variables of hosts that only the filter haproxy_servers reads.
OF_FILTERS = ("hapgent_haproxy_server",)
# What a rolling update passes to the next job of a workflow, which gets it as an extra variable.
OF_RESULTS = ("hapgent_rolling",)
ROLES = Path(__file__).parents[2] / "roles"


class VariableError(Exception):
    """A variable has an invalid value. The text describes the problem and the valid values."""


def words(value: t.Any) -> list[str]:
    """The items of a list or of a comma-separated string, as strings without surrounding spaces."""
    if value is None:
        return []
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return [word for item in items if (word := str(item).strip())]


def host_pattern(value: t.Any) -> str:
    """Convert a host pattern, or a list of them, to one pattern that Ansible reads unambiguously.

    Its parts are separated by commas, so that names may be IPv6 addresses. V('') means no pattern.
    """
    if value is None:
        return ""
    given = value if isinstance(value, (list, tuple)) else [value]
    return ",".join(part for item in given for part in _parts(str(item)))


def _parts(pattern: str) -> list[str]:
    try:
        # The colons of an IPv6 address are not separators. Ansible handles this only without a leading ! or &.
        ipaddress.IPv6Address(pattern.strip().lstrip("!&"))
    except ValueError:
        parts: list[str] = split_host_pattern(pattern)
        return parts
    return [pattern.strip()]


def hosts_of_play(
    wanted: t.Any, groups: t.Mapping[str, t.Sequence[str]], limit: str | None = None, changes: str = ""
) -> str:
    """The host pattern of a play. Raises VariableError.

    This runs while Ansible creates the play, when only extra variables and those of C(import_playbook) are known, so
    the checked pattern is the one that the play runs on. C(groups) has the hosts of each group, C(wanted) is the
    variable C(hapgent_hosts), C(limit) is C(--limit). C(changes) is what the play would do to all hosts if neither is
    given, V('') if that does no harm.
    """
    pattern = host_pattern(wanted)
    if not pattern:
        if changes and not limit:
            raise VariableError(
                f"This would {changes} every host of the inventory. Select hosts with --limit or hapgent_hosts. "
                "hapgent_hosts works only on the command line (-e) and in the vars of import_playbook. "
                "Nothing was changed."
            )
        return "all"
    inventory = _inventory(groups)
    try:
        found = inventory.get_hosts(pattern)
        if found and limit:
            inventory.subset(limit)
            found = inventory.get_hosts(pattern)
            if not found:
                raise VariableError(
                    f"No host is in both hapgent_hosts ({pattern}) and --limit ({limit}). Nothing was changed."
                )
    except AnsibleError as error:
        raise VariableError(
            f"hapgent_hosts must be a host pattern, not {pattern}: {error}. Nothing was changed."
        ) from error
    if not found:
        raise VariableError(
            f"hapgent_hosts must name hosts or groups of the inventory. {pattern} matches none. Nothing was changed."
        )
    strange = strangers(pattern, groups)
    if strange:
        raise VariableError(
            f"hapgent_hosts must name hosts or groups of the inventory, which has no {', '.join(strange)}. "
            "Nothing was changed."
        )
    return pattern


def strangers(pattern: t.Any, groups: t.Mapping[str, t.Sequence[str]]) -> list[str]:
    """The parts of a host pattern that match nothing in the inventory. Ansible ignores them.

    C(groups) has the hosts of each group. An empty group counts as a match.
    """
    names = {part.strip().lstrip("!&") for part in host_pattern(pattern).split(",")} - {""}
    others = sorted(names - {*groups} - {*groups.get("all", [])})
    # What remains may still match, for example a pattern with wildcards.
    inventory = _inventory(groups) if others else None
    return [name for name in others if inventory and not inventory.get_hosts(name)]


def _inventory(groups: t.Mapping[str, t.Sequence[str]]) -> InventoryManager:
    inventory = InventoryManager(None, parse=False)
    for group, hosts in groups.items():
        inventory.add_group(group)
        for host in hosts:
            inventory.add_host(host, group=group)
    return inventory


def serial(value: t.Any) -> list[str]:
    """The batch sizes of a play. Raises VariableError."""
    sizes = words(value)
    wrong = [size for size in sizes if not re.fullmatch(r"0*[1-9][0-9]{0,5}|0*([1-9][0-9]?|100)%", size)]
    if wrong or not sizes:
        raise VariableError(
            "hapgent_serial must be a number from 1, a percentage from 1% to 100%, or a list of them, "
            f"not {', '.join(wrong) or 'empty'}. Nothing was changed."
        )
    return sizes


@functools.cache
def known() -> frozenset[str]:
    """All public variables of the collection. Source: the argument specs of its roles, and the constants above."""
    names = {*OF_PLAYS, *OF_FILTERS, *OF_RESULTS}
    for path in ROLES.glob("*/meta/argument_specs.yml"):
        specs = yaml_load(path.read_text(encoding="utf-8"))["argument_specs"]
        names.update(*(entry_point["options"] for entry_point in specs.values()))
    return frozenset(names)


def unknown(names: t.Iterable[str], own: t.Any = None) -> list[str]:
    """A sentence for each of these variables that looks like a variable of the collection but is none.

    C(own) has the names of the user's own variables. Only names are read, because a value may be secret or undefined.
    """
    ours = known()
    strange = sorted({name for name in names if re.match("hapgent_[^_]", name)} - ours - set(words(own)))
    return [_unknown(name, sorted(ours)) for name in strange]


def _unknown(name: str, ours: list[str]) -> str:
    nearest = difflib.get_close_matches(name, ours, n=1)
    meant = f": did you mean {nearest[0]}?" if nearest else "."
    return f"{name} is not a variable of this collection{meant}"
