# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""hapgent status: what a running agent says of itself, for people, programs and Prometheus."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import socket
import sys
import time
import typing as t

from hapgent import SIGNALS
from hapgent.state import STATUSES

# Where the role puts it for the instance with the default name.
DEFAULT_SOCKET = "/run/hapgent/hapgent/status.sock"
PATIENCE_SECONDS = 5.0

Status = dict[str, t.Any]


def main(arguments: list[str]) -> int:
    """Print the status. Returns the exit status: 0, or 1 if no agent tells it. Bad arguments end with 2."""
    parser = argparse.ArgumentParser("hapgent status", description="Show the state, and which load balancer has it.")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="all that the agent tells, as JSON")
    formats.add_argument("--prometheus", action="store_true", help="metrics in the text format of Prometheus")
    parser.add_argument(
        "socket",
        nargs="?",
        metavar="SOCKET",
        default=os.environ.get("HAPGENT_SOCKET") or DEFAULT_SOCKET,
        help=f"of the agent; without it HAPGENT_SOCKET, or else {DEFAULT_SOCKET}",
    )
    options = parser.parse_args(arguments)
    # A command like others, for Ctrl-C and head; and a path may be no UTF-8.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    status = None
    try:
        status = ask(options.socket)
    except (OSError, ValueError) as error:
        print(
            f"hapgent: no status from {options.socket}: {error}. "
            "See that the agent runs, that this is its HAPGENT_SOCKET, and that you may read it.",
            file=sys.stderr,
        )
    if options.prometheus:
        # That there is none is a metric too.
        print("\n".join(metrics(options.socket, status)))
    elif not status:
        return 1
    else:
        print(json.dumps(status, indent=2, ensure_ascii=False) if options.json else table(status))
    return 0


def ask(path: str) -> Status:
    """The status that the agent tells on this socket. Raises OSError, or ValueError if that is no status."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.settimeout(PATIENCE_SECONDS)
        agent.connect(path)
        status = json.loads(b"".join(iter(lambda: agent.recv(65536), b"")))
    if not isinstance(status, dict):
        raise ValueError("what answers there is no agent")
    return status


def table(status: Status) -> str:
    """For people."""
    now = time.time()
    state = status["state"]
    facts = {
        "state": state["status"],
        "weight": f"{state['weight']}%" if "weight" in state else None,
        "maxconn": state.get("maxconn"),
        "reason": state.get("reason"),
        "since": f"{_date(status['since'])}, {_ago(now - status['since'])}",
        "answers on": f"{status['address']} port {status['port']}",
        "state file": status["state_file"] if status["state_file_ok"] else status["last_error"],
    }
    lines = [f"{name:<12}{value}" for name, value in facts.items() if value is not None]
    rows = [("load balancer", "asks every", "checks", "state")]
    for peer in status["peers"]:
        every = "-" if peer["interval"] is None else f"{peer['interval']:.1f} s"
        rows.append((peer["address"], every, str(peer["checks"]), _verdict(peer, now)))
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(3)]
    lines.append("")
    lines += ["".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0])) for row in rows]
    if len(rows) == 1:
        lines.append("none has asked yet")
    return "\n".join(lines)


def _verdict(peer: dict[str, t.Any], now: float) -> str:
    seen = f"last seen {_ago(now - peer['last_seen'])}"
    if not peer["has_it"]:
        return f"not yet, {seen}"
    return "has it" if peer["polls"] else f"has it, {seen}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def metrics(path: str, status: Status | None) -> t.Iterator[str]:
    """In Prometheus' text format. Source: exposition formats in its documentation."""
    yield from _metric("up", "gauge", "Whether the agent tells its status.", path, [({}, int(status is not None))])
    if status is None:
        return
    state = status["state"]
    yield from _metric("info", "gauge", "Release of the agent.", path, [({"version": status["version"]}, 1)])
    of_states = [({"status": name}, int(name == state["status"])) for name in STATUSES]
    yield from _metric("state", "gauge", "1 for the status that is told.", path, of_states)
    for name, text in (
        ("weight", "Percentage of the configured weight that is told."),
        ("maxconn", "Maximum of connections that is told."),
    ):
        if name in state:
            yield from _metric(name, "gauge", text, path, [({}, state[name])])
    for name, value, text in (
        ("state_since_timestamp_seconds", status["since"], "When the state was changed."),
        ("start_timestamp_seconds", status["started"], "When the agent was started."),
        ("state_file_ok", int(status["state_file_ok"]), "Whether the last use of the state file worked."),
    ):
        yield from _metric(name, "gauge", text, path, [({}, value)])
    for name, value in status["counters"].items():
        text = f"{name.capitalize()} since the start.".replace("_", " ")
        yield from _metric(f"{name}_total", "counter", text, path, [({}, value)])
    for name, key, text in (
        ("peer_has_state", "has_it", "Whether the load balancer was given the state."),
        ("peer_polls", "polls", "Whether the load balancer still asks."),
        ("peer_last_seen_timestamp_seconds", "last_seen", "When the load balancer asked last."),
        ("peer_interval_seconds", "interval", "How often the load balancer asks."),
        ("peer_settles_for_seconds", "settles_for", "How long it is still told what undoes the state before."),
    ):
        values = [({"peer": peer["address"]}, peer[key]) for peer in status["peers"] if peer[key] is not None]
        if values:
            yield from _metric(name, "gauge", text, path, values)
    answered = [({"peer": peer["address"]}, peer["checks"]) for peer in status["peers"]]
    if answered:
        yield from _metric("peer_checks_total", "counter", "Checks answered to the load balancer.", path, answered)


def _metric(
    name: str, kind: str, text: str, path: str, values: t.Iterable[tuple[dict[str, str], float]]
) -> t.Iterator[str]:
    yield f"# HELP hapgent_{name} {text}"
    yield f"# TYPE hapgent_{name} {kind}"
    for labels, value in values:
        pairs = [f'{key}="{_escaped(label)}"' for key, label in {"socket": path, **labels}.items()]
        yield f"hapgent_{name}{{{','.join(pairs)}}} {float(value):.3f}".removesuffix(".000")


def _escaped(label: str) -> str:
    text = label.encode("utf-8", "replace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
