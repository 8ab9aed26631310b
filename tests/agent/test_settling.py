# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""For a while after a change, the agent also sends each load balancer the keywords that reset its previous state.

The file has these parts:

- what the agent sends after each change of the status, the weight, maxconn and the reason;
- how long it does so: each load balancer has its own time, counted from its first poll after the change;
- changes that are none: they neither start nor prolong nor shorten that time;
- restarts, kills and unusable memory files: the agent still resets the previous state;
- IPv4 addresses on IPv6 sockets, and the setting HAPGENT_SETTLE.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually

STATUSES = ["UP", "DOWN", "READY", "DRAIN", "FAIL", "MAINT", "STOPPED"]

# The answers for a while after a change from the status on the left to each of STATUSES. In HAProxy, UP does not end an
# administrative state, and READY does not end DOWN.
WHILE_IT_SETTLES = {
    "UP": ["UP", "DOWN", "READY UP", "DRAIN UP", "FAIL", "MAINT UP", "STOPPED"],
    "DOWN": ["UP", "DOWN", "READY UP", "DRAIN UP", "FAIL", "MAINT UP", "STOPPED"],
    "READY": ["UP READY", "DOWN READY", "READY", "DRAIN UP", "FAIL READY", "MAINT UP", "STOPPED READY"],
    "DRAIN": ["UP READY", "DOWN READY", "READY UP", "DRAIN", "FAIL READY", "MAINT UP", "STOPPED READY"],
    "FAIL": ["UP", "DOWN", "READY UP", "DRAIN UP", "FAIL", "MAINT UP", "STOPPED"],
    "MAINT": ["UP READY", "DOWN READY", "READY UP", "DRAIN UP", "FAIL READY", "MAINT", "STOPPED READY"],
    "STOPPED": ["UP", "DOWN", "READY UP", "DRAIN UP", "FAIL", "MAINT UP", "STOPPED"],
}

# LONG outlasts every test; SHORT ends soon enough for a test to wait.
LONG, SHORT = 3600, 1

# Addresses of load balancers: one that saw a drain, one that missed it, and one that is new. The agents of these tests
# listen on 127.0.0.1, from which agent.ask() also polls.
SAW, MISSED, NEW = "127.0.0.2", "127.0.0.3", "127.0.0.4"


def settling(seconds: int) -> dict[str, str]:
    return {"HAPGENT_SETTLE": str(seconds)}


def content(status: str, **fields: object) -> bytes:
    return json.dumps({"status": status, **fields}).encode()


def ask(agent: Agent, load_balancer: str) -> str:
    """Poll from the address of this load balancer and return the answer."""
    with socket.create_connection(("127.0.0.1", agent.port), 15, source_address=(load_balancer, 0)) as client:
        answer = agent.read_to_end(client)
    assert answer.endswith(b"\n")
    return answer[:-1].decode()


def change(agent: Agent, status: str, eventually: Eventually) -> None:
    """Change the state file, send HUP, and wait for the new status. Only 127.0.0.1 polls meanwhile."""
    agent.write_state(content(status))
    agent.send(signal.SIGHUP)
    eventually(lambda: agent.ask().decode().split()[0] == status, f"an answer that begins with {status}")


def ask_until(agent: Agent, load_balancer: str, last: str, eventually: Eventually) -> tuple[set[str], float]:
    """Poll until this answer arrives. Return the different answers before it, and for how many seconds they lasted."""
    start = time.monotonic()
    before = set()

    def got_it() -> bool:
        answer = ask(agent, load_balancer)
        if answer != last:
            before.add(answer)
        return answer == last

    eventually(got_it, f"answer {last} to {load_balancer}")
    return before, time.monotonic() - start


def memory_of(agent: Agent) -> Path:
    return agent.state_file.with_name(f"{agent.state_file.name}.memory")


def remembered(agent: Agent) -> dict[str, Any]:
    """Return what the memory file contains about each load balancer."""
    peers = json.loads(memory_of(agent).read_bytes())["peers"]
    return {peer["address"]: peer for peer in peers}


def await_remembered(agent: Agent, load_balancer: str, line: str, eventually: Eventually) -> None:
    """Wait until the agent would still know after kill -9 that it sent this line."""

    def is_remembered() -> bool:
        found = remembered(agent).get(load_balancer)
        return found is not None and found["line"] == f"{line}\n"

    eventually(is_remembered, f"remembered is {line} for {load_balancer}")


def start_again(
    agents: Agents, agent: Agent, state: bytes | None = None, *, settle: int = LONG, **options: Any
) -> Agent:
    """Start an agent in place of this one, which has ended."""
    return agents.start(state, state_file=agent.state_file, port=agent.port, environment=settling(settle), **options)


def restart(agents: Agents, agent: Agent, number: signal.Signals = signal.SIGTERM, *, settle: int = LONG) -> Agent:
    agent.send(number)
    agent.await_exit()
    return start_again(agents, agent, settle=settle)


def reload_unseen(agent: Agent) -> None:
    """Send HUP and wait until the file is loaded, without polling."""
    agent.send(signal.SIGHUP)
    agent.await_loaded()


# Keywords after a change of the status


@pytest.mark.parametrize("before", STATUSES)
def test_each_change_resets_the_previous_status(agents: Agents, eventually: Eventually, before: str) -> None:
    agent = agents.start(content(before), environment=settling(LONG))
    load_balancers = [f"127.0.0.{number}" for number, _status in enumerate(STATUSES, start=2)]
    # After the first start there is no previous state to reset.
    assert {ask(agent, load_balancer) for load_balancer in load_balancers} == {before}

    # Each load balancer polls after one of the changes. For all of them that is a change from the first status.
    answers = []
    for load_balancer, status in zip(load_balancers, STATUSES, strict=True):
        change(agent, status, eventually)
        answers.append(ask(agent, load_balancer))

    assert answers == WHILE_IT_SETTLES[before]
    # The keywords are sent repeatedly.
    assert ask(agent, load_balancers[-1]) == answers[-1]


@pytest.mark.parametrize(
    ("before", "number", "answer"),
    [
        ("DRAIN", signal.SIGUSR1, b"UP READY\n"),
        ("READY", signal.SIGUSR1, b"UP READY\n"),
        ("DOWN", signal.SIGUSR1, b"UP\n"),
        ("MAINT", signal.SIGUSR2, b"DOWN READY\n"),
        ("UP", signal.SIGUSR2, b"DOWN\n"),
    ],
)
def test_usr1_and_usr2_reset_the_previous_status(
    agents: Agents, before: str, number: signal.Signals, answer: bytes
) -> None:
    agent = agents.start(content(before), environment=settling(LONG))
    agent.send(number)
    agent.await_answer(answer)
    # Reset keywords are sent to load balancers, but are not part of the saved state.
    agent.await_saved({"status": answer.decode().split()[0]})


def test_log_lines_have_no_reset_keywords(agents: Agents) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    agent.reload(content("UP"), b"UP READY\n")
    assert agent.log()[-1] == "hapgent: DRAIN -> UP (SIGHUP)"


def test_bare_state_is_sent_after_a_while(agents: Agents) -> None:
    agent = agents.start(content("UP"), environment=settling(SHORT))

    agent.reload(content("DRAIN", weight=50), b"DRAIN UP 50%\n")
    agent.await_answer(b"DRAIN 50%\n")
    agent.reload(content("UP", maxconn=9), b"UP READY 100% maxconn:9\n")
    agent.await_answer(b"UP maxconn:9\n")
    # The drain has been reset and is not reset again.
    agent.reload(content("DOWN"), b"DOWN\n")
    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP\n")


def test_settles_for_a_minute_by_default(agents: Agents, tmp_path: Path) -> None:
    status_socket = str(tmp_path / "socket")
    agent = agents.start(
        content("DRAIN"),
        before_exec="del os.environ['HAPGENT_SETTLE']",
        environment={"HAPGENT_SOCKET": status_socket},
    )
    agent.reload(content("UP"), b"UP READY\n")

    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(status_socket)
        status = json.loads(agent.read_to_end(reader))
    assert status["settle"] == 60
    assert 0 < status["peers"][0]["settles_for"] <= 60


def test_settling_can_be_turned_off(agents: Agents, eventually: Eventually) -> None:
    # The answers are then those of hapgent 0.3.2.
    agent = agents.start(environment=settling(0))
    for pair in itertools.product(STATUSES, repeat=2):
        for status in pair:
            # The first answer after a change is the one that could have more keywords.
            change(agent, status, eventually)
            assert ask(agent, SAW) == status
    for state, answer in [
        (content("DRAIN", weight=50, reason="disk"), "DRAIN UP 50% # disk"),
        (content("DRAIN"), "DRAIN"),
    ]:
        agent.write_state(state)
        reload_unseen(agent)
        assert ask(agent, SAW) == answer


def test_turning_it_off_ends_settling(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    change(agent, "UP", eventually)
    assert ask(agent, SAW) == "UP READY"
    assert ask(restart(agents, agent, settle=0), SAW) == "UP"


# Weight and maxconn


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        (content("UP", weight=50), content("UP"), "UP 100%"),
        (content("UP", weight=0), content("UP"), "UP 100%"),
        (content("UP", weight=100), content("UP", weight=None), "UP 100%"),
        (content("MAINT", weight=50), content("MAINT"), "MAINT 100%"),
        (content("DRAIN", weight=50), content("UP"), "UP READY 100%"),
        (content("UP", weight=50, maxconn=9), content("DRAIN", maxconn=9), "DRAIN UP 100% maxconn:9"),
        # A new weight replaces the previous one, and no keyword resets maxconn.
        (content("UP", weight=50), content("UP", weight=30), "UP 30%"),
        (content("UP", weight=50), content("DOWN", weight=0), "DOWN 0%"),
        (content("UP"), content("UP", weight=50), "UP 50%"),
        (content("UP", maxconn=9), content("UP"), "UP"),
        (content("UP", maxconn=9), content("UP", maxconn=20), "UP maxconn:20"),
    ],
)
def test_removed_weight_is_reset_and_maxconn_is_not(agents: Agents, before: bytes, after: bytes, answer: str) -> None:
    agent = agents.start(before, environment=settling(LONG))
    agent.reload(after, f"{answer}\n".encode())


def test_weight_is_reset_only_where_it_was_received(agents: Agents) -> None:
    agent = agents.start(content("UP"), environment=settling(LONG))
    assert ask(agent, MISSED) == "UP"
    agent.reload(content("UP", weight=50), b"UP 50%\n")
    assert ask(agent, SAW) == "UP 50%"
    agent.reload(content("UP", weight=70), b"UP 70%\n")
    agent.reload(content("UP"), b"UP 100%\n")
    assert ask(agent, SAW) == "UP 100%"
    assert ask(agent, MISSED) == "UP"


# Reasons


def with_reason(status: str, reason: str = "kernel upgrade", **fields: object) -> bytes:
    return content(status, reason=reason, **fields)


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        (with_reason("UP"), "UP # kernel upgrade"),
        (with_reason("DOWN"), "DOWN # kernel upgrade"),
        # HAProxy shows a reason only if a health keyword precedes it.
        (with_reason("READY"), "READY UP # kernel upgrade"),
        (with_reason("DRAIN"), "DRAIN UP # kernel upgrade"),
        (with_reason("MAINT", weight=5, maxconn=9), "MAINT UP 5% maxconn:9 # kernel upgrade"),
        (with_reason("DRAIN", "Störung, 50% \\o/"), "DRAIN UP # Störung, 50% \\o/"),
    ],
)
def test_reason_is_in_every_answer(agents: Agents, state: bytes, answer: str) -> None:
    # Nothing has changed since the first start, so these answers have no reset keywords.
    agent = agents.start(state, environment=settling(LONG))
    assert {ask(agent, SAW) for _round in range(3)} == {answer}


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        # The next health keyword removes the reason from HAProxy's stats page.
        (with_reason("DRAIN"), content("DRAIN"), "DRAIN UP"),
        (with_reason("MAINT"), content("MAINT"), "MAINT UP"),
        (with_reason("UP"), content("UP"), "UP"),
        (with_reason("UP"), content("DRAIN"), "DRAIN UP"),
        (with_reason("DRAIN"), content("UP"), "UP READY"),
        (with_reason("DRAIN"), with_reason("DRAIN", "disk"), "DRAIN UP # disk"),
        (with_reason("DRAIN"), with_reason("UP", "disk"), "UP READY # disk"),
        (content("DRAIN"), with_reason("DRAIN"), "DRAIN UP # kernel upgrade"),
        (content("UP"), with_reason("DOWN"), "DOWN # kernel upgrade"),
        (with_reason("UP", weight=50), with_reason("UP"), "UP 100% # kernel upgrade"),
    ],
)
def test_removed_reason_is_reset(agents: Agents, before: bytes, after: bytes, answer: str) -> None:
    agent = agents.start(before, environment=settling(LONG))
    agent.reload(after, f"{answer}\n".encode())


def test_removed_reason_is_reset_for_a_while(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(with_reason("DRAIN"), environment=settling(SHORT))
    assert ask(agent, SAW) == "DRAIN UP # kernel upgrade"
    agent.reload(content("DRAIN"), b"DRAIN UP\n")
    before, seconds = ask_until(agent, SAW, "DRAIN", eventually)
    assert before == {"DRAIN UP"}
    assert seconds >= SHORT


@pytest.mark.parametrize(
    ("before", "number", "status", "answer"),
    [
        ("DRAIN", signal.SIGUSR1, "UP", b"UP READY 5%\n"),
        ("DRAIN", signal.SIGUSR2, "DOWN", b"DOWN READY 5%\n"),
        ("DOWN", signal.SIGUSR1, "UP", b"UP 5%\n"),
        ("UP", signal.SIGUSR2, "DOWN", b"DOWN 5%\n"),
    ],
)
def test_usr1_and_usr2_remove_the_reason_if_they_change_the_status(
    agents: Agents, before: str, number: signal.Signals, status: str, answer: bytes
) -> None:
    agent = agents.start(with_reason(before, weight=5), environment=settling(LONG))
    agent.send(number)
    agent.await_answer(answer)
    agent.await_saved({"status": status, "weight": 5})


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, "UP"), (signal.SIGUSR2, "DOWN")])
def test_usr1_and_usr2_keep_the_reason_if_the_status_stays(
    agents: Agents, eventually: Eventually, number: signal.Signals, status: str
) -> None:
    agent = agents.start(with_reason(status), environment=settling(LONG))
    agent.state_file.unlink()
    agent.send(number)
    eventually(agent.state_file.exists, "the state is saved")
    agent.await_saved({"status": status, "reason": "kernel upgrade"})
    assert ask(agent, SAW) == f"{status} # kernel upgrade"


# How long each load balancer receives the keywords


def test_time_counts_from_the_first_answer_to_each_load_balancer(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(SHORT))
    assert {ask(agent, load_balancer) for load_balancer in (SAW, NEW)} == {"DRAIN"}
    change(agent, "UP", eventually)

    # The second load balancer polls again only when more time than that has passed since the change.
    for load_balancer in (SAW, NEW):
        before, seconds = ask_until(agent, load_balancer, "UP", eventually)
        assert before == {"UP READY"}
        assert seconds >= SHORT


@pytest.mark.parametrize(
    ("statuses", "answer"),
    [
        (["DRAIN", "MAINT", "DOWN", "UP"], "UP READY"),
        (["DRAIN", "UP", "FAIL", "DOWN"], "DOWN READY"),
        (["READY", "DOWN", "UP"], "UP READY"),
        (["DOWN", "UP", "DRAIN", "READY"], "READY UP"),
        # A state that it did not receive need not be reset.
        (["UP", "DRAIN", "UP"], "UP"),
        (["DOWN", "MAINT", "DRAIN", "UP"], "UP"),
        (["DRAIN", "UP", "MAINT", "DOWN", "DRAIN"], "DRAIN"),
    ],
)
def test_only_the_last_received_status_is_reset(
    agents: Agents, eventually: Eventually, statuses: list[str], answer: str
) -> None:
    remembered, *others = statuses
    agent = agents.start(content(remembered), environment=settling(LONG))
    assert ask(agent, SAW) == remembered
    for status in others:
        change(agent, status, eventually)
    assert ask(agent, SAW) == answer


def test_new_load_balancer_is_treated_as_if_it_had_received_earlier_states(
    agents: Agents, eventually: Eventually
) -> None:
    # Its address may be new, or the agent may have run elsewhere before.
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    for status in ["DOWN", "MAINT", "UP"]:
        change(agent, status, eventually)
    assert ask(agent, NEW) == "UP READY"


def test_changes_while_settling_keep_the_pending_resets(agents: Agents, python: str) -> None:
    agent = agents.start(content("DRAIN", weight=50), python=python, environment=settling(LONG))
    for state, answer in [
        (content("UP"), b"UP READY 100%\n"),
        (content("DOWN"), b"DOWN READY 100%\n"),
        (content("UP", weight=30), b"UP READY 30%\n"),
        (content("MAINT"), b"MAINT UP 100%\n"),
        (content("STOPPED"), b"STOPPED READY 100%\n"),
        (content("UP"), b"UP READY 100%\n"),
    ]:
        agent.reload(state, answer)


def test_change_while_settling_gets_its_full_time(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(SHORT))
    assert ask(agent, SAW) == "DRAIN"
    change(agent, "UP", eventually)
    assert ask(agent, SAW) == "UP READY"
    # The change may come at any time before settling ends.
    time.sleep(SHORT / 2)
    change(agent, "MAINT", eventually)
    before, seconds = ask_until(agent, SAW, "MAINT", eventually)
    assert before == {"MAINT UP"}
    assert seconds >= SHORT


def test_settling_ends_although_the_weight_keeps_changing(agents: Agents, eventually: Eventually) -> None:
    # Some programs write a new weight every minute.
    agent = agents.start(content("DRAIN"), environment=settling(SHORT))
    assert ask(agent, SAW) == "DRAIN"
    weights = itertools.cycle(range(1, 256))
    sent = set()

    def ends() -> bool:
        agent.write_state(content("UP", weight=next(weights)))
        agent.send(signal.SIGHUP)
        time.sleep(SHORT / 8)
        sent.add(ask(agent, SAW).partition("%")[0].rstrip("0123456789"))
        return "UP " in sent

    eventually(ends, "an answer without READY")
    assert "UP READY " in sent


# Reloads without a change


def test_reload_of_an_unchanged_state_does_not_start_settling(agents: Agents) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    assert ask(agent, SAW) == "DRAIN"
    # The second content is another way to write the same state.
    for state in [content("DRAIN"), content("DRAIN", weight=None)]:
        agent.write_state(state)
        reload_unseen(agent)
        assert {ask(agent, load_balancer) for load_balancer in (SAW, MISSED, NEW)} == {"DRAIN"}


def test_reloads_do_not_prolong_settling(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(SHORT))
    change(agent, "UP", eventually)

    def reload_and_ask() -> bool:
        reload_unseen(agent)
        return ask(agent, SAW) == "UP"

    eventually(reload_and_ask, "answer UP")


def test_reloads_do_not_shorten_settling(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    change(agent, "UP", eventually)
    for _round in range(3):
        reload_unseen(agent)
        assert ask(agent, SAW) == "UP READY"


# Restarts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restart_while_settling_keeps_what_each_load_balancer_received(
    agents: Agents, eventually: Eventually, number: signal.Signals
) -> None:
    agent = agents.start(content("UP"), environment=settling(LONG))
    keeps_asking = "127.0.0.5"
    assert {ask(agent, load_balancer) for load_balancer in (SAW, MISSED, keeps_asking)} == {"UP"}
    change(agent, "DRAIN", eventually)
    assert {ask(agent, load_balancer) for load_balancer in (SAW, keeps_asking)} == {"DRAIN UP"}
    change(agent, "UP", eventually)
    assert ask(agent, keeps_asking) == "UP READY"
    if number == signal.SIGKILL:
        # The agent saves what it sent within a second and when it ends, but not when it is killed.
        await_remembered(agent, keeps_asking, "UP READY", eventually)

    for _round in range(2):
        agent = restart(agents, agent, number)
        assert ask(agent, keeps_asking) == "UP READY"
    assert ask(agent, SAW) == "UP READY"
    assert ask(agent, MISSED) == "UP"
    assert ask(agent, NEW) == "UP READY"


def test_restart_while_settling_keeps_the_remaining_time(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    change(agent, "UP", eventually)
    assert ask(agent, SAW) == "UP READY"
    # The remaining time is at most the new setting.
    agent = restart(agents, agent, settle=SHORT)
    before, _seconds = ask_until(agent, SAW, "UP", eventually)
    assert before == {"UP READY"}


def test_change_after_a_restart_resets_the_previous_status(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("UP"), environment=settling(LONG))
    assert ask(agent, SAW) == "UP"
    agent.write_state(content("DRAIN"))
    reload_unseen(agent)
    assert ask(agent, SAW) == "DRAIN UP"
    agent = restart(agents, agent)
    change(agent, "UP", eventually)
    assert ask(agent, SAW) == "UP READY"


def test_change_while_stopped_resets_the_previous_status(agents: Agents, python: str, eventually: Eventually) -> None:
    agent = agents.start(content("UP"), python=python, environment=settling(LONG))
    assert ask(agent, SAW) == "UP"
    change(agent, "DRAIN", eventually)
    assert ask(agent, SAW) == "DRAIN UP"
    agent.send(signal.SIGTERM)
    agent.await_exit()

    agent = start_again(agents, agent, content("UP"), python=python)

    assert {ask(agent, load_balancer) for load_balancer in (SAW, NEW)} == {"UP READY"}
    assert agent.log() == [
        "hapgent: DRAIN -> UP (start)",
        f"hapgent: answering UP on 127.0.0.1 port {agent.port}",
    ]


def test_change_after_a_kill_resets_the_previous_state(agents: Agents) -> None:
    agent = agents.start(content("UP"), environment=settling(LONG))
    assert ask(agent, SAW) == "UP"
    agent.write_state(with_reason("MAINT", weight=50))
    reload_unseen(agent)
    # A change is saved at once, but what was sent only within a second, and the agent is killed before that.
    assert json.loads(memory_of(agent).read_bytes())["state"]["status"] == "MAINT"
    assert ask(agent, SAW) == "MAINT UP 50% # kernel upgrade"
    agent.kill()
    agent = start_again(agents, agent, content("DOWN"))
    assert ask(agent, SAW) == "DOWN READY 100%"


def test_change_just_before_a_kill_resets_the_previous_status(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("UP"), environment=settling(LONG))
    assert ask(agent, SAW) == "UP"
    agent.write_state(content("DRAIN"))
    reload_unseen(agent)
    assert ask(agent, SAW) == "DRAIN UP"
    change(agent, "UP", eventually)
    # The agent may have saved neither this change nor what it sent before.
    agent.kill()
    agent = start_again(agents, agent)
    assert ask(agent, SAW) in ("UP READY", "UP READY 100%")


def test_restart_without_a_change_does_not_start_settling(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("UP"), environment=settling(SHORT))
    assert ask(agent, SAW) == "UP"
    change(agent, "DRAIN", eventually)
    ask_until(agent, SAW, "DRAIN", eventually)
    await_remembered(agent, SAW, "DRAIN", eventually)

    for _round in range(2):
        agent = restart(agents, agent)
        assert ask(agent, SAW) == "DRAIN"
        assert agent.log() == [f"hapgent: answering DRAIN on 127.0.0.1 port {agent.port}"]


def test_kill_without_a_change_resets_what_a_signal_may_have_set(agents: Agents, eventually: Eventually) -> None:
    # The agent answers with the state of a signal before it saves it, so such a change may have been lost. Any other
    # change would show in the state file.
    for status, answer in [("DRAIN", "DRAIN UP"), ("UP", "UP"), ("STOPPED", "STOPPED")]:
        agent = agents.start(content(status), environment=settling(LONG))
        assert ask(agent, SAW) == status
        await_remembered(agent, SAW, status, eventually)
        agent = restart(agents, agent, signal.SIGKILL)
        assert ask(agent, SAW) == ask(agent, NEW) == answer


def test_start_without_a_memory_file_does_not_start_settling(agents: Agents) -> None:
    agent = agents.start(content("MAINT"), environment=settling(LONG))
    assert ask(agent, SAW) == "MAINT"
    agent.send(signal.SIGTERM)
    agent.await_exit()
    memory_of(agent).unlink()

    agent = start_again(agents, agent, content("DRAIN"))

    assert {ask(agent, load_balancer) for load_balancer in (SAW, NEW)} == {"DRAIN"}
    assert agent.log() == [
        "hapgent: FAIL -> DRAIN (start)",
        f"hapgent: answering DRAIN on 127.0.0.1 port {agent.port}",
    ]


def a_memory(**fields: object) -> dict[str, object]:
    """Return a memory file's content as an agent could have written it."""
    file = {"state_file": [1, 2, 3, 4], "complete": True, "before": [], "unsure_until": 0}
    return {"state": {"status": "UP"}, "saved": 1, "since": 1, "peers": [a_peer()], **file, **fields}


def a_peer(**fields: object) -> dict[str, object]:
    times = {"first_seen": 1, "last_seen": 9e12, "checks": 1, "interval": 1}
    return {"received": [{"status": "UP"}], "undo": {}, "address": SAW, "line": "UP\n", **times, **fields}


def without(memory: dict[str, object], name: str) -> dict[str, object]:
    return {field: value for field, value in memory.items() if field != name}


TOO_MANY_DIGITS = b"1" + b"0" * 4300
UNUSABLE = {
    "empty": b"",
    "cut off": json.dumps(a_memory()).encode()[:-9],
    "zeros": bytes(4096),
    "not UTF-8": b'{"\xff": 1}',
    "a list": b"[]",
    "null": b"null",
    **{f"no {name}": json.dumps(without(a_memory(), name)).encode() for name in a_memory()},
    **{f"no {name} of a peer": json.dumps(a_memory(peers=[without(a_peer(), name)])).encode() for name in a_peer()},
    **{
        f"{name} {value!r:.20}": json.dumps(a_memory(**{name: value})).encode()
        for name, value in [
            *[("state", {"status": "up"}), ("state", None), ("before", 3), ("since", "now"), ("since", math.nan)],
            *[("since", 10**400), ("peers", None), ("peers", [None]), ("saved", math.inf), ("state_file", ["x"])],
        ]
    },
    **{
        f"{name} {value!r:.20} of a peer": json.dumps(a_memory(peers=[a_peer(**{name: value})])).encode()
        for name, value in [
            *[("address", "\ud83d"), ("address", "x" * 65), ("address", "\x1b[2J"), ("line", "x" * 300), ("line", 5)],
            *[("checks", math.inf), ("interval", math.nan), ("last_seen", math.nan), ("received", [{"status": "up"}])],
        ]
    },
    "checks of 4,301 digits": json.dumps(a_memory(peers=[a_peer(checks="x")]))
    .encode()
    .replace(b'"x"', TOO_MANY_DIGITS),
    "nested too deeply": b"[" * 100_000,
    "too large": json.dumps(a_memory()).encode().ljust(2 * 1024 * 1024 + 1),
}


@pytest.mark.parametrize("unusable", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_memory_file_makes_the_agent_reset_everything(agents: Agents, tmp_path: Path, unusable: bytes) -> None:
    state_file = tmp_path / "state.json"
    memory = tmp_path / "state.json.memory"
    memory.write_bytes(unusable)

    agent = agents.start(content("DRAIN"), state_file=state_file, environment=settling(LONG))

    # The load balancers may have received any state.
    assert {ask(agent, load_balancer) for load_balancer in (SAW, NEW)} == {"DRAIN UP 100%"}
    problem, *others = agent.log()
    assert problem.startswith(f"hapgent: {memory}: ")
    assert others == [
        "hapgent: FAIL -> DRAIN (start)",
        f"hapgent: answering DRAIN on 127.0.0.1 port {agent.port}",
    ]
    assert json.loads(memory.read_bytes())["state"] == {"status": "DRAIN"}


def test_irregular_memory_file_is_replaced(agents: Agents, tmp_path: Path) -> None:
    memory = tmp_path / "state.json.memory"
    os.mkfifo(memory)
    agent = agents.start(content("DRAIN"), state_file=tmp_path / "state.json", environment=settling(LONG))
    assert ask(agent, SAW) == "DRAIN UP 100%"
    assert str(memory) in agent.log()[0]
    agent.send(signal.SIGTERM)
    agent.await_exit()

    # The agent has replaced the FIFO with a usable memory file.
    agent = start_again(agents, agent, content("UP"))
    assert ask(agent, SAW) == "UP READY 100%"
    assert agent.log()[0] == "hapgent: DRAIN -> UP (start)"


def test_irreplaceable_memory_file_is_logged_once_and_retried(
    agents: Agents, tmp_path: Path, eventually: Eventually
) -> None:
    memory = tmp_path / "state.json.memory"
    memory.mkdir()
    agent = agents.start(content("DRAIN"), state_file=tmp_path / "state.json", environment=settling(LONG))

    # The agent works without a memory file, and logs the problem only once.
    assert ask(agent, SAW) == "DRAIN UP 100%"
    change(agent, "UP", eventually)
    assert ask(agent, SAW) == "UP READY 100%"
    agent.send(signal.SIGHUP)
    agent.await_signals_taken()
    assert len([line for line in agent.log() if line.startswith(f"hapgent: {memory}: Is a directory")]) == 1

    # The agent keeps trying, even without another signal or change.
    memory.rmdir()
    eventually(memory.is_file, "the memory file is saved")
    await_remembered(agent, SAW, "UP READY 100%", eventually)
    assert sorted(os.listdir(tmp_path)) == [
        "agent0.log",
        *("state.json", "state.json.memory", "state.json.memory.lock"),
    ]


# Addresses


def test_ipv4_address_is_the_same_load_balancer_on_ipv4_and_ipv6_sockets(
    agents: Agents, eventually: Eventually
) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("needs IPv6")
    agent = agents.start(content("UP"), ip="::", environment=settling(LONG))
    assert ask(agent, MISSED) == "UP"
    change(agent, "DRAIN", eventually)
    assert ask(agent, SAW) == "DRAIN UP"
    change(agent, "UP", eventually)
    agent.send(signal.SIGTERM)
    agent.await_exit()
    assert sorted(remembered(agent)) == [SAW, MISSED, "::1"]

    agent = start_again(agents, agent, ip="127.0.0.1")

    assert ask(agent, SAW) == "UP READY"
    # This load balancer is known: a new one would receive READY.
    assert ask(agent, MISSED) == "UP"
    agent.send(signal.SIGTERM)
    agent.await_exit()
    assert sorted(remembered(agent)) == ["127.0.0.1", SAW, MISSED, "::1"]


# The setting


@pytest.mark.parametrize("value", ["-1", "86401", "100000", "abc", "", "1.5", "+1", " 1"])
def test_invalid_setting_is_an_error(agents: Agents, value: str) -> None:
    agent = agents.start(environment={"HAPGENT_SETTLE": value}, wait=False)
    assert agent.await_exit() == 2
    (line,) = agent.log()
    for word in ["HAPGENT_SETTLE", repr(value), "0 to 86400"]:
        assert word in line


@pytest.mark.parametrize("value", ["0", "86400"])
def test_smallest_and_largest_setting_are_accepted(agents: Agents, value: str) -> None:
    agent = agents.start(content("DRAIN"), environment={"HAPGENT_SETTLE": value})
    agent.reload(content("UP"), b"UP\n" if value == "0" else b"UP READY\n")
