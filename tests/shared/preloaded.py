# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs modules of the collection quickly: each call is a fork of a process that has already imported them."""

from __future__ import annotations

import importlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODULES = "ansible_collections.hapgent.agent.plugins.modules"
TIMEOUT_SECONDS = 60

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"{MODULES}.{name}" for name in ("hapgent_state", "haproxy_server_info")])


def run_preloaded(module: str, arguments: Mapping[str, Any], *, check: bool = False) -> dict[str, Any]:
    """Run a module of the collection with these arguments and return its result."""
    given = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}})
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        process = CONTEXT.Process(target=_call, args=(f"{MODULES}.{module}", given, output, dict(os.environ)))
        process.start()
        process.join(TIMEOUT_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        stdout, stderr = ((output / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    assert stdout, f"{stderr} (exit status {process.exitcode})"
    result: dict[str, Any] = json.loads(stdout)
    assert process.exitcode == (1 if result.get("failed") else 0)
    return result


def _call(module: str, given: str, output: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir("/")
    sys.argv = [module]
    sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()))
    sys.stdout = (output / "stdout").open("w", encoding="utf-8")
    sys.stderr = (output / "stderr").open("w", encoding="utf-8")
    # Programs that the module starts inherit these descriptors.
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stderr.fileno(), 2)
    importlib.import_module(module).main()
