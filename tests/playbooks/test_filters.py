# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ansible can call the filters of the role fleet. test__fleet.py tests their results in detail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.playbooks.conftest import RunPlaybook

Result = dict[str, Any]


def balancer(item: str, **servers: bool) -> Result:
    rows = [
        {
            "backend": "web",
            "server": name,
            "backup": False,
            "status": "UP" if takes else "DRAIN",
            "takes_new_sessions": takes,
            "admin_state": "ready" if takes else "drain",
        }
        for name, takes in servers.items()
    ]
    return {"item": item, "servers": rows}


def agent(item: str, status: str) -> Result:
    return {"item": item, "instances": [{"state": {"status": status}, "problem": None, "since": None, "peers": None}]}


# A call of each filter, as documented, and its result.
CALLS: dict[str, tuple[str, object]] = {
    "_fleet_table": (
        "{{ ['web1'] | hapgent.agent._fleet_table(['web1'], [[]], [agent], [balancer]) }}",
        ["host  state  since  reason  received  lb1", f"{'web1  UP':38}UP"],
    ),
    "_kept_out_by": (
        "{{ {'status': 'DRAIN'} | hapgent.agent._kept_out_by('release 4.2', [balancer], 'web1') }}",
        "its agent reports DRAIN",
    ),
}


@pytest.mark.oldest_too
def test_filters_work_in_playbooks(run_playbook: RunPlaybook, tmp_path: Path) -> None:
    """The filters are called by their full names, with values from Ansible's variables."""
    tasks = [
        {
            "ansible.builtin.assert": {"that": "got == wanted", "fail_msg": "{{ got }}"},
            "vars": {"got": got, "wanted": wanted},
        }
        for got, wanted in CALLS.values()
    ]
    view = {"host": "web1", "server": "web1", "min_up": "half", "asked": [], "agents": []}
    refused = {"ansible.builtin.debug": {"msg": "{{ [view] | hapgent.agent._refusals }}"}}
    play = {
        "hosts": "web1",
        "gather_facts": False,
        "vars": {"balancer": balancer("lb1", web1=True), "agent": agent("web1", "UP"), "view": view},
        "tasks": [*tasks, refused],
    }
    (tmp_path / "playbook.yml").write_text(json.dumps([play]), encoding="utf-8")
    output = run_playbook("playbook.yml", succeeds=False)
    assert f"ok={len(CALLS)} " in output, output
    assert "hapgent_min_up must be " in output
    assert "half" in output
    assert "Traceback" not in output
