# SPDX-License-Identifier: GPL-2.0-only
"""The tables of the data plane as plain data: what `compile` yields and `sync` writes.

A record is a NamedTuple whose name and fields are those of the C struct in bpf/abi.h (snake case to camel
case); `mptm.kernel.btf` packs it by the layout in the object's BTF. Byte strings stay as they go on the wire,
integers are in host order: the packer knows which C fields are big-endian.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class FlowKeyV4(NamedTuple):
    network: int
    source: bytes
    destination: bytes


class FlowKeyV6(NamedTuple):
    network: int
    source: bytes
    destination: bytes


class HostKeyV4(NamedTuple):
    network: int
    address: bytes


class HostKeyV6(NamedTuple):
    network: int
    address: bytes


class PrefixKeyV4(NamedTuple):
    prefix_len: int
    network: int
    address: bytes


class PrefixKeyV6(NamedTuple):
    prefix_len: int
    network: int
    address: bytes


class NextHop(NamedTuple):
    kind: int
    flags: int
    mac: bytes
    id: int


class Port(NamedTuple):
    ifindex: int
    network: int
    mtu: int
    role: int
    lookups: int
    mac: bytes
    flags: int = 0


class Patch(NamedTuple):
    op: int
    offset: int
    bias: int


class Tunnel(NamedTuple):
    outer: bytes
    patches: tuple[Patch, ...]
    outer_len: int
    strip: int
    patch_count: int
    max_len: int
    egress_ifindex: int
    counter: int
    flags: int
    tos_mask: int
    ttl_mask: int
    inner_families: int
    split_horizon: int = 0
    gso: int = 0
    outer_version: int = 0
    fixed_patches: int = 0
    fixed_count: int = 0


class Group(NamedTuple):
    tunnels: tuple[int, ...]


class Gateway(NamedTuple):
    address_v4: bytes
    address_v6: bytes
    has_v4: int
    has_v6: int


class ListenerRow(NamedTuple):
    parsers: bytes


class Termination(NamedTuple):
    source: bytes
    destination: bytes
    tunnel_id: int
    number: int
    parser: int
    can_reply: int
    network: int
    tunnel: int
    counter: int
    lookups: int
    cookie_len: int
    sublayer_len: int
    flags: int
    cookie: bytes


class LocalKey(NamedTuple):
    address: bytes


@dataclass
class Tables:
    """Every table that the control plane writes, by the map's name in bpf/maps.h; ARRAYs hold used slots only."""

    gateways: dict[int, Gateway] = field(default_factory=dict)
    ports: dict[int, Port] = field(default_factory=dict)
    flows_v4: dict[FlowKeyV4, NextHop] = field(default_factory=dict)
    flows_v6: dict[FlowKeyV6, NextHop] = field(default_factory=dict)
    hosts_v4: dict[HostKeyV4, NextHop] = field(default_factory=dict)
    hosts_v6: dict[HostKeyV6, NextHop] = field(default_factory=dict)
    prefixes_v4: dict[PrefixKeyV4, NextHop] = field(default_factory=dict)
    prefixes_v6: dict[PrefixKeyV6, NextHop] = field(default_factory=dict)
    tunnels: dict[int, Tunnel] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    listeners: dict[int, ListenerRow] = field(default_factory=dict)
    terminations: dict[int, Termination] = field(default_factory=dict)
    locals: dict[LocalKey, int] = field(default_factory=dict)
    tx_ports: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Attachment:
    """A program on an interface: role is "access" (mptm_encap_*) or "uplink" (mptm_decap_*), hook "xdp" or "tc".

    `mode` is how XDP is attached; at TC it says nothing.
    """

    ifindex: int
    name: str
    role: str
    mode: str
    hook: str = "xdp"
