# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""What is wrong with files of tasks, found before they run: Ansible reads an included file only when it gets there.

What only a template can say is not looked at: names of files, roles and handlers with variables in them.
"""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.mod_args import ModuleArgsParser
from ansible.playbook.handler import Handler
from ansible.playbook.task import Task
from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable

BLOCK_PARTS = ("block", "rescue", "always")
FILES = ("include_tasks", "import_tasks")
ROLES = ("include_role", "import_role")
MOST_SHOWN = 400
# Files that include each other end here.
MOST_FILES = 200


class _Reader:
    """Reads files of tasks, and notes what is wrong, whom they notify, and which handlers there are."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notified: dict[str, str] = {}
        self.handlers: set[str] = set()
        #: Whether there may be handlers that are not seen here.
        self.is_open = False
        self._loader = DataLoader()
        self._seen: set[tuple[str, bool]] = set()

    def read(self, path: str, *, handlers: bool = False) -> None:
        """Read one file, and those that it includes."""
        path = os.path.realpath(path)
        if (path, handlers) in self._seen or len(self._seen) >= MOST_FILES:
            return
        self._seen.add((path, handlers))
        try:
            content = self._loader.load_from_file(path)
        except AnsibleError as error:
            self._note(path, str(error))
            return
        if content is not None and not isinstance(content, list):
            self._note(path, "it must be a list of tasks")
            return
        for entry in content or []:
            self._entry(path, entry, handlers)

    def _entry(self, path: str, entry: t.Any, handlers: bool) -> None:
        if not isinstance(entry, dict):
            self._note(path, f"{entry!r} must be a task, with a module and its options")
            return
        self._notifies(path, entry.get("notify"))
        if any(part in entry for part in BLOCK_PARTS):
            for part in BLOCK_PARTS:
                inner = entry.get(part)
                for task in inner if isinstance(inner, list) else []:
                    self._entry(path, task, handlers)
            return
        if handlers:
            self._handler(entry)
        try:
            action, arguments, _delegate_to = ModuleArgsParser(task_ds=entry).parse()
        except AnsibleError as error:
            self._note(path, str(error))
            return
        name = str(action).rpartition(".")[2]
        if name in FILES:
            self._file(path, arguments, handlers)
        elif name in ROLES:
            # What a role has in it is not looked at.
            self.is_open = True
        else:
            self._attributes(path, entry, handlers)

    def _attributes(self, path: str, entry: dict[str, t.Any], handlers: bool) -> None:
        """Whether Ansible takes each keyword of a task."""
        try:
            (Handler if handlers else Task).load(dict(entry), loader=self._loader)
        except AnsibleError as error:
            self._note(path, str(error))

    def _file(self, path: str, arguments: dict[str, t.Any], handlers: bool) -> None:
        file = arguments.get("file") or arguments.get("_raw_params") or ""
        if not isinstance(file, str) or "{{" in file:
            self.is_open = True
            return
        found = os.path.join(os.path.dirname(path), file)
        if not os.path.exists(found):
            self._note(path, f"there is no {found}, which it includes")
            return
        self.read(found, handlers=handlers)

    def _notifies(self, path: str, notify: t.Any) -> None:
        for name in notify if isinstance(notify, list) else [notify] if notify else []:
            self.notified.setdefault(str(name), path)

    def _handler(self, entry: dict[str, t.Any]) -> None:
        listen = entry.get("listen") or []
        for name in [entry.get("name"), *(listen if isinstance(listen, list) else [listen])]:
            if name:
                self.handlers.add(str(name))
                self.is_open = self.is_open or "{{" in str(name)

    def _note(self, path: str, problem: str) -> None:
        # Ansible's text goes on with the place in the file, over several lines.
        self.problems.append(f"{printable(path)}: {printable(problem, MOST_SHOWN).rstrip('.')}")


def problems(tasks: str, handlers: str) -> list[str]:
    """What is wrong with a file of tasks and one of handlers, '' for none: absolute paths."""
    reader = _Reader()
    if handlers:
        reader.read(handlers, handlers=True)
    reader.read(tasks)
    if not reader.is_open:
        reader.problems += [
            f"{printable(path)}: it notifies {printable(name)}, which is no handler: put it in hapgent_handlers"
            for name, path in reader.notified.items()
            if name not in reader.handlers and "{{" not in name
        ]
    return reader.problems
