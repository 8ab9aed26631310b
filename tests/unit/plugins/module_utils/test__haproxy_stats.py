# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Recorded statistics of HAProxy 2.2, 2.6 and 3.0 are parsed correctly, and broken ones are refused.

haproxy/haproxy.cfg is the configuration of the recorded servers.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._haproxy_stats import (
    WAITS,
    FormatError,
    SelectionError,
    Server,
    Statistics,
    TruncatedError,
    UnreadableError,
    parse_page,
    parse_socket,
)
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).parent / "haproxy"
VERSIONS = ["2.2", "2.6", "3.0"]


def socket_answer(version: str) -> str:
    return (FOLDER / f"{version}-socket.txt").read_text(encoding="utf-8")


def page_text(version: str) -> str:
    return (FOLDER / f"{version}-page.csv").read_text(encoding="utf-8")


def lines(text: str) -> io.StringIO:
    """The text as it is read from a connection, where only a line feed ends a line."""
    return io.StringIO(text, newline="\n")


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def on_socket(version: str) -> Statistics:
    return parse_socket(lines(socket_answer(version)))


@pytest.fixture(scope="module")
def on_page(version: str) -> Statistics:
    return parse_page(lines(page_text(version)))


def by_title(statistics: Statistics) -> dict[str, Server]:
    return {server.title: server for server in statistics.servers}


AGENT_OR_OPERATOR, TRACKING = ["agent_or_operator"], ["tracking"]

# Status, whether it takes new sessions, administrative state, what set that state, weight, and configured weight.
SERVERS: dict[str, tuple[str, bool, str, list[str], int, int]] = {
    "web/up": ("UP", True, "ready", [], 100, 100),
    "web/drain": ("DRAIN (agent)", False, "drain", AGENT_OR_OPERATOR, 100, 100),
    "web/drainup": ("DRAIN (agent)", False, "drain", AGENT_OR_OPERATOR, 100, 100),
    "web/drainreason": ("DRAIN (agent)", False, "drain", AGENT_OR_OPERATOR, 100, 100),
    "web/handdrain": ("DRAIN (agent)", False, "drain", AGENT_OR_OPERATOR, 100, 100),
    "web/nocheckdrain": ("DRAIN", False, "drain", ["operator"], 1, 1),
    "web/maint": ("MAINT", False, "maint", AGENT_OR_OPERATOR, 100, 100),
    "web/maintup": ("MAINT", False, "maint", AGENT_OR_OPERATOR, 100, 100),
    "web/handmaint": ("MAINT", False, "maint", AGENT_OR_OPERATOR, 100, 100),
    "web/conf": ("MAINT", False, "maint", ["configuration"], 100, 100),
    # This server is disabled in the configuration and was enabled manually, which leaves a bit set.
    "web/confready": ("UP", True, "ready", [], 100, 100),
    "web/down": ("DOWN (agent)", False, "ready", [], 100, 100),
    "web/draindown": ("DOWN (agent)", False, "drain", AGENT_OR_OPERATOR, 100, 100),
    "web/downhealth": ("DOWN", False, "ready", [], 100, 100),
    "web/half": ("UP", True, "ready", [], 50, 100),
    "web/zero": ("UP", False, "ready", [], 0, 100),
    "web/halflow": ("UP", False, "ready", [], 0, 1),
    "web/w0": ("UP", False, "ready", [], 0, 0),
    "web/nocheck": ("no check", True, "ready", [], 1, 1),
    "web/silent": ("no check", True, "ready", [], 100, 100),
    "web/backup": ("UP", True, "ready", [], 1, 1),
    "track/drain": ("DRAIN (agent)", False, "drain", TRACKING, 1, 1),
    "track/chain": ("DRAIN (agent)", False, "drain", TRACKING, 1, 1),
    "track/maint": ("MAINT (via web/maint)", False, "maint", TRACKING, 1, 1),
    "track/conf": ("MAINT (via web/conf)", False, "maint", TRACKING, 1, 1),
    "track/down": ("DOWN (agent)", False, "ready", [], 1, 1),
    "track/nocheck": ("UP", True, "ready", [], 1, 1),
}


@pytest.mark.parametrize("title", SERVERS)
def test_servers_are_parsed_from_the_socket(on_socket: Statistics, title: str) -> None:
    server = by_title(on_socket)[title]
    assert (
        server.status,
        server.takes_new_sessions,
        server.admin_state,
        server.admin_by,
        server.weight,
        server.configured_weight,
    ) == SERVERS[title]


@pytest.mark.parametrize("title", SERVERS)
def test_servers_are_parsed_from_the_page(on_page: Statistics, title: str) -> None:
    """The page has fewer fields, but these have the same values."""
    server = by_title(on_page)[title]
    status, takes, admin_state, admin_by, weight, _configured_weight = SERVERS[title]
    assert (server.status, server.takes_new_sessions, server.weight) == (status, takes, weight)
    assert server.admin_state == (None if status.startswith("DOWN") else admin_state)
    assert server.admin_by == (admin_by if "via" in status else [])
    assert server.configured_weight is None


# Result, code and text of the agent check, or None if there is none.
CHECKS: dict[str, tuple[str, int | None, str | None] | None] = {
    "web/up": ("L7OK", 0, "via agent : up"),
    "web/upreason": ("L7OK", 0, "via agent : up (all is well)"),
    "web/drain": ("CHECKED", None, None),
    "web/drainreason": ("L7OK", 0, 'via agent : up (kernel, upgrade "x")'),
    "web/ready": ("CHECKED", None, None),
    "web/junk": ("CHECKED", None, "agent reports an error : hello"),
    "web/dead": ("L4CON", None, "Connection refused"),
    "web/draindown": ("L7STS", 0, "via agent : down"),
    "web/disabledagent": None,
    "web/noagent": None,
    "track/drain": None,
}


@pytest.mark.parametrize("title", CHECKS)
def test_agent_checks_are_parsed(on_socket: Statistics, title: str) -> None:
    check = by_title(on_socket)[title].agent_check
    assert (check and (check["result"], check["code"], check["text"])) == CHECKS[title]


def test_running_check_has_no_text() -> None:
    """HAProxy 2.2 does not show the agent's previous response while a check runs."""
    server = by_title(parse_socket(lines(socket_answer("2.2"))))["web/maintup"]
    assert server.agent_check == {"result": "L7OK", "code": 0, "text": None, "running": True}
    assert server.is_being_asked


def test_health_checks_are_parsed(on_socket: Statistics) -> None:
    servers = by_title(on_socket)
    assert servers["web/nocheck"].health_check is None
    assert servers["web/maint"].health_check is None
    check = servers["web/downhealth"].health_check
    assert check
    assert (check["result"], check["text"]) == ("L4CON", "Connection refused")
    # One server's text contains a line end, which must not split its row into two.
    assert len(on_socket.servers) == 47


def test_other_fields_are_parsed(version: str, on_socket: Statistics, on_page: Statistics) -> None:
    assert on_socket.process
    assert on_socket.process.version.startswith(version)
    assert on_socket.process.pid in (60, 61)
    assert on_socket.process.uptime == 8
    assert on_page.process is None
    for statistics in (on_socket, on_page):
        assert statistics.backends == ["web", "track", "static", "hash", "consistent", "random", "hdr", "empty"]
        servers = by_title(statistics)
        assert {server.address for server in servers.values()} == {"127.0.0.1:8080", "127.0.0.1:8081"}
        assert {server.balance for server in servers.values()} >= {"roundrobin", "static-rr", "source"}
        assert [server.name for server in servers.values() if server.backup] == ["backup"]
        assert servers["track/chain"].tracks == "track/drain"
        assert servers["web/up"].tracks is None
        assert {(server.sessions, server.queue) for server in servers.values()} == {(0, 0)}
        assert all(0 < server.last_change < 20 for server in servers.values())


# Incomplete and invalid answers


def test_incomplete_answer_is_recognized_as_truncated(version: str) -> None:
    """No part of an answer is taken for a complete answer or for one of another program."""
    answer = socket_answer(version)
    ends = [*range(14, len(answer) - 2, 97), *range(len(answer) - 60, len(answer) - 2)]
    for end in ends:
        with pytest.raises(TruncatedError):
            parse_socket(lines(answer[:end]))


def test_incomplete_page_is_recognized_as_truncated(version: str) -> None:
    """A page has no end mark, but an incomplete line or backend can be recognized. HTTP reports the rest."""
    text = page_text(version)
    found = text.splitlines(keepends=True)
    row_ends = {len("".join(found[: number + 1])) for number, line in enumerate(found) if ",BACKEND," in line}
    frontends = {len("".join(found[: number + 1])) for number, line in enumerate(found) if ",FRONTEND," in line}
    header = {len(found[0])}
    for end in {*range(20, len(text), 97), *(len("".join(found[:number])) for number in range(1, len(found)))}:
        if end not in row_ends | frontends | header:
            with pytest.raises(TruncatedError):
                parse_page(lines(text[:end]))


@pytest.mark.parametrize("answer", ["", "\n\n", "hello", "UP 50%\n", "Permission denied\n\n", "<html>", "\x00"])
def test_answer_of_another_program_is_refused(answer: str) -> None:
    for parse in (parse_socket, parse_page):
        with pytest.raises(FormatError) as caught:
            parse(lines(answer))
        assert not isinstance(caught.value, TruncatedError)


def test_statistics_without_the_required_columns_are_refused() -> None:
    with pytest.raises(FormatError, match="columns"):
        parse_page(lines("# pxname,svname,type,\nweb,web7,2,\nweb,BACKEND,1,\n"))


def web_page(*rows: str) -> str:
    """A page with these rows in the backend web; USUAL stands for the remaining cells of the row of web/up."""
    header, *captured = page_text("2.6").splitlines()
    (usual,) = (row for row in captured if row.startswith("web,up,"))
    (backend,) = (row for row in captured if row.startswith("web,BACKEND,"))
    return "\n".join([header, *(row.replace("USUAL", usual.partition("web,up,")[2]) for row in rows), backend, ""])


@pytest.mark.parametrize(
    ("row", "title"),
    [
        ("web,bad,0,0", "web/bad"),
        ("web,bad,USUAL,1,2", "web/bad"),
        ('web,bad,"USUAL', ""),
        ('web,bad,"x"y,USUAL', "web/bad"),
        ("web,bad," + "x" * 5000, "web/bad"),
        ("web,bad,x" + "USUAL", "web/bad"),
        ("web", "web/?"),
        ("\x1b[2J,bad,0", r"\x1b[2J/bad"),
    ],
)
def test_unreadable_row_affects_only_its_server(row: str, title: str) -> None:
    page = web_page("web,up,USUAL", row, "web,other,USUAL")
    if not title:
        # An unclosed quote swallows the rest of the page, so the page looks truncated.
        with pytest.raises(TruncatedError):
            parse_page(lines(page))
        return
    statistics = parse_page(lines(page))
    assert [server.title for server in statistics.servers] == ["web/up", "web/other"]
    assert list(statistics.unreadable) == [title]
    assert title in statistics.unreadable_warning()
    assert len(statistics.select([], [])) == 2
    assert [server.name for server in statistics.select(["web"], ["other"])] == ["other"]
    with pytest.raises(UnreadableError, match=re.escape(title)):
        statistics.select([], [], all_readable=True)
    with pytest.raises(UnreadableError, match=re.escape(title)):
        statistics.select(["web"], ["bad"])


@pytest.mark.parametrize("name", ["FRONTEND", "BACKEND"])
def test_unreadable_row_of_a_frontend_or_backend_is_ignored(name: str) -> None:
    statistics = parse_page(lines(web_page("web,up,USUAL", f"web,{name},0")))
    assert [server.title for server in statistics.select(["web"], ["up"], all_readable=True)] == ["web/up"]
    with pytest.raises(SelectionError):
        statistics.select(["web"], ["other"])


def test_too_many_unreadable_rows_are_refused() -> None:
    noted = parse_page(lines(web_page("web,up,USUAL", *(f"web,bad{number},0" for number in range(1000)))))
    assert len(noted.unreadable) == 1000
    rows = (f"web,bad{number},0" for number in range(1001))
    with pytest.raises(FormatError, match="1000 servers"):
        parse_page(lines(web_page("web,up,USUAL", *rows)))


@pytest.mark.parametrize("line", ["5 web 1 up", "5 web 1 up 127.0.0.1 2 x 100 100 9 15 3 4 6 22", "5"])
def test_unreadable_state_affects_only_its_server(line: str) -> None:
    answer = socket_answer("2.6")
    (usual,) = (found for found in answer.splitlines() if found.startswith("5 web 1 up "))
    statistics = parse_socket(lines(answer.replace(usual, line)))
    assert ("web/up" in by_title(statistics)) == (line == "5")
    assert len(statistics.unreadable) == 1
    assert by_title(statistics)["web/drain"].admin_by == AGENT_OR_OPERATOR
    assert statistics.unreadable_warning()


def test_texts_are_unquoted_escaped_and_shortened() -> None:
    body = (
        'Error: "down"\n\nTraceback:\r\n  File x\x0b\x1c\x85 # pxname,svname,\nweb,fake,0\n\n1\n# be_id \x1b[2J'
        + 200000 * "x"
    )
    quoted = body.replace('"', '""')
    answer = socket_answer("2.6").replace("Connection refused", f'"{quoted}"', 1)
    assert quoted in answer
    statistics = parse_socket(lines(answer))
    assert len(statistics.servers) == 47
    assert not statistics.unreadable
    (text,) = (
        check["text"]
        for server in statistics.servers
        for check in (server.health_check, server.agent_check)
        if check and "Traceback" in (check["text"] or "")
    )
    assert text.startswith('Error: "down" Traceback: File x')
    assert r"\x1b[2J" in text
    assert text.isprintable()
    assert len(text) <= 1000


@pytest.mark.parametrize("name", ["hapee-lb", "HAProxy Enterprise", "aloha"])
def test_other_product_names_are_accepted(name: str) -> None:
    answer = socket_answer("2.6").replace("Name: HAProxy\n", f"Name: {name}\n")
    assert parse_socket(lines(answer)) == parse_socket(lines(socket_answer("2.6")))


def test_description_may_contain_empty_lines() -> None:
    answer = socket_answer("2.6").replace("\n\n# px", "\nDescription: a\n\nPid: 9\n\n# px", 1)
    assert parse_socket(lines(answer)) == parse_socket(lines(socket_answer("2.6")))


# Fuzzing replaces parts of recorded answers by these pieces or by random bytes.
PIECES = st.sampled_from(
    [b"", b"\n", b"\n\n", b",", b'"', b"\0", b"\r", b"\xff", b"9" * 5000, b"-1", b" ", b"# be_id ", b"1\n"]
)


@st.composite
def mutated(draw: st.DrawFn, kind: str) -> str:
    """A recorded answer of HAProxy with random changes."""
    answer = bytearray((FOLDER / f"{draw(st.sampled_from(VERSIONS))}-{kind}").read_bytes())
    for _change in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(answer)))
        length = draw(st.one_of(st.integers(0, 8), st.integers(0, len(answer))))
        answer[start : start + length] = draw(st.one_of(PIECES, st.binary(max_size=40)))
    return answer.decode("utf-8", "backslashreplace")


def assert_usable(statistics: Statistics) -> None:
    """Check that everything that was parsed can be returned and printed."""
    described = [server.describe() for server in statistics.select([], [])]
    texts = [*statistics.warnings(statistics.servers), statistics.unreadable_warning()]
    texts += [server.left() for server in statistics.servers]
    assert json.loads(json.dumps(described)) == described
    assert all(text.isprintable() for text in texts)
    for server in statistics.servers:
        assert {server.meets(wanted, 0) for wanted in WAITS} <= {True, False}


@pytest.mark.parametrize(
    ("parse", "kind"), [(parse_socket, "socket.txt"), (parse_page, "page.csv")], ids=["socket", "page"]
)
@settings(max_examples=300, derandomize=True, deadline=None)
@given(data=st.data())
def test_fuzzed_answer_is_refused_or_usable(
    parse: Callable[[io.StringIO], Statistics], kind: str, data: st.DataObject
) -> None:
    """A change leads to a FormatError or to unreadable rows, and to no other error."""
    text = data.draw(st.one_of(mutated(kind), st.binary(max_size=400).map(lambda sent: sent.decode("latin-1"))))
    try:
        statistics = parse(lines(text))
    except FormatError as error:
        assert str(error).isprintable()
    else:
        assert_usable(statistics)


# Conditions to wait for


def server(**fields: Any) -> Server:
    """A server that is up, with these fields changed."""
    check = {"result": "L7OK", "code": 0, "text": None, "running": False}
    usual: dict[str, Any] = {
        "backend": "web",
        "name": "web7",
        "address": "192.0.2.7:8080",
        "balance": "roundrobin",
        "backup": False,
        "status": "UP",
        "admin": 0,
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
    return Server(**{**usual, **fields})


# The changed fields, how many sessions may be left, and the conditions that the server meets.
MEETS: dict[str, tuple[dict[str, Any], int, set[str]]] = {
    "up": ({}, 0, {"up"}),
    "up, and going down": ({"status": "UP 1/3"}, 0, {"up"}),
    "no check": ({"status": "no check", "agent_check": None}, 0, {"up"}),
    "up with a small weight": ({"weight": 1}, 0, {"up"}),
    "weight 0": ({"weight": 0}, 0, {"drained"}),
    "no check, weight 0": ({"status": "no check", "weight": 0}, 0, {"drained"}),
    "drained": ({"status": "DRAIN"}, 0, {"drained"}),
    "drained by an agent": ({"status": "DRAIN (agent)"}, 0, {"drained"}),
    "drained, and going down": ({"status": "DRAIN 1/3"}, 0, {"drained"}),
    "drained, one session": ({"status": "DRAIN", "sessions": 1}, 0, set()),
    "drained, one session is allowed": ({"status": "DRAIN", "sessions": 1}, 1, {"drained"}),
    "drained, two sessions": ({"status": "DRAIN", "sessions": 2}, 1, set()),
    "drained, one in the queue": ({"status": "DRAIN", "queue": 1}, 0, set()),
    "no new sessions": ({"status": "NOLB"}, 0, {"drained"}),
    "no new sessions, and going down": ({"status": "NOLB 1/2"}, 0, {"drained"}),
    "down": ({"status": "DOWN"}, 0, {"drained", "down"}),
    "down by an agent": ({"status": "DOWN (agent)"}, 0, {"drained", "down"}),
    "down, and going up": ({"status": "DOWN 1/2"}, 0, {"drained", "down"}),
    "down, with a session": ({"status": "DOWN", "sessions": 1}, 0, {"down"}),
    "in maintenance": ({"status": "MAINT"}, 0, {"drained", "maint"}),
    "in maintenance by tracking": ({"status": "MAINT (via web/web7)"}, 0, {"drained", "maint"}),
    "in maintenance without an address": ({"status": "MAINT (resolution)"}, 0, {"drained", "maint"}),
    "in maintenance, with a session": ({"status": "MAINT", "sessions": 1}, 0, {"maint"}),
    "agent not polled yet": ({"agent_check": {"result": "INI", "text": None, "running": True}}, 0, set()),
    "agent does not respond": ({"agent_check": {"result": "L4CON", "text": None, "running": False}}, 0, {"up"}),
}


@pytest.mark.parametrize(("fields", "max_sessions", "met"), MEETS.values(), ids=MEETS)
def test_conditions_that_a_server_meets(fields: dict[str, Any], max_sessions: int, met: set[str]) -> None:
    one = server(**fields)
    assert {wanted for wanted in ("drained", "up", "down", "maint") if one.meets(wanted, max_sessions)} == met


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"status": "DRAIN", "sessions": 1}, "web/web7 (DRAIN, 1 session)"),
        (
            {"status": "DRAIN (agent)", "sessions": 12, "queue": 3},
            "web/web7 (DRAIN (agent), 12 sessions, 3 in its queue)",
        ),
        ({}, "web/web7 (UP, 0 sessions, takes new sessions)"),
        ({"weight": 0, "sessions": 2}, "web/web7 (UP, 2 sessions, weight 0)"),
    ],
)
def test_description_of_a_server(fields: dict[str, Any], left: str) -> None:
    assert server(**fields).left() == left


# The bits of srv_admin_state and srv_agent_state, the administrative state, and what set it.
@pytest.mark.parametrize(
    ("admin", "agent_state", "state", "by"),
    [
        (0x00, 0x16, "ready", []),
        (0x04, 0x16, "ready", []),
        (0x40, 0x16, "ready", []),
        (0x08, 0x00, "drain", ["operator"]),
        (0x08, 0x16, "drain", ["agent_or_operator"]),
        # The agent may have set it before its check was disabled.
        (0x08, 0x12, "drain", ["agent_or_operator"]),
        (0x10, 0x00, "drain", ["tracking"]),
        (0x18, 0x00, "drain", ["operator", "tracking"]),
        (0x01, 0x00, "maint", ["operator"]),
        (0x01, 0x16, "maint", ["agent_or_operator"]),
        (0x05, 0x16, "maint", ["configuration"]),
        (0x21, 0x16, "maint", ["agent_or_operator", "resolution"]),
        (0x28, 0x16, "maint", ["resolution"]),
        (0x02, 0x00, "maint", ["tracking"]),
        (0x03, 0x00, "maint", ["operator", "tracking"]),
        (0x20, 0x16, "maint", ["resolution"]),
        # Maintenance takes precedence over a drain.
        (0x09, 0x00, "maint", ["operator"]),
    ],
)
def test_administrative_state(admin: int, agent_state: int, state: str, by: list[str]) -> None:
    check = server().agent_check if agent_state & 0x04 else None
    one = server(admin=admin, agent_state=agent_state, agent_check=check)
    assert (one.admin_state, one.admin_by) == (state, by)


# Selection of servers


def test_servers_are_selected_by_backend_and_name() -> None:
    servers = [server(backend=backend, name=name) for backend, name in (("web", "a"), ("web", "b"), ("api", "b"))]
    statistics = Statistics(None, ["web", "api", "empty"], servers)
    assert statistics.select([], []) == servers
    assert statistics.select([], ["b"]) == servers[1:]
    assert statistics.select(["api", "web"], ["b"]) == servers[1:]
    assert statistics.select([], ["web/b"]) == [server for server in servers if server.title == "web/b"]
    with pytest.raises(SelectionError):
        statistics.select([], ["other/b"])
    assert statistics.select(["empty"], []) == []
    with pytest.raises(SelectionError, match=r"^HAProxy has no backend shop: it has web, api, empty$"):
        statistics.select(["web", "shop"], ["a"])
    with pytest.raises(SelectionError, match=r"^HAProxy has no server c: it has web/a, web/b, api/b$"):
        statistics.select([], ["a", "c"])
    with pytest.raises(SelectionError, match=r"^backend api, empty has no server a: it has api/b$"):
        statistics.select(["api", "empty"], ["a"])
    with pytest.raises(SelectionError, match=r"^HAProxy has no backend web: it has none$"):
        Statistics(None, [], []).select(["web"], [])


# Warnings about agent checks

STATIC = "via agent : up (Backend is using a static LB algorithm and only accepts weights '0%' and '100%'. )"
# The changed fields, and the beginning of the warning or '' if there is none.
WARNINGS: dict[str, tuple[dict[str, Any], str]] = {
    "well": ({}, ""),
    "no agent check": ({"agent_state": 0, "agent_check": None}, "has no agent-check on its server line: no agent"),
    "disabled": ({"agent_state": 0x12, "agent_check": None}, "the agent check was disabled manually"),
    "neither, on the page": (
        {"agent_state": None, "agent_check": None},
        "has no agent-check on its server line, or it",
    ),
    "not polled yet": ({"agent_check": {"result": "INI", "text": None}}, ""),
    "down": ({"agent_check": {"result": "L7STS", "text": "via agent : down"}}, ""),
    "no health keyword": ({"agent_check": {"result": "CHECKED", "text": None}}, ""),
    "refused": (
        {"agent_check": {"result": "L4CON", "text": "Connection refused"}},
        "the agent does not respond (L4CON, Co",
    ),
    "timed out": ({"agent_check": {"result": "L4TOUT", "text": None}}, "the agent does not respond (L4TOUT)"),
    "silent": ({"agent_check": {"result": "L7TOUT", "text": None}}, "the agent does not respond (L7TOUT)"),
    "no line": (
        {"agent_check": {"result": "L7RSP", "text": "Ignoring incomplete line"}},
        "the agent does not respond (L7",
    ),
    "junk": (
        {"agent_check": {"result": "CHECKED", "text": "agent reports an error : hello"}},
        "HAProxy does not understand the agent's response (agent reports an error : hello)",
    ),
    "static": (
        {"balance": "source", "agent_check": {"result": "L7OK", "text": STATIC}},
        "balance source accepts only the weights 0% and 100%",
    ),
    "static, of an unknown name": (
        {"balance": None, "agent_check": {"result": "L7OK", "text": STATIC}},
        "balance of this backend accepts only",
    ),
    "weight 1": ({"configured_weight": 1, "user_weight": 1}, "with the configured weight 1, any weight below 100% "),
    "weight 3": ({"configured_weight": 3, "user_weight": 3}, "with the configured weight 3, any weight below 34% "),
    "weight 9": ({"configured_weight": 9, "user_weight": 9}, "with the configured weight 9, any weight below 12% "),
    "weight 10": ({"configured_weight": 10, "user_weight": 10}, ""),
    "weight 10, rounded": (
        {"configured_weight": 10, "user_weight": 0},
        "with the configured weight 10, any weight below 10% ",
    ),
    "weight 100, set to 0": ({"configured_weight": 100, "user_weight": 0}, ""),
    "weight 256": ({"configured_weight": 256, "user_weight": 0}, ""),
    "weight 0": ({"configured_weight": 0, "user_weight": 0}, "the configured weight is 0"),
    "weight 1, static": ({"configured_weight": 1, "user_weight": 1, "balance": "static-rr"}, ""),
    "weight unknown": ({"configured_weight": None, "user_weight": None, "weight": 1}, ""),
}


@pytest.mark.parametrize(("fields", "warning"), WARNINGS.values(), ids=WARNINGS)
def test_useless_agent_checks_cause_a_warning(fields: dict[str, Any], warning: str) -> None:
    one = server(**fields)
    found = Statistics(None, ["web"], [one]).warnings([one])
    assert len(found) == bool(warning)
    assert all(text.startswith(f"web/web7: {warning}") and text.endswith(".") for text in found)


def test_equal_warnings_are_merged() -> None:
    servers = [server(name=name, agent_state=0, agent_check=None) for name in ("a", "b")] + [server()]
    (warning,) = Statistics(None, ["web"], servers).warnings(servers)
    assert warning.startswith("web/a, web/b: ")
    assert Statistics(None, ["web"], servers).warnings(servers[2:]) == []


def test_warning_for_a_tracking_server_is_about_the_tracked_one() -> None:
    deaf = {"agent_state": 0, "agent_check": None, "configured_weight": 1}
    web = [server(name="agent"), server(name="none", **deaf)]
    api = [
        server(backend="api", name="well", tracks="web/agent", **deaf),
        server(backend="api", name="chain", tracks="api/well", **deaf),
        server(backend="api", name="bad", tracks="web/none", **deaf),
        # A stats page may show only some of the backends.
        server(backend="api", name="hidden", tracks="shop/x", **deaf),
        server(backend="api", name="circle", tracks="api/circle", **deaf),
    ]
    (warning,) = Statistics(None, [], web + api).warnings(api[:4])
    assert warning.startswith("api/bad: tracks web/none, ")
    # HAProxy allows no circles, but an endless loop must be impossible.
    assert len(Statistics(None, [], web + api).warnings(api[4:])) == 1


def test_warnings_about_the_recorded_servers() -> None:
    for version in VERSIONS[1:]:
        statistics = parse_socket(lines(socket_answer(version)))
        titles = {
            title for text in statistics.warnings(statistics.servers) for title in text.split(": ")[0].split(", ")
        }
        assert titles == {
            *("web/dead", "web/junk", "web/disabledagent", "web/halflow", "web/noagent", "web/nocheck"),
            *("web/nocheckdrain", "web/backup", "web/w0", "consistent/a", "random/a", "hdr/a", "track/nocheck"),
            *("static/halfstatic", "static/halfstaticr", "hash/halfsrc"),
        }
