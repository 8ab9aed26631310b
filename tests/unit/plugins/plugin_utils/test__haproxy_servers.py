# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts become server lines that HAProxy accepts, and no variable of a host can add another line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.hapgent.agent.plugins.filter.haproxy_servers import haproxy_servers
from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from ansible_collections.hapgent.agent.plugins.plugin_utils import _haproxy_servers
from ansible_collections.hapgent.agent.plugins.plugin_utils._haproxy_servers import Options, ServerError, server_lines
from hypothesis import given, settings
from hypothesis import strategies as st

CACHE = Path(__file__).parents[4] / ".cache" / "haproxy"
# tests/tools/install downloads HAProxy; without it, the tests use the one of the machine.
HAPROXY = str(CACHE / "usr/sbin/haproxy") if CACHE.exists() else shutil.which("haproxy") or "haproxy"
LIBRARIES = os.pathsep.join(str(folder) for folder in CACHE.glob("usr/lib/*-linux-gnu*"))
FRAME = """\
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
frontend users
    bind 127.0.0.1:8000
    default_backend web0
"""
# Without init-addr none, HAProxy would resolve names while it checks the configuration.
BACKEND = """\
backend web{number}
    cookie srv insert
    default-server inter 2s rise 2 fall 3 init-addr none
"""

Variables = dict[str, Any]


def line(variables: Variables, **options: Any) -> str:
    """The line of the host web7 with these variables."""
    (found,) = server_lines(["web7"], {"web7": variables}, Options(**{"port": 8080, **options}))
    return found


def check(folder: Path, *backends: list[str]) -> str:
    """What HAProxy reports about backends with these server lines."""
    parts = [
        BACKEND.format(number=number) + "".join(f"    {line}\n" for line in lines)
        for number, lines in enumerate(backends)
    ]
    config = folder / "haproxy.cfg"
    config.write_text(FRAME + "".join(parts), encoding="utf-8")
    done = subprocess.run(
        [HAPROXY, "-c", "-f", config],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": LIBRARIES},
        check=False,
        timeout=60,
    )
    return "" if done.returncode == 0 and "[ALERT]" not in done.stdout else done.stdout


WEB7 = {"ansible_host": "192.0.2.7"}
SHOP = {**WEB7, "hapgent_instances": [{"name": "api", "port": 9778}, {"name": "shop", "port": 9779}]}
AGENT = "agent-check agent-port"

LINES: list[tuple[Variables, Variables, str]] = [
    # What is derived from the host.
    (WEB7, {}, f"server web7 192.0.2.7:8080 check {AGENT} 9777 agent-inter 2s weight 100"),
    ({}, {}, f"server web7 web7:8080 check {AGENT} 9777 agent-inter 2s weight 100"),
    ({"ansible_host": ""}, {}, f"server web7 web7:8080 check {AGENT} 9777 agent-inter 2s weight 100"),
    (
        {**WEB7, "hapgent_server": "web-7", "hapgent_port": "9000", "hapgent_server_port": 80},
        {"port": None},
        f"server web-7 192.0.2.7:80 check {AGENT} 9000 agent-inter 2s weight 100",
    ),
    ({**WEB7, "hapgent_server": 7}, {}, f"server 7 192.0.2.7:8080 check {AGENT} 9777 agent-inter 2s weight 100"),
    (
        {"ansible_host": "2001:db8::0007"},
        {},
        f"server web7 [2001:db8::7]:8080 check {AGENT} 9777 agent-inter 2s weight 100",
    ),
    (
        {"ansible_host": "[2001:db8::7]"},
        {},
        f"server web7 [2001:db8::7]:8080 check {AGENT} 9777 agent-inter 2s weight 100",
    ),
    (
        {"ansible_host": "web7.example.org"},
        {},
        f"server web7 web7.example.org:8080 check {AGENT} 9777 agent-inter 2s weight 100",
    ),
    # Options.
    (
        {**WEB7, "hapgent_port": 9000, "hapgent_server_port": 80},
        {"agent_port": 9001, "port": 81},
        f"server web7 192.0.2.7:81 check {AGENT} 9001 agent-inter 2s weight 100",
    ),
    (
        WEB7,
        {"weight": None, "agent_inter": None, "check": False, "inter": "1s"},
        f"server web7 192.0.2.7:8080 {AGENT} 9777",
    ),
    (
        WEB7,
        {"weight": "0", "agent_inter": "500ms", "inter": "1m", "cookie": True, "options": "ssl verify none"},
        "server web7 192.0.2.7:8080 check inter 1m agent-check agent-port 9777 agent-inter 500ms weight 0 cookie web7 "
        "ssl verify none",
    ),
    (
        {"private": {"ip": "10.0.0.7"}},
        {"address_variable": "private.ip"},
        f"server web7 10.0.0.7:8080 check {AGENT} 9777 agent-inter 2s weight 100",
    ),
    # What a host overrides.
    (
        {
            **WEB7,
            "hapgent_haproxy_server": {
                "address": "10.0.0.7",
                "port": 80,
                "weight": 50,
                "check": "yes",
                "inter": "5s",
                "agent_port": 9000,
                "agent_addr": "2001:db8::7",
                "agent_inter": "1s",
                "cookie": "seven",
                "options": "backup",
            },
        },
        {"cookie": True, "options": "ssl verify none", "address_variable": "missing.because.not.needed"},
        "server web7 10.0.0.7:80 check inter 5s agent-check agent-port 9000 agent-addr 2001:db8::7 agent-inter 1s "
        "weight 50 cookie seven ssl verify none backup",
    ),
    (
        {**WEB7, "hapgent_haproxy_server": {"weight": None, "cookie": False, "check": False, "options": None}},
        {"cookie": True},
        f"server web7 192.0.2.7:8080 {AGENT} 9777 agent-inter 2s",
    ),
    ({**WEB7, "hapgent_haproxy_server": None}, {"weight": 1, "agent_inter": None}, f"{AGENT} 9777 weight 1"),
    # Several services.
    *(
        (SHOP, {"service": service}, f"server web7 192.0.2.7:8080 check {AGENT} {port} agent-inter 2s weight 100")
        for service, port in [("shop", 9779), ("hapgent@shop", 9779), ("api", 9778), ("hapgent", 9777), ("", 9777)]
    ),
    # An instance has the plain variables that it does not set.
    (
        {
            **WEB7,
            "hapgent_service": "",
            "hapgent_port": 9000,
            "hapgent_instances": [{"name": "shop", "ip": "192.0.2.8"}],
        },
        {"service": "shop"},
        f"server web7 192.0.2.7:8080 check {AGENT} 9000 agent-addr 192.0.2.8 agent-inter 2s weight 100",
    ),
    # Where the agent listens.
    *(
        ({**WEB7, "hapgent_ip": ip, **more}, {}, f"{AGENT} 9777{words} agent-inter 2s weight 100")
        for ip, more, words in [
            ("0.0.0.0", {}, ""),
            ("::", {}, ""),
            ("127.0.0.1", {}, ""),
            ("192.0.2.7", {}, ""),
            ("192.0.2.8", {}, " agent-addr 192.0.2.8"),
            ("2001:db8::0008", {}, " agent-addr 2001:db8::8"),
            ("192.0.2.8", {"hapgent_haproxy_server": {"agent_addr": None}}, ""),
        ]
    ),
    ({**WEB7, "hapgent_ip": "192.0.2.8"}, {"agent_port": 9001}, f"{AGENT} 9001 agent-inter 2s weight 100"),
    (
        {**SHOP, "hapgent_service": "agent", "hapgent_port": 9000},
        {"service": "agent"},
        f"server web7 192.0.2.7:8080 check {AGENT} 9000 agent-inter 2s weight 100",
    ),
    (
        {
            **SHOP,
            "hapgent_server": {"hapgent@shop": "web7-shop"},
            "hapgent_haproxy_server": {
                "weight": 50,
                "options": "backup",
                "services": {"shop": {"weight": 60, "port": 8081}},
            },
        },
        {"service": "shop", "port": None},
        f"server web7-shop 192.0.2.7:8081 check {AGENT} 9779 agent-inter 2s weight 60 backup",
    ),
    (
        {
            **SHOP,
            "hapgent_server": {"shop": "web7-shop", "hapgent": "web7"},
            "hapgent_server_port": 8080,
            "hapgent_haproxy_server": {"services": {"shop": {"weight": 60}}},
        },
        {"port": None},
        f"server web7 192.0.2.7:8080 check {AGENT} 9777 agent-inter 2s weight 100",
    ),
]


@pytest.mark.parametrize(("variables", "options", "expected"), LINES)
def test_a_host_becomes_a_line(variables: Variables, options: Variables, expected: str) -> None:
    assert line(variables, **options).endswith(expected)


def test_haproxy_accepts_all_these_lines(tmp_path: Path) -> None:
    lines = [[line(variables, **options).replace("ssl verify none", "")] for variables, options, _line in LINES]
    assert check(tmp_path, *lines) == ""


def test_lines_are_in_the_order_of_the_hosts_and_each_host_has_one() -> None:
    hostvars: dict[str, Variables] = {f"web{number}": {} for number in range(3)}
    lines = server_lines(["web2", "web0", "web1", "web0"], hostvars, Options(port=80))
    assert [words.split()[1] for words in lines] == ["web2", "web0", "web1"]
    assert server_lines([], hostvars, Options()) == []


# Invalid values of keys in hapgent_haproxy_server.
WRONG_VALUES: dict[str, list[Any]] = {
    "port": [0, 65536, -1, "http", "80 disabled", 80.0, True, "+80", "080"],
    "agent_port": [0, 65536, "9777\n", "9777 backup", True],
    "weight": [-1, 257, "50%", "1 backup", 1.5, True, "\uff11"],
    "inter": ["0s", "2", 2, "2 s", "2s backup", "25d", "1us", "s", True],
    "agent_inter": ["0ms", 2000, "-2s", "2S", "2s\n", "99999999999ms"],
    "check": ["maybe", 2, None, "check port 80"],
    "cookie": ["a b", "a#", 'a"', "a\n", "a;b", "$HOME", "a\\", "ä"],
    "agent_addr": ["10.0.0.7:80", "web7", "a b", "a\n", 7, True],
    "options": ["a # b", "a\nserver evil", "a\\", 'a"', "a'", "a\r", "ä", 1, []],
    "wieght": ["wieght"],
}
# An invalid value in a variable of the host, and what the message must contain beside the host.
WRONG: list[tuple[Variables, list[str]]] = [
    *(
        ({"hapgent_server": name}, ["hapgent_server", shown])
        for name, shown in [
            ("web 7", "web 7"),
            ("web7#", "web7#"),
            ("web7\n    server evil 192.0.2.99:80", r"web7\n    server evil"),
            ("web7\r", r"web7\r"),
            ("web7\n", r"web7\n"),
            ("wéb7", "wéb7"),
            ("", "''"),
            (True, "True"),
            ("{{ name }}", "{{ name }}"),
            (["web7"], "['web7']"),
        ]
    ),
    *(
        ({"ansible_host": address}, ["address", address.replace("\n", r"\n")])
        for address in [
            "192.0.2.7 ",
            "192.0.2.7\n",
            "192.0.2.256",
            "192.0.2.7:80",
            "192.0.2.7#",
            "192.0.2",
            "7",
            "[192.0.2.7]",
            "2001:db8::7::",
            "fe80::7%eth0",
            "web7..example.org",
            "/run/web.sock",
            "unix@/run/web.sock",
            "web7 disabled",
        ]
    ),
    *(
        ({"hapgent_haproxy_server": {key: value}}, [key, printable(value)])
        for key, values in WRONG_VALUES.items()
        for value in values
    ),
    ({"hapgent_haproxy_server": "backup"}, ["hapgent_haproxy_server", "dictionary", "backup"]),
    ({"hapgent_haproxy_server": {"services": ["shop"]}}, ["hapgent_haproxy_server.services", "dictionary"]),
    ({"hapgent_haproxy_server": {"services": {"hapgent": 1}}}, ["hapgent_haproxy_server.services.hapgent"]),
    ({"hapgent_haproxy_server": {"services": {"hapgent": {"services": {}}}}}, ["services"]),
    ({"hapgent_port": 0}, ["agent_port", "0"]),
    ({"hapgent_ip": "10.0.0.7 backup"}, ["hapgent_ip", "10.0.0.7 backup"]),
    ({"hapgent_service": ""}, ["service", "hapgent_instances"]),
    ({"hapgent_server": {"shop": "web7-shop"}}, ["hapgent_server", "web7-shop", "hapgent"]),
    ({"hapgent_haproxy_server": {"options": "backup " * 60}}, ["60"]),
    ({"hapgent_haproxy_server": {"options": "x" * 2000}}, ["2000"]),
]


@pytest.mark.parametrize(("variables", "parts"), WRONG)
def test_invalid_values_are_refused(variables: Variables, parts: list[str]) -> None:
    with pytest.raises(ServerError) as caught:
        line(variables)
    message = str(caught.value)
    for part in ["web7", *parts]:
        assert part in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("hosts", "options", "parts"),
    [
        (["web1", "web2"], {"port": 80}, ["web1", "web2", "same", "hapgent_server"]),
        (["web9"], {"port": 80}, ["web9", "inventory"]),
        ("web1", {"port": 80}, ["list", "web1"]),
        ({"web1": {}}, {"port": 80}, ["list"]),
        (["web1"], {}, ["web1", "port", "hapgent_haproxy_server"]),
        (["web1"], {"port": 80, "address_variable": "private.ip"}, ["web1", "private.ip"]),
        (["web1"], {"port": 80, "address_variable": "hapgent_server.ip"}, ["web1", "hapgent_server.ip"]),
        (["web1"], {"port": 80, "service": "shop"}, ["web1", "hapgent_instances", "shop"]),
        (["api"], {"service": "api"}, ["api", "port"]),
        (["text"], {"port": 80, "service": "api"}, ["text", "hapgent_instances", "list"]),
        (["web1"], {"port": 80, "options": "a\nserver evil 192.0.2.9:80"}, ["web1", "options"]),
    ],
)
def test_what_does_not_fit_together_is_refused(hosts: Any, options: Variables, parts: list[str]) -> None:
    hostvars: dict[str, Variables] = {
        "web1": {"hapgent_server": "web"},
        "web2": {"hapgent_server": "web"},
        # The port of the default service is not that of others.
        "api": {"hapgent_instances": ["api", {"name": "api"}], "hapgent_server_port": 80},
        "text": {"hapgent_instances": "api"},
    }
    with pytest.raises(ServerError) as caught:
        server_lines(hosts, hostvars, Options(**options))
    for part in parts:
        assert part in str(caught.value)


def test_filter_reports_errors_and_unknown_options() -> None:
    assert haproxy_servers(["web7"], {"web7": WEB7}, port=80, weight=1)[0].endswith(" weight 1")
    with pytest.raises(AnsibleFilterError, match="web7"):
        haproxy_servers(["web7"], {"web7": WEB7})
    with pytest.raises(AnsibleFilterError, match="wieght"):
        haproxy_servers(["web7"], {"web7": WEB7}, port=80, wieght=1)


# What is accepted, HAProxy accepts

TEXTS = st.text(st.sampled_from("abYZ019_.:-/+=~@!*^|%[]{}()$,;#\\\"' \t\r\n\0é\u2028"), max_size=5)
PORTS = st.sampled_from([1, 80, 9777, 65535])
TIMES = st.sampled_from(["1ms", "500ms", "2s", "1m", "24d", "2147483647ms"])
IPS = st.ip_addresses().map(str) | st.sampled_from(["::ffff:192.0.2.1", "[::1]"])
ADDRESSES = IPS | st.sampled_from(["web7", "web_7.example.org", "a" * 63, ".".join(["a" * 62] * 4)])
# HAProxy accepts these keywords in any order. The other keywords of users are their own responsibility.
WORDS = ["backup", "disabled", "maxconn 5", "slowstart 30s", "send-proxy", 'source "127.0.0.1"']
#: Valid values of the keys of a host.
VALID: dict[str, st.SearchStrategy[Any]] = {
    "address": ADDRESSES,
    "port": PORTS,
    "weight": st.none() | st.sampled_from([0, 1, 256]),
    "check": st.booleans(),
    "inter": st.none() | TIMES,
    "agent_port": PORTS,
    "agent_addr": st.none() | IPS,
    "agent_inter": st.none() | TIMES,
    "cookie": st.booleans() | st.from_regex(_haproxy_servers.COOKIE, fullmatch=True),
    "options": st.lists(st.sampled_from(WORDS)).map(" ".join),
}
ODD_NUMBERS = TEXTS | st.sampled_from([-1, 0, 257, 300, 65536, 70_000, "080", "1e3", "0x50", 10**9])
ODD_TIMES = TEXTS | st.builds(
    "{}{}".format, st.sampled_from([0, 1, 25, 2**31 - 1, 2**31]), st.sampled_from(["us", "ms", "s", "d", ""])
)
ODD_ADDRESSES = st.one_of(
    TEXTS,
    st.text(st.sampled_from("12.:af%[]"), max_size=8),
    st.text(st.sampled_from("aZ9-_."), max_size=8),
    st.builds("{}{}".format, ADDRESSES, st.sampled_from(["%eth0", ":80", "/24", "]"])),
)
#: Values of which some are invalid. A host has one of them at most, because more would hide each other.
ODD = {
    **dict.fromkeys(("port", "weight", "agent_port"), ODD_NUMBERS),
    **dict.fromkeys(("inter", "agent_inter"), ODD_TIMES),
    **dict.fromkeys(("address", "agent_addr"), ODD_ADDRESSES),
    "hapgent_server": TEXTS | st.text(st.sampled_from("aZ9_.:-,+/@"), max_size=4),
    "hapgent_ip": ODD_ADDRESSES,
    "check": TEXTS,
    "cookie": TEXTS,
}


def host(valid: Variables, odd: tuple[str, Any] | None) -> Variables:
    key, value = odd or ("port", 80)
    if key in VALID:
        return {**WEB7, "hapgent_haproxy_server": {**valid, key: value}}
    plain = {name: found for name, found in valid.items() if name not in ("agent_addr", "agent_port")}
    return {**WEB7, key: value, "hapgent_haproxy_server": plain}


HOSTS = st.builds(
    host,
    st.fixed_dictionaries({}, optional=VALID),
    st.one_of([st.none(), *(st.tuples(st.just(key), values) for key, values in ODD.items())]),
)


def accepted(variables: Variables) -> list[str]:
    try:
        return [line(variables)]
    except ServerError as error:
        assert str(error).isprintable()
        return []


def test_haproxy_accepts_what_the_filter_accepts(tmp_path: Path) -> None:
    """HAProxy checks all lines at once. Each is in a backend of its own, because most servers have the same name."""
    lines: list[str] = []

    @settings(derandomize=True, database=None, deadline=None, max_examples=1000)
    @given(variables=HOSTS)
    def collect(variables: Variables) -> None:
        lines.extend(accepted(variables))

    collect()
    assert len(lines) > 100
    for found in lines:
        assert re.fullmatch(r"server [ -~]+", found)
        assert "#" not in found
    assert check(tmp_path, *([found] for found in lines)) == ""


@given(text=TEXTS, where=st.sampled_from(["hapgent_server", "ansible_host", *_haproxy_servers.KEYS]))
@settings(derandomize=True, database=None, deadline=None, max_examples=300)
def test_no_text_adds_a_word_outside_options(text: str, where: str) -> None:
    variables = (
        {where: text} if where in ("hapgent_server", "ansible_host") else {"hapgent_haproxy_server": {where: text}}
    )
    plain = len(line({"hapgent_haproxy_server": {"cookie": "x", "inter": "1s", "agent_addr": "::1"}}).split())
    for found in accepted({**WEB7, **variables}):
        assert where == "options" or len(found.split()) <= plain
        assert found.isprintable()
