# SPDX-License-Identifier: GPL-2.0-only
"""Frames that are longer than a jumbo frame: sent at a port whose program runs in generic mode."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest
from packets import tunnel
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from world import LOCAL, LOCAL_MAC, OURS, REMOTE, REMOTE_MAC, THEIRS, World, ip

from model import Model
from model.frames import ones_complement
from mptm.intent import Route
from mptm.kernel import netns
from mptm.tables import Attachment

LONGEST_SUMMED = 16384
LONGEST_MTU = 65535
TIMEOUT_SECONDS = 5


@pytest.fixture
def uplink(node: World) -> Iterator[World]:
    """The node, with an uplink up0 where frames of any length may come in."""
    for name in ("up0", "up0p"):
        ip("-n", node.namespace, "link", "set", name, "mtu", str(LONGEST_MTU), "up")
    yield node
    for name in ("up0", "up0p"):
        ip("-n", node.namespace, "link", "set", name, "mtu", "1500")


def outer(protocol: int) -> Packet:
    return Ether(src=REMOTE_MAC, dst=LOCAL_MAC) / IP(src=REMOTE[4], dst=LOCAL[4], proto=protocol)


def payload(length: int) -> bytes:
    """An IP packet of theirs of `length` bytes, for a workload of ours that isn't asked: there is no route."""
    return bytes(IP(src=THEIRS[4], dst=OURS[4]) / UDP(sport=1, dport=2) / Raw(b"\1" * (length - 28)))


def gre(frame_len: int) -> bytes:
    """With the right checksum."""
    packet = payload(frame_len - 14 - 20 - 8)
    header = struct.pack("!HHHH", 0x8000, 0x0800, 0, 0)
    checksum = struct.pack("!H", ones_complement(header + packet))
    return bytes(outer(47) / Raw(header[:4] + checksum + header[6:] + packet))


def fou(frame_len: int) -> bytes:
    """With the right UDP checksum, by scapy."""
    return bytes(outer(17) / UDP(sport=50000, dport=5555) / Raw(payload(frame_len - 14 - 20 - 8)))


def drops_after(node: World, wire: bytes) -> dict[str, int]:
    """The reasons that are counted for a frame which comes in by the wire, at a program in generic mode."""
    with netns.inside(node.namespace):
        node.data_plane.attach(Attachment(node.IFINDEX["up0"], "up0", "uplink", "generic"))
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
                sender.bind(("up0p", 0))
                sender.send(wire)
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while time.monotonic() < deadline and not node.drops():
                time.sleep(0.01)
        finally:
            node.data_plane.detach("up0")
    return node.drops()


@pytest.mark.parametrize("frame_len", [2000, LONGEST_SUMMED, LONGEST_SUMMED + 1, 20000, 40000])
@pytest.mark.parametrize(
    ("fields", "make"),
    [
        (tunnel("gre", remotes=REMOTE), gre),
        (tunnel("fou", remotes=REMOTE, port=5555, receive_checksum="verify"), fou),
    ],
    ids=["gre", "fou"],
)
def test_a_checksum_over_more_than_16_kilobytes_is_no_wrong_one_but_refused(uplink, fields, make, frame_len):
    uplink.apply(fields, Route(network="blue", prefix="10.250.99.1/32", drop=True))
    reason = "NO_ROUTE" if frame_len <= LONGEST_SUMMED else "CHECKSUM_SPAN"
    wire = make(frame_len)
    assert drops_after(uplink, wire) == {reason: 1}
    assert Model(uplink.intent, uplink.facts).receive("up0", wire).reasons == [reason]


def test_whose_checksums_are_not_verified_is_taken_whatever_its_length(uplink):
    uplink.apply(tunnel("gre", remotes=REMOTE, verify_checksum=False))
    wire = gre(40000)
    assert drops_after(uplink, wire) == {"NO_ROUTE": 1}
    assert Model(uplink.intent, uplink.facts).receive("up0", wire).reasons == ["NO_ROUTE"]


def test_of_a_long_packet_only_that_its_checksum_is_missing_is_told(uplink):
    uplink.apply(tunnel("fou", remotes=REMOTE, port=5555, receive_checksum="require"))
    wire = bytearray(fou(40000))
    wire[40:42] = bytes(2)
    assert drops_after(uplink, bytes(wire)) == {"UDP_CHECKSUM": 1}
    assert Model(uplink.intent, uplink.facts).receive("up0", bytes(wire)).reasons == ["UDP_CHECKSUM"]
