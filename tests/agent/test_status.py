# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The status socket reports what the agent knows and changes nothing; C(hapgent status) shows it.

The file has these parts:

- what the socket reports: the state, its age, each load balancer, errors and counters;
- the socket itself: it is read-only, private, replaced and removed, and not required;
- C(hapgent status): the table, JSON, arguments and errors;
- metrics for Prometheus, which promtool checks;
- docs/monitoring.md: its metrics, its alert rules and its unit work as documented;
- the alerts: which of them fire in which situation.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prepared import compiled_for

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually

    Promtool = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parent.parent.parent
ZIPAPP = ROOT / "roles" / "hapgent" / "files" / "hapgent.pyz"
PROMTOOL = ROOT / ".cache" / "prometheus" / "usr" / "bin" / "promtool"
MONITORING = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")

STATUSES = ["UP", "DOWN", "READY", "DRAIN", "FAIL", "MAINT", "STOPPED"]
MAX_PEERS = 1024
RETRY_SECONDS = 0.1
# The limit for the path of a UNIX socket, see unix(7).
MAX_PATH_BYTES = 107
# Enough for standard input, output and error, but not for a client.
NO_DESCRIPTORS_LEFT = 3
# How far two readings of the clock may disagree if it is adjusted between them.
CLOCK_SECONDS = 0.5


def start(
    agents: Agents,
    path: Path | str,
    state: bytes | None = b'{"status": "UP"}',
    *,
    settle: int = 0,
    **options: Any,
) -> Agent:
    """Start an agent with its status socket at this path, if that is possible, and do not poll it."""
    environment = {"HAPGENT_SOCKET": str(path), "HAPGENT_SETTLE": str(settle)}
    agent = agents.start(state, environment=environment, wait=False, **options)
    agent.await_log("answering")
    return agent


def ask_from(agent: Agent, address: str) -> bytes:
    """Poll from this address and return the answer. The agent has counted the check by then."""
    with socket.socket() as client:
        client.settimeout(15)
        client.bind((address, 0))
        client.connect((agent.ip, agent.port))
        return agent.read_to_end(client)


def connect(path: Path) -> socket.socket:
    reader = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    reader.settimeout(15)
    reader.connect(str(path))
    return reader


def status(path: Path) -> dict[str, Any]:
    with connect(path) as reader:
        document: dict[str, Any] = json.loads(b"".join(iter(lambda: reader.recv(65_536), b"")))
    return document


def peers(path: Path) -> dict[str, dict[str, Any]]:
    return {peer["address"]: peer for peer in status(path)["peers"]}


def counters(path: Path) -> dict[str, int]:
    found: dict[str, int] = status(path)["counters"]
    return found


def reload(agent: Agent, path: Path, state: dict[str, Any], eventually: Eventually) -> None:
    """Change the state and wait until the status reports it, without polling the agent."""
    agent.write_state(json.dumps(state).encode())
    agent.send(signal.SIGHUP)
    eventually(lambda: bool(status(path)["state"] == state), f"state {state}")


def occupy(agent: Agent) -> None:
    """Prevent the agent from saving: not even root can replace a folder with a file."""
    agent.state_file.unlink()
    agent.state_file.mkdir()


def end(agent: Agent) -> None:
    agent.send(signal.SIGTERM)
    assert agent.await_exit() == 0


def hapgent(
    *arguments: Path | str, python: str = sys.executable, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run C(hapgent status) with these arguments and only this environment."""
    command = [python, "-I", "-S", compiled_for(python), "status", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env=environment or {})


def shown(*arguments: Path | str, **options: Any) -> str:
    """Return what C(hapgent status) prints, and assert that it reports no error."""
    done = hapgent(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the status socket in one test."""
    return tmp_path / "status.sock"


# What the socket reports


def test_status_has_all_fields(agents: Agents, python: str, path: Path) -> None:
    state = {"status": "DRAIN", "weight": 50, "maxconn": 9, "reason": 'Grüße, "q"'}
    before = time.time() - CLOCK_SECONDS
    agent = start(agents, path, json.dumps(state).encode(), settle=7, python=python)
    ask_from(agent, "127.0.0.2")
    document = status(path)
    after = time.time() + CLOCK_SECONDS

    moments = [document.pop(name) for name in ("started", "since")]
    moments += [document["peers"][0].pop(name) for name in ("first_seen", "last_seen")]
    assert all(before < moment < after for moment in moments)
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))["version"]
    assert document.pop("counters").keys() == {
        *["checks", "changes", "reloads", "saves", "failed_saves", "failed_accepts", "forgotten_peers"]
    }
    assert document == {
        "version": version,
        "answers_as": "0.3.2",
        "pid": agent.pid,
        "address": "127.0.0.1",
        "port": agent.port,
        "state": state,
        "answer": 'DRAIN UP 50% maxconn:9 # Grüße, "q"',
        "ramp_weight": None,
        "ramp_ends": None,
        "settle": 7,
        "state_file": str(agent.state_file),
        "state_file_ok": True,
        "last_error": None,
        "last_error_at": None,
        "peers": [
            {
                "address": "127.0.0.2",
                "checks": 1,
                "interval": None,
                "line": 'DRAIN UP 50% maxconn:9 # Grüße, "q"',
                "received": True,
                "settles_for": 0.0,
                "polls": False,
            }
        ],
    }


def test_no_socket_by_default(agents: Agents, path: Path) -> None:
    def sockets(agent: Agent) -> int:
        return sum(opened.startswith("socket:") for opened in agent.opened())

    # The agents are not polled, because the sockets of clients would be counted.
    agent = agents.start(wait=False)
    agent.await_log("answering")
    assert sockets(agent) == 1
    assert sockets(start(agents, "")) == 1
    assert sockets(start(agents, path)) == 2


def test_reports_each_load_balancer(agents: Agents, path: Path) -> None:
    agent = start(agents, path)
    asked: dict[str, list[tuple[float, float]]] = {}
    for address in ["127.0.0.3", "127.0.0.2", "127.0.0.4", "127.0.0.3", "127.0.0.3", "127.0.0.2"]:
        before = time.time()
        assert ask_from(agent, address) == b"UP\n"
        asked.setdefault(address, []).append((before - CLOCK_SECONDS, time.time() + CLOCK_SECONDS))

    known = peers(path)
    # The load balancers are sorted by address.
    assert list(known) == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    for address, times in asked.items():
        peer = known[address]
        assert peer["checks"] == len(times)
        assert times[0][0] < peer["first_seen"] < times[0][1]
        assert times[-1][0] < peer["last_seen"] < times[-1][1]
        assert (peer["first_seen"] < peer["last_seen"]) == (len(times) > 1)
    assert known["127.0.0.3"]["first_seen"] < known["127.0.0.2"]["first_seen"]
    assert known["127.0.0.3"]["last_seen"] < known["127.0.0.2"]["last_seen"]


def test_reports_what_each_load_balancer_received(agents: Agents, path: Path, eventually: Eventually) -> None:
    agent = start(agents, path, b'{"status": "DRAIN"}', settle=60)
    for address in ["127.0.0.2", "127.0.0.3"]:
        assert ask_from(agent, address) == b"DRAIN\n"
    reload(agent, path, {"status": "UP"}, eventually)
    assert ask_from(agent, "127.0.0.2") == b"UP READY\n"

    known = peers(path)
    received = {address: (peer["received"], peer["line"]) for address, peer in known.items()}
    assert received == {"127.0.0.2": (True, "UP READY"), "127.0.0.3": (False, "DRAIN")}
    assert 0 < known["127.0.0.2"]["settles_for"] <= 60
    assert known["127.0.0.3"]["settles_for"] == 0


def test_interval_is_that_of_the_load_balancer(agents: Agents, path: Path) -> None:
    agent = start(agents, path)
    moments: list[tuple[float, float]] = []
    for _check in range(8):
        before = time.monotonic()
        ask_from(agent, "127.0.0.2")
        moments.append((before, time.monotonic()))
        if len(moments) == 1:
            # A single check does not have an interval.
            assert peers(path)["127.0.0.2"]["interval"] is None
        ask_from(agent, "127.0.0.3")
        time.sleep(0.1)

    # However busy the machine is, the interval is between the shortest and the longest that occurred.
    pairs = list(itertools.pairwise(moments))
    shortest = min(later[0] - earlier[1] for earlier, later in pairs)
    longest = max(later[1] - earlier[0] for earlier, later in pairs)
    assert shortest >= 0.1
    assert shortest <= peers(path)["127.0.0.2"]["interval"] <= longest


def test_interval_adapts_when_the_load_balancer_polls_more_often(
    agents: Agents, path: Path, eventually: Eventually
) -> None:
    agent = start(agents, path)
    ask_from(agent, "127.0.0.2")
    time.sleep(0.8)
    ask_from(agent, "127.0.0.2")
    first = peers(path)["127.0.0.2"]["interval"]
    assert first >= 0.8

    def polls_more_often() -> bool:
        time.sleep(0.03)
        ask_from(agent, "127.0.0.2")
        return bool(peers(path)["127.0.0.2"]["interval"] < first / 2)

    eventually(polls_more_often, "the interval is less than half of the first one")


def test_absence_does_not_count_as_an_interval(agents: Agents, path: Path) -> None:
    agent = start(agents, path)
    ask_from(agent, "127.0.0.2")
    ask_from(agent, "127.0.0.2")
    end(agent)
    # Make the memory file look as if the load balancer had been offline for an hour.
    memory = agent.state_file.with_name("state.json.memory")
    known = json.loads(memory.read_bytes())
    known["peers"][0].update(interval=2, last_seen=time.time() - 3600)
    memory.write_text(json.dumps(known), encoding="utf-8")

    agent = start(agents, path, None, state_file=agent.state_file)
    # The agent was stopped meanwhile, so the load balancer still counts as polling.
    assert peers(path)["127.0.0.2"]["polls"]
    ask_from(agent, "127.0.0.2")
    assert 2 <= peers(path)["127.0.0.2"]["interval"] < 4


def test_reports_load_balancers_that_stopped_polling(agents: Agents, path: Path, eventually: Eventually) -> None:
    agent = start(agents, path)
    for _check in range(5):
        before = time.monotonic()
        ask_from(agent, "127.0.0.2")
        after = time.monotonic()
        time.sleep(0.05)
    # The agent waits for three intervals, but at least ten seconds.
    patience = max(10, 3 * peers(path)["127.0.0.2"]["interval"])

    def has_stopped() -> bool:
        looked = time.monotonic()
        polls: bool = peers(path)["127.0.0.2"]["polls"]
        # It must be neither earlier nor later, as far as the clock of this process shows.
        if polls:
            assert looked - after <= patience
        else:
            assert time.monotonic() - before > patience
        return not polls

    assert not has_stopped()
    eventually(has_stopped, "the load balancer counts as no longer polling")
    ask_from(agent, "127.0.0.2")
    assert peers(path)["127.0.0.2"]["polls"]


def test_load_balancers_are_known_after_a_restart(agents: Agents, path: Path) -> None:
    agent = start(agents, path, b'{"status": "DRAIN"}')
    for address in ["127.0.0.2", "127.0.0.2", "127.0.0.3"]:
        ask_from(agent, address)
    before = status(path)
    end(agent)
    again = start(agents, path, None, state_file=agent.state_file)
    after = status(path)

    assert after["pid"] == again.pid
    assert after["started"] > before["started"]
    assert after["counters"]["checks"] == 0
    assert len(after["peers"]) == 2
    for then, now in zip(before["peers"], after["peers"], strict=True):
        for name in ["address", "checks", "interval", "line", "received"]:
            assert now[name] == then[name]
        for name in ["first_seen", "last_seen"]:
            assert now[name] == pytest.approx(then[name], abs=CLOCK_SECONDS)


def test_since_is_when_the_state_was_changed(agents: Agents, path: Path, eventually: Eventually) -> None:
    agent = start(agents, path)
    first = status(path)["since"]
    # This is another way to write the same state.
    agent.write_state(b'{"status":\n"UP"}')
    agent.send(signal.SIGHUP)
    eventually(lambda: counters(path)["reloads"] == 1, "the state file is read again")
    assert status(path)["since"] == first

    before = time.time() - CLOCK_SECONDS
    agent.reload(b'{"status": "DRAIN"}', b"DRAIN\n")
    second = status(path)["since"]
    assert second > first
    assert before < second < time.time() + CLOCK_SECONDS

    end(agent)
    agent = start(agents, path, None, state_file=agent.state_file)
    assert status(path)["since"] == second
    end(agent)
    # The state changed while the agent was stopped, so it dates from the start of the agent.
    agent = start(agents, path, b'{"status": "READY"}', state_file=agent.state_file)
    assert status(path)["since"] > second


def test_since_stays_when_a_reason_is_removed(agents: Agents, path: Path) -> None:
    agent = start(agents, path, b'{"status": "UP", "reason": "release 4.2"}')
    first = status(path)["since"]
    agent.reload(b'{"status": "UP"}', b"UP\n")
    assert status(path)["since"] == first
    agent.reload(b'{"status": "UP", "reason": "release 4.3"}', b"UP # release 4.3\n")
    assert status(path)["since"] > first


def test_who_and_until_when_change_nothing_for_haproxy(agents: Agents, path: Path, eventually: Eventually) -> None:
    agent = start(agents, path, b'{"status": "DRAIN", "reason": "disk"}')
    ask_from(agent, "127.0.0.2")
    first = status(path)["since"]
    noted = {"status": "DRAIN", "reason": "disk", "by": "ada@control1", "until": "2026-11-28T06:00:00Z"}
    agent.write_state(json.dumps(noted).encode())
    agent.send(signal.SIGHUP)
    eventually(lambda: status(path)["state"] == noted, "the agent reports the notes")
    assert status(path)["answer"] == "DRAIN UP # disk"
    assert status(path)["since"] == first
    # The load balancer need not poll again.
    assert peers(path)["127.0.0.2"]["received"] is True
    agent.await_log(": DRAIN UP # disk -> DRAIN UP # disk, by ada@control1, until 2026-11-28T06:00:00Z (SIGHUP)")
    # It dates from the same moment after a restart, even if they have changed while the agent was stopped.
    end(agent)
    agent = start(agents, path, b'{"status": "DRAIN", "reason": "disk", "by": "bob"}', state_file=agent.state_file)
    assert status(path)["since"] == first
    assert peers(path)["127.0.0.2"]["received"] is True
    # A new status removes them.
    agent.send(signal.SIGUSR1)
    eventually(lambda: agent.saved() == {"status": "UP"}, "the new status is saved")


def test_reports_the_last_error_of_the_state_file(agents: Agents, path: Path, eventually: Eventually) -> None:
    agent = start(agents, path)

    def await_error(text: str, before: float) -> dict[str, Any]:
        eventually(lambda: text in (status(path)["last_error"] or ""), f"error {text!r}")
        document = status(path)
        assert not document["state_file_ok"]
        assert str(agent.state_file) in document["last_error"]
        assert before - CLOCK_SECONDS < document["last_error_at"] < time.time() + CLOCK_SECONDS
        return document

    before = time.time()
    agent.write_state(b'{"status": "UP", "weight": 300}')
    agent.send(signal.SIGHUP)
    broken = await_error("0 to 255", before)
    assert broken["state"] == {"status": "FAIL"}

    agent.reload(b'{"status": "UP"}', b"UP\n")
    recovered = status(path)
    assert recovered["state_file_ok"]
    # The last error is still reported.
    assert [recovered[name] for name in ("last_error", "last_error_at")] == [
        broken[name] for name in ("last_error", "last_error_at")
    ]

    occupy(agent)
    before = time.time()
    agent.send(signal.SIGUSR2)
    unsaved = await_error("not saved", before)
    assert unsaved["state"] == {"status": "DOWN"}
    assert unsaved["last_error_at"] > broken["last_error_at"]
    agent.reload(b'{"status": "UP"}', b"UP\n")
    assert status(path)["state_file_ok"]


def test_counts_checks_changes_reloads_and_saves(agents: Agents, path: Path, eventually: Eventually) -> None:
    agent = start(agents, path)
    # Whether the start counts as a change does not matter here.
    expected = counters(path)
    assert [expected[name] for name in expected if name != "changes"] == [0] * 6

    def assert_counted(**more: int) -> None:
        for name, count in more.items():
            expected[name] += count
        eventually(lambda: counters(path) == expected, f"counters {expected}")

    for address in ["127.0.0.2", "127.0.0.3", "127.0.0.2"]:
        ask_from(agent, address)
    assert_counted(checks=3)
    agent.send(signal.SIGHUP)
    assert_counted(reloads=1)
    agent.write_state(b'{"status": "DRAIN"}')
    agent.send(signal.SIGHUP)
    assert_counted(reloads=1, changes=1)
    agent.send(signal.SIGUSR2)
    assert_counted(saves=1, changes=1)
    # The state is already DOWN, so this saves it without a change.
    agent.send(signal.SIGUSR2)
    assert_counted(saves=1)
    occupy(agent)
    agent.send(signal.SIGUSR1)
    assert_counted(failed_saves=1, changes=1)
    agent.write_state(b"broken")
    agent.send(signal.SIGHUP)
    assert_counted(reloads=1, changes=1)
    # Reading the status is not a check and must not be counted.
    for _reader in range(5):
        status(path)
    assert counters(path) == expected


def test_counts_failed_accepts(agents: Agents, path: Path) -> None:
    agent = start(agents, path)
    limits = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
    before = time.monotonic()
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (NO_DESCRIPTORS_LEFT, limits[1]))
    with agent.connect() as client:
        agent.await_log("Too many open files")
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, limits)
        assert agent.read_to_end(client) == b"UP\n"
    tries = (time.monotonic() - before) / RETRY_SECONDS

    counted = counters(path)
    assert 1 <= counted["failed_accepts"] <= 1 + tries
    assert counted["checks"] == 1


def test_counts_forgotten_load_balancers(agents: Agents, path: Path) -> None:
    agent = start(agents, path)
    addresses = [f"127.1.{number // 200}.{1 + number % 200}" for number in range(MAX_PEERS + 5)]
    for address in addresses[:MAX_PEERS]:
        ask_from(agent, address)
    assert counters(path)["forgotten_peers"] == 0
    # This load balancer polls a second time, so others are forgotten first.
    ask_from(agent, addresses[0])
    for address in addresses[MAX_PEERS:]:
        ask_from(agent, address)
    assert counters(path)["forgotten_peers"] == 5
    known = peers(path).keys()
    assert len(known) == MAX_PEERS
    assert {addresses[0], addresses[-1]} <= known <= set(addresses)


# The socket itself


@pytest.mark.parametrize(
    "payload",
    [
        b'{"status": "DOWN"}\n',
        b"DOWN\n",
        b"reload\nstop\nquit\n",
        b"POST /state HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\n" + b'{"status": "DOWN"}',
        bytes(range(256)) * 4096,
    ],
    ids=["a state", "an answer", "commands", "HTTP", "a megabyte"],
)
def test_socket_is_read_only(agents: Agents, path: Path, payload: bytes) -> None:
    agent = start(agents, path)
    before = status(path)
    found = agent.state_file.stat().st_ino
    lines = agent.log()

    for _round in range(3):
        with connect(path) as client:
            # The agent does not read, and closes after it has sent the status.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(payload)
            received: list[bytes] = []
            with contextlib.suppress(ConnectionResetError):
                received += iter(lambda: client.recv(65_536), b"")
            assert json.loads(b"".join(received))["state"] == {"status": "UP"}

    after = status(path)
    # The start time is computed from two clocks, which are read one after the other.
    assert after.pop("started") == pytest.approx(before.pop("started"), abs=CLOCK_SECONDS)
    assert after == before
    assert agent.state_file.stat().st_ino == found
    assert agent.log() == lines
    assert agent.ask() == b"UP\n"


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=["umask 000", "umask 077"])
def test_only_owner_and_group_may_read_the_socket(agents: Agents, path: Path, umask: int) -> None:
    start(agents, path, before_exec=f"os.umask({umask})")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_socket_of_a_killed_agent_is_replaced(agents: Agents, path: Path) -> None:
    killed = start(agents, path)
    killed.kill()
    assert path.is_socket()
    agent = start(agents, path)
    assert status(path)["pid"] == agent.pid


def test_socket_is_removed_at_the_end(agents: Agents, path: Path) -> None:
    agent = start(agents, path)
    # A slow reader must not prevent that.
    with connect(path):
        end(agent)
    assert not path.exists()


def test_second_agent_leaves_the_socket_to_the_first(agents: Agents, path: Path) -> None:
    first = start(agents, path)
    second = start(agents, path, b'{"status": "DRAIN"}')
    (line,) = [line for line in second.log() if "HAPGENT_SOCKET" in line]
    for word in [str(path), "another agent"]:
        assert word in line
    assert second.ask() == b"DRAIN\n"
    assert status(path)["pid"] == first.pid

    end(second)
    assert status(path)["pid"] == first.pid


def occupy_with_a_file(folder: Path) -> Path:
    (folder / "file").write_text("must not change", encoding="utf-8")
    return folder / "file"


def occupy_with_a_folder(folder: Path) -> Path:
    (folder / "folder").mkdir()
    return folder / "folder"


# Root may run these tests, and permissions would not stop root.
@pytest.mark.parametrize(
    "choose",
    [
        occupy_with_a_file,
        occupy_with_a_folder,
        lambda folder: folder / "missing" / "status.sock",
        lambda folder: folder / ("x" * (MAX_PATH_BYTES + 1)),
    ],
    ids=["a file", "a folder", "in no folder", "too long"],
)
def test_works_without_a_status_socket(agents: Agents, tmp_path: Path, choose: Callable[[Path], Path]) -> None:
    unusable = choose(tmp_path)
    before = os.stat(unusable) if unusable.parent.exists() and unusable.exists() else None
    agent = start(agents, unusable)

    (line,) = [line for line in agent.log() if "HAPGENT_SOCKET" in line]
    assert repr(str(unusable)) in line
    assert agent.ask() == b"UP\n"
    agent.reload(b'{"status": "DRAIN"}', b"DRAIN\n")
    end(agent)
    if before:
        after = os.stat(unusable)
        assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    else:
        assert not unusable.parent.exists() or unusable.name not in os.listdir(unusable.parent)


# hapgent status


def test_table(agents: Agents, python: str, path: Path, eventually: Eventually) -> None:
    agent = start(agents, path, b'{"status": "UP", "weight": 50, "maxconn": 9, "reason": "as usual"}')
    assert shown(path, python=python).splitlines()[-1] == "no load balancer has polled the agent yet"

    for _check in range(3):
        ask_from(agent, "127.0.0.2")
    ask_from(agent, "127.0.0.3")
    reason = "Grüße, \"q\" \\ 'p'"
    notes = {"reason": reason, "by": "ada@control1", "until": "2999-11-28T06:00:00Z"}
    reload(agent, path, {"status": "DRAIN", "weight": 25, "maxconn": 8, **notes}, eventually)
    ask_from(agent, "127.0.0.2")
    table = shown(path, python=python)
    lines = table.splitlines()

    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+, \d+ s ago"
    facts = [
        *["state       DRAIN", "weight      25%", "maxconn     8", f"reason      {re.escape(reason)}"],
        *["by          ada@control1", r"until       2999-11-2\d \d\d:\d\d:\d\d \S+, in \d+ d"],
        *[f"since       {date}", f"answers on  127.0.0.1 port {agent.port}"],
        f"state file  {re.escape(str(agent.state_file))}",
        "",
        "load balancer +polls every +checks +state",
        r"127\.0\.0\.2 +\d+\.\d s +4 +received(, last seen \d+ s ago)?",
        r"127\.0\.0\.3 +- +1 +not yet, last seen \d+ s ago",
    ]
    assert len(lines) == len(facts)
    for fact, line in zip(facts, lines, strict=True):
        assert re.fullmatch(fact, line), table
    # Each column is aligned with its title.
    for title in ["polls every", "checks", "state"]:
        column = lines[10].index(title)
        assert all(row[column - 1] == " " != row[column] for row in lines[11:])


def test_table_leaves_out_fields_that_are_not_set(agents: Agents, path: Path) -> None:
    start(agents, path)
    lines = shown(path).splitlines()
    assert [line.partition("  ")[0] for line in lines[:4]] == ["state", "since", "answers on", "state file"]


def test_table_shows_which_load_balancer_has_the_state_and_polls(
    agents: Agents, path: Path, eventually: Eventually
) -> None:
    agent = start(agents, path)

    def row() -> str:
        return shown(path).splitlines()[-1]

    with agent.asked_by(clients=1):
        eventually(lambda: status(path)["peers"][0]["polls"], "a load balancer polls")
        assert re.fullmatch(r"127\.0\.0\.1 +\d+\.\d s +\d+ +received", row())
    eventually(lambda: not status(path)["peers"][0]["polls"], "no load balancer polls")
    assert re.fullmatch(r"127\.0\.0\.1 +\d+\.\d s +\d+ +received, last seen \d+ s ago", row())


def test_table_shows_the_error_of_the_state_file(agents: Agents, path: Path) -> None:
    agent = start(agents, path, b'{"status": "UP", "weight": 300}')
    lines = shown(path).splitlines()
    assert lines[:2] == ["state       FAIL", f"error       {status(path)['last_error']}"]
    assert f"state file  {agent.state_file}" in lines
    # The table shows the error only until the file is valid again.
    agent.reload(b'{"status": "UP"}', b"UP\n")
    assert status(path)["last_error"]
    assert not [line for line in shown(path).splitlines() if line.startswith("error")]


def test_json_is_what_the_socket_sends(agents: Agents, path: Path) -> None:
    agent = start(agents, path, json.dumps({"status": "DRAIN", "reason": 'Grüße, "q" \\'}).encode())
    reported = status(path)
    printed = shown("--json", path)
    assert "Grüße" in printed
    document = json.loads(printed)
    assert document.pop("started") == pytest.approx(reported.pop("started"), abs=CLOCK_SECONDS)
    assert document == reported
    ask_from(agent, "127.0.0.2")
    (peer,) = json.loads(shown(path, "--json"))["peers"]
    assert (peer["address"], peer["checks"], peer["received"]) == ("127.0.0.2", 1, True)


def test_socket_is_the_argument_or_from_the_environment(agents: Agents, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    pids = {path: start(agents, path).pid for path in (one, other)}
    environment = {"HAPGENT_SOCKET": str(one)}
    assert json.loads(shown("--json", environment=environment))["pid"] == pids[one]
    assert json.loads(shown("--json", other, environment=environment))["pid"] == pids[other]


def test_socket_is_that_of_the_role_by_default() -> None:
    # Only the help text is tested, because an agent of this machine may listen at that path.
    for environment in [{}, {"HAPGENT_SOCKET": ""}]:
        assert "/run/hapgent/hapgent/status.sock" in " ".join(shown("--help", environment=environment).split())


@contextlib.contextmanager
def nothing_there(_agents: Agents, _path: Path) -> Iterator[None]:
    yield


@contextlib.contextmanager
def killed_agent(agents: Agents, path: Path) -> Iterator[None]:
    start(agents, path).kill()
    assert path.is_socket()
    yield


@contextlib.contextmanager
def ended_agent(agents: Agents, path: Path) -> Iterator[None]:
    end(start(agents, path))
    yield


@contextlib.contextmanager
def another_program(path: Path, sends: bytes) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        code = f"import socket\nlistener = socket.socket(fileno={number})\n"
        code += f"while True:\n    with listener.accept()[0] as client: client.sendall({sends!r})"
        command = [sys.executable, "-I", "-S", "-c", code]
        with subprocess.Popen(command, pass_fds=[number]) as program:
            try:
                yield
            finally:
                program.kill()


def hangs_up(_agents: Agents, path: Path) -> contextlib.AbstractContextManager[None]:
    return another_program(path, b"")


def sends_a_list(_agents: Agents, path: Path) -> contextlib.AbstractContextManager[None]:
    return another_program(path, b"[1]\n")


def sends_no_json(_agents: Agents, path: Path) -> contextlib.AbstractContextManager[None]:
    return another_program(path, b"\xff\x00 220 ready\r\n")


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize("situation", [nothing_there, killed_agent, ended_agent, hangs_up, sends_a_list, sends_no_json])
def test_no_agent_is_an_error(
    agents: Agents,
    path: Path,
    situation: Callable[[Agents, Path], contextlib.AbstractContextManager[None]],
    arguments: list[str],
) -> None:
    with situation(agents, path):
        done = hapgent(*arguments, path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    for word in [str(path), "HAPGENT_SOCKET"]:
        assert word in line


@pytest.mark.parametrize("unusable", ["", "x" * (MAX_PATH_BYTES + 1), "/"], ids=["empty", "too long", "a folder"])
def test_path_that_cannot_be_a_socket_is_an_error(unusable: str) -> None:
    done = hapgent(unusable)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert f"no status from {unusable}: " in line


@pytest.mark.parametrize(
    "arguments", [["--yaml"], ["--json", "--prometheus"], ["one", "other"], ["--json=yes"]], ids=" ".join
)
def test_invalid_arguments_are_errors(agents: Agents, path: Path, arguments: list[str]) -> None:
    start(agents, path)
    done = hapgent(*arguments, environment={"HAPGENT_SOCKET": str(path)})
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: hapgent status" in done.stderr


# Metrics for Prometheus


@pytest.fixture
def promtool() -> Promtool:
    """A function that runs promtool, which checks metrics and rules."""
    if not os.access(PROMTOOL, os.X_OK):
        pytest.fail(f"there is no {PROMTOOL}: run tests/tools/install")

    def run(*arguments: Path | str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROMTOOL, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
            **options,
        )

    return run


def assert_accepted(promtool: Promtool, metrics: str) -> None:
    """Assert that promtool accepts the metrics and prints no warning."""
    done = promtool("check", "metrics", input=metrics)
    assert (done.returncode, done.stdout) == (0, "")


def samples(metrics: str) -> dict[str, float]:
    """Return the values by name and labels."""
    pairs = [line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#")]
    assert len({name for name, _value in pairs}) == len(pairs)
    return {name: float(value) for name, value in pairs}


def names(metrics: str) -> set[str]:
    return set(re.findall(r"^(\w+)\{", metrics, re.MULTILINE))


STATES = {
    "only a status": b'{"status": "UP"}',
    "all fields": json.dumps(
        {"status": "DRAIN", "weight": 50, "maxconn": 9, "reason": 'Grüße, "q" \\ \'p\' \\n {x="y"} 1'}
    ).encode(),
    "zeros": b'{"status": "MAINT", "weight": 0, "maxconn": 0}',
    "broken": b'{"status": "\\"\\\\"}',
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_promtool_accepts_the_metrics(agents: Agents, tmp_path: Path, promtool: Promtool, state: bytes) -> None:
    odd = tmp_path / 'of "web" \\ {grün}.sock'
    agent = start(agents, odd, state)
    assert_accepted(promtool, shown("--prometheus", odd))
    for address in ["127.0.0.2", "127.0.0.2", "127.0.0.3"]:
        ask_from(agent, address)
    assert_accepted(promtool, shown("--prometheus", environment={"HAPGENT_SOCKET": str(odd)}))


def test_metrics_match_the_status(agents: Agents, tmp_path: Path, promtool: Promtool, eventually: Eventually) -> None:
    odd = tmp_path / 'of "web" \\.sock'
    agent = start(agents, odd, b'{"status": "UP", "weight": 50, "maxconn": 9}', settle=60)
    for address in ["127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.3"]:
        ask_from(agent, address)
    reload(agent, odd, {"status": "DRAIN", "weight": 25, "until": "2026-11-27T12:00:00Z"}, eventually)
    ask_from(agent, "127.0.0.2")
    # From now on, only the remaining settling time changes.
    eventually(lambda: not peers(odd)["127.0.0.2"]["polls"], "the load balancer counts as no longer polling")
    reported = status(odd)
    metrics = shown("--prometheus", odd)
    assert_accepted(promtool, metrics)

    found = samples(metrics)
    label = 'socket="' + str(odd).replace("\\", "\\\\").replace('"', '\\"') + '"'
    settling = found.pop(f'hapgent_peer_settles_for_seconds{{{label},peer="127.0.0.2"}}')
    assert 0 < settling <= reported["peers"][0]["settles_for"]
    since = found.pop(f"hapgent_state_since_timestamp_seconds{{{label}}}")
    assert since == round(reported["since"], 3)
    assert since > found[f"hapgent_start_timestamp_seconds{{{label}}}"]
    expected = {
        f"hapgent_up{{{label}}}": 1,
        f'hapgent_info{{{label},version="{reported["version"]}"}}': 1,
        **{f'hapgent_state{{{label},status="{name}"}}': int(name == "DRAIN") for name in STATUSES},
        f"hapgent_weight{{{label}}}": 25,
        f"hapgent_until_timestamp_seconds{{{label}}}": 1795780800,
        f"hapgent_start_timestamp_seconds{{{label}}}": reported["started"],
        f"hapgent_state_file_ok{{{label}}}": 1,
        **{f"hapgent_{name}_total{{{label}}}": count for name, count in reported["counters"].items()},
        f'hapgent_peer_settles_for_seconds{{{label},peer="127.0.0.3"}}': 0,
        f'hapgent_peer_interval_seconds{{{label},peer="127.0.0.2"}}': reported["peers"][0]["interval"],
    }
    # A load balancer that polled only once has no interval.
    assert reported["peers"][1]["interval"] is None
    for peer in reported["peers"]:
        labels = f'{{{label},peer="{peer["address"]}"}}'
        expected |= {
            f"hapgent_peer_received_state{labels}": int(peer["address"] == "127.0.0.2"),
            f"hapgent_peer_polls{labels}": 0,
            f"hapgent_peer_last_seen_timestamp_seconds{labels}": peer["last_seen"],
            f"hapgent_peer_checks_total{labels}": peer["checks"],
        }
    # Values are rounded to milliseconds, and timestamps are computed from two clocks.
    assert found == pytest.approx(expected, abs=0.05)


def test_no_agent_is_a_metric(path: Path, promtool: Promtool) -> None:
    done = hapgent("--prometheus", path)
    assert done.returncode == 0
    assert samples(done.stdout) == {f'hapgent_up{{socket="{path}"}}': 0}
    assert_accepted(promtool, done.stdout)
    assert str(path) in done.stderr


# docs/monitoring.md


def documented_block(language: str, text: str = "") -> str:
    """Return the code block in this language that contains this text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", MONITORING, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if text in block]
    return str(block)


def documented_alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(documented_block("yaml"))["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def metrics_of_all_kinds(agents: Agents, path: Path) -> str:
    environment = {"HAPGENT_SOCKET": str(path), "HAPGENT_RAMP": "10,100", "HAPGENT_RAMP_SECONDS": "3600"}
    agent = agents.start(b'{"status": "DRAIN"}', environment=environment)
    state = b'{"status": "UP", "weight": 50, "maxconn": 9, "until": "2026-11-28T06:00:00Z"}'
    agent.reload(state, b"UP 5% maxconn:9\n")
    for _check in range(2):
        ask_from(agent, "127.0.0.2")
    return shown("--prometheus", path)


# Only the status of an instance has these, and not that of a socket. See test_commands.py.
OF_WEIGHING = {"hapgent_weighing_ok", "hapgent_weighing_reading_timestamp_seconds"}


def test_documentation_lists_each_metric(agents: Agents, path: Path) -> None:
    reported = names(metrics_of_all_kinds(agents, path)) | OF_WEIGHING
    rows = [line for line in MONITORING.splitlines() if line.startswith("| `hapgent_")]
    assert reported == set(re.findall(r"\bhapgent_\w+", "\n".join(rows)))
    used = set(re.findall(r"\bhapgent_\w+", " ".join(rule["expr"] for rule in documented_alerts())))
    assert used <= reported


def test_promtool_accepts_the_alerts(tmp_path: Path, promtool: Promtool) -> None:
    (tmp_path / "rules.yml").write_text(documented_block("yaml"), encoding="utf-8")
    done = promtool("check", "rules", tmp_path / "rules.yml")
    assert done.returncode == 0, done.stdout
    assert f"{len(documented_alerts())} rules found" in done.stdout
    assert "FAILED" not in done.stdout


def systemd_command() -> Sequence[str]:
    (line,) = re.findall(r"^ExecStart=(.*)$", documented_block("ini", "ExecStart="), re.MULTILINE)
    # This line uses quotes as a shell does.
    return shlex.split(line)


def test_documented_unit_writes_metrics(agents: Agents, tmp_path: Path, path: Path, promtool: Promtool) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "hapgent").symlink_to(ZIPAPP)
    folder = tmp_path / "textfiles"
    folder.mkdir()
    written = folder / "hapgent.prom"
    environment = {"PATH": f"{programs}:{os.defpath}", "HAPGENT_SOCKET": str(path)}

    agent = start(agents, path)
    subprocess.run(systemd_command(), cwd=folder, env=environment, check=True)
    metrics = written.read_text(encoding="utf-8")
    assert_accepted(promtool, metrics)
    assert samples(metrics)[f'hapgent_up{{socket="{path}"}}'] == 1
    assert os.listdir(folder) == ["hapgent.prom"]

    end(agent)
    subprocess.run(systemd_command(), cwd=folder, env=environment, check=True)
    metrics = written.read_text(encoding="utf-8")
    assert_accepted(promtool, metrics)
    assert samples(metrics) == {f'hapgent_up{{socket="{path}"}}': 0}


def test_documented_unit_keeps_the_old_metrics_when_it_fails(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "hapgent").symlink_to(ZIPAPP)
    # PATH has everything that the unit needs, except Python.
    mv = shutil.which("mv")
    assert mv
    (programs / "mv").symlink_to(mv)
    folder = tmp_path / "textfiles"
    folder.mkdir()
    written = folder / "hapgent.prom"
    written.write_text("from before", encoding="utf-8")

    done = subprocess.run(
        systemd_command(), cwd=folder, env={"PATH": str(programs)}, stderr=subprocess.PIPE, check=False
    )
    assert done.returncode != 0
    assert b"python3" in done.stderr
    assert written.read_text(encoding="utf-8") == "from before"


# The alerts. Time starts at the beginning of 1970 in promtool's tests.

MINUTES = 1600
WEB1 = "web1:9100"
SOCKET = "/run/hapgent/hapgent/status.sock"
Series = dict[str, str]


def metric(name: str, value: float, **labels: str) -> Series:
    """Return a series with this constant value."""
    text = ",".join(f'{key}="{label}"' for key, label in labels.items())
    return {"series": f"{name}{{{text}}}", "values": f"{value}+0x{MINUTES}"}


def agent_metrics(
    instance: str = WEB1,
    path: str = SOCKET,
    *,
    state: str = "UP",
    state_file_ok: int = 1,
    peers: Mapping[str, tuple[int, int]] | None = None,
    last_seen: int = MINUTES * 60,
    weighing: tuple[int, int] | None = None,
    until: int | None = None,
) -> list[Series]:
    """Return the metrics of an agent. C(peers) has two values for each: whether it has the state, whether it polls.

    C(weighing) is whether the weight follows the load, and the time of the last reading.
    """
    labels = {"instance": instance, "job": "node", "socket": path}
    found = [
        metric("hapgent_up", 1, **labels),
        *[metric("hapgent_state", int(name == state), **labels, status=name) for name in STATUSES],
        metric("hapgent_state_file_ok", state_file_ok, **labels),
    ]
    if until:
        found.append(metric("hapgent_until_timestamp_seconds", until, **labels))
    if weighing:
        found += [
            metric("hapgent_weighing_ok", weighing[0], **labels),
            metric("hapgent_weighing_reading_timestamp_seconds", weighing[1], **labels),
        ]
    for address, (received_state, polls) in ({"192.0.2.1": (1, 1)} if peers is None else peers).items():
        found += [
            metric("hapgent_peer_received_state", received_state, **labels, peer=address),
            metric("hapgent_peer_polls", polls, **labels, peer=address),
            metric("hapgent_peer_last_seen_timestamp_seconds", last_seen, **labels, peer=address),
        ]
    return found


def of_agent(instance: str = WEB1, path: str = SOCKET, **more: str) -> dict[str, str]:
    """Return the labels of an alert about this agent."""
    return {"instance": instance, "job": "node", "socket": path, **more}


NOT_POLLED, STATE_NOT_RECEIVED, STATE_FILE, WEIGHT, OVERDUE, DRAINED, NO_STATUS = (
    *["HapgentNotPolled", "HapgentStateNotReceived"],
    *["HapgentStateFile", "HapgentWeight", "HapgentOverdue", "HapgentDrainedForLong", "HapgentNoStatus"],
)
# The metrics, how long they have had these values, and the alerts that fire then.
Situation = tuple[list[Series], str, dict[str, list[dict[str, str]]]]
SITUATIONS: dict[str, Situation] = {
    "all is well": (agent_metrics(), "26h", {}),
    "never polled": (agent_metrics(peers={}), "3m", {NOT_POLLED: [of_agent()]}),
    "not polled yet": (agent_metrics(peers={}), "1m", {}),
    "all load balancers stopped polling": (
        agent_metrics(peers={"192.0.2.1": (1, 0), "192.0.2.2": (1, 0)}),
        "3m",
        {NOT_POLLED: [of_agent()]},
    ),
    "one load balancer stopped polling": (agent_metrics(peers={"192.0.2.1": (1, 0), "192.0.2.2": (1, 1)}), "3m", {}),
    "only another agent on the host is polled": (
        agent_metrics(peers={}) + agent_metrics(path="/run/hapgent/other/status.sock"),
        "3m",
        {NOT_POLLED: [of_agent()]},
    ),
    "only an agent on another host is polled": (
        agent_metrics(peers={}) + agent_metrics("web2:9100"),
        "3m",
        {NOT_POLLED: [of_agent()]},
    ),
    "an agent on another host is no longer polled": (
        agent_metrics() + agent_metrics("web2:9100", peers={"192.0.2.1": (1, 0)}),
        "3m",
        {NOT_POLLED: [of_agent("web2:9100")]},
    ),
    "some stopped polling without the state": (
        agent_metrics(peers={"192.0.2.1": (0, 0), "192.0.2.2": (1, 1), "192.0.2.3": (0, 0)}),
        "2m",
        {STATE_NOT_RECEIVED: [of_agent(peer="192.0.2.1"), of_agent(peer="192.0.2.3")]},
    ),
    "one just stopped polling without the state": (
        agent_metrics(peers={"192.0.2.1": (0, 0), "192.0.2.2": (1, 1)}),
        "0m",
        {},
    ),
    "one has not received the state yet": (agent_metrics(peers={"192.0.2.1": (0, 1)}), "26h", {}),
    "one has not received the state yet, another stopped polling": (
        agent_metrics(peers={"192.0.2.1": (0, 1), "192.0.2.2": (1, 0)}),
        "3m",
        {},
    ),
    # 192.0.2.1 has the state of the other agent on the host, which it no longer polls.
    "one load balancer knows two agents of a host": (
        agent_metrics(peers={"192.0.2.1": (0, 1)})
        + agent_metrics(path="/run/hapgent/other/status.sock", peers={"192.0.2.1": (1, 0), "192.0.2.2": (1, 1)}),
        "3m",
        {},
    ),
    "one load balancer knows agents of two hosts": (
        agent_metrics(peers={"192.0.2.1": (0, 1)})
        + agent_metrics("web2:9100", peers={"192.0.2.1": (1, 0), "192.0.2.2": (1, 1)}),
        "3m",
        {},
    ),
    "one was decommissioned less than a day ago": (
        agent_metrics(peers={"192.0.2.1": (0, 0), "192.0.2.2": (1, 1)}, last_seen=0),
        "23h",
        {STATE_NOT_RECEIVED: [of_agent(peer="192.0.2.1")]},
    ),
    "one was decommissioned more than a day ago": (
        agent_metrics(peers={"192.0.2.1": (0, 0), "192.0.2.2": (1, 1)}, last_seen=0),
        "26h",
        {},
    ),
    "the state file is broken": (
        agent_metrics(state_file_ok=0) + agent_metrics("web2:9100"),
        "0m",
        {STATE_FILE: [of_agent()]},
    ),
    "the weight follows the load": (agent_metrics(weighing=(1, MINUTES * 60)), "15m", {}),
    "the weight command fails": (
        agent_metrics(weighing=(0, MINUTES * 60)) + agent_metrics("web2:9100"),
        "2m",
        {WEIGHT: [of_agent()]},
    ),
    "the weight command does not run any more": (agent_metrics(weighing=(1, 0)), "15m", {WEIGHT: [of_agent()]}),
    "drained for long": (
        agent_metrics(state="DRAIN")
        + agent_metrics("web2:9100", state="MAINT")
        + agent_metrics("web3:9100", state="READY"),
        "26h",
        {DRAINED: [of_agent(status="DRAIN"), of_agent("web2:9100", status="MAINT")]},
    ),
    "drained for long, and for as long as expected": (
        agent_metrics(state="DRAIN") + agent_metrics("web2:9100", state="DRAIN", until=7 * 86400),
        "26h",
        {DRAINED: [of_agent(status="DRAIN")]},
    ),
    "drained for longer than expected": (
        agent_metrics(state="DRAIN", until=3600) + agent_metrics("web2:9100", state="DRAIN", until=2 * 3600),
        "70m",
        {OVERDUE: [of_agent()]},
    ),
    "about to come back": (agent_metrics(state="DRAIN", until=3600), "64m", {}),
    "drained for less than a day": (agent_metrics(state="DRAIN"), "23h", {}),
    "down for long": (agent_metrics(state="DOWN"), "26h", {}),
    "there is no agent": (
        [metric("hapgent_up", 0, instance=WEB1, job="node", socket=SOCKET)],
        "26h",
        {NO_STATUS: [of_agent()]},
    ),
}


def assert_alerts(
    promtool: Promtool, folder: Path, series: list[Series], at: str, expected: Mapping[str, list[dict[str, str]]]
) -> None:
    """Assert that exactly these alerts fire at this time, with these labels."""
    rules = documented_alerts()
    assert expected.keys() <= {rule["alert"] for rule in rules}
    (folder / "rules.yml").write_text(documented_block("yaml"), encoding="utf-8")
    alert_tests = []
    for rule in rules:
        alerts = []
        for labels in expected.get(rule["alert"], []):
            summary = rule["annotations"]["summary"].replace("{{ $labels.peer }}", labels.get("peer", ""))
            alerts.append({"exp_labels": labels, "exp_annotations": {"summary": summary}})
        alert_tests.append({"eval_time": at, "alertname": rule["alert"], "exp_alerts": alerts})
    # Evaluating every minute of 26 hours would take too long.
    interval = "4m" if at.endswith("h") else "1m"
    tests = [{"interval": interval, "input_series": series, "alert_rule_test": alert_tests}]
    document = {"rule_files": ["rules.yml"], "evaluation_interval": interval, "tests": tests}
    (folder / "test.yml").write_text(json.dumps(document), encoding="utf-8")
    done = promtool("test", "rules", folder / "test.yml")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_alerts_fire_as_documented(promtool: Promtool, tmp_path: Path, situation: Situation) -> None:
    series, at, expected = situation
    assert_alerts(promtool, tmp_path, series, at, expected)


def test_each_alert_fires_in_some_situation() -> None:
    firing = {alert for _series, _at, alerts in SITUATIONS.values() for alert in alerts}
    assert firing == {rule["alert"] for rule in documented_alerts()}


def test_alerts_on_the_metrics_of_a_real_agent(
    agents: Agents, path: Path, tmp_path: Path, promtool: Promtool, eventually: Eventually
) -> None:
    def scraped() -> list[Series]:
        of_host = f'instance="{WEB1}",job="node"'
        found = samples(shown("--prometheus", path)).items()
        return [
            {"series": name.replace("{", f"{{{of_host},", 1), "values": f"{value:f}+0x{MINUTES}"}
            for name, value in found
        ]

    agent = start(agents, path)
    with agent.asked_by(clients=1):
        eventually(lambda: status(path)["peers"][0]["polls"], "a load balancer polls")
        series = scraped()
    assert_alerts(promtool, tmp_path, series, "5m", {})

    agent.write_state(b"broken")
    agent.send(signal.SIGHUP)
    agent.await_log("SIGHUP")
    eventually(lambda: not status(path)["peers"][0]["polls"], "no load balancer polls")
    expected = {
        NOT_POLLED: [of_agent(path=str(path))],
        STATE_NOT_RECEIVED: [of_agent(path=str(path), peer="127.0.0.1")],
        STATE_FILE: [of_agent(path=str(path))],
    }
    assert_alerts(promtool, tmp_path, scraped(), "5m", expected)
