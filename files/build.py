# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Build the agent's zipapp, its manual page and its completion from this folder.

The build is reproducible: the bytes are the same on every machine.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parent
ROLE = SOURCE.parent / "roles" / "hapgent"
ZIPAPP = ROLE / "files" / "hapgent.pyz"
MANUAL = ROLE / "files" / "hapgent.1"
COMPLETION = ROLE / "files" / "hapgent.bash"
CHECKSUM_FILE = ROLE / "vars" / "main.yml"
# Isolated (-I -S), because root runs this. Otherwise, Python would import modules from folders that PYTHONPATH and HOME
# name, and an empty entry in PYTHONPATH is the current folder, which may belong to another user.
SHEBANG = b"#!/usr/bin/env -S python3 -I -S\n"


def zipapp() -> bytes:
    """The bytes of the zipapp. They do not depend on dates, modes, the order of files or the version of zlib."""
    buffer = io.BytesIO()
    buffer.write(SHEBANG)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in [SOURCE / "__main__.py", *sorted((SOURCE / "hapgent").glob("*.py"))]:
            entry = zipfile.ZipInfo(path.relative_to(SOURCE).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


def documentation() -> dict[Path, str]:
    """The manual page and the completion, by the files of the role that have them."""
    sys.path.insert(0, str(SOURCE))
    try:
        import manual  # noqa: PLC0415

        return {MANUAL: manual.page(), COMPLETION: manual.completion()}
    finally:
        sys.path.remove(str(SOURCE))


def main() -> None:
    """Write the zipapp and its documentation into the role, and the checksum into CHECKSUM_FILE."""
    before = hashlib.sha256(ZIPAPP.read_bytes()).hexdigest()
    content = zipapp()
    ZIPAPP.write_bytes(content)
    ZIPAPP.chmod(0o755)
    checksum = hashlib.sha256(content).hexdigest()
    text = CHECKSUM_FILE.read_text(encoding="utf-8")
    if before not in text:
        sys.exit(
            f"{CHECKSUM_FILE} must contain the checksum of {ZIPAPP}: replace the checksum in it with {before} first"
        )
    CHECKSUM_FILE.write_text(text.replace(before, checksum), encoding="utf-8")
    for path, text in documentation().items():
        path.write_text(text, encoding="utf-8")
    print(f"{ZIPAPP.name}: {len(content)} bytes, SHA-256 {checksum}")


if __name__ == "__main__":
    main()
