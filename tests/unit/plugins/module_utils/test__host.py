# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role reads accounts, files and services of a host without trusting what another user can change."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from pathlib import Path

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _host

OTHER_USER = 4711
PROGRAM = "/usr/local/bin/hapgent"


def soon(seconds: float = 15) -> float:
    return time.monotonic() + seconds


# Accounts


def test_accounts() -> None:
    assert _host.user("root") == {"id": 0, "comment": "root"}
    assert _host.user("no-such-user") is None
    assert _host.group("root") == {"members": []}
    assert _host.group("no-such-group") is None


def test_accounts_are_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases such as LDAP may contain anything."""
    hostile = "x\x1b[2J\udce4"
    entry = pwd.struct_passwd((hostile, "x", 7, 7, hostile, "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: entry)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: entry)
    monkeypatch.setattr(grp, "getgrnam", lambda _name: grp.struct_group(("x", "x", 7, [hostile])))
    user, group, root = _host.user("x"), _host.group("x"), _host.path_to("/etc")[0]
    assert user
    assert group
    for text in (user["comment"], group["members"][0], root["owner"]):
        assert text == "x\\x1b[2J\\udce4"


# Python


def program(folder: Path, script: str) -> str:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    # Programs run as an unprivileged user, who cannot enter the folders of tests.
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o011)
    return str(path)


def test_version_of_python() -> None:
    assert (
        _host.python_version("/usr/bin/python3", soon())
        == os.popen("/usr/bin/python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").read().strip()
    )


@pytest.mark.parametrize(
    "script",
    [
        "echo 3.11x",
        "echo 3.11; exit 1; echo",
        "echo",
        "echo 3",
        "printf '\\033[2J3.11\\n'",
        "exit 1",
        "yes 3.11",
        "kill -STOP $$",
        # The grandchild keeps the output open.
        "sleep 100 & sleep 0.1",
    ],
)
def test_other_programs_are_not_python(tmp_path: Path, script: str) -> None:
    begin = time.monotonic()
    version = _host.python_version(program(tmp_path, script), soon(1))
    assert version in ("", "3.11")
    assert (version == "3.11") == script.startswith("echo 3.11;")
    assert time.monotonic() - begin < 10


def test_a_missing_program_is_not_python(tmp_path: Path) -> None:
    assert _host.python_version(str(tmp_path / "missing"), soon()) == ""
    assert _host.python_version(str(tmp_path), soon()) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")
def test_the_program_runs_without_rights(tmp_path: Path) -> None:
    # Its exit status is not reported, so it writes its rights to a file that any user may write.
    found = tmp_path / "found"
    found.touch()
    found.chmod(0o666)
    _host.python_version(program(tmp_path, f"id --user >{found}; id --groups >>{found}; env >>{found}; echo"), soon())
    lines = found.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["65534", "65534"]
    assert not any(line.startswith(("HOME=", "SUDO_", "ANSIBLE_")) for line in lines)


def test_a_program_that_does_not_respond_is_ended_with_its_children(tmp_path: Path) -> None:
    mark = f"{os.getpid()}.5"
    assert _host.python_version(program(tmp_path, f"sleep {mark} & sleep {mark}"), soon(0.5)) == ""
    deadline = soon()
    while any(mark.encode() in command for command in running()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(mark.encode() in command for command in running())


def running() -> list[bytes]:
    commands = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(process.read_bytes())
        except OSError:
            continue
    return commands


# Files


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    folder = tmp_path / "agent"
    folder.mkdir()
    return folder / "state.json"


def test_path_names_each_component_without_following_links(state_file: Path) -> None:
    state_file.symlink_to("/etc/passwd")
    found = _host.path_to(str(state_file))
    assert [component["path"] for component in found] == [*map(str, reversed(state_file.parents)), str(state_file)]
    assert stat.S_ISLNK(found[-1]["mode"])
    assert stat.S_ISDIR(found[-2]["mode"])
    assert (found[0]["uid"], found[0]["owner"]) == (0, "root")


def test_path_ends_before_what_does_not_exist(state_file: Path) -> None:
    assert _host.path_to(str(state_file))[-1]["path"] == str(state_file.parent)
    assert _host.path_to("/no/such/file")[-1]["path"] == "/"
    state_file.touch()
    assert _host.path_to(str(state_file / "below"))[-1]["path"] == str(state_file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
def test_owner_without_a_name(state_file: Path) -> None:
    os.chown(state_file.parent, OTHER_USER, OTHER_USER)
    assert _host.path_to(str(state_file))[-1]["owner"] == f"user {OTHER_USER}"


def test_files_of_the_agent(state_file: Path) -> None:
    assert _host.own_files(str(state_file)) == []
    assert not _host.has_other_files(str(state_file), soon())
    names = [f"{state_file}{suffix}" for suffix in _host.OWN_FILES]
    for name in names:
        Path(name).touch()
    assert _host.own_files(str(state_file)) == names
    assert not _host.has_other_files(str(state_file), soon())


def test_a_folder_that_does_not_exist_has_no_files() -> None:
    assert _host.own_files("/etc/no-such-folder/state.json") == []
    assert not _host.has_other_files("/etc/no-such-folder/state.json", soon())


@pytest.mark.parametrize("name", ["kept", "state.json.bak", ".hidden", "state.json.lock"])
def test_anything_else_is_another_file(state_file: Path, name: str) -> None:
    state_file.touch()
    (state_file.parent / name).symlink_to("/etc/passwd")
    assert _host.own_files(str(state_file)) == [str(state_file)]
    assert _host.has_other_files(str(state_file), soon())


def test_folders_and_special_files_are_not_the_agents(state_file: Path) -> None:
    os.mkfifo(state_file)
    Path(f"{state_file}.tmp").mkdir()
    assert _host.own_files(str(state_file)) == []
    assert _host.has_other_files(str(state_file), soon())


def test_a_link_for_the_folder_is_not_entered(state_file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(state_file.parent)
    assert _host.has_other_files(str(tmp_path / "link" / "state.json"), soon())


# Services


class Systemd:
    """The answers of systemctl on a host with the service hapgent."""

    def __init__(self, units: str, listens: str = "", started: str = "") -> None:
        self._units = units
        self._properties = {"Listen": listens, "ExecMainStartTimestamp": started}

    def __call__(self, command: list[str]) -> tuple[int, str, str]:
        if command[:2] == ["systemctl", "cat"]:
            return (0 if self._units else 1), self._units, ""
        assert command[:3] == ["env", "TZ=UTC", "LC_ALL=C"]
        (name,) = [word.partition("=")[2] for word in command if word.startswith("--property=")]
        return 0, f"{self._properties[name]}\n", ""


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which administrators configure units."""
    folder = tmp_path / "units"
    folder.mkdir()
    monkeypatch.setattr(_host, "UNITS", str(folder))
    return folder


def test_no_service() -> None:
    assert _host.service("no-such", "/no/such/program", Systemd("")) == {
        "exists": False,
        "runs_agent": False,
        "units": [],
        "listens": "",
        "is_outdated": False,
    }


def test_the_service_of_the_agent(units: Path) -> None:
    for kind in ("socket", "service"):
        (units / f"hapgent.{kind}").touch()
    tomorrow = time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() + 86400))
    systemd = Systemd(f"ExecStart=/usr/bin/python3 {PROGRAM}\n", "0.0.0.0:9777 (Stream)", tomorrow)
    assert _host.service("hapgent", PROGRAM, systemd) == {
        "exists": True,
        "runs_agent": True,
        "units": ["hapgent.socket", "hapgent.service"],
        "listens": "0.0.0.0:9777 (Stream)",
        "is_outdated": False,
    }


def test_a_service_of_something_else(units: Path) -> None:
    (units / "haproxy.service").touch()
    found = _host.service("haproxy", PROGRAM, Systemd("ExecStart=/usr/sbin/haproxy\n"))
    assert (found["exists"], found["runs_agent"], found["units"]) == (True, False, ["haproxy.service"])


@pytest.mark.parametrize("written", ["program", "units/hapgent.socket", "units/hapgent.service"])
@pytest.mark.parametrize(("offset", "is_outdated"), [(-1, False), (0, False), (0.999, False), (2, True)])
def test_a_service_is_outdated_if_a_file_is_newer(
    tmp_path: Path, units: Path, written: str, offset: float, is_outdated: bool
) -> None:
    start = 1767268800
    for name in ("program", "units/hapgent.socket", "units/hapgent.service"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 1000))
    os.utime(tmp_path / written, (0, start + offset))
    systemd = Systemd("ExecStart=x\n", started="Thu 2026-01-01 12:00:00 UTC")
    assert _host.service("hapgent", str(tmp_path / "program"), systemd)["is_outdated"] == is_outdated
    assert units.exists()


@pytest.mark.parametrize("printed", ["", "n/a", "Thu 2026-01-01", "\u00e4" * 30])
def test_a_service_that_never_started_has_no_start_time(printed: str) -> None:
    assert _host.start_time(printed) == 0


def test_other_services(units: Path) -> None:
    for name, text in {
        "hapgent.service": f"ExecStart={PROGRAM}",
        "shop.service": f"[Service]\nExecStart=/usr/bin/python3 -I -S {PROGRAM}\nUser=shop\n",
        "other.service": f"ExecStart={PROGRAM}-other\nUser=shopper\n",
        "group.service": "User=x\xff\nGroup=shops\n",
        "shop.socket": f"ExecStart={PROGRAM}\n",
    }.items():
        (units / name).write_text(text, encoding="latin-1")
    (units / "link.service").symlink_to(units / "shop.service")
    (units / "folder.service").mkdir()
    assert _host.other_services("hapgent", rf"ExecStart=(.* )?{PROGRAM}") == ["shop"]
    assert _host.other_services("hapgent", "User=shop|Group=shops") == ["group", "shop"]
    assert _host.other_services("shop", "User=shop|Group=shop") == []


def test_a_host_without_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_host, "UNITS", str(tmp_path / "missing"))
    assert _host.other_services("hapgent", ".*") == []
    if not Path("/run/systemd/system").exists():
        assert _host.service_manager() == Path("/proc/1/comm").read_text(encoding="utf-8").strip()
