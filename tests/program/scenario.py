# SPDX-License-Identifier: GPL-2.0-only
"""A node as a test describes it: what its operator wants, and what the machine is. Plain values, printed as code."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address
from typing import Any

from world import (
    GATEWAY_MAC,
    LOCAL,
    LOCAL_MAC,
    NEIGHBOUR_MAC,
    OUR_MAC,
    REMOTE,
    REMOTE_MAC,
    UPLINK_MTU,
    World,
)

from mptm.facts import Facts, Link, Path
from mptm.intent import Intent, Network, Object, Port, Tunnel, object_from_dict

WORKLOAD_MACS = {"c1": OUR_MAC, "c2": NEIGHBOUR_MAC, "c3": OUR_MAC}
OTHER_UPLINK_MAC = "02:00:00:30:00:11"
UPLINKS = ("up0", "up1")
ROUTER = {4: "10.30.30.254", 6: "fd00:30:30::fe"}


@dataclass(frozen=True)
class Scenario:
    """objects   fields of tunnels, groups, routes and flows, each with its `kind`; networks and ports are World's
    mtus      of ports, where it isn't 1500
    paths     of tunnels by name, where they differ from "on-link at up0": None: there is no route; else
              egress, mtu, behind_router, is_silent (the next hop doesn't answer)
    macs      gateway MAC of access ports that have one of their own
    gateways  gateway addresses of networks
    missing   ports whose interface isn't there
    is_far    it is the node at the other end of the underlay
    """

    objects: tuple[dict[str, Any], ...]
    mtus: dict[str, int] = field(default_factory=dict)
    paths: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    macs: dict[str, str] = field(default_factory=dict)
    gateways: dict[str, list[str]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    is_far: bool = False

    def as_code(self, indent: int) -> str:
        """What makes it, to be pasted behind an `=` that is indented so far."""
        start, inside = "\n" + " " * (indent + 4), "\n" + " " * (indent + 8)
        code = f"Scenario({start}({inside}{f',{inside}'.join(map(repr, self.objects))},{start}),"
        for name in ("mtus", "paths", "macs", "gateways", "missing", "is_far"):
            if value := getattr(self, name):
                code += f"{start}{name}={value!r},"
        return code + "\n" + " " * indent + ")"

    @cached_property
    def intent(self) -> Intent:
        ports = [
            Port(name="c1", role="access", network="blue", mac=self.macs.get("c1")),
            Port(name="c2", role="access", network="blue", mac=self.macs.get("c2")),
            Port(name="c3", role="access", network="green", mac=self.macs.get("c3")),
            *(Port(name=name, role="uplink") for name in UPLINKS),
        ]
        made = [made_object(values) for values in self.objects]
        networks = [
            Network(name=name, id=number, gateway=tuple(self.gateways.get(name, ())))
            for name, number in (("blue", 1), ("green", 0x01020304))
        ]
        return Intent.of([*networks, *ports, *made])

    @cached_property
    def facts(self) -> Facts:
        own_mac = REMOTE_MAC if self.is_far else LOCAL_MAC
        uplink_macs = {"up0": own_mac, "up1": OTHER_UPLINK_MAC}
        links = {
            name: Link(
                ifindex=World.IFINDEX[name],
                name=name,
                mac=_mac(uplink_macs.get(name, GATEWAY_MAC)),
                mtu=self.mtus.get(name, UPLINK_MTU),
                kind="veth",
                peer_mac=_mac(WORKLOAD_MACS[name]) if name in WORKLOAD_MACS else None,
            )
            for name in World.PORTS
            if name not in self.missing
        }
        paths = {
            tunnel.name: made
            for tunnel in self.intent.tunnels.values()
            if tunnel.remote_address is not None and (made := self._path(tunnel, links))
        }
        return Facts(links, paths)

    def _path(self, tunnel: Tunnel, links: dict[str, Link]) -> Path | None:
        given = self.paths.get(tunnel.name, {})
        if given is None or given.get("egress", "up0") not in links:
            return None
        version = ip_address(str(tunnel.destination)).version
        egress = links[given.get("egress", "up0")]
        own, theirs = (REMOTE, LOCAL_MAC) if self.is_far else (LOCAL, REMOTE_MAC)
        return Path(
            egress_ifindex=egress.ifindex,
            local=tunnel.local_address or ip_address(own[version]),
            local_mac=egress.mac,
            gateway=ip_address(ROUTER[version]) if given.get("behind_router") else None,
            next_hop_mac=None if given.get("is_silent") else _mac(theirs),
            mtu=given.get("mtu", UPLINK_MTU),
        )


def made_object(values: dict[str, Any]) -> Object:
    """A tunnel, group, route or flow from its fields and its kind."""
    return object_from_dict(values["kind"], {name: values[name] for name in values if name != "kind"})


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
