# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every change of status lands in HAProxy, whatever the status before was."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from lab import HOSTS, agents, ansible, eventually, haproxy, run

AGENTS_HOST = "settling-bullseye"

# What HAProxy shows of a server that it has known with this status only.
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
# What is left of the first status, where the second one alone is told.
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
SUFFIX_OF_THOSE_WITHOUT_SETTLING = "-bare"


class Outcome(NamedTuple):
    """For each HAProxy, what it shows of each pair; and the last lines that the agent of each pair gave."""

    settled: dict[str, dict[str, str]]
    bare: dict[str, dict[str, str]]
    lines: dict[str, set[str]]


def meant(step: int) -> dict[str, str]:
    return {"-".join(pair): MEANING[pair[step]] for pair in PAIRS}


def seen(suffix: str = "") -> dict[str, dict[str, str]]:
    """The first word of what each HAProxy shows of each pair."""
    found = {}
    for host, address in HOSTS.items():
        statuses = haproxy(address)
        found[host] = {pair: statuses[pair + suffix].split()[0] for pair in meant(0)}
    return found


def change(step: int) -> None:
    changed = ansible("ansible-playbook", "change_pairs.yml", f"--extra-vars=step={step}", "--forks=8")
    assert changed.returncode == 0, changed.stdout


def change_those_without_settling(step: int) -> None:
    script = "set -e; cd /var/lib/agents\n"
    for pair in PAIRS:
        name = "-".join(pair) + SUFFIX_OF_THOSE_WITHOUT_SETTLING
        script += f"""echo '{{"status": "{pair[step]}"}}' >{name}/state.json; systemctl reload hapgent-of@{name}\n"""
    changed = run(AGENTS_HOST, script)
    assert changed.returncode == 0, changed.stderr


def lines() -> dict[str, set[str]]:
    """The lines that the agent of each pair gave last, to any HAProxy."""
    services = agents(AGENTS_HOST)
    return {pair: {peer["line"] for peer in services[f"hapgent-of@{pair}"]["peers"]} for pair in meant(0)}


def restart_haproxy(host: str) -> None:
    assert run(host, "systemctl restart haproxy").returncode == 0


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """After the second status, and after the time in which the first is undone."""
    change_those_without_settling(0)
    # The servers are fresh ones then.
    with ThreadPoolExecutor() as hosts:
        list(hosts.map(restart_haproxy, HOSTS))
    change(0)
    everywhere = dict.fromkeys(HOSTS, meant(0))
    assert eventually(seen, everywhere) == everywhere
    assert eventually(lambda: seen(SUFFIX_OF_THOSE_WITHOUT_SETTLING), everywhere) == everywhere
    settled = {pair: {pair.split("-")[0]} for pair in meant(0)}
    assert eventually(lines, settled, timeout=30) == settled

    change_those_without_settling(1)
    change(1)
    settled = {pair: {pair.split("-")[1]} for pair in meant(1)}
    last_lines = eventually(lines, settled, timeout=30)
    everywhere = dict.fromkeys(HOSTS, meant(1))
    return Outcome(eventually(seen, everywhere, timeout=3), seen(SUFFIX_OF_THOSE_WITHOUT_SETTLING), last_lines)


@pytest.mark.parametrize("host", HOSTS)
def test_each_status_lands_after_each(host: str, outcome: Outcome) -> None:
    assert len(outcome.settled[host]) == 49
    assert outcome.settled[host] == meant(1)


def test_the_answer_is_just_the_status_again(outcome: Outcome) -> None:
    assert outcome.lines == {"-".join(pair): {pair[1]} for pair in PAIRS}


@pytest.mark.parametrize("host", HOSTS)
def test_without_settling_38_of_49_land(host: str, outcome: Outcome) -> None:
    """So the test above can fail."""
    assert {pair: found for pair, found in outcome.bare[host].items() if found != meant(1)[pair]} == STAYS
