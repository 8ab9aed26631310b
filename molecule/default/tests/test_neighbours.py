# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Other users of a host, including the agent's own, can neither gain root's privileges nor prevent a drain."""

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
def running_as(user: str, program: str) -> Generator[None]:
    """Run a Python program as a user of the host while the context lasts, for half an hour at most."""
    assert run(HOST, f"cat >/var/tmp/neighbour.py <<'END'\n{program}\nEND").returncode == 0
    command = f"{as_user(user)} timeout --foreground 1800 python3 /var/tmp/neighbour.py"
    leader = run(HOST, f"setsid {command} </dev/null >/var/tmp/neighbour.log 2>&1 & echo $!").stdout.strip()
    try:
        # The program prints this as soon as it has started.
        assert eventually(lambda: run(HOST, "cat /var/tmp/neighbour.log").stdout, "go\n") == "go\n"
        yield
        assert run(HOST, f"kill -0 {leader}").returncode == 0, run(HOST, "cat /var/tmp/neighbour.log").stdout
    finally:
        run(HOST, f"kill -s KILL -- -{leader}; rm /var/tmp/neighbour.*")


def converge(*extra_vars: str) -> tuple[int, str]:
    done = ansible("ansible-playbook", "converge.yml", f"--limit={HOST}", f"--extra-vars={' '.join(extra_vars)}")
    return done.returncode, done.stdout


def owners(*paths: str) -> list[str]:
    return run(HOST, f"stat --format='%n %U %a' {' '.join(paths)}").stdout.splitlines()


@pytest.fixture
def _nested() -> Generator[None]:
    """Move the state file to a folder two levels below root's, and back to its default path after the test."""
    state_file = f"hapgent_state_file={NESTED}"
    assert converge(state_file)[0] == 0
    yield
    run(HOST, "rm -r /var/lib/hapgent")
    assert converge()[0] == 0


@pytest.mark.usefixtures("_nested")
def test_the_agents_user_cannot_replace_a_folder_that_root_works_in() -> None:
    assert owners("/var/lib/hapgent", "/var/lib/hapgent/shop") == [
        "/var/lib/hapgent root 755",
        f"/var/lib/hapgent/shop {AGENT_USER} 755",
    ]
    swap = "cd /var/lib/hapgent && mv shop x && ln -s /etc shop"
    assert run(HOST, f"{as_user(AGENT_USER)} sh -c '{swap}'").returncode != 0

    # An administrator may have changed the owner by mistake.
    run(HOST, f"chown {AGENT_USER} /var/lib/hapgent")
    assert run(HOST, f"{as_user(AGENT_USER)} sh -c '{swap}'").returncode == 0
    before = run(HOST, "ls -lnR /etc").stdout
    for extra_vars in ([], ["hapgent_uninstall=true", "hapgent_uninstall_state_file=true"]):
        rc, output = converge(f"hapgent_state_file={NESTED}", *extra_vars)
        assert rc != 0
        assert "changed=0" in output
        assert "/var/lib/hapgent/shop must not be a symbolic link" in " ".join(output.split())
    assert run(HOST, "ls -lnR /etc").stdout == before


# Replaces each of the agent's files in turn by a state, a link to a file of root, a FIFO, a folder and nothing.
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
def test_root_touches_no_other_file_if_the_agents_user_replaces_its_own() -> None:
    run(HOST, f"echo '{SECRET}' >/etc/victim && chmod 0600 /etc/victim")
    before = run(HOST, "stat --format='%i %U %G %a %s %y %z' /etc/victim").stdout
    output = ""
    with running_as(AGENT_USER, SWAP):
        output += converge()[1]
        for status in ("DRAIN", "UP", "DRAIN", "UP"):
            output += json.dumps(module(HOST, "hapgent_state", f"status={status} timeout=2"))
        output += converge("hapgent_uninstall=true", "hapgent_uninstall_state_file=true")[1]
    assert run(HOST, "stat --format='%i %U %G %a %s %y %z' /etc/victim").stdout == before
    assert run(HOST, "cat /etc/victim").stdout == f"{SECRET}\n"
    assert SECRET not in output


# Holds every lock that any version ever used, and runs processes that have the agent's name but are not agents.
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


def test_another_user_can_neither_prevent_a_drain_nor_hide_an_agent() -> None:
    with running_as(OTHER_USER, HOLD):
        for status in ("DRAIN", "UP"):
            done = module(HOST, "hapgent_state", f"status={status} timeout=10")
            assert done.get("answer") == status, done
            assert ask(HOSTS[HOST]).split()[0] == status
        assert agents(HOST)["hapgent"]["state"] == {"status": "UP"}
