# SPDX-License-Identifier: GPL-2.0-only
"""GTP-U: 3GPP TS 29.281 §5.1, §5.2. Messages other than G-PDUs and echo requests are for a daemon of the host."""

from __future__ import annotations

import struct

from model import frames
from model.decap.base import Control, Name, Payload, Reading, Unreadable, of_one
from model.decap.underlay import Outer

VERSION_AND_TYPE, VERSION_1_GTP = 0xF0, 0x30
E_FLAG, S_FLAG, PN_FLAG = 4, 2, 1
ECHO_REQUEST, ECHO_RESPONSE, G_PDU = 1, 2, 255
ECHO = "gtpu echo"
"""What a tunnel accepts in this name are its remote's echo requests (§7.2.1), whatever their TEID."""
RECOVERY, RESTART_COUNTER = 14, 0
"""§8.2."""
ANSWER_TTL = 64
PDU_SESSION_CONTAINER = 0x85
COMPREHENSION_REQUIRED = 0x80
"""Of an endpoint, which we are (§5.2.1, figure 5.2.1-2: 10 and 11)."""
EXTENSIONS_MAX = 4
"""That the data plane follows."""


def read(outer: Outer) -> Reading:
    data = outer.payload
    if len(data) < 8:
        raise Unreadable("GTPU_TRUNCATED")
    flags, message, length, teid = struct.unpack_from("!BBHI", data)
    if flags & VERSION_AND_TYPE != VERSION_1_GTP or message not in (G_PDU, ECHO_REQUEST):
        raise Control
    if message == ECHO_REQUEST:
        has_sequence = flags & S_FLAG and len(data) >= 12
        sequence = int.from_bytes(data[8:10], "big") if has_sequence else 0
        return Reading((Name(ECHO, 0, None),), echo=sequence)
    if 8 + length > len(data):
        return of_one("gtpu", teid, fault="GTPU_HEADER")
    data = data[: 8 + length]
    at, following = 8, 0
    if flags & (E_FLAG | S_FLAG | PN_FLAG):
        if len(data) < 12:
            return of_one("gtpu", teid, fault="GTPU_TRUNCATED")
        at, following = 12, data[11] if flags & E_FLAG else 0
    for _ in range(EXTENSIONS_MAX):
        if not following:
            break
        size = data[at] * 4 if at < len(data) else 0
        end = at + size
        is_known = following == PDU_SESSION_CONTAINER
        if not size or end > len(data) or not outer.is_within(end):
            return of_one("gtpu", teid, fault="GTPU_EXTENSION")
        if following & COMPREHENSION_REQUIRED and not is_known:
            return of_one("gtpu", teid, fault="GTPU_EXTENSION")
        at, following = end, data[end - 1]
    return of_one("gtpu", teid, Payload(data[at:], 0), "GTPU_EXTENSION" if following else "")


def echo_response(frame: bytes, outer: Outer, sequence: int) -> bytes:
    """§7.2.2: back to where the request came from, address by address, port by port (§4.4.2.2); the TEID is zero."""
    recovery = bytes([RECOVERY, RESTART_COUNTER])
    optional = struct.pack("!HBB", sequence, 0, 0)
    message = struct.pack("!BBHI", VERSION_1_GTP | S_FLAG, ECHO_RESPONSE, len(optional + recovery), 0)
    source_port, destination_port = struct.unpack_from("!HH", outer.udp_datagram)
    datagram = frames.udp(destination_port, source_port, message + optional + recovery)
    ends = outer.destination, outer.source
    pseudo_header = frames.ipv4_pseudo_header if outer.version == 4 else frames.ipv6_pseudo_header
    checksum = frames.udp_checksum(pseudo_header(*ends, len(datagram), frames.UDP), datagram)
    datagram = datagram[:6] + checksum.to_bytes(2, "big") + datagram[8:]
    if outer.version == 4:
        packet = frames.ipv4(
            *ends, frames.UDP, datagram, tos=0, ttl=ANSWER_TTL, identification=0, dont_fragment=True
        )
    else:
        packet = frames.ipv6(*ends, frames.UDP, datagram, traffic_class=0, flow_label=0, hop_limit=ANSWER_TTL)
    return frame[6:12] + frame[:6] + frame[12:14] + packet
