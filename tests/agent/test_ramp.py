# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A server that comes into rotation gets a growing part of its weight.

The file has these parts:

- the answers of an agent: when a ramp begins, what its steps are, and what ends it;
- restarts: a ramp continues, and none begins without a reason;
- what the agent reports meanwhile, and changes that are waited for;
- the weight in a real HAProxy;
- the settings.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prepared import compiled_for
from real_haproxy import LoadBalancer

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually, FreePort

# LONG outlasts every test; SHORT ends soon enough for a test to wait.
LONG, SHORT = 3600, 1
# Another load balancer than 127.0.0.1, from which agent.ask() polls.
OTHER = "127.0.0.2"


def content(status: str, **fields: object) -> bytes:
    return json.dumps({"status": status, **fields}).encode()


DRAIN, UP = content("DRAIN"), content("UP")


def settings(seconds: int, settle: int = 0, percents: str = "10,50,100", **more: str) -> dict[str, str]:
    ramp = {"HAPGENT_RAMP": percents, "HAPGENT_RAMP_SECONDS": str(seconds)}
    return {**ramp, "HAPGENT_SETTLE": str(settle), **more}


def ask(agent: Agent, address: str) -> bytes:
    with socket.create_connection((agent.ip, agent.port), 15, source_address=(address, 0)) as client:
        return agent.read_to_end(client)


def answers_until(agent: Agent, last: bytes, eventually: Eventually) -> list[bytes]:
    """Poll until this answer arrives, and return the different answers in their order."""
    answers = [agent.ask()]

    def is_last() -> bool:
        answer = agent.ask()
        if answer != answers[-1]:
            answers.append(answer)
        return answer == last

    eventually(is_last, f"answer {last!r}")
    return answers


def start_again(agents: Agents, agent: Agent, number: signal.Signals, environment: dict[str, str]) -> Agent:
    agent.send(number)
    agent.await_exit()
    return agents.start(None, state_file=agent.state_file, port=agent.port, environment=environment)


def memory_of(agent: Agent) -> Path:
    return agent.state_file.with_name("state.json.memory")


def begin_earlier(agent: Agent, seconds: int) -> None:
    """Make the memory of an ended agent look as if its ramp had begun earlier."""
    known = json.loads(memory_of(agent).read_bytes())
    known["entered"] -= seconds
    memory_of(agent).write_text(json.dumps(known), encoding="utf-8")


# The answers


def test_each_step_is_sent_and_then_the_state_alone(agents: Agents, python: str, eventually: Eventually) -> None:
    agent = agents.start(DRAIN, python=python, environment=settings(SHORT))
    assert agent.ask() == b"DRAIN\n"
    agent.write_state(UP)
    agent.send(signal.SIGHUP)
    answers = answers_until(agent, b"UP\n", eventually)
    # A busy machine may skip a step, but never changes their order.
    steps = [b"DRAIN\n", b"UP 10%\n", b"UP 50%\n", b"UP 100%\n", b"UP\n"]
    assert answers == [answer for answer in steps if answer in answers]


@pytest.mark.parametrize("status", ["DOWN", "DRAIN", "FAIL", "MAINT", "STOPPED"])
def test_first_answer_after_another_status_is_already_small(
    agents: Agents, eventually: Eventually, status: str
) -> None:
    agent = agents.start(content(status), environment=settings(LONG))
    agent.send(signal.SIGUSR1)
    assert set(answers_until(agent, b"UP 10%\n", eventually)) <= {f"{status}\n".encode(), b"UP 10%\n"}
    # The file has the state and not the weight of the ramp.
    agent.await_saved({"status": "UP"})


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        (content("READY"), b"READY 10%\n"),
        (content("UP", weight=50, maxconn=9, reason="x"), b"UP 5% maxconn:9 # x\n"),
        (content("UP", weight=1), b"UP 1%\n"),
        (content("UP", weight=0), b"UP 0%\n"),
        (content("DRAIN", weight=50), b"DRAIN 50%\n"),
        (content("DOWN"), b"DOWN\n"),
    ],
)
def test_part_of_the_weight_is_sent(agents: Agents, state: bytes, answer: bytes) -> None:
    agent = agents.start(content("MAINT"), environment=settings(LONG))
    agent.reload(state, answer)


def test_changes_in_rotation_neither_begin_nor_end_a_ramp(agents: Agents) -> None:
    agent = agents.start(environment=settings(LONG))
    agent.reload(content("UP", weight=50), b"UP 50%\n")
    agent.reload(content("READY"), b"READY\n")
    agent.reload(DRAIN, b"DRAIN\n")
    agent.reload(UP, b"UP 10%\n")
    for state, answer in [
        (content("UP", weight=50), b"UP 5%\n"),
        (content("UP", weight=50, reason="x"), b"UP 5% # x\n"),
        (content("READY"), b"READY 10%\n"),
    ]:
        agent.reload(state, answer)


def test_drain_in_the_middle_ends_the_ramp(agents: Agents) -> None:
    agent = agents.start(DRAIN, environment=settings(LONG, settle=LONG))
    agent.reload(UP, b"UP READY 10%\n")
    # What each load balancer received is reset, also if it received it before the drain.
    assert ask(agent, OTHER) == b"UP READY 10%\n"
    agent.reload(DRAIN, b"DRAIN UP 100%\n")
    assert ask(agent, OTHER) == b"DRAIN UP 100%\n"
    # A load balancer with a new address may have received it, too.
    assert ask(agent, "127.0.0.3") == b"DRAIN UP 100%\n"
    agent.reload(UP, b"UP READY 10%\n")


def test_weight_is_reset_where_the_last_step_was_missed(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(DRAIN, environment=settings(LONG, settle=LONG))
    agent.reload(UP, b"UP READY 10%\n")
    agent.send(signal.SIGTERM)
    agent.await_exit()
    begin_earlier(agent, 3 * LONG)
    environment = settings(LONG, settle=SHORT)
    agent = agents.start(None, state_file=agent.state_file, port=agent.port, environment=environment, wait=False)
    agent.await_log("answering")
    # A load balancer with a new address has received no weight.
    assert ask(agent, OTHER) == b"UP READY\n"
    assert answers_until(agent, b"UP\n", eventually)[0] == b"UP READY 100%\n"


# Restarts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ramp_continues_after_a_restart(agents: Agents, number: signal.Signals) -> None:
    agent = agents.start(DRAIN, environment=settings(LONG))
    agent.reload(UP, b"UP 10%\n")
    entered = json.loads(memory_of(agent).read_bytes())["entered"]
    agent = start_again(agents, agent, number, settings(LONG))
    assert agent.ask() == b"UP 10%\n"
    agent.send(signal.SIGTERM)
    agent.await_exit()
    assert json.loads(memory_of(agent).read_bytes())["entered"] == pytest.approx(entered, abs=0.5)

    for answer in (b"UP 50%\n", b"UP 100%\n", b"UP\n"):
        begin_earlier(agent, LONG)
        agent = agents.start(None, state_file=agent.state_file, port=agent.port, environment=settings(LONG))
        assert agent.ask() == answer
        agent.send(signal.SIGTERM)
        agent.await_exit()
    assert json.loads(memory_of(agent).read_bytes())["entered"] is None


def test_what_was_sent_before_a_kill_is_reset(agents: Agents) -> None:
    environment = settings(LONG, settle=LONG)
    agent = agents.start(DRAIN, environment=environment)
    agent.reload(UP, b"UP READY 10%\n")
    agent.reload(DRAIN, b"DRAIN UP 100%\n")
    agent = start_again(agents, agent, signal.SIGKILL, environment)
    # A signal may have set UP in the last second.
    assert ask(agent, OTHER) == b"DRAIN UP 100%\n"


def test_ramp_ends_if_it_is_turned_off(agents: Agents) -> None:
    agent = agents.start(DRAIN, environment=settings(LONG, settle=LONG))
    agent.reload(UP, b"UP READY 10%\n")
    agent = start_again(agents, agent, signal.SIGTERM, settings(LONG, settle=LONG, percents=""))
    assert agent.ask() == b"UP READY 100%\n"


def test_start_without_a_memory_begins_no_ramp(agents: Agents) -> None:
    assert agents.start(environment=settings(LONG)).ask() == b"UP\n"


@pytest.mark.parametrize("percents", ["", "10,50,100"])
def test_restart_never_reduces_the_weight(agents: Agents, percents: str) -> None:
    """Not even after an upgrade from a release without ramps, or if a ramp was just set."""
    agent = agents.start(DRAIN, environment=settings(SHORT, percents=""))
    agent.reload(UP, b"UP\n")
    agent.send(signal.SIGTERM)
    agent.await_exit()
    known = json.loads(memory_of(agent).read_bytes())
    assert known.pop("entered") is None
    if percents:
        memory_of(agent).write_text(json.dumps(known), encoding="utf-8")
    environment = settings(LONG, settle=LONG)
    agent = agents.start(None, state_file=agent.state_file, port=agent.port, environment=environment)
    assert agent.ask() == b"UP\n"


def test_undrain_while_stopped_begins_a_ramp(agents: Agents) -> None:
    agent = agents.start(DRAIN, environment=settings(LONG))
    agent.send(signal.SIGTERM)
    agent.await_exit()
    agent.write_state(UP)
    agent = agents.start(None, state_file=agent.state_file, port=agent.port, environment=settings(LONG))
    assert agent.ask() == b"UP 10%\n"


@pytest.mark.parametrize("entered", [-1, 0, 9e12])
def test_impossible_time_in_the_memory_is_corrected(agents: Agents, entered: float) -> None:
    agent = agents.start(UP, environment=settings(LONG))
    agent.send(signal.SIGTERM)
    agent.await_exit()
    known = json.loads(memory_of(agent).read_bytes())
    memory_of(agent).write_text(json.dumps({**known, "entered": entered}), encoding="utf-8")
    agent = agents.start(None, state_file=agent.state_file, port=agent.port, environment=settings(LONG))
    assert agent.ask() == (b"UP 10%\n" if entered > 1e12 else b"UP\n")
    assert "state.json.memory" not in agent.log()[0]


# What is reported


def status(path: Path) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(15)
        reader.connect(str(path))
        document: dict[str, Any] = json.loads(b"".join(iter(lambda: reader.recv(65_536), b"")))
    return document


def hapgent(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(compiled_for(sys.executable)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_status_shows_the_ramp(agents: Agents, tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    agent = agents.start(content("DRAIN", weight=80), environment=settings(LONG, HAPGENT_SOCKET=str(path)))
    assert (status(path)["ramp_weight"], status(path)["ramp_ends"]) == (None, None)
    assert "\nramp " not in hapgent("status", str(path), environment={}).stdout
    before = time.time() - 0.5
    agent.reload(content("UP", weight=80), b"UP 8%\n")

    document = status(path)
    assert (document["state"], document["answer"]) == ({"status": "UP", "weight": 80}, "UP 80%")
    assert document["ramp_weight"] == 8
    assert before < document["ramp_ends"] - 2 * LONG < time.time() + 0.5
    assert [(peer["line"], peer["received"]) for peer in document["peers"]] == [("UP 8%", True)]
    assert "\nramp        sends 8% now, the whole weight from " in hapgent("status", str(path), environment={}).stdout
    metrics = hapgent("status", str(path), "--prometheus", environment={}).stdout.splitlines()
    assert f'hapgent_ramp_weight{{socket="{path}"}} 8' in metrics
    assert f'hapgent_weight{{socket="{path}"}} 80' in metrics


def test_steps_change_nothing_but_the_weight(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    path = tmp_path / "status.sock"
    agent = agents.start(DRAIN, environment=settings(SHORT, settle=LONG, HAPGENT_SOCKET=str(path)))
    agent.reload(UP, b"UP READY 10%\n")
    first, seen = status(path), set()

    def is_over() -> bool:
        # The agent is polled less often than it is asked, so that steps begin in between.
        for _time in range(20):
            now = status(path)
            seen.add(now["ramp_weight"])
            assert all(now[name] == first[name] for name in ("state", "answer", "since"))
            assert [peer["received"] for peer in now["peers"]] == [True]
        return agent.ask() == b"UP READY 100%\n" and now["ramp_weight"] is None

    eventually(is_over, "the ramp is over")
    assert 10 in seen
    assert None in seen


@pytest.mark.parametrize("has_socket", [True, False])
@pytest.mark.parametrize("settle", [0, LONG])
def test_change_is_done_at_the_first_step(agents: Agents, tmp_path: Path, has_socket: bool, settle: int) -> None:
    path = tmp_path / "status.sock"
    more = {"HAPGENT_SOCKET": str(path)} if has_socket else {}
    agent = agents.start(DRAIN, environment=settings(LONG, settle, **more))
    place = {"HAPGENT_STATE_FILE": str(agent.state_file), "HAPGENT_PORT": str(agent.port), **more}

    done = hapgent("up", environment=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert agent.ask().endswith(b" 10%\n")
    # The same again finds nothing to do.
    assert hapgent("up", environment=place).returncode == 0
    done = hapgent("set", "weight=50", environment=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert agent.ask().endswith(b" 5%\n")
    assert agent.saved() == {"status": "UP", "weight": 50}


def test_waiting_for_load_balancers_ends_at_the_first_step(
    agents: Agents, tmp_path: Path, haproxy: LoadBalancer, eventually: Eventually
) -> None:
    path = tmp_path / "status.sock"
    agent = agents.start(DRAIN, environment=settings(LONG, HAPGENT_SOCKET=str(path)))
    serve(haproxy, agent)
    eventually(lambda: any(peer["polls"] for peer in status(path)["peers"]), "HAProxy polls")
    done = hapgent("up", "--wait", "15", environment={"HAPGENT_STATE_FILE": str(agent.state_file)})
    assert (done.returncode, done.stderr) == (0, "")
    # The answer that HAProxy has received is the first one after the drain.
    assert status(path)["ramp_weight"] == 10


# HAProxy


@pytest.fixture
def haproxy(tmp_path: Path, free_port: FreePort) -> Iterator[LoadBalancer]:
    balancer = LoadBalancer(tmp_path, free_port)
    yield balancer
    balancer.end()


def serve(balancer: LoadBalancer, agent: Agent) -> None:
    """Start HAProxy with a server that has this agent."""
    checks = f"check inter 200ms agent-check agent-addr 127.0.0.1 agent-port {agent.port} agent-inter 100ms weight 200"
    balancer.backend("web", f"server shop SERVICE {checks}")
    balancer.start()


def shown(balancer: LoadBalancer) -> tuple[str, str]:
    """The status and the weight of the server in HAProxy's statistics."""
    rows = [line.split(",") for line in balancer.send("show stat").splitlines()]
    (row,) = (row for row in rows if row[:2] == ["web", "shop"])
    return row[17].split()[0], row[18]


def await_shown(balancer: LoadBalancer, eventually: Eventually, status: str, weight: int) -> None:
    eventually(lambda: shown(balancer) == (status, str(weight)), f"HAProxy shows {status} with weight {weight}")


@pytest.mark.parametrize("settle", [0, 2])
def test_haproxy_gets_the_whole_weight_at_the_end(
    agents: Agents, haproxy: LoadBalancer, eventually: Eventually, settle: int
) -> None:
    # Without settling, only READY ends the drain.
    drain, up = DRAIN, content("UP" if settle else "READY")
    agent = agents.start(drain, environment=settings(2, settle))
    serve(haproxy, agent)
    await_shown(haproxy, eventually, "DRAIN", 200)
    agent.write_state(up)
    agent.send(signal.SIGHUP)
    for weight in (20, 100, 200):
        await_shown(haproxy, eventually, "UP", weight)
    # The state alone keeps the weight.
    bare = b"UP\n" if settle else b"READY\n"
    eventually(lambda: ask(agent, OTHER) == bare and agent.ask() == bare, "the state alone")
    assert shown(haproxy) == ("UP", "200")


def test_haproxy_gets_the_whole_weight_after_a_drain_in_the_middle(
    agents: Agents, haproxy: LoadBalancer, eventually: Eventually
) -> None:
    agent = agents.start(DRAIN, environment=settings(LONG, settle=LONG))
    serve(haproxy, agent)
    await_shown(haproxy, eventually, "DRAIN", 200)
    agent.send(signal.SIGUSR1)
    await_shown(haproxy, eventually, "UP", 20)
    agent.send(signal.SIGUSR2)
    await_shown(haproxy, eventually, "DOWN", 200)
    agent.send(signal.SIGUSR1)
    await_shown(haproxy, eventually, "UP", 20)


def test_haproxy_keeps_the_step_while_the_agent_restarts(
    agents: Agents, haproxy: LoadBalancer, eventually: Eventually
) -> None:
    environment = settings(LONG, settle=LONG)
    agent = agents.start(DRAIN, environment=environment)
    serve(haproxy, agent)
    await_shown(haproxy, eventually, "DRAIN", 200)
    agent.send(signal.SIGUSR1)
    await_shown(haproxy, eventually, "UP", 20)
    agent.send(signal.SIGTERM)
    agent.await_exit()
    begin_earlier(agent, LONG)
    agents.start(None, state_file=agent.state_file, port=agent.port, environment=environment)
    await_shown(haproxy, eventually, "UP", 100)


# The settings


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("HAPGENT_RAMP", "10,50", "end with 100"),
        ("HAPGENT_RAMP", "\x1b" * 5000, "end with 100"),
        ("HAPGENT_RAMP_SECONDS", "0", "1 to 86400"),
        ("HAPGENT_RAMP_SECONDS", "86401", "1 to 86400"),
    ],
)
def test_invalid_setting_is_an_error(agents: Agents, name: str, value: str, rule: str) -> None:
    agent = agents.start(environment={name: value}, wait=False)
    assert agent.await_exit() == 2
    (line,) = agent.log()
    assert name in line
    assert rule in line
    assert line.isprintable()
    assert len(line) < 400
