# SPDX-License-Identifier: GPL-2.0-only
"""`mptm flow list`, `load`, `bundles`, `save` and `unload`: flows by the million."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mptm.cli.common import (
    complete_names,
    count,
    current_node,
    json_option,
    note,
    of_network,
    only_network_option,
    print_json,
    print_json_list,
    print_rows,
    print_table,
    saying,
    usage_errors,
    warn_of,
)
from mptm.errors import MptmError

if TYPE_CHECKING:
    from mptm.bundlefile import BundledFlow
    from mptm.intent import Flow
    from mptm.node import Node

LINES_SHOWN = 3

ADDRESS_LENGTHS = {4: len("255.255.255.255"), 6: len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")}
"""Characters at most, by IP version."""


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
        from mptm.intent import Bundle

        Bundle(name=name, flows=1, next_hops=(), content="00" * 32)  # before a long file is read
    with saying(f"reading {path}"):
        flows = read_flows(path, network=network, next_hop=next_hop)
    with saying(f"writing {count(len(flows), 'flow')}"):
        warn_of(current_node().load_bundle(name, flows))
    note(f"bundle {name} has {count(len(flows), 'flow')}")


@click.command("list")
@only_network_option
@click.option(
    "--bundle",
    "name",
    metavar="NAME",
    shell_complete=complete_names("bundles"),
    help="Only those of this bundle.",
)
@json_option
def flow_list(network: str | None, name: str | None, as_json: bool) -> None:
    """List the flows that packets find: those added one by one, then those of bundles.

    A flow of a bundle is left out where one of its own goes before it. A million are printed as they are read; how many
    there were is said at the end.

    \b
    Example:
      mptm flow list --json
      mptm flow list --bundle subscribers | less
    """
    flows = _Flows(current_node(), network, name)
    if as_json:
        print_json_list(flows.in_json())
    else:
        headings = ("NETWORK", "SOURCE", "DESTINATION", "NEXT HOP", "BUNDLE")
        widths = flows.widths()
        print_rows(headings, [max(len(heading), widths[heading]) for heading in headings], flows.rows())
    flows.conclude()


class _Flows:
    """What `flow list` lists, one by one."""

    def __init__(self, node: Node, network: str | None, name: str | None) -> None:
        self._node = node
        self._intent = node.intent
        self._network = network
        bundles = self._intent.bundles.values() if name is None else (self._intent.get("bundle", name),)
        self._bundles = [each for each in bundles if network is None or network in each.networks]
        own: list[Flow] = of_network(self._intent, "flow", network)
        self._own = own if name is None else []
        self._listed: Counter[str] = Counter()
        self._problems: list[str] = []

    def rows(self) -> Iterator[tuple[str | None, ...]]:
        """The cells of each."""
        for own in self._own:
            yield own.network, own.source, own.destination, own.next_hop(), None
        for name, each in self._bundled():
            yield each.network, each.source, each.destination, each.next_hop.partition(" ")[2], name

    def widths(self) -> Counter[str]:
        """How wide what stands below each heading is at most."""
        found: Counter[str] = Counter()
        for own in self._own:
            found |= Counter(
                {
                    "NETWORK": len(own.network),
                    "SOURCE": len(own.source),
                    "DESTINATION": len(own.destination),
                    "NEXT HOP": len(own.next_hop()),
                }
            )
        for bundle in self._bundles:
            try:
                counts = self._node.store.bundles.counts(bundle.content)
            except MptmError:
                continue  # told of when it is its turn
            address = max(ADDRESS_LENGTHS[version] for version, count in counts.items() if count)
            found |= Counter({"SOURCE": address, "DESTINATION": address, "BUNDLE": len(bundle.name)})
            for hop in bundle.next_hops:
                found |= Counter({"NETWORK": len(hop.network), "NEXT HOP": len(hop.next_hop())})
        return found

    def in_json(self) -> Iterator[str]:
        """Each as JSON, indented for a list."""
        for own in self._own:
            yield _indented(own.to_dict())
        parts: dict[tuple[str, str], list[str]] = {}
        for name, each in self._bundled():
            found = parts.get((name, each.next_hop))
            if found is None:
                found = parts[name, each.next_hop] = _parts_of(name, each)
            before, between, behind = found
            yield f"{before}{each.source}{between}{each.destination}{behind}"

    def _bundled(self) -> Iterator[tuple[str, BundledFlow]]:
        for bundle in self._bundles:
            listed = 0
            try:
                for each in self._node.bundled_flows(self._intent, bundle.name):
                    if self._network in (None, each.network):
                        yield bundle.name, each
                        listed += 1
            except MptmError as error:
                now = self._node.intent.bundles.get(bundle.name)
                is_same = now is not None and now.content == bundle.content
                reason = str(error) if is_same else "it was replaced or unloaded meanwhile: list once more"
                self._problems.append(f"{bundle.label()} can't be listed: {reason}")
            self._listed[bundle.name] = listed

    def conclude(self) -> None:
        """Say how many were listed where there are bundles. Raises MptmError: some couldn't be."""
        if self._listed:
            total = len(self._own) + self._listed.total()
            shown = [f"{number} of bundle {name}" for name, number in self._listed.items()]
            more = f" and of {len(shown) - LINES_SHOWN} more" if len(shown) > LINES_SHOWN else ""
            note(f"{count(total, 'flow')}, {', '.join(shown[:LINES_SHOWN])}{more}")
        if self._problems:
            raise MptmError("; ".join(self._problems))


def _indented(document: dict[str, Any]) -> str:
    return textwrap.indent(json.dumps(document, indent=2), "  ")


def _parts_of(name: str, flow: BundledFlow) -> list[str]:
    """What stands before, between and behind the addresses of flows that lead to the same."""
    from mptm.intent import NextHop

    network, *rest = NextHop.from_text(flow.next_hop).to_dict().items()
    fields = dict([network, ("source", "\0"), ("destination", "\0"), *rest, ("bundle", name)])
    return _indented(fields).split("\\u0000")


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
