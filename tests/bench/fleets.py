# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measures how long the playbooks take on fleets of several sizes, beside a ping of the same hosts.

usage: unshare --net sh -c 'ip link set lo up; python tests/bench/fleets.py HOSTSxLOAD_BALANCERS ...'

The hosts are real agents and the load balancers real HAProxy processes on loopback, with local connections and ten
forks. Each line has the seconds of one run, its ratio to the ping right before it, and the number of tasks. The time
that a playbook waits for polls is included: load balancers poll five times a second.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ZIPAPP = ROOT / "roles" / "hapgent" / "files" / "hapgent.pyz"
HAPROXY = ROOT / ".cache" / "haproxy"
FIRST_PORT = 20000
FORKS = 10
PLAYBOOKS = {
    "status": [],
    "drain": ["-e", "reason=bench hapgent_min_up=0"],
    "undrain": [],
    "rolling": ["-e", "reason=bench hapgent_min_up=0", "-e", "hapgent_tasks=tasks.yml"],
}


class Fleet:
    """Agents and load balancers in a folder, with their inventory."""

    def __init__(self, folder: Path, hosts: int, balancers: int) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        ports = {f"web{number}": FIRST_PORT + number for number in range(hosts)}
        web = {name: {"hapgent_state_file": str(self._start_agent(name, port))} for name, port in ports.items()}
        lb = {f"lb{number}": {"hapgent_haproxy_socket": self._start(number, ports)} for number in range(balancers)}
        of_web = {
            "hapgent_load_balancers": "lb",
            "hapgent_service": "no-service-of-this-name",
            "hapgent_grace": 5,
        }
        (folder / "tasks.yml").write_text("- ansible.builtin.debug:\n    msg: deployed\n", encoding="utf-8")
        (folder / "inventory.yml").write_text(
            json.dumps(
                {
                    "all": {
                        "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
                        "children": {"web": {"hosts": web, "vars": of_web}, "lb": {"hosts": lb}},
                    }
                }
            ),
            encoding="utf-8",
        )

    def _start_agent(self, name: str, port: int) -> Path:
        (self.folder / name).mkdir()
        state_file = self.folder / name / "state.json"
        state_file.write_text('{"status": "UP"}\n', encoding="utf-8")
        self._run(
            [sys.executable, "-I", "-S", str(ZIPAPP)],
            HAPGENT_PORT=str(port),
            HAPGENT_STATE_FILE=str(state_file),
            HAPGENT_SOCKET=str(self.folder / f"{name}.sock"),
        )
        return state_file

    def _start(self, number: int, ports: dict[str, int]) -> str:
        path = self.folder / f"lb{number}.sock"
        config = self.folder / f"lb{number}.cfg"
        servers = "".join(f"  server {name} 127.0.0.1:1 agent-port {port}\n" for name, port in ports.items())
        config.write_text(
            f"global\n  stats socket {path} level admin\n"
            "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1m\n  timeout server 1m\n"
            "backend web\n  default-server agent-check agent-inter 200ms agent-addr 127.0.0.1 "
            f"weight 100 source 127.0.0.{11 + number}\n{servers}",
            encoding="utf-8",
        )
        program = HAPROXY / "usr/sbin/haproxy"
        libraries = os.pathsep.join(str(found) for found in HAPROXY.glob("usr/lib/*-linux-gnu*"))
        self._run(
            [str(program if program.exists() else "haproxy"), "-db", "-f", str(config)], LD_LIBRARY_PATH=libraries
        )
        return str(path)

    def _run(self, command: list[str], **environment: str) -> None:
        with (self.folder / "log").open("ab") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment}))

    def end(self) -> None:
        for process in self.processes:
            process.kill()

    def run(self, *command: str, **environment: str) -> tuple[float, str]:
        """Run a program of Ansible, and return its seconds and its output. Raises CalledProcessError."""
        begin = time.monotonic()
        done = subprocess.run(
            [
                Path(sys.executable).parent / command[0],
                "--inventory",
                "inventory.yml",
                f"--forks={FORKS}",
                *command[1:],
            ],
            cwd=self.folder,
            env={**os.environ, "ANSIBLE_PIPELINING": "true", "ANSIBLE_HOME": str(self.folder / "home"), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return time.monotonic() - begin, done.stdout


def measure(hosts: int, balancers: int, playbooks: list[str]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fleets"))
    fleet = Fleet(folder, hosts, balancers)
    try:
        time.sleep(3)  # All load balancers poll by then.
        for playbook in playbooks:
            ping, _output = fleet.run("ansible", "web", "-m", "ansible.builtin.ping")
            seconds, output = fleet.run(
                "ansible-playbook", f"hapgent.agent.{playbook}", "-e", "hapgent_hosts=web", *PLAYBOOKS[playbook]
            )
            tasks = len(re.findall(r"^TASK ", output, re.MULTILINE))
            lines = len(output.splitlines())
            print(
                f"{hosts:4} hosts, {balancers} load balancers: ping {ping:6.1f} s, {playbook:8} {seconds:6.1f} s = "
                f"{seconds / ping:5.1f} pings, {tasks} tasks, {lines} lines",
                flush=True,
            )
            if os.environ.get("BENCH_OUTPUT"):
                print(output)
    finally:
        fleet.end()
        shutil.rmtree(folder)


def main() -> None:
    """Measure each size that the arguments give."""
    names = [name for name in sys.argv[1:] if name in PLAYBOOKS] or list(PLAYBOOKS)
    for size in (name for name in sys.argv[1:] if name not in PLAYBOOKS):
        hosts, balancers = map(int, size.split("x"))
        measure(hosts, balancers, names)


if __name__ == "__main__":
    main()
