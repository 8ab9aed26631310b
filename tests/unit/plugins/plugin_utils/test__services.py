# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The variables of a host select the agents that a playbook works on."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.filter._fleet import services_of
from ansible_collections.hapgent.agent.plugins.plugin_utils._services import (
    Service,
    ServicesError,
    Variables,
    services,
    titled,
)

FOUND = ["hapgent", "hapgent@shop", "legacy"]


def selected(wanted: Any, found: list[str] | None = None, **more: object) -> list[Service]:
    variables = {"service": "hapgent", "state_file": "/etc/hapgent/state.json", "server": "web7", "backend": [], **more}
    return services(Variables(wanted, **variables), FOUND if found is None else found)


@pytest.mark.parametrize(
    ("wanted", "default", "expected"),
    [
        ([], "hapgent", ["hapgent"]),
        ("", "web-agent", ["web-agent"]),
        (None, "hapgent@shop", ["hapgent@shop"]),
        (["shop"], "hapgent", ["hapgent@shop"]),
        ("shop, api", "hapgent", ["hapgent@shop", "hapgent@api"]),
        (["hapgent", "hapgent@shop", "shop"], "hapgent", ["hapgent", "hapgent@shop"]),
        (["web-agent", 7], "web-agent", ["web-agent", "hapgent@7"]),
        ("all", "hapgent", FOUND),
        (["all"], "hapgent", FOUND),
    ],
)
def test_selected_services(wanted: Any, default: str, expected: list[str]) -> None:
    assert [service["service"] for service in selected(wanted, service=default)] == expected


def test_all_leaves_out_none_of_two_with_the_same_name() -> None:
    found = selected("all", found=["shop", "hapgent@shop"])
    assert [service["service"] for service in found] == ["hapgent@shop", "shop"]
    assert len({service["name"] for service in found}) == 2


@pytest.mark.parametrize("service", ["", None])
def test_without_a_default_instance_the_others_must_be_named(service: str | None) -> None:
    with pytest.raises(ServicesError, match=r"hapgent_services .* hapgent_service is empty"):
        selected([], service=service)
    assert [found["service"] for found in selected("shop", service=service)] == ["hapgent@shop"]
    assert [found["service"] for found in selected("all", service=service)] == FOUND


def test_all_of_a_host_without_agents_is_the_default_one() -> None:
    """Reading its state then reports the problem."""
    assert [service["service"] for service in selected("all", found=[])] == ["hapgent"]


def test_only_the_default_instance_may_be_found_by_its_state_file() -> None:
    assert selected([])[0]["state_file"] == "/etc/hapgent/state.json"
    assert [service["state_file"] for service in selected(["hapgent", "shop"])] == ["", ""]


def test_messages_name_a_service_only_if_there_are_several() -> None:
    (one,) = selected("shop")
    shop, default = selected("shop,hapgent")
    assert [titled("web7", service) for service in (one, shop, default)] == ["web7", "web7 shop", "web7 hapgent"]


def test_servers_and_backends_may_differ() -> None:
    shop, api = selected(
        "shop,api", server={"shop": "web7-shop", "api": 7}, backend={"shop": "shop,admin", "api": ["api"]}
    )
    assert (shop["server"], shop["backends"]) == ("web7-shop", ["shop", "admin"])
    assert (api["server"], api["backends"]) == ("7", ["api"])
    shop, api = selected("shop,api", backend="web")
    assert (shop["server"], api["server"], shop["backends"], api["backends"]) == ("web7", "web7", ["web"], ["web"])


def test_numbers_may_be_names() -> None:
    (seven,) = selected([7], server={7: "web-seven"}, backend={7: ["web"]})
    assert (seven["server"], seven["backends"]) == ("web-seven", ["web"])


@pytest.mark.parametrize("variable", ["server", "backend"])
def test_each_service_needs_an_entry(variable: str) -> None:
    with pytest.raises(ServicesError, match=f"hapgent_{variable} .* none for api, hapgent"):
        selected("shop,api,hapgent", FOUND, **{variable: {"shop": "s"}})


def test_filter() -> None:
    variables = {"services": "shop", "service": "hapgent", "state_file": "", "server": "web7", "backend": None}
    (service,) = services_of(variables, [])
    assert service == {"name": "", "service": "hapgent@shop", "state_file": "", "server": "web7", "backends": []}
