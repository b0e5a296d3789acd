# SPDX-License-Identifier: GPL-2.0-only
"""A driver that leaves no room behind a packet: a tap's, which makes what it hands to XDP a multiple of 64 bytes long.

The answer to an IPv6 probe is eight bytes longer than the probe. BPF_PROG_TEST_RUN always leaves enough for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterator

import pytest
from packets import tunnel
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from world import LOCAL, LOCAL_MAC, OURS, REMOTE, REMOTE_MAC, World, ip

from mptm.facts import Link
from mptm.intent import Port, Route
from mptm.kernel import netns
from mptm.tables import Attachment

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
TIMEOUT_SECONDS = 5
ROOM = 64
"""A tap's frames get as many bytes as make them a multiple of this (tun_build_skb of Linux)."""
GROWTH = 8
"""Bytes: the target's link-layer address, which an advertisement has and a probe has not (RFC 4861 §4.4)."""


@pytest.fixture
def tap(node: World) -> Iterator[int]:
    """A tap as a further uplink of the node, with the program in its driver: what is written to it comes in there."""
    with netns.inside(node.namespace):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)  # blocking writes take another way
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", b"tap0", IFF_TAP | IFF_NO_PI))
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        ip("-n", node.namespace, "link", "set", "tap0", "address", LOCAL_MAC, "up")
        ifindex = int(ip("-n", node.namespace, "-o", "link", "show", "tap0").partition(":")[0])
        mac = bytes.fromhex(LOCAL_MAC.replace(":", ""))
        node.links["tap0"] = Link(ifindex, "tap0", mac, 1500, "tun")
        stack.callback(node.links.pop, "tap0")
        yield descriptor
        with netns.inside(node.namespace):
            node.data_plane.detach("tap0")


def probe(options_len: int) -> bytes:
    """Is our workload's address taken? In GENEVE with so many bytes of options that nobody has to know."""
    inner = Ether(dst="33:33:ff:00:01:00", src="02:00:00:00:c1:77") / IPv6(src="::", dst="ff02::1:ff00:100")
    options = (
        struct.pack("!HBB", 0x0102, 1, options_len // 4 - 1) + bytes(options_len - 4) if options_len else b""
    )
    header = struct.pack("!BBHI", len(options) // 4, 0, 0x6558, 100 << 8)
    wire = (
        Ether(dst=LOCAL_MAC, src=REMOTE_MAC)
        / IP(src=REMOTE[4], dst=LOCAL[4])
        / UDP(sport=50000, dport=6081, chksum=0)
    )
    return bytes(wire / Raw(header + options + bytes(inner / ICMPv6ND_NS(tgt=OURS[6]))))


def test_a_question_that_cant_be_answered_in_its_place_is_dropped_and_counted(node, tap):
    """From a tunnel: it was taken out already, and can't be left to the kernel as it came."""
    node.apply(
        tunnel("geneve", remotes=REMOTE, vni=100, name="t"),
        Port(name="tap0", role="uplink"),
        Route(network="blue", prefix=f"{OURS[6]}/128", port="c1", mac="02:00:00:00:c1:01"),
    )
    with netns.inside(node.namespace):
        node.data_plane.attach(Attachment(node.links["tap0"].ifindex, "tap0", "uplink", "native"))
    wires = [probe(options_len) for options_len in range(0, ROOM, 4)]
    for wire in wires:
        os.write(tap, wire)
    cramped = sum(-len(wire) % ROOM < GROWTH for wire in wires)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline and node.tunnel_counters("t")["decap_packets"] < len(wires):
        time.sleep(0.01)
    assert node.drops() == {"ANSWER": cramped}
    assert node.drop_scopes() == {("ANSWER", "SCOPE_TUNNEL", node.allocations.tunnels["t"].counter)}
    assert node.tunnel_counters("t")["encap_packets"] == len(wires) - cramped > 0
