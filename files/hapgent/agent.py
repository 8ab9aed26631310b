# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent: one thread answers HAProxy's checks, the main thread obeys signals and remembers.

The threads share what is replaced as a whole, the change that is being told, and the peers, which the one that
answers keeps and the others only read. A slow disk therefore never delays a check, and no check ever sees half an
answer.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
import typing as t

from hapgent import ANSWERS_AS, SIGNALS, VERSION, log, memory
from hapgent.peers import Change, Peer, Peers
from hapgent.settings import Settings
from hapgent.state import FAIL, LockedError, State, StateError, StateFile
from hapgent.systemd import Manager

RETRY_SECONDS = 0.1
REMEMBER_SECONDS = 1.0
LOCK_SECONDS = 10.0


class Agent:
    """Answers on a listening socket with the state that a file keeps."""

    def __init__(self, listener: socket.socket, settings: Settings) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._state_file = settings.state_file
        self._manager = Manager()
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        self._accept_problem = ""
        self._memory_problem = ""
        self._counters = dict.fromkeys(("changes", "reloads", "saves", "failed_saves", "failed_accepts"), 0)
        self._state_file_ok = True
        self._last_error: tuple[str, float] | tuple[None, None] = (None, None)
        self._peers = Peers(settings.settle)
        remembered = self._recall()
        self._change = remembered or Change(FAIL, time.time())
        self._load("start")
        if not remembered:  # Then this was no change, and nothing is known to be undone.
            self._change = Change(self._state, self._change.since)
            self._counters["changes"] = 0
        self._remember()

    def run(self) -> None:
        """Answer and obey until SIGTERM or SIGINT. The answers under way are finished."""
        ip, port = self._listener.getsockname()[:2]
        log.info(f"answering {self._state.answer()} on {ip} port {port}")
        # A daemon thread, so that it does not outlive an error in this one: then systemd starts both again.
        answering = threading.Thread(target=self._answer_until_stopped, daemon=True)
        answering.start()
        self._manager.notify("READY=1", self._summary())
        # Not sigtimedwait: when the process was paused for longer than that waits, Python makes up a signal.
        signal.setitimer(signal.ITIMER_REAL, REMEMBER_SECONDS, REMEMBER_SECONDS)
        while not self._stopping:
            number = signal.sigwait(SIGNALS)
            if number != signal.SIGALRM:
                self._obey(number)
            if self._peers.unsaved:
                self._remember()
        answering.join()
        self._remember()

    def status(self) -> bytes:
        """All that is known here, as JSON. Times are in seconds since 1970; may be called by another thread."""
        change, now = self._change, time.monotonic()
        offset = time.time() - now
        ip, port = self._listener.getsockname()[:2]
        last_error, last_error_at = self._last_error
        document = {
            "version": VERSION,
            "answers_as": ANSWERS_AS,
            "pid": os.getpid(),
            "address": ip,
            "port": port,
            "started": offset + self._peers.started,
            "state": change.state.fields(),
            "answer": change.state.answer(),
            "since": change.since,
            "settle": self._peers.settle,
            "state_file": os.path.abspath(self._state_file),
            "state_file_ok": self._state_file_ok,
            "last_error": last_error,
            "last_error_at": last_error_at,
            "counters": {"checks": self._peers.checks, "forgotten_peers": self._peers.forgotten, **self._counters},
            "peers": [self._describe(peer, change, now, offset) for peer in self._peers.all()],
        }
        # A path may be no UTF-8.
        return json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    def _describe(self, peer: Peer, change: Change, now: float, offset: float) -> dict[str, t.Any]:
        return {
            "address": peer.address,
            "first_seen": offset + peer.first_seen,
            "last_seen": offset + peer.last_seen,
            "checks": peer.checks,
            "interval": peer.interval,
            "line": peer.line.decode().rstrip("\n"),
            "has_it": peer.has(change.state),
            "settles_for": peer.settles_for(now) if peer.line != change.line else 0.0,
            "polls": peer.polls(now, self._peers.started),
        }

    @property
    def _state(self) -> State:
        return self._change.state

    def _summary(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(self._change.since))
        return f"STATUS={self._state.answer()} since {since}"

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._manager.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._counters["reloads"] += 1
            self._load("SIGHUP")
            self._manager.notify("READY=1", self._summary())
        elif number == signal.SIGUSR1:
            self._change_and_save("UP", "SIGUSR1")
        elif number == signal.SIGUSR2:
            self._change_and_save("DOWN", "SIGUSR2")
        else:
            self._manager.notify("STOPPING=1")
            self._stopping = True
            os.close(self._wake_write)

    def _load(self, cause: str) -> None:
        try:
            state = StateFile(os.path.realpath(self._state_file)).load()
        except StateError as error:
            self._tell(FAIL, cause, f"{self._state_file}: {error}")
        else:
            self._tell(state, cause)

    def _change_and_save(self, status: str, cause: str) -> None:
        state = self._state.with_status(status)
        path = os.path.realpath(self._state_file)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            StateFile(path).edit(lambda before: (before or state).with_status(status), deadline, overwrite=True)
        except (LockedError, OSError) as error:
            self._counters["failed_saves"] += 1
            problem = error.strerror if isinstance(error, OSError) else error
            self._tell(state, cause, f"not saved, kept in memory only: {path}: {problem}")
        else:
            self._counters["saves"] += 1
            self._tell(state, cause)
        self._manager.notify(self._summary())

    def _tell(self, state: State, cause: str, problem: str = "") -> None:
        """Answer with this state from now on. C(problem) is one with the state file."""
        line = f"{self._state.answer()} -> {state.answer()} ({cause})"
        if problem:
            log.error(f"{line}: {problem}")
            # First: whoever is told that the file is not right is also told why.
            self._last_error = (problem, time.time())
        elif state != self._state:
            log.info(line)
        self._state_file_ok = not problem
        if state != self._state:
            self._counters["changes"] += 1
            self._change = self._change.next(state)
            self._peers.unsaved = True

    def _recall(self) -> Change | None:
        path = memory.path_of(self._state_file)
        if not os.path.lexists(path):
            return None
        try:
            change, peers = memory.load(path, self._peers.settle)
        except memory.MemoryUnusableError as error:
            log.error(f"{path}: {error}: what load balancers were told is not known, and is not undone")
            return None
        for peer in peers:
            self._peers.add(peer)
        return change

    def _remember(self) -> None:
        path = memory.path_of(self._state_file)
        self._peers.unsaved = False
        try:
            memory.save(path, self._change, self._peers)
            self._memory_problem = ""
        except OSError as error:
            self._peers.unsaved = True
            if self._memory_problem != str(error):
                self._memory_problem = str(error)
                log.error(f"{path}: {error.strerror}: a restart will not know what load balancers were told")

    def _answer_until_stopped(self) -> None:
        try:
            waiting = select.poll()
            waiting.register(self._listener, select.POLLIN)
            waiting.register(self._wake_read, select.POLLIN)
            while not self._stopping:
                waiting.poll(self._manager.alive())
                self._answer_one()
        except BaseException as error:
            log.error(f"no longer able to answer, ending: {error!r}")
            os._exit(1)

    def _answer_one(self) -> None:
        try:
            connection, address = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            pass
        except OSError as error:
            self._wait_for_room(error)
        else:
            self._accept_problem = ""
            # An IPv4 address, however this listens.
            self._answer_peer(connection, address[0].removeprefix("::ffff:"))

    def _answer_peer(self, connection: socket.socket, address: str) -> None:
        """Answer and close. Nothing here waits for the peer."""
        change, now = self._change, time.monotonic()
        peer = self._peers.see(address, now)
        line, undo = peer.answer(change, now, self._peers.settle)
        with connection:
            try:
                connection.send(line, socket.MSG_DONTWAIT)
                self._peers.given(peer, line, undo, change)
                connection.shutdown(socket.SHUT_WR)
                # Closing with bytes unread would send a reset, and that ends the retransmission of the answer.
                connection.recv(65536, socket.MSG_DONTWAIT)
            except OSError:
                pass

    def _wait_for_room(self, error: OSError) -> None:
        """Out of descriptors or memory: peers wait in the backlog until there are some."""
        self._counters["failed_accepts"] += 1
        if self._accept_problem != str(error):
            self._accept_problem = str(error)
            log.error(f"cannot accept, trying every {RETRY_SECONDS} s: {error.strerror}")
        time.sleep(RETRY_SECONDS)
