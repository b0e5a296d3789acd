# SPDX-License-Identifier: GPL-2.0-only
"""VLAN tags: IEEE 802.1Q-2018 §9.6. Two tags are QinQ to whoever wants both, else a VLAN with a tag inside."""

from __future__ import annotations

from model.decap.base import Name, Payload, Reading, Unreadable
from model.decap.underlay import Outer

VID = 0x0FFF
CUSTOMER_TAG = 0x8100


def read(outer: Outer) -> Reading:
    """The inner frame is the outer one without its tags; priority and DEI are ignored."""
    data, macs = outer.payload, outer.destination + outer.source
    if len(data) < 4:
        raise Unreadable("VLAN_TRUNCATED")
    vid = int.from_bytes(data[:2], "big") & VID
    names = [Name("vlan", vid, Payload(macs + data[2:], None))]
    if int.from_bytes(data[2:4], "big") == CUSTOMER_TAG and len(data) >= 8:
        inner_vid = int.from_bytes(data[4:6], "big") & VID
        names.insert(0, Name("qinq", vid << 12 | inner_vid, Payload(macs + data[6:], None)))
    return Reading(tuple(names))
