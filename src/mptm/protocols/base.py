# SPDX-License-Identifier: GPL-2.0-only
"""What a tunnel protocol is: options that an operator sets, the header they make, and what is accepted back.

To add one, write a module in this package that ends in `PROTOCOL = MyProtocol()`; a protocol over UDP states its
options and the bytes of its own header, and inherits the rest.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, Literal, NamedTuple, TypeVar

from msgspec import Meta

from mptm.errors import InvalidIntent
from mptm.facts import IPAddress, Path
from mptm.fields import Checked, mac_bytes
from mptm.headers import IP_PROTOCOL_UDP, Composer, HeaderTooLong, describe_outer
from mptm.template import InnerFamily, Patch, Template

if TYPE_CHECKING:
    from mptm.intent import Tunnel

ANYONE = bytes(16)
"""Address of a termination that accepts every sender."""


NO_MAC = bytes(6)
NOWHERE: dict[int, IPAddress] = {4: ipaddress.IPv4Address(0), 6: ipaddress.IPv6Address(0)}
"""An address of each IP version, where only the version matters."""


class ListenerKind(IntEnum):
    """Mirrors `enum listener_kind` of bpf/abi.h; a unit test compares the two."""

    UDP = 1
    IP = 2
    ETHERTYPE = 3


class Parser(IntEnum):
    """Mirrors `enum parser` of bpf/abi.h, where each is explained; a unit test compares the two."""

    GENEVE = 1
    VXLAN = 2
    VLAN = 3
    VXLAN_GPE = 4
    GRE = 5
    GRE_KEY = 6
    NVGRE = 7
    ERSPAN = 8
    IP = 9
    ETHERIP = 10
    GTPU = 11
    L2TP_IP = 12
    L2TP_UDP = 13
    GUE = 14
    MPLS = 15
    SRV6 = 16
    QINQ = 17
    NSH = 18
    GTPU_ECHO = 19


class Listener(NamedTuple):
    """Where tunnel packets arrive: a UDP port, IP protocol or EtherType, and what reads them."""

    number: int
    kind: ListenerKind
    parser: Parser


@dataclass(frozen=True)
class Verification:
    """What a packet is checked for beyond sender and identifier."""

    cookie: bytes = b""
    """L2TPv3: 0, 4 or 8 bytes behind the session id."""
    sublayer_len: int = 0
    """L2TPv3: bytes between cookie and payload."""
    ignores_checksum: bool = False
    """GRE: a checksum that is there is not verified."""


@dataclass(frozen=True)
class Shadow:
    """Packets that a tunnel takes from tunnels of another protocol, because they can be read as either."""

    parser: Parser
    """What tunnels of the other protocol accept (`Protocol.accepted_parser`)."""
    tunnel_id: int
    way_out: str
    """What can tell the two apart, beside remote and local."""


class IpOptions(Checked, frozen=True, kw_only=True):
    """Options of every protocol that runs over IPv4 or IPv6."""

    ttl: Annotated[
        Annotated[int, Meta(ge=1, le=255)] | Literal["inherit"],
        Meta(description="TTL or hop limit of the outer packet; inherit: the inner packet's"),
    ] = 64
    dscp: Annotated[
        Annotated[int, Meta(ge=0, le=63)] | Literal["inherit"],
        Meta(description="DSCP of the outer packet; inherit: the inner packet's"),
    ] = 0
    df: Annotated[bool, Meta(description="forbid fragmentation of the outer packet (IPv4)")] = True
    to_stack: Annotated[
        bool,
        Meta(
            description="hand the outer packet to the kernel's stack, which routes it, instead of sending it"
        ),
    ] = False


class UdpOptions(IpOptions, frozen=True, kw_only=True):
    """Options of every protocol that runs over UDP."""

    port: Annotated[int, Meta(ge=1, le=65535, description="UDP destination port, also listened on")]
    source_port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | Literal["flow"],
        Meta(description="UDP source port; flow: 49152-65535 from a hash of the inner flow"),
    ] = "flow"
    udp_checksum: Annotated[
        bool,
        Meta(
            description="whether the UDP checksum of packets over IPv6 is right or zero; over IPv4 it is zero",
            extra={"expected": "on or off"},
        ),
    ] = True
    receive_checksum: Annotated[
        Literal["ignore", "verify", "require"],
        Meta(
            description="UDP checksum of what is received: verify: a wrong one is a drop, require: a missing one, too"
        ),
    ] = "ignore"


Payload = Annotated[
    Literal["l2", "l3"],
    Meta(description="l2: whole Ethernet frames; l3: IP packets, without their Ethernet header"),
]
Vni = Annotated[int, Meta(ge=0, le=2**24 - 1, description="virtual network identifier")]
UdpPort = Annotated[int, Meta(ge=1, le=65535, description="UDP destination port, also listened on")]

AnyOptions = TypeVar("AnyOptions", bound=Checked)
AnyIpOptions = TypeVar("AnyIpOptions", bound=IpOptions)
AnyUdpOptions = TypeVar("AnyUdpOptions", bound=UdpOptions)


class Protocol(ABC, Generic[AnyOptions]):
    """A tunnel protocol. Stateless: everything comes from the tunnel and the path to its remote."""

    name: ClassVar[str]
    """As in `--protocol`."""
    title: ClassVar[str]
    reference: ClassVar[str]
    """Where the header is specified."""
    parser: ClassVar[Parser]
    """Which parser of the data plane reads its packets; protocols that share a listener share it."""
    options: type[AnyOptions]
    """What an operator sets, beside what every tunnel has."""
    over_ip: ClassVar[bool]
    """Whether there is an IP header between the outer Ethernet header and the tunnel's own."""
    underlays: ClassVar[tuple[int, ...]] = (4, 6)
    """IP versions that it runs over."""
    told_apart_by: ClassVar[tuple[str, ...]] = ("identifier", "remote", "local")
    """What two tunnels may differ in, so that no packet is for both."""

    def options_of(self, tunnel: Tunnel) -> AnyOptions:
        """The tunnel's options. TypeError: the tunnel is of another protocol."""
        if not isinstance(tunnel.options, self.options):
            raise TypeError(f"tunnel {tunnel.name} is no {self.name} tunnel")
        return tunnel.options

    @abstractmethod
    def build(self, tunnel: Tunnel, path: Path) -> Template:
        """The outer header for a path whose next hop is resolved."""

    @abstractmethod
    def listeners(self, options: AnyOptions) -> tuple[Listener, ...]:
        """Where its packets arrive: UDP port, IP protocol or EtherType; several where they come in several forms."""

    @abstractmethod
    def tunnel_id(self, options: AnyOptions) -> int:
        """What tells two tunnels of the same peers apart on the wire: VNI, VID, key, ..."""

    def inner_families(self, options: AnyOptions) -> InnerFamily | None:
        """IP versions that the tunnel carries without an Ethernet header; None: it carries Ethernet frames."""
        return None

    def accepted_parser(self, options: AnyOptions) -> Parser:
        """Which kind of header is accepted, of those that the listener's parser tells apart."""
        return self.parser

    def shadow(self, options: AnyOptions) -> Shadow | None:
        """What tunnels of another protocol don't get of the same ends, as this one goes before; None: nothing."""
        return None

    def echo_parser(self, options: AnyOptions) -> Parser | None:
        """The kind of echo request that is answered for who may send; None: they are left to the kernel."""
        return None

    def verification(self, options: AnyOptions) -> Verification:
        """What the data plane checks once it knows whose packet it is."""
        return Verification()

    def destination(self, tunnel: Tunnel) -> IPAddress | None:
        """Where packets are sent first; None: no IP address says so."""
        return tunnel.remote_address

    def own_address(self, tunnel: Tunnel) -> IPAddress | None:
        """The address that its packets are sent to, where it is given; None: by the routing table, or it has none."""
        return tunnel.local_address

    @abstractmethod
    def accepted(self, tunnel: Tunnel, path: Path | None) -> tuple[bytes, bytes] | None:
        """Sender and own address as a termination has them (16 bytes each); None: not known yet."""

    @abstractmethod
    def check(self, tunnel: Tunnel) -> None:
        """InvalidIntent: the tunnel lacks what the protocol needs, or has what it can't use."""

    @abstractmethod
    def describe(self, tunnel: Tunnel, template: Template) -> str:
        """The outer header as text, the way Open vSwitch prints it; fields patched per packet say by what."""


class IpProtocol(Protocol[AnyIpOptions]):
    """A protocol over IPv4 or IPv6: the remote is an IP address. A subclass adds its number and its header."""

    over_ip = True
    ip_protocol: ClassVar[int]
    """What the outer IP header says that follows, and where packets arrive."""

    def check(self, tunnel: Tunnel) -> None:
        """See Protocol."""
        if tunnel.remote is None:
            raise InvalidIntent(f"{self.name} needs remote: an IPv4 or IPv6 address, or any", field="remote")
        remote, local = tunnel.remote_address, tunnel.local_address
        if remote is None and local is None:
            raise InvalidIntent(
                "remote is any, so local must say at which of our addresses packets are accepted",
                field="local",
            )
        if remote is None or local is None:
            pass
        elif remote.version != local.version:
            raise InvalidIntent(
                f"{local} is IPv{local.version}, but the remote {remote} is IPv{remote.version}",
                field="local",
            )
        elif remote == local:
            raise InvalidIntent(f"{local} is the remote's address, too", field="local")
        if remote is not None and remote.is_link_local and tunnel.egress is None:
            raise InvalidIntent(f"{remote} is link-local, so egress must name the interface", field="egress")
        version = (remote or local or NOWHERE[self.underlays[0]]).version
        if version not in self.underlays:
            raise InvalidIntent(
                f"{remote or local} is IPv{version}, but {self.name} runs over IPv{self.underlays[0]} only",
                field="remote" if remote else "local",
            )
        if remote is not None:
            self._check_size(tunnel, version)

    def _check_size(self, tunnel: Tunnel, version: int) -> None:
        """InvalidIntent: the header that the options make is more than the data plane can carry."""
        try:
            self.build(tunnel, Path(0, NOWHERE[version], NO_MAC, None, NO_MAC, 0))
        except HeaderTooLong as error:
            raise InvalidIntent(f"{self.name} over IPv{version}: {error}") from None

    def accepted(self, tunnel: Tunnel, path: Path | None) -> tuple[bytes, bytes] | None:
        """See Protocol."""
        local = self.own_address(tunnel) or (path.local if path else None)
        if local is None:
            return None
        remote = tunnel.remote_address
        return (ipv6_bytes(remote) if remote else ANYONE), ipv6_bytes(local)

    def compose(self, tunnel: Tunnel, path: Path, protocol: int) -> Composer:
        """Ethernet and IP header of the tunnel, ready for what IP protocol number `protocol` puts behind them."""
        options = self.options_of(tunnel)
        destination = self.destination(tunnel)
        if destination is None:
            raise ValueError(f"tunnel {tunnel.name} has no remote to send to")
        return Composer(*outer_macs(tunnel, path)).ip(
            source=tunnel.local_address or path.local,
            destination=destination,
            protocol=protocol,
            ttl=options.ttl,
            dscp=options.dscp,
            dont_fragment=options.df,
        )

    def compose_udp(self, tunnel: Tunnel, path: Path, options: UdpOptions) -> Composer:
        """The same with a UDP header behind it."""
        composer = self.compose(tunnel, path, IP_PROTOCOL_UDP)
        return composer.udp(options.source_port, options.port, checksum=options.udp_checksum)

    @abstractmethod
    def describe_header(self, options: AnyIpOptions) -> str:
        """The tunnel header as text, such as `vxlan(flags=0x08,vni=0x64)`; "" without a header."""

    def listeners(self, options: AnyIpOptions) -> tuple[Listener, ...]:
        """See Protocol."""
        return (Listener(self.ip_protocol, ListenerKind.IP, self.parser),)

    def describe(self, tunnel: Tunnel, template: Template) -> str:
        """See Protocol."""
        header = self.describe_header(self.options_of(tunnel))
        return ",".join(filter(None, (describe_outer(template), header)))


class HeaderProtocol(IpProtocol[AnyIpOptions]):
    """A protocol whose header the options alone make."""

    @abstractmethod
    def header(self, options: AnyIpOptions) -> bytes:
        """The tunnel's own header, fields that depend on the packet zero."""

    def header_patches(self, options: AnyIpOptions) -> tuple[Patch, ...]:
        """What of the header depends on the packet, in the terms of `Composer.append`."""
        return ()

    def start(self, tunnel: Tunnel, path: Path) -> Composer:
        """What comes before the tunnel's own header."""
        return self.compose(tunnel, path, self.ip_protocol)

    def build(self, tunnel: Tunnel, path: Path) -> Template:
        """See Protocol."""
        options = self.options_of(tunnel)
        return (
            self.start(tunnel, path)
            .append(self.header(options), self.header_patches(options))
            .template(self.inner_families(options))
        )


class HeaderlessProtocol(HeaderProtocol[IpOptions]):
    """IP packets straight behind an IP header, which says that they follow."""

    parser = Parser.IP
    options = IpOptions
    told_apart_by = ("remote", "local")
    family: ClassVar[InnerFamily]
    """What it carries."""

    def header(self, options: IpOptions) -> bytes:
        """None."""
        return b""

    def inner_families(self, options: IpOptions) -> InnerFamily | None:
        """See Protocol."""
        return self.family

    def tunnel_id(self, options: IpOptions) -> int:
        """None: the addresses alone tell."""
        return 0

    def shadow(self, options: IpOptions) -> Shadow | None:
        """Over IPv6, SRv6 packets of one segment that have no header (RFC 8986 §5.2)."""
        if 6 not in self.underlays:
            return None
        return Shadow(Parser.SRV6, 0, "or give the srv6 tunnel a local_sid of its own")

    def describe_header(self, options: IpOptions) -> str:
        """See IpProtocol."""
        return ""


class UdpProtocol(HeaderProtocol[AnyUdpOptions]):
    """A protocol over UDP: all that a subclass adds is its own header."""

    ip_protocol = IP_PROTOCOL_UDP
    told_apart_by: ClassVar[tuple[str, ...]] = ("identifier", "remote", "local", "port")

    def start(self, tunnel: Tunnel, path: Path) -> Composer:
        """See HeaderProtocol."""
        return self.compose_udp(tunnel, path, self.options_of(tunnel))

    def listeners(self, options: AnyUdpOptions) -> tuple[Listener, ...]:
        """See Protocol."""
        return (Listener(options.port, ListenerKind.UDP, self.parser),)


def ipv6_bytes(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """An address in 16 bytes, IPv4 as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2)."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def outer_macs(tunnel: Tunnel, path: Path) -> tuple[bytes, bytes]:
    """Outer destination and source MAC: those of the intent where given, else those of the path."""
    destination = mac_bytes(tunnel.remote_mac) if tunnel.remote_mac else path.next_hop_mac
    source = mac_bytes(tunnel.local_mac) if tunnel.local_mac else path.local_mac
    if destination is None:
        raise ValueError(f"tunnel {tunnel.name}: the next hop's MAC address is not known")
    return destination, source
