# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Find problems in task files before they run, because Ansible reads an included file only when it reaches it.

Names of files, roles and handlers that contain variables are not checked, because only a template can resolve them.
"""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.mod_args import ModuleArgsParser
from ansible.playbook.block import Block
from ansible.playbook.handler import Handler
from ansible.playbook.handler_task_include import HandlerTaskInclude
from ansible.playbook.play import Play
from ansible.playbook.role import Role
from ansible.playbook.role.include import RoleInclude
from ansible.playbook.role_include import IncludeRole
from ansible.playbook.task import Task
from ansible.playbook.task_include import TaskInclude
from ansible.release import __version__
from ansible.vars.manager import VariableManager
from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable

BLOCK_PARTS = ("block", "rescue", "always")
FILES = ("include_tasks", "import_tasks")
ROLES = ("include_role", "import_role")
# The classes that Ansible creates for them, as a task and as a handler.
LOADERS = {
    **dict.fromkeys(FILES, (TaskInclude, HandlerTaskInclude)),
    **dict.fromkeys(ROLES, (IncludeRole, IncludeRole)),
}
# Before, Ansible looks for the imported file without the variables that name the file which imports it.
CAN_IMPORT = tuple(map(int, __version__.split(".")[:2])) >= (2, 19)
PARTS_OF_ROLES = ("tasks", "handlers", "vars", "defaults")
MAX_SHOWN = 400
# Bounds the recursion of files that include each other.
MAX_FILES = 200
# Parts of Ansible's errors about what is only known during the run: variables, and the password of a vault.
UNKNOWN_HERE = ("variable in import path", "is undefined", "no vault secrets", "vault password")


class _Reader:
    """Reads task files, and collects their problems, the handlers that they notify, and the handlers that exist."""

    def __init__(self, playbook_dir: str) -> None:
        self.problems: list[str] = []
        self.notified: dict[str, str] = {}
        self.handlers: set[str] = set()
        # Whether there may be handlers that cannot be found here.
        self.is_open = False
        self._loader = DataLoader()
        self._loader.set_basedir(playbook_dir)
        self._seen: set[tuple[str, bool]] = set()

    def read(self, path: str, *, handlers: bool = False) -> None:
        """Read one file and the files that it includes."""
        path = os.path.realpath(path)
        if (path, handlers) in self._seen or len(self._seen) >= MAX_FILES:
            return
        self._seen.add((path, handlers))
        try:
            content = self._loader.load_from_file(path)
        except AnsibleError as error:
            self._note_unless_unknown(path, str(error))
            return
        if content is not None and not isinstance(content, list):
            self._note(path, "it must be a list of tasks")
            return
        for entry in content or []:
            self._entry(path, entry, handlers)

    def _entry(self, path: str, entry: t.Any, handlers: bool) -> None:
        if not isinstance(entry, dict):
            self._note(path, f"{entry!r} must be a task with a module and its options")
            return
        self._notifies(path, entry.get("notify"))
        if any(part in entry for part in BLOCK_PARTS):
            self._block(path, entry, handlers)
            return
        if handlers:
            self._handler(entry)
        try:
            collections = ["hapgent.agent", *(entry.get("collections") or [])]
            action, arguments, _delegate_to = ModuleArgsParser(entry, collections).parse()
        except AnsibleError as error:
            self._note(path, str(error))
            return
        name = str(action).rpartition(".")[2]
        if name == "import_tasks" and not handlers and not CAN_IMPORT:
            self._note(
                path, "before ansible-core 2.19, an included file of tasks cannot import another: use include_tasks"
            )
            return
        if not self._takes(path, LOADERS.get(name, (Task, Handler))[handlers], entry):
            return
        if name in FILES:
            self._file(path, arguments, handlers)
        elif name in ROLES:
            self._role(path, arguments)

    def _block(self, path: str, entry: dict[str, t.Any], handlers: bool) -> None:
        if handlers:
            self._note(path, "a handler must not be a block")
            return
        # The tasks of the block are checked one by one below.
        self._takes(path, Block, {**entry, **{part: [] for part in BLOCK_PARTS if part in entry}})
        for part in BLOCK_PARTS:
            inner = entry.get(part) or []
            if not isinstance(inner, list):
                self._note(path, f"{part} must be a list of tasks")
                continue
            for task in inner:
                self._entry(path, task, handlers)

    def _takes(self, path: str, kind: t.Any, entry: dict[str, t.Any]) -> bool:
        """Whether Ansible accepts all keywords of the entry."""
        try:
            kind.load(dict(entry), loader=self._loader)
        except AnsibleError as error:
            self._note(path, str(error))
            return False
        return True

    def _file(self, path: str, arguments: dict[str, t.Any], handlers: bool) -> None:
        file = arguments.get("file") or arguments.get("_raw_params") or ""
        if not isinstance(file, str) or "{{" in file:
            self.is_open = True
            return
        found = os.path.join(os.path.dirname(path), file)
        if not os.path.exists(found):
            self._note(path, f"it includes {found}, which does not exist")
            return
        self.read(found, handlers=handlers)

    def _role(self, path: str, arguments: dict[str, t.Any]) -> None:
        """Check that Ansible can load a role, and collect the handlers of the role and of its dependencies."""
        name = str(arguments.get("name") or arguments.get("role") or "")
        files = {part: str(arguments[f"{part}_from"]) for part in PARTS_OF_ROLES if arguments.get(f"{part}_from")}
        if any("{{" in text for text in (name, *files.values())):
            self.is_open = True
            return
        play = Play()
        try:
            include = RoleInclude.load(
                name, play=play, variable_manager=VariableManager(loader=self._loader), loader=self._loader
            )
            role = Role.load(include, play, from_files=files, from_include=True, validate=False)
            tasks, handlers = role.compile(play), role.get_handler_blocks(play)
        except AnsibleError as error:
            self._note_unless_unknown(path, f"the role {name}: {error}")
            return
        # Files and roles that its tasks include may add more handlers.
        self.is_open = self.is_open or any(isinstance(task, TaskInclude) for task in _tasks_in(tasks))
        # Ansible adds the handlers of roles that its tasks import to the play.
        for handler in _tasks_in([*handlers, *play.handlers]):
            self.is_open = self.is_open or isinstance(handler, TaskInclude) or "{{" in str(handler.name)
            names = (str(handler.name), handler.get_name(), handler.get_name(include_role_fqcn=False))
            self.handlers.update((*names, *_words(getattr(handler, "listen", None))))
        for task in _tasks_in(tasks):
            self._notifies(path, task.notify)

    def _notifies(self, path: str, notify: t.Any) -> None:
        for name in _words(notify):
            self.notified.setdefault(name, path)

    def _handler(self, entry: dict[str, t.Any]) -> None:
        for name in [*_words(entry.get("name")), *_words(entry.get("listen"))]:
            self.handlers.add(name)
            self.is_open = self.is_open or "{{" in name

    def _note_unless_unknown(self, path: str, problem: str) -> None:
        if any(part in problem.lower() for part in UNKNOWN_HERE):
            self.is_open = True
        else:
            self._note(path, problem)

    def _note(self, path: str, problem: str) -> None:
        # Ansible's messages continue with the position in the file, over several lines.
        self.problems.append(f"{printable(path)}: {printable(problem, MAX_SHOWN).rstrip('.')}")


def _words(value: t.Any) -> list[str]:
    """One string or a list of strings, as a list."""
    return [str(word) for word in (value if isinstance(value, list) else [value]) if word]


def _tasks_in(blocks: t.Iterable[Block]) -> t.Iterator[Task]:
    for block in blocks:
        for part in BLOCK_PARTS:
            for task in getattr(block, part):
                if isinstance(task, Block):
                    yield from _tasks_in([task])
                else:
                    yield task


class Files(t.TypedDict):
    """The absolute path of each file by the name of its variable, '' if it is not set; and what is wrong, or ''."""

    paths: dict[str, str]
    problem: str


def find(given: t.Mapping[str, t.Any], required: str) -> Files:
    """Find the files that these variables name, absolute or relative to the folder in which Ansible runs.

    They are not looked up beside the playbook, which may be in a folder of the collection. C(required) is the variable
    that must not be empty.
    """
    paths = {name: os.path.abspath(str(value)) if value not in ("", None) else "" for name, value in given.items()}
    wrong = [name for name, path in paths.items() if (path or name == required) and not os.path.isfile(path)]
    return {
        "paths": paths,
        "problem": " ".join(
            f"{name} must be the path of a file with tasks, absolute or relative to the folder in which "
            f"ansible-playbook runs, not '{printable(given[name], MAX_SHOWN)}'."
            for name in wrong
        ),
    }


def problems(tasks: t.Iterable[str], handlers: str, playbook_dir: str) -> list[str]:
    """The problems of task files and of a file with handlers, V('') for none. All paths are absolute.

    C(playbook_dir) is the variable of this name, which Ansible uses to find roles.
    """
    reader = _Reader(playbook_dir)
    if handlers:
        reader.read(handlers, handlers=True)
    for path in tasks:
        reader.read(path)
    if not reader.is_open:
        reader.problems += [
            f"{printable(path)}: it notifies {printable(name)}, but no handler has this name: "
            "add one to hapgent_handlers"
            for name, path in reader.notified.items()
            if name not in reader.handlers and "{{" not in name
        ]
    return reader.problems
