# SPDX-License-Identifier: GPL-2.0-only
"""VLAN and QinQ: tags behind the MAC addresses (IEEE 802.1Q-2018 §9.6; service tags 802.1ad)."""

from __future__ import annotations

import struct
from typing import Any

from model.encap.base import Fields
from model.frames import ETHERTYPE_TAG
from model.parse import Frame


def vlan(options: Any, frame: Frame, fields: Fields) -> bytes:
    return _tag(options.tpid, options.pcp, options.vid)


def qinq(options: Any, frame: Frame, fields: Fields) -> bytes:
    return _tag(options.tpid, options.pcp, options.outer_vid) + _tag(
        ETHERTYPE_TAG, options.pcp, options.inner_vid
    )


def _tag(tpid: int, pcp: int, vid: int) -> bytes:
    drop_eligible = 0
    return struct.pack("!HH", tpid, pcp << 13 | drop_eligible << 12 | vid)
