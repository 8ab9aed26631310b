# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Only one drain or rolling update has the lock of a fleet, and it has it on every load balancer or on none."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _who
from ansible_collections.hapgent.agent.plugins.plugin_utils import _runs
from releases import EDGES, program

if TYPE_CHECKING:
    from tests.playbooks.fleet.conftest import Fleet

DRAIN, ROLLING = "hapgent.agent.drain", "hapgent.agent.rolling"
ANSIBLE = Path(sys.executable).parent
OLDEST = Path(__file__).parents[3] / ".cache" / "oldest" / "bin"
UP = {"status": "UP"}
BOB = {"run": "another", "who": "bob@control2", "work": "rolls", "reason": "release 4.2", "since": 0, "expires": 600}
KEPT = "bob@control2 rolls 'release 4.2' since 1970-01-01 00:00 UTC, last sign "


class Locks:
    """The locks of the fleet. Both load balancers are this machine, so each has a path of its own."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        folder.chmod(0o755)
        self.paths = {name: folder / f"{name}.lock" for name in ("lb1", "lb2")}
        for name, path in self.paths.items():
            fleet.host_vars(name)["hapgent_lock"] = str(path)
        # With a lock of the hosts, a run that took it somewhere else would fail.
        fleet.web_vars["hapgent_lock"] = "/does not exist/shop.lock"

    def taken(self) -> list[str]:
        return [name for name, path in self.paths.items() if path.exists()]

    def read(self, name: str) -> dict[str, Any]:
        claim: dict[str, Any] = json.loads(self.paths[name].read_bytes())
        return claim

    def write(self, name: str, *, age: float = 0, **fields: Any) -> None:
        self.paths[name].write_text(json.dumps({**BOB, **fields}), encoding="utf-8")
        os.utime(self.paths[name], (0, time.time() - age))


@pytest.fixture
def locks(fleet: Fleet, tmp_path: Path) -> Locks:
    return Locks(fleet, tmp_path)


def test_a_second_drain_is_refused_while_the_first_goes_on(fleet: Fleet, locks: Locks) -> None:
    fleet.web_vars["hapgent_grace"] = 60
    with ThreadPoolExecutor() as pool:
        with fleet.load_balancers["lb1"].session("web1"):
            first = pool.submit(fleet.play, DRAIN, "--limit=web1", variables={"reason": "disk"})
            while fleet.state("web1")["status"] != "DRAIN":
                assert not first.done(), first.result().output
                time.sleep(0.05)
            assert locks.taken() == ["lb1", "lb2"]
            refusal = fleet.play(DRAIN, "--limit=web2", succeeds=False).failures()["web2"]
            assert refusal.startswith(f"{_who.current()} drains 'disk' since 20")
            assert "hapgent_lock_take=true" in refusal
            assert refusal.endswith("Nothing was changed on web2.")
            # A run in check mode reports who has the lock, and goes on.
            checked = fleet.play(DRAIN, "--limit=web2", "--check")
            (shown,) = checked.results("Show who has the lock")
            assert "drains 'disk'" in shown["msg"]
            assert fleet.state("web2") == UP
            # An undrain makes nothing scarce.
            fleet.play("hapgent.agent.undrain", "--limit=web3")
        first.result()
    assert locks.taken() == []
    fleet.play(DRAIN, "--limit=web2")
    assert locks.taken() == []


def test_of_two_runs_at_the_same_moment_one_goes_on(fleet: Fleet, locks: Locks) -> None:
    # Each may drain its server, but not both.
    fleet.web_vars["hapgent_min_up"] = 2
    with ThreadPoolExecutor() as pool:
        for _race in range(3):
            runs = [pool.submit(fleet.play, DRAIN, f"--limit={host}", succeeds=None) for host in ("web1", "web2")]
            played = [run.result() for run in runs]
            # If one was too late for the race, the first one's server was out already.
            assert sorted(run.exit_code == 0 for run in played) == [False, True], [run.output for run in played]
            assert [state["status"] for state in fleet.states().values()].count("DRAIN") == 1
            assert locks.taken() == []
            fleet.play("hapgent.agent.undrain", "--limit=web")


def test_lock_is_taken_everywhere_or_nowhere(fleet: Fleet, locks: Locks) -> None:
    locks.write("lb2")
    refusal = fleet.play(DRAIN, "--limit=web1", succeeds=False).failures()["web1"]
    assert refusal.startswith(KEPT)
    assert fleet.state("web1") == UP
    assert locks.taken() == ["lb2"]
    # One that has expired is free, by the age of the file.
    locks.write("lb2", age=601)
    fleet.play(DRAIN, "--limit=web1")
    assert locks.taken() == []


def test_lock_is_taken_over_on_request(fleet: Fleet, locks: Locks) -> None:
    locks.write("lb1")
    locks.write("lb2")
    fleet.play(DRAIN, "--limit=web1", variables={"hapgent_lock_take": True})
    assert fleet.state("web1")["status"] == "DRAIN"
    assert locks.taken() == []


def test_lock_of_a_run_that_was_killed_is_free(fleet: Fleet, locks: Locks) -> None:
    *here, _pid, _started = _runs.current().split(" ")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    locks.write("lb2", run=f"{' '.join(here)} {ended.pid} 1")
    fleet.play(DRAIN, "--limit=web1")
    assert locks.taken() == []


def test_lock_is_released_after_a_failure(fleet: Fleet, locks: Locks) -> None:
    played = fleet.play(DRAIN, "--limit=web1,web2", variables={"hapgent_min_up": 2}, succeeds=False)
    assert "hapgent_min_up requires 2" in played.failures()["web1"]
    assert locks.taken() == []


def test_hosts_with_different_locks_are_refused(fleet: Fleet, locks: Locks) -> None:
    fleet.host_vars("web2")["hapgent_lock"] = "/run/others.lock"
    (fleet.project / "tasks.yml").write_text("[]", encoding="utf-8")
    for playbook, variables in ((DRAIN, {"hapgent_hosts": "web1,web2"}), (ROLLING, ROLL)):
        refusal = fleet.play(playbook, variables=variables, succeeds=False).failures()["web1"]
        for part in ("hapgent_lock", "/does not exist/shop.lock", "/run/others.lock", "Nothing was changed"):
            assert part in refusal
    assert fleet.states() == dict.fromkeys(fleet.states(), UP)
    assert locks.taken() == []


def test_file_that_is_no_lock_is_refused(fleet: Fleet, locks: Locks) -> None:
    locks.paths["lb2"].symlink_to("/etc/hostname")
    refusal = fleet.play(DRAIN, "--limit=web1", succeeds=False).failures()["web1"]
    assert refusal.startswith(f"The lock cannot be taken on lb2: {locks.paths['lb2']}: must be a regular file")
    assert fleet.state("web1") == UP
    assert not locks.paths["lb1"].exists()


def test_without_load_balancers_the_hosts_have_the_lock(fleet: Fleet, tmp_path: Path) -> None:
    fleet.web_vars.update(hapgent_load_balancers="", hapgent_server_port=1)
    for name in ("web1", "web2", "web3"):
        fleet.host_vars(name)["hapgent_lock"] = str(tmp_path / f"{name}.lock")
    tmp_path.chmod(0o755)
    (tmp_path / "web3.lock").write_text(json.dumps(BOB), encoding="utf-8")
    variables = {"hapgent_fleet": "web"}
    refusal = fleet.play(DRAIN, "--limit=web1", variables=variables, succeeds=False).failures()["web1"]
    assert refusal.startswith(KEPT)
    (tmp_path / "web3.lock").unlink()
    fleet.play(DRAIN, "--limit=web1", variables=variables)
    assert list(tmp_path.glob("web?.lock")) == []


# This reason would change if it were converted to a number.
ROLL = {"reason": "4.10", "hapgent_tasks": "tasks.yml", "hapgent_hosts": "web1,web2"}


@pytest.mark.parametrize("ansible", [ANSIBLE, OLDEST], ids=["ansible", "oldest"])
def test_a_rolling_update_has_the_lock_until_its_end(fleet: Fleet, locks: Locks, ansible: Path) -> None:
    see = {"name": "See", "ansible.builtin.slurp": {"src": str(locks.paths["lb2"])}}
    fails = {"ansible.builtin.fail": {}, "when": "inventory_hostname == 'web2' and fails | default(false)"}
    (fleet.project / "tasks.yml").write_text(json.dumps([see, fails]), encoding="utf-8")
    played = fleet.play(ROLLING, variables={**ROLL, "fails": True}, succeeds=False, ansible=ansible)
    seen = [json.loads(base64.b64decode(result["content"])) for result in played.results("See")]
    expected = {"who": _who.current(), "work": "rolls", "reason": "4.10", "expires": 3600}
    assert [{name: claim[name] for name in expected} for claim in seen] == [expected] * 2
    # It is the same run in each batch.
    assert len({(claim["run"], claim["since"]) for claim in seen}) == 1
    # One that has stopped does not need it: its host is out of rotation, and others may have to work on the fleet.
    assert fleet.state("web2")["status"] == "DRAIN"
    assert locks.taken() == []
    fleet.play(ROLLING, variables=ROLL, ansible=ansible)
    assert fleet.states() == dict.fromkeys(("web1", "web2", "web3"), UP)
    assert locks.taken() == []


@pytest.mark.parametrize("release", EDGES)
def test_a_rolling_update_that_is_refused_before_a_batch_reports_what_it_has_done(
    fleet: Fleet, locks: Locks, release: str
) -> None:
    """The second batch has two hosts, of which one fails and the other one does not know why."""
    (fleet.project / "tasks.yml").write_text("[]", encoding="utf-8")
    given = {**ROLL, "hapgent_hosts": "web", "hapgent_serial": [1, 2], "hapgent_min_up": 2, "hapgent_max_failed": 1}
    played = fleet.play(ROLLING, variables=given, succeeds=False, ansible=program(release))
    failures = played.failures()
    assert set(failures) == {"web2", "web3"}
    assert "hapgent_min_up requires 2" in failures["web2"]
    for failure in failures.values():
        assert "Done: web1. Not finished: none. Kept out by something else: none. Not touched: web2, web3." in failure
    (passed_on,) = played.results("Pass the result to the next job")
    result = passed_on["ansible_stats"]["data"]["hapgent_rolling"]
    assert (result["status"], result["done"], set(result["refused"])) == ("stopped", ["web1"], {"web2", "web3"})
    assert fleet.states() == {"web1": {**UP, "reason": "4.10"}, "web2": UP, "web3": UP}
    assert locks.taken() == []


def test_a_rolling_update_ends_if_its_lock_is_taken_over(fleet: Fleet, locks: Locks) -> None:
    claim = {"content": json.dumps(BOB), "dest": str(locks.paths["lb1"]), "mode": "0644"}
    (fleet.project / "tasks.yml").write_text(json.dumps([{"ansible.builtin.copy": claim}]), encoding="utf-8")
    played = fleet.play(ROLLING, variables={**ROLL, "hapgent_lock_take": True}, succeeds=False)
    assert played.failures()["web2"].startswith(KEPT)
    assert "Done: web1." in played.failures()["web2"]
    assert fleet.states() == {"web1": {**UP, "reason": "4.10"}, "web2": UP, "web3": UP}
    assert locks.read("lb1") == BOB
