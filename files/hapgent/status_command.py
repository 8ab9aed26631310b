# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command "hapgent status": the status of a running agent for people, programs and Prometheus."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import typing as t

from hapgent import SIGNALS, usage
from hapgent._printable import printable
from hapgent._state import FIELDS, Field, timestamp
from hapgent.metrics import metrics

if t.TYPE_CHECKING:
    from hapgent.instances import Found

# The time limit for the whole conversation, however many pieces the status arrives in.
PATIENCE_SECONDS = 5.0
RETRY_SECONDS = 0.05
WATCH_SECONDS = 1.0
# The status of an agent with 1,024 load balancers is smaller than half a megabyte.
MAX_BYTES = 4 * 1024 * 1024
# Longer text is cut in the table. A path has at most 4,096 bytes.
MAX_SHOWN = 4200
# Deeper lists and objects could be read, but perhaps not be printed again. A status has three levels.
MAX_DEPTH = 32
# Each is a row of the table. The agent keeps 1,024.
MAX_PEERS = 4096
# Every 64-bit number fits in 20 digits. Python needs minutes to convert a number of several megabytes.
MAX_DIGITS = 20
# The end of the year 9999, the last one that Python can print.
MAX_TIMESTAMP = 253402300799

Status = dict[str, t.Any]
Kinds = dict[str, t.Callable[[t.Any], bool]]
Connect = t.Callable[[socket.socket, float], None]


class Source(t.NamedTuple):
    """Where the status of an agent is read: its socket at C(path), which C(connect) connects to.

    C(service) and C(state_file) are '' if they are not known. C(problem) is why the agent cannot be asked, '' if it
    can.
    """

    path: str
    connect: Connect | None
    service: str = ""
    state_file: str = ""
    problem: str = ""

    @property
    def label(self) -> str:
        """How messages name the agent."""
        return printable(self.service or self.state_file or self.path)


class Read(t.NamedTuple):
    """What was read from a source: a document and the known fields in it, or a problem.

    C(weighing) is what "hapgent weigh" has recorded, None if it does not run for this agent.
    """

    source: Source
    document: t.Any = None
    status: Status | None = None
    problem: str = ""
    weighing: Status | None = None


def main(arguments: list[str]) -> int:
    """Print the status. Returns the exit status: 0, or 1 if an agent does not send one, or 2 for bad arguments."""
    command = usage.COMMANDS["status"]
    try:
        options, words = usage.read(command, arguments)
        if len(words) > 1 or (words and "--service" in options):
            raise usage.UsageError("the agent is one SOCKET, or one --service")
        # Handle signals like other commands do, so that Ctrl-C and pipes to head work.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        _set_output_encoding(for_programs="--json" in options or "--prometheus" in options)
        sources, is_one = _sources(words[0] if words else None, options.get("--service"))
    except usage.UsageError as error:
        print(f"hapgent status: {error}\n{usage.usage_of(command)}", file=sys.stderr)
        return usage.EXIT_USAGE
    if "--watch" in options:
        return _watch(sources)
    reads = _read_all(sources)
    for read in reads:
        if read.problem:
            print(_complaint(read), file=sys.stderr)
    failed = any(read.problem for read in reads)
    if "--prometheus" in options:
        # The absence of an agent is reported as a metric.
        agents = [(_labels(read.source), read.status and _with_weighing(read.status, read.weighing)) for read in reads]
        print(metrics(agents))
        return usage.EXIT_OK
    if "--json" in options:
        if not is_one:
            print(as_json({"instances": [_described(read) for read in reads]}))
        elif not failed:
            print(as_json(_with_weighing(reads[0].document, reads[0].weighing)))
    elif not failed or len(reads) > 1:
        print(_tables(reads, titled=len(reads) > 1))
    return usage.EXIT_FAILED if failed else usage.EXIT_OK


def _sources(path: str | None, service: str | None) -> tuple[list[Source], bool]:
    """Return where to read, and whether that is one agent that was named. Raises UsageError."""
    if path is None and service is None:
        path = os.environ.get("HAPGENT_SOCKET") or None
    if path is not None:
        return [_plain(path)], True
    # Imported here, because a status that is read from a given socket does not need it.
    from hapgent import instances  # noqa: PLC0415
    from hapgent._agent_process import InstanceError  # noqa: PLC0415

    try:
        found = instances.discover()
    except InstanceError as error:
        return [_plain(usage.DEFAULT_SOCKET)._replace(problem=str(error))], service is not None
    try:
        if service is not None:
            return [_source(one) for one in instances.select(found, service)], True
    except instances.SelectionError as error:
        raise usage.UsageError(str(error)) from error
    return [_source(one) for one in found] or [_plain(usage.DEFAULT_SOCKET)], False


def _plain(path: str) -> Source:
    return Source(path, lambda connection, _deadline: connection.connect(path))


def _source(found: Found) -> Source:
    """Return where the status of an instance is read. Raises no exception."""
    from hapgent._agent_client import Instance  # noqa: PLC0415

    source = _plain(found.status_socket)._replace(service=found.service, state_file=found.state_file)
    if not found.process:
        return source._replace(problem=f"the agent does not run ({found.state})")
    if not found.status_socket:
        return source._replace(problem="the agent has no status socket: set its HAPGENT_SOCKET")
    if not found.is_hidden:
        # Nobody else may answer, because root may be asking.
        return source._replace(connect=Instance(found.process, found.state_file, found.status_socket).connect)
    return source


def _labels(source: Source) -> dict[str, str]:
    return {"socket": source.path, **({"service": source.service} if source.service else {})}


def _described(read: Read) -> dict[str, t.Any]:
    source = read.source
    return {
        "service": source.service or None,
        "state_file": source.state_file or None,
        "status_socket": source.path or None,
        "problem": read.problem or None,
        "status": read.document,
        "weighing": read.weighing,
    }


def _with_weighing(status: Status, weighing: Status | None) -> Status:
    return {**status, "weighing": weighing} if weighing else status


def _weighing(state_file: str) -> Status | None:
    """Return what "hapgent weigh" has recorded for the agent of this file, None if it does not run."""
    from hapgent import weight_record  # noqa: PLC0415

    record = weight_record.load(state_file) if state_file else None
    return record and {
        "problem": record.problem or None,
        "since": record.since if record.problem else None,
        "succeeded": record.succeeded or None,
        "reading": record.readings[-1] if record.readings else None,
    }


def _complaint(read: Read) -> str:
    where = printable(read.source.path)
    if read.source.service:
        where = f"{printable(read.source.service)} ({where})" if where else printable(read.source.service)
    where = where or read.source.label
    advice = (
        " Check that the agent is running, that this is its HAPGENT_SOCKET, and that you have permission to access it."
    )
    known = bool(read.source.problem)
    return f"hapgent: no status from {where}: {printable(read.problem)}.{'' if known else advice}"


def _read_all(sources: list[Source]) -> list[Read]:
    """Read all of them at the same time, so that one that hangs delays no other."""
    reads: dict[int, Read] = {}

    def read_one(number: int) -> None:
        reads[number] = _read(sources[number])

    threads = [threading.Thread(target=read_one, args=(number,), daemon=True) for number in range(1, len(sources))]
    for thread in threads:
        thread.start()
    read_one(0)
    for thread in threads:
        thread.join()
    return [reads[number] for number in range(len(sources))]


def _read(source: Source) -> Read:
    weighing = _weighing(source.state_file)
    if source.problem or not source.connect:
        return Read(source, problem=source.problem, weighing=weighing)
    try:
        document = ask(source.connect)
        return Read(source, document, known(document), weighing=weighing)
    except (OSError, ValueError, RecursionError) as error:
        return Read(source, problem=_problem(error), weighing=weighing)


def _watch(sources: list[Source]) -> int:
    """Show the tables again and again until Ctrl-C."""
    in_place = sys.stdout.isatty()
    try:
        while True:
            reads = _read_all(sources)
            shown = _tables(reads, titled=len(reads) > 1)
            # Each line replaces the one that was there, so that nothing flickers.
            text = "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown.split("\n")) + "\x1b[J"
            print(text if in_place else f"{shown}\n", end="" if in_place else "\n", flush=True)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return usage.EXIT_OK


def _tables(reads: list[Read], *, titled: bool) -> str:
    parts = []
    for read in reads:
        status = read.status and _with_weighing(read.status, read.weighing)
        lines = table(status) if status else f"{'problem':<12}{printable(read.problem, MAX_SHOWN)}"
        parts.append(f"{read.source.label}\n{_indented(lines)}" if titled else lines)
    return "\n\n".join(parts)


def _indented(lines: str) -> str:
    return "\n".join(line and f"  {line}" for line in lines.split("\n"))


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


def ask(connect: Connect) -> t.Any:
    """Return the JSON document that is sent on a socket. Its content is not checked.

    Raises OSError, TimeoutError after PATIENCE_SECONDS in total, RecursionError, and ValueError if the document is not
    JSON, is larger than MAX_BYTES or contains a number that is too long or too large.
    """
    raw = _receive(connect, time.monotonic() + PATIENCE_SECONDS)
    try:
        document = json.loads(raw, parse_int=_whole_number, parse_float=_finite, parse_constant=_whole_number)
    except ValueError as error:
        raise ValueError(f"what responds there is not an agent: {error}") from error
    _check_depth(document)
    return document


def _check_depth(document: t.Any) -> None:
    """Raise RecursionError if lists and objects are nested deeper than MAX_DEPTH."""
    level = [document]
    for _depth in range(MAX_DEPTH):
        inner = [value for value in level if isinstance(value, (dict, list))]
        level = [item for value in inner for item in (value.values() if isinstance(value, dict) else value)]
    if level:
        raise RecursionError


def _receive(connect: Connect, deadline: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        _connect(agent, connect, deadline)
        while True:
            agent.settimeout(_seconds_until(deadline))
            piece = agent.recv(65536)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > MAX_BYTES:
                raise ValueError(f"what responds there is not an agent: it sends more than {MAX_BYTES} bytes")


def _connect(agent: socket.socket, connect: Connect, deadline: float) -> None:
    while True:
        agent.settimeout(_seconds_until(deadline))
        try:
            return connect(agent, deadline)
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


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {printable(digits, 30)}")  # JSON could not express it again.
    return number


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
    "ramp_weight": _is_number,
    "ramp_ends": _is_timestamp,
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
    if len(status["peers"]) > MAX_PEERS:
        raise ValueError(f"what responds there is not an agent: it reports more than {MAX_PEERS} load balancers")
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
        **{name: _field(field, state[name], now) for name, field in FIELDS.items()},
        "weighing": _weighing_in_words(status.get("weighing"), now),
        "ramp": None if status["ramp_weight"] is None else _ramp(status["ramp_weight"], status["ramp_ends"]),
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


def _field(field: Field, value: t.Any, now: float) -> str | None:
    if value is None or not field.is_moment:
        return None if value is None else f"{value}{field.unit}"
    try:
        left = timestamp(value) - now
    except ValueError:  # An agent of another release may report another form.
        return str(value)
    return f"{_date(now + left)}, {f'overdue for {_span(-left)}' if left < 0 else f'in {_span(left)}'}"


def _weighing_in_words(weighing: Status | None, now: float) -> str | None:
    if not weighing:
        return None
    last = f"last reading {_ago(now - weighing['succeeded'])}" if weighing["succeeded"] else "no reading yet"
    if weighing["problem"]:
        return f"has failed since {_date(weighing['since'])}, {last}: {weighing['problem']}"
    return last if weighing["reading"] is None else f"{last}: {weighing['reading']:g}%"


def _ramp(weight: int, ends: float | None) -> str:
    return f"sends {weight}% now" + (f", the whole weight from {_date(ends)}" if ends else "")


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
    return f"{_span(seconds)} ago"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
