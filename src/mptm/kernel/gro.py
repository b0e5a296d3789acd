# SPDX-License-Identifier: GPL-2.0-only
"""Idle kernel tunnel devices, for whose UDP ports the kernel joins the segments of tunnel packets (GRO).

A vxlan device opens a socket on its port, and with the socket comes GRO for what arrives there. Ours is a plain one, so
other plain ones, of whichever VNI, share the socket with it, whoever comes first (vxlan_find_sock in the kernel's
drivers/net/vxlan/vxlan_core.c); devices of another kind, or with `external` or `udp6zerocsumrx`, can't. Its own VNI is
among the last that there are, and what arrives with that ends in a program that drops everything. Messages are made by
hand, as these attributes are few (include/uapi/linux/if_link.h).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable

from mptm.errors import KernelError
from mptm.gro import Listening, device_of, is_device_of
from mptm.kernel import libbpf
from mptm.kernel.netlink import open_netlink, xdp_state
from mptm.kernel.objects import EXTRAS, object_path

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC = 3, 18, 20, 26
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE = 8, 1
_VXLAN_ID, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_LOCAL6 = 1, 7, 15, 17
_LAST_VNI = 0xFFFFFF
_VNIS_TO_TRY = 16
_DROP_PROGRAM = "mptm_drop"
_NOT_HERE = (errno.EOPNOTSUPP, errno.EINVAL)
"""What kernels without vxlan answer, or without IPv6."""


def owned(instance: str) -> set[str]:
    """Devices that an instance made, in this network namespace; of a command that was killed, too."""
    with open_netlink() as netlink:
        found = {
            link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_IFALIAS") or "" for link in netlink.get_links()
        }
    return {
        name
        for name, alias in found.items()
        if alias == _alias(instance) or (not alias and is_device_of(instance, name))
    }


def bring_to(instance: str, wanted: Iterable[Listening]) -> None:
    """Let there be devices for these UDP ports and no others of the instance.

    A port that a socket or a device of another kind has stays without. Raises KernelError.
    """
    devices = {device_of(instance, each): each for each in wanted}
    for name in owned(instance) - devices.keys():
        _remove(name)
    for name, listening in devices.items():
        _make(instance, name, listening)


def _make(instance: str, name: str, listening: Listening) -> None:
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        number = _create(name, listening)
        if number in _NOT_HERE:
            return
        _check(number, f"{name} can't be made")
        index = socket.if_nametoindex(name)
    _let_drop(index)
    inet6 = _attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes((_IN6_ADDR_GEN_MODE_NONE,)))
    settings = _attribute(_IFLA_IFALIAS, _alias(instance).encode() + b"\0") + _attribute(
        _IFLA_AF_SPEC, _attribute(socket.AF_INET6, inet6)
    )
    _check(
        _send(_RTM_NEWLINK, settings, index=index, change=_IFF_NOARP, up=_IFF_NOARP), f"{name} can't be set"
    )
    number = _send(_RTM_NEWLINK, b"", index=index, change=_IFF_UP, up=_IFF_UP)
    if number == errno.EADDRINUSE:
        _remove(name)
        return
    _check(number, f"{name} can't be brought up")


def _create(name: str, listening: Listening) -> int:
    """Make a device, with a VNI that no other of the same UDP port has; the errno, 0: done."""
    number = 0
    for vni in range(_LAST_VNI, _LAST_VNI - _VNIS_TO_TRY, -1):
        options = (
            _attribute(_VXLAN_ID, struct.pack("=I", vni))
            + _attribute(_VXLAN_LEARNING, b"\0")
            + _attribute(_VXLAN_PORT, struct.pack("!H", listening.port))
            + (_attribute(_VXLAN_LOCAL6, bytes(16)) if listening.version == 6 else b"")
        )
        kind = _attribute(_IFLA_INFO_KIND, b"vxlan") + _attribute(_IFLA_INFO_DATA, options)
        number = _send(
            _RTM_NEWLINK,
            _attribute(_IFLA_IFNAME, name.encode() + b"\0") + _attribute(_IFLA_LINKINFO, kind),
            flags=_NLM_F_CREATE | _NLM_F_EXCL,
        )
        if number != errno.EEXIST:
            break
    return number


def _let_drop(ifindex: int) -> None:
    """Let what would come out of a device be dropped, for as long as there is the device. Raises KernelError."""
    if xdp_state(ifindex) is not None:
        return
    with libbpf.Object(object_path(EXTRAS)) as loading:
        loading.load()
        programs = loading.program_fds()
        try:
            libbpf.attach_xdp(ifindex, programs[_DROP_PROGRAM], libbpf.XDP_FLAGS_SKB_MODE)
        finally:
            for fd in programs.values():
                os.close(fd)


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
