# SPDX-License-Identifier: GPL-2.0-only
"""GENEVE: RFC 8926 §3.4, §3.5. All options are walked, so the C bit adds nothing; reserved bits are ignored."""

from __future__ import annotations

from model.decap.base import Reading, Unreadable, of_one, payload_by_ethertype
from model.decap.underlay import Outer


def read(outer: Outer) -> Reading:
    data = outer.payload
    if len(data) < 8:
        raise Unreadable("GENEVE_TRUNCATED")
    if data[0] >> 6 != 0:
        raise Unreadable("GENEVE_VERSION")
    vni = int.from_bytes(data[4:7], "big")
    end = 8 + (data[0] & 0x3F) * 4
    is_control = bool(data[1] & 0x80)
    payload = payload_by_ethertype(int.from_bytes(data[2:4], "big"), data[end:])
    fault = ""
    if end > len(data):
        fault = "GENEVE_TRUNCATED"
    elif is_control:
        fault = "GENEVE_CONTROL"
    elif payload is None:
        fault = "GENEVE_PROTOCOL"
    else:
        fault = _check_options(data[8:end])
    return of_one("geneve", vni, payload, fault)


def _check_options(area: bytes) -> str:
    while area:
        option_len = 4 + (area[3] & 0x1F) * 4
        if option_len > len(area):
            return "GENEVE_OPTION_LENGTH"
        if area[2] & 0x80:
            return "GENEVE_CRITICAL"
        area = area[option_len:]
    return ""
