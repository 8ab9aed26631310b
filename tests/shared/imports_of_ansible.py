# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What each run of ansible and ansible-playbook imports. Importing this module before a run makes it start faster.

Ansible compiles each template again in the process of each task, which is a third of the work of these processes. The
runs share what they have compiled.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import marshal
import os
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.utils.path import cleanup_tmp_file
from jinja2 import Environment

# The first two are the programs themselves. They import the others when they need them.
MODULES = """
cli.adhoc cli.playbook executor.process.worker executor.task_executor inventory.manager module_utils.connection
playbook.role_include plugins.action.copy plugins.action.normal plugins.action.template plugins.become.sudo
plugins.cache.memory plugins.callback.default plugins.callback.minimal plugins.connection.local plugins.connection.ssh
plugins.filter.core plugins.filter.mathstuff plugins.inventory.auto plugins.inventory.host_list plugins.inventory.ini
plugins.inventory.script plugins.inventory.toml plugins.inventory.yaml plugins.lookup.varnames plugins.shell.sh
plugins.strategy.free plugins.strategy.linear plugins.test.core plugins.vars.host_group_vars
"""
for name in MODULES.split():
    # Ansible imports what this release or its Python does not have when it needs it, or never.
    with suppress(ImportError):
        importlib.import_module(f"ansible.{name}")

# Ansible creates a folder for temporary files when it is imported. All runs share it, with the modules that they pack
# in it, so the first that ends must not remove it.
atexit.unregister(cleanup_tmp_file)
COMPILED = Path(constants.DEFAULT_LOCAL_TMP)  # type: ignore[attr-defined]

compile_template: Callable[..., types.CodeType] = Environment.compile
# What compiled templates depend on. Some releases evaluate constant expressions then, which may depend on the folder.
SYNTAX = """
block_end_string block_start_string comment_end_string comment_start_string keep_trailing_newline line_comment_prefix
line_statement_prefix lstrip_blocks newline_sequence optimized trim_blocks variable_end_string variable_start_string
"""


def compile_once(environment: Environment, source: Any, *options: Any, **more: Any) -> types.CodeType:
    """Compile a template as jinja2.Environment.compile does, or return what an earlier process has compiled."""
    # Others are compiled from nodes, or to text.
    if not isinstance(source, str) or options or more:
        return compile_template(environment, source, *options, **more)
    syntax = [getattr(environment, name) for name in SYNTAX.split()]
    key = repr((str(source), str(type(environment)), syntax, os.getcwd()))
    kept = COMPILED / hashlib.sha256(key.encode()).hexdigest()
    with suppress(FileNotFoundError):
        code: types.CodeType = marshal.loads(kept.read_bytes())
        return code
    code = compile_template(environment, source)
    new = kept.with_suffix(f".{os.getpid()}")
    new.write_bytes(marshal.dumps(code))
    new.replace(kept)
    return code


Environment.compile = compile_once  # type: ignore[method-assign, assignment]
