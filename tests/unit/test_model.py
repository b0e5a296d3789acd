# SPDX-License-Identifier: GPL-2.0-only
"""The reference model itself: apart from what it judges, and right where somebody else's word can be had."""

from __future__ import annotations

import ast
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any

import pytest
import vectors
from hypothesis import given
from hypothesis import strategies as st
from packets import far_end
from patching import encapsulate
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scenario import Scenario
from vectors import VECTORS, Vector, label
from world import THEIRS

from model import Model, decap, ecn, encap
from model.decap.underlay import Outer
from model.encap.base import Fields
from model.frames import ones_complement, updated_checksum
from model.node import highest_weighted
from model.parse import parse_frame
from model.way import Way
from mptm import hashing
from mptm.facts import Path
from mptm.fields import fields_of
from mptm.intent import tunnel_from_dict
from mptm.protocols import PROTOCOLS

MODEL = FilePath(__file__).parents[1] / "model"
MAY_IMPORT = {"mptm.facts", "mptm.intent"}

OWN_MAC, NEXT_MAC = bytes.fromhex("6805cad47cac"), bytes.fromhex("6805cad45c28")
ADDRESSES = {4: ("10.30.30.1", "10.30.30.2"), 6: ("fd00:30::1", "fd00:30::2")}
INNER = Ether(dst="02:00:00:00:00:0b", src="02:00:00:00:00:0a")
FRAMES = {
    4: INNER / IP(src="10.1.0.1", dst="10.1.0.2", tos=0xB9, ttl=17) / TCP() / Raw(b"odd"),
    6: INNER / IPv6(src="fd01::1", dst="fd01::2", tc=0xB9, hlim=17) / UDP() / Raw(b"even"),
}
SENT_BY = {"flow_hash": 0x89ABCDEF, "sequence": 5, "identification": 0x1234, "time": 77}

REQUIRED: dict[str, dict[str, Any]] = {
    "erspan": {"session": 0x123},
    "fou": {"port": 5555},
    "geneve": {"vni": 0x123456},
    "gtpu": {"teid": 0x12345678},
    "l2tp": {"session_id": 0x12345678},
    "mpls": {"labels": [0x12345]},
    "nsh": {"spi": 0x123456},
    "nvgre": {"vsid": 0x123456},
    "qinq": {"outer_vid": 0x123, "inner_vid": 0x456},
    "vlan": {"vid": 0x123},
    "vxlan": {"vni": 0x123456},
    "vxlan-gbp": {"vni": 0x123456},
    "vxlan-gpe": {"vni": 0x123456},
}


def sent(protocol: str, version: int = 4, inner: int = 4, /, **options: Any) -> bytes:
    """What the model makes of a frame with a packet of IP version `inner`."""
    tunnel = made(protocol, version, **options)
    frame = parse_frame(bytes(FRAMES[inner]))
    assert frame is not None
    local, remote = (ip_address(address).packed for address in ADDRESSES[version])
    way = Way(2, 1500, NEXT_MAC, OWN_MAC, local, remote)
    return encap.encapsulate(protocol, tunnel.options, way, frame, Fields(destination=remote, **SENT_BY))


def made(protocol: str, version: int, /, **options: Any) -> Any:
    values = {"name": "t", "protocol": protocol, "network": "blue", "remote": ADDRESSES[version][1]}
    return tunnel_from_dict(values | REQUIRED.get(protocol, {}) | options)


def test_the_model_knows_nothing_of_what_it_judges():
    for path in MODEL.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found = {name for name in names if name.split(".")[0] == "mptm"}
            assert found <= MAY_IMPORT, f"{path.name} imports {found - MAY_IMPORT}"


def test_the_model_knows_every_protocol():
    assert encap.SHAPES.keys() == PROTOCOLS.keys()
    for protocol in PROTOCOLS:
        version = PROTOCOLS[protocol].underlays[0] if PROTOCOLS[protocol].underlays else 4
        options = made(protocol, version).options
        assert decap.arrivals(protocol, options) and decap.name(protocol, options)


def options_of(vector: Vector) -> dict[str, Any]:
    known = {field.name for field in fields_of(PROTOCOLS[vector.protocol].options)}
    return ({"source_port": vectors.SOURCE_PORT} if "source_port" in known else {}) | vector.options


@pytest.mark.parametrize("vector", [each for each in VECTORS if each.is_sent], ids=label)
def test_the_model_sends_what_the_specification_says(vector):
    options = made(vector.protocol, vector.underlay, **options_of(vector)).options
    frame = parse_frame(vectors.FRAMES[vector.inner])
    assert frame is not None
    local, remote = (ip_address(ends[vector.underlay]).packed for ends in (vectors.LOCAL, vectors.REMOTE))
    if vector.protocol == "srv6" and options.segments:
        remote = ip_address(options.segments[0]).packed
    macs = (bytes.fromhex(mac.replace(":", "")) for mac in (vectors.REMOTE_MAC, vectors.LOCAL_MAC))
    fields = Fields(vectors.FLOW_HASH, remote, vectors.SEQUENCE, time=vectors.TIME)
    wire = encap.encapsulate(vector.protocol, options, Way(2, 1500, *macs, local, remote), frame, fields)
    assert wire.hex(" ") == vector.wire.hex(" ")


@pytest.mark.parametrize("vector", [each for each in VECTORS if each.arrives], ids=label)
def test_the_model_takes_what_the_specification_says(vector):
    tunnel = {"kind": "tunnel", **far_end(vector.protocol, vector.underlay, **options_of(vector))}
    routes = [
        {"kind": "route", "network": "blue", "prefix": THEIRS[version], "port": "c2"} for version in (4, 6)
    ]
    far = Scenario((tunnel, *routes), is_far=True)
    got = Model(far.intent, far.facts).receive("up0", vector.wire)
    assert got.reasons == ([vector.reason] if vector.reason else [])
    if not vector.reason:
        inner, wanted = parse_frame(got.data), parse_frame(vectors.FRAMES[vector.inner])
        assert inner is not None and wanted is not None
        assert (got.verdict, inner.ip.hex(" ")) == ("REDIRECT", wanted.ip.hex(" "))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("inner", [4, 6])
def test_templates_make_the_same_packets(protocol, inner):
    """Written twice, apart from each other, for all that has a template: here without a kernel."""
    for version in PROTOCOLS[protocol].underlays or (4,):
        tunnel = made(protocol, version)
        families = PROTOCOLS[protocol].inner_families(tunnel.options)
        if families is not None and not families & (1 if inner == 4 else 2):
            continue
        local = ip_address(ADDRESSES[version][0])
        template = PROTOCOLS[protocol].build(tunnel, Path(2, local, OWN_MAC, None, NEXT_MAC, 1500))
        by_template = encapsulate(
            template,
            bytes(FRAMES[inner]),
            tos=0xB9,
            ttl=17,
            flow_hash=SENT_BY["flow_hash"],
            ip_id=SENT_BY["identification"],
            sequence=SENT_BY["sequence"],
            time=SENT_BY["time"],
        )
        assert sent(protocol, version, inner).hex(" ", 2) == by_template.hex(" ", 2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_sent_can_be_read(protocol):
    for version in PROTOCOLS[protocol].underlays or (4,):
        options = made(protocol, version).options
        carries = encap.carried_by(protocol, options)
        inner = 6 if carries == {6} else 4
        wire = sent(protocol, version, inner)
        arrived = decap.read_outer(wire, decap.arrivals(protocol, options))
        assert isinstance(arrived, Outer) and not arrived.problem
        reading = decap.read(arrived)
        assert not reading.fault
        header, identifier = decap.name(protocol, options)
        payload = next(
            name.payload for name in reading.names if (name.header, name.identifier) == (header, identifier)
        )
        assert payload is not None
        data = payload.data[12:] if not encap.is_over_ip(protocol) else payload.data
        if protocol == "l2tp":
            data = data[4:]  # the sublayer, whose length only the session tells
        frame = parse_frame(bytes(FRAMES[inner]))
        assert frame is not None
        assert data == (
            frame.ip if carries else frame.data[12:] if not encap.is_over_ip(protocol) else frame.data
        )


def test_checksum_is_that_of_the_example_in_rfc_1071_section_3():
    assert ones_complement(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF


@given(data=st.binary(min_size=8, max_size=40), after=st.binary(min_size=2, max_size=2))
def test_an_updated_checksum_is_the_one_that_would_be_computed(data, after):
    before = ones_complement(b"\1\0" + data)
    made_new = updated_checksum(before.to_bytes(2, "big"), data[:2], after)
    assert int.from_bytes(made_new, "big") == ones_complement(b"\1\0" + after + data[2:])


def test_ecn_is_figure_4_of_rfc_6040():
    names = {"N": 0, "1": 1, "0": 2, "C": 3, "-": None}
    rows = {"N": "NNN-", "0": "001C", "1": "111C", "C": "CCCC"}  # outer: Not-ECT, ECT(0), ECT(1), CE
    figure = {
        (names[inner], names[outer_ecn]): names[leaving]
        for inner, row in rows.items()
        for outer_ecn, leaving in zip("N01C", row, strict=True)
    }
    assert figure == ecn.LEAVING


@pytest.mark.parametrize("weights", [{"a": 1}, {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 3, "to-node2": 2}])
def test_groups_are_shared_out_as_the_control_plane_does(weights):
    slots = hashing.share_out(weights.items())
    assert [highest_weighted(weights.items(), slot) for slot in range(0, 4096, 37)] == list(slots[::37])
