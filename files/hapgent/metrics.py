# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Convert the status of an agent to metrics for Prometheus."""

from __future__ import annotations

import re
import typing as t

from hapgent.printable import printable
from hapgent.state import FIELDS, STATUSES

# Long enough for a path.
MAX_LABEL = 4200
# A newer agent may have counters that are unknown here. The name of a counter becomes part of the name of a metric.
COUNTER = re.compile(r"[a-z]+(_[a-z]+){0,3}")

Samples = t.Iterable[tuple[dict[str, str], t.Optional[float]]]


def metrics(path: str, status: dict[str, t.Any] | None) -> str:
    """Return the metrics of the agent with this status socket, in Prometheus' text format, without the last line end.

    C(status) has all fields that hapgent.status_command.known() returns. It is None if no agent responds. Fields that
    are None produce no metric. Source: exposition formats in Prometheus' documentation.
    """
    return "\n".join(_lines(path, status))


def _lines(path: str, status: dict[str, t.Any] | None) -> t.Iterator[str]:
    yield from _metric("up", "gauge", "Whether the agent sends its status.", path, [({}, int(status is not None))])
    if status is None:
        return
    state, peers = status["state"], _by_label(status["peers"])
    yield from _metric("info", "gauge", "Release of the agent.", path, [({"version": status["version"]}, 1)])
    words = dict.fromkeys([*STATUSES, state["status"]])
    of_states = [({"status": word}, float(word == state["status"])) for word in words]
    yield from _metric("state", "gauge", "1 for the status that the agent reports.", path, of_states)
    for name, value, text in (
        *(
            (name, state[name], f"The {name} that the agent reports: {field.meaning}.")
            for name, field in FIELDS.items()
            if field.kind == "int"
        ),
        ("state_since_timestamp_seconds", status["since"], "Time of the last change of the state."),
        ("start_timestamp_seconds", status["started"], "Time when the agent started."),
        ("state_file_ok", status["state_file_ok"], "Whether the last access to the state file succeeded."),
    ):
        yield from _metric(name, "gauge", text, path, [({}, value)])
    for name, value in status["counters"].items():
        if COUNTER.fullmatch(name) and not name.startswith("peer_"):
            text = f"{name.capitalize()} since the agent started.".replace("_", " ")
            yield from _metric(f"{name}_total", "counter", text, path, [({}, value)])
    for name, kind, key, text in (
        ("peer_received_state", "gauge", "received", "Whether the load balancer has received the state."),
        ("peer_polls", "gauge", "polls", "Whether the load balancer still polls the agent."),
        ("peer_last_seen_timestamp_seconds", "gauge", "last_seen", "Time of the last check by the load balancer."),
        ("peer_interval_seconds", "gauge", "interval", "Recent average interval between checks by the load balancer."),
        (
            "peer_settles_for_seconds",
            "gauge",
            "settles_for",
            "Time for which the load balancer still receives reset keywords.",
        ),
        ("peer_checks_total", "counter", "checks", "Checks by the load balancer that the agent answered."),
    ):
        yield from _metric(name, kind, text, path, [({"peer": label}, peer[key]) for label, peer in peers.items()])


def _by_label(peers: list[dict[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """Return the load balancers by label. Each label must be unique, or Prometheus rejects all metrics."""
    found: dict[str, dict[str, t.Any]] = {}
    for peer in peers:
        found.setdefault(_label(peer["address"]), peer)
    return found


def _metric(name: str, kind: str, text: str, path: str, samples: Samples) -> t.Iterator[str]:
    """Yield the lines of one metric, or none if it has no value."""
    lines = []
    for labels, value in samples:
        if value is not None:
            pairs = [f'{key}="{_escaped(label)}"' for key, label in {"socket": path, **labels}.items()]
            lines.append(f"hapgent_{name}{{{','.join(pairs)}}} {float(value):.3f}".removesuffix(".000"))
    if lines:
        yield f"# HELP hapgent_{name} {text}"
        yield f"# TYPE hapgent_{name} {kind}"
        yield from lines


def _label(text: str) -> str:
    """Return the text as a label that is safe for a terminal, where people also read metrics."""
    return printable(text, MAX_LABEL)


def _escaped(text: str) -> str:
    return _label(text).replace("\\", "\\\\").replace('"', '\\"')
