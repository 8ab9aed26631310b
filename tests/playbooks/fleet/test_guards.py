# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks refuse hosts, batch sizes and variables that cannot be intended before they change anything."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _who

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet, Played

CHANGING = ("drain", "undrain", "rolling")
DRAINED = {"status": "DRAIN", "reason": "disk"}
ROLLING = {"reason": "release 4.2", "hapgent_tasks": "tasks.yml"}


def play(fleet: Fleet, playbook: str, *arguments: str, succeeds: bool = False, **variables: Any) -> Played:
    """Run a playbook with these variables and those that the playbook rolling requires."""
    (fleet.project / "tasks.yml").write_text("[]", encoding="utf-8")
    return fleet.play(f"hapgent.agent.{playbook}", *arguments, succeeds=succeeds, variables={**ROLLING, **variables})


def assert_no_task_ran(fleet: Fleet, played: Played) -> None:
    assert played.records == [], played.output
    assert_nothing_changed(fleet)


def assert_nothing_changed(fleet: Fleet) -> None:
    assert list(fleet.states().values()) == [{"status": "UP"}] * 3


# Hosts and batches


@pytest.mark.parametrize("playbook", CHANGING)
def test_hosts_or_a_limit_are_required(fleet: Fleet, playbook: str) -> None:
    played = play(fleet, playbook)
    assert_no_task_ran(fleet, played)
    assert "hapgent_hosts" in played.output


@pytest.mark.parametrize(("playbook", "place"), list(zip(CHANGING, ("all", "web", "web1"), strict=True)))
def test_hosts_set_only_in_the_inventory_are_refused(fleet: Fleet, playbook: str, place: str) -> None:
    """Plays do not read their hosts from the inventory, so they would run on all hosts, even on load balancers."""
    groups = fleet.inventory["all"]
    variables = {"all": groups["vars"], "web": fleet.web_vars, "web1": fleet.host_vars("web1")}
    variables[place]["hapgent_hosts"] = "web1"
    assert_no_task_ran(fleet, play(fleet, playbook))


@pytest.mark.parametrize("playbook", ["drain", "status"])
def test_hosts_set_in_the_inventory_are_refused_despite_a_limit(fleet: Fleet, playbook: str) -> None:
    fleet.web_vars["hapgent_hosts"] = "web2"
    played = play(fleet, playbook, "--limit=web1")
    assert set(played.failures()) == {"web1"}
    assert "hapgent_hosts" in played.failures()["web1"]
    assert_nothing_changed(fleet)


def test_batch_size_set_in_the_inventory_is_refused(fleet: Fleet) -> None:
    fleet.inventory["all"]["vars"]["hapgent_serial"] = 2
    failures = play(fleet, "rolling", hapgent_hosts="web").failures()
    assert set(failures) == {"web1", "web2", "web3"}
    assert "hapgent_serial" in failures["web1"]
    assert_nothing_changed(fleet)


def test_handlers_set_in_the_inventory_are_refused(fleet: Fleet) -> None:
    """Ansible would not find them when the tasks notify them, and the first host would stay drained."""
    (fleet.project / "handlers.yml").write_text("[]")
    fleet.web_vars["hapgent_handlers"] = "handlers.yml"
    failures = play(fleet, "rolling", hapgent_hosts="web1").failures()
    assert "hapgent_handlers" in failures["web1"]
    assert_nothing_changed(fleet)


def test_command_line_takes_precedence_over_the_inventory(fleet: Fleet) -> None:
    (fleet.project / "handlers.yml").write_text("[]")
    fleet.web_vars.update(hapgent_hosts="all", hapgent_serial="no number", hapgent_handlers="nowhere.yml")
    fleet.web_vars["hapgent_load_balancers"] = "lb1"
    given: dict[str, Any] = {"hapgent_hosts": "web1", "hapgent_serial": 1, "hapgent_handlers": "handlers.yml"}
    play(fleet, "rolling", "--check", succeeds=True, **given)


@pytest.mark.parametrize(
    ("playbook", "hosts"), list(zip([*CHANGING, "status"], ["wbe", "web,!web", "web:!all", ["web9"]], strict=True))
)
def test_unknown_hosts_are_refused(fleet: Fleet, playbook: str, hosts: Any) -> None:
    assert_no_task_ran(fleet, play(fleet, playbook, hapgent_hosts=hosts))


def test_limit_without_any_of_the_hosts_is_refused(fleet: Fleet) -> None:
    assert_no_task_ran(fleet, play(fleet, "drain", "--limit=lb", hapgent_hosts="web"))


def test_invalid_batch_size_is_refused(fleet: Fleet) -> None:
    played = play(fleet, "rolling", hapgent_hosts="web1", hapgent_serial=[1, "half"])
    assert played.changed() == set()
    assert_nothing_changed(fleet)
    assert "hapgent_serial must be" in played.output


@pytest.mark.parametrize("hosts", [["web1", "web3"], "web1, web3"], ids=["a list", "text with spaces"])
def test_limit_narrows_down_the_hosts(fleet: Fleet, hosts: Any) -> None:
    played = play(fleet, "status", "--limit=!web3", succeeds=True, hapgent_hosts=hosts)
    assert {record["host"] for record in played.records} == {"web1"}


def test_syntax_check_needs_no_hosts(fleet: Fleet) -> None:
    playbooks = [f"hapgent.agent.{playbook}" for playbook in (*CHANGING, "status")]
    fleet.play(playbooks[0], *playbooks[1:], "--syntax-check", variables={"hapgent_hosts": "wbe"})


def test_importing_playbook_may_set_the_hosts(fleet: Fleet) -> None:
    site = [{"import_playbook": "hapgent.agent.drain", "vars": {"hapgent_hosts": "web1", **ROLLING}}]
    (fleet.project / "site.yml").write_text(json.dumps(site), encoding="utf-8")
    played = fleet.play("site.yml", "--check")
    assert {record["host"] for record in played.records} == {"web1"}


# Unknown variables and invalid values


@pytest.mark.parametrize("playbook", ["rolling", "status"])
def test_misspelt_inventory_variable_is_refused(fleet: Fleet, playbook: str) -> None:
    fleet.web_vars["hapgent_min_upp"] = "{{ this_is_undefined }}"
    played = play(fleet, playbook, "--limit=web1")
    assert "hapgent_min_up?" in played.failures()["web1"]
    assert_nothing_changed(fleet)


def test_misspelt_variable_on_the_command_line_is_refused(fleet: Fleet) -> None:
    played = play(fleet, "drain", "--limit=web1", hapgent_resaon="disk")
    assert "hapgent_reason?" in played.failures()["web1"]
    assert_nothing_changed(fleet)


def test_declared_own_variables_are_accepted(fleet: Fleet) -> None:
    fleet.web_vars["hapgent_color"] = "green"
    fleet.web_vars["hapgent_own_variables"] = ["hapgent_color"]
    play(fleet, "status", "--limit=web1", succeeds=True)


def test_misspelt_variable_of_the_role_is_refused(fleet: Fleet) -> None:
    role = {"hosts": "web1", "gather_facts": False, "roles": ["hapgent.agent.hapgent"]}
    (fleet.project / "site.yml").write_text(json.dumps([role]), encoding="utf-8")
    played = fleet.play("site.yml", succeeds=False, variables={"hapgent_prot": 9778})
    assert "hapgent_port?" in played.failures()["web1"]
    assert played.changed() == set()


def test_numbers_out_of_range_are_refused(fleet: Fleet) -> None:
    """The playbook fails before it queries a load balancer or an agent. test__fleet_preflight.py has all ranges."""
    values = {"web1": ("hapgent_min_up", "two"), "web2": ("hapgent_grace", -1), "web3": ("hapgent_server_port", 99999)}
    for host, (name, value) in values.items():
        fleet.host_vars(host)[name] = value
    played = play(fleet, "drain", hapgent_hosts="web")
    failures = played.failures()
    for host, (name, value) in values.items():
        for part in (name, str(value), "Nothing was changed"):
            assert part in failures[host]
    assert played.records[-1]["task"].startswith("Check ")
    assert_nothing_changed(fleet)


def test_number_of_health_checks_out_of_range_is_refused(fleet: Fleet) -> None:
    failure = play(fleet, "rolling", "--limit=web1", hapgent_health_tries=0).failures()["web1"]
    assert "hapgent_health_tries" in failure
    assert_nothing_changed(fleet)


@pytest.mark.parametrize("balancers", ["lb,lb9", "lb,!lb9"])
def test_load_balancer_that_is_not_in_the_inventory_is_refused(fleet: Fleet, balancers: str) -> None:
    """Ansible ignores unknown hosts in a pattern, so the playbook would not query that HAProxy."""
    played = play(fleet, "drain", "--limit=web1", hapgent_load_balancers=balancers)
    assert re.search(r"hapgent_load_balancers .* lb9\.", played.failures()["web1"])
    assert_nothing_changed(fleet)


def test_misspelt_variable_of_a_load_balancer_is_refused(fleet: Fleet) -> None:
    fleet.host_vars("lb1")["hapgent_haproxy_ca_pth"] = "/etc/ssl/lb.pem"
    played = play(fleet, "drain", "--limit=web1")
    assert "hapgent_haproxy_ca_path?" in played.failures()["web1"]
    assert_nothing_changed(fleet)
    fleet.host_vars("lb1")["hapgent_own_variables"] = "hapgent_haproxy_ca_pth"
    play(fleet, "status", "--limit=web1", succeeds=True)


# Reasons of several words


@pytest.mark.parametrize(
    "arguments",
    [["-e", "reason=kernel upgrade"], ["-e", 'reason="kernel" upgrade'], ["-e", "reason=x", "-e", "opts=fast now"]],
)
def test_reason_without_quotes_is_refused(fleet: Fleet, arguments: list[str]) -> None:
    played = fleet.play("hapgent.agent.drain", "--limit=web1", *arguments, succeeds=False)
    assert "Quote" in played.failures()["web1"]
    assert_nothing_changed(fleet)


@pytest.mark.parametrize("argument", ["reason='kernel upgrade'", '{"reason": "kernel upgrade"}'])
def test_quoted_reason_is_set(fleet: Fleet, argument: str) -> None:
    fleet.web_vars["hapgent_load_balancers"] = "lb1"
    played = fleet.play("hapgent.agent.drain", "--limit=web1", "--check", "-e", argument)
    (result,) = played.results("Change the agent's state and wait until every load balancer has received it")
    assert result["results"][0]["after"] == {"status": "DRAIN", "reason": "kernel upgrade", "by": _who.current()}


# Fleets without load balancers in the inventory


@pytest.mark.parametrize("arguments", [["--limit=web1"], ["-e", "hapgent_hosts=web1,web2"]])
def test_hosts_that_all_leave_do_not_count_as_a_fleet(fleet: Fleet, arguments: list[str]) -> None:
    fleet.web_vars.update(hapgent_load_balancers="", hapgent_server_port=1)
    fleet.play("hapgent.agent.drain", "--check", *arguments)


def test_hosts_of_a_rolling_update_count_as_the_fleet(fleet: Fleet) -> None:
    """Three hosts must stay in rotation, and only two would."""
    fleet.web_vars.update(hapgent_load_balancers="", hapgent_server_port=1)
    played = play(fleet, "rolling", "--check", hapgent_hosts="web", hapgent_min_up=3)
    assert set(played.failures()) == {"web1"}
