# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import re
import sys
from ipaddress import IPv4Address, IPv6Address

import pytest
from c_headers import c_enum
from packets import CARRIED, protocol_of
from packets import required_options as options_of_variant
from patching import encapsulate
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN

from model.frames import ones_complement
from mptm.errors import InvalidIntent
from mptm.facts import Path
from mptm.fields import fields_of
from mptm.headers import checksum
from mptm.intent import Tunnel, tunnel_from_dict
from mptm.protocols import PROTOCOLS, Protocol
from mptm.protocols.base import Listener, ListenerKind
from mptm.template import OUTER_SIZE, PATCHES, Patch, PatchOp

OWN_MAC, NEXT_MAC = bytes.fromhex("6805cad47cac"), bytes.fromhex("6805cad45c28")
V4 = Path(2, IPv4Address("10.30.30.1"), OWN_MAC, None, NEXT_MAC, 1500)
V6 = Path(2, IPv6Address("fd00:30::1"), OWN_MAC, None, NEXT_MAC, 1500)
REMOTES = {4: ("10.30.30.2", V4), 6: ("fd00:30::2", V6)}
REQUIRED: dict[str, dict[str, object]] = {
    "erspan": {"session": 0x123},
    "etherip": {},
    "fou": {"port": 5555},
    "geneve": {"vni": 0x123456},
    "gre": {},
    "gre-udp": {},
    "gretap": {},
    "gtpu": {"teid": 0x12345678},
    "gue": {},
    "ip4ip6": {},
    "ip6ip6": {},
    "ipip": {},
    "l2tp": {"session_id": 0x12345678},
    "mpls": {"labels": [0x12345]},
    "nsh": {"spi": 0x123456},
    "nvgre": {"vsid": 0x123456},
    "qinq": {"outer_vid": 0x123, "inner_vid": 0x456},
    "sit": {},
    "srv6": {},
    "vlan": {"vid": 0x123},
    "vxlan": {"vni": 0x123456},
    "vxlan-gbp": {"vni": 0x123456},
    "vxlan-gpe": {"vni": 0x123456},
}


def underlay_of(protocol: Protocol) -> int:
    """An IP version that the protocol runs over."""
    return (protocol.underlays or (4,))[0]


INNER = {
    "ipv4": Ether(dst="02:00:00:00:00:0b", src="02:00:00:00:00:0a")
    / IP(src="10.1.0.1", dst="10.1.0.2")
    / TCP(),
    "ipv6": Ether(dst="02:00:00:00:00:0b", src="02:00:00:00:00:0a")
    / IPv6(src="fd01::1", dst="fd01::2")
    / UDP(),
    "tagged": Ether(dst="02:00:00:00:00:0b", src="02:00:00:00:00:0a")
    / Dot1Q(vlan=7)
    / IP(dst="10.1.0.2")
    / UDP(),
    "arp-like": Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:0a", type=0x0806) / (b"\1" * 28),
}


def tunnel(protocol: str, version: int = 4, /, **settings: object) -> tuple[Tunnel, Path]:
    remote, path = REMOTES[version]
    values = {"name": "t", "protocol": protocol, "network": "blue", "remote": remote}
    return tunnel_from_dict(values | required_options(protocol) | settings), path


def required_options(protocol: str) -> dict[str, object]:
    """A value for each option that the protocol can't do without: so a new protocol needs no new test."""
    options = fields_of(PROTOCOLS[protocol].options)
    return REQUIRED.get(protocol, {field.name: field.examples[0] for field in options if field.required})


def build(protocol: str, version: int = 4, /, **settings: object):
    made, path = tunnel(protocol, version, **settings)
    return PROTOCOLS[protocol].build(made, path)


def send(protocol: str, version: int = 4, inner: str = "ipv4", **settings: object) -> bytes:
    return encapsulate(build(protocol, version, **settings), bytes(INNER[inner]))


# ---- byte for byte; vectors.py has every header ----------------------------------------------------------


def test_geneve_over_ipv4_byte_for_byte():
    assert build("geneve", source_port=51234).outer.hex(" ", 2) == (
        "6805 cad4 5c28 6805 cad4 7cac 0800 "  # Ethernet
        "4500 0000 0000 4000 4011 eaae "  # IPv4: DF, TTL 64, UDP; checksum for length 0
        "0a1e 1e01 0a1e 1e02 "
        "c822 17c1 0000 0000 "  # UDP 51234 -> 6081, no checksum
        "0000 6558 1234 5600"  # GENEVE: version 0, no options; Ethernet follows; VNI
    )


def test_vxlan_over_ipv6_byte_for_byte():
    assert build("vxlan", 6).outer.hex(" ", 2) == (
        "6805 cad4 5c28 6805 cad4 7cac 86dd "  # Ethernet
        "6000 0000 0000 1140 "  # IPv6: UDP, hop limit 64
        "fd00 0030 0000 0000 0000 0000 0000 0001 "
        "fd00 0030 0000 0000 0000 0000 0000 0002 "
        "0000 12b5 0000 0000 "  # UDP: source port by flow, 4789; length and checksum by the packet
        "0800 0000 1234 5600"  # VXLAN: I flag; VNI
    )


def test_vlan_byte_for_byte():
    template = build("vlan", pcp=5)
    assert template.outer.hex(" ", 2) == "6805 cad4 5c28 6805 cad4 7cac 8100 a123"
    assert (template.strip, template.l2_len, template.patches) == (12, 18, ())


def test_vlan_to_anyone_keeps_the_inner_mac_addresses():
    template = build("vlan", remote="any", egress="eth0")
    assert template.outer == bytes(12) + bytes.fromhex("81000123")
    assert template.patches == (Patch(PatchOp.INNER_MACS, 0),)
    sent = Ether(encapsulate(template, bytes(INNER["ipv4"])))
    assert (sent.dst, sent.src, sent[Dot1Q].vlan) == ("02:00:00:00:00:0b", "02:00:00:00:00:0a", 0x123)


OVERHEADS = [
    ("vlan", 4, {}, 0), ("qinq", 4, {}, 4),
    ("geneve", 4, {}, 50), ("geneve", 6, {}, 70), ("geneve", 4, {"payload": "l3"}, 36),
    ("geneve", 4, {"tlvs": ["0102:01:00112233"]}, 58),
    ("vxlan", 4, {}, 50), ("vxlan-gpe", 4, {"payload": "l3"}, 36), ("nsh", 4, {}, 58),
    ("gre", 4, {}, 24), ("gre", 4, {"key": 1}, 28), ("gre", 6, {"key": 1, "checksum": True, "sequence": True}, 56),
    ("gretap", 4, {}, 38), ("nvgre", 4, {}, 42), ("erspan", 4, {}, 50), ("erspan", 4, {"version": 3}, 54),
    ("ipip", 4, {}, 20), ("sit", 4, {}, 20), ("ip4ip6", 6, {}, 40), ("ip6ip6", 6, {}, 40),
    ("fou", 4, {}, 28), ("gue", 4, {}, 32), ("gue", 4, {"variant": 1}, 28), ("mpls", 4, {"labels": [100, 200]}, 36),
    ("gtpu", 4, {}, 36), ("gtpu", 4, {"qfi": 1}, 44), ("etherip", 4, {}, 36),
    ("l2tp", 4, {"encap": "ip", "l2spec_type": "none"}, 38), ("l2tp", 4, {"cookie": "00000000"}, 58),
    ("srv6", 6, {}, 64), ("srv6", 6, {"mode": "reduced"}, 40), ("srv6", 6, {"mode": "l2"}, 78),
]  # fmt: skip


@pytest.mark.parametrize(("name", "version", "settings", "overhead"), OVERHEADS)
def test_overhead_counts_what_the_egress_mtu_counts(name, version, settings, overhead):
    template = build(name, version, **settings)
    assert (template.overhead(), template.inner_mtu(1500)) == (overhead, 1500 - overhead)


@pytest.mark.parametrize(("protocol", "underlay", "version"), CARRIED)
def test_an_inner_packet_grows_by_the_overhead_whatever_the_options(protocol, underlay, version):
    """Counted on the frame that leaves: what an egress MTU counts of it is all but its own Ethernet header."""
    values = {
        "name": "t", "protocol": protocol_of(protocol).name, "network": "blue", "remote": REMOTES[underlay][0],
        **options_of_variant(protocol),
    }  # fmt: skip
    made = protocol_of(protocol).build(tunnel_from_dict(values), REMOTES[underlay][1])
    frame = bytes(INNER[f"ipv{version}"])
    sent = encapsulate(made, frame)
    counted = len(sent) - 14
    if protocol_of(protocol).name in ("vlan", "qinq"):
        counted -= 4  # one tag goes beside the MTU
    assert made.overhead() == counted - (len(frame) - 14)
    assert made.inner_mtu(1500) == 1500 - made.overhead()


# ---- as another program reads it -------------------------------------------------------------------------


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("version", REMOTES)
@pytest.mark.parametrize(("protocol", "layer", "port"), [("geneve", GENEVE, 6081), ("vxlan", VXLAN, 4789)])
def test_scapy_reads_a_udp_tunnel_packet(protocol, layer, port, version, inner):
    raw = send(protocol, version, inner)
    read = Ether(raw)
    remote, path = REMOTES[version]
    ip = read[IP if version == 4 else IPv6]
    assert (read.dst, read.src) == (NEXT_MAC.hex(":"), OWN_MAC.hex(":"))
    assert (ip.src, ip.dst) == (str(path.local), remote)
    if version == 4:
        assert checksum(raw[14:34]) == 0
        assert (ip.len, ip.flags, ip.id, ip.ttl) == (len(raw) - 14, "DF", 0, 64)
    else:
        assert (ip.plen, ip.hlim) == (len(raw) - 54, 64)
    udp = ip.payload
    assert isinstance(udp, UDP)
    at = 34 if version == 4 else 54
    assert (udp.dport, udp.len) == (port, len(raw) - at)
    assert (udp.chksum == 0) == (version == 4)
    if version == 6:
        assert ones_complement(raw[22:54] + raw[58:60] + bytes([0, 17]) + raw[54:]) == 0
    assert 49152 <= udp.sport <= 65535
    assert udp[layer].vni == 0x123456
    assert bytes(udp[layer].payload) == bytes(INNER[inner])


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize(("tpid", "layer"), [(0x8100, Dot1Q), (0x88A8, Dot1AD)])
def test_scapy_reads_a_vlan_frame(tpid, layer, inner):
    read = Ether(send("vlan", inner=inner, tpid=tpid, pcp=3))
    frame = bytes(INNER[inner])
    assert (read.dst, read.src, read.type) == (NEXT_MAC.hex(":"), OWN_MAC.hex(":"), tpid)
    assert (read[layer].vlan, read[layer].prio) == (0x123, 3)
    assert bytes(read)[16:] == frame[12:]


def test_scapy_reads_geneve_as_version_0_without_options_or_flags():
    read = Ether(send("geneve"))[GENEVE]
    assert (read.version, read.optionlen, read.oam, read.critical, read.proto) == (0, 0, 0, 0, 0x6558)


def test_scapy_reads_vxlan_with_the_i_flag_only():
    read = Ether(send("vxlan"))[VXLAN]
    assert (read.flags, read.reserved1, read.reserved2) == ("Instance", 0, 0)


# ---- options ---------------------------------------------------------------------------------------------


def test_ports_ttl_dscp_and_df_are_those_of_the_options():
    read = Ether(send("vxlan", port=8472, source_port=51234, ttl=9, dscp=46, df=False))
    assert (read[UDP].dport, read[UDP].sport) == (8472, 51234)
    assert (read[IP].ttl, read[IP].tos, read[IP].flags, read[IP].id) == (9, 46 << 2, 0, 0x1234)
    assert checksum(bytes(read)[14:34]) == 0


def test_mac_addresses_of_the_tunnel_go_before_those_of_the_path():
    outer = build("geneve", remote_mac="02-00-00-00-00-0E", local_mac="02:00:00:00:00:0f").outer
    assert outer[:12].hex() == "02000000000e02000000000f"


def test_local_of_the_tunnel_goes_before_that_of_the_path():
    assert Ether(send("geneve", local="10.30.30.9"))[IP].src == "10.30.30.9"


def test_building_without_a_resolved_next_hop_is_refused():
    made, _ = tunnel("geneve")
    with pytest.raises(ValueError, match="next hop's MAC address is not known"):
        PROTOCOLS["geneve"].build(made, Path(2, V4.local, OWN_MAC, None, None, 1500))


# ---- what every protocol of the registry keeps to --------------------------------------------------------


@pytest.fixture(params=PROTOCOLS.values(), ids=PROTOCOLS.keys())
def protocol(request) -> Protocol:
    return request.param


def test_the_registry_has_the_protocols_by_their_name(protocol):
    assert PROTOCOLS[protocol.name] is protocol
    assert {"geneve", "vxlan", "vlan"} <= PROTOCOLS.keys()


def test_the_parser_is_one_of_the_data_plane(protocol):
    made, _ = tunnel(protocol.name, underlay_of(protocol))
    parsers = c_enum("parser")
    assert protocol.parser in parsers.values()
    assert protocol.accepted_parser(made.options) in parsers.values()


@pytest.mark.parametrize("version", REMOTES)
def test_a_template_fits_the_data_plane(protocol, version):
    if version not in (protocol.underlays or (4, 6)):
        with pytest.raises(InvalidIntent, match=rf"IPv{version}, but {protocol.name} runs over IPv\d only"):
            build(protocol.name, version)
        return
    template = build(protocol.name, version)
    assert 0 < len(template.outer) <= OUTER_SIZE
    assert len(template.outer) % 2 == 0
    assert len(template.patches) <= PATCHES
    patched_len = len(template.outer) + (12 if template.untagged else 0)
    assert all(0 <= patch.offset < patched_len for patch in template.patches)
    last = [patch.op in (PatchOp.CHECKSUM, PatchOp.UDP6_CHECKSUM) for patch in template.patches]
    assert last == sorted(last)


def test_a_listener_has_a_kind_and_a_parser(protocol):
    made, _ = tunnel(protocol.name, underlay_of(protocol))
    listeners = protocol.listeners(made.options)
    assert listeners
    assert protocol.parser in {listener.parser for listener in listeners}
    assert len({(listener.kind, listener.number) for listener in listeners}) == len(listeners)
    assert all(listener.kind in set(ListenerKind) for listener in listeners)


def test_the_module_shows_the_wire_and_names_its_source(protocol):
    text = __import__(type(protocol).__module__, fromlist=["x"]).__doc__
    assert "0 1 2 3 4 5 6 7 8 9 0 1" in text
    assert protocol.reference in text
    assert protocol.title in text


def test_every_option_has_a_help_text(protocol):
    assert all(field.description for field in fields_of(protocol.options))


def test_a_packet_of_another_protocols_tunnel_is_not_built(protocol):
    other = next(
        other.name for other in PROTOCOLS.values() if not issubclass(other.options, protocol.options)
    )
    made, path = tunnel(other, underlay_of(PROTOCOLS[other]))
    with pytest.raises(TypeError, match=f"tunnel t is no {protocol.name} tunnel"):
        protocol.build(made, path)


# ---- listening and accepting -----------------------------------------------------------------------------


def test_where_packets_arrive():
    def listeners(name: str, **settings: object) -> tuple[Listener, ...]:
        return PROTOCOLS[name].listeners(tunnel(name, **settings)[0].options)

    assert listeners("geneve") == (Listener(6081, ListenerKind.UDP, 1),)
    assert listeners("vxlan", port=8472) == (Listener(8472, ListenerKind.UDP, 2),)
    assert listeners("vlan", tpid=0x88A8) == (Listener(0x88A8, ListenerKind.ETHERTYPE, 3),)


def test_identifier_on_the_wire():
    for name, settings, number in [
        ("geneve", {}, 0x123456),
        ("vxlan", {}, 0x123456),
        ("vxlan-gbp", {"group_policy_id": 7}, 0x123456),
        ("vxlan-gpe", {}, 0x123456),
        ("nsh", {"vni": 5}, 5),
        ("vlan", {}, 0x123),
        ("qinq", {}, 0x123456),
        ("gre", {}, 0),
        ("gre", {"key": 7}, 7),
        ("gre-udp", {"key": 7}, 7),
        ("nvgre", {}, 0x123456),
        ("erspan", {}, 0x123),
        ("gtpu", {}, 0x12345678),
        ("gtpu", {"local_teid": 5}, 5),
        ("l2tp", {"peer_session_id": 9}, 0x12345678),
        ("mpls", {"labels": [100, 200]}, 200),
        ("mpls", {"local_label": 300}, 300),
    ]:
        assert PROTOCOLS[name].tunnel_id(tunnel(name, **settings)[0].options) == number


def accepted(name: str, path: Path | None, version: int = 4, **settings: object):
    return PROTOCOLS[name].accepted(tunnel(name, version, **settings)[0], path)


def test_an_ip_tunnel_accepts_its_remote_at_its_own_address():
    mapped = bytes(10) + b"\xff\xff"
    assert accepted("geneve", V4) == (mapped + bytes([10, 30, 30, 2]), mapped + bytes([10, 30, 30, 1]))
    assert accepted("vxlan", V6, version=6) == (IPv6Address("fd00:30::2").packed, V6.local.packed)


def test_an_ip_tunnel_with_remote_any_accepts_everyone_at_its_local_address():
    source, destination = accepted("geneve", None, remote="any", local="fd00::5")
    assert (source, destination) == (bytes(16), IPv6Address("fd00::5").packed)


def test_a_tunnel_without_known_addresses_accepts_nothing_yet():
    assert accepted("geneve", None) is None
    assert accepted("vlan", None) is None
    assert accepted("vlan", Path(2, V4.local, OWN_MAC, None, None, 1500)) is None


def test_a_vlan_accepts_its_neighbours_mac_or_everyone_at_its_own_interface():
    interface = V4.egress_ifindex.to_bytes(4, sys.byteorder)
    assert accepted("vlan", V4) == (NEXT_MAC + bytes(10), OWN_MAC + bytes(6) + interface)
    assert accepted("vlan", V4, remote="any", egress="eth0") == (bytes(16), bytes(12) + interface)


def test_a_vlan_to_anyone_accepts_nothing_while_its_interface_is_not_known():
    assert accepted("vlan", None, remote="any", egress="eth0") is None


# ---- what a protocol needs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol_name", "settings", "field", "message"),
    [
        ("geneve", {"remote": None}, "remote", "tunnel t: geneve needs remote: an IPv4 or IPv6 address, or any"),
        ("vxlan", {"remote": "any"}, "local", "remote is any, so local must say"),
        ("geneve", {"local": "fd00::1"}, "local", "fd00::1 is IPv6, but the remote 10.30.30.2 is IPv4"),
        ("geneve", {"local": "10.30.30.2"}, "local", "10.30.30.2 is the remote's address, too"),
        ("geneve", {"remote": "fe80::1"}, "egress", "fe80::1 is link-local, so egress must name the interface"),
        ("vlan", {"remote": None}, "remote", "vlan needs remote .* or remote_mac"),
        ("vlan", {"remote": "any"}, "egress", "vlan needs egress"),
        ("vlan", {"remote": None, "remote_mac": "02:00:00:00:00:01"}, "egress", "vlan needs egress"),
        ("vlan", {"remote": "any", "egress": "eth0", "local_mac": "02:00:00:00:00:01"}, "local_mac", "can't be used"),
        ("geneve", {"tlvs": ["0102:01:" + "00" * 124]}, None, "geneve over IPv4: an outer header of 178 bytes"),
        ("geneve", {"tlvs": ["0102:01:" + "00" * 124] * 2}, "tlvs", "tlvs take 256 bytes; 252 is the most"),
        ("geneve", {"tlvs": ["0102:01:0011"]}, "tlvs", "whole words of 4 bytes, 124 bytes at most; 0102:01:0011 has 2"),
        ("geneve", {"tlvs": ["10102:01:00112233"]}, "tlvs", "'10102:01:00112233' is not an option CLASS:TYPE:DATA"),
        ("sit", {"remote": "fd00::1"}, "remote", "fd00::1 is IPv6, but sit runs over IPv4 only"),
        ("ip6ip6", {}, "remote", "10.30.30.2 is IPv4, but ip6ip6 runs over IPv6 only"),
        ("srv6", {"remote": "fd00::2", "segments": ["10.0.0.1"]}, "segments", "10.0.0.1 is no IPv6 address"),
        ("srv6", {"remote": "fd00::2", "segments": [f"fd00::{i}" for i in range(1, 6)]}, None,
            "outer header of 142 bytes"),
        ("l2tp", {"cookie": "0102"}, "cookie", "is not 0, 4 or 8 bytes in hexadecimal"),
        ("mpls", {"labels": []}, "labels", "0 items are too few, each a whole number from 16"),
        ("mpls", {"labels": [16, 3]}, "labels", "3 is not a whole number from 16 to 1048575"),
        ("nvgre", {"vsid": 5}, "vsid", "is not a whole number from 4096 to 16777214"),
    ],
)  # fmt: skip
def test_a_tunnel_that_lacks_what_its_protocol_needs_is_refused(protocol_name, settings, field, message):
    with pytest.raises(InvalidIntent) as raised:
        tunnel(protocol_name, **settings)
    assert raised.value.field == field
    assert raised.value.message.startswith("tunnel t: ")
    assert re.search(message, raised.value.message)


def test_a_vlan_neighbour_may_be_known_by_its_mac_alone():
    made = tunnel("vlan", remote=None, remote_mac="02:00:00:00:00:01", egress="eth0")[0]
    assert PROTOCOLS["vlan"].build(made, V4).outer[:6] == bytes.fromhex("020000000001")


# ---- as text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol_name", "version", "settings", "text"),
    [
        (
            "geneve", 4, {},
            "eth(dst=68:05:ca:d4:5c:28,src=68:05:ca:d4:7c:ac,type=0x0800),"
            "ipv4(src=10.30.30.1,dst=10.30.30.2,proto=17,tos=0x0,ttl=64,frag=0x4000),"
            "udp(src=flow,dst=6081,csum=0x0),geneve(vni=0x123456,proto=0x6558)",
        ),
        (
            "vxlan", 6, {"ttl": "inherit", "dscp": "inherit", "source_port": 5},
            "eth(dst=68:05:ca:d4:5c:28,src=68:05:ca:d4:7c:ac,type=0x86dd),"
            "ipv6(src=fd00:30::1,dst=fd00:30::2,label=flow,proto=17,tclass=inherit,hlimit=inherit),"
            "udp(src=5,dst=4789,csum=packet),vxlan(flags=0x08,vni=0x123456)",
        ),
        (
            "vlan", 4, {"pcp": 1},
            "eth(dst=68:05:ca:d4:5c:28,src=68:05:ca:d4:7c:ac),vlan(tpid=0x8100,vid=291,pcp=1)",
        ),
        (
            "vlan", 4, {"remote": "any", "egress": "eth0"},
            "eth(dst=inner,src=inner),vlan(tpid=0x8100,vid=291,pcp=0)",
        ),
    ],
)  # fmt: skip
def test_the_header_as_text(protocol_name, version, settings, text):
    made, path = tunnel(protocol_name, version, **settings)
    protocol = PROTOCOLS[protocol_name]
    assert protocol.describe(made, protocol.build(made, path)) == text
