# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""On hosts that sysvinit runs, agents are started, drained, rebooted and removed as on those that systemd runs.

Each test takes the hosts as the test before has left them.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from haproxy import servers
from lab import HOSTS, ansible, eventually, module, run

HOST, OTHER = "sysv-web1", "sysv-web2"
LOAD_BALANCER = HOSTS["sysv-lb1"]
SERVICES = ["hapgent", "hapgent@shop"]
API = {"name": "api", "port": 9779}
SHOP = {"name": "shop", "port": 9778}
BOTH = "--extra-vars=hapgent_services=all"
COMMAND = "/usr/local/bin/weight"
WEIGHING = {
    "hapgent_weight": 77,
    "hapgent_weight_command": COMMAND,
    "hapgent_weight_step": 255,
    "hapgent_weight_smoothing": 1,
}
# Cron reads new jobs once a minute, and runs them once a minute.
CRON_SECONDS = 150


def converge(**variables: object) -> subprocess.CompletedProcess[str]:
    extra_vars = json.dumps(variables)
    return ansible("ansible-playbook", "converge.yml", f"--limit={HOST}", f"--extra-vars={extra_vars}")


def play(name: str, *arguments: str) -> str:
    done = ansible("ansible-playbook", f"hapgent.agent.{name}", *arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout


def on_host(command: str) -> str:
    done = run(HOST, command)
    assert done.returncode == 0, done
    return done.stdout


def shown(host: str = HOST) -> list[str]:
    """What HAProxy shows for the servers of both agents of a host."""
    rows = servers(LOAD_BALANCER)
    return [rows[host]["status"], rows[f"{host}-shop"]["status"]]


def await_shown(*statuses: str, host: str = HOST) -> None:
    assert eventually(lambda: shown(host), [*statuses], timeout=30) == [*statuses]


def status(service: str = "hapgent") -> int:
    return run(HOST, f"service {service} status").returncode


def pid(service: str = "hapgent") -> str:
    """The process ID of the agent. The file does not exist while it is started again."""
    return run(HOST, f"cat /run/{service}.pid").stdout.strip()


def status_of(service: str = "hapgent") -> dict[str, Any]:
    """What the agent reports. If it were polled from here, this machine would count as a load balancer, too."""
    reported: dict[str, Any] = json.loads(on_host(f"hapgent status --json --service {service}"))
    return reported


def states() -> list[str]:
    paths = ["/etc/hapgent/state.json", "/etc/hapgent/shop/state.json"]
    return [json.loads(on_host(f"cat {path}"))["status"] for path in paths]


def test_both_agents_run_and_start_with_the_host() -> None:
    await_shown("UP", "UP")
    await_shown("UP", "UP", host=OTHER)
    assert on_host("cat /proc/1/comm") == "init\n"
    assert [status(service) for service in SERVICES] == [0, 0]
    assert on_host("ls /etc/rc2.d | grep -c hapgent") == "2\n"
    assert on_host("hapgent --services").split() == SERVICES
    assert on_host("ps -o user= -C hapgent").split() == ["nobody", "nobody"]
    # Its messages are in the syslog.
    assert "hapgent@shop" in on_host("logread")


def test_an_agent_that_is_killed_comes_back() -> None:
    before = pid()
    run(HOST, f"kill -9 {before}")
    assert eventually(lambda: status() == 0 and pid() != before, wanted=True)
    assert status_of()["answer"].startswith("UP")


def test_the_init_script_is_truthful() -> None:
    # A second start changes nothing, and neither does a reload.
    before = pid()
    on_host("service hapgent start && service hapgent reload && service hapgent force-reload")
    assert pid() == before
    on_host("service hapgent restart")
    assert pid() != before
    on_host("service hapgent stop && service hapgent stop")
    assert status() == 3
    assert run(HOST, "service hapgent reload").returncode != 0
    assert run(HOST, "pgrep -f '[h]apgent supervise'").returncode != 0
    # A port that another program uses: the start fails, and works as soon as the port is free.
    on_host("nohup python3 -m http.server 9777 >/dev/null 2>&1 & echo $! >/tmp/other")
    assert eventually(lambda: run(HOST, "ss -ltn | grep -q :9777").returncode, 0) == 0
    refused = run(HOST, "service hapgent start")
    assert (refused.returncode, "syslog" in refused.stderr) == (1, True)
    assert status() != 0
    on_host("kill $(cat /tmp/other)")
    assert eventually(status, 0) == 0
    # If its loop is killed, an agent still answers, but is not trusted, because it might be any process.
    on_host("kill -9 $(cat /run/hapgent.supervisor)")
    assert status() == 4
    assert "unsupervised" in run(HOST, "hapgent drain --service hapgent").stderr
    on_host("service hapgent start && hapgent up --service hapgent")
    assert status() == 0


def test_the_module_drains_one_of_two_instances() -> None:
    result = module(HOST, "hapgent_state", "service=hapgent@shop status=DRAIN reason=disk wait=true")
    assert (result["changed"], result["received_by"]) == (True, [LOAD_BALANCER])
    await_shown("UP", "DRAIN (agent)")
    info = module(HOST, "hapgent_info", "service=hapgent@shop")["instances"]
    assert [(row["service"], row["state"]["status"]) for row in info] == [("hapgent@shop", "DRAIN")]
    assert module(HOST, "hapgent_state", "service=hapgent@shop status=UP wait=true")["changed"]
    unknown = module(HOST, "hapgent_state", "service=hapgent@api status=UP")
    assert "hapgent, hapgent@shop" in unknown["msg"]


def test_the_commands_drain_both() -> None:
    on_host("hapgent drain --all --wait")
    await_shown("DRAIN (agent)", "DRAIN (agent)")
    on_host("hapgent up --all --wait")
    await_shown("UP", "UP")


def test_the_playbooks_drain_all_instances_of_a_host() -> None:
    play("drain", f"--limit={HOST}", BOTH, "--extra-vars=reason=disk")
    await_shown("DRAIN (agent)", "DRAIN (agent)")
    assert "shop" in play("status", BOTH)
    play("undrain", f"--limit={HOST}", BOTH)
    await_shown("UP", "UP")


def test_a_service_that_is_stopped_is_found() -> None:
    on_host("service hapgent@shop stop")
    refused = ansible("ansible-playbook", "hapgent.agent.drain", f"--limit={HOST}", BOTH)
    assert refused.returncode != 0
    assert "hapgent@shop" in refused.stdout
    assert states() == ["UP", "UP"]
    on_host("service hapgent@shop start")
    await_shown("UP", "UP")


def test_rolls_the_fleet() -> None:
    deploy = f"--extra-vars=hapgent_tasks={Path(__file__).parents[1] / 'tasks' / 'deploy.yml'}"
    play("rolling", "--extra-vars=hapgent_hosts=web", BOTH, deploy, "--extra-vars=reason=release")
    for host in (HOST, OTHER):
        assert run(host, "cat /srv/version").stdout == "release\n"
        await_shown("UP", "UP", host=host)


def test_a_reboot_keeps_the_state() -> None:
    on_host("hapgent drain --service hapgent --wait --reason disk")
    on_host("touch /run/before")
    subprocess.run(["podman", "restart", "--time=90", HOST], check=True, stdout=subprocess.DEVNULL)
    assert eventually(lambda: [status(service) for service in SERVICES], [0, 0], timeout=60) == [0, 0]
    assert run(HOST, "ls /run/before").returncode != 0
    await_shown("DRAIN (agent)", "UP")
    on_host("hapgent up --service hapgent --wait")
    await_shown("UP", "UP")


def test_instances_come_and_go_without_restarting_others() -> None:
    before = pid(), pid("hapgent@shop")
    assert converge(hapgent_instances=[SHOP, API], hapgent_status="UP").returncode == 0
    assert status_of("api")["answer"].startswith("UP")
    assert converge().returncode == 0
    assert on_host("hapgent --services").split() == SERVICES
    on_host("ls /etc/hapgent/api/state.json")
    assert run(HOST, "ls /etc/rc?.d | grep hapgent@api").stdout == ""
    assert (pid(), pid("hapgent@shop")) == before


def test_instances_exchange_their_ports() -> None:
    for port, other in ((9778, 9777), (9777, 9778)):
        done = converge(hapgent_port=port, hapgent_instances=[{**SHOP, "port": other}])
        assert done.returncode == 0, done.stdout
        for service, own in (("hapgent", port), ("hapgent@shop", other)):
            assert f" port {own}\n" in on_host(f"hapgent status --service {service}")


def let_command(script: str) -> None:
    """Replace the weight command, at once, because cron may run it at this moment."""
    on_host(
        f"printf '#!/bin/sh\\n%s\\n' '{script}' >{COMMAND}.new && chmod 755 {COMMAND}.new && mv {COMMAND}.new {COMMAND}"
    )


def weight() -> str:
    return servers(LOAD_BALANCER)[HOST]["weight"]


def test_cron_sets_the_weight() -> None:
    let_command("id -un >&2; exit 4")
    assert converge(**WEIGHING).returncode == 0
    assert "changed=0" in converge(**WEIGHING).stdout
    assert sorted(on_host("cd /etc/cron.d && ls hapgent*").split()) == ["hapgent-weight-hapgent", "hapgent-weight-shop"]
    # It runs without the rights of root, and a failure is in the syslog.
    failure = "logread | grep -q 'hapgent@shop.*no new weight.*exited with 4: nobody'"
    assert eventually(lambda: run(HOST, failure).returncode, 0, timeout=CRON_SECONDS) == 0
    let_command("echo 42")
    assert eventually(weight, "42", timeout=CRON_SECONDS) == "42"


def test_without_a_command_the_configured_weight_comes_back_and_no_job_is_left() -> None:
    # A job that runs at that moment would set its own weight afterwards. This one runs until it is stopped.
    job = "timeout 3600 /usr/bin/env HAPGENT_STATE_FILE=/etc/hapgent/state.json sleep 3600"
    on_host(f"nohup sh -c '{job}; touch /tmp/stopped' >/dev/null 2>&1 &")
    assert eventually(lambda: run(HOST, "pgrep -f '^timeout 3600'").returncode, 0) == 0
    done = converge(hapgent_weight=77)
    assert done.returncode == 0, done.stdout
    assert eventually(lambda: run(HOST, "ls /tmp/stopped").returncode, 0) == 0
    assert run(HOST, "ls /etc/cron.d/hapgent* /etc/hapgent/state.json.weight").stdout == ""
    assert eventually(weight, "77") == "77"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"hapgent_service_manager": "systemd"}, "hapgent_service_manager must be sysv"),
        ({"hapgent_drain_with": "shop.service", "hapgent_server_port": 8080}, "hapgent_drain_with needs systemd"),
        ({**WEIGHING, "hapgent_weight_interval": 61}, "hapgent_weight_interval must be at most 60"),
    ],
)
def test_contradictions_are_refused(variables: dict[str, object], problem: str) -> None:
    done = converge(**variables)
    assert done.returncode != 0
    assert problem in " ".join(done.stdout.split())
    assert "changed=0" in done.stdout


def test_uninstalls() -> None:
    # The init script of a person stays, whatever its name is.
    on_host("printf '#!/bin/sh\\n' >'/etc/init.d/hapgent@person'")
    # An agent that cannot run at the moment must not be started again afterwards.
    on_host("chmod 0700 /usr/local/bin/hapgent && pkill hapgent")
    assert eventually(lambda: status() != 0, wanted=True)
    variables = {"hapgent_uninstall": True, "hapgent_uninstall_state_file": True}
    done = converge(**variables)
    assert done.returncode == 0, done.stdout
    left = "ls -d /etc/init.d/hapgent* /etc/rc?.d/*hapgent* /run/hapgent* /usr/local/bin/hapgent /etc/hapgent"
    assert run(HOST, left).stdout.split() == ["/etc/hapgent", "/etc/init.d/hapgent@person"]
    assert run(HOST, "pgrep hapgent || pgrep -f '[h]apgent supervise'").returncode == 1
    assert "changed=0" in converge(**variables).stdout
