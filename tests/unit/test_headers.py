# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patching import encapsulate
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from mptm import headers
from mptm.headers import Composer
from mptm.template import FixedPatch, Patch, PatchOp, Template

MAC_A, MAC_B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
V4_A, V4_B = IPv4Address("10.30.30.1"), IPv4Address("10.30.30.2")
V6_A, V6_B = IPv6Address("fd00:30::1"), IPv6Address("fd00:30::2")


def test_checksum_is_that_of_the_example_in_rfc_1071_section_3():
    assert headers.checksum(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF


def test_ethernet_is_destination_source_type():
    assert headers.ethernet(MAC_A, MAC_B, 0x0800).hex() == "0200000000010200000000020800"


def test_ipv4_header_byte_for_byte():
    made = headers.ipv4(V4_A, V4_B, 17, tos=0xB8, ttl=63, total_len=0x1234, identification=0xABCD)
    assert made.hex(" ", 2) == (
        "45b8 1234 "  # version 4, 5 words; TOS; total length
        "abcd 4000 "  # identification; DF
        "3f11 2cf5 "  # TTL 63, protocol UDP; checksum
        "0a1e 1e01 0a1e 1e02"
    )


def test_ipv6_header_byte_for_byte():
    made = headers.ipv6(V6_A, V6_B, 17, traffic_class=0xB8, hop_limit=63, payload_len=0x1234)
    assert made.hex(" ", 2) == (
        "6b80 0000 "  # version 6, traffic class b8, flow label 0
        "1234 113f "  # payload length, next header UDP, hop limit 63
        "fd00 0030 0000 0000 0000 0000 0000 0001 "
        "fd00 0030 0000 0000 0000 0000 0000 0002"
    )


def test_udp_header_has_no_checksum():
    assert headers.udp(51234, 6081, 100).hex(" ", 2) == "c822 17c1 0064 0000"


@given(
    tos=st.integers(0, 255), ttl=st.integers(0, 255), total=st.integers(0, 65535), ident=st.integers(0, 65535),
    df=st.booleans(), source=st.ip_addresses(v=4), destination=st.ip_addresses(v=4),
)  # fmt: skip
def test_ipv4_checksum_is_what_scapy_computes(tos, ttl, total, ident, df, source, destination):
    made = headers.ipv4(
        source, destination, 17, tos=tos, ttl=ttl, total_len=total, identification=ident, dont_fragment=df
    )
    read = IP(made)
    stated, read.chksum = read.chksum, None
    assert IP(bytes(read)[:20]).chksum == stated


def compose(**changes):
    settings = {"ttl": 64, "dscp": 0, "dont_fragment": True} | changes
    return Composer(MAC_A, MAC_B).ip(V4_A, V4_B, headers.IP_PROTOCOL_UDP, **settings)


def test_ipv4_and_udp_get_patches_at_their_offsets_with_the_bias_of_their_start():
    template = compose().udp("flow", 6081).template()
    assert template.patches == (
        Patch(PatchOp.IPV4, 14, -14),
        Patch(PatchOp.FLOW16, 34),
        Patch(PatchOp.LEN16, 38, -34),
    )
    assert (template.strip, template.l2_len, template.tos_mask, template.ttl_mask) == (0, 14, 0x03, 0)


def test_ipv6_payload_length_counts_from_behind_the_header():
    template = (
        Composer(MAC_A, MAC_B).ip(V6_A, V6_B, 17, ttl=64, dscp=0, dont_fragment=True).udp(1, 6081).template()
    )
    assert template.patches == (
        Patch(PatchOp.IPV6, 14, -54),
        Patch(PatchOp.LEN16, 58, -54),
        Patch(PatchOp.UDP6_CHECKSUM, 54),
    )


def test_what_nearly_every_header_has_is_patched_at_known_places():
    udp_v4 = compose().udp("flow", 6081).template()
    assert list(udp_v4.fixed().values()) == [FixedPatch.IPV4, FixedPatch.FLOW16, FixedPatch.UDP_LEN]
    composer = Composer(MAC_A, MAC_B).ip(V6_A, V6_B, 17, ttl=64, dscp=0, dont_fragment=True)
    udp_v6 = composer.udp(1, 6081).template()
    assert list(udp_v6.fixed().values()) == [FixedPatch.IPV6, FixedPatch.UDP_LEN]
    assert list(compose().template().fixed().values()) == [FixedPatch.IPV4]


def test_a_header_with_an_identification_has_no_patches_at_known_places():
    assert compose(dont_fragment=False).udp("flow", 6081).template().fixed() == {}


def test_inherited_fields_are_zero_in_the_template_and_open_in_the_masks():
    template = compose(ttl="inherit", dscp="inherit").template()
    assert (template.outer[15], template.outer[22]) == (0, 0)
    assert (template.tos_mask, template.ttl_mask) == (0xFF, 0xFF)


def test_without_df_the_identification_is_patched_before_the_checksum_is_folded():
    template = compose(dont_fragment=False).template()
    assert [patch.op for patch in template.patches] == [PatchOp.IPV4_ID, PatchOp.IPV4]
    assert template.outer[20:22] == b"\0\0"


@given(
    payload=st.binary(max_size=2000), tos=st.integers(0, 255), inner_ttl=st.integers(1, 255),
    ip_id=st.integers(0, 65535), dscp=st.one_of(st.integers(0, 63), st.just("inherit")),
    ttl=st.one_of(st.integers(1, 255), st.just("inherit")), df=st.booleans(),
)  # fmt: skip
def test_patched_ipv4_header_always_sums_up_to_zero(payload, tos, inner_ttl, ip_id, dscp, ttl, df):
    template = compose(ttl=ttl, dscp=dscp, dont_fragment=df).udp("flow", 4789).template()
    packet = encapsulate(template, payload, tos=tos, ttl=inner_ttl, ip_id=ip_id)
    assert headers.checksum(packet[14:34]) == 0
    outer = Ether(packet)
    assert outer[IP].len == len(packet) - 14
    assert outer[UDP].len == len(packet) - 34
    assert outer[IP].tos == (tos if dscp == "inherit" else dscp << 2 | tos & 3)
    assert outer[IP].ttl == (inner_ttl if ttl == "inherit" else ttl)
    assert outer[IP].id == (0 if df else ip_id)


@given(payload=st.binary(max_size=2000), tos=st.integers(0, 255), flow_hash=st.integers(0, 2**32 - 1))
def test_patched_ipv6_header_has_label_class_and_length(payload, tos, flow_hash):
    template = (
        Composer(MAC_A, MAC_B)
        .ip(V6_A, V6_B, 17, ttl="inherit", dscp=0, dont_fragment=True)
        .udp("flow", 1)
        .template()
    )
    outer = Ether(encapsulate(template, payload, tos=tos, ttl=7, flow_hash=flow_hash))
    assert outer[IPv6].plen == outer[UDP].len == 8 + len(payload)
    assert outer[IPv6].fl == flow_hash & 0xFFFFF
    assert (outer[IPv6].tc, outer[IPv6].hlim) == (tos & 3, 7)
    assert 49152 <= outer[UDP].sport <= 65535


def test_addresses_of_different_versions_are_refused():
    with pytest.raises(ValueError, match=r"10\.30\.30\.1 and fd00:30::2 are of different IP versions"):
        Composer(MAC_A, MAC_B).ip(V4_A, V6_B, 17, ttl=64, dscp=0, dont_fragment=True)


@pytest.mark.parametrize("header", [bytes(95), bytes(1)])
def test_a_header_that_is_too_long_or_odd_is_refused(header):
    with pytest.raises(ValueError, match="at most 128 bytes, an even number, and 8 such fields"):
        compose().append(header).template()


def test_overhead_counts_all_but_the_outer_ethernet_header_plus_the_inner_one():
    template = Template(outer=bytes(50), patches=())
    assert template.overhead() == 50
    assert template.inner_mtu(1500) == 1450
