# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# The agent ships the same file: standard library only, Python 3.9 and later.

"""The state of a server: its rules, its JSON form, the answer to HAProxy, and the file that stores it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import stat
import time
import typing as t

STATUSES = ("UP", "DOWN", "READY", "DRAIN", "FAIL", "MAINT", "STOPPED")
# HAProxy tracks the administrative state and the health of a server separately. These statuses change only the first,
# all others only the second.
ADMINISTRATIVE = ("READY", "DRAIN", "MAINT")
# The statuses with which HAProxy sends new sessions to a server.
IN_ROTATION = ("UP", "READY")
MAX_BYTES = 64 * 1024
LOCK_POLL_SECONDS = 0.05
# A date and time with its offset from UTC, as in RFC 3339, and the seconds of each unit of a duration.
MOMENT = re.compile(r"2\d{3}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
DURATION = re.compile(r"([1-9]\d{0,5})([smhd])", re.ASCII)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# The keywords that the agent may add to an answer for a while, to reset the previous state.
UNDOING = frozenset({"UP", "READY", "100%"})

Number = t.Optional[int]
Text = t.Optional[str]


class StateError(Exception):
    """The data is not a valid state. The text names the field, its value and the valid values."""


class MissingError(StateError):
    """The file does not exist."""


class LockedError(Exception):
    """The lock cannot be acquired. The text names it, and the processes that hold it if they are visible here."""


class Field(t.NamedTuple):
    """The rules of one field of a state. All programs that handle fields read them from here.

    C(kind) is the name of its type in Ansible, C(limit) the highest number or the maximum length of a text in bytes,
    and C(meaning) what it is. C(prefix) and C(unit) surround its value in the agent's answer; if the prefix is None,
    HAProxy does not receive the field. C(is_note) is whether it explains the status, so that a new status removes it.
    C(is_moment) is whether the text is a moment in UTC. C(choices) are the only valid texts, if there are any.
    """

    kind: str
    limit: int
    meaning: str
    prefix: str | None = None
    unit: str = ""
    is_note: bool = False
    is_moment: bool = False
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The valid numbers, lengths, form or texts, in words."""
        if self.choices:
            return " or ".join(self.choices)
        if self.is_moment:
            return "such as 2026-11-28T06:00:00Z"
        return f"0 to {self.limit}" if self.kind == "int" else f"1 to {self.limit} bytes"


class State(t.NamedTuple):
    """What the agent reports to HAProxy about its server.

    Each field after the status is annotated with its rules. A field that is None is not reported, and HAProxy keeps its
    value. The order is that in the file and in the answer, where the rest of the line after a # is a comment.
    """

    status: str
    weight: t.Annotated[Number, Field("int", 255, "a percentage of the weight configured in HAProxy", "", "%")] = None
    maxconn: t.Annotated[Number, Field("int", 65535, "the maximum number of connections", "maxconn:")] = None
    # HAProxy stores at most 127 bytes. Source: HCHK_DESC_LEN in its source code.
    reason: t.Annotated[Text, Field("str", 120, "text that HAProxy shows", "# ", is_note=True)] = None
    by: t.Annotated[Text, Field("str", 120, "who has set the status", is_note=True)] = None
    until: t.Annotated[
        Text, Field("str", 20, "the moment after which the status is overdue", is_note=True, is_moment=True)
    ] = None
    then: t.Annotated[
        Text, Field("str", 2, "the status that the agent sets at that moment", is_note=True, choices=("UP",))
    ] = None

    def fields(self) -> dict[str, str | int]:
        """The fields that are set, in the order in which they are written to the file."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def with_status(self, status: str) -> State:
        """This state with another status. A new status removes the notes, which explain the previous one."""
        return self if status == self.status else self._replace(status=status, **dict.fromkeys(NOTES))

    def at(self, now: float) -> State:
        """What this state becomes by itself at C(now), in seconds since 1970."""
        if self.then and self.until and self.status != self.then and timestamp(self.until) <= now:
            return self.with_status(self.then)
        return self

    def as_sent(self) -> State:
        """The part of this state that HAProxy receives."""
        nothing: dict[str, t.Any] = dict.fromkeys(UNSENT)
        return self._replace(**nothing)

    def remarks(self) -> str:
        """What HAProxy does not receive, to follow the answer in a message, '' if there is nothing."""
        values = self.fields()
        return "".join(f", {name} {values[name]}" for name in UNSENT if name in values)

    def changes_only_notes(self, before: State) -> bool:
        """Whether this state is C(before) without some notes, or with others that HAProxy does not receive."""
        mine, earlier = self.as_sent().fields(), before.as_sent().fields()
        return mine.items() <= earlier.items() and earlier.keys() - mine.keys() <= {*NOTES}

    def undoing(self, before: State) -> frozenset[str]:
        """The keywords, out of UNDOING, that reset what C(before) did in HAProxy and this state does not reset itself.

        Only READY ends DRAIN and MAINT, only a health keyword ends DOWN, and only N% changes the weight. No keyword
        resets maxconn to the configured value. Source: section 5.2 of HAProxy's configuration manual, and
        src/tcpcheck.c in its source code.
        """
        words = set()
        if self.status not in ADMINISTRATIVE:
            if before.status in ADMINISTRATIVE:
                words.add("READY")
        elif self.status != before.status or (before.reason and not self.reason):
            # HAProxy shows the reason of the last health keyword until the next one.
            words.add("UP")
        if before.weight is not None and self.weight is None:
            words.add("100%")
        return frozenset(words)

    def answer(self, undoing: t.Collection[str] = ()) -> str:
        """The line that HAProxy reads, without its LF.

        It includes those of the keywords C(undoing) that do not conflict with the state. Source: agent-check in
        section 5.2 of HAProxy's configuration manual.
        """
        words = [self.status]
        if self.status in ADMINISTRATIVE:
            # HAProxy shows a reason only if the answer contains a health keyword.
            if self.reason or "UP" in undoing:
                words.append("UP")
        elif "READY" in undoing:
            words.append("READY")
        values = self.fields()
        for name, field in FIELDS.items():
            if name in values and field.prefix is not None:
                words.append(f"{field.prefix}{values[name]}{field.unit}")
            elif name == "weight" and "100%" in undoing:
                words.append("100%")
        return " ".join(words)

    def answers(self) -> set[str]:
        """All lines that may report this state, with and without reset keywords."""
        return {
            self.answer(words) for count in range(len(UNDOING) + 1) for words in itertools.combinations(UNDOING, count)
        }


# The rules of all fields except the status, from the annotations in State.
FIELDS: dict[str, Field] = {
    name: hint.__metadata__[0]
    for name, hint in t.get_type_hints(State, include_extras=True).items()
    if t.get_origin(hint) is t.Annotated
}
NOTES = [name for name, field in FIELDS.items() if field.is_note]
UNSENT = [name for name, field in FIELDS.items() if field.prefix is None]
FAIL = State("FAIL")


def from_fields(fields: dict[str, t.Any]) -> State:
    """The state with these fields. A field that is None counts as absent. Raises StateError."""
    for name in fields:
        if name not in State._fields:
            raise StateError(f"unknown field {_shown(name)}: the fields are {', '.join(State._fields)}")
    status = fields.get("status")
    if status is None:
        raise StateError(f"status is missing: it must be one of {', '.join(STATUSES)}")
    if status not in STATUSES:
        raise StateError(f"status must be one of {', '.join(STATUSES)}, not {_shown(status)}")
    values: dict[str, t.Any] = {name: _checked(name, field, fields.get(name)) for name, field in FIELDS.items()}
    if values["then"] and not values["until"]:
        raise StateError("then requires until: set both, or neither")
    return State(status, **values)


def parse(raw: bytes) -> State:
    """The state in the content of a state file. Raises StateError."""
    try:
        fields = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise StateError(
            f"the content must be one JSON object in UTF-8, but is not UTF-8 at byte {error.start}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise StateError(f"the content must be one JSON object, but is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise StateError(f"the content must be one JSON object, not {_shown(fields)}")
    return from_fields(fields)


def dump(state: State) -> bytes:
    """The content of a state file for this state."""
    return json.dumps(state.fields(), indent=2, ensure_ascii=False).encode() + b"\n"


def moment(text: str, now: float) -> str:
    """The moment that a user gives, in the form that a state has. Raises StateError.

    It is a date and time with its offset from UTC, or a duration from C(now), which is in seconds since 1970.
    """
    duration = DURATION.fullmatch(text)
    try:
        seconds = now + int(duration[1]) * UNITS[duration[2]] if duration else timestamp(text)
    except ValueError as error:
        raise StateError(
            "until must be a date and time with its offset from UTC, such as 2026-11-28T06:00:00Z or "
            f"2026-11-28T07:00:00+01:00, or a duration from now, such as 90m, 2h or 1d, not {_shown(text)}"
        ) from error
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def timestamp(text: str) -> float:
    """A date and time with its offset from UTC, in seconds since 1970. Raises ValueError."""
    from datetime import datetime  # noqa: PLC0415 (the running agent needs it only for a state with a moment)

    if not MOMENT.fullmatch(text):
        raise ValueError("not a date and time with an offset")
    # Python reads Z and fractions of any length only since 3.11.
    return datetime.fromisoformat(re.sub(r"\.\d+", "", text).upper().replace("Z", "+00:00")).timestamp()


class StateFile:
    """The file that stores a state, and the lock that serializes changes to it."""

    def __init__(self, path: str, folder: int | None = None) -> None:
        """C(folder) is the descriptor of an open folder in which C(path) is a plain name.

        If it is None, C(path) is a full path, whose folder must be trusted because links to it are followed. The file
        itself must not be a link.
        """
        self._path = path
        self._folder = folder
        # Identifies the file and the content that was last read or written: if either changes, this changes too.
        self.identity: list[int] | None = None

    def load(self) -> State:
        """The state in the file. Waits only for the disk. Raises StateError, also if the file does not exist."""
        return self._read(self._path, self._folder)

    def edit(
        self, change: t.Callable[[State | None], State], deadline: float, *, overwrite: bool = False
    ) -> tuple[State | None, State]:
        """Change the state under the lock, and return the states before and after the change.

        C(change) receives the state in the file, or None if the file does not exist, and returns the new state or
        raises StateError. The file is written only if the two states differ. With C(overwrite), an invalid file is
        treated as missing. C(deadline), on the monotonic clock, limits the wait for the lock but not for the disk.
        Raises StateError or LockedError if nothing was changed, and OSError if the new state was not stored on the
        disk.
        """
        with self._open_folder() as (name, folder):
            return self._edit(name, folder, change, deadline, overwrite)

    def _edit(
        self, name: str, folder: int, change: t.Callable[[State | None], State], deadline: float, overwrite: bool
    ) -> tuple[State | None, State]:
        with locked(f"{name}.lock", folder, deadline):
            before = None
            try:
                before = self._read(name, folder)
            except MissingError:
                pass
            except StateError:
                if not overwrite:
                    raise
            after = change(before)
            if after != before:
                self.identity = _identity(replace(name, dump(after), f"{name}.tmp", folder))
            return before, after

    def _read(self, name: str, folder: int | None) -> State:
        self.identity = None
        raw, status = read(name, MAX_BYTES, folder)
        self.identity = _identity(status)
        return parse(raw)

    @contextlib.contextmanager
    def _open_folder(self) -> t.Iterator[tuple[str, int]]:
        if self._folder is not None:
            yield self._path, self._folder
            return
        folder = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield os.path.basename(self._path), folder
        finally:
            os.close(folder)


def read(path: str, maximum: int, folder: int | None = None) -> tuple[bytes, os.stat_result]:
    """The content of a regular file of at most C(maximum) bytes, and its status before it was read.

    The last component of the path must not be a link. Waits only for the disk. Raises MissingError if the file does not
    exist, and StateError for all other problems.
    """
    try:
        with _opened(path, os.O_RDONLY | os.O_NOCTTY, folder) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StateError("must be a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                raw = file.read(maximum + 1)
    except FileNotFoundError as error:
        raise MissingError(f"cannot be read ({error.strerror})") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StateError("must be a regular file, not a symbolic link") from error
        raise StateError(f"cannot be read ({error.strerror})") from error
    if len(raw) > maximum:
        raise StateError(f"must not be larger than {maximum} bytes")
    return raw, status


def replace(name: str, content: bytes, temporary: str, folder: int) -> os.stat_result:
    """Replace a file atomically: a reader sees the old or the new content, even after a crash or a power cut.

    C(temporary) is a name in the same folder that only the holder of one lock uses, so that killed saves leave at most
    one such file. The mode and, if permitted, the owner are kept. Returns the status of the new file. Raises OSError.
    """
    _remove(temporary, folder)
    # O_EXCL does not follow symbolic links.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            _keep_owner_and_mode(name, folder, descriptor)
            os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            # Renaming changes the status. By its name, another program's file could be found instead.
            status = os.fstat(descriptor)
    except OSError:
        _remove(temporary, folder)
        raise
    # The rename must survive a power cut too.
    os.fsync(folder)
    return status


def _identity(status: os.stat_result) -> list[int]:
    # Programs can set the modification time of a file (mtime), but not the change time of its inode (ctime).
    return [status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size]


@contextlib.contextmanager
def _opened(path: str, flags: int, folder: int | None, mode: int = 0) -> t.Iterator[int]:
    # O_NONBLOCK: opening must not wait, for example if the path is a FIFO.
    more = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags | more, mode, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(name: str, folder: int, deadline: float) -> t.Iterator[None]:
    """Hold this lock file. Raises LockedError if another process holds it at C(deadline), and OSError.

    Only the owner of the file and root can open it, so that no other user can hold the lock.
    """
    # Not opened for writing, because that would prevent remounting the file system read-only.
    with _opened(name, os.O_RDONLY | os.O_CREAT, folder, 0o600) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            raise LockedError(f"{name} must be a regular file that belongs to user {os.geteuid()} or root")
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockedError(f"{name} is locked by {_holders(status)}") from None
                time.sleep(LOCK_POLL_SECONDS)
        yield


def _holders(lock: os.stat_result) -> str:
    """The processes that hold a lock on this file, as far as they are visible here. Source: proc_locks(5)."""
    file = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            lines = [line.split() for line in locks.read(MAX_BYTES).splitlines()]
    except OSError:
        lines = []
    # A line with an arrow is a process that waits for the lock.
    pids = [words[4] for words in lines if file in words and "->" not in words]
    return " and ".join(f"process {pid} ({_command(pid)})" for pid in pids) or "a process that is not visible here"


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            text = comm.read(64).decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return "unknown command"
    return "".join(character if character.isprintable() else "?" for character in text)


def _remove(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def _keep_owner_and_mode(name: str, folder: int, descriptor: int) -> None:
    try:
        old = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return
    if not stat.S_ISREG(old.st_mode):
        return
    try:
        os.fchown(descriptor, old.st_uid, old.st_gid)
    except OSError:
        pass  # This user may not change the owner, or the owner is unknown in the service's user namespace.
    os.fchmod(descriptor, old.st_mode & 0o777)


def _without_duplicates(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, value in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise StateError(f"field {_shown(twice)} must not occur more than once")
    return fields


def _checked(name: str, field: Field, value: t.Any) -> int | str | None:
    if value is None:
        return None
    if field.kind == "int":
        if _is_whole_number(value, field.limit):
            return int(value)
        raise StateError(f"{name} must be a whole number from {field.range}, not {_shown(value)}")
    if field.choices:
        if value in field.choices:
            return str(value)
        raise StateError(f"{name} must be {field.range}, not {_shown(value)}")
    if field.is_moment:
        if isinstance(value, str) and _is_moment(value):
            return value
        raise StateError(f"{name} must be a moment in UTC, {field.range}, not {_shown(value)}")
    if _is_plain(value, field.limit):
        return str(value)
    raise StateError(
        f"{name} must be text of {field.range} in UTF-8 without control characters and #, not {_shown(value)}"
    )


def _is_whole_number(value: t.Any, limit: int) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value <= limit and value % 1 == 0


def _is_moment(text: str) -> bool:
    """Whether the text is a moment in the only form that a state has, so that equal moments are equal texts."""
    try:
        return moment(text, 0) == text
    except StateError:
        return False


def _is_plain(value: t.Any, limit: int) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        length = len(value.encode("utf-8"))
    except UnicodeEncodeError:  # Half of a surrogate pair, which JSON can represent.
        return False
    return length <= limit and not any(
        character == "#" or character < " " or "\x7f" <= character <= "\x9f" for character in value
    )


def _shown(value: t.Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "nested too deeply"
    return text if len(text) <= 64 else text[:61] + "..."
