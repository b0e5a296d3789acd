# SPDX-License-Identifier: GPL-2.0-only
"""The packets that are sent: UDP in IPv4 or IPv6, in Ethernet frames."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from mptm import headers
from mptm.facts import IPAddress

SMALLEST_FRAME = 64
"""Bytes, Ethernet header included."""

SOURCE_PORT, DESTINATION_PORT = 1111, 5353
FILLER = b"m"


def udp_frame(
    destination_mac: bytes,
    source_mac: bytes,
    source: IPAddress,
    destination: IPAddress,
    *,
    size: int = SMALLEST_FRAME,
) -> bytes:
    """A frame of `size` bytes. Its UDP checksum is zero."""
    if isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
        ip_len, ethertype = headers.IPV4_LEN, headers.ETHERTYPE_IPV4
        udp_len = size - headers.ETHERNET_LEN - ip_len
        ip = headers.ipv4(source, destination, headers.IP_PROTOCOL_UDP, total_len=ip_len + udp_len)
    elif isinstance(source, IPv6Address) and isinstance(destination, IPv6Address):
        ip_len, ethertype = headers.IPV6_LEN, headers.ETHERTYPE_IPV6
        udp_len = size - headers.ETHERNET_LEN - ip_len
        ip = headers.ipv6(source, destination, headers.IP_PROTOCOL_UDP, payload_len=udp_len)
    else:
        raise ValueError(f"{source} and {destination} are of different IP versions")
    frame = headers.ethernet(destination_mac, source_mac, ethertype) + ip
    frame += headers.udp(SOURCE_PORT, DESTINATION_PORT, udp_len)
    return frame.ljust(size, FILLER)
