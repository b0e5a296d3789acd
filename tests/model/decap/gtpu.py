# SPDX-License-Identifier: GPL-2.0-only
"""GTP-U: 3GPP TS 29.281 §5.1, §5.2. Messages other than G-PDU are for a daemon of the host."""

from __future__ import annotations

import struct

from model.decap.base import Control, Payload, Reading, Unreadable, of_one
from model.decap.underlay import Outer

VERSION_AND_TYPE, VERSION_1_GTP = 0xF0, 0x30
E_FLAG, S_FLAG, PN_FLAG = 4, 2, 1
G_PDU = 255
PDU_SESSION_CONTAINER = 0x85
COMPREHENSION_REQUIRED = 0x80
"""Of an endpoint, which we are (§5.2.1, figure 5.2.1-2: 10 and 11)."""
EXTENSIONS_MAX = 4
"""That the data plane follows."""


def read(outer: Outer) -> Reading:
    data = outer.payload
    if len(data) < 8:
        raise Unreadable("GTPU_TRUNCATED")
    flags, message, length, teid = struct.unpack_from("!BBHI", data)
    if flags & VERSION_AND_TYPE != VERSION_1_GTP or message != G_PDU:
        raise Control
    if 8 + length > len(data):
        return of_one("gtpu", teid, fault="GTPU_HEADER")
    data = data[: 8 + length]
    at, following = 8, 0
    if flags & (E_FLAG | S_FLAG | PN_FLAG):
        if len(data) < 12:
            return of_one("gtpu", teid, fault="GTPU_TRUNCATED")
        at, following = 12, data[11] if flags & E_FLAG else 0
    for _ in range(EXTENSIONS_MAX):
        if not following:
            break
        size = data[at] * 4 if at < len(data) else 0
        end = at + size
        is_known = following == PDU_SESSION_CONTAINER
        if not size or end > len(data) or not outer.is_within(end):
            return of_one("gtpu", teid, fault="GTPU_EXTENSION")
        if following & COMPREHENSION_REQUIRED and not is_known:
            return of_one("gtpu", teid, fault="GTPU_EXTENSION")
        at, following = end, data[end - 1]
    return of_one("gtpu", teid, Payload(data[at:], 0), "GTPU_EXTENSION" if following else "")
