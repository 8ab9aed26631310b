# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks refuse what they cannot do safely, and drain and roll hosts with real agents.

No load balancers are configured in these tests: the agents report which load balancers have polled.
"""

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
from ansible_collections.hapgent.agent.plugins.module_utils import _who

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents
    from tests.playbooks.conftest import RunPlaybook

LIMIT = "--limit=web1"
REASON = "reason='kernel upgrade of web1'"
DRAINED = {"status": "DRAIN", "reason": "kernel upgrade of web1", "by": _who.current()}


# What the playbooks refuse


ROLLING: dict[str, tuple[list[str], str]] = {
    "no reason": (["hapgent_tasks=tasks.yml"], "hapgent_reason must not be empty"),
    "a reason that HAProxy would cut": (
        ["hapgent_tasks=tasks.yml", "reason='ticket #12'"],
        'not "ticket #12"',
    ),
    "no tasks": ([REASON], "hapgent_tasks must be the path of a file"),
    "tasks that do not exist": (
        [REASON, "hapgent_tasks=no/tasks.yml"],
        "not 'no/tasks.yml'",
    ),
    "tasks of the collection": (
        [REASON, "hapgent_tasks=status.yml"],
        "not 'status.yml'",
    ),
}


@pytest.mark.parametrize(("variables", "text"), ROLLING.values(), ids=ROLLING)
def test_rolling_with_invalid_variables_changes_nothing(
    run_playbook: RunPlaybook, tmp_path: Path, variables: list[str], text: str
) -> None:
    (tmp_path / "tasks.yml").write_text("[]")
    (tmp_path / "state.json").write_text('{"status": "UP"}')
    options = [
        word for variable in [*variables, f"hapgent_state_file={tmp_path}/state.json"] for word in ("-e", variable)
    ]
    output = run_playbook("hapgent.agent.rolling", LIMIT, *options, succeeds=False)
    assert text in output
    assert "Nothing was changed." in output


@pytest.mark.parametrize(("playbook", "named"), [("drain", LIMIT), ("rolling", "--extra-vars=hapgent_hosts=web1")])
def test_load_balancers_must_exist(run_playbook: RunPlaybook, playbook: str, named: str) -> None:
    output = run_playbook(f"hapgent.agent.{playbook}", named, "-e", "hapgent_load_balancers=lb", succeeds=False)
    assert "hapgent_load_balancers must name hosts" in output


@pytest.mark.parametrize("fleet", ["", "localhost"])
def test_min_up_without_a_known_fleet_is_refused(run_playbook: RunPlaybook, fleet: str) -> None:
    variables = f"hapgent_min_up=50% hapgent_fleet={fleet}"
    output = run_playbook("hapgent.agent.drain", LIMIT, "-e", variables, succeeds=False)
    wanted = r"hapgent_min_up 50% .*\bhapgent_load_balancers\b.*\bhapgent_fleet\b.*\bweb1\. "
    assert re.search(f"{wanted}.*Nothing was changed on web1\\.", output)


def test_min_up_must_be_a_number_or_a_percentage(run_playbook: RunPlaybook) -> None:
    output = run_playbook(
        "hapgent.agent.drain", "-e", "hapgent_hosts=web1 hapgent_fleet=web1 hapgent_min_up=all", succeeds=False
    )
    assert re.search("hapgent_min_up must be .* not all\\.", output)


@pytest.fixture
def unreachable(tmp_path: Path) -> str:
    """An option that adds the unreachable host away to the inventory."""
    inventory = tmp_path / "unreachable"
    inventory.write_text("away ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1\n")
    return f"--inventory={inventory}"


def test_unreachable_load_balancer_is_refused_and_its_status_is_an_error(
    run_playbook: RunPlaybook, unreachable: str
) -> None:
    options = [LIMIT, unreachable, "-e", "hapgent_load_balancers=away"]
    output = run_playbook("hapgent.agent.drain", *options, succeeds=False)
    assert "hapgent_load_balancers='away,!away'. Nothing was changed on web1." in output
    # The playbook status reports the error and continues with the other hosts.
    assert '"away cannot be queried: ' in run_playbook("hapgent.agent.status", *options)


def test_unreachable_host_of_the_fleet_is_not_available(
    run_playbook: RunPlaybook, unreachable: str, agent: Agent
) -> None:
    variables = variables_of(agent, hapgent_fleet="all", hapgent_min_up=1)
    with polled(agent):
        output = run_playbook("hapgent.agent.drain", LIMIT, unreachable, "-e", variables, succeeds=False)
        assert "Of the 2 servers of hapgent_fleet, " in output
        assert "Leaving: web1. Staying: none." in output
        assert "Nothing was changed on web1." in output
        assert saved(agent) == {"status": "UP"}
        variables = variables_of(agent, hapgent_fleet="all", hapgent_min_up=0)
        assert "changed=1 " in run_playbook("hapgent.agent.drain", LIMIT, unreachable, "-e", variables)


def test_min_up_is_enforced_with_the_free_strategy(run_playbook: RunPlaybook, unreachable: str) -> None:
    # Hosts do not wait for each other with this strategy, but the check must still use the results of all hosts.
    free = {"ANSIBLE_STRATEGY": "free"}
    inventory = ["--inventory=more1,more2,more3,", unreachable]
    variables = "hapgent_hosts=all:!away hapgent_fleet=all:!away hapgent_min_up=3 ansible_connection=local"
    output = run_playbook("hapgent.agent.drain", *inventory, "-e", variables, succeeds=False, environment=free)
    assert re.search(r"Of the 4 servers of hapgent_fleet, .*hapgent_min_up .*\b3\.", output)
    assert output.count("failed=1 ") == 1


def test_play_that_does_not_check_its_hosts_together_is_refused(run_playbook: RunPlaybook, tmp_path: Path) -> None:
    drain = {"ansible.builtin.import_role": {"name": "hapgent.agent.fleet", "tasks_from": "drain"}}
    # A strategy other than linear has the same effect: web1 is to be drained, and the other host is not checked yet.
    tasks = [{**drain, "when": "inventory_hostname == 'web1'"}]
    play = {"hosts": "web1,more1,more2", "gather_facts": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    variables = "ansible_connection=local hapgent_fleet=all hapgent_min_up=0"
    output = run_playbook("play.yml", "--inventory=more1,more2,", "-e", variables, succeeds=False)
    assert re.search(r"web1: more1, more2\..*strategy", output)


# What the playbooks do


@pytest.fixture
def agent(agents: Agents, tmp_path: Path) -> Agent:
    """An agent with a status socket, which reports the load balancers that have polled."""
    return agents.start(environment={"HAPGENT_SOCKET": str(tmp_path / "status.sock")})


def variables_of(agent: Agent, **more: object) -> str:
    # The agent is not a systemd service, so the modules find it by its state file.
    found = {"hapgent_state_file": str(agent.state_file), "hapgent_service": "no-service-of-this-name"}
    # No client is connected to port 1.
    return json.dumps({**found, "hapgent_wait_timeout": 15, "hapgent_server_port": 1, **more})


@contextlib.contextmanager
def polled(agent: Agent) -> Iterator[None]:
    """Let a load balancer poll the agent."""
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
    """Keep a client connected to a service, and yield the port of the service."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as service:
        port: int = service.getsockname()[1]
        with socket.create_connection((address, port)):
            yield port


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_drain_and_undrain(run_playbook: RunPlaybook, agent: Agent, address: str) -> None:
    """The reason arrives complete, and the drain waits for the load balancer and for connected clients."""
    with polled(agent):
        with connected(address) as port:
            options = [LIMIT, "-e", variables_of(agent, hapgent_server_port=port), "-e", REASON]
            output = run_playbook("hapgent.agent.drain", *options, "-e", "hapgent_grace=2")
        assert saved(agent) == DRAINED
        assert "changed=1 " in output
        assert re.search(r"\b2 s\b.*\bweb1: ", output)

        output = run_playbook("hapgent.agent.drain", *options)
        assert "changed=0 " in output
        assert "300 s" not in output

        # Without a reason, undrain removes the previous one.
        assert "changed=1 " in run_playbook("hapgent.agent.undrain", LIMIT, "-e", variables_of(agent))
        assert saved(agent) == {"status": "UP"}


def test_drain_fails_if_a_load_balancer_does_not_poll(run_playbook: RunPlaybook, agent: Agent) -> None:
    variables = variables_of(agent, hapgent_wait_timeout=1, hapgent_wait_for=["192.0.2.1"])
    output = run_playbook("hapgent.agent.drain", LIMIT, "-e", variables, succeeds=False)
    assert "192.0.2.1 (never seen)" in output


def test_rolling_stops_at_a_failure_and_continues_with_the_same_command(
    run_playbook: RunPlaybook, agent: Agent, tmp_path: Path
) -> None:
    """A server whose tasks fail stays drained; the same command continues with it and finally removes the reason.

    The path of the tasks is relative to the folder in which ansible-playbook runs.
    """
    seen, works = tmp_path / "seen.json", tmp_path / "works"
    tasks = [
        {"ansible.builtin.copy": {"src": str(agent.state_file), "dest": str(seen), "mode": "0644"}},
        {"ansible.builtin.command": f"test -e {works}"},
    ]
    (tmp_path / "tasks.yml").write_text(json.dumps(tasks), encoding="utf-8")
    options = [LIMIT, "-e", variables_of(agent, hapgent_tasks="tasks.yml"), "-e", REASON]
    drained = DRAINED
    with polled(agent):
        output = run_playbook("hapgent.agent.rolling", *options, succeeds=False)
        assert json.loads(seen.read_bytes()) == saved(agent) == drained
        assert re.search(r"stopped at web1\b.* DRAIN\. .*: ansible\.builtin\.command: ", output)
        assert ("none", "web1", "none", "none") in progress(output)

        works.touch()
        output = run_playbook("hapgent.agent.rolling", *options)
        assert saved(agent) == {"status": "UP"}
        assert ("web1", "none", "none", "none") in progress(output)


def progress(output: str) -> list[tuple[str, ...]]:
    """Return the hosts in each progress report: done, not finished, kept out for other reasons, not touched."""
    reports = r"Done: (.*?)\. Not finished: (.*?)\. [^.:]+: (.*?)\. Not touched: (.*?)\."
    return re.findall(reports, output)


def roll(
    run_playbook: RunPlaybook,
    agent: Agent,
    tasks: list[object],
    *options: str,
    succeeds: bool = True,
    **variables: object,
) -> str:
    """Run the playbook rolling with these tasks and return its output."""
    file = agent.state_file.parent / "tasks.yml"
    file.write_text(json.dumps(tasks), encoding="utf-8")
    given = variables_of(agent, hapgent_tasks=str(file), **variables)
    with polled(agent):
        return run_playbook("hapgent.agent.rolling", "-e", given, "-e", REASON, *options, succeeds=succeeds)


def test_rolling_from_a_playbook_in_another_folder(run_playbook: RunPlaybook, agent: Agent, tmp_path: Path) -> None:
    """Its variables are passed on, and tasks are found relative to the folder in which ansible-playbook runs."""
    seen = tmp_path / "seen.json"
    copy = {"src": str(agent.state_file), "dest": str(seen), "mode": "0644"}
    (tmp_path / "tasks.yml").write_text(json.dumps([{"ansible.builtin.copy": copy}]))
    given = json.loads(variables_of(agent, hapgent_hosts="web1", hapgent_tasks="tasks.yml", hapgent_min_up=0))
    site = [{"import_playbook": "hapgent.agent.rolling", "vars": {**given, "reason": "release 4.2"}}]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "site.yml").write_text(json.dumps(site))
    with polled(agent):
        output = run_playbook("site/site.yml")
    assert json.loads(seen.read_bytes()) == {"status": "DRAIN", "reason": "release 4.2", "by": _who.current()}
    assert "Done: web1." in output
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
    output = roll(run_playbook, agent, [{"ansible.builtin.include_role": {"name": str(role)}}], LIMIT, succeeds=works)
    assert json.loads(seen.read_bytes())["status"] == "DRAIN"
    assert saved(agent) == ({"status": "UP"} if works else DRAINED)
    assert bool(re.search(r"stopped at web1\b.* DRAIN\.", output)) is not works


def test_rolling_stops_if_included_tasks_do_not_exist(run_playbook: RunPlaybook, agent: Agent) -> None:
    tasks: list[object] = [{"ansible.builtin.include_tasks": "{{ 'no-such-file' }}.yml"}]
    output = roll(run_playbook, agent, tasks, LIMIT, succeeds=False)
    assert re.search(r"stopped at web1\b.* DRAIN\. ", output)
    assert "no-such-file.yml" in output
    assert "run the same command again" in output


@pytest.mark.oldest_too
def test_rolling_fails_if_the_tasks_end_the_play(run_playbook: RunPlaybook, agent: Agent) -> None:
    """The server is not back in rotation then, so the run must not look like a success."""
    output = roll(run_playbook, agent, [{"ansible.builtin.meta": "end_host"}], LIMIT, succeeds=False)
    assert "Done: none. Not finished: web1." in output
    assert "web1 was not undrained" in output


def test_rolling_checks_the_health_of_a_server_that_is_already_done(run_playbook: RunPlaybook, agent: Agent) -> None:
    """The server is in rotation, and without a capacity check it must not be drained again."""
    done = {"status": "UP", "reason": "kernel upgrade of web1"}
    agent.reload(json.dumps(done).encode(), b"UP # kernel upgrade of web1\n")
    unwell = {"hapgent_health_url": "http://127.0.0.1:1/", "hapgent_health_tries": 1}
    output = roll(run_playbook, agent, [], LIMIT, succeeds=False, **unwell)
    assert re.search(r"stopped at web1\b.* UP\. .*: Wait until the service is healthy: ", output)
    assert saved(agent) == done


@pytest.fixture
def web2(agents: Agents, local_connection: str, tmp_path: Path) -> tuple[Agent, str]:
    """A second agent, and an option that adds its host to the inventory."""
    agent = agents.start(environment={"HAPGENT_SOCKET": str(tmp_path / "status2.sock")})
    inventory = tmp_path / "web2"
    inventory.write_text(f"web2 {local_connection} state_file_of={agent.state_file}\n")
    return agent, f"--inventory={inventory}"


def test_rolling_keeps_a_reason_that_was_set_by_others_meanwhile(
    run_playbook: RunPlaybook, agent: Agent, web2: tuple[Agent, str]
) -> None:
    """An operator drains web1, which is done, while web2 has its turn."""
    drained = {"status": "DRAIN", "reason": "disk"}
    write = {"content": json.dumps(drained), "dest": str(agent.state_file), "mode": "0644"}
    drain = {"ansible.builtin.copy": write, "when": "inventory_hostname == 'web2'"}
    state_file = "{{ state_file_of | default('" + str(agent.state_file) + "') }}"
    other, inventory = web2
    with polled(other):
        output = roll(
            run_playbook,
            agent,
            [drain],
            inventory,
            hapgent_hosts="web1,web2",
            hapgent_state_file=state_file,
            hapgent_min_up=0,
        )
    assert ("web1", "none", "none", "web2") in progress(output)
    *others, kept_out, untouched = progress(output)[-1]
    assert (others, untouched) == (["web1, web2", "none"], "none")
    assert re.fullmatch("web1: .* DRAIN UP # disk", kept_out)
    assert (saved(agent), saved(other)) == (drained, {"status": "UP"})


def test_rolling_skips_hosts_that_others_keep_out(run_playbook: RunPlaybook, agent: Agent) -> None:
    agent.reload(b'{"status": "MAINT", "reason": "no disk"}', b"MAINT UP # no disk\n")
    output = roll(run_playbook, agent, [{"ansible.builtin.fail": {}}], LIMIT, hapgent_kept_out="skip")
    *others, kept_out, untouched = progress(output)[-1]
    assert (others, untouched) == (["none", "none"], "none")
    assert re.fullmatch("web1: .* MAINT UP # no disk", kept_out)
    assert saved(agent) == {"status": "MAINT", "reason": "no disk"}
