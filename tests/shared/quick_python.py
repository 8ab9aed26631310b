# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Python interpreter that starts in a tenth of the time, for the hundreds of modules that playbooks run in tests.

Each run is a separate process: a fork of a server that has already imported the standard library. Ansible sends each
module as a zip file that contains only sources, so the server also caches, by content, what it compiles from zip files.
It contains nothing specific to Ansible and so works with every release.
"""

from __future__ import annotations

import hashlib
import importlib
import marshal
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
import zipimport
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The modules of the standard library that Ansible modules need and that take longest to import.
PRELOADED = """
ast base64 bz2 ctypes.util dataclasses datetime email.mime.multipart fcntl getpass glob grp gzip hmac http.client
http.cookiejar inspect ipaddress json locale logging lzma netrc optparse pkgutil platform pwd random runpy selectors
shlex shutil ssl subprocess syslog tarfile tempfile traceback typing unicodedata urllib.request uuid zipfile
"""

# This runs once for each module, so it imports as little as possible.
CLIENT = """#!{python} -IS
import _socket, marshal, os, sys

if sys.argv[1:2] and sys.argv[1].startswith("-"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
connection = _socket.socket(_socket.AF_UNIX)
connection.connect({socket!r})
request = marshal.dumps((sys.argv[1:], dict(os.environ), os.getcwd()))
descriptors = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)]
sent = connection.sendmsg([len(request).to_bytes(4, "big")], rights)
connection.sendall(request)
sys.exit((connection.recv(1) or b"\\1")[0])
"""


@contextmanager
def quick_python(folder: Path) -> Iterator[Path]:
    """Yield the path of the interpreter. It works until the context ends, and keeps its files in this folder."""
    path, program = folder / "server", folder / "python"
    program.write_text(CLIENT.format(python=sys.executable, socket=str(path)), encoding="utf-8")
    program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, __file__, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as server:
        assert server.stdin
        assert server.stdout
        server.stdout.readline()
        try:
            yield program
        finally:
            server.stdin.close()


def _serve(path: Path) -> None:
    """Run what clients send, until standard input closes."""
    for name in PRELOADED.split():
        importlib.import_module(name)
    _keep_compiled(path.with_name("compiled"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection = listener.accept()[0]
        if not os.fork():
            listener.close()
            _answer(connection)
            return
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Run what a client sends in a child process, and answer with its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, descriptors, _flags, _address = socket.recv_fds(connection, 4, 3)
    request = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    child = os.fork()
    if not child:
        connection.close()
        _run(descriptors, *marshal.loads(request))
        return
    for descriptor in descriptors:
        os.close(descriptor)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(bytes([exit_code & 0xFF]))


def _run(descriptors: list[int], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Run the file in the arguments, or standard input if there are none, as Python does."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv, sys.path[0] = arguments or [""], ""
    if arguments:
        runpy.run_path(arguments[0], run_name="__main__")
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(sys.stdin.buffer.read(), "<stdin>", "exec"), main.__dict__)


def _keep_compiled(folder: Path) -> None:
    folder.mkdir()
    compile_source = zipimport._compile_source  # type: ignore[attr-defined]

    def compile_once(path: str, source: bytes) -> types.CodeType:
        # Compiled code contains the path within the zip file, so the path is part of the key.
        kept = folder / hashlib.sha256(path.rpartition(".zip")[2].encode() + b"\0" + source).hexdigest()
        try:
            code: types.CodeType = marshal.loads(kept.read_bytes())
        except FileNotFoundError:
            code = compile_source(path, source)
            new = kept.with_suffix(f".{os.getpid()}")
            new.write_bytes(marshal.dumps(code))
            new.replace(kept)
        return code

    zipimport._compile_source = compile_once  # type: ignore[attr-defined]


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
