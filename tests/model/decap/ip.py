# SPDX-License-Identifier: GPL-2.0-only
"""Little headers, or none: IP in IP and FOU, EtherIP (RFC 3378 §3), GUE (draft-ietf-intarea-gue-09 §3), MPLS in UDP
(RFC 7510, RFC 3032 §2.1), SRv6 (RFC 8754 §4.3, RFC 8986 §4.4 to §4.9)."""

from __future__ import annotations

from model.decap.base import Control, Name, Payload, Reading, Unreadable, of_one, payload_by_protocol
from model.decap.underlay import Outer
from model.frames import ETHERIP, ROUTING

LABELS_MAX = 8
SEGMENT_ROUTING = 4


def read_ip(outer: Outer) -> Reading:
    if outer.arrival[0] == "udp":
        return of_one("ip", 0, Payload(outer.payload, 0))
    payload = payload_by_protocol(outer.protocol, outer.payload)
    names = [Name("ip", 0, payload)]
    if outer.version == 6:
        names.append(Name("srv6", 0, payload))  # RFC 8986 §5.2: of one segment no header is left
    return Reading(tuple(names))


def read_etherip(outer: Outer) -> Reading:
    return of_one("etherip", 0, *_etherip(outer.payload))


def _etherip(data: bytes) -> tuple[Payload | None, str]:
    version_3_reserved_0 = b"\x30\x00"
    if data[:2] != version_3_reserved_0:
        return None, "ETHERIP_HEADER"
    return Payload(data[2:], None), ""


def read_gue(outer: Outer) -> Reading:
    data = outer.payload
    variant = data[0] >> 6 if data else 0
    if len(data) < 4 or variant > 1:
        return of_one("gue", 0, fault="GUE_HEADER")
    if variant == 1:
        return of_one("gue", 0, Payload(data, 0))  # 01: the first bits of an IP version
    is_control, end, protocol = data[0] & 0x20, 4 + (data[0] & 0x1F) * 4, data[1]
    has_unknown_fields = data[2:4] != b"\0\0"
    if is_control or end > len(data) or has_unknown_fields:
        return of_one("gue", 0, fault="GUE_HEADER")
    if protocol == ETHERIP:
        return of_one("gue", 0, *_etherip(data[end:]))
    payload = payload_by_protocol(protocol, data[end:])
    is_ip = payload is not None and payload.says is not None
    return of_one("gue", 0, payload, "" if is_ip else "GUE_HEADER")


def read_mpls(outer: Outer) -> Reading:
    data = outer.payload
    for at in range(0, 4 * LABELS_MAX, 4):
        if len(data) < at + 4:
            break
        entry = int.from_bytes(data[at : at + 4], "big")
        if entry & 0x100:  # the bottom of the stack
            return of_one("mpls", entry >> 12, Payload(data[at + 4 :], 0))
    raise Unreadable("MPLS_STACK")


def read_srv6(outer: Outer) -> Reading:
    """Only the last segment decapsulates; what has segments left isn't ours to forward."""
    if outer.version != 6:
        raise Control
    data, protocol = outer.payload, outer.protocol
    if protocol == ROUTING:
        if len(data) < 8:
            return of_one("srv6", 0, fault="SRV6_HEADER")
        if data[2] != SEGMENT_ROUTING or data[3] != 0:
            raise Control
        end, protocol = 8 + data[1] * 8, data[0]
        if not outer.is_within(end):
            return of_one("srv6", 0, fault="SRV6_HEADER")
        data = data[end:]
    payload = payload_by_protocol(protocol, data)
    return of_one("srv6", 0, payload, "" if payload else "SRV6_HEADER")
