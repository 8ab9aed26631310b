# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Load balancers by name and by address, and advice about those that do not respond or do not act on a state."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
import typing as t

from ansible.inventory.manager import split_host_pattern
from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.module_utils._state import State
from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import words

Result = t.Mapping[str, t.Any]

# For all names together, because they are looked up at the same time.
LOOKUP_SECONDS = 3.0
MAX_SHOWN = 600
# Messages of ssh that show that the host is up.
REFUSED = re.compile("permission denied|authentication|host key verification", re.IGNORECASE)
ADDRESS = re.compile(r"[0-9A-Fa-f:.]*[0-9A-Fa-f:]")


def item_of(result: Result) -> t.Any:
    """Return the item of a result in a loop, whatever the name of the loop variable."""
    return result[result.get("ansible_loop_var", "item")]


def name_of(result: Result) -> str:
    """Return the host of a result in a loop over hosts, or over dictionaries with a C(host)."""
    item = item_of(result)
    return str(item["host"] if isinstance(item, t.Mapping) else item)


def query_problems(asked: t.Iterable[Result], pattern: t.Any) -> str:
    """Report the load balancers that did not return their servers, '' if all did.

    C(asked) has the results of C(haproxy_server_info) in a loop over the load balancers. The report advises excluding a
    load balancer from C(pattern), the value of hapgent_load_balancers, only if it did not respond: others are not down.
    An empty pattern means that the value is not known, for example because hosts have different load balancers.
    """
    failed = [result for result in asked if "servers" not in result]
    problems = [f"{printable(name_of(result))} cannot be queried: {_problem(result)}." for result in failed]
    silent = [name_of(result) for result in failed if _may_be_down(result)]
    return " ".join([*problems, *([_advice(silent, pattern)] if silent else [])])


def _may_be_down(result: Result) -> bool:
    if result.get("unreachable"):
        return not REFUSED.search(str(result.get("msg", "")))
    return result.get("cause") == "silent"


def server_problems(asked: t.Sequence[Result], server: str, backends: t.Sequence[str]) -> str:
    """Report the load balancers that do not list this server, '' if all do.

    C(asked) has the results of C(haproxy_server_info) in a loop over them, C(backends) the backends that were queried:
    none means all.
    """
    reports = []
    missing = []
    for result in asked:
        if any(row["server"] == server for row in result["servers"]):
            continue
        # The server may be in a row whose name cannot be read either.
        unreadable = [title for title in result["unreadable"] if title.endswith((f"/{server}", "/?"))]
        if unreadable:
            why = result["unreadable"][unreadable[0]]
            reports.append(f"{name_of(result)}: HAProxy's report about {', '.join(unreadable)} cannot be read ({why}).")
        else:
            missing.append(name_of(result))
    if missing:
        where = f"in the backends {', '.join(backends)}" if backends else "in any backend"
        reports.append(
            f"HAProxy on {', '.join(missing)} has no server {server} {where}: "
            "set hapgent_server to the server's name in HAProxy."
        )
    return printable(" ".join(reports), MAX_SHOWN) if reports else ""


def addresses(hosts: t.Iterable[tuple[str, t.Any, t.Any]]) -> dict[str, str]:
    """The inventory name for each source address of a load balancer, as far as the addresses are known.

    C(hosts) has the name, ansible_host ('' if it is not set) and hapgent_source_addresses of each load balancer. If the
    last is not set, the source addresses are those to which ansible_host or the name resolves on the control node.
    """
    named = [(name, words(sources) or [str(host or name)]) for name, host, sources in hosts]
    found = _looked_up({text for _name, texts in named for text in texts})
    return {address: name for name, texts in named for text in texts for address in found.get(text, [])}


def change_problem(result: Result, known: t.Mapping[str, str], left_out: t.Collection[str], pattern: t.Any) -> str:
    """Report why the change of C(hapgent_state) did not take effect, and what to do if a load balancer has not polled.

    C(result) is the result of the module. C(known) has the names of load balancers by address, C(left_out) the names of
    those that are not waited for.
    """
    if result.get("kept"):
        return (
            "the state was changed meanwhile: something else set it to "
            f"{printable(State(**result['after']).answer(), MAX_SHOWN)}. This run did not change it. "
            "Find out what set it before you run this again."
        )
    text = with_names(str(result.get("msg", "")).rstrip("."), known)
    parts = [f"{printable(text, MAX_SHOWN)}."]
    if result.get("after") and "Nothing was changed" not in text:
        parts.append(f"The agent stays in {printable(result['after'].get('status'))}.")
    missing = result.get("not_received_by", [])
    silent = sorted({known[address] for address in missing if address in known} - {*left_out})
    unnamed = [address for address in missing if address not in known]
    if silent:
        parts.append(_advice(silent, pattern))
    if unnamed:
        parts.append(_advice_about_unnamed(unnamed, result.get("received_by", []), left_out, pattern))
    return " ".join(parts)


class ChangeOutcome(t.TypedDict):
    """The statuses that the agents of a host now report, and why the change did not take effect, '' if it did."""

    reported: str
    refusal: str


def change_outcome(
    results: t.Sequence[tuple[str, Result]],
    known: t.Mapping[str, str],
    left_out: t.Collection[str],
    pattern: t.Any,
) -> ChangeOutcome:
    """Combine the results of C(hapgent_state) in a loop over changes of a host's agents, each with the agent's title.

    The other arguments are those of change_problem().
    """
    failed = [(title, result) for title, result in results if result.get("kept") or "msg" in result]
    statuses = [result["after"]["status"] for _title, result in results if result.get("after")]
    reported = " and ".join(dict.fromkeys(map(printable, statuses)))
    refusal = " ".join(f"{title}: {change_problem(result, known, left_out, pattern)}" for title, result in failed)
    changed = [title for title, result in results if item_of(result)["made"]]
    if refusal and changed:
        refusal += f" The state of {', '.join(changed)} was changed."
    return {"reported": reported, "refusal": refusal}


def change_line(title: str, result: Result) -> str:
    """Report a change of an agent with this title. C(result) is what C(hapgent_state) has returned."""
    before, after = (printable(State(**result[when]).answer(), MAX_SHOWN) for when in ("before", "after"))
    number = len(result.get("received_by", []))
    received = f", received by {number} load balancer{'s' if number != 1 else ''}" if number else ""
    return f"{title}: {after} (was {before}){received}"


def with_names(text: str, known: t.Mapping[str, str]) -> str:
    """The text, with the name of the load balancer added after each known address."""

    def beside(match: re.Match[str]) -> str:
        return f"{match[0]} ({known[match[0]]})" if match[0] in known else match[0]

    return ADDRESS.sub(beside, text)


def without(pattern: t.Any, names: t.Iterable[str]) -> str:
    """The host pattern without these hosts. It uses commas, because a colon may be part of an IPv6 address."""
    return ",".join([*split_host_pattern(pattern), *(f"!{name}" for name in names)])


def _advice(names: t.Sequence[str], pattern: t.Any) -> str:
    """Advice about load balancers that may be down. An empty pattern means that hapgent_load_balancers is not known."""
    how = f": hapgent_load_balancers='{without(pattern, names)}'." if pattern else " from hapgent_load_balancers."
    return printable(f"{_exclude(names)}{how}", MAX_SHOWN)


def _exclude(names: t.Sequence[str]) -> str:
    if len(names) == 1:
        return f"If {names[0]} is down and sends no sessions, exclude it"
    return f"If {', '.join(names)} are down and send no sessions, exclude them"


def _advice_about_unnamed(
    unnamed: t.Sequence[str], received_by: t.Sequence[str], left_out: t.Collection[str], pattern: t.Any
) -> str:
    belong = f"{', '.join(unnamed)} {'belongs' if len(unnamed) == 1 else 'belong'}"
    if left_out:
        return f"If {belong} to {' or '.join(left_out)}, set hapgent_source_addresses of that host."
    if pattern:
        return f"If {belong} to one of the load balancers, set hapgent_source_addresses of that host."
    if received_by:
        return f"{_exclude(unnamed)}: hapgent_wait_for='{','.join(received_by)}'."
    return ""


def _problem(result: Result) -> str:
    return printable(result.get("msg", "unknown"), MAX_SHOWN).rstrip(".")


def _looked_up(names: t.Iterable[str]) -> dict[str, list[str]]:
    """The addresses of each name that resolves. All names are looked up concurrently, within LOOKUP_SECONDS."""
    found: dict[str, list[str]] = {}

    def look_up(name: str) -> None:
        try:
            found[name] = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
        except (OSError, UnicodeError):
            return

    threads = []
    for name in names:
        try:
            found[name] = [str(ipaddress.ip_address(name))]
        except ValueError:
            # The resolver has no timeout that can be set, so it runs in daemon threads.
            threads.append(threading.Thread(target=look_up, args=(name,), daemon=True))
    deadline = time.monotonic() + LOOKUP_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)
