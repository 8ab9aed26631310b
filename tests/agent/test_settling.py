# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""After a change, each load balancer is told for a while what undoes the state that it was told before."""

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

# What is answered for a while after the change from the status on the left to each of STATUSES. HAProxy does not leave
# an administrative state for UP, nor DOWN for READY.
WHILE_IT_SETTLES = {
    "UP": ["UP", "DOWN", "READY UP", "DRAIN UP", "FAIL", "MAINT UP", "STOPPED"],
    "DOWN": ["UP", "DOWN", "READY UP", "DRAIN UP", "FAIL", "MAINT UP", "STOPPED"],
    "READY": ["UP READY", "DOWN READY", "READY", "DRAIN UP", "FAIL READY", "MAINT UP", "STOPPED READY"],
    "DRAIN": ["UP READY", "DOWN READY", "READY UP", "DRAIN", "FAIL READY", "MAINT UP", "STOPPED READY"],
    "FAIL": ["UP", "DOWN", "READY UP", "DRAIN UP", "FAIL", "MAINT UP", "STOPPED"],
    "MAINT": ["UP READY", "DOWN READY", "READY UP", "DRAIN UP", "FAIL READY", "MAINT", "STOPPED READY"],
    "STOPPED": ["UP", "DOWN", "READY UP", "DRAIN UP", "FAIL", "MAINT UP", "STOPPED"],
}

# Never over while a test runs, and over soon.
LONG, SHORT = 3600, 1

# Load balancers by their addresses, and by what they have seen of a drain. The agents of these tests listen on
# 127.0.0.1, which is also the address that agent.ask() asks from.
SAW, MISSED, NEW = "127.0.0.2", "127.0.0.3", "127.0.0.4"


def settling(seconds: int) -> dict[str, str]:
    return {"HAPGENT_SETTLE": str(seconds)}


def content(status: str, **fields: object) -> bytes:
    return json.dumps({"status": status, **fields}).encode()


def ask(agent: Agent, load_balancer: str) -> str:
    """What the agent answers to this load balancer."""
    with socket.create_connection(("127.0.0.1", agent.port), 15, source_address=(load_balancer, 0)) as client:
        answer = agent.read_to_end(client)
    assert answer.endswith(b"\n")
    return answer[:-1].decode()


def change(agent: Agent, status: str, eventually: Eventually) -> None:
    """Another state file, HUP, and only 127.0.0.1 sees the change."""
    agent.write_state(content(status))
    agent.send(signal.SIGHUP)
    eventually(lambda: agent.ask().decode().split()[0] == status, f"answer {status}, with whatever goes along")


def ask_until(agent: Agent, load_balancer: str, last: str, eventually: Eventually) -> tuple[set[str], float]:
    """Have it ask until it gets this answer: what it got before that, and for how long in seconds."""
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
    """What its memory has on each load balancer."""
    peers = json.loads(memory_of(agent).read_bytes())["peers"]
    return {peer["address"]: peer for peer in peers}


def await_remembered(agent: Agent, load_balancer: str, line: str, eventually: Eventually) -> None:
    """Wait until kill -9 would not make it forget that it told this line."""

    def is_remembered() -> bool:
        found = remembered(agent).get(load_balancer)
        return found is not None and found["line"] == f"{line}\n"

    eventually(is_remembered, f"remembered is {line} for {load_balancer}")


def start_again(
    agents: Agents, agent: Agent, state: bytes | None = None, *, settle: int = LONG, **options: Any
) -> Agent:
    """An agent in the place of this one, which has ended."""
    return agents.start(state, state_file=agent.state_file, port=agent.port, environment=settling(settle), **options)


def restart(agents: Agents, agent: Agent, number: signal.Signals = signal.SIGTERM, *, settle: int = LONG) -> Agent:
    agent.send(number)
    agent.await_exit()
    return start_again(agents, agent, settle=settle)


def reload_unseen(agent: Agent) -> None:
    """HUP, and no load balancer sees what it does."""
    agent.send(signal.SIGHUP)
    agent.await_loaded()


# What is told


@pytest.mark.parametrize("before", STATUSES)
def test_each_change(agents: Agents, eventually: Eventually, before: str) -> None:
    agent = agents.start(content(before), environment=settling(LONG))
    load_balancers = [f"127.0.0.{number}" for number, _status in enumerate(STATUSES, start=2)]
    # Nothing is known to be undone at first.
    assert {ask(agent, load_balancer) for load_balancer in load_balancers} == {before}

    # Each sees one of the changes: the one from the status before, as all of them know no other.
    answers = []
    for load_balancer, status in zip(load_balancers, STATUSES, strict=True):
        change(agent, status, eventually)
        answers.append(ask(agent, load_balancer))

    assert answers == WHILE_IT_SETTLES[before]
    # Not only once.
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
def test_change_by_usr1_and_usr2(agents: Agents, before: str, number: signal.Signals, answer: bytes) -> None:
    agent = agents.start(content(before), environment=settling(LONG))
    agent.send(number)
    agent.await_answer(answer)
    # The words are for load balancers, and not part of the state.
    agent.await_saved({"status": answer.decode().split()[0]})


def test_log_lines_contain_the_states_alone(agents: Agents) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    agent.reload(content("UP"), b"UP READY\n")
    assert agent.log()[-1] == "hapgent: DRAIN -> UP (SIGHUP)"


def test_after_a_while_just_the_state(agents: Agents) -> None:
    agent = agents.start(content("UP"), environment=settling(SHORT))

    agent.reload(content("DRAIN", weight=50), b"DRAIN UP 50%\n")
    agent.await_answer(b"DRAIN 50%\n")
    agent.reload(content("UP", maxconn=9), b"UP READY 100% maxconn:9\n")
    agent.await_answer(b"UP maxconn:9\n")
    # The drain is history.
    agent.reload(content("DOWN"), b"DOWN\n")
    agent.send(signal.SIGUSR1)
    agent.await_answer(b"UP\n")


def test_a_minute_unless_set_otherwise(agents: Agents, tmp_path: Path) -> None:
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


def test_never_if_turned_off(agents: Agents, eventually: Eventually) -> None:
    # Its answers are those of hapgent 0.3.2.
    agent = agents.start(environment=settling(0))
    for pair in itertools.product(STATUSES, repeat=2):
        for status in pair:
            # Its first answer after the change: more may be in that one only.
            change(agent, status, eventually)
            assert ask(agent, SAW) == status
    for state, answer in [
        (content("DRAIN", weight=50, reason="disk"), "DRAIN UP 50% # disk"),
        (content("DRAIN"), "DRAIN"),
    ]:
        agent.write_state(state)
        reload_unseen(agent)
        assert ask(agent, SAW) == answer


def test_turned_off_in_the_middle(agents: Agents, eventually: Eventually) -> None:
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
        # These undo the weight before themselves, and nothing undoes a maxconn.
        (content("UP", weight=50), content("UP", weight=30), "UP 30%"),
        (content("UP", weight=50), content("DOWN", weight=0), "DOWN 0%"),
        (content("UP"), content("UP", weight=50), "UP 50%"),
        (content("UP", maxconn=9), content("UP"), "UP"),
        (content("UP", maxconn=9), content("UP", maxconn=20), "UP maxconn:20"),
    ],
)
def test_change_of_weight_and_maxconn(agents: Agents, before: bytes, after: bytes, answer: str) -> None:
    agent = agents.start(before, environment=settling(LONG))
    agent.reload(after, f"{answer}\n".encode())


def test_weights_that_it_saw_and_missed(agents: Agents) -> None:
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
        # HAProxy shows a reason only beside a health word.
        (with_reason("READY"), "READY UP # kernel upgrade"),
        (with_reason("DRAIN"), "DRAIN UP # kernel upgrade"),
        (with_reason("MAINT", weight=5, maxconn=9), "MAINT UP 5% maxconn:9 # kernel upgrade"),
        (with_reason("DRAIN", "Störung, 50% \\o/"), "DRAIN UP # Störung, 50% \\o/"),
    ],
)
def test_reason_is_sent_steadily(agents: Agents, state: bytes, answer: str) -> None:
    # There was no change that settles.
    agent = agents.start(state, environment=settling(LONG))
    assert {ask(agent, SAW) for _round in range(3)} == {answer}


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        # The next health word takes the reason from HAProxy's page.
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
def test_change_of_reason(agents: Agents, before: bytes, after: bytes, answer: str) -> None:
    agent = agents.start(before, environment=settling(LONG))
    agent.reload(after, f"{answer}\n".encode())


def test_dropped_reason_is_undone_for_a_while(agents: Agents, eventually: Eventually) -> None:
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
def test_another_status_by_usr1_and_usr2_drops_the_reason(
    agents: Agents, before: str, number: signal.Signals, status: str, answer: bytes
) -> None:
    agent = agents.start(with_reason(before, weight=5), environment=settling(LONG))
    agent.send(number)
    agent.await_answer(answer)
    agent.await_saved({"status": status, "weight": 5})


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, "UP"), (signal.SIGUSR2, "DOWN")])
def test_the_same_status_by_usr1_and_usr2_keeps_the_reason(
    agents: Agents, eventually: Eventually, number: signal.Signals, status: str
) -> None:
    agent = agents.start(with_reason(status), environment=settling(LONG))
    agent.state_file.unlink()
    agent.send(number)
    eventually(agent.state_file.exists, "the state is saved")
    agent.await_saved({"status": status, "reason": "kernel upgrade"})
    assert ask(agent, SAW) == f"{status} # kernel upgrade"


# Each load balancer has its own time


def test_seconds_count_from_the_first_answer_to_each(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(SHORT))
    assert {ask(agent, load_balancer) for load_balancer in (SAW, NEW)} == {"DRAIN"}
    change(agent, "UP", eventually)

    # The second one comes back when the change is longer ago than that.
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
        # What it was not told needs no undoing.
        (["UP", "DRAIN", "UP"], "UP"),
        (["DOWN", "MAINT", "DRAIN", "UP"], "UP"),
        (["DRAIN", "UP", "MAINT", "DOWN", "DRAIN"], "DRAIN"),
    ],
)
def test_changes_while_it_was_away(agents: Agents, eventually: Eventually, statuses: list[str], answer: str) -> None:
    first, *others = statuses
    agent = agents.start(content(first), environment=settling(LONG))
    assert ask(agent, SAW) == first
    for status in others:
        change(agent, status, eventually)
    assert ask(agent, SAW) == answer


def test_a_new_one_may_have_seen_the_state_before(agents: Agents, eventually: Eventually) -> None:
    # Its address may be new, or the agent was started on another.
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    for status in ["DOWN", "MAINT", "UP"]:
        change(agent, status, eventually)
    assert ask(agent, NEW) == "UP READY"


def test_changes_in_the_middle_keep_what_still_has_to_be_undone(agents: Agents, python: str) -> None:
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


def test_change_in_the_middle_with_something_to_undo_gets_its_full_time(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(SHORT))
    assert ask(agent, SAW) == "DRAIN"
    change(agent, "UP", eventually)
    assert ask(agent, SAW) == "UP READY"
    # Any time will do.
    time.sleep(SHORT / 2)
    change(agent, "MAINT", eventually)
    before, seconds = ask_until(agent, SAW, "MAINT", eventually)
    assert before == {"MAINT UP"}
    assert seconds >= SHORT


def test_ends_although_the_weight_changes_all_the_time(agents: Agents, eventually: Eventually) -> None:
    """As a program does that writes one every minute."""
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

    eventually(ends, "READY is told no longer")
    assert "UP READY " in sent


# Nothing changes


def test_reload_of_an_unchanged_file_settles_nothing(agents: Agents) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    assert ask(agent, SAW) == "DRAIN"
    # The second says the same in other words.
    for state in [content("DRAIN"), content("DRAIN", weight=None)]:
        agent.write_state(state)
        reload_unseen(agent)
        assert {ask(agent, load_balancer) for load_balancer in (SAW, MISSED, NEW)} == {"DRAIN"}


def test_reloads_do_not_prolong_it(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(SHORT))
    change(agent, "UP", eventually)

    def reload_and_ask() -> bool:
        reload_unseen(agent)
        return ask(agent, SAW) == "UP"

    eventually(reload_and_ask, "answer UP")


def test_reloads_do_not_shorten_it(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    change(agent, "UP", eventually)
    for _round in range(3):
        reload_unseen(agent)
        assert ask(agent, SAW) == "UP READY"


# Restarts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restart_in_the_middle_forgets_no_change(
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
        # What it told is saved within a second, and at its end.
        await_remembered(agent, keeps_asking, "UP READY", eventually)

    for _round in range(2):
        agent = restart(agents, agent, number)
        assert ask(agent, keeps_asking) == "UP READY"
    assert ask(agent, SAW) == "UP READY"
    assert ask(agent, MISSED) == "UP"
    assert ask(agent, NEW) == "UP READY"


def test_restart_in_the_middle_goes_on_with_the_seconds(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("DRAIN"), environment=settling(LONG))
    change(agent, "UP", eventually)
    assert ask(agent, SAW) == "UP READY"
    # The seconds that are left are those of the new setting at most.
    agent = restart(agents, agent, settle=SHORT)
    before, _seconds = ask_until(agent, SAW, "UP", eventually)
    assert before == {"UP READY"}


def test_change_after_a_restart(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("UP"), environment=settling(LONG))
    assert ask(agent, SAW) == "UP"
    agent.write_state(content("DRAIN"))
    reload_unseen(agent)
    assert ask(agent, SAW) == "DRAIN UP"
    agent = restart(agents, agent)
    change(agent, "UP", eventually)
    assert ask(agent, SAW) == "UP READY"


def test_change_while_it_was_stopped(agents: Agents, python: str, eventually: Eventually) -> None:
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


def test_change_after_it_was_killed(agents: Agents) -> None:
    agent = agents.start(content("UP"), environment=settling(LONG))
    assert ask(agent, SAW) == "UP"
    agent.write_state(with_reason("MAINT", weight=50))
    reload_unseen(agent)
    # A change is saved at once, and what is told of it within a second: not before it is killed.
    assert json.loads(memory_of(agent).read_bytes())["state"]["status"] == "MAINT"
    assert ask(agent, SAW) == "MAINT UP 50% # kernel upgrade"
    agent.kill()
    agent = start_again(agents, agent, content("DOWN"))
    assert ask(agent, SAW) == "DOWN READY 100%"


def test_change_just_before_it_was_killed(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("UP"), environment=settling(LONG))
    assert ask(agent, SAW) == "UP"
    agent.write_state(content("DRAIN"))
    reload_unseen(agent)
    assert ask(agent, SAW) == "DRAIN UP"
    change(agent, "UP", eventually)
    # It may have saved neither this change nor what it told before.
    agent.kill()
    agent = start_again(agents, agent)
    assert ask(agent, SAW) in ("UP READY", "UP READY 100%")


def test_restart_without_a_change_settles_nothing(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start(content("UP"), environment=settling(SHORT))
    assert ask(agent, SAW) == "UP"
    change(agent, "DRAIN", eventually)
    ask_until(agent, SAW, "DRAIN", eventually)
    await_remembered(agent, SAW, "DRAIN", eventually)

    for _round in range(2):
        agent = restart(agents, agent)
        assert ask(agent, SAW) == "DRAIN"
        assert agent.log() == [f"hapgent: answering DRAIN on 127.0.0.1 port {agent.port}"]


def test_kill_without_a_change_undoes_what_a_signal_may_have_set(agents: Agents, eventually: Eventually) -> None:
    # A signal is answered before it is saved. Of any other change the state file would be another one.
    for status, answer in [("DRAIN", "DRAIN UP"), ("UP", "UP"), ("STOPPED", "STOPPED")]:
        agent = agents.start(content(status), environment=settling(LONG))
        assert ask(agent, SAW) == status
        await_remembered(agent, SAW, status, eventually)
        agent = restart(agents, agent, signal.SIGKILL)
        assert ask(agent, SAW) == ask(agent, NEW) == answer


def test_start_without_a_memory_settles_nothing(agents: Agents) -> None:
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
    """One that an agent could have written."""
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
    "torn off": json.dumps(a_memory()).encode()[:-9],
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
    "nested too deep": b"[" * 100_000,
    "too large": json.dumps(a_memory()).encode().ljust(2 * 1024 * 1024 + 1),
}


@pytest.mark.parametrize("unusable", UNUSABLE.values(), ids=UNUSABLE)
def test_memory_that_it_cannot_use(agents: Agents, tmp_path: Path, unusable: bytes) -> None:
    state_file = tmp_path / "state.json"
    memory = tmp_path / "state.json.memory"
    memory.write_bytes(unusable)

    agent = agents.start(content("DRAIN"), state_file=state_file, environment=settling(LONG))

    # They may have been told anything.
    assert {ask(agent, load_balancer) for load_balancer in (SAW, NEW)} == {"DRAIN UP 100%"}
    problem, *others = agent.log()
    assert problem.startswith(f"hapgent: {memory}: ")
    assert others == [
        "hapgent: FAIL -> DRAIN (start)",
        f"hapgent: answering DRAIN on 127.0.0.1 port {agent.port}",
    ]
    assert json.loads(memory.read_bytes())["state"] == {"status": "DRAIN"}


def test_memory_that_is_no_file(agents: Agents, tmp_path: Path) -> None:
    memory = tmp_path / "state.json.memory"
    os.mkfifo(memory)
    agent = agents.start(content("DRAIN"), state_file=tmp_path / "state.json", environment=settling(LONG))
    assert ask(agent, SAW) == "DRAIN UP 100%"
    assert str(memory) in agent.log()[0]
    agent.send(signal.SIGTERM)
    agent.await_exit()

    # Replaced by one that can be used.
    agent = start_again(agents, agent, content("UP"))
    assert ask(agent, SAW) == "UP READY 100%"
    assert agent.log()[0] == "hapgent: DRAIN -> UP (start)"


def test_memory_that_it_cannot_replace(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    memory = tmp_path / "state.json.memory"
    memory.mkdir()
    agent = agents.start(content("DRAIN"), state_file=tmp_path / "state.json", environment=settling(LONG))

    # It does what it can without one, and does not say the same again.
    assert ask(agent, SAW) == "DRAIN UP 100%"
    change(agent, "UP", eventually)
    assert ask(agent, SAW) == "UP READY 100%"
    agent.send(signal.SIGHUP)
    agent.await_signals_taken()
    assert len([line for line in agent.log() if line.startswith(f"hapgent: {memory}: Is a directory")]) == 1

    # It does not give up, although nothing more happens.
    memory.rmdir()
    eventually(memory.is_file, "it remembers")
    await_remembered(agent, SAW, "UP READY 100%", eventually)
    assert sorted(os.listdir(tmp_path)) == [
        "agent0.log",
        *("state.json", "state.json.memory", "state.json.memory.lock"),
    ]


# Addresses


def test_an_ipv4_address_is_one_load_balancer_however_the_agent_listens(agents: Agents, eventually: Eventually) -> None:
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
    # It is known: a new one would be told READY.
    assert ask(agent, MISSED) == "UP"
    agent.send(signal.SIGTERM)
    agent.await_exit()
    assert sorted(remembered(agent)) == ["127.0.0.1", SAW, MISSED, "::1"]


# The setting


@pytest.mark.parametrize("value", ["-1", "86401", "100000", "abc", "", "1.5", "+1", " 1"])
def test_setting_that_it_cannot_use(agents: Agents, value: str) -> None:
    agent = agents.start(environment={"HAPGENT_SETTLE": value}, wait=False)
    assert agent.await_exit() == 2
    (line,) = agent.log()
    for word in ["HAPGENT_SETTLE", repr(value), "0 to 86400"]:
        assert word in line


@pytest.mark.parametrize("value", ["0", "86400"])
def test_least_and_greatest_setting(agents: Agents, value: str) -> None:
    agent = agents.start(content("DRAIN"), environment={"HAPGENT_SETTLE": value})
    agent.reload(content("UP"), b"UP\n" if value == "0" else b"UP READY\n")
