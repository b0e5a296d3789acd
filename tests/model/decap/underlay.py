# SPDX-License-Identifier: GPL-2.0-only
"""The outer headers: whose packet is it, and where does a tunnel header begin?"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from model.frames import (
    ETHERNET_LEN,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    UDP,
    ipv4_pseudo_header,
    ipv6_pseudo_header,
    is_summed_right,
)

MORE_FRAGMENTS, OFFSET = 0x2000, 0x1FFF
DESTINATION_OPTIONS, FRAGMENT = 60, 44

REACH = 896
"""Bytes of a frame: a tunnel header that ends behind them isn't read."""


SPAN = 16 * 1024
"""Bytes of a frame: a checksum over what ends behind them isn't verified, which is said."""


@dataclass
class Outer:
    """A packet that may be a tunnel's.

    family      which reader takes the payload
    arrival     ("udp" | "ip" | "ethertype", number)
    version     of IP; 0: none
    source, destination   packed IP addresses, or MAC addresses
    protocol    what the IP header says that follows
    payload     from the tunnel header to where the outer lengths say that it ends
    payload_at  where that begins in the frame
    has_extension  an IPv6 extension header was skipped
    problem     what is wrong with the outer headers, a reason
    udp_datagram  with its header; b"": no UDP
    """

    family: str
    arrival: tuple[str, int]
    version: int
    source: bytes
    destination: bytes
    protocol: int = 0
    tos: int = 0
    payload: bytes = b""
    is_fragment: bool = False
    problem: str = ""
    udp_datagram: bytes = b""
    payload_at: int = 0
    has_extension: bool = False

    def is_within(self, header_len: int) -> bool:
        """Whether a tunnel header of this length is there as a whole, and within reach."""
        return header_len <= len(self.payload) and self.payload_at + header_len <= REACH

    def is_in_span(self) -> bool:
        """Whether the payload ends where a checksum over it can still be verified."""
        return self.payload_at + len(self.payload) <= SPAN


Arrivals = Mapping[tuple[str, int], str]
"""Where tunnel packets arrive -> who reads them."""


def udp_checksum_problem(outer: Outer, *, is_required: bool) -> str:
    """RFC 768, RFC 8200 §8.1; zero is none, which tunnels may have over IPv6, too (RFC 6935)."""
    datagram = outer.udp_datagram
    if not any(datagram[6:8]):
        return "UDP_CHECKSUM" if is_required else ""
    if not outer.is_in_span():
        return "CHECKSUM_SPAN"
    pseudo_header = ipv4_pseudo_header if outer.version == 4 else ipv6_pseudo_header
    summed = pseudo_header(outer.source, outer.destination, len(datagram), UDP) + datagram
    return "" if is_summed_right(summed) else "UDP_CHECKSUM"


def read_outer(frame: bytes, arrivals: Arrivals) -> Outer | None:
    """None: nothing of ours, as far as can be told."""
    if len(frame) < ETHERNET_LEN:
        return None
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == ETHERTYPE_IPV4:
        return _read_ipv4(frame, arrivals)
    if ethertype == ETHERTYPE_IPV6:
        return _read_ipv6(frame, arrivals)
    arrival = ("ethertype", ethertype)
    if arrival not in arrivals:
        return None
    payload = frame[ETHERNET_LEN:]
    return Outer(
        arrivals[arrival], arrival, 0, frame[6:12], frame[:6], payload=payload, payload_at=ETHERNET_LEN
    )


def _read_ipv4(frame: bytes, arrivals: Arrivals) -> Outer | None:
    """Options are left to the kernel: no tunnel endpoint sends any."""
    header = frame[ETHERNET_LEN : ETHERNET_LEN + 20]
    if len(header) < 20 or header[0] & 15 > 5:
        return None
    version_len, tos, total_len, _, fragment, _, protocol, _, source, destination = struct.unpack(
        "!BBHHHBBH4s4s", header
    )
    if fragment & OFFSET:
        return None  # behind the first fragment no header tells whose it is
    is_sound = (
        version_len == 0x45 and is_summed_right(header) and 20 <= total_len <= len(frame) - ETHERNET_LEN
    )
    outer = Outer("", ("ip", protocol), 4, source, destination, protocol, tos)
    outer.is_fragment = bool(fragment & MORE_FRAGMENTS)
    outer.problem = "" if is_sound else "BAD_OUTER_IP"
    return _read_ip_payload(outer, frame, ETHERNET_LEN + 20, total_len - 20, arrivals)


def _read_ipv6(frame: bytes, arrivals: Arrivals) -> Outer | None:
    header = frame[ETHERNET_LEN : ETHERNET_LEN + 40]
    if len(header) < 40:
        return None
    first_word, payload_len, protocol = struct.unpack_from("!IHB", header)
    outer = Outer("", ("ip", protocol), 6, header[8:24], header[24:40], protocol, first_word >> 20 & 0xFF)
    is_sound = first_word >> 28 == 6 and payload_len <= len(frame) - ETHERNET_LEN - 40
    outer.problem = "" if is_sound else "BAD_OUTER_IP"
    at = ETHERNET_LEN + 40
    extension = frame[at : at + 8]
    if protocol == DESTINATION_OPTIONS:
        if len(extension) < 8 or payload_len < 8 or not _is_encapsulation_limit(extension):
            return None
    elif protocol == FRAGMENT:
        if len(extension) < 8 or int.from_bytes(extension[2:4], "big") >> 3:
            return None  # as above
        outer.is_fragment = True
    else:
        return _read_ip_payload(outer, frame, at, payload_len, arrivals)
    outer.has_extension = True
    outer.protocol = extension[0]
    outer.arrival = ("ip", outer.protocol)
    return _read_ip_payload(outer, frame, at + 8, payload_len - 8, arrivals)


def _is_encapsulation_limit(extension: bytes) -> bool:
    """RFC 2473 §4.1.1, padded to 8 bytes by one PadN: what Linux sends, and tunnel ends may ignore."""
    return extension[1] == 0 and extension[2:4] == b"\x04\x01" and extension[5:7] == b"\x01\x01"


def _read_ip_payload(
    outer: Outer, frame: bytes, at: int, payload_len: int, arrivals: Arrivals
) -> Outer | None:
    """What begins at `at`; `payload_len` is what the IP header says of it: more than that is padding."""
    if outer.protocol == UDP:
        if len(frame) < at + 8:
            return None
        _, port, udp_len, _ = struct.unpack_from("!HHHH", frame, at)
        outer.arrival = ("udp", port)
        if not 8 <= udp_len <= payload_len:
            outer.problem = outer.problem or "BAD_OUTER_UDP"
        outer.udp_datagram = frame[at : at + udp_len]
        at, payload_len = at + 8, udp_len - 8
    outer.payload_at = at
    outer.payload = frame[at : at + max(0, payload_len)]
    if outer.arrival not in arrivals:
        return None
    outer.family = arrivals[outer.arrival]
    return outer
