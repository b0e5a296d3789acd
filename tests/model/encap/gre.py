# SPDX-License-Identifier: GPL-2.0-only
"""GRE (RFC 2784; key and sequence RFC 2890), in UDP (RFC 8086), NVGRE (RFC 7637 §3.2), ERSPAN II and III
(draft-foschiano-erspan-03 §4.2, §4.3)."""

from __future__ import annotations

import struct
from typing import Any

from model import flow
from model.encap.base import Fields
from model.frames import ETHERTYPE_BRIDGED, ones_complement
from model.parse import Frame

C_FLAG, K_FLAG, S_FLAG = 0x8000, 0x2000, 0x1000
ERSPAN_II, ERSPAN_III = 0x88BE, 0x22EB


def gre(options: Any, frame: Frame, fields: Fields) -> bytes:
    return _gre(options, frame, fields, is_l3=True)


def gretap(options: Any, frame: Frame, fields: Fields) -> bytes:
    return _gre(options, frame, fields, is_l3=False)


def gre_udp(options: Any, frame: Frame, fields: Fields) -> bytes:
    return _gre(options, frame, fields, is_l3=options.payload == "l3")


def _gre(options: Any, frame: Frame, fields: Fields, *, is_l3: bool) -> bytes:
    flags = 0
    after_checksum = b""
    if options.key is not None:
        flags |= K_FLAG
        after_checksum += options.key.to_bytes(4, "big")
    if options.sequence:
        flags |= S_FLAG
        after_checksum += (fields.sequence & 0xFFFFFFFF).to_bytes(4, "big")
    ethertype = frame.ethertype if is_l3 else ETHERTYPE_BRIDGED
    if not options.checksum:
        return struct.pack("!HH", flags, ethertype) + after_checksum
    start = struct.pack("!HH", flags | C_FLAG, ethertype)
    checksum = ones_complement(start + bytes(4) + after_checksum + frame.summed(is_l3=is_l3))
    return start + struct.pack("!HH", checksum, 0) + after_checksum


def nvgre(options: Any, frame: Frame, fields: Fields) -> bytes:
    key = options.vsid.to_bytes(3, "big") + bytes([flow.flow_id(fields.flow_hash)])
    return struct.pack("!HH", K_FLAG, ETHERTYPE_BRIDGED) + key


def erspan(options: Any, frame: Frame, fields: Fields) -> bytes:
    sequence = (fields.sequence & 0xFFFFFFFF).to_bytes(4, "big")
    is_truncated = 0
    if options.version == 2:
        # Ver 1; En 3: a tag, if any, is inside the frame
        first = 1 << 12 | options.vlan
        second = options.cos << 13 | 3 << 11 | is_truncated << 10 | options.session
        header = struct.pack("!HHI", first, second, options.index)
        return struct.pack("!HH", S_FLAG, ERSPAN_II) + sequence + header
    # Ver 2; BSO 0; P: an Ethernet frame follows; FT 0; Gra 1: units of 100 ns; O: no subheader
    first = 2 << 12 | options.vlan
    second = options.cos << 13 | is_truncated << 10 | options.session
    is_frame, frame_type, is_egress, granularity, has_subheader = 1, 0, options.direction == "egress", 1, 0
    last = is_frame << 15 | frame_type << 10 | options.hardware_id << 4
    last |= is_egress << 3 | granularity << 1 | has_subheader
    header = struct.pack("!HHIHH", first, second, fields.time & 0xFFFFFFFF, options.sgt, last)
    return struct.pack("!HH", S_FLAG, ERSPAN_III) + sequence + header
