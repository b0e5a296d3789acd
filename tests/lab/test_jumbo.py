# SPDX-License-Identifier: GPL-2.0-only
"""An underlay of 9000 bytes: XDP in the driver, frames in several buffers from container to container."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from traffic import (
    MEGABYTE,
    NODES,
    Capture,
    address_of,
    carried_by,
    drops,
    packet_of,
    ping,
    transfer,
    try_ping,
)

from mptm.intent import Intent
from mptm.lab.topology import Lab

UNDERLAY_MTU, CONTAINER_MTU = 9000, 8900
CARRIERS: list[tuple[str, int, dict[str, Any]]] = [
    ("geneve", 4, {}),
    ("vxlan", 6, {"receive_checksum": "verify"}),
    ("gre", 4, {"checksum": True}),
    ("vlan", 4, {}),
]


@pytest.fixture(scope="module")
def lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    with Lab(lab_prefix(), underlay_mtu=UNDERLAY_MTU, container_mtu=CONTAINER_MTU) as built:
        yield built


def at_xdp(intent: Intent) -> Intent:
    for port in intent.ports.values():
        intent = intent.replace(replace(port, hook="xdp"))
    return intent


@pytest.fixture(params=CARRIERS, ids=lambda each: f"{each[0]}-over-v{each[1]}")
def carrier(request: pytest.FixtureRequest, lab: Lab) -> tuple[str, int]:
    protocol, underlay, options = request.param
    for name in NODES:
        lab.node(name).apply(at_xdp(carried_by(lab, name, protocol, underlay, **options)))
    return protocol, underlay


def test_jumbo_frames_go_through_native_xdp(lab: Lab, carrier: tuple[str, int]) -> None:
    """Random bytes each way by TCP, and datagrams that fill a container's link to the last byte."""
    for name in NODES:
        status = lab.node(name).status()
        assert set(status.attached.values()) == {"native"}, status.attached
    with Capture(lab, "underlay", "node2") as wire:
        for version in (4, 6):
            remote = address_of(lab, "node2-c1", version)
            ping(lab, "node1-c1", remote, *packet_of(version, CONTAINER_MTU))
        assert wire.find(lambda frame: len(frame) > CONTAINER_MTU, wait_seconds=1)
    for version in (4, 6):
        transfer(lab, "node1-c1", "node2-c1", version, size=20 * MEGABYTE)


def test_what_is_too_big_even_for_them_is_told_to_its_sender(lab: Lab) -> None:
    for name in NODES:
        lab.node(name).apply(at_xdp(carried_by(lab, name, "geneve", 4)))
    for target, interface in (("node1", "veth-c1"), ("node1-c1", "eth0")):
        lab.exec(target, ["ip", "link", "set", interface, "mtu", str(UNDERLAY_MTU)])
    lab.node("node1").restore()
    try:
        before = drops(lab.node("node1"), "REASON_TOO_BIG", "blue-to-node2")
        options = packet_of(4, UNDERLAY_MTU)
        said = try_ping(lab, "node1-c1", address_of(lab, "node2-c1"), *options, count=2, wait_seconds=0.5)
        assert f"mtu = {UNDERLAY_MTU - 50}" in said
        assert drops(lab.node("node1"), "REASON_TOO_BIG", "blue-to-node2") > before
    finally:
        for target, interface in (("node1-c1", "eth0"), ("node1", "veth-c1")):
            lab.exec(target, ["ip", "link", "set", interface, "mtu", str(CONTAINER_MTU)])
        lab.exec("node1-c1", ["ip", "route", "flush", "cache"])
        lab.node("node1").restore()
