# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters of a fleet, as Ansible runs them. What they decide is in test__fleet.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.hapgent.agent.plugins.filter.fleet import FilterModule, agents_refuse, backends_refuse

if TYPE_CHECKING:
    from tests.unit.conftest import RunPlaybook

Result = dict[str, Any]


def told(item: str, **servers: bool) -> Result:
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
    return {"item": item, "instances": [{"state": {"status": status}, "since": None, "peers": None}]}


def test_refusals_of_several_load_balancers() -> None:
    asked = [told("lb1", web1=True, web2=True), told("lb2", web1=True, web2=False), told("lb3", web1=True)]
    assert [refusal.partition(",")[0] for refusal in backends_refuse(asked, ["web1"], 1)] == [
        "Of the 2 servers of web on lb2",
        "Of the 1 servers of web on lb3",
    ]


def test_refusal_of_agents() -> None:
    asked = [agent("web1", "UP"), agent("web2", "UP"), agent("web3", "DRAIN")]
    assert agents_refuse(asked, ["web1"], "30%") == []
    (refusal,) = agents_refuse(asked, ["web1"], "60%")
    assert refusal.startswith("Of the 3 servers of hapgent_fleet, 1 would stay in, and hapgent_min_up is 60%, here 2.")


@pytest.mark.parametrize("refuse", [agents_refuse, backends_refuse])
@pytest.mark.parametrize("asked", [[], [{**told("web1", web1=True), **agent("web1", "UP")}]], ids=["nobody", "one"])
def test_min_up_that_is_none(refuse: Any, asked: list[Result]) -> None:
    with pytest.raises(
        AnsibleFilterError, match=r"^hapgent_min_up is half: allowed is a number from 0 on, or 0% to 100%$"
    ):
        refuse(asked, ["web1"], "half")


# How each is called, as it is documented, and what comes of it.
CALLS: dict[str, tuple[str, object]] = {
    "agents_refuse": (
        "{{ [agent] | hapgent.agent.agents_refuse(['web1'], 1) }}",
        ["Of the 1 servers of hapgent_fleet, 0 would stay in, and hapgent_min_up is 1. Staying: none. Not in: none."],
    ),
    "backends_refuse": (
        "{{ [told] | hapgent.agent.backends_refuse(['web1'], '50%') }}",
        [
            "Of the 1 servers of web on lb1, 0 would stay in, and hapgent_min_up is 50%, here 1. Staying: none. "
            "Not in: none."
        ],
    ),
    "fleet_table": (
        "{{ ['web1'] | hapgent.agent.fleet_table(['web1'], [[]], [agent], [told]) }}",
        ["host  state  since  reason  told  lb1", f"{'web1  UP':34}UP"],
    ),
    "kept_out_by": (
        "{{ {'status': 'DRAIN'} | hapgent.agent.kept_out_by('release 4.2', [told], 'web1') }}",
        "its agent says DRAIN",
    ),
}


def test_with_ansible(run_playbook: RunPlaybook, tmp_path: Path) -> None:
    """By their full names, and of what Ansible has kept in variables."""
    assert set(CALLS) == set(FilterModule().filters())
    tasks = [
        {
            "ansible.builtin.assert": {"that": "got == wanted", "fail_msg": "{{ got }}"},
            "vars": {"got": got, "wanted": wanted},
        }
        for got, wanted in CALLS.values()
    ]
    refused = {"ansible.builtin.debug": {"msg": "{{ [told] | hapgent.agent.backends_refuse([], 'half') }}"}}
    play = {
        "hosts": "web1",
        "gather_facts": False,
        "vars": {"told": told("lb1", web1=True), "agent": agent("web1", "UP")},
        "tasks": [*tasks, refused],
    }
    (tmp_path / "playbook.yml").write_text(json.dumps([play]), encoding="utf-8")
    said = run_playbook("playbook.yml", succeeds=False)
    assert f"ok={len(CALLS)} " in said, said
    assert "hapgent_min_up is half: allowed is a number from 0 on, or 0% to 100%" in said
    assert "Traceback" not in said
