# SPDX-License-Identifier: GPL-2.0-only
"""Little headers, or none: IP in IP (RFC 2003, 4213, 2473), FOU, GUE (draft-ietf-intarea-gue-09 §3), EtherIP
(RFC 3378 §3), MPLS in UDP (RFC 7510 §3, RFC 3032 §2.1)."""

from __future__ import annotations

import struct
from typing import Any

from model.encap.base import Fields
from model.frames import ETHERIP, IPV4, IPV6
from model.parse import Frame


def nothing(options: Any, frame: Frame, fields: Fields) -> bytes:
    return b""


def carried_by_fou(options: Any) -> frozenset[int]:
    return frozenset({"ipv4": (4,), "ipv6": (6,), "any": (4, 6)}[options.inner])


def gue(options: Any, frame: Frame, fields: Fields) -> bytes:
    if options.variant == 1:
        return b""
    variant, is_control, words, flags = 0, 0, 0, 0
    protocol = IPV4 if frame.version == 4 else IPV6
    if options.payload == "l2":
        protocol = ETHERIP
    header = struct.pack("!BBH", variant << 6 | is_control << 5 | words, protocol, flags)
    return header + etherip(options, frame, fields) if options.payload == "l2" else header


def etherip(options: Any, frame: Frame, fields: Fields) -> bytes:
    version, reserved = 3, 0
    return struct.pack("!H", version << 12 | reserved)


def mpls(options: Any, frame: Frame, fields: Fields) -> bytes:
    stack = b""
    for place, label in enumerate(options.labels, 1):
        is_bottom = place == len(options.labels)
        entry = label << 12 | options.tc << 9 | is_bottom << 8 | options.label_ttl
        stack += entry.to_bytes(4, "big")
    return stack
