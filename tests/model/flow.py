# SPDX-License-Identifier: GPL-2.0-only
"""The hash of an inner flow. Which function it is, no standard says: this is the one that bpf/packet.h states."""

from __future__ import annotations

from model.parse import Frame

_MASK = 2**64 - 1


def hash_flow(frame: Frame) -> int:
    """32 bits of addresses, protocol and ports; 0 for what is no IP packet."""
    source, destination = frame.source, frame.destination
    number = (_word(source) + (frame.protocol << 40)) * 0x9E3779B97F4A7C15
    number += _word(destination) * 0xC2B2AE3D27D4EB4F + _word(frame.ports) * 0x165667B19E3779F9
    number += _word(source[8:]) * 0x27D4EB2F165667C5 + _word(destination[8:]) * 0x85EBCA77C2B2AE63
    number &= _MASK
    number ^= number >> 32
    return (number * 0x9E3779B97F4A7C15 & _MASK) >> 32


def source_port(flow_hash: int) -> int:
    """49152 to 65535: RFC 7348 §5, RFC 8926 §3.3."""
    return 49152 + (flow_hash >> 18 & 0x3FFF)


def flow_label(flow_hash: int) -> int:
    """20 bits: RFC 6438 §2."""
    return flow_hash & 0xFFFFF


def flow_id(flow_hash: int) -> int:
    """8 bits: RFC 7637 §3.2."""
    return flow_hash >> 24


def _word(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")
