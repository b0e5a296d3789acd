# SPDX-License-Identifier: GPL-2.0-only
"""The programs send what the specifications say, byte for byte, and take it: headers written by hand, no builder's."""

from __future__ import annotations

from typing import Any

import pytest
import vectors
import world
from packets import far_end, ip_packet, tunnel
from vectors import FRAMES, INNER, SOURCE_PORT, VECTORS, Vector, label
from world import REMOTE, THEIRS, World

from mptm.fields import fields_of
from mptm.intent import Route
from mptm.protocols import PROTOCOLS
from mptm.tables import Tunnel
from mptm.template import PatchOp

CHANGING = {PatchOp.SEQUENCE: 4, PatchOp.ERSPAN_TIME: 4, PatchOp.FLOW8: 1}
"""Fields, and their lengths, that no test can foresee."""
FLOW_LABEL_AT = 15
"""Of an outer IPv6 header: three bytes, whose first four bits are traffic class."""


def options_of(vector: Vector) -> dict[str, Any]:
    known = {field.name for field in fields_of(PROTOCOLS[vector.protocol].options)}
    return ({"source_port": SOURCE_PORT} if "source_port" in known else {}) | vector.options


def without_what_changes(wire: bytes, record: Tunnel) -> bytes:
    """A packet of a tunnel with such fields zero; a checksum that counts one of them, too."""
    ops = {patch.op for patch in record.patches}
    masked = bytearray(wire)
    for patch in record.patches:
        length = CHANGING.get(PatchOp(patch.op), 0)
        if patch.op == PatchOp.CHECKSUM and PatchOp.SEQUENCE in ops:
            length = 2
        masked[patch.offset : patch.offset + length] = bytes(length)
        if patch.op == PatchOp.IPV6:
            masked[FLOW_LABEL_AT : FLOW_LABEL_AT + 3] = bytes([masked[FLOW_LABEL_AT] & 0xF0, 0, 0])
    return bytes(masked)


@pytest.mark.parametrize("vector", [each for each in VECTORS if each.is_sent], ids=label)
def test_what_the_program_sends(node: World, vector: Vector):
    routes = [Route(network="blue", prefix=THEIRS[version], via="to-node2") for version in (4, 6)]
    fields = tunnel(vector.protocol, vector.underlay, remotes=REMOTE, **options_of(vector))
    (record,) = node.apply(fields, *routes).tables.tunnels.values()
    sent = node.send("c1", FRAMES[vector.inner])
    assert (sent.verdict, node.drops()) == ("REDIRECT", {})
    assert without_what_changes(sent.data, record).hex(" ") == without_what_changes(vector.wire, record).hex(
        " "
    )


@pytest.mark.parametrize("vector", [each for each in VECTORS if each.arrives], ids=label)
def test_what_the_program_takes(peer: World, vector: Vector):
    routes = [Route(network="blue", prefix=THEIRS[version], port="c2") for version in (4, 6)]
    peer.apply(far_end(vector.protocol, vector.underlay, **options_of(vector)), *routes)
    got = peer.send("up0", vector.wire)
    if vector.reason:
        verdict = "PASS" if vector.reason in ("CONTROL", "SENDER_OR_ID") else "DROP"
        assert (got.verdict, got.data, peer.drops()) == (verdict, vector.wire, {vector.reason: 1})
        return
    assert (got.verdict, peer.drops()) == ("REDIRECT", {})
    assert ip_packet(got.data).hex(" ") == ip_packet(FRAMES[vector.inner]).hex(" ")
    assert got.data[12:14] == FRAMES[vector.inner][12:14]
    if vector.inner.startswith("ethernet") and vector.over is not None:
        assert got.data[6:] == INNER[vector.inner][6:], "all but the destination, which is the workload's"
    assert peer.tunnel_counters("to-node1")["decap_packets"] == 1


def test_the_vectors_are_between_the_nodes_of_these_tests():
    assert (vectors.LOCAL, vectors.REMOTE) == (world.LOCAL, world.REMOTE)
    assert (vectors.LOCAL_MAC, vectors.REMOTE_MAC) == (world.LOCAL_MAC, world.REMOTE_MAC)
