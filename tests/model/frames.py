# SPDX-License-Identifier: GPL-2.0-only
"""Headers as bytes, with what follows them: RFC 894, 2464 (Ethernet), 791 (IPv4), 8200 (IPv6), 768 (UDP), 1071."""

from __future__ import annotations

import struct

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_TAG = 0x8100
ETHERTYPE_SERVICE_TAG = 0x88A8
ETHERTYPE_BRIDGED = 0x6558

ICMP, IPV4, TCP, UDP, IPV6, ROUTING, GRE = 1, 4, 6, 17, 41, 43, 47
ICMPV6, ETHERIP, L2TP, SCTP, ETHERNET = 58, 97, 115, 132, 143

ETHERNET_LEN = 14
TAG_LEN = 4

DONT_FRAGMENT = 0x4000


def ones_complement(data: bytes) -> int:
    """The Internet checksum of any number of bytes, by arithmetic modulo 65535 (RFC 1071 §1)."""
    total = int.from_bytes(data + b"\0" if len(data) % 2 else data, "big")
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))


def updated_checksum(checksum: bytes, before: bytes, after: bytes) -> bytes:
    """After two bytes that it covers have changed; what was right stays right (RFC 1624 §3, equation 3)."""
    not_checksum, not_before = (bytes(255 - byte for byte in data) for data in (checksum, before))
    return ones_complement(not_checksum + not_before + after).to_bytes(2, "big")


def is_summed_right(data: bytes) -> bool:
    """Whether bytes that hold their own checksum add up."""
    return ones_complement(data) == 0


def ethernet(destination: bytes, source: bytes, ethertype: int, payload: bytes) -> bytes:
    return destination + source + ethertype.to_bytes(2, "big") + payload


def ipv4(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    *,
    tos: int,
    ttl: int,
    identification: int,
    dont_fragment: bool,
) -> bytes:
    flags = DONT_FRAGMENT if dont_fragment else 0
    total_len = 20 + len(payload)
    start = struct.pack("!BBHHHBB", 4 << 4 | 5, tos, total_len, identification, flags, ttl, protocol)
    checksum = ones_complement(start + b"\0\0" + source + destination)
    return start + checksum.to_bytes(2, "big") + source + destination + payload


def ipv6(
    source: bytes,
    destination: bytes,
    next_header: int,
    payload: bytes,
    *,
    traffic_class: int,
    flow_label: int,
    hop_limit: int,
) -> bytes:
    first_word = 6 << 28 | traffic_class << 20 | flow_label
    start = struct.pack("!IHBB", first_word, len(payload), next_header, hop_limit)
    return start + source + destination + payload


def ipv6_pseudo_header(source: bytes, destination: bytes, length: int, next_header: int) -> bytes:
    """RFC 8200 §8.1."""
    return source + destination + struct.pack("!IHBB", length, 0, 0, next_header)


def ipv4_pseudo_header(source: bytes, destination: bytes, length: int, protocol: int) -> bytes:
    """RFC 768, RFC 9293 §3.1."""
    return source + destination + struct.pack("!BBH", 0, protocol, length)


def udp(source_port: int, destination_port: int, payload: bytes, checksum: int = 0) -> bytes:
    """`checksum` 0: none."""
    return struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), checksum) + payload


def udp_checksum(pseudo_header: bytes, datagram: bytes) -> int:
    """Of a datagram whose checksum field is zero. 0 would mean "none", so it is sent as all ones (RFC 768)."""
    return ones_complement(pseudo_header + datagram) or 0xFFFF
