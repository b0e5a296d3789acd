# SPDX-License-Identifier: GPL-2.0-only
"""What an operator wants of a node: named objects, each right in itself, and right together.

    Network   an overlay; addresses of different networks may overlap
    Port      an interface that MPTM works on: access (a workload is behind it) or uplink (the underlay is)
    Tunnel    a protocol to a remote, into a network
    Group     several tunnels of a network that share the flows which lead there
    Route     where a network has a prefix: via a tunnel or group, at a port, dropped, or left to the kernel
    Flow      the same for one pair of addresses; goes before routes
    Bundle    very many flows at once, which are kept in a file (mptm.bundles); flows go before it

Objects are immutable. An `Intent` holds them by key; its methods return a new one. A key is text: a name, for a route
`<network> <prefix>`, for a flow `<network> <source> <destination>`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import msgspec
from msgspec import Meta

from mptm.errors import AlreadyExists, InUse, InvalidIntent, NotFound
from mptm.facts import IPAddress
from mptm.fields import (
    SUGGESTED_FROM,
    Address,
    Checked,
    InterfaceName,
    Mac,
    Name,
    Prefix,
    Remote,
    UnicastAddress,
    arguments,
    fields_of,
    hex_bytes,
    labelled,
    show_value,
    suggestion,
    value_from_text,
)
from mptm.protocols import PROTOCOLS, Protocol
from mptm.protocols.base import IpOptions, Listener, Shadow
from mptm.sections import changed

MEMBERS_MAX = 256
"""Of a group."""

WEIGHT_MAX = 256


class Network(Checked, frozen=True, kw_only=True):
    """An overlay. `id` is what the data plane calls it; it is seen on no wire."""

    kind: ClassVar[str] = "network"

    name: Name
    id: Annotated[int, Meta(ge=1, le=2**32 - 1, description="number of the network on this node")]
    gateway: Annotated[
        tuple[UnicastAddress, ...],
        Meta(
            description="our address in the network, of each IP version at most one: errors come from there"
        ),
    ] = ()

    @property
    def key(self) -> str:
        """The name."""
        return self.name

    @property
    def gateways(self) -> dict[int, IPAddress]:
        """The gateway addresses by IP version."""
        return {address.version: address for address in map(ipaddress.ip_address, self.gateway)}

    def label(self) -> str:
        """See Checked."""
        return f"network {self.name}"

    def check(self) -> None:
        """See Checked."""
        found: dict[int, IPAddress] = {}
        for address in map(ipaddress.ip_address, self.gateway):
            if address.is_loopback:
                raise InvalidIntent(
                    f"{self.label()}: {address} is a loopback address, which no workload can reach",
                    field="gateway",
                )
            first = found.setdefault(address.version, address)
            if first is not address:
                raise InvalidIntent(
                    f"{self.label()}: {first} and {address} are both IPv{address.version}; "
                    "a network has one gateway address of each version",
                    field="gateway",
                )


class Port(Checked, frozen=True, kw_only=True):
    """An interface with a program of MPTM."""

    kind: ClassVar[str] = "port"

    name: InterfaceName
    role: Annotated[
        Literal["access", "uplink"],
        Meta(description="access: a workload is behind it; uplink: the underlay is"),
    ]
    network: Annotated[Name | None, Meta(description="network of the workload")] = None
    mode: Annotated[
        Literal["auto", "native", "generic"],
        Meta(description="where XDP runs; auto: in the driver if it can"),
    ] = "auto"
    hook: Annotated[
        Literal["xdp", "tc", "auto"],
        Meta(description="xdp: most packets; tc: most bytes, GSO kept whole; auto: by the kind of interface"),
    ] = "auto"
    mac: Annotated[
        Mac | None, Meta(description="gateway MAC that the workload is told; default: the interface's own")
    ] = None
    offloads: Annotated[
        bool,
        Meta(description="set at the other end of a veth what XDP needs there: checksums, VLAN tags, GRO"),
    ] = True
    outer_gro: Annotated[
        bool,
        Meta(description="of an uplink at TC: have an idle device, so that the kernel joins tunnel packets"),
    ] = True

    @property
    def key(self) -> str:
        """The interface's name."""
        return self.name

    def label(self) -> str:
        """See Checked."""
        return f"port {self.name}"

    def check(self) -> None:
        """See Checked."""
        if self.role == "access" and self.network is None:
            raise InvalidIntent(
                f"{self.label()}: an access port needs network, the one of its workload", field="network"
            )
        if self.hook == "tc" and self.mode != "auto":
            raise InvalidIntent(
                f"{self.label()}: mode {self.mode} is for XDP; with hook tc leave mode out", field="mode"
            )
        if self.role == "access" and not self.outer_gro:
            raise InvalidIntent(
                f"{self.label()}: outer_gro is an uplink's; an access port receives no tunnel packets",
                field="outer_gro",
            )
        for field in ("network", "mac"):
            if self.role == "uplink" and getattr(self, field) is not None:
                raise InvalidIntent(
                    f"{self.label()}: an uplink has no {field}, only access ports do; found {getattr(self, field)}",
                    field=field,
                )


class Encapsulation(Checked, frozen=True, kw_only=True):
    """A protocol with its options. Files write the options beside the protocol's name."""

    kind: ClassVar[str] = "encapsulation"
    expected: ClassVar[str] = "a protocol with its options, such as vxlan,vni=100"

    protocol: str
    options: Checked

    def __str__(self) -> str:
        given = self.options.to_dict()
        words = [
            f"{field.name}={_option_text(given[field.name], field.hexadecimal)}"
            for field in fields_of(type(self.options))
            if field.name in given
        ]
        return ",".join([self.protocol, *words])

    def label(self) -> str:
        """See Checked."""
        return self.protocol

    def check(self) -> None:
        """See Checked."""
        _check_options(self.protocol, self.options, self.label())

    def to_dict(self, *, defaults: bool = False) -> dict[str, Any]:
        """Flat: the options follow the protocol."""
        return {"protocol": self.protocol, **self.options.to_dict(defaults=defaults)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """See Checked; an option of another protocol is an error that lists those there are."""
        protocol = _protocol_in(values, "")
        options = {name: value for name, value in values.items() if name != "protocol"}
        return cls(protocol=protocol.name, options=_options_from(protocol, options, (), protocol.name))

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """See Checked; PROTOCOL,OPTION=VALUE,... will do."""
        return (
            cls.from_dict(encapsulation_values(value))
            if isinstance(value, str)
            else super().from_value(value)
        )


class Tunnel(Checked, frozen=True, kw_only=True):
    """A protocol to a remote. Files and commands write the protocol's options beside the other fields."""

    kind: ClassVar[str] = "tunnel"

    name: Name
    protocol: Annotated[str, Meta(description="encapsulation")]
    network: Annotated[Name, Meta(description="network of the inner packets")]
    remote: Annotated[
        Remote | None,
        Meta(
            description="the other end, the only sender that is accepted; any: accept everyone (receive only over IP)"
        ),
    ] = None
    local: Annotated[
        UnicastAddress | None, Meta(description="own outer address; default: by the routing table")
    ] = None
    remote_mac: Annotated[
        Mac | None, Meta(description="outer destination MAC; default: by the neighbour table")
    ] = None
    local_mac: Annotated[
        Mac | None, Meta(description="outer source MAC; default: the egress interface's")
    ] = None
    egress: Annotated[
        InterfaceName | None, Meta(description="interface to send from; default: by the routing table")
    ] = None
    split_horizon: Annotated[
        Annotated[int, Meta(ge=1, le=255)] | None,
        Meta(description="nothing is relayed between tunnels of the same number"),
    ] = None
    accept: Annotated[
        tuple[Encapsulation, ...],
        Meta(
            description="what is accepted from the remote beside what is sent: protocols, each with its options"
        ),
    ] = ()
    annotations: Annotated[dict[str, str], Meta(description="notes of programs that made the tunnel")] = (
        msgspec.field(default_factory=dict)
    )
    options: Checked

    @property
    def key(self) -> str:
        """The name."""
        return self.name

    @property
    def remote_address(self) -> IPAddress | None:
        """The remote where it is an address; None: any, or known by MAC only."""
        return None if self.remote in (None, "any") else ipaddress.ip_address(str(self.remote))

    @property
    def local_address(self) -> IPAddress | None:
        """The own address where it is given."""
        return None if self.local is None else ipaddress.ip_address(self.local)

    @property
    def destination(self) -> str | None:
        """Where packets go first: the remote (`any` or an address), or what the protocol has between."""
        found = None if self.remote in (None, "any") else find_protocol(self.protocol).destination(self)
        return self.remote if found is None else str(found)

    def variants(self) -> tuple[Tunnel, ...]:
        """The tunnel itself, and what it would be if it sent what it only accepts: the same ends and network."""
        if not self.accept:
            return (self,)
        return (
            self,
            *(
                msgspec.structs.replace(self, protocol=each.protocol, options=each.options, accept=())
                for each in self.accept
            ),
        )

    def label(self) -> str:
        """See Checked."""
        return f"tunnel {self.name}"

    def check(self) -> None:
        """See Checked."""
        protocol = _check_options(self.protocol, self.options, self.label())
        try:
            protocol.check(self)
        except InvalidIntent as error:
            raise labelled(error, self.label()) from None
        if self.accept:
            self._check_accepted()

    def _check_accepted(self) -> None:
        if twice := [each.protocol for each in self.accept if _count(each.protocol, self.accept) > 1]:
            raise InvalidIntent(f"{self.label()}: {twice[0]} is accepted twice", field="accept")
        try:
            variants = self.variants()
        except InvalidIntent as error:
            raise InvalidIntent(error.message, error.hint, field="accept") from None
        cookies: dict[tuple[Listener, int, int], tuple[bytes, int]] = {}
        for variant in variants:
            protocol, options = find_protocol(variant.protocol), variant.options
            verification = protocol.verification(options)
            cookie = verification.cookie, verification.sublayer_len
            for listener in protocol.listeners(options):
                packets = listener, protocol.accepted_parser(options), protocol.tunnel_id(options)
                if cookies.setdefault(packets, cookie) != cookie:
                    raise InvalidIntent(
                        f"{self.label()}: identifier {packets[2]} of {protocol.name} can't have "
                        "two cookies or sublayers",
                        "give what is accepted another identifier",
                        field="accept",
                    )
        for variant in variants:
            self._check_shadow(variant, variants)

    def _check_shadow(self, variant: Tunnel, variants: Iterable[Tunnel]) -> None:
        """InvalidIntent: packets of another variant would be taken for those of this, which carries nothing alike."""
        protocol = find_protocol(variant.protocol)
        shadow = protocol.shadow(variant.options)
        if shadow is None:
            return
        listeners = set(protocol.listeners(variant.options))
        for other in variants:
            theirs = find_protocol(other.protocol)
            name = theirs.accepted_parser(other.options), theirs.tunnel_id(other.options)
            if name != (shadow.parser, shadow.tunnel_id) or listeners.isdisjoint(
                theirs.listeners(other.options)
            ):
                continue
            families = (
                each.inner_families(of) for each, of in ((protocol, variant.options), (theirs, other.options))
            )
            if len({family is None for family in families}) > 1:
                raise InvalidIntent(
                    f"{self.label()}: packets of {theirs.name} may be taken for those of {protocol.name}",
                    f"let them differ, {shadow.way_out.removeprefix('or ')}",
                    field="accept",
                )

    def to_dict(self, *, defaults: bool = False) -> dict[str, Any]:
        """Flat: the protocol's options follow the common fields."""
        values = super().to_dict(defaults=defaults)
        annotations = values.pop("annotations", None)
        values |= values.pop("options").to_dict(defaults=defaults)
        return values if annotations is None else values | {"annotations": dict(annotations)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tunnel:
        """See Checked; an option of another protocol is an error that lists those there are."""
        label = f"tunnel {values['name']}" if isinstance(values.get("name"), str) else "tunnel"
        protocol = _protocol_in(values, label)
        common = {field.name for field in fields_of(cls)} - {"options"}
        given = {name: value for name, value in values.items() if name not in common}
        built = _options_from(protocol, given, common, label)
        rest = {name: value for name, value in values.items() if name in common}
        try:
            keywords = arguments(cls, rest | {"options": built}, "a tunnel")
        except InvalidIntent as error:
            raise labelled(error, label) from None
        return cls(**keywords)


def _protocol_in(values: Mapping[str, Any], label: str) -> Protocol[Any]:
    if "protocol" not in values:
        needs = InvalidIntent(f"needs protocol: {', '.join(PROTOCOLS)}", field="protocol")
        raise labelled(needs, label)
    return find_protocol(values["protocol"], label)


def _options_from(
    protocol: Protocol[Any], values: Mapping[str, Any], common: Collection[str], label: str
) -> Checked:
    """A protocol's options. InvalidIntent, labelled: one is unknown, missing or wrong; `common` may be meant."""
    options_type: type[Checked] = protocol.options
    known = {field.name for field in fields_of(options_type)}
    for name in values:
        if name not in known:
            raise InvalidIntent(
                f"{label}: {protocol.name} has no option {name}; it has {', '.join(sorted(known))}",
                suggestion(str(name), {*known, *common}),
                field=str(name),
            )
    try:
        return options_type(**arguments(options_type, values, f"a {protocol.name} tunnel"))
    except InvalidIntent as error:
        raise labelled(error, label) from None


def _check_options(protocol_name: str, options: Checked, label: str) -> Protocol[Any]:
    """The protocol that the options are of. InvalidIntent: they are another's."""
    protocol = find_protocol(protocol_name, label)
    if not isinstance(options, protocol.options):
        raise InvalidIntent(
            f"{label}: {type(options).__name__} are no options of {protocol.name}; "
            f"it takes {protocol.options.__name__}",
            field="options",
        )
    return protocol


def _count(protocol: str, encapsulations: Iterable[Encapsulation]) -> int:
    return sum(each.protocol == protocol for each in encapsulations)


def _option_text(value: object, hexadecimal: bool) -> str:
    if isinstance(value, list):
        return ",".join(_option_text(each, hexadecimal) for each in value)
    return show_value(value, hexadecimal) if isinstance(value, int) else str(value)


def encapsulation_values(text: str) -> dict[str, Any]:
    """The fields in PROTOCOL,OPTION=VALUE,...; the items of a list are separated by commas, too. InvalidIntent."""
    name, *given = (part.strip() for part in text.split(","))
    words: dict[str, str] = {}
    last = ""
    for part in given:
        option, equals, value = part.partition("=")
        if equals:
            last = option.strip().replace("-", "_")
            if last in words:
                raise InvalidIntent(f"{show_value(text)} says {option.strip()} twice")
            words[last] = value.strip()
        elif last:
            words[last] += f",{part}"
        else:
            raise InvalidIntent(f"{show_value(text)} is not {Encapsulation.expected}")
    options_type: type[Checked] = find_protocol(name).options
    fields = {field.name: field for field in fields_of(options_type)}
    return {
        "protocol": name,
        **{key: value_from_text(fields[key], word) if key in fields else word for key, word in words.items()},
    }


class Member(Checked, frozen=True, kw_only=True):
    """A tunnel in a group; of two members the one of twice the weight gets twice as many flows."""

    kind: ClassVar[str] = "member"
    expected: ClassVar[str] = f"a tunnel with a weight from 1 to {WEIGHT_MAX}, such as to-node2 or to-node2:3"

    tunnel: Name
    weight: Annotated[int, Meta(ge=1, le=WEIGHT_MAX)] = 1

    def __str__(self) -> str:
        return self.tunnel if self.weight == 1 else f"{self.tunnel}:{self.weight}"

    def label(self) -> str:
        """See Checked."""
        return f"member {self.tunnel}"

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """See Checked; TUNNEL alone or TUNNEL:WEIGHT will do."""
        if not isinstance(value, str):
            return super().from_value(value)
        tunnel, colon, weight = value.partition(":")
        if not colon:
            return cls(tunnel=tunnel)
        if not weight.isdecimal() or len(weight) > len(str(WEIGHT_MAX)):
            raise InvalidIntent(f"{show_value(value)} is not {cls.expected}")
        return cls(tunnel=tunnel, weight=int(weight))


class Group(Checked, frozen=True, kw_only=True):
    """Tunnels that share the flows which lead to the group. A flow stays where it is, unless its member goes."""

    kind: ClassVar[str] = "group"

    name: Name
    network: Name
    members: Annotated[tuple[Member, ...], Meta(description="tunnels of the network, with their weights")]

    @property
    def key(self) -> str:
        """The name."""
        return self.name

    def label(self) -> str:
        """See Checked."""
        return f"group {self.name}"

    def check(self) -> None:
        """See Checked."""
        if not self.members:
            raise InvalidIntent(f"{self.label()}: a group needs one member at least", field="members")
        if len(self.members) > MEMBERS_MAX:
            raise InvalidIntent(
                f"{self.label()}: {len(self.members)} members are given; {MEMBERS_MAX} is the most",
                field="members",
            )
        seen: set[str] = set()
        for member in self.members:
            if member.tunnel in seen:
                raise InvalidIntent(
                    f"{self.label()}: {member.tunnel} is a member twice",
                    "a weight says how much it gets",
                    field="members",
                )
            seen.add(member.tunnel)


class _Steered(Checked, frozen=True, kw_only=True):
    """What a packet is steered by: exactly one of via, group, port, drop and pass."""

    network: Name
    via: Annotated[Name | None, Meta(description="tunnel")] = None
    group: Annotated[Name | None, Meta(description="group of tunnels that share the flows")] = None
    port: Annotated[InterfaceName | None, Meta(description="local access port")] = None
    drop: Annotated[bool, Meta(description="drop, and count it")] = False
    pass_: Annotated[bool, Meta(description="leave it to the kernel's stack")] = msgspec.field(
        default=False, name="pass"
    )
    relay: Annotated[bool, Meta(description="packets that came out of another tunnel may go here, too")] = (
        False
    )
    mac: Annotated[Mac | None, Meta(description="inner destination MAC to write")] = None

    def check(self) -> None:
        """See Checked."""
        chosen = [name for name, value in self._next_hops().items() if value]
        if len(chosen) != 1:
            found = f"{' and '.join(chosen)} are given" if chosen else "none is given"
            raise InvalidIntent(
                f"{self.label()}: exactly one of via, group, port, drop and pass says where it leads; {found}",
                field=chosen[1] if chosen else "via",
            )
        if self.mac is not None and chosen[0] in ("drop", "pass"):
            raise InvalidIntent(
                f"{self.label()}: {self.mac} can't be used with {chosen[0]}; mac goes with via, group or port",
                field="mac",
            )
        if self.relay and chosen[0] not in ("via", "group"):
            raise InvalidIntent(
                f"{self.label()}: relay can't be used with {chosen[0]}; it goes with via or group",
                field="relay",
            )

    def to_dict(self, *, defaults: bool = False) -> dict[str, Any]:
        """See Checked; what a packet is steered by comes first."""
        values = super().to_dict(defaults=defaults)
        first = ("network", "prefix", "source", "destination")
        return {name: values[name] for name in first if name in values} | values

    def next_hop(self) -> str:
        """Where it leads, in words: `via to-node2 mac 02:...`."""
        named = {"via": self.via, "group": self.group, "port": self.port}
        where = next(
            (f"{kind} {name}" for kind, name in named.items() if name), "drop" if self.drop else "pass"
        )
        return where + (" relay" if self.relay else "") + (f" mac {self.mac}" if self.mac else "")

    def _next_hops(self) -> dict[str, object]:
        return {
            "via": self.via,
            "group": self.group,
            "port": self.port,
            "drop": self.drop,
            "pass": self.pass_,
        }


class Route(_Steered, frozen=True, kw_only=True):
    """Where a network has a prefix. The longest prefix wins."""

    kind: ClassVar[str] = "route"

    prefix: Prefix

    @property
    def key(self) -> str:
        """`<network> <prefix>`."""
        return f"{self.network} {self.prefix}"

    def label(self) -> str:
        """See Checked."""
        return f"route {self.network} {self.prefix}"


class Flow(_Steered, frozen=True, kw_only=True):
    """Where packets of one inner address to another go; goes before routes."""

    kind: ClassVar[str] = "flow"

    source: Address
    destination: Address
    annotations: Annotated[dict[str, str], Meta(description="notes of programs that made the flow")] = (
        msgspec.field(default_factory=dict)
    )

    @property
    def key(self) -> str:
        """`<network> <source> <destination>`."""
        return f"{self.network} {self.source} {self.destination}"

    def label(self) -> str:
        """See Checked."""
        return f"flow {self.network} {self.source} {self.destination}"

    def check(self) -> None:
        """See Checked."""
        super().check()
        source, destination = ipaddress.ip_address(self.source), ipaddress.ip_address(self.destination)
        if source.version != destination.version:
            raise InvalidIntent(
                f"{self.label()}: {destination} is IPv{destination.version}, but the source is IPv{source.version}",
                field="destination",
            )


class NextHop(_Steered, frozen=True, kw_only=True):
    """Where flows of a bundle lead. Written `<network> via <tunnel>`, `<network> group <group> relay`, ..."""

    kind: ClassVar[str] = "next hop"
    expected: ClassVar[str] = "a network and a next hop, such as: blue via to-node2"

    def __str__(self) -> str:
        return f"{self.network} {self.next_hop()}"

    def label(self) -> str:
        """See Checked."""
        return f"next hop in {self.network}"

    @property
    def key(self) -> str:
        """As it is written."""
        return str(self)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """From what `str` yields. InvalidIntent: it isn't like that."""
        network, *words = text.split()
        fields: dict[str, Any] = {"network": network}
        rest = iter(words)
        for word in rest:
            if word in ("via", "group", "port", "mac"):
                fields[word] = next(rest, None)
            elif word in ("drop", "pass", "relay"):
                fields[word] = True
            else:
                raise InvalidIntent(
                    f"{show_value(' '.join(words))} is no next hop",
                    "write via TUNNEL, group GROUP, port INTERFACE, drop or pass; then relay and mac MAC where wanted",
                )
        return cls.from_dict(fields)

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """See Checked; text will do."""
        return cls.from_text(value) if isinstance(value, str) and value.split() else super().from_value(value)


class Bundle(Checked, frozen=True, kw_only=True):
    """Very many flows, made by `mptm flow load`. The flows themselves are in a file that `content` names."""

    kind: ClassVar[str] = "bundle"

    name: Name
    flows: Annotated[int, Meta(ge=1, le=2**32 - 1, description="how many there are")]
    next_hops: Annotated[tuple[NextHop, ...], Meta(description="where they lead: networks with next hops")]
    content: Annotated[str, hex_bytes(32), Meta(description="SHA-256 of the file that they are kept in")]

    @property
    def key(self) -> str:
        """The name."""
        return self.name

    @property
    def network(self) -> None:
        """A bundle isn't of one network; see its next hops."""
        return

    @property
    def networks(self) -> set[str]:
        """The networks of its flows."""
        return {each.network for each in self.next_hops}

    def label(self) -> str:
        """See Checked."""
        return f"bundle {self.name}"


Object = Network | Port | Tunnel | Group | Route | Flow | Bundle

KINDS: dict[str, type[Object]] = {
    cls.kind: cls for cls in (Network, Port, Tunnel, Group, Route, Flow, Bundle)
}
"""The class of each kind, in an order in which nothing refers to what comes after it."""

STEERING = ("route", "flow")
"""Kinds that only refer to others, and of which there may be very many objects."""


def route_key(network: str, prefix: str) -> str:
    """Key of a route as an operator names it. InvalidIntent: `prefix` is none."""
    return Route(network=network, prefix=prefix, drop=True).key


def flow_key(network: str, source: str, destination: str) -> str:
    """Key of a flow as an operator names it. InvalidIntent: an address is none."""
    return Flow(network=network, source=source, destination=destination, drop=True).key


def find_protocol(name: object, label: str = "") -> Protocol[Any]:
    """The protocol of that name. InvalidIntent: there is none."""
    if isinstance(name, str) and name in PROTOCOLS:
        return PROTOCOLS[name]
    hint = suggestion(name, PROTOCOLS) if isinstance(name, str) else None
    error = InvalidIntent(
        f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}", hint, field="protocol"
    )
    raise labelled(error, label)


def tunnel_from_dict(values: Mapping[str, Any]) -> Tunnel:
    """A tunnel from its flat fields. InvalidIntent: a field or option is unknown, missing or wrong."""
    return Tunnel.from_dict(values)


def object_from_dict(kind: str, values: Mapping[str, Any]) -> Object:
    """An object of a kind from its fields. InvalidIntent: a field is unknown, missing or wrong."""
    return KINDS[kind].from_dict(values)


class Problem(NamedTuple):
    """Something that makes objects wrong together: which one, which field, what, and what to do."""

    kind: str
    key: str
    field: str
    message: str
    hint: str | None = None


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is wanted of one node. Never changed: methods return a new one."""

    networks: Mapping[str, Network] = {}
    ports: Mapping[str, Port] = {}
    tunnels: Mapping[str, Tunnel] = {}
    groups: Mapping[str, Group] = {}
    routes: Mapping[str, Route] = {}
    flows: Mapping[str, Flow] = {}
    bundles: Mapping[str, Bundle] = {}

    @classmethod
    def of(cls, objects: Iterable[Object]) -> Intent:
        """An intent of these objects. AlreadyExists: two have the same key."""
        by_kind: dict[str, dict[str, Any]] = {_section(kind): {} for kind in KINDS}
        for obj in objects:
            section = by_kind[_section(obj.kind)]
            if obj.key in section:
                raise AlreadyExists(f"{obj.label()} is there twice")
            section[obj.key] = obj
        return cls(**by_kind)

    def objects(self) -> Iterator[Object]:
        """Every object, in the order of KINDS."""
        for kind in KINDS:
            yield from self.of_kind(kind).values()

    def of_kind(self, kind: str) -> Mapping[str, Any]:
        """The objects of a kind by key."""
        section: Mapping[str, Any] = getattr(self, _section(kind))
        return section

    def get(self, kind: str, key: str) -> Any:
        """An object. NotFound: it isn't there; the hint names what is near or there."""
        section = self.of_kind(kind)
        if (found := section.get(key)) is None:
            raise NotFound(f"there is no {kind} {key}", suggestion(key, section) or _there_are(kind, section))
        return found

    def add(self, obj: Object) -> Intent:
        """With one object more. AlreadyExists: its key is taken."""
        if obj.key in self.of_kind(obj.kind):
            raise AlreadyExists(
                f"{obj.label()} already exists", f"`mptm {obj.kind} list` shows what there is"
            )
        return self._with(obj)

    def replace(self, obj: Object) -> Intent:
        """With another object in place of the one of the same key. NotFound: there is none."""
        self.get(obj.kind, obj.key)
        return self._with(obj)

    def remove(self, kind: str, key: str) -> Intent:
        """Without one object. NotFound: it isn't there; InUse: others refer to it."""
        obj = self.get(kind, key)
        if users := [user.label() for user in self.users(kind, key)]:
            shown = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
            raise InUse(f"{obj.label()} is in use by {shown}", "remove those first")
        return self._changed(kind, key, None)

    def users(self, kind: str, key: str) -> list[Object]:
        """The objects that refer to an object."""
        if kind in (*STEERING, Bundle.kind):  # nothing does
            return []
        return [obj for obj in self.objects() if key in _references(obj, kind)]

    def tunnels_of(self, obj: Route | Flow | NextHop) -> list[Tunnel]:
        """The tunnels that a route or flow may lead into, as far as they are there."""
        group = self.groups.get(obj.group or "")
        names = [obj.via or ""] if group is None else [member.tunnel for member in group.members]
        return [self.tunnels[name] for name in names if name in self.tunnels]

    def validate(self, steering: Iterable[Route | Flow | Bundle] | None = None) -> None:
        """InvalidIntent: objects are wrong together; the message is the first of `problems`.

        `steering`: nothing but these is new, and the intent `steers_freely`.
        """
        for problem in self.problems() if steering is None else self.steering_problems(steering):
            label = self.get(problem.kind, problem.key).label()
            raise InvalidIntent(f"{label}: {problem.message}", problem.hint, field=problem.field)

    def steering_problems(self, objects: Iterable[Route | Flow | Bundle]) -> Iterator[Problem]:
        """The same as `problems` says of these, where the rest of the intent is right and `steers_freely`."""
        for obj in objects:
            yield from self._references_of(obj)

    @property
    def steers_freely(self) -> bool:
        """Whether no route or flow can make another one wrong: see `_to_stack_problems`."""
        return not any(
            isinstance(tunnel.options, IpOptions) and tunnel.options.to_stack
            for tunnel in self.tunnels.values()
        )

    def problems(self) -> Iterator[Problem]:
        """Everything that makes objects wrong together."""
        yield from self._network_problems()
        yield from self._reference_problems()
        yield from self._to_stack_problems()
        yield from self._tunnel_problems()

    def _network_problems(self) -> Iterator[Problem]:
        owner: dict[int, str] = {}
        for network in self.networks.values():
            first = owner.setdefault(network.id, network.name)
            if first != network.name:
                message = f"id {network.id} is taken by network {first}"
                yield Problem("network", network.key, "id", message, f"{max(owner) + 1} is free")

    def _reference_problems(self) -> Iterator[Problem]:
        for obj in self.objects():
            yield from self._references_of(obj)

    def _references_of(self, obj: Object) -> Iterator[Problem]:
        if isinstance(obj, Network):
            return
        if obj.network is not None and obj.network not in self.networks:
            yield _dangling(obj, "network", obj.network, self.networks)
        elif isinstance(obj, Group):
            for member in obj.members:
                yield from self._sending_problems(obj, "members", member.tunnel)
        elif isinstance(obj, Route | Flow):
            yield from self._next_hop_problems(obj)
        elif isinstance(obj, Bundle):
            for next_hop in obj.next_hops:
                for problem in self._bundled_problems(next_hop):
                    yield problem._replace(kind=obj.kind, key=obj.key, field="next_hops")

    def _bundled_problems(self, obj: NextHop) -> Iterator[Problem]:
        if obj.network not in self.networks:
            yield _dangling(obj, "network", obj.network, self.networks)
            return
        yield from self._next_hop_problems(obj)
        for tunnel in self.tunnels_of(obj):
            if isinstance(tunnel.options, IpOptions) and tunnel.options.to_stack:
                message = (
                    f"tunnel {tunnel.name} hands packets to the kernel (to_stack): not for flows of a bundle"
                )
                yield Problem(obj.kind, obj.key, "via", message, "use routes or flows")

    def _sending_problems(
        self, obj: Group | Route | Flow | NextHop, field: str, name: str
    ) -> Iterator[Problem]:
        """What keeps an object from leading into a tunnel."""
        tunnel = self.tunnels.get(name)
        if tunnel is None:
            yield _dangling(obj, field, name, self.tunnels)
        elif tunnel.network != obj.network:
            message = f"tunnel {name} is of network {tunnel.network}, not {obj.network}"
            yield Problem(obj.kind, obj.key, field, message)
        elif tunnel.remote == "any" and find_protocol(tunnel.protocol).over_ip:
            message = f"tunnel {name} has remote any: it only receives"
            yield Problem(obj.kind, obj.key, field, message, "give the tunnel a remote to send to")

    def _next_hop_problems(self, obj: Route | Flow | NextHop) -> Iterator[Problem]:
        if obj.via is not None:
            yield from self._sending_problems(obj, "via", obj.via)
        if obj.group is not None:
            group = self.groups.get(obj.group)
            if group is None:
                yield _dangling(obj, "group", obj.group, self.groups)
            elif group.network != obj.network:
                message = f"group {obj.group} is of network {group.network}, not {obj.network}"
                yield Problem(obj.kind, obj.key, "group", message)
        if obj.port is not None:
            port = self.ports.get(obj.port)
            if port is None:
                yield _dangling(obj, "port", obj.port, self.ports)
            elif port.role != "access":
                message = f"port {obj.port} is an uplink; packets are delivered to access ports"
                yield Problem(obj.kind, obj.key, "port", message)
            elif port.network != obj.network:
                message = f"port {obj.port} is of network {port.network}, not {obj.network}"
                yield Problem(obj.kind, obj.key, "port", message)

    def _to_stack_problems(self) -> Iterator[Problem]:
        """Packets that the kernel would silently discard, being addressed to another MAC than the port's own.

        A flow's own mac is no such case: it is written into the inner frame, but nobody is told it.
        """
        gateways = {port.network: port for port in self.ports.values() if port.mac is not None}
        steered: list[Route | Flow] = [*self.routes.values(), *self.flows.values()]
        for obj in steered:
            to_stack = (
                tunnel
                for tunnel in self.tunnels_of(obj)
                if isinstance(tunnel.options, IpOptions) and tunnel.options.to_stack
            )
            if (tunnel := next(to_stack, None)) is None:
                continue
            told: Route | Port | None = gateways.get(obj.network)
            if isinstance(obj, Flow):
                told = told or self._told_by_route(obj)
            elif obj.mac is not None:
                told = obj
            if told is not None:
                yield _not_for_the_stack(obj, tunnel, told)

    def _told_by_route(self, flow: Flow) -> Route | None:
        """The route that ARP for a flow's destination is answered by, where that names a MAC address."""
        address = ipaddress.ip_address(flow.destination)
        for prefix_len in range(address.max_prefixlen, -1, -1):
            prefix = ipaddress.ip_network((address, prefix_len), strict=False)
            route = self.routes.get(f"{flow.network} {prefix}")
            if route is not None:
                return None if route.mac is None else route
        return None

    def _tunnel_problems(self) -> Iterator[Problem]:
        listening: dict[tuple[int, int], tuple[Tunnel, int]] = {}
        accepting: dict[tuple[Listener, int, int, str | None], list[Tunnel]] = {}
        for tunnel in self.tunnels.values():
            for variant in tunnel.variants():
                yield from self._variant_problems(tunnel, variant, listening, accepting)
        yield from self._shadow_problems(accepting)

    def _variant_problems(
        self,
        tunnel: Tunnel,
        variant: Tunnel,
        listening: dict[tuple[int, int], tuple[Tunnel, int]],
        accepting: dict[tuple[Listener, int, int, str | None], list[Tunnel]],
    ) -> Iterator[Problem]:
        """What of a tunnel, or of what it accepts, is in the way of what was before; `variant` is added to that."""
        protocol = find_protocol(variant.protocol)
        for listener in protocol.listeners(variant.options):
            first, parser = listening.setdefault((listener.kind, listener.number), (variant, listener.parser))
            if parser != listener.parser:
                message = f"port {listener.number} is taken by {first.protocol} (tunnel {first.name})"
                field = "port" if variant is tunnel else "accept"
                yield Problem("tunnel", tunnel.key, field, message, "one UDP port carries one protocol")
            # By MAC, senders can be told apart where remote isn't an address.
            sender = variant.remote or variant.remote_mac
            kind, number = protocol.accepted_parser(variant.options), protocol.tunnel_id(variant.options)
            same = accepting.setdefault((listener, kind, number, sender), [])
            for other in same:
                if other.name != tunnel.name and _may_meet(variant, other):
                    yield _same_packets(variant, other, "remote" if variant is tunnel else "accept")
                    break
            same.append(variant)

    def _shadow_problems(
        self, accepting: Mapping[tuple[Listener, int, int, str | None], Iterable[Tunnel]]
    ) -> Iterator[Problem]:
        """Tunnels that would get packets of another protocol's; an any-sender tunnel those of every sender."""
        by_name: dict[tuple[Listener, int, int], list[tuple[str | None, Iterable[Tunnel]]]] = {}
        for (listener, parser, number, sender), tunnels in accepting.items():
            by_name.setdefault((listener, parser, number), []).append((sender, tunnels))
        for (listener, _, _, sender), tunnels in accepting.items():
            for variant in tunnels:
                shadow = find_protocol(variant.protocol).shadow(variant.options)
                if shadow is None:
                    continue
                for other in _from_sender(
                    sender, by_name.get((listener, shadow.parser, shadow.tunnel_id), [])
                ):
                    if other.name != variant.name and _may_meet(variant, other):
                        yield self._taken_from(other, variant, shadow)

    def _taken_from(self, loser: Tunnel, winner: Tunnel, shadow: Shadow) -> Problem:
        """Both tunnels as if they sent what is accepted."""
        message = (
            f"packets of {loser.protocol} from {loser.remote} may be taken for those of {winner.protocol}, "
            f"for tunnel {winner.name} of network {winner.network}"
        )
        sends = self.tunnels[loser.name].protocol == loser.protocol
        hint = f"let them differ in remote or local, {shadow.way_out}"
        return Problem("tunnel", loser.key, "remote" if sends else "accept", message, hint)

    def _with(self, obj: Object) -> Intent:
        return self._changed(obj.kind, obj.key, obj)

    def _changed(self, kind: str, key: str, obj: Object | None) -> Intent:
        return msgspec.structs.replace(self, **{_section(kind): changed(self.of_kind(kind), {key: obj})})


def _section(kind: str) -> str:
    return f"{kind}s"


def _references(obj: Object | NextHop, kind: str) -> set[str]:
    """Names of the objects of a kind that an object refers to."""
    if kind == "tunnel" and isinstance(obj, Group):
        return {member.tunnel for member in obj.members}
    if isinstance(obj, Bundle):
        return set().union(*(_references(each, kind) for each in obj.next_hops))
    field = {"network": "network", "tunnel": "via", "group": "group", "port": "port"}.get(kind)
    found = None if field is None or obj.kind == kind else getattr(obj, field, None)
    return set() if found is None else {found}


def _there_are(kind: str, section: Collection[str]) -> str:
    listing, making = ("flow bundles", "flow load") if kind == "bundle" else (f"{kind} list", f"{kind} add")
    if len(section) > SUGGESTED_FROM:
        return f"`mptm {listing}` shows the {len(section)} that there are"
    names = sorted(section)
    if not names:
        return f"there are no {kind}s yet; `mptm {making} --help` says how to make one"
    are = "is" if len(names) == 1 else "are"
    return f"there {are} {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _dangling(obj: Object | NextHop, field: str, name: str, section: Mapping[str, object]) -> Problem:
    kind = "tunnel" if field in ("via", "members") else field
    hint = suggestion(name, section) or _there_are(kind, section)
    return Problem(obj.kind, obj.key, field, f"there is no {kind} {name}", hint)


def _may_meet(one: Tunnel, other: Tunnel) -> bool:
    """Whether the same packet may be for both: what isn't given may turn out to be equal.

    Own addresses tell packets over IP apart, interfaces those without IP; a frame has no IP address of ours.
    """
    if not find_protocol(one.protocol).over_ip and None not in (one.egress, other.egress):
        return one.egress == other.egress
    ours, theirs = (find_protocol(each.protocol).own_address(each) for each in (one, other))
    return None in (ours, theirs) or ours == theirs


def _from_sender(
    sender: str | None, accepting: Iterable[tuple[str | None, Iterable[Tunnel]]]
) -> Iterator[Tunnel]:
    """The tunnels that may get packets of this sender, or of whom the sender (any) may be."""
    for other, tunnels in accepting:
        if sender == other or "any" in (sender, other):
            yield from tunnels


def _not_for_the_stack(obj: Route | Flow, tunnel: Tunnel, told: Route | Port) -> Problem:
    message = (
        f"tunnel {tunnel.name} hands packets to the kernel (to_stack), which takes only those that are addressed "
        f"to the access port's own MAC address, but {'it' if told is obj else told.label()} "
        f"tells workloads {told.mac}"
    )
    of_whom = "mac" if told is obj else f"mac of {told.label()}"
    hint = f"leave out {of_whom}, or to_stack of tunnel {tunnel.name}"
    field = "mac" if told is obj else "via" if obj.via is not None else "group"
    return Problem(obj.kind, obj.key, field, message, hint)


def _same_packets(tunnel: Tunnel, other: Tunnel, field: str) -> Problem:
    protocol = find_protocol(tunnel.protocol)
    *differ, last = protocol.told_apart_by
    identifier = f", identifier {protocol.tunnel_id(tunnel.options)}" if "identifier" in differ else ""
    message = (
        f"accepts the same packets as tunnel {other.name} of network {other.network} "
        f"({protocol.name}{identifier}, from {tunnel.remote or tunnel.remote_mac})"
    )
    return Problem("tunnel", tunnel.key, field, message, f"let them differ in {', '.join(differ)} or {last}")
