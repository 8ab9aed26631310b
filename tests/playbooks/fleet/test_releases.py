# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks and the role's checks work with the oldest and newest release of each supported ansible-core."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _who
from releases import EDGES, NEWEST, RELEASES, program

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet


@pytest.mark.parametrize("release", RELEASES)
def test_all_playbooks_work(fleet: Fleet, release: str) -> None:
    """One run does the role's preflight, a drain, status, an undrain and a rolling update.

    Each release costs seconds, so there is one load balancer and mostly one host. On some releases, the rolling update
    also skips a host. The run has settings of its own, so it starts the real program, without a server that has already
    imported it.
    """
    ansible = program(release)
    fleet.web_vars["hapgent_load_balancers"] = "lb1"
    fleet.set_state("web2", status="MAINT", reason="no disk")
    # The lookup reads the file on the control node: a module would take half a second.
    see = {"ansible.builtin.debug": {"msg": "{{ lookup('ansible.builtin.file', hapgent_state_file) }}"}}
    role = {"name": "hapgent.agent.hapgent", "tasks_from": "preflight"}
    # YAML takes this name of a service for a number.
    variables = {"hapgent_state_file": "/etc/hapgent/state.json", "hapgent_service": 5}
    # The machine that runs the tests need not have systemd.
    preflight = {"ansible.builtin.import_role": role, "vars": variables, "ignore_errors": True}
    site: list[dict[str, Any]] = [
        {"hosts": "web1", "gather_facts": False, "tasks": [preflight]},
        {"import_playbook": "hapgent.agent.drain", "vars": {"hapgent_hosts": "web3", "reason": "new disk"}},
        {"hosts": "web3", "gather_facts": False, "tasks": [{"name": "See the drain", **see}]},
        {"import_playbook": "hapgent.agent.status", "vars": {"hapgent_hosts": "web3"}},
        {"import_playbook": "hapgent.agent.undrain", "vars": {"hapgent_hosts": "web3"}},
        {
            "import_playbook": "hapgent.agent.rolling",
            "vars": {
                "hapgent_hosts": "web1,web2" if release in EDGES else "web1",
                "reason": "release 4.2",
                "hapgent_tasks": "tasks.yml",
                "hapgent_handlers": "handlers.yml",
                "hapgent_kept_out": "skip",
            },
        },
    ]
    (fleet.project / "site.yml").write_text(json.dumps(site), encoding="utf-8")
    tasks = {
        "tasks.yml": [
            {"name": "See the rolling", **see, "changed_when": True, "notify": "Restart"},
            {"ansible.builtin.include_role": {"name": "shop"}},
        ],
        "handlers.yml": [{"name": "See the handler", "listen": "Restart", **see}],
        "roles/shop/tasks/main.yml": [{"name": "See the role", **see, "changed_when": True, "notify": "Reload"}],
        "roles/shop/handlers/main.yml": [{"name": "Reload", **see}],
    }
    for name, content in tasks.items():
        path = fleet.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    environment = {"ANSIBLE_DEPRECATION_WARNINGS": "true", "ANSIBLE_ROLES_PATH": str(fleet.project / "roles")}
    played = fleet.play("site.yml", ansible=ansible, environment=environment)

    def seen(task: str) -> dict[str, Any]:
        records = [record for record in played.records if record["task"] == task]
        messages = {record["host"]: record["result"]["msg"] for record in records}
        # Older releases convert text that looks like JSON.
        return {host: json.loads(text) if isinstance(text, str) else text for host, text in messages.items()}

    (checked,) = played.results("Check that the role can work on the host")
    assert checked["msg"] == "All assertions passed" or re.fullmatch(
        "This role needs systemd[^.]*\\.[^.]*\\.md[^.]*\\. Nothing was changed\\.", checked["msg"]
    )
    assert seen("See the drain") == {"web3": {"status": "DRAIN", "reason": "new disk", "by": _who.current()}}
    (table,) = played.results("Show the fleet")
    assert [line.count("DRAIN (agent)") for line in table["msg"] if line.startswith("web3  ")] == [1]
    for task in ("See the rolling", "See the role", "See the handler", "Reload"):
        assert seen(task) == {"web1": {"status": "DRAIN", "reason": "release 4.2", "by": _who.current()}}
    assert fleet.state("web1")["status"] == fleet.state("web3")["status"] == "UP"
    assert fleet.state("web2") == {"status": "MAINT", "reason": "no disk"}
    fleet.await_statuses(web1="UP", web3="UP")
    if release == NEWEST:
        assert "DEPRECATION" not in played.output


@pytest.mark.parametrize("release", EDGES)
def test_unknown_hosts_are_refused(fleet: Fleet, release: str) -> None:
    """The collection itself fails before the first task; Ansible alone would succeed."""
    variables = {"hapgent_hosts": "wbe", "reason": "release 4.2", "hapgent_tasks": "tasks.yml"}
    played = fleet.play("hapgent.agent.rolling", ansible=program(release), succeeds=False, variables=variables)
    assert played.records == []
    assert "hapgent_hosts must name hosts" in played.output


@pytest.mark.parametrize("release", EDGES)
def test_hosts_set_in_the_inventory_and_unquoted_reasons_are_refused(fleet: Fleet, release: str) -> None:
    """One host fails because of the variable, the other because of the reason."""
    fleet.host_vars("web1")["hapgent_hosts"] = "web1"
    limit = "--limit=web1,web2"
    played = fleet.play("hapgent.agent.drain", limit, "-e", "reason=a b", ansible=program(release), succeeds=False)
    failures = played.failures()
    assert set(failures) == {"web1", "web2"}
    assert "hapgent_hosts" in failures["web1"]
    assert "Quote" in failures["web2"]
    assert fleet.state("web1") == fleet.state("web2") == {"status": "UP"}


# The callback hapgent.agent.concise

CONCISE = {"ANSIBLE_STDOUT_CALLBACK": "hapgent.agent.concise"}
TIME = r"\d\d:\d\d:\d\d "


@pytest.mark.parametrize("release", EDGES)
def test_each_thing_that_happens_is_one_line(fleet: Fleet, release: str) -> None:
    (fleet.project / "tasks.yml").write_text("- name: Deploy\n  ansible.builtin.command: 'false'\n", encoding="utf-8")
    names = [f"hapgent.agent.{name}" for name in ("drain", "undrain", "status", "rolling")]
    played = fleet.play(
        *names,
        "--limit=web1",
        variables={"reason": "disk", "hapgent_tasks": "tasks.yml"},
        ansible=program(release),
        environment=CONCISE,
        succeeds=False,
    )
    shown = played.output.replace("\x1b[0m", "")
    before, after = shown.split("TASK [Deploy]")
    assert "TASK [" not in before
    assert re.search(rf"^{TIME}web1: DRAIN .*# disk .*\bUP\b.*\b2\b", before, re.MULTILINE)
    assert re.search(rf"^{TIME}web1: drained after \d+ s", before, re.MULTILINE)
    assert re.search(rf"^{TIME}web1: UP .*\bDRAIN\b.*# disk.*\b2\b", before, re.MULTILINE)
    assert re.search(rf"^{TIME}web1: back in rotation after \d+ s.* \d+ s$", before, re.MULTILINE)
    # The lines of a table are below each other.
    assert re.search(rf"^{TIME}host +state .*\n {{9}}web1 +UP ", before, re.MULTILINE)
    # The tasks of an update and failures are shown as always.
    assert re.search(r"fatal: \[web1\]: FAILED! => .*false", after, re.DOTALL)
    assert re.search(r"The rolling update stopped at web1\b", after)
    assert fleet.state("web1") == {"status": "DRAIN", "reason": "disk", "by": _who.current()}


def test_drain_of_one_host_fits_on_a_screen(fleet: Fleet) -> None:
    with fleet.load_balancers["lb1"].session("web1"):
        variables = {"hapgent_grace": 2}
        played = fleet.play("hapgent.agent.drain", "--limit=web1", variables=variables, environment=CONCISE)
    lines = played.output.splitlines()
    assert any(re.search(r"lb1: web/web1 .*\b1\b", line) for line in lines)
    assert len(lines) < 20, played.output
