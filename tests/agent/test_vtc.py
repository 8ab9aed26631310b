# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tests that HAProxy's own test program runs pass, cover each change of status, and can fail."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._state import STATUSES
from real_haproxy import HAPROXY, LIBRARIES

ROOT = Path(__file__).parents[2]
VARNISH = ROOT / ".cache" / "varnish"
VTC = {path.stem: path for path in (ROOT / "tests" / "vtc").glob("*.vtc")}


def varnishtest(script: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = VARNISH / "usr" / "bin" / "varnishtest"
    assert program.exists(), f"there is no {program}: run tests/tools/install"
    libraries = [LIBRARIES, *(str(folder) for folder in VARNISH.glob("usr/lib/*-linux-gnu*"))]
    return subprocess.run(
        # The option sets a limit in seconds, in case a condition never holds.
        [program, "-t", "120", script],
        env={**os.environ, "HAPROXY_PROGRAM": HAPROXY, "LD_LIBRARY_PATH": os.pathsep.join(libraries), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize("name", VTC)
def test_passes(name: str) -> None:
    done = varnishtest(VTC[name])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", VTC)
def test_fails_with_an_agent_that_never_resets_the_previous_state(name: str) -> None:
    done = varnishtest(VTC[name], HAPGENT_SETTLE="0")
    assert done.returncode != 0
    assert "CLI expect failed" in done.stdout


def test_statuses_covers_each_change() -> None:
    rounds = [line.split() for line in re.findall(r"change\.py ([A-Z ]+)", VTC["statuses"].read_text(encoding="utf-8"))]
    changes = [change for before, after in itertools.pairwise(rounds) for change in zip(before, after, strict=True)]
    assert sorted(changes) == sorted(itertools.product(STATUSES, repeat=2))
