# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Who runs this program, in the form of the field C(by) of a state."""

from __future__ import annotations

import os
import pwd
import socket
import typing as t

from ._printable import printable
from ._state import FIELDS


def current() -> str:
    """The user who runs this program, at this host."""
    return named(user(os.geteuid(), os.environ), socket.gethostname())


def user(uid: int, environment: t.Mapping[str, str]) -> str:
    """The name of this user or, if root was reached with sudo, of the user who has called sudo.

    Any user could set the variable, so only root's counts. It has a number, so that it cannot be any other text.
    """
    caller = environment.get("SUDO_UID", "") if uid == 0 else ""
    return _name(int(caller) if caller.isascii() and caller.isdigit() and len(caller) <= 10 else uid)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def named(name: str, host: str) -> str:
    """The user at the host, as text that a state may have."""
    text = printable(f"{name}@{host}").replace("#", "?")
    return text.encode()[: FIELDS["by"].limit].decode(errors="ignore")
