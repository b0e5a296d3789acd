# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's gtp devices, in the guest; ip(8) makes none over IPv6, and no PDP contexts.

    gtp.py device NAME [ADDRESS]   a device over IPv4, or over IPv6 at an address of ours: the network's side (GGSN)
    gtp.py context NAME JSON...    contexts, each {"peer": outer address of the other end, "workload": inner address of
                                   its subscriber, "accepted": TEID that we accept, "sent": TEID that we send}

Netlink, linux/if_link.h and linux/gtp.h.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import struct
import sys
from itertools import count

NETLINK_ROUTE, NETLINK_GENERIC = 0, 16
RTM_NEWLINK, IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA = 16, 3, 18, 1, 2
NLM_F_EXCL, NLA_F_NESTED = 0x200, 0x8000
IFLA_GTP_ROLE, IFLA_GTP_CREATE_SOCKETS, IFLA_GTP_LOCAL6 = 4, 5, 8
GTP_ROLE_GGSN = 0
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


def request(netlink: socket.socket, kind: int, flags: int, body: bytes) -> bytes:
    """Send a message; the body of the first answer. Raises OSError with the kernel's errno."""
    head = struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, next(_numbers), 0)
    netlink.send(head + body)
    answer = netlink.recv(65536)
    if struct.unpack_from("=IH", answer)[1] != NLMSG_ERROR:
        return answer[16:]
    error = -struct.unpack_from("=i", answer, 16)[0]
    if error:
        raise OSError(error, f"{os.strerror(error)} (netlink message {kind})")
    return b""


def generic(command: int, attributes: bytes) -> bytes:
    """Body of a message of generic netlink."""
    return struct.pack("=BBH", command, 0, 0) + attributes


def add_device(netlink: socket.socket, name: str, address: str | None) -> None:
    options = number(IFLA_GTP_ROLE, GTP_ROLE_GGSN) + attribute(IFLA_GTP_CREATE_SOCKETS, b"\1")
    if address is not None:
        options += attribute(IFLA_GTP_LOCAL6, ipaddress.IPv6Address(address).packed)
    info = attribute(IFLA_INFO_KIND, b"gtp\0") + attribute(IFLA_INFO_DATA | NLA_F_NESTED, options)
    attributes = attribute(IFLA_IFNAME, name.encode() + b"\0") + attribute(IFLA_LINKINFO | NLA_F_NESTED, info)
    request(netlink, RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, bytes(16) + attributes)


def family_of(netlink: socket.socket, name: str) -> int:
    asked = generic(CTRL_CMD_GETFAMILY, attribute(CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0"))
    attributes = request(netlink, GENL_ID_CTRL, 0, asked)[4:]
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
    if workload.version == 4:
        attributes += attribute(GTPA_MS_ADDRESS, workload.packed)
    else:  # the subscriber's prefix
        attributes += attribute(GTPA_MS_ADDR6, workload.packed[:8] + bytes(8))
        attributes += attribute(GTPA_FAMILY, bytes([socket.AF_INET6]))
    attributes += number(GTPA_I_TEI, context["accepted"]) + number(GTPA_O_TEI, context["sent"])
    request(netlink, family, NLM_F_ACK | NLM_F_CREATE, generic(GTP_CMD_NEWPDP, attributes))


def main() -> None:
    match sys.argv[1:]:
        case ["device", name, *address]:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as netlink:
                add_device(netlink, name, address[0] if address else None)
        case ["context", device, *contexts]:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as netlink:
                family = family_of(netlink, "gtp")
                for context in contexts:
                    add_context(netlink, family, device, json.loads(context))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
