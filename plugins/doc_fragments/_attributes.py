# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this doc fragment is **PRIVATE** to the collection. It can have breaking changes at any time.

from __future__ import annotations


class ModuleDocFragment:
    # Standard documentation fragment.
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and predict changes without making them.
  diff_mode:
    description: Returns what has changed, or would change in C(check_mode), when in diff mode.
  idempotent:
    description:
      - When run twice in a row outside check mode with the same arguments, the second invocation reports no change.
      - This assumes that the system controlled by the module has not changed in a relevant way.
  platform:
    description: Target OS or families that can be operated against.
"""

    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    details: This module does not modify state.
  diff_mode:
    support: N/A
    details: This module does not modify state.
  idempotent:
    support: full
    details: This module does not modify state.
"""

    ACTIONGROUP_HAPGENT = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/hapgent.agent.hapgent) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - hapgent.agent.hapgent
"""
