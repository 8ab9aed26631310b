# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes the result of each task as one line of JSON, so that tests need not parse output meant for people."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: records
type: notification
short_description: Write the result of each task as a line of JSON
description:
  - Writes to the file that E(FLEET_RECORDS) names.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "records"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: Any) -> None:
        self._record("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._record("ignored" if ignore_errors else "failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._record("unreachable", result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._record("skipped", result)

    @staticmethod
    def _record(status: str, result: Any) -> None:
        # ansible-core has public names for these only since 2.19, and has deprecated the private ones.
        is_new = hasattr(result, "result")
        record = {
            "status": status,
            "host": (result.host if is_new else result._host).get_name(),
            "task": (result.task if is_new else result._task).get_name().rpartition(" : ")[2],
            "result": result.result if is_new else result._result,
        }
        with open(os.environ["FLEET_RECORDS"], "a", encoding="utf-8") as records:
            records.write(json.dumps(record, default=str) + "\n")
