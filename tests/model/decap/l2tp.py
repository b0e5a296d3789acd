# SPDX-License-Identifier: GPL-2.0-only
"""L2TPv3 data messages: RFC 3931 §4.1.1.1 (over IP), §4.1.2.1 (over UDP). Cookie and sublayer: `strip_cookie`."""

from __future__ import annotations

from typing import Any

from model.decap.base import Control, Payload, Reading, Unreadable, of_one
from model.decap.underlay import Outer

T_FLAG, VERSION = 0x8000, 0x000F
SUBLAYER_LEN = {"none": 0, "default": 4}


def read_over_ip(outer: Outer) -> Reading:
    return _read_session("l2tp over ip", outer.payload)


def read_over_udp(outer: Outer) -> Reading:
    data = outer.payload
    if len(data) < 8:
        raise Unreadable("L2TP_TRUNCATED")
    flags = int.from_bytes(data[:2], "big")
    if flags & T_FLAG or flags & VERSION != 3:
        raise Control
    return _read_session("l2tp over udp", data[4:])


def _read_session(header: str, data: bytes) -> Reading:
    if len(data) < 4:
        raise Unreadable("L2TP_TRUNCATED")
    session = int.from_bytes(data[:4], "big")
    if not session:
        raise Control  # §4.1.1.2: the control connection
    return of_one(header, session, Payload(data[4:], None))


def strip_cookie(options: Any, data: bytes) -> tuple[bytes, str]:
    """The frame behind cookie and sublayer, whose lengths only the session tells (§4.1), and what is wrong."""
    cookie = bytes.fromhex(options.cookie if options.peer_cookie is None else options.peer_cookie)
    end = len(cookie) + SUBLAYER_LEN[options.l2spec_type]
    if len(data) < len(cookie):
        return b"", "L2TP_TRUNCATED"
    if data[: len(cookie)] != cookie:
        return b"", "L2TP_COOKIE"
    return data[end:], "L2TP_TRUNCATED" if len(data) < end else ""
