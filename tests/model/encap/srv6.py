# SPDX-License-Identifier: GPL-2.0-only
"""SRv6: RFC 8986 §5.1 (H.Encaps), §5.2 (H.Encaps.Red), §5.3 (H.Encaps.L2); the header is RFC 8754 §2."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

from model.encap.base import Fields
from model.frames import ETHERNET, IPV4, IPV6, ROUTING
from model.parse import Frame

SEGMENT_ROUTING = 4


def carried(options: Any) -> frozenset[int] | None:
    return None if options.mode == "l2" else frozenset((4, 6))


def under(options: Any) -> int:
    """Whatever follows, it isn't UDP: `next_header` says what."""
    return 0


def listed(options: Any) -> int:
    """How many segments stand in the header: H.Encaps.Red leaves out the first, which is the destination."""
    count = max(1, len(options.segments))
    return count - 1 if options.mode == "reduced" else count


def next_header(options: Any, frame: Frame) -> int:
    """Of the IPv6 header."""
    return ROUTING if listed(options) else _payload(options, frame)


def _payload(options: Any, frame: Frame) -> int:
    if options.mode == "l2":
        return ETHERNET
    return IPV4 if frame.version == 4 else IPV6


def srv6(options: Any, frame: Frame, fields: Fields) -> bytes:
    count = listed(options)
    if not count:
        return b""
    segments = [ipaddress.ip_address(segment).packed for segment in options.segments]
    segments = segments or [fields.destination]
    segments_left, last_entry, flags, tag = len(segments) - 1, count - 1, 0, 0
    start = struct.pack(
        "!BBBBBBH",
        _payload(options, frame),
        2 * count,  # units of 8 bytes behind the first 8
        SEGMENT_ROUTING,
        segments_left,
        last_entry,
        flags,
        tag,
    )
    return start + b"".join(reversed(segments[-count:]))
