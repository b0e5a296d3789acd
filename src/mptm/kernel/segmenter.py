# SPDX-License-Identifier: GPL-2.0-only
"""The veth pair of an instance that makes segments of GSO packets (bpf/segments.h).

One end offloads nothing, so the stack makes segments, with their checksums, of whatever is sent out of it. They come in
at the other end.
"""

from __future__ import annotations

import fcntl
import hashlib
import socket
import struct
from contextlib import suppress
from typing import NamedTuple

from mptm.errors import KernelError
from mptm.kernel.netlink import ask, open_netlink

_SIOCETHTOOL = 0x8946  # linux/sockios.h
_ETHTOOL_STXCSUM = 0x17  # linux/ethtool.h: all transmit checksums; SG, TSO and GSO can't be without
_MTU = 65535  # of a veth, at most: no segment is too big to pass
_ADDR_GEN_MODE_NONE = 1  # IN6_ADDR_GEN_MODE_NONE: it has no address, and says nothing by itself


class Pair(NamedTuple):
    """Numbers of the two ends: what is sent into `entry` comes in, in segments, at `exit`."""

    entry: int
    exit: int


def names(instance: str) -> tuple[str, str]:
    """Names of the two ends: the interface names of a machine are for all instances."""
    digest = hashlib.sha256(instance.encode()).hexdigest()[:8]
    return f"mseg{digest}a", f"mseg{digest}b"


def find(instance: str) -> Pair | None:
    """The pair in this network namespace; None without one."""
    try:
        return Pair(*map(socket.if_nametoindex, names(instance)))
    except OSError:
        return None


def is_up(instance: str) -> bool:
    """Whether packets pass: both ends are up. Raises KernelError."""
    with open_netlink() as netlink:
        found, _ = ask(netlink.link, "get", ifname=names(instance)[0])
    return bool(found) and found[0].get_attr("IFLA_OPERSTATE") == "UP"


def ensure(instance: str) -> Pair:
    """Have the pair, and have it as it must be, whoever made it or was killed before it was. Raises KernelError."""
    entry, exit_ = names(instance)
    with open_netlink() as netlink:
        if find(instance) is None:
            netlink.link("add", ifname=entry, kind="veth", mtu=_MTU, peer={"ifname": exit_, "mtu": _MTU})
        pair = Pair(*map(socket.if_nametoindex, (entry, exit_)))
        no_addresses = {
            "attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]})]
        }
        for ifindex in pair:
            with suppress(KernelError):  # without IPv6 there is nothing to switch off
                netlink.link("set", index=ifindex, IFLA_AF_SPEC=no_addresses)
        _offload_nothing(entry)
        for ifindex in pair:
            netlink.link("set", index=ifindex, mtu=_MTU, state="up")
    return pair


def remove(instance: str) -> None:
    """Take the pair away; that there is none is no error."""
    if (pair := find(instance)) is not None:
        with open_netlink() as netlink, suppress(KernelError):
            netlink.link("del", index=pair.entry)


def _offload_nothing(name: str) -> None:
    value = bytearray(struct.pack("II", _ETHTOOL_STXCSUM, 0))
    buffer = (struct.pack("16sP", name.encode(), _address(value))).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, buffer)
        except OSError as error:
            raise KernelError(f"the offloads of {name} can't be switched off", error.errno or 0) from None


def _address(value: bytearray) -> int:
    import ctypes

    return ctypes.addressof((ctypes.c_char * len(value)).from_buffer(value))
