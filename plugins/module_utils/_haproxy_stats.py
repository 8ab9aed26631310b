# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Parse and interpret what HAProxy reports about its servers, and find what makes agent checks ineffective.

Sources: sections 9.1 and 9.3 of HAProxy's management guide, and the output of HAProxy 2.2, 2.6 and 3.0.
"""

from __future__ import annotations

import csv
import re
import sys
import typing as t

from ._printable import printable

CSV_START = "# pxname,svname,"
STATES_START = "# be_id "
# Sent over one connection to the stats socket, so that one process gives all answers. Each ends with an empty line.
COMMANDS = "show info;show stat;show servers state"

# Bits of srv_admin_state. The agent and commands on the stats socket set the same bits.
FORCED_MAINT, INHERITED_MAINT, CONFIGURED_MAINT = 0x01, 0x02, 0x04
FORCED_DRAIN, INHERITED_DRAIN = 0x08, 0x10
UNRESOLVED_MAINT = 0x20
# Bits of srv_agent_state.
CHECK_CONFIGURED, CHECK_ENABLED = 0x02, 0x04

# The results of a check that got no answer, or none that HAProxy can parse.
NO_ANSWER = re.compile(r"L4(?!OK)|L6|L7TOUT|L7RSP|SOCKERR|PROCERR")
# Part of HAProxy's message about a weight from an agent that the backend's algorithm does not support.
WEIGHT_REFUSED = "static LB algorithm"
ANSWER_REFUSED = "agent reports an error"
# Below this configured weight, a tenth of it rounds to 0.
LOW_WEIGHT = 10

WAITS = ("drained", "up", "down", "maint")

# Columns of C(show stat) that count since HAProxy was started or reloaded.
COUNTERS = ("chkdown", "econ", "eresp", "hrsp_5xx")

INTEGER = re.compile("-?[0-9]{1,19}")
# Text of a health check is cut to this length, because it may be the body of a page.
MAX_CHARACTERS = 1000
MAX_NAMES = 20
# With more unreadable rows than this, the whole report is rejected.
MAX_UNREADABLE = 1000
# The required columns. Other columns may be missing, because some HAProxy releases do not have them.
COLUMNS = {
    *("pxname", "svname", "type", "status", "weight", "bck", "scur", "qcur", "lastchg", "tracked", "chkdown"),
    *("check_status", "check_code", "last_chk", "agent_status", "agent_code", "last_agt"),
}
STATE_COLUMNS = ("be_name", "srv_name", "srv_admin_state", "srv_uweight", "srv_iweight", "srv_agent_state")


class FormatError(Exception):
    """The text is not HAProxy's report about its servers."""


class TruncatedError(FormatError):
    """The text begins like HAProxy's answer but ends too early."""


class DeniedError(FormatError):
    """HAProxy refuses a command on this socket."""


class UnknownCommandError(FormatError):
    """HAProxy does not know the first command, because the socket is that of its master process."""


class UnreadableError(FormatError):
    """HAProxy's answer can be read, but not the rows of the requested servers."""


class SelectionError(Exception):
    """There is no such backend or server. The text lists those that exist."""


class Process(t.NamedTuple):
    """The HAProxy process that responded. C(uptime) is in seconds.

    C(old_processes) are the PIDs of the workers from before a reload that still run, None if they are not known.
    """

    version: str
    pid: int
    uptime: int
    old_processes: list[int] | None = None


class Server(t.NamedTuple):
    """One server of one backend. Fields that HAProxy does not report are None.

    C(admin) and C(agent_state) are bits. C(user_weight) is the configured weight as changed by the agent or an
    operator. C(weight) is the weight that HAProxy uses for balancing, which is lower during a slow start.
    C(last_change) is in seconds. C(counters) has COUNTERS. C(old_sessions) are the sessions in workers from before a
    reload, by the PID of the worker.
    """

    backend: str
    name: str
    address: str | None
    balance: str | None
    backup: bool
    status: str
    admin: int | None
    tracks: str | None
    weight: int
    user_weight: int | None
    configured_weight: int | None
    sessions: int
    queue: int
    last_change: int
    agent_state: int | None
    agent_check: dict[str, t.Any] | None
    health_check: dict[str, t.Any] | None
    counters: t.Mapping[str, int | None] = {}
    old_sessions: t.Mapping[int, int] | None = None

    @property
    def title(self) -> str:
        return f"{self.backend}/{self.name}"

    @property
    def word(self) -> str:
        """The status without its details: UP, DOWN, NOLB, DRAIN, MAINT, or no check."""
        return self.status if self.status == "no check" else self.status.split(" ", 1)[0]

    @property
    def takes_new_sessions(self) -> bool:
        """Whether HAProxy balances new sessions to the server. With weight 0 it does not, although it reports UP."""
        return self.word in ("UP", "no check") and self.weight > 0

    @property
    def admin_state(self) -> str | None:
        """ready, drain or maint. None for a server that is DOWN on the CSV page, where HAProxy does not report it."""
        if self.admin is None:
            by_word = {"DRAIN": "drain", "MAINT": "maint", "DOWN": None}
            return by_word.get(self.word, "ready")
        if self.admin & (FORCED_MAINT | INHERITED_MAINT | UNRESOLVED_MAINT):
            return "maint"
        return "drain" if self.admin & (FORCED_DRAIN | INHERITED_DRAIN) else "ready"

    @property
    def admin_by(self) -> list[str]:
        """What set the administrative state."""
        state = self.admin_state
        if state == "maint":
            return self._maint_by()
        return self._drain_by() if state == "drain" else []

    def _maint_by(self) -> list[str]:
        if self.admin is None:
            if self.status == "MAINT":
                return []
            return ["resolution" if self.status == "MAINT (resolution)" else "tracking"]
        # The configuration bit stays set after the server was enabled. A server that went down must have been enabled.
        configured = self.admin & CONFIGURED_MAINT and not self.counters.get("chkdown")
        forced = "configuration" if configured else self._operator_or_agent()
        causes = {FORCED_MAINT: forced, INHERITED_MAINT: "tracking", UNRESOLVED_MAINT: "resolution"}
        return [cause for bit, cause in causes.items() if self.admin & bit]

    def _drain_by(self) -> list[str]:
        if self.admin is None:
            return []
        causes = {FORCED_DRAIN: self._operator_or_agent(), INHERITED_DRAIN: "tracking"}
        return [cause for bit, cause in causes.items() if self.admin & bit]

    def _operator_or_agent(self) -> str:
        """What set a bit that HAProxy uses for both. Without an agent check, it was set manually."""
        return "agent_or_operator" if self.agent_check or (self.agent_state or 0) & CHECK_CONFIGURED else "operator"

    @property
    def is_being_asked(self) -> bool:
        """Whether an agent check is in progress, so that HAProxy does not report the text of the previous one."""
        return bool(self.agent_check and self.agent_check["running"] and not self.agent_check["text"])

    def meets(self, wanted: str, max_sessions: int) -> bool:
        """Whether the server has the status C(wanted), one of WAITS."""
        if wanted == "drained":
            left = self.sessions + self.queue + sum((self.old_sessions or {}).values())
            return not self.takes_new_sessions and left <= max_sessions
        if wanted == "up":
            # After HAProxy starts, it considers a server up until it polls the agent for the first time.
            asked = self.agent_check is None or self.agent_check["result"] != "INI"
            return self.takes_new_sessions and asked
        return self.word == wanted.upper()

    def left(self) -> str:
        """The status and the remaining sessions of the server, for a message."""
        words = [self.status, _count(self.sessions, "session")]
        if self.queue:
            words.append(f"{self.queue} in its queue")
        if self.old_sessions:
            words.append(_in_old_workers(self.old_sessions))
        if self.takes_new_sessions:
            words.append("takes new sessions")
        elif self.word in ("UP", "no check"):
            words.append("weight 0")
        return f"{self.title} ({', '.join(words)})"

    def describe(self) -> dict[str, t.Any]:
        """The fields of the server that the module returns."""
        return {
            "backend": self.backend,
            "server": self.name,
            "address": self.address,
            "balance": self.balance,
            "backup": self.backup,
            "status": self.status,
            "takes_new_sessions": self.takes_new_sessions,
            "admin_state": self.admin_state,
            "admin_by": self.admin_by,
            "tracks": self.tracks,
            "weight": self.weight,
            "configured_weight": self.configured_weight,
            "sessions": self.sessions,
            "old_sessions": None if self.old_sessions is None else sum(self.old_sessions.values()),
            "queue": self.queue,
            "last_change": self.last_change,
            "agent_check": self.agent_check,
            "health_check": self.health_check,
            "counters": {**self.counters},
        }


class Statistics(t.NamedTuple):
    """HAProxy's report at one moment.

    C(process) is None if HAProxy did not report it. C(unreadable) has the servers, as backend/server, whose rows cannot
    be read, with the reasons.
    """

    process: Process | None
    backends: list[str]
    servers: list[Server]
    unreadable: t.Mapping[str, str] = {}

    def select(self, backends: t.Sequence[str], servers: t.Sequence[str], all_readable: bool = False) -> list[Server]:
        """The servers of these backends that have one of these names, in HAProxy's order. No names means all.

        A name is that of a server, or of a server in one backend, as C(backend/server).

        Raises SelectionError if one of the names does not exist. Raises UnreadableError if the row of a named server,
        or with C(all_readable) of any selected server, may be one that cannot be read.
        """
        for backend in backends:
            if backend not in self.backends:
                raise SelectionError(f"HAProxy has no backend {printable(backend)}: it has {_listed(self.backends)}")
        unreadable = self._select_unreadable(backends, servers)
        if unreadable and (servers or all_readable):
            raise UnreadableError(self._describe_unreadable(unreadable))
        within = [server for server in self.servers if not backends or server.backend in backends]
        names = {name for server in within for name in (server.name, server.title)}
        for name in servers:
            if name not in names:
                if self.unreadable:
                    # The server may be in one of the unreadable rows.
                    raise UnreadableError(self._describe_unreadable(list(self.unreadable)))
                where = f"backend {', '.join(backends)}" if backends else "HAProxy"
                titles = [server.title for server in within]
                raise SelectionError(f"{where} has no server {printable(name)}: it has {_listed(titles)}")
        return [server for server in within if not servers or server.name in servers or server.title in servers]

    def warnings(self, selected: t.Iterable[Server]) -> list[str]:
        """A sentence for each problem that makes the agent checks of these servers ineffective or less effective."""
        by_title = {server.title: server for server in self.servers}
        found: dict[str, list[str]] = {}
        for server in selected:
            for problem in _problems(server, by_title):
                found.setdefault(problem, []).append(server.title)
        return [f"{', '.join(titles)}: {problem}." for problem, titles in found.items()]

    def unreadable_warning(self) -> str:
        """A warning that some rows cannot be read, '' if all can."""
        return f"{self._describe_unreadable(list(self.unreadable))}." if self.unreadable else ""

    def _select_unreadable(self, backends: t.Sequence[str], servers: t.Sequence[str]) -> list[str]:
        selected = []
        for title in self.unreadable:
            backend, _slash, name = title.partition("/")
            if (not backends or backend in backends) and (not servers or name in servers or title in servers):
                selected.append(title)
        return selected

    def _describe_unreadable(self, titles: t.Sequence[str]) -> str:
        return f"HAProxy's report about {_listed(titles)} cannot be read ({self.unreadable[titles[0]]})"


def with_old_sessions(servers: t.Iterable[Server], old: t.Mapping[int, t.Mapping[str, int]]) -> list[Server]:
    """The servers with their sessions in old workers. C(old) has the sessions of each worker by PID and by server."""
    return [
        server._replace(
            old_sessions={pid: sessions[server.title] for pid, sessions in old.items() if sessions.get(server.title)}
        )
        for server in servers
    ]


def parse_socket(lines: t.Iterable[str]) -> Statistics:
    """Parse the answer of the stats socket to COMMANDS, line by line. Raises FormatError."""
    rest = iter(lines)
    table = _Table(_read_process(rest))
    table.read_rows(_find_header(rest), rest, ends_with_empty_line=True)
    table.read_states(rest)
    return table.statistics()


def parse_page(lines: t.Iterable[str]) -> Statistics:
    """Parse the CSV page, line by line. Raises FormatError."""
    rest = iter(lines)
    return _parse_rows(next(rest, ""), rest, ends_with_empty_line=False)


def parse_stat(header: str, lines: t.Iterator[str]) -> Statistics:
    """Parse the answer to C(show stat) alone, line by line. C(header) is its first line. Raises FormatError."""
    return _parse_rows(header, lines, ends_with_empty_line=True)


def _parse_rows(header: str, lines: t.Iterator[str], *, ends_with_empty_line: bool) -> Statistics:
    if not header.startswith(CSV_START):
        raise unexpected(header, CSV_START, "statistics")
    table = _Table(None)
    table.read_rows(header, lines, ends_with_empty_line)
    return table.statistics()


def _read_process(lines: t.Iterator[str]) -> Process:
    """Read the answer to C(show info), including the empty line at its end."""
    line = next(lines, "")
    if line.startswith("Unknown command"):
        raise UnknownCommandError("it does not know show info")
    if not line.startswith("Name: "):
        raise unexpected(line, "Name: ", "a stats socket's answer")
    # The name itself is not checked, because it varies: that of HAProxy Enterprise is hapee-lb.
    found: dict[str, str] = {}
    for line in lines:
        if line == "\n":
            break
        name, _colon, value = line.partition(": ")
        if name in ("Version", "Pid", "Uptime_sec"):
            found.setdefault(name, value.rstrip("\n"))
    else:
        raise TruncatedError("the answer ends too early")
    try:
        return Process(_clean(found["Version"]), _integer(found["Pid"]), _integer(found.get("Uptime_sec", "0")))
    except (KeyError, ValueError) as error:
        raise FormatError("the answer to show info lacks Version or Pid") from error


def _find_header(lines: t.Iterator[str]) -> str:
    """Read up to the first line of C(show stat). A description in C(show info) can contain empty lines."""
    before = ""
    for line in lines:
        if line.startswith(CSV_START):
            return line
        before = before or line
    if not before:
        raise TruncatedError("the answer ends too early")
    raise unexpected(before, CSV_START, "statistics")


def unexpected(line: str, start: str, what: str) -> FormatError:
    """The error for a line that does not begin with C(start)."""
    if line.startswith("Permission denied"):
        return DeniedError("HAProxy refuses the command")
    if line and start.startswith(line):
        return TruncatedError("the answer ends too early")
    return FormatError(f"it sends {_shown(line)} instead of {what}")


class _Table:
    """Collects the rows of all servers while they are read."""

    def __init__(self, process: Process | None) -> None:
        self._process = process
        self._algorithms: dict[str, str | None] = {}
        self._servers: dict[tuple[str, str], Server] = {}
        self._unreadable: dict[str, str] = {}

    def statistics(self) -> Statistics:
        """What was read.

        Raises TruncatedError if the row of a backend is missing, because it follows the rows of its servers.
        """
        if any(backend not in self._algorithms for backend, _name in self._servers):
            raise TruncatedError("the statistics end too early")
        servers = [
            server._replace(balance=self._algorithms[server.backend])
            for key, server in self._servers.items()
            if f"{key[0]}/{key[1]}" not in self._unreadable
        ]
        return Statistics(self._process, list(self._algorithms), servers, self._unreadable)

    def read_rows(self, header: str, lines: t.Iterator[str], ends_with_empty_line: bool) -> None:
        """Read the rows of C(show stat). Rows that cannot be read are recorded, and the others are still read."""
        if not header.endswith("\n"):
            raise TruncatedError("the statistics end too early")
        names = header[2:].rstrip("\r\n").split(",")
        if not COLUMNS.issubset(names):
            raise FormatError("the statistics lack required columns")
        for record in _records(lines):
            if record == "\n":
                if ends_with_empty_line:
                    return
                continue
            try:
                self._read_row(names, record)
            except (csv.Error, ValueError) as error:
                self._note_unreadable(record.rstrip("\n").split(",", 2), str(error))
        if ends_with_empty_line:
            raise TruncatedError("the statistics end too early")

    def _read_row(self, names: t.Sequence[str], record: str) -> None:
        cells = _cells(record)
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} of {len(names)} columns")
        row = dict(zip(names, cells))
        if row["svname"] == "BACKEND":
            self._algorithms[_clean(row["pxname"])] = _clean(row.get("algo", "")) or None
        # Type 2 is a server. Listeners and frontends are skipped.
        elif row["type"] == "2":
            server = _server(row)
            self._servers[server.backend, server.name] = server

    def read_states(self, lines: t.Iterator[str]) -> None:
        """Read C(show servers state): the format version, the column names, and one line for each server."""
        version = next(lines, "")
        if version and not version.strip().isdecimal():
            raise unexpected(version, "1\n", "the states of servers")
        header = next(lines, "")
        if not header:
            raise TruncatedError("the states of servers end too early")
        if not header.startswith(STATES_START):
            raise unexpected(header, STATES_START, "the states of servers")
        names = header[2:].split()
        if not header.endswith("\n"):
            raise TruncatedError("the states of servers end too early")
        if not set(STATE_COLUMNS).issubset(names):
            raise FormatError("the states of servers lack required columns")
        columns = [names.index(name) for name in STATE_COLUMNS]
        for line in lines:
            if line == "\n":
                return
            cells = line.split()
            try:
                backend, name, *bits = (cells[column] for column in columns)
                self._add_state((_clean(backend), _clean(name)), [_integer(cell) for cell in bits])
            except (IndexError, ValueError) as error:
                self._note_unreadable(cells[1:4:2], str(error))
        raise TruncatedError("the states of servers end too early")

    def _add_state(self, key: tuple[str, str], bits: t.Sequence[int]) -> None:
        admin, user_weight, configured_weight, agent_state = bits
        if key in self._servers:
            self._servers[key] = self._servers[key]._replace(
                admin=admin, user_weight=user_weight, configured_weight=configured_weight, agent_state=agent_state
            )

    def _note_unreadable(self, cells: t.Sequence[str], why: str) -> None:
        backend, name = (*map(_clean, cells[:2]), "?", "?")[:2]
        if name == "BACKEND":
            # Only the algorithm of the backend is lost.
            self._algorithms.setdefault(backend, None)
        elif name != "FRONTEND":
            self._unreadable[f"{backend}/{name}"] = printable(why)
            if len(self._unreadable) > MAX_UNREADABLE:
                raise FormatError(f"the report about more than {MAX_UNREADABLE} servers cannot be read")


def _records(lines: t.Iterable[str]) -> t.Iterator[str]:
    """The rows one by one. Text of checks can contain line ends and empty lines, but is quoted then."""
    parts: list[str] = []
    quotes = 0
    for line in lines:
        parts.append(line)
        quotes += line.count('"')
        if quotes % 2 == 0 and line.endswith("\n"):
            yield "".join(parts)
            parts, quotes = [], 0
    if parts:
        raise TruncatedError("the statistics end too early")


def _cells(record: str) -> list[str]:
    # No limit is needed here, because the size of the answer is limited when it is received.
    csv.field_size_limit(sys.maxsize)
    return next(csv.reader([record], strict=True))


def _server(row: t.Mapping[str, str]) -> Server:
    """The server in a row of C(show stat). Fields that the row does not have are None. Raises ValueError."""
    return Server(
        backend=_clean(row["pxname"]),
        name=_clean(row["svname"]),
        address=_clean(row.get("addr", "")) or None,
        balance=None,
        backup=row["bck"] == "1",
        status=_clean(row["status"]),
        admin=None,
        tracks=_clean(row["tracked"]) or None,
        weight=_integer(row["weight"]),
        user_weight=_optional(row.get("uweight")),
        configured_weight=None,
        sessions=_integer(row["scur"]),
        queue=_integer(row["qcur"]),
        last_change=_integer(row["lastchg"]),
        agent_state=None,
        agent_check=_check(row, "agent_status", "agent_code", "last_agt"),
        health_check=_check(row, "check_status", "check_code", "last_chk"),
        counters={name: _optional(row.get(name)) for name in COUNTERS},
    )


def _check(row: t.Mapping[str, str], status: str, code: str, text: str) -> dict[str, t.Any] | None:
    """One of the two checks of a server. None if the server has none, or if it is disabled or paused."""
    if not row[status]:
        return None
    running = row[status].startswith("* ")
    return {
        "result": _clean(row[status][2:] if running else row[status]),
        "code": _optional(row[code]),
        # While a check is in progress, HAProxy does not report the text of the previous one.
        "text": _clean(" ".join(row[text].split())) or None,
        "running": running,
    }


def _problems(server: Server, by_title: t.Mapping[str, Server]) -> t.Iterator[str]:
    if server.tracks:
        checked = _tracked(server, by_title)
        if checked and not _has_agent_check(checked):
            yield f"tracks {checked.title}, which has no enabled agent check: no agent can drain it"
        return
    check = server.agent_check
    if check is None:
        if server.agent_state is None:
            yield "has no agent-check on its server line, or it was disabled (disable agent): no agent can drain it"
        elif server.agent_state & CHECK_CONFIGURED:
            yield (
                "the agent check was disabled manually: no agent can drain the server. "
                "Enable it with enable agent on the stats socket"
            )
        else:
            yield "has no agent-check on its server line: no agent can drain it"
        return
    text = check["text"] or ""
    shown = printable(text)
    # A server without an address cannot have an agent that responds.
    if NO_ANSWER.match(check["result"]) and "resolution" not in server.admin_by:
        why = f"{check['result']}, {shown}" if text else check["result"]
        yield (
            f"the agent does not respond ({why}), and HAProxy keeps the last state that it received. Check that the "
            "agent is running, that agent-port is its port, and that no firewall blocks it"
        )
    if ANSWER_REFUSED in text:
        yield f"HAProxy does not understand the agent's response ({shown}). Check that agent-port is the agent's port"
    if WEIGHT_REFUSED in text:
        yield (
            f"balance {server.balance or 'of this backend'} accepts only the weights 0% and 100% from an agent, so "
            "HAProxy ignores the reported weight. Use another algorithm, or hash-type consistent"
        )
    yield from _weight_problems(server)


def _weight_problems(server: Server) -> t.Iterator[str]:
    configured = server.configured_weight
    if configured is None or server.balance == "static-rr":
        return
    if configured == 0:
        yield (
            "the configured weight is 0, and so is any percentage of it: no agent can bring the server into rotation. "
            "Configure weight 100"
        )
        return
    # The lowest percentage that is not rounded to 0, because HAProxy rounds down.
    lowest = -(-100 // configured)
    if configured < LOW_WEIGHT or (server.user_weight == 0 and lowest > 1):
        yield (
            f"with the configured weight {configured}, any weight below {lowest}% rounds to 0, and the server gets no "
            "new sessions. Configure weight 100"
        )


def _has_agent_check(server: Server) -> bool:
    if server.agent_state is not None:
        return bool(server.agent_state & CHECK_ENABLED)
    return server.agent_check is not None


def _tracked(server: Server, by_title: t.Mapping[str, Server]) -> Server | None:
    """The server at the end of the chain of tracked servers, which is the one that HAProxy checks."""
    seen: set[str] = set()
    current: Server | None = server
    while current and current.tracks and current.title not in seen:
        seen.add(current.title)
        current = by_title.get(current.tracks)
    return current


def _clean(text: str) -> str:
    """Text of HAProxy, made printable and cut to MAX_CHARACTERS. Interned, because many servers have the same text."""
    is_clean = len(text) <= MAX_CHARACTERS and text.isprintable()
    return sys.intern(text if is_clean else printable(text, MAX_CHARACTERS))


def _optional(text: str | None) -> int | None:
    return _integer(text) if text else None


def _integer(text: str) -> int:
    """Convert a whole number. Raises ValueError, also for forms that int() accepts but HAProxy never sends."""
    if not INTEGER.fullmatch(text):
        raise ValueError(f"{printable(text, 40)} is not a number")
    return int(text)


def _in_old_workers(sessions: t.Mapping[int, int]) -> str:
    where = "an old worker (pid" if len(sessions) == 1 else "old workers (pids"
    return f"{_count(sum(sessions.values()), 'session')} in {where} {_listed([*map(str, sessions)])})"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _listed(names: t.Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more if names else "none"


def _shown(text: str) -> str:
    return f"'{printable(text.strip(), 64)}'"
