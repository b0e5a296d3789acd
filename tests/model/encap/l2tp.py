# SPDX-License-Identifier: GPL-2.0-only
"""L2TPv3 data messages over IP and UDP: RFC 3931 §4.1.1.1, §4.1.2.1; Ethernet RFC 4719; sublayer §4.6."""

from __future__ import annotations

import struct
from typing import Any

from model import frames
from model.encap.base import Fields
from model.parse import Frame

UDP_VERSION_3 = 3
"""T = 0: a data message."""
SUBLAYER = {"none": b"", "default": bytes(4)}
"""S = 0: no sequence number."""


def under(options: Any) -> int:
    return frames.UDP if options.encap == "udp" else frames.L2TP


def l2tp(options: Any, frame: Frame, fields: Fields) -> bytes:
    session = options.session_id if options.peer_session_id is None else options.peer_session_id
    start = struct.pack("!HH", UDP_VERSION_3, 0) if options.encap == "udp" else b""
    return start + session.to_bytes(4, "big") + bytes.fromhex(options.cookie) + SUBLAYER[options.l2spec_type]
