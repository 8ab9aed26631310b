# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The weight of a server follows its load, and HAProxy's share of requests follows the weight.

A run of the role takes a quarter of a minute, so tests take the host as the test before has left it.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from haproxy import servers
from lab import HOSTS, ansible, ask, eventually, module, run, shown

HOST = "hapgent-bookworm"
DOCUMENTATION = Path(__file__).parents[3] / "docs" / "weight.md"
CRON_LINES = re.findall(r"^\* \* \* \* \* nobody (.*)$", DOCUMENTATION.read_text(encoding="utf-8"), re.MULTILINE)
COMMAND = "/usr/local/bin/weight"
CONFIGURED = 77
SETTINGS = {
    "hapgent_weight": CONFIGURED,
    "hapgent_weight_command": COMMAND,
    "hapgent_weight_interval": 1,
    "hapgent_weight_min": 5,
    "hapgent_weight_step": 255,
    "hapgent_weight_smoothing": 1,
    "hapgent_weight_fallback": 2,
}
UNIT = "hapgent-weight@hapgent"
RAMP = {"hapgent_ramp": [10, 50, 100], "hapgent_ramp_seconds": 6}
REQUESTS = 60


def converge(**variables: object) -> str:
    extra_vars = json.dumps(variables)
    done = ansible("ansible-playbook", "converge.yml", f"--limit={HOST}", f"--extra-vars={extra_vars}")
    assert done.returncode == 0, done.stdout
    return done.stdout


def let_command(script: str) -> None:
    """Replace the weight command, at once, because a timer may run it at this moment."""
    new = f"{COMMAND}.new"
    install = f"cat >{new} <<'END'\n#!/bin/sh\n{script}\nEND\nchmod 755 {new} && mv {new} {COMMAND}"
    assert run(HOST, install).returncode == 0


def answer() -> str:
    """The agent's response without the keywords that reset an earlier state."""
    return re.sub(" (READY|UP)(?= )", "", ask(HOSTS[HOST]).strip())


def weights() -> list[int]:
    """The weights that HAProxy 2.2, 2.6 and 3.0 use for the server."""
    return [int(value) for value in shown(HOST, "weight").values()]


def share() -> float:
    """The share of requests that the server receives, from all HAProxies together."""

    def received() -> int:
        return sum(int(servers(address)[HOST]["stot"]) for address in HOSTS.values())

    before = received()
    for address in HOSTS.values():
        for _request in range(REQUESTS):
            with urllib.request.urlopen(f"http://{address}/", timeout=5) as response:
                response.read()
    return (received() - before) / (REQUESTS * len(HOSTS))


def journal() -> list[str]:
    """What the journal has of the unit, without what systemd logs for each unit of the user nobody."""
    lines = run(HOST, f"journalctl --output=cat --no-pager --unit={UNIT}.service").stdout.splitlines()
    return [line for line in lines if "Special user" not in line]


@pytest.fixture(autouse=True, scope="module")
def _weighed() -> Iterator[None]:
    # READY also ends a drain that another test may have left.
    module(HOST, "hapgent_state", f"status=READY weight={CONFIGURED} unset=maxconn,reason")
    let_command(f"echo {CONFIGURED}")
    converge(**SETTINGS)
    yield
    run(HOST, f"rm {COMMAND}")


def test_the_share_of_requests_follows_the_load() -> None:
    assert eventually(lambda: set(weights()), {CONFIGURED}) == {CONFIGURED}
    before = share()
    # They have the lowest priority, so that they delay nothing but each other.
    load = "for number in $(seq $((4 * $(nproc)))); do while :; do :; done & done; wait"
    assert run(HOST, f"systemd-run --unit=load --property=Nice=19 sh -c '{load}'").returncode == 0
    let_command("exec /usr/local/bin/hapgent pressure cpu")
    try:
        assert eventually(lambda: max(weights()) <= CONFIGURED / 3, True, timeout=90)
        assert share() < before * 2 / 3
    finally:
        run(HOST, "systemctl stop load")
        let_command("echo 60")


def test_a_failure_is_reported_once_and_the_configured_weight_comes_back() -> None:
    assert eventually(answer, "READY 60%") == "READY 60%"
    before = len(journal())
    let_command("echo 'no queue' >&2; exit 1")
    assert eventually(answer, f"READY {CONFIGURED}%") == f"READY {CONFIGURED}%"
    weighing = json.loads(run(HOST, "hapgent status --json --service=hapgent").stdout)["weighing"]
    assert "no queue" in weighing["problem"]
    metrics = run(HOST, "hapgent status --prometheus").stdout
    assert re.search(r"^hapgent_weighing_ok{.*} 0$", metrics, re.MULTILINE)
    let_command("echo 40")
    assert eventually(answer, "READY 40%") == "READY 40%"
    # One line for the failure, one for the configured weight and one for the end, although it ran several times. The
    # manager adds none for each run.
    assert eventually(lambda: len(journal()), before + 3) == before + 3
    assert "no queue" in journal()[before]
    assert run(HOST, f"systemctl is-failed {UNIT}.service").stdout != "failed\n"


def test_the_unit_is_sandboxed() -> None:
    verdict = run(HOST, f"systemd-analyze security --no-pager {UNIT}.service").stdout.splitlines()[-1]
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", verdict)
    assert exposure, verdict
    assert float(exposure[1]) <= 2.0
    let_command("id --user --name >&2; touch /etc/touched /usr/local/touched 2>/dev/null && exit 3; exit 4")
    eventually(lambda: "nobody" in run(HOST, "hapgent status --service=hapgent").stdout, True)
    assert "exited with 4: nobody" in run(HOST, "hapgent status --service=hapgent").stdout
    let_command("echo 40")
    assert eventually(answer, "READY 40%") == "READY 40%"


def test_without_a_command_the_configured_weight_comes_back_and_nothing_is_left() -> None:
    output = converge(hapgent_weight=CONFIGURED, **RAMP)
    assert answer() == f"READY {CONFIGURED}%"
    assert run(HOST, f"systemctl list-units --all --no-legend '{UNIT}*'").stdout == "", output
    assert run(HOST, f"ls /etc/systemd/system/{UNIT}.* /etc/hapgent/state.json.weight").stdout == ""


def test_the_server_comes_back_with_a_growing_weight() -> None:
    """HAProxy 2.2, 2.6 and 3.0 follow each step, and a drain in the middle ends the ramp."""
    seen: list[list[int]] = [[], [], []]

    def note() -> list[list[int]]:
        for steps, weight in zip(seen, weights(), strict=True):
            if weight not in steps[-1:]:
                steps.append(weight)
        return seen

    def come_back(steps: list[int]) -> None:
        module(HOST, "hapgent_state", "status=DRAIN")
        assert eventually(lambda: set(shown(HOST).values()), {"DRAIN (agent)"}) == {"DRAIN (agent)"}
        seen[:] = [[], [], []]
        module(HOST, "hapgent_state", "status=UP")
        assert eventually(lambda: set(shown(HOST).values()), {"UP"}) == {"UP"}
        assert eventually(note, [steps] * 3, timeout=40) == [steps] * 3

    come_back([7, 38])
    come_back([7, 38, CONFIGURED])


def test_documented_cron_jobs_set_a_weight() -> None:
    assert len(CRON_LINES) == 2
    for line in CRON_LINES:
        run(HOST, f"hapgent set weight={CONFIGURED}; rm -f /etc/hapgent/state.json.weight")
        let_command("echo 42")
        done = run(HOST, f"runuser -u nobody -- env -i PATH=/usr/bin:/bin sh -c '{line}'")
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
        # The first takes a step of 20, and the second writes the weight as it is.
        seen = eventually(lambda: answer().split()[-1] in ("57%", "42%"), True)
        assert seen, line
    run(HOST, "rm -f /etc/hapgent/state.json.weight; hapgent set weight=none")
