# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""drain and undrain leave hosts alone that are already out of rotation or that were drained for another reason."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _who

if TYPE_CHECKING:
    from tests.conftest import Agent, Agents
    from tests.playbooks.conftest import RunPlaybook

State = dict[str, Any]

# With these variables plays finish quickly: no client is connected to that port, and load balancers poll often.
QUICK = {"hapgent_service": "no-service-of-this-name", "hapgent_server_port": 1, "hapgent_wait_timeout": 15}
LB1, LB2 = "127.0.0.11", "127.0.0.12"


class Fleet:
    """Hosts with one agent each, all on this machine."""

    def __init__(
        self, run_playbook: RunPlaybook, connection: str, agents: Agents, folder: Path, states: Mapping[str, State]
    ) -> None:
        self._run_playbook = run_playbook
        self._connection = connection.split()
        self._folder = folder
        self._silenced: set[str] = set()
        self.agents: dict[str, Agent] = {
            name: agents.start(
                json.dumps(state).encode(), environment={"HAPGENT_SOCKET": str(folder / f"{name}.sock")}, logs=False
            )
            for name, state in states.items()
        }

    def play(self, playbook: str, *options: str, succeeds: bool = True, **variables: object) -> str:
        """Run a playbook on hosts of the fleet, by default on all of them, and return its output."""
        lines = [f"{name} hapgent_state_file={agent.state_file}" for name, agent in self.agents.items()]
        inventory = self._folder / "fleet"
        inventory.write_text("\n".join(["[fleet]", *lines, "[fleet:vars]", *self._connection, ""]), encoding="utf-8")
        given = json.dumps({"hapgent_hosts": "fleet", "hapgent_min_up": 0, **QUICK, **variables})
        return self._run_playbook(playbook, f"--inventory={inventory}", "-e", given, *options, succeeds=succeeds)

    def states(self) -> dict[str, State]:
        return {name: json.loads(agent.state_file.read_bytes()) for name, agent in self.agents.items()}

    def silence(self, address: str) -> None:
        """Stop the polls of a load balancer."""
        self._silenced.add(address)

    @contextlib.contextmanager
    def polled(self, addresses: Sequence[str] = (LB1,)) -> Iterator[None]:
        """Let load balancers with these addresses poll each agent."""
        enough = threading.Event()

        def poll() -> None:
            while not enough.wait(0.1):
                for agent in self.agents.values():
                    for address in set(addresses) - self._silenced:
                        with socket.create_connection((agent.ip, agent.port), 15, (address, 0)) as client:
                            agent.read_to_end(client)

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()


@pytest.fixture
def fleet_of(run_playbook: RunPlaybook, local_connection: str, agents: Agents, tmp_path: Path) -> Any:
    """A function that creates a fleet of hosts with these states."""

    def make(**states: State) -> Fleet:
        return Fleet(run_playbook, local_connection, agents, tmp_path, states)

    return make


# States that are already out of rotation. A drain must not bring a host with one of these closer to receiving traffic.
OUT: dict[str, State] = {
    "maint": {"status": "MAINT", "reason": "disk"},
    "down": {"status": "DOWN"},
    "fail": {"status": "FAIL", "weight": 50},
    "stopped": {"status": "STOPPED", "reason": "upgrade"},
    "drain": {"status": "DRAIN", "reason": "disk"},
}


def test_drain_keeps_hosts_that_are_out_and_undrain_those_with_another_reason(fleet_of: Any) -> None:
    fleet = fleet_of(**OUT, up={"status": "UP"}, ready={"status": "READY"})
    drained = {"status": "DRAIN", "reason": "upgrade", "by": _who.current()}
    with fleet.polled():
        output = fleet.play("hapgent.agent.drain", hapgent_reason="upgrade")
        assert fleet.states() == {**OUT, "up": drained, "ready": drained}
        for name in OUT:
            assert f"{name} is already out" in output
        assert "up is already out" not in output

        output = fleet.play("hapgent.agent.undrain", hapgent_reason="upgrade")
        back = {"status": "UP"}
        assert fleet.states() == {**OUT, "up": back, "ready": back, "stopped": back}
        for name in ("maint", "down", "fail", "drain"):
            assert re.search(rf"\b{name}: .* {OUT[name]['status']}\b.* hapgent_reason is upgrade", output)

        # Without a reason, undrain brings every host back into rotation and reports its previous state.
        output = fleet.play("hapgent.agent.undrain", "--limit=maint")
        assert fleet.states()["maint"] == back
        assert re.search("maint: .*MAINT UP # disk", output)


def test_drain_in_check_mode_reports_hosts_that_are_already_out(fleet_of: Any) -> None:
    fleet = fleet_of(maint=OUT["maint"], up={"status": "UP"})
    with fleet.polled():
        output = fleet.play("hapgent.agent.drain", "--check")
    assert "maint is already out" in output
    assert fleet.states() == {"maint": OUT["maint"], "up": {"status": "UP"}}


# Ansible would convert a reason such as 4.10 to a number if the tasks let it.
@pytest.mark.parametrize(
    ("playbook", "seen"),
    [("hapgent.agent.drain", {"status": "UP", "reason": "4.10"}), ("hapgent.agent.undrain", {"status": "DRAIN"})],
)
def test_state_that_changed_after_it_was_queried_is_kept(fleet_of: Any, playbook: str, seen: State) -> None:
    now = {"status": "MAINT", "reason": "disk"}
    fleet = fleet_of(web1=now, web2=seen)
    with fleet.polled():
        # The extra variable takes precedence over what the query registers, so all hosts seem to have this state.
        output = fleet.play(playbook, succeeds=False, hapgent__agent={"results": [{"before": seen}]})
    after = {"status": "DRAIN", "by": _who.current()} if seen["status"] == "UP" else {"status": "UP"}
    assert fleet.states() == {"web1": now, "web2": after}
    assert "MAINT UP # disk" in output


# The second reason has another value at each evaluation.
@pytest.mark.parametrize("reason", ["", "{{ now() }}"])
def test_custom_play_brings_back_only_what_it_drained(fleet_of: Any, tmp_path: Path, reason: str) -> None:
    role = {"name": "hapgent.agent.fleet"}
    play = {
        "hosts": "fleet",
        "gather_facts": False,
        "pre_tasks": [{"ansible.builtin.import_role": {**role, "tasks_from": "drain"}}],
        "tasks": [{"ansible.builtin.command": "true"}],
        "post_tasks": [{"ansible.builtin.import_role": {**role, "tasks_from": "undrain"}}],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    fleet = fleet_of(maint=OUT["maint"], up={"status": "UP"})
    with fleet.polled():
        output = fleet.play("play.yml", hapgent_reason=reason)
    assert fleet.states() == {"maint": OUT["maint"], "up": {"status": "UP"}}
    assert re.search(r"\bmaint: .*\(.*MAINT UP # disk.*\)", output)


def test_second_undrain_of_a_run_also_brings_back_what_was_out_before(fleet_of: Any, tmp_path: Path) -> None:
    role = {"name": "hapgent.agent.fleet"}
    steps = [{"ansible.builtin.import_role": {**role, "tasks_from": step}} for step in ("drain", "undrain", "undrain")]
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "fleet", "gather_facts": False, "tasks": steps}]))
    fleet = fleet_of(maint=OUT["maint"])
    with fleet.polled():
        fleet.play("play.yml")
    assert fleet.states() == {"maint": {"status": "UP"}}
