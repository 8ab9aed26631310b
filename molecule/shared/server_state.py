# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Let HAProxy read the states of its servers from a file that is written as docs/haproxy.md shows."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "haproxy.md"
DROP_IN = "/etc/systemd/system/haproxy.service.d/server-state.conf"
# Test hosts have no socat. This does what the drop-in uses it for.
SOCAT = """#!/usr/bin/python3
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[2])
    client.sendall(sys.stdin.buffer.read())
    sys.stdout.buffer.write(b"".join(iter(lambda: client.recv(4096), b"")))
"""


def install_drop_in() -> str:
    """A shell command that installs the documented drop-in on a load balancer."""
    (text,) = re.findall(rf"```ini\n(# {DROP_IN}\n.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL)
    socat = "/usr/local/bin/socat"
    writes = [
        f"mkdir -p {Path(path).parent} && cat >{path} <<'END'\n{content}END"
        for path, content in ((DROP_IN, text), (socat, SOCAT))
    ]
    return "\n".join([*writes, f"chmod 755 {socat} && systemctl daemon-reload"])
