# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measures what a check costs, in checks per second and CPU time, for one agent or for two agents side by side.

usage: unshare --net sh -c 'ip link set lo up; python tests/bench/checks.py [COMMAND ...]'

Each COMMAND starts an agent that is configured by HAPGENT_*; the default is the zipapp of the role. Two agents are
measured in turn, and each line ends with the ratio of their medians. The network namespace keeps the load away from
the machine's connection tracking.
"""

from __future__ import annotations

import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

ZIPAPP = Path(__file__).parents[2] / "roles" / "hapgent" / "files" / "hapgent.pyz"
ROUNDS = 7
CHECKS = 4000
IN_FLIGHT = (1, 64)
FIRST_PORT = 9801


class Measured:
    """An agent under measurement."""

    def __init__(self, command: str, port: int, folder: str) -> None:
        self.port = port
        state_file = Path(folder, f"{port}.json")
        state_file.write_text('{"status": "UP", "weight": 77}\n', encoding="utf-8")
        environment = {**os.environ, "HAPGENT_PORT": str(port), "HAPGENT_STATE_FILE": str(state_file)}
        self.process = subprocess.Popen(shlex.split(command), env=environment, stderr=subprocess.DEVNULL)
        self.figures: dict[str, list[float]] = {}
        while not self._listens():
            time.sleep(0.01)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            return False
        return True

    def measure(self, in_flight: int) -> None:
        """Measure one round."""
        cpu, wall = self._cpu_seconds(), time.perf_counter()
        ask(self.port, in_flight)
        wall = time.perf_counter() - wall
        self._note(f"checks/s, {in_flight} in flight", CHECKS / wall)
        self._note(f"CPU us/check, {in_flight} in flight", (self._cpu_seconds() - cpu) / CHECKS * 1e6)
        self._note("private dirty kB", self._dirty())

    def _note(self, figure: str, value: float) -> None:
        self.figures.setdefault(figure, []).append(value)

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _dirty(self) -> float:
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text(encoding="ascii")
        return float(rollup.partition("Private_Dirty:")[2].split()[0])


def ask(port: int, in_flight: int) -> None:
    """Send CHECKS checks, keeping this many in flight."""
    waiting: deque[socket.socket] = deque()
    for started in range(CHECKS + in_flight):
        if started < CHECKS:
            waiting.append(socket.create_connection(("127.0.0.1", port)))
        if started >= in_flight - 1 and waiting:
            client = waiting.popleft()
            answer = b"".join(iter(lambda: client.recv(4096), b""))  # noqa: B023
            client.close()
            if answer != b"UP 77%\n":
                sys.exit(f"port {port} answered {answer!r}")


def main() -> None:
    commands = sys.argv[1:] or [f"/usr/bin/python3 -I -S {ZIPAPP}"]
    with tempfile.TemporaryDirectory() as folder:
        agents = [Measured(command, FIRST_PORT + number, folder) for number, command in enumerate(commands)]
        for _round in range(ROUNDS):
            for in_flight in IN_FLIGHT:
                for agent in agents:
                    agent.measure(in_flight)
        for agent in agents:
            agent.process.kill()
    for figure in agents[0].figures:
        medians = [statistics.median(agent.figures[figure]) for agent in agents]
        ratio = f"   ratio {medians[1] / medians[0]:.2f}" if len(medians) == 2 else ""
        print(f"{figure:28} {'   '.join(f'{median:9.1f}' for median in medians)}{ratio}")


if __name__ == "__main__":
    main()
