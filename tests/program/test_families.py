# SPDX-License-Identifier: GPL-2.0-only
"""What is particular to a header family: which tunnels are told apart, what is checked, what is refused."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import pytest
from packets import carried, carriers, far_end, frame, inner_kinds, ip, ip_packet, set_outer, tunnel
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrRouting
from scapy.layers.l2 import GRE, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from world import LOCAL, LOCAL_MAC, OUR_MAC, OURS, REMOTE, REMOTE_MAC, STRANGER, THEIR_MAC, THEIRS, World

from model.frames import ones_complement
from mptm.intent import Route

INNER = inner_kinds()
GRE_BRIDGED = 0x6558


def here(version: int = 4, **more: Any) -> Route:
    """The route to our own workload."""
    return Route(network="blue", prefix=OURS[version], **({"port": "c1"} | more))


def to(version: int = 4, **more: Any) -> Route:
    """The route to their workload."""
    return Route(network="blue", prefix=THEIRS[version], **({"via": "to-node2"} | more))


def between(protocol: str, underlay: int = 4, **more: Any) -> dict[str, Any]:
    """A tunnel of node 1 to node 2."""
    return tunnel(protocol, underlay, remotes=REMOTE, **more)


def their_packet(version: int = 4, size: int = 64) -> Packet:
    """An IP packet from their workload to ours."""
    return ip(version, THEIRS[version], OURS[version]) / UDP(sport=53, dport=1111) / Raw(b"d" * size)


def their_frame(version: int = 4) -> Packet:
    return frame(their_packet(version), source=THEIR_MAC)


def outer_ip(protocol: int, underlay: int = 4) -> Packet:
    ether = Ether(src=REMOTE_MAC, dst=LOCAL_MAC)
    if underlay == 4:
        return ether / IP(src=REMOTE[4], dst=LOCAL[4], proto=protocol)
    return ether / IPv6(src=REMOTE[6], dst=LOCAL[6], nh=protocol)


def over(protocol: int, data: bytes, underlay: int = 4) -> bytes:
    """What node 2 sends behind an IP header."""
    return bytes(outer_ip(protocol, underlay) / Raw(data))


def over_udp(port: int, data: bytes) -> bytes:
    """What node 2 sends behind UDP."""
    return bytes(outer_ip(17) / UDP(sport=50000, dport=port, chksum=0) / Raw(data))


def assert_delivered(node: World, wire: bytes, payload: Packet | None = None) -> None:
    got = node.send("up0", wire)
    assert (got.verdict, node.drops()) == ("REDIRECT", {})
    assert got.packet.dst == OUR_MAC
    assert ip_packet(got.data) == bytes(payload if payload is not None else their_packet())


def assert_dropped(node: World, wire: bytes, reason: str) -> None:
    got = node.send("up0", wire)
    assert (got.verdict, got.data, node.drops()) == ("DROP", wire, {reason: 1})


def assert_left(node: World, wire: bytes, reason: str) -> None:
    got = node.send("up0", wire)
    assert (got.verdict, got.data, node.drops()) == ("PASS", wire, {reason: 1})


# ---- GRE ---------------------------------------------------------------------------------------------------


def gre(flags: int, *words: int, proto: int = 0x0800, payload: Packet | None = None) -> bytes:
    """A GRE packet of node 2; the words are optional fields."""
    header = struct.pack("!HH", flags, proto) + b"".join(struct.pack("!I", word) for word in words)
    return over(47, header + bytes(payload if payload is not None else their_packet()))


def summed(wire: bytes, at: int = 34) -> bytes:
    """With the right GRE checksum."""
    return set_outer(wire, at + 4, struct.pack("!H", ones_complement(wire[at:])))


@pytest.mark.parametrize("size", [0, 1, 7, 64, 511, 512, 513, 1023, 1400])
def test_a_right_gre_checksum_is_taken_and_a_wrong_one_is_not(node, size):
    node.apply(between("gre"), here())
    right = summed(gre(0x8000, 0, payload=their_packet(size=size)))
    assert_delivered(node, right, their_packet(size=size))
    wrong = set_outer(right, len(right) - 1, bytes([right[-1] ^ 1]))
    assert_dropped(node, wrong, "GRE_CHECKSUM")


def test_a_gre_checksum_counts_no_padding(node):
    node.apply(between("gre"), here())
    assert_delivered(node, summed(gre(0x8000, 0)) + b"\xee" * 5)


def test_a_wrong_gre_checksum_may_be_ignored(node):
    node.apply(between("gre", verify_checksum=False), here())
    assert_delivered(node, gre(0x8000, 0xBAD00000))


@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize("protocol", ["gre checksum", "gre all", "gretap all", "gre-udp all"])
def test_a_gre_checksum_that_is_sent_is_right(node, protocol, kind):
    version = 6 if IPv6 in INNER[kind] else 4
    node.apply(between(protocol), to(version))
    wire = node.send("c1", INNER[kind])
    at = 42 if protocol == "gre-udp all" else 34
    assert wire.data[at] & 0x80
    assert ones_complement(wire.data[at:]) == 0


def test_a_sequence_counts_up_from_where_it_was(node):
    node.apply(between("gre", key=5, sequence=True), to())
    numbers = [node.send("c1", INNER["udp4"]).packet[GRE].seqence_number for _ in range(5)]
    assert [number - numbers[0] for number in numbers] == list(range(5))
    node.apply(between("gre", key=5, sequence=True, ttl=9), to(), keep_counters=True)
    assert node.send("c1", INNER["udp4"]).packet[GRE].seqence_number == numbers[-1] + 1


def test_the_sequence_of_a_new_tunnel_starts_at_0(node):
    for name in ("first", "second"):
        node.apply(between("gre", name=name, key=5, sequence=True), to(via=name))
        numbers = [node.send("c1", INNER["udp4"]).packet[GRE].seqence_number for _ in range(3)]
        assert numbers == [0, 1, 2]


def test_with_key_and_without_are_different_tunnels_and_so_are_two_keys(node):
    tunnels = [
        between("gre", name="none"),
        between("gre", name="zero", key=0),
        between("gre", name="one", key=1),
    ]
    node.apply(*tunnels, here())
    for words, name in (((), "none"), ((0,), "zero"), ((1,), "one")):
        assert_delivered(node, gre(0x2000 if words else 0, *words))
        assert node.tunnel_counters(name)["decap_packets"] == 1
    assert_left(node, gre(0x2000, 2), "SENDER_OR_ID")


def test_a_sequence_number_and_a_checksum_are_skipped_on_receiving(node):
    node.apply(between("gre", key=1), here())
    assert_delivered(node, gre(0x3000, 1, 77))
    assert_delivered(node, summed(gre(0xB000, 0, 1, 77)))


@pytest.mark.parametrize("flag", [0x4000, 0x0800, 0x0400])
def test_gre_flags_that_must_be_zero(node, flag):
    node.apply(between("gre"), here())
    assert_dropped(node, gre(flag), "GRE_FLAGS")


def test_pptp_and_protocols_that_nobody_carries(node):
    node.apply(between("gre"), here())
    assert_left(node, gre(0x2001, 1), "CONTROL")
    node.apply(between("gre"), here())
    assert_dropped(node, gre(0, proto=0x8847), "GRE_PROTOCOL")


def test_nvgre_beside_gretap_with_keys(node):
    gretap = between("gretap", name="gretap", key=0x12345778)
    nvgre = between("nvgre", name="nvgre", vsid=0x123456)
    node.apply(gretap, nvgre, here())
    for key, name in ((0x12345778, "gretap"), (0x12345678, "nvgre"), (0x12345600, "nvgre")):
        before = node.tunnel_counters(name)["decap_packets"]
        assert_delivered(node, gre(0x2000, key, proto=GRE_BRIDGED, payload=their_frame()))
        assert node.tunnel_counters(name)["decap_packets"] == before + 1
    assert_left(node, gre(0x3000, 0x12345600, 1, proto=GRE_BRIDGED, payload=their_frame()), "SENDER_OR_ID")


def test_nvgre_sends_the_flow_in_the_key(node):
    node.apply(between("nvgre", vsid=0x123456), to())
    keys = {
        node.send("c1", frame(ip(4) / UDP(sport=port, dport=53))).packet[GRE].key
        for port in range(1000, 1050)
    }
    assert {key >> 8 for key in keys} == {0x123456}
    assert len(keys) > 20


@pytest.mark.parametrize(
    "tags", [Dot1Q(vlan=7), Dot1Q(vlan=0, prio=5), Dot1AD(vlan=7) / Dot1Q(vlan=8)], ids=repr
)
@pytest.mark.parametrize("underlay", [4, 6])
def test_nvgre_takes_vlan_tags_away(node, underlay, tags):
    """RFC 7637 §3.3; the MTU that is left doesn't count them either."""
    node.apply(between("nvgre", underlay, vsid=0x123456), to(4, mac=THEIR_MAC))
    packet = ip(4, OURS[4], THEIRS[4], flags="DF") / UDP(sport=1111, dport=53) / Raw(bytes(1400 - 28))
    plain, tagged = (node.send("c1", frame(packet, tags=each)) for each in (None, tags))
    assert (tagged.verdict, tagged.data) == ("REDIRECT", plain.data)
    assert bytes(tagged.packet[GRE].payload) == bytes(Ether(src=OUR_MAC, dst=THEIR_MAC) / packet)
    assert node.tunnel_counters("to-node2")["encap_bytes"] == 2 * (14 + 1400)


@pytest.mark.parametrize("tags", [Dot1Q(vlan=7), Dot1Q(vlan=0), Dot1AD(vlan=7) / Dot1Q(vlan=8)], ids=repr)
def test_nvgre_with_an_inner_vlan_tag_is_dropped(node, tags):
    """RFC 7637 §3.3; GRETAP takes it."""
    tagged = frame(their_packet(), source=THEIR_MAC, tags=tags)
    wire = gre(0x2000, 0x12345600, proto=GRE_BRIDGED, payload=tagged)
    node.apply(between("nvgre", vsid=0x123456), here())
    assert_dropped(node, wire, "INNER_TAG")
    assert {(reason, scope) for reason, scope, _ in node.drop_scopes()} == {("INNER_TAG", "SCOPE_TUNNEL")}
    node.apply(between("gretap", key=0x12345600), here())
    assert node.send("up0", wire).verdict == "REDIRECT"


# ---- ERSPAN ------------------------------------------------------------------------------------------------


def erspan(
    version: int,
    session: int = 0x1234 & 0x3FF,
    flags: int = 0x1000,
    wire_version: int | None = None,
    last: int = 0,
):
    kind, length = {2: (0x88BE, 8), 3: (0x22EB, 12)}[version]
    number = {2: 1, 3: 2}[version] if wire_version is None else wire_version
    header = struct.pack("!HHI", flags, kind, 9) if flags & 0x1000 else struct.pack("!HH", flags, kind)
    body = struct.pack("!HH", number << 12, session) + bytes(length - 5) + bytes([last])
    return over(47, header + body + (bytes(8) if last & 1 else b"") + bytes(their_frame()))


@pytest.mark.parametrize("version", [2, 3])
def test_both_types_of_erspan_are_taken(node, version):
    node.apply(between("erspan", session=0x234), here())
    assert_delivered(node, erspan(version, 0x234))
    assert_left(node, erspan(version, 0x235), "SENDER_OR_ID")


def test_an_erspan_platform_subheader_is_skipped(node):
    node.apply(between("erspan", session=0x234), here())
    assert_delivered(node, erspan(3, 0x234, last=1))


@pytest.mark.parametrize("version", [2, 3])
def test_erspan_of_a_wrong_version(node, version):
    node.apply(between("erspan", session=0x234), here())
    assert_dropped(node, erspan(version, 0x234, wire_version=7), "ERSPAN_HEADER")


def test_erspan_without_a_sequence_number_is_no_type_that_we_know(node):
    node.apply(between("erspan", session=0x234), here())
    assert_left(node, erspan(2, 0x234, flags=0), "SENDER_OR_ID")
    node.apply(between("gre"), here())
    assert_dropped(node, erspan(2, 0x234, flags=0), "ERSPAN_HEADER")


def test_erspan_iii_tells_the_time(node):
    node.apply(between("erspan", session=1, version=3), to())
    times = [int.from_bytes(node.send("c1", INNER["udp4"]).data[46:50]) for _ in range(3)]
    assert all(0 < (later - earlier) % 2**32 < 10_000_000 for earlier, later in pairwise(times))


# ---- tags --------------------------------------------------------------------------------------------------


def test_qinq_beside_vlan(node):
    node.apply(
        between("qinq", name="both", outer_vid=7, inner_vid=8),
        between("vlan", name="outer", vid=7, tpid=0x88A8),
        here(),
    )
    ether = Ether(src=REMOTE_MAC, dst=LOCAL_MAC)
    for tags, name, stripped in (
        (Dot1AD(vlan=7) / Dot1Q(vlan=8), "both", 8),
        (Dot1AD(vlan=7) / Dot1Q(vlan=9), "outer", 4),
        (Dot1AD(vlan=7), "outer", 4),
    ):
        before = node.tunnel_counters(name)["decap_packets"]
        wire = bytes(ether / tags / their_packet())
        got = node.send("up0", wire)
        assert (got.verdict, got.data[12:]) == ("REDIRECT", wire[12 + stripped :])
        assert node.tunnel_counters(name)["decap_packets"] == before + 1
    wire = bytes(ether / Dot1AD(vlan=6) / Dot1Q(vlan=8) / their_packet())
    assert node.send("up0", wire).data == wire


def test_qinq_pushes_two_tags(node):
    node.apply(between("qinq", outer_vid=7, inner_vid=8, pcp=5), to())
    outer = node.send("c1", INNER["udp4"]).packet
    assert (outer.src, outer.dst, outer.type) == (LOCAL_MAC, REMOTE_MAC, 0x88A8)
    assert (outer[Dot1AD].vlan, outer[Dot1AD].prio, outer[Dot1Q].vlan, outer[Dot1Q].prio) == (7, 5, 8, 5)


# ---- VXLAN and relatives, GENEVE, NSH ----------------------------------------------------------------------


def test_vxlan_with_a_group_is_taken_by_a_vxlan_tunnel(node):
    node.apply(between("vxlan", vni=5), here())
    assert_delivered(node, over_udp(4789, bytes.fromhex("8848123400000500") + bytes(their_frame())))


def test_one_port_serves_vxlan_and_vxlan_gbp(node):
    node.apply(between("vxlan", name="plain", vni=5), between("vxlan-gbp", name="group", vni=6), here())
    assert_delivered(node, over_udp(4789, bytes.fromhex("0800000000000600") + bytes(their_frame())))
    assert node.tunnel_counters("group")["decap_packets"] == 1


GPE = {
    "no vni": ("0400000300000500", "GPE_FLAGS", "port"),
    "version": ("1c00000300000500", "GPE_FLAGS", "port"),
    "oam": ("0d00000300000500", "GPE_FLAGS", "tunnel"),
    "mpls": ("0c00000500000500", "GPE_PROTOCOL", "tunnel"),
}


@pytest.mark.parametrize(("header", "reason", "scope"), GPE.values(), ids=GPE)
def test_vxlan_gpe_that_is_not_taken(node, header, reason, scope):
    node.apply(between("vxlan-gpe", vni=5), here())
    assert_dropped(node, over_udp(4790, bytes.fromhex(header) + bytes(their_frame())), reason)
    assert {each[1] for each in node.drop_scopes()} == {f"SCOPE_{scope.upper()}"}


def test_vxlan_gpe_without_the_p_flag_carries_ethernet(node):
    node.apply(between("vxlan-gpe", vni=5), here())
    assert_delivered(node, over_udp(4790, bytes.fromhex("0800000000000500") + bytes(their_frame())))


def nsh(first: int = 0x0FC2, md_type: int = 2, following: int = 3, extra: bytes = b"", vni: int = 5) -> bytes:
    gpe = struct.pack("!BHBI", 0x0C, 0, 4, vni << 8)
    base = struct.pack("!HBBI", first, md_type, following, 0x00123401)
    return over_udp(4790, gpe + base + extra + bytes(their_frame() if following == 3 else their_packet()))


@pytest.mark.parametrize("words", [0, 4, 20])
def test_nsh_context_is_skipped(node, words):
    node.apply(between("nsh", vni=5), here())
    assert_delivered(node, nsh(0x0FC2 + words, extra=b"c" * 4 * words))
    node.apply(between("nsh", vni=5, payload="l3"), here())
    assert_delivered(node, nsh(0x0FC2 + words, following=1, extra=b"c" * 4 * words))


@pytest.mark.parametrize(
    "wire",
    [nsh(0x4FC2), nsh(0x2FC2), nsh(0x0FC1), nsh(0x0FFF), nsh(following=5), nsh(0x0FC2, md_type=1), nsh(md_type=0)],
    ids=["version", "oam", "too short", "too long", "payload", "MD type 1 of another length", "MD type 0"],
)  # fmt: skip
def test_nsh_that_is_not_taken(node, wire):
    node.apply(between("nsh", vni=5), here())
    assert_dropped(node, wire, "NSH_HEADER")


def test_nsh_is_no_vxlan_gpe(node):
    node.apply(between("vxlan-gpe", vni=5), here())
    assert_left(node, nsh(), "SENDER_OR_ID")


def test_geneve_options_are_sent_and_skipped_by_the_other_end(node, peer):
    tlvs = ["0102:01:00112233", "0103:02:", "ffff:7f:0011223344556677"]
    node.apply(between("geneve", vni=5, tlvs=tlvs), to())
    peer.apply(far_end("geneve", vni=5), Route(network="blue", prefix=THEIRS[4], port="c2"))
    wire = node.send("c1", INNER["udp4"])
    assert wire.data[42:50] == bytes.fromhex("0600655800000500")
    assert wire.data[50:74] == bytes.fromhex("01020101 00112233 01030200 ffff7f02 0011223344556677")
    assert peer.send("up0", wire.data).verdict == "REDIRECT"


def test_a_critical_geneve_option_is_announced_and_refused(node, peer):
    node.apply(between("geneve", vni=5, tlvs=["0102:80:00112233"]), to())
    peer.apply(far_end("geneve", vni=5), Route(network="blue", prefix=THEIRS[4], port="c2"))
    wire = node.send("c1", INNER["udp4"])
    assert wire.data[43] == 0x40
    assert_dropped(peer, wire.data, "GENEVE_CRITICAL")


# ---- GTP-U -------------------------------------------------------------------------------------------------


def gtpu(
    flags: int = 0x30, kind: int = 255, teid: int = 5, extra: bytes = b"", length: int | None = None
) -> bytes:
    payload = extra + bytes(their_packet())
    header = struct.pack("!BBHI", flags, kind, len(payload) if length is None else length, teid)
    return over_udp(2152, header + payload)


SESSION_CONTAINER = bytes.fromhex("01 10 09 00")
GTPU_EXTRAS = {
    "sequence": (0x32, bytes.fromhex("00070000")),
    "n-pdu": (0x31, bytes.fromhex("00000700")),
    "next type without E": (0x32, bytes.fromhex("000700c0")),
    "pdu session": (0x34, bytes.fromhex("00000085") + SESSION_CONTAINER),
    "unknown and pdu session": (
        0x36,
        bytes.fromhex("00000020") + bytes.fromhex("02 aabbccddee ff 85") + SESSION_CONTAINER,
    ),
}


@pytest.mark.parametrize(("flags", "extra"), GTPU_EXTRAS.values(), ids=GTPU_EXTRAS)
def test_gtpu_optional_fields_and_extension_headers_are_skipped(node, flags, extra):
    node.apply(between("gtpu", teid=5), here())
    assert_delivered(node, gtpu(flags, extra=extra))


GTPU_BAD = {
    "must be understood": (0x34, bytes.fromhex("000000c0 01000000"), None, "GTPU_EXTENSION"),
    "length 0": (0x34, bytes.fromhex("00000085 00000000"), None, "GTPU_EXTENSION"),
    "extension beyond": (0x34, bytes.fromhex("00000085 ff000000"), None, "GTPU_EXTENSION"),
    "five extensions": (
        0x34,
        bytes.fromhex("00000085") + bytes.fromhex("01100985") * 4 + SESSION_CONTAINER,
        None,
        "GTPU_EXTENSION",
    ),
    "length beyond": (0x30, b"", 2000, "GTPU_HEADER"),
}


@pytest.mark.parametrize(("flags", "extra", "length", "reason"), GTPU_BAD.values(), ids=GTPU_BAD)
def test_gtpu_that_is_not_taken(node, flags, extra, length, reason):
    node.apply(between("gtpu", teid=5), here())
    assert_dropped(node, gtpu(flags, extra=extra, length=length), reason)


@pytest.mark.parametrize("kind", [2, 26, 31, 254])
def test_gtpu_messages_that_carry_nothing_are_the_kernels(node, kind):
    node.apply(between("gtpu", teid=5, echo="pass"), here())
    assert_left(node, gtpu(0x32, kind, teid=0, extra=bytes(4)), "CONTROL")


def test_gtp_version_2_and_gtp_prime_are_the_kernels(node):
    for flags in (0x50, 0x20):
        node.apply(between("gtpu", teid=5), here())
        assert_left(node, gtpu(flags), "CONTROL")


def test_gtpu_sends_the_other_ends_teid_and_takes_its_own(node):
    node.apply(between("gtpu", teid=0xAABBCCDD, local_teid=5), to(), here())
    wire = node.send("c1", INNER["udp4"]).data
    assert wire[42:50] == struct.pack("!BBHI", 0x30, 255, len(wire) - 50, 0xAABBCCDD)
    assert_delivered(node, gtpu())
    assert_left(node, gtpu(teid=0xAABBCCDD), "SENDER_OR_ID")


def test_gtpu_with_a_qfi_has_a_pdu_session_container(node):
    node.apply(between("gtpu", teid=5, qfi=9, pdu_type="ul"), to())
    wire = node.send("c1", INNER["udp4"]).data
    assert wire[42:58] == struct.pack("!BBHI", 0x34, 255, len(wire) - 50, 5) + bytes.fromhex(
        "00000085 01100900"
    )


# ---- L2TPv3 ------------------------------------------------------------------------------------------------


def l2tp(data: str, encap: str = "ip", payload: bytes | None = None) -> bytes:
    body = bytes.fromhex(data) + (bytes(their_frame()) if payload is None else payload)
    return over(115, body) if encap == "ip" else over_udp(1701, body)


@pytest.mark.parametrize("encap", ["ip", "udp"])
@pytest.mark.parametrize("cookie", ["", "01020304", "0102030405060708"])
@pytest.mark.parametrize("sublayer", ["none", "default"])
def test_l2tp_cookies_and_sublayers(node, encap, cookie, sublayer):
    fields = between(
        "l2tp", encap=encap, session_id=5, peer_session_id=6, cookie="ffffffff", peer_cookie=cookie
    )
    node.apply(fields | {"l2spec_type": sublayer}, here(), to())
    start = ("00030000" if encap == "udp" else "") + "00000005"
    rest = "40000001" if sublayer == "default" else ""
    assert_delivered(node, l2tp(start + cookie + rest, encap))
    for at in range(0, len(cookie), 2):
        wrong = f"{cookie[:at]}{int(cookie[at : at + 2], 16) ^ 1:02x}{cookie[at + 2 :]}"
        node.apply(fields | {"l2spec_type": sublayer}, here(), to())
        assert_dropped(node, l2tp(start + wrong + rest, encap), "L2TP_COOKIE")
    sent = node.send("c1", INNER["udp4"]).data[42 if encap == "udp" else 34 :]
    assert sent.startswith(bytes.fromhex(start[:-8] + "00000006" + "ffffffff" + ("00000000" if rest else "")))


def test_l2tp_control_messages_are_the_kernels(node):
    for wire in (
        l2tp("00000000"),
        l2tp("c8030014" + "00000005", "udp"),
        l2tp("00020000" + "00000005", "udp"),
    ):
        encap = "udp" if wire[23] == 17 else "ip"
        node.apply(between("l2tp", encap=encap, session_id=5), here())
        assert_left(node, wire, "CONTROL")


def test_l2tp_of_an_unknown_session(node):
    node.apply(between("l2tp", encap="ip", session_id=5), here())
    assert_left(node, l2tp("00000006"), "SENDER_OR_ID")


def test_l2tp_that_ends_in_its_cookie(node):
    node.apply(between("l2tp", encap="ip", session_id=5, cookie="0102030405060708"), here())
    assert_dropped(node, l2tp("00000005 01020304", payload=b""), "L2TP_TRUNCATED")


# ---- GUE, FOU, MPLS, EtherIP, SRv6 -------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [0, 1])
def test_both_variants_of_gue_are_taken(node, variant):
    node.apply(between("gue", variant=variant), here(), here(6))
    assert_delivered(node, over_udp(6080, bytes(their_packet())))
    assert_delivered(node, over_udp(6080, bytes(their_packet(6))), their_packet(6))
    assert_delivered(node, over_udp(6080, bytes.fromhex("00040000") + bytes(their_packet())))
    assert_delivered(
        node,
        over_udp(6080, bytes.fromhex("02290000 0011223344556677") + bytes(their_packet(6))),
        their_packet(6),
    )


@pytest.mark.parametrize("header", ["20040000", "80040000", "00060000", "1f040000"])
def test_gue_that_is_not_taken(node, header):
    node.apply(between("gue"), here())
    assert_dropped(node, over_udp(6080, bytes.fromhex(header) + bytes(their_packet(size=0))), "GUE_HEADER")


def test_gue_carries_etherip(node):
    node.apply(between("gue", payload="l2"), here())
    assert_delivered(node, over_udp(6080, bytes.fromhex("00610000 3000") + bytes(their_frame())))


def test_two_fou_ports_are_two_tunnels(node):
    node.apply(between("fou", name="a", port=5555), between("fou", name="b", port=5556), here())
    assert_delivered(node, over_udp(5556, bytes(their_packet())))
    assert node.tunnel_counters("b")["decap_packets"] == 1


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_mpls_stacks_up_to_eight_labels(node, depth):
    node.apply(between("mpls", labels=[100], local_label=0x12345), here())
    stack = b"".join(struct.pack("!I", label << 12 | 64) for label in range(1000, 999 + depth))
    assert_delivered(
        node, over_udp(6635, stack + struct.pack("!I", 0x12345 << 12 | 0x1FF) + bytes(their_packet()))
    )


def test_mpls_without_a_bottom(node):
    node.apply(between("mpls", labels=[100]), here())
    stack = b"".join(struct.pack("!I", label << 12 | 64) for label in range(1000, 1008))
    assert_dropped(node, over_udp(6635, stack + bytes(their_packet())), "MPLS_STACK")


def test_mpls_of_an_unknown_label(node):
    node.apply(between("mpls", labels=[100]), here())
    assert_left(
        node, over_udp(6635, struct.pack("!I", 101 << 12 | 0x140) + bytes(their_packet())), "SENDER_OR_ID"
    )


def test_mpls_sends_its_stack(node):
    node.apply(between("mpls", labels=[100, 200, 300], tc=5, label_ttl=9), to())
    words = struct.unpack("!3I", node.send("c1", INNER["udp4"]).data[42:54])
    assert words == (100 << 12 | 0xA09, 200 << 12 | 0xA09, 300 << 12 | 0xB09)


@pytest.mark.parametrize("header", ["4000", "3001", "0000"])
def test_etherip_of_another_version(node, header):
    node.apply(between("etherip"), here())
    assert_dropped(node, over(97, bytes.fromhex(header) + bytes(their_frame())), "ETHERIP_HEADER")


SEGMENTS = ["fd00:99::1", "fd00:99::2", REMOTE[6]]


@pytest.mark.parametrize(
    ("mode", "listed", "following"), [("encaps", 3, 4), ("reduced", 2, 4), ("l2", 3, 143)]
)
def test_a_segment_routing_header_lists_the_segments_in_reverse(node, mode, listed, following):
    node.apply(between("srv6", 6, segments=SEGMENTS, mode=mode), to())
    wire = node.send("c1", INNER["udp4"])
    outer = wire.packet[IPv6]
    assert (outer.src, outer.dst, outer.nh, outer.plen) == (LOCAL[6], SEGMENTS[0], 43, len(wire.data) - 54)
    header = wire.data[54:]
    assert header[:8] == bytes([following, 2 * listed, 4, 2, listed - 1, 0, 0, 0])
    packed = [IPv6(dst=segment).dst for segment in reversed(SEGMENTS)][:listed]
    assert [str(IPv6(bytes(24) + header[at : at + 16]).dst) for at in range(8, 8 + 16 * listed, 16)] == packed


@pytest.mark.parametrize("mode", ["encaps", "l2"])
def test_the_last_segment_decapsulates_and_others_leave_it_to_the_kernel(node, peer, mode):
    node.apply(between("srv6", 6, segments=SEGMENTS, mode=mode), to())
    peer.apply(far_end("srv6", 6, mode=mode), Route(network="blue", prefix=THEIRS[4], port="c2"))
    wire = node.send("c1", INNER["udp4"]).data
    wire = set_outer(wire, 38, bytes(IPv6(dst=REMOTE[6]))[24:40])
    assert_left(peer, wire, "CONTROL")
    got = peer.send("up0", set_outer(wire, 57, b"\0"))
    assert (got.verdict, ip_packet(got.data)) == ("REDIRECT", ip_packet(bytes(INNER["udp4"])))


def test_a_segment_of_its_own_is_where_packets_are_accepted(node):
    node.apply(between("srv6", 6, local_sid="fd00:99::7"), here())
    header = bytes([4, 2, 4, 0, 0, 0, 0, 0]) + bytes(IPv6(dst="fd00:99::7"))[24:40]
    wire = over(43, header + bytes(their_packet()), 6)
    assert node.send("up0", wire).data == wire
    assert_delivered(node, set_outer(wire, 38, bytes(IPv6(dst="fd00:99::7"))[24:40]))


def test_srv6_beside_ip6ip6(node):
    """Without a segment routing header they look alike; each has its own sender."""
    plain = {**between("ip6ip6", 6), "name": "plain", "remote": STRANGER[6]}
    node.apply(between("srv6", 6, mode="reduced"), plain, here(6), here())
    wire = over(41, bytes(their_packet(6)), 6)
    assert_delivered(node, wire, their_packet(6))
    assert node.tunnel_counters("to-node2")["decap_packets"] == 1
    assert_delivered(node, over(4, bytes(their_packet()), 6))
    assert_delivered(node, set_outer(wire, 22, bytes(IPv6(src=STRANGER[6]))[8:24]), their_packet(6))
    assert node.tunnel_counters("plain")["decap_packets"] == 1


@pytest.mark.parametrize("following", [6, 17, 59])
def test_a_segment_routing_header_with_another_payload(node, following):
    node.apply(between("srv6", 6), here())
    header = bytes([following, 2, 4, 0, 0, 0, 0, 0]) + bytes(16)
    assert_dropped(node, over(43, header + bytes(their_packet()), 6), "SRV6_HEADER")


def test_a_routing_header_of_another_type_is_the_kernels(node):
    node.apply(between("srv6", 6), here())
    assert_left(
        node,
        bytes(outer_ip(43, 6) / IPv6ExtHdrRouting(type=3, nh=41, segleft=0) / their_packet(6)),
        "CONTROL",
    )


# ---- IP packets --------------------------------------------------------------------------------------------

L3 = [carrier for carrier in carriers() if carried(*carrier) is not None]


@pytest.mark.parametrize(("protocol", "underlay"), L3)
def test_what_an_l3_tunnel_does_not_carry_is_counted_on_it(node, protocol, underlay):
    compiled = node.apply(between(protocol, underlay), to(4), to(6))
    families = carried(protocol, underlay)
    for version, flag in ((4, 1), (6, 2)):
        got = node.send("c1", INNER[f"udp{version}"])
        assert got.verdict == ("REDIRECT" if families & flag else "DROP")
        if not families & flag:
            assert got.data == bytes(INNER[f"udp{version}"])
            counter = compiled.allocations.tunnels["to-node2"].counter
            assert node.drop_scopes() == {("INNER_FAMILY", "SCOPE_TUNNEL", counter)}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1, 46, 1500])
def test_what_is_behind_an_inner_ip_packet_is_not_delivered(node, version, size):
    """Not even where it wouldn't fit the port: the kernel cuts it off before it forwards, too (ip_rcv)."""
    node.apply(between("ipip" if version == 4 else "sit"), here(version))
    packet = bytes(their_packet(version))
    protocol = 4 if version == 4 else 41
    got = node.send("up0", over(protocol, packet + b"\xee" * size))
    assert (got.verdict, got.data[14:]) == ("REDIRECT", packet)
    assert node.tunnel_counters("to-node2")["decap_bytes"] == 14 + len(packet)


def test_what_is_behind_an_ip_packet_in_a_frame_is_the_frames_and_stays(node):
    node.apply(between("gretap"), here())
    wire = bytes(their_frame()) + b"\xee" * 9
    got = node.send("up0", gre(0, proto=GRE_BRIDGED, payload=Raw(wire)))
    assert (got.verdict, got.data[12:]) == ("REDIRECT", wire[12:])


@pytest.mark.parametrize(("protocol", "underlay"), L3)
@pytest.mark.parametrize("padding", [1, 46, 300])
def test_padding_behind_an_ip_packet_is_not_sent(node, protocol, underlay, padding):
    version = 4 if carried(protocol, underlay) & 1 else 6
    node.apply(between(protocol, underlay), to(version))
    sent = bytes(frame(ip(version) / TCP(sport=1, dport=2)))
    plain, padded = node.send("c1", sent), node.send("c1", sent + b"\xee" * padding)
    assert plain.verdict == padded.verdict == "REDIRECT"
    assert len(plain.data) == len(padded.data)
    assert padded.data.endswith(ip_packet(sent))


def test_an_ip_packet_without_its_tags_goes_into_an_l3_tunnel(node):
    node.apply(between("gre"), to())
    assert bytes(node.send("c1", INNER["vlan4"]).packet[GRE].payload) == ip_packet(bytes(INNER["vlan4"]))


@pytest.mark.parametrize("version", [4, 6])
def test_the_stack_gets_what_comes_out_of_an_l3_tunnel_as_a_frame_to_the_uplink(node, version):
    node.apply(between("gre"), here(version, port=None, pass_=True))
    wire = gre(0, proto=0x0800 if version == 4 else 0x86DD, payload=their_packet(version))
    got = node.send("up0", wire)
    assert (got.verdict, got.packet.dst) == ("PASS", LOCAL_MAC)
    assert got.data[12:] == (b"\x08\0" if version == 4 else b"\x86\xdd") + bytes(their_packet(version))


# ---- UDP checksum over IPv6 --------------------------------------------------------------------------------


def assert_udp6_checksum(wire: bytes) -> None:
    pseudo = wire[22:54] + wire[58:60] + bytes([0, 17])
    assert wire[60:62] != b"\0\0"
    assert ones_complement(pseudo + wire[54:]) == 0
    assert UDP in Ether(wire)


@pytest.mark.parametrize(
    "size", [0, 1, 2, 3, 4, 5, 6, 7, 63, 64, 65, 509, 510, 511, 512, 513, 1023, 1025, 1300]
)
@pytest.mark.parametrize("kind", ["tcp", "udp", "zero", "sctp", "fragment"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_udp_checksum_over_ipv6_is_right_at_every_length(node, version, kind, size):
    node.apply(between("geneve", 6), to(version))
    data = Raw(bytes(index * 7 % 256 for index in range(size)))
    header = {
        "tcp": TCP(sport=1, dport=2),
        "udp": UDP(sport=1, dport=2),
        "zero": UDP(sport=1, dport=2, chksum=0),
        "sctp": Raw(bytes(12)),
        "fragment": UDP(sport=1, dport=2),
    }[kind]
    fields: dict[str, Any] = {"sctp": {"proto" if version == 4 else "nh": 132}}.get(kind, {})
    if kind == "fragment" and version == 4:
        fields = {"flags": "MF"}
    got = node.send("c1", frame(ip(version, **fields) / header / data))
    assert got.verdict == "REDIRECT"
    assert_udp6_checksum(got.data)


def test_a_udp_checksum_over_ipv6_is_never_zero(node):
    node.apply(between("geneve", 6, source_port=50000), to())
    for port in range(1, 3000, 7):
        assert_udp6_checksum(node.send("c1", frame(ip(4) / UDP(sport=port, dport=53) / Raw(b"x"))).data)


@pytest.mark.parametrize("version", [4, 6])
def test_bytes_behind_an_inner_udp_datagram_count(node, version):
    """UDP may be shorter than the IP packet says; its checksum then tells nothing of the rest."""
    node.apply(between("geneve", 6), to(version))
    whole = bytes(frame(ip(version) / UDP(sport=1111, dport=53) / Raw(b"d" * 20)))
    at = 16 if version == 4 else 18
    longer = set_outer(whole, at, (int.from_bytes(whole[at : at + 2]) + 6).to_bytes(2)) + b"behind"
    if version == 4:
        cleared = set_outer(longer, 24, b"\0\0")
        longer = set_outer(cleared, 24, ones_complement(cleared[14:34]).to_bytes(2))
    got = node.send("c1", longer)
    assert got.verdict == "REDIRECT"
    assert_udp6_checksum(got.data)


def test_an_ipv4_tunnel_has_no_udp_checksum(node):
    node.apply(between("geneve", 4), to())
    assert node.send("c1", INNER["udp4"]).packet[UDP].chksum == 0


# ---- what every tunnel holds its packets to ------------------------------------------------------------------

MISMATCHED = {
    "ipip": ("ipip", {}, over(4, bytes(their_packet(6)))),
    "sit": ("sit", {}, over(41, bytes(their_packet(4)))),
    "gre says 4": ("gre", {}, over(47, bytes.fromhex("00000800") + bytes(their_packet(6)))),
    "geneve says 6": ("geneve", {"vni": 5, "payload": "l3"},
                      over_udp(6081, bytes.fromhex("000086dd00000500") + bytes(their_packet(4)))),
    "gpe says 6": ("vxlan-gpe", {"vni": 5, "payload": "l3"},
                   over_udp(4790, bytes.fromhex("0c00000200000500") + bytes(their_packet(4)))),
    "gue says 4": ("gue", {}, over_udp(6080, bytes.fromhex("00040000") + bytes(their_packet(6)))),
}  # fmt: skip


@pytest.mark.parametrize(("protocol", "options", "wire"), MISMATCHED.values(), ids=MISMATCHED)
def test_an_inner_packet_of_another_version_than_the_header_says_is_dropped(node, protocol, options, wire):
    node.apply(between(protocol, **options), here(4), here(6))
    assert_dropped(node, wire, "INNER_VERSION")


KINDS = {
    "an Ethernet frame for gre": ("gre", {}, over(47, bytes.fromhex("00006558") + bytes(their_frame()))),
    "an IP packet for gretap": ("gretap", {}, over(47, bytes.fromhex("00000800") + bytes(their_packet()))),
    "an IP packet for geneve l2": ("geneve", {"vni": 5},
                                   over_udp(6081, bytes.fromhex("0000080000000500") + bytes(their_packet()))),
    "a frame for geneve l3": ("geneve", {"vni": 5, "payload": "l3"},
                              over_udp(6081, bytes.fromhex("0000655800000500") + bytes(their_frame()))),
    "a frame for gue l3": ("gue", {}, over_udp(6080, bytes.fromhex("006100003000") + bytes(their_frame()))),
}  # fmt: skip


@pytest.mark.parametrize(("protocol", "options", "wire"), KINDS.values(), ids=KINDS)
def test_a_payload_that_the_tunnel_does_not_carry_is_dropped(node, protocol, options, wire):
    node.apply(between(protocol, **options), here())
    assert_dropped(node, wire, "INNER_FAMILY")


def limited(protocol: int, inner: Packet, option: bytes = bytes.fromhex("0401040101 00")) -> bytes:
    """As Linux's ip6tnl sends by default: destination options with the tunnel encapsulation limit."""
    return bytes(outer_ip(60, 6) / Raw(bytes([protocol, 0]) + option + bytes(inner)))


@pytest.mark.parametrize(("name", "number", "version"), [("ip4ip6", 4, 4), ("ip6ip6", 41, 6)])
def test_the_tunnel_encapsulation_limit_is_skipped(node, name, number, version):
    node.apply(between(name, 6), here(version))
    assert_delivered(node, limited(number, their_packet(version)), their_packet(version))


def test_other_destination_options_are_the_kernels(node):
    node.apply(between("ip6ip6", 6), here(6))
    wire = limited(41, their_packet(6), bytes.fromhex("c901000101 00"))
    got = node.send("up0", wire)
    assert (got.verdict, got.data, node.drops()) == ("PASS", wire, {})


def test_a_first_fragment_over_ipv6_is_counted_and_left(node):
    node.apply(between("ip6ip6", 6), here(6))
    fragment = bytes(outer_ip(44, 6) / Raw(bytes.fromhex("2900000100000007") + bytes(their_packet(6))))
    assert_left(node, fragment, "FRAGMENT")
    later = bytes(outer_ip(44, 6) / Raw(bytes.fromhex("2900000800000007") + bytes(64)))
    got = node.send("up0", later)
    assert (got.verdict, got.data, node.drops()) == ("PASS", later, {"FRAGMENT": 1})


def checksummed(underlay: int, value: int | None, port: int = 6081) -> bytes:
    """GENEVE with a UDP checksum: None: the right one."""
    outer = outer_ip(17, underlay) / UDP(sport=50000, dport=port, chksum=value)
    return bytes(outer / Raw(bytes.fromhex("0000655800000500") + bytes(their_frame())))


@pytest.mark.parametrize("underlay", [4, 6])
@pytest.mark.parametrize(
    ("wanted", "taken"),
    [("ignore", (True, True, True)), ("verify", (True, True, False)), ("require", (True, False, False))],
)
def test_a_received_udp_checksum_is_held_to_what_the_tunnel_says(node, underlay, wanted, taken):
    node.apply(between("geneve", underlay, vni=5, receive_checksum=wanted), here())
    for value, goes in zip((None, 0, 0x1234), taken, strict=True):
        wire = checksummed(underlay, value)
        if goes:
            assert_delivered(node, wire)
        else:
            before = node.drops().get("UDP_CHECKSUM", 0)
            got = node.send("up0", wire)
            assert (got.verdict, got.data) == ("DROP", wire)
            assert node.drops() == {"UDP_CHECKSUM": before + 1}


# ---- GTP-U echo ---------------------------------------------------------------------------------------------


def echo_request(
    underlay: int = 4, source: str | None = None, sequence: bytes = b"\x12\x34", flags: int = 0x32
) -> bytes:
    optional = sequence + b"\0\0" if flags & 2 else b""
    header = struct.pack("!BBHI", flags, 1, len(optional), 0)
    outer = outer_ip(17, underlay)
    if source is not None:
        outer[1].src = source
    return bytes(outer / UDP(sport=2152, dport=2152) / Raw(header + optional))


@pytest.mark.parametrize("flags", [0x32, 0x30])
@pytest.mark.parametrize("underlay", [4, 6])
def test_a_gtpu_echo_request_of_a_known_peer_is_answered(node, underlay, flags):
    node.apply(between("gtpu", underlay, teid=7), here())
    wire = echo_request(underlay, flags=flags)
    got = node.send("up0", wire)
    assert (got.verdict, node.drops()) == ("REDIRECT", {})
    answer = got.packet
    assert (answer.src, answer.dst) == (LOCAL_MAC, REMOTE_MAC)
    assert (answer[1].src, answer[1].dst) == (LOCAL[underlay], REMOTE[underlay])
    assert (answer[UDP].sport, answer[UDP].dport) == (2152, 2152)
    # TS 29.281 §7.2.2: the sequence number of the request, and a recovery element of 0
    sequence = "1234" if flags & 2 else "0000"
    assert bytes(answer[UDP].payload).hex() == "32020006" + "00000000" + sequence + "0000" + "0e00"
    again = answer.copy()
    del again[UDP].chksum
    if underlay == 4:
        del again[IP].chksum
    assert bytes(again) == got.data


def test_an_echo_request_of_a_stranger_is_left_to_the_host(node):
    node.apply(between("gtpu", teid=7), here())
    assert_left(node, echo_request(source=STRANGER[4]), "CONTROL")


def test_an_echo_request_is_left_to_the_host_where_the_tunnel_says_so(node):
    node.apply(between("gtpu", teid=7, echo="pass"), here())
    assert_left(node, echo_request(), "CONTROL")


@pytest.mark.parametrize(
    "kind", [2, 26, 31, 254], ids=["echo response", "error indication", "extensions", "end marker"]
)
def test_other_gtpu_messages_are_left_to_the_host(node, kind):
    node.apply(between("gtpu", teid=7), here())
    assert_left(node, over_udp(2152, struct.pack("!BBHI", 0x30, kind, 0, 7)), "CONTROL")
