# SPDX-License-Identifier: GPL-2.0-only
"""What forwarding sees of an inner frame: Ethernet, at most two VLAN tags, IPv4 or IPv6, ports."""

from __future__ import annotations

import struct

from model.frames import (
    ETHERNET_LEN,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ETHERTYPE_SERVICE_TAG,
    ETHERTYPE_TAG,
    ICMP,
    ICMPV6,
    SCTP,
    TAG_LEN,
    TCP,
    UDP,
    ipv4_pseudo_header,
    ipv6_pseudo_header,
    ones_complement,
)

TAGS_MAX = 2
IPV4_FRAGMENT = 0x3FFF
"""More fragments, or an offset."""
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}


class Frame:
    """An Ethernet frame of the overlay.

    data          the whole frame
    l3            where what follows the Ethernet header and its tags begins
    ethertype     of that
    version       of IP; 0: no IP packet, and the rest is as if it were none
    end           where the IP packet ends: what follows is padding
    ports         source and destination port as four bytes; b"" for fragments and what has none
    """

    __slots__ = (
        "data",
        "destination",
        "end",
        "ethertype",
        "l3",
        "ports",
        "protocol",
        "source",
        "tos",
        "transport",
        "ttl",
        "version",
    )

    def __init__(self, data: bytes, l3: int, ethertype: int) -> None:
        self.data = data
        self.l3 = l3
        self.ethertype = ethertype
        self.version = 0
        self.end = len(data)
        self.transport = len(data)
        self.protocol = self.tos = 0
        self.ttl = 64
        self.source = self.destination = self.ports = b""

    @property
    def ip(self) -> bytes:
        """The IP packet without padding."""
        return self.data[self.l3 : self.end]

    @property
    def is_tagged(self) -> bool:
        """Whether there are VLAN tags."""
        return self.l3 > ETHERNET_LEN

    @property
    def is_fragment(self) -> bool:
        """Of IPv4; IPv6 has an extension header for it, behind which nothing is read."""
        return self.version == 4 and bool(struct.unpack_from("!H", self.data, self.l3 + 6)[0] & IPV4_FRAGMENT)

    def summed(self, *, is_l3: bool) -> bytes:
        """The frame, or its IP packet alone, as it would be if the checksums that it carries were right.

        What an outer checksum is made from (Linux, Documentation/networking/checksum-offloads.rst, "LCO"): a
        transport checksum that is there is taken to be right, so nobody has to walk over the payload. Of no use for
        fragments, for UDP without a checksum, and in front of padding, where all bytes are added up as they are.
        """
        if is_l3:
            return self._with_right_checksums()[self.l3 : self.end]
        return self._with_right_checksums() if self.end == len(self.data) else self.data

    def _with_right_checksums(self) -> bytes:
        length = self.end - self.transport
        at = CHECKSUM_AT.get(self.protocol)
        if not self.version or self.is_fragment:
            return self.data
        if at is None or length < at + 2 or self.protocol == {4: ICMPV6, 6: ICMP}[self.version]:
            return self.data
        if self.protocol == UDP:
            udp_len, checksum = struct.unpack_from("!HH", self.data, self.transport + 4)
            if udp_len != length or not checksum:
                return self.data
        made = bytearray(self.data)
        field = self.transport + at
        made[field : field + 2] = b"\0\0"
        pseudo_header = ipv4_pseudo_header if self.version == 4 else ipv6_pseudo_header
        pseudo = (
            b""
            if self.protocol == ICMP
            else pseudo_header(self.source, self.destination, length, self.protocol)
        )
        made[field : field + 2] = ones_complement(pseudo + made[self.transport : self.end]).to_bytes(2, "big")
        if self.version == 4:
            made[self.l3 + 10 : self.l3 + 12] = b"\0\0"
            header = bytes(made[self.l3 : self.transport])
            made[self.l3 + 10 : self.l3 + 12] = ones_complement(header).to_bytes(2, "big")
        return bytes(made)


def parse_frame(data: bytes) -> Frame | None:
    """None: shorter than its own headers say."""
    if len(data) < ETHERNET_LEN:
        return None
    at = 12
    ethertype = int.from_bytes(data[at : at + 2], "big")
    for _ in range(TAGS_MAX):
        if ethertype not in (ETHERTYPE_TAG, ETHERTYPE_SERVICE_TAG):
            break
        at += TAG_LEN
        if len(data) < at + 2:
            return None
        ethertype = int.from_bytes(data[at : at + 2], "big")
    frame = Frame(data, at + 2, ethertype)
    if ethertype == ETHERTYPE_IPV4:
        return _parse_ipv4(frame)
    if ethertype == ETHERTYPE_IPV6:
        return _parse_ipv6(frame)
    return frame


def parse_ip_packet(data: bytes) -> Frame | None:
    """A frame around an IP packet, its MAC addresses zero. None: no IP packet, or shorter than it says."""
    if not data:
        return None
    ethertype = ETHERTYPE_IPV4 if data[0] >> 4 == 4 else ETHERTYPE_IPV6
    return parse_frame(bytes(12) + ethertype.to_bytes(2, "big") + data)


def _parse_ipv4(frame: Frame) -> Frame | None:
    """RFC 791 §3.1; its checksum is the receiving host's to verify."""
    data, at = frame.data, frame.l3
    if len(data) < at + 20 or data[at] >> 4 != 4:
        return None
    header_len = (data[at] & 15) * 4
    total_len = int.from_bytes(data[at + 2 : at + 4], "big")
    if header_len < 20 or total_len < header_len or at + total_len > len(data):
        return None
    frame.version = 4
    frame.tos, frame.ttl, frame.protocol = data[at + 1], data[at + 8], data[at + 9]
    frame.source, frame.destination = data[at + 12 : at + 16], data[at + 16 : at + 20]
    frame.end = at + total_len
    frame.transport = at + header_len
    if not frame.is_fragment:
        _read_ports(frame)
    return frame


def _parse_ipv6(frame: Frame) -> Frame | None:
    """RFC 8200 §3. Extension headers aren't followed: behind one there are no ports."""
    data, at = frame.data, frame.l3
    if len(data) < at + 40 or data[at] >> 4 != 6:
        return None
    end = at + 40 + int.from_bytes(data[at + 4 : at + 6], "big")
    if end > len(data):
        return None
    frame.version = 6
    frame.tos = int.from_bytes(data[at : at + 2], "big") >> 4 & 0xFF
    frame.protocol, frame.ttl = data[at + 6], data[at + 7]
    frame.source, frame.destination = data[at + 8 : at + 24], data[at + 24 : at + 40]
    frame.end = end
    frame.transport = at + 40
    _read_ports(frame)
    return frame


def _read_ports(frame: Frame) -> None:
    if frame.protocol in (TCP, UDP, SCTP):
        ports = frame.data[frame.transport : min(frame.transport + 4, frame.end)]
        frame.ports = ports if len(ports) == 4 else b""
