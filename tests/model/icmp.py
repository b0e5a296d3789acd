# SPDX-License-Identifier: GPL-2.0-only
"""ICMP that the node sends itself, from a network's gateway address: errors about packets that are too big (RFC 792,
RFC 1191 §4; RFC 4443 §3.2), and answers to pings (RFC 792; RFC 4443 §4)."""

from __future__ import annotations

import ipaddress
import struct

from model import frames
from model.frames import ICMP, ICMPV6
from model.parse import Frame

UNREACHABLE, FRAGMENTATION_NEEDED = 3, 4
PACKET_TOO_BIG = 2
ECHO_REPLY, ECHO_REQUEST = 0, 8
ECHO_REQUEST_V6, ECHO_REPLY_V6 = 128, 129
ERRORS = {3, 4, 5, 11, 12}
"""Unreachable, source quench, redirect, time exceeded, parameter problem (RFC 1122 §3.2.2)."""
REDIRECT_V6 = 137
ANSWER_TTL = 64
MTU_MIN = {4: 68, 6: 1280}
"""No link has less, so nobody is told of less: RFC 791 §3.2, RFC 8200 §5."""
QUOTED = {4: 576 - 20 - 8, 6: 1280 - 40 - 8}
"""Bytes of the packet at most: RFC 1812 §4.3.2.3, RFC 4443 §2.4 (c)."""


def too_big(frame: Frame, mtu: int, gateway: bytes, mac: bytes) -> bytes | None:
    """What the sender of a frame is told, tags and all: `mtu` bytes of an IP packet would have fit. None: nothing."""
    if not _deserves_error(frame):
        return None
    mtu = max(mtu, MTU_MIN[frame.version])
    quoted = frame.ip[: QUOTED[frame.version]]
    if frame.version == 4:
        rest = struct.pack("!HH", 0, mtu) + quoted
        start = bytes([UNREACHABLE, FRAGMENTATION_NEEDED])
        message = start + frames.ones_complement(start + b"\0\0" + rest).to_bytes(2, "big") + rest
        packet = frames.ipv4(
            gateway,
            frame.source,
            ICMP,
            message,
            tos=0,
            ttl=ANSWER_TTL,
            identification=0,
            dont_fragment=True,
        )
    else:
        rest = struct.pack("!I", mtu) + quoted
        start = bytes([PACKET_TOO_BIG, 0])
        pseudo = frames.ipv6_pseudo_header(gateway, frame.source, 4 + len(rest), ICMPV6)
        message = start + frames.ones_complement(pseudo + start + b"\0\0" + rest).to_bytes(2, "big") + rest
        packet = frames.ipv6(
            gateway, frame.source, ICMPV6, message, traffic_class=0, flow_label=0, hop_limit=ANSWER_TTL
        )
    return frame.data[6:12] + mac + frame.data[12 : frame.l3] + packet


def _deserves_error(frame: Frame) -> bool:
    """RFC 1122 §3.2.2, RFC 4443 §2.4 (e): no errors about errors, later fragments, groups, or to nobody."""
    if not is_one_host(frame.source):
        return False
    message_type = frame.data[frame.transport] if frame.transport < frame.end else None
    if frame.version == 6:
        # A packet that is too big is told of even if it was for a group (e.3).
        is_error = message_type is not None and (message_type < 128 or message_type == REDIRECT_V6)
        return not (frame.protocol == ICMPV6 and is_error)
    fragment = int.from_bytes(frame.data[frame.l3 + 6 : frame.l3 + 8], "big")
    if not fragment & frames.DONT_FRAGMENT or fragment & 0x1FFF:
        return False
    if frame.data[0] & 1 or not is_one_host(frame.destination):
        return False
    return not (frame.protocol == ICMP and message_type in ERRORS)


def is_one_host(address: bytes) -> bool:
    """Not nobody, a group, everybody or oneself."""
    host = ipaddress.ip_address(address)
    if host.version == 4 and address[0] >= 240:
        return False
    return not (host.is_unspecified or host.is_multicast or host.is_loopback)


def echo_reply(frame: Frame, mac: bytes) -> bytes | None:
    """The answer to a ping; None: it is none. All but what has to change stays (RFC 1122 §3.2.2.6)."""
    length = frame.end - frame.transport
    request, reply, protocol = (
        (ECHO_REQUEST, ECHO_REPLY, ICMP) if frame.version == 4 else (ECHO_REQUEST_V6, ECHO_REPLY_V6, ICMPV6)
    )
    if frame.protocol != protocol or length < 8 or frame.is_fragment or not is_one_host(frame.source):
        return None
    if frame.version == 4 and frame.transport != frame.l3 + 20:
        return None  # options are the kernel's
    if frame.data[frame.transport : frame.transport + 2] != bytes([request, 0]):
        return None
    made = bytearray(frame.data)
    made[:12] = frame.data[6:12] + mac
    made[frame.transport] = reply
    checksum_at = frame.transport + 2
    made[checksum_at : checksum_at + 2] = frames.updated_checksum(
        frame.data[checksum_at : checksum_at + 2], bytes([request, 0]), bytes([reply, 0])
    )
    at = frame.l3
    if frame.version == 4:
        made[at + 10 : at + 12] = frames.updated_checksum(
            frame.data[at + 10 : at + 12], bytes([frame.ttl, 0]), bytes([ANSWER_TTL, 0])
        )
        made[at + 8] = ANSWER_TTL
        made[at + 12 : at + 20] = frame.destination + frame.source
    else:
        made[at + 7] = ANSWER_TTL
        made[at + 8 : at + 40] = frame.destination + frame.source
    return bytes(made)
