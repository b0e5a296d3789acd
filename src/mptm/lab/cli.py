# SPDX-License-Identifier: GPL-2.0-only
"""`mptm lab`: the two-node lab on the command line."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import click

from mptm.errors import MptmError, NotFound
from mptm.kernel import netns
from mptm.lab.topology import Lab

prefix_option = click.option(
    "--prefix", default="mptm", show_default=True, help="What the lab's namespaces begin with."
)


@click.group()
def lab() -> None:
    """Two nodes in network namespaces, to try things on one machine.

    \b
    Each node has an uplink eth0 (10.30.30.1 and 10.30.30.2) and two containers, c1 in network blue and c2 in
    network green, with the same addresses (10.250.1.100 on node1, 10.250.1.101 on node2). Blue goes by GENEVE,
    green by VXLAN. The nodes are the instances node1 and node2.

    \b
    Example:
      mptm lab up
      mptm lab exec node1-c1 -- ping -c 3 10.250.1.101
      mptm --instance node1 counters
      mptm lab down
    """


@lab.command()
@prefix_option
@click.option("--bare", is_flag=True, help="Only namespaces and links; nothing is configured in MPTM.")
def up(prefix: str, bare: bool) -> None:
    """Build the lab and bring up both nodes. Harmless when it is up: a node that has been configured stays so.

    \b
    Example:
      mptm lab up
    """
    built = Lab(prefix)
    others = built.up(bare=bare)
    targets = ", ".join(built.topology.namespaces())
    click.echo(f"The lab is up: {targets}.", err=True)
    of_prefix = f" --prefix {prefix}" if prefix != "mptm" else ""
    again = f"mptm lab up{of_prefix}{' --bare' if bare else ''}"
    for node in others:
        state = "not bare" if bare else "configured otherwise than by its file"
        click.echo(
            f"But {node.name} is {state}, and stays as it is: "
            f"`mptm --instance {node.instance} purge --yes` and `{again}` change that.",
            err=True,
        )
    if not bare and not others:
        click.echo(f"Try: mptm lab exec{of_prefix} node1-c1 -- ping -c 3 10.250.1.101", err=True)


@lab.command()
@prefix_option
def down(prefix: str) -> None:
    """Remove the lab: its instances, namespaces and links. Harmless when there is none.

    \b
    Example:
      mptm lab down
    """
    Lab(prefix).down()


@lab.command()
@prefix_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def status(prefix: str, as_json: bool) -> None:
    """Show what stands of the lab. Exit status 1 when it isn't up.

    \b
    Example:
      mptm lab status
    """
    built = Lab(prefix)
    nodes = built.status()
    if as_json:
        click.echo(json.dumps({"up": built.is_up(), "nodes": [asdict(node) for node in nodes]}, indent=2))
    else:
        for node in nodes:
            state = "up" if node.up else "down"
            click.echo(f"{node.name}: {state}, instance {node.instance}, namespace {node.namespace}")
            for container in node.containers:
                addresses = ", ".join(container.addresses)
                click.echo(f"  {node.name}-{container.name}: {addresses}, behind {container.port}")
    if not built.is_up():
        raise click.exceptions.Exit(1)


@lab.command("exec", context_settings={"ignore_unknown_options": True})
@prefix_option
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(prefix: str, node: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in NODE: node1, node2, node1-c1 (a container of it) or underlay. Its exit status is the command's.
    On a node, `mptm` works on that node, which it begins anew in the same namespace after `mptm purge`.

    \b
    Example:
      mptm lab exec node1-c1 -- ping -c 3 10.250.1.101
      mptm lab exec node1 -- mptm counters
      mptm lab exec underlay -- tcpdump -ni node2 udp port 6081
    """
    built = Lab(prefix)
    namespace = built.namespace(node)
    if not built.is_up():
        raise NotFound("the lab isn't up", "mptm lab up")
    instances = {lab_node.name: lab_node.instance for lab_node in built.topology.nodes}
    if node in instances:
        os.environ |= {"MPTM_INSTANCE": instances[node], "MPTM_NETNS": namespace}
    netns.enter(namespace)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise MptmError(f"{command[0]}: {error.strerror}") from None


@lab.command()
def demo() -> None:
    """Show the main job on real traffic, in a lab of its own, and clean up. Takes half a minute.

    \b
    Example:
      mptm lab demo
    """
    from mptm.lab.demo import run_demo

    raise click.exceptions.Exit(run_demo())
