# SPDX-License-Identifier: GPL-2.0-only
"""The encapsulation program and its description in Python agree byte for byte on whatever packets and options."""

from __future__ import annotations

import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model import encapsulate
from packets import carriers, carries, frame, ip, protocol_of, tunnel
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet, Raw
from world import LOCAL, LOCAL_MAC, REMOTE, REMOTE_MAC, THEIRS, World

from mptm.facts import Path
from mptm.fields import fields_of
from mptm.intent import Route, tunnel_from_dict
from mptm.template import PatchOp

MASK = 2**64 - 1


def flow_hash(packet: Packet) -> int:
    """hash_flow of bpf/packet.h."""
    raw = bytes(packet)
    if raw[12:14] == b"\x08\x00":
        protocol = raw[23]
        fragment = struct.unpack_from("!H", raw, 20)[0] & 0x3FFF
        source, destination = struct.unpack_from("<II", raw, 26)
        ports = (
            struct.unpack_from("<I", raw, 14 + (raw[14] & 15) * 4)[0]
            if protocol in (6, 17, 132) and not fragment
            else 0
        )
        more = 0
    else:
        protocol = raw[20]
        source, source_low, destination, destination_low = struct.unpack_from("<4Q", raw, 22)
        ports = struct.unpack_from("<I", raw, 54)[0] if protocol in (6, 17, 132) else 0
        more = source_low * 0x27D4EB2F165667C5 + destination_low * 0x85EBCA77C2B2AE63
    number = (source + (protocol << 40)) * 0x9E3779B97F4A7C15
    number += destination * 0xC2B2AE3D27D4EB4F + ports * 0x165667B19E3779F9 + more
    number &= MASK
    number ^= number >> 32
    return (number * 0x9E3779B97F4A7C15 & MASK) >> 32


@st.composite
def packets(draw: st.DrawFn) -> tuple[int, int, Packet]:
    """(TOS, TTL, frame)."""
    version = draw(st.sampled_from([4, 6]))
    tos, ttl = draw(st.integers(0, 255)), draw(st.integers(1, 255))
    fields = {"tos": tos, "ttl": ttl} if version == 4 else {"tc": tos, "hlim": ttl}
    if version == 4:
        fields |= draw(st.sampled_from([{}, {"flags": "MF", "id": 1}, {"frag": 5, "id": 1}]))
    transport = draw(st.sampled_from([UDP, TCP]))
    ports = st.integers(0, 65535)
    payload = transport(sport=draw(ports), dport=draw(ports)) / Raw(draw(st.binary(max_size=1200)))
    return tos, ttl, frame(ip(version, **fields) / payload)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    carrier=st.sampled_from(carriers()),
    all_sent=st.lists(packets(), min_size=20, max_size=40),
    ttl=st.one_of(st.integers(1, 255), st.just("inherit")),
    dscp=st.one_of(st.integers(0, 63), st.just("inherit")),
    source_port=st.one_of(st.integers(1, 65535), st.just("flow")),
)
def test_the_program_does_what_the_model_says(node: World, carrier, all_sent, ttl, dscp, source_port):
    protocol, underlay = carrier
    known = {field.name for field in fields_of(protocol_of(protocol).options)}
    options = {"ttl": ttl, "dscp": dscp, "source_port": source_port}
    options = {name: value for name, value in options.items() if name in known}
    fields = tunnel(protocol, underlay, remotes=REMOTE, **options)
    routes = [Route(network="blue", prefix=THEIRS[version], via="to-node2") for version in (4, 6)]
    node.apply(fields, *routes)
    made = tunnel_from_dict(fields)
    path = Path(
        egress_ifindex=1,
        local=type(made.remote_address)(LOCAL[underlay]),
        local_mac=bytes.fromhex(LOCAL_MAC.replace(":", "")),
        gateway=None,
        next_hop_mac=bytes.fromhex(REMOTE_MAC.replace(":", "")),
        mtu=1500,
    )
    template = protocol_of(protocol).build(made, path)
    numbered = next((patch.offset for patch in template.patches if patch.op is PatchOp.SEQUENCE), None)
    timed = next((patch.offset for patch in template.patches if patch.op is PatchOp.ERSPAN_TIME), None)
    for tos, inner_ttl, packet in all_sent:
        got = node.send("c1", packet)
        if not carries(protocol, underlay, 4 if IP in packet else 6):
            assert (got.verdict, got.data) == ("DROP", bytes(packet))
            continue
        assert got.verdict == "REDIRECT"
        expected = encapsulate(
            template,
            bytes(packet),
            tos=tos,
            ttl=inner_ttl,
            flow_hash=flow_hash(packet),
            ip_id=int.from_bytes(got.data[18:20]),
            sequence=int.from_bytes(got.data[numbered : numbered + 4]) if numbered else 0,
            time=int.from_bytes(got.data[timed : timed + 4]) if timed else 0,
        )
        assert got.data == expected
