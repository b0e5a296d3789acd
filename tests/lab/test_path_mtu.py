# SPDX-License-Identifier: GPL-2.0-only
"""Containers whose links take more than a tunnel does: the gateway tells their kernels the MTU, and TCP goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from traffic import (
    CARRIERS,
    HOOK,
    MEGABYTE,
    NODES,
    address_of,
    carried_by,
    packet_of,
    ping,
    transfer,
    try_ping,
)

from mptm.intent import Intent, Object, Route, Tunnel, tunnel_from_dict
from mptm.lab.topology import Lab, configure

GATEWAY = {4: "10.250.1.1", 6: "fd00:250:1::1"}


@pytest.fixture(scope="module")
def lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    with Lab(lab_prefix(), container_mtu=1500) as built:
        yield built


def learned_mtu(lab: Lab, target: str, version: int, address: str) -> int | None:
    """What the container's kernel found out for a destination; None: nothing."""
    shown = lab.exec(target, ["ip", f"-{version}", "-json", "route", "get", address]).stdout
    (route,) = json.loads(shown)
    metrics = route.get("metrics") or [{}]
    mtu = metrics[0].get("mtu")
    return None if mtu is None else int(mtu)


def forget(lab: Lab, target: str) -> None:
    for version in ("-4", "-6"):
        lab.exec(target, ["ip", version, "route", "flush", "cache"])


@pytest.mark.parametrize("version", [4, 6])
def test_the_gateway_is_reached_and_never_leaves_the_node(lab: Lab, version: int) -> None:
    ping(lab, "node1-c1", GATEWAY[version])


@pytest.mark.parametrize(("protocol", "underlay"), CARRIERS, ids=str)
def test_a_kernel_learns_what_fits_and_tcp_adapts_to_it(lab: Lab, protocol: str, underlay: int) -> None:
    for node in NODES:
        lab.node(node).apply(carried_by(lab, node, protocol, underlay))
        forget(lab, f"{node}-c1")
    mtu = lab.node("node1").inner_mtu("blue")
    assert mtu is not None
    for version in (4, 6):
        remote = address_of(lab, "node2-c1", version)
        if mtu >= 1500:  # VLAN tags don't count
            ping(lab, "node1-c1", remote, *packet_of(version, 1500), count=1)
            continue
        said = try_ping(lab, "node1-c1", remote, *packet_of(version, 1500), count=2, wait_seconds=0.5)
        assert "0 received" in said
        assert learned_mtu(lab, "node1-c1", version, remote) == mtu
        ping(lab, "node1-c1", remote, *packet_of(version, mtu), count=1)
        transfer(lab, "node1-c1", "node2-c1", version, size=MEGABYTE)


C1, C2 = {4: "10.250.1.100", 6: "fd00:250:1::100"}, {4: "10.250.1.102", 6: "fd00:250:1::102"}


def routes(network: str, addresses: dict[int, str], **more: Any) -> list[Route]:
    """Of single addresses."""
    return [
        Route(network=network, prefix=f"{address}/{32 if version == 4 else 128}", **more)
        for version, address in addresses.items()
    ]


def with_objects(intent: Intent, *objects: Object) -> Intent:
    for obj in objects:
        intent = intent.replace(obj) if obj.key in intent.of_kind(obj.kind) else intent.add(obj)
    return intent


def tunnel(name: str, protocol: str, network: str, remote: str, vni: int) -> Tunnel:
    fields = {"name": name, "protocol": protocol, "network": network, "remote": remote, "vni": vni}
    return tunnel_from_dict(fields)


def test_a_relay_passes_transfers_from_vxlan_on_into_geneve(lab: Lab) -> None:
    """c1 of node 1 by VXLAN to node 2, which relays it by GENEVE over IPv6 to c2 of node 1, and back."""
    lines = ["address flush dev eth0"]
    lines += [f"address add {C2[4]}/24 dev eth0", f"address add {C2[6]}/64 dev eth0 nodad"]
    configure(lab.namespace("node1-c2"), lines)
    forget(lab, "node1-c1")
    near, far = lab.node("node1"), lab.node("node2")
    near.apply(
        with_objects(
            lab.intent("node1"),
            tunnel("blue-to-node2", "vxlan", "blue", address_of(lab, "node2"), 100),
            tunnel("green-to-node2", "geneve", "green", address_of(lab, "node2", 6), 300),
            *routes("blue", C1, port="veth-c1"),
            *routes("blue", C2, via="blue-to-node2"),
            *routes("green", C2, port="veth-c2"),
            *routes("green", C1, via="green-to-node2"),
        )
    )
    far.apply(
        with_objects(
            lab.intent("node2"),
            tunnel("blue-to-node1", "vxlan", "blue", address_of(lab, "node1"), 100),
            tunnel("second", "geneve", "blue", address_of(lab, "node1", 6), 300),
            *routes("blue", C1, via="blue-to-node1", relay=True),
            *routes("blue", C2, via="second", relay=True),
        )
    )
    for version in (4, 6):
        ping(lab, "node1-c1", C2[version])
        # 1450 bytes fit the first tunnel, 1430 the second: the relay says so, through the first.
        said = try_ping(lab, "node1-c1", C2[version], *packet_of(version, 1450), count=2, wait_seconds=0.5)
        assert "0 received" in said
        if HOOK == "xdp":
            assert learned_mtu(lab, "node1-c1", version, C2[version]) == 1430
        else:
            # docs/hooks.md, "Limits": at TC, between nodes on one machine, it is dropped without an answer.
            assert learned_mtu(lab, "node1-c1", version, C2[version]) is None
            dropped = sum(drop.packets for drop in far.drops() if drop.reason == "REASON_TOO_BIG")
            assert dropped == {4: 2, 6: 4}[version]
            lab.exec(
                "node1-c1", ["ip", f"-{version}", "route", "add", C2[version], "dev", "eth0", "mtu", "1430"]
            )
        transfer(lab, "node1-c1", "node1-c2", version, address=C2[version], size=2 * MEGABYTE)
    relayed = far.counters().tunnels
    assert min(relayed["second"].encap_packets, relayed["blue-to-node1"].encap_packets) > 100
    assert {drop.reason for drop in far.drops()} == {"REASON_TOO_BIG"}
