# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role reads accounts, files and services of a host without trusting what another user can change."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _folder, _host, _systemd, _sysv

OTHER_USER = 4711
PROGRAM = "/usr/local/bin/hapgent"
ROLE = Path(__file__).parents[4] / "roles" / "hapgent"


def soon(seconds: float = 15) -> float:
    return time.monotonic() + seconds


# Accounts


def test_accounts() -> None:
    assert _host.user("root") == {"id": 0, "comment": "root", "primary_group": 0}
    assert _host.user("no-such-user") is None
    assert _host.group("root") == {"id": 0, "members": []}
    assert _host.group("no-such-group") is None


def test_accounts_are_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases such as LDAP may contain anything."""
    hostile = "x\x1b[2J\udce4"
    entry = pwd.struct_passwd((hostile, "x", 7, 7, hostile, "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: entry)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: entry)
    monkeypatch.setattr(grp, "getgrnam", lambda _name: grp.struct_group(("x", "x", 7, [hostile])))
    user, group, root = _host.user("x"), _host.group("x"), _host.path_to("/etc", soon())[0]
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


def test_a_path_that_does_not_respond_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    # A file system of another user may never respond.
    responds = threading.Event()
    monkeypatch.setattr(os, "lstat", lambda path: responds.wait(30) and os.stat(path))
    try:
        with pytest.raises(TimeoutError, match=r"/etc/x/state\.json"):
            _host.path_to("/etc/x/state.json", soon(0.2))
    finally:
        responds.set()


def test_path_names_each_component_without_following_links(state_file: Path) -> None:
    state_file.symlink_to("/etc/passwd")
    found = _host.path_to(str(state_file), soon())
    assert [component["path"] for component in found] == [*map(str, reversed(state_file.parents)), str(state_file)]
    assert stat.S_ISLNK(found[-1]["mode"])
    assert stat.S_ISDIR(found[-2]["mode"])
    assert (found[0]["uid"], found[0]["owner"]) == (0, "root")


def test_path_ends_before_what_does_not_exist(state_file: Path) -> None:
    assert _host.path_to(str(state_file), soon())[-1]["path"] == str(state_file.parent)
    assert _host.path_to("/no/such/file", soon())[-1]["path"] == "/"
    state_file.touch()
    assert _host.path_to(str(state_file / "below"), soon())[-1]["path"] == str(state_file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
def test_owner_without_a_name(state_file: Path) -> None:
    os.chown(state_file.parent, OTHER_USER, OTHER_USER)
    assert _host.path_to(str(state_file), soon())[-1]["owner"] == f"user {OTHER_USER}"


def contents(state_file: Path | str, *others: Path) -> tuple[bool, bool]:
    """Whether the folder has something of the other instances, and whether it has anything else."""
    found: tuple[bool, bool] = _host.contents(str(state_file), [str(other) for other in others], soon())
    return found


def test_files_of_the_agent(state_file: Path) -> None:
    assert contents(state_file) == (False, False)
    for suffix in _folder.SUFFIXES:
        Path(f"{state_file}{suffix}").touch()
    assert contents(state_file) == (False, False)


def test_files_of_other_instances(state_file: Path) -> None:
    beside, below = state_file.with_name("api.json"), state_file.parent / "shop" / "state.json"
    above = state_file.parent.parent / "web.json"
    beside.touch()
    below.parent.mkdir()
    assert contents(state_file, beside, below, above) == (True, False)
    assert contents(state_file, beside, above)[1]
    assert contents(state_file, above) == (False, True)
    below.parent.rmdir()
    below.parent.symlink_to("/etc")
    assert contents(state_file, beside, below)[1]


def test_a_folder_that_does_not_exist_has_no_files() -> None:
    assert contents("/etc/no-such-folder/state.json") == (False, False)


@pytest.mark.parametrize("name", ["kept", "state.json.bak", ".hidden", "state.json.lock"])
def test_anything_else_is_another_file(state_file: Path, name: str) -> None:
    state_file.touch()
    (state_file.parent / name).symlink_to("/etc/passwd")
    assert contents(state_file) == (False, True)


def test_folders_and_special_files_are_not_the_agents(state_file: Path) -> None:
    os.mkfifo(state_file)
    assert contents(state_file) == (False, True)
    state_file.unlink()
    Path(f"{state_file}.tmp").mkdir()
    assert contents(state_file) == (False, True)


def test_a_link_for_the_folder_is_not_entered(state_file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(state_file.parent)
    assert contents(tmp_path / "link" / "state.json") == (False, True)


# Services


class Systemd:
    """The answer of systemctl show on a host with these units and their properties."""

    def __init__(self, **units: dict[str, str]) -> None:
        self._units = {f"hapgent.{kind}": properties for kind, properties in units.items()}

    def __call__(self, command: list[str]) -> tuple[int, str, str]:
        assert command[:5] == ["env", "TZ=UTC", "LC_ALL=C", "systemctl", "show"]
        blocks = []
        for name in command[command.index("--") + 1 :]:
            properties = self._units.get(name, {"LoadState": "not-found", "ActiveState": "inactive"})
            blocks.append("".join(f"{key}={value}\n" for key, value in properties.items()))
        return 0, "\n".join(blocks), ""


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which administrators configure units."""
    folder = tmp_path / "units"
    folder.mkdir()
    monkeypatch.setattr(_host, "UNITS", str(folder))
    return folder


NO_SERVICE = {
    "exists": False,
    "runs_agent": False,
    "units": [],
    "listens": "",
    "socket_runs": False,
    "service_runs": False,
    "is_outdated": False,
    "drain_runs": False,
    "drain_enabled": False,
    "followed_exists": False,
    "followed_runs": False,
    "weight_runs": False,
}
RUNS = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}
OF_AGENT = {**RUNS, "ExecStart": f"{{ path=/usr/bin/python3 ; argv[]=/usr/bin/python3 -I -S {PROGRAM} ; }}"}


def named(name: str, followed: str = "") -> _host.Names:
    return _host.Names(name, f"{name}-drain.service", followed, f"{name}-weight.timer")


def test_no_service() -> None:
    assert _host.services([named("no-such")], "/no/such/program", Systemd()) == [NO_SERVICE]
    assert _host.services([], PROGRAM, Systemd()) == []


def test_the_service_of_the_agent_and_one_that_does_not_exist(units: Path) -> None:
    for kind in ("socket", "service"):
        (units / f"hapgent.{kind}").touch()
    tomorrow = time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() + 86400))
    systemd = Systemd(
        socket={**RUNS, "Listen": "0.0.0.0:9777 (Stream)"}, service={**OF_AGENT, "ExecMainStartTimestamp": tomorrow}
    )
    assert _host.services([named("no-such"), named("hapgent")], PROGRAM, systemd) == [
        NO_SERVICE,
        {
            **NO_SERVICE,
            "exists": True,
            "runs_agent": True,
            "units": ["hapgent.socket", "hapgent.service"],
            "listens": "0.0.0.0:9777 (Stream)",
            "socket_runs": True,
            "service_runs": True,
            "is_outdated": False,
        },
    ]


@pytest.mark.parametrize(
    "properties", [{"ActiveState": "activating"}, {"ActiveState": "inactive"}, {"UnitFileState": "disabled"}]
)
def test_a_unit_that_is_not_active_or_not_enabled_does_not_run(properties: dict[str, str]) -> None:
    systemd = Systemd(socket={**RUNS, **properties}, service=OF_AGENT)
    (found,) = _host.services([named("hapgent")], PROGRAM, systemd)
    assert (found["socket_runs"], found["service_runs"]) == (False, True)


def test_the_service_that_an_instance_follows() -> None:
    systemd = Systemd(**{"service": OF_AGENT, "other.service": RUNS})
    (found,) = _host.services(
        [_host.Names("hapgent", "hapgent.other.service", "hapgent.other.service", "no-such.timer")], PROGRAM, systemd
    )
    assert found["drain_runs"] is found["drain_enabled"] is found["followed_exists"] is found["followed_runs"] is True
    (found,) = _host.services([named("hapgent", "no-such.service")], PROGRAM, systemd)
    assert found["followed_exists"] is found["followed_runs"] is found["drain_runs"] is False


def test_the_timer_that_sets_a_weight() -> None:
    names = _host.Names("hapgent", "no-such.service", "", "hapgent.timer")
    for timer, runs in ((RUNS, True), ({**RUNS, "ActiveState": "inactive"}, False)):
        (found,) = _host.services([names], PROGRAM, Systemd(service=OF_AGENT, timer=timer))
        assert found["weight_runs"] is runs


def test_a_socket_with_several_addresses() -> None:
    systemd = Systemd(socket={"Listen": "[::]:1 (Stream)\nListen=[::]:2 (Stream)"}, service=OF_AGENT)
    (found,) = _host.services([named("hapgent")], PROGRAM, systemd)
    assert found["listens"] == "[::]:1 (Stream)\n[::]:2 (Stream)"


def test_a_service_of_something_else(units: Path) -> None:
    (units / "hapgent.service").touch()
    systemd = Systemd(service={**RUNS, "ExecStart": "{ path=/usr/sbin/haproxy ; argv[]=/usr/sbin/haproxy }"})
    (found,) = _host.services([named("hapgent")], PROGRAM, systemd)
    assert (found["exists"], found["runs_agent"], found["units"]) == (True, False, ["hapgent.service"])


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
    systemd = Systemd(service={**OF_AGENT, "ExecMainStartTimestamp": "Thu 2026-01-01 12:00:00 UTC"})
    (found,) = _host.services([named("hapgent")], str(tmp_path / "program"), systemd)
    assert found["is_outdated"] == is_outdated
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
    assert _host.other_services(["hapgent"], _host.line_with_program(PROGRAM)) == ["shop"]
    assert _host.other_services(["hapgent"], _host.line_with_account("shop", "shops")) == ["group", "shop"]
    assert _host.other_services(["shop"], _host.line_with_account("shop", "shop")) == []


def test_instances_that_the_role_has_installed(units: Path) -> None:
    text = (
        f"{_host.MARK.format('hapgent@shop')}\n[Service]\nEnvironment=HAPGENT_STATE_FILE=/etc/hapgent/shop/state.json\n"
        f"Environment=HAPGENT_SETTLE=60\nExecStart=/usr/bin/python3 -I -S {PROGRAM}\nUser=shop\nGroup=shops\n"
    )
    (units / "hapgent@shop.service").write_text(text, encoding="utf-8")
    (units / "hapgent@shop.socket").touch()
    mark = _host.DRAIN_MARK.format("hapgent@shop")
    (units / "hapgent-drain@shop.service").write_text(f"{mark}\n", encoding="utf-8")
    for name in ("hapgent-weight@shop.timer", "hapgent-weight@shop.service"):
        (units / name).write_text(f"{_host.WEIGHT_MARK.format('hapgent@shop')}\n", encoding="utf-8")
    # A copy under another name was not installed by the role.
    (units / "copy.service").write_text(text, encoding="utf-8")
    (units / "hapgent.service").write_text(text.replace("hapgent@shop", "hapgent")[1:], encoding="utf-8")
    assert _host.installed() == [
        {
            "service": "hapgent@shop",
            "user": "shop",
            "group": "shops",
            "python": "/usr/bin/python3",
            "state_file": "/etc/hapgent/shop/state.json",
            "units": ["hapgent@shop.socket", "hapgent@shop.service"],
            "drain_units": ["hapgent-drain@shop.service"],
            "weight_units": ["hapgent-weight@shop.timer", "hapgent-weight@shop.service"],
        }
    ]
    # The timer is removed first, so that an interrupted run leaves the service, by which the next one finds both.
    (units / "hapgent-weight@shop.timer").unlink()
    assert _host.installed()[0]["weight_units"] == ["hapgent-weight@shop.service"]


def test_the_role_marks_its_units() -> None:
    template = (ROLE / "templates/systemd/service.j2").read_text(encoding="utf-8")
    assert _host.MARK.format("{{ hapgent__instance.service }}") in template.splitlines()
    template = (ROLE / "templates/systemd/drain.j2").read_text(encoding="utf-8")
    assert _host.DRAIN_MARK.format("{{ hapgent__instance.service }}") in template.splitlines()
    template = (ROLE / "templates/systemd/weight_service.j2").read_text(encoding="utf-8")
    assert _host.WEIGHT_MARK.format("{{ hapgent__instance.service }}") in template.splitlines()
    template = (ROLE / "templates/sysv/job.j2").read_text(encoding="utf-8")
    assert _host.WEIGHT_MARK.format("{{ hapgent__instance.service }}") in template.splitlines()


def test_a_host_without_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_host, "UNITS", str(tmp_path / "missing"))
    assert _host.other_services(["hapgent"], ".*") == []
    assert _host.installed() == []
    monkeypatch.setattr(_systemd, "is_running", lambda: False)
    for runs, manager in ((False, Path("/proc/1/comm").read_text(encoding="utf-8").strip()), (True, "sysv")):
        monkeypatch.setattr(_sysv, "is_running", lambda runs=runs: runs)
        assert _host.service_manager() == manager


def test_a_host_with_cron(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crontab, jobs = tmp_path / "crontab", tmp_path / "cron.d"
    monkeypatch.setattr(_host, "CRONTAB", str(crontab))
    monkeypatch.setattr(_host, "JOBS", str(jobs))
    # The folder alone is no cron: other packages bring it.
    for path, has_cron in ((jobs / "job", False), (crontab, True)):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert _host.has_cron() is has_cron
    (jobs / "job").unlink()
    jobs.rmdir()
    assert not _host.has_cron()


def test_a_host_that_sysvinit_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("init.d", "run", "rc2.d", "cron.d"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(_sysv, "is_running", lambda: True)
    monkeypatch.setattr(_sysv, "SCRIPTS", str(tmp_path / "init.d"))
    monkeypatch.setattr(_sysv, "PID_FILES", str(tmp_path / "run"))
    monkeypatch.setattr(_host, "STARTED", str(tmp_path / "rc2.d"))
    monkeypatch.setattr(_host, "JOBS", str(tmp_path / "cron.d"))
    template = (ROLE / "templates/sysv/script.j2").read_text(encoding="utf-8")
    for key, value in {
        "hapgent__instance.service": "hapgent@shop",
        "hapgent__instance.user": "shop",
        "hapgent__instance.group": "shops",
        "hapgent__instance.python": "/usr/bin/python3",
        "hapgent__instance.ip": "0.0.0.0",
        "hapgent__instance.port": "9778",
        "hapgent__instance.state_file": "/etc/hapgent/shop/state.json",
        "hapgent__program": PROGRAM,
    }.items():
        template = template.replace(f"{{{{ {key} }}}}", value)
    script = tmp_path / "init.d" / "hapgent@shop"
    script.write_text(template, encoding="utf-8")
    (tmp_path / "init.d" / "cron").write_text("#!/bin/sh\nuser=shop\n", encoding="utf-8")
    (installed,) = _host.installed()
    assert (installed["service"], installed["user"], installed["group"]) == ("hapgent@shop", "shop", "shops")
    assert (installed["state_file"], installed["units"]) == ("/etc/hapgent/shop/state.json", ["hapgent@shop"])
    assert installed["python"] == "/usr/bin/python3"
    assert installed["drain_units"] == installed["weight_units"] == []
    for job, service in (("hapgent-weight-shop", "hapgent@shop"), ("other", "hapgent@other")):
        (tmp_path / "cron.d" / job).write_text(f"{_host.WEIGHT_MARK.format(service)}\n", encoding="utf-8")
    assert _host.installed()[0]["weight_units"] == ["hapgent-weight-shop"]
    assert _host.other_services(["hapgent@shop"], _host.line_with_account("shop", "shops")) == ["cron"]
    assert _host.other_services([], _host.line_with_account("sho", "ops")) == []
    assert _host.other_services([], _host.line_with_program(PROGRAM)) == ["hapgent@shop"]
    assert _host.other_services([], _host.line_with_program(PROGRAM[:-1])) == []

    names = [named("hapgent@shop"), named("cron"), named("no-such")]
    shop, cron, none = _host.scripts(names, PROGRAM, Systemd())
    assert (shop["exists"], shop["runs_agent"], shop["units"]) == (True, True, ["hapgent@shop"])
    assert (shop["listens"], shop["service_runs"], shop["is_outdated"]) == ("0.0.0.0:9778", False, True)
    assert (cron["exists"], cron["runs_agent"], cron["listens"]) == (True, False, "")
    assert (none["exists"], none["units"]) == (False, [])

    # An agent that has started after its files were written, and starts with the host.
    (tmp_path / "run" / "hapgent@shop.pid").touch()
    os.utime(script, (0, 1000))
    runs = _systemd.Service("hapgent@shop", True, "active", 1)
    monkeypatch.setattr(_sysv, "service", lambda _name, _run: runs)
    for link, is_enabled in (("K01hapgent@shop", False), ("S01hapgent@shop", True)):
        (tmp_path / "rc2.d" / link).touch()
        (shop,) = _host.scripts([named("hapgent@shop")], "/no/program", Systemd())
        assert (shop["service_runs"], shop["is_outdated"]) == (is_enabled, False)
