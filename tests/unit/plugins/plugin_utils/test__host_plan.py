# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role creates what is missing, removes only what it has installed, and restarts only what has changed."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.plugin_utils._host_plan import (
    CREATED,
    CREATED_WITH_GROUP,
    leaving,
    listens,
    missing_accounts,
    removable_accounts,
    scripts,
    units,
)

# Accounts


def account(name: str, group: str, comment: str | None = "", members: list[str] | None = None, **more: Any) -> Any:
    found = {"name": name, "group": group, "comment": comment, "members": members}
    return {**found, "is_primary": True, "other_services": [], **more}


@pytest.mark.parametrize(
    ("accounts", "groups", "users"),
    [
        ([account("nobody", "nogroup", "nobody", [])], [], []),
        ([account("a", "a", None)], ["a"], [("a", "a", CREATED_WITH_GROUP)]),
        ([account("a", "b", None, [])], [], [("a", "b", CREATED)]),
        # Two users with one new group, and one user with two groups.
        (
            [account("a", "both", None), account("b", "both", None)],
            ["both"],
            [("a", "both", CREATED_WITH_GROUP), ("b", "both", CREATED)],
        ),
        ([account("a", "a", None), account("a", "b", None)], ["a", "b"], [("a", "a", CREATED_WITH_GROUP)]),
    ],
)
def test_missing_accounts(accounts: list[Any], groups: list[str], users: list[tuple[str, ...]]) -> None:
    found = missing_accounts({"accounts": accounts})
    assert found["groups"] == groups
    assert [(user["name"], user["group"], user["comment"]) for user in found["users"]] == users


@pytest.mark.parametrize(
    ("accounts", "groups", "users"),
    [
        ([account("nobody", "nogroup", "nobody", [])], [], []),
        ([account("a", "a", None)], [], []),
        ([account("a", "a", CREATED, [])], [], ["a"]),
        ([account("a", "a", CREATED_WITH_GROUP, [])], ["a"], ["a"]),
        ([account("a", "a", CREATED_WITH_GROUP, ["a"])], ["a"], ["a"]),
        ([account("a", "a", CREATED_WITH_GROUP, ["a", "root"])], [], ["a"]),
        ([account("a", "a", CREATED_WITH_GROUP, [], other_services=["shop"])], [], []),
        ([account("a", "g", CREATED_WITH_GROUP, ["b"]), account("b", "g", CREATED, ["b"])], ["g"], ["a", "b"]),
        # An instance has another group, which may have existed before.
        (
            [account("a", "a", CREATED_WITH_GROUP, []), account("a", "b", CREATED_WITH_GROUP, [], is_primary=False)],
            ["a"],
            ["a"],
        ),
    ],
)
def test_removable_accounts(accounts: list[Any], groups: list[str], users: list[str]) -> None:
    found = removable_accounts({"accounts": accounts})
    assert found["groups"] == groups
    assert [user["name"] for user in found["users"]] == users


# Instances that leave


def installed(service: str) -> dict[str, Any]:
    return {
        "service": service,
        "units": [f"{service}.socket", f"{service}.service"],
        "drain_units": [],
        "weight_units": [],
        "python": "/usr/bin/python3",
        "state_file": f"/etc/{service}/state.json",
    }


def instance(service: str, **values: Any) -> dict[str, Any]:
    return {
        "service": service,
        "ip": "0.0.0.0",
        "port": 9777,
        "state_file": f"/etc/{service}/state.json",
        "drain_with": "",
        "drain_unit": f"hapgent-drain@{service}.service",
        "weight_command": "",
        "weight_unit": f"hapgent-weight@{service}",
        **values,
    }


def unit(service: str = "hapgent", **values: object) -> dict[str, Any]:
    found = {
        "exists": True,
        "runs_agent": True,
        "units": [f"{service}.socket", f"{service}.service"],
        "listens": "0.0.0.0:9777 (Stream)",
        "socket_runs": True,
        "service_runs": True,
        "is_outdated": False,
        "drain_runs": False,
        "drain_enabled": False,
        "followed_exists": False,
        "followed_runs": False,
        "weight_runs": False,
    }
    return {"unit": {**found, **values}}


def test_only_instances_that_are_not_described_leave() -> None:
    host = {"installed": [installed("hapgent"), installed("hapgent@shop")], "instances": [unit()]}
    found: Any = leaving(host, [instance("hapgent")], uninstall=False)
    assert found == {
        "units": ["hapgent@shop.socket", "hapgent@shop.service"],
        "drain_units": [],
        "weights": [],
        "state_files": ["/etc/hapgent@shop/state.json"],
    }


@pytest.mark.parametrize(
    ("described", "uninstall", "removed"),
    [
        ([instance("hapgent", drain_with="shop.service")], False, []),
        ([instance("hapgent")], False, ["hapgent-drain@hapgent.service"]),
        ([], False, ["hapgent-drain@hapgent.service"]),
        ([instance("hapgent", drain_with="shop.service")], True, ["hapgent-drain@hapgent.service"]),
    ],
)
def test_units_that_drain_no_instance_any_more_leave(
    described: list[dict[str, Any]], uninstall: bool, removed: list[str]
) -> None:
    with_drain = {**installed("hapgent"), "drain_units": ["hapgent-drain@hapgent.service"]}
    host = {"installed": [with_drain], "instances": [unit() for _instance in described]}
    found = leaving(host, described, uninstall)
    assert found["drain_units"] == removed
    # They are never stopped.
    assert not set(found["units"]) & set(removed)


@pytest.mark.parametrize(
    ("described", "uninstall", "is_removed"),
    [
        ([instance("hapgent", weight_command="hapgent load")], False, False),
        ([instance("hapgent")], False, True),
        ([], False, True),
        ([instance("hapgent", weight_command="hapgent load")], True, True),
    ],
)
def test_units_that_set_no_weight_any_more_leave(
    described: list[dict[str, Any]], uninstall: bool, is_removed: bool
) -> None:
    units_here = ["hapgent-weight@hapgent.timer", "hapgent-weight@hapgent.service"]
    host = {
        "installed": [{**installed("hapgent"), "weight_units": units_here}, installed("hapgent@shop")],
        "instances": [unit() for _instance in described],
    }
    weight = {
        "service": "hapgent",
        "python": "/usr/bin/python3",
        "state_file": "/etc/hapgent/state.json",
        "units": units_here,
    }
    assert leaving(host, described, uninstall)["weights"] == ([weight] if is_removed else [])


def test_uninstalling_removes_all_sockets_first() -> None:
    host = {"installed": [installed("hapgent"), installed("hapgent@shop")], "instances": [unit(), unit("old")]}
    found = leaving(host, [instance("hapgent"), instance("old")], uninstall=True)
    assert found["units"] == [
        *(f"{service}.socket" for service in ("hapgent", "hapgent@shop", "old")),
        *(f"{service}.service" for service in ("hapgent", "hapgent@shop", "old")),
    ]
    assert found["state_files"] == [f"/etc/{service}/state.json" for service in ("hapgent", "hapgent@shop", "old")]


def test_uninstalling_removes_inner_folders_first() -> None:
    """Otherwise the folder of the default instance would not be empty when it is its turn."""
    inner = {**installed("hapgent@shop"), "state_file": "/etc/hapgent/shop/state.json"}
    host = {"installed": [installed("hapgent"), inner], "instances": [unit()]}
    found = leaving(host, [instance("hapgent")], uninstall=True)
    assert found["state_files"] == ["/etc/hapgent/shop/state.json", "/etc/hapgent/state.json"]


def test_uninstalling_twice_finds_the_state_file_again() -> None:
    host = {"installed": [], "instances": [unit(runs_agent=False, units=[])]}
    found: Any = leaving(host, [instance("hapgent")], uninstall=True)
    assert found == {"units": [], "drain_units": [], "weights": [], "state_files": ["/etc/hapgent/state.json"]}


# Units

NEW = unit(exists=False, runs_agent=False, listens="", socket_runs=False, service_runs=False, is_outdated=True)


def plan(*found: dict[str, Any], changed: str = "", new_program: bool = False, check_mode: bool = False) -> Any:
    described = [instance(f"i{number}") for number in range(len(found))]
    return units({"instances": found}, described, changed.split(), new_program, check_mode)


NOTHING: dict[str, Any] = {"reload": False, "stop": [], "start": [], "restart": [], "drain": [], "enable": []}


def test_nothing_is_done_if_everything_runs() -> None:
    assert plan(unit(), unit()) == NOTHING


def test_a_new_instance_restarts_no_other() -> None:
    assert plan(unit(), NEW, changed="i1") == {
        **NOTHING,
        "reload": True,
        "start": ["i1.socket"],
        "restart": ["i1.service"],
    }


def test_a_new_program_restarts_all_services_behind_open_sockets() -> None:
    assert plan(unit(), unit(), new_program=True) == {
        **NOTHING,
        "reload": True,
        "restart": ["i0.service", "i1.service"],
    }


def test_what_an_interrupted_run_has_left_is_restarted() -> None:
    assert plan(unit(is_outdated=True)) == {**NOTHING, "reload": True, "restart": ["i0.service"]}


def test_what_has_stopped_is_started() -> None:
    assert plan(unit(socket_runs=False), unit(service_runs=False)) == {**NOTHING, "start": ["i0.socket", "i1.service"]}


def test_addresses_that_are_exchanged_are_all_closed_first() -> None:
    elsewhere = unit(listens="0.0.0.0:9778 (Stream)")
    assert plan(elsewhere, elsewhere, changed="i0 i1") == {
        **NOTHING,
        "reload": True,
        "stop": ["i0.socket", "i0.service", "i1.socket", "i1.service"],
        "start": ["i0.socket", "i1.socket"],
        "restart": ["i0.service", "i1.service"],
    }


def test_check_mode_does_nothing_with_units_that_were_not_written() -> None:
    assert plan(NEW, unit(service_runs=False), changed="i0", check_mode=True) == {**NOTHING, "start": ["i1.service"]}


@pytest.mark.parametrize(
    ("found", "drain", "enable"),
    [
        ({"followed_runs": True}, True, False),
        ({"followed_runs": True, "drain_enabled": True}, True, False),
        ({"followed_runs": True, "drain_enabled": True, "drain_runs": True}, False, False),
        # Started beside a service that does not run, the unit would bring the server back.
        ({}, False, True),
        ({"drain_enabled": True}, False, False),
    ],
)
def test_units_that_drain_are_started_only_beside_a_running_service(
    found: dict[str, Any], drain: bool, enable: bool
) -> None:
    described = [instance("hapgent", drain_with="shop.service")]
    done = units({"instances": [unit(**found)]}, described, [], new_program=False, check_mode=False)
    name = ["hapgent-drain@hapgent.service"]
    assert done == {**NOTHING, "drain": name if drain else [], "enable": name if enable else []}
    # The same without a service to follow.
    assert (
        units({"instances": [unit(**found)]}, [instance("hapgent")], [], new_program=False, check_mode=False) == NOTHING
    )


@pytest.mark.parametrize(
    ("runs", "changed", "check_mode", "done"),
    [
        (True, [], False, {}),
        (False, [], False, {"start": ["hapgent-weight@hapgent.timer"]}),
        (True, ["hapgent-weight@hapgent"], False, {"reload": True, "restart": ["hapgent-weight@hapgent.timer"]}),
        (False, ["hapgent-weight@hapgent"], False, {"reload": True, "restart": ["hapgent-weight@hapgent.timer"]}),
        (False, ["hapgent-weight@hapgent"], True, {}),
    ],
)
def test_timers_that_set_weights(runs: bool, changed: list[str], check_mode: bool, done: dict[str, Any]) -> None:
    host = {"instances": [unit(weight_runs=runs)]}
    described = [instance("hapgent", weight_command="hapgent load")]
    assert units(host, described, changed, new_program=False, check_mode=check_mode) == {**NOTHING, **done}
    # The same without a command.
    assert units(host, [instance("hapgent")], [], new_program=False, check_mode=check_mode) == NOTHING


def script(**values: object) -> dict[str, Any]:
    found = {"exists": True, "listens": "0.0.0.0:9777", "service_runs": True, "is_outdated": False}
    return {"unit": {**found, **values}}


NEW_SCRIPT = script(exists=False, listens="", service_runs=False, is_outdated=True)


@pytest.mark.parametrize(
    ("found", "changed", "new_program", "check_mode", "done"),
    [
        ([script(), script()], "", False, False, {}),
        ([script(), NEW_SCRIPT], "i1", False, False, {"restart": ["i1"]}),
        ([script(), script()], "", True, False, {"restart": ["i0", "i1"]}),
        ([script(is_outdated=True)], "", False, False, {"restart": ["i0"]}),
        ([script(service_runs=False)], "", False, False, {"start": ["i0"]}),
        # Two that exchange their addresses are stopped first.
        (
            [script(listens="0.0.0.0:1"), script(listens="0.0.0.0:2")],
            "i0 i1",
            False,
            False,
            {"stop": ["i0", "i1"], "restart": ["i0", "i1"]},
        ),
        ([NEW_SCRIPT, script(service_runs=False)], "i0", False, True, {"start": ["i1"]}),
    ],
)
def test_init_scripts(
    found: list[dict[str, Any]], changed: str, new_program: bool, check_mode: bool, done: dict[str, list[str]]
) -> None:
    described = [instance(f"i{number}") for number in range(len(found))]
    plan = scripts({"instances": found}, described, changed.split(), new_program, check_mode)
    assert plan == {**NOTHING, **done}


@pytest.mark.parametrize(("ip", "address"), [("0.0.0.0", "0.0.0.0:1"), ("::1", "[::1]:1")])
def test_listens(ip: str, address: str) -> None:
    assert listens({"ip": ip, "port": 1}) == address
