# SPDX-License-Identifier: GPL-2.0-only
"""What a tunnel protocol is: options that an operator sets, the header they make, and what is accepted back.

To add one, write a module in this package that ends in `PROTOCOL = MyProtocol()`; a protocol over UDP states its
options and the bytes of its own header, and inherits the rest.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, Literal, TypeVar

from msgspec import Meta

from mptm.errors import InvalidIntent
from mptm.facts import Path
from mptm.fields import Checked, mac_bytes
from mptm.headers import IP_PROTOCOL_UDP, Composer, describe_outer
from mptm.tables import Listener
from mptm.template import Template

if TYPE_CHECKING:
    from mptm.intent import Tunnel

ANYONE = bytes(16)
"""Address of a termination that accepts every sender."""


class ListenerKind(IntEnum):
    """Mirrors `enum listener_kind` of bpf/abi.h; a unit test compares the two."""

    UDP = 1
    IP = 2
    ETHERTYPE = 3


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
    parser: ClassVar[int]
    """Value of `enum parser` of bpf/abi.h; protocols that share a header share it."""
    options: type[AnyOptions]
    """What an operator sets, beside what every tunnel has."""
    over_ip: ClassVar[bool]
    """Whether there is an IP header between the outer Ethernet header and the tunnel's own."""

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
        """Where its packets arrive: UDP port, IP protocol or EtherType."""

    @abstractmethod
    def tunnel_id(self, options: AnyOptions) -> int:
        """What tells two tunnels of the same peers apart on the wire: VNI, VID, key, ..."""

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
    """A protocol over IPv4 and IPv6: the remote is an IP address."""

    over_ip = True

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

    def accepted(self, tunnel: Tunnel, path: Path | None) -> tuple[bytes, bytes] | None:
        """See Protocol."""
        local = tunnel.local_address or (path.local if path else None)
        if local is None:
            return None
        remote = tunnel.remote_address
        return (ipv6_bytes(remote) if remote else ANYONE), ipv6_bytes(local)

    def compose(self, tunnel: Tunnel, path: Path, protocol: int) -> Composer:
        """Ethernet and IP header of the tunnel, ready for what IP protocol number `protocol` puts behind them."""
        options = self.options_of(tunnel)
        if tunnel.remote_address is None:
            raise ValueError(f"tunnel {tunnel.name} has no remote to send to")
        return Composer(*outer_macs(tunnel, path)).ip(
            source=tunnel.local_address or path.local,
            destination=tunnel.remote_address,
            protocol=protocol,
            ttl=options.ttl,
            dscp=options.dscp,
            dont_fragment=options.df,
        )


class UdpProtocol(IpProtocol[AnyUdpOptions]):
    """A protocol over UDP: all that a subclass adds is its own header."""

    @abstractmethod
    def header(self, options: AnyUdpOptions) -> bytes:
        """The tunnel header that follows UDP."""

    @abstractmethod
    def describe_header(self, options: AnyUdpOptions) -> str:
        """The tunnel header as text, such as `vxlan(flags=0x08,vni=0x64)`."""

    def build(self, tunnel: Tunnel, path: Path) -> Template:
        """See Protocol."""
        options = self.options_of(tunnel)
        return (
            self.compose(tunnel, path, IP_PROTOCOL_UDP)
            .udp(options.source_port, options.port)
            .append(self.header(options))
            .template()
        )

    def listeners(self, options: AnyUdpOptions) -> tuple[Listener, ...]:
        """See Protocol."""
        return (Listener(options.port, ListenerKind.UDP, self.parser),)

    def describe(self, tunnel: Tunnel, template: Template) -> str:
        """See Protocol."""
        return f"{describe_outer(template)},{self.describe_header(self.options_of(tunnel))}"


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
