# SPDX-License-Identifier: GPL-2.0-only
"""Facts of the machine by rtnetlink: links and their XDP state, routes, neighbours.

pyroute2 is imported when it is first needed: it takes a fifth of a second.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import Any, NamedTuple, Protocol

from mptm.errors import KernelError, MptmError
from mptm.facts import Facts, IPAddress, Link, Path

ANY = "any"
"""The remote of a tunnel that accepts anyone."""

_ETHERNET = 1  # ARPHRD_ETHER
_IFF_UP, _IFF_LOOPBACK, _IFF_POINTOPOINT, _IFF_NOARP = 0x1, 0x8, 0x10, 0x80
_ROUTE_LOCAL, _ROUTE_BROADCAST, _ROUTE_MULTICAST = 2, 3, 5
_NTF_USE = 0x01
_NUD_CONFIRMED = 0x02 | 0x80  # REACHABLE, PERMANENT
_NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # REACHABLE, STALE, DELAY, PROBE, PERMANENT
_NO_QDISC = (None, "noqueue", "noop")  # of an interface that is up, and of one that never was
_CLSACT_EGRESS = 0xFFFFFFF3  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ESRCH)
_POLL_SECONDS = 0.02


class Tunnel(Protocol):
    """What is read of an `intent.Tunnel`."""

    @property
    def name(self) -> str:
        """The tunnel's name."""

    @property
    def remote(self) -> Any:
        """An address, or `any` or None: there is no address to find a path to."""

    @property
    def destination(self) -> Any:
        """Where packets go first, where remote is an address: the remote, or what lies between."""

    @property
    def local(self) -> Any:
        """An address, or None: the one that the routing table prefers."""

    @property
    def remote_mac(self) -> Any:
        """Text or 6 bytes, or None: the neighbour table knows."""

    @property
    def local_mac(self) -> Any:
        """Text or 6 bytes, or None: that of the egress interface."""

    @property
    def egress(self) -> str | None:
        """An interface's name, or None: the routing table knows."""


@dataclass(frozen=True)
class XdpState:
    """What XDP program an interface has. `mode`: native, generic, offload or multi (more than one of them)."""

    ifindex: int
    name: str
    mode: str
    program_id: int


class _Route(NamedTuple):
    egress: _RawLink
    local: IPAddress
    gateway: IPAddress | None
    next_hop: IPAddress
    mtu: int


class _RawLink(NamedTuple):
    link: Link
    flags: int
    hardware: int


class _Problem(Exception):
    """Why a tunnel has no path, in one sentence."""


@contextmanager
def open_netlink() -> Iterator[Any]:
    """A pyroute2 IPRoute of this thread's network namespace; its errors become KernelError."""
    from pyroute2.iproute.linux import IPRoute  # type: ignore[import-untyped]  # it has no type information
    from pyroute2.netlink.exceptions import (  # type: ignore[import-untyped]  # it has no type information
        NetlinkError,
    )

    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise KernelError("the kernel refuses a netlink request", error.code) from None


def ask(request: Any, *arguments: Any, **options: Any) -> tuple[list[Any], int]:
    """Messages that answer a request, or none and the errno."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        return list(request(*arguments, **options)), 0
    except NetlinkError as error:
        return [], error.code


def xdp_state(ifindex: int) -> XdpState | None:
    """The XDP program of one interface; None without one. Raises KernelError (ENODEV: no such interface)."""
    with open_netlink() as netlink:
        messages, number = ask(netlink.link, "get", index=ifindex)
        if number:
            raise KernelError(f"interface {ifindex} can't be looked up", number)
        return _xdp_state(messages[0])


def xdp_states() -> list[XdpState]:
    """The interfaces of this network namespace that have an XDP program."""
    with open_netlink() as netlink:
        return [state for message in netlink.get_links() if (state := _xdp_state(message)) is not None]


def _xdp_state(message: Any) -> XdpState | None:
    xdp = message.get_attr("IFLA_XDP")
    mode = xdp.get_attr("IFLA_XDP_ATTACHED") if xdp else None
    if mode in (None, 0):
        return None
    kinds = {
        "native": xdp.get_attr("IFLA_XDP_DRV_PROG_ID"),
        "generic": xdp.get_attr("IFLA_XDP_SKB_PROG_ID"),
        "offload": xdp.get_attr("IFLA_XDP_HW_PROG_ID"),
    }
    attached = {kind: program_id for kind, program_id in kinds.items() if program_id}
    if not attached:
        return None
    return XdpState(
        message["index"],
        message.get_attr("IFLA_IFNAME"),
        next(iter(attached)) if len(attached) == 1 else "multi",
        next(iter(attached.values())),
    )


def gather_facts(
    tunnels: Iterable[Tunnel], *, resolve_timeout_seconds: float = 1.0, afresh: bool = False
) -> Facts:
    """Links of this network namespace, and for each tunnel the way to its remote.

    Neighbours that are not known are asked for (ARP, neighbour discovery), all at once, and waited for until the
    timeout; with `afresh` also those that the kernel knew once, but hasn't heard of lately. A tunnel without a remote
    address has no path. Raises KernelError when the kernel can't be asked at all.
    """
    with open_netlink() as netlink:
        links = _read_links(netlink)
        routes: dict[str, tuple[Tunnel, _Route]] = {}
        paths: dict[str, Path] = {}
        problems: dict[str, str] = {}
        for tunnel in tunnels:
            try:
                if tunnel.remote not in (None, ANY):
                    routes[tunnel.name] = tunnel, _find_route(netlink, links, tunnel)
                elif tunnel.egress is not None:
                    _find_egress(links, tunnel.egress)
            except _Problem as problem:
                problems[tunnel.name] = str(problem)
        wanted = {
            (route.egress.link.ifindex, route.next_hop): route.egress
            for tunnel, route in routes.values()
            if tunnel.remote_mac is None and _why_no_neighbours(route.egress) is None
        }
        neighbours = _resolve(netlink, wanted, resolve_timeout_seconds, afresh=afresh)
        for name, (tunnel, route) in routes.items():
            mac = _mac(tunnel.remote_mac) or neighbours.get((route.egress.link.ifindex, route.next_hop))
            paths[name] = Path(
                route.egress.link.ifindex,
                route.local,
                _mac(tunnel.local_mac) or route.egress.link.mac,
                route.gateway,
                mac,
                route.mtu,
                None if mac else _describe_silence(route),
            )
        addresses = frozenset(
            ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
            for message in netlink.get_addr()
        )
        return Facts({raw.link.name: raw.link for raw in links.values()}, paths, problems, addresses)


def _read_links(netlink: Any) -> dict[int, _RawLink]:
    """Links by ifindex, with the MAC address of each veth's other end."""
    messages = {message["index"]: message for message in netlink.get_links()}
    clsact: set[int] | None = set()
    if any(message.get_attr("IFLA_LINK_NETNSID") is not None for message in messages.values()):
        qdiscs, number = ask(netlink.get_qdiscs)
        found = {message["index"] for message in qdiscs if message.get_attr("TCA_KIND") == "clsact"}
        clsact = None if number else found
    return {ifindex: _read_link(netlink, messages, clsact, message) for ifindex, message in messages.items()}


def _read_link(netlink: Any, messages: dict[int, Any], clsact: set[int] | None, message: Any) -> _RawLink:
    """`clsact`: interfaces with a qdisc for filters; None: the kernel doesn't tell."""
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    state = _xdp_state(message)
    peer = _peer(netlink, messages, message) if kind == "veth" else None
    is_far = kind == "veth" and message.get_attr("IFLA_LINK_NETNSID") is not None
    link = Link(
        message["index"],
        message.get_attr("IFLA_IFNAME"),
        _mac(message.get_attr("IFLA_ADDRESS")) or b"",
        message.get_attr("IFLA_MTU"),
        kind,
        bool(message["flags"] & _IFF_UP),
        _mac(peer.get_attr("IFLA_ADDRESS")) if peer is not None else None,
        state.program_id if state else None,
        is_far,
        _find_detour(netlink, clsact, message, peer) if is_far else "",
        _gro_port(kind, info),
    )
    return _RawLink(link, message["flags"], message["ifi_type"])


def _gro_port(kind: str, info: Any) -> int:
    """See Link.gro_port. A device of VXLAN-GPE joins by that protocol's header, not by ours."""
    data = info.get_attr("IFLA_INFO_DATA") if kind in ("vxlan", "geneve") else None
    if not data or data.get_attr("IFLA_VXLAN_GPE"):
        return 0
    return int(data.get_attr("IFLA_VXLAN_PORT") or data.get_attr("IFLA_GENEVE_PORT") or 0)


def _peer(netlink: Any, messages: dict[int, Any], message: Any) -> Any | None:
    """The link message of a veth's other end, in whichever namespace it is (IFLA_TARGET_NETNSID: Linux 4.20)."""
    peer_index, namespace_id = message.get_attr("IFLA_LINK"), message.get_attr("IFLA_LINK_NETNSID")
    if peer_index is None:
        return None
    if namespace_id is None:
        return messages.get(peer_index)
    answer, _ = ask(netlink.link, "get", index=peer_index, if_netnsid=namespace_id)
    return answer[0] if answer else None


def _find_detour(netlink: Any, clsact: set[int] | None, message: Any, peer: Any | None) -> str:
    """See Link.detour: what bpf_redirect_peer would go past. What can't be looked at may be there."""
    from mptm.kernel import libbpf

    ifindex, qdisc = message["index"], message.get_attr("IFLA_QDISC")
    if qdisc not in _NO_QDISC:
        return f"it has a qdisc {qdisc}"
    try:
        has_programs = bool(libbpf.tcx_programs(ifindex, libbpf.TCX_EGRESS))
    except MptmError as error:
        return f"its TC egress can't be looked at ({error.message})"
    if has_programs:
        return "it has programs at its TC egress"
    if clsact is None:
        return "its qdiscs can't be looked at"
    if ifindex in clsact:
        filters, number = ask(netlink.get_filters, index=ifindex, parent=_CLSACT_EGRESS)
        if filters or number:
            return "it has filters at its TC egress" if filters else "its TC filters can't be looked at"
    if peer is None:
        return "its other end can't be looked at"
    xdp = peer.get_attr("IFLA_XDP")
    return "its other end has an XDP program" if xdp and xdp.get_attr("IFLA_XDP_ATTACHED") else ""


def _find_egress(links: dict[int, _RawLink], name: str) -> _RawLink:
    for raw in links.values():
        if raw.link.name == name:
            return raw
    raise _Problem(f"the egress interface {name} doesn't exist")


def _find_route(netlink: Any, links: dict[int, _RawLink], tunnel: Tunnel) -> _Route:
    """What the kernel would do with a packet to the tunnel's remote. Raises _Problem."""
    remote = ip_address(str(tunnel.destination))
    local = ip_address(str(tunnel.local)) if tunnel.local is not None else None
    family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
    options: dict[str, Any] = {"family": family, "dst": str(remote)}
    if tunnel.egress is not None:
        options["oif"] = _find_egress(links, tunnel.egress).link.ifindex
    source = {"src": str(local)} if local is not None else {}
    answer, number = ask(netlink.route, "get", **options, **source)
    if number and source:
        # A local address that this machine doesn't have is the user's choice.
        answer, number = ask(netlink.route, "get", **options)
    where = f" through {tunnel.egress}" if tunnel.egress is not None else ""
    if number or not answer:
        if number and number not in _NO_ROUTE:
            raise _Problem(f"the route to {remote}{where} can't be used: {os.strerror(number)}")
        raise _Problem(f"there is no route to {remote}{where}")
    message = answer[0]
    if message["type"] == _ROUTE_LOCAL:
        raise _Problem(f"{remote} is an address of this node itself")
    if message["type"] in (_ROUTE_BROADCAST, _ROUTE_MULTICAST):
        raise _Problem(f"{remote} is no address of a single node")
    egress = links.get(message.get_attr("RTA_OIF") or 0)
    if egress is None:
        raise _Problem(f"there is no route to {remote}{where}")
    gateway = _gateway(message)
    if local is None:
        preferred = message.get_attr("RTA_PREFSRC")
        if preferred is None:
            raise _Problem(f"{egress.link.name} has no address to send to {remote} from")
        local = ip_address(preferred)
    metrics = message.get_attr("RTA_METRICS")
    route_mtu = metrics.get_attr("RTAX_MTU") if metrics else None
    mtu = min(egress.link.mtu, route_mtu) if route_mtu else egress.link.mtu
    return _Route(egress, local, gateway, gateway or remote, mtu)


def _gateway(message: Any) -> IPAddress | None:
    """The next hop of a route; that of an IPv4 route may be an IPv6 address (RTA_VIA, RFC 5549)."""
    if (gateway := message.get_attr("RTA_GATEWAY")) is not None:
        return ip_address(gateway)
    if (via := message.get_attr("RTA_VIA")) is not None:
        return ip_address(via["addr"])
    return None


def _resolve(
    netlink: Any, wanted: dict[tuple[int, IPAddress], _RawLink], timeout_seconds: float, *, afresh: bool
) -> dict[tuple[int, IPAddress], bytes]:
    """MAC addresses of neighbours by ifindex and address; those that don't answer in time are missing."""
    if not wanted:
        return {}
    families: set[int] = {address.version for _, address in wanted}
    known = _read_neighbours(netlink, families, _NUD_CONFIRMED if afresh else _NUD_USABLE)
    missing = wanted.keys() - known.keys()
    for key in missing:
        if afresh:
            ask(netlink.neigh, "del", dst=str(key[1]), ifindex=key[0])
        _ask_neighbour(netlink, wanted[key].link, key[1])
    deadline = time.monotonic() + timeout_seconds
    while missing - known.keys() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        known = _read_neighbours(netlink, families)
    return {key: known[key] for key in wanted.keys() & known.keys()}


def _ask_neighbour(netlink: Any, egress: Link, address: IPAddress) -> None:
    """Make the kernel ask for a neighbour's MAC address, without waiting for the answer."""
    if address.version == 6:
        # Without a packet to send, the kernel asks from the link-local address only, and not at all as long as that
        # one is tentative: an empty datagram to the discard port gives it an address to ask from.
        with suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, egress.name.encode())
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
            probe.sendto(b"", (str(address), 9, 0, egress.ifindex if address.is_link_local else 0))
    ask(netlink.neigh, "replace", dst=str(address), ifindex=egress.ifindex, state=0, flags=_NTF_USE)


def _read_neighbours(
    netlink: Any, families: set[int], states: int = _NUD_USABLE
) -> dict[tuple[int, IPAddress], bytes]:
    found: dict[tuple[int, IPAddress], bytes] = {}
    for version in families:
        for message in netlink.get_neighbours(socket.AF_INET if version == 4 else socket.AF_INET6):
            mac, address = _mac(message.get_attr("NDA_LLADDR")), message.get_attr("NDA_DST")
            if mac and address and message["state"] & states:
                found[message["ifindex"], ip_address(address)] = mac
    return found


def _why_no_neighbours(egress: _RawLink) -> str | None:
    """Why an interface has no neighbours with MAC addresses, in words; None when it has."""
    name = egress.link.name
    if egress.flags & _IFF_LOOPBACK:
        return f"{name} is the loopback interface, which has no neighbours"
    if egress.hardware != _ETHERNET or egress.flags & _IFF_POINTOPOINT or not egress.link.mac:
        return f"{name} is a point-to-point link without MAC addresses"
    if egress.flags & _IFF_NOARP:
        return f"{name} does no ARP"
    if not egress.link.up:
        return f"{name} is down"
    return None


def _describe_silence(route: _Route) -> str:
    """Why a route has no MAC address to send to, in one sentence."""
    name = route.egress.link.name
    if (reason := _why_no_neighbours(route.egress)) is not None:
        return f"{route.next_hop} is behind {name}, but {reason}"
    asked = "ARP" if isinstance(route.next_hop, IPv4Address) else "neighbour solicitations"
    if route.gateway is not None:
        return f"the gateway {route.gateway} at {name} doesn't answer {asked}"
    return f"{route.next_hop} is on-link at {name} but doesn't answer {asked}"


def _mac(value: str | bytes | None) -> bytes | None:
    if not value:
        return None
    return value if isinstance(value, bytes) else bytes.fromhex(value.replace(":", "").replace("-", ""))
