# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From the modules' results, _fleet decides which servers may leave and describes the fleet in a table."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import pytest
import yaml
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_stats import Server
from ansible_collections.hapgent.agent.plugins.modules import hapgent_info, haproxy_server_info
from ansible_collections.hapgent.agent.plugins.plugin_utils._fleet import (
    FleetError,
    Pool,
    _merged,
    at_least,
    backends,
    hosts,
    kept_out,
    refusals,
    table,
)
from hypothesis import given
from hypothesis import strategies as st

Result = dict[str, Any]

REASON = "release 4.2"
SINCE = 1795486180.4
SINCE_SHOWN = "2026-11-24 02:09:40 UTC"
UNREACHABLE = "Failed to connect to the host via ssh: No route to host"

# Bits of srv_admin_state, which HAProxy shows only on its socket.
BITS = {"MAINT": 0x01, "DRAIN": 0x08, "MAINT by configuration": 0x05}


def server(name: str = "web1", status: str = "UP", *, backend: str = "web", **fields: Any) -> Result:
    """A server as haproxy_server_info returns it; a status DRAIN or MAINT was set by the agent or manually."""
    check = {"result": "L7OK", "code": 0, "text": None, "running": False}
    usual: Result = {
        "address": "192.0.2.1:8080",
        "balance": "roundrobin",
        "backup": False,
        "admin": BITS.get(status, 0),
        "tracks": None,
        "weight": 100,
        "user_weight": 100,
        "configured_weight": 100,
        "sessions": 0,
        "queue": 0,
        "last_change": 9,
        "agent_state": 0x16,
        "agent_check": check,
        "health_check": check,
    }
    shown = status.partition(" by ")[0]
    return Server(backend=backend, name=name, status=shown, **{**usual, **fields}).describe()


def balancer(item: str, *servers: Result, warnings: list[str] | None = None) -> Result:
    """The result of a load balancer with these servers."""
    return {
        "item": item,
        "changed": False,
        "failed": False,
        "servers": list(servers),
        "unreadable": {},
        "haproxy": {"version": "2.6.12-1+deb12u4", "pid": 612, "uptime": 86400},
        "agent_check_warnings": warnings or [],
    }


def unreachable(item: str) -> Result:
    """The result of a load balancer or an agent that Ansible cannot reach."""
    return {"item": item, "unreachable": True, "msg": UNREACHABLE}


def peer(address: str, *words: str) -> Result:
    """What an agent reports about a load balancer, which received or polls if these words are given."""
    assert set(words) <= {"received", "polls"}
    return {
        "address": address,
        "first_seen": 1795480000.1,
        "last_seen": 1795486190.4,
        "checks": 600,
        "interval": 2.0,
        "line": "UP",
        "received": "received" in words,
        "settles_for": 0.0,
        "polls": "polls" in words,
    }


BOTH = [peer("198.51.100.11", "polls", "received"), peer("198.51.100.12", "polls", "received")]


def agent(item: str = "web1", peers: list[Result] | None = None, **state: Any) -> Result:
    """The result of an agent with this state, which these load balancers poll."""
    instance = {
        "service": "hapgent",
        "pid": 512,
        "state_file": "/etc/hapgent/state.json",
        "status_socket": "/run/hapgent/hapgent/status.sock",
        "state": state or {"status": "UP"},
        "answer": "not looked at",
        "since": SINCE,
        "ramp_weight": None,
        "ramp_ends": None,
        "version": "1.0.0",
        "settle": 60,
        "state_file_ok": True,
        "last_error": None,
        "problem": None,
        "counters": {"checks": 1200, "changes": 2, "reloads": 2},
        "peers": BOTH if peers is None else peers,
    }
    return {"item": item, "changed": False, "failed": False, "instances": [instance]}


def without_status_socket(result: Result) -> Result:
    """The same result, but of an agent without a status socket."""
    (instance,) = result["instances"]
    nothing = dict.fromkeys(
        [
            "status_socket",
            "since",
            "ramp_weight",
            "ramp_ends",
            "version",
            "settle",
            "state_file_ok",
            "last_error",
            "counters",
            "peers",
        ]
    )
    return {**result, "instances": [{**instance, **nothing}]}


def test_results_in_these_tests_have_the_documented_fields() -> None:
    documented = yaml.safe_load(haproxy_server_info.RETURN)
    # Only failed results have these.
    assert set(balancer("lb1")) - {"item", "changed", "failed"} == set(documented) - {"cause", "waiting_for"}
    assert set(server()) == set(documented["servers"]["contains"])
    documented = yaml.safe_load(hapgent_info.RETURN)["instances"]["contains"]
    assert set(agent()["instances"][0]) == set(documented)
    assert set(BOTH[0]) == set(documented["peers"]["contains"])


# hapgent_min_up


@pytest.mark.parametrize(
    ("min_up", "total", "required"),
    [
        (0, 8, 0),
        (3, 8, 3),
        ("3", 8, 3),
        # With this value, every server is refused.
        (9, 8, 9),
        ("0%", 8, 0),
        ("75%", 8, 6),
        ("100%", 8, 8),
        # Percentages are rounded up: half of three servers is two.
        ("50%", 3, 2),
        ("1%", 8, 1),
        ("99%", 200, 198),
        ("99%", 201, 199),
        ("34%", 3, 2),
        ("33%", 3, 1),
        ("75%", 0, 0),
    ],
)
def test_min_up_is_converted_to_a_number_of_servers(min_up: object, total: int, required: int) -> None:
    assert at_least(min_up, total) == required


@pytest.mark.parametrize(
    "min_up",
    ["", "%", "101%", "-1", -1, 1.5, "1.5", "50 %", " 1", "1\n", "half", None, True, [1], "\u0663", "1e3", "9" * 5000],
)
def test_invalid_min_up_is_refused(min_up: object) -> None:
    with pytest.raises(FleetError, match=r"^hapgent_min_up must be "):
        at_least(min_up, 8)


# Refusals


def pool(**members: str) -> Pool:
    """A pool of servers with these statuses; servers that are UP take new sessions."""
    return Pool("of web on lb1", {name: (status == "UP", status) for name, status in members.items()})


def too_few(
    servers: str, stay: str, required: str, *, leaving: str, staying: str, not_available: str = "none", never: str = ""
) -> str:
    """The text of a refusal."""
    return (
        f"Of the {servers} of web on lb1, {stay} would stay in rotation, but hapgent_min_up requires {required}."
        f"{never} Leaving: {leaving}. Staying: {staying}. Not available: {not_available}."
    )


REFUSALS: dict[str, tuple[Pool, list[str], Any, str]] = {
    "enough stay": (pool(a="UP", b="UP", c="UP"), ["a"], 2, ""),
    "too few stay": (
        pool(a="UP", b="UP", c="UP"),
        ["a", "c"],
        2,
        too_few("3 servers", "only 1", "2", leaving="a, c", staying="b"),
    ),
    "a percentage": (
        pool(a="UP", b="UP", c="UP"),
        ["a", "c"],
        "50%",
        too_few("3 servers", "only 1", "50% (2)", leaving="a, c", staying="b"),
    ),
    "none stays": (
        pool(a="UP"),
        ["a"],
        "1",
        too_few(
            "1 server",
            "none",
            "1",
            never=" With 1 server, none can ever leave: lower hapgent_min_up.",
            leaving="a",
            staying="none",
        ),
    ),
    "none stays, which is allowed": (pool(a="UP"), ["a"], 0, ""),
    "others are out already": (
        pool(a="UP", b="UP", c="DRAIN (agent)", d="MAINT"),
        ["a"],
        "50%",
        too_few(
            "4 servers",
            "only 1",
            "50% (2)",
            leaving="a",
            staying="b",
            not_available="c is DRAIN (agent), d is MAINT",
        ),
    ),
    # The number of available servers does not change, and a rolling update that stopped can continue.
    "out already, too few before": (pool(a="UP", b="DOWN", c="DOWN"), ["b"], 2, ""),
    "one is out already, another is in rotation": (
        pool(a="UP", b="DOWN", c="UP"),
        ["a", "b"],
        2,
        too_few("3 servers", "only 1", "2", leaving="a", staying="c", not_available="b is DOWN"),
    ),
    "leaves twice": (pool(a="UP", b="UP"), ["a", "a"], 1, ""),
    "not in this pool": (pool(a="UP", b="UP"), ["x", "y"], 2, ""),
    "none leaves": (pool(a="UP", b="UP"), [], 3, ""),
    "more than there are": (
        pool(a="UP", b="UP"),
        ["a"],
        3,
        too_few(
            "2 servers",
            "only 1",
            "3",
            never=" With 2 servers, none can ever leave: lower hapgent_min_up.",
            leaving="a",
            staying="b",
        ),
    ),
}


def refusal_of(servers: Pool, leaving: Collection[str], min_up: Any) -> str:
    """Why these servers may not leave, or '' if they may."""
    return "".join(_merged([servers], leaving, min_up))


@pytest.mark.parametrize(("servers", "leaving", "min_up", "refusal"), REFUSALS.values(), ids=REFUSALS)
def test_servers_are_refused_if_too_few_would_stay(
    servers: Pool, leaving: list[str], min_up: Any, refusal: str
) -> None:
    assert refusal_of(servers, leaving, min_up) == refusal


def test_unknown_server_may_be_in_rotation() -> None:
    """It may leave only if enough others stay, and it does not count as available for others to leave."""
    members = {"a": (None, "unknown"), "b": (None, "unknown"), "c": (True, "UP"), "d": (False, "DOWN")}
    servers = Pool("of web on lb1", members)
    not_available = "a is unknown, b is unknown, d is DOWN"
    assert refusal_of(servers, ["c"], 1) == too_few(
        "4 servers", "none", "1", leaving="c", staying="none", not_available=not_available
    )
    assert refusal_of(servers, ["a"], 1) == refusal_of(servers, ["d"], 2) == refusal_of(servers, ["a"], 0) == ""
    assert refusal_of(servers, ["a", "d"], 2) == too_few(
        "4 servers", "only 1", "2", leaving="a", staying="c", not_available=not_available
    )


NAMES = st.sets(st.sampled_from("abcdefgh"))
MIN_UPS = st.integers(0, 9) | st.integers(0, 100).map(lambda percent: f"{percent}%")


@given(NAMES, NAMES, NAMES, NAMES, st.tuples(MIN_UPS, MIN_UPS))
def test_refusal_remains_for_more_servers_or_a_higher_min_up(
    is_in: set[str], is_out: set[str], leaving: set[str], more: set[str], min_ups: tuple[Any, Any]
) -> None:
    servers = Pool("here", {**dict.fromkeys(is_out, (False, "DOWN")), **dict.fromkeys(is_in, (True, "UP"))})
    lower, higher = sorted(min_ups, key=lambda min_up: at_least(min_up, len(servers.members)))
    if refusal_of(servers, leaving, lower):
        assert refusal_of(servers, leaving | more, lower)
        assert refusal_of(servers, leaving, higher)
    else:
        assert len(is_in - leaving) >= at_least(lower, len(servers.members)) or not is_in & leaving


# Pools


def test_pools_are_the_backends_with_one_of_the_servers() -> None:
    asked = [
        balancer(
            "lb1",
            server("web1"),
            server("web2", "DRAIN", sessions=2),
            server("web9", backup=True),
            server("web1", "DOWN", backend="api"),
            server("web3", backend="api"),
            server("db1", backend="db"),
        ),
        balancer("lb2", server("web1", "MAINT"), server("web2")),
        balancer("lb3"),
        unreachable("lb4"),
    ]
    # The same name on another load balancer or in another backend means a different server.
    assert backends(asked, ["web1", "web9"]) == [
        Pool("of web on lb1", {"web1": (True, "UP"), "web2": (False, "DRAIN")}),
        Pool("of api on lb1", {"web1": (False, "DOWN"), "web3": (True, "UP")}),
        Pool("of web on lb2", {"web1": (False, "MAINT"), "web2": (True, "UP")}),
    ]
    assert [servers.title for servers in backends(asked, ["web3", "web3"])] == ["of api on lb1"]
    assert backends(asked, []) == backends(asked, ["web8"]) == backends([], ["web1"]) == []


def test_servers_that_were_never_in_rotation_do_not_count() -> None:
    """These are free slots of a template, a disabled server, and one with the configured weight 0."""
    slots = [server(f"slot{number}", "MAINT (resolution)", admin=0x20) for number in range(7)]
    on_page = [server(f"page{number}", "MAINT (resolution)", admin=None) for number in range(2)]
    up = [server(f"web{number}") for number in range(1, 4)]
    off = server("canary", "MAINT by configuration")
    weightless = server("spare", weight=0, configured_weight=0)
    (pool,) = backends([balancer("lb1", *slots, *up, *on_page, off, weightless)], ["web1"])
    assert list(pool.members) == ["web1", "web2", "web3"]
    assert refusal_of(pool, ["web1"], "50%") == ""
    # A server that was enabled later counts, and so does one that the agent or an operator took out of rotation.
    rows = [server("canary"), server("web1", "MAINT"), server("web2", weight=0)]
    assert list(backends([balancer("lb1", *rows)], ["web1"])[0].members) == ["canary", "web1", "web2"]


# Merged refusals


def view(
    name: str, min_up: Any = "75%", *, asked: list[Result] | None = None, agents: list[Result] | None = None
) -> Result:
    return {"host": f"host-of-{name}", "server": name, "min_up": min_up, "asked": asked or [], "agents": agents or []}


def test_equal_refusals_are_merged() -> None:
    """There is one refusal for all load balancers and hosts, with the servers that leave and those that stay."""
    three = [server("web1"), server("web2"), server("web3")]
    asked = [balancer("lb1", *three), balancer("lb2", *three)]
    (refusal,) = refusals([view("web1", asked=asked), view("web2", asked=asked)])
    assert "web on lb1 and of web on lb2" in refusal
    assert "Leaving: web1, web2. Staying: web3. " in refusal
    # A load balancer with other statuses leads to another refusal.
    asked[1] = balancer("lb2", server("web1"), server("web2", "DOWN"), server("web3"))
    assert len(refusals([view("web1", asked=asked)])) == 2
    assert refusals([view("web1", 1, asked=asked)]) == refusals([]) == []


@pytest.mark.parametrize(
    ("total", "min_up", "never"), [(3, "75%", True), (3, 3, True), (4, "76%", True), (4, 3, False)]
)
def test_min_up_that_lets_no_server_ever_leave_is_pointed_out(total: int, min_up: Any, never: bool) -> None:
    asked = [balancer("lb1", *(server(f"web{number}") for number in range(total - 1)), server("last", "DOWN"))]
    (refusal,) = refusals([view("web0", min_up, asked=asked)])
    assert ("ever leave" in refusal) is never


def test_hosts_with_and_without_a_fleet() -> None:
    fleet = [agent("host-of-a"), agent("host-of-b")]
    views = [view("a", 1, agents=fleet), view("b", 1, agents=fleet), view("c", 1), view("d", 0), view("e", "0%")]
    of_fleet, unknown = sorted(refusals(views))
    assert "of hapgent_fleet" in of_fleet
    assert "host-of-a, host-of-b" in of_fleet
    assert unknown == (
        "hapgent_min_up 1 cannot be evaluated: set hapgent_load_balancers, or a hapgent_fleet that includes host-of-c."
    )
    assert not {"host-of-d", "host-of-e"} & set(re.split(r"[ ,.]+", f"{of_fleet} {unknown}"))


@pytest.mark.parametrize("min_up", ["half", "101%"])
def test_invalid_min_up_is_refused_even_without_servers(min_up: str) -> None:
    with pytest.raises(FleetError):
        refusals([view("web1", min_up, asked=[balancer("lb1")])])


def test_refusal_is_printable() -> None:
    (refusal,) = refusals([view("web1", 3, asked=[balancer("lb1", server("web1"), server("\x1b[2J"))])])
    assert refusal.isprintable()


def test_backup_servers_do_not_count_and_may_leave() -> None:
    asked = [balancer("lb1", server("web1"), server("web9", backup=True))]
    (servers,) = backends(asked, ["web1"])
    assert list(servers.members) == ["web1"]
    assert refusal_of(servers, ["web1"], 1)
    assert backends(asked, ["web9"]) == []


def test_server_with_weight_0_is_out_of_rotation() -> None:
    (servers,) = backends([balancer("lb1", server("web1", weight=0), server("web2"))], ["web2"])
    assert servers.members["web1"] == (False, "UP")


def test_pool_of_agents() -> None:
    asked = [
        agent("web1", status="UP", reason=REASON),
        agent("web2", status="READY", weight=50),
        agent("web3", status="UP", weight=0),
        agent("web4", status="DRAIN", reason="kernel upgrade"),
        agent("web5", status="FAIL", maxconn=9),
        without_status_socket(agent("web6", status="UP")),
        unreachable("web7"),
        {"item": "web8", "failed": False, "msg": "No service hapgent runs."},
        # Its state file is invalid.
        without_status_socket(agent("web9", status="UP")),
        {"item": "web10"},
    ]
    asked[8]["instances"][0]["state"] = None
    assert hosts(asked) == Pool(
        "of hapgent_fleet",
        {
            "web1": (True, "UP"),
            "web2": (True, "READY 50%"),
            "web3": (False, "UP 0%"),
            "web4": (False, "DRAIN"),
            "web5": (False, "FAIL maxconn:9"),
            "web6": (True, "UP"),
            "web7": (None, f"unknown ({UNREACHABLE})"),
            "web8": (None, "unknown (No service hapgent runs)"),
            "web9": (False, "unknown"),
            "web10": (None, "unknown (unknown)"),
        },
    )


# What else keeps a server out of rotation

ALL_WELL = [balancer("lb1", server("web1")), balancer("lb2", server("web1"))]

# The state of the agent, the results of the load balancers, and what keeps the server out.
KEPT_OUT: dict[str, tuple[Result, list[Result], str]] = {
    "nothing": ({"status": "UP"}, ALL_WELL, ""),
    "nothing, READY": ({"status": "READY", "weight": 50}, ALL_WELL, ""),
    "nothing, updated before": ({"status": "UP", "reason": REASON}, ALL_WELL, ""),
    "nothing, no load balancers": ({"status": "UP"}, [], ""),
    "its agent, with another reason": (
        {"status": "DRAIN", "reason": "kernel upgrade"},
        ALL_WELL,
        "its agent reports DRAIN UP # kernel upgrade",
    ),
    "its agent, with an unprintable reason": (
        {"status": "DRAIN", "reason": "kernel\u202e"},
        ALL_WELL,
        r"its agent reports DRAIN UP # kernel\u202e",
    ),
    "its agent, with no reason": ({"status": "DRAIN"}, ALL_WELL, "its agent reports DRAIN"),
    "its agent, by weight": ({"status": "UP", "weight": 0}, ALL_WELL, "its agent reports UP 0%"),
    "its agent, by weight with our reason": (
        {"status": "UP", "weight": 0, "reason": REASON},
        ALL_WELL,
        f"its agent reports UP 0% # {REASON}",
    ),
    "its agent, FAIL": ({"status": "FAIL"}, ALL_WELL, "its agent reports FAIL"),
    "its agent, MAINT with our reason": (
        {"status": "MAINT", "reason": REASON},
        ALL_WELL,
        f"its agent reports MAINT UP # {REASON}",
    ),
    "only our drain": (
        {"status": "DRAIN", "reason": REASON},
        [balancer("lb1", server("web1", "DRAIN")), balancer("lb2", server("web1", "DRAIN"))],
        "",
    ),
    "our drain and manual maintenance": (
        {"status": "DRAIN", "reason": REASON},
        [balancer("lb1", server("web1", "DRAIN")), balancer("lb2", server("web1", "MAINT"))],
        "lb2 has web/web1 in MAINT, and its agent reports DRAIN",
    ),
    "another operator": (
        {"status": "MAINT", "reason": "disk", "by": "bob@control2"},
        [],
        "its agent reports MAINT UP # disk, by bob@control2",
    ),
    "manually, on one load balancer": (
        {"status": "UP"},
        [balancer("lb1", server("web1")), balancer("lb2", server("web1", "DRAIN"))],
        "lb2 has web/web1 in DRAIN, and its agent reports UP",
    ),
    "manually, on both": (
        {"status": "READY"},
        [balancer("lb1", server("web1", "MAINT")), balancer("lb2", server("web1", "DRAIN"))],
        "lb1 has web/web1 in MAINT, lb2 has web/web1 in DRAIN, and its agent reports READY",
    ),
    "manually, in one backend": (
        {"status": "UP"},
        [balancer("lb1", server("web1"), server("web1", "MAINT", backend="api"))],
        "lb1 has api/web1 in MAINT, and its agent reports UP",
    ),
    "manually, and down": (
        {"status": "UP"},
        [balancer("lb1", server("web1", "DOWN", admin=BITS["DRAIN"]))],
        "lb1 has web/web1 in DRAIN, and its agent reports UP",
    ),
    "tracking": (
        {"status": "UP"},
        [balancer("lb1", server(status="MAINT (via api/web1)", admin=0x02))],
        "lb1 has web/web1 in MAINT (via api/web1), and its agent reports UP",
    ),
    "its configuration": (
        {"status": "UP"},
        [balancer("lb1", server("web1", "MAINT by configuration"))],
        "lb1 has web/web1 in MAINT, and its agent reports UP",
    ),
    "nothing: it is only down": ({"status": "UP"}, [balancer("lb1", server("web1", "DOWN"))], ""),
    # The stats page does not contain the administrative state of such a server.
    "nothing known: it is down": (
        {"status": "UP"},
        [balancer("lb1", server("web1", "DOWN", admin=None))],
        "",
    ),
    "nothing: another server is out": ({"status": "UP"}, [balancer("lb1", server("web2", "MAINT"))], ""),
}


@pytest.mark.parametrize(("state", "asked", "who"), KEPT_OUT.values(), ids=KEPT_OUT)
def test_what_keeps_a_server_out(state: Result, asked: list[Result], who: str) -> None:
    assert kept_out(state, REASON, asked, "web1") == who


# The table


def test_table_of_a_fleet_without_problems() -> None:
    drained = agent("long-name.example.org", status="DRAIN", reason="kernel upgrade")
    assert table(
        ["web1", "long-name.example.org"],
        ["web1", "web2"],
        [[], []],
        [agent(status="UP", weight=50), drained],
        [
            balancer("lb1", server("web1"), server("web2", "DRAIN (agent)", admin=BITS["DRAIN"])),
            balancer(
                "lb2", server("web1"), server("web2", "DRAIN (agent)", admin=BITS["DRAIN"]), server("other", "DOWN")
            ),
        ],
    ) == [
        "host                   state   since                    reason          received  lb1            lb2",
        f"web1                   UP 50%  {SINCE_SHOWN}                  2 of 2    UP             UP",
        f"long-name.example.org  DRAIN   {SINCE_SHOWN}  kernel upgrade  2 of 2    DRAIN (agent)  DRAIN (agent)",
    ]


def one_host(result: Result, asked: list[Result], *backends_of: str) -> tuple[list[str], list[str]]:
    """The cells of a table that has only web1, and the remarks below it."""
    head, row, *below = table(["web1"], ["web1"], [backends_of], [result], asked)
    starts = [index for index in range(len(head)) if head[index] != " " and (index == 0 or head[index - 1] == " ")]
    cells = [row[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
    assert below[:1] in ([], [""])
    return cells, below[1:]


SAYS_DRAIN: Result = {"status": "DRAIN", "reason": REASON}

# The texts of remarks.
CANNOT_BE_QUERIED = f"cannot be queried: {UNREACHABLE}"
NOT_POLLED = "no load balancer polls its agent"


def differs(reported: str, status: str, *, on: str = "lb1", backend: str = "web", new: str = "no new sessions") -> str:
    return f"its agent reports {reported}, but {on} sends it {new}: it is {status} in {backend}"


# The agent, the load balancers; the cells (state, reason, received and one for each load balancer) and the remarks.
TABLES: dict[str, tuple[Result, list[Result], list[str], list[str]]] = {
    "no load balancers": (agent(), [], ["UP", "", "2 of 2"], []),
    "down by its health check": (
        agent(),
        [balancer("lb1", server(status="DOWN"))],
        ["UP", "", "2 of 2", "DOWN !"],
        [f"web1: {differs('UP', 'DOWN')}"],
    ),
    "drained manually on one of two": (
        agent(),
        [balancer("lb1", server()), balancer("lb2", server(status="DRAIN"))],
        ["UP", "", "2 of 2", "UP", "DRAIN !"],
        [f"web1: {differs('UP', 'DRAIN', on='lb2')}"],
    ),
    "not drained": (
        agent(**SAYS_DRAIN),
        [balancer("lb1", server(status="DRAIN")), balancer("lb2", server())],
        ["DRAIN", REASON, "2 of 2", "DRAIN", "UP !"],
        [f"web1: {differs('DRAIN', 'UP', on='lb2', new='new sessions')}"],
    ),
    "weight 0 took effect": (
        agent(status="UP", weight=0),
        [balancer("lb1", server(weight=0))],
        ["UP 0%", "", "2 of 2", "UP"],
        [],
    ),
    "FAIL is DOWN": (
        agent(status="FAIL"),
        [balancer("lb1", server(status="DOWN"))],
        ["FAIL", "", "2 of 2", "DOWN"],
        [],
    ),
    "one has not received the state": (
        agent(peers=[BOTH[0], peer("198.51.100.12", "polls")], **SAYS_DRAIN),
        [balancer("lb1", server(status="DRAIN"))],
        ["DRAIN", REASON, "1 of 2 !", "DRAIN"],
        ["web1: 198.51.100.12 has not received the state yet"],
    ),
    "one that stopped polling does not count": (
        agent(peers=[BOTH[0], peer("198.51.100.12"), peer("198.51.100.13", "received")]),
        [balancer("lb1", server())],
        ["UP", "", "1 of 1", "UP"],
        [],
    ),
    "none polls": (
        agent(peers=[peer("198.51.100.12", "received")]),
        [balancer("lb1", server())],
        ["UP", "", "0 of 0 !", "UP"],
        [f"web1: {NOT_POLLED}"],
    ),
    "none has ever polled": (
        agent(peers=[]),
        [],
        ["UP", "", "0 of 0 !"],
        [f"web1: {NOT_POLLED}"],
    ),
    "no status socket": (
        without_status_socket(agent(**SAYS_DRAIN)),
        [balancer("lb1", server())],
        ["DRAIN", REASON, "", "UP !"],
        [f"web1: {differs('DRAIN', 'UP', new='new sessions')}"],
    ),
    "load balancer does not have the server": (
        agent(),
        [balancer("lb1", server("web2"))],
        ["UP", "", "2 of 2", "-"],
        [],
    ),
    "load balancer cannot be queried": (
        agent(),
        [unreachable("lb1"), balancer("lb2", server())],
        ["UP", "", "2 of 2", "-", "UP"],
        [f"lb1 {CANNOT_BE_QUERIED}"],
    ),
    "agent cannot be queried": (
        {"failed": False, "msg": "No service hapgent runs."},
        [balancer("lb1", server(status="DOWN")), balancer("lb2", server())],
        ["unknown", "", "", "DOWN", "UP"],
        ["web1: its agent cannot be queried: No service hapgent runs"],
    ),
    "several backends that agree": (
        agent(),
        [balancer("lb1", server(), server(backend="api"))],
        ["UP", "", "2 of 2", "UP"],
        [],
    ),
    "several backends that differ": (
        agent(),
        [balancer("lb1", server(), server(backend="api", status="MAINT"))],
        ["UP", "", "2 of 2", "web UP, api MAINT !"],
        [f"web1: {differs('UP', 'MAINT', backend='api')}"],
    ),
    "several backends that differ in the weight": (
        agent(),
        [balancer("lb1", server(), server(backend="api", weight=0))],
        ["UP", "", "2 of 2", "web UP, api UP !"],
        [f"web1: {differs('UP', 'UP', backend='api')}"],
    ),
    "useless agent checks": (
        agent(),
        [
            balancer("lb1", server(), warnings=["web/web2: no agent can drain it.", "web/web1: the agent is silent."]),
            balancer("lb2", server(), warnings=["web/web2: no agent can drain it."]),
        ],
        ["UP", "", "2 of 2", "UP", "UP"],
        ["web/web1: the agent is silent.", "web/web2: no agent can drain it."],
    ),
}


@pytest.mark.parametrize(("result", "asked", "cells", "remarks"), TABLES.values(), ids=TABLES)
def test_cells_and_remarks(result: Result, asked: list[Result], cells: list[str], remarks: list[str]) -> None:
    (host, state, _since, *rest), below = one_host(result, asked)
    assert [host, state, *rest] == ["web1", *cells]
    assert below == remarks


def test_table_shows_the_weight_of_a_ramp() -> None:
    result = agent("web1", status="UP", weight=50)
    result["instances"][0]["ramp_weight"] = 5
    assert "  UP 50% (5% now)  " in table(["web1"], ["web1"], [[]], [result], [])[1]


def test_table_shows_who_and_until_when_if_an_agent_reports_it() -> None:
    def drained(**notes: str) -> list[str]:
        state: Result = {"status": "DRAIN", "reason": "disk", **notes}
        return table(["web1", "web2"], ["web1", "web2"], [[], []], [agent(**state), agent("web2")], [])

    assert drained(by="ada@control1", until="2999-11-28T06:00:00Z") == [
        "host  state  since                    reason  by            until                    received",
        f"web1  DRAIN  {SINCE_SHOWN}  disk    ada@control1  2999-11-28 06:00:00 UTC  2 of 2",
        f"web2  UP     {SINCE_SHOWN}                                                 2 of 2",
    ]
    assert "  2999-11-28 06:00:00 UTC, then UP  2 of 2" in drained(until="2999-11-28T06:00:00Z", then="UP")[1]
    assert " until " not in drained(by="ada@control1")[0]
    assert " by " not in drained()[0]


def test_what_is_overdue_is_marked() -> None:
    cells, below = one_host(agent(status="DRAIN", until="2020-11-28T06:00:00Z"), [])
    assert cells[4] == "2020-11-28 06:00:00 UTC !"
    assert below == ["web1: its DRAIN has been overdue since 2020-11-28 06:00:00 UTC"]


def test_table_names_the_load_balancers_that_have_not_received_the_state() -> None:
    late = {**BOTH[0], "address": "198.51.100.11", "received": False, "polls": True}
    result = agent()
    result = {**result, "instances": [{**result["instances"][0], "peers": [late]}]}
    lines = table(["web1"], ["web1"], [[]], [result], [], known={"198.51.100.11": "lb1"})
    assert lines[-1].startswith("web1: 198.51.100.11 (lb1) ")


def test_time_of_the_last_change_is_shown() -> None:
    assert one_host(agent(), [])[0][2] == SINCE_SHOWN
    assert one_host(without_status_socket(agent()), [])[0][2] == ""


def test_invalid_state_file_is_remarked_without_a_status_socket() -> None:
    result = without_status_socket(agent())
    result["instances"][0]["state"] = None
    (_host, state, *_rest), below = one_host(result, [balancer("lb1", server(status="DOWN"))])
    assert state == "unknown"
    assert below == ["web1: its agent has an invalid state file, /etc/hapgent/state.json"]


def test_order_of_hosts_and_remarks() -> None:
    """Remarks about load balancers come first, then those about hosts, then those about agent checks."""
    lines = table(
        ["web2", "web1"],
        # The servers have other names in HAProxy.
        ["s2", "s1"],
        [[], []],
        [unreachable("web2"), agent(peers=[])],
        [balancer("lb1", server("s1", "DOWN"), server("s2"), warnings=["web/s2: is deaf."]), unreachable("lb2")],
    )
    assert [line.split("  ")[0] for line in lines[:3]] == ["host", "web2", "web1"]
    assert lines[3:] == [
        "",
        f"lb2 {CANNOT_BE_QUERIED}",
        f"web2: its agent {CANNOT_BE_QUERIED}",
        f"web1: {differs('UP', 'DOWN')}",
        f"web1: {NOT_POLLED}",
        "web/s2: is deaf.",
    ]


def test_load_balancers_without_agents_are_not_in_the_table() -> None:
    """Load balancers usually have no agent. A host may have the name of a column."""
    lines = table(
        ["web1", "lb1", "lb2", "state"],
        ["web1", "lb1", "lb2", "state"],
        [[], [], [], []],
        [agent(), unreachable("lb1"), agent("lb2"), unreachable("state")],
        [balancer("lb1", server()), balancer("lb2", server())],
    )
    assert [line.split("  ")[0] for line in lines] == [
        *("host", "web1", "lb2", "state", ""),
        f"state: its agent {CANNOT_BE_QUERIED}",
    ]


def test_load_balancer_that_is_also_a_server_is_in_the_table() -> None:
    asked = [balancer("lb1", server("lb1", "DOWN"))]
    lines = table(["lb1"], ["lb1"], [[]], [unreachable("lb1")], asked)
    assert lines[1].startswith("lb1") and lines[1].endswith("DOWN")
    assert lines[2:] == ["", f"lb1: its agent {CANNOT_BE_QUERIED}"]


def test_table_shows_only_the_given_backends() -> None:
    asked = [balancer("lb1", server(), server(backend="api", status="MAINT"))]
    assert one_host(agent(), asked, "web")[0][-1] == "UP"
    cells, below = one_host(agent(), asked, "api")
    assert cells[-1] == "MAINT !"
    assert below == [f"web1: {differs('UP', 'MAINT', backend='api')}"]
    assert one_host(agent(), asked, "db")[0][-1] == "-"


def test_text_from_agents_and_haproxy_is_escaped_in_the_table() -> None:
    hostile = "\x1b[2J\u202e"
    result = agent(status="DRAIN", reason=hostile)
    lines = table(
        ["web1"], ["web1"], [[]], [result], [balancer("lb1", server(status=hostile)), {"item": "lb2", "msg": hostile}]
    )
    assert all(line.isprintable() for line in lines)
    assert len(lines) > 3


def test_reason_for_fail_is_remarked() -> None:
    result = agent(status="FAIL")
    result["instances"][0].update(answer="FAIL", problem="state.json: weight must be 0 to 255")
    assert any("weight must be 0 to 255" in remark for remark in one_host(result, [])[1])
