# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read HAProxy's statistics over HTTP."""

from __future__ import annotations

import csv
import urllib.request

STATS_PORT = 8404


def servers(address: str) -> dict[str, dict[str, str]]:
    """The statistics of each server of the backend web. Source: section 9.1 of HAProxy's management guide."""
    with urllib.request.urlopen(f"http://{address}:{STATS_PORT}/;csv", timeout=5) as response:
        rows = csv.DictReader(response.read().decode().removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["pxname"] == "web" and row["svname"] != "BACKEND"}
