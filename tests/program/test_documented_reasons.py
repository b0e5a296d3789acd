# SPDX-License-Identifier: GPL-2.0-only
"""Packets are refused for the reasons that docs/protocols.md lists for their protocol, all of them and no others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from document_protocols import reasons_of
from packets import VARIANTS, carries, far_end, inner_kinds, over_ip, protocol_of, set_outer, tunnel
from test_malformed import mended
from world import REMOTE, THEIRS, World

from mptm.intent import Route
from mptm.protocols import PROTOCOLS

INNER = inner_kinds()
OF_EVERY_PROTOCOL = {
    "BAD_OUTER_IP", "BAD_OUTER_UDP", "BAD_INNER", "INNER_FAMILY", "INNER_VERSION", "ECN_CE", "NO_ROUTE",
    "SENDER_OR_ID", "FRAGMENT",
}  # fmt: skip
TELLING = (0x0800, 0x86DD, 0x6558, 0x88BE, 0x22EB, 0x8000)
"""Words that say what follows in one header or another."""


def mutants(wire: bytes, underlay: int, header_len: int, has_ip: bool) -> Iterator[bytes]:
    """The packet with one bit of its headers flipped, one word replaced, or cut with lengths that agree."""
    start = 12 if not has_ip else (34 if underlay == 4 else 54)
    for at in range(start, header_len + 2):
        for bit in range(8):
            yield set_outer(wire, at, bytes([wire[at] ^ 1 << bit]))
        if at % 2 == 0:
            for word in TELLING:
                yield set_outer(wire, at, word.to_bytes(2))
    yield set_outer(wire, header_len + 12, bytes.fromhex("8100"))  # a frame with a VLAN tag
    for length in range(start + 8 if has_ip else 14, header_len + 4):
        yield mended(wire[:length], underlay) if has_ip else wire[:length]


def reasons_seen(node: World, peer: World, carrier: str, underlay: int) -> set[str]:
    version = 4 if carries(carrier, underlay, 4) else 6
    (record,) = node.apply(
        tunnel(carrier, underlay, remotes=REMOTE),
        Route(network="blue", prefix=THEIRS[version], via="to-node2"),
    ).tables.tunnels.values()
    wire = node.send("c1", INNER[f"udp{version}"]).data
    peer.apply(far_end(carrier, underlay), Route(network="blue", prefix=THEIRS[version], port="c2"))
    for packet in mutants(wire, underlay, record.outer_len, over_ip(carrier)):
        peer.send("up0", packet)
    return set(peer.drops())


@pytest.fixture(scope="module")
def seen(node: World, peer: World) -> dict[str, set[str]]:
    """Reasons by protocol."""
    found: dict[str, set[str]] = {name: set() for name in PROTOCOLS}
    for carrier in (*PROTOCOLS, *VARIANTS):
        protocol = protocol_of(carrier)
        for underlay in protocol.underlays or (4,):
            if carrier in PROTOCOLS or underlay == (protocol.underlays or (4,))[0]:
                found[protocol.name] |= reasons_seen(node, peer, carrier, underlay)
    return found


def documented(name: str) -> set[str]:
    return {reason.partition("_")[2] for reason in reasons_of(PROTOCOLS[name])}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_packet_is_refused_for_a_reason_that_is_not_documented(seen, name):
    assert seen[name] <= documented(name) | OF_EVERY_PROTOCOL


def test_every_documented_reason_is_met(seen):
    met = {reason for found in seen.values() for reason in found}
    assert {reason for name in PROTOCOLS for reason in documented(name)} <= met
