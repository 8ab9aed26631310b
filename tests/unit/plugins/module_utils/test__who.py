# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who changes a state is named by what the system knows, in a form that a state may have."""

from __future__ import annotations

import os
import pwd
import socket

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils import _who
from ansible_collections.hapgent.agent.plugins.module_utils._state import from_fields

NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.mark.parametrize(
    ("uid", "environment", "name"),
    {
        "root": (0, {}, "root"),
        "root after sudo": (0, {"SUDO_UID": str(NOBODY)}, "nobody"),
        "root after sudo, with a name that does not count": (0, {"SUDO_UID": "0", "SUDO_USER": "ada"}, "root"),
        "a user": (NOBODY, {}, "nobody"),
        "a user who claims to be another one": (NOBODY, {"SUDO_UID": "0"}, "nobody"),
        "an unknown user": (3999999999, {}, "3999999999"),
        "an unknown user after sudo": (0, {"SUDO_UID": "3999999999"}, "3999999999"),
        "no number": (0, {"SUDO_UID": "ada"}, "root"),
        "a negative number": (0, {"SUDO_UID": "-1"}, "root"),
        "another digit": (0, {"SUDO_UID": "\u0662"}, "root"),
        "a number of eleven digits": (0, {"SUDO_UID": "1" * 11}, "root"),
        "a number that no user has": (0, {"SUDO_UID": "9" * 10}, "9" * 10),
        "nothing": (0, {"SUDO_UID": ""}, "root"),
    }.values(),
)
def test_user(uid: int, environment: dict[str, str], name: str) -> None:
    assert _who.user(uid, environment) == name


@pytest.mark.parametrize(
    ("name", "host", "by"),
    [
        ("ada", "control1.example.org", "ada@control1.example.org"),
        ("EXAMPLE\\ada", "control1", "EXAMPLE\\ada@control1"),
        ("a#b", "c\n", "a?b@c\\n"),
        ("é" * 100, "control1", "é" * 60),
        ("a" * 119, "é", "a" * 119 + "@"),
        ("\udc80", "", "\\udc80@"),
    ],
)
def test_any_name_is_valid_in_a_state(name: str, host: str, by: str) -> None:
    assert _who.named(name, host) == by
    assert from_fields({"status": "DRAIN", "by": by}).by == by


def test_this_process() -> None:
    assert _who.current().endswith(f"@{socket.gethostname()}")
    if os.geteuid():
        assert _who.current() == f"{pwd.getpwuid(os.geteuid()).pw_name}@{socket.gethostname()}"
