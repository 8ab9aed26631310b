# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""What the role changes on a host: the accounts that it creates or removes, the instances that leave, and the units.

C(host) is always what the module hapgent_host_info has returned for the described instances.
"""

from __future__ import annotations

import typing as t

Host = t.Mapping[str, t.Any]
Instance = t.Mapping[str, t.Any]

# These comments mark a user that the role created, with or without its group. Uninstalling removes no other users.
CREATED = "Created by hapgent.agent"
CREATED_WITH_GROUP = "Created by hapgent.agent with its group"


class User(t.TypedDict):
    """A user to create, and its comment."""

    name: str
    group: str
    comment: str


class Accounts(t.TypedDict):
    """Groups and users to create, or to remove."""

    groups: list[str]
    users: list[User]


class Weight(t.TypedDict):
    """The units that set the weight of an instance, the timer first, or its cron job, and the Python that runs it."""

    service: str
    python: str
    state_file: str
    units: list[str]


class Leaving(t.TypedDict):
    """What to remove: units (or init scripts), the sockets first, the state files of these instances, the deepest
    first, units that drain instances, and units that set weights.

    Units that drain instances must not be stopped, because that would drain the server.
    """

    units: list[str]
    drain_units: list[str]
    weights: list[Weight]
    state_files: list[str]


class Units(t.TypedDict):
    """The units to stop, start and restart, in this order, and whether systemd must read the units again before.

    C(drain) are units to enable and start, and C(enable) to enable only, because the service that they follow does not
    run. They are never restarted, because that would drain the server.
    """

    reload: bool
    drain: list[str]
    enable: list[str]
    stop: list[str]
    start: list[str]
    restart: list[str]


def missing_accounts(host: Host) -> Accounts:
    """The accounts that the instances need and that do not exist."""
    accounts: Accounts = {"groups": [], "users": []}
    for account in host["accounts"]:
        name, group = account["name"], account["group"]
        with_group = account["members"] is None and group not in accounts["groups"]
        if with_group:
            accounts["groups"].append(group)
        if account["comment"] is None and name not in [user["name"] for user in accounts["users"]]:
            comment = CREATED_WITH_GROUP if with_group else CREATED
            accounts["users"].append({"name": name, "group": group, "comment": comment})
    return accounts


def removable_accounts(host: Host) -> Accounts:
    """The accounts that the role created and that nothing else uses.

    The group that was created with a user is the primary group of that user. Another one may have existed before.
    """
    mine = [
        account
        for account in host["accounts"]
        if account["comment"] in (CREATED, CREATED_WITH_GROUP) and not account["other_services"]
    ]
    names = [account["name"] for account in mine]
    return {
        "groups": [
            account["group"]
            for account in mine
            if account["comment"] == CREATED_WITH_GROUP
            and account["is_primary"]
            and not set(account["members"] or []) - {*names}
        ],
        "users": [{"name": name, "group": "", "comment": ""} for name in dict.fromkeys(names)],
    }


def leaving(host: Host, described: t.Sequence[Instance], uninstall: bool) -> Leaving:
    """The instances that the role has installed and that are not described any more; with C(uninstall), all."""
    staying = [] if uninstall else [instance["service"] for instance in described]
    gone = [found for found in host["installed"] if found["service"] not in staying]
    units = [unit for found in gone for unit in found["units"]]
    followers = [] if uninstall else [instance["drain_unit"] for instance in described if instance["drain_with"]]
    drain_units = [unit for found in host["installed"] for unit in found["drain_units"] if unit not in followers]
    weighed = [] if uninstall else [instance["service"] for instance in described if instance["weight_command"]]
    weights: list[Weight] = [
        {
            "service": found["service"],
            "python": found["python"],
            "state_file": found["state_file"],
            "units": found["weight_units"],
        }
        for found in host["installed"]
        if found["weight_units"] and found["service"] not in weighed
    ]
    files = [found["state_file"] for found in gone if found["state_file"]]
    if uninstall:
        # Such as those of the role of hapgent 0.3.2.
        units += [unit for found in host["instances"] if found["unit"]["runs_agent"] for unit in found["unit"]["units"]]
        files += [instance["state_file"] for instance in described]
    return {
        "units": sorted(dict.fromkeys(units), key=lambda unit: not unit.endswith(".socket")),
        "drain_units": drain_units,
        "weights": weights,
        # The deepest first, because a folder that contains the folder of another instance cannot be removed.
        "state_files": sorted(dict.fromkeys(files), key=lambda path: -path.count("/")),
    }


def listens(instance: Instance) -> str:
    """The address of the socket of an instance, as systemd reads and prints it."""
    ip = str(instance["ip"])
    return f"{f'[{ip}]' if ':' in ip else ip}:{instance['port']}"


def units(
    host: Host, described: t.Sequence[Instance], changed: t.Collection[str], new_program: bool, check_mode: bool
) -> Units:
    """What to do with the units after they were written.

    C(changed) are the services and the units for weights of which a file was changed, and C(new_program) is whether the
    program was. In check mode, systemd does not know the units that a real run would have written, so nothing is done
    with those.
    """
    plan = _empty()
    for instance, found in zip(described, host["instances"]):
        service, unit = instance["service"], found["unit"]
        if check_mode and service in changed:
            continue
        # A service is outdated if an earlier run was interrupted.
        restarts = service in changed or new_program or unit["is_outdated"]
        moves = restarts and unit["listens"] != f"{listens(instance)} (Stream)"
        plan["reload"] = plan["reload"] or restarts
        # All sockets with a new address are closed before one is opened, because two may exchange their addresses.
        if moves and unit["exists"]:
            plan["stop"] += [f"{service}.socket", f"{service}.service"]
        if moves or not unit["socket_runs"]:
            plan["start"].append(f"{service}.socket")
        if restarts:
            plan["restart"].append(f"{service}.service")
        elif not unit["service_runs"]:
            plan["start"].append(f"{service}.service")
        if instance["drain_with"] and unit["followed_runs"] and not unit["drain_runs"]:
            plan["drain"].append(instance["drain_unit"])
        elif instance["drain_with"] and not unit["drain_enabled"]:
            plan["enable"].append(instance["drain_unit"])
        if instance["weight_command"] and not (check_mode and instance["weight_unit"] in changed):
            is_changed = instance["weight_unit"] in changed
            plan["reload"] = plan["reload"] or is_changed
            if is_changed or not unit["weight_runs"]:
                plan["restart" if is_changed else "start"].append(f"{instance['weight_unit']}.timer")
    return plan


def scripts(
    host: Host, described: t.Sequence[Instance], changed: t.Collection[str], new_program: bool, check_mode: bool
) -> Units:
    """What to do with the init scripts after they were written; see units(). No socket stays open meanwhile."""
    plan = _empty()
    for instance, found in zip(described, host["instances"]):
        service, script = instance["service"], found["unit"]
        if check_mode and service in changed:
            continue
        if service in changed or new_program or script["is_outdated"]:
            # All with a new address are stopped before one is started, because two may exchange their addresses.
            if script["exists"] and script["listens"] != f"{instance['ip']}:{instance['port']}":
                plan["stop"].append(service)
            plan["restart"].append(service)
        elif not script["service_runs"]:
            plan["start"].append(service)
    return plan


def _empty() -> Units:
    return {"reload": False, "stop": [], "start": [], "restart": [], "drain": [], "enable": []}
