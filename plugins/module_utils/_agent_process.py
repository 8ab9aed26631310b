# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Find the processes of agents, and determine whether they can be trusted.

Any user can start a process that claims to be an agent. The process itself controls its name, environment and working
folder. Its user comes from the kernel, and its service from systemd or sysvinit. A process is trusted only if it is the
main process of a service, or if it is run by root, by the user who runs this code, or by the owner of the folder of its
state file. The paths that it names are checked before they are opened.
"""

from __future__ import annotations

import collections
import errno
import os
import re
import signal
import stat
import time
import typing as t
import weakref

from . import _systemd, _sysv
from ._printable import printable
from ._systemd import RunCommand, Service, SystemdError

PROCESS_NAME = "hapgent"
DEFAULT_SERVICE = "hapgent"
# The services of all other instances of the role.
PREFIX = f"{DEFAULT_SERVICE}@"
DEFAULT_STATE_FILE = "/etc/hapgent/state.json"
POLL_SECONDS = 0.05
# How often to look at a file that a save may replace at the same time.
ATTEMPTS = 3
# The environment of a process is not larger by default on Linux.
MAX_PROC_BYTES = 8 * 1024 * 1024
MAX_PATH_BYTES = 4096
# Each folder on a path needs a file descriptor.
MAX_FOLDERS = 24
MAX_LINKS = 40
MAX_ERROR_CHARACTERS = 2000
MAX_SHOWN = 20
# The number of processes outside of services. Each needs two file descriptors.
MAX_OTHERS = 128


class InstanceError(Exception):
    """The agent cannot be found, cannot be trusted, or does not respond. The text is printable and gives advice."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text, MAX_ERROR_CHARACTERS))


class EndedError(InstanceError):
    """The agent's process has ended."""


class NotRunningError(InstanceError):
    """The agent does not run. C(state) is the state of its service, '' if it was not queried."""

    def __init__(self, text: str, state: str = "") -> None:
        super().__init__(text)
        self.state = printable(state)


class Process:
    """One process, never another one that gets the same process ID later.

    C(user) and C(group) are the IDs whose rights it has, None if it has the rights of several, as a set-user-ID program
    does.
    """

    def __init__(self, pid: int) -> None:
        """Raises EndedError."""
        self.pid = pid
        try:
            # Files opened relative to this folder belong to this process. They do not exist once it has ended.
            self._folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._ended() from error
        weakref.finalize(self, os.close, self._folder)
        try:
            # Opened now, because a process that has ended has no root folder, and another process may serve its files.
            self._root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
            weakref.finalize(self, os.close, self._root)
        except OSError:
            self._root = -1  # The process belongs to another user, and this one is not root.
        status = self._read("status")
        self.user, self.group = parse_id("Uid", status), parse_id("Gid", status)

    @property
    def name(self) -> str:
        """The name that pkill uses for the process, '' if it has ended."""
        try:
            return os.fsdecode(self._read("comm")).rstrip("\n")
        except InstanceError:
            return ""

    def path(self, variable: str, default: str) -> str:
        """The absolute path in a variable of its environment, '' if the variable is empty. Raises InstanceError."""
        path = parse_environment(self._read("environ")).get(variable, default)
        if not path or path.startswith("/"):
            return os.path.normpath(path) if path else ""
        return os.path.normpath(os.path.join(self._read_link("cwd"), path))

    def variable(self, name: str, default: str) -> str:
        """A variable of the environment with which the process was started. Raises InstanceError."""
        return parse_environment(self._read("environ")).get(name, default)

    def state_file(self) -> str:
        """The path of the state file that the process serves, as seen by the process. Raises InstanceError."""
        return self.path("HAPGENT_STATE_FILE", DEFAULT_STATE_FILE)

    def is_in_container(self) -> bool:
        """Whether the process is in another PID namespace than this one. Raises InstanceError."""
        return self._is_apart("pid")

    def sees_other_files(self) -> bool:
        """Whether a path may refer to another file for the process than it does here. Raises InstanceError."""
        try:
            return self._is_apart("mnt") or not os.path.samestat(os.stat("root", dir_fd=self._folder), os.stat("/"))
        except OSError as error:
            raise self._hidden(error) from error

    def _is_apart(self, namespace: str) -> bool:
        return self._read_link(f"ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}")

    def has_set_user_id(self) -> bool:
        """Whether its program file is set-user-ID or set-group-ID, so that another user may have started it."""
        try:
            return bool(os.stat("exe", dir_fd=self._folder).st_mode & (stat.S_ISUID | stat.S_ISGID))
        except OSError as error:
            raise self._hidden(error) from error

    def has_ended(self) -> bool:
        """Whether the process has ended, which includes zombies, whose parent has not read the exit status yet."""
        try:
            return parse_state(self._read("stat")) in ("Z", "X")
        except InstanceError:
            return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process. Raises InstanceError."""
        try:
            try:
                # A descriptor of /proc/PID also works as a pidfd. Source: pidfd_send_signal(2).
                signal.pidfd_send_signal(self._folder, number)
            except (AttributeError, OSError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENOSYS:
                    raise
                if self.has_ended():
                    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from error
                os.kill(self.pid, number)
        except OSError as error:
            raise InstanceError(
                f"cannot send {number.name} to the agent's process {self.pid}: {error.strerror}"
            ) from error

    def open(self, path: str) -> int:
        """Open a path, as seen by the process, only to inspect it (O_PATH). Raises OSError.

        It is refused if users other than root, the user of the process and the owner of its root folder can write to a
        folder on the path.
        """
        if self._root < 0:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open_within(self._root, path, {0, os.fstat(self._root).st_uid, self.user})

    def status_of(self, path: str) -> os.stat_result:
        """The status of the file at a path, as seen by the process. Raises OSError."""
        descriptor = self.open(path)
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def real_path(self, path: str) -> str:
        """The path of the same file without symbolic links. C(path) is as seen by the process. Raises OSError."""
        for _attempt in range(ATTEMPTS):
            descriptor = self.open(path)
            try:
                found = os.readlink(f"/proc/self/fd/{descriptor}")
                # If a save has just replaced the file, Linux returns a path that ends with " (deleted)".
                if os.fstat(descriptor).st_nlink:
                    return found
            finally:
                os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def serves(self, state_file: str) -> bool:
        """Whether this path, as seen here, is the state file of the process, even if the file does not exist yet."""
        try:
            if self.has_set_user_id():
                return False
            theirs = self.state_file()
            try:
                # A save may replace the file between the two stat calls, so try several times.
                return any(self._is_same(theirs, state_file) for _attempt in range(ATTEMPTS))
            except FileNotFoundError:
                (folder, name), (their_folder, their_name) = os.path.split(state_file), os.path.split(theirs)
                return name == their_name and self._is_same(their_folder, folder)
        except (InstanceError, OSError):
            return False

    def _is_same(self, theirs: str, ours: str) -> bool:
        return os.path.samestat(self.status_of(theirs), os.stat(ours))

    def _read(self, name: str) -> bytes:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
            with open(descriptor, "rb") as file:
                return file.read(MAX_PROC_BYTES)
        except OSError as error:
            raise self._hidden(error) from error

    def _read_link(self, name: str) -> str:
        try:
            return os.readlink(name, dir_fd=self._folder)
        except OSError as error:
            raise self._hidden(error) from error

    def _hidden(self, error: OSError) -> InstanceError:
        """The error to raise if the process cannot be inspected."""
        # All users can read whether a process has ended.
        if error.errno in (errno.ESRCH, errno.ENOENT) or self.has_ended():
            return self._ended()
        return InstanceError(
            f"cannot inspect the agent's process {self.pid} ({error.strerror}): run as root or as its user"
        )

    def _ended(self) -> EndedError:
        return EndedError(f"the agent's process {self.pid} has ended: check that its service is running")


# Contents of /proc


def parse_id(name: str, status: bytes) -> int | None:
    """The ID after C(name), such as V(Uid), in the content of /proc/PID/status, None if its four IDs differ.

    Source: proc_pid_status(5).
    """
    # The process chooses its own name, which comes first and may look like this line. So the last match counts.
    found = re.findall(rb"^%s:\t([0-9]{1,10})\t\1\t\1\t\1$" % name.encode(), status, re.MULTILINE)
    return int(found[-1]) if found else None


def parse_state(fields: bytes) -> str:
    """The state in the content of /proc/PID/stat, such as V(S), '' if there is none. Source: proc_pid_stat(5)."""
    # The process chooses its own name, which is in parentheses and may contain parentheses.
    return os.fsdecode(fields.rpartition(b")")[2].strip()[:1])


def parse_environment(content: bytes) -> dict[str, str]:
    """The variables in the content of /proc/PID/environ."""
    found: dict[str, str] = {}
    for entry in os.fsdecode(content).split("\0"):
        name, is_there, value = entry.partition("=")
        if is_there:
            # If a variable is there twice, the first one counts, as for getenv() in the process.
            found.setdefault(name, value)
    return found


# Paths


def open_within(root: int, path: str, owners: t.Collection[int | None]) -> int:
    """Open a path below C(root) only to inspect it (O_PATH). This does not read, write or wait. Raises OSError.

    Links are followed but never lead out of C(root). The path is refused if users other than C(owners) own a folder on
    it or can write to one.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    opened = [os.dup(root)]
    components = path.split("/")[::-1]
    links = 0
    try:
        while components:
            component = components.pop()
            if component == "..":
                if len(opened) > 1:
                    os.close(opened.pop())
            elif component not in ("", "."):
                _check_folder(opened[-1], owners)
                opened.append(os.open(component, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened[-1]))
                if stat.S_ISLNK(os.fstat(opened[-1]).st_mode):
                    links += 1
                    target = os.readlink("", dir_fd=opened[-1])
                    _close(opened, 1 if target.startswith("/") else len(opened) - 1)
                    components += target.split("/")[::-1]
            if links > MAX_LINKS or len(opened) > MAX_FOLDERS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.dup(opened[-1])
    finally:
        _close(opened, 0)


def _close(descriptors: list[int], keep: int) -> None:
    while len(descriptors) > keep:
        os.close(descriptors.pop())


def _check_folder(folder: int, owners: t.Collection[int | None]) -> None:
    status = os.fstat(folder)
    # In a sticky folder, only the owner of an entry can replace it.
    others = stat.S_IWOTH | (stat.S_IWGRP if status.st_uid == 0 else 0)
    if status.st_uid not in owners or (status.st_mode & others and not status.st_mode & stat.S_ISVTX):
        raise PermissionError(errno.EACCES, "another user can write to a folder on the path")


# Finding them


class Manager(t.Protocol):
    """What manages the services of this host. The modules _systemd and _sysv describe what they return and raise."""

    def is_running(self) -> bool: ...
    def service(self, name: str, run_command: RunCommand, /) -> Service: ...
    def services(self, run_command: RunCommand, /) -> list[Service]: ...
    def environment(self, name: str, run_command: RunCommand, /) -> dict[str, str]: ...
    def mentions(self, name: str, word: str, run_command: RunCommand, /) -> bool: ...
    def with_state_file(self) -> list[str]: ...
    def command(self, action: str, name: str) -> str: ...


def manager() -> Manager | None:
    """Return what manages the services of this host, None if that is unknown, as in a container."""
    managers: tuple[Manager, ...] = (_systemd, _sysv)
    return next((one for one in managers if one.is_running()), None)


def manages(service: str, run_command: RunCommand) -> bool:
    """Return whether a service of this name selects an agent on this host, or should. Otherwise, a state file does.

    An agent without an init script of the role may run on a host that systemd does not manage.
    """
    if _systemd.is_running():
        return True
    return _sysv.is_running() and _sysv.service(service, run_command).exists


def services(run_command: RunCommand) -> dict[str, Process]:
    """Return the services that run an agent as their main process. Raises InstanceError.

    Services of other programs also run as users that could rename a process, such as the manager of each user's own
    services. So unless root or the user who runs this code runs the process, the service must mention the agent.
    """
    managed = manager()
    if not managed:
        return {}
    try:
        named = {service.name: service.main_pid for service in managed.services(run_command) if service.main_pid}
        opened = {name: _agent(pid) for name, pid in named.items()}
        # If the same process ID is still reported for a process that is open, it cannot have been reused.
        found = {name: process for name, process in opened.items() if process is not None}
        return {
            name: process
            for name, process in found.items()
            if managed.service(name, run_command).main_pid == process.pid
            and (process.user in (0, os.geteuid()) or managed.mentions(name, PROCESS_NAME, run_command))
        }
    except SystemdError as error:
        raise InstanceError(str(error)) from error


def all_services(run_command: RunCommand) -> dict[str, Process | None]:
    """Return the services that run an agent or would, by name, with their processes. Raises InstanceError."""
    managed = manager()
    if not managed:
        return {}
    running = services(run_command)
    try:
        exist = [service.name for service in managed.services(run_command) if service.exists]
        loaded = {name: managed.environment(name, run_command) for name in exist if _has_name_of_instance(name)}
    except SystemdError as error:
        raise InstanceError(str(error)) from error
    return {name: running.get(name) for name in service_names(loaded, managed.with_state_file(), running)}


def service_names(
    loaded: t.Mapping[str, t.Container[str]], with_state_file: t.Collection[str], running: t.Collection[str]
) -> list[str]:
    """Return the names of the services that are instances, sorted.

    C(loaded) are services whose names look like those of instances, with the variables that they set,
    C(with_state_file) those whose files set the state file of an agent, and C(running) those that run an agent. Another
    service than the default one is an instance only if it sets a state file or runs an agent: it may be that of
    another program, and must not be taken for one that serves the file of the default instance.
    """
    stopped = [name for name, sets in loaded.items() if name == DEFAULT_SERVICE or "HAPGENT_STATE_FILE" in sets]
    # A name that ends with @ is that of a template, which is no service.
    return sorted(name for name in {*running, *stopped, *with_state_file} if not name.endswith("@"))


def _has_name_of_instance(name: str) -> bool:
    return name == DEFAULT_SERVICE or name.startswith(PREFIX)


def others(known: t.Collection[int]) -> tuple[list[Process], int]:
    """Return the other processes that claim to be agents, up to MAX_OTHERS, and how many more there are.

    Any user can start many of them. So processes of root come first, then those of the user who runs this code, and
    then the processes of all other users in turn.
    """
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in known]
    users: dict[int, int | None] = {}
    for pid in sorted(pids):
        process = _agent(pid)
        if process is not None:
            users[pid] = process.user
    counted: collections.Counter[int | None] = collections.Counter()
    ranks = {}
    for pid, user in users.items():
        ranks[pid] = (user != 0, user != os.geteuid(), counted[user])
        counted[user] += 1
    first = sorted(ranks, key=lambda pid: ranks[pid])[:MAX_OTHERS]
    found = [process for process in map(_agent, first) if process is not None]
    return found, len(users) - len(first)


def _agent(pid: int) -> Process | None:
    """The process if it claims to be an agent and has not ended, otherwise None."""
    try:
        process = Process(pid)
    except EndedError:
        return None
    return process if process.name == PROCESS_NAME and not process.has_ended() else None


def distrust(process: Process) -> str:
    """Return why this process, which does not belong to a service, cannot be trusted, '' if it can.

    Raises InstanceError.
    """
    if process.user in (0, os.geteuid()):
        return "another user may have started it" if process.has_set_user_id() else ""
    who = f"user {process.user} runs it, it does not belong to a service"
    try:
        if process.user is None or process.has_set_user_id():
            return "another user may have started it"
        if process.sees_other_files():
            return f"{who}, and it does not see the files of this host"
        folder = process.status_of(os.path.dirname(process.state_file()))
    except EndedError:
        raise
    except (InstanceError, OSError):
        return f"{who}, and the folder of its state file cannot be inspected"
    return "" if folder.st_uid == process.user else f"{who}, and the folder of its state file belongs to another user"


def find_process(service: str | None, state_file: str | None, run_command: RunCommand, deadline: float) -> Process:
    """Return the process of the agent that is selected by service or state file. Raises InstanceError.

    If C(service) is given and exists, this is the main process of the service. If C(state_file) is also given, the
    process must serve it. Otherwise, it is the process that serves the state file.
    """
    managed = manager()
    if service is None or managed is None or (state_file is not None and not manages(service, run_command)):
        if state_file is None:
            raise InstanceError(
                f"service {service} cannot be found because neither systemd nor sysvinit runs this host: set state_file"
            )
        return _by_state_file(state_file, service)
    process = _main_process(managed, service, run_command, deadline)
    if state_file is not None and not process.serves(state_file):
        if process.state_file() == state_file:
            raise InstanceError(
                f"{state_file} of service {service} cannot be inspected: check that it exists, and that its folder "
                "belongs to root or to the user of the service"
            )
        raise InstanceError(
            f"service {service} serves {process.state_file()}, not {state_file}: "
            "set service and state_file of the same agent"
        )
    return process


def find_state_file(service: str, run_command: RunCommand, *, may_be_missing: bool = False) -> str:
    """Return the path of the state file of this service's agent, as seen by the agent. Raises InstanceError.

    If the service does not run, this is the path that its file sets. It is DEFAULT_STATE_FILE if nothing manages the
    services of this host or, with C(may_be_missing), if the default service does not exist yet.
    """
    managed = manager()
    if not managed:
        return DEFAULT_STATE_FILE
    try:
        found = managed.service(service, run_command)
        if not found.exists:
            if may_be_missing and service == DEFAULT_SERVICE:
                return DEFAULT_STATE_FILE
            raise _unknown(service, run_command)
        # While the service starts, its process may not be the agent yet.
        if found.main_pid and found.state != "activating":
            try:
                return _main_process(managed, service, run_command, time.monotonic()).state_file()
            except EndedError:
                pass
        path = managed.environment(service, run_command).get("HAPGENT_STATE_FILE", "")
    except SystemdError as error:
        raise InstanceError(str(error)) from error
    if not path and service != DEFAULT_SERVICE:
        raise InstanceError(
            f"service {service} does not run, and it sets no HAPGENT_STATE_FILE, so it may be that of another program: "
            "set state_file if it is an agent"
        )
    path = path or DEFAULT_STATE_FILE
    if not path.startswith("/"):
        raise InstanceError(f"HAPGENT_STATE_FILE of service {service} must be an absolute path, not {path!r}")
    return os.path.normpath(path)


def _main_process(managed: Manager, service: str, run_command: RunCommand, deadline: float) -> Process:
    while True:
        pid = _main_pid(managed, service, run_command, deadline)
        process = Process(pid)
        # If the same process ID is still reported, it cannot have been reused before the process was opened.
        if _main_pid(managed, service, run_command, deadline) == pid:
            break
    if process.name != PROCESS_NAME:
        raise InstanceError(
            f"the main process {pid} of service {service} must be {PROCESS_NAME}, not {process.name}: "
            "set the agent's service, or make the service start the agent directly"
        )
    return process


def _main_pid(managed: Manager, service: str, run_command: RunCommand, deadline: float) -> int:
    while True:
        try:
            found = managed.service(service, run_command)
        except SystemdError as error:
            raise InstanceError(str(error)) from error
        # The service may be starting or restarting.
        if found.state != "activating" or time.monotonic() + POLL_SECONDS >= deadline:
            break
        time.sleep(POLL_SECONDS)
    if not found.exists:
        raise _unknown(service, run_command)
    if not found.main_pid:
        raise NotRunningError(
            f"service {service} is not running ({found.state}): start it with "
            f"{managed.command('start', service)}, or check {managed.command('status', service)}",
            found.state,
        )
    return found.main_pid


def _unknown(service: str, run_command: RunCommand) -> InstanceError:
    here = sorted(services(run_command))
    listed = ", ".join(here[:MAX_SHOWN]) + (", ..." if len(here) > MAX_SHOWN else "")
    return InstanceError(
        f"there is no service {service}: "
        + (f"the services that run an agent here are {listed}" if here else "no service runs an agent here")
    )


def _by_state_file(state_file: str, service: str | None) -> Process:
    no_agent = "no agent found"
    if service is not None:
        why = f"there is no service {service}"
        if not manager():
            why = f"service {service} was not checked because neither systemd nor sysvinit runs this host"
        no_agent += f" ({why})"
    try:
        owner = _owner(state_file)
    except OSError as error:
        raise InstanceError(f"{no_agent}: {state_file} cannot be inspected ({error.strerror})") from error
    serving = []
    for name in os.listdir("/proc"):
        process = _agent(int(name)) if name.isdigit() else None
        # Processes of other users are not trusted.
        if process is not None and process.user in (0, owner) and process.serves(state_file):
            serving.append(process)
    if not serving:
        raise NotRunningError(
            f"{no_agent}: no {PROCESS_NAME} process of root or of user {owner}, the owner of {state_file}, "
            "has this HAPGENT_STATE_FILE"
        )
    if len(serving) > 1:
        pids = ", ".join(str(process.pid) for process in serving[:MAX_SHOWN])
        raise InstanceError(
            f"several agents serve {state_file} (processes {pids}): use a separate state file for each agent"
        )
    return serving[0]


def _owner(state_file: str) -> int:
    """The user who owns the state file or, if it does not exist, its folder. Raises OSError."""
    try:
        return os.stat(state_file).st_uid
    except FileNotFoundError:
        return os.stat(os.path.dirname(state_file)).st_uid
