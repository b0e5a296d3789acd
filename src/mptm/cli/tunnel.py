# SPDX-License-Identifier: GPL-2.0-only
"""`mptm tunnel`: its options are those that the protocols declare, so a new protocol brings its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from mptm.cli.common import (
    Columns,
    Command,
    complete_interfaces,
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
    usage_errors,
    warn_of,
)

if TYPE_CHECKING:
    from mptm.fields import Field
    from mptm.intent import Intent

ON_OR_OFF = "on or off"
"""What an option takes that is written as a word, not as a flag."""

NOTHING = "nothing"
"""Stands for a default that leaves something out: the description says what that means."""


class WithProtocolOptions(click.Command):
    """A command whose options are those of all protocols, too: they are added when it is parsed or helped."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The common options, then each protocol option once, saying which protocols have it."""
        return [*self.params, *_protocol_options(), *super().get_params(ctx)[len(self.params) :]]


class ProtocolChoice(click.ParamType[str]):
    """A protocol of the registry."""

    name = "protocol"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, when there is such a protocol."""
        from mptm.protocols import PROTOCOLS

        if value not in PROTOCOLS:
            self.fail(f"{value!r} is no protocol; there are {', '.join(PROTOCOLS)}", param, ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The protocols' names."""
        from mptm.protocols import PROTOCOLS

        return [
            click.shell_completion.CompletionItem(name, help=protocol.title)
            for name, protocol in PROTOCOLS.items()
            if name.startswith(incomplete)
        ]


def _options_of(protocol: str) -> dict[str, Field]:
    """The fields of a protocol's options by name."""
    from mptm.fields import Checked, fields_of
    from mptm.protocols import PROTOCOLS

    options: type[Checked] = PROTOCOLS[protocol].options
    return {field.name: field for field in fields_of(options)}


def _protocol_options() -> list[click.Parameter]:
    from mptm.protocols import PROTOCOLS

    owners: dict[str, list[tuple[str, Field]]] = {}
    for name in PROTOCOLS:
        for field in _options_of(name).values():
            owners.setdefault(field.name, []).append((name, field))
    return [_option(name, owned) for name, owned in owners.items()]


def _option(name: str, owners: list[tuple[str, Field]]) -> click.Option:
    first = owners[0][1]
    flag = f"--{name.replace('_', '-')}"
    about = f"{', '.join(owner for owner, _ in owners)}: {first.description}"
    default = _default_of(owners)
    if (first.default is True or first.default is False) and first.expected != ON_OR_OFF:
        return click.Option(
            [f"{flag}/--no-{name.replace('_', '-')}", f"option_{name}"],
            default=None,
            help=f"{about}{default}",
        )
    return click.Option(
        [flag, f"option_{name}"], metavar=_metavar(first), help=f"{about} ({_range(first)}){default}"
    )


def _default_of(owners: list[tuple[str, Field]]) -> str:
    """`  [required (fou); default: 6081 (geneve)]`; protocols are named where they differ."""
    by_value: dict[str, list[str]] = {}
    for owner, field in owners:
        by_value.setdefault("" if field.required else _shown(field), []).append(owner)
    needing = by_value.pop("", [])
    defaults = [
        f"{shown} ({', '.join(having)})" if needing or len(by_value) > 1 else shown
        for shown, having in by_value.items()
        if shown != NOTHING
    ]
    parts = [f"required ({', '.join(needing)})" if by_value else "required"] if needing else []
    parts += [f"default: {', '.join(defaults)}"] if defaults else []
    return f"  [{'; '.join(parts)}]" if parts else ""


def _range(field: Field) -> str:
    return field.expected.removeprefix("a whole number from ").replace(" to ", "-")


def _metavar(field: Field) -> str:
    """N for a number, N|WORD where a word is possible, too."""
    if field.expected == ON_OR_OFF:
        return "on|off"
    match = re.fullmatch(r"a whole number from \d+ to \d+(?: or (\w+))?", field.expected)
    if match is None:
        return "VALUE"
    return f"N|{match[1]}" if match[1] else "N"


def _shown(field: Field) -> str:
    if field.default in (None, "", ()):
        return NOTHING
    if isinstance(field.default, bool):
        return "yes" if field.default else "no"
    return hex(field.default) if field.hexadecimal and isinstance(field.default, int) else str(field.default)


@click.group()
def tunnel() -> None:
    """Tunnels: ways to other nodes.

    \b
    Example:
      mptm tunnel add to-node2 --protocol geneve --network blue --remote 10.30.30.2 --vni 100
      mptm tunnel show to-node2
    """


def _settings(function: Command) -> Command:
    """What a tunnel has beside its protocol's options."""
    for option in (
        click.option(
            "--note",
            "notes",
            metavar="KEY=VALUE",
            multiple=True,
            help="Kept and shown, without effect. Repeatable.",
        ),
        click.option(
            "--accept",
            "accepted",
            metavar="PROTOCOL[,OPTION=VALUE...]",
            multiple=True,
            help="A protocol that is accepted from the remote beside the one that is sent; options that aren't given "
            "are those of what is sent. Repeatable.",
        ),
        click.option(
            "--split-horizon",
            type=click.IntRange(1, 255),
            metavar="N",
            help="Nothing is relayed between tunnels that have the same number (1-255).",
        ),
        click.option(
            "--egress",
            metavar="INTERFACE",
            shell_complete=complete_interfaces,
            help="Interface to send from.  [default: the one that the route to the remote uses]",
        ),
        click.option(
            "--local-mac", metavar="MAC", help="Outer source MAC.  [default: the egress interface's]"
        ),
        click.option(
            "--remote-mac", metavar="MAC", help="Outer destination MAC.  [default: the next hop's, by ARP/ND]"
        ),
        click.option(
            "--local",
            metavar="ADDRESS",
            help="Our underlay address.  [default: what the route to the remote uses]",
        ),
        click.option(
            "--remote",
            metavar="ADDRESS|any",
            help="Underlay address of the other end, the only sender that is accepted; any accepts everyone.",
        ),
    ):
        function = option(function)
    return function


@tunnel.command(cls=WithProtocolOptions)
@click.argument("name")
@click.option(
    "--protocol", required=True, type=ProtocolChoice(), metavar="PROTOCOL", help="What goes on the wire."
)
@network_option
@_settings
def add(name: str, notes: tuple[str, ...], accepted: tuple[str, ...], **options: Any) -> None:
    """Add a tunnel to another node.

    Addresses and MACs that are not given are found in the routing and neighbour tables. A remote that doesn't answer
    is an error, and nothing is changed; with --remote-mac no answer is needed.

    \b
    Example:
      mptm tunnel add to-node2 --protocol geneve --network blue --remote 10.30.30.2 --vni 100
      mptm tunnel add to-leaf --protocol vlan --network green --remote 10.30.30.3 --vid 42
    """
    from mptm.change import change_tunnel
    from mptm.intent import encapsulation_values, tunnel_from_dict

    values = {"name": name, **_values(options, notes, options["protocol"])}
    with usage_errors():
        wanted = tunnel_from_dict(values)
        if accepted:
            wanted = change_tunnel(wanted, {}, accept=map(encapsulation_values, accepted))
    warn_of(current_node().add(wanted))


@tunnel.command("set", cls=WithProtocolOptions)
@click.argument("name", shell_complete=complete_names("tunnels"))
@click.option(
    "--protocol",
    type=ProtocolChoice(),
    metavar="PROTOCOL",
    help="What goes on the wire from now on. What did before goes on being accepted.",
)
@_settings
@click.option(
    "--no-accept",
    "refused",
    type=ProtocolChoice(),
    metavar="PROTOCOL",
    multiple=True,
    help="A protocol that isn't accepted any more beside the one that is sent. Repeatable.",
)
@click.option(
    "--default",
    "defaults",
    metavar="OPTION",
    multiple=True,
    help="An option that gets back its default, such as local or ttl. Repeatable.",
)
def set_(
    name: str,
    notes: tuple[str, ...],
    accepted: tuple[str, ...],
    refused: tuple[str, ...],
    defaults: tuple[str, ...],
    **options: Any,
) -> None:
    """Change a tunnel; what isn't given stays as it is. Traffic goes on.

    With another --protocol, options that it has as well are kept (but for the port), and what was sent before goes on
    being accepted until --no-accept. So two nodes change over without losing a packet; do each on both before the next:

    \b
    Example:
      mptm tunnel set to-node2 --accept geneve,vni=100
      mptm tunnel set to-node2 --protocol geneve
      mptm tunnel set to-node2 --no-accept vxlan
    """
    from mptm.change import change_tunnel
    from mptm.intent import encapsulation_values

    given = {key: value for key, value in options.items() if value is not None}
    if not any((given, notes, accepted, refused, defaults)):
        raise click.UsageError("nothing to change is given")

    def change(intent: Intent) -> Intent:
        found = intent.get("tunnel", name)
        with usage_errors():
            changed = change_tunnel(
                found,
                _values(given, notes, given.get("protocol", found.protocol)),
                defaults=defaults,
                accept=map(encapsulation_values, accepted),
                refuse=refused,
            )
        return intent.replace(changed)

    warn_of(current_node().edit(change))


def _values(options: dict[str, Any], notes: tuple[str, ...], protocol: str) -> dict[str, Any]:
    """Fields of a tunnel from what was typed; an option of any protocol is known, `protocol` says how it is meant."""
    from mptm.fields import value_from_text
    from mptm.protocols import PROTOCOLS

    fields: dict[str, Field] = {}
    for each in (*PROTOCOLS, protocol):
        fields |= _options_of(each)
    values: dict[str, Any] = {}
    for key, value in options.items():
        if value is None:
            continue
        option = key.removeprefix("option_")
        values[option] = (
            value_from_text(fields[option], value) if isinstance(value, str) and key != option else value
        )
    if notes:
        values["annotations"] = _annotations(notes)
    return values


def _annotations(notes: tuple[str, ...]) -> dict[str, str]:
    pairs = [note.partition("=") for note in notes]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise click.UsageError(f"--note takes KEY=VALUE, not {key!r}")
    return {key: value for key, _, value in pairs}


@tunnel.command("list")
@only_network_option
@json_option
def list_(network: str | None, as_json: bool) -> None:
    """List the tunnels.

    \b
    Example:
      mptm tunnel list
      mptm tunnel list --network blue --json
    """
    from mptm.protocols import PROTOCOLS

    columns: Columns = {
        "NAME": "name",
        "PROTOCOL": "protocol",
        "ACCEPTS": lambda each: in_words([accepted.protocol for accepted in each.accept]),
        "NETWORK": "network",
        "REMOTE": lambda each: each.remote or each.remote_mac,
        "LOCAL": lambda each: each.local or "(by route)",
        "ID": lambda each: PROTOCOLS[each.protocol].tunnel_id(each.options),
    }
    print_objects(of_network(current_node().intent, "tunnel", network), columns, as_json=as_json, right="ID")


@tunnel.command()
@click.argument("name", shell_complete=complete_names("tunnels"))
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a tunnel: settings, state, what was found for it, its header as text and as bytes, its counters.

    \b
    Example:
      mptm tunnel show to-node2
    """
    from mptm.headers import hexdump

    details = current_node().tunnel_details(name)
    if as_json:
        print_json(details.to_dict())
        return
    found = details.found
    hexadecimal = {
        key for key, field in _options_of(details.settings["protocol"]).items() if field.hexadecimal
    }
    settings = details.settings | {"accept": _accepted(details.settings)}
    print_fields(
        {
            key.replace("_", " "): hex(value) if key in hexadecimal else _plain(value)
            for key, value in settings.items()
        }
    )
    click.echo()
    print_fields({"state": details.state, **found})
    if details.outer:
        click.echo(f"\nheader ({len(details.outer)} bytes; fields that depend on the packet are zero)")
        click.echo(f"  {details.header}")
        for line in hexdump(details.outer):
            click.echo(f"  {line}")
    if details.counters is not None:
        counters = details.counters
        click.echo("\ncounters (bytes of the inner frames)")
        click.echo(f"  encapsulated  {counters.encap_packets} packets, {counters.encap_bytes} bytes")
        click.echo(f"  decapsulated  {counters.decap_packets} packets, {counters.decap_bytes} bytes")


def _accepted(settings: dict[str, Any]) -> list[str]:
    """What is accepted beside what is sent, as `--accept` takes it."""
    from mptm.intent import Encapsulation

    return [str(Encapsulation.from_dict(each)) for each in settings["accept"]]


def _plain(value: object) -> object:
    return ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value


@tunnel.command("del")
@click.argument("name", shell_complete=complete_names("tunnels"))
def del_(name: str) -> None:
    """Delete a tunnel that no route or flow uses any more.

    \b
    Example:
      mptm tunnel del to-node2
    """
    warn_of(current_node().remove("tunnel", name))
