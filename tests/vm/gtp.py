# SPDX-License-Identifier: GPL-2.0-only
"""PDP contexts of the kernel's gtp devices, which ip(8) has no command for: `gtp.py DEVICE JSON...`, in the guest.

Each JSON object is a context: {"peer": outer address of the other end, "workload": inner address of its subscriber,
"accepted": TEID that we accept, "sent": TEID that we send}. Generic netlink, linux/gtp.h.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
import sys
from itertools import count

NETLINK_GENERIC = 16
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE, NLMSG_ERROR = 1, 4, 0x400, 2
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
GTP_CMD_NEWPDP = 0
GTPA_LINK, GTPA_VERSION, GTPA_PEER_ADDRESS, GTPA_MS_ADDRESS = 1, 2, 4, 5
GTPA_I_TEI, GTPA_O_TEI, GTPA_PEER_ADDR6, GTPA_MS_ADDR6, GTPA_FAMILY = 8, 9, 11, 12, 13
VERSION_1 = 1

_numbers = count(1)


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def request(netlink: socket.socket, family: int, command: int, flags: int, attributes: bytes) -> bytes:
    """Send a message; the first answer's attributes. Raises OSError with the kernel's errno."""
    body = struct.pack("=BBH", command, 0, 0) + attributes
    netlink.send(
        struct.pack("=IHHII", 16 + len(body), family, NLM_F_REQUEST | flags, next(_numbers), 0) + body
    )
    answer = netlink.recv(65536)
    _, kind = struct.unpack_from("=IH", answer)
    if kind == NLMSG_ERROR:
        error = -struct.unpack_from("=i", answer, 16)[0]
        if error:
            raise OSError(error, f"command {command} of netlink family {family}")
        return b""
    return answer[20:]


def family_of(netlink: socket.socket, name: str) -> int:
    attributes = request(
        netlink,
        GENL_ID_CTRL,
        CTRL_CMD_GETFAMILY,
        0,
        attribute(CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0"),
    )
    while attributes:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind == CTRL_ATTR_FAMILY_ID:
            return int(struct.unpack_from("=H", attributes, 4)[0])
        attributes = attributes[-(-length // 4) * 4 :]
    raise LookupError(f"no netlink family {name}")


def add_context(netlink: socket.socket, family: int, device: str, context: dict) -> None:
    peer, workload = (ipaddress.ip_address(context[name]) for name in ("peer", "workload"))
    attributes = number(GTPA_LINK, socket.if_nametoindex(device)) + number(GTPA_VERSION, VERSION_1)
    attributes += attribute(GTPA_PEER_ADDRESS if peer.version == 4 else GTPA_PEER_ADDR6, peer.packed)
    attributes += attribute(GTPA_MS_ADDRESS if workload.version == 4 else GTPA_MS_ADDR6, workload.packed)
    attributes += number(GTPA_I_TEI, context["accepted"]) + number(GTPA_O_TEI, context["sent"])
    if workload.version == 6:
        attributes += attribute(GTPA_FAMILY, bytes([socket.AF_INET6]))
    request(netlink, family, GTP_CMD_NEWPDP, NLM_F_ACK | NLM_F_CREATE, attributes)


def main() -> None:
    device, *contexts = sys.argv[1:]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as netlink:
        family = family_of(netlink, "gtp")
        for context in contexts:
            add_context(netlink, family, device, json.loads(context))


if __name__ == "__main__":
    main()
