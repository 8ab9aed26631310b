# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real agents for the tests: the zipapp that the role ships, on each Python that this machine has."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ZIPAPP = ROOT / "roles" / "hapgent" / "files" / "hapgent.pyz"
MINOR_VERSIONS = range(9, 15)

# For what several folders of tests import.
sys.path.append(str(ROOT / "tests" / "shared"))

# Hypothesis keeps nothing between runs, and yet writes a folder.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(ROOT / ".cache" / "hypothesis"))

# Long enough for a machine that is busy with other things. No test waits that long unless it fails.
PATIENCE_SECONDS = 15.0


def _find_interpreters() -> dict[str, str]:
    """One Python for each version that the agent promises: version to path, the one that runs the tests first."""
    own = f"3.{sys.version_info.minor}"
    found = {own: os.path.realpath(sys.executable)}
    question = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    for version in (f"3.{minor}" for minor in MINOR_VERSIONS):
        for candidate in _candidates(version) if version not in found else []:
            # Whether it runs is only known when it did: pyenv puts names on PATH that lead nowhere.
            answer = subprocess.run(
                [candidate, "-I", "-S", "-c", question], capture_output=True, text=True, check=False
            )
            says, _space, path = answer.stdout.strip().partition(" ")
            if answer.returncode == 0 and says == version:
                found[version] = path
                break
    return found


def _candidates(version: str) -> Iterator[str]:
    # Not by its names on PATH, which are slow.
    yield from map(str, sorted(Path(_pyenv_root(), "versions").glob(f"{version}.*/bin/python3")))
    found = shutil.which(f"python{version}")
    if found:
        yield found


@functools.cache
def _pyenv_root() -> str:
    if not shutil.which("pyenv"):
        return os.devnull
    return subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout.strip()


INTERPRETERS = _find_interpreters()
# For what is slow, or the same on each of them.
ONE_INTERPRETER = next(iter(INTERPRETERS.values()))


Eventually = Callable[[Callable[[], bool], str], None]
FreePort = Callable[[], int]


def wait_until(condition: Callable[[], bool], expected: str) -> None:
    """Wait until the condition holds; fail with what was expected if it does not."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() >= deadline:
            pytest.fail(f"waited {PATIENCE_SECONDS:g} s in vain for this: {expected}")
        time.sleep(0.005)


def _reserve_port(ip: str) -> socket.socket:
    """A free port that nobody else gets. Agent and HAProxy do: all set SO_REUSEADDR, and this socket never listens."""
    reservation = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind((ip, 0))
    return reservation


class Agent:
    """An agent that runs."""

    def __init__(self, process: subprocess.Popen[bytes], state_file: Path, log_file: Path, ip: str, port: int) -> None:
        self.process = process
        self.pid = process.pid
        self.state_file = state_file
        self.ip = ip
        self.port = port
        self._log_file = log_file

    # What HAProxy does

    def connect(self) -> socket.socket:
        return socket.create_connection((self.ip, self.port), timeout=PATIENCE_SECONDS)

    def ask(self, payload: bytes = b"") -> bytes:
        """All that the agent sends to a client that sends this payload."""
        with self.connect() as client:
            client.sendall(payload)
            return self.read_to_end(client)

    @staticmethod
    def read_to_end(client: socket.socket) -> bytes:
        return b"".join(iter(lambda: client.recv(4096), b""))

    @contextlib.contextmanager
    def asked_by(self, clients: int) -> Iterator[list[bytes | OSError]]:
        """Have so many clients ask without a pause. Their answers, and errors, are in the list."""
        answers: list[bytes | OSError] = []
        enough = threading.Event()

        def keep_asking() -> None:
            while not enough.is_set():
                try:
                    answers.append(self.ask())
                except OSError as error:
                    answers.append(error)

        threads = [threading.Thread(target=keep_asking) for _count in range(clients)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(answers) >= clients, "the clients have begun to ask")
            yield answers
        finally:
            enough.set()
            for thread in threads:
                thread.join()

    # What an operator does

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def write_state(self, content: bytes) -> None:
        """Put another state file there, without a word to the agent."""
        # What is there may be a FIFO, a device or a folder, from the test before.
        if self.state_file.is_dir():
            self.state_file.rmdir()
        # At once, like every program that an agent may interrupt with a read.
        new = self.state_file.with_name("new")
        new.write_bytes(content)
        new.replace(self.state_file)

    def reload(self, content: bytes, answer: bytes) -> None:
        """Put another state file there, send HUP, and wait for the answer that it makes."""
        self.write_state(content)
        self.send(signal.SIGHUP)
        self.await_answer(answer)

    # What can be seen of it

    def await_answer(self, expected: bytes) -> None:
        def answered() -> bool:
            self.see_that_it_runs()
            return self.ask() == expected

        wait_until(answered, f"answer {expected!r}")

    def saved(self) -> object:
        """What the state file says."""
        return json.loads(self.state_file.read_bytes())

    def await_saved(self, expected: object) -> None:
        """Wait until this is saved: the answer does not wait for that."""
        wait_until(lambda: self.state_file.exists() and self.saved() == expected, f"saved is {expected}")

    def await_loaded(self) -> None:
        """Wait until it has loaded the state file as it is now, and remembers that."""
        memory = self.state_file.with_name(f"{self.state_file.name}.memory")

        def is_loaded() -> bool:
            now = self.state_file.stat()
            return bool(json.loads(memory.read_bytes())["state_file"][:2] == [now.st_ino, now.st_ctime_ns])

        wait_until(is_loaded, "the state file is loaded")

    def see_that_it_runs(self) -> None:
        if self.process.poll() is not None:
            pytest.fail(f"the agent has ended with {self.process.returncode}; its log: {self.log()}")

    def await_exit(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def log(self) -> list[str]:
        return self._log_file.read_text(encoding="utf-8").splitlines()

    def await_log(self, text: str) -> None:
        wait_until(lambda: self._has_logged(text), f"log line with {text!r}")

    def opened(self) -> list[str]:
        """What its descriptors are: paths, sockets, pipes."""
        found = []
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            # That of a client may be closed by now.
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(descriptor))
        return found

    def spins(self) -> bool:
        """Whether it uses the processor although it has nothing to do."""
        seconds = 1.5
        before = self._cpu_seconds()
        time.sleep(seconds)
        return self._cpu_seconds() - before > seconds / 3

    def await_blocked(self, number: signal.Signals) -> None:
        """Wait until the signal no longer ends the process, but is kept for sigwait."""

        def blocked_or_waited_for() -> bool:
            # The kernel does not count as blocked what sigwait waits for.
            return bool(self._signals("SigBlk") & 1 << (number - 1)) or self._has_logged("answering")

        wait_until(blocked_or_waited_for, f"{number.name} is blocked")

    def await_signals_taken(self) -> None:
        """Of two signals that are pending, the kernel does not say which was sent first."""
        wait_until(lambda: not self._signals("ShdPnd"), "no signal is pending")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process: its clients wait in the backlog meanwhile."""
        self.send(signal.SIGSTOP)
        wait_until(lambda: self._stat()[0] == "T", "the agent has stopped")
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _has_logged(self, text: str) -> bool:
        return any(text in line for line in self.log())

    def _cpu_seconds(self) -> float:
        user, system = self._stat()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _signals(self, which: str) -> int:
        self.see_that_it_runs()
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        mask = next(line.split()[1] for line in status.splitlines() if line.startswith(f"{which}:"))
        return int(mask, 16)

    def _stat(self) -> list[str]:
        """The fields of /proc/PID/stat from the third on: the second, the name, may contain spaces."""
        return Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


class Agents:
    """Starts agents, and ends all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Agent] = []
        self._reservations = contextlib.ExitStack()

    def start(
        self,
        state: bytes | None = b'{"status": "UP"}',
        *,
        python: str = ONE_INTERPRETER,
        arguments: Sequence[str] = (),
        ip: str = "127.0.0.1",
        port: int | None = None,
        state_file: Path | None = None,
        before_exec: str = "",
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
        logs: bool = True,
    ) -> Agent:
        """Start an agent with this content in its state file, and wait until it answers and has logged that.

        C(before_exec) is Python code that runs in the same process before it becomes the agent. C(logs) is whether
        its log can be read here.
        """
        number = len(self._started)
        if state_file is None:
            state_file = self._folder / f"agent{number}" / "state.json"
            state_file.parent.mkdir()
        if state is not None:
            state_file.write_bytes(state)
        if port is None:
            reservation = self._reservations.enter_context(_reserve_port(ip))
            port = reservation.getsockname()[1]
        command = [python, "-I", "-S", str(ZIPAPP), *arguments]
        if before_exec:
            code = f"import os, signal, sys\n{before_exec}\nos.execv(sys.argv[1], sys.argv[1:])"
            command = [ONE_INTERPRETER, "-I", "-S", "-c", code, *command]
        log_file = self._folder / f"agent{number}.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
                # Nothing else: these tests may run under systemd themselves.
                env={
                    "HAPGENT_IP": ip,
                    "HAPGENT_PORT": str(port),
                    "HAPGENT_STATE_FILE": str(state_file),
                    # The answer is then the state alone, at once.
                    "HAPGENT_SETTLE": "0",
                    **(environment or {}),
                },
            )
        agent = Agent(process, state_file, log_file, ip, port)
        self._started.append(agent)
        if wait:
            self._await_start(agent)
            if logs:
                agent.await_log("answering")
        return agent

    def end_all(self) -> None:
        for agent in self._started:
            agent.kill()
        self._reservations.close()

    @staticmethod
    def _await_start(agent: Agent) -> None:
        def answers() -> bool:
            agent.see_that_it_runs()
            try:
                return agent.ask() != b""
            except ConnectionError:
                return False

        wait_until(answers, "the agent answers")


@pytest.fixture(scope="session", params=INTERPRETERS.values(), ids=[f"py{version}" for version in INTERPRETERS])
def python(request: pytest.FixtureRequest) -> str:
    """The path of each Python that this machine has."""
    path: str = request.param
    return path


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Waits until a condition holds."""
    return wait_until


def free_ports() -> Iterator[FreePort]:
    with contextlib.ExitStack() as reservations:
        yield lambda: reservations.enter_context(_reserve_port("127.0.0.1")).getsockname()[1]


@pytest.fixture
def free_port() -> Iterator[FreePort]:
    """Finds a port of 127.0.0.1 that nobody else gets during the test."""
    yield from free_ports()


@pytest.fixture(scope="session")
def lasting_port() -> Iterator[FreePort]:
    """Finds a port of 127.0.0.1 that nobody else gets during all tests."""
    yield from free_ports()


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    """Starts the agents of one test."""
    starter = Agents(tmp_path)
    yield starter
    starter.end_all()


@pytest.fixture(scope="session")
def agents_in() -> Iterator[Callable[[Path], Agents]]:
    """Starts agents that last until the end of all tests, with their files in a folder."""
    with contextlib.ExitStack() as started:

        def start_in(folder: Path) -> Agents:
            starter = Agents(folder)
            started.callback(starter.end_all)
            return starter

        yield start_in


@pytest.fixture(scope="session")
def lasting_agent(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent on each Python, for tests that bring it into a state of their own by HUP."""
    starter = Agents(tmp_path_factory.mktemp("lasting"))
    try:
        yield starter.start(python=python)
    finally:
        starter.end_all()


class HangingDisk:
    """Has one system call of a process hang, from hang() on until recover()."""

    def __init__(self, library: Path, switch: Path) -> None:
        self._library = library
        self._switch = switch

    def environment(self, call: str) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "HANG_CALL": call, "HANG_FILE": str(self._switch)}

    def hang(self) -> None:
        self._switch.touch()

    def recover(self) -> None:
        self._switch.unlink()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a library for LD_PRELOAD from its source in C."""

    def compile_library(source: Path) -> Path:
        path = tmp_path_factory.mktemp("library") / f"{source.stem}.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", path, source, "-ldl"], check=True)
        return path

    return compile_library


@pytest.fixture(scope="session")
def hanging_library(compiled: Callable[[Path], Path]) -> Path:
    return compiled(Path(__file__).with_name("hang.c"))


@pytest.fixture
def disk(hanging_library: Path, tmp_path: Path) -> HangingDisk:
    return HangingDisk(hanging_library, tmp_path / "hangs")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with a certificate for 127.0.0.1 and its key."""
    path = tmp_path_factory.mktemp("tls") / "lb.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lb -addext subjectAltName=IP:127.0.0.1"
    made = subprocess.run([*command.split(), "-keyout", "-", "-out", "-"], capture_output=True, check=True)
    path.write_bytes(made.stdout)
    return path
