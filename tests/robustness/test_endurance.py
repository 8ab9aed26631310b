# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""250,000 checks, which HAProxy sends in a week, cost the agent no memory, descriptors or threads."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Agents
    from tests.robustness.conftest import ClientsOf, Observer

# Even a leak of one byte per check would exceed the limit of 128 kB.
CHECKS = 250_000
PROCESSES = 2
WARM_UP = 20_000


def test_250_000_checks_leave_nothing_behind(agents: Agents, clients: ClientsOf, observer: Observer) -> None:
    agent = agents.start(b'{"status": "UP", "weight": 77}')

    def ask(checks: int) -> None:
        with ExitStack() as processes:
            started = [
                processes.enter_context(clients(agent, "ask", 64, checks // PROCESSES)) for _process in range(PROCESSES)
            ]
            for process in started:
                process.finish()
        assert [dict(process) for process in started] == [{"UP 77%\n": checks // PROCESSES}] * PROCESSES

    ask(WARM_UP)
    before = observer.figures(agent)
    ask(CHECKS - WARM_UP)
    observer.assert_flat(agent, before, kilobytes=128)
    assert len(agent.log()) == len(["start", "answering"])
