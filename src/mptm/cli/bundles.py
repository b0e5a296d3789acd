# SPDX-License-Identifier: GPL-2.0-only
"""`mptm flow load`, `bundles`, `save` and `unload`: flows by the million."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mptm.cli.common import (
    complete_names,
    count,
    current_node,
    json_option,
    note,
    print_json,
    print_table,
    saying,
    usage_errors,
    warn_of,
)

LINES_SHOWN = 3


@click.command("load")
@click.argument("path", metavar="FILE")
@click.option("--name", help="Name of the bundle.  [default: that of the file, without its ending]")
@click.option(
    "--network",
    shell_complete=complete_names("networks"),
    help="Network of all flows, without such a column.",
)
@click.option(
    "--via", metavar="TUNNEL", shell_complete=complete_names("tunnels"), help="Tunnel for all flows."
)
@click.option(
    "--group",
    metavar="GROUP",
    shell_complete=complete_names("groups"),
    help="Group of tunnels for all flows.",
)
@click.option(
    "--port",
    metavar="INTERFACE",
    shell_complete=complete_names("ports"),
    help="Local access port for all flows.",
)
@click.option("--drop", is_flag=True, help="Drop the packets of all flows.")
@click.option("--pass", "pass_", is_flag=True, help="Leave the packets of all flows to the kernel's stack.")
def flow_load(path: str, name: str | None, network: str | None, **options: Any) -> None:
    """Have all flows of FILE, as one bundle: in place of what the bundle of that name had before.

    FILE is CSV, its first line the names of its columns: source,destination, and network and next_hop where they
    aren't the same for all. A next hop is the name of a tunnel, or what `mptm flow list` shows: `group exits relay`,
    `port veth-a`, `drop`. Or it is a .npz file of numpy with arrays of these names. Flows that were added one by one
    go before those of bundles; no two bundles may have the same flow. A bundle is all there or not at all.

    \b
    Example:
      mptm flow load subscribers.csv --network blue --via to-node2
      mptm flow load flows.npz --name subscribers
    """
    from mptm.bundles import read_flows

    chosen = [word for word, value in options.items() if value]
    if len(chosen) > 1:
        raise click.UsageError("give one of --via, --group, --port, --drop and --pass at most")
    next_hop = None
    if chosen:
        value = options[chosen[0]]
        next_hop = chosen[0].rstrip("_") if value is True else f"{chosen[0]} {value}"
    name = name or Path(path).stem
    with usage_errors():
        from mptm.intent import Network

        Network(name=name, id=1)  # the same names are right
    with saying(f"reading {path}"):
        flows = read_flows(path, network=network, next_hop=next_hop)
    with saying(f"writing {count(len(flows), 'flow')}"):
        warn_of(current_node().load_bundle(name, flows))
    note(f"bundle {name} has {count(len(flows), 'flow')}")


@click.command("bundles")
@json_option
def flow_bundles(as_json: bool) -> None:
    """List the bundles.

    \b
    Example:
      mptm flow bundles
    """
    bundles = current_node().intent.bundles.values()
    if as_json:
        print_json([each.to_dict() for each in bundles])
        return
    rows = []
    for each in bundles:
        next_hops = list(map(str, each.next_hops))
        more = f" and {len(next_hops) - LINES_SHOWN} more" if len(next_hops) > LINES_SHOWN else ""
        rows.append((each.name, each.flows, "; ".join(next_hops[:LINES_SHOWN]) + more))
    print_table(["NAME", "FLOWS", "NEXT HOPS"], rows, right="FLOWS")


@click.command("save")
@click.argument("name", shell_complete=complete_names("bundles"))
@click.argument("path", metavar="FILE")
def flow_save(name: str, path: str) -> None:
    """Write the flows of a bundle into FILE, as `mptm flow load` takes it: CSV, or numpy's if it ends in .npz.

    \b
    Example:
      mptm flow save subscribers subscribers.csv
    """
    from mptm.bundles import write_flows

    with saying(f"writing {path}"):
        write_flows(current_node().bundle_flows(name), path)


@click.command("unload")
@click.argument("name", shell_complete=complete_names("bundles"))
def flow_unload(name: str) -> None:
    """Remove a bundle and all its flows.

    \b
    Example:
      mptm flow unload subscribers
    """
    with saying(f"removing the flows of {name}"):
        warn_of(current_node().remove("bundle", name))
