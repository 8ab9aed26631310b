# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes the Python of a test host keep what it compiles from zip files.

Ansible sends each module as a zip file that contains only sources, and compiling them takes most of the module's time.
Python loads this file at its start, except for the agent, which runs with -S.
"""

from __future__ import annotations

import _imp
import marshal
import os
import sys
import zipimport
from contextlib import suppress
from types import CodeType

# A volume that all test hosts share.
FOLDER = "/var/cache/compiled"


def compile_once(path: str, source: bytes) -> CodeType:
    # Compiled code contains the path within the zip file, so the path is part of the key.
    key = path.rpartition(".zip")[2].encode() + b"\0" + source
    kept = f"{FOLDER}/{sys.hexversion:x}-{_imp.source_hash(0, key).hex()}-{len(key)}"
    try:
        with open(kept, "rb") as file:
            code: CodeType = marshal.loads(file.read())
            return code
    except OSError:
        code = compile_source(path, source)
    # Only root can write here, so other users compile again.
    with suppress(OSError):
        new = f"{kept}.{os.uname().nodename}.{os.getpid()}"
        with open(new, "wb") as file:
            file.write(marshal.dumps(code))
        os.replace(new, kept)
    return code


compile_source = zipimport._compile_source  # type: ignore[attr-defined]
zipimport._compile_source = compile_once  # type: ignore[attr-defined]
