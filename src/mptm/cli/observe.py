# SPDX-License-Identifier: GPL-2.0-only
"""`mptm counters`, `drops` and `reset`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from mptm.cli.common import current_node, json_option, note, print_json, print_table

if TYPE_CHECKING:
    from mptm.node import Counters

CLEAR_SCREEN = "\x1b[H\x1b[2J"


@click.command()
@click.option("--watch", is_flag=True, help="Print again and again, with rates, until interrupted.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two prints of --watch.",
)
@json_option
def counters(watch: bool, interval: float, as_json: bool) -> None:
    """Show packets and bytes of each tunnel and port, in each direction.

    A tunnel counts inner frames, so both of its ends count the same. rx of a port is what its program saw, tx what
    MPTM sent out of it.

    \b
    Example:
      mptm counters
      mptm counters --watch
    """
    if watch and as_json:
        raise click.UsageError("--watch and --json exclude each other: --json is one document")
    node = current_node()
    now = node.counters()
    if as_json:
        print_json(
            {
                "tunnels": {name: vars(each) for name, each in now.tunnels.items()},
                "ports": {name: vars(each) for name, each in now.ports.items()},
            }
        )
        return
    _print_counters(now)
    if not watch:
        return
    try:
        taken_at = time.monotonic()
        while True:
            time.sleep(interval)
            before, before_at = now, taken_at
            now, taken_at = node.counters(), time.monotonic()
            click.echo(CLEAR_SCREEN, nl=False)
            _print_counters(now, before, taken_at - before_at)
    except KeyboardInterrupt:
        return


def _print_counters(now: Counters, before: Counters | None = None, seconds: float = 1.0) -> None:
    rates = ["PACKETS/S", "MBIT/S"] if before is not None else []
    for kind, directions in (
        ("tunnels", (("encap", "encapsulated"), ("decap", "decapsulated"))),
        ("ports", (("rx", "received"), ("tx", "sent"))),
    ):
        rows = []
        for name, values in getattr(now, kind).items():
            for prefix, word in directions:
                packets, octets = (getattr(values, f"{prefix}_{unit}") for unit in ("packets", "bytes"))
                row = [name, word, packets, octets]
                if before is not None:
                    earlier = getattr(before, kind).get(name, type(values)())
                    row.append(f"{(packets - getattr(earlier, f'{prefix}_packets')) / seconds:.0f}")
                    row.append(f"{(octets - getattr(earlier, f'{prefix}_bytes')) * 8 / seconds / 1e6:.2f}")
                rows.append(row)
        print_table(
            [kind[:-1].upper(), "", "PACKETS", "BYTES", *rates], rows, right="PACKETS BYTES PACKETS/S MBIT/S"
        )
        if kind == "tunnels":
            click.echo()


@click.command()
@json_option
def drops(as_json: bool) -> None:
    """Show what was dropped, or refused and left to the kernel, why, and at which port or tunnel.

    \b
    Example:
      mptm drops
    """
    found = current_node().drops()
    if as_json:
        print_json([vars(each) for each in found])
        return
    if not found:
        note("nothing was dropped")
        return
    print_table(
        ["PACKETS", "BYTES", "AT", "WHAT", "WHY"],
        [
            (
                each.packets,
                each.bytes,
                f"{each.scope} {each.name}".strip(),
                "left to the kernel" if each.left_to_kernel else "dropped",
                each.caption,
            )
            for each in found
        ],
        right="PACKETS BYTES",
    )


@click.command()
def reset() -> None:
    """Set all counters to zero and forget the drops.

    \b
    Example:
      mptm reset
    """
    current_node().reset_counters()
