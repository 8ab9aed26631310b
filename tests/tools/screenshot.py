# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes docs/images/stats.png: the stats page of the running demo, with one server in DRAIN and one in DOWN.

HAProxy 2.6 and 3.0 show an agent's reason in only one place on that page: in the LastChk column of a server that is
DOWN (agent), while the pointer is on it. Needs Debian's packages chromium and fonts-liberation.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "stats.png"
STATS = "http://198.51.100.141:8404/"
SIZE = "840,132"
TABLE = '<table class="tbl" width="100%">'
# Hides the columns for queue, session rate, bytes, denied, errors and warnings, so that the picture is readable in
# README.md, and shows the LastChk of demo-web3 as if the pointer were on it.
STYLE = """<style>
tr.titre:nth-child(1) th:nth-child(n+2):nth-child(-n+3), tr.titre:nth-child(1) th:nth-child(n+5):nth-child(-n+8),
tr.titre:nth-child(2) th:nth-child(-n+6), tr.titre:nth-child(2) th:nth-child(n+13):nth-child(-n+21),
tr:not(.titre) > td:nth-child(n+2):nth-child(-n+7), tr:not(.titre) > td:nth-child(n+14):nth-child(-n+22)
{ display: none }
tr.titre th.empty { display: table-cell !important }
tr:has(a[name="web/demo-web3"]) > td:nth-child(24) div.tips { visibility: visible }
</style>"""


def run(*command: str) -> None:
    inventory = ROOT / ".cache" / "demo" / "inventory"
    subprocess.run(command, check=True, env={**os.environ, "ANSIBLE_INVENTORY": str(inventory)})


def page() -> str:
    """Return the stats page reduced to the backend web."""
    html = urllib.request.urlopen(STATS, timeout=5).read().decode("iso-8859-1")
    head = html.partition("</head>")[0].replace('<meta http-equiv="refresh"', "<meta ")
    tables = html.split(TABLE)
    title = next(number for number, table in enumerate(tables) if '<a name="web">' in table)
    return f"{head}{STYLE}</head><body>{TABLE}{tables[title]}{TABLE}{tables[title + 1]}</body></html>"


def main() -> None:
    run("ansible-playbook", "hapgent.agent.drain", "--limit=demo-web2", "--extra-vars=reason='kernel upgrade'")
    out = "status=DOWN reason='disk is broken' wait=true"
    run("ansible", "demo-web3", "--module-name=hapgent.agent.hapgent_state", f"--args={out}")
    # HAProxy's own health check of the service overwrites LastChk until the next agent check.
    time.sleep(5)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "stats.html")
        saved.write_text(page(), encoding="iso-8859-1")
        PICTURE.parent.mkdir(exist_ok=True)
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=2"]
        run("chromium", *options, f"--window-size={SIZE}", f"--screenshot={PICTURE}", str(saved))
    run("ansible-playbook", "hapgent.agent.undrain", "--limit=demo-web2,demo-web3")


if __name__ == "__main__":
    main()
