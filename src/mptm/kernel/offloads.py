# SPDX-License-Identifier: GPL-2.0-only
"""The other ends of veths, in whichever network namespace, and their features (ethtool's netlink family).

Linux: Documentation/networking/ethtool-netlink.rst, FEATURES_GET and FEATURES_SET.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from mptm.errors import KernelError, MptmError
from mptm.kernel import netns
from mptm.kernel.netlink import ask, open_netlink
from mptm.offloads import Feature, OtherEnd

_FEATURES_GET, _FEATURES_SET = 11, 12
_DEVICE_GET = 1
_XDP_CAN_SEND = 1 << 2  # NETDEV_XDP_ACT_NDO_XMIT
_IFF_UP = 0x1
_OTHER_DIRECTORIES = (Path("/run/docker/netns"),)


def find_other_ends(ifindexes: Iterable[int]) -> dict[int, OtherEnd]:
    """The other ends of those interfaces that are veths, by the interface's number; those that are gone are missing.

    A namespace is found below /run/netns, Docker's directory, or as that of a process.
    """
    found: dict[int, tuple[Any, int | None]] = {}
    with open_netlink() as netlink:
        for ifindex in ifindexes:
            answer, _ = ask(netlink.link, "get", index=ifindex)
            info = answer[0].get_attr("IFLA_LINKINFO") if answer else None
            if info is None or info.get_attr("IFLA_INFO_KIND") != "veth":
                continue
            peer, namespace_id = answer[0].get_attr("IFLA_LINK"), answer[0].get_attr("IFLA_LINK_NETNSID")
            where = {"if_netnsid": namespace_id} if namespace_id is not None else {}
            answer, _ = ask(netlink.link, "get", index=peer, **where) if peer else ([], 0)
            if answer:
                found[ifindex] = answer[0], namespace_id
        paths = _find_namespaces(netlink, {number for _, number in found.values() if number is not None})
    return {
        ifindex: _other_end(ifindex, message, number, paths) for ifindex, (message, number) in found.items()
    }


def set_features(end: OtherEnd, features: Mapping[str, bool]) -> None:
    """Ask for features to be on or off; what others depend on takes these with it. Raises KernelError."""
    bits = [
        (
            "ETHTOOL_A_BITSET_BITS_BIT",
            {
                "attrs": [
                    ("ETHTOOL_A_BITSET_BIT_NAME", name),
                    *([("ETHTOOL_A_BITSET_BIT_VALUE", True)] if value else []),
                ]
            },
        )
        for name, value in features.items()
    ]
    wanted = {"attrs": [("ETHTOOL_A_BITSET_BITS", {"attrs": bits})]}
    with _inside(end.namespace):
        _request(
            _FEATURES_SET,
            _features_header(end.ifindex),
            ("ETHTOOL_A_FEATURES_WANTED", wanted),
            family="ethtool",
        )


def read_features(ifindex: int) -> dict[str, Feature]:
    """The features of an interface of this namespace by name. Raises KernelError."""
    (message,) = _request(_FEATURES_GET, _features_header(ifindex), family="ethtool")
    hardware, wanted, active, fixed = (
        _bits(message.get_attr(f"ETHTOOL_A_FEATURES_{kind}"))
        for kind in ("HW", "WANTED", "ACTIVE", "NOCHANGE")
    )
    return {
        name: Feature(
            active.get(name, False), wanted.get(name, False), changeable and not fixed.get(name, False)
        )
        for name, changeable in hardware.items()
    }


def can_send(ifindex: int) -> bool | None:
    """Whether XDP can send out of an interface of this namespace; None: the kernel doesn't say (before Linux 6.3)."""
    try:
        answer = _request(_DEVICE_GET, ("NETDEV_A_DEV_IFINDEX", ifindex), family="netdev")
    except KernelError:
        return None
    features = answer[0].get_attr("NETDEV_A_DEV_XDP_FEATURES") if answer else None
    return None if features is None else bool(features & _XDP_CAN_SEND)


def _other_end(
    port_ifindex: int, message: Any, namespace_id: int | None, paths: Mapping[int, str]
) -> OtherEnd:
    xdp = message.get_attr("IFLA_XDP")
    namespace = "" if namespace_id is None else paths.get(namespace_id)
    features, problem = None, ""
    if namespace is None:
        problem = "the network namespace of its other end can't be found from here"
    else:
        try:
            with _inside(namespace):
                features = read_features(message["index"])
        except MptmError as error:
            problem = f"the features of its other end can't be read ({error.message})"
    return OtherEnd(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mtu=message.get_attr("IFLA_MTU"),
        up=bool(message["flags"] & _IFF_UP),
        has_xdp=bool(xdp and xdp.get_attr("IFLA_XDP_ATTACHED")),
        takes_frames=can_send(port_ifindex),
        namespace=namespace or "",
        features=features,
        problem=problem,
    )


def _find_namespaces(netlink: Any, wanted: set[int]) -> dict[int, str]:
    """Paths of network namespaces by their numbers here, as far as they are found."""
    found: dict[int, str] = {}
    seen: set[tuple[int, int]] = set()
    for path in _namespace_files() if wanted else ():
        if found.keys() >= wanted:
            break
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            answer = netlink.get_netnsid(fd=fd)
            if answer is not None and answer["nsid"] in wanted:
                found.setdefault(answer["nsid"], str(path))
        finally:
            os.close(fd)
    return found


def _namespace_files() -> Iterator[Path]:
    for directory in (netns.DIRECTORY, *_OTHER_DIRECTORIES):
        try:
            yield from sorted(directory.iterdir())
        except OSError:
            continue
    try:
        processes = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
    except OSError:
        return
    yield from (Path(f"/proc/{process}/ns/net") for process in processes)


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    with netns.inside(namespace) if namespace else nullcontext():
        yield


def _features_header(ifindex: int) -> tuple[str, Any]:
    return "ETHTOOL_A_FEATURES_HEADER", {"attrs": [["ETHTOOL_A_HEADER_DEV_INDEX", ifindex]]}


@cache
def _message_types() -> dict[str, Any]:
    """By family. pyroute2's ethtool messages have no features: these do, of the same parts."""
    from pyroute2.netlink import genlmsg  # type: ignore[import-untyped]  # it has no type information
    from pyroute2.netlink.generic import ethtool  # type: ignore[import-untyped]

    class Features(genlmsg):  # type: ignore[misc]
        nla_map = (
            ("ETHTOOL_A_FEATURES_UNSPEC", "none"),
            ("ETHTOOL_A_FEATURES_HEADER", "ethtoolheader"),
            ("ETHTOOL_A_FEATURES_HW", "ethtoolbitset"),
            ("ETHTOOL_A_FEATURES_WANTED", "ethtoolbitset"),
            ("ETHTOOL_A_FEATURES_ACTIVE", "ethtoolbitset"),
            ("ETHTOOL_A_FEATURES_NOCHANGE", "ethtoolbitset"),
        )
        ethtoolheader = ethtool.ethtoolheader
        ethtoolbitset = ethtool.ethtoolbitset

    class Device(genlmsg):  # type: ignore[misc]
        nla_map = (
            ("NETDEV_A_DEV_UNSPEC", "none"),
            ("NETDEV_A_DEV_IFINDEX", "uint32"),
            ("NETDEV_A_DEV_PAD", "none"),
            ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        )

    return {"ethtool": Features, "netdev": Device}


def _request(command: int, *attributes: tuple[str, Any], family: str) -> list[Any]:
    from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
    from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]
    from pyroute2.netlink.generic import GenericNetlinkSocket

    message = _message_types()[family]()
    message["cmd"], message["version"], message["attrs"] = command, 1, list(attributes)
    flags = NLM_F_REQUEST | (NLM_F_ACK if command == _FEATURES_SET else 0)
    try:
        with GenericNetlinkSocket() as socket:
            socket.bind(family, _message_types()[family])
            return list(socket.nlm_request(message, msg_type=socket.prid, msg_flags=flags))
    except NetlinkError as error:
        raise KernelError(f"the kernel's {family} family refuses a request", error.code) from None


def _bits(bitset: Any) -> dict[str, bool]:
    """A bitset's bits by name; of one that is sent as a list, those that are set."""
    is_list = bool(bitset.get_attr("ETHTOOL_A_BITSET_NOMASK"))
    bits = bitset.get_attr("ETHTOOL_A_BITSET_BITS")
    return {
        bit.get_attr("ETHTOOL_A_BITSET_BIT_NAME"): is_list or bool(bit.get_attr("ETHTOOL_A_BITSET_BIT_VALUE"))
        for bit in (bits.get_attrs("ETHTOOL_A_BITSET_BITS_BIT") if bits is not None else ())
    }
