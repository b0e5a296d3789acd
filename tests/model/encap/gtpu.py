# SPDX-License-Identifier: GPL-2.0-only
"""GTP-U: 3GPP TS 29.281 §5.1, §5.2; the PDU session container is TS 38.415 §5.5.2."""

from __future__ import annotations

import struct
from typing import Any

from model.encap.base import Fields
from model.parse import Frame

VERSION_1, GTP, E_FLAG = 1 << 5, 1 << 4, 1 << 2
G_PDU = 255
PDU_SESSION_CONTAINER, NO_MORE = 0x85, 0
PDU_TYPE = {"dl": 0, "ul": 1}


def gtpu(options: Any, frame: Frame, fields: Fields) -> bytes:
    optional, flags = b"", VERSION_1 | GTP
    if options.qfi is not None:
        flags |= E_FLAG
        sequence, n_pdu = 0, 0
        optional = struct.pack("!HBB", sequence, n_pdu, PDU_SESSION_CONTAINER)
        words = 1
        optional += bytes([words, PDU_TYPE[options.pdu_type] << 4, options.qfi, NO_MORE])
    length = len(optional) + len(frame.ip)
    return struct.pack("!BBHI", flags, G_PDU, length, options.teid) + optional
