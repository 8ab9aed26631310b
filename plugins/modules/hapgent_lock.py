# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hapgent_lock
short_description: Take and release the lock of a fleet
version_added: 1.0.0
author:
  - The hapgent.agent contributors (@hapgent)
description:
  - This module is B(private) to the collection. It can have breaking changes at any time.
  - The lock is a file. From the first folder on its path that does not belong to root, the module has only the rights
    of the owner of that folder. It follows no symbolic links.
  - Only a run of a playbook has the lock, for a while, so the module never reports a change.
extends_documentation_fragment:
  - hapgent.agent._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    platforms: linux
    support: full
requirements:
  - Python 3.9 or later on the managed host
options:
  path:
    description: The absolute path of the lock. Only its owner and root may be able to write to its folder.
    type: path
    required: true
  claim:
    description:
      - What the run does with the lock. See C(_lock.py).
      - The control node adds which run it is, who runs it and since when.
    type: dict
    required: true
  over:
    description: The run from which the lock may be taken over, V(*) for any.
    type: str
    default: ""
  state:
    description:
      - V(taken) takes the lock or, if the run has it, gives another sign of the run.
      - V(released) removes the lock if the run has it.
    type: str
    choices: [taken, released]
    required: true
"""

EXAMPLES = r"""
- name: Take the lock
  hapgent.agent.hapgent_lock:
    path: /run/shop.lock
    claim: {work: rolls, reason: release 4.2, expires: 3600}
    state: taken
"""

RETURN = r"""
held:
  description:
    - The run that keeps the lock from this one, with the C(age) of its last sign in seconds. Empty if none does.
    - In check mode, the run that would keep it.
  returned: on success
  type: dict
  sample: {}
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hapgent.agent.plugins.module_utils import _as_owner, _lock
from ansible_collections.hapgent.agent.plugins.module_utils._state import LockedError, StateError


def held_after(params: dict[str, t.Any], *, change: bool) -> _lock.Held | None:
    """Do what the options request. Returns the run that keeps the lock from this one."""
    path, claim, over = params["path"], _lock.from_object(params["claim"]), params["over"]
    if params["state"] == "released":
        if change:
            _lock.release(path, claim.run)
        return None
    return _lock.take(path, claim, over) if change else _lock.look(path, claim.run, over)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "claim": {"type": "dict", "required": True},
            "over": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["taken", "released"], "required": True},
        },
        supports_check_mode=True,
    )
    try:
        held = held_after(module.params, change=not module.check_mode)
    except (
        *(_lock.LockFileError, LockedError, StateError),
        *(_as_owner.PathError, _as_owner.NoOutcomeError, OSError),
    ) as error:
        module.fail_json(msg=f"{module.params['path']}: {error}")
    module.exit_json(changed=False, held={**held.claim._asdict(), "age": held.age} if held else {})


if __name__ == "__main__":
    main()
