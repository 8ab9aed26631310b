# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Show a drain and a rolling restart under load, with HAProxy's statistics after each step."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "molecule" / "shared"))

from haproxy import servers  # noqa: E402
from traffic import Traffic  # noqa: E402

SCENARIO = yaml.safe_load(Path(__file__).with_name("molecule.yml").read_text(encoding="utf-8"))
HOSTS: dict[str, str] = {platform["name"]: platform["address"] for platform in SCENARIO["platforms"]}
LOAD_BALANCERS = {name: address for name, address in HOSTS.items() if "-lb" in name}
WEB = [name for name in HOSTS if "-web" in name]
STATE = ROOT / ".cache" / "demo"
LOG = STATE / "log"
SSH_CONFIG = STATE / "ssh_config"
PAGES = 30
REQUESTS_PER_SECOND = 200


def main() -> None:
    STATE.mkdir(parents=True, exist_ok=True)
    LOG.write_text("", encoding="utf-8")

    say("Two load balancers, demo-lb1 and demo-lb2, and three servers, demo-web1 to demo-web3")
    # An earlier demo may have left its hosts running.
    run("molecule destroy --scenario-name demo")
    set_up("create", "six hosts with systemd (the first time it builds their image, half a minute)")
    set_up("converge", "the agent on the three servers, with the role hapgent.agent.hapgent")
    show_haproxy("All servers are up. HAProxy polls each agent once a second for the state of its server.")

    say("demo-web1 is drained, rebooted and undrained")
    show_and_run("ansible-playbook hapgent.agent.drain -l demo-web1 -e \"reason='kernel upgrade'\"")
    show_haproxy("Sessions on demo-web1 continue until they end; new ones go to the other servers.")
    show_and_run("podman restart demo-web1")
    run("podman exec demo-web1 timeout 60 sh -c 'until hapgent status; do sleep 0.2; done'")
    await_check("demo-web1")
    show_and_run("ansible-playbook hapgent.agent.status -l web")
    show_message()
    note("demo-web1 has rebooted and is still drained, because its state is kept in a file.")
    show_and_run("ansible-playbook hapgent.agent.undrain -l demo-web1")

    say(f"Version 2 is rolled out while the load balancers receive {REQUESTS_PER_SECOND} requests per second")
    lost = show_under_load(
        "ansible-playbook hapgent.agent.rolling -e hapgent_hosts=web",
        "-e hapgent_tasks=molecule/shared/tasks/deploy.yml -e version=2 -e \"reason='release 2'\"",
    )
    if lost:
        sys.exit("The rolling restart lost requests, which must not happen. " + look_around())

    say("For comparison: version 3 with the same tasks and the same load, but without draining")
    lost = show_under_load("ansible-playbook molecule/demo/restart.yml -e version=3")
    note("Draining prevents these failures." if lost else "By chance, no request was lost this time.")

    print(f"\nThe hosts keep running. {look_around()}")


# Actions


def run(command: str) -> None:
    """Run a command and append its output to the log."""
    with LOG.open("a", encoding="utf-8") as log:
        done = subprocess.run(shlex.split(command), cwd=ROOT, env=environment(), stdout=log, stderr=log, check=False)
    if done.returncode:
        give_up(f"{command} failed")


def show_and_run(command: str) -> None:
    print(f"\n   $ {command}", flush=True)
    run(command)


def set_up(action: str, what: str) -> None:
    print(f"   setting up {what} ...", flush=True)
    run(f"molecule {action} --scenario-name demo")


def environment() -> dict[str, str]:
    """The environment of all commands, which makes Molecule keep the inventory at a known path."""
    return {
        **os.environ,
        "MOLECULE_EPHEMERAL_DIRECTORY": str(STATE),
        "ANSIBLE_INVENTORY": str(STATE / "inventory"),
        "ANSIBLE_FORCE_COLOR": "0",
    }


def await_check(server: str) -> None:
    """Wait until HAProxy's health check succeeds.

    This must not poll the agent, which would take the demo for a load balancer.
    """
    deadline = time.monotonic() + 30
    while any(servers(address)[server]["check_status"] != "L7OK" for address in LOAD_BALANCERS.values()):
        if time.monotonic() > deadline:
            give_up(f"HAProxy's health check of {server} does not succeed")
        time.sleep(0.2)


def give_up(reason: str) -> None:
    sys.exit(
        f"\nThe demo stopped: {reason}. The output of its commands is in {LOG}. To remove the hosts: make demo-down"
    )


# Output


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m", flush=True)


def note(text: str) -> None:
    print(f"   {text}", flush=True)


def show_haproxy(comment: str) -> None:
    """Print each server's status on both load balancers, and how many requests each server answers."""
    balancers = list(LOAD_BALANCERS.values())
    served = Counter(page(balancers[number % 2]).split()[0] for number in range(PAGES))
    rows = [servers(address) for address in balancers]
    print(f"\n   {'server':<14}{''.join(f'on {name:<13}' for name in LOAD_BALANCERS)}of {PAGES} requests  reason")
    for name in WEB:
        shown = [row[name] for row in rows]
        statuses = "".join(f"{server['status']:<16}" for server in shown)
        print(f"   {name:<14}{statuses}{served[name]:>14}  {reason_for(shown[0])}".rstrip())
    note(comment)


def reason_for(server: dict[str, str]) -> str:
    """The reason that the agent sent, which HAProxy shows as "via agent : UP (kernel upgrade)"."""
    found = re.search(r" \((.*)\)$", server["last_agt"])
    return found[1] if found else ""


def show_message() -> None:
    """Print the table that the last playbook wrote to the log."""
    message = LOG.read_text(encoding="utf-8").rpartition('"msg": [')[2].partition("\n    ]")[0]
    for line in json.loads(f"[{message}]"):
        print(f"   {line}")


def show_under_load(*command: str) -> int:
    """Run a playbook under load, print each change of the servers, and return how many requests failed."""
    print("\n   $ " + " \\\n       ".join(command) + "\n")
    print("   " + "".join(f"{name:<12}" for name in WEB) + "requests  failed")
    playbook = " ".join(command)
    with (
        Traffic("demo-client", SSH_CONFIG, list(LOAD_BALANCERS.values()), REQUESTS_PER_SECOND) as traffic,
        LOG.open("a", encoding="utf-8") as log,
        subprocess.Popen(shlex.split(playbook), cwd=ROOT, env=environment(), stdout=log, stderr=log) as process,
    ):
        try:
            show_progress(process, traffic)
            traffic.go_on_until(traffic.so_far() + 2 * REQUESTS_PER_SECOND)
        finally:
            process.terminate()
    if process.returncode:
        give_up(f"{playbook} failed")
    return show_count(traffic)


def show_progress(process: subprocess.Popen[bytes], traffic: Traffic) -> None:
    """Print a line whenever a server changes, until the process ends."""
    shown = ""
    while process.poll() is None:
        fleet = "".join(f"{activity(server):<12}" for server in WEB)
        if fleet != shown:
            print(f"   {fleet}{traffic.so_far():>8}{traffic.failed_so_far():>8}", flush=True)
            shown = fleet
        time.sleep(0.2)


def activity(server: str) -> str:
    """The version that a server serves, or why HAProxy sends it no new sessions."""
    rows = [servers(address)[server] for address in LOAD_BALANCERS.values()]
    if all(row["status"].startswith("UP") for row in rows):
        try:
            return f"version {page(f'{HOSTS[server]}:8080').split()[1]}"
        except OSError:
            return "no response"
    if any(row["status"].startswith("DOWN") for row in rows):
        return "down"
    return "draining" if any(row["scur"] != "0" for row in rows) else "drained"


def show_count(traffic: Traffic) -> int:
    counted = traffic.counted
    versions: Counter[str] = Counter()
    for server, count in counted["by_server"].items():
        versions[server.split()[1]] += count
    answered = ", ".join(f"{versions[version]} by version {version}" for version in sorted(versions))
    failures = ", ".join(f"{count} {failure}" for failure, count in counted["failures"].items())
    print(
        f"\n   \033[1m{counted['requests']} requests, {counted['failed']} failed\033[0m{failures and f' ({failures})'}"
    )
    note(f"Answered: {answered}. {counted['slow']} of the requests were slow (2 to 5 seconds each).")
    return int(counted["failed"])


def page(address: str) -> str:
    """The name and the version of the server that answers at this address."""
    with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
        return str(answer.read().decode())


def look_around() -> str:
    return f"""Look around:

  stats page          http://{LOAD_BALANCERS["demo-lb1"]}:8404/
  the service         curl http://{LOAD_BALANCERS["demo-lb1"]}/
  shell on a host     make demo-shell HOST=demo-web1     (then: hapgent status)
  remove the hosts    make demo-down
"""


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, AssertionError) as error:
        give_up(repr(error))
    except KeyboardInterrupt:
        give_up("it was interrupted")
