# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A new version on every server, while two load balancers send requests, and what may get in the way."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from haproxy import servers
from lab import HOSTS, SSH_CONFIG, agents, ansible, ansible_command, eventually, operators, run, ssh
from traffic import Traffic

LOAD_BALANCERS = {name: address for name, address in HOSTS.items() if "-lb" in name}
LB1 = LOAD_BALANCERS["rolling-lb1"]
WEB = [name for name in HOSTS if "-web" in name]
DEPLOY = Path(__file__).parents[2] / "shared" / "tasks" / "deploy.yml"
OLDEST = Path(__file__).parents[3] / ".cache" / "oldest" / "bin" / "ansible-playbook"
ROLLING = ["hapgent.agent.rolling", "--extra-vars=hapgent_hosts=web", f"--extra-vars=hapgent_tasks={DEPLOY}"]

DRAINED = ["DRAIN (agent)", "DRAIN (agent)"]
IN = ["UP", "UP"]


def traffic() -> Traffic:
    return Traffic("rolling-client", SSH_CONFIG, list(LOAD_BALANCERS.values()))


def playbook(*arguments: str) -> subprocess.CompletedProcess[str]:
    return ansible("ansible-playbook", *arguments)


def rolling(version: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Roll a version out. The reason names it."""
    return playbook(*ROLLING, *_release(version), *arguments)


@contextmanager
def in_background(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A playbook, while something else is done."""
    command, environment = ansible_command("ansible-playbook", *arguments)
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _release(version: str) -> list[str]:
    return [f"--extra-vars=version={version}", f"--extra-vars=reason='release {version}'"]


def balanced(server: str) -> list[str]:
    """What each HAProxy says of a server."""
    return [servers(address)[server]["status"] for address in LOAD_BALANCERS.values()]


def versions() -> list[str]:
    """The version that each host serves."""
    pages = [urllib.request.urlopen(f"http://{HOSTS[host]}:8080/", timeout=5).read().decode() for host in WEB]
    return [page.split()[1] for page in pages]


def started(host: str) -> str:
    """When the service was started, which a second run does not do again."""
    return run(host, "systemctl show --property=ExecMainStartTimestampMonotonic web").stdout


def state(host: str) -> dict[str, str]:
    fields: dict[str, str] = json.loads(run(host, "cat /etc/hapgent/state.json").stdout)
    return fields


def settles_for(host: str) -> list[float]:
    """For how long the agent tells each load balancer what undoes the state before."""
    return [peer["settles_for"] for peer in agents(host)["hapgent"]["peers"]]


def message(done: subprocess.CompletedProcess[str]) -> str:
    """What a playbook says that failed."""
    assert done.returncode != 0, done.stdout
    return "\n".join(re.findall(r"^fatal: .*", done.stdout, re.MULTILINE))


def drain(host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return playbook("hapgent.agent.drain", f"--limit={host}", *arguments)


@pytest.fixture(autouse=True)
def _all_serve() -> Iterator[None]:
    """Whatever a test did, the next one begins with a fleet that serves, and that nobody has to wait for."""
    yield
    for host in LOAD_BALANCERS:
        run(host, "systemctl start haproxy")
        run(host, operators("set server web/rolling-web4 state ready"))
        run(host, operators("enable agent web/rolling-web1"))
    for host in WEB:
        run(host, "grep --quiet broken /etc/web/version && echo mended >/etc/web/version && systemctl restart web")
        run(host, """echo '{"status": "UP"}' >/etc/hapgent/state.json; pkill -HUP hapgent""")
    assert eventually(lambda: [balanced(host) for host in WEB], [IN] * 4) == [IN] * 4


def test_no_request_is_lost() -> None:
    before = versions()
    with traffic() as load:
        done = rolling("2")
        load.go_on_until(20_000)
    assert done.returncode == 0, done.stdout
    assert load.counted["failed"] == 0, load.counted
    assert load.counted["requests"] >= 20_000
    assert load.counted["slow"] > 100
    # Each server was balanced to before it was worked on, and after it.
    served = {f"{host} {version}" for host, old in zip(WEB, before, strict=True) for version in (old, "2")}
    assert set(load.counted["by_server"]) == served
    assert versions() == ["2"] * 4
    assert [state(host) for host in WEB] == [{"status": "UP"}] * 4


def test_without_draining_requests_are_lost() -> None:
    """The same work, service and load, so that the test before says something."""
    with traffic() as load:
        load.go_on_until(500)
        for host in WEB:
            assert run(host, "systemctl restart web").returncode == 0
            load.go_on_until(load.so_far() + 1500)
    assert load.counted["failed"] > 0


def test_version_that_does_not_come_up_stops_it() -> None:
    """On one of a batch of two: the other is finished, the rest is not touched, and a second run goes on."""
    broken = "--extra-vars={\"version\": \"{{ 'broken' if inventory_hostname == 'rolling-web1' else '3' }}\"}"
    arguments = ["--extra-vars=hapgent_serial=2", "--extra-vars=hapgent_health_tries=3"]
    with traffic() as load:
        done = playbook(*ROLLING, "--extra-vars=reason='release 3'", broken, *arguments)
        said = message(done)
        assert re.search(r"stopped at rolling-web1\b.* DRAIN\.", said)
        assert "Wait until the service is healthy" in said
        assert "Done: rolling-web2. Not finished: rolling-web1." in said
        assert "Not touched: rolling-web3, rolling-web4." in said
        assert [balanced(host) for host in WEB[1:]] == [IN] * 3
        assert state("rolling-web1") == {"status": "DRAIN", "reason": "release 3"}

        before = started("rolling-web2")
        # With the oldest Ansible that is allowed, as from another control node.
        done = ansible(str(OLDEST), *ROLLING, *_release("3"), *arguments)
        assert done.returncode == 0, done.stdout
        assert started("rolling-web2") == before
    assert versions() == ["3"] * 4
    assert load.counted["failed"] == 0, load.counted


def test_interrupted_and_run_again() -> None:
    """Ctrl-C while a host is worked on: it stays out, and the next run begins there."""
    with traffic() as load:
        with in_background(*ROLLING, *_release("4")) as process:
            assert eventually(lambda: balanced("rolling-web2"), DRAINED, timeout=300) == DRAINED
            # As a terminal does, to all processes.
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=120)
        assert state("rolling-web1") == {"status": "UP", "reason": "release 4"}
        assert state("rolling-web2") == {"status": "DRAIN", "reason": "release 4"}
        assert state("rolling-web3") == {"status": "UP"}

        before = started("rolling-web1")
        done = rolling("4", "--extra-vars=hapgent_serial=2")
        assert done.returncode == 0, done.stdout
        assert started("rolling-web1") == before
    assert versions() == ["4"] * 4
    assert load.counted["failed"] == 0, load.counted


def test_load_balancer_that_is_down_stops_it() -> None:
    """It could be sending sessions, for all that is known. Whoever knows better leaves it out."""
    without = "--extra-vars=hapgent_load_balancers=lb,!rolling-lb2"
    with traffic() as load:
        run("rolling-lb2", "systemctl stop haproxy")
        said = message(rolling("5"))
        assert "rolling-lb2 cannot be queried" in said
        assert "hapgent_load_balancers='lb,!rolling-lb2'" in said
        assert "Nothing was changed" in said
        assert state("rolling-web1") == {"status": "UP"}
        done = rolling("5", without, "--extra-vars=hapgent_serial=2")
        assert done.returncode == 0, done.stdout
    assert versions() == ["5"] * 4
    requests, failed = load.counted["by_address"][LB1]
    assert (requests > 5000, failed) == (True, 0), load.counted


def test_load_balancer_that_goes_down_meanwhile_stops_it() -> None:
    with traffic() as load, in_background(*ROLLING, *_release("6")) as process:
        assert eventually(lambda: balanced("rolling-web1"), DRAINED, timeout=180) == DRAINED
        run("rolling-lb2", "systemctl stop haproxy")
        said, _errors = process.communicate(timeout=180)
        assert "rolling-lb2 cannot be queried" in said
        assert re.search(r"stopped at rolling-web1\b.* DRAIN\.", said)
        assert [state(host) for host in WEB[1:]] == [{"status": "UP"}] * 3
    assert load.counted["by_address"][LB1][1] == 0, load.counted


def test_those_whom_somebody_else_drained_are_left_alone() -> None:
    """By the agent, and in one HAProxy by hand."""
    assert drain("rolling-web3", "--extra-vars=reason=disk").returncode == 0
    # For a while, the agent undoes a drain after its own.
    assert eventually(lambda: settles_for("rolling-web4"), [0.0, 0.0], timeout=30) == [0.0, 0.0]
    run("rolling-lb2", operators("set server web/rolling-web4 state drain"))
    before = versions()
    done = rolling("7", "--limit=web:!rolling-web1", "--extra-vars=hapgent_min_up=1 hapgent_kept_out=skip")
    assert done.returncode == 0, done.stdout
    assert re.search(r"rolling-web3: [^;\n]* DRAIN UP # disk", done.stdout)
    assert re.search(r"rolling-web4: rolling-lb2 .*web/rolling-web4 .*DRAIN \(agent\).* UP\b", done.stdout)
    assert versions() == [before[0], "7", *before[2:]]
    assert state("rolling-web3") == {"status": "DRAIN", "reason": "disk"}
    assert balanced("rolling-web4") == ["UP", "DRAIN (agent)"]

    done = playbook("hapgent.agent.status", "--limit=web", "--check")
    assert done.returncode == 0
    lines = {line.split()[0].strip('"'): line for line in done.stdout.splitlines() if line.startswith(" " * 8)}
    assert re.search(r"DRAIN +.* UTC +disk +2 of 2 +DRAIN \(agent\) +DRAIN \(agent\)", lines["rolling-web3"])
    assert re.search(r"UP +.* UTC +2 of 2 +UP +DRAIN \(agent\) !", lines["rolling-web4"])
    assert re.search(r"rolling-web4: .* UP, .*rolling-lb2 .*DRAIN \(agent\) in web\b", done.stdout)


def test_one_whom_somebody_drains_while_it_is_worked_on_stays_drained() -> None:
    tasks = f"--extra-vars=hapgent_tasks={Path(__file__).parents[1] / 'tasks' / 'drained_meanwhile.yml'}"
    done = rolling("8", tasks, "--limit=rolling-web1")
    assert done.returncode == 0, done.stdout
    assert re.search(r"Not finished: none\. [^:]+: rolling-web1: .* DRAIN UP # disk\.", done.stdout)
    assert state("rolling-web1") == {"status": "DRAIN", "reason": "disk"}
    assert versions()[0] == "8"


@pytest.mark.parametrize(
    ("hosts", "arguments", "pattern"),
    [
        ("rolling-web1,rolling-web2,rolling-web3", [], r"of web on rolling-lb1\b.*\b1\b.*Staying: rolling-web4\."),
        ("rolling-web1", ["hapgent_min_up=4"], r"\b3\b.*hapgent_min_up .*\b4\b"),
        ("rolling-web1", ["hapgent_min_up=76%"], r"\b3\b.*hapgent_min_up .*76% \(4\)"),
        ("rolling-web1", ["hapgent_min_up=many"], r"hapgent_min_up must be .*\bmany\b"),
        (
            "rolling-web1",
            ["hapgent_load_balancers=", "hapgent_fleet=web", "hapgent_min_up=4"],
            r"of hapgent_fleet, .*\b3\b.*hapgent_min_up .*\b4\b",
        ),
        ("rolling-web1", ["hapgent_load_balancers="], r"hapgent_min_up .*hapgent_load_balancers.* rolling-web1\."),
        ("rolling-web1", ["hapgent_load_balancers=lbs"], r"hapgent_load_balancers .*\blbs\b"),
        ("rolling-web1", ["hapgent_server=web1"], r"rolling-lb1, rolling-lb2 .*\bweb1\b.*\bhapgent_server\b"),
    ],
)
def test_gate(hosts: str, arguments: list[str], pattern: str) -> None:
    # One after the other: each is refused, whatever Ansible makes of those before it.
    done = drain(hosts, "--forks=1", *(f"--extra-vars={argument}" for argument in arguments))
    assert re.search(pattern, message(done))
    assert [state(host) for host in WEB] == [{"status": "UP"}] * 4


@contextmanager
def slow_requests(seconds: int) -> Iterator[None]:
    """Two for each server, through the first load balancer. In the end, all have to be answered."""
    program = (
        "from concurrent.futures import ThreadPoolExecutor as Pool; from urllib.request import urlopen; "
        f"urls = ['http://{LB1}/slow?seconds={seconds}'] * 8; "
        "print(*Pool(8).map(lambda url: urlopen(url).status, urls))"
    )
    command = ssh("rolling-client", shlex.join(["python3", "-c", program]))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield
        statuses, _errors = process.communicate()
    assert statuses.split() == ["200"] * 8


def test_drain_shows_what_it_waits_for() -> None:
    with slow_requests(45):
        done = drain("rolling-web1")
    assert done.returncode == 0, done.stdout
    assert re.search(r"rolling-lb1: web/rolling-web1 .* 2 .*Waiting .*2[0-9][0-9] s", done.stdout)
    assert " s is over" not in done.stdout


def test_drain_goes_on_when_the_grace_is_over_and_undrain_brings_it_back() -> None:
    with slow_requests(45):
        done = drain("rolling-web1", "--extra-vars=hapgent_grace=3")
        assert done.returncode == 0, done.stdout
        assert balanced("rolling-web1") == DRAINED
        back = playbook("hapgent.agent.undrain", "--limit=rolling-web1")
        assert back.returncode == 0, back.stdout
        assert balanced("rolling-web1") == IN
    assert re.search(r"\b3 s is over\b.* rolling-web1: rolling-lb1: web/rolling-web1", done.stdout)


def test_drain_waits_for_a_load_balancer_that_is_late_however_short_the_grace_is() -> None:
    """Here one that does not ask the agent for a while."""
    run("rolling-lb2", operators("disable agent web/rolling-web1"))
    variables = json.dumps({"hapgent_grace": 0, "hapgent_wait_for": [LB1]})
    with in_background("hapgent.agent.drain", "--limit=rolling-web1", f"--extra-vars={variables}") as process:
        assert eventually(lambda: balanced("rolling-web1"), ["DRAIN (agent)", "UP"]) == ["DRAIN (agent)", "UP"]
        # It says so if it still waits after its first look, of five seconds.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(8)
        run("rolling-lb2", operators("enable agent web/rolling-web1"))
        said, _errors = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert re.search(r"rolling-lb2: web/rolling-web1 .* takes new sessions.*Waiting .*[45][0-9] s", said)
    assert balanced("rolling-web1") == DRAINED


def test_drain_fails_if_a_load_balancer_takes_the_server_back_while_sessions_are_waited_for() -> None:
    """Such as one that was reloaded, and does not ask the agent any more."""
    with slow_requests(60), in_background("hapgent.agent.drain", "--limit=rolling-web1") as process:
        assert eventually(lambda: balanced("rolling-web1"), DRAINED, timeout=180) == DRAINED
        run("rolling-lb2", operators("disable agent web/rolling-web1"))
        run("rolling-lb2", operators("set server web/rolling-web1 state ready"))
        said, _errors = process.communicate(timeout=180)
        run("rolling-lb2", operators("enable agent web/rolling-web1"))
    assert process.returncode != 0
    assert re.search(r"new sessions to rolling-web1\b.* rolling-lb2: web/rolling-web1 \(UP", said)


def test_drain_counts_connections_where_no_load_balancer_is_named() -> None:
    arguments = ["hapgent_load_balancers=", "hapgent_fleet=web", "hapgent_min_up=1", "hapgent_server_port=8080"]
    with slow_requests(10):
        done = drain("rolling-web1", *(f"--extra-vars={argument}" for argument in arguments))
        assert done.returncode == 0, done.stdout
        listening = run("rolling-web1", "ss --no-header --tcp state established sport = 8080").stdout
    assert listening == ""
    assert " s is over" not in done.stdout


def test_check_mode_changes_nothing() -> None:
    for name in ("drain", "undrain"):
        done = playbook(f"hapgent.agent.{name}", "--limit=rolling-web1", "--check")
        assert done.returncode == 0, done.stdout
    done = rolling("9", "--check", "--limit=rolling-web1")
    assert done.returncode == 0, done.stdout
    assert state("rolling-web1") == {"status": "UP"}
    assert "9" not in versions()


def test_undrain_reports_why_a_server_is_not_taken_back() -> None:
    run("rolling-web1", "systemctl stop web")
    down = ["DOWN", "DOWN"]
    assert eventually(lambda: balanced("rolling-web1"), down) == down
    said = message(playbook("hapgent.agent.undrain", "--limit=rolling-web1", "--extra-vars=hapgent_wait_timeout=2"))
    run("rolling-web1", "systemctl start web")
    assert "rolling-web1 is not back in rotation" in said
    assert "rolling-lb1: web/rolling-web1 (DOWN" in said
