# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""What HAProxy says of its servers: statistics and states as text, what they mean, what makes agent checks useless.

Sources: sections 9.1 and 9.3 of HAProxy's management guide, and what HAProxy 2.2, 2.6 and 3.0 answered.
"""

from __future__ import annotations

import csv
import io
import re
import typing as t

CSV_START = "# pxname,svname,"
# For one connection to the stats socket. The answers come one after the other, each with an empty line at its end.
COMMANDS = "show info;show stat;show servers state"

# Bits of srv_admin_state. The agent and a command on the stats socket set the same ones.
FORCED_MAINT, INHERITED_MAINT, CONFIGURED_MAINT = 0x01, 0x02, 0x04
FORCED_DRAIN, INHERITED_DRAIN = 0x08, 0x10
UNRESOLVED_MAINT = 0x20
# Bits of srv_agent_state.
CHECK_CONFIGURED, CHECK_ENABLED = 0x02, 0x04

# What HAProxy calls a check that got no answer, or none that it can read.
NO_ANSWER = re.compile(r"L4(?!OK)|L6|L7TOUT|L7RSP|SOCKERR|PROCERR")
# What HAProxy says of an agent's weight, in a backend that cannot have it.
WEIGHT_REFUSED = "static LB algorithm"
ANSWER_REFUSED = "agent reports an error"
# Below this, already a tenth of the configured weight rounds to 0.
LOW_WEIGHT = 10

WAITS = ("drained", "up", "down", "maint")


class FormatError(Exception):
    """This is nothing that HAProxy says of its servers."""


class HalfAnswerError(FormatError):
    """HAProxy began to say it, and did not come to the end."""


class SelectionError(Exception):
    """No such backend or server. The text says which there are."""


class Process(t.NamedTuple):
    """The process that has answered."""

    version: str
    pid: int
    uptime: int


class Server(t.NamedTuple):
    """One server of one backend. None is what HAProxy did not tell.

    C(admin) and C(agent_state) are bits. C(user_weight) is the configured weight as the agent or an operator changed
    it; C(weight) is what HAProxy balances with, which is less while the server starts slowly.
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

    @property
    def title(self) -> str:
        return f"{self.backend}/{self.name}"

    @property
    def word(self) -> str:
        """The status without what is behind it: UP, DOWN, NOLB, DRAIN, MAINT, or no check."""
        return self.status if self.status == "no check" else self.status.split(" ", 1)[0]

    @property
    def takes_new_sessions(self) -> bool:
        """Whether HAProxy balances new sessions to it. With a weight of 0 it does not, although it says UP."""
        return self.word in ("UP", "no check") and self.weight > 0

    @property
    def admin_state(self) -> str | None:
        """ready, drain or maint; None where HAProxy does not say it: on the CSV page, for a server that is DOWN."""
        if self.admin is None:
            told = {"DRAIN": "drain", "MAINT": "maint", "DOWN": None}
            return told.get(self.word, "ready")
        if self.admin & (FORCED_MAINT | INHERITED_MAINT | UNRESOLVED_MAINT):
            return "maint"
        return "drain" if self.admin & (FORCED_DRAIN | INHERITED_DRAIN) else "ready"

    @property
    def admin_by(self) -> list[str]:
        """What has set the administrative state."""
        state = self.admin_state
        if state == "maint":
            return self._maint_by()
        return self._drain_by() if state == "drain" else []

    def _maint_by(self) -> list[str]:
        if self.admin is None:
            if self.status == "MAINT":
                return []
            return ["resolution" if self.status == "MAINT (resolution)" else "tracking"]
        forced = "configuration" if self.admin & CONFIGURED_MAINT else self._hand_or_agent()
        causes = {FORCED_MAINT: forced, INHERITED_MAINT: "tracking", UNRESOLVED_MAINT: "resolution"}
        return [cause for bit, cause in causes.items() if self.admin & bit]

    def _drain_by(self) -> list[str]:
        if self.admin is None:
            return []
        causes = {FORCED_DRAIN: self._hand_or_agent(), INHERITED_DRAIN: "tracking"}
        return [cause for bit, cause in causes.items() if self.admin & bit]

    def _hand_or_agent(self) -> str:
        """HAProxy keeps one bit for both. Without an agent check, it can only be one of them."""
        return "agent_or_hand" if self.agent_check or (self.agent_state or 0) & CHECK_CONFIGURED else "hand"

    @property
    def is_being_asked(self) -> bool:
        """Whether HAProxy asks the agent at this moment, and does not say what it answered before."""
        return bool(self.agent_check and self.agent_check["running"] and not self.agent_check["text"])

    def meets(self, wanted: str, max_sessions: int) -> bool:
        """Whether it is what is waited for."""
        if wanted == "drained":
            return not self.takes_new_sessions and self.sessions + self.queue <= max_sessions
        if wanted == "up":
            # After a start of HAProxy, a server is up until its agent was asked.
            asked = self.agent_check is None or self.agent_check["result"] != "INI"
            return self.takes_new_sessions and asked
        return self.word == wanted.upper()

    def left(self) -> str:
        """Its status and what it has, for a message."""
        words = [self.status, _count(self.sessions, "session")]
        if self.queue:
            words.append(f"{self.queue} in its queue")
        if self.takes_new_sessions:
            words.append("takes new sessions")
        elif self.word in ("UP", "no check"):
            words.append("weight 0")
        return f"{self.title} ({', '.join(words)})"

    def describe(self) -> dict[str, t.Any]:
        """All that is returned of it."""
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
            "queue": self.queue,
            "last_change": self.last_change,
            "agent_check": self.agent_check,
            "health_check": self.health_check,
        }


class Statistics(t.NamedTuple):
    """What HAProxy said at one moment. C(process) is None where it is not told."""

    process: Process | None
    backends: list[str]
    servers: list[Server]

    def select(self, backends: t.Sequence[str], servers: t.Sequence[str]) -> list[Server]:
        """The servers of these backends that have one of these names, in HAProxy's order; no names are all.

        Raises SelectionError if one of the names is not there.
        """
        for backend in backends:
            if backend not in self.backends:
                raise SelectionError(f"HAProxy has no backend {backend}: it has {_listed(self.backends)}")
        within = [server for server in self.servers if not backends or server.backend in backends]
        names = {server.name for server in within}
        for name in servers:
            if name not in names:
                where = f"backend {', '.join(backends)}" if backends else "HAProxy"
                titles = [server.title for server in within]
                raise SelectionError(f"{where} has no server {name}: it has {_listed(titles)}")
        return [server for server in within if not servers or server.name in servers]

    def warnings(self, selected: t.Iterable[Server]) -> list[str]:
        """What makes the agent checks of these servers useless, or less than they could be."""
        by_title = {server.title: server for server in self.servers}
        found: dict[str, list[str]] = {}
        for server in selected:
            for problem in _problems(server, by_title):
                found.setdefault(problem, []).append(server.title)
        return [f"{', '.join(titles)}: {problem}." for problem, titles in found.items()]


def parse_socket(answer: str) -> Statistics:
    """Read what the stats socket answers to COMMANDS. Raises FormatError."""
    parts = [part.strip("\n") for part in answer.split("\n\n") if part.strip("\n")]
    begins_well = bool(parts) and (parts[0] + "\n").startswith("Name: HAProxy\n")
    if not begins_well:
        raise FormatError(f"it says {_shown(answer)}")
    if len(parts) != 3 or not answer.endswith("\n\n"):
        raise HalfAnswerError("the answer ends too early")
    info = dict(line.partition(": ")[::2] for line in parts[0].splitlines())
    process = Process(info.get("Version", ""), _number(info.get("Pid", "")), _number(info.get("Uptime_sec", "")))
    return _statistics(process, parts[1] + "\n", _states(parts[2]))


def parse_page(text: str) -> Statistics:
    """Read the CSV page. Raises FormatError."""
    return _statistics(None, text, {})


def _states(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of C(show servers state), by backend and server."""
    lines = text.splitlines()
    if len(lines) < 2 or not lines[1].startswith("# be_id "):
        raise FormatError(f"instead of the states of servers, it says {_shown(text)}")
    names = lines[1].lstrip("# ").split()
    rows = [dict(zip(names, line.split())) for line in lines[2:]]
    return {(row["be_name"], row["srv_name"]): row for row in rows}


def _rows(text: str) -> list[dict[str, str]]:
    if not text.startswith(CSV_START):
        raise FormatError(f"instead of statistics, it says {_shown(text)}")
    try:
        # Not line by line: texts of an agent check have line ends in them.
        rows = [row for row in csv.reader(io.StringIO(text[2:]), strict=True) if row]
    except csv.Error as error:
        raise HalfAnswerError("the statistics end too early") from error
    if not text.endswith("\n") or any(len(row) != len(rows[0]) for row in rows):
        raise HalfAnswerError("the statistics end too early")
    return [dict(zip(rows[0], row)) for row in rows[1:]]


def _statistics(process: Process | None, text: str, states: dict[tuple[str, str], dict[str, str]]) -> Statistics:
    try:
        rows = _rows(text)
        backends = {row["pxname"]: row for row in rows if row["svname"] == "BACKEND"}
        servers = [
            _server(row, backends.get(row["pxname"], {}), states.get((row["pxname"], row["svname"]), {}))
            for row in rows
            # Of listeners and servers, all have a name of their own.
            if row["type"] == "2"
        ]
    except (KeyError, ValueError) as error:
        raise FormatError(f"the statistics are not as expected: {error!r}") from error
    if any(server.backend not in backends for server in servers):
        # The line of a backend comes after those of its servers.
        raise HalfAnswerError("the statistics end too early")
    return Statistics(process, list(backends), servers)


def _server(row: dict[str, str], backend: dict[str, str], state: dict[str, str]) -> Server:
    agent_state = _optional(state.get("srv_agent_state"))
    return Server(
        backend=row["pxname"],
        name=row["svname"],
        address=row.get("addr") or None,
        balance=backend.get("algo") or None,
        backup=row["bck"] == "1",
        status=row["status"],
        admin=_optional(state.get("srv_admin_state")),
        tracks=row["tracked"] or None,
        weight=int(row["weight"]),
        user_weight=_optional(state.get("srv_uweight") or row.get("uweight")),
        configured_weight=_optional(state.get("srv_iweight")),
        sessions=int(row["scur"]),
        queue=int(row["qcur"]),
        last_change=int(row["lastchg"]),
        agent_state=agent_state,
        agent_check=_check(row, "agent_status", "agent_code", "last_agt"),
        health_check=_check(row, "check_status", "check_code", "last_chk"),
    )


def _check(row: dict[str, str], status: str, code: str, text: str) -> dict[str, t.Any] | None:
    """One of a server's two checks; None if it has none, or if it is disabled or paused."""
    if not row[status]:
        return None
    running = row[status].startswith("* ")
    return {
        "result": row[status][2:] if running else row[status],
        "code": _optional(row[code]),
        # While it runs, HAProxy does not say what was told before.
        "text": " ".join(row[text].split()) or None,
        "running": running,
    }


def _problems(server: Server, by_title: t.Mapping[str, Server]) -> t.Iterator[str]:
    if server.tracks:
        checked = _tracked(server, by_title)
        if checked and not _has_agent_check(checked):
            yield f"tracks {checked.title}, which has no agent check that is enabled: no agent can drain it"
        return
    check = server.agent_check
    if check is None:
        if server.agent_state is None:
            yield "has no agent-check on its server line, or it was disabled (disable agent): no agent can drain it"
        elif server.agent_state & CHECK_CONFIGURED:
            yield (
                "the agent check was disabled by hand: no agent can drain it. "
                "Enable it with enable agent on the stats socket"
            )
        else:
            yield "has no agent-check on its server line: no agent can drain it"
        return
    text = check["text"] or ""
    if NO_ANSWER.match(check["result"]):
        why = f"{check['result']}, {text}" if text else check["result"]
        yield (
            f"the agent does not answer ({why}), and HAProxy keeps what it was told last. See that the agent runs, "
            "that agent-port is its port, and that no firewall is between"
        )
    if ANSWER_REFUSED in text:
        yield f"HAProxy does not understand what the agent answers ({text}). See that agent-port is the agent's port"
    if WEIGHT_REFUSED in text:
        yield (
            f"balance {server.balance or 'of this backend'} takes no weight but 0% and 100% from an agent, and HAProxy "
            "ignores what the agent told. Use another algorithm, or hash-type consistent"
        )
    yield from _weight_problems(server)


def _weight_problems(server: Server) -> t.Iterator[str]:
    configured = server.configured_weight
    if configured is None or server.balance == "static-rr":
        return
    if configured == 0:
        yield "the configured weight is 0, and so is each percentage of it: no agent can bring it in"
        return
    # HAProxy rounds down.
    least = -(-100 // configured)
    if configured < LOW_WEIGHT or (server.user_weight == 0 and least > 1):
        yield (
            f"of the configured weight {configured}, less than {least}% is rounded to 0, and then the server gets no "
            "new sessions. Configure weight 100"
        )


def _has_agent_check(server: Server) -> bool:
    if server.agent_state is not None:
        return bool(server.agent_state & CHECK_ENABLED)
    return server.agent_check is not None


def _tracked(server: Server, by_title: t.Mapping[str, Server]) -> Server | None:
    """The one at the end of the chain, which is the one that is checked."""
    seen: set[str] = set()
    current: Server | None = server
    while current and current.tracks and current.title not in seen:
        seen.add(current.title)
        current = by_title.get(current.tracks)
    return current


def _optional(text: str | None) -> int | None:
    return int(text) if text else None


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _listed(names: t.Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "...")
