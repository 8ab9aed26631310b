# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A simulated host: namespaces in which the only agents are real ones, and a systemctl that reports their services."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.conftest import Agent, Agents

# Prints what systemctl show prints for the services in a folder. Properties that were not asked for do no harm.
# A shell starts ten times as fast as Python.
SYSTEMCTL = """#!/bin/sh
echo "$*" >>"{folder}/asked"
for unit; do :; done
if [ -e "{folder}/services/$unit" ]; then
    exec cat "{folder}/services/$unit"
fi
printf 'Id=%s\\nMainPID=0\\nLoadState=not-found\\nActiveState=inactive\\n' "$unit"
"""


class Host:
    """A PID namespace that simulates a host: processes in it see no others.

    Without it, programs would also find agents of other tests and users of this machine.
    """

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        command = ["unshare", *self._as_root, "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
        if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode != 0:
            pytest.skip("needs namespaces")
        # All processes in the namespace end with its first process.
        self._first = subprocess.Popen(
            [*command, "sh", "-c", "echo ready && exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._first.stdout
        assert self._first.stdout.readline() == "ready\n"

    def enter(self) -> list[str]:
        """The beginning of a command that runs a program on this host."""
        namespaces = f"/proc/{self._first.pid}/ns"
        user = [f"--user={namespaces}/user", "--preserve-credentials"] if self._as_root else []
        return ["nsenter", *user, f"--mount={namespaces}/mnt", f"--pid={namespaces}/pid_for_children"]

    def start(
        self,
        state: bytes = b'{"status": "UP"}',
        *,
        state_file: Path | None = None,
        status_socket: Path | None = None,
        settle: int = 0,
        user: int = 0,
    ) -> Agent:
        """Start an agent on this host, without polling it."""
        drop = f"setpriv --reuid={user} --regid={user} --clear-groups".split() if user else []
        enter = (
            f"os.environ['PATH'] = {os.environ['PATH']!r}; os.execvp('nsenter', {self.enter() + drop} + sys.argv[1:])"
        )
        environment = {"HAPGENT_SETTLE": str(settle)}
        if status_socket:
            environment["HAPGENT_SOCKET"] = str(status_socket)
        agent = self._agents.start(state, state_file=state_file, before_exec=enter, environment=environment, wait=False)
        agent.await_log("answering")
        return agent

    def boot_systemd(self, folder: Path) -> Path:
        """Let it look as if systemd ran on the host. Return the folder of its systemctl, which this folder contains.

        set_services() sets what systemctl reports.
        """
        mounts = "mount -t tmpfs host /run && mkdir -p /run/systemd/system && mount -t tmpfs host /etc/systemd/system"
        subprocess.run([*self.enter(), "sh", "-c", mounts], check=True)
        systemctl = folder / "bin" / "systemctl"
        systemctl.parent.mkdir()
        systemctl.write_text(SYSTEMCTL.format(folder=folder), encoding="utf-8")
        systemctl.chmod(0o755)
        (folder / "asked").touch()
        (folder / "asked").chmod(0o666)
        set_services(folder, {})
        return systemctl.parent

    def end(self) -> None:
        self._first.kill()
        self._first.communicate()


def set_services(folder: Path, services: Mapping[str, tuple[str, int, str]]) -> None:
    """Let systemctl in this folder report these services: their state, main process and environment."""
    shown = {
        f"{name}.service": f"Id={name}.service\nLoadState=loaded\nActiveState={state}\nMainPID={pid}\n"
        f"Environment={environment}\n"
        for name, (state, pid, environment) in services.items()
    }
    new = Path(tempfile.mkdtemp(prefix="services.", dir=folder))
    new.chmod(0o755)
    for unit, text in {**shown, "*.service": "\n".join(shown.values())}.items():
        (new / unit).write_text(text, encoding="utf-8")
    link = folder / "services.new"
    link.symlink_to(new)
    link.replace(folder / "services")


def outer_pid(agent: Agent) -> int:
    """The process ID of an agent as this test sees it. The agent is a child of nsenter."""
    return int(Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text(encoding="ascii"))


def pid_on_host(agent: Agent) -> int:
    """The process ID of an agent as its host sees it. Source: proc_pid_status(5)."""
    status = Path(f"/proc/{outer_pid(agent)}/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1])


def poll_from(agent: Agent, address: str) -> bytes:
    """What the agent answers to a load balancer with this address."""
    with socket.create_connection((agent.ip, agent.port), 15, source_address=(address, 0)) as client:
        return agent.read_to_end(client)
