# SPDX-License-Identifier: GPL-2.0-only
"""GRE: RFC 2784 §2, key and sequence number RFC 2890; NVGRE RFC 7637 §3.2; ERSPAN draft-foschiano-erspan-03 §4."""

from __future__ import annotations

import struct

from model.decap.base import BRIDGED, Control, Name, Payload, Reading, Unreadable, payload_by_ethertype
from model.decap.underlay import Outer

C_FLAG, K_FLAG, S_FLAG = 0x8000, 0x2000, 0x1000
MUST_BE_ZERO = 0x4000 | 0x0800 | 0x0400
"""Bits 1, 4 and 5 (RFC 2784 §2.3); bits 2 and 3 are K and S, the others up to the version are ignored."""
VERSION = 0x0007
ERSPAN_VERSION = {0x88BE: 1, 0x22EB: 2}
ERSPAN_LEN = {0x88BE: 8, 0x22EB: 12}
SUBHEADER_PRESENT, SUBHEADER_LEN = 0x01, 8


def read(outer: Outer) -> Reading:
    data = outer.payload
    if len(data) < 4:
        raise Unreadable("GRE_TRUNCATED")
    flags, ethertype = struct.unpack_from("!HH", data)
    if flags & VERSION:
        raise Control  # PPTP, RFC 2637
    if flags & MUST_BE_ZERO:
        raise Unreadable("GRE_FLAGS")
    at = 4 + (4 if flags & C_FLAG else 0)
    header, key = "gre", 0
    if flags & K_FLAG:
        if len(data) < at + 4:
            raise Unreadable("GRE_TRUNCATED")
        header, key = "gre with key", int.from_bytes(data[at : at + 4], "big")
        at += 4
    at += 4 if flags & S_FLAG else 0
    summed = data if flags & C_FLAG else b""
    if at > len(data):
        return Reading((Name(header, key, None),), "GRE_TRUNCATED")
    if ethertype in ERSPAN_VERSION:
        return _read_erspan(Name(header, key, None), flags, ethertype, data[at:], summed)
    payload = payload_by_ethertype(ethertype, data[at:])
    names = [Name(header, key, payload)]
    if ethertype == BRIDGED and flags & (C_FLAG | K_FLAG | S_FLAG) == K_FLAG:
        names.append(Name("nvgre", key >> 8, payload))
    return Reading(tuple(names), "" if payload else "GRE_PROTOCOL", summed)


def _read_erspan(name: Name, flags: int, ethertype: int, data: bytes, summed: bytes) -> Reading:
    """`name`: by which the packet is known as long as its session can't be read."""
    if not flags & S_FLAG or len(data) < 8:
        return Reading((name,), "ERSPAN_HEADER")
    session = int.from_bytes(data[2:4], "big") & 0x3FF
    end = ERSPAN_LEN[ethertype]
    if ethertype == 0x22EB and len(data) >= end and data[end - 1] & SUBHEADER_PRESENT:
        end += SUBHEADER_LEN
    payload = Payload(data[end:], None)
    is_sound = data[0] >> 4 == ERSPAN_VERSION[ethertype] and len(data) >= end
    return Reading((Name("erspan", session, payload),), "" if is_sound else "ERSPAN_HEADER", summed)
