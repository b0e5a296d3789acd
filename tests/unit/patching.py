# SPDX-License-Identifier: GPL-2.0-only
"""What the data plane does with a template, in Python: the description of bpf/abi.h (`enum patch_op`) as code.

For tests of templates. What packets have to look like, whatever the template, is the business of tests/model.
"""

from __future__ import annotations

import struct

from model.frames import ones_complement
from model.parse import parse_frame
from mptm.template import PatchOp, Template

FLOW_HASH = 0x89ABCDEF
IPV4_ID = 0x1234


def encapsulate(
    template: Template,
    frame: bytes,
    *,
    tos: int = 0,
    ttl: int = 64,
    flow_hash: int = FLOW_HASH,
    ip_id: int = IPV4_ID,
    sequence: int = 0,
    time: int = 0,
) -> bytes:
    """The outgoing frame for an inner frame whose IP header has this TOS and TTL.

    `sequence` and `time` (in 100 ns) are what the tunnel and the clock stand at.
    """
    inner = parse_frame(frame)
    strip = inner.l3 - 14 if template.untagged and inner else template.strip
    payload = inner.ip if template.is_l3 and inner else frame[strip:]
    version = payload[0] >> 4 if payload else 0
    out = bytearray(template.outer + payload)
    tos, ttl = tos & template.tos_mask, ttl & template.ttl_mask
    for patch in template.patches:
        at, length = patch.offset, len(out) + patch.bias
        match patch.op:
            case PatchOp.LEN16:
                struct.pack_into("!H", out, at, length)
            case PatchOp.FLOW16:
                struct.pack_into("!H", out, at, 49152 | flow_hash >> 18 & 0x3FFF)
            case PatchOp.IPV4_ID:
                struct.pack_into("!H", out, at, ip_id)
            case PatchOp.IPV4:
                _patch_ipv4(out, at, length, tos, ttl)
            case PatchOp.IPV6:
                first_word = struct.unpack_from("!I", out, at)[0] | tos << 20 | flow_hash & 0xFFFFF
                struct.pack_into("!IH", out, at, first_word, length)
                out[at + 7] |= ttl
            case PatchOp.INNER_MACS:
                out[at : at + 12] = frame[:12]
            case PatchOp.FLOW8:
                out[at] = flow_hash >> 24
            case PatchOp.INNER_ETHERTYPE:
                struct.pack_into("!H", out, at, 0x0800 if version == 4 else 0x86DD)
            case PatchOp.INNER_PROTOCOL:
                out[at] = 4 if version == 4 else 41
            case PatchOp.INNER_GPE:
                out[at] = 1 if version == 4 else 2
            case PatchOp.SEQUENCE:
                struct.pack_into("!I", out, at, sequence)
            case PatchOp.ERSPAN_TIME:
                struct.pack_into("!I", out, at, time)
            case PatchOp.CHECKSUM:
                struct.pack_into("!H", out, at, ones_complement(out[at + patch.bias :]))
            case PatchOp.UDP6_CHECKSUM:
                pseudo = out[at - 32 : at] + out[at + 4 : at + 6] + bytes([0, 17])
                struct.pack_into("!H", out, at + 6, ones_complement(pseudo + out[at:]) or 0xFFFF)
    return bytes(out)


def _patch_ipv4(out: bytearray, at: int, total_len: int, tos: int, ttl: int) -> None:
    """Total length, TOS and TTL are added to a checksum that was right without them (RFC 1624), as is the ID."""
    struct.pack_into("!H", out, at + 2, total_len)
    out[at + 1] |= tos
    out[at + 8] |= ttl
    template_sum = ~struct.unpack_from("!H", out, at + 10)[0] & 0xFFFF
    identification = struct.unpack_from("!H", out, at + 4)[0]
    total = template_sum + total_len + identification + tos + (ttl << 8)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", out, at + 10, ~total & 0xFFFF)
