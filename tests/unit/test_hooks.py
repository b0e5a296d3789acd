# SPDX-License-Identifier: GPL-2.0-only
"""Which hook a port gets, and how it is said."""

from __future__ import annotations

import pytest

from mptm.compile import Allocations, compile_tables
from mptm.errors import InvalidIntent
from mptm.facts import Facts, Link
from mptm.hooks import choose_hook
from mptm.intent import Intent, Network, Port

LINKS = {
    name: Link(number, name, bytes.fromhex("020000000001"), 1500, kind)
    for number, (name, kind) in enumerate(
        [("c1", "veth"), ("vm1", "tun"), ("eth0", ""), ("eth1", ""), ("br0", "bridge")], start=1
    )
}


def intent_of(*ports: Port) -> Intent:
    return Intent.of([Network(name="blue", id=1), *ports])


def access(name: str, hook: str = "auto", mode: str = "auto") -> Port:
    return Port(name=name, role="access", network="blue", hook=hook, mode=mode)


def uplink(name: str = "eth0", hook: str = "auto") -> Port:
    return Port(name=name, role="uplink", hook=hook)


def chosen(name: str, *ports: Port) -> str:
    intent = intent_of(*ports)
    return choose_hook(intent.get("port", name), intent, Facts(LINKS)).hook


@pytest.mark.parametrize(
    ("name", "hook"), [("c1", "tc"), ("vm1", "tc"), ("eth1", "xdp"), ("br0", "xdp"), ("gone", "xdp")]
)
def test_containers_and_vms_are_at_tc(name: str, hook: str) -> None:
    assert chosen(name, access(name)) == hook


@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_what_the_port_says_counts(hook: str) -> None:
    assert chosen("c1", access("c1", hook)) == hook
    assert chosen("eth0", uplink(hook=hook), access("c1", "tc"), access("vm1", "xdp")) == hook


def test_a_mode_is_that_of_xdp() -> None:
    assert chosen("c1", access("c1", mode="generic")) == "xdp"
    with pytest.raises(InvalidIntent, match="mode native is for XDP"):
        intent_of(access("c1", "tc", "native")).validate()


@pytest.mark.parametrize(
    ("ports", "hook"),
    [
        ((access("c1"),), "tc"),
        ((access("eth1"),), "xdp"),
        ((access("c1"), access("eth1")), "tc"),  # a redirect from XDP into a container may deliver nothing
        ((access("c1", "xdp"), access("eth1")), "xdp"),
        ((), "xdp"),
    ],
)
def test_an_uplink_serves_its_access_ports(ports: tuple[Port, ...], hook: str) -> None:
    assert chosen("eth0", uplink(), *ports) == hook


def test_the_reason_names_the_ports() -> None:
    intent = intent_of(uplink(), access("c1"), access("vm1"), access("eth1"))
    assert choose_hook(intent.get("port", "eth0"), intent, Facts(LINKS)).why == (
        "it serves access ports at TC (c1, vm1) and at XDP (eth1)"
    )


def test_of_many_ports_the_reason_names_a_few() -> None:
    intent = intent_of(uplink(), *(access(f"p{number}", "tc") for number in range(5)))
    assert choose_hook(intent.get("port", "eth0"), intent, Facts(LINKS)).why == (
        "it serves access ports at TC (p0, p1, p2 and 2 more)"
    )


@pytest.mark.parametrize(
    ("port", "why"),
    [
        (access("c1"), "a veth brings whole GSO packets, which TC keeps whole"),
        (access("vm1"), "a tap brings whole GSO packets, which TC keeps whole"),
        (access("eth1"), "a physical interface brings packets one by one"),
        (access("br0"), "a bridge interface brings packets one by one"),
        (access("gone"), "there is no such interface yet"),
        (access("c1", "xdp"), "as the port says"),
        (access("c1", mode="generic"), "mode generic is XDP's"),
        (uplink(), "there is no access port; a relay is faster at XDP"),
    ],
)
def test_the_reason_is_said(port: Port, why: str) -> None:
    intent = intent_of(port)
    assert choose_hook(port, intent, Facts(LINKS)).why == why


def test_auto_is_the_default() -> None:
    assert Port(name="eth0", role="uplink").hook == "auto"


def test_compile_says_the_hook_of_each_attachment() -> None:
    compiled = compile_tables(intent_of(uplink(), access("c1"), access("eth1")), Facts(LINKS), Allocations())
    assert {each.name: each.hook for each in compiled.attachments} == {
        "eth0": "tc",
        "c1": "tc",
        "eth1": "xdp",
    }
