# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The commands and their options: how they are read, and their documentation.

This is the only source of --help, of the manual page and of the completion in bash, which files/manual.py writes. The
running agent does not import it.
"""

from __future__ import annotations

import re
import textwrap
import typing as t

from hapgent._printable import printable
from hapgent._state import FIELDS, STATUSES
from hapgent.weight import Limits

WIDTH = 80
DEFAULTS = Limits()
# How long the command of "hapgent weigh" may run.
COMMAND_SECONDS = 10
# The path that the role uses for an agent with the default name.
DEFAULT_SOCKET = "/run/hapgent/hapgent/status.sock"
# How long --wait waits without a number.
WAIT_SECONDS = 60

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NOT_RECEIVED, EXIT_NOT_PERMITTED, EXIT_NOT_RUNNING = range(6)
EXIT_INTERRUPTED = 130

Terms = t.Sequence[tuple[str, str]]


class UsageError(Exception):
    """The arguments are wrong. The text names the argument and what it must be."""


class Option(t.NamedTuple):
    """An option. C(value) is what it takes: '' for nothing; in square brackets if it may be left out."""

    name: str
    value: str
    text: str

    @property
    def form(self) -> str:
        """The option with its value, as in a synopsis."""
        return f"{self.name} {self.value}".rstrip()


class Command(t.NamedTuple):
    """A command. C(words) are its other arguments, as in a synopsis. Only one option of C(exclusive) may be given.

    C(runs) is whether the words are a command to run, whose options follow the first word.
    """

    name: str
    summary: str
    text: str
    options: tuple[Option, ...]
    exclusive: tuple[str, ...]
    words: str = ""
    runs: bool = False

    @property
    def synopsis(self) -> str:
        """The command with its options and words."""
        forms = [option.form for option in self.options if option.name not in self.exclusive]
        choice = " | ".join(option.form for option in self.options if option.name in self.exclusive)
        before = [self.words] if self.words and not self.words.startswith("[") else []
        after = [self.words] if self.words and not before else []
        optional = [f"[{form}]" for form in [*forms, choice] if form]
        return " ".join(["hapgent", self.name, *before, *optional, *after])


class Arguments(t.NamedTuple):
    """What was given to a command: its options with their values, '' if there is none, and the other words."""

    options: dict[str, str]
    words: list[str]


REASON = Option(
    "--reason",
    "TEXT",
    f"why, up to {FIELDS['reason'].limit} bytes. HAProxy reports it in its statistics. A new status removes the "
    "previous reason",
)
UNTIL = Option(
    "--until",
    "MOMENT",
    "when the status is overdue: a date and time with its offset from UTC, such as 2026-11-28T06:00:00Z, or a duration "
    "from now, such as 90m, 2h or 1d. The server does not come back then without --then, but hapgent status and the "
    "metrics show it. A new status removes it",
)
THEN = Option(
    "--then",
    "up",
    "requires --until: at that moment, the agent sets the status UP, as hapgent up does. It does not check whether the "
    "service works; HAProxy's health checks do",
)
WAIT = Option(
    "--wait",
    "[SECONDS]",
    f"wait until every load balancer that polls the agent has received the state, {WAIT_SECONDS} seconds by default",
)
SERVICE = Option(
    "--service",
    "NAME",
    "the instance: NAME is the service hapgent@NAME, or else the service NAME; hapgent is the default instance. "
    "Needed if the host has several instances",
)
ALL = Option(
    "--all", "", "all instances of the host. All are checked first, then all are changed, then all are waited for"
)
WATCH = Option("--watch", "", "show the status again every second, until Ctrl-C")
JSON = Option(
    "--json",
    "",
    "all that the agent reports, as JSON. Without SOCKET and --service, an object with the list instances, whose items "
    "have service, state_file, status_socket, problem (null if there is none) and status, which is what the agent "
    "reports (null if it does not)",
)
PROMETHEUS = Option(
    "--prometheus",
    "",
    "metrics in the text format of Prometheus. The labels socket and service tell instances apart",
)
WEIGHING = (
    SERVICE,
    Option("--min", "PERCENT", f"the lowest weight, {DEFAULTS.minimum} by default"),
    Option("--max", "PERCENT", f"the highest weight, {DEFAULTS.maximum} by default"),
    Option("--step", "PERCENT", f"the largest change at a time, {DEFAULTS.step} by default"),
    Option("--smoothing", "COUNT", f"the weight is the median of the last COUNT ones, {DEFAULTS.smoothing} by default"),
    Option(
        "--fallback",
        "SECONDS",
        "for how long COMMAND may fail until the configured values come back, "
        f"{DEFAULTS.fallback:g} seconds by default",
    ),
    Option("--weight", "PERCENT", "the configured weight; without it, the weight is removed from the state"),
    Option("--maxconn", "COUNT", "the configured maxconn"),
    Option("--restore", "", "run no command: set the configured values of the last run, and forget its readings"),
)

_CHANGING = (REASON, UNTIL, THEN, WAIT, SERVICE, ALL)
_ONE_OR_ALL = ("--service", "--all")


def _to(name: str, summary: str, text: str) -> Command:
    return Command(name, summary, text, _CHANGING, _ONE_OR_ALL)


COMMANDS = {
    command.name: command
    for command in (
        _to(
            "drain",
            "send the server no new sessions, and let existing ones finish",
            "Sets the status DRAIN: HAProxy sends the server no new sessions, and lets existing ones finish.",
        ),
        _to(
            "undrain",
            "the same as up",
            "Sets the status UP, which brings the server back into rotation, whatever its previous status was.",
        ),
        _to(
            "up",
            "bring the server back into rotation",
            "Sets the status UP, which brings the server back into rotation, whatever its previous status was.",
        ),
        _to(
            "down",
            "mark the server as down immediately",
            "Sets the status DOWN: HAProxy marks the server as down immediately.",
        ),
        _to(
            "maint",
            "put the server into maintenance",
            "Sets the status MAINT: HAProxy puts the server into maintenance.",
        ),
        _to(
            "ready",
            "like up, and end drains and maintenance set in HAProxy",
            "Sets the status READY, which brings the server back into rotation. As long as the agent reports it, it "
            "also ends any drain or maintenance set manually in HAProxy.",
        ),
        Command(
            "set",
            "set or remove weight, maxconn, reason, by, until and then",
            "Sets fields of the state: FIELD is one of " + ", ".join(FIELDS) + ". The value none removes the field. "
            "HAProxy keeps the last maxconn that it received, because no response of an agent can reset it.",
            _CHANGING,
            _ONE_OR_ALL,
            "FIELD=VALUE...",
        ),
        Command(
            "status",
            "show the state, and which load balancers have received it",
            "Shows the state of each instance of the host, and which load balancers have received it. SOCKET is the "
            "status socket of one agent. Without SOCKET and --service, the socket in HAPGENT_SOCKET is used if that is "
            f"set. If no agent is found, {DEFAULT_SOCKET} is tried.",
            (WATCH, SERVICE._replace(text=SERVICE.text.rpartition(". ")[0]), JSON, PROMETHEUS),
            ("--watch", "--json", "--prometheus"),
            "[SOCKET]",
        ),
        Command(
            "weigh",
            "set the weight that another command prints",
            "Runs COMMAND, which prints a weight in percent, or a JSON object with weight, maxconn or both, and sets "
            "it. A timer or cron runs this regularly, as the user of the agent; root may only use --restore. Nothing "
            "is set while the server is out of rotation, or while it has a weight of 0 that was set otherwise. If "
            f"COMMAND fails, runs for longer than {COMMAND_SECONDS} seconds or prints something else, the last weight "
            "stays. Except on a terminal, this prints only that COMMAND begins to fail, that the configured values "
            "are back, and that COMMAND works again.",
            WEIGHING,
            (),
            "[COMMAND...]",
            runs=True,
        ),
        Command(
            "load",
            "print a weight that follows the load average",
            "Prints 100 as long as the load average of the last minute is no higher than the number of cores, 50 if it "
            "is twice as high, 25 if it is four times as high.",
            (),
            (),
        ),
        Command(
            "pressure",
            "print a weight that follows how long processes wait",
            "Prints what is left of 100 after the percentage of the last ten seconds in which processes waited for "
            "RESOURCE: cpu, memory or io. Of several, the highest percentage counts, by default of all three.",
            (),
            (),
            "[RESOURCE...]",
        ),
    )
}
OPTIONS: Terms = (
    ("--help", "print a short description and exit; also after a command"),
    ("--version", "print the version and exit"),
    ("--services", "print the services that are instances of the agent on this host, one a line, and exit"),
)
ENVIRONMENT: Terms = (
    ("HAPGENT_IP", "address to listen on, IPv4 or IPv6 (default: 0.0.0.0)"),
    ("HAPGENT_PORT", "port to listen on (default: 9777)"),
    (
        "HAPGENT_STATE_FILE",
        "path of the state file (default: /etc/hapgent/state.json). If it is set for a command that changes the state, "
        "and neither --service nor --all is given, the command changes the agent that serves this file",
    ),
    (
        "HAPGENT_SETTLE",
        "seconds after a change, 0 to 86400, for which each load balancer is also sent the keywords that reset the "
        "previous state (default: 60; 0: never)",
    ),
    (
        "HAPGENT_RAMP",
        "percentages of the weight with which a server comes back into rotation, such as 10,50,100 (default: none)",
    ),
    ("HAPGENT_RAMP_SECONDS", "seconds for which each of them is sent, 1 to 86400 (default: 60)"),
    ("HAPGENT_SOCKET", "UNIX socket that reports the status (default: none)"),
)
STATE_FILE: Terms = (
    ("status", f"one of {' '.join(STATUSES)}"),
    *((name, f"optional: {field.meaning}, {field.range}") for name, field in FIELDS.items()),
)
SIGNALS: Terms = (
    ("USR1", "set status UP and save it"),
    ("USR2", "set status DOWN and save it"),
    ("HUP", "read the state file again"),
    ("TERM, INT", "exit"),
)
EXIT_STATUS: Terms = (
    (str(EXIT_OK), "done, or nothing was to do"),
    (str(EXIT_FAILED), "failed: the state file is invalid, the agent answers something else, or another problem"),
    (str(EXIT_USAGE), "wrong arguments, or an unknown instance"),
    (str(EXIT_NOT_RECEIVED), "--wait: a load balancer has not received the state in time"),
    (str(EXIT_NOT_PERMITTED), "this user may not change the state: only root and the user of the agent may"),
    (str(EXIT_NOT_RUNNING), "the state file was written, but the agent does not run"),
    (str(EXIT_INTERRUPTED), "interrupted with Ctrl-C; what was changed is printed"),
)
FILES: Terms = (
    ("/usr/local/bin/hapgent", "the program"),
    ("/etc/hapgent/state.json", "the state of the default instance"),
    ("/etc/hapgent/NAME/state.json", "the state of the instance NAME"),
    (DEFAULT_SOCKET, "the status socket of the default instance"),
    ("/run/hapgent/hapgent@NAME/status.sock", "the status socket of the instance NAME"),
    (
        "/etc/systemd/system/hapgent.service, /etc/systemd/system/hapgent@NAME.service",
        "their services; each has a socket unit of the same name",
    ),
    ("/etc/init.d/hapgent, /etc/init.d/hapgent@NAME", "their services on a host that sysvinit runs"),
)
EXAMPLES: Terms = (
    (
        "hapgent drain --wait --reason 'release 4.2' && deploy && hapgent up --wait",
        "drain the server, deploy once every load balancer has received that, and bring the server back",
    ),
    (
        "hapgent drain --until 2h --reason 'kernel upgrade'",
        "drain the server, and let monitoring complain after two hours",
    ),
    ("hapgent drain --until 30m --then up", "drain the server for half an hour"),
    ("hapgent set weight=50 --service shop", "give the server of the instance shop half of its weight"),
    ("hapgent set weight=none", "return to the weight configured in HAProxy"),
    ("hapgent maint --all", "put the servers of all instances into maintenance"),
    ("hapgent status --watch", "watch which load balancers receive a change"),
    ("hapgent weigh --min 20 hapgent pressure cpu", "let the weight follow the load of the CPUs"),
)
SUMMARY = "report the state of a server to HAProxy"
DESCRIPTION = (
    "Without arguments, hapgent runs the agent: it reports the state of a server to HAProxy, by answering each "
    "agent-check with the state in a JSON file. A command shows or changes the state of the agents on this host. It "
    "edits the state file, makes the agent read it, and waits until the agent answers with the new state."
)
STATE_FILE_TEXT = 'The state file is a JSON object, for example {"status": "UP"}.'


def read(command: Command, arguments: t.Sequence[str]) -> Arguments:
    """Return the options and the other words in these arguments of the command. Raises UsageError."""
    known = {option.name: option for option in command.options}
    options: dict[str, str] = {}
    words: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            words += rest
            break
        if command.runs and not argument.startswith("-"):
            words += [argument, *rest]
            break
        if not argument.startswith("-") or argument == "-":
            words.append(argument)
            continue
        name, has_value, value = argument.partition("=")
        if name not in known:
            raise UsageError(f"unknown option {printable(name)}{suggestion(name, known)}")
        wanted = known[name].value
        if has_value and not wanted:
            raise UsageError(f"{name} takes no value")
        if not has_value and wanted and rest and (not wanted.startswith("[") or _is_number(rest[0])):
            has_value, value = "=", rest.pop(0)
        if not has_value and wanted and not wanted.startswith("["):
            raise UsageError(f"{name} requires a value, {wanted}")
        options[name] = value
    both = [name for name in command.exclusive if name in options]
    if len(both) > 1:
        raise UsageError(f"{' and '.join(both)} must not be used together")
    if words and not command.words:
        raise UsageError(f"{command.name} takes options only, not {printable(repr(words[0]))}")
    return Arguments(options, words)


def suggestion(word: str, known: t.Iterable[str]) -> str:
    """Return a question that names the known word that is most like this one, '' if none is."""
    from difflib import get_close_matches  # noqa: PLC0415 (needed for errors only)

    nearest = get_close_matches(word, list(known), n=1)
    return f". Did you mean {nearest[0]}?" if nearest else ""


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def help_of(command: Command) -> str:
    """Return the help of one command."""
    options = [*((option.form, option.text) for option in command.options), ("--help", "print this text and exit")]
    return "\n".join([_usage(command.synopsis), "", _filled(command.text), "", "Options:", _table(options, 22)])


def help_of_all() -> str:
    """Return the help of the program."""
    parts = [
        "usage: hapgent [--help | --version | --services]\n"
        "       hapgent COMMAND [OPTION]... (hapgent COMMAND --help describes the command)\n",
        _filled(DESCRIPTION) + "\n",
        "Commands:\n" + _table([(command.name, command.summary) for command in COMMANDS.values()], 22),
        "Options:\n" + _table(OPTIONS, 22),
        "Environment:\n" + _table(ENVIRONMENT, 22),
        f"State file: {STATE_FILE_TEXT.partition('is ')[2]}\n" + _table(STATE_FILE, 22),
        "Signals:\n" + _table(SIGNALS, 22),
        "Exit status of commands:\n" + _table(EXIT_STATUS, 22),
    ]
    return "\n".join(parts)


def usage_of(command: Command) -> str:
    """Return the synopsis of a command, as it is printed with an error."""
    return _usage(command.synopsis)


def _usage(synopsis: str) -> str:
    return "\n".join(_wrapped(synopsis, "usage: ", " " * 15))


def _filled(text: str) -> str:
    return "\n".join(_wrapped(text, "", ""))


def _table(terms: Terms, width: int) -> str:
    lines = []
    for term, text in terms:
        first = f"  {term}".ljust(width)
        if len(first) > width:
            lines.append(first)
            first = " " * width
        lines += _wrapped(text, first, " " * width)
    return "\n".join(lines) + "\n"


def _wrapped(text: str, first: str, others: str) -> list[str]:
    # A wrapped line must not begin within the brackets of one option.
    kept = re.sub(r" (\[SECONDS|(?:TEXT|MOMENT|SECONDS|PERCENT|COUNT|up)\]|NAME)", "\0\\1", text)
    lines = textwrap.wrap(
        kept, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\0", " ") for line in lines]
