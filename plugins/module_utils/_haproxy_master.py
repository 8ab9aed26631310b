# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Count the sessions in HAProxy's workers from before a reload, over the master socket.

Such a worker serves its sessions until they end. It runs no checks, so it never learns of a drain, and the current
worker does not count its sessions.

Sources: sections 9.4 of HAProxy's management guide, and the output of HAProxy 2.2, 2.6 and 3.0.
"""

from __future__ import annotations

import errno
import re
import typing as t
from collections import Counter

from ._haproxy_client import CommandSocket, SourceError, TransientError
from ._haproxy_stats import FormatError, TruncatedError, parse_stat, unexpected

DEFAULT_MASTER_SOCKET = "/run/haproxy-master.sock"
PROCESSES_START = "#<PID>"
WORKER = re.compile(r"([0-9]{1,10}) +worker ")
SESSION = re.compile(r"0x[0-9a-f]+: .*? be=([^ ]+) srv=([^ ]+) ")
# The answer to a command for a worker that has ended.
ENDED = "Can't find the target"
# With more workers, something else than reloads is wrong.
MAX_OLD = 1000


class Workers(t.NamedTuple):
    """The PIDs of HAProxy's workers, and of those that are from before a reload."""

    current: list[int]
    old: list[int]


def parse_workers(lines: t.Iterable[str]) -> Workers:
    """Parse the answer of the master to C(show proc), line by line. Raises FormatError."""
    rest = iter(lines)
    header = next(rest, "")
    if not header.startswith(PROCESSES_START):
        raise unexpected(header, PROCESSES_START, "its processes")
    workers = Workers([], [])
    by_section = {"# workers\n": workers.current, "# old workers\n": workers.old}
    section: list[int] = []
    for line in rest:
        if line == "\n":
            return workers
        if line.startswith("#"):
            section = by_section.get(line, [])
        # Before HAProxy 2.5, the type is followed by "1" or "[was: 1]".
        elif found := WORKER.match(line):
            section.append(int(found[1]))
        if len(workers.old) > MAX_OLD:
            raise FormatError(f"it reports more than {MAX_OLD} workers from before a reload")
    raise TruncatedError("the list of processes ends too early")


def parse_sessions(header: str, lines: t.Iterable[str]) -> t.Mapping[str, int] | None:
    """Parse the answer of a worker to C(show stat) into sessions by server, as backend/server.

    C(header) is the first line. Returns None if the worker has ended. Raises FormatError.
    """
    if header.startswith(ENDED):
        return None
    servers = parse_stat(header, iter(lines)).servers
    return {server.title: server.sessions + server.queue for server in servers}


def parse_list(lines: t.Iterable[str]) -> t.Mapping[str, int] | None:
    """Parse the answer of a worker to C(show sess) into sessions by server. Otherwise like parse_sessions()."""
    found: Counter[str] = Counter()
    for line in lines:
        if line == "\n":
            return found
        if line.startswith(ENDED):
            return None
        if not line.endswith("\n"):
            break
        session = SESSION.match(line)
        if not session:
            raise unexpected(line, "0x", "its sessions")
        found[f"{session[1]}/{session[2]}"] += 1
    raise TruncatedError("the sessions end too early")


class MasterSocket(CommandSocket):
    """The socket of HAProxy's master process, which forwards commands to all workers."""

    option = "master_socket"
    kind = "master socket"
    origin = "-S on HAProxy's command line"
    level = "operator"

    def old_sessions(self, pid: int, titles: t.Collection[str], deadline: float) -> dict[int, t.Mapping[str, int]]:
        """The sessions in each worker from before a reload, by server.

        C(pid) is the process whose statistics were read before, whose sessions are not counted again. C(titles) are
        the servers to count, as backend/server. Raises SourceError.
        """
        with self.ask("show proc", deadline) as lines:
            workers = parse_workers(lines)
        if pid not in (*workers.current, *workers.old):
            raise TransientError(
                f"{self.shown} is the master socket of another HAProxy, which has no worker with PID {pid}: "
                f"{self.option} must be that of the HAProxy that is queried",
                "settings",
            )
        found = {worker: self._sessions(worker, titles, deadline) for worker in workers.old if worker != pid}
        return {worker: sessions for worker, sessions in found.items() if sessions is not None}

    def _sessions(self, pid: int, titles: t.Collection[str], deadline: float) -> t.Mapping[str, int] | None:
        with self.ask(f"@!{pid} show stat", deadline) as lines:
            rest = iter(lines)
            sessions = parse_sessions(next(rest, ""), rest)
        if sessions is None or all(title in sessions for title in titles):
            return sessions
        # Before HAProxy 2.5, the statistics of such a worker lack its servers. This answer is longer.
        with self.ask(f"@!{pid} show sess", deadline) as lines:
            return parse_list(lines)

    def _silent(self, error: OSError) -> SourceError:
        if error.errno == errno.ENOENT:
            return TransientError(
                f"there is no master socket {self.shown}: {self.option} must be the path set with {self.origin}, such "
                f"as haproxy -W -S {self.shown}",
                "settings",
            )
        return TransientError(
            f"HAProxy's master process does not respond on {self.shown} ({error.strerror or error}), as while it "
            f"reads its configuration. If HAProxy runs without -S {self.shown}, remove this file"
        )

    def _wrong(self, error: FormatError) -> SourceError:
        return SourceError(
            f"{self.shown} is not HAProxy's master socket: {error}. {self.option} must be the path set with "
            f"{self.origin}",
            "settings",
        )
