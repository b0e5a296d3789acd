# SPDX-License-Identifier: GPL-2.0-only
"""VXLAN (RFC 7348 §5) and what grew from it: GBP (draft-smith-vxlan-group-policy-05 §2.1), GPE
(draft-ietf-nvo3-vxlan-gpe-13 §3), and NSH (RFC 8300 §2) behind GPE."""

from __future__ import annotations

import struct
from typing import Any

from model.encap.base import Fields
from model.parse import Frame

I_FLAG, P_FLAG, G_FLAG = 0x08, 0x04, 0x80
D_FLAG, A_FLAG = 0x40, 0x08
NEXT_ETHERNET, NEXT_NSH = 3, 4
NEXT_IP = {4: 1, 6: 2}


def vxlan(options: Any, frame: Frame, fields: Fields) -> bytes:
    return bytes([I_FLAG, 0, 0, 0]) + _vni(options.vni)


def vxlan_gbp(options: Any, frame: Frame, fields: Fields) -> bytes:
    policy = (D_FLAG if options.dont_learn else 0) | (A_FLAG if options.policy_applied else 0)
    return struct.pack("!BBH", G_FLAG | I_FLAG, policy, options.group_policy_id) + _vni(options.vni)


def vxlan_gpe(options: Any, frame: Frame, fields: Fields) -> bytes:
    return _gpe(options.vni, _next_protocol(options, frame))


def nsh(options: Any, frame: Frame, fields: Fields) -> bytes:
    context = bytes(16) if options.md_type == 1 else b""
    words = 2 + len(context) // 4
    base = struct.pack("!H", options.nsh_ttl << 6 | words)
    base += bytes([options.md_type, _next_protocol(options, frame)])
    path = options.spi.to_bytes(3, "big") + bytes([options.si])
    return _gpe(options.vni, NEXT_NSH) + base + path + context


def _vni(vni: int) -> bytes:
    return vni.to_bytes(3, "big") + b"\0"


def _gpe(vni: int, next_protocol: int) -> bytes:
    return bytes([I_FLAG | P_FLAG, 0, 0, next_protocol]) + _vni(vni)


def _next_protocol(options: Any, frame: Frame) -> int:
    return NEXT_ETHERNET if options.payload == "l2" else NEXT_IP[frame.version]
