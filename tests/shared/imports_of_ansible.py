# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What each run of ansible and ansible-playbook imports. Importing this module before a run makes it start faster."""

from __future__ import annotations

import atexit
import importlib
from contextlib import suppress

from ansible.utils.path import cleanup_tmp_file

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
