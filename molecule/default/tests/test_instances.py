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
from lab import HOSTS, ansible, ask, eventually, module, run

HOST = "hapgent-bookworm"
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
    before = processes()
    answer = answers(9777)
    converge({**SHOP, **SETTINGS}, API)
    # They start with the status of the plain variables unless they have their own.
    assert answers(9777, 9778, 9779) == [*answer, "UP 50%\n", "FAIL\n"]
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
    assert eventually(lambda: answers(9778)[0].endswith("UP 1%\n"), True)
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

    converge(hapgent_uninstall=True, hapgent_uninstall_state_file=True)
    assert set(processes()) == {"hapgent@person"}
    left = "find / -xdev -name '*hapgent*' -not -path '/proc/*' -not -path '/sys/*'"
    assert run(HOST, left).stdout.split() == ["/etc/systemd/system/hapgent@person.service"]
    converge()
