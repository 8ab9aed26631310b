# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The memory file does not grow over many restarts, and two agents on one state file do not corrupt it."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents, Eventually

STATES = [
    b'{"status": "UP", "weight": 50, "reason": "a"}',
    b'{"status": "DRAIN", "reason": "b"}',
    b'{"status": "MAINT"}',
    b'{"status": "FAIL", "maxconn": 7}',
    b'{"status": "STOPPED", "weight": 3}',
]


def memory_of(agent: Agent) -> bytes:
    return agent.state_file.with_name("state.json.memory").read_bytes()


def test_memory_does_not_grow_over_restarts(agents: Agents) -> None:
    settle = {"HAPGENT_SETTLE": "3600"}
    agent = agents.start(environment=settle)
    sizes = []
    for number in range(20):
        # Every other agent is killed, so the next one must assume that it sent any state.
        if number % 2:
            agent.kill()
        else:
            agent.send(signal.SIGTERM)
            assert agent.await_exit() == 0
        state = STATES[number % len(STATES)]
        agent = agents.start(state, state_file=agent.state_file, port=agent.port, environment=settle)
        agent.ask()
        agent.await_loaded()
        sizes.append(len(memory_of(agent)))
    # The rounds repeat the same steps, so the size must not grow.
    assert max(sizes[10:]) <= max(sizes[:10]) + 64, sizes
    assert max(sizes) < 4096, sizes


def test_two_agents_on_one_state_file_keep_it_whole(agents: Agents, eventually: Eventually) -> None:
    first = agents.start()
    second = agents.start(None, state_file=first.state_file)
    # The second agent can neither read nor save the memory file.
    assert len([line for line in second.log() if "state.json.memory.lock is locked by process" in line]) == 2
    assert second.ask() == b"UP\n"

    for _round in range(100):
        first.send(signal.SIGUSR2)
        second.send(signal.SIGUSR1)
        first.send(signal.SIGUSR1)
        second.send(signal.SIGUSR2)
        # Both files are whole at any time.
        assert first.saved() in ({"status": "UP"}, {"status": "DOWN"})
        assert "peers" in json.loads(memory_of(first))
        assert first.ask() in {b"UP\n", b"DOWN\n"}
        assert second.ask() in {b"UP\n", b"DOWN\n"}
    for agent in (first, second):
        agent.await_signals_taken()
        assert not any("not saved" in line for line in agent.log())
    assert json.loads(memory_of(first))["complete"] is False

    # When the first agent ends, the second one takes over the memory file.
    first.send(signal.SIGTERM)
    assert first.await_exit() == 0
    eventually(lambda: json.loads(memory_of(second))["complete"] is False, "the second agent saves the memory file")
