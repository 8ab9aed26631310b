# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Determine which load balancers must receive a state and which have received it, from the peers of the agent."""

from __future__ import annotations

import ipaddress
import time
import typing as t

Peer = dict[str, t.Any]

# An agent records no more peers.
MAX_PEERS = 1024
MAX_SHOWN = 120


class WaitForError(Exception):
    """The value is neither a number of load balancers nor a list of addresses. The text describes the valid values."""


class WaitFor:
    """The load balancers that must receive a state: all that poll, a number of them, or those with given addresses."""

    def __init__(self, wanted: t.Any, left_out: t.Any = ()) -> None:
        """C(wanted) is V(auto), a number from 1 to MAX_PEERS, or addresses. C(left_out) has addresses to exclude.

        Addresses are a list or a comma-separated string. Raises WaitForError.
        """
        self.count = 0
        self.left_out: list[str] = _addresses("wait_except", left_out) if left_out else []
        self.addresses: list[str] = []
        if wanted == "auto":
            return
        text = str(wanted)
        # The length is checked first, because Python refuses to convert thousands of digits.
        if text.isdecimal() and len(text) <= len(str(MAX_PEERS)) and 1 <= int(text) <= MAX_PEERS:
            self.count = int(text)
        else:
            self.addresses = _addresses("wait_for", wanted)

    def result(self, peers: list[Peer], polled_before: t.Collection[str]) -> WaitResult:
        """Which load balancers have the state, and which do not.

        C(polled_before) are those that polled before the change. With V(auto), one of them that has stopped polling, or
        that the agent no longer lists, still counts, because it may continue to send sessions to the server.
        """
        received = sorted(peer["address"] for peer in peers if peer["received"])
        if self.addresses:
            wanted = self.addresses
        elif self.count:
            # A load balancer that has received the state but no longer polls does not count.
            wanted = [address for address in polling(peers) if address in received]
        else:
            wanted = sorted({*polling(peers), *polled_before})
        wanted = [address for address in wanted if address not in self.left_out]
        seen = [address for address in wanted if address in received]
        not_seen = [address for address in wanted if address not in received]
        return WaitResult(seen, not_seen, bool(seen) and not not_seen and len(seen) >= self.count)


class WaitResult(t.NamedTuple):
    """The addresses of load balancers with and without the state. C(complete) is whether the wait is over."""

    received_by: list[str]
    not_received_by: list[str]
    complete: bool

    def missing(self, peers: list[Peer]) -> str:
        """The load balancers without the state, and when each was last seen.

        C(peers) may contain a load balancer twice. The last entry counts.
        """
        last_seen = {peer["address"]: peer["last_seen"] for peer in peers}
        return ", ".join(
            f"{address} (last seen {time.time() - last_seen[address]:.0f} s ago)"
            if address in last_seen
            else f"{address} (never seen)"
            for address in self.not_received_by
        )


def polling(peers: list[Peer]) -> list[str]:
    """The sorted addresses of the peers that poll."""
    return sorted(peer["address"] for peer in peers if peer["polls"])


def _addresses(option: str, wanted: t.Any) -> list[str]:
    listed = wanted.split(",") if isinstance(wanted, str) else wanted
    if not isinstance(listed, list) or not listed:
        raise WaitForError(_allowed(option, wanted))
    try:
        addresses = [_as_the_agent_sees_it(ipaddress.ip_address(str(address).strip())) for address in listed]
    except ValueError as error:
        raise WaitForError(f"{_allowed(option, wanted)} ({_shortened(str(error))})") from error
    # An address may be listed twice, also in two notations.
    return list(dict.fromkeys(addresses))


def _as_the_agent_sees_it(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _allowed(option: str, wanted: t.Any) -> str:
    others = f"auto, a number from 1 to {MAX_PEERS}, or " if option == "wait_for" else ""
    return f"{option} must be {others}a list of addresses, not {_shortened(repr(wanted))}"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
