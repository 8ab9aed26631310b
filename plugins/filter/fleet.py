# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The public filters about fleets. Each one is documented in a file of the same name in this folder."""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _fleet


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {
            "fleet_table": _fleet.table,
            "kept_out_by": _fleet.kept_out,
        }
