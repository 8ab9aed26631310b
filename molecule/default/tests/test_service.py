# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens to the agent's service while load balancers go on asking."""

from __future__ import annotations

import pytest
from lab import HOSTS, Checks, ansible, ask, run

pytestmark = pytest.mark.parametrize("host", HOSTS)


def pid(host: str) -> str:
    return run(host, "systemctl show --property=MainPID --value hapgent").stdout


def test_restart_refuses_no_check(host: str) -> None:
    answer, before = ask(HOSTS[host]), pid(host)
    with Checks(HOSTS[host]) as checks:
        while checks.outcomes.total() < 400:
            assert run(host, "systemctl restart hapgent").returncode == 0
    assert pid(host) != before
    assert set(checks.outcomes) == {answer}


def test_upgrade_refuses_no_check(host: str) -> None:
    # An older release, as far as the role can see.
    run(host, "printf older >>/usr/local/bin/hapgent")
    answer, before = ask(HOSTS[host]), pid(host)
    with Checks(HOSTS[host]) as checks:
        upgrade = ansible("ansible-playbook", "converge.yml", f"--limit={host}")
    assert upgrade.returncode == 0, upgrade.stdout
    assert pid(host) != before
    assert set(checks.outcomes) == {answer}
    assert checks.outcomes.total() > 100


def test_killed_agent_is_started_again(host: str) -> None:
    answer, before = ask(HOSTS[host]), pid(host)
    run(host, "systemctl kill --signal=KILL hapgent")
    assert ask(HOSTS[host]) == answer
    assert pid(host) != before


def test_reload_reads_the_file(host: str) -> None:
    path = run(host, "systemctl show --property=Environment --value hapgent").stdout.strip().partition("=")[2]
    kept = run(host, f"cat {path}").stdout
    run(host, f"cp {path} /var/tmp/kept.json && echo broken >{path} && systemctl reload hapgent && sleep 0.5")
    broken = ask(HOSTS[host])
    run(host, f"cat /var/tmp/kept.json >{path} && systemctl reload hapgent && sleep 0.5")
    assert broken == "FAIL\n"
    assert run(host, f"cat {path}").stdout == kept
    assert "not JSON" in run(host, "journalctl --unit=hapgent --lines=5").stdout
    assert ask(HOSTS[host]) != "FAIL\n" or "FAIL" in kept
