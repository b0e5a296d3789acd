# SPDX-License-Identifier: GPL-2.0-only
"""Who has this address? ARP (RFC 826, 5227) and IPv6 neighbour discovery (RFC 4861 §4.3, §4.4, §7.1.1, §7.2.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from model import frames
from model.frames import ETHERTYPE_ARP, ICMPV6
from model.parse import Frame

REQUEST, REPLY = 1, 2
SOLICIT, ADVERT = 135, 136
SOURCE_LINK_LAYER, TARGET_LINK_LAYER = 1, 2
HOP_LIMIT = 255
SOLICITED, OVERRIDE = 0x40000000, 0x20000000
ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
ALL_NODES_MAC = bytes.fromhex("333300000001")
SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")
OPTIONS_MAX = 4
"""Solicitations with more are left to the kernel."""


@dataclass(frozen=True)
class Question:
    """Addresses are packed. is_probe: the asker looks for a duplicate of what will be its own address."""

    version: int
    asker_mac: bytes
    asker: bytes
    target: bytes
    is_probe: bool


def parse_question(frame: Frame) -> Question | None:
    """None: nobody asks here, or not in a way that is to be answered."""
    if frame.ethertype == ETHERTYPE_ARP:
        return _parse_arp(frame)
    if frame.version == 6 and frame.protocol == ICMPV6:
        return _parse_solicitation(frame)
    return None


def _parse_arp(frame: Frame) -> Question | None:
    data = frame.data[frame.l3 : frame.l3 + 28]
    if len(data) < 28 or data[:8] != struct.pack("!HHBBH", 1, 0x0800, 6, 4, REQUEST):
        return None
    asker_mac, asker, target = data[8:14], data[14:18], data[24:28]
    if asker == target:
        return None  # an announcement asks nothing
    return Question(4, asker_mac, asker, target, is_probe=not any(asker))


def _parse_solicitation(frame: Frame) -> Question | None:
    """RFC 4861 §7.1.1: the whole list."""
    message = frame.data[frame.transport : frame.end]
    pseudo = frames.ipv6_pseudo_header(frame.source, frame.destination, len(message), ICMPV6)
    if frame.ttl != HOP_LIMIT or len(message) < 24 or not frames.is_summed_right(pseudo + message):
        return None
    kind, code, target = message[0], message[1], message[8:24]
    if kind != SOLICIT or code != 0 or target[0] == 0xFF:
        return None
    options = _options(message[24:])
    if options is None or len(options) > OPTIONS_MAX:
        return None
    is_probe = not any(frame.source)
    if is_probe and (frame.destination[:13] != SOLICITED_NODE or SOURCE_LINK_LAYER in options):
        return None
    return Question(6, frame.data[6:12], frame.source, target, is_probe)


def _options(area: bytes) -> list[int] | None:
    """Their types; None: they don't fill the area."""
    kinds = []
    while area:
        size = area[1] * 8 if len(area) > 1 else 0
        if not size or size > len(area):
            return None
        kinds.append(area[0])
        area = area[size:]
    return kinds


def answer(frame: Frame, question: Question, mac: bytes, *, is_own: bool) -> bytes:
    """The answer in place of the question, tags and all: `mac` has the address, which is our own or somebody's."""
    start = frame.data[12 : frame.l3]
    if question.version == 4:
        padding = frame.data[frame.l3 + 28 :]
        reply = struct.pack("!HHBBH", 1, 0x0800, 6, 4, REPLY) + mac + question.target
        return frame.data[6:12] + mac + start + reply + question.asker_mac + question.asker + padding
    # Who answers for somebody else doesn't override what that one says itself (§7.2.8).
    to_mac, to, flags = question.asker_mac, question.asker, SOLICITED
    if question.is_probe:
        to_mac, to, flags = ALL_NODES_MAC, ALL_NODES, 0  # §7.2.4; RFC 2464 §7
    flags |= OVERRIDE if is_own else 0
    option = bytes([TARGET_LINK_LAYER, 1]) + mac
    rest = flags.to_bytes(4, "big") + question.target + option
    pseudo = frames.ipv6_pseudo_header(question.target, to, 4 + len(rest), ICMPV6)
    checksum = frames.ones_complement(pseudo + bytes([ADVERT, 0, 0, 0]) + rest)
    advert = struct.pack("!BBH", ADVERT, 0, checksum) + rest
    packet = frames.ipv6(
        question.target, to, ICMPV6, advert, traffic_class=0, flow_label=0, hop_limit=HOP_LIMIT
    )
    return to_mac + mac + start + packet
