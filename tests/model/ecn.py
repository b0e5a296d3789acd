# SPDX-License-Identifier: GPL-2.0-only
"""Explicit congestion notification in tunnels (RFC 6040)."""

from __future__ import annotations

from model.frames import updated_checksum
from model.parse import Frame

NOT_ECT, ECT_1, ECT_0, CE = 0, 1, 2, 3
ECN_MASK = 3

LEAVING: dict[tuple[int, int], int | None] = {
    (NOT_ECT, NOT_ECT): NOT_ECT,
    (NOT_ECT, ECT_0): NOT_ECT,
    (NOT_ECT, ECT_1): NOT_ECT,
    (NOT_ECT, CE): None,
    (ECT_0, NOT_ECT): ECT_0,
    (ECT_0, ECT_0): ECT_0,
    (ECT_0, ECT_1): ECT_1,
    (ECT_0, CE): CE,
    (ECT_1, NOT_ECT): ECT_1,
    (ECT_1, ECT_0): ECT_1,
    (ECT_1, ECT_1): ECT_1,
    (ECT_1, CE): CE,
    (CE, NOT_ECT): CE,
    (CE, ECT_0): CE,
    (CE, ECT_1): CE,
    (CE, CE): CE,
}
"""(inner, outer) -> what leaves the tunnel, None: nothing does (§4.2, figure 4)."""


def encapsulated(inner_tos: int, dscp: int | str) -> int:
    """The outer TOS or traffic class: ECN is copied (§4.1, normal mode), the DSCP is given or "inherit"."""
    outer_dscp = inner_tos >> 2 if isinstance(dscp, str) else dscp
    return outer_dscp << 2 | inner_tos & ECN_MASK


def set_ecn(frame: Frame, ecn: int) -> bytes:
    """The frame with this ECN field. An IPv4 checksum that was right stays right (RFC 1624), a wrong one wrong."""
    if ecn == frame.tos & ECN_MASK:
        return frame.data
    data, at = bytearray(frame.data), frame.l3
    if frame.version == 6:
        data[at + 1] = data[at + 1] & ~(ECN_MASK << 4) & 0xFF | ecn << 4
        return bytes(data)
    before = bytes(data[at : at + 2])
    data[at + 1] = data[at + 1] & ~ECN_MASK & 0xFF | ecn
    data[at + 10 : at + 12] = updated_checksum(
        bytes(data[at + 10 : at + 12]), before, bytes(data[at : at + 2])
    )
    return bytes(data)
