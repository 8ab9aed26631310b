# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""What a drain and an undrain change on one host, and what they leave unchanged.

A drain must never give a server more traffic than before. It would do so in two cases: HAProxy turns a manual
maintenance into a drain, and treats C(DRAIN UP) from an agent that reported C(DOWN) before as a recovery, after which
clients with a cookie return.
"""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.module_utils._state import State
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import name_of

Fields = t.Mapping[str, t.Any]

IN = ("UP", "READY")


class Plan(t.TypedDict):
    """Whether to change the state of the agent, what to report about it, and why it cannot be changed.

    C(note) and C(refusal) are '' if there is nothing to report. C(keeps) is the reason that the agent continues to
    report for a server that is back in rotation, '' if there is none.
    """

    change: bool
    note: str
    refusal: str
    keeps: str


def drain(state: Fields, reason: str, asked: t.Iterable[Fields], server: str) -> Plan:
    """Plan the drain of a host whose agent has this state.

    C(asked) has the results of C(haproxy_server_info) in a loop over the load balancers.
    """
    reported = f"its agent reports {answer_of(state)}"
    if state["status"] == "DRAIN":
        others = state.get("reason", "") != reason
        return _plan(change=not others, note=f"{reported}, which is kept" if others else "")
    if state["status"] not in IN:
        return _plan(change=False, note=f"{reported}, which is kept")
    rows = [(name_of(result), row) for result in asked for row in result.get("servers", []) if row["server"] == server]
    in_maint = [f"{row['backend']}/{row['server']} on {name}" for name, row in rows if _agent_would_end(row)]
    if not in_maint:
        return _plan(change=True)
    is_in_maint = f"{printable(', '.join(in_maint))} {'is' if len(in_maint) == 1 else 'are'} in MAINT"
    if all(row["admin_state"] == "maint" for _name, row in rows):
        return _plan(change=False, note=f"{is_in_maint}, which is kept")
    return _plan(
        change=False,
        refusal=f"{is_in_maint} in HAProxy, but not everywhere. HAProxy would end the MAINT if "
        "the agent reported DRAIN. Set the server to MAINT on the other load balancers too, "
        "or end its MAINT (set server ... state ready)",
    )


def undrain(state: Fields, reason: str, found_out: str) -> Plan:
    """Plan how to bring back a host whose agent has this state.

    With a reason, only a state with that reason is ended. C(found_out) describes the state that a drain in the same run
    has left unchanged, '' if there is none: such a state is not ended either.
    """
    if state["status"] in IN and not found_out:
        their_reason = state.get("reason", "")
        if their_reason in ("", reason):
            return _plan(change=True)
        if reason:
            return _plan(change=True, keeps=their_reason)
        return _plan(change=True, note=f"this removes the reason: its agent reports {answer_of(state)}")
    if found_out:
        return _plan(change=False, note=f"it was out of rotation before this run, and stays out ({found_out})")
    if reason and state.get("reason", "") != reason:
        return _plan(
            change=False,
            note=f"it stays out of rotation: its agent reports {answer_of(state)}, and hapgent_reason is "
            f"{printable(reason)}",
        )
    return _plan(change=True, note=f"this ends {answer_of(state)}")


def answer_of(state: Fields) -> str:
    """What an agent with this state answers, as printable text."""
    return printable(State(**state).answer())


def _agent_would_end(row: Fields) -> bool:
    """Whether the server is in a maintenance that ends when its agent reports DRAIN.

    A maintenance that is inherited from a tracked server, or that is due to a name without an address, does not end
    that way. The CSV page reports no cause for a maintenance that was set manually.
    """
    others = {"tracking", "resolution"}
    return row["admin_state"] == "maint" and row["agent_check"] is not None and not set(row["admin_by"]) & others


def _plan(*, change: bool, note: str = "", refusal: str = "", keeps: str = "") -> Plan:
    return {"change": change, "note": note, "refusal": refusal, "keeps": keeps}
