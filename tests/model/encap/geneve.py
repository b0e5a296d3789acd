# SPDX-License-Identifier: GPL-2.0-only
"""GENEVE: RFC 8926 §3.4, §3.5."""

from __future__ import annotations

import struct
from typing import Any

from model.encap.base import Fields
from model.frames import ETHERTYPE_BRIDGED
from model.parse import Frame


def geneve(options: Any, frame: Frame, fields: Fields) -> bytes:
    area, critical = b"", False
    for option in options.tlvs:
        option_class, kind, data = (bytes.fromhex(part) for part in option.split(":"))
        area += option_class + kind + bytes([len(data) // 4]) + data
        critical = critical or bool(kind[0] & 0x80)
    version, is_control = 0, 0
    protocol = ETHERTYPE_BRIDGED if options.payload == "l2" else frame.ethertype
    return (
        bytes([version << 6 | len(area) // 4, is_control << 7 | critical << 6])
        + struct.pack("!H", protocol)
        + options.vni.to_bytes(3, "big")
        + b"\0"
        + area
    )
