# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent's service survives restarts, crashes and broken state files while load balancers keep polling."""

from __future__ import annotations

import pytest
from lab import HOSTS, Checks, ask, run

pytestmark = pytest.mark.parametrize("host", HOSTS)


def status(host: str) -> str:
    """The status keyword. For a while after a change, keywords that reset the previous state follow it."""
    return ask(HOSTS[host]).split()[0]


def pid(host: str) -> str:
    return run(host, "systemctl show --property=MainPID --value hapgent").stdout


def test_no_check_is_refused_during_a_restart(host: str) -> None:
    answered, before = status(host), pid(host)
    with Checks(HOSTS[host]) as checks:
        while checks.outcomes.total() < 400:
            assert run(host, "systemctl restart hapgent").returncode == 0
    assert pid(host) != before
    assert {outcome.split()[0] for outcome in checks.outcomes} == {answered}


def test_killed_agent_is_restarted(host: str) -> None:
    answered, before = status(host), pid(host)
    run(host, "systemctl kill --signal=KILL hapgent")
    assert status(host) == answered
    assert pid(host) != before


def test_reload_reads_the_state_file(host: str) -> None:
    environment = run(host, "systemctl show --property=Environment --value hapgent").stdout.split()
    path = dict(assignment.split("=", 1) for assignment in environment)["HAPGENT_STATE_FILE"]
    kept = run(host, f"cat {path}").stdout
    run(host, f"cp {path} /var/tmp/kept.json && echo broken >{path} && systemctl reload hapgent && sleep 0.5")
    broken = status(host)
    run(host, f"cat /var/tmp/kept.json >{path} && systemctl reload hapgent && sleep 0.5")
    assert broken == "FAIL"
    assert run(host, f"cat {path}").stdout == kept
    assert "not JSON" in run(host, "journalctl --unit=hapgent --lines=5").stdout
    assert status(host) in kept
