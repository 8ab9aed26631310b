# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the playbooks decide of a fleet, as filters. Each is documented in a file of its name beside this one."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.hapgent.agent.plugins.plugin_utils import _fleet


def refusals(pools: t.Iterable[_fleet.Pool], leaving: list[str], min_up: t.Any) -> list[str]:
    """Why these servers may not leave their pools."""
    try:
        _fleet.at_least(min_up, 0)  # It is wrong also where there is nothing to refuse.
        return [refusal for pool in pools if (refusal := pool.refusal(leaving, min_up))]
    except _fleet.FleetError as error:
        raise AnsibleFilterError(str(error)) from error


def backends_refuse(asked: t.Sequence[_fleet.Result], leaving: list[str], min_up: t.Any) -> list[str]:
    """See backends_refuse.yml."""
    return refusals(_fleet.backends(asked, leaving), leaving, min_up)


def agents_refuse(asked: t.Sequence[_fleet.Result], leaving: list[str], min_up: t.Any) -> list[str]:
    """See agents_refuse.yml."""
    return refusals([_fleet.hosts(asked)], leaving, min_up)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {
            "agents_refuse": agents_refuse,
            "backends_refuse": backends_refuse,
            "fleet_table": _fleet.table,
            "kept_out_by": _fleet.kept_out,
        }
