# SPDX-License-Identifier: GPL-2.0-only
"""Writes docs/interop.md from what `make test-interop` has left in build/interop."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from results import HEADER, Notes, PeerResults, markdown, rows, summary_cell

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / directory) for directory in ("", "lab", "program", "unit", "vm")]

INTRODUCTION = """# Interoperability

What our node and implementations that nobody here wrote make of each other's packets. `make test-interop` tries all of
it again, `make interop-table` writes this page from what it found; a small part of it is in `make test`.

A case is a protocol in one form, over one underlay, between a workload of our node and one of the peer's. Tried are:

- **ping**: three each way, all answered; with inner IPv4, and with inner IPv6 where the protocol carries it.
- **TCP**: a connection that carries 50 MB of random bytes each way, and one of 10 MB with the other inner IP version;
  SHA-256 is compared at both ends, and no segment may come with a wrong checksum.
- **largest packet**: a ping, and an answer as large, that fill the tunnel's MTU to the byte and may not be fragmented.
- **too big**: one byte more from our workload. It is dropped, counted, and answered by the gateway of the network with
  the MTU that fits (ICMP fragmentation needed, ICMPv6 packet too big).
- **outer fragments**: too much from the peer's workload. Where the peer then fragments its outer packet, we leave the
  fragments to the kernel, and count them over IPv4. `none sent`: the peer doesn't.

`no` and `partly` have their reason below the table, and the reason is checked: what can't work is tried and must fail,
and what the peer says then must be what it was expected to say. `counted as` stands where the peer is made to send
what must be dropped.
"""


def interop_document(found: Mapping[str, PeerResults], protocols: Mapping[str, str]) -> str:
    """The page. `found`: by peer, in the order of columns; `protocols`: name -> title."""
    notes = Notes()
    lines = [
        [title, f"`{name}`", *(summary_cell(results, name, notes) for results in found.values())]
        for name, title in protocols.items()
    ]
    header = ["protocol", "`--protocol`", *(f"{each.title} {each.version}" for each in found.values())]
    parts = [INTRODUCTION, "## Protocols and peers\n", markdown(header, lines), _listed(notes)]
    for each in found.values():
        notes = Notes()
        table = markdown(HEADER, rows(each, notes))
        parts += [f"\n## {each.title} {each.version}\n", table, _listed(notes)]
    return "\n".join(filter(None, parts)) + "\n"


def _listed(notes: Notes) -> str:
    return "\n" + "\n".join(notes.lines()) if notes.lines() else ""


def main() -> None:
    """The command."""
    from peers import PEERS

    from mptm.protocols import PROTOCOLS

    directory = ROOT / "build" / "interop"
    missing = [name for name in PEERS if not (directory / f"{name}.json").exists()]
    if missing:
        sys.exit(
            f"error: nothing was found out about {', '.join(missing)} yet: run `make test-interop` first"
        )
    found = {
        name: PeerResults.from_dict(json.loads((directory / f"{name}.json").read_text())) for name in PEERS
    }
    titles = {name: protocol.title for name, protocol in PROTOCOLS.items()}
    (ROOT / "docs" / "interop.md").write_text(interop_document(found, titles), encoding="utf-8")


if __name__ == "__main__":
    main()
