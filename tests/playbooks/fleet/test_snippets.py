# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every code block of the documentation and every C(EXAMPLES) works when it is run as it is written.

test_every_snippet_is_run_by_a_test fails for blocks that no test here runs. NOT_RUN_HERE lists what cannot run in a
unit test, and what runs it instead.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from ansible_collections.hapgent.agent.plugins.module_utils import _who
from ansible_collections.hapgent.agent.plugins.plugin_utils._variables import known

if TYPE_CHECKING:
    from tests.conftest import Agents, Eventually, FreePort
    from tests.playbooks.fleet.conftest import Fleet, Played

DRAINED = {"status": "DRAIN", "reason": "kernel upgrade", "by": _who.current()}

ROOT = Path(__file__).parents[3]
ZIPAPP = ROOT / "roles" / "hapgent" / "files" / "hapgent.pyz"
PROGRAMS = Path(sys.executable).parent
COLLECTIONS = ROOT / ".cache" / "collections"
HAPROXY = ROOT / ".cache" / "haproxy"
RUNNER = ROOT / ".cache" / "runner" / "bin" / "ansible-runner"
OF_COLLECTION = "hapgent.agent."
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/*.md", "roles/*/README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Snippet(NamedTuple):
    """A code block and its position in a document."""

    document: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document}:{self.line}"

    def parsed(self) -> Any:
        return yaml.safe_load(self.text)

    def commands(self) -> list[str]:
        """The commands of a console, without their comments and their output."""
        lines = [line[2:] for line in self.text.splitlines() if line[:2] in ("$ ", "# ")]
        return [re.sub(r"\s+# .*", "", line) for line in lines]


def snippets() -> Iterator[Snippet]:
    for path in sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern)):
        content = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(content):
            line = content.count("\n", 0, match.start()) + 1
            yield Snippet(path.relative_to(ROOT).as_posix(), line, match[1], match[2])


def examples() -> Iterator[Snippet]:
    for path in sorted((ROOT / "plugins").glob("*/*")):
        text = ""
        if path.suffix == ".yml":
            text = yaml.safe_load(path.read_text(encoding="utf-8")).get("EXAMPLES", "")
        elif path.suffix == ".py":
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EXAMPLES":
                    text = ast.literal_eval(node.value)
        if text.strip():
            yield Snippet(path.relative_to(ROOT).as_posix(), 0, "yaml", text)


SNIPPETS = list(snippets())
EXAMPLES = list(examples())


def kind(snippet: Snippet) -> str:
    """The kind of a snippet, which selects the tests that run it, or '' if no test does."""
    if snippet.language in ("haproxy", "bash", "console", "jinja"):
        return snippet.language
    if snippet.language == "yaml":
        content = snippet.parsed()
        if isinstance(content, list):
            return "plays" if {"hosts", "import_playbook"} & set().union(*content) else "tasks"
        if all(name.startswith("hapgent_") for name in content):
            return "variables"
        return "inventory" if all(isinstance(value, dict) for value in content.values()) else ""
    return ""


def of_kind(wanted: str) -> list[Any]:
    found = [snippet for snippet in SNIPPETS if not_run_here(snippet) is None and kind(snippet) == wanted]
    return [pytest.param(snippet, id=snippet.name) for snippet in found]


# A part of a snippet's text, and what runs the snippet instead.
NOT_RUN_HERE = {
    "collections/requirements.yml": "test_collection_builds_and_installs_as_documented, with its own build",
    "execution-environment.yml": "test_execution_environment, which does not build it: that needs a registry",
    "- name: hapgent\n    rules:": "tests/agent/test_status.py: promtool checks the rules and the alerts",
    "hapgent-metrics.service": "tests/agent/test_status.py, and molecule/default on a host with systemd",
    "hapgent-metrics.timer\n[Unit]": "molecule/default, on a host with systemd",
    "demo-web1   demo-web2   demo-web3   requests  failed": "printed by make demo",
    "hapgent@shop: DRAIN (was UP), received by": "tests/agent/test_commands.py",
    "weighing    has failed since": "tests/agent/test_commands.py",
    "* * * * * nobody": "test_documented_cron_jobs_set_a_weight in molecule/default",
    "haproxy.service.d/server-state.conf\n[Service]": "TestServerState in molecule/settling, on hosts with systemd",
    "%deploy ALL =": "nothing: test hosts have no sudo rules of their own",
    "deploy@control1 rolls": "test_a_second_drain_is_refused_while_the_first_goes_on in test_lock.py",
    "10:02:13 web7: DRAIN": "test_each_thing_that_happens_is_one_line in test_releases.py",
    "host  state  since": "test_status_playbook_prints_the_documented_table",
}
# The beginning of a command, and what runs it.
COMMANDS = {
    "ansible-playbook hapgent.agent.": "test_documented_playbook_commands",
    "ansible-playbook agent.yml": "test_quick_start_is_consistent; molecule/role installs and removes the agent",
    "ansible-galaxy collection build": "test_collection_builds_and_installs_as_documented",
    "ansible-galaxy collection install hapgent-agent-": "test_collection_builds_and_installs_as_documented",
    "ansible-galaxy collection install hapgent.agent": "nothing: it needs a published release",
    "ansible-runner run": "test_ansible_runner",
    "echo '{": "test_ansible_runner, test_agent_without_systemd",
    "HAPGENT_STATE_FILE=": "test_agent_without_systemd; tests/agent/test_commands.py",
    "sleep 1; nc": "test_agent_without_systemd",
    "pkill hapgent": "test_agent_without_systemd",
    "hapgent status": "test_hapgent_status_prints_what_is_documented",
    "hapgent drain": "tests/agent/test_commands.py, and molecule/default on a host with systemd",
    "/usr/local/bin/weight": "tests/agent/test_weight.py, with other readings; it is your own command",
    "make ": "test_documented_make_targets_exist; CI runs make test",
    "tests/tools/with-hosts molecule": "what make hosts runs, step by step",
    "systemctl enable --now hapgent-metrics.timer": "molecule/default, on a host with systemd",
    "HAPROXY_PROGRAM=": "tests/agent/test_vtc.py, with the same arguments",
    "export ANSIBLE_STDOUT_CALLBACK=": "test_each_thing_that_happens_is_one_line in test_releases.py",
    "unshare --net": "nothing: it takes minutes, and its figures are meant for people",
}


def not_run_here(snippet: Snippet) -> str | None:
    return next((words for words in NOT_RUN_HERE if words in snippet.text), None)


def command_of(command: str) -> str | None:
    return next((beginning for beginning in COMMANDS if command.startswith(beginning)), None)


def find(words: str) -> Snippet:
    """The only snippet that contains this text."""
    (found,) = [snippet for snippet in SNIPPETS if words in snippet.text]
    return found


def documented_commands(beginning: str) -> list[str]:
    """All commands with this beginning, in their order and without duplicates."""
    consoles = [snippet for snippet in SNIPPETS if snippet.language == "console"]
    return list(
        dict.fromkeys(line for console in consoles for line in console.commands() if line.startswith(beginning))
    )


# Completeness


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.name)
def test_every_snippet_is_run_by_a_test(snippet: Snippet) -> None:
    assert not_run_here(snippet) or kind(snippet), "no test runs this: see kind() and NOT_RUN_HERE"
    if snippet.language == "console":
        assert snippet.commands()
        for command in snippet.commands():
            assert command_of(command), f"no test runs {command!r}: see COMMANDS"


def test_lists_above_have_no_outdated_entries() -> None:
    used = {not_run_here(snippet) for snippet in SNIPPETS}
    assert NOT_RUN_HERE.keys() <= used
    begun = {command_of(line) for snippet in SNIPPETS if snippet.language == "console" for line in snippet.commands()}
    assert begun == COMMANDS.keys()


def test_all_blocks_and_examples_are_found() -> None:
    documents = {snippet.document for snippet in SNIPPETS}
    pages = ("awx", "concepts", "demo", "fleet", "haproxy", "host", "internals", "monitoring", "state")
    assert {"README.md", *(f"docs/{page}.md" for page in pages), "roles/hapgent/README.md"} <= documents
    fences = sum(
        line.lstrip().startswith("```")
        for pattern in DOCUMENTS
        for path in ROOT.glob(pattern)
        for line in path.read_text(encoding="utf-8").splitlines()
    )
    assert fences == 2 * len(SNIPPETS)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "plugins" / "modules").glob("[a-z]*.py")}
    assert modules <= {example.document for example in EXAMPLES}


# Ansible


def supply_files(project: Path) -> None:
    """Create the users' files that snippets refer to."""
    done: dict[str, Any] = {
        "ansible.builtin.copy": {"content": "done", "dest": f"{project}/done.{{{{ inventory_hostname }}}}"}
    }
    for name in ("deploy.yml", "work.yml", "handlers.yml"):
        tasks = [{"name": "Deploy", **done}] if name != "handlers.yml" else []
        (project / name).write_text(json.dumps(tasks), encoding="utf-8")
    # The handler records the state of its host at the time when it runs.
    record_state = {
        "ansible.builtin.shell": f"cat {{{{ hapgent_state_file }}}} >{project}/restarted.{{{{ inventory_hostname }}}}"
    }
    fails: dict[str, Any] = {"ansible.builtin.fail": {}, "when": "inventory_hostname == fails_on | default('')"}
    (project / "inventory").write_text("[web]\nweb1\n[lb]\nlb1\n", encoding="utf-8")
    role = project / "roles" / "shop"
    content: dict[str, list[dict[str, Any]]] = {
        "tasks": [{"name": "Install", **done, "changed_when": True, "notify": "Restart"}, {"name": "Fail", **fails}],
        "handlers": [{"name": "Restart", **record_state}],
    }
    for folder, of_role in content.items():
        (role / folder).mkdir(parents=True)
        (role / folder / "main.yml").write_text(json.dumps(of_role), encoding="utf-8")


def run(
    *arguments: Path | str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program that must succeed."""
    done = subprocess.run(
        arguments,
        cwd=cwd,
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_HOME": str(cwd / ".ansible"),
            **(environment or {}),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    return done


@pytest.mark.parametrize("snippet", of_kind("plays"))
def test_plays_load(tmp_path: Path, snippet: Snippet) -> None:
    """Ansible can load the syntax, the roles, the task files and the modules. Tests below run some of these plays."""
    supply_files(tmp_path)
    (tmp_path / "play.yml").write_text(snippet.text, encoding="utf-8")
    listed = run("ansible-playbook", "-i", "inventory", "--list-tasks", "play.yml", cwd=tmp_path).stdout
    assert "TAGS:" in listed


def tasks_of(snippet: Snippet) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = snippet.parsed()
    return tasks


TASKS = [*EXAMPLES, *(param.values[0] for param in of_kind("tasks"))]


def test_tasks_load(tmp_path: Path) -> None:
    supply_files(tmp_path)
    plays = []
    for snippet in TASKS:
        content = snippet.parsed()
        # The example of a filter may also be variables with expressions.
        part = {"vars": content} if isinstance(content, dict) else {"tasks": content}
        plays.append({"name": snippet.name, "hosts": "web1", **part})
    (tmp_path / "plays.yml").write_text(json.dumps(plays), encoding="utf-8")
    listed = run("ansible-playbook", "-i", "inventory", "--list-tasks", "plays.yml", cwd=tmp_path).stdout
    assert all(snippet.name in listed for snippet in TASKS)


def module_options(module: str) -> set[str]:
    source = ast.parse((ROOT / "plugins" / "modules" / f"{module}.py").read_text(encoding="utf-8"))
    for node in source.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DOCUMENTATION":
            return set(yaml.safe_load(ast.literal_eval(node.value))["options"])
    raise AssertionError(module)


def all_tasks(content: Any) -> Iterator[dict[str, Any]]:
    """Each dictionary in a snippet: all tasks, even in plays and blocks, and other dictionaries."""
    for item in content if isinstance(content, list) else content.values() if isinstance(content, dict) else []:
        if isinstance(item, dict):
            yield item
        yield from all_tasks(item)


def test_options_of_modules_exist() -> None:
    checked = set()
    for snippet in [*TASKS, *(param.values[0] for param in of_kind("plays"))]:
        for task in all_tasks(snippet.parsed()):
            for name, options in task.items():
                if name.startswith(OF_COLLECTION) and isinstance(options, dict):
                    assert options.keys() <= module_options(name.removeprefix(OF_COLLECTION)), snippet.name
                    checked.add(name)
    assert len(checked) >= 3


@pytest.mark.parametrize("snippet", of_kind("variables"))
def test_variables_exist(snippet: Snippet) -> None:
    assert snippet.parsed().keys() <= known()


def test_inventory_loads(tmp_path: Path) -> None:
    """One snippet is the inventory of a fleet, and another adds a load balancer to it."""
    parts = [find(words).text for words in ("    web[1:40]:\n", "    lb3:\n")]
    (tmp_path / "inventory.yml").write_text("".join(parts), encoding="utf-8")
    listed = run("ansible-inventory", "-i", "inventory.yml", "--list", cwd=tmp_path).stdout
    inventory = json.loads(listed)
    assert (len(inventory["web"]["hosts"]), inventory["lb"]["hosts"]) == (40, ["lb1", "lb2", "lb3"])
    variables = inventory["_meta"]["hostvars"]
    named = {name for of_host in variables.values() for name in of_host if name.startswith("hapgent_")}
    assert named <= known()
    assert variables["lb3"]["ansible_connection"] == "local"


def test_quick_start_is_consistent(tmp_path: Path) -> None:
    """The hosts of its play, its inventory and its HAProxy configuration have the same names and addresses."""
    inventory, play, configuration = (
        find(words) for words in ("    web6: {", "# agent.yml\n", " 192.0.2.6:8080 weight")
    )
    assert {snippet.document for snippet in (inventory, play, configuration)} == {"README.md"}
    group = inventory.parsed()["web"]
    assert group["vars"].keys() <= known()
    addresses = {name: variables["ansible_host"] for name, variables in group["hosts"].items()}
    assert addresses == dict(re.findall(r"server (\S+) ([0-9.]+):", configuration.text))
    (tmp_path / "inventory.yml").write_text(inventory.text, encoding="utf-8")
    (tmp_path / "agent.yml").write_text(play.text, encoding="utf-8")
    commands = documented_commands("ansible-playbook agent.yml")
    assert commands
    for command in commands:
        listed = run(*shlex.split(command), "--list-hosts", cwd=tmp_path).stdout
        assert set(re.findall(r"^ {6}(\S+)$", listed, re.MULTILINE)) == addresses.keys()


# Playbooks, on real agents and load balancers


@pytest.fixture
def documented_fleet(fleet: Fleet) -> Fleet:
    """The fleet with web7 instead of web1 and with a user's files; it is smaller because each host costs seconds."""
    group = fleet.inventory["all"]["children"]["web"]
    # Only the host is renamed: its server and its agent keep their names.
    group["hosts"] = {"web7": {**group["hosts"]["web1"], "hapgent_server": "web1"}, "web2": group["hosts"]["web2"]}
    group["vars"]["hapgent_load_balancers"] = "lb1"
    # The machine that runs the tests may need a reboot.
    group["vars"]["hapgent_reboot_command"] = "false"
    supply_files(fleet.project)
    return fleet


def assert_documented_effect(fleet: Fleet, command: str, played: Played) -> None:
    """Check that a command did what the documentation promises."""
    playbook = command.split()[1].removeprefix(OF_COLLECTION)
    up = {"status": "UP"}
    states = fleet.states()
    if playbook == "drain":
        assert states == {"web1": DRAINED, "web2": up, "web3": up}
        fleet.await_statuses(web1="DRAIN (agent)", web2="UP", web3="UP")
    elif playbook in ("undrain", "rolling"):
        assert states == dict.fromkeys(states, up)
        fleet.await_statuses(web1="UP", web2="UP", web3="UP")
    elif playbook == "reboot":
        assert "Hosts to reboot: none." in played.output
        assert states == dict.fromkeys(states, up)
    else:
        assert playbook == "status"
        assert "web7" in played.output
    deployed = sorted(path.name for path in fleet.project.glob("done.*"))
    assert deployed == (["done.web7"] if playbook == "rolling" else [])
    for path in fleet.project.glob("done.*"):
        path.unlink()


def test_documented_playbook_commands(documented_fleet: Fleet) -> None:
    # One host is enough here.
    del documented_fleet.inventory["all"]["children"]["web"]["hosts"]["web2"]
    # Services need systemd: molecule/role drains and undrains them. The fleet has its own inventory, so the
    # documented option is removed.
    documented = [
        command
        for command in documented_commands("ansible-playbook hapgent.agent.")
        if "hapgent_services" not in command
    ]
    commands = list(dict.fromkeys(command.replace(" -i inventory.yml", "") for command in documented))
    assert {command.split()[1].removeprefix(OF_COLLECTION) for command in commands} == {
        *["drain", "undrain", "rolling", "reboot", "status"]
    }
    for command in commands:
        played = documented_fleet.play(*shlex.split(command)[1:])
        assert_documented_effect(documented_fleet, command, played)


OWN_PLAY = "# site.yml\n- hosts: web\n"


def test_own_play_with_the_roles(documented_fleet: Fleet) -> None:
    """Handlers run while their host is drained, and each host returns before the next leaves.

    The play stops at a failure, and a second run continues.
    """
    play = find(OWN_PLAY)
    (documented_fleet.project / "site.yml").write_text(play.text, encoding="utf-8")
    reason = play.parsed()[0]["vars"]["hapgent_reason"]
    out, up = {"status": "DRAIN", "reason": reason, "by": _who.current()}, {"status": "UP"}

    documented_fleet.play("site.yml", variables={"fails_on": "web7"}, succeeds=False)
    assert documented_fleet.states() == {"web1": out, "web2": up, "web3": up}

    played = documented_fleet.play("site.yml")
    assert documented_fleet.states() == dict.fromkeys(("web1", "web2", "web3"), up)
    documented_fleet.await_statuses(web1="UP", web2="UP", web3="UP")
    restarted = {
        path.suffix[1:]: json.loads(path.read_bytes()) for path in documented_fleet.project.glob("restarted.*")
    }
    assert restarted == dict.fromkeys(("web2", "web7"), out)
    # All tasks of the first host run before all tasks of the next.
    acts = [record["host"] for record in played.records if record["host"].startswith("web")]
    assert acts == sorted(acts, reverse=True)
    assert set(acts) == {"web2", "web7"}


def test_examples_of_hapgent_state(fleet: Fleet) -> None:
    (example,) = [example for example in EXAMPLES if example.document.endswith("/hapgent_state.py")]
    tasks = tasks_of(example)
    for task in tasks:
        # Some tasks name their agent; here they must use the only one there is.
        options = task["hapgent.agent.hapgent_state"]
        for name in ("service", "state_file"):
            options.pop(name, None)
    agent = {"state_file": "{{ hapgent_state_file }}", "service": "{{ hapgent_service }}"}
    defaults = {"module_defaults": {"group/hapgent.agent.hapgent": agent}}
    play = {"hosts": "web1", "gather_facts": False, "collections": ["hapgent.agent"], **defaults, "tasks": tasks}
    (fleet.project / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    played = fleet.play("play.yml")
    after = [record["result"]["after"] for record in played.records if "after" in record["result"]]
    assert len(after) == len(tasks)
    reason = "kernel upgrade, ask Ada"
    until = after[2].pop("until")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", until)
    assert after[:6] == [
        {"status": "DRAIN"},
        {"status": "DRAIN", "reason": reason},
        {"status": "DRAIN", "reason": reason, "by": "nightly backup", "then": "UP"},
        {"status": "UP"},
        {"status": "UP", "weight": 50},
        {"status": "UP"},
    ]
    assert fleet.state("web1") == after[-1]


def test_ansible_runner(documented_fleet: Fleet, tmp_path: Path) -> None:
    assert RUNNER.exists(), f"{RUNNER} does not exist: run tests/tools/install"
    folder = tmp_path / "runner"
    for name in ("env", "inventory", "project"):
        (folder / name).mkdir(parents=True)
    (folder / "inventory" / "hosts.json").write_text(json.dumps(documented_fleet.inventory), encoding="utf-8")
    # These are the states after the commands, in their order.
    left = [DRAINED, {"status": "UP"}]
    console = find("$ ansible-runner run")
    for command in console.commands():
        script = command.replace("/srv/runner", str(folder)).replace("ansible-runner ", f"{RUNNER} ")
        run("sh", "-euc", script, cwd=tmp_path)
        if command.startswith("ansible-runner"):
            assert documented_fleet.state("web1") == left.pop(0)
    assert left == []
    assert not (folder / "env" / "cmdline").exists()


# Programs


def shim(folder: Path, name: str, content: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
    (folder / name).chmod(0o755)


def test_agent_without_systemd(tmp_path: Path, free_port: FreePort) -> None:
    """One shell runs all lines. Its pkill finds only its own processes, because other tests run agents too."""
    programs = tmp_path / "bin"
    shim(programs, "pkill", f'#!/bin/sh\nexec {shutil.which("pkill")} --parent $PPID "$@"\n')
    if not shutil.which("nc"):
        connect = "socket.create_connection((sys.argv[2], int(sys.argv[3])), 15)"
        shim(programs, "nc", f"#!{sys.executable}\nimport socket, sys\nprint({connect}.makefile().read(), end='')\n")
    console = find("python3 roles/hapgent/files/hapgent.pyz")
    printed = [line for line in console.text.splitlines() if not line.startswith("$ ")]
    port = str(free_port())
    commands = [line.replace("/tmp/", f"{tmp_path}/").replace("9701", port) for line in console.commands()]
    # The agent needs longer if the machine is busy.
    ready = f"for try in $(seq 300); do nc -d 127.0.0.1 {port} >{tmp_path}/response 2>&1 && break; sleep 0.1; done"
    script = "\n".join([*commands[:2], ready, *commands[2:], "wait"])
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=ROOT,
        env={"PATH": f"{programs}:{os.environ['PATH']}", "HAPGENT_IP": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert done.stdout.splitlines() == printed


def test_signals_do_what_is_documented(agents: Agents, tmp_path: Path, eventually: Eventually) -> None:
    """Each of the two commands has a comment, which begins with the status that it sets."""
    programs = tmp_path / "bin"
    shim(programs, "pkill", f'#!/bin/sh\nexec {shutil.which("pkill")} --parent {os.getpid()} "$@"\n')
    agent = agents.start()
    lines = [line for param in of_kind("bash") for line in param.values[0].text.splitlines()]
    commands = [line.split("# ") for line in lines if not line.startswith("#")]
    assert commands
    for command, comment in commands:
        run("sh", "-euc", command, cwd=tmp_path, environment={"PATH": f"{programs}:{os.environ['PATH']}"})
        status = comment.split(",")[0]
        agent.await_answer(f"{status}\n".encode())
        eventually(lambda: json.loads(agent.state_file.read_bytes())["status"] == status, "the state is saved")  # noqa: B023


def test_hapgent_status_prints_what_is_documented(fleet: Fleet) -> None:
    fleet.set_state("web1", status="DRAIN", reason="release 4.2")
    done = run(sys.executable, "-I", "-S", ZIPAPP, "status", fleet.project.parent / "web1.sock", cwd=fleet.project)

    def shape(text: str) -> list[str]:
        """The names of the facts and the titles of the table."""
        facts, _empty, table = text.partition("\n\n")
        titles = table.splitlines()[0]
        return [*(line[:12] for line in facts.splitlines()), *titles.split("  ")[:1], titles.split()[-1]]

    documented = find("# hapgent status\n").text.partition("\n")[2]
    assert shape(done.stdout) == shape(documented)


def test_status_playbook_prints_the_documented_table(fleet: Fleet) -> None:
    fleet.set_state("web3", status="DRAIN", reason="kernel upgrade", by="ada@control1")
    titles = find("host  state  since").text.splitlines()[0].split()
    played = fleet.play("hapgent.agent.status", "-l", "web")
    printed = [line.strip(' "[],').split() for line in played.output.splitlines()]
    assert titles in printed


def run_haproxy(*arguments: Path | str, cwd: Path) -> str:
    libraries = os.pathsep.join(str(folder) for folder in HAPROXY.glob("usr/lib/*-linux-gnu*"))
    program = HAPROXY / "usr" / "sbin" / "haproxy"
    return run(program, *arguments, cwd=cwd, environment={"LD_LIBRARY_PATH": libraries}).stdout


@pytest.mark.parametrize("snippet", of_kind("haproxy"))
def test_haproxy_accepts_the_configuration(tmp_path: Path, snippet: Snippet) -> None:
    # Complete the snippet with what every configuration has.
    timeouts = "    timeout connect 2s\n    timeout client 30s\n    timeout server 30s\n"
    users = "frontend users\n    bind :8000\n    default_backend web\n"
    config = tmp_path / "haproxy.cfg"
    config.write_text(f"defaults\n    mode http\n{timeouts}{snippet.text}\n{users}", encoding="utf-8")
    assert "agent-check" in snippet.text
    assert "[ALERT]" not in run_haproxy("-c", "-f", config, cwd=tmp_path)


def configure(folder: Path, tasks: list[dict[str, Any]], **variables: Any) -> str:
    """Run tasks on the documented load balancer. Return their output, and leave the first one's file as haproxy.cfg."""
    inventory = find("    web6: {").parsed()
    inventory["web"]["hosts"]["web7"].update(find("# host_vars/web7.yml\n").parsed())
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory["all"]["vars"] = {**local, **variables}
    (folder / "inventory.json").write_text(json.dumps(inventory), encoding="utf-8")
    (folder / "haproxy.cfg.j2").write_text(find("{# haproxy.cfg.j2 #}").text, encoding="utf-8")
    # Nothing on this machine is changed or reloaded.
    tasks[0].pop("notify", None)
    options = next(iter(value for name, value in tasks[0].items() if name.startswith("ansible.builtin.")))
    options["dest"] = str(folder / "haproxy.cfg")
    assert options.pop("validate") == "haproxy -c -f %s"
    play = {"hosts": "lb", "gather_facts": False, "tasks": tasks}
    (folder / "haproxy.yml").write_text(json.dumps([play]), encoding="utf-8")
    return run("ansible-playbook", "-i", "inventory.json", "haproxy.yml", cwd=folder).stdout


def servers_in(config: Path) -> list[str]:
    return [line for line in config.read_text(encoding="utf-8").splitlines() if line.startswith("    server ")]


def documented_template() -> dict[str, Any]:
    """The task that writes HAProxy's configuration. TestServerState in molecule/settling tests what the others do."""
    (play,) = find("# haproxy.yml\n").parsed()
    task: dict[str, Any] = play["tasks"][0]
    return task


def test_documented_play_and_template_write_the_documented_servers(tmp_path: Path) -> None:
    configure(tmp_path, [documented_template()])
    config = tmp_path / "haproxy.cfg"
    assert "[ALERT]" not in run_haproxy("-c", "-f", config, cwd=tmp_path)
    assert find("    server web7 10.0.0.7:").text.splitlines() == ["backend web", *servers_in(config)]
    assert "init-state" not in config.read_text(encoding="utf-8")


def test_documented_template_for_haproxy_3_1(tmp_path: Path) -> None:
    configure(tmp_path, [documented_template()], haproxy_init_state="down")
    lines = (tmp_path / "haproxy.cfg").read_text(encoding="utf-8").splitlines()
    # The HAProxy of the tests is older. Without this line, it accepts the rest.
    lines.remove("    default-server init-state down")
    (tmp_path / "older.cfg").write_text("\n".join([*lines, ""]), encoding="utf-8")
    assert "[ALERT]" not in run_haproxy("-c", "-f", tmp_path / "older.cfg", cwd=tmp_path)


def test_examples_of_haproxy_servers(tmp_path: Path) -> None:
    (example,) = [example for example in EXAMPLES if example.document.endswith("/haproxy_servers.py")]
    output = configure(tmp_path, tasks_of(example), hapgent_instances=[{"name": "shop", "port": 9778}])
    config = tmp_path / "haproxy.cfg"
    assert "[ALERT]" not in run_haproxy("-c", "-f", config, cwd=tmp_path)
    assert len(servers_in(config)) == 2
    assert (
        "server web6 192.0.2.6:8081 check agent-check agent-port 9778 agent-inter 2s weight 100 cookie web6" in output
    )


def test_collection_builds_and_installs_as_documented(tmp_path: Path) -> None:
    """The collection is built in a copy of the tree and installed elsewhere, where ansible-doc finds its modules."""
    checkout, installed = tmp_path / "checkout", tmp_path / "installed"
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=shutil.ignore_patterns(".cache", ".git", "output"))
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(installed)}
    console = find("$ ansible-galaxy collection build")
    for command in console.commands():
        run("sh", "-euc", command, cwd=checkout, environment=environment)
    # The installed collection satisfies the requirement, so nothing is downloaded.
    (tmp_path / "requirements.yml").write_text(find("# collections/requirements.yml").text, encoding="utf-8")
    wanted = ["collection", "install", "--offline", "-r", "requirements.yml"]
    assert "already installed" in run("ansible-galaxy", *wanted, cwd=tmp_path, environment=environment).stdout
    named = re.findall(
        r"`(?:ansible-doc )?(hapgent\.agent\.\w+_\w+)`", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    filters = {"hapgent.agent.haproxy_servers"}
    for plugin_type, names in (("module", {*named} - filters), ("filter", filters)):
        listed = run("ansible-doc", "--json", "-t", plugin_type, *sorted(names), cwd=tmp_path, environment=environment)
        assert json.loads(listed.stdout).keys() == names
    assert filters < {*named}


def test_execution_environment() -> None:
    environment = find("# execution-environment.yml").parsed()
    assert environment["version"] == 3
    assert environment["dependencies"]["galaxy"]["collections"] == [{"name": "hapgent.agent"}]


def test_documented_make_targets_exist(tmp_path: Path) -> None:
    targets = [command.split()[1] for command in documented_commands("make ")]
    assert {"demo", "test", "check"} <= set(targets)
    for target in targets:
        run("make", "--dry-run", "--directory", ROOT, target, cwd=tmp_path)
