# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks, where no load balancers are named: what they refuse, and what they do with a real agent."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents
    from tests.playbooks.conftest import RunPlaybook

LIMIT = "--limit=web1"
REASON = "reason='kernel upgrade of web1'"


# What they refuse


ROLLING: dict[str, tuple[list[str], str]] = {
    "no reason": (["hapgent_tasks=tasks.yml"], "hapgent_reason must not be empty"),
    "a reason that HAProxy would cut": (
        ["hapgent_tasks=tasks.yml", "reason='ticket #12'"],
        'not "ticket #12"',
    ),
    "no tasks": ([REASON], "hapgent_tasks must be the path of a file"),
    "tasks that are not there": (
        [REASON, "hapgent_tasks=no/tasks.yml"],
        "not 'no/tasks.yml'",
    ),
    "tasks of the collection": (
        [REASON, "hapgent_tasks=status.yml"],
        "not 'status.yml'",
    ),
}


@pytest.mark.parametrize(("variables", "text"), ROLLING.values(), ids=ROLLING)
def test_rolling_that_cannot_begin(run_playbook: RunPlaybook, tmp_path: Path, variables: list[str], text: str) -> None:
    (tmp_path / "tasks.yml").write_text("[]")
    (tmp_path / "state.json").write_text('{"status": "UP"}')
    options = [
        word for variable in [*variables, f"hapgent_state_file={tmp_path}/state.json"] for word in ("-e", variable)
    ]
    said = run_playbook("hapgent.agent.rolling", LIMIT, *options, succeeds=False)
    assert text in said
    assert "Nothing was changed." in said


@pytest.mark.parametrize(("playbook", "named"), [("drain", LIMIT), ("rolling", "--extra-vars=hapgent_hosts=web1")])
def test_load_balancers_that_do_not_exist(run_playbook: RunPlaybook, playbook: str, named: str) -> None:
    said = run_playbook(f"hapgent.agent.{playbook}", named, "-e", "hapgent_load_balancers=lb", succeeds=False)
    assert "hapgent_load_balancers must name hosts" in said


@pytest.mark.parametrize("fleet", ["", "localhost"])
def test_min_up_of_nothing_known(run_playbook: RunPlaybook, fleet: str) -> None:
    variables = f"hapgent_min_up=50% hapgent_fleet={fleet}"
    said = run_playbook("hapgent.agent.drain", LIMIT, "-e", variables, succeeds=False)
    wanted = r"hapgent_min_up 50% .*\bhapgent_load_balancers\b.*\bhapgent_fleet\b.*\bweb1\. "
    assert re.search(f"{wanted}.*Nothing was changed on web1\\.", said)


def test_fleet_whose_agents_do_not_answer(run_playbook: RunPlaybook) -> None:
    said = run_playbook(
        "hapgent.agent.drain", "-e", "hapgent_hosts=web1 hapgent_fleet=web1 hapgent_min_up=all", succeeds=False
    )
    assert re.search("hapgent_min_up must be .* not all\\.", said)


@pytest.fixture
def unreachable(tmp_path: Path) -> str:
    """An option with one more host, that nobody can log in to."""
    inventory = tmp_path / "unreachable"
    inventory.write_text("away ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1\n")
    return f"--inventory={inventory}"


def test_load_balancer_that_cannot_be_reached(run_playbook: RunPlaybook, unreachable: str) -> None:
    options = [LIMIT, unreachable, "-e", "hapgent_load_balancers=away"]
    said = run_playbook("hapgent.agent.drain", *options, succeeds=False)
    assert "hapgent_load_balancers='away,!away'. Nothing was changed on web1." in said
    # One that tells of all others too.
    assert '"away cannot be queried: ' in run_playbook("hapgent.agent.status", *options)


def test_host_of_the_fleet_that_cannot_be_reached(run_playbook: RunPlaybook, unreachable: str, agent: Agent) -> None:
    """It does not stand in for others, and does not end the play."""
    variables = variables_of(agent, hapgent_fleet="all", hapgent_min_up=1)
    with polled(agent):
        said = run_playbook("hapgent.agent.drain", LIMIT, unreachable, "-e", variables, succeeds=False)
        assert "Of the 2 servers of hapgent_fleet, " in said
        assert "Leaving: web1. Staying: none." in said
        assert "Nothing was changed on web1." in said
        assert saved(agent) == {"status": "UP"}
        variables = variables_of(agent, hapgent_fleet="all", hapgent_min_up=0)
        assert "changed=1 " in run_playbook("hapgent.agent.drain", LIMIT, unreachable, "-e", variables)


def test_strategy_that_lets_no_host_wait_for_others(
    run_playbook: RunPlaybook, unreachable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several, each is refused by what all have noted."""
    monkeypatch.setenv("ANSIBLE_STRATEGY", "free")
    inventory = ["--inventory=more1,more2,more3,", unreachable]
    variables = "hapgent_hosts=all:!away hapgent_fleet=all:!away hapgent_min_up=3 ansible_connection=local"
    said = run_playbook("hapgent.agent.drain", *inventory, "-e", variables, succeeds=False)
    assert re.search(r"Of the 4 servers of hapgent_fleet, .*hapgent_min_up .*\b3\.", said)
    assert said.count("failed=1 ") == 1


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
def connected(address: str) -> Iterator[int]:
    """Somebody is connected to a service with this port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as service:
        port: int = service.getsockname()[1]
        with socket.create_connection((address, port)):
            yield port


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_drain_and_undrain(run_playbook: RunPlaybook, agent: Agent, address: str) -> None:
    """The reason arrives whole, the load balancer is waited for, and so is who is connected."""
    with polled(agent):
        with connected(address) as port:
            options = [LIMIT, "-e", variables_of(agent, hapgent_server_port=port), "-e", REASON]
            said = run_playbook("hapgent.agent.drain", *options, "-e", "hapgent_grace=2")
        assert saved(agent) == {"status": "DRAIN", "reason": "kernel upgrade of web1"}
        assert "changed=1 " in said
        assert re.search(r"\b2 s\b.*\bweb1: ", said)

        said = run_playbook("hapgent.agent.drain", *options)
        assert "changed=0 " in said
        assert "300 s" not in said

        # Without a reason, none is left.
        assert "changed=1 " in run_playbook("hapgent.agent.undrain", LIMIT, "-e", variables_of(agent))
        assert saved(agent) == {"status": "UP"}


def test_drain_that_no_load_balancer_receives(run_playbook: RunPlaybook, agent: Agent) -> None:
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
        assert re.search(r"stopped at web1\b.* DRAIN\. .*: ansible\.builtin\.command: ", said)
        assert ("none", "web1", "none", "none") in progress(said)

        works.touch()
        said = run_playbook("hapgent.agent.rolling", *options)
        assert saved(agent) == {"status": "UP"}
        assert ("web1", "none", "none", "none") in progress(said)


def progress(said: str) -> list[tuple[str, ...]]:
    """Each report of the hosts that are done, not finished, kept out by something else, and not touched."""
    reports = r"Done: (.*?)\. Not finished: (.*?)\. [^.:]+: (.*?)\. Not touched: (.*?)\."
    return re.findall(reports, said)


def roll(
    run_playbook: RunPlaybook,
    agent: Agent,
    tasks: list[object],
    *options: str,
    succeeds: bool = True,
    **variables: object,
) -> str:
    """Roll these tasks out. What was said."""
    file = agent.state_file.parent / "tasks.yml"
    file.write_text(json.dumps(tasks), encoding="utf-8")
    given = variables_of(agent, hapgent_tasks=str(file), **variables)
    with polled(agent):
        return run_playbook("hapgent.agent.rolling", "-e", given, "-e", REASON, *options, succeeds=succeeds)


def test_rolling_from_a_playbook_in_another_folder(run_playbook: RunPlaybook, agent: Agent, tmp_path: Path) -> None:
    """Its variables arrive, and its tasks are found where ansible-playbook runs."""
    seen = tmp_path / "seen.json"
    copy = {"src": str(agent.state_file), "dest": str(seen), "mode": "0644"}
    (tmp_path / "tasks.yml").write_text(json.dumps([{"ansible.builtin.copy": copy}]))
    given = json.loads(variables_of(agent, hapgent_hosts="web1", hapgent_tasks="tasks.yml", hapgent_min_up=0))
    site = [{"import_playbook": "hapgent.agent.rolling", "vars": {**given, "reason": "release 4.2"}}]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "site.yml").write_text(json.dumps(site))
    with polled(agent):
        said = run_playbook("site/site.yml")
    assert json.loads(seen.read_bytes()) == {"status": "DRAIN", "reason": "release 4.2"}
    assert "Done: web1." in said
    assert saved(agent) == {"status": "UP"}


@pytest.mark.parametrize("works", [True, False], ids=["that works", "that fails"])
def test_rolling_runs_handlers_before_it_brings_the_server_back(
    run_playbook: RunPlaybook, agent: Agent, tmp_path: Path, works: bool
) -> None:
    seen = tmp_path / "seen.json"
    restart = f"cp {agent.state_file} {seen}{'' if works else ' && false'}"
    role = tmp_path / "roles" / "shop"
    (role / "tasks").mkdir(parents=True)
    (role / "tasks" / "main.yml").write_text(json.dumps([{"ansible.builtin.command": "true", "notify": "Restart"}]))
    (role / "handlers").mkdir()
    (role / "handlers" / "main.yml").write_text(json.dumps([{"name": "Restart", "ansible.builtin.shell": restart}]))
    said = roll(run_playbook, agent, [{"ansible.builtin.include_role": {"name": str(role)}}], LIMIT, succeeds=works)
    assert json.loads(seen.read_bytes())["status"] == "DRAIN"
    assert saved(agent) == ({"status": "UP"} if works else {"status": "DRAIN", "reason": "kernel upgrade of web1"})
    assert bool(re.search(r"stopped at web1\b.* DRAIN\.", said)) is not works


def test_rolling_whose_tasks_are_not_there(run_playbook: RunPlaybook, agent: Agent) -> None:
    tasks: list[object] = [{"ansible.builtin.include_tasks": "{{ 'no-such-file' }}.yml"}]
    said = roll(run_playbook, agent, tasks, LIMIT, succeeds=False)
    assert re.search(r"stopped at web1\b.* DRAIN\. ", said)
    assert "no-such-file.yml" in said
    assert "run the same command again" in said


@pytest.mark.oldest_too
def test_rolling_whose_tasks_end_the_play(run_playbook: RunPlaybook, agent: Agent) -> None:
    """Before the server is back: nobody must take that for a success."""
    said = roll(run_playbook, agent, [{"ansible.builtin.meta": "end_host"}], LIMIT, succeeds=False)
    assert "Done: none. Not finished: web1." in said
    assert "web1 was not undrained" in said


def test_rolling_that_looks_at_one_that_was_done_before(run_playbook: RunPlaybook, agent: Agent) -> None:
    """It serves, and nobody has asked whether it may leave."""
    done = {"status": "UP", "reason": "kernel upgrade of web1"}
    agent.reload(json.dumps(done).encode(), b"UP # kernel upgrade of web1\n")
    unwell = {"hapgent_health_url": "http://127.0.0.1:1/", "hapgent_health_tries": 1}
    said = roll(run_playbook, agent, [], LIMIT, succeeds=False, **unwell)
    assert re.search(r"stopped at web1\b.* UP\. .*: Wait until the service is healthy: ", said)
    assert saved(agent) == done


@pytest.fixture
def web2(agents: Agents, local_connection: str, tmp_path: Path) -> tuple[Agent, str]:
    """One more agent, and an option with its host."""
    agent = agents.start(environment={"HAPGENT_SOCKET": str(tmp_path / "status2.sock")})
    inventory = tmp_path / "web2"
    inventory.write_text(f"web2 {local_connection} state_file_of={agent.state_file}\n")
    return agent, f"--inventory={inventory}"


def test_rolling_leaves_a_reason_that_somebody_else_gave_meanwhile(
    run_playbook: RunPlaybook, agent: Agent, web2: tuple[Agent, str]
) -> None:
    """While web2 has its turn, somebody drains web1, which is done."""
    drained = {"status": "DRAIN", "reason": "disk"}
    write = {"content": json.dumps(drained), "dest": str(agent.state_file), "mode": "0644"}
    drain = {"ansible.builtin.copy": write, "when": "inventory_hostname == 'web2'"}
    state_file = "{{ state_file_of | default('" + str(agent.state_file) + "') }}"
    other, inventory = web2
    with polled(other):
        said = roll(
            run_playbook,
            agent,
            [drain],
            inventory,
            hapgent_hosts="web1,web2",
            hapgent_state_file=state_file,
            hapgent_min_up=0,
        )
    assert ("web1", "none", "none", "web2") in progress(said)
    *others, kept_out, untouched = progress(said)[-1]
    assert (others, untouched) == (["web1, web2", "none"], "none")
    assert re.fullmatch("web1: .* DRAIN UP # disk", kept_out)
    assert (saved(agent), saved(other)) == (drained, {"status": "UP"})


def test_rolling_leaves_alone_what_somebody_else_keeps_out(run_playbook: RunPlaybook, agent: Agent) -> None:
    agent.reload(b'{"status": "MAINT", "reason": "no disk"}', b"MAINT UP # no disk\n")
    said = roll(run_playbook, agent, [{"ansible.builtin.fail": {}}], LIMIT, hapgent_kept_out="skip")
    *others, kept_out, untouched = progress(said)[-1]
    assert (others, untouched) == (["none", "none"], "none")
    assert re.fullmatch("web1: .* MAINT UP # no disk", kept_out)
    assert saved(agent) == {"status": "MAINT", "reason": "no disk"}
