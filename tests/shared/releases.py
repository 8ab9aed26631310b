# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The releases of ansible-core with which the playbooks are tested, and where they are installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CACHE = TESTS.parent / ".cache" / "ansible"


def releases() -> dict[str, Path]:
    """The folder with the programs of each release, by the release's name."""
    lines = (TESTS / "ansible-releases.txt").read_text(encoding="utf-8").splitlines()
    found = {line.split()[0]: CACHE / line.split()[0] / "bin" for line in lines if not line.startswith("#")}
    return {**found, "of the tests": Path(sys.executable).parent}


RELEASES = releases()
BY_NUMBER = [name for name in RELEASES if name[0].isdigit()]
NEWEST = BY_NUMBER[-1]
# What differs most. Ansible-core 2.19, with which most tests run, is between them.
EDGES = (BY_NUMBER[0], NEWEST)


def program(release: str) -> Path:
    """The folder with a release's programs. If it is not installed, the test is skipped, or fails in CI."""
    folder = RELEASES[release]
    if not (folder / "ansible-playbook").exists():
        text = f"ansible-core {release} is not in {folder}: run tests/tools/install, which reports what it needs"
        pytest.fail(text) if os.environ.get("CI") == "true" else pytest.skip(text)
    return folder
