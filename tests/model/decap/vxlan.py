# SPDX-License-Identifier: GPL-2.0-only
"""VXLAN (RFC 7348 §5: all but the I flag is ignored), GPE (draft-ietf-nvo3-vxlan-gpe-13 §3), NSH (RFC 8300 §2)."""

from __future__ import annotations

from model.decap.base import Payload, Reading, Unreadable, of_one
from model.decap.underlay import Outer

I_FLAG, VERSION, P_FLAG, O_FLAG = 0x08, 0x30, 0x04, 0x01
NEXT_ETHERNET, NEXT_NSH = 3, 4
NEXT_IP = {1: 4, 2: 6}
MD_TYPE_1_LEN = 24
"""Bytes; of type 2 it is any, and there are no others (§2.2)."""


def read_vxlan(outer: Outer) -> Reading:
    data = outer.payload
    if len(data) < 8:
        raise Unreadable("VXLAN_TRUNCATED")
    if not data[0] & I_FLAG:
        raise Unreadable("VXLAN_FLAGS")
    return of_one("vxlan", int.from_bytes(data[4:7], "big"), Payload(data[8:], None))


def read_gpe(outer: Outer) -> Reading:
    data = outer.payload
    if len(data) < 8:
        raise Unreadable("GPE_TRUNCATED")
    if not data[0] & I_FLAG or data[0] & VERSION:
        raise Unreadable("GPE_FLAGS")
    vni = int.from_bytes(data[4:7], "big")
    next_protocol = data[3] if data[0] & P_FLAG else NEXT_ETHERNET
    if data[0] & O_FLAG:
        return of_one("nsh" if next_protocol == NEXT_NSH else "vxlan-gpe", vni, fault="GPE_FLAGS")
    if next_protocol == NEXT_NSH:
        return _read_nsh(vni, data[8:])
    payload = _payload(next_protocol, data[8:])
    return of_one("vxlan-gpe", vni, payload, "" if payload else "GPE_PROTOCOL")


def _read_nsh(vni: int, data: bytes) -> Reading:
    """The TTL is for who forwards on the path (0 is none of the values that forbid it, §2.2): we are its end."""
    if len(data) < 8:
        return of_one("nsh", vni, fault="NSH_HEADER")
    first, kind = int.from_bytes(data[:2], "big"), data[2] & 0x0F
    version, is_oam, length = first >> 14, first >> 13 & 1, (first & 0x3F) * 4
    payload = _payload(data[3], data[length:])
    is_sound = (
        version == 0
        and not is_oam
        and 8 <= length <= len(data)
        and (length == MD_TYPE_1_LEN if kind == 1 else kind == 2)
        and payload is not None
    )
    return of_one("nsh", vni, payload, "" if is_sound else "NSH_HEADER")


def _payload(next_protocol: int, data: bytes) -> Payload | None:
    if next_protocol == NEXT_ETHERNET:
        return Payload(data, None)
    return Payload(data, NEXT_IP[next_protocol]) if next_protocol in NEXT_IP else None
