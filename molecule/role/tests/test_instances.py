# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several instances on a host come and go without disturbing each other or services of others.

Each test takes the host as the test before has left it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path

import pytest
from lab import HOSTS, ansible, ask, eventually, module, operator_command, run

HOST = "role-bookworm"
ROLE = Path(__file__).parents[3] / "roles" / "hapgent"
SHOP, API, WEB = ({"name": name, "port": port} for name, port in (("shop", 9778), ("api", 9779), ("web", 9780)))
SETTINGS = {"status": "UP", "weight": 50}


def converge(*instances: dict[str, object], **variables: object) -> str:
    extra_vars = json.dumps({"hapgent_instances": instances, **variables})
    done = ansible("ansible-playbook", "converge.yml", f"--limit={HOST}", f"--extra-vars={extra_vars}")
    assert done.returncode == 0, done.stdout
    return done.stdout


def processes() -> dict[str, str]:
    """The process of each service of an agent, by its name."""
    units = run(HOST, "systemctl show --property=Id,MainPID 'hapgent*.service'").stdout
    return {name: pid for pid, name in re.findall(r"MainPID=(\d+)\nId=(\S+).service", units)}


def answers(*ports: int) -> list[str]:
    return [ask(HOSTS[HOST], port) for port in ports]


@pytest.fixture(scope="module", autouse=True)
def _foreign() -> Generator[None]:
    """A service that a person has added under a name such as the role uses."""
    unit = "/etc/systemd/system/hapgent@person.service"
    run(HOST, f"printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >{unit} && systemctl start hapgent@person")
    before = processes()["hapgent@person"]
    yield
    assert processes()["hapgent@person"] == before
    run(HOST, f"systemctl stop hapgent@person && rm {unit} && systemctl daemon-reload")


def test_runs_the_instances_beside_the_default_one() -> None:
    # A status that neither the variables nor the other instances have.
    assert run(HOST, "hapgent maint").returncode == 0
    before = processes()
    status = answers(9777)[0].split()[0]
    converge({**SHOP, **SETTINGS}, API)
    # They start with the status of the plain variables unless they have their own. After it, the default one may still
    # send keywords that reset its previous state.
    assert answers(9777)[0].split()[0] == status
    assert answers(9778, 9779) == ["UP 50%\n", "FAIL\n"]
    assert processes()["hapgent"] == before["hapgent"]
    assert run(HOST, "stat --format='%U %a' /etc/hapgent/shop /etc/hapgent/shop/state.json").stdout.splitlines() == [
        "nobody 755",
        "nobody 644",
    ]
    for unit in ("hapgent@shop.socket", "hapgent@shop.service", "hapgent@api.service"):
        assert run(HOST, f"systemctl is-enabled {unit}").stdout == "enabled\n"
    assert "changed=0" in converge({**SHOP, **SETTINGS}, API)


def test_a_module_changes_one_of_them() -> None:
    before = answers(9777, 9779)
    result = module(HOST, "hapgent_state", "service=hapgent@shop status=DRAIN")
    assert result["answer"] == "DRAIN 50%"
    assert answers(9777, 9779) == before
    assert eventually(lambda: answers(9778)[0].split()[0], "DRAIN") == "DRAIN"


@pytest.mark.parametrize("command", ["systemctl reload 'hapgent@*'", "pkill -HUP hapgent"])
def test_commands_reach_all_of_them(command: str) -> None:
    for name, status in (("shop", "UP"), ("api", "MAINT")):
        run(HOST, f"""echo '{{"status": "{status}"}}' >/etc/hapgent/{name}/state.json""")
    run(HOST, command)
    assert eventually(lambda: [answer.split()[0] for answer in answers(9778, 9779)], ["UP", "MAINT"]) == ["UP", "MAINT"]
    run(HOST, 'for name in shop api; do echo \'{"status": "DOWN"}\' >/etc/hapgent/$name/state.json; done')
    run(HOST, command)
    assert eventually(lambda: [answer.split()[0] for answer in answers(9778, 9779)], ["DOWN"] * 2) == ["DOWN"] * 2


def test_adding_one_restarts_none() -> None:
    before = processes()
    converge(SHOP, API, {**WEB, **SETTINGS})
    assert answers(9780) == ["UP 50%\n"]
    after = processes()
    assert after.pop("hapgent@web")
    assert after == before


def test_two_exchange_their_ports() -> None:
    run(HOST, """echo '{"status": "UP", "weight": 1}' >/etc/hapgent/shop/state.json; pkill -HUP hapgent""")
    assert eventually(lambda: answers(9778)[0].endswith(" 1%\n"), True)
    before = processes()
    converge({**SHOP, "port": 9779}, {**API, "port": 9778}, WEB)
    assert [answer.split()[0] for answer in answers(9778, 9779)] == ["DOWN", "UP"]
    assert processes()["hapgent@web"] == before["hapgent@web"]


def test_removing_them_keeps_their_states() -> None:
    states = "cat /etc/hapgent/*/state.json"
    before = run(HOST, states).stdout
    converge(WEB)
    assert set(processes()) == {"hapgent", "hapgent@web", "hapgent@person"}
    converge()
    assert set(processes()) == {"hapgent", "hapgent@person"}
    assert run(HOST, "ls /etc/systemd/system").stdout.split().count("hapgent@person.service") == 1
    assert run(HOST, states).stdout == before
    assert "changed=0" in converge()
    run(HOST, "rm -r /etc/hapgent/shop /etc/hapgent/api /etc/hapgent/web")


def test_the_documented_play_runs_two_instead_of_the_default_one(tmp_path: Path) -> None:
    text = (ROLE / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"## Several instances on a host\n.*?```yaml\n(.*?)```", text, re.DOTALL)
    assert snippet
    playbook = tmp_path / "instances.yml"
    playbook.write_text(snippet[1].replace("hosts: web", f"hosts: {HOST}"), encoding="utf-8")
    # Users gather facts by default. The scenarios do not.
    done = ansible("ansible-playbook", str(playbook), ANSIBLE_GATHERING="implicit")
    assert done.returncode == 0, done.stdout
    assert answers(9777, 9778) == ["UP\n", "UP maxconn:20\n"]
    assert set(processes()) == {"hapgent@shop", "hapgent@api", "hapgent@person"}


# A load balancer on the host itself, with a backend for each of these instances.
HAPROXY = """
global
    stats socket /run/services.sock level admin
defaults
    mode http
    timeout connect 2s
    timeout client 9s
    timeout server 9s
frontend services
    bind 127.0.0.1:8181
    default_backend shop
backend shop
    server other 127.0.0.1:8080
    server web-shop 127.0.0.1:8080 weight 100 agent-check agent-port 9777 agent-inter 1s
backend api
    server other 127.0.0.1:8080
    server web-api 127.0.0.1:8080 weight 100 agent-check agent-port 9778 agent-inter 1s
"""
IN_ROTATION = {"shop/web-shop": True, "api/web-api": True}
DRAINED = {"shop/web-shop": False, "api/web-api": False}


@pytest.fixture(scope="module")
def _load_balancer() -> Generator[None]:
    run(HOST, f"cat >/etc/services.cfg <<'END'{HAPROXY}END\nhaproxy -D -f /etc/services.cfg -p /run/services.pid")
    assert eventually(takes_new_sessions, IN_ROTATION) == IN_ROTATION
    yield
    run(HOST, "kill $(cat /run/services.pid); rm /etc/services.cfg /run/services.*")


def takes_new_sessions() -> dict[str, bool]:
    found = module(HOST, "haproxy_server_info", "socket=/run/services.sock")["servers"]
    return {f"{row['backend']}/{row['server']}": row["takes_new_sessions"] for row in found if row["server"] != "other"}


def send_to_haproxy(command: str) -> None:
    run(HOST, operator_command(command).replace("/run/haproxy/admin.sock", "/run/services.sock"))


def playbook(name: str, services: object = "all") -> tuple[int, str]:
    variables = {
        "hapgent_services": services,
        "hapgent_server": {"shop": "web-shop", "api": "web-api", "apy": "web-api"},
        "hapgent_load_balancers": HOST,
        "hapgent_haproxy_socket": "/run/services.sock",
        # The tests poll the agents too, from another address.
        "hapgent_wait_for": "127.0.0.1",
        "reason": "kernel upgrade",
    }
    arguments = [f"--limit={HOST}", f"--extra-vars={json.dumps(variables)}"]
    done = ansible("ansible-playbook", f"hapgent.agent.{name}", *arguments)
    return done.returncode, " ".join(done.stdout.split())


@pytest.mark.usefixtures("_load_balancer")
def test_playbooks_drain_and_undrain_all_services_of_the_host_together() -> None:
    rc, output = playbook("drain")
    assert rc == 0, output
    assert takes_new_sessions() == DRAINED
    assert [answer.split()[0] for answer in answers(9777, 9778)] == ["DRAIN", "DRAIN"]
    rc, output = playbook("status")
    assert rc == 0, output
    for name in ("shop", "api"):
        assert re.search(rf"{HOST} {name} DRAIN .{{20,40}} kernel upgrade ", output), output
    rc, output = playbook("undrain")
    assert rc == 0, output
    assert takes_new_sessions() == IN_ROTATION


@pytest.mark.usefixtures("_load_balancer")
def test_no_service_leaves_if_one_must_stay() -> None:
    send_to_haproxy("disable server api/other")
    before = answers(9777, 9778)
    rc, output = playbook("drain", ["shop", "api"])
    assert rc != 0
    assert "hapgent_min_up" in output
    assert answers(9777, 9778) == before
    rc, output = playbook("drain", "shop")
    assert rc == 0, output
    assert takes_new_sessions() == {**IN_ROTATION, "shop/web-shop": False}
    assert playbook("undrain", ["shop"])[0] == 0
    send_to_haproxy("enable server api/other")


@pytest.mark.usefixtures("_load_balancer")
def test_a_stopped_service_is_not_left_out() -> None:
    run(HOST, "systemctl stop hapgent@api.socket hapgent@api.service")
    rc, output = playbook("drain")
    assert rc != 0
    assert "hapgent@api is not running" in output
    assert ask(HOSTS[HOST]).split()[0] == "UP"
    run(HOST, "systemctl start hapgent@api.socket hapgent@api.service")


@pytest.mark.usefixtures("_load_balancer")
def test_an_unknown_service_is_an_error_that_names_those_of_the_host() -> None:
    rc, output = playbook("drain", ["shop", "apy"])
    assert rc != 0
    assert "hapgent@apy" in output
    assert "hapgent@api, hapgent@shop" in output
    assert answers(9777)[0].split()[0] == "UP"


def test_uninstalling_removes_them_all() -> None:
    converge(hapgent_uninstall=True, hapgent_uninstall_state_file=True)
    assert set(processes()) == {"hapgent@person"}
    left = "find / -xdev -name '*hapgent*' -not -path '/proc/*' -not -path '/sys/*'"
    assert run(HOST, left).stdout.split() == ["/etc/systemd/system/hapgent@person.service"]
    converge()
