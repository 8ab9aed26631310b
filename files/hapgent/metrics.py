# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Convert the status of an agent to metrics for Prometheus."""

from __future__ import annotations

import re
import typing as t

from hapgent._printable import printable
from hapgent._state import FIELDS, STATUSES, timestamp

# Long enough for a path.
MAX_LABEL = 4200
# A newer agent may have counters that are unknown here. The name of a counter becomes part of the name of a metric.
COUNTER = re.compile(r"[a-z]+(_[a-z]+){0,3}")

Labels = dict[str, str]
Samples = t.Iterable[tuple[Labels, t.Optional[float]]]
# The name, kind, description and samples of a metric of one agent.
Family = tuple[str, str, str, Samples]


def metrics(agents: t.Iterable[tuple[Labels, dict[str, t.Any] | None]]) -> str:
    """Return the metrics of these agents in Prometheus' text format, without the last line end.

    Each agent has labels, which tell it apart from the others, and a status, which has all fields that
    hapgent.status_command.known() returns. The status is None if the agent does not respond. Fields that are None
    produce no metric. Source: exposition formats in Prometheus' documentation.
    """
    # All samples of a metric must follow its description.
    found: dict[str, list[str]] = {}
    for labels, status in agents:
        for name, kind, text, samples in _families(status):
            lines = [_sample(name, {**labels, **more}, value) for more, value in samples if value is not None]
            if lines:
                head = [f"# HELP hapgent_{name} {text}", f"# TYPE hapgent_{name} {kind}"]
                found.setdefault(name, head).extend(lines)
    return "\n".join(line for lines in found.values() for line in lines)


def _families(status: dict[str, t.Any] | None) -> t.Iterator[Family]:
    yield "up", "gauge", "Whether the agent sends its status.", [({}, int(status is not None))]
    if status is None:
        return
    state, peers = status["state"], _by_label(status["peers"])
    yield "info", "gauge", "Release of the agent.", [({"version": status["version"]}, 1)]
    words = dict.fromkeys([*STATUSES, state["status"]])
    of_states = [({"status": word}, float(word == state["status"])) for word in words]
    yield "state", "gauge", "1 for the status that the agent reports.", of_states
    for name, value, text in (
        *(
            (name, state[name], f"The {name} that the agent reports: {field.meaning}.")
            for name, field in FIELDS.items()
            if field.kind == "int"
        ),
        ("ramp_weight", status["ramp_weight"], "The weight that the agent sends while a ramp goes on."),
        ("state_since_timestamp_seconds", status["since"], "Time of the last change of the state."),
        ("until_timestamp_seconds", _timestamp(state["until"]), "Time after which the status is overdue."),
        ("start_timestamp_seconds", status["started"], "Time when the agent started."),
        ("state_file_ok", status["state_file_ok"], "Whether the last access to the state file succeeded."),
    ):
        yield name, "gauge", text, [({}, value)]
    weighing = status.get("weighing")
    if weighing:
        text = "Whether the last run of hapgent weigh has set the weight, or left it because it fits."
        yield "weighing_ok", "gauge", text, [({}, weighing["problem"] is None)]
        text = "Time of the last weight that the weight command has printed."
        yield "weighing_reading_timestamp_seconds", "gauge", text, [({}, weighing["succeeded"])]
    for name, value in status["counters"].items():
        if COUNTER.fullmatch(name) and not name.startswith("peer_"):
            text = f"{name.capitalize()} since the agent started.".replace("_", " ")
            yield f"{name}_total", "counter", text, [({}, value)]
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
        yield name, kind, text, [({"peer": label}, peer[key]) for label, peer in peers.items()]


def _timestamp(moment: str | None) -> float | None:
    try:
        return timestamp(moment) if moment else None
    except ValueError:  # An agent of another release may report another form.
        return None


def _by_label(peers: list[dict[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """Return the load balancers by label. Each label must be unique, or Prometheus rejects all metrics."""
    found: dict[str, dict[str, t.Any]] = {}
    for peer in peers:
        found.setdefault(_label(peer["address"]), peer)
    return found


def _sample(name: str, labels: Labels, value: float) -> str:
    pairs = [f'{key}="{_escaped(label)}"' for key, label in labels.items()]
    return f"hapgent_{name}{{{','.join(pairs)}}} {float(value):.3f}".removesuffix(".000")


def _label(text: str) -> str:
    """Return the text as a label that is safe for a terminal, where people also read metrics."""
    return printable(text, MAX_LABEL)


def _escaped(text: str) -> str:
    return _label(text).replace("\\", "\\\\").replace('"', '\\"')
