# SPDX-License-Identifier: GPL-2.0-only
"""GRO of tunnel packets for uplinks at TC: the kernel joins them, and the device that makes it do so takes none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw
from traffic import MEGABYTE, NODES, Capture, address_of, carried_by, drops, mac_of, mptm, ping, transfer

from mptm.intent import Intent
from mptm.lab.topology import Lab, configure

PORTS = {"vxlan": 4789, "geneve": 6081}
VNI = 100


@pytest.fixture(scope="module")
def lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    """An underlay as with cards that make no segments behind tunnel headers, but join what they receive."""
    with Lab(lab_prefix()) as built:
        for node in NODES:
            built.node(node).apply(at(built.intent(node)))  # at XDP some of these can't be changed
            features = "tso off gso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off gro on"
            built.exec(node, ["ethtool", "-K", "eth0", *features.split()])
            # A veth joins what it receives only where its other end makes no segments itself.
            built.exec("underlay", ["ethtool", "-K", node, "tso", "off", "gso", "off"])
        yield built


@pytest.fixture(params=PORTS)
def protocol(request: pytest.FixtureRequest, lab: Lab) -> str:
    """The nodes' tunnels between blue's containers, ports at TC."""
    name = str(request.param)
    for node in NODES:
        lab.node(node).apply(at(carried_by(lab, node, name, 4, vni=VNI)))
    return name


def at(intent: Intent, hook: str = "tc", *, offloads: bool = True) -> Intent:
    for port in intent.ports.values():
        intent = intent.replace(replace(port, hook=hook, offloads=offloads))
    return intent


def devices(lab: Lab, node: str = "node2") -> list[str]:
    links = json.loads(lab.exec(node, ["ip", "-json", "link", "show"]).stdout)
    return sorted(link["ifname"] for link in links if link["ifname"].startswith("mgro-"))


def bytes_per_packet(lab: Lab) -> float:
    """Of what node 2 takes out of the tunnel in a transfer."""
    before = lab.node("node2").counters().tunnels["blue-to-node1"]
    transfer(lab, "node1-c1", "node2-c1", size=8 * MEGABYTE)
    after = lab.node("node2").counters().tunnels["blue-to-node1"]
    return (after.decap_bytes - before.decap_bytes) / (after.decap_packets - before.decap_packets)


def test_packets_are_joined_where_the_device_is_and_only_there(lab: Lab, protocol: str) -> None:
    assert f"mgro-{PORTS[protocol]}" in devices(lab)
    joined = bytes_per_packet(lab)
    lab.node("node2").apply(at(carried_by(lab, "node2", protocol, 4, vni=VNI), offloads=False))
    assert devices(lab) == []
    assert bytes_per_packet(lab) < 1500
    assert joined > 2000


def test_a_stray_packet_never_comes_out_of_the_device(lab: Lab) -> None:
    """Of an unknown sender, or with an unknown VNI; one of the right sender with the right VNI is delivered."""
    for node in NODES:
        lab.node(node).apply(at(carried_by(lab, node, "vxlan", 4, vni=VNI)))
    inner = Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:77") / IP(
        src=address_of(lab, "node1-c1"), dst=address_of(lab, "node2-c1")
    )
    right = (
        Ether(dst=mac_of(lab, "node2"), src=mac_of(lab, "node1"))
        / IP(src=address_of(lab, "node1"), dst=address_of(lab, "node2"))
        / UDP(sport=50000, dport=PORTS["vxlan"], chksum=0)
        / VXLAN(flags=8, vni=VNI)
        / inner
        / UDP(sport=1, dport=2)
        / Raw(b"stray or not")
    )
    stranger, unknown = right.copy(), right.copy()
    stranger[IP].src = "10.30.30.66"
    unknown[VXLAN].vni = 4242
    refused = drops(lab.node("node2"), "REFUSED_SENDER_OR_ID", "eth0")
    with (
        Capture(lab, "node2", "mgro-4789") as device,
        Capture(lab, "node2-c1") as container,
        Capture(lab, "underlay", "node2") as underlay,
    ):
        for frame in (stranger, unknown):
            for _ in range(5):
                underlay.send(frame)
        assert device.find(lambda frame: True, wait_seconds=0.5) is None
        assert container.find(lambda frame: b"stray or not" in frame, wait_seconds=0) is None
        underlay.send(right)
        assert container.find(lambda frame: b"stray or not" in frame, wait_seconds=2)
        assert device.find(lambda frame: True, wait_seconds=0.2) is None
    assert drops(lab.node("node2"), "REFUSED_SENDER_OR_ID", "eth0") == refused + 10


def test_the_device_has_no_address_and_goes_when_nothing_wants_it(lab: Lab) -> None:
    node = lab.node("node2")
    node.apply(at(lab.intent("node2")))
    assert devices(lab) == ["mgro-4789", "mgro-6081"]
    shown = json.loads(lab.exec("node2", ["ip", "-json", "address", "show", "mgro-4789"]).stdout)
    assert shown[0]["addr_info"] == []
    assert {"UP", "NOARP"} <= set(shown[0]["flags"])
    node.apply(at(lab.intent("node2"), "xdp"))
    assert devices(lab) == []


def test_purge_takes_the_devices_along(bare_lab: Lab) -> None:
    node = bare_lab.node("node2")
    node.apply(at(bare_lab.intent("node2")))
    assert devices(bare_lab) == ["mgro-4789", "mgro-6081"]
    node.purge()
    assert devices(bare_lab) == []


def test_a_kill_leaves_no_device_for_long(bare_lab: Lab) -> None:
    """Killed after the first device was made, before it says whose it is."""
    script = (
        "import os, signal, sys\n"
        "from mptm.kernel import gro\n"
        "from mptm.lab.topology import Lab\n"
        "from test_gro import at\n"
        "gro._check = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "lab = Lab(sys.argv[1]); lab.node('node2').apply(at(lab.intent('node2')))\n"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", script, bare_lab.topology.prefix]
    killed = subprocess.run(command, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(devices(bare_lab)) == 1
    node = bare_lab.node("node2")
    node.apply(at(bare_lab.intent("node2")))
    assert devices(bare_lab) == ["mgro-4789", "mgro-6081"]
    node.apply(at(bare_lab.intent("node2"), "xdp"))
    assert devices(bare_lab) == []


def test_a_port_that_the_user_has_is_left_to_them(bare_lab: Lab) -> None:
    commands = ["link add theirs type vxlan id 300 dstport 4789", "link set theirs up"]
    configure(bare_lab.namespace("node2"), commands)
    node = bare_lab.node("node2")
    plan = node.apply(at(bare_lab.intent("node2")))
    assert not plan.warnings
    assert devices(bare_lab) == ["mgro-6081"]
    checks = json.loads(mptm(bare_lab, "node2", "doctor", "--json").stdout)["checks"]
    (told,) = (check for check in checks if "(GRO)" in check["detail"])
    assert (told["name"], told["status"]) == ("port eth0", "optional")
    assert "UDP port 4789" in told["detail"]
    configure(bare_lab.namespace("node2"), ["link delete theirs"])
    node.restore()
    assert devices(bare_lab) == ["mgro-4789", "mgro-6081"]
    checks = json.loads(mptm(bare_lab, "node2", "doctor", "--json").stdout)["checks"]
    assert not [check for check in checks if "(GRO)" in check["detail"]]
    ping(bare_lab, "node1", address_of(bare_lab, "node2"))
