# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A weight command is run within limits, and the weight follows what it prints, but nothing else of the state changes.

The decisions are tested by tables, the rest with a real agent and real commands. The command never runs as root, so
another user runs the agent if root runs the tests.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from prepared import compiled_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Agent, Agents, Eventually

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-I", "-S", str(compiled_for(sys.executable))]
USER = 60211

with mock.patch.object(sys, "path", [str(ROOT / "files"), *sys.path]):
    state: Any = importlib.import_module("hapgent._state")
    measure: Any = importlib.import_module("hapgent.measure")
    usage: Any = importlib.import_module("hapgent.usage")
    instances: Any = importlib.import_module("hapgent.instances")
    weigh_command: Any = importlib.import_module("hapgent.weigh_command")
    weight: Any = importlib.import_module("hapgent.weight")
    weight_record: Any = importlib.import_module("hapgent.weight_record")

Done = subprocess.CompletedProcess[str]

# Readings


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (b"50\n", (50, None)),
        (b" 12.5 ", (12.5, None)),
        (b"-3", (-3, None)),
        (b"1e3", (1000, None)),
        (b'{"weight": 50}', (50, None)),
        (b'{"maxconn": 65535}\n', (None, 65535)),
        (b'{"maxconn": 1, "weight": 0}', (0, 1)),
    ],
)
def test_output_that_is_a_reading(output: bytes, wanted: tuple[float | None, int | None]) -> None:
    assert tuple(weight.parse_reading(output)) == wanted


@pytest.mark.parametrize(
    "output",
    [
        *(b"", b"\n", b"50%", b"50 60", b"NaN", b"-Infinity", b"1e999", b"1" * 400, b"null", b"true", b'"50"', b"[50]"),
        *(b"{}", b'{"weight": null}', b'{"weight": true}', b'{"weight": "50"}', b'{"status": "DRAIN"}', b"\xff"),
        *(b'{"maxconn": 0}', b'{"maxconn": 65536}', b'{"maxconn": 1.0}', b'{"weight": 5, "reason": "x"}', b"[" * 4000),
    ],
)
def test_output_that_is_no_reading(output: bytes) -> None:
    with pytest.raises(weight.ReadingError) as caught:
        weight.parse_reading(output)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


# Decisions

LIMITS = weight.Limits(minimum=1, maximum=100, step=20, smoothing=3, fallback=300)


def record(**values: Any) -> Any:
    return weight.NO_RECORD._replace(**values)


@pytest.mark.parametrize(
    ("current", "readings", "reading", "limits", "wanted"),
    [
        # Without a weight, HAProxy uses 100%.
        (None, [], 90, {}, 90),
        (80, [], 80, {}, 80),
        # No larger step than this, in both directions.
        (None, [], 10, {}, 80),
        (10, [], 100, {}, 30),
        (10, [], 100, {"step": 255}, 100),
        # The median, so that a single outlier changes nothing.
        (50, [50, 50], 1, {}, 50),
        (50, [50, 1], 1, {}, 30),
        (50, [40], 60, {}, 50),
        (50, [1, 50, 50], 50, {}, 50),
        (50, [50, 50, 50], 60, {"smoothing": 1}, 60),
        # Only within the range.
        (5, [], -20, {}, 1),
        (5, [], 0, {"minimum": 0}, 0),
        (95, [], 1000, {}, 100),
        (95, [], 1000, {"maximum": 255}, 115),
        (60, [], 10, {"minimum": 50}, 50),
        # It approaches the range in steps, too.
        (200, [], 50, {}, 180),
        (33, [], 33.5, {}, 34),
    ],
)
def test_the_weight_follows(
    current: int | None, readings: list[float], reading: float, limits: dict[str, int], wanted: int
) -> None:
    after, fields = weight.decide(
        weight.Reading(reading), record(readings=readings), LIMITS._replace(**limits), state.State("UP", current), 1000
    )
    assert fields == {"weight": wanted}
    assert (after.problem, after.succeeded, after.readings[-1]) == ("", 1000, reading)
    assert len(after.readings) <= 3


@pytest.mark.parametrize("status", state.STATUSES)
def test_nothing_is_set_out_of_rotation(status: str) -> None:
    after, fields = weight.decide(weight.Reading(50, 7), record(), LIMITS, state.State(status, 100), 1000)
    assert fields == ({"weight": 80, "maxconn": 7} if status in ("UP", "READY") else {})
    assert after.readings == [50]


@pytest.mark.parametrize(("applied", "wanted"), [({}, {}), ({"weight": 20}, {}), ({"weight": 0}, {"weight": 20})])
def test_a_weight_of_0_that_was_set_otherwise_stays(applied: dict[str, int], wanted: dict[str, int]) -> None:
    before = record(applied=applied)
    assert weight.decide(weight.Reading(50), before, LIMITS, state.State("UP", 0), 1000)[1] == wanted


def test_maxconn_alone_leaves_the_weight() -> None:
    after, fields = weight.decide(weight.Reading(None, 30), record(readings=[5.0]), LIMITS, state.State("UP", 5), 1000)
    assert (fields, after.readings) == ({"maxconn": 30}, [5])


@pytest.mark.parametrize(("since", "readings"), [(701, [10, 10, 90]), (700, [90])])
def test_readings_from_before_a_long_failure_do_not_count(since: float, readings: list[float]) -> None:
    before = record(problem="x", since=since, readings=[10.0, 10.0])
    after, _fields = weight.decide(weight.Reading(90), before, LIMITS, state.State("UP", 10), 1000)
    assert (after.readings, after.problem) == (readings, "")


OURS = {"applied": {"weight": 30}, "configured": {"weight": 77, "maxconn": None}}


@pytest.mark.parametrize(
    ("before", "current", "since", "fields"),
    [
        # The first failure, and others until the time is over.
        ({**OURS}, ("UP", 30), 1000, {}),
        ({**OURS, "problem": "x", "since": 701}, ("UP", 30), 701, {}),
        ({**OURS, "problem": "x", "since": 700}, ("UP", 30), 700, {"weight": 77}),
        ({**OURS, "problem": "x", "since": 700}, ("READY", 30), 700, {"weight": 77}),
        ({**OURS, "problem": "x", "since": 700}, ("DRAIN", 30), 700, {}),
        # The clock was set back.
        ({**OURS, "problem": "x", "since": 5000}, ("UP", 30), 1000, {}),
        # What was set otherwise stays.
        ({**OURS, "problem": "x", "since": 1}, ("UP", 31), 1, {}),
        ({**OURS, "problem": "x", "since": 1}, ("UP", None), 1, {}),
        ({"problem": "x", "since": 1, "configured": {"weight": 77}}, ("UP", 100), 1, {}),
        # Without configured values, the fields are removed, and only those that were set.
        ({"applied": {"weight": 30, "maxconn": 5}, "problem": "x", "since": 1}, ("UP", 30, 5), 1, "removed"),
        ({"applied": {"weight": None}, "problem": "x", "since": 1}, ("UP", None), 1, {}),
    ],
)
def test_the_configured_weight_comes_back(before: dict[str, Any], current: Any, since: float, fields: Any) -> None:
    wanted = {"weight": None, "maxconn": None} if fields == "removed" else fields
    after, found = weight.decide_failure("broken\x1b[2J", record(**before), LIMITS, state.State(*current), 1000)
    assert (found, after.since) == (wanted, since)
    assert after.problem == "broken\\x1b[2J"


def test_an_unknown_state_is_left_alone() -> None:
    before = record(problem="x", since=1, **OURS)
    assert weight.decide_failure("y", before, LIMITS, None, 1000)[1] == {}


# The record

FULL = record(
    problem="x", since=1.5, succeeded=2.0, readings=[1.0, 2.5], applied={"weight": 1}, configured={"weight": None}
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = str(tmp_path / "state.json")
    assert weight_record.load(file) is None
    for one in (FULL, weight.NO_RECORD):
        weight_record.save(file, one)
        assert weight_record.load(file) == one
    weight_record.save(file, None)
    assert os.listdir(tmp_path) == ["state.json.lock"]


WRONG_TIMES: list[Any] = [None, "1", -1, 1e300, True, float("nan")]
WRONG_FIELDS: list[Any] = [None, [], "weight", {"status": 1}, {"weight": 256}, {"weight": "1"}, {"weight": True}]
WRONG: dict[str, list[Any]] = {
    "problem": [None, 1, []],
    "since": WRONG_TIMES,
    "succeeded": WRONG_TIMES,
    "readings": [None, "x", ["1"], [None], [1e300], [True]],
    "applied": WRONG_FIELDS,
    "configured": WRONG_FIELDS,
}


# Without the field, if the value is an ellipsis.
@pytest.mark.parametrize(
    "change",
    [{name: value} for name, values in WRONG.items() for value in (*values, ...)],
)
def test_a_record_that_something_else_has_written_does_not_count(tmp_path: Path, change: dict[str, Any]) -> None:
    fields = {name: value for name, value in {**FULL._asdict(), **change}.items() if value is not ...}
    (tmp_path / "state.json.weight").write_text(json.dumps(fields), encoding="utf-8")
    assert weight_record.load(str(tmp_path / "state.json")) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"1", b"\xff", b"[" * 60000, b"1" * 60000, b" " * 70000])
def test_a_broken_record_does_not_count(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json.weight").write_bytes(content)
    assert weight_record.load(str(tmp_path / "state.json")) is None


def test_a_record_is_not_read_through_a_link_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "other").write_text(json.dumps(FULL._asdict()), encoding="utf-8")
    path = tmp_path / "state.json.weight"
    path.symlink_to("other")
    assert weight_record.load(str(tmp_path / "state.json")) is None
    path.unlink()
    os.mkfifo(path)
    assert weight_record.load(str(tmp_path / "state.json")) is None


def test_control_characters_in_a_record_are_escaped(tmp_path: Path) -> None:
    hostile = {**FULL._asdict(), "problem": "\x1b[2J" * 100}
    (tmp_path / "state.json.weight").write_text(json.dumps(hostile), encoding="utf-8")
    found = weight_record.load(str(tmp_path / "state.json"))
    assert found.problem.isprintable()
    assert len(found.problem) <= 200


# The commands that measure


@pytest.mark.parametrize(
    ("load", "cores", "wanted"),
    [(0, 4, 100), (4, 4, 100), (8, 4, 50), (16, 4, 25), (5, 4, 80), (1000, 1, 0), (0.0, 1, 100), (1e6, 256, 0)],
)
def test_weight_of_a_load(load: float, cores: int, wanted: int) -> None:
    assert measure.weight_of_load(load, cores) == wanted


@pytest.mark.parametrize(
    ("shares", "wanted"), [([0.0], 100), ([12.34, 0.5], 88), ([100.0], 0), ([0.0, 0.0, 99.4], 1), ([0.4], 100)]
)
def test_weight_of_pressures(shares: list[float], wanted: int) -> None:
    assert measure.weight_of_pressure(shares) == wanted


PRESSURE = "some avg10={} avg60=1.00 avg300=2.00 total=3\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n"


@pytest.mark.parametrize(("shown", "wanted"), [("0.00", 0), ("7.50", 7.5), ("100.00", 100)])
def test_pressure_is_read(shown: str, wanted: float) -> None:
    assert measure.parse_pressure(PRESSURE.format(shown)) == wanted


@pytest.mark.parametrize("text", ["", "full avg10=1.00 ", PRESSURE.format("nan"), PRESSURE.format("100.01")])
def test_other_content_is_no_pressure(text: str) -> None:
    with pytest.raises(measure.MeasureError):
        measure.parse_pressure(text)


def measured(*arguments: str, pressure: Path | str = "/proc/pressure") -> int:
    with mock.patch.object(measure, "PRESSURE", str(pressure)):
        code: int = measure.main(usage.COMMANDS[arguments[0]], list(arguments[1:]))
    return code


def test_the_highest_pressure_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, share in (("cpu", "10.00"), ("memory", "0.00"), ("io", "60.00")):
        (tmp_path / name).write_text(PRESSURE.format(share), encoding="utf-8")
    assert [measured("pressure", *words, pressure=tmp_path) for words in ([], ["cpu"], ["memory", "cpu"])] == [0, 0, 0]
    assert capsys.readouterr().out.split() == ["40", "90", "90"]


def test_a_kernel_without_pressure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measured("pressure", "io", pressure=tmp_path) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{tmp_path}/io" in printed.err
    assert "hapgent load" in printed.err


@pytest.mark.parametrize("arguments", [["pressure", "disk"], ["load", "cpu"], ["load", "--cpu"]])
def test_wrong_arguments_of_a_measurement(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert measured(*arguments) == 2
    assert f"usage: hapgent {arguments[0]}" in capsys.readouterr().err


# Runs, with a real agent


class Weighed:
    """An agent, and what weighs it. The agent, its folder and all runs belong to one user, who is not root."""

    def __init__(self, agents: Agents, folder: Path) -> None:
        self.folder = folder / "state"
        self.folder.mkdir()
        self.file = self.folder / "state.json"
        self.record = self.folder / "state.json.weight"
        self.user = USER if os.geteuid() == 0 else os.geteuid()
        os.chown(self.folder, self.user, -1)
        self.socket = self.folder / "status.sock"
        self.file.write_text('{"status": "UP"}', encoding="utf-8")
        os.chown(self.file, self.user, -1)
        self.agent: Agent = agents.start(
            None,
            state_file=self.file,
            before_exec=f"os.setgroups([]) if os.geteuid() == 0 else None; os.setuid({self.user})",
            environment={"HAPGENT_SOCKET": str(self.socket)},
        )

    def run(self, *arguments: str, user: int | None = None) -> Done:
        as_user = f"setpriv --reuid={user or self.user} --clear-groups".split() if os.geteuid() == 0 else []
        return subprocess.run(
            [*(as_user if user != 0 else []), *COMMAND, *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            check=False,
            timeout=60,
            env={"PATH": os.environ["PATH"], "HAPGENT_STATE_FILE": str(self.file)},
        )

    def weigh(self, script: str, *options: str) -> Done:
        """Let a shell script be the weight command."""
        return self.run("weigh", "--step=255", "--smoothing=1", *options, "sh", "-c", script)

    def write(self, **fields: object) -> None:
        """Set the state as another program of the agent's user does."""
        new = self.folder / "new"
        new.write_text(json.dumps(fields), encoding="utf-8")
        os.chown(new, self.user, -1)
        new.replace(self.file)
        self.agent.send(signal.SIGHUP)
        self.agent.await_answer(f"{state.from_fields(fields).answer()}\n".encode())
        self.agent.await_loaded()

    def saved(self) -> Any:
        return json.loads(self.file.read_bytes())


@pytest.fixture(scope="module")
def weighed_of_module(agents_in: Callable[[Path], Agents]) -> Iterator[Weighed]:
    # Only the user who runs pytest can enter pytest's own folder.
    folder = Path(tempfile.mkdtemp(prefix="hapgent"))
    folder.chmod(0o755)
    yield Weighed(agents_in(folder), folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def weighed(weighed_of_module: Weighed) -> Weighed:
    weighed_of_module.record.unlink(missing_ok=True)
    weighed_of_module.write(status="UP")
    return weighed_of_module


def test_the_agent_answers_with_the_weight_that_the_command_prints(weighed: Weighed) -> None:
    weighed.write(status="READY", reason="new disk")
    done = weighed.weigh("echo 30")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert weighed.saved() == {"status": "READY", "weight": 30, "reason": "new disk"}
    assert weighed.agent.ask() == b"READY UP 30% # new disk\n"
    assert weighed.weigh("""echo '{"weight": 40, "maxconn": 7}'""").returncode == 0
    assert weighed.agent.ask() == b"READY UP 40% maxconn:7 # new disk\n"


def test_options_of_the_command_follow_it(weighed: Weighed) -> None:
    assert weighed.run("weigh", "--step", "1", "printf", "--", "%s", "--help").returncode == 1
    assert weighed.run("weigh", "--step=1", "--", "echo", "5").returncode == 0
    assert weighed.saved() == {"status": "UP", "weight": 99}


def test_the_file_is_written_only_if_the_weight_differs(weighed: Weighed) -> None:
    weighed.weigh("echo 30")
    before = weighed.file.stat()
    for printed in ("30", "30.2"):
        assert weighed.weigh(f"echo {printed}").returncode == 0
    assert weighed.file.stat().st_ino == before.st_ino


def test_a_drain_stays_and_ends_without_a_jump(weighed: Weighed) -> None:
    weighed.write(status="DRAIN", weight=60, reason="kernel")
    before = weighed.file.stat()
    assert weighed.weigh("echo 30").returncode == 0
    assert weighed.file.stat().st_ino == before.st_ino
    weighed.write(status="UP", weight=60)
    assert weighed.run("weigh", "--smoothing=1", "--step=5", "echo", "30").returncode == 0
    assert weighed.saved() == {"status": "UP", "weight": 55}


def test_what_was_set_since_the_weight_was_decided_stays(weighed: Weighed) -> None:
    decide = weight.decide

    def decide_and_set(*arguments: Any) -> Any:
        """Decide, and let a person set the weight before it is written."""
        decided = decide(*arguments)
        weighed.write(status="UP", weight=0)
        return decided

    plan = weigh_command.Plan(["echo", "42"], weight.Limits(minimum=0, step=255), {}, None)
    found = instances.serving(str(weighed.file), str(weighed.socket))
    with mock.patch.object(weight, "decide", decide_and_set):
        assert weigh_command._weigh(found, plan) == 0
    assert weighed.saved() == {"status": "UP", "weight": 0}


def test_an_agent_that_does_not_run_starts_with_the_weight(weighed: Weighed) -> None:
    folder = weighed.folder / "stopped"
    folder.mkdir()
    os.chown(folder, weighed.user, -1)
    (folder / "state.json").write_text('{"status": "UP"}', encoding="utf-8")
    with mock.patch.object(weighed, "file", folder / "state.json"):
        done = weighed.weigh("echo 30")
        assert (done.returncode, weighed.saved()) == (0, {"status": "UP", "weight": 30}), done
    shutil.rmtree(folder)


# A command that fails, and a part of the problem.
FAILURES = {
    "exit 3": "exited with 3",
    "echo first >&2; echo 'no route' >&2; exit 1": "exited with 1: no route",
    "kill -SEGV $$": "killed by signal 11",
    "echo 50; exit 1": "exited with 1",
    "echo fifty": "'fifty'",
    "true": "must print a number",
    "yes": "more than 4096 bytes",
    "printf '\\033[2J' >&2; exit 1": "\\x1b[2J",
}


@pytest.mark.parametrize(("script", "problem"), FAILURES.items())
def test_after_a_failure_the_last_weight_stays(weighed: Weighed, script: str, problem: str) -> None:
    weighed.weigh("echo 30")
    done = weighed.weigh(script)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert problem in line
    assert line.isprintable()
    assert weighed.saved() == {"status": "UP", "weight": 30}


def test_a_command_that_does_not_exist(weighed: Weighed) -> None:
    done = weighed.run("weigh", "/no/such/command")
    assert done.returncode == 1
    assert "/no/such/command" in done.stderr


def test_a_failure_and_its_end_are_reported_once(weighed: Weighed) -> None:
    for script, lines in (("exit 1", 1), ("exit 2", 0), ("echo x", 0), ("echo 30", 1), ("echo 40", 0), ("exit 1", 1)):
        assert len(weighed.weigh(script).stderr.splitlines()) == lines, script


def is_running(argument: str) -> bool:
    """Whether a process has this argument."""
    found = subprocess.run(["pgrep", "--full", "--", argument], capture_output=True, check=False)
    return found.returncode == 0


def test_a_command_that_hangs_is_killed_with_its_children(weighed: Weighed) -> None:
    done = weighed.weigh("sleep 31415 & trap '' TERM; sleep 31416")
    assert done.returncode == 1
    assert "within 10 seconds" in done.stderr
    assert not is_running("^sleep 3141[56]")


def test_what_a_command_leaves_running_delays_nothing_and_is_killed(weighed: Weighed) -> None:
    # A run that waited for it would fail after 10 seconds.
    assert weighed.weigh("sleep 31417 & echo 30").returncode == 0
    assert weighed.saved() == {"status": "UP", "weight": 30}
    assert not is_running("^sleep 31417")


def test_the_configured_weight_comes_back_and_then_a_measured_one(weighed: Weighed) -> None:
    weighed.write(status="UP", weight=77)
    options = ("--weight=77", "--fallback=0")
    weighed.weigh("echo 30", *options)
    done = weighed.weigh("exit 1", *options)
    assert weighed.agent.ask() == b"UP 77%\n"
    assert "UP 77% (was UP 30%)" in done.stderr
    assert weighed.weigh("exit 1", *options).stderr == ""
    # What a person sets now stays.
    weighed.write(status="UP", weight=5)
    weighed.weigh("exit 1", *options)
    assert weighed.agent.ask() == b"UP 5%\n"
    assert weighed.weigh("echo 30", *options).returncode == 0
    assert weighed.agent.ask() == b"UP 30%\n"


def test_a_state_file_that_is_invalid_is_a_problem_and_stays(weighed: Weighed) -> None:
    weighed.weigh("echo 30")
    weighed.file.write_text("{", encoding="utf-8")
    done = weighed.weigh("echo 40")
    assert done.returncode == 1
    assert str(weighed.file) in done.stderr
    assert weighed.file.read_text(encoding="utf-8") == "{"


def test_an_agent_that_hangs_is_a_problem(weighed: Weighed) -> None:
    weighed.weigh("echo 30")
    with weighed.agent.paused():
        done = weighed.weigh("echo 40")
    assert done.returncode == 1
    assert str(weighed.socket) in done.stderr
    assert weighed.weigh("echo 40").returncode == 0
    assert weighed.agent.ask() == b"UP 40%\n"


def test_restore_sets_the_configured_weight_and_forgets(weighed: Weighed) -> None:
    weighed.write(status="DRAIN", weight=77, reason="kernel")
    weighed.weigh("echo 30", "--weight=77")
    weighed.write(status="UP", weight=77)
    weighed.weigh("echo 30", "--weight=77")
    # Root may do it, because no command is run.
    done = weighed.run("weigh", "--restore", user=0)
    assert (done.returncode, done.stderr) == (0, "")
    assert "UP 77% (was UP 30%)" in done.stdout
    assert weighed.agent.ask() == b"UP 77%\n"
    assert not weighed.record.exists()
    done = weighed.run("weigh", "--restore", user=0)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_restore_keeps_what_was_set_otherwise(weighed: Weighed) -> None:
    weighed.weigh("""echo '{"weight": 30, "maxconn": 7}'""")
    weighed.write(status="MAINT", weight=5, maxconn=7)
    assert weighed.run("weigh", "--restore").returncode == 0
    assert weighed.saved() == {"status": "MAINT", "weight": 5}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_runs_no_command(weighed: Weighed, tmp_path: Path) -> None:
    done = weighed.run("weigh", "touch", str(tmp_path / "touched"), user=0)
    assert (done.returncode, done.stdout) == (4, "")
    assert "as the user of the agent" in done.stderr
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--restore", "echo", "1"],
        ["--min=60", "--max=50", "echo", "1"],
        ["--min=-1", "echo", "1"],
        ["--step=0", "echo", "1"],
        ["--smoothing=0", "echo", "1"],
        ["--fallback=1.5", "echo", "1"],
        ["--weight=256", "echo", "1"],
        ["--stop", "echo", "1"],
    ],
)
def test_wrong_arguments_run_nothing(weighed: Weighed, arguments: list[str]) -> None:
    done = weighed.run("weigh", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: hapgent weigh " in done.stderr
    assert weighed.saved() == {"status": "UP"}


def test_a_signal_while_the_command_runs_ends_it(weighed: Weighed, eventually: Eventually) -> None:
    as_user = f"setpriv --reuid={weighed.user} --clear-groups".split() if os.geteuid() == 0 else []
    command = [*COMMAND, "weigh", "sleep", "31418"]
    environment = {"PATH": os.environ["PATH"], "HAPGENT_STATE_FILE": str(weighed.file)}
    with subprocess.Popen([*as_user, *command], env=environment, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: is_running("^sleep 31418"), "the command runs")
        process.send_signal(signal.SIGINT)
    eventually(lambda: not is_running("^sleep 31418"), "the command has ended")
    assert weighed.saved() == {"status": "UP"}
