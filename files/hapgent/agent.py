# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent: one thread answers HAProxy's checks, the main thread obeys signals.

The threads share one thing, the answer: a bytes object that is replaced as a whole. A slow disk
therefore never delays a check, and no check ever sees half an answer.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time

from hapgent import SIGNALS, log, systemd
from hapgent.state import FAIL, State, StateError, load, save

RETRY_SECONDS = 0.1


class Agent:
    """Answers on a listening socket with the state that a file keeps."""

    def __init__(self, listener: socket.socket, state_file: str) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._state_file = state_file
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        self._accept_problem = ""
        self._set(FAIL)
        self._load("start")

    def run(self) -> None:
        """Answer and obey until SIGTERM or SIGINT. The answers under way are finished."""
        ip, port = self._listener.getsockname()[:2]
        log.info(f"answering {self._state.answer()} on {ip} port {port}")
        # A daemon thread, so that it does not outlive an error in this one: then systemd starts both again.
        answering = threading.Thread(target=self._answer_until_stopped, daemon=True)
        answering.start()
        systemd.notify("READY=1", self._status)
        while not self._stopping:
            self._obey(signal.sigwait(SIGNALS))
        answering.join()

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP:
            systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._load("SIGHUP")
            systemd.notify("READY=1", self._status)
        elif number == signal.SIGUSR1:
            self._change_and_save("UP", "SIGUSR1")
        elif number == signal.SIGUSR2:
            self._change_and_save("DOWN", "SIGUSR2")
        else:
            systemd.notify("STOPPING=1")
            self._stopping = True
            os.close(self._wake_write)

    def _load(self, cause: str) -> None:
        try:
            self._change(load(self._state_file), cause)
        except StateError as error:
            self._change(FAIL, cause, f"{self._state_file}: {error}")

    def _change_and_save(self, status: str, cause: str) -> None:
        state = self._state._replace(status=status)
        path = os.path.realpath(self._state_file)
        try:
            save(path, state, path + ".tmp")
        except OSError as error:
            self._change(state, cause, f"not saved, kept in memory only: {path}: {error.strerror}")
        else:
            self._change(state, cause)
        systemd.notify(self._status)

    def _change(self, state: State, cause: str, problem: str = "") -> None:
        line = f"{self._state.answer()} -> {state.answer()} ({cause})"
        if problem:
            log.error(f"{line}: {problem}")
        elif state != self._state:
            log.info(line)
        if state != self._state:
            self._set(state)

    def _set(self, state: State) -> None:
        self._state = state
        self._answer = state.answer().encode() + b"\n"
        self._status = f"STATUS={state.answer()} since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}"

    def _answer_until_stopped(self) -> None:
        try:
            waiting = select.poll()
            waiting.register(self._listener, select.POLLIN)
            waiting.register(self._wake_read, select.POLLIN)
            while not self._stopping:
                self._answer_one(waiting)
        except BaseException as error:
            log.error(f"no longer able to answer, ending: {error!r}")
            os._exit(1)

    def _answer_one(self, waiting: select.poll) -> None:
        try:
            connection = self._listener.accept()[0]
        except BlockingIOError:
            waiting.poll()
        except ConnectionError:
            pass
        except OSError as error:
            self._wait_for_room(error)
        else:
            self._accept_problem = ""
            self._answer_client(connection)

    def _answer_client(self, connection: socket.socket) -> None:
        """Answer and close. Nothing here waits for the client."""
        with connection:
            try:
                connection.send(self._answer, socket.MSG_DONTWAIT)
                connection.shutdown(socket.SHUT_WR)
                # Closing with bytes unread would send a reset, and that ends the retransmission of the answer.
                connection.recv(65536, socket.MSG_DONTWAIT)
            except OSError:
                pass

    def _wait_for_room(self, error: OSError) -> None:
        """Out of descriptors or memory: clients wait in the backlog until there are some."""
        if self._accept_problem != str(error):
            self._accept_problem = str(error)
            log.error(f"cannot accept, trying every {RETRY_SECONDS} s: {error.strerror}")
        time.sleep(RETRY_SECONDS)
