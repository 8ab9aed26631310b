# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What else HAProxy keeps: a weight, a reason, what an operator set by hand, and what it missed while it was away."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from haproxy import STATS_PORT
from lab import HOSTS, agents, ask, eventually, module, operators, run, shown

AGENTS_HOST = "settling-bullseye"
ADDRESSES = sorted(HOSTS.values())
SETTLE_SECONDS = 6


def set_state(agent: str, arguments: str) -> dict[str, Any]:
    return module(
        AGENTS_HOST,
        "hapgent_state",
        f"service=hapgent-of@{agent} state_file=/var/lib/agents/{agent}/state.json {arguments}",
    )


def peers(agent: str) -> dict[str, dict[str, Any]]:
    """The load balancers that the agent knows, by address."""
    status = run(AGENTS_HOST, f"hapgent status --json /run/hapgent/{agent}/status.sock")
    if status.returncode:
        # It is being started again, perhaps.
        raise ConnectionError(status.stderr)
    return {peer["address"]: peer for peer in json.loads(status.stdout)["peers"]}


def last_lines(agent: str) -> dict[str, str]:
    """The line that the agent gave each HAProxy last, by address."""
    return {address: peer["line"] for address, peer in peers(agent).items()}


def see(agent: str, wanted: str, column: str = "status", timeout: float = 15) -> None:
    """Each HAProxy shows it."""
    everywhere = dict.fromkeys(HOSTS, wanted)
    assert eventually(lambda: shown(agent, column), everywhere, timeout) == everywhere


def settle(agent: str, line: str) -> None:
    """The agent tells each HAProxy just its state again."""
    everywhere = dict.fromkeys(ADDRESSES, line)
    assert eventually(lambda: last_lines(agent), everywhere, SETTLE_SECONDS + 15) == everywhere


def set_and_wait(agent: str, arguments: str) -> str:
    result = set_state(agent, f"{arguments} wait=true")
    assert (result.get("received_by"), result.get("not_received_by")) == (ADDRESSES, []), result
    return str(result["answer"])


def set_and_settle(agent: str, arguments: str) -> None:
    settle(agent, set_and_wait(agent, arguments))


def on_each(command: str, hosts: list[str] | None = None) -> list[str]:
    """Run a command on each host, at the same time."""
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda host: run(host, command), hosts or HOSTS))
    assert [(result.returncode, result.stderr) for result in done if result.returncode] == []
    return [result.stdout for result in done]


def test_a_weight_that_is_taken_away_is_the_configured_one_again() -> None:
    for agent in ("weight", "weight-bare"):
        set_and_wait(agent, "status=UP weight=50")
        see(agent, "50", "weight")

    set_and_wait("weight-bare", "unset=weight")
    set_and_settle("weight", "unset=weight")
    see("weight", "100", "weight")
    # Without settling, which is why the other one needs it.
    see("weight-bare", "50", "weight")


def test_the_reason_is_shown() -> None:
    for status, seen, health in (
        ("DOWN", "DOWN (agent)", "DOWN"),
        ("DRAIN", "DRAIN (agent)", "UP"),
        ("MAINT", "MAINT", "UP"),
    ):
        reason = f"{status} for a kernel upgrade, ask Ada"
        set_and_settle("reason", f"status={status} reason='{reason}'")
        see("reason", seen)
        # In the CSV. HAProxy 2.2 has nothing there while it asks.
        see("reason", f"via agent : {health} ({reason})", "last_agt")
        if status == "DOWN":
            # For browsers, HAProxy shows it with this status only.
            assert eventually(lambda: pages_with(reason), 3) == 3  # noqa: B023

    set_and_wait("reason", "status=UP")
    see("reason", "UP")
    see("reason", "via agent : UP", "last_agt")


def pages_with(text: str) -> int:
    """How many HAProxies show it to browsers."""
    count = 0
    for address in HOSTS.values():
        with urllib.request.urlopen(f"http://{address}:{STATS_PORT}/", timeout=5) as page:
            count += text in page.read().decode()
    return count


def set_in_haproxy(command: str) -> list[str]:
    """What each HAProxy replies to a command of an operator."""
    return on_each(operators(command))


def let_it_be_asked(agent: str) -> None:
    """Wait until each HAProxy has asked twice."""
    asked = time.time() + 2
    assert eventually(lambda: all(peer["last_seen"] > asked for peer in peers(agent).values()), True)


class TestOperatorsDrain:
    """A drain that an operator sets in HAProxy by hand is the operator's to end."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _drained() -> Generator[None, None, None]:
        set_and_wait("operator", "status=DRAIN")
        set_and_settle("operator", "status=UP")
        see("operator", "UP")
        assert set_in_haproxy("set server web/operator state drain") == ["\n"] * 3
        see("operator", "DRAIN (agent)")
        yield
        set_in_haproxy("set server web/operator state ready")

    @pytest.mark.parametrize("command", ["restart", "kill --signal=KILL", "reload"])
    def test_survives(self, command: str) -> None:
        on_each(f"systemctl {command} hapgent-of@operator", [AGENTS_HOST])
        let_it_be_asked("operator")
        see("operator", "DRAIN (agent)", timeout=0)

    def test_survives_repeated_runs(self) -> None:
        for _run in range(2):
            assert set_state("operator", "status=UP wait=true")["changed"] is False
        let_it_be_asked("operator")
        see("operator", "DRAIN (agent)", timeout=0)

    def test_is_ended_by_a_steady_ready(self) -> None:
        """So the tests above can fail: this is what an agent does that settles without need."""
        assert set_state("operator", "status=READY")["changed"] is True
        see("operator", "UP")


@pytest.fixture
def _reachable() -> Generator[None, None, None]:
    yield
    run(AGENTS_HOST, "ip route flush type blackhole")


@pytest.mark.usefixtures("_reachable")
def test_load_balancers_that_were_cut_off_get_it_when_they_are_back() -> None:
    away = ["settling-bookworm", "settling-trixie"]
    cut_off, there = [HOSTS[host] for host in away], HOSTS[AGENTS_HOST]
    for agent in ("returning", "returning-bare"):
        set_and_wait(agent, "status=DRAIN")
        see(agent, "DRAIN (agent)")
    settle("returning", "DRAIN")
    # Whatever is sent to them is lost, without a word to anybody.
    for address in cut_off:
        on_each(f"ip route add blackhole {address}/32", [AGENTS_HOST])

    result = set_state("returning", "status=UP wait=true wait_timeout=5")
    assert (result["received_by"], result["not_received_by"]) == ([there], cut_off)
    assert re.search(rf": {cut_off[0]} \(last seen \d+ s ago\), {cut_off[1]} \(last seen ", result["msg"])
    assert there not in result["msg"]
    table = on_each("hapgent status /run/hapgent/returning/status.sock", [AGENTS_HOST])[0]
    for address in cut_off:
        assert re.search(rf"^{address} .* not yet, last seen \d+ s ago$", table, re.MULTILINE)
    assert re.search(rf"^{there} .* received$", table, re.MULTILINE)
    assert set_state("returning-bare", "status=UP")["changed"] is True

    # For the one that was there, the time of settling is over.
    received = {there: "UP", **dict.fromkeys(cut_off, "DRAIN")}
    assert eventually(lambda: last_lines("returning"), received, SETTLE_SECONDS + 15) == received
    seen = shown("returning")
    assert seen.pop(AGENTS_HOST) == "UP"
    assert "UP" not in seen.values()

    for address in cut_off:
        on_each(f"ip route del blackhole {address}/32", [AGENTS_HOST])
    see("returning", "UP")
    settle("returning", "UP")
    see("returning", "UP", timeout=0)
    # Its agent tells UP as well, and that does not end a drain.
    see("returning-bare", "DRAIN (agent)")


def test_each_interval_is_waited_for() -> None:
    for status, seen in (("DRAIN", "DRAIN (agent)"), ("UP", "UP")):
        set_and_wait("pace", f"status={status}")
        # The slowest would show it in up to 5 s, if it was not waited for.
        see("pace", seen, timeout=0.5)


def test_intervals_are_reported() -> None:
    configured = {HOSTS["settling-bullseye"]: 1, HOSTS["settling-trixie"]: 2, HOSTS["settling-bookworm"]: 5}

    def right() -> set[str]:
        """Those whose interval is about the configured one: on a busy machine, checks are late, and never early."""
        intervals = {address: peer["interval"] or 0 for address, peer in peers("pace").items()}
        return {
            address for address, every in configured.items() if 0.8 * every <= intervals.get(address, 0) <= 2.5 * every
        }

    # Whatever HAProxy missed in the tests before this one is over after some checks.
    assert eventually(right, set(configured), timeout=90) == set(configured)


def processes() -> list[str]:
    """The process of each HAProxy."""
    return [line for reply in set_in_haproxy("show info") for line in reply.splitlines() if line.startswith("Pid:")]


def test_a_reload_of_haproxy_in_the_middle_of_a_drain_drains_again() -> None:
    set_and_settle("reloading", "status=UP")
    set_and_wait("reloading", "status=DRAIN")
    for _time in ("while it settles", "after that"):
        see("reloading", "DRAIN (agent)")
        before = processes()
        on_each("systemctl reload haproxy")
        # A new process, whose servers begin anew.
        assert eventually(lambda: not set(processes()) & set(before), True)  # noqa: B023
        see("reloading", "DRAIN (agent)")
        settle("reloading", "DRAIN")
    see("reloading", "DRAIN (agent)", timeout=0)


def test_a_hanging_agent_is_started_again() -> None:
    before = on_each("systemctl show --property=MainPID --value hapgent")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: run(host, "systemctl kill --kill-who=main --signal=STOP hapgent"), HOSTS))

        def answers_anew(host: str) -> bool:
            pid = run(host, "systemctl show --property=MainPID --value hapgent").stdout
            return pid != before[list(HOSTS).index(host)] and ask(HOSTS[host]).split()[0] == "UP"

        # systemd waits for 10 s.
        assert (
            list(pool.map(lambda host: eventually(lambda: answers_anew(host), True, timeout=20), HOSTS)) == [True] * 3
        )
    for journal in on_each("journalctl --unit=hapgent --lines=20"):
        assert "Watchdog timeout" in journal or "Failed with result 'watchdog'" in journal


def test_the_agent_of_the_role_is_reported() -> None:
    agent = agents("settling-trixie")["hapgent"]
    assert agent["state"] == {"status": "UP"}
    assert agent["answer"] == "UP"
    assert agent["state_file"] == "/etc/hapgent/state.json"
    assert agent["status_socket"] == "/run/hapgent/hapgent/status.sock"
    assert agent["settle"] == SETTLE_SECONDS
    polling = {peer["address"]: peer["received"] for peer in agent["peers"] if peer["polls"]}
    assert {address: polling.get(address) for address in ADDRESSES} == dict.fromkeys(ADDRESSES, True)


def test_that_nobody_asks_is_an_error() -> None:
    result = set_state("lonely", "status=DRAIN wait=true wait_timeout=2")
    for word in (" 2 s", "agent-check", "agent-port"):
        assert word in result["msg"]
    assert set_state("lonely", "status=UP")["answer"] == "UP"
