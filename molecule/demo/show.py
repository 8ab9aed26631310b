# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Show a drain and an undrain, and beside each step what HAProxy's stats say."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "molecule" / "shared"))

from haproxy import servers  # noqa: E402

LOAD_BALANCER = "198.51.100.138"
SERVERS = {"demo-web1": "198.51.100.139", "demo-web2": "198.51.100.140"}
STATE = ROOT / ".cache" / "demo"
LOG = STATE / "log"
REQUESTS = 20


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m", flush=True)


def run(*command: str) -> None:
    """Run a command, its output goes to the log."""
    with LOG.open("a", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=ROOT, env=environment(), stdout=log, stderr=log, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed. See {LOG}.")


def molecule(action: str, doing: str) -> None:
    print(f"   setting up {doing} ...", flush=True)
    run("molecule", action, "--scenario-name", "demo")


def playbook(*arguments: str) -> None:
    print(f"   $ ansible-playbook {' '.join(arguments)}", flush=True)
    run("ansible-playbook", *arguments)


def environment() -> dict[str, str]:
    """Molecule keeps the inventory where the demo's reader finds it."""
    return {**os.environ, "MOLECULE_EPHEMERAL_DIRECTORY": str(STATE), "ANSIBLE_INVENTORY": str(STATE / "inventory")}


def await_status(server: str, status: str) -> None:
    deadline = time.monotonic() + 30
    while servers(LOAD_BALANCER)[server]["status"] != status:
        if time.monotonic() > deadline:
            sys.exit(f"HAProxy does not say {status} of {server}. See make demo-shell HOST={server}.")
        time.sleep(0.2)


def await_agent(server: str, status: str) -> None:
    deadline = time.monotonic() + 30
    while ask_agent(server).split()[0] != status:
        if time.monotonic() > deadline:
            sys.exit(f"The agent of {server} does not answer {status}. See make demo-shell HOST={server}.")
        time.sleep(0.2)


def show_haproxy(comment: str) -> None:
    """What the stats say, and where requests go."""
    served = Counter(request() for _request in range(REQUESTS))
    requests = f"of {REQUESTS} requests"
    print(f"\n   {'HAProxy says':<14} {'status':<15} weight  {requests}  its agent answers")
    for name, row in servers(LOAD_BALANCER).items():
        share = f"{served[name]:>{len(requests)}}"
        print(f"   {name:<14} {row['status']:<15} {row['weight']:>6}  {share}  {ask_agent(name)}")
    print(f"   {comment}", flush=True)


def ask_agent(server: str) -> str:
    """What HAProxy hears when it asks."""
    try:
        with socket.create_connection((SERVERS[server], 9777), timeout=5) as agent:
            return agent.recv(99).decode().strip()
    except OSError:
        return "(no agent)"


def request() -> str:
    """The name of the host whose page comes."""
    with urllib.request.urlopen(f"http://{LOAD_BALANCER}/", timeout=5) as page:
        return str(page.read().decode().strip())


def main() -> None:
    STATE.mkdir(parents=True, exist_ok=True)
    say("A host with HAProxy and two hosts that serve a page")
    # What a demo from before left.
    run("molecule", "destroy", "--scenario-name", "demo")
    molecule("create", "three hosts with systemd (the first time it builds their image, half a minute)")
    molecule("prepare", "HAProxy on demo-lb, the page on demo-web1 and demo-web2")
    show_haproxy("Both servers are up, and HAProxy finds no agent to ask.")

    say("The role hapgent.agent.hapgent installs the agent")
    molecule("converge", "the agent on demo-web1 and demo-web2")
    show_haproxy("Each agent tells HAProxy what its server wants.")

    say("demo-web1 is drained")
    playbook("hapgent.agent.drain", "--limit=demo-web1")
    await_status("demo-web1", "DRAIN (agent)")
    show_haproxy("Sessions on demo-web1 may end, new ones go to demo-web2.")

    say("Time for work on demo-web1, a reboot for example")
    run("podman", "restart", "demo-web1")
    await_agent("demo-web1", "DRAIN")
    await_status("demo-web1", "DRAIN (agent)")
    show_haproxy("It is back, and still drained: its state is in a file.")

    say("demo-web1 is undrained")
    playbook("hapgent.agent.undrain", "--limit=demo-web1")
    await_status("demo-web1", "UP")
    show_haproxy("Both serve again.")

    print(f"""
The hosts go on running. Look around:

  stats page          http://{LOAD_BALANCER}:8404/
  the balanced page   curl http://{LOAD_BALANCER}/
  ask an agent        nc -d 198.51.100.139 9777
  shell on a host     make demo-shell HOST=demo-web1     (then: systemctl status hapgent)
  take it all down    make demo-down
""")


if __name__ == "__main__":
    main()
