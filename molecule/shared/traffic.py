# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keep a load on load balancers from a test host, which has a network of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

LOAD = Path(__file__).with_name("load.py")


class Traffic:
    """Requests, as load.py makes them, while the context lasts. After that, C(counted) is what it counted."""

    def __init__(self, host: str, ssh_config: Path, addresses: list[str], rate: int = 300) -> None:
        self.counted: dict[str, Any] = {}
        program = ["python3", "-c", LOAD.read_text(encoding="utf-8"), f"--rate={rate}", *addresses]
        self._command = ["ssh", "-F", str(ssh_config), host, shlex.join(program)]
        self._progress = "0 requests, 0 failed"

    def __enter__(self) -> Traffic:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read_progress)
        self._reader.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self.counted = json.loads(self._process.stdout.read())
        self._process.wait()
        self._reader.join()

    def so_far(self) -> int:
        """How many requests there were."""
        return int(self._progress.split()[0])

    def failed_so_far(self) -> int:
        """How many of them failed."""
        return int(self._progress.split()[2])

    def go_on_until(self, requests: int) -> None:
        """Wait until there were so many requests."""
        while self.so_far() < requests:
            assert self._process.poll() is None, self._progress
            time.sleep(0.5)

    def _read_progress(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self._progress = line
