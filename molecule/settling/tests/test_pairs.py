# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every change of status takes effect in HAProxy, whatever the previous status was."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from lab import HOSTS, agents, ansible, eventually, haproxy, run

AGENTS_HOST = "settling-bullseye"

# What HAProxy shows for a new server whose agent has sent only this status.
MEANING = {
    "UP": "UP",
    "READY": "UP",
    "DOWN": "DOWN",
    "FAIL": "DOWN",
    "STOPPED": "DOWN",
    "DRAIN": "DRAIN",
    "MAINT": "MAINT",
}
PAIRS = list(itertools.product(MEANING, repeat=2))
# Pairs that keep the effect of the first status if the agent sends only the second.
STAYS = {
    "DRAIN-UP": "DRAIN",
    "MAINT-UP": "MAINT",
    "MAINT-DOWN": "MAINT",
    "MAINT-FAIL": "MAINT",
    "MAINT-STOPPED": "MAINT",
    "DOWN-READY": "DOWN",
    "DOWN-DRAIN": "DOWN",
    "FAIL-READY": "DOWN",
    "FAIL-DRAIN": "DOWN",
    "STOPPED-READY": "DOWN",
    "STOPPED-DRAIN": "DOWN",
}
WITHOUT_SETTLING = "-bare"


class Outcome(NamedTuple):
    """What each HAProxy shows for each pair, with and without settling, and each agent's last responses."""

    settled: dict[str, dict[str, str]]
    bare: dict[str, dict[str, str]]
    lines: dict[str, set[str]]


def expected(step: int) -> dict[str, str]:
    return {"-".join(pair): MEANING[pair[step]] for pair in PAIRS}


def shown(suffix: str = "") -> dict[str, dict[str, str]]:
    """The first word of the status that each HAProxy shows for each pair."""
    found = {}
    for host, address in HOSTS.items():
        statuses = haproxy(address)
        found[host] = {pair: statuses[pair + suffix].split()[0] for pair in expected(0)}
    return found


def systemctl(command: str, *suffixes: str) -> str:
    """A command for the agents of all pairs."""
    services = ("hapgent-of@" + "-".join(pair) + suffix for suffix in suffixes for pair in PAIRS)
    return f"systemctl {command} {' '.join(services)}"


def write_states(step: int, *suffixes: str) -> str:
    """Commands that write the state files of the agents of all pairs."""
    return "\n".join(
        f"""echo '{{"status": "{pair[step]}"}}' >/var/lib/agents/{"-".join(pair)}{suffix}/state.json"""
        for suffix in suffixes
        for pair in PAIRS
    )


def start_with_the_first_statuses() -> None:
    both = ("", WITHOUT_SETTLING)
    script = [systemctl("stop", *both), "rm -f /var/lib/agents/*/state.json.memory", write_states(0, *both)]
    run_script(*script, systemctl("start", *both))
    # After a restart, HAProxy has no agent states.
    with ThreadPoolExecutor() as hosts:
        list(hosts.map(restart_haproxy, HOSTS))


def set_statuses() -> None:
    changed = ansible("ansible-playbook", "set_statuses.yml", "--forks=8")
    assert changed.returncode == 0, changed.stdout


def set_statuses_without_settling() -> None:
    run_script(write_states(1, WITHOUT_SETTLING), systemctl("reload", WITHOUT_SETTLING))


def run_script(*commands: str) -> None:
    done = run(AGENTS_HOST, "\n".join(["set -e", *commands]))
    assert done.returncode == 0, done.stderr


def lines() -> dict[str, set[str]]:
    """The last responses of each pair's agent to all HAProxies."""
    services = agents(AGENTS_HOST)
    # On a busy machine, an agent may not report its peers in time.
    found = {pair: services[f"hapgent-of@{pair}"]["peers"] or [] for pair in expected(0)}
    return {pair: {peer["line"] for peer in peers} for pair, peers in found.items()}


def restart_haproxy(host: str) -> None:
    assert run(host, "systemctl restart haproxy").returncode == 0


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """The statuses after the agents have sent the second one and settled."""
    start_with_the_first_statuses()
    everywhere = dict.fromkeys(HOSTS, expected(0))
    assert eventually(shown, everywhere) == everywhere
    assert eventually(lambda: shown(WITHOUT_SETTLING), everywhere) == everywhere
    settled = {pair: {pair.split("-")[0]} for pair in expected(0)}
    assert eventually(lines, settled, timeout=90) == settled

    set_statuses_without_settling()
    set_statuses()
    settled = {pair: {pair.split("-")[1]} for pair in expected(1)}
    last_lines = eventually(lines, settled, timeout=90)
    everywhere = dict.fromkeys(HOSTS, expected(1))
    return Outcome(eventually(shown, everywhere, timeout=3), shown(WITHOUT_SETTLING), last_lines)


@pytest.mark.parametrize("host", HOSTS)
def test_second_status_takes_effect_after_the_first(host: str, outcome: Outcome) -> None:
    assert len(outcome.settled[host]) == 49
    assert outcome.settled[host] == expected(1)


def test_agents_send_only_their_status_after_settling(outcome: Outcome) -> None:
    assert outcome.lines == {"-".join(pair): {pair[1]} for pair in PAIRS}


@pytest.mark.parametrize("host", HOSTS)
def test_without_settling_11_of_49_pairs_keep_the_first_status(host: str, outcome: Outcome) -> None:
    """This shows that the tests above can fail."""
    assert {pair: found for pair, found in outcome.bare[host].items() if found != expected(1)[pair]} == STAYS
