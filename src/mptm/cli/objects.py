# SPDX-License-Identifier: GPL-2.0-only
"""`mptm network`, `port`, `route` and `flow`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from mptm.cli.bundles import flow_bundles, flow_list, flow_load, flow_save, flow_unload
from mptm.cli.common import (
    Columns,
    Command,
    complete_interfaces,
    complete_names,
    current_node,
    in_words,
    json_option,
    network_option,
    note,
    note_moves,
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
    from mptm.intent import Flow, Intent, Port, Route
    from mptm.node import Node, Plan
    from mptm.offloads import Settled

which_network_option = click.option(
    "--network",
    shell_complete=complete_names("networks"),
    help="Its network; may be left out where only one network has it.",
)


gateway_option = click.option(
    "--gateway",
    metavar="ADDRESS",
    multiple=True,
    help="Our own address in the network, one of IPv4 and one of IPv6. Repeatable.",
)


hook_choice = click.Choice(["xdp", "tc", "auto"])


def next_hop_options(function: Command) -> Command:
    """Where a route or flow leads: exactly one of them."""
    for option in (
        click.option(
            "--mac",
            metavar="MAC",
            help="Inner destination MAC to write, and what ARP and ND are answered with.",
        ),
        click.option(
            "--relay",
            is_flag=True,
            help="Take packets that came out of another tunnel, too (with --via or --group).",
        ),
        click.option("--pass", "pass_", is_flag=True, help="Leave the packets to the kernel's stack."),
        click.option("--drop", is_flag=True, help="Drop the packets, and count them."),
        click.option(
            "--port",
            metavar="INTERFACE",
            shell_complete=complete_names("ports"),
            help="Deliver to this local access port.  [MAC default: that of the veth's other end]",
        ),
        click.option(
            "--group",
            metavar="GROUP",
            shell_complete=complete_names("groups"),
            help="Share out the flows among the tunnels of this group.",
        ),
        click.option(
            "--via", metavar="TUNNEL", shell_complete=complete_names("tunnels"), help="Send into this tunnel."
        ),
    ):
        function = option(function)
    return function


def _next_hop_fields(options: dict[str, Any]) -> dict[str, Any]:
    chosen = [name for name in ("via", "group", "port", "drop", "pass_") if options[name]]
    if len(chosen) != 1:
        raise click.UsageError("give exactly one of --via, --group, --port, --drop and --pass")
    return {name: value for name, value in options.items() if value}


# ---- networks ------------------------------------------------------------------------------------


@click.group()
def network() -> None:
    """Networks: who may talk to whom. Inner addresses of different networks may overlap.

    \b
    Example:
      mptm network add blue --id 1
      mptm network list
    """


@network.command("add")
@click.argument("name")
@click.option(
    "--id",
    "number",
    type=click.IntRange(1, 2**32 - 1),
    help="Its number on this node.  [default: the first free]",
)
@gateway_option
def network_add(name: str, number: int | None, gateway: tuple[str, ...]) -> None:
    """Add a network.

    From its gateway address workloads are told that a packet is too big for its tunnel; the address answers ARP,
    neighbour solicitations and pings.

    \b
    Example:
      mptm network add blue --id 1
      mptm network add green --gateway 10.250.1.1 --gateway fd00:250:1::1
    """
    from mptm.intent import Network

    with usage_errors():
        Network(name=name, id=number or 1, gateway=gateway)

    def add(intent: Intent) -> Intent:
        return intent.add(Network(name=name, id=number or first_free_id(intent), gateway=gateway))

    warn_of(current_node().edit(add))


@network.command("set")
@click.argument("name", shell_complete=complete_names("networks"))
@gateway_option
@click.option("--no-gateway", is_flag=True, help="Have no gateway address any more.")
def network_set(name: str, gateway: tuple[str, ...], no_gateway: bool) -> None:
    """Change the gateway addresses of a network: those that are given take the place of those that it had.

    \b
    Example:
      mptm network set blue --gateway 10.250.1.1 --gateway fd00:250:1::1
      mptm network set blue --no-gateway
    """
    from msgspec.structs import replace

    if bool(gateway) == no_gateway:
        raise click.UsageError("give either --gateway or --no-gateway")

    def change(intent: Intent) -> Intent:
        with usage_errors():
            return intent.replace(replace(intent.get("network", name), gateway=gateway))

    warn_of(current_node().edit(change))


def first_free_id(intent: Intent) -> int:
    """The smallest network number that isn't taken."""
    taken = {each.id for each in intent.networks.values()}
    return next(number for number in range(1, len(taken) + 2) if number not in taken)


def _network_row(intent: Intent, name: str) -> dict[str, Any]:
    def count(objects: Mapping[str, Any]) -> int:
        return sum(_belongs_to(each, name) for each in objects.values())

    return {
        **intent.networks[name].to_dict(defaults=True),
        "ports": count(intent.ports),
        "tunnels": count(intent.tunnels),
        "groups": count(intent.groups),
        "routes": count(intent.routes),
        "flows": count(intent.flows),
        "bundles": count(intent.bundles),
    }


@network.command("list")
@json_option
def network_list(as_json: bool) -> None:
    """List the networks and how much belongs to each.

    \b
    Example:
      mptm network list --json
    """
    intent = current_node().intent
    rows = [_network_row(intent, name) for name in intent.networks]
    if as_json:
        print_json(rows)
    else:
        headings = ["NAME", "ID", "GATEWAY", "PORTS", "TUNNELS", "GROUPS", "ROUTES", "FLOWS", "BUNDLES"]
        print_table(
            headings,
            [[in_words(value) for value in row.values()] for row in rows],
            right="ID PORTS TUNNELS GROUPS ROUTES FLOWS BUNDLES",
        )


def _belongs_to(obj: Any, network: str) -> bool:
    return network in obj.networks if obj.kind == "bundle" else obj.network == network


@network.command("show")
@click.argument("name", shell_complete=complete_names("networks"))
@json_option
def network_show(name: str, as_json: bool) -> None:
    """Show a network and what belongs to it.

    \b
    Example:
      mptm network show blue
    """
    from mptm.intent import KINDS
    from mptm.node import describe

    intent = current_node().intent
    found = intent.get("network", name)
    members = {
        f"{kind}s": [each for each in intent.of_kind(kind).values() if _belongs_to(each, name)]
        for kind in KINDS
        if kind != "network"
    }
    if as_json:
        print_json(
            {**found.to_dict(), **{kind: [each.to_dict() for each in of] for kind, of in members.items()}}
        )
        return
    print_fields({"name": found.name, "id": found.id, "gateway": found.gateway})
    for each in (each for of in members.values() for each in of):
        click.echo(f"  {describe(each)}")


@network.command("del")
@click.argument("name", shell_complete=complete_names("networks"))
def network_del(name: str) -> None:
    """Delete a network that nothing belongs to any more.

    \b
    Example:
      mptm network del blue
    """
    warn_of(current_node().remove("network", name))


# ---- ports ---------------------------------------------------------------------------------------


@click.group()
def port() -> None:
    """Ports: interfaces with a program of MPTM.

    \b
    Example:
      mptm port add veth-node1 --role access --network blue
      mptm port add eth0 --role uplink
      mptm port list
    """


@port.command("add")
@click.argument("name", metavar="INTERFACE", shell_complete=complete_interfaces)
@click.option(
    "--role",
    required=True,
    type=click.Choice(["access", "uplink"]),
    help="access: a workload is behind it; uplink: the underlay is.",
)
@click.option(
    "--network",
    shell_complete=complete_names("networks"),
    help="Network of the workload (access ports only).",
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "native", "generic"]),
    default="auto",
    show_default=True,
    help="Where XDP runs; auto: in the driver if it can.",
)
@click.option(
    "--hook",
    type=hook_choice,
    default="auto",
    show_default=True,
    help="xdp: most packets per second; tc: most bytes per second, GSO kept whole; auto: by the kind of interface.",
)
@click.option(
    "--mac",
    metavar="MAC",
    help="Gateway MAC that the workload is told for remote addresses (access ports only).  [default: the interface's]",
)
@click.option(
    "--no-offloads",
    "offloads",
    flag_value=False,
    default=True,
    help="Leave the features of the veth's other end alone.",
)
@click.option(
    "--no-outer-gro",
    "outer_gro",
    flag_value=False,
    default=True,
    help="Leave UDP ports of tunnels free, for kernel tunnel devices that can't share them (uplinks at TC only).",
)
def port_add(name: str, **options: Any) -> None:
    """Make INTERFACE a port and attach the program of its role.

    By default containers and VMs (veth, tap) are at TC, everything else at XDP, and uplinks where their access ports
    are served best. For a port at XDP what it needs at the other end of a veth is set there, and put back when the port
    is deleted: checksums are no longer left to hardware, VLAN tags stand in the frame, GRO is on. An interface that
    already has somebody else's XDP program is refused there, and the program is named; at TC it stays before ours.

    \b
    Example:
      mptm port add veth-node1 --role access --network blue
      mptm port add veth-node2 --role access --network blue --hook xdp
      mptm port add eth0 --role uplink --mode generic
    """
    from mptm.intent import Port

    with usage_errors():
        wanted = Port(name=name, **options)
    node = current_node()
    plan = node.add(wanted)
    warn_of(plan)
    _explain_port(node, wanted, plan)
    note_moves(plan, name)


def _explain_port(node: Node, port: Port, plan: Plan) -> None:
    """Say how it was attached, what was set at the other end of a veth, and what is left to do there."""
    from mptm.hooks import choose_hook
    from mptm.offloads import ethtool_command

    mode = plan.outcome.modes.get(port.name)
    if mode is not None:
        hook = choose_hook(port, node.intent, plan.facts).hook
        note(f"{port.name} is attached at {hook.upper()} ({mode})")
    if mode == "generic" and port.mode == "auto":
        note(
            f"the driver of {port.name}, as it is set now (MTU, queues), doesn't run XDP: the kernel does, later "
            "and for more CPU time"
        )
    link = plan.facts.links.get(port.name)
    if link is None:
        return
    end = node.other_end(port.name)
    if end is None:
        return
    settled = plan.offloads.get(port.name)
    if settled is not None and settled.before:
        note(f"set at its other end, {end.where()}:\n  {settled.describe()}")
    elif not port.offloads and choose_hook(port, node.intent, plan.facts).hook == "xdp" and end.lacks():
        note(f"XDP needs of its other end: {end.command(ethtool_command(end.name, end.lacks()))}")
    if port.network is None:
        return
    mtu = node.inner_mtu(port.network)
    if mtu is not None and end.mtu > mtu:
        command = end.command(f"ip link set {end.name} mtu {mtu}")
        note(f"the tunnels of network {port.network} carry IP packets of up to {mtu} bytes: {command}")


@port.command("set")
@click.argument("name", metavar="INTERFACE", shell_complete=complete_names("ports"))
@click.option("--hook", type=hook_choice, help="The hook that its program is to run at.")
@click.option(
    "--outer-gro/--no-outer-gro",
    default=None,
    help="Have the kernel join tunnel packets, or leave their UDP ports free (uplinks at TC only).",
)
def port_set(name: str, **options: Any) -> None:
    """Change a port: its hook, or what an uplink at TC has the kernel do.

    Routes, flows and counters stay, and no packet is lost in between.

    \b
    Example:
      mptm port set veth-node1 --hook tc
      mptm port set eth0 --no-outer-gro
    """
    from msgspec.structs import replace

    given = {field: value for field, value in options.items() if value is not None}
    if not given:
        raise click.UsageError("nothing to change: give --hook, --outer-gro or --no-outer-gro")

    def change(intent: Intent) -> Intent:
        with usage_errors():
            return intent.replace(replace(intent.get("port", name), **given))

    node = current_node()
    plan = node.edit(change)
    warn_of(plan)
    _explain_port(node, node.intent.get("port", name), plan)
    note_moves(plan, name)


@port.command("list")
@json_option
def port_list(as_json: bool) -> None:
    """List the ports. `mptm status` shows whether they are attached.

    \b
    Example:
      mptm port list
    """
    columns: Columns = {name.upper(): name for name in ("name", "role", "network", "hook", "mode", "mac")}
    print_objects(current_node().intent.ports.values(), columns, as_json=as_json, defaults=True)


@port.command("show")
@click.argument("name", metavar="INTERFACE", shell_complete=complete_names("ports"))
@json_option
def port_show(name: str, as_json: bool) -> None:
    """Show a port, whether it is attached, and its counters (both need root).

    \b
    Example:
      mptm port show eth0
    """
    from msgspec import to_builtins

    node = current_node()
    found = node.intent.get("port", name).to_dict(defaults=True)
    details = node.port_details(name)
    settled = details.offloads
    if as_json:
        print_json(
            {
                **found,
                "state": details.state,
                "runs_at": details.runs_at,
                "why": details.why,
                "hand_over": details.hand_over,
                "counters": details.counters and vars(details.counters),
                "other_end": settled and to_builtins(settled),
            }
        )
        return
    runs_at = {"runs at": f"{details.runs_at}: {details.why}"} if details.runs_at else {}
    handed = {"packets to it go": details.hand_over} if details.hand_over else {}
    stored = {key.replace("_", " "): value for key, value in found.items()}
    print_fields({**stored, "state": details.state, **runs_at, **handed, **_settled_fields(settled)})
    if details.counters is not None:
        counters = details.counters
        click.echo("\ncounters")
        click.echo(f"  received  {counters.rx_packets} packets, {counters.rx_bytes} bytes")
        click.echo(f"  sent      {counters.tx_packets} packets, {counters.tx_bytes} bytes")


def _settled_fields(settled: Settled | None) -> dict[str, object]:
    """What there is to tell of a veth's other end."""
    if settled is None or not settled.name:
        return {}
    where = f"{settled.name} in {settled.namespace}" if settled.namespace else settled.name
    found: dict[str, object] = {"other end": where, "set there": settled.describe() or "nothing"}
    return found | ({"problem": settled.problem} if settled.problem else {})


@port.command("del")
@click.argument("name", metavar="INTERFACE", shell_complete=complete_names("ports"))
def port_del(name: str) -> None:
    """Detach from INTERFACE; no route or flow may lead to it any more.

    \b
    Example:
      mptm port del veth-node1
    """
    plan = current_node().remove("port", name)
    warn_of(plan)
    note_moves(plan)


# ---- routes --------------------------------------------------------------------------------------


@click.group()
def route() -> None:
    """Routes: where an inner address or prefix is. The longest prefix wins; flows go before routes.

    \b
    Example:
      mptm route add 10.250.1.101/32 --network blue --via to-node2
      mptm route add 10.250.1.100/32 --network blue --port veth-node1
      mptm route list --network blue
    """


@route.command("add")
@click.argument("prefix")
@network_option
@next_hop_options
def route_add(**options: Any) -> None:
    """Add a route for PREFIX (an address alone is its /32 or /128).

    The workload's ARP and neighbour solicitations for the prefix's addresses are answered.

    \b
    Example:
      mptm route add 10.250.1.101/32 --network blue --via to-node2
      mptm route add fd00:1::/64 --network blue --via to-node2
      mptm route add 10.250.1.100/32 --network blue --port veth-node1
      mptm route add 10.66.0.0/16 --network blue --drop
    """
    from mptm.intent import Route

    fields = _next_hop_fields(options)
    with usage_errors():
        wanted = Route(**fields)
    warn_of(current_node().add(wanted))


@route.command("set")
@click.argument("prefix")
@which_network_option
@next_hop_options
def route_set(prefix: str, network: str | None, **options: Any) -> None:
    """Give the route of PREFIX another next hop, all of it: --mac and --relay, too, are from now on as given here.

    The one takes the place of the other in one step: there is no moment without a route.

    \b
    Example:
      mptm route set 10.250.1.101/32 --via to-node3
      mptm route set 10.250.1.101/32 --network blue --group exits --relay
    """
    from mptm.intent import Route

    fields = _next_hop_fields(options)

    def change(intent: Intent) -> Intent:
        found = _find_route(intent, prefix, network)
        with usage_errors():
            return intent.replace(Route(network=found.network, prefix=found.prefix, **fields))

    warn_of(current_node().edit(change))


@route.command("list")
@only_network_option
@json_option
def route_list(network: str | None, as_json: bool) -> None:
    """List the routes.

    \b
    Example:
      mptm route list --network blue
    """
    from mptm.node import next_hop

    columns: Columns = {"NETWORK": "network", "PREFIX": "prefix", "NEXT HOP": next_hop}
    print_objects(of_network(current_node().intent, "route", network), columns, as_json=as_json)


@route.command("show")
@click.argument("prefix", shell_complete=lambda *_: [])
@which_network_option
@json_option
def route_show(prefix: str, network: str | None, as_json: bool) -> None:
    """Show a route.

    \b
    Example:
      mptm route show 10.250.1.101/32 --network blue
    """
    found = _find_route(current_node().intent, prefix, network)
    print_json(found.to_dict()) if as_json else print_fields(_steered_fields(found))


@route.command("del")
@click.argument("prefix")
@which_network_option
def route_del(prefix: str, network: str | None) -> None:
    """Delete a route.

    \b
    Example:
      mptm route del 10.250.1.101/32 --network blue
    """
    warn_of(
        current_node().edit(lambda intent: intent.remove("route", _find_route(intent, prefix, network).key))
    )


def _find_route(intent: Intent, prefix: str, network: str | None) -> Route:
    from mptm.intent import route_key

    found: Route = _find(intent, "route", prefix, network, lambda name: route_key(name, prefix))
    return found


def _find(
    intent: Intent,
    kind: str,
    what: str,
    network: str | None,
    key_in: Callable[[str], str],
    elsewhere: Callable[[str], Any] = lambda _: None,
) -> Any:
    """The object of a network; without one, of the only network that has it: in the intent, or else `elsewhere`."""
    from mptm.errors import NotFound

    with usage_errors():
        key_in(network or "any")
    section = intent.of_kind(kind)
    names = intent.networks if network is None else (network,)
    each = (section.get(key_in(name)) or elsewhere(name) for name in names)
    found = [one for one in each if one is not None]
    if len(found) > 1:
        raise click.UsageError(
            f"networks {', '.join(each.network for each in found)} have {kind} {what}: choose one with --network"
        )
    if found:
        return found[0]
    if network is not None:
        intent.get("network", network)
        what = key_in(network)
        if not (kind == "flow" and intent.bundles):
            return intent.get(kind, what)
    raise NotFound(f"there is no {kind} {what}", f"`mptm {kind} list` shows them")


def _steered_fields(found: Route | Flow) -> dict[str, object]:
    from mptm.node import next_hop

    fields: dict[str, object] = {
        name: value
        for name, value in found.to_dict().items()
        if name not in ("via", "group", "port", "drop", "pass", "relay", "mac", "annotations")
    }
    return {**fields, "next hop": next_hop(found), **getattr(found, "annotations", {})}


# ---- flows ---------------------------------------------------------------------------------------


@click.group()
def flow() -> None:
    """Flows: exact pairs of inner addresses, looked up before routes. Very many at once are a bundle: see `load`.

    \b
    Example:
      mptm flow add 10.250.1.100 10.250.1.101 --network blue --via to-node2
      mptm flow list
      mptm flow load subscribers.csv --network blue --via to-node2
    """


for _command in (flow_list, flow_load, flow_bundles, flow_save, flow_unload):
    flow.add_command(_command)


@flow.command("add")
@click.argument("source")
@click.argument("destination")
@network_option
@next_hop_options
def flow_add(**options: Any) -> None:
    """Say where packets from SOURCE to DESTINATION go.

    \b
    Example:
      mptm flow add 10.250.1.100 10.250.1.101 --network blue --via to-node2
    """
    from mptm.intent import Flow

    fields = _next_hop_fields(options)
    with usage_errors():
        wanted = Flow(**fields)
    warn_of(current_node().add(wanted))


@flow.command("set")
@click.argument("source")
@click.argument("destination")
@which_network_option
@next_hop_options
def flow_set(source: str, destination: str, network: str | None, **options: Any) -> None:
    """Give a flow another next hop, all of it: --mac and --relay, too, are from now on as given here.

    \b
    Example:
      mptm flow set 10.250.1.100 10.250.1.101 --via to-node3
    """
    from mptm.intent import Flow

    fields = _next_hop_fields(options)
    node = current_node()

    def change(intent: Intent) -> Intent:
        found = _find_flow(node, intent, source, destination, network)
        kept = {name: getattr(found, name) for name in ("network", "source", "destination", "annotations")}
        with usage_errors():
            return intent.replace(Flow(**kept, **fields))

    warn_of(node.edit(change))


@flow.command("show")
@click.argument("source")
@click.argument("destination")
@which_network_option
@json_option
def flow_show(source: str, destination: str, network: str | None, as_json: bool) -> None:
    """Show a flow, and the bundle that it is of.

    \b
    Example:
      mptm flow show 10.250.1.100 10.250.1.101
    """
    from mptm.intent import flow_key

    node = current_node()
    intent = node.intent
    bundles: dict[str, str] = {}
    verified: set[str] = set()

    def in_bundles(name: str) -> Flow | None:
        if (found := _in_bundles(node, intent, name, source, destination, verified)) is not None:
            bundles[name] = found[0]
        return found and found[1]

    found = _find(
        intent,
        "flow",
        f"{source} {destination}",
        network,
        lambda name: flow_key(name, source, destination),
        in_bundles,
    )
    of_bundle = {"bundle": bundles[found.network]} if found.network in bundles else {}
    if as_json:
        print_json(found.to_dict() | of_bundle)
    else:
        print_fields(_steered_fields(found) | of_bundle)


def _in_bundles(
    node: Node, intent: Intent, network: str, source: str, destination: str, verified: set[str]
) -> tuple[str, Flow] | None:
    """The name of the bundle that has a flow, and the flow as if it were one of its own."""
    from mptm.intent import Flow

    found = node.find_bundled(intent, network, source, destination, verified)
    if found is None:
        return None
    bundle, next_hop = found
    return bundle.name, Flow.from_dict(next_hop.to_dict() | {"source": source, "destination": destination})


@flow.command("del")
@click.argument("source")
@click.argument("destination")
@which_network_option
def flow_del(source: str, destination: str, network: str | None) -> None:
    """Delete a flow.

    \b
    Example:
      mptm flow del 10.250.1.100 10.250.1.101 --network blue
    """
    node = current_node()
    warn_of(
        node.edit(
            lambda intent: intent.remove("flow", _find_flow(node, intent, source, destination, network).key)
        )
    )


def _find_flow(node: Node, intent: Intent, source: str, destination: str, network: str | None) -> Flow:
    """A flow that was added by itself."""
    from mptm.errors import NotFound
    from mptm.intent import flow_key

    what = f"{source} {destination}"
    try:
        found: Flow = _find(intent, "flow", what, network, lambda name: flow_key(name, source, destination))
    except NotFound:
        verified: set[str] = set()
        for name in intent.networks if network is None else (network,):
            if (bundled := _in_bundles(node, intent, name, source, destination, verified)) is not None:
                raise NotFound(
                    f"the flow {what} of network {name} wasn't added by itself: it is one of bundle {bundled[0]}",
                    "`mptm flow add` puts another one before it; `mptm flow save` and `load` change the bundle",
                ) from None
        raise
    return found
