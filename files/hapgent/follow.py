# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Drain a server before its service stops, and bring it back when the service has started again.

The unit hapgent-drain@NAME.service runs this as root: "hapgent follow stop" when the service is about to stop, and
"hapgent follow start" when it has started. Only a state that the first has set is ended by the second. Stopping never
takes longer than its limit. Neither ever fails, because a unit that has failed would not drain the server later.
"""

from __future__ import annotations

import argparse
import time
import typing as t
import urllib.error
import urllib.request

from hapgent import instances
from hapgent._agent_process import InstanceError
from hapgent._change import AgentState, Change, ChangeError, NotReceivedError
from hapgent._printable import printable
from hapgent._state import IN_ROTATION, State
from hapgent._wait_for import WaitFor
from hapgent.instances import Found, SelectionError

# For the agent's answer, and for the load balancers.
ANSWER_SECONDS, RECEIVED_SECONDS = 10.0, 60.0
# A load balancer may open a connection right before it receives the state.
QUIET_SECONDS = 1.0
POLL_SECONDS = 0.2
HEALTH_SECONDS, HEALTH_POLL_SECONDS = 5.0, 1.0
# The state of a connection in /proc/net/tcp. Source: include/net/tcp_states.h in the source code of Linux.
ESTABLISHED, SYN_RECV = "01", "03"


def main(arguments: list[str]) -> int:
    """Run C(follow). Returns the exit status, which is 0 unless the arguments are wrong."""
    parser = argparse.ArgumentParser("hapgent follow", description=__doc__)
    parser.add_argument("event", choices=["stop", "start"])
    parser.add_argument("service", help="the agent's service")
    parser.add_argument("followed", help="the service that the agent follows")
    parser.add_argument(
        "--port", type=int, default=0, help="the port of that service, whose connections are waited for"
    )
    parser.add_argument("--grace", type=float, default=0.0, help="seconds in total for C(stop)")
    parser.add_argument("--health-url", default="", help="a URL that answers 200 if that service is healthy")
    options = parser.parse_args(arguments)
    reason = f"{options.followed} has stopped"
    try:
        found = instances.select(instances.discover(), options.service)[0]
        if options.event == "start":
            _return(found, reason, options.health_url)
        else:
            _leave(found, reason, time.monotonic() + options.grace, options.port)
    except (ChangeError, InstanceError, SelectionError) as error:
        _print(f"{options.service}: {error}.")
    return 0


# Before the service stops


def _leave(found: Found, reason: str, deadline: float, port: int) -> None:
    """Drain the server unless it is out of rotation, and wait until its connections have ended. Raises ChangeError."""
    change = Change({"status": "DRAIN", "reason": reason}, statuses=[*IN_ROTATION])
    agent = AgentState(found.state_file, change, min(deadline, time.monotonic() + ANSWER_SECONDS))
    if found.process is None:
        _print(f"{found.label} does not run, so no load balancer learns that the service stops.")
        return
    agent.plan(agent.load())
    if agent.kept:
        _print(f"{found.label} is out of rotation already: {_described(agent)}.")
    else:
        _drain(found, agent, deadline)
    _await_end_of_connections(port, deadline)


def _drain(found: Found, agent: AgentState, deadline: float) -> None:
    instance = found.find(agent.deadline)
    agent.ask(instance, with_peers=bool(instance.status_socket))
    agent.edit()
    agent.await_answer(instance)
    if not instance.status_socket:
        _print(f"{found.label}: {_described(agent)}.")
        return
    try:
        agent.await_peers(instance, WaitFor("auto"), max(0.0, min(RECEIVED_SECONDS, deadline - time.monotonic())))
    except NotReceivedError as error:
        missing = (
            error.result.missing(error.peers) if error.result.not_received_by else "no load balancer polls the agent"
        )
        _print(f"{found.label}: {_described(agent)}, not received by all: {missing}.")
    else:
        received = ", ".join(agent.received.received_by) if agent.received else ""
        _print(f"{found.label}: {_described(agent)}, received by {received}.")


def _await_end_of_connections(port: int, deadline: float) -> None:
    quiet_since = None
    while True:
        now = time.monotonic()
        open_now = connections(port)
        quiet_since = None if open_now else quiet_since or now
        if quiet_since is not None and now - quiet_since >= QUIET_SECONDS:
            return
        if now >= deadline:
            _print(f"The time is over, and {open_now} connections to port {port} are left.")
            return
        time.sleep(POLL_SECONDS)


def connections(port: int) -> int:
    """Return how many connections this host has accepted on a port. Source: proc_net(5)."""
    count = 0
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(path, encoding="ascii", errors="replace") as table:
                count += sum(_is_open(line, port) for line in table)
        except OSError:
            continue  # The host has no IPv6.
    return count


def _is_open(line: str, port: int) -> bool:
    fields = line.split()
    # Local address, remote address, state.
    return len(fields) > 3 and fields[1].endswith(f":{port:04X}") and fields[3] in (ESTABLISHED, SYN_RECV)


# When the service has started


def _return(found: Found, reason: str, health_url: str) -> None:
    """Bring the server back as soon as its service is healthy, if its stop has drained it. Raises ChangeError."""
    change = Change({"status": "UP"}, ["reason"], statuses=["DRAIN"], reason=reason)
    agent = AgentState(found.state_file, change, time.monotonic() + ANSWER_SECONDS)
    agent.plan(agent.load())
    if agent.kept:
        _print(f"{found.label} is left unchanged: {_described(agent)}.")
        return
    if health_url:
        _await_health(health_url)
    agent.deadline = time.monotonic() + ANSWER_SECONDS
    agent.edit()
    if found.process is not None:
        agent.await_answer(found.find(agent.deadline))
    _print(f"{found.label}: {_described(agent)}.")


def _await_health(url: str) -> None:
    """Wait until the service is healthy. The unit ends this process if the service stops before."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    shown = ""
    while True:
        problem = _health_problem(opener, url)
        if not problem:
            return
        if problem != shown:
            _print(f"Waiting until {url} answers 200: {problem}.")
            shown = problem
        time.sleep(HEALTH_POLL_SECONDS)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The service itself must answer, and not the target of a redirect, such as a login page."""

    def redirect_request(self, *_arguments: t.Any, **_keywords: t.Any) -> None:
        return None


def _health_problem(opener: urllib.request.OpenerDirector, url: str) -> str:
    try:
        with opener.open(url, timeout=HEALTH_SECONDS) as answer:
            return "" if answer.status == 200 else f"it answers {answer.status}"
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def _described(agent: AgentState) -> str:
    state: State = agent.planned
    return state.answer()


def _print(text: str) -> None:
    print(printable(text, 1000), flush=True)
