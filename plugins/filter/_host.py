# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters of the role hapgent. Each has its documentation in a file beside this one.

They are in one file, because Ansible looks at all files of filters each time a template names one.
"""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.plugin_utils import _host_plan, _instances, _preflight
from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import unknown


def accounts(host: _host_plan.Host, uninstall: bool = False) -> _host_plan.Accounts:
    """See _accounts.yml."""
    return _host_plan.removable_accounts(host) if uninstall else _host_plan.missing_accounts(host)


def host_problems(
    host: t.Mapping[str, t.Any],
    described: t.Sequence[t.Mapping[str, t.Any]],
    manage_user: bool = False,
    uninstall: bool = False,
    service_manager: str = "auto",
) -> list[str]:
    """See _host_problems.yml."""
    return _preflight.host_problems(host, described, manage_user, uninstall, service_manager)


def host_variable_problems(
    variables: t.Mapping[str, t.Any],
    listed: t.Sequence[t.Mapping[str, t.Any]] | None,
    shipped: t.Mapping[str, t.Any],
    uninstall: bool = False,
) -> list[str]:
    """See _host_variable_problems.yml."""
    return _preflight.variable_problems(variables, listed or [], _preflight.Shipped(**shipped), uninstall)


def instances(
    variables: t.Mapping[str, t.Any], listed: t.Sequence[t.Mapping[str, t.Any]] | None
) -> list[dict[str, t.Any]]:
    """See _instances.yml."""
    return _instances.instances(variables, listed or [])


def leaving_instances(
    host: _host_plan.Host, described: t.Sequence[_host_plan.Instance], uninstall: bool = False
) -> _host_plan.Leaving:
    """See _leaving_instances.yml."""
    return _host_plan.leaving(host, described, uninstall)


def unit_plan(
    host: _host_plan.Host,
    described: t.Sequence[_host_plan.Instance],
    changed: t.Collection[str],
    new_program: bool,
    check_mode: bool,
) -> _host_plan.Units:
    """See _unit_plan.yml."""
    plan = _host_plan.scripts if host["service_manager"] == "sysv" else _host_plan.units
    return plan(host, described, changed, new_program, check_mode)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return them by name."""
        return {
            "_accounts": accounts,
            "_host_problems": host_problems,
            "_host_variable_problems": host_variable_problems,
            "_instances": instances,
            "_leaving_instances": leaving_instances,
            "_listens": _host_plan.listens,
            "_unit_plan": unit_plan,
            "_unknown_variables": unknown,
        }
