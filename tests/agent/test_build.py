# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The zipapp in the role matches its source, and building it gives the same bytes on every machine."""

from __future__ import annotations

import hashlib
import os
import runpy
import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "files"
ROLE = ROOT / "roles" / "hapgent"
ZIPAPP = ROLE / "files" / "hapgent.pyz"


def build(source: Path) -> bytes:
    built = runpy.run_path(str(source / "build.py"))["zipapp"]()
    assert isinstance(built, bytes)
    return built


def copy_source(folder: Path) -> Path:
    return shutil.copytree(SOURCE, folder / "files", ignore=shutil.ignore_patterns("__pycache__"))


def test_each_python_builds_the_zipapp_in_the_role(python: str) -> None:
    code = "import runpy, sys; sys.stdout.buffer.write(runpy.run_path(sys.argv[1])['zipapp']())"
    built = subprocess.run([python, "-I", "-c", code, str(SOURCE / "build.py")], capture_output=True, check=True)
    assert built.stdout == ZIPAPP.read_bytes(), "files/ has changed since the zipapp was built: run make build"


def test_dates_and_modes_of_the_source_do_not_matter(tmp_path: Path) -> None:
    source = copy_source(tmp_path)
    for path in source.rglob("*.py"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700)
    assert build(source) == ZIPAPP.read_bytes()


def test_files_that_are_not_source_do_not_matter(tmp_path: Path) -> None:
    source = copy_source(tmp_path)
    (source / "hapgent" / "__pycache__").mkdir()
    (source / "hapgent" / "__pycache__" / "agent.cpython-311.pyc").write_bytes(b"compiled")
    (source / "hapgent" / "agent.py~").write_text("an editor's copy", encoding="utf-8")
    assert build(source) == ZIPAPP.read_bytes()


def test_changed_source_gives_another_zipapp(tmp_path: Path) -> None:
    source = copy_source(tmp_path)
    with (source / "hapgent" / "agent.py").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert build(source) != ZIPAPP.read_bytes()


def test_build_writes_the_zipapp_and_its_checksum_into_the_role(tmp_path: Path) -> None:
    source = copy_source(tmp_path)
    role = shutil.copytree(ROLE, tmp_path / "roles" / "hapgent")
    right = {path: path.read_bytes() for path in role.rglob("*") if path.is_file()}
    # Make the role look as if its zipapp had been built from other source.
    zipapp = role / "files" / "hapgent.pyz"
    new = hashlib.sha256(zipapp.read_bytes()).hexdigest().encode()
    with zipapp.open("ab") as file:
        file.write(b"old")
    old = hashlib.sha256(zipapp.read_bytes()).hexdigest().encode()
    for path in [*role.rglob("*.yml"), role / "README.md"]:
        path.write_bytes(path.read_bytes().replace(new, old))

    runpy.run_path(str(source / "build.py"), run_name="__main__")

    assert {path: path.read_bytes() for path in role.rglob("*") if path.is_file()} == right
    assert os.access(zipapp, os.X_OK)


def test_checksum_of_the_zipapp_is_in_one_file_of_the_role() -> None:
    checksum = hashlib.sha256(ZIPAPP.read_bytes()).hexdigest()
    found = [path for path in ROLE.rglob("*") if path.suffix in (".yml", ".md") and checksum in path.read_text("utf-8")]
    assert found == [ROLE / "vars" / "main.yml"]


def test_zipapp_is_executable() -> None:
    assert os.access(ZIPAPP, os.X_OK)


def test_agent_and_collection_have_the_same_version() -> None:
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    package = runpy.run_path(str(SOURCE / "hapgent" / "__init__.py"))
    assert package["VERSION"] == galaxy["version"]


def test_agent_and_modules_share_one_file_with_the_rules_of_the_state() -> None:
    assert (SOURCE / "hapgent" / "state.py").samefile(ROOT / "plugins" / "module_utils" / "_state.py")
