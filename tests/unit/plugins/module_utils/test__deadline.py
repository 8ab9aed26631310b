# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options accept only timeouts that a module can wait for."""

from __future__ import annotations

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._deadline import MAX_SECONDS, check_seconds


@pytest.mark.parametrize("seconds", [0, 0.5, 60, MAX_SECONDS])
def test_valid_timeouts_are_accepted(seconds: float) -> None:
    check_seconds("timeout", seconds)


@pytest.mark.parametrize("seconds", [-0.1, MAX_SECONDS + 1, 1e10, float("inf"), float("-inf"), float("nan")])
def test_invalid_timeouts_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"timeout must be 0 to {MAX_SECONDS} seconds"):
        check_seconds("timeout", seconds)
