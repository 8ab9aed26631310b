# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Python interpreter that starts in a tenth of the time, for the hundreds of programs that tests run.

Each run is a separate process: a fork of a server that has already imported what the programs import. Ansible sends
each module as a zip file that contains only sources, so the server also caches, by content, what it compiles from zip
files. It contains nothing specific to Ansible and so works with every release.

Test hosts run this file as a service. Its argument is the folder for its files, in which the program python is the
interpreter. It ends when its standard input ends.
"""

from __future__ import annotations

import atexit
import functools
import gc
import hashlib
import importlib
import marshal
import os
import runpy
import select
import socket
import subprocess
import sys
import threading
import traceback
import types
import zipimport
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

# The modules of the standard library that Ansible modules need and that take longest to import.
PRELOADED = """
argparse ast base64 bz2 csv ctypes.util dataclasses datetime decimal email.mime.multipart encodings.cp437 encodings.idna
fcntl getpass glob grp gzip hmac http.client http.cookiejar inspect ipaddress json locale logging lzma netrc optparse
pkgutil platform pwd queue random runpy selectors shlex shutil ssl subprocess syslog tarfile tempfile traceback typing
unicodedata urllib.request uuid zipfile
"""

# This runs once for each module, so it imports as little as possible.
CLIENT = """#!{python} -IS
import _socket, marshal, os, sys

if sys.argv[1:2] and sys.argv[1].startswith("-"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
connection = _socket.socket(_socket.AF_UNIX)
try:
    connection.connect({socket!r})
except OSError:
    # A host that has just started does not serve yet, and it serves root only.
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
request = marshal.dumps((sys.argv[1:], dict(os.environ), os.getcwd()))
descriptors = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)]
sent = connection.sendmsg([len(request).to_bytes(4, "big")], rights)
connection.sendall(request)
sys.exit((connection.recv(1) or b"\\1")[0])
"""


@contextmanager
def quick_python(
    folder: Path,
    *,
    python: str = sys.executable,
    preloaded: str = PRELOADED,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """Yield the path of the interpreter. It works until the context ends, and keeps its files in this folder.

    It is this C(python), after it has imported the modules C(preloaded) in this environment. The default is that of the
    tests.
    """
    environment = {name: value for name, value in (environment or os.environ).items() if name != "PYTHONPATH"}
    command = [python, __file__, str(folder), *preloaded.split()]
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as server:
        assert server.stdin
        assert server.stdout
        server.stdout.readline()
        try:
            yield folder / "python"
        finally:
            server.stdin.close()


def _serve(folder: Path, preloaded: list[str]) -> None:
    """Run what clients send, until standard input closes."""
    path, program = folder / "server", folder / "python"
    for name in preloaded:
        importlib.import_module(name)
    _keep_compiled(folder / "compiled")
    # From now on, the garbage collector leaves alone what is imported, so that it stays shared with each process.
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen()
    program.write_text(CLIENT.format(python=sys.executable, socket=str(path)), encoding="utf-8")
    program.chmod(0o755)
    print("ready", flush=True)
    running: dict[int, tuple[int, socket.socket]] = {}
    while sys.stdin not in (ready := select.select([listener, sys.stdin, *running], [], [])[0]):
        if listener in ready:
            connection = listener.accept()[0]
            process = os.fork()
            if not process:
                _run_and_exit(connection)
            running[os.pidfd_open(process)] = process, connection
        for ended in running.keys() & set(ready):
            process, connection = running.pop(ended)
            exit_code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            os.close(ended)
            # The client may have been killed.
            with connection, suppress(OSError):
                connection.sendall(bytes([exit_code & 0xFF]))


def _run_and_exit(connection: socket.socket) -> NoReturn:
    """Run what a client sends, and exit as Python does, but without freeing each object.

    Freeing them takes longer than most programs, because it copies all memory that is shared with the server.
    """
    status = 0
    try:
        _run(connection)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def _run(connection: socket.socket) -> None:
    """Run the file in the arguments, or standard input if there are none, as Python does."""
    with connection:
        size, descriptors, _flags, _address = socket.recv_fds(connection, 4, 3)
        request = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    arguments, environment, folder = marshal.loads(request)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv, sys.path[0] = arguments or [""], ""
    if arguments:
        sys.path[0] = os.path.dirname(os.path.realpath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(sys.stdin.buffer.read(), "<stdin>", "exec"), main.__dict__)


def _keep_compiled(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    compile_source = zipimport._compile_source  # type: ignore[attr-defined]

    # The importer asks for each module twice.
    @functools.cache
    def compile_once(path: str, source: bytes) -> types.CodeType:
        # Compiled code contains the path within the zip file, so the path is part of the key. Test hosts with different
        # versions of Python share a folder.
        key = sys.version + path.rpartition(".zip")[2]
        kept = folder / hashlib.sha256(key.encode() + b"\0" + source).hexdigest()
        try:
            code: types.CodeType = marshal.loads(kept.read_bytes())
        except FileNotFoundError:
            code = compile_source(path, source)
            new = kept.with_suffix(f".{os.uname().nodename}.{os.getpid()}")
            new.write_bytes(marshal.dumps(code))
            new.replace(kept)
        return code

    zipimport._compile_source = compile_once  # type: ignore[attr-defined]


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2:] or PRELOADED.split())
