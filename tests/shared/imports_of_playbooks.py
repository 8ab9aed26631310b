# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What each run of ansible-playbook imports; importing this module before a run makes it start faster."""

from __future__ import annotations

import atexit
import importlib

from ansible.utils.path import cleanup_tmp_file

# The first is the program itself. It imports the others when it needs them.
MODULES = """
cli.playbook executor.process.worker executor.task_executor inventory.manager playbook.role_include plugins.action
plugins.cache plugins.connection plugins.strategy plugins.vars plugins.shell module_utils.connection
"""
for name in MODULES.split():
    importlib.import_module(f"ansible.{name}")

# Ansible creates a folder for temporary files when it is imported. All runs share it, with the modules that they pack
# in it, so the first that ends must not remove it.
atexit.unregister(cleanup_tmp_file)
