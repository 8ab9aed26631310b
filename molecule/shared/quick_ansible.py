# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs ansible and ansible-playbook quickly: each run is a fork of a process that has already imported Ansible."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

PROGRAMS = {"ansible": ("ansible.cli.adhoc", "AdHocCLI"), "ansible-playbook": ("ansible.cli.playbook", "PlaybookCLI")}
# The plugins of nearly every run, and what they import.
PLUGINS = """
action.copy action.normal action.template become.sudo cache.memory callback.default callback.minimal connection.local
connection.ssh filter.core filter.mathstuff inventory.auto inventory.host_list inventory.ini inventory.script
inventory.toml inventory.yaml lookup.varnames shell.sh strategy.free strategy.linear test.core vars.host_group_vars
"""


class QuickAnsible:
    """The process to fork. All runs have its environment, because Ansible reads its configuration at import."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, command_line: list[str], folder: str, output: Path) -> int:
        """Run a command line in a folder, write its output to a file and return its exit status."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([command_line, folder, str(output)]), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def serve() -> None:
    """Run the command lines from standard input, until it closes."""
    for module, _name in PROGRAMS.values():
        importlib.import_module(module)
    for plugin in PLUGINS.split():
        # Ansible imports what this Python or release does not have when it needs it, or never.
        with contextlib.suppress(ImportError):
            importlib.import_module(f"ansible.plugins.{plugin}")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(command_line: list[str], folder: str, output: str) -> NoReturn:
    """Run a command line in this process and end it."""
    os.chdir(folder)
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY)):
        descriptor = os.open(path, mode)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.dup2(1, 2)
    sys.argv = command_line
    module, name = PROGRAMS[command_line[0]]
    exit_status = 0
    try:
        getattr(sys.modules[module], name).cli_executor(command_line)
    except SystemExit as end:
        exit_status = int(end.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    # At its exit, Ansible would remove a folder that the next run needs.
    os._exit(exit_status)


if __name__ == "__main__":
    serve()
