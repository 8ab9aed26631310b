# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What one host has asked is divided among the hosts for which it has asked."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.filter._fleet import host_servers, wait
from ansible_collections.hapgent.agent.plugins.plugin_utils import _recorded
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import Service

Result = dict[str, Any]


def service(name: str = "", *backends: str) -> Service:
    return {
        "name": name,
        "service": f"hapgent@{name}" if name else "hapgent",
        "state_file": "" if name else "/etc/hapgent/state.json",
        "server": "s1",
        "backends": [*backends],
    }


def settings_of(*load_balancers: str, backends: tuple[str, ...] = (), fleet: tuple[str, ...] = ()) -> Result:
    return {"services": [service("", *backends)], "load_balancers": [*load_balancers], "fleet": [*fleet]}


def balancer(name: str, *rows: str, unreadable: tuple[str, ...] = ()) -> Result:
    """The result of a load balancer with these servers, as backend/server."""
    pairs = [row.split("/") for row in rows]
    servers = [{"backend": backend, "server": server} for backend, server in pairs]
    return {"item": name, "servers": servers, "unreadable": dict.fromkeys(unreadable, "short")}


ASKED = [
    balancer("lb1", "web/s1", "web/s2", "api/s1", unreadable=("web/s3", "api/s4", "?/?")),
    balancer("lb2", "web/s1"),
    {"item": "lb3", "msg": "It is silent."},
]


def of_fleet(name: str, of_service: str = "hapgent") -> Result:
    state_file = "/etc/hapgent/state.json" if of_service == "hapgent" else ""
    return {"item": {"host": name, "service": of_service, "state_file": state_file}, "instances": []}


AGENTS = [of_fleet("web1"), of_fleet("web2"), of_fleet("web2", "hapgent@shop")]
FLEET = {"agents": AGENTS}
HOSTVARS: dict[str, dict[str, Any]] = {
    "web1": {
        "hapgent__asker": {"name": "web1"},
        "hapgent__settings": settings_of("lb1", "lb2"),
        "hapgent__queried": {"results": ASKED},
        "hapgent__fleet": FLEET,
    },
    # A task that is skipped also registers its result.
    "web2": {
        "hapgent__asker": {"name": "web1"},
        "hapgent__settings": settings_of("lb1", backends=("api",)),
        "hapgent__queried": {"skipped": True},
    },
    "web3": {"hapgent__asker": {"name": "web1"}, "hapgent__settings": settings_of("lb3", backends=("web",))},
    "web4": {
        "hapgent__asker": {"name": "web1"},
        "hapgent__settings": settings_of(fleet=("web2", "web4")),
        "hapgent__fleet": FLEET,
    },
    "web5": {"hapgent__asker": {"name": "web1"}, "hapgent__settings": settings_of(fleet=("web1", "web2"))},
    "web6": {
        "hapgent__asker": {"name": "web1"},
        "hapgent__settings": settings_of(fleet=("web2", "web6")),
        "hapgent__fleet": FLEET,
    },
    "with invalid variables": {"hapgent__settings": {"failed": True, "msg": "hapgent_min_up must be ..."}},
}


@pytest.mark.parametrize(
    ("host", "results"),
    [
        ("web1", ASKED[:2]),
        ("web2", [balancer("lb1", "api/s1", unreadable=("api/s4", "?/?"))]),
        ("web3", ASKED[2:]),
        ("web4", []),
    ],
)
def test_host_gets_the_results_of_its_load_balancers_and_backends(host: str, results: list[Result]) -> None:
    assert _recorded.asked(HOSTVARS, host, _recorded.settings(HOSTVARS, host)["services"][0]) == results


def test_results_for_all_hosts_come_from_the_host_that_asked() -> None:
    assert _recorded.asked_by_all(HOSTVARS, ["with invalid variables", "web2"]) == ASKED
    assert _recorded.asked_by_all(HOSTVARS, ["with invalid variables"]) == []


@pytest.mark.parametrize(("host", "members"), [("web4", ["web2"]), ("web5", []), ("web6", ["web2"]), ("web1", [])])
def test_fleet_counts_only_for_a_host_that_it_includes(host: str, members: list[str]) -> None:
    (own,) = _recorded.settings(HOSTVARS, host)["services"]
    assert [result["item"]["host"] for result in _recorded.fleet_agents(HOSTVARS, host, own)] == members


def test_agents_of_the_fleets_to_query() -> None:
    queries = _recorded.fleet_queries(HOSTVARS, ["web1", "web4", "web6"])
    assert [query["host"] for query in queries] == ["web2", "web4", "web6"]
    assert {query["service"] for query in queries} == {"hapgent"}
    # The default instance may have another name on another host. Named instances have the same name everywhere.
    hostvars = {**HOSTVARS, "web2": {"hapgent_service": "web-agent"}}
    assert _recorded.fleet_queries(hostvars, ["web4"])[0]["service"] == "web-agent"
    hostvars["web4"] = {"hapgent__settings": {"services": [service("shop"), service("api")], "fleet": ["web2"]}}
    assert _recorded.fleet_queries(hostvars, ["web4"]) == [
        {"host": "web2", "service": "hapgent@shop", "state_file": ""},
        {"host": "web2", "service": "hapgent@api", "state_file": ""},
    ]


def test_host_before_its_turn() -> None:
    assert _recorded.turn(HOSTVARS, "web1", plays=True) == {
        "reason": "",
        "refused": "",
        "done": False,
        "was_done": False,
        "kept_out": "",
        "failed": "",
        "sessions_left": "",
        "seconds_out": 0,
        "put_back": False,
        "plays": True,
    }


def test_host_with_invalid_variables_has_no_server() -> None:
    ((invalid, result),) = _recorded.agents(HOSTVARS, "with invalid variables")
    assert (invalid["server"], result) == ("", {})


def test_states_of_services() -> None:
    hostvars: dict[str, Result] = {"web1": {"hapgent__settings": {"services": [service("shop"), service("api")]}}}
    results = [{"before": {"status": "UP"}}, {"before": {"status": "DRAIN"}}]
    hostvars["web1"]["hapgent__agent"] = {"results": results}
    found = _recorded.states(hostvars, "web1")
    assert [(own["name"], state["status"]) for own, state in found] == [("shop", "UP"), ("api", "DRAIN")]
    assert [result for _own, result in _recorded.agents(hostvars, "web1")] == results
    # An unreachable host has no results.
    hostvars["web1"]["hapgent__agent"] = {"unreachable": True}
    assert [result for _own, result in _recorded.agents(hostvars, "web1")] == [{"unreachable": True}] * 2


def test_change_counts_only_for_its_step() -> None:
    recorded = {"step": "drain", "timeout": 60.0, "reported": "DRAIN", "services": ["hapgent"]}
    hostvars = {"web1": {"hapgent__changed": recorded}, "web2": {"hapgent__changed": {**recorded, "failed": True}}}
    assert _recorded.changed(hostvars, "web1", "drain") == recorded
    assert _recorded.changed(hostvars, "web1", "undrain") is None
    # What has failed is not waited for, nor is what has not been changed.
    assert _recorded.changed(hostvars, "web2", "drain") is None
    assert _recorded.changed({"web3": {}}, "web3", "drain") is None


@pytest.mark.parametrize("queried", [{"failed": True, "msg": "no password"}, {"results": ASKED[:1]}, None])
def test_load_balancer_that_was_not_queried_is_a_problem(queried: Result | None) -> None:
    """The task of the host that queries for all may fail, and the other hosts continue."""
    recorded = {} if queried is None else {"hapgent__queried": queried}
    own = {"hapgent__settings": settings_of("lb2"), "hapgent__asker": {"name": "web1"}}
    found = host_servers({"web1": recorded, "web2": own}, "web2")
    assert "lb2" in found["refusal"]
    assert "web2" in found["refusal"]


def test_load_balancers_are_waited_for_from_the_beginning_of_that_wait() -> None:
    """Not from the change: the polls of the agents of all hosts may have taken all the time since."""
    recorded = {"step": "drain", "timeout": 60.0, "reported": "DRAIN", "services": ["hapgent"]}
    servers = {"titles": {"lb1": {"hapgent": ["web/s1"]}}}
    hostvars = {"web1": {"hapgent__changed": recorded, "hapgent__servers": servers}}
    before = time.time()
    begun = wait(hostvars, ["web1"], "drain")
    assert before + 60 <= begun["deadline"] <= time.time() + 60
    assert begun["hosts"]["web1"]["problem"].endswith("web1 stays in DRAIN.")


def test_outcomes_of_a_drain_and_of_an_undrain() -> None:
    began = time.time() - 7
    changed = {"step": "drain", "changed": True, "began": began}
    of_drain = {"hapgent__settings": {"grace": 5}, "hapgent__drained": {"sessions_left": "lb1: 2 sessions."}}
    drained = {"sessions_left": "", "began": began - 30}
    undrain = {"hapgent__changed": {**changed, "step": "undrain"}, "hapgent__undrained": {"ended": began + 7}}
    hostvars: dict[str, Result] = {
        "web1": {**of_drain, "hapgent__changed": changed},
        "web2": {"hapgent__drained": drained, "hapgent__changed": changed},
        "web3": {},
        "web4": {"hapgent__drained": drained, "hapgent__changed": {**changed, "changed": False}},
        "web5": {"hapgent__drained": drained, **undrain},
        "web6": undrain,
        # What has failed was not done.
        "web7": {"hapgent__drained": drained, "hapgent__changed": {**changed, "failed": True}},
        "web8": {"hapgent__drained": {"failed": True}, "hapgent__changed": changed},
        "web9": {**undrain, "hapgent__undrained": {"failed": True}},
    }
    found = _recorded.outcomes(hostvars, hostvars, "drain")
    (left,), (done,) = found["left"], found["done"]
    assert "5 s" in left
    assert left.endswith("web1: lb1: 2 sessions.")
    assert re.fullmatch(r"web2: .* [78] s, .*", done)
    back = _recorded.outcomes(hostvars, hostvars, "undrain")
    assert back["left"] == []
    assert re.fullmatch(r"web5: .* [78] s, .* 3[78] s", back["done"][0])
    assert re.fullmatch(r"web6: .* [78] s", back["done"][1])


def test_states_after_a_change() -> None:
    changed = {"item": {"service": "hapgent", "only_if": {"status": ["UP"]}}, "after": {"status": "DRAIN"}}
    kept = {"item": {"service": "hapgent@api", "only_if": {}}, "after": {"status": "MAINT"}}
    hostvars = {"web1": {"hapgent__changed": {"results": [changed, kept]}}}
    assert _recorded.changed_states(hostvars, "web1") == [(changed["item"], {"status": "DRAIN"})]


def test_variables_are_computed_once() -> None:
    class Counting(dict[str, Any]):
        reads = 0

        def __getitem__(self, name: str) -> Any:
            Counting.reads += 1
            return super().__getitem__(name)

    hostvars = _recorded.read_once(Counting(web1=Counting(name="value")))
    for _time in range(3):
        assert hostvars["web1"]["name"] == hostvars["web1"].get("name") == "value"
        assert hostvars["web1"].get("other", "default") == "default"
    assert Counting.reads == 2
    assert "web2" not in hostvars
    with pytest.raises(KeyError):
        assert hostvars["web2"]
