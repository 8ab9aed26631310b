# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Change the states of agents, and wait until HAProxy has acted on the new ones and receives nothing else any more.

usage: change.py STATE..., a status, or a status and a reason, for each of the agents in the folders 1, 2, ...
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE = time.monotonic() + 60


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        if time.monotonic() > DEADLINE:
            sys.exit("HAProxy does not poll all agents, or they do not send the new states")
        time.sleep(0.05)


class Agent:
    """An agent that only HAProxy polls."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        wait_until(self._is_polled)

    def change(self, state: dict[str, str]) -> None:
        new = self._folder / "new.json"
        new.write_text(json.dumps(state), encoding="utf-8")
        new.replace(self._folder / "state.json")
        os.kill(self._report()["pid"], signal.SIGHUP)

    def polls(self) -> int:
        return sum(peer["checks"] for peer in self._report()["peers"])

    def sends_only(self, state: dict[str, str]) -> bool:
        """Whether HAProxy's last line was this state, without keywords that reset the previous one."""
        report = self._report()
        return report["state"] == state and [peer["line"] for peer in report["peers"]] == [report["answer"]]

    def _is_polled(self) -> bool:
        try:
            return self.polls() > 0
        except OSError:
            # It is starting.
            return False

    def _report(self) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self._folder / "status.sock"))
            report: dict[str, Any] = json.load(client.makefile())
        return report


def state(text: str) -> dict[str, str]:
    status, _space, reason = text.partition(" ")
    return {"status": status, "reason": reason} if reason else {"status": status}


agents = {Agent(Path(str(number))): state(text) for number, text in enumerate(sys.argv[1:], start=1)}
for agent, new in agents.items():
    agent.change(new)
wait_until(lambda: all(agent.sends_only(new) for agent, new in agents.items()))
# The next line is sent after all changes, and HAProxy has acted on it when it polls again.
polls = {agent: agent.polls() for agent in agents}
wait_until(lambda: all(agent.polls() >= polls[agent] + 2 for agent in agents))
