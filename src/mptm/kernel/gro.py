# SPDX-License-Identifier: GPL-2.0-only
"""Idle kernel tunnel devices, for whose UDP ports the kernel joins the segments of tunnel packets (GRO).

A `vxlan external` device opens a socket on its port, and with the socket comes GRO for what arrives there. It has a VNI
filter (Linux 5.18) with no VNI in it, so no packet ever comes out of it. Messages are made by hand, as pyroute2 has no
VNI filter (include/uapi/linux/if_link.h).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable

from mptm.errors import KernelError
from mptm.gro import PREFIX, device_of
from mptm.kernel.netlink import open_netlink

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC = 3, 18, 20, 26
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE = 8, 1
_VXLAN_ID, _VXLAN_LEARNING, _VXLAN_PORT = 1, 7, 15
_VXLAN_UDP_ZERO_CSUM6_RX, _VXLAN_COLLECT_METADATA, _VXLAN_VNIFILTER = 20, 25, 30
_TAKEN = (errno.EADDRINUSE, errno.EEXIST)
_NOT_HERE = (errno.EOPNOTSUPP, errno.EINVAL)


def owned(instance: str) -> set[int]:
    """Ports whose device an instance made, in this network namespace; of a command that was killed, too."""
    with open_netlink() as netlink:
        found = {
            link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_IFALIAS") or "" for link in netlink.get_links()
        }
    return {
        int(name.removeprefix(PREFIX))
        for name, alias in found.items()
        if name.startswith(PREFIX)
        and name.removeprefix(PREFIX).isdecimal()
        and alias in ("", _alias(instance))
    }


def bring_to(instance: str, ports: Iterable[int]) -> set[int]:
    """Let there be devices for these UDP ports and no others of the instance; the ports that have one are returned.

    A port that somebody else's device or socket has stays without, and so does every port where the kernel has no VNI
    filter. Raises KernelError.
    """
    wanted, present = set(ports), owned(instance)
    for port in present - wanted:
        _remove(device_of(port))
    return {port for port in wanted if _make(instance, port)}


def _make(instance: str, port: int) -> bool:
    name = device_of(port)
    options = b"".join(
        (
            _attribute(_VXLAN_ID, struct.pack("=I", 0)),
            _attribute(_VXLAN_LEARNING, b"\0"),
            _attribute(_VXLAN_PORT, struct.pack("!H", port)),
            _attribute(_VXLAN_UDP_ZERO_CSUM6_RX, b"\1"),
            _attribute(_VXLAN_COLLECT_METADATA, b"\1"),
            _attribute(_VXLAN_VNIFILTER, b"\1"),
        )
    )
    kind = _attribute(_IFLA_INFO_KIND, b"vxlan") + _attribute(_IFLA_INFO_DATA, options)
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        number = _send(
            _RTM_NEWLINK,
            _attribute(_IFLA_IFNAME, name.encode() + b"\0") + _attribute(_IFLA_LINKINFO, kind),
            flags=_NLM_F_CREATE | _NLM_F_EXCL,
        )
        if number in _TAKEN or number in _NOT_HERE:
            return False
        _check(number, f"{name} can't be made")
        index = socket.if_nametoindex(name)
    inet6 = _attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes((_IN6_ADDR_GEN_MODE_NONE,)))
    settings = _attribute(_IFLA_IFALIAS, _alias(instance).encode() + b"\0") + _attribute(
        _IFLA_AF_SPEC, _attribute(socket.AF_INET6, inet6)
    )
    _check(
        _send(_RTM_NEWLINK, settings, index=index, change=_IFF_NOARP, up=_IFF_NOARP), f"{name} can't be set"
    )
    number = _send(_RTM_NEWLINK, b"", index=index, change=_IFF_UP, up=_IFF_UP)
    if number in _TAKEN:
        _remove(name)
        return False
    _check(number, f"{name} can't be brought up")
    return True


def _remove(name: str) -> None:
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return
    number = _send(_RTM_DELLINK, b"", index=index)
    if number != errno.ENODEV:
        _check(number, f"{name} can't be deleted")


def _alias(instance: str) -> str:
    """What a device says of whose it is."""
    return f"GRO for MPTM, instance {instance}"


def _attribute(kind: int, payload: bytes) -> bytes:
    """struct rtattr, padded."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _send(
    message: int, attributes: bytes, *, index: int = 0, change: int = 0, up: int = 0, flags: int = 0
) -> int:
    """Send an RTM_*LINK message; the errno of the answer, 0: done."""
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, up, change) + attributes
    header = struct.pack("=IHHII", 16 + len(body), message, _NLM_F_REQUEST | _NLM_F_ACK | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        netlink.send(header + body)
        while True:
            answer = netlink.recv(1 << 16)
            if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
                return -int(struct.unpack_from("=i", answer, 16)[0])


def _check(number: int, message: str) -> None:
    if number:
        raise KernelError(message, number, "run it as root" if os.geteuid() else None)
