# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks, where no load balancers are named: what they refuse, and what they do with a real agent."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents
    from tests.unit.conftest import RunPlaybook

LIMIT = "--limit=web1"
# Words that Ansible takes apart.
REASON = "reason=kernel upgrade of web1"


# What they refuse


@pytest.mark.parametrize(
    ("playbook", "would"),
    [
        ("drain", "This would drain every host of the inventory."),
        ("undrain", "This would bring back every host of the inventory, whoever has drained it."),
        ("rolling", "This would work on every host of the inventory."),
    ],
)
def test_no_hosts_named(run_playbook: RunPlaybook, playbook: str, would: str) -> None:
    said = run_playbook(f"hapgent.agent.{playbook}", "-e", REASON, succeeds=False)
    assert f"{would} Name hosts with --limit, or with the variable hapgent_hosts. Nothing was changed." in said
    assert "failed=1 " in said


ROLLING: dict[str, tuple[list[str], str]] = {
    "no reason": (["hapgent_tasks=tasks.yml"], "There is no reason: give one, such as the release, with -e reason="),
    "no tasks": ([REASON], "hapgent_tasks is '': allowed is a file of tasks"),
    "tasks that are not there": (
        [REASON, "hapgent_tasks=no/tasks.yml"],
        "hapgent_tasks is 'no/tasks.yml': allowed is a file of tasks, as an absolute path, or relative to where",
    ),
}


@pytest.mark.parametrize(("variables", "text"), ROLLING.values(), ids=ROLLING)
def test_rolling_that_cannot_begin(run_playbook: RunPlaybook, tmp_path: Path, variables: list[str], text: str) -> None:
    (tmp_path / "tasks.yml").write_text("[]")
    options = [word for variable in variables for word in ("-e", variable)]
    said = run_playbook("hapgent.agent.rolling", LIMIT, *options, succeeds=False)
    assert text in said
    assert "Nothing was changed." in said


@pytest.mark.parametrize(("playbook", "named"), [("drain", LIMIT), ("rolling", "--extra-vars=hapgent_hosts=web1")])
def test_load_balancers_that_do_not_exist(run_playbook: RunPlaybook, playbook: str, named: str) -> None:
    said = run_playbook(f"hapgent.agent.{playbook}", named, "-e", "hapgent_load_balancers=lb", succeeds=False)
    assert "hapgent_load_balancers is lb, and the inventory has no such host" in said


def test_min_up_of_nothing_known(run_playbook: RunPlaybook) -> None:
    said = run_playbook("hapgent.agent.drain", LIMIT, "-e", "hapgent_min_up=50%", succeeds=False)
    assert "hapgent_min_up is 50%, and no servers are known that it is about" in said


def test_fleet_whose_agents_do_not_answer(run_playbook: RunPlaybook) -> None:
    said = run_playbook("hapgent.agent.drain", "-e", "hapgent_hosts=web1 hapgent_min_up=all", succeeds=False)
    assert "hapgent_min_up is all: allowed is a number from 0 on, or 0% to 100%" in said


@pytest.fixture
def unreachable(tmp_path: Path) -> str:
    """An option with one more host, that nobody can log in to."""
    inventory = tmp_path / "unreachable"
    inventory.write_text("away ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1\n")
    return f"--inventory={inventory}"


def test_load_balancer_that_cannot_be_reached(run_playbook: RunPlaybook, unreachable: str) -> None:
    options = [LIMIT, unreachable, "-e", "hapgent_load_balancers=away"]
    said = run_playbook("hapgent.agent.drain", *options, succeeds=False)
    assert "hapgent_load_balancers='away:!away'. Nothing was changed on web1." in said
    # One that tells of all others too.
    assert "away cannot be asked: " in run_playbook("hapgent.agent.status", *options)


def test_host_of_the_fleet_that_cannot_be_reached(run_playbook: RunPlaybook, unreachable: str, agent: Agent) -> None:
    """It is out, and does not end the play."""
    variables = variables_of(agent, hapgent_fleet="all", hapgent_min_up=1)
    with polled(agent):
        said = run_playbook("hapgent.agent.drain", LIMIT, unreachable, "-e", variables)
    assert "changed=1 " in said


# What they do


@pytest.fixture
def agent(agents: Agents, tmp_path: Path) -> Agent:
    """An agent that tells who has asked it."""
    return agents.start(environment={"HAPGENT_SOCKET": str(tmp_path / "status.sock")})


def variables_of(agent: Agent, **more: object) -> str:
    # No systemd knows it, so the agent is found by its state file.
    found = {"hapgent_state_file": str(agent.state_file), "hapgent_service": "no-service-of-this-name"}
    # Nobody is connected to that port.
    return json.dumps({**found, "hapgent_wait_timeout": 15, "hapgent_server_port": 1, **more})


@contextlib.contextmanager
def polled(agent: Agent) -> Iterator[None]:
    """Have a load balancer ask the agent."""
    enough = threading.Event()

    def poll() -> None:
        while not enough.wait(0.1):
            agent.ask()

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def saved(agent: Agent) -> object:
    return json.loads(agent.state_file.read_bytes())


@contextlib.contextmanager
def connected() -> Iterator[int]:
    """Somebody is connected to a service with this port."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        port: int = service.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            yield port


def test_drain_and_undrain(run_playbook: RunPlaybook, agent: Agent) -> None:
    """The reason arrives whole, the load balancer is waited for, and so is who is connected."""
    with polled(agent):
        with connected() as port:
            options = [LIMIT, "-e", variables_of(agent, hapgent_server_port=port), "-e", REASON]
            said = run_playbook("hapgent.agent.drain", *options, "-e", "hapgent_grace=2")
        assert saved(agent) == {"status": "DRAIN", "reason": "kernel upgrade of web1"}
        assert "changed=1 " in said
        assert "2 s are over, and sessions of web1 are not" in said

        said = run_playbook("hapgent.agent.drain", *options)
        assert "changed=0 " in said
        assert "300 s are over" not in said

        # Without a reason, none is left.
        assert "changed=1 " in run_playbook("hapgent.agent.undrain", LIMIT, "-e", variables_of(agent))
        assert saved(agent) == {"status": "UP"}


def test_drain_that_no_load_balancer_is_told(run_playbook: RunPlaybook, agent: Agent) -> None:
    variables = variables_of(agent, hapgent_wait_timeout=1, hapgent_wait_for=["192.0.2.1"])
    said = run_playbook("hapgent.agent.drain", LIMIT, "-e", variables, succeeds=False)
    assert "192.0.2.1 (never seen)" in said


def test_rolling(run_playbook: RunPlaybook, agent: Agent, tmp_path: Path) -> None:
    """A server whose tasks fail stays out, the same command goes on with it, and at the end the reason goes.

    The tasks are found where ansible-playbook runs.
    """
    seen, works = tmp_path / "seen.json", tmp_path / "works"
    tasks = [
        {"ansible.builtin.copy": {"src": str(agent.state_file), "dest": str(seen), "mode": "0644"}},
        {"ansible.builtin.command": f"test -e {works}"},
    ]
    (tmp_path / "tasks.yml").write_text(json.dumps(tasks), encoding="utf-8")
    options = [LIMIT, "-e", variables_of(agent, hapgent_tasks="tasks.yml"), "-e", REASON]
    drained = {"status": "DRAIN", "reason": "kernel upgrade of web1"}
    with polled(agent):
        said = run_playbook("hapgent.agent.rolling", *options, succeeds=False)
        assert json.loads(seen.read_bytes()) == saved(agent) == drained
        assert "Rolling stops at web1, which stays out of HAProxy." in said

        works.touch()
        said = run_playbook("hapgent.agent.rolling", *options)
        assert saved(agent) == {"status": "UP"}
        assert "Rolled: web1. Taken out by somebody else: none. Not done: none." in said


def test_rolling_leaves_alone_what_somebody_else_keeps_out(
    run_playbook: RunPlaybook, agent: Agent, tmp_path: Path
) -> None:
    agent.reload(b'{"status": "MAINT", "reason": "no disk"}', b"MAINT UP # no disk\n")
    (tmp_path / "tasks.yml").write_text(json.dumps([{"ansible.builtin.fail": {}}]), encoding="utf-8")
    variables = variables_of(agent, hapgent_tasks="tasks.yml")
    with polled(agent):
        said = run_playbook("hapgent.agent.rolling", LIMIT, "-e", variables, "-e", REASON)
    assert "Rolled: none. Taken out by somebody else: web1: its agent says MAINT UP # no disk." in said
    assert saved(agent) == {"status": "MAINT", "reason": "no disk"}
