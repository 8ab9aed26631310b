# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""HAProxy follows the agent's weight and reason, keeps manual drains, and catches up after it was unreachable."""

from __future__ import annotations

import json
import operator
import re
import time
import urllib.request
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from haproxy import STATS_PORT
from lab import HOSTS, agents, ask, eventually, module, operator_command, run, shown
from server_state import DROP_IN, install_drop_in

AGENTS_HOST = "settling-bullseye"
ADDRESSES = sorted(HOSTS.values())
SETTLE_SECONDS = 6

SERVER_STATE = "/var/lib/haproxy/server-state"


def set_state(agent: str, arguments: str) -> dict[str, Any]:
    return module(
        AGENTS_HOST,
        "hapgent_state",
        f"service=hapgent-of@{agent} state_file=/var/lib/agents/{agent}/state.json {arguments}",
    )


def peers(agent: str) -> dict[str, dict[str, Any]]:
    """What the agent reports about each load balancer, by address."""
    status = run(AGENTS_HOST, f"hapgent status --json /run/hapgent/{agent}/status.sock")
    if status.returncode:
        # The agent may be restarting, so callers try again.
        raise ConnectionError(status.stderr)
    return {peer["address"]: peer for peer in json.loads(status.stdout)["peers"]}


def last_lines(agent: str) -> dict[str, str]:
    """The agent's last response to each HAProxy, by address."""
    return {address: peer["line"] for address, peer in peers(agent).items()}


def await_shown(agent: str, wanted: str, column: str = "status", timeout: float = 15) -> None:
    """Wait until every HAProxy shows this value for the agent's server."""
    everywhere = dict.fromkeys(HOSTS, wanted)
    assert eventually(lambda: shown(agent, column), everywhere, timeout) == everywhere


def await_settled(agent: str, line: str) -> None:
    """Wait until the agent sends every HAProxy only its state, without keywords that reset the previous one."""
    everywhere = dict.fromkeys(ADDRESSES, line)
    assert eventually(lambda: last_lines(agent), everywhere, SETTLE_SECONDS + 15) == everywhere


def set_and_wait(agent: str, arguments: str) -> str:
    result = set_state(agent, f"{arguments} wait=true")
    assert (result.get("received_by"), result.get("not_received_by")) == (ADDRESSES, []), result
    return str(result["answer"])


def set_and_settle(agent: str, arguments: str) -> None:
    await_settled(agent, set_and_wait(agent, arguments))


def run_on_each(command: str, hosts: list[str] | None = None) -> list[str]:
    """Run a command on all hosts at the same time."""
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda host: run(host, command), hosts or HOSTS))
    assert [(result.returncode, result.stderr) for result in done if result.returncode] == []
    return [result.stdout for result in done]


def test_removing_the_weight_restores_the_configured_one() -> None:
    for agent in ("weight", "weight-bare"):
        set_and_wait(agent, "status=UP weight=50")
        await_shown(agent, "50", "weight")

    set_and_wait("weight-bare", "unset=weight")
    set_and_settle("weight", "unset=weight")
    await_shown("weight", "100", "weight")
    # Without settling, the old weight stays: this shows what settling is for.
    await_shown("weight-bare", "50", "weight")


def test_haproxy_shows_the_reason() -> None:
    for status, seen, health in (
        ("DOWN", "DOWN (agent)", "DOWN"),
        ("DRAIN", "DRAIN (agent)", "UP"),
        ("MAINT", "MAINT", "UP"),
    ):
        reason = f"{status} for a kernel upgrade, ask Ada"
        set_and_settle("reason", f"status={status} reason='{reason}'")
        await_shown("reason", seen)
        # This is the column of the CSV. HAProxy 2.2 leaves it empty while it polls the agent.
        await_shown("reason", f"via agent : {health} ({reason})", "last_agt")
        if status == "DOWN":
            # On the statistics page, HAProxy shows the reason only with this status.
            assert eventually(lambda: pages_with(reason), 3) == 3  # noqa: B023

    set_and_wait("reason", "status=UP")
    await_shown("reason", "UP")
    await_shown("reason", "via agent : UP", "last_agt")


def pages_with(text: str) -> int:
    """How many HAProxies have this text on their statistics page."""
    count = 0
    for address in HOSTS.values():
        with urllib.request.urlopen(f"http://{address}:{STATS_PORT}/", timeout=5) as page:
            count += text in page.read().decode()
    return count


def send_to_haproxy(command: str) -> list[str]:
    """Send a command to each HAProxy's stats socket and return the replies."""
    return run_on_each(operator_command(command))


def await_two_polls(agent: str) -> None:
    """Wait until each HAProxy has polled the agent for two more seconds, which is twice or more."""
    since = time.time() + 2
    assert eventually(lambda: all(peer["last_seen"] > since for peer in peers(agent).values()), True)


class TestManualDrain:
    """A drain that was set manually in HAProxy lasts until it is ended manually."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _drained() -> Generator[None, None, None]:
        set_and_wait("operator", "status=DRAIN")
        set_and_settle("operator", "status=UP")
        await_shown("operator", "UP")
        assert send_to_haproxy("set server web/operator state drain") == ["\n"] * 3
        await_shown("operator", "DRAIN (agent)")
        yield
        send_to_haproxy("set server web/operator state ready")

    @pytest.mark.parametrize("command", ["restart", "kill --signal=KILL", "reload"])
    def test_survives_the_agents_restart_and_reload(self, command: str) -> None:
        run_on_each(f"systemctl {command} hapgent-of@operator", [AGENTS_HOST])
        await_two_polls("operator")
        await_shown("operator", "DRAIN (agent)", timeout=0)

    def test_survives_setting_the_same_state_again(self) -> None:
        for _run in range(2):
            assert set_state("operator", "status=UP wait=true")["changed"] is False
        await_two_polls("operator")
        await_shown("operator", "DRAIN (agent)", timeout=0)

    def test_is_ended_by_ready(self) -> None:
        """This shows that the tests above can fail: an agent that sends READY without need ends manual drains."""
        assert set_state("operator", "status=READY")["changed"] is True
        await_shown("operator", "UP")


@pytest.fixture
def _reachable() -> Generator[None, None, None]:
    yield
    run(AGENTS_HOST, "ip route flush type blackhole")


@pytest.mark.usefixtures("_reachable")
def test_unreachable_load_balancers_receive_the_change_when_they_return() -> None:
    away = ["settling-bookworm", "settling-trixie"]
    unreachable, reachable = [HOSTS[host] for host in away], HOSTS[AGENTS_HOST]
    for agent in ("returning", "returning-bare"):
        set_and_wait(agent, "status=DRAIN")
        await_shown(agent, "DRAIN (agent)")
    await_settled("returning", "DRAIN")
    # A blackhole route drops packets without any error to the sender.
    for address in unreachable:
        run_on_each(f"ip route add blackhole {address}/32", [AGENTS_HOST])

    result = set_state("returning", "status=UP wait=true wait_timeout=5")
    assert (result["received_by"], result["not_received_by"]) == ([reachable], unreachable)
    assert re.search(rf": {unreachable[0]} \(last seen \d+ s ago\), {unreachable[1]} \(last seen ", result["msg"])
    assert reachable not in result["msg"]
    table = run_on_each("hapgent status /run/hapgent/returning/status.sock", [AGENTS_HOST])[0]
    for address in unreachable:
        assert re.search(rf"^{address} .* not yet, last seen \d+ s ago$", table, re.MULTILINE)
    assert re.search(rf"^{reachable} .* received$", table, re.MULTILINE)
    assert set_state("returning-bare", "status=UP")["changed"] is True

    # The agent has settled with the load balancer that was reachable.
    expected = {reachable: "UP", **dict.fromkeys(unreachable, "DRAIN")}
    assert eventually(lambda: last_lines("returning"), expected, SETTLE_SECONDS + 15) == expected
    seen = shown("returning")
    assert seen.pop(AGENTS_HOST) == "UP"
    assert "UP" not in seen.values()

    for address in unreachable:
        run_on_each(f"ip route del blackhole {address}/32", [AGENTS_HOST])
    await_shown("returning", "UP")
    await_settled("returning", "UP")
    await_shown("returning", "UP", timeout=0)
    # The agent without settling sends UP too, but UP alone does not end a drain.
    await_shown("returning-bare", "DRAIN (agent)")


def test_module_waits_for_the_slowest_load_balancer() -> None:
    for status, seen in (("DRAIN", "DRAIN (agent)"), ("UP", "UP")):
        set_and_wait("pace", f"status={status}")
        # Without waiting, the slowest load balancer would need up to 5 s to show the status. HAProxy acts on a response
        # immediately, but the machine may be busy.
        await_shown("pace", seen, timeout=1.5)


def test_agent_reports_the_polling_intervals() -> None:
    configured = {HOSTS["settling-bullseye"]: 1, HOSTS["settling-trixie"]: 2, HOSTS["settling-bookworm"]: 5}

    def with_expected_interval() -> set[str]:
        """The load balancers with about the configured interval: on a busy machine, checks are late, never early."""
        intervals = {address: peer["interval"] or 0 for address, peer in peers("pace").items()}
        return {
            address for address, every in configured.items() if 0.8 * every <= intervals.get(address, 0) <= 2.5 * every
        }

    # Earlier tests interrupted the polling, so it takes some checks until the intervals are right.
    assert eventually(with_expected_interval, set(configured), timeout=90) == set(configured)


def process_ids() -> list[str]:
    """The lines with the process ID of each HAProxy, one for each host."""
    replies = send_to_haproxy("show info")
    return [next(line for line in reply.splitlines() if line.startswith("Pid:")) for reply in replies]


# Kill HAProxy, and wait until systemd has started it again.
CRASH = """
restarts() { systemctl show --property=NRestarts haproxy; }
before=$(restarts)
systemctl kill --signal=KILL haproxy
while [ "$(restarts)" = "$before" ]; do sleep 0.1; done
systemctl start haproxy
"""


def let_haproxy(command: str) -> None:
    """Let a command of systemctl replace the process of each HAProxy, and wait until it has."""
    before = process_ids()
    run_on_each(f"systemctl {command} haproxy")
    # The new process of one host may have the ID of the old one of another.
    assert eventually(lambda: all(map(operator.ne, process_ids(), before)), True)


def test_drain_survives_a_reload_of_haproxy() -> None:
    set_and_settle("reloading", "status=UP")
    set_and_wait("reloading", "status=DRAIN")
    for _time in ("while it settles", "after that"):
        await_shown("reloading", "DRAIN (agent)")
        # The new process has no agent states.
        let_haproxy("reload")
        await_shown("reloading", "DRAIN (agent)")
        await_settled("reloading", "DRAIN")
    await_shown("reloading", "DRAIN (agent)", timeout=0)


class TestServerState:
    """HAProxy reads the states of its servers from a file, which is written as documented."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _old_file() -> Generator[None, None, None]:
        """One server is drained, and the other one is back since the file was written."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda agent: set_and_wait(agent, "status=DRAIN"), ("drained", "undrained")))
        for agent in ("drained", "undrained"):
            await_shown(agent, "DRAIN (agent)")
        run_on_each(f"{operator_command('show servers state')} >{SERVER_STATE}.old")
        set_and_settle("undrained", "status=UP")
        await_shown("undrained", "UP")
        # Without its agent, only the file can keep this server drained.
        run_on_each("systemctl stop hapgent-of@drained", [AGENTS_HOST])
        yield
        run_on_each(f"rm -rf {SERVER_STATE}* {Path(DROP_IN).parent} && systemctl daemon-reload")
        run_on_each("systemctl restart haproxy")
        run_on_each("systemctl start hapgent-of@drained", [AGENTS_HOST])

    @pytest.fixture(scope="class")
    @staticmethod
    def _drop_in() -> Generator[None, None, None]:
        # The agent does not listen on the new port either.
        change_port = r"sed -i.kept 's/\(server drained .* agent-port\) [0-9]*/\1 9/' /etc/haproxy/haproxy.cfg"
        run_on_each(f"{install_drop_in()}\n{change_port}")
        yield
        run_on_each("cd /etc/haproxy && mv haproxy.cfg.kept haproxy.cfg")

    def test_old_file_brings_a_drain_back_without_the_drop_in(self) -> None:
        """This shows that the tests below can fail."""
        run_on_each(f"cp {SERVER_STATE}.old {SERVER_STATE}")
        let_haproxy("restart")
        await_two_polls("undrained")
        await_shown("undrained", "DRAIN (agent)")
        send_to_haproxy("set server web/undrained state ready")
        await_shown("undrained", "UP")

    @pytest.mark.usefixtures("_drop_in")
    @pytest.mark.parametrize("command", ["reload", "restart"])
    def test_servers_stay_as_they_are(self, command: str) -> None:
        let_haproxy(command)
        await_two_polls("undrained")
        # Until its first health check, a server is "UP 1/3". No poll can end a drain that the file has brought back.
        await_shown("undrained", "UP")
        await_shown("drained", "DRAIN (agent)")
        # The agent's port is the configured one, not that of the process before. HAProxy 2.2 does not show it.
        rows = [line.split() for reply in send_to_haproxy("show servers state web") for line in reply.splitlines()]
        assert {"9"} == {row[24] for row in rows if row[3:4] == ["drained"] and len(row) > 24}

    @pytest.mark.usefixtures("_drop_in")
    def test_file_from_before_a_crash_is_not_read(self) -> None:
        run_on_each(f"cp {SERVER_STATE}.old {SERVER_STATE} && touch --date='1 minute ago' {SERVER_STATE}")
        run_on_each(CRASH)
        await_two_polls("undrained")
        for agent in ("undrained", "drained"):
            await_shown(agent, "UP")


def test_hanging_agent_is_restarted() -> None:
    before = run_on_each("systemctl show --property=MainPID --value hapgent")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: run(host, "systemctl kill --kill-who=main --signal=STOP hapgent"), HOSTS))

        def has_restarted(host: str) -> bool:
            pid = run(host, "systemctl show --property=MainPID --value hapgent").stdout
            return pid != before[list(HOSTS).index(host)] and ask(HOSTS[host]).split()[0] == "UP"

        # The watchdog of systemd acts after 10 s.
        assert (
            list(pool.map(lambda host: eventually(lambda: has_restarted(host), True, timeout=20), HOSTS)) == [True] * 3
        )
    for journal in run_on_each("journalctl --unit=hapgent --lines=20"):
        assert "Watchdog timeout" in journal or "Failed with result 'watchdog'" in journal


def test_hapgent_info_reports_the_agent_of_the_role() -> None:
    agent = agents("settling-trixie")["hapgent"]
    assert agent["state"] == {"status": "UP"}
    assert agent["answer"] == "UP"
    assert agent["state_file"] == "/etc/hapgent/state.json"
    assert agent["status_socket"] == "/run/hapgent/hapgent/status.sock"
    assert agent["settle"] == SETTLE_SECONDS


def test_hapgent_info_reports_which_load_balancers_have_received_the_state() -> None:
    def received() -> dict[str, bool]:
        peers = agents("settling-trixie")["hapgent"]["peers"]
        return {peer["address"]: peer["received"] for peer in peers if peer["polls"] and peer["address"] in ADDRESSES}

    # The test before killed the agent, which therefore does not know what each received until it polls again.
    assert eventually(received, dict.fromkeys(ADDRESSES, True)) == dict.fromkeys(ADDRESSES, True)


def test_waiting_fails_if_no_load_balancer_polls_the_agent() -> None:
    result = set_state("unpolled", "status=DRAIN wait=true wait_timeout=2")
    for word in (" 2 s", "agent-check", "agent-port"):
        assert word in result["msg"]
    assert set_state("unpolled", "status=UP")["answer"] == "UP"
