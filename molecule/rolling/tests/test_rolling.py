# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rolling update deploys to every server without losing a request, and stops safely if something goes wrong."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from haproxy import servers
from lab import HOSTS, SSH_CONFIG, agents, ansible, ansible_command, eventually, operator_command, run, ssh
from server_state import install_drop_in
from traffic import Traffic

LOAD_BALANCERS = {name: address for name, address in HOSTS.items() if "-lb" in name}
LB1 = LOAD_BALANCERS["rolling-lb1"]
WEB = [name for name in HOSTS if "-web" in name]
TASKS = Path(__file__).parents[1] / "tasks"
DEPLOY = Path(__file__).parents[2] / "shared" / "tasks" / "deploy.yml"
OLDEST = Path(__file__).parents[3] / ".cache" / "oldest" / "bin" / "ansible-playbook"
ROLLING = ["hapgent.agent.rolling", "--extra-vars=hapgent_hosts=web", f"--extra-vars=hapgent_tasks={DEPLOY}"]

DRAINED = ["DRAIN (agent)", "DRAIN (agent)"]
IN_ROTATION = ["UP", "UP"]
# Who runs the playbooks.
CONTROL = f"{pwd.getpwuid(os.geteuid()).pw_name}@{socket.gethostname()}"


# Sending and serving 200 requests per second takes a fifth of a processor.
FULL_RATE = 200


# How long the slow requests take whose sessions continue in an old worker.
LONG = 10


def traffic(rate: int = 100, slow: int = 5) -> Traffic:
    return Traffic("rolling-client", SSH_CONFIG, list(LOAD_BALANCERS.values()), rate, slow)


def playbook(*arguments: str) -> subprocess.CompletedProcess[str]:
    return ansible("ansible-playbook", *arguments)


def rolling(version: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Deploy a version to all servers; the version is part of the reason."""
    return playbook(*ROLLING, *_release(version), *arguments)


@contextmanager
def in_background(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a playbook in the background, and kill it at the end of the context."""
    command, environment = ansible_command("ansible-playbook", *arguments)
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The output of a playbook in the background up to the first line with this text, or all of it if there is none."""
    assert process.stdout
    output = ""
    for line in process.stdout:
        output += line
        if text in line:
            break
    return output


def interrupt(process: subprocess.Popen[str]) -> None:
    """Press Ctrl-C, for which a terminal signals all processes of the group, until Ansible ends.

    Python drops the exception of a signal that arrives where it cannot raise one, such as when it forks. On a busy
    machine, that happened once, and the update went on.
    """
    for _time in range(30):
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=3)
            return
    raise AssertionError("Ansible does not end")


def _release(version: str) -> list[str]:
    return [f"--extra-vars=version={version}", f"--extra-vars=reason='release {version}'"]


def haproxy_statuses(server: str) -> list[str]:
    """The status of a server on each load balancer."""
    return [servers(address)[server]["status"] for address in LOAD_BALANCERS.values()]


def versions() -> list[str]:
    """The version that each host serves."""
    pages = [urllib.request.urlopen(f"http://{HOSTS[host]}:8080/", timeout=5).read().decode() for host in WEB]
    return [page.split()[1] for page in pages]


def start_time(host: str) -> str:
    """When the service was last started, to tell whether a second run restarts it."""
    return run(host, "systemctl show --property=ExecMainStartTimestampMonotonic web").stdout


def state(host: str) -> dict[str, str]:
    fields: dict[str, str] = json.loads(run(host, "cat /etc/hapgent/state.json").stdout)
    return fields


def settles_for(host: str) -> list[float]:
    """For how long the agent still sends each load balancer the keywords that reset the previous state."""
    return [peer["settles_for"] for peer in agents(host)["hapgent"]["peers"]]


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """The error messages of a playbook, which must have failed."""
    assert done.returncode != 0, done.stdout
    return "\n".join(re.findall(r"^fatal: .*", done.stdout, re.MULTILINE))


def drain(host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return playbook("hapgent.agent.drain", f"--limit={host}", *arguments)


@pytest.fixture(autouse=True, scope="module")
def _drop_in() -> None:
    for name in LOAD_BALANCERS:
        assert run(name, install_drop_in()).returncode == 0


@pytest.fixture(autouse=True)
def _reset_fleet() -> Iterator[None]:
    """Put every server back into rotation after each test."""
    yield
    manual = ("set server web/rolling-web4 state ready", "enable agent web/rolling-web1")
    haproxy = "\n".join(["systemctl start haproxy", *map(operator_command, manual)])
    web = """
    grep --quiet broken /etc/web/version && echo fixed >/etc/web/version && systemctl restart web
    echo '{"status": "UP"}' >/etc/hapgent/state.json
    pkill -HUP hapgent
    """
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: run(host, haproxy if host in LOAD_BALANCERS else web), [*LOAD_BALANCERS, *WEB]))
    assert eventually(lambda: [haproxy_statuses(host) for host in WEB], [IN_ROTATION] * 4) == [IN_ROTATION] * 4


@contextmanager
def reloads(hosts: list[str]) -> Iterator[None]:
    """Reload each HAProxy when it has just drained one of these servers: its sessions continue in an old worker."""
    over = threading.Event()

    def reload_at_each_drain(name: str) -> set[str]:
        drained: set[str] = set()
        while not over.wait(0.2):
            rows = servers(LOAD_BALANCERS[name])
            now = {host for host in hosts if rows[host]["status"] == "DRAIN (agent)"} - drained
            if now:
                drained |= now
                assert run(name, "systemctl reload haproxy").returncode == 0
        return drained

    with ThreadPoolExecutor() as pool:
        reloading = [pool.submit(reload_at_each_drain, name) for name in LOAD_BALANCERS]
        try:
            yield
        finally:
            over.set()
    assert [future.result() for future in reloading] == [set(hosts)] * 2


# Prints the status of each request, 0 for one without a response.
REQUESTS = """
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from urllib.error import HTTPError
from urllib.request import urlopen

def status(url):
    try:
        return urlopen(url).status
    except HTTPError as error:
        return error.code
    except OSError:
        return 0

with ThreadPoolExecutor(8) as pool:
    for request in as_completed([pool.submit(status, sys.argv[1]) for _number in range(8)]):
        print(request.result(), flush=True)
"""


@contextmanager
def eight_requests(path: str) -> Iterator[subprocess.Popen[str]]:
    """Send two requests to each server through the first load balancer. The process prints their statuses."""
    command = shlex.join(["python3", "-c", REQUESTS, f"http://{LB1}{path}"])
    # With the standard error of the tests, ssh would make it non-blocking, which Ansible refuses.
    with subprocess.Popen(
        ssh("rolling-client", command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_no_request_is_lost() -> None:
    """Both load balancers are reloaded in the middle of each drain, while long requests are in progress."""
    before = versions()
    more = {
        "hapgent_lock": "/run/hapgent-web.lock",
        "hapgent_bake": 2,
        "hapgent_before_tasks": str(TASKS / "silence.yml"),
        "hapgent_after_tasks": str(TASKS / "resume.yml"),
    }
    with traffic(FULL_RATE, LONG) as load:
        with reloads(WEB):
            done = rolling("2", f"--extra-vars={json.dumps(more)}")
        load.go_on_until(20_000)
    assert done.returncode == 0, done.stdout
    assert load.counted["failed"] == 0, load.counted
    assert load.counted["requests"] >= 20_000
    assert load.counted["slow"] > 100
    # Each server received requests both before and after its update.
    served = {f"{host} {version}" for host, old in zip(WEB, before, strict=True) for version in (old, "2")}
    assert set(load.counted["by_server"]) == served
    assert versions() == ["2"] * 4
    assert [state(host) for host in WEB] == [{"status": "UP"}] * 4
    assert [run(host, "cat /var/tmp/alerts").stdout.split() for host in WEB] == [["silent", "resumed"]] * 4
    assert [run(name, "ls /run/hapgent-web.lock").stdout for name in LOAD_BALANCERS] == ["", ""]


@contextmanager
def requests_in_old_workers() -> Iterator[subprocess.Popen[str]]:
    """Requests that move to an old worker and last until answer_requests() is called."""

    def sessions() -> str:
        return servers(LB1)["rolling-web1"]["scur"]

    for host in WEB:
        assert run(host, "touch /run/hold").returncode == 0
    try:
        with eight_requests("/held") as requests:
            assert eventually(sessions, "2") == "2"
            assert run("rolling-lb1", "systemctl reload haproxy").returncode == 0
            assert eventually(sessions, "0") == "0"
            yield requests
    finally:
        answer_requests()


def answer_requests() -> None:
    for host in WEB:
        assert run(host, "rm -f /run/hold").returncode == 0


def test_a_drain_waits_for_requests_in_old_workers() -> None:
    server = "rolling-web1"
    before = start_time(server)
    with requests_in_old_workers() as requests:
        # With this grace period, the first round of the wait takes 5 s.
        arguments = [*_release("2"), f"--limit={server}", "--extra-vars=hapgent_grace=150"]
        with in_background(*ROLLING, *arguments) as process:
            output = read_until(process, "Waiting ")
            assert "2 sessions in an old worker" in output
            assert haproxy_statuses(server) == DRAINED
            assert start_time(server) == before
            answer_requests()
            rest, _errors = process.communicate(timeout=120)
        assert process.returncode == 0, output + rest
        assert start_time(server) != before
        assert requests.communicate(timeout=30)[0].split() == ["200"] * 8


def test_without_the_master_socket_requests_in_old_workers_are_lost() -> None:
    """Over the page of its statistics, HAProxy does not report its old workers."""
    with requests_in_old_workers() as requests:
        url = "--extra-vars=hapgent_haproxy_url=http://127.0.0.1:8404/"
        done = rolling("2", "--limit=rolling-web1", url)
        assert done.returncode == 0, done.stdout
        answer_requests()
        answers = requests.communicate(timeout=30)[0].split()
    assert (len(answers), answers.count("200")) == (8, 6), answers


def test_only_the_host_that_needs_it_is_rebooted_and_no_request_is_lost() -> None:
    """Its service starts again with the host."""
    before = [start_time(host) for host in WEB]
    assert run("rolling-web1", "touch /run/reboot-required").returncode == 0
    variables = ["--extra-vars=hapgent_hosts=web", "--extra-vars=reason='kernel 6.1'"]
    with traffic() as load:
        done = playbook("hapgent.agent.reboot", *variables)
        load.go_on_until(load.so_far() + 200)
    assert done.returncode == 0, done.stdout
    assert [start_time(host) == old for host, old in zip(WEB, before, strict=True)] == [False, True, True, True]
    assert run("rolling-web1", "ls /run/reboot-required").stdout == ""
    assert [state(host) for host in WEB] == [{"status": "UP"}] * 4
    assert load.counted["failed"] == 0, load.counted


def test_without_draining_requests_are_lost() -> None:
    """This shows that the tests that count lost requests can fail, even at the lower rate that most of them use.

    The work and the service are the same.
    """
    with traffic() as load:
        load.go_on_until(500)
        for host in WEB:
            assert run(host, "systemctl restart web").returncode == 0
            load.go_on_until(load.so_far() + 500)
    assert load.counted["failed"] > 0


def test_update_stops_at_a_version_that_does_not_start() -> None:
    """It is rolled back, the other one of its batch is finished, no other batch begins, and a second run continues."""
    old = versions()[0]
    broken = "--extra-vars={\"version\": \"{{ 'broken' if inventory_hostname == 'rolling-web1' else '3' }}\"}"
    rollback = f"--extra-vars=hapgent_rollback_tasks={TASKS / 'roll_back.yml'} old_version={old}"
    arguments = ["--extra-vars=hapgent_serial=2", "--extra-vars=hapgent_health_tries=3", rollback]
    with traffic() as load:
        done = playbook(*ROLLING, "--extra-vars=reason='release 3'", broken, *arguments)
        output = failure(done)
        assert re.search(r"stopped at rolling-web1\b.* DRAIN\.", output)
        assert "Wait until the service is healthy" in output
        assert "Done: rolling-web2. Not finished: rolling-web1." in output
        assert "Not touched: rolling-web3, rolling-web4." in output
        assert [haproxy_statuses(host) for host in WEB[1:]] == [IN_ROTATION] * 3
        assert state("rolling-web1") == {"status": "DRAIN", "reason": "release 3", "by": CONTROL}
        assert versions()[:2] == [old, "3"]

        before = start_time("rolling-web2")
        # A second run may come from another control node, here with the oldest supported Ansible.
        done = ansible(str(OLDEST), *ROLLING, *_release("3"), *arguments)
        assert done.returncode == 0, done.stdout
        assert start_time("rolling-web2") == before
    assert versions() == ["3"] * 4
    assert load.counted["failed"] == 0, load.counted


def test_interrupted_update_continues_where_it_stopped() -> None:
    """The host that was being updated stays out of rotation, and the next run begins with it."""
    with traffic() as load:
        with in_background(*ROLLING, *_release("4")) as process:
            assert eventually(lambda: haproxy_statuses("rolling-web2"), DRAINED, timeout=300) == DRAINED
            interrupt(process)
        assert state("rolling-web1") == {"status": "UP", "reason": "release 4"}
        assert state("rolling-web2") == {"status": "DRAIN", "reason": "release 4", "by": CONTROL}
        assert state("rolling-web3") == {"status": "UP"}

        before = start_time("rolling-web1")
        done = rolling("4", "--extra-vars=hapgent_serial=2")
        assert done.returncode == 0, done.stdout
        assert start_time("rolling-web1") == before
    assert versions() == ["4"] * 4
    assert load.counted["failed"] == 0, load.counted


def test_update_fails_if_a_load_balancer_is_down() -> None:
    """It might still send sessions to the servers. Operators who know better can leave it out."""
    without = "--extra-vars=hapgent_load_balancers=lb,!rolling-lb2"
    with traffic() as load:
        run("rolling-lb2", "systemctl stop haproxy")
        output = failure(rolling("5"))
        assert "rolling-lb2 cannot be queried" in output
        assert "hapgent_load_balancers='lb,!rolling-lb2'" in output
        assert "Nothing was changed" in output
        assert state("rolling-web1") == {"status": "UP"}
        done = rolling("5", without, "--limit=rolling-web1,rolling-web2", "--extra-vars=hapgent_serial=2")
        assert done.returncode == 0, done.stdout
        load.go_on_until(2500)
    assert versions()[:2] == ["5", "5"]
    requests, failed = load.counted["by_address"][LB1]
    assert (requests > 1000, failed) == (True, 0), load.counted


def test_update_stops_if_a_load_balancer_goes_down() -> None:
    with traffic() as load, in_background(*ROLLING, *_release("6")) as process:
        assert eventually(lambda: haproxy_statuses("rolling-web1"), DRAINED, timeout=180) == DRAINED
        run("rolling-lb2", "systemctl stop haproxy")
        output, _errors = process.communicate(timeout=180)
        assert "rolling-lb2 cannot be queried" in output
        assert re.search(r"stopped at rolling-web1\b.* DRAIN\.", output)
        assert [state(host) for host in WEB[1:]] == [{"status": "UP"}] * 3
    assert load.counted["by_address"][LB1][1] == 0, load.counted


def test_servers_that_were_already_drained_are_left_alone() -> None:
    """One is drained by its agent, the other manually in one HAProxy."""
    assert drain("rolling-web3", "--extra-vars=reason=disk").returncode == 0
    # While the agent still sends the keywords that end its own drain, they would end the manual one too.
    assert eventually(lambda: settles_for("rolling-web4"), [0.0, 0.0], timeout=30) == [0.0, 0.0]
    run("rolling-lb2", operator_command("set server web/rolling-web4 state drain"))
    before = versions()
    done = rolling("7", "--limit=web:!rolling-web1", "--extra-vars=hapgent_min_up=1 hapgent_kept_out=skip")
    assert done.returncode == 0, done.stdout
    assert re.search(r"rolling-web3: [^;\n]* DRAIN UP # disk", done.stdout)
    assert re.search(r"rolling-web4: rolling-lb2 .*web/rolling-web4 .*DRAIN \(agent\).* UP\b", done.stdout)
    assert versions() == [before[0], "7", *before[2:]]
    assert state("rolling-web3") == {"status": "DRAIN", "reason": "disk", "by": CONTROL}
    assert haproxy_statuses("rolling-web4") == ["UP", "DRAIN (agent)"]

    done = playbook("hapgent.agent.status", "--limit=web", "--check")
    assert done.returncode == 0
    lines = {line.split()[0].strip('"'): line for line in done.stdout.splitlines() if line.startswith(" " * 8)}
    assert re.search(
        rf"DRAIN +.* UTC +disk +{CONTROL} +2 of 2 +DRAIN \(agent\) +DRAIN \(agent\)", lines["rolling-web3"]
    )
    assert re.search(r"UP +.* UTC +2 of 2 +UP +DRAIN \(agent\) !", lines["rolling-web4"])
    assert re.search(r"rolling-web4: .* UP, .*rolling-lb2 .*DRAIN \(agent\) in web\b", done.stdout)


def test_server_that_is_drained_during_its_update_stays_drained() -> None:
    tasks = f"--extra-vars=hapgent_tasks={TASKS / 'deploy_and_drain.yml'}"
    done = rolling("8", tasks, "--limit=rolling-web1")
    assert done.returncode == 0, done.stdout
    assert re.search(r"Not finished: none\. [^:]+: rolling-web1: .* DRAIN UP # disk\b", done.stdout)
    assert state("rolling-web1") == {"status": "DRAIN", "reason": "disk"}
    assert versions()[0] == "8"


# Most refusals are tested on simulated fleets, in tests/playbooks, and their texts in test__fleet.py and
# test__balancers.py.
@pytest.mark.parametrize(
    ("hosts", "arguments", "pattern"),
    [
        ("rolling-web1,rolling-web2,rolling-web3", [], r"of web on rolling-lb1\b.*\b1\b.*Staying: rolling-web4\."),
        (
            "rolling-web1",
            ["hapgent_load_balancers=", "hapgent_fleet=web", "hapgent_min_up=4"],
            r"of hapgent_fleet, .*\b3\b.*hapgent_min_up .*\b4\b",
        ),
        ("rolling-web1", ["hapgent_server=web1"], r"rolling-lb1, rolling-lb2 .*\bweb1\b.*\bhapgent_server\b"),
    ],
)
def test_drain_that_is_refused_changes_nothing(hosts: str, arguments: list[str], pattern: str) -> None:
    # With one fork, the hosts are refused one after the other, even after Ansible has failed the hosts before.
    done = drain(hosts, "--forks=1", *(f"--extra-vars={argument}" for argument in arguments))
    assert re.search(pattern, failure(done))
    assert [state(host) for host in WEB] == [{"status": "UP"}] * 4


def test_drain_counts_connections_if_no_load_balancer_is_set() -> None:
    arguments = ["hapgent_load_balancers=", "hapgent_fleet=web", "hapgent_min_up=1", "hapgent_server_port=8080"]
    with eight_requests("/slow?seconds=10") as requests:
        done = drain("rolling-web1", *(f"--extra-vars={argument}" for argument in arguments))
        assert done.returncode == 0, done.stdout
        # A health check of a load balancer may be under way.
        connections = "ss --no-header --tcp state established sport = 8080"
        assert eventually(lambda: run("rolling-web1", connections).stdout, "", timeout=2) == ""
        assert requests.communicate()[0].split() == ["200"] * 8
    assert " s is over" not in done.stdout


def test_check_mode_changes_nothing() -> None:
    # One run plays all three.
    playbooks = ["hapgent.agent.drain", "hapgent.agent.undrain", *ROLLING]
    done = playbook(*playbooks, *_release("9"), "--check", "--limit=rolling-web1")
    assert done.returncode == 0, done.stdout
    assert state("rolling-web1") == {"status": "UP"}
    assert "9" not in versions()


def test_undrain_reports_why_a_server_is_not_back_in_rotation() -> None:
    run("rolling-web1", "systemctl stop web")
    down = ["DOWN", "DOWN"]
    assert eventually(lambda: haproxy_statuses("rolling-web1"), down) == down
    output = failure(playbook("hapgent.agent.undrain", "--limit=rolling-web1", "--extra-vars=hapgent_wait_timeout=2"))
    run("rolling-web1", "systemctl start web")
    assert "rolling-web1 is not back in rotation" in output
    assert "rolling-lb1: web/rolling-web1 (DOWN" in output
