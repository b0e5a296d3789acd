# SPDX-License-Identifier: GPL-2.0-only
"""`mptm group`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mptm.cli.common import (
    Columns,
    complete_names,
    current_node,
    in_words,
    json_option,
    network_option,
    of_network,
    only_network_option,
    print_fields,
    print_json,
    print_objects,
    print_table,
    usage_errors,
    warn_of,
)

if TYPE_CHECKING:
    from mptm.intent import Intent

member_option = click.option(
    "--member",
    "members",
    metavar="TUNNEL[:WEIGHT]",
    multiple=True,
    help="A tunnel of the network, and how much it gets beside the others: 1 to 256.  [default: 1]  Repeatable.",
)


@click.group()
def group() -> None:
    """Groups: tunnels that share the flows which lead to the group.

    \b
    Example:
      mptm group add exits --network blue --member to-node2:3 --member to-node3
      mptm route add 10.99.0.0/16 --network blue --group exits
      mptm group show exits
    """


@group.command("add")
@click.argument("name")
@network_option
@member_option
def group_add(name: str, network: str, members: tuple[str, ...]) -> None:
    """Add a group of tunnels.

    A flow stays with its tunnel; when that goes down only its own flows move to the others, and they come back with it.

    \b
    Example:
      mptm group add exits --network blue --member to-node2:3 --member to-node3
    """
    from mptm.intent import Group

    with usage_errors():
        wanted = Group.from_dict({"name": name, "network": network, "members": list(members)})
    warn_of(current_node().add(wanted))


@group.command("set")
@click.argument("name", shell_complete=complete_names("groups"))
@member_option
@click.option(
    "--no-member",
    "leaving",
    metavar="TUNNEL",
    multiple=True,
    shell_complete=complete_names("tunnels"),
    help="A tunnel that is no member any more. Repeatable.",
)
def group_set(name: str, members: tuple[str, ...], leaving: tuple[str, ...]) -> None:
    """Change members: --member adds a tunnel or gives it another weight, the others stay.

    \b
    Example:
      mptm group set exits --member to-node4 --member to-node3:2
      mptm group set exits --no-member to-node2
    """
    from msgspec.structs import replace

    from mptm.errors import NotFound
    from mptm.intent import Member

    if not members and not leaving:
        raise click.UsageError("give --member or --no-member")
    with usage_errors():
        changed = {member.tunnel: member for member in map(Member.from_value, members)}

    def change(intent: Intent) -> Intent:
        found = intent.get("group", name)
        wanted = {member.tunnel: member for member in found.members} | changed
        for tunnel in leaving:
            if wanted.pop(tunnel, None) is None:
                raise NotFound(
                    f"{tunnel} is no member of group {name}", f"members: {in_words(found.members)}"
                )
        with usage_errors():
            return intent.replace(replace(found, members=tuple(wanted.values())))

    warn_of(current_node().edit(change))


@group.command("list")
@only_network_option
@json_option
def group_list(network: str | None, as_json: bool) -> None:
    """List the groups.

    \b
    Example:
      mptm group list --network blue
    """
    columns: Columns = {
        "NAME": "name",
        "NETWORK": "network",
        "MEMBERS": lambda each: in_words(each.members),
    }
    print_objects(
        of_network(current_node().intent, "group", network), columns, as_json=as_json, defaults=True
    )


@group.command("show")
@click.argument("name", shell_complete=complete_names("groups"))
@json_option
def group_show(name: str, as_json: bool) -> None:
    """Show a group: its members, whether they are up, and the share of the flows that each has now (needs root).

    \b
    Example:
      mptm group show exits
    """
    details = current_node().group_details(name)
    if as_json:
        print_json(details.to_dict())
        return
    print_fields({"name": details.name, "network": details.network, "state": details.state})
    click.echo()
    rows: list[tuple[Any, ...]] = [
        (each.tunnel, each.weight, each.state, None if each.share is None else f"{100 * each.share:.1f} %")
        for each in details.members
    ]
    print_table(["MEMBER", "WEIGHT", "STATE", "SHARE"], rows, right="WEIGHT SHARE")


@group.command("del")
@click.argument("name", shell_complete=complete_names("groups"))
def group_del(name: str) -> None:
    """Delete a group that no route or flow leads to any more.

    \b
    Example:
      mptm group del exits
    """
    warn_of(current_node().remove("group", name))
