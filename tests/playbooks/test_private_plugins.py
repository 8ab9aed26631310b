# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ansible can call filters that read hostvars, and the private action. The tests of plugin_utils test their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.playbooks.conftest import RunPlaybook

Result = dict[str, Any]


def balancer(item: str, **servers: bool) -> Result:
    rows: list[Result] = [
        {
            "backend": "web",
            "server": name,
            "backup": False,
            "status": "UP" if takes else "DRAIN",
            "takes_new_sessions": takes,
            "admin_state": "ready" if takes else "drain",
            "admin_by": [],
            "configured_weight": 1,
        }
        for name, takes in servers.items()
    ]
    return {"item": item, "servers": rows}


def agent(item: str, status: str) -> Result:
    return {
        "item": item,
        "instances": [
            {"state": {"status": status}, "ramp_weight": None, "problem": None, "since": None, "peers": None}
        ],
    }


# What the filters read: variables of the inventory, and what the tasks of the role have recorded about the host.
RECORDED = {
    "ansible_host": "192.0.2.1",
    "private": {"ip": "10.0.0.1"},
    "hapgent_haproxy_server": {"weight": "{{ 40 + 2 }}", "options": "{{ inventory_hostname }}"},
    "hapgent__settings": {
        "services": [{"name": "", "service": "hapgent", "state_file": "", "server": "web1", "backends": []}],
        "load_balancers": ["lb1"],
        "load_balancer_pattern": "lb1",
        "min_up": "half",
        "fleet": [],
    },
    "hapgent__asker": {"name": "web1"},
    "hapgent__agent": {"results": [{**agent("web1", "UP"), "before": {"status": "DRAIN"}}]},
    "hapgent__queried": {"results": [balancer("lb1", web1=True)]},
    "hapgent__turn": {"done": True},
}
# A call of each filter that reads hostvars, and its result.
CALLS: dict[str, tuple[str, object]] = {
    "_fleet_table": (
        "{{ hostvars | hapgent.agent._fleet_table(['web1'], []) }}",
        ["host  state  since  reason  received  lb1", f"{'web1  UP':38}UP"],
    ),
    "haproxy_servers": (
        "{{ ['web1'] | hapgent.agent.haproxy_servers(hostvars, port=80, address_variable='private.ip') }}",
        ["server web1 10.0.0.1:80 check agent-check agent-port 9777 agent-inter 2s weight 42 web1"],
    ),
    "_kept_out_by": (
        "{{ hostvars | hapgent.agent._kept_out_by('web1', 'release 4.2', true) }}",
        "its agent reports DRAIN",
    ),
    "_rolling_progress": (
        "{{ (hostvars | hapgent.agent._rolling_progress(['web1'], ['web1'], 'release 4.2')).done }}",
        ["web1"],
    ),
}


@pytest.mark.oldest_too
def test_filters_work_in_playbooks(run_playbook: RunPlaybook, tmp_path: Path) -> None:
    """The filters are called by their full names, with values from Ansible's variables."""
    tasks = [
        {
            "ansible.builtin.assert": {"that": "got == wanted", "fail_msg": "{{ got | string }}"},
            "vars": {"got": got, "wanted": wanted},
        }
        for got, wanted in CALLS.values()
    ]
    facts = {"ansible.builtin.set_fact": RECORDED}
    refused = {"ansible.builtin.debug": {"msg": "{{ hostvars | hapgent.agent._refusals(['web1']) }}"}}
    play = {
        "hosts": "web1",
        "gather_facts": False,
        "tasks": [facts, *tasks, refused],
    }
    (tmp_path / "playbook.yml").write_text(json.dumps([play]), encoding="utf-8")
    output = run_playbook("playbook.yml", succeeds=False)
    assert f"ok={len(CALLS) + 1} " in output, output
    assert "hapgent_min_up must be " in output
    assert "half" in output
    assert "Traceback" not in output


@pytest.mark.oldest_too
def test_decision_is_recorded_unless_it_is_a_refusal(run_playbook: RunPlaybook, tmp_path: Path) -> None:
    decisions = {"accepted": "{{ {'refusal': '', 'reason': '4.10'} }}", "refused": {"refusal": "No.", "reason": "x"}}
    tasks = [
        {"hapgent.agent.hapgent_decision": {"decision": decision}, "register": name, "ignore_errors": True}
        for name, decision in decisions.items()
    ]
    wanted = ["accepted is success", "accepted.reason == '4.10'", "refused is failed", "refused.msg == 'No.'"]
    asserted = {"ansible.builtin.assert": {"that": [*wanted, "refused.reason is not defined"]}}
    play = {"hosts": "web1", "gather_facts": False, "tasks": [*tasks, asserted]}
    (tmp_path / "playbook.yml").write_text(json.dumps([play]), encoding="utf-8")
    run_playbook("playbook.yml")
