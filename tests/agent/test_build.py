# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The zipapp and its documentation in the role match their source, and are the same on every machine.

The manual page is valid, and bash completes the commands.
"""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import runpy
import select
import shutil
import subprocess
import sys
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


def test_agent_and_modules_share_files() -> None:
    shared = sorted((SOURCE / "hapgent").glob("_[a-z]*.py"))
    assert "_state.py" in [path.name for path in shared]
    for path in shared:
        assert path.samefile(ROOT / "plugins" / "module_utils" / path.name)


def imported_with(python: str, module: str) -> list[str]:
    """The agent's modules that Python loads when it imports one of them."""
    code = f"""
import sys
sys.path.insert(0, {str(ZIPAPP)!r})
import {module}
print(*sorted(name.removeprefix("hapgent.") for name in sys.modules if name.startswith("hapgent.")))
"""
    return subprocess.run([python, "-I", "-S", "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_running_agent_imports_nothing_that_only_commands_need(python: str) -> None:
    assert imported_with(python, "hapgent.start") == [
        *("_printable", "_ramp", "_state", "agent", "keeper", "log", "memory", "peers", "settings", "start"),
        *("status_socket", "systemd"),
    ]


def test_commands_import_nothing_that_only_the_agent_needs(python: str) -> None:
    assert imported_with(python, "hapgent.cli") == ["cli", "log", "systemd"]


# Documentation

MANUAL = ROLE / "files" / "hapgent.1"
COMPLETION = ROLE / "files" / "hapgent.bash"


def test_each_python_writes_the_documentation_in_the_role(python: str) -> None:
    code = "import json, runpy, sys; print(json.dumps([*runpy.run_path(sys.argv[1])['documentation']().values()]))"
    built = subprocess.run([python, "-I", "-c", code, str(SOURCE / "build.py")], capture_output=True, check=True)
    in_role = [path.read_text(encoding="utf-8") for path in (MANUAL, COMPLETION)]
    assert json.loads(built.stdout) == in_role, "files/ has changed since the documentation was built: run make build"


def test_manual_page_is_valid() -> None:
    command = ["groff", "-man", "-ww", "-Tutf8", "-z", str(MANUAL)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert (done.returncode, done.stderr) == (0, "")


def test_manual_page_has_all_that_the_help_has() -> None:
    text = re.sub(r"\\f[BIR]", "", MANUAL.read_text(encoding="utf-8")).replace("\\-", "-")
    for section in ("COMMANDS", "OPTIONS", "ENVIRONMENT", "STATE FILE", "SIGNALS", "EXIT STATUS", "FILES", "EXAMPLES"):
        assert f"\n.SH {section}\n" in text
    commands = subprocess.run(
        [sys.executable, "-I", "-S", ZIPAPP, "--help"], capture_output=True, text=True, check=True
    ).stdout
    terms = re.findall(r"^  (\S+(?:, \S+)*)  ", commands, re.MULTILINE)
    assert len(terms) > 20
    for term in terms:
        assert f"\n.B {term}\n" in text


# What is typed, and what bash makes of it when Tab is pressed.
COMPLETED = {
    "hapgent dr": "hapgent drain ",
    "hapgent undr": "hapgent undrain ",
    "hapgent --ser": "hapgent --services ",
    "hapgent drain --se": "hapgent drain --service ",
    "hapgent drain --wait --r": "hapgent drain --wait --reason ",
    "hapgent drain --until 2h --then u": "hapgent drain --until 2h --then up ",
    "hapgent status --prom": "hapgent status --prometheus ",
    "hapgent drain --service sh": "hapgent drain --service shop ",
    "hapgent drain --service hapgent@s": "hapgent drain --service hapgent@shop ",
    "hapgent drain --service hapgent@": "hapgent drain --service hapgent@shop ",
    "hapgent set we": "hapgent set weight=",
    "hapgent set weight=5 max": "hapgent set weight=5 maxconn=",
    "hapgent set weight=5 --al": "hapgent set weight=5 --all ",
    "hapgent status /et": "hapgent status /etc/",
    # Nothing fits.
    "hapgent drain x": "hapgent drain x",
    "hapgent drian --": "hapgent drian --",
}


def test_bash_completes(tmp_path: Path) -> None:
    """An interactive bash runs here. Ctrl-T is bound to a function that prints the line and removes it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "hapgent").write_text("#!/bin/sh\necho hapgent; echo hapgent@shop\n", encoding="utf-8")
    (programs / "hapgent").chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "", "HISTFILE": "", "HOME": "/"}
    main, terminal = pty.openpty()
    bash = ["setsid", "--ctty", "--wait", "bash", "--norc", "--noprofile", "-i"]
    process = subprocess.Popen(bash, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, cwd="/")
    os.close(terminal)
    found = ""

    def send(keys: str, until: str) -> str:
        nonlocal found
        found = ""
        os.write(main, keys.encode())
        while until not in found:
            assert select.select([main], [], [], 30)[0], f"{until!r} is not in {found!r}"
            found += os.read(main, 65536).decode()
        return found

    try:
        setup = """bind 'set bell-style none'; shown() { printf '<%s>' "$READLINE_LINE"; READLINE_LINE=; }"""
        send(f"""source {COMPLETION}; {setup}; bind -x '"\\C-t": shown'; echo rea''dy\n""", "ready\r\n")
        for typed, completed in COMPLETED.items():
            shown = send(f"{typed}\t\x14", ">")
            assert re.findall("<(.*)>", shown) == [completed]
    finally:
        process.kill()
        os.close(main)
        process.wait()
