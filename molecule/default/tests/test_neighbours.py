# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Other users of a host, the agent's own one first: they cannot have root do what they cannot do, nor stop a drain."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from lab import HOSTS, agents, ansible, ask, eventually, module, run

HOST = "hapgent-bookworm"
AGENT_USER, OTHER_USER = "nobody", "www-data"
NESTED = "/var/lib/hapgent/shop/state.json"
SECRET = "only-root-may-read-this"


def as_user(user: str) -> str:
    return f"setpriv --reuid={user} --regid=$(id --group {user}) --clear-groups"


@contextmanager
def meanwhile(user: str, program: str) -> Generator[None]:
    """A user of the host runs a Python program, of half an hour at most."""
    assert run(HOST, f"cat >/var/tmp/neighbour.py <<'END'\n{program}\nEND").returncode == 0
    command = f"{as_user(user)} timeout --foreground 1800 python3 /var/tmp/neighbour.py"
    leader = run(HOST, f"setsid {command} </dev/null >/var/tmp/neighbour.log 2>&1 & echo $!").stdout.strip()
    try:
        # It says so when it has begun.
        assert eventually(lambda: run(HOST, "cat /var/tmp/neighbour.log").stdout, "go\n") == "go\n"
        yield
        assert run(HOST, f"kill -0 {leader}").returncode == 0, run(HOST, "cat /var/tmp/neighbour.log").stdout
    finally:
        run(HOST, f"kill -s KILL -- -{leader}; rm /var/tmp/neighbour.*")


def converge(*words: str) -> tuple[int, str]:
    done = ansible("ansible-playbook", "converge.yml", f"--limit={HOST}", f"--extra-vars={' '.join(words)}")
    return done.returncode, done.stdout


def owners(*paths: str) -> list[str]:
    return run(HOST, f"stat --format='%n %U %a' {' '.join(paths)}").stdout.splitlines()


@pytest.fixture
def _nested() -> Generator[None]:
    """The state file is two folders below root's; and then where it was before."""
    state_file = f"hapgent_state_file={NESTED}"
    assert converge(state_file)[0] == 0
    yield
    run(HOST, "rm -r /var/lib/hapgent")
    assert converge()[0] == 0


@pytest.mark.usefixtures("_nested")
def test_the_agents_user_cannot_replace_the_folder_in_which_root_works() -> None:
    assert owners("/var/lib/hapgent", "/var/lib/hapgent/shop") == [
        "/var/lib/hapgent root 755",
        f"/var/lib/hapgent/shop {AGENT_USER} 755",
    ]
    swap = "cd /var/lib/hapgent && mv shop x && ln -s /etc shop"
    assert run(HOST, f"{as_user(AGENT_USER)} sh -c '{swap}'").returncode != 0

    # As if an administrator had made it so.
    run(HOST, f"chown {AGENT_USER} /var/lib/hapgent")
    assert run(HOST, f"{as_user(AGENT_USER)} sh -c '{swap}'").returncode == 0
    before = run(HOST, "ls -lnR /etc").stdout
    for words in ([], ["hapgent_uninstall=true", "hapgent_uninstall_state_file=true"]):
        rc, output = converge(f"hapgent_state_file={NESTED}", *words)
        assert rc != 0
        assert "changed=0" in output
        assert f"/var/lib/hapgent belongs to {AGENT_USER}" in " ".join(output.split())
    assert run(HOST, "ls -lnR /etc").stdout == before


# In turn, each of the agent's files is missing, a state, a link to a file of root's, a FIFO and a folder.
SWAP = """
import os, time

print("go", flush=True)
folder = "/etc/hapgent/"
while True:
    for name in ("state.json", "state.json.lock", "state.json.tmp", "state.json.memory", "state.json.memory.tmp"):
        for number in range(5):
            new, path = f"{folder}swap{number}", folder + name
            time.sleep(0.001)
            try:
                if number == 0:
                    open(new, "w").write('{"status": "UP"}')
                elif number == 1:
                    os.symlink("/etc/victim", new)
                elif number == 2:
                    os.mkfifo(new)
                elif number == 3:
                    os.mkdir(new)
                    os.unlink(path)
                else:
                    os.rmdir(path)
                    continue
                os.rename(new, path)
            except OSError:
                pass
"""


@pytest.fixture
def _state_folder_as_before() -> Generator[None]:
    yield
    run(HOST, "systemctl stop hapgent.socket hapgent; rm -rf /etc/hapgent /etc/victim")
    assert converge()[0] == 0


@pytest.mark.usefixtures("_state_folder_as_before")
def test_whatever_the_agents_user_puts_in_the_place_of_its_files_root_touches_no_other() -> None:
    run(HOST, f"echo '{SECRET}' >/etc/victim && chmod 0600 /etc/victim")
    before = run(HOST, "stat --format='%i %U %G %a %s %y %z' /etc/victim").stdout
    said = ""
    with meanwhile(AGENT_USER, SWAP):
        said += converge()[1]
        for status in ("DRAIN", "UP", "DRAIN", "UP"):
            said += json.dumps(module(HOST, "hapgent_state", f"status={status} timeout=2"))
        said += converge("hapgent_uninstall=true", "hapgent_uninstall_state_file=true")[1]
    assert run(HOST, "stat --format='%i %U %G %a %s %y %z' /etc/victim").stdout == before
    assert run(HOST, "cat /etc/victim").stdout == f"{SECRET}\n"
    assert SECRET not in said


# Each lock that there ever was, and a process of the agent's name that is none.
HOLD = """
import ctypes, fcntl, os, time

PR_SET_NAME = 15

for path in ("/etc/hapgent", "/etc/hapgent/state.json", "/run/hapgent"):
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
for _number in range(10):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"hapgent")
        time.sleep(1800)
print("go", flush=True)
time.sleep(1800)
"""


def test_another_user_stops_no_drain_and_hides_no_agent() -> None:
    with meanwhile(OTHER_USER, HOLD):
        for status in ("DRAIN", "UP"):
            done = module(HOST, "hapgent_state", f"status={status} timeout=10")
            assert done.get("answer") == status, done
            assert ask(HOSTS[HOST]).split()[0] == status
        assert agents(HOST)["hapgent"]["state"] == {"status": "UP"}
