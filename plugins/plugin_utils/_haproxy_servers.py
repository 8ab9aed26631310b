# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""The server lines of HAProxy for hosts of the inventory, each with the agent check of its host.

Every value comes from an inventory, and a part of it may come from elsewhere, so each must have a form that cannot add
anything to the configuration. The keywords are those that HAProxy has had since 2.2.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import typing as t

from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable

Variables = t.Mapping[str, t.Any]

#: The variable of a host that overrides the options for its own line.
OVERRIDES = "hapgent_haproxy_server"
#: The key in it with the overrides for one service each.
SERVICES = "services"
DEFAULT_SERVICE = "hapgent"
DEFAULT_AGENT_PORT = 9777
INSTANCE = "hapgent@"

MAX_WEIGHT = 256
# HAProxy keeps times as signed 32-bit numbers of milliseconds.
MAX_MILLISECONDS = 2**31 - 1
MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
# Below HAProxy's MAX_LINE_ARGS, 64 words, and LINESIZE, 2,048 characters.
MAX_WORDS = 60
MAX_LENGTH = 2000

NAME = re.compile(r"[A-Za-z0-9_.:-]+")
# The label at the end has a letter, because the system's resolver reads 10.0.0 and 256 as addresses.
HOST_NAME = re.compile(r"(?=.{1,253}\Z)([A-Za-z0-9_-]{1,63}\.)*(?=[0-9_-]*[A-Za-z])[A-Za-z0-9_-]{1,63}")
WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
TIME = re.compile(r"([1-9][0-9]{0,9})(ms|s|m|h|d)")
# What a cookie may contain, without what HAProxy or a client may change: quotes, backslashes, # and $.
COOKIE = re.compile(r"[A-Za-z0-9_.:/+=~@!*^|-]+")
# Words as HAProxy reads them. Inside quotes, spaces are part of a word.
OPTIONS = re.compile(r"""(?:[^"'\\#]|"[^"\\#]*"|'[^'\\#]*')*""")


class ServerError(Exception):
    """A variable of a host or an option is invalid. The text names the host, the value and the valid values."""


class Options(t.NamedTuple):
    """The options of the filter, with their defaults. A host may override all except the first two."""

    service: str = DEFAULT_SERVICE
    address_variable: str | None = None
    port: t.Any = None
    weight: t.Any = 100
    check: t.Any = True
    inter: t.Any = None
    agent_port: t.Any = None
    agent_inter: t.Any = "2s"
    cookie: t.Any = False
    options: t.Any = ""


#: What a host can set in its variable: the options, and what makes no sense for all hosts at once.
KEYS = (
    *("address", "port", "weight", "check", "inter"),
    *("agent_port", "agent_addr", "agent_inter", "cookie", "options"),
)


def server_lines(hosts: t.Iterable[str], hostvars: t.Mapping[str, Variables], options: Options) -> list[str]:
    """The line of each host, in the order of the hosts. A host that is named twice has one. Raises ServerError."""
    if isinstance(hosts, (str, t.Mapping)) or not isinstance(hosts, t.Iterable):
        raise ServerError(f"The hosts must be a list of names, such as groups['web'], not {_shown(hosts)}.")
    lines = []
    owners: dict[str, str] = {}
    for host in dict.fromkeys(map(str, hosts)):
        if host not in hostvars:
            raise ServerError(f"{_shown(host)} is not a host of the inventory.")
        server = _Server(host, hostvars[host], options)
        owner = owners.setdefault(server.name, host)
        if owner != host:
            raise ServerError(
                f"{_shown(owner)} and {_shown(host)} have the same server name, {server.name}: set hapgent_server to a "
                "different name for each."
            )
        lines.append(server.line())
    return lines


class _Server:
    """The values of one host, checked as they are read."""

    def __init__(self, host: str, variables: Variables, options: Options) -> None:
        self._host = host
        self._variables = variables
        self._service = self._short(options.service)
        self._options = options
        self._given = self._overrides()
        self.name = self._name()

    def line(self) -> str:
        address = self._address("address", self._given.get("address") or self._default_address())
        words = ["server", self.name, f"{_bracketed(address)}:{self._port()}"]
        if self._flag("check"):
            words += ["check", *self._time("inter")]
        words += ["agent-check", "agent-port", self._agent_port(), *self._agent_addr(address)]
        words += self._time("agent_inter") + self._weight() + self._cookie()
        line = " ".join([*words, *self._extra()])
        if len(line) > MAX_LENGTH or len(line.split()) > MAX_WORDS:
            raise ServerError(
                f"The server line of {_shown(self._host)} must have at most {MAX_LENGTH} characters and {MAX_WORDS} "
                f"words: {_shown(line)}"
            )
        return line

    # Which value counts

    def _overrides(self) -> Variables:
        """What the host sets for this service in its variable."""
        overrides = self._mapping(OVERRIDES, self._variables.get(OVERRIDES))
        services = self._mapping(f"{OVERRIDES}.{SERVICES}", overrides.get(SERVICES))
        own = self._of_service(services)
        of_service = self._mapping(f"{OVERRIDES}.{SERVICES}.{self._service}", own)
        merged = {**{key: value for key, value in overrides.items() if key != SERVICES}, **of_service}
        for key in merged:
            if key not in KEYS:
                known = ", ".join(sorted([*KEYS, SERVICES]))
                raise ServerError(f"{OVERRIDES} of {_shown(self._host)} has no key {_shown(key)}. Keys are {known}.")
        return merged

    def _value(self, key: str) -> t.Any:
        return self._given.get(key, getattr(self._options, key))

    def _short(self, service: t.Any) -> str:
        """One name for each service: hapgent@shop is shop, and the default instance is hapgent."""
        name = str(service)
        if name in ("", str(self._variables.get("hapgent_service", DEFAULT_SERVICE))):
            return DEFAULT_SERVICE
        return name[len(INSTANCE) :] if name.startswith(INSTANCE) else name

    def _of_service(self, by_service: Variables) -> t.Any:
        """The value for this service, under any of its names. None if there is none."""
        return next((value for name, value in by_service.items() if self._short(name) == self._service), None)

    def _name(self) -> str:
        name = self._variables.get("hapgent_server", self._host)
        if isinstance(name, t.Mapping):
            by_service, name = name, self._of_service(name)
            if name is None:
                raise self._error("hapgent_server", by_service, f"a name, or have an entry for {self._service}")
        return self._matching("hapgent_server", name, NAME, "letters, digits and _.:-")

    def _default_address(self) -> t.Any:
        path = self._options.address_variable
        if not path:
            return self._variables.get("ansible_host") or self._host
        found: t.Any = self._variables
        for part in str(path).split("."):
            if not isinstance(found, t.Mapping) or part not in found:
                raise ServerError(
                    f"{_shown(self._host)} has no variable {_shown(path)}, from which its address should come."
                )
            found = found[part]
        return found

    def _port(self) -> str:
        port = self._value("port")
        if port is None and self._service == DEFAULT_SERVICE:
            port = self._variables.get("hapgent_server_port")
        if port is None:
            raise ServerError(
                f"The port of {_shown(self._host)} is not known: set the option port, or the host's {OVERRIDES}.port."
            )
        return self._number("port", port, 1, 65535)

    def _agent_port(self) -> str:
        port = self._value("agent_port")
        return self._number(
            "agent_port", self._of_agent("port", DEFAULT_AGENT_PORT) if port is None else port, 1, 65535
        )

    def _agent_addr(self, address: str) -> list[str]:
        """The agent's address, if it is not that of the server."""
        if "agent_addr" in self._given:
            given = self._given["agent_addr"]
            return [] if given is None else ["agent-addr", str(self._ip("agent_addr", given))]
        if self._value("agent_port") is not None:
            return []
        listens_on = self._ip("hapgent_ip", self._of_agent("ip", "0.0.0.0"))
        # HAProxy cannot reach a loopback address of another host: something must forward the checks to it.
        if listens_on.is_unspecified or listens_on.is_loopback or str(listens_on) == address:
            return []
        return ["agent-addr", str(listens_on)]

    def _of_agent(self, key: str, default: t.Any) -> t.Any:
        """A variable of the role hapgent for the agent of this service."""
        plain = self._variables.get(f"hapgent_{key}", default)
        if self._service == DEFAULT_SERVICE:
            if self._variables.get("hapgent_service", DEFAULT_SERVICE) in ("", None):
                raise ServerError(
                    f"{_shown(self._host)} has no default instance of the agent: set the option service to one of "
                    "hapgent_instances."
                )
            return plain
        instances = self._variables.get("hapgent_instances") or []
        if not isinstance(instances, (list, tuple)):
            raise self._error("hapgent_instances", instances, "a list")
        for instance in instances:
            if isinstance(instance, t.Mapping) and self._short(instance.get("name")) == self._service:
                own = instance.get(key)
                return plain if own is None else own
        raise ServerError(
            f"hapgent_instances of {_shown(self._host)} has no instance {_shown(self._service)}, so the port of its "
            "agent is not known."
        )

    # What it must look like

    def _error(self, what: str, value: t.Any, must: str) -> ServerError:
        return ServerError(f"{what} of {_shown(self._host)} must be {must}, not {_shown(value)}.")

    def _mapping(self, what: str, value: t.Any) -> Variables:
        if value is None:
            return {}
        if not isinstance(value, t.Mapping):
            raise self._error(what, value, "a dictionary")
        return value

    def _matching(self, what: str, value: t.Any, form: re.Pattern[str], must: str) -> str:
        text = "" if isinstance(value, bool) or not isinstance(value, (str, int)) else str(value)
        if not form.fullmatch(text):
            raise self._error(what, value, must)
        return text

    def _number(self, what: str, value: t.Any, least: int, most: int) -> str:
        must = f"a number from {least} to {most}"
        text = self._matching(what, value, WHOLE_NUMBER, must)
        if not least <= int(text) <= most:
            raise self._error(what, value, must)
        return text

    def _time(self, key: str) -> list[str]:
        value = self._value(key)
        if value is None:
            return []
        must = "a time with its unit, such as 500ms, 2s or 1m, of at most 24 days"
        text = self._matching(key, value, TIME, must)
        number, unit = t.cast("re.Match[str]", TIME.fullmatch(text)).groups()
        if int(number) * MILLISECONDS[unit] > MAX_MILLISECONDS:
            raise self._error(key, value, must)
        return [key.replace("_", "-"), text]

    def _weight(self) -> list[str]:
        weight = self._value("weight")
        return [] if weight is None else ["weight", self._number("weight", weight, 0, MAX_WEIGHT)]

    def _flag(self, key: str) -> bool:
        value = self._value(key)
        # Jinja may have made text of it.
        flags = {"true": True, "yes": True, "false": False, "no": False}
        found = flags.get(str(value).lower())
        if found is None:
            raise self._error(key, value, "true or false")
        return found

    def _cookie(self) -> list[str]:
        cookie = self._value("cookie")
        if cookie is None or cookie is False:
            return []
        value = self.name if cookie is True else cookie
        return ["cookie", self._matching("cookie", value, COOKIE, "true, false, or letters, digits and _.:/+=~@!*^|-")]

    def _address(self, what: str, value: t.Any) -> str:
        """The address of a server as HAProxy reads it, without brackets."""
        with contextlib.suppress(ValueError):
            return str(_parsed(value))
        return self._matching(what, value, HOST_NAME, "an IP address or a host name")

    def _ip(self, what: str, value: t.Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The address of an agent. HAProxy refuses to start if it is a name that cannot be resolved."""
        try:
            return _parsed(value)
        except ValueError:
            raise self._error(what, value, "an IP address") from None

    def _extra(self) -> list[str]:
        """The user's own keywords: those of all hosts first, because the last of a kind counts."""
        found = []
        for value in (self._options.options, self._given.get("options")):
            text = "" if value is None else value
            if not (isinstance(text, str) and text.isascii() and text.isprintable() and OPTIONS.fullmatch(text)):
                raise self._error(
                    "options", value, "one line of printable ASCII with closed quotes and without # and backslashes"
                )
            found.append(text.strip())
        return [text for text in found if text]


def _parsed(value: t.Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IP address in a text, which may be in brackets if it is IPv6. Raises ValueError."""
    text = str(value)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") and ":" in text else text
    if "%" in bare:
        raise ValueError("HAProxy does not know the scope of an address, such as %eth0")
    return ipaddress.ip_address(bare)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _shown(value: t.Any) -> str:
    return printable(value) or "''"
