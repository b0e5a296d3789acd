# SPDX-License-Identifier: GPL-2.0-only
"""GRO of tunnel packets for uplinks at TC: the kernel joins them, and the device that makes it do so takes none."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw
from traffic import (
    MEGABYTE,
    NODES,
    Capture,
    address_of,
    carried_by,
    drops,
    mac_of,
    mptm,
    open_socket,
    ping,
    transfer,
)

from mptm.errors import MptmError
from mptm.intent import Intent, Network, Port, tunnel_from_dict
from mptm.lab.topology import Lab, configure
from mptm.node import Node

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


def devices(lab: Lab, node: str = "node2") -> dict[int, str]:
    """Names of the idle devices by UDP port."""
    links = json.loads(lab.exec(node, ["ip", "-json", "-details", "link", "show"]).stdout)
    ours = [link for link in links if link["ifname"].startswith("mgro")]
    return {link["linkinfo"]["info_data"]["port"]: link["ifname"] for link in ours}


def bytes_per_packet(lab: Lab) -> float:
    """Of what the stack of node 2's container gets in a transfer: a joined packet is one there (IpInReceives)."""

    def received() -> int:
        names, numbers = lab.exec("node2-c1", ["cat", "/proc/net/snmp"]).stdout.splitlines()[:2]
        return int(dict(zip(names.split(), numbers.split(), strict=True))["InReceives"])

    before = received()
    transfer(lab, "node1-c1", "node2-c1", size=8 * MEGABYTE)
    return 8 * MEGABYTE / (received() - before)


def test_packets_are_joined_where_the_device_is_and_only_there(lab: Lab, protocol: str) -> None:
    assert PORTS[protocol] in devices(lab)
    joined = bytes_per_packet(lab)
    lab.node("node2").apply(at(carried_by(lab, "node2", protocol, 4, vni=VNI), offloads=False))
    assert not devices(lab)
    assert bytes_per_packet(lab) < 1500
    assert joined > 2000


def test_a_stray_packet_never_comes_out_of_the_device(lab: Lab) -> None:
    """Of an unknown sender, or with an unknown VNI, the device's own among them; one of the right sender with the
    right VNI is delivered."""
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
    stranger, unknown, device_vni = right.copy(), right.copy(), right.copy()
    stranger[IP].src = "10.30.30.66"
    unknown[VXLAN].vni = 4242
    name = devices(lab)[PORTS["vxlan"]]
    details = json.loads(lab.exec("node2", ["ip", "-json", "-details", "link", "show", name]).stdout)[0]
    device_vni[VXLAN].vni = details["linkinfo"]["info_data"]["id"]
    refused = drops(lab.node("node2"), "REFUSED_SENDER_OR_ID", "eth0")
    with (
        Capture(lab, "node2", name) as device,
        Capture(lab, "node2-c1") as container,
        Capture(lab, "underlay", "node2") as underlay,
    ):
        for frame in (stranger, unknown, device_vni):
            for _ in range(5):
                underlay.send(frame)
        assert device.find(lambda frame: True, wait_seconds=0.5) is None
        assert container.find(lambda frame: b"stray or not" in frame, wait_seconds=0) is None
        underlay.send(right)
        assert container.find(lambda frame: b"stray or not" in frame, wait_seconds=2)
        assert device.find(lambda frame: True, wait_seconds=0.2) is None
    assert drops(lab.node("node2"), "REFUSED_SENDER_OR_ID", "eth0") == refused + 15


def test_the_device_has_no_address_and_goes_when_nothing_wants_it(lab: Lab) -> None:
    node = lab.node("node2")
    node.apply(at(lab.intent("node2")))
    assert devices(lab).keys() == {4789, 6081}
    shown = json.loads(lab.exec("node2", ["ip", "-json", "address", "show", devices(lab)[4789]]).stdout)
    assert shown[0]["addr_info"] == []
    assert {"UP", "NOARP"} <= set(shown[0]["flags"])
    said = lab.exec("node2", ["ip", "link", "show", devices(lab)[4789]]).stdout
    assert f"alias GRO for MPTM, instance {node.instance}" in said
    node.apply(at(lab.intent("node2"), "xdp"))
    assert not devices(lab)


def test_purge_takes_the_devices_along(bare_lab: Lab) -> None:
    node = bare_lab.node("node2")
    node.apply(at(bare_lab.intent("node2")))
    assert devices(bare_lab).keys() == {4789, 6081}
    node.purge()
    assert not devices(bare_lab)


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
    assert devices(bare_lab).keys() == {4789, 6081}
    node.apply(at(bare_lab.intent("node2"), "xdp"))
    assert not devices(bare_lab)


ADD_PLAIN = "link add theirs type vxlan id 300 dstport 4789 local 10.30.30.{} remote 10.30.30.{}"


def add_theirs(lab: Lab, options: str = "") -> None:
    """A kernel tunnel of the user's own between the nodes, whose addresses are 10.99.0.1 and 2."""
    for number, node in enumerate(NODES, 1):
        commands = [
            f"{ADD_PLAIN.format(number, 3 - number)} {options}",
            f"address add 10.99.0.{number}/24 dev theirs",
            "link set theirs up",
        ]
        configure(lab.namespace(node), commands)


def gro_complaints(lab: Lab, node: str = "node2") -> list[str]:
    checks = json.loads(mptm(lab, node, "doctor", "--json").stdout)["checks"]
    return [check["detail"] for check in checks if "(GRO)" in check["detail"]]


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_kernel_tunnel_of_the_users_works_beside_us_whoever_comes_first(bare_lab: Lab, first: str) -> None:
    lab, nodes = bare_lab, [bare_lab.node(name) for name in NODES]
    if first == "theirs":
        add_theirs(lab)
    for node, name in zip(nodes, NODES, strict=True):
        assert not node.apply(at(lab.intent(name))).warnings
    assert devices(lab).keys() == {4789, 6081}
    if first == "ours":
        add_theirs(lab)
    assert not gro_complaints(lab)
    for address in ("10.99.0.2", address_of(lab, "node2")):
        ping(lab, "node1", address)
    transfer(lab, "node1", "node2", address="10.99.0.2", size=MEGABYTE)
    for container in ("c1", "c2"):
        transfer(lab, f"node1-{container}", f"node2-{container}", size=MEGABYTE)
    nodes[1].purge()
    ping(lab, "node1", "10.99.0.2")


def test_a_kernel_tunnel_that_cant_share_the_port_is_left_to_the_user_where_it_was_first(
    bare_lab: Lab,
) -> None:
    """`external` is one that can't. It brings the same GRO, so doctor has nothing to say."""
    lab, namespace = bare_lab, bare_lab.namespace("node2")
    configure(namespace, ["link add theirs type vxlan external dstport 4789", "link set theirs up"])
    node = lab.node("node2")
    assert not node.apply(at(lab.intent("node2"))).warnings
    assert devices(lab).keys() == {6081}
    assert not gro_complaints(lab)
    configure(namespace, ["link delete theirs"])
    assert len(gro_complaints(lab)) == 1
    node.restore()
    assert devices(lab).keys() == {4789, 6081}
    assert not gro_complaints(lab)


def test_where_ours_was_first_doctor_names_it_and_one_command_leaves_the_port(bare_lab: Lab) -> None:
    lab = bare_lab
    lab.node("node2").apply(at(lab.intent("node2")))
    commands = ["link add theirs type vxlan external dstport 4789", "link set theirs up"]
    configure(lab.namespace("node2"), commands[:1])
    with pytest.raises(MptmError, match="Address already in use"):
        configure(lab.namespace("node2"), commands[1:])
    checks = json.loads(mptm(lab, "node2", "doctor", "--json").stdout)["checks"]
    (told,) = (check for check in checks if devices(lab)[4789] in check["detail"])
    assert "UDP port 4789 over IPv4" in told["detail"]
    assert "Address already in use" in told["hint"]
    command = told["hint"].partition(": mptm ")[2].replace("UPLINK", "eth0")
    done = mptm(lab, "node2", *command.split())
    assert done.returncode == 0, done.stderr
    assert not devices(lab)
    configure(lab.namespace("node2"), commands[1:])
    assert "outer_gro" in mptm(lab, "node2", "export").stdout
    assert not mptm(lab, "node2", "port", "set", "eth0", "--outer-gro").returncode
    assert devices(lab).keys() == {6081}


def test_a_program_that_has_the_port_keeps_it_and_doctor_says_what_comes_of_it(bare_lab: Lab) -> None:
    lab = bare_lab
    with open_socket(lab, "node2", socket.AF_INET, socket.SOCK_DGRAM) as theirs:
        theirs.bind(("", PORTS["vxlan"]))
        assert not lab.node("node2").apply(at(lab.intent("node2"))).warnings
        assert devices(lab).keys() == {6081}
        (told,) = gro_complaints(lab)
        assert "UDP port 4789" in told


def test_instances_of_one_node_dont_take_each_others_devices(bare_lab: Lab) -> None:
    lab, node = bare_lab, bare_lab.node("node2")
    node.apply(at(lab.intent("node2")))
    ours = set(links_of(lab))
    configure(lab.namespace("node2"), ["link add up1 type bridge", "link set up1 up"])
    other = Node(f"{node.instance}-other", netns=lab.namespace("node2"))
    tunnel = {
        "name": "t",
        "protocol": "vxlan",
        "network": "red",
        "remote": address_of(lab, "node1"),
        "vni": 9,
    }
    try:
        red = Network(name="red", id=1)
        other.apply(Intent.of([red, Port(name="up1", role="uplink", hook="tc"), tunnel_from_dict(tunnel)]))
        both = set(links_of(lab))
        assert len(both - ours) == 1
        node.restore()
        assert set(links_of(lab)) == both
    finally:
        other.purge()
    assert set(links_of(lab)) == ours


def links_of(lab: Lab) -> list[str]:
    links = json.loads(lab.exec("node2", ["ip", "-json", "link", "show"]).stdout)
    return [link["ifname"] for link in links if link["ifname"].startswith("mgro")]
