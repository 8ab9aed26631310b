# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hapgent_folder
short_description: Create the folder of an agent's state file, or remove what the agent has left in it
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This module is B(private) to the collection. It can have breaking changes at any time.
  - From the first folder on the path that does not belong to root, the module has only the rights of the owner of that
    folder. It follows no symbolic links.
  - The module must run as root.
extends_documentation_fragment:
  - hapgent.agent._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: linux
    support: full
requirements:
  - Python 3.9 or later on the managed host
options:
  state_file:
    description: The absolute path of the state file.
    type: path
    required: true
  owner:
    description: The user that owns the folder. Required if O(state=present).
    type: str
  group:
    description: The group of the folder. Required if O(state=present).
    type: str
  state:
    description:
      - V(present) creates the folder and those above it. Folders above it that exist are not changed. If the folder
        gets another owner, the lock files in it are removed, because the new owner could not open them.
      - V(absent) removes the folder if it is empty, apart from the files that O(remove_files) removes.
    type: str
    choices: [present, absent]
    default: present
  remove_files:
    description:
      - With O(state=absent), whether to remove the state file and the agent's files beside it. Only regular files of
        these names are removed.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Create the folder of a state file
  hapgent.agent.hapgent_folder:
    state_file: /etc/hapgent/shop/state.json
    owner: nobody
    group: nogroup

- name: Remove everything that the agent has left
  hapgent.agent.hapgent_folder:
    state_file: /etc/hapgent/shop/state.json
    state: absent
    remove_files: true
"""

RETURN = r"""
"""

import grp
import os
import pwd
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hapgent.agent.plugins.module_utils import _as_owner, _folder

# A file system of another user may never respond.
SECONDS = 10.0


def present(module: AnsibleModule, deadline: float) -> dict[str, t.Any]:
    """Create the folder. Returns the differences."""
    path, change = module.params["state_file"], not module.check_mode
    wanted = _folder.Owner(
        _id(module, "owner", lambda name: pwd.getpwnam(name).pw_uid),
        _id(module, "group", lambda name: grp.getgrnam(name).gr_gid),
    )
    parents = _folder.create_parents(path, deadline, change=change)
    before, after = _folder.give(path, wanted, deadline, change=change)
    return {
        "changed": bool(parents) or before != after,
        "diff": {
            "before_header": os.path.dirname(path),
            "after_header": os.path.dirname(path),
            "before": _described(before),
            "after": _described(after),
        },
    }


def _id(module: AnsibleModule, option: str, look_up: t.Callable[[str], int]) -> int | None:
    """The ID of an account. If the account does not exist, this is None in check mode, and an error otherwise."""
    name = module.params[option]
    try:
        return look_up(name)
    except KeyError:
        if not module.check_mode:
            module.fail_json(msg=f"{option} {name} does not exist. Nothing was changed.")
        return None


def _described(owner: _folder.Owner | None) -> str:
    return f"user {owner.uid}, group {owner.gid}, mode {owner.mode:04o}\n" if owner else ""


def absent(module: AnsibleModule, deadline: float) -> dict[str, t.Any]:
    """Remove the files, if requested, and the folder if it is empty. Returns the differences."""
    path, change = module.params["state_file"], not module.check_mode
    files = _folder.remove_files(path, deadline, change=change) if module.params["remove_files"] else []
    folder = _folder.remove_folder(path, files, deadline, change=change)
    shown = [os.path.join(os.path.dirname(path), name) for name in files] + [os.path.dirname(path)] * folder
    return {
        "changed": bool(shown),
        "diff": {"before": "".join(f"{name}\n" for name in shown), "after": ""},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state_file": {"type": "path", "required": True},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "remove_files": {"type": "bool", "default": False},
        },
        required_if=[("state", "present", ("owner", "group"))],
        supports_check_mode=True,
    )
    work = present if module.params["state"] == "present" else absent
    try:
        module.exit_json(**work(module, time.monotonic() + SECONDS))
    except (_as_owner.PathError, _as_owner.NoOutcomeError, OSError) as error:
        module.fail_json(msg=f"{module.params['state_file']}: {error}. Run this again when the cause is fixed.")


if __name__ == "__main__":
    main()
