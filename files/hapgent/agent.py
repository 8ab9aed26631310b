# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent: its threads, and what each of them does.

The main thread handles signals, the second answers HAProxy's checks, and the third (the keeper) writes to the disk.
They share two objects: the current change, which is only ever replaced as a whole, and the peers, which only the
answering thread modifies while it runs. So a disk that hangs delays neither checks nor signals, and no check ever
receives half an answer.
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

from hapgent import ANSWERS_AS, SIGNALS, VERSION, log
from hapgent.keeper import Keeper
from hapgent.peers import Change, Peer, Peers
from hapgent.settings import Settings
from hapgent.status_socket import StatusSocket
from hapgent.systemd import Manager

RETRY_SECONDS = 0.1
TICK_SECONDS = 1.0
# How long SIGTERM waits for the lock of the state file, and for the disk. If the memory is not saved in this time, the
# next agent treats what this one sent as uncertain, and resets it.
LOCK_SECONDS, END_SECONDS = 0.4, 0.8


class Agent:
    """Answers checks on a listening socket with the state that is stored in a file."""

    def __init__(self, listener: socket.socket, settings: Settings, status_socket: StatusSocket | None = None) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._status_socket = status_socket
        self._manager = Manager()
        self._peers = Peers(settings.settle, settings.ramp)
        self._keeper = Keeper(settings.state_file, self._peers, self._manager)
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        self._accept_problem = ""
        self._failed_accepts = 0
        # What peers send is read into this one buffer, so that they cannot fragment the agent's memory.
        self._ignored = bytearray(65536)

    def run(self) -> None:
        """Answer checks and handle signals until SIGTERM or SIGINT. Answers in progress are finished."""
        # Daemon threads do not outlive an error in this thread, so that systemd restarts the whole agent.
        keeping = threading.Thread(target=self._keep, daemon=True)
        keeping.start()
        # Not sigtimedwait, because Python returns a wrong signal if the process was paused for longer than the timeout.
        signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
        while (number := signal.sigwait(SIGNALS)) not in (signal.SIGTERM, signal.SIGINT):
            if number == signal.SIGALRM:
                self._keeper.tick()
            else:
                self._keeper.obey(number)
        # SIGINT is delivered before pending signals with higher numbers, even if they were sent earlier.
        for number in signal.sigpending() & {signal.SIGUSR1, signal.SIGUSR2}:
            self._keeper.obey(number)
        self._stopping = True
        os.close(self._wake_write)
        self._keeper.stop(time.monotonic() + LOCK_SECONDS)
        keeping.join(END_SECONDS)
        if keeping.is_alive():
            # The disk hangs, and a thread that waits for it cannot be ended in any other way.
            os._exit(0)

    def status(self) -> bytes:
        """The complete status as JSON, with times in seconds since 1970. May be called from another thread."""
        change, now = self._keeper.change, time.monotonic()
        offset = time.time() - now
        ip, port = self._listener.getsockname()[:2]
        last_error, last_error_at = self._keeper.last_error
        ramp_ends = change.entered + self._peers.ramp.climbs_for
        ramps = now < ramp_ends
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
            "ramp_weight": change.sent(self._peers.ramp, now)[0].weight if ramps else None,
            "ramp_ends": offset + ramp_ends if ramps else None,
            "settle": self._peers.settle,
            "state_file": os.path.abspath(self._keeper.state_file),
            "state_file_ok": self._keeper.state_file_ok,
            "last_error": last_error,
            "last_error_at": last_error_at,
            "counters": {
                "checks": self._peers.checks,
                "forgotten_peers": self._peers.forgotten,
                "failed_accepts": self._failed_accepts,
                **self._keeper.counters,
            },
            "peers": [self._describe(peer, change, now, offset) for peer in self._peers.all()],
        }
        # A path may not be valid UTF-8.
        return json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    def _describe(self, peer: Peer, change: Change, now: float, offset: float) -> dict[str, t.Any]:
        return {
            "address": peer.address,
            "first_seen": offset + peer.first_seen,
            "last_seen": offset + peer.last_seen,
            "checks": peer.checks,
            "interval": peer.interval,
            "line": peer.line.decode().rstrip("\n"),
            "received": peer.has_received(change),
            "settles_for": peer.settles_for(now) if peer.line != change.line else 0.0,
            "polls": peer.polls(now, self._peers.started),
        }

    def _keep(self) -> None:
        try:
            self._keeper.begin()
            answering = threading.Thread(target=self._answer_until_stopped, daemon=True)
            answering.start()
            ip, port = self._listener.getsockname()[:2]
            log.info(f"answering {self._keeper.change.state.answer()} on {ip} port {port}")
            if self._status_socket:
                self._status_socket.serve(self.status)
            self._manager.notify("READY=1", self._keeper.summary())
            while not self._stopping:
                self._keeper.work()
            answering.join()
            if self._status_socket:
                self._status_socket.close()
            self._keeper.end()
        except BaseException as error:
            log.error(f"cannot manage the state any more, exiting: {error!r}")
            os._exit(1)

    def _answer_until_stopped(self) -> None:
        try:
            waiting = select.poll()
            waiting.register(self._listener, select.POLLIN)
            waiting.register(self._wake_read, select.POLLIN)
            while not self._stopping:
                waiting.poll(self._manager.alive())
                self._answer_one()
        except BaseException as error:
            log.error(f"cannot answer any more, exiting: {error!r}")
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
            # A socket that listens on IPv6 reports IPv4 addresses with this prefix.
            self._answer_peer(connection, address[0].removeprefix("::ffff:"))

    def _answer_peer(self, connection: socket.socket, address: str) -> None:
        """Answer the peer and close the connection, without ever waiting for the peer."""
        change, now = self._keeper.change, time.monotonic()
        peer = self._peers.see(address, now)
        answer = peer.answer(change, now, self._peers.settle, self._peers.ramp)
        with connection:
            try:
                connection.send(answer.line, socket.MSG_DONTWAIT)
                self._peers.given(peer, answer, change)
                connection.shutdown(socket.SHUT_WR)
                # Closing with unread bytes would send a reset, which stops the retransmission of the answer.
                connection.recv_into(self._ignored, 0, socket.MSG_DONTWAIT)
            except OSError:
                pass

    def _wait_for_room(self, error: OSError) -> None:
        """Wait because descriptors or memory have run out. Peers wait in the backlog until more are available."""
        self._failed_accepts += 1
        if self._accept_problem != str(error):
            self._accept_problem = str(error)
            self._keeper.note(f"cannot accept connections, retrying every {RETRY_SECONDS} s: {error.strerror}")
        time.sleep(RETRY_SECONDS)
