# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures that start real agents: those that the role ships, on each Python version that this machine has."""

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
MINOR_VERSIONS = range(9, 15)

# Modules there are imported by several test folders.
sys.path.append(str(ROOT / "tests" / "shared"))

import failed_tests  # noqa: E402
from prepared import ZIPAPP, compiled_for  # noqa: E402

pytest_runtest_logreport = failed_tests.pytest_runtest_logreport

# A shell starts background jobs with SIGINT ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests disable Hypothesis' example database, but it still creates its storage folder.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(ROOT / ".cache" / "hypothesis"))


# A test waits this long only if it fails. The disk of a busy machine may not respond for many seconds.
PATIENCE_SECONDS = 60.0


def _find_interpreters() -> dict[str, str]:
    """Map each Python version that the agent supports to one interpreter; the one that runs the tests is first."""
    own = f"3.{sys.version_info.minor}"
    found = {own: os.path.realpath(sys.executable)}
    question = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    for version in (f"3.{minor}" for minor in MINOR_VERSIONS):
        for candidate in _candidates(version) if version not in found else []:
            # Only running it shows whether it works: pyenv puts names on PATH that may not lead to an interpreter.
            answer = subprocess.run(
                [candidate, "-I", "-S", "-c", question], capture_output=True, text=True, check=False
            )
            reported, _space, path = answer.stdout.strip().partition(" ")
            if answer.returncode == 0 and reported == version:
                found[version] = path
                break
    return found


def _candidates(version: str) -> Iterator[str]:
    # pyenv's interpreters are taken from its versions folder because its names on PATH start slowly.
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
# For tests that are slow, or whose outcome does not depend on the Python version.
ONE_INTERPRETER = next(iter(INTERPRETERS.values()))


Eventually = Callable[[Callable[[], bool], "str | Callable[[], str]"], None]
FreePort = Callable[[], int]


def wait_until(condition: Callable[[], bool], expected: str | Callable[[], str]) -> None:
    """Wait until the condition holds. If it never does, fail and report what was expected."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() >= deadline:
            report = expected if isinstance(expected, str) else expected()
            pytest.fail(f"still not true after {PATIENCE_SECONDS:g} s: {report}")
        time.sleep(0.005)


def _reserve_port(ip: str) -> socket.socket:
    """Reserve a free port.

    The system gives the port to no other process. Agents and HAProxy can still bind to it, because they set
    SO_REUSEADDR like this socket, which never listens.
    """
    reservation = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind((ip, 0))
    return reservation


class Agent:
    """A running agent."""

    def __init__(self, process: subprocess.Popen[bytes], state_file: Path, log_file: Path, ip: str, port: int) -> None:
        self.process = process
        self.pid = process.pid
        self.state_file = state_file
        self.ip = ip
        self.port = port
        self._log_file = log_file

    # Act as HAProxy

    def connect(self) -> socket.socket:
        return socket.create_connection((self.ip, self.port), timeout=PATIENCE_SECONDS)

    def ask(self, payload: bytes = b"") -> bytes:
        """Send this payload and return everything that the agent sends."""
        with self.connect() as client:
            client.sendall(payload)
            return self.read_to_end(client)

    @staticmethod
    def read_to_end(client: socket.socket) -> bytes:
        return b"".join(iter(lambda: client.recv(4096), b""))

    @contextlib.contextmanager
    def asked_by(self, clients: int) -> Iterator[list[bytes | OSError]]:
        """Let this many clients poll without a pause. The list collects their answers and errors."""
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
            wait_until(lambda: len(answers) >= clients, "the clients have started polling")
            yield answers
        finally:
            enough.set()
            for thread in threads:
                thread.join()

    # Act as an operator

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def write_state(self, content: bytes) -> None:
        """Replace the state file without signaling the agent."""
        # The previous test may have left a FIFO, a device or a folder at this path.
        if self.state_file.is_dir():
            self.state_file.rmdir()
        # Atomically, like every program that writes a state file, because the agent may read it at any moment.
        new = self.state_file.with_name("new")
        new.write_bytes(content)
        new.replace(self.state_file)

    def reload(self, content: bytes, answer: bytes) -> None:
        """Replace the state file, send HUP, and wait until it is loaded and the agent answers with it."""
        self.write_state(content)
        self.send(signal.SIGHUP)
        self.await_answer(answer)
        # The answer alone shows nothing if the agent has given the same one before. A rejected file is not recorded.
        if answer != b"FAIL\n":
            self.await_loaded()

    # Observe the agent

    def await_answer(self, expected: bytes) -> None:
        answers: list[bytes] = []

        def answered() -> bool:
            self.assert_running()
            answers[:] = [self.ask()]
            return answers == [expected]

        wait_until(answered, lambda: f"answer {expected!r} instead of {answers}; the end of the log: {self.log()[-5:]}")

    def saved(self) -> object:
        """Return the content of the state file."""
        return json.loads(self.state_file.read_bytes())

    def await_saved(self, expected: object) -> None:
        """Wait until this is saved: the agent answers with a new state before it has saved it."""
        wait_until(lambda: self.state_file.exists() and self.saved() == expected, f"saved is {expected}")

    def await_loaded(self) -> None:
        """Wait until the agent has loaded the current state file and recorded that in its memory file."""
        memory = self.state_file.with_name(f"{self.state_file.name}.memory")

        def is_loaded() -> bool:
            now = self.state_file.stat()
            # None if the last file was rejected.
            recorded = json.loads(memory.read_bytes())["state_file"] or []
            return bool(recorded[:2] == [now.st_ino, now.st_ctime_ns])

        wait_until(is_loaded, "the state file is loaded")

    def assert_running(self) -> None:
        if self.process.poll() is not None:
            pytest.fail(f"the agent exited with {self.process.returncode}; its log: {self.log()}")

    def await_exit(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def log(self) -> list[str]:
        return self._log_file.read_text(encoding="utf-8").splitlines()

    def await_log(self, text: str) -> None:
        wait_until(lambda: self._has_logged(text), f"log line with {text!r}")

    def opened(self) -> list[str]:
        """Return what the agent's file descriptors refer to: paths, sockets, pipes."""
        found = []
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            # A client's descriptor may have been closed since the listing.
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(descriptor))
        return found

    def spins(self) -> bool:
        """Return whether the agent uses CPU time although it has nothing to do."""
        seconds = 1.5
        before = self._cpu_seconds()
        time.sleep(seconds)
        return self._cpu_seconds() - before > seconds / 3

    def await_blocked(self, number: signal.Signals) -> None:
        """Wait until the signal no longer kills the process, but stays pending for sigwait."""

        def blocked_or_waited_for() -> bool:
            # The kernel does not report a signal as blocked while sigwait waits for it.
            return bool(self._signals("SigBlk") & 1 << (number - 1)) or self._has_logged("answering")

        wait_until(blocked_or_waited_for, f"{number.name} is blocked")

    def await_signals_taken(self) -> None:
        """Wait until no signal is pending: the kernel may deliver two pending signals in either order."""
        wait_until(lambda: not self._signals("ShdPnd"), "no signal is pending")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process, so that its clients wait in the backlog."""
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
        self.assert_running()
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        mask = next(line.split()[1] for line in status.splitlines() if line.startswith(f"{which}:"))
        return int(mask, 16)

    def _stat(self) -> list[str]:
        """Return the fields of /proc/PID/stat after the second, the process name, which may contain spaces."""
        return Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


class Agents:
    """Starts agents, and kills all of them at the end.

    By default, each is the agent that the role ships, but as a folder, which starts in half the time.
    """

    def __init__(self, folder: Path, program: Path | None = None) -> None:
        self._folder = folder
        self._program = program
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
        """Start an agent with this content in its state file, and wait until it answers and has logged so.

        C(before_exec) is Python code that runs in the same process before it becomes the agent. Set C(logs) to False
        if the log cannot be read here.
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
        command = [python, "-I", "-S", str(self._program or compiled_for(python)), *arguments]
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
                # Nothing is inherited: these tests may run under systemd, whose variables would configure the agent.
                env={
                    "HAPGENT_IP": ip,
                    "HAPGENT_PORT": str(port),
                    "HAPGENT_STATE_FILE": str(state_file),
                    # Without settling, each answer is the bare state.
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
            agent.assert_running()
            try:
                return agent.ask() != b""
            except ConnectionError:
                return False

        wait_until(answers, "the agent answers")


@pytest.fixture(scope="session", params=INTERPRETERS.values(), ids=[f"py{version}" for version in INTERPRETERS])
def python(request: pytest.FixtureRequest) -> str:
    """The path of a Python interpreter; a test that uses it runs once for each version on this machine."""
    path: str = request.param
    return path


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """A function that waits until a condition holds."""
    return wait_until


def free_ports() -> Iterator[FreePort]:
    with contextlib.ExitStack() as reservations:
        yield lambda: reservations.enter_context(_reserve_port("127.0.0.1")).getsockname()[1]


@pytest.fixture
def free_port() -> Iterator[FreePort]:
    """A function that reserves a port of 127.0.0.1 for the duration of the test."""
    yield from free_ports()


@pytest.fixture(scope="session")
def lasting_port() -> Iterator[FreePort]:
    """A function that reserves a port of 127.0.0.1 until all tests are done."""
    yield from free_ports()


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    """Starts agents, which end with the test."""
    starter = Agents(tmp_path)
    yield starter
    starter.end_all()


@pytest.fixture
def zipapps(tmp_path: Path) -> Iterator[Agents]:
    """Starts agents in the form that the role installs, which end with the test."""
    starter = Agents(tmp_path, ZIPAPP)
    yield starter
    starter.end_all()


@pytest.fixture(scope="session")
def agents_in() -> Iterator[Callable[[Path], Agents]]:
    """A function that returns a starter of agents in this folder; they run until all tests are done."""
    with contextlib.ExitStack() as started:

        def start_in(folder: Path) -> Agents:
            starter = Agents(folder)
            started.callback(starter.end_all)
            return starter

        yield start_in


@pytest.fixture(scope="session")
def lasting_agent(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for each Python version, shared by tests that first set the state they need with HUP."""
    starter = Agents(tmp_path_factory.mktemp("lasting"))
    try:
        yield starter.start(python=python)
    finally:
        starter.end_all()


class HangingDisk:
    """Makes one system call of a process hang between hang() and recover()."""

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
    """A function that compiles a library for LD_PRELOAD from C source."""

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
