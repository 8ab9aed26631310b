# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role's variables describe instances, no two of which may share an address or a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.hapgent.agent.plugins.plugin_utils._instances import OF_INSTANCE, conflicts, instances

ROLE = Path(__file__).parents[4] / "roles" / "hapgent"
DEFAULTS: dict[str, Any] = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
SPECS: dict[str, Any] = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text(encoding="utf-8"))


def described(*listed: dict[str, Any], **variables: Any) -> list[dict[str, Any]]:
    return instances({**DEFAULTS, **variables}, listed)


def test_the_default_instance_has_the_plain_variables() -> None:
    (found,) = described()
    assert found == {
        "name": None,
        "service": "hapgent",
        "drain_unit": "hapgent-drain@hapgent.service",
        "weight_unit": "hapgent-weight@hapgent",
        "weight_job": "hapgent-weight-hapgent",
        **{key: DEFAULTS[f"hapgent_{key}"] for key in OF_INSTANCE},
    }


@pytest.mark.parametrize("service", ["", None])
def test_there_need_be_no_default_instance(service: str | None) -> None:
    assert described(hapgent_service=service) == []
    (found,) = described({"name": "shop"}, hapgent_service=service)
    assert found["service"] == "hapgent@shop"


def test_an_entry_has_the_plain_variables_except_what_it_sets() -> None:
    default, shop, seven = described({"name": "shop", "port": 9778, "user": "shop"}, {"name": 7}, hapgent_weight=50)
    assert shop == {
        **default,
        "name": "shop",
        "service": "hapgent@shop",
        "drain_unit": "hapgent-drain@shop.service",
        "weight_unit": "hapgent-weight@shop",
        "weight_job": "hapgent-weight-shop",
        "state_file": "/etc/hapgent/shop/state.json",
        "port": 9778,
        "user": "shop",
    }
    assert (seven["service"], seven["weight"], seven["state_file"]) == ("hapgent@7", 50, "/etc/hapgent/7/state.json")


def test_cron_accepts_the_names_of_the_jobs() -> None:
    names = ["shop-2", "shop.2", "shop_2", "shop_2e2"]
    jobs = [found["weight_job"] for found in described(*({"name": name} for name in names), hapgent_service="a@b")]
    assert all(re.fullmatch("[A-Za-z0-9_-]+", job) for job in jobs)
    assert len(set(jobs)) == len(names) + 1


def test_the_specs_list_what_an_entry_may_set() -> None:
    options = SPECS["argument_specs"]["main"]["options"]
    assert set(options["hapgent_instances"]["options"]) == {"name", *OF_INSTANCE}
    for key in OF_INSTANCE:
        plain, own = options[f"hapgent_{key}"], options["hapgent_instances"]["options"][key]
        assert {**plain, "description": "", "default": ""} == {**own, "description": "", "default": ""}


@pytest.mark.parametrize("service", ["shop", "hapgent@shop"])
def test_the_default_instance_has_no_name_of_another(service: str) -> None:
    """Otherwise hapgent_services=shop and --service shop would mean either of them."""
    (problem,) = conflicts(described({"name": "shop", "port": 1}, hapgent_service=service))
    assert "name shop" in problem


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        ([{"name": "shop", "port": 1}, {"name": "api", "port": 2}], None),
        ([{"name": "shop", "port": 1}, {"name": "shop", "port": 2}], "name shop"),
        ([{"name": "shop"}], "hapgent and shop"),
        ([{"name": "shop", "port": "9777"}], "port 9777 of 0.0.0.0"),
        ([{"name": "shop", "ip": "192.0.2.1"}], "0.0.0.0 and 192.0.2.1"),
        ([{"name": "shop", "ip": "::1"}], None),
        ([{"name": "shop", "ip": "::"}], "0.0.0.0 and ::"),
        ([{"name": "a", "ip": "192.0.2.1", "port": 1}, {"name": "b", "ip": "192.0.2.2", "port": 1}], None),
        ([{"name": "a", "ip": "::", "port": 1}, {"name": "b", "ip": "192.0.2.2", "port": 1}], ":: and 192.0.2.2"),
        ([{"name": "a", "ip": "2001:db8::1", "port": 1}, {"name": "b", "ip": "2001:DB8:0::1", "port": 1}], "a and b"),
        ([{"name": "a", "port": 1, "state_file": "/etc/hapgent/state.json"}], "file /etc/hapgent/state.json"),
        ([{"name": "a", "port": 1, "state_file": "/etc/hapgent/a.json"}], None),
        ([{"name": "a", "port": 1, "state_file": "/etc/hapgent/state.json.lock"}], "state.json.lock"),
        ([{"name": "a", "port": 1, "user": "a"}], "/etc/hapgent/a of user a would be in /etc/hapgent"),
        ([{"name": "a", "port": 1, "user": "a", "state_file": "/etc/hapgent/a.json"}], "share the folder /etc/hapgent"),
        ([{"name": "a", "port": 1, "user": "a", "state_file": "/etc/hapgent-a/state.json"}], None),
        ([{"name": "a", "port": 1, "user": "a", "state_file": "/var/lib/hapgent/a/state.json"}], None),
    ],
)
def test_conflicts(listed: list[dict[str, Any]], problem: str | None) -> None:
    for order in (listed, listed[::-1]):
        found = conflicts(described(*order))
        assert len(found) == (problem is not None), found
    assert problem is None or problem in conflicts(described(*listed))[0]
