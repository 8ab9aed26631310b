# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write the manual page hapgent(1) and the completion in bash from files/hapgent/usage.py."""

from __future__ import annotations

import re
import typing as t

if t.TYPE_CHECKING:
    from hapgent.usage import Command, Option, Terms

HEADER = """\
Copyright (c) The hapgent.agent contributors
GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later
Written by files/build.py from files/hapgent/usage.py.
"""
# What is printed in italics in a synopsis.
VALUE = re.compile(r"[A-Z]{3,}(?:=[A-Z]+)?(?:\.\.\.)?")


def page() -> str:
    """Return the manual page in the macros of man(7)."""
    from hapgent import VERSION, usage  # noqa: PLC0415

    lines = [f'.\\" {line}' for line in HEADER.splitlines()]
    lines += [
        f'.TH HAPGENT 1 "" "hapgent {VERSION}" "User Commands"',
        '.\\" Neither hyphenate names nor stretch lines.',
        ".nh",
        ".ad l",
        ".SH NAME",
        f"hapgent \\- {_text(usage.SUMMARY)}",
        ".SH SYNOPSIS",
        *_synopsis("hapgent"),
    ]
    for command in usage.COMMANDS.values():
        lines += _synopsis(command.synopsis)
    lines += _synopsis("hapgent --help | --version | --services")
    lines += [".SH DESCRIPTION", _text(usage.DESCRIPTION), ".SH COMMANDS"]
    for command in usage.COMMANDS.values():
        lines += [".TP", f".B {_text(command.name)}", _text(command.text)]
    lines += [".SH OPTIONS"]
    for option in _options(usage.COMMANDS.values()):
        lines += [".TP", _forms(option.form), _text(f"{_sentence(option.text)}.")]
    lines += _terms(usage.OPTIONS)
    for title, text, terms in (
        ("ENVIRONMENT", "The agent is configured with these variables.", usage.ENVIRONMENT),
        ("STATE FILE", usage.STATE_FILE_TEXT, usage.STATE_FILE),
        ("SIGNALS", "The agent handles these signals.", usage.SIGNALS),
        ("EXIT STATUS", "A command exits with one of these values.", usage.EXIT_STATUS),
        ("FILES", "These are the files of agents that the role of the collection has installed.", usage.FILES),
    ):
        lines += [f".SH {title}", _text(text), *_terms(terms)]
    lines += [".SH EXAMPLES"]
    for example, text in usage.EXAMPLES:
        lines += [_text(f"{_sentence(text)}:"), ".PP", ".nf", ".RS 4", _text(example), ".RE", ".fi", ".PP"]
    lines[-1:] = [".SH SEE ALSO", "https://github.com/hapgent/hapgent.agent"]
    return "\n".join(lines) + "\n"


def _options(commands: t.Iterable[Command]) -> list[Option]:
    """Return each option of the commands once; the text of the first command counts."""
    found: dict[str, Option] = {}
    for command in commands:
        for option in command.options:
            found.setdefault(option.name, option)
    return list(found.values())


def _terms(terms: Terms) -> list[str]:
    return [line for term, text in terms for line in (".TP", f".B {_text(term)}", _text(f"{_sentence(text)}."))]


def _sentence(text: str) -> str:
    """Return the text with an upper-case first letter, unless it begins with the name of something."""
    return text if text.startswith("--") else text[0].upper() + text[1:]


def _synopsis(text: str) -> list[str]:
    name, _space, rest = text.partition(" ")
    return [f".SY {name}", *([_forms(rest)] if rest else []), ".YS"] if rest else [f".SY {name}", ".YS"]


def _forms(text: str) -> str:
    """Return the text with values in italics and options in bold."""
    words = []
    for word in text.split(" "):
        bare = word.strip("[]|")
        before, _bare, after = word.partition(bare) if bare else (word, "", "")
        font = r"\fI" if VALUE.fullmatch(bare) else r"\fB"
        words.append(f"{before}{font}{_text(bare)}\\fR{after}" if bare else word)
    return " ".join(words)


def _text(text: str) -> str:
    """Return the text with everything escaped that troff or its fonts would change."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace('"', "\\(dq")
    # A line that begins with a dot would be a request.
    return re.sub(r"^\.", r"\\&.", escaped)


COMPLETION = r"""
# bash splits words also at characters such as @ and =, and replaces only a part of what was typed, which is $2. So the
# words are taken from the line itself, and each reply loses what bash keeps.
_hapgent() {
    local line=${COMP_LINE:0:COMP_POINT} current='' previous='' command='' words=() replies=''
    read -ra words <<<"$line"
    if [[ $line != *[[:space:]] ]]; then
        current=${words[-1]}
        unset 'words[-1]'
    fi
    ((${#words[@]})) || return
    previous=${words[-1]}
    command=${words[1]-}

    if [[ -z $command ]]; then
        replies='@WORDS@'
    elif [[ $previous == --service ]]; then
        replies=$(_hapgent_services "${words[0]}")
    elif [[ $previous == --then ]]; then
        replies='up'
    elif [[ $previous == --reason ]]; then
        return
    else
        case $command in
@CASES@
        *) return ;;
        esac
    fi

    local reply kept=${current%"$2"}
    COMPREPLY=()
    read -d '' -ra words <<<"$replies"
    for reply in "${words[@]}"; do
        if [[ $reply == "$current"* ]]; then
            COMPREPLY+=("${reply#"$kept"}")
        fi
    done
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace
    fi
    if [[ $command == status && $current != -* && $previous != --service ]]; then
        compopt -o default
    fi
}

# Prints the services of this host, also by the short names of the instances.
_hapgent_services() {
    local service
    while IFS='' read -r service; do
        printf '%s\n' "$service"
        if [[ $service == hapgent@* ]]; then
            printf '%s\n' "${service#hapgent@}"
        fi
    done < <("$1" --services 2>/dev/null)
}

complete -F _hapgent hapgent
"""


def completion() -> str:
    """Return the completion for bash."""
    from hapgent import usage  # noqa: PLC0415
    from hapgent._state import FIELDS  # noqa: PLC0415

    cases = []
    for command in usage.COMMANDS.values():
        words = [option.name for option in command.options] + ["--help"]
        if command.name == "set":
            words = [f"{name}=" for name in FIELDS] + words
        cases.append(f"        {command.name}) replies='{' '.join(words)}' ;;")
    words = [*usage.COMMANDS, *(option for option, _text_of_it in usage.OPTIONS)]
    text = COMPLETION.replace("@WORDS@", " ".join(words)).replace("@CASES@", "\n".join(cases))
    return "".join(f"# {line}\n" for line in HEADER.splitlines()) + text
