# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role hapgent refuses wrong variables and unsafe state folders before it changes a host."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.hapgent.agent.plugins.filter._host import host_variable_problems as filtered
from ansible_collections.hapgent.agent.plugins.module_utils._host import path_to
from ansible_collections.hapgent.agent.plugins.plugin_utils._instances import instances
from ansible_collections.hapgent.agent.plugins.plugin_utils._preflight import (
    Shipped,
    host_problems,
    parents,
    variable_problems,
)

ROLE = Path(__file__).parents[4] / "roles" / "hapgent"
DEFAULTS: dict[str, Any] = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
SHIPPED = Shipped(DEFAULTS["hapgent_version"], DEFAULTS["hapgent_checksum"], "38b9")

# Variables


def problems(uninstall: bool = False, listed: Sequence[dict[str, Any]] = (), **variables: Any) -> list[str]:
    return variable_problems({**DEFAULTS, **variables}, listed, SHIPPED, uninstall)


def test_defaults_are_accepted() -> None:
    assert problems() == []
    assert filtered(DEFAULTS, [], SHIPPED._asdict()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hapgent_port", 1),
        ("hapgent_port", "65535"),
        ("hapgent_settle", 0),
        ("hapgent_settle", "86400"),
        ("hapgent_ramp", []),
        ("hapgent_ramp", [10, "50", 100]),
        ("hapgent_ramp", "10,50,100"),
        ("hapgent_ramp", 100),
        ("hapgent_ramp_seconds", "1"),
        ("hapgent_weight", None),
        ("hapgent_weight", "0"),
        ("hapgent_weight", 255),
        ("hapgent_maxconn", None),
        ("hapgent_maxconn", 65535),
        ("hapgent_user", "www-data"),
        ("hapgent_user", "_apt"),
        ("hapgent_user", "ada.lovelace"),
        ("hapgent_group", "nogroup"),
        ("hapgent_ip", "::1"),
        ("hapgent_ip", "::ffff:192.0.2.1"),
        ("hapgent_ip", "192.0.2.1"),
        ("hapgent_service", "a"),
        ("hapgent_service", 7),
        ("hapgent_service", "hapgent-api"),
        ("hapgent_service", "hapgent@api.v2"),
        ("hapgent_service", "h" * 80),
        ("hapgent_python", "/usr/local/bin/python3.13"),
        ("hapgent_python", "/homes/python3"),
        ("hapgent_state_file", "/var/lib/hapgent/shop/state.json"),
        ("hapgent_state_file", "/srv/a/b"),
        ("hapgent_server_port", 8080),
        ("hapgent_grace", "0"),
        ("hapgent_health_url", "http://[::1]:8080/health?full=1&a=b"),
        ("hapgent_weight_command", "/usr/local/bin/weight --queue=mail,web -v 1.5 a@b"),
        ("hapgent_weight_min", 0),
        ("hapgent_weight_smoothing", "1"),
    ],
)
def test_valid_values_are_accepted(name: str, value: Any) -> None:
    assert problems(**{name: value}) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *(
            (
                name,
                [
                    -1,
                    "-1",
                    maximum + 1,
                    f"{maximum + 1}",
                    "",
                    " 1",
                    "1 ",
                    "1\n",
                    "+1",
                    "01",
                    "1_0",
                    "0x1",
                    "1e1",
                    "1.0",
                ],
            )
            for name, maximum in [
                ("hapgent_port", 65535),
                ("hapgent_settle", 86400),
                ("hapgent_weight", 255),
                ("hapgent_maxconn", 65535),
            ]
        ),
        *(
            (name, [1.0, 1.5, float("nan"), float("inf"), True, False, [], "9" * 5000, "\u0661"])
            for name in ("hapgent_port", "hapgent_settle", "hapgent_weight", "hapgent_maxconn")
        ),
        ("hapgent_port", [0, "0", None]),
        ("hapgent_settle", [None]),
        *(
            (name, ["", "a\n", "a b", "a%i", "-a", "1000", 1000, ".a", "a..b", "a:b", "a/b", "a" * 32, "\u00e9", None])
            for name in ("hapgent_user", "hapgent_group")
        ),
        ("hapgent_ip", ["", "localhost", "10.0.0.300", "10.0.0", 10.1, "0.0.0.0\n", "::1\n", "[::1]", "fe80::1%eth0"]),
        ("hapgent_ip", ["::1%n", "0.0.0.0:80", "1.2.3.4/8", ":", ":::", "1:2", "01.2.3.4"]),
        ("hapgent_service", ["a/b", "a\n", "a b", "a%i", "-a", ".a", "a.", "a@", "..", "a..b", "h" * 81]),
        ("hapgent_service", ["hapgent.service", "hapgent.socket", "*", "hapgent\nUser=root"]),
        *(
            (name, [f"{path}\n", f"{path} ", f"{path}/", f"/..{path}", f"/etc/..{path}", f"/etc/.{path}", f"/{path}"])
            for name, path in [
                ("hapgent_python", "/usr/bin/python3"),
                ("hapgent_state_file", "/etc/hapgent/state.json"),
            ]
        ),
        *(
            (name, ["", "a/b/c", "/a/b/%i", "/a/b/c d", "/a/b/c;d", "/a/b/$c", "/a/b/'c'", "/a/b/\u00e9", "~/a/b/c"])
            for name in ("hapgent_python", "hapgent_state_file")
        ),
        *(
            (
                name,
                [
                    f"{folder}/hapgent/it"
                    for folder in ("/tmp", "/var/tmp", "/run", "/var/run", "/home", "/root", "/proc")
                ],
            )
            for name in ("hapgent_python", "hapgent_state_file")
        ),
        ("hapgent_state_file", ["/state.json", "/etc/state.json"]),
        (
            "hapgent_ramp",
            [None, [0, 100], [10, 50], [50, 10, 100], [True, 100], [10.0, 100], "10, 100", {"a": 1}, [[]]],
        ),
        ("hapgent_ramp_seconds", [0, 86401, None, "1.5"]),
        ("hapgent_grace", [-1, 86401, None, "1.5"]),
        ("hapgent_server_port", [0, 65536, "", "http"]),
        (
            "hapgent_drain_with",
            ["shop", "shop.socket", "a b.service", "%i.service", "a\n.service", "../x.service", "$a.service"],
        ),
        (
            "hapgent_health_url",
            ["shop:8080", "http://a/%20", "http://a/ b", 'http://a/"', "http://a\n", "http://$a/", "file:///x"],
        ),
        ("hapgent_weight_command", ["$HOME/x", "a; b", "a | b", 'a "b"', "a 'b'", "%h/x", "a\nb", "-x", " a", "../a"]),
        *((f"hapgent_weight_{name}", [0, None, 86401]) for name in ("interval", "fallback")),
        *((f"hapgent_weight_{name}", [0, 256, "1.5"]) for name in ("max", "step", "smoothing")),
        ("hapgent_weight_min", [-1, 256]),
        ("hapgent_version", ["0.3.1", 0.3, "0.3.2\n", "v0.3.2", "", None]),
        ("hapgent_checksum", ["0" * 64, 0, f"{SHIPPED.checksum}\n", SHIPPED.original_checksum, ""]),
    ],
)
def test_invalid_values_are_refused(name: str, values: list[Any]) -> None:
    for value in values:
        found = problems(**{name: value})
        assert len(found) == 1, value
        assert found[0].startswith(name)
        # The message must be safe to print, whatever the value is.
        assert found[0].isprintable()
        assert len(found[0]) < 400


def test_all_invalid_values_are_named() -> None:
    found = problems(hapgent_port=70000, hapgent_ip="localhost", hapgent_version="1")
    assert [problem.split()[0] for problem in found] == ["hapgent_port", "hapgent_ip", "hapgent_version"]


def test_wording_of_a_problem() -> None:
    rule = "must be a whole number from 1 to 65535, not 70000."
    assert problems(hapgent_port=70000) == [f"hapgent_port {rule}"]
    assert problems(listed=[{"name": "shop", "port": 70000}]) == [f"hapgent_instances: port of shop {rule}"]


def test_the_port_of_a_service_with_which_the_server_is_drained_must_be_known() -> None:
    (found,) = problems(hapgent_drain_with="shop.service")
    assert found.startswith("hapgent_server_port must be the port of shop.service")
    assert problems(hapgent_drain_with="shop.service", hapgent_server_port=8080) == []
    (found,) = problems(listed=[{"name": "shop", "port": 1, "drain_with": "shop.service"}])
    assert found.startswith("hapgent_instances: server_port of shop")


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"min": 51, "max": "50"}, "hapgent_weight_min must not be higher than hapgent_weight_max"),
        ({"interval": 60, "fallback": 59}, "hapgent_weight_fallback must be at least hapgent_weight_interval"),
        ({"min": 50, "max": 50, "interval": 60, "fallback": 60}, ""),
    ],
)
def test_settings_of_weights_must_not_contradict_each_other(variables: dict[str, Any], named: str) -> None:
    settings = {f"hapgent_weight_{key}": value for key, value in variables.items()}
    found = problems(**settings, hapgent_weight_command="hapgent load")
    assert [problem.startswith(named) for problem in found] == ([True] if named else [])
    # Without a command, they have no effect.
    assert problems(**settings) == []


# Instances


@pytest.mark.parametrize("name", ["shop", 7, "a", "v1.2", "hapgent-api", "n" * 64])
def test_names_of_instances(name: Any) -> None:
    assert problems(listed=[{"name": name, "port": 1}]) == []


@pytest.mark.parametrize(
    "name",
    ["", "hapgent", "all", "a/b", "a b", "a@b", "a.service", "a.", "..", "a..b", "-a", "n" * 65, "a\n", "\x1b[2J"],
)
def test_names_that_instances_cannot_have(name: str) -> None:
    (found,) = problems(listed=[{"name": name, "port": 1}])
    assert found.startswith("hapgent_instances: name")
    assert found.isprintable()


def test_each_value_of_an_instance_is_checked_once() -> None:
    listed = [
        {"name": "shop", "settle": "1.0", "user": "a b", "port": 1},
        {"name": "api", "ip": "localhost", "port": 2},
    ]
    found = problems(listed=listed, hapgent_weight=256)
    assert [problem.partition(" must ")[0] for problem in found] == [
        "hapgent_weight",
        "hapgent_instances: settle of shop",
        "hapgent_instances: user of shop",
        "hapgent_instances: ip of api",
    ]


def test_conflicts_of_instances_are_refused() -> None:
    assert len(problems(listed=[{"name": "shop"}])) == 1
    assert problems(listed=[{"name": "shop"}], hapgent_service="") == []
    assert problems(listed=[{"name": "shop"}], hapgent_service=None) == []


def test_something_must_be_installed() -> None:
    assert "hapgent_uninstall=true" in problems(hapgent_service="")[0]
    assert problems(uninstall=True, hapgent_service="") == []


def test_version_and_checksum_do_not_matter_when_uninstalling() -> None:
    assert problems(uninstall=True, hapgent_version="1", hapgent_checksum="1") == []
    assert len(problems(uninstall=True, hapgent_service="..", hapgent_state_file="/")) == 2


# The host


def test_parents() -> None:
    assert parents("/etc/hapgent/state.json") == ["/", "/etc"]
    assert parents("/var/lib/hapgent/shop/state.json") == ["/", "/var", "/var/lib", "/var/lib/hapgent"]


AGENT, OTHER = 4711, 4712
VARIABLES = {**DEFAULTS, "hapgent_user": "shop", "hapgent_group": "shop"}
UNIT = {"exists": False, "runs_agent": False, "followed_exists": False}
ROOT_FOLDER = {"uid": 0, "owner": "root", "mode": stat.S_IFDIR | 0o755}
HOST: dict[str, Any] = {
    "user": {"id": AGENT, "comment": ""},
    "group": {"members": []},
    "python_version": "3.9",
    "path": [{"path": path, **ROOT_FOLDER} for path in ("/", "/etc")],
    "has_instances": False,
    "has_other_files": False,
    "unit": UNIT,
}


def problems_of(
    host: dict[str, Any] | None = None,
    uninstall: bool = False,
    manager: str = "systemd",
    wanted: str = "auto",
    has_cron: bool = True,
    **variables: Any,
) -> list[str]:
    """The problems of a host with the default instance."""
    values = {**VARIABLES, **variables}
    found = {"service_manager": manager, "has_cron": has_cron, "instances": [{**HOST, **(host or {})}]}
    return host_problems(found, instances(values, []), values["hapgent_manage_user"], uninstall, wanted)


def host_problem(host: dict[str, Any] | None = None, uninstall: bool = False, **variables: Any) -> str:
    """The only problem of this host, or '' if it has none."""
    found = problems_of(host, uninstall, **variables)
    assert len(found) < 2
    return "".join(found)


def test_a_new_host_has_no_problem() -> None:
    assert host_problem() == ""


@pytest.mark.parametrize("version", ["", "2.7", "3.8"])
def test_a_python_that_is_too_old(version: str) -> None:
    assert host_problem({"python_version": version}).startswith("hapgent_python must be")
    assert host_problem({"python_version": version}, uninstall=True) == ""


@pytest.mark.parametrize("version", ["3.9", "3.10", "4.0"])
def test_a_python_that_is_new_enough(version: str) -> None:
    assert host_problem({"python_version": version}) == ""


@pytest.mark.parametrize(
    ("user", "group", "manages", "is_right"),
    [
        (True, True, False, True),
        (True, True, True, True),
        (False, True, True, True),
        (False, False, True, True),
        (False, False, False, False),
        (False, True, False, False),
        (True, False, False, False),
        # Uninstalling could not recognize a group that was created for an existing user.
        (True, False, True, False),
    ],
)
def test_accounts_exist_or_are_created_together(user: bool, group: bool, manages: bool, is_right: bool) -> None:
    host = {"user": HOST["user"] if user else None, "group": HOST["group"] if group else None}
    problem = host_problem(host, hapgent_manage_user=manages)
    assert (problem == "") == is_right
    assert is_right or "hapgent_manage_user=true" in problem
    assert host_problem(host, hapgent_manage_user=manages, uninstall=True) == ""


@pytest.mark.parametrize("uninstall", [False, True])
def test_a_service_of_something_else(uninstall: bool) -> None:
    for runs_agent in (False, True):
        problem = host_problem({"unit": {**UNIT, "exists": True, "runs_agent": runs_agent}}, uninstall)
        assert problem.startswith("hapgent_service must not be") != runs_agent


@pytest.mark.parametrize("uninstall", [False, True])
def test_a_host_without_systemd(uninstall: bool) -> None:
    problem = host_problem({"unit": {}}, uninstall, manager="runit\x1b[2J")
    assert "runs runit\\x1b[2J." in problem


@pytest.mark.parametrize("uninstall", [False, True])
@pytest.mark.parametrize(
    ("manager", "wanted", "fits"),
    [
        ("systemd", "auto", True),
        ("systemd", "systemd", True),
        ("systemd", "sysv", False),
        ("sysv", "auto", True),
        ("sysv", "sysv", True),
        ("sysv", "systemd", False),
    ],
)
def test_the_service_manager_must_be_that_of_the_host(manager: str, wanted: str, fits: bool, uninstall: bool) -> None:
    problem = host_problem(None, uninstall, manager=manager, wanted=wanted)
    assert problem.startswith(f"hapgent_service_manager must be {manager},") != fits
    assert (problem == "") == fits


def test_draining_with_a_service_needs_systemd() -> None:
    drains: dict[str, Any] = {"hapgent_drain_with": "shop.service", "hapgent_server_port": 8080}
    assert host_problem(manager="sysv", **drains).startswith("hapgent_drain_with needs systemd")
    assert host_problem(uninstall=True, manager="sysv", **drains) == ""


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, ""),
        ({"interval": 60, "fallback": "60"}, ""),
        ({"interval": "61"}, "hapgent_weight_interval must be at most 60"),
        ({"fallback": 59}, "hapgent_weight_fallback must be at least 60"),
        ({"has_cron": False}, "hapgent_weight_command needs cron"),
    ],
)
def test_without_systemd_cron_sets_weights(variables: dict[str, Any], named: str) -> None:
    has_cron = variables.pop("has_cron", True)
    settings: dict[str, Any] = {f"hapgent_weight_{key}": value for key, value in variables.items()}
    settings["hapgent_weight_command"] = "hapgent load"
    problem = host_problem(manager="sysv", has_cron=has_cron, **settings)
    assert problem.startswith(named) if named else problem == ""
    # It does not matter to systemd, to uninstalling, and without a command.
    assert host_problem(has_cron=has_cron, **settings) == ""
    assert host_problem(uninstall=True, manager="sysv", has_cron=has_cron, **settings) == ""
    assert host_problem(manager="sysv", has_cron=has_cron, **{**settings, "hapgent_weight_command": ""}) == ""


def test_all_problems_of_a_host_are_reported() -> None:
    assert len(problems_of({"python_version": "", "user": None, "unit": {**UNIT, "exists": True}})) == 3


def test_the_service_with_which_the_server_is_drained_must_exist() -> None:
    drains: dict[str, Any] = {"hapgent_drain_with": "shop.service", "hapgent_server_port": 8080}
    assert "systemd has no shop.service" in host_problem(**drains)
    assert host_problem(uninstall=True, **drains) == ""
    assert host_problem({"unit": {**UNIT, "followed_exists": True}}, **drains) == ""


def test_problems_of_instances_name_them() -> None:
    described = instances(VARIABLES, [{"name": "shop", "user": "none"}, {"name": "api"}])
    found = {"service_manager": "systemd", "instances": [HOST, {**HOST, "user": None}, {**HOST, "python_version": ""}]}
    problems = host_problems(found, described, manage_user=False, uninstall=False)
    assert [problem.partition(" must ")[0] for problem in problems] == [
        "hapgent_instances: user of shop and hapgent_instances: group of shop",
        "hapgent_instances: python of api",
    ]


# The path to the state file


class StatePath:
    """A real path to a state file below a folder of the test."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "lib" / "shop"
        self.state_file = self.folder / "state.json"
        self.folder.mkdir(parents=True)
        os.chown(self.folder, AGENT, AGENT)

    def problem(
        self,
        uid: int | None = AGENT,
        has_other_files: bool = True,
        uninstall: bool = False,
        has_instances: bool = False,
    ) -> str:
        found = path_to(str(self.state_file), time.monotonic() + 10)
        # The folders above the folder of the test belong to this machine, where other users may write to them.
        above = parents(str(self.folder))[:-1]
        path = [{**component, **ROOT_FOLDER} if component["path"] in above else component for component in found]
        host = {
            "path": path,
            "user": uid and {"id": uid},
            "has_other_files": has_other_files,
            "has_instances": has_instances,
        }
        return host_problem(host, uninstall, hapgent_state_file=str(self.state_file), hapgent_manage_user=True)


@pytest.fixture
def path(tmp_path: Path) -> StatePath:
    if os.geteuid() != 0:
        pytest.skip("only root can create folders of other users")
    return StatePath(tmp_path)


def test_parents_of_root_and_a_folder_of_the_agent(path: StatePath) -> None:
    assert path.problem() == ""
    path.state_file.touch()
    assert path.problem() == ""


@pytest.mark.parametrize("uninstall", [False, True])
def test_parent_of_another_user(path: StatePath, uninstall: bool) -> None:
    os.chown(path.folder.parent, OTHER, 0)
    assert str(path.folder.parent) in path.problem(uninstall=uninstall)
    # In a folder of the agent's own user, the role has only the rights of that user.
    os.chown(path.folder.parent, AGENT, 0)
    assert path.problem(uninstall=uninstall) == ""
    assert str(path.folder.parent) in path.problem(None, uninstall=uninstall)


@pytest.mark.parametrize("uninstall", [False, True])
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777, 0o2775])
def test_parent_to_which_others_can_write(path: StatePath, mode: int, uninstall: bool) -> None:
    path.folder.parent.chmod(mode)
    assert "chmod go-w" in path.problem(uninstall=uninstall)


@pytest.mark.parametrize("uninstall", [False, True])
def test_a_link_instead_of_the_folder_or_its_parent(path: StatePath, tmp_path: Path, uninstall: bool) -> None:
    path.folder.rename(tmp_path / "x")
    path.folder.symlink_to("/etc")
    assert f"{path.folder} must not be a symbolic link" in path.problem(uninstall=uninstall)
    path.folder.unlink()
    path.folder.parent.rmdir()
    path.folder.parent.symlink_to("/etc")
    assert f"{path.folder.parent} must not be a symbolic link" in path.problem(uninstall=uninstall)


@pytest.mark.parametrize("uninstall", [False, True])
def test_a_file_instead_of_the_folder(path: StatePath, uninstall: bool) -> None:
    path.folder.rmdir()
    path.folder.touch()
    assert "is not a folder" in path.problem(uninstall=uninstall)


@pytest.mark.parametrize("uninstall", [False, True])
def test_a_folder_instead_of_the_state_file(path: StatePath, uninstall: bool) -> None:
    path.state_file.mkdir()
    assert "is a folder" in path.problem(uninstall=uninstall)


def test_a_state_file_that_is_not_a_regular_file(path: StatePath) -> None:
    path.state_file.symlink_to("/etc/shadow")
    assert "and it must be a regular file" in path.problem()
    path.state_file.unlink()
    os.mkfifo(path.state_file)
    assert "must be a regular file" in path.problem()
    # The agent's user cannot prevent uninstalling with such a file.
    assert path.problem(uninstall=True) == ""


def test_a_folder_of_another_user_is_taken_over_only_with_nothing_but_the_agents_files(path: StatePath) -> None:
    os.chown(path.folder, OTHER, OTHER)
    for uid in (AGENT, None):
        assert f"belongs to user {OTHER}. It must belong to shop," in path.problem(uid)
        assert f"belongs to user {OTHER}" in path.problem(uid, has_other_files=False)
        assert path.problem(uid, uninstall=True) == ""
    for uid in (AGENT, None):
        assert path.problem(uid, has_other_files=False, has_instances=True) == ""
    path.state_file.touch()
    for uid in (AGENT, None):
        assert f"belongs to user {OTHER}" in path.problem(uid)
        assert path.problem(uid, has_other_files=False) == ""


def test_names_of_users_with_spaces_and_escapes() -> None:
    etc = {"path": "/etc", "uid": 7, "owner": "SHOP\\domain \x1b[2J users", "mode": stat.S_IFDIR | 0o755}
    assert "SHOP\\domain \\x1b[2J users" in host_problem({"path": [HOST["path"][0], etc]})
