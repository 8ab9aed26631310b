# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keep a load on load balancers by running load.py on a test host, whose network is separate from this machine."""

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
    """Keep a load on load balancers while the context lasts. After that, C(counted) is the result of load.py."""

    def __init__(self, host: str, ssh_config: Path, addresses: list[str], rate: int = 300, slow: int = 5) -> None:
        self.counted: dict[str, Any] = {}
        program = ["python3", "-c", LOAD.read_text(encoding="utf-8"), f"--rate={rate}", f"--slow={slow}", *addresses]
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
        """The number of requests so far."""
        return int(self._progress.split()[0])

    def failed_so_far(self) -> int:
        """The number of failed requests so far."""
        return int(self._progress.split()[2])

    def go_on_until(self, requests: int) -> None:
        """Wait until this many requests were sent."""
        while self.so_far() < requests:
            assert self._process.poll() is None, self._progress
            time.sleep(0.5)

    def _read_progress(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self._progress = line
