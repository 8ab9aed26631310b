# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role refuses before it changes a host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.hapgent.agent.plugins.filter._host_variable_problems import host_variable_problems
from ansible_collections.hapgent.agent.plugins.filter._state_folder_problem import state_folder_problem
from ansible_collections.hapgent.agent.plugins.plugin_utils._preflight import Shipped, parents, variable_problems

ROLE = Path(__file__).parents[4] / "roles" / "hapgent"
DEFAULTS: dict[str, Any] = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
SHIPPED = Shipped(DEFAULTS["hapgent_version"], DEFAULTS["hapgent_checksum"], "38b9")

# Variables


def problems(uninstall: bool = False, **variables: Any) -> list[str]:
    return variable_problems({**DEFAULTS, **variables}, SHIPPED, uninstall)


def test_defaults_are_right() -> None:
    assert problems() == []
    assert host_variable_problems(DEFAULTS, SHIPPED._asdict()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hapgent_port", 1),
        ("hapgent_port", "65535"),
        ("hapgent_settle", 0),
        ("hapgent_settle", "86400"),
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
    ],
)
def test_right_values(name: str, value: Any) -> None:
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
        ("hapgent_service", ["", "a/b", "a\n", "a b", "a%i", "-a", ".a", "a.", "a@", "..", "a..b", "h" * 81]),
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
        ("hapgent_version", ["0.3.1", 0.3, "0.3.2\n", "v0.3.2", "", None]),
        ("hapgent_checksum", ["0" * 64, 0, f"{SHIPPED.checksum}\n", SHIPPED.original_checksum, ""]),
    ],
)
def test_wrong_values(name: str, values: list[Any]) -> None:
    for value in values:
        found = problems(**{name: value})
        assert len(found) == 1, value
        assert found[0].startswith(name)
        # For a terminal, whatever the value is.
        assert found[0].isprintable()
        assert len(found[0]) < 400


def test_all_wrong_values_are_named() -> None:
    found = problems(hapgent_port=70000, hapgent_ip="localhost", hapgent_version="1")
    assert [problem.split()[0] for problem in found] == ["hapgent_port", "hapgent_ip", "hapgent_version"]


def test_says_what_is_wrong_and_what_is_right() -> None:
    assert problems(hapgent_port=70000) == ["hapgent_port must be a whole number from 1 to 65535, not 70000."]


def test_what_is_installed_is_not_looked_at_when_uninstalling() -> None:
    assert problems(uninstall=True, hapgent_version="1", hapgent_checksum="1") == []
    assert len(problems(uninstall=True, hapgent_service="..", hapgent_state_file="/")) == 2


# The way to the state file


def test_parents() -> None:
    assert parents("/etc/hapgent/state.json") == ["/", "/etc"]
    assert parents("/var/lib/hapgent/shop/state.json") == ["/", "/var", "/var/lib", "/var/lib/hapgent"]


AGENT, OTHER = 4711, 4712


class Way:
    """A real way to a state file below a folder of the test, as the role's command lists it."""

    def __init__(self, root: Path) -> None:
        self.shop = root / "lib" / "shop"
        self.state_file = self.shop / "state.json"
        self.shop.mkdir(parents=True)
        os.chown(self.shop, AGENT, AGENT)

    def problem(self, uid: int | None = AGENT, only_own_files: bool = False, uninstall: bool = False) -> str:
        ways = [*(self.shop.parents), self.shop, self.state_file]
        listed = subprocess.run(
            ["stat", "--format=%u %f %n %U", "--", *ways], text=True, stdout=subprocess.PIPE, check=False
        ).stdout
        # Above the folder of the test, others may write: that is this machine's, and not what is tested.
        above = "".join(f"0 41ed {path} root\n" for path in parents(str(self.shop)) if path != str(self.shop.parent))
        own = "".join(line for line in listed.splitlines(True) if f" {self.shop.parent}" in line)
        return state_folder_problem(above + own, str(self.state_file), uid, only_own_files, uninstall)


@pytest.fixture
def way(tmp_path: Path) -> Way:
    if os.geteuid() != 0:
        pytest.skip("only root can make folders of other users")
    return Way(tmp_path)


def test_parents_of_root_and_a_folder_of_the_agent(way: Way) -> None:
    assert way.problem() == ""
    way.state_file.touch()
    assert way.problem() == ""


@pytest.mark.parametrize("uninstall", [False, True])
def test_parent_of_another_user(way: Way, uninstall: bool) -> None:
    for uid in (AGENT, OTHER):
        os.chown(way.shop.parent, uid, 0)
        assert str(way.shop.parent) in way.problem(uninstall=uninstall)


@pytest.mark.parametrize("uninstall", [False, True])
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777, 0o2775])
def test_parent_that_others_can_write(way: Way, mode: int, uninstall: bool) -> None:
    way.shop.parent.chmod(mode)
    assert "chmod go-w" in way.problem(uninstall=uninstall)


@pytest.mark.parametrize("uninstall", [False, True])
def test_a_link_for_the_parent_the_folder(way: Way, tmp_path: Path, uninstall: bool) -> None:
    way.shop.rename(tmp_path / "x")
    way.shop.symlink_to("/etc")
    assert f"{way.shop} must not be a symbolic link" in way.problem(uninstall=uninstall)
    way.shop.unlink()
    way.shop.parent.rmdir()
    way.shop.parent.symlink_to("/etc")
    assert f"{way.shop.parent} must not be a symbolic link" in way.problem(uninstall=uninstall)


@pytest.mark.parametrize("uninstall", [False, True])
def test_a_file_for_the_folder(way: Way, uninstall: bool) -> None:
    way.shop.rmdir()
    way.shop.touch()
    assert "is not a folder" in way.problem(uninstall=uninstall)


@pytest.mark.parametrize("uninstall", [False, True])
def test_a_state_file_that_is_a_folder(way: Way, uninstall: bool) -> None:
    way.state_file.mkdir()
    assert "is a folder" in way.problem(uninstall=uninstall)


def test_a_state_file_that_is_no_file(way: Way) -> None:
    way.state_file.symlink_to("/etc/shadow")
    assert "must be a regular file" in way.problem()
    way.state_file.unlink()
    os.mkfifo(way.state_file)
    assert "must be a regular file" in way.problem()
    # The agent's user put it there, and does not prevent uninstalling with it.
    assert way.problem(uninstall=True) == ""


def test_a_folder_of_another_user_changes_hands_only_with_the_agents_files_alone(way: Way) -> None:
    os.chown(way.shop, OTHER, OTHER)
    for uid in (AGENT, None):
        assert "belongs to UNKNOWN" in way.problem(uid)
        assert "belongs to UNKNOWN" in way.problem(uid, only_own_files=True)
        assert way.problem(uid, uninstall=True) == ""
    way.state_file.touch()
    for uid in (AGENT, None):
        assert "belongs to UNKNOWN" in way.problem(uid)
        assert way.problem(uid, only_own_files=True) == ""


def test_what_does_not_exist_yet() -> None:
    listed = "0 41ed / root\n0 41ed /var root\n"
    assert state_folder_problem(listed, "/var/lib/hapgent/shop/state.json") == ""


def test_nothing_listed_is_not_nothing_wrong() -> None:
    assert "/etc/hapgent/state.json" in state_folder_problem("", "/etc/hapgent/state.json")


def test_names_of_users_with_spaces_and_escapes() -> None:
    listed = "0 41ed / root\n7 41ed /etc SHOP\\domain \x1b[2J users\n"
    problem = state_folder_problem(listed, "/etc/hapgent/state.json")
    assert "SHOP\\domain \\x1b[2J users" in problem
