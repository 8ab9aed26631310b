# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command "hapgent status": the status of a running agent for people, programs and Prometheus."""

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
from hapgent.metrics import metrics
from hapgent.printable import printable
from hapgent.state import FIELDS

# The path that the role uses for an agent with the default name.
DEFAULT_SOCKET = "/run/hapgent/hapgent/status.sock"
# The time limit for the whole conversation, however many pieces the status arrives in.
PATIENCE_SECONDS = 5.0
RETRY_SECONDS = 0.05
# The status of an agent with 1,024 load balancers is smaller than half a megabyte.
MAX_BYTES = 4 * 1024 * 1024
# Longer text is cut in the table. A path has at most 4,096 bytes.
MAX_SHOWN = 4200
# Every 64-bit number fits in 20 digits. Python needs minutes to convert a number of several megabytes.
MAX_DIGITS = 20
# The end of the year 9999, the last one that Python can print.
MAX_TIMESTAMP = 253402300799

Status = dict[str, t.Any]
Kinds = dict[str, t.Callable[[t.Any], bool]]


def main(arguments: list[str]) -> int:
    """Print the status. Returns the exit status: 0, or 1 if no agent sends one. Bad arguments end with 2."""
    parser = argparse.ArgumentParser(
        "hapgent status", description="Show the state, and which load balancers have received it."
    )
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="all that the agent reports, as JSON")
    formats.add_argument("--prometheus", action="store_true", help="metrics in the text format of Prometheus")
    parser.add_argument(
        "socket",
        nargs="?",
        metavar="SOCKET",
        default=os.environ.get("HAPGENT_SOCKET") or DEFAULT_SOCKET,
        help=f"status socket of the agent (default: HAPGENT_SOCKET, or else {DEFAULT_SOCKET})",
    )
    options = parser.parse_args(arguments)
    # Handle signals like other commands do, so that Ctrl-C and pipes to head work.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _set_output_encoding(for_programs=options.json or options.prometheus)
    try:
        shown = _rendered(ask(options.socket), options)
    except (OSError, ValueError, RecursionError) as error:
        print(
            f"hapgent: no status from {printable(options.socket)}: {printable(_problem(error))}. "
            "Check that the agent is running, that this is its HAPGENT_SOCKET, "
            "and that you have permission to access it.",
            file=sys.stderr,
        )
        if not options.prometheus:
            return 1
        # The absence of an agent is also reported as a metric.
        shown = metrics(options.socket, None)
    print(shown)
    return 0


def _rendered(document: t.Any, options: argparse.Namespace) -> str:
    """Return the document in the requested format. Raises ValueError or RecursionError if it is not a status."""
    status = known(document)
    if options.prometheus:
        return metrics(options.socket, status)
    return as_json(document) if options.json else table(status)


def _set_output_encoding(for_programs: bool) -> None:
    """Use UTF-8 for programs, whatever the locale, since JSON and metrics are UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8" if for_programs else None, errors="backslashreplace")


def _problem(error: Exception) -> str:
    if isinstance(error, (TimeoutError, socket.timeout)):  # These are different classes before Python 3.10.
        return f"no complete response within {PATIENCE_SECONDS:g} s"
    if isinstance(error, RecursionError):
        return "what responds there is not an agent: its JSON is nested too deeply"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def ask(path: str) -> t.Any:
    """Return the JSON document that is sent on this socket. Its content is not checked.

    Raises OSError, TimeoutError after PATIENCE_SECONDS in total, RecursionError, and ValueError if the document is not
    JSON, is larger than MAX_BYTES or contains a number that is too long.
    """
    raw = _receive(path, time.monotonic() + PATIENCE_SECONDS)
    try:
        return json.loads(raw, parse_int=_whole_number, parse_constant=_whole_number)
    except ValueError as error:
        raise ValueError(f"what responds there is not an agent: {error}") from error


def _receive(path: str, deadline: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        _connect(agent, path, deadline)
        while True:
            agent.settimeout(_seconds_until(deadline))
            piece = agent.recv(65536)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > MAX_BYTES:
                raise ValueError(f"what responds there is not an agent: it sends more than {MAX_BYTES} bytes")


def _connect(agent: socket.socket, path: str, deadline: float) -> None:
    while True:
        agent.settimeout(_seconds_until(deadline))
        try:
            return agent.connect(path)
        except BlockingIOError:
            # The queue of the socket is full, and the kernel does not wait for UNIX sockets with a timeout.
            time.sleep(RETRY_SECONDS)


def _seconds_until(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)  # Fails for NaN and Infinity, which are not JSON.


def _is_text(value: t.Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: t.Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: t.Any) -> bool:
    # Also false for infinity: JSON can write it as 1e999.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**64


def _is_timestamp(value: t.Any) -> bool:
    return _is_number(value) and value <= MAX_TIMESTAMP


def _is_object(value: t.Any) -> bool:
    return isinstance(value, dict)


def _is_list(value: t.Any) -> bool:
    return isinstance(value, list)


# Agents of all releases report the required fields. Optional fields may be missing or null, and others are ignored.
REQUIRED: Kinds = {
    "version": _is_text,
    "state": _is_object,
    "since": _is_timestamp,
    "state_file": _is_text,
    "peers": _is_list,
}
OPTIONAL: Kinds = {
    "address": _is_text,
    "port": _is_number,
    "started": _is_timestamp,
    "state_file_ok": _is_flag,
    "last_error": _is_text,
    "counters": _is_object,
}
REQUIRED_OF_STATE: Kinds = {"status": _is_text}
OPTIONAL_OF_STATE: Kinds = {name: _is_number if field.kind == "int" else _is_text for name, field in FIELDS.items()}
REQUIRED_OF_PEER: Kinds = {"address": _is_text, "received": _is_flag}
OPTIONAL_OF_PEER: Kinds = {
    "checks": _is_number,
    "interval": _is_number,
    "last_seen": _is_timestamp,
    "polls": _is_flag,
    "settles_for": _is_number,
}


def known(document: t.Any) -> Status:
    """Return the fields of the status that are known here. Missing fields are None.

    Raises ValueError if the document is not a status: a required field is missing, or a known field has a wrong type.
    """
    if not isinstance(document, dict):
        raise ValueError("what responds there is not an agent: its JSON is not an object")
    status = _fields("", document, REQUIRED, OPTIONAL)
    status["state"] = _fields("state.", status["state"], REQUIRED_OF_STATE, OPTIONAL_OF_STATE)
    status["peers"] = [
        _fields(f"peers[{number}].", peer, REQUIRED_OF_PEER, OPTIONAL_OF_PEER)
        for number, peer in enumerate(status["peers"])
    ]
    counters = (status["counters"] or {}).items()
    status["counters"] = {name: value for name, value in counters if _is_number(value)}
    return status


def _fields(where: str, fields: t.Any, required: Kinds, optional: Kinds) -> Status:
    if not isinstance(fields, dict):
        raise ValueError(f"what responds there is not an agent: {where[:-1]} is not an object")
    for name, is_right in (*required.items(), *optional.items()):
        value = fields.get(name)
        if value is None and name in required:
            raise ValueError(f"what responds there is not an agent: it reports no {where}{name}")
        if value is not None and not is_right(value):
            raise ValueError(f"what responds there is not an agent: {where}{name} is {printable(repr(value), 60)}")
    return {name: fields.get(name) for name in (*required, *optional)}


def as_json(document: t.Any) -> str:
    """Return the document as JSON in which every character that a terminal would not print is escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    # Such characters occur only inside strings. Outside, there are only ASCII characters, spaces and line ends.
    return "".join(char if char.isprintable() or char == "\n" else _json_escape(char) for char in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def table(status: Status) -> str:
    """Return the status as text for people. Control characters that it may contain are escaped."""
    now = time.time()
    state = status["state"]
    facts = {
        "state": state["status"],
        "error": None if status["state_file_ok"] in (True, None) else status["last_error"] or "see the agent's log",
        **{name: None if state[name] is None else f"{state[name]}{field.unit}" for name, field in FIELDS.items()},
        "since": f"{_date(status['since'])}, {_ago(now - status['since'])}",
        "answers on": status["address"] and f"{status['address']} port {_or_dash(status['port'])}",
        "state file": status["state_file"],
    }
    lines = [f"{name:<12}{printable(value, MAX_SHOWN)}" for name, value in facts.items() if value is not None]
    rows = [("load balancer", "polls every", "checks", "state")]
    for peer in status["peers"]:
        every = "-" if peer["interval"] is None else f"{peer['interval']:.1f} s"
        rows.append((printable(peer["address"]), every, _or_dash(peer["checks"]), _verdict(peer, now)))
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(3)]
    lines.append("")
    lines += ["".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0])) for row in rows]
    if len(rows) == 1:
        lines.append("no load balancer has polled the agent yet")
    return "\n".join(lines)


def _or_dash(value: t.Any) -> str:
    return "-" if value is None else str(value)


def _verdict(peer: dict[str, t.Any], now: float) -> str:
    verdict = "received" if peer["received"] else "not yet"
    if peer["last_seen"] is None or (peer["received"] and peer["polls"] is not False):
        return verdict
    return f"{verdict}, last seen {_ago(now - peer['last_seen'])}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"
