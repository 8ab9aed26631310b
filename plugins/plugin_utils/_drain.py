# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""What a drain and an undrain change on one host, and what they leave as it is.

A drain never brings a server closer to traffic: HAProxy makes a drain of a maintenance, and takes C(DRAIN UP) of an
agent that said C(DOWN) for a recovery, after which clients with a cookie come back.
"""

from __future__ import annotations

import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.module_utils._state import State
from ansible_collections.hapgent.agent.plugins.plugin_utils._balancers import name_of

Fields = t.Mapping[str, t.Any]

IN = ("UP", "READY")


class Plan(t.TypedDict):
    """Whether the state of the agent is to be changed, what to report about that, and why it cannot be done.

    C(note) and C(refusal) are '' if there is nothing to report. C(keeps) is the reason that the agent of a server which
    is back goes on giving, '' for none.
    """

    change: bool
    note: str
    refusal: str
    keeps: str


def drain(state: Fields, reason: str, asked: t.Iterable[Fields], server: str) -> Plan:
    """Plan the drain of a host whose agent has this state.

    C(asked) has the result of C(haproxy_server_info) for each load balancer, in a loop over them.
    """
    said = f"its agent says {answer_of(state)}"
    if state["status"] == "DRAIN":
        others = state.get("reason", "") != reason
        return _plan(change=not others, note=f"{said}, which stays as it is" if others else "")
    if state["status"] not in IN:
        return _plan(change=False, note=f"{said}, which stays as it is")
    rows = [(name_of(result), row) for result in asked for row in result.get("servers", []) if row["server"] == server]
    in_maint = [f"{row['backend']}/{row['server']} on {name}" for name, row in rows if _agent_would_end(row)]
    if not in_maint:
        return _plan(change=True)
    where = printable(", ".join(in_maint))
    if all(row["admin_state"] == "maint" for _name, row in rows):
        return _plan(change=False, note=f"{where} is in MAINT, which stays as it is")
    return _plan(
        change=False,
        refusal=f"HAProxy has {where} in MAINT, but not everywhere, and would end that when the agent says DRAIN. "
        "Put the server in MAINT on the others too, or end its MAINT (set server ... state ready)",
    )


def undrain(state: Fields, reason: str, found_out: str) -> Plan:
    """Plan to bring back a host whose agent has this state.

    With a reason, only a state with that reason is ended. C(found_out) is what a drain of the same run has left as it
    was, '' if nothing: that is not ended either.
    """
    if state["status"] in IN and not found_out:
        said = state.get("reason", "")
        if said in ("", reason):
            return _plan(change=True)
        if reason:
            return _plan(change=True, keeps=said)
        return _plan(change=True, note=f"this takes the reason away: its agent says {answer_of(state)}")
    if found_out:
        return _plan(change=False, note=f"it was out before this run drained it, and stays out ({found_out})")
    if reason and state.get("reason", "") != reason:
        return _plan(
            change=False,
            note=f"it stays out: its agent says {answer_of(state)}, and hapgent_reason is {printable(reason)}",
        )
    return _plan(change=True, note=f"this ends {answer_of(state)}")


def answer_of(state: Fields) -> str:
    """What an agent with this state answers, safe to print."""
    return printable(State(**state).answer())


def _agent_would_end(row: Fields) -> bool:
    """Whether HAProxy has the server in a maintenance that the next DRAIN of its agent ends.

    One of a server that it tracks, or of a name without an address, does not end so. The CSV page reports no cause of
    what was set manually.
    """
    others = {"tracking", "resolution"}
    return row["admin_state"] == "maint" and row["agent_check"] is not None and not set(row["admin_by"]) & others


def _plan(*, change: bool, note: str = "", refusal: str = "", keeps: str = "") -> Plan:
    return {"change": change, "note": note, "refusal": refusal, "keeps": keeps}
