# SPDX-License-Identifier: GPL-2.0-only
"""What must not get in doesn't, what isn't ours passes, and no accident leaves a node half done.

Accidents: interfaces that vanish, commands that are killed or come all at once, files that are wrong, tables that are
full, programs of others. Traffic goes on meanwhile.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from packets import required_options
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet
from traffic import (
    CARRIERS,
    MEGABYTE,
    NODES,
    Capture,
    Datagrams,
    address_of,
    at_hook,
    carried_by,
    drops,
    flood,
    fresh_meaning,
    interfaces_with_programs,
    kept,
    meaning,
    mptm,
    mptm_command,
    open_socket,
    peer_of,
    ping,
    table_bytes,
    transfer,
    try_ping,
    with_finished_sum,
)

from mptm import config
from mptm.errors import ForeignProgram, TableFull, Unresolved
from mptm.gro import is_device_of
from mptm.intent import Flow, Intent, Network, Port, Route, tunnel_from_dict
from mptm.kernel import gro, libbpf, netns, segmenter
from mptm.kernel.dataplane import DataPlane, instance_directory
from mptm.kernel.hashtable import HashTable
from mptm.kernel.maps import Map
from mptm.kernel.netlink import xdp_states
from mptm.kernel.objects import EXTRAS, object_path
from mptm.kernel.slots import SlotTable
from mptm.lab.topology import Lab, configure
from mptm.node import Node
from mptm.protocols import PROTOCOLS
from mptm.tables import HostKeyV4, NextHop

QUIET_SECONDS = 0.3
"""How long a packet that must not arrive is waited for; one that may takes less than a millisecond."""

STRANGER = {4: "10.30.30.66", 6: "fd00:30:30::66"}
STRANGER_MAC = "02:00:00:00:00:66"
UNKNOWN = "10.250.1.77"

both_versions = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    """Node 1 of the module's lab, which is put back to its file."""
    node = lab.node("node1")
    yield node
    node.apply(lab.intent("node1"))


@pytest.fixture
def own_lab(bare_lab: Lab) -> Lab:
    """A lab for one test, both nodes up: it may be broken."""
    bare_lab.up()
    return bare_lab


# ---- who may send ----------------------------------------------------------------------------------------


@pytest.fixture(params=CARRIERS, ids=lambda carrier: f"{carrier[0]}-over-v{carrier[1]}")
def carrier(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[str, int]]:
    nodes = [lab.node(name) for name in NODES]
    with kept(*nodes):
        for name, node in zip(NODES, nodes, strict=True):
            node.apply(carried_by(lab, name, *request.param))
        yield request.param


def from_stranger(packet: Packet) -> bytes:
    """The outer packet as if somebody else had sent it."""
    packet = packet.copy()
    layer = packet.getlayer(1)
    if isinstance(layer, Dot1Q):
        packet.src = STRANGER_MAC
    elif isinstance(layer, IPv6):
        layer.src = STRANGER[6]
    else:
        layer.src = STRANGER[4]
        del layer.chksum
    return bytes(packet)


def test_a_spoofed_sender_delivers_nothing(lab: Lab, carrier: tuple[str, int]) -> None:
    """The same packet, sent again by the right sender, arrives: so it is the sender that makes the difference."""
    node, data = lab.node("node1"), os.urandom(16)
    with (
        Capture(lab, "underlay", "node2") as from_node2,
        Capture(lab, "underlay", "node1") as to_node1,
        Capture(lab, "node1-c1") as container,
        Capture(lab, "node1-c2") as other_container,
        Datagrams(lab, "node2-c1", "node1-c1") as datagrams,
    ):
        datagrams.send(data)
        assert datagrams.receive() is not None
        genuine = Ether(with_finished_sum(bytes(from_node2.carrying(data)), data, 4))
        to_node1.send(genuine)
        assert datagrams.receive() is not None
        refused, decapsulated = refusals(node), node.counters().tunnels["blue-to-node2"].decap_packets
        list(container.frames(wait_seconds=0.05))
        for _ in range(3):
            to_node1.send(from_stranger(genuine))
        assert container.find(lambda frame: data in frame, wait_seconds=QUIET_SECONDS) is None
        assert other_container.find(lambda frame: data in frame, wait_seconds=0) is None
        assert datagrams.receive(wait_seconds=0) is None
    assert node.counters().tunnels["blue-to-node2"].decap_packets == decapsulated
    if PROTOCOLS[carrier[0]].over_ip:
        assert refusals(node) == refused + 3


def refusals(node: Node) -> int:
    return drops(node, "REFUSED_SENDER_OR_ID", "eth0")


def test_a_wrong_tunnel_identifier_delivers_nothing(lab: Lab, carrier: tuple[str, int]) -> None:
    node, sender = lab.node("node1"), lab.node("node2")
    with Datagrams(lab, "node2-c1", "node1-c1") as datagrams:
        datagrams.send(b"right")
        assert datagrams.receive() == (b"right", 0)
        wrong = {name: value - 1 for name, value in required_options(carrier[0]).items()}
        sender.apply(carried_by(lab, "node2", *carrier, **wrong))
        refused = refusals(node)
        with Capture(lab, "node1-c1") as container, Capture(lab, "node1-c2") as other_container:
            for _ in range(3):
                datagrams.send(b"wrong identifier")
            assert (
                container.find(lambda each: b"wrong identifier" in each, wait_seconds=QUIET_SECONDS) is None
            )
            assert other_container.find(lambda each: b"wrong identifier" in each, wait_seconds=0) is None
        assert datagrams.receive(wait_seconds=0) is None
    if PROTOCOLS[carrier[0]].over_ip:
        assert refusals(node) == refused + 3


def test_a_destination_that_the_network_doesnt_know_is_counted_for_the_tunnel(
    lab: Lab, carrier: tuple[str, int]
) -> None:
    node, sender = lab.node("node1"), lab.node("node2")
    before = drops(node, "REASON_NO_ROUTE", "blue-to-node2")
    sender.add(Route(network="blue", prefix=f"{UNKNOWN}/32", via="blue-to-node1"))
    with (
        open_socket(lab, "node2-c1", socket.AF_INET, socket.SOCK_DGRAM) as blue,
        Capture(lab, "node1-c1") as container,
        Capture(lab, "node1-c2") as other_container,
    ):
        for _ in range(3):
            blue.sendto(b"to nobody", (UNKNOWN, 7777))
        assert container.find(lambda each: b"to nobody" in each, wait_seconds=QUIET_SECONDS) is None
        assert other_container.find(lambda each: b"to nobody" in each, wait_seconds=0) is None
    assert drops(node, "REASON_NO_ROUTE", "blue-to-node2") == before + 3


def test_a_dropping_route_is_counted_for_the_containers_port(lab: Lab, node: Node) -> None:
    before = drops(node, "REASON_ROUTE_DROP", "veth-c1")
    ping(lab, "node1-c1", address_of(lab, "node2-c1"), count=1)
    prefix = f"{address_of(lab, 'node2-c1')}/32"
    node.replace(Route(network="blue", prefix=prefix, drop=True))
    assert " 0 received" in try_ping(lab, "node1-c1", address_of(lab, "node2-c1"), count=3, wait_seconds=0.2)
    assert drops(node, "REASON_ROUTE_DROP", "veth-c1") == before + 3


def test_networks_are_apart_even_for_the_right_sender(lab: Lab, node: Node) -> None:
    """Green's tunnel leads into green, where the same address is another container's."""
    with (
        Capture(lab, "node1-c1") as blue,
        Datagrams(lab, "node2-c2", "node1-c2") as datagrams,
    ):
        datagrams.send(b"green only")
        assert datagrams.receive() == (b"green only", 0)
        assert blue.find(lambda each: b"green only" in each, wait_seconds=QUIET_SECONDS) is None


# ---- what isn't ours -------------------------------------------------------------------------------------


@both_versions
def test_the_nodes_own_traffic_passes_while_attached(lab: Lab, version: int) -> None:
    nodes = [lab.node(name) for name in NODES]
    before = [node.counters().tunnels for node in nodes]
    for name in NODES:
        ping(lab, name, address_of(lab, peer_of(name), version))
        ping(lab, name, address_of(lab, peer_of(name), version), "-s", "4000")
    transfer(lab, "node1", "node2", version, size=5 * MEGABYTE)
    assert [node.counters().tunnels for node in nodes] == before


def test_a_refused_packet_reaches_the_nodes_own_socket_byte_for_byte(lab: Lab, node: Node) -> None:
    """Somebody else's GENEVE program on this node: packets that MPTM doesn't take are its own."""
    data = os.urandom(64)
    node.replace(
        replace(node.intent.get("port", "eth0"), outer_gro=False)
    )  # at TC it would have the UDP port
    with (
        open_socket(lab, "node1", socket.AF_INET, socket.SOCK_DGRAM) as own,
        Capture(lab, "underlay", "node2") as from_node2,
        Capture(lab, "underlay", "node1") as to_node1,
        Datagrams(lab, "node2-c1", "node1-c1") as datagrams,
    ):
        own.bind((address_of(lab, "node1"), 6081))
        own.settimeout(2)
        datagrams.send(data)
        assert datagrams.receive() == (data, 0)
        genuine = from_node2.carrying(data)
        sent = from_stranger(genuine)
        to_node1.send(sent)
        received, (sender, port) = own.recvfrom(65536)
    assert (sender, port) == (STRANGER[4], genuine[UDP].sport)
    assert received == sent[14 + 20 + 8 :]


def test_an_unknown_container_address_is_left_to_the_nodes_kernel(lab: Lab, node: Node) -> None:
    """What no route knows passes: here to an address that the node itself has on the access port."""
    configure(lab.namespace("node1"), ["address add 10.250.1.9/24 dev veth-c1"])
    try:
        ping(lab, "node1-c1", "10.250.1.9")
    finally:
        configure(lab.namespace("node1"), ["address del 10.250.1.9/24 dev veth-c1"])


# ---- interfaces that vanish ------------------------------------------------------------------------------


def make_container_link(lab: Lab, container: str) -> None:
    """The veth of a container, as the lab makes it."""
    found, topology = lab.container(container), lab.topology
    namespace = lab.namespace(container.split("-")[0])
    configure(
        namespace,
        [
            f"link add {found.port} type veth peer name eth0 netns {found.namespace}",
            f"link set {found.port} mtu {topology.container_mtu} up",
        ],
    )
    addresses = [f"address add {each} dev eth0{' nodad' * (':' in each)}" for each in found.addresses]
    configure(found.namespace, [f"link set eth0 mtu {topology.container_mtu} up", *addresses])


def make_uplink(lab: Lab, name: str) -> None:
    """The veth of a node to the underlay, as the lab makes it."""
    node, topology = lab.topology.node(name), lab.topology
    addresses = [f"address add {each} dev eth0{' nodad' * (':' in each)}" for each in node.addresses]
    configure(node.namespace, [f"link add eth0 type veth peer name {name} netns {topology.underlay}"])
    configure(
        topology.underlay,
        [f"link set {name} master br0 mtu {topology.underlay_mtu} addrgenmode none up"],
    )
    configure(node.namespace, [f"link set eth0 mtu {topology.underlay_mtu} up", *addresses])


def states(node: Node) -> dict[tuple[str, str], str]:
    return {(each.kind, each.key): each.state for each in node.status().objects}


def test_a_deleted_access_port_is_told_and_a_new_one_is_restored(own_lab: Lab) -> None:
    lab, node = own_lab, own_lab.node("node1")
    remote = address_of(lab, "node2-c1")
    ping(lab, "node1-c1", remote)
    configure(lab.namespace("node1"), ["link delete veth-c1"])

    assert states(node)["port", "veth-c1"] == "missing interface"
    status = mptm(lab, "node1", "status")
    assert status.returncode == 1
    assert "missing interface" in status.stdout
    for command in (
        "counters",
        "drops",
        "port list",
        "route list",
        "port show veth-c1",
        "tunnel show blue-to-node2",
    ):
        done = mptm(lab, "node1", *command.split())
        assert (done.returncode, "internal" in done.stderr) == (0, False), done.stderr
    ping(lab, "node1-c2", address_of(lab, "node2-c2"))
    node.add(Route(network="green", prefix=f"{UNKNOWN}/32", via="green-to-node2"))
    ping(lab, "node1-c2", address_of(lab, "node2-c2"))
    assert " 0 received" in try_ping(lab, "node2-c1", address_of(lab, "node1-c1"), wait_seconds=0.2)
    restored = mptm(lab, "node1", "restore")
    assert restored.returncode == 1
    assert "veth-c1" in restored.stderr

    make_container_link(lab, "node1-c1")
    restored = mptm(lab, "node1", "restore")
    assert (restored.returncode, mptm(lab, "node1", "status").returncode) == (0, 0), restored.stderr
    for version in (4, 6):
        ping(lab, "node1-c1", address_of(lab, "node2-c1", version))
        ping(lab, "node2-c1", address_of(lab, "node1-c1", version))
    transfer(lab, "node1-c1", "node2-c1", size=MEGABYTE)
    assert meaning(node) == fresh_meaning(node)


def test_packets_for_a_port_that_has_just_gone_are_counted(own_lab: Lab) -> None:
    lab, node = own_lab, own_lab.node("node1")
    ping(lab, "node2-c1", address_of(lab, "node1-c1"), count=1)
    configure(lab.namespace("node1"), ["link delete veth-c1"])
    assert " 0 received" in try_ping(lab, "node2-c1", address_of(lab, "node1-c1"), count=3, wait_seconds=0.2)
    with node.data_plane() as data_plane:
        table = data_plane.maps["drops"]
        reasons = {
            table.key.unpack(key)["reason"]: each["packets"]
            for key, each in table.all_totals().items()
            if each["packets"]
        }
    assert reasons == {6: 3}  # REASON_PORT_GONE
    assert [(drop.reason, drop.packets) for drop in node.drops()] == [("REASON_PORT_GONE", 3)]


def test_a_deleted_uplink_is_told_and_a_new_one_is_restored(own_lab: Lab) -> None:
    lab, node = own_lab, own_lab.node("node1")
    configure(lab.namespace("node1"), ["link delete eth0"])
    found = states(node)
    assert found["port", "eth0"] == "missing interface"
    assert found["tunnel", "blue-to-node2"].startswith("down: ")
    assert " 0 received" in try_ping(lab, "node1-c1", address_of(lab, "node2-c1"), wait_seconds=0.2)
    assert drops(node, "REASON_EGRESS_GONE", "blue-to-node2") == 1
    node.add(Network(name="meanwhile", id=7))
    assert mptm(lab, "node1", "restore").returncode == 1

    make_uplink(lab, "node1")
    lab.node("node2").restore()
    restored = mptm(lab, "node1", "restore")
    assert restored.returncode == 0, restored.stderr
    for container in ("c1", "c2"):
        for version in (4, 6):
            ping(lab, f"node1-{container}", address_of(lab, f"node2-{container}", version))
    assert mptm(lab, "node1", "status").returncode == 0


def test_a_silent_remote_is_told_and_nothing_is_changed(lab: Lab, node: Node) -> None:
    before, tables = node.intent, table_bytes(node)
    with pytest.raises(Unresolved, match=r"10\.30\.30\.66"):
        node.replace(
            tunnel_from_dict(
                {
                    "name": "blue-to-node2",
                    "protocol": "geneve",
                    "network": "blue",
                    "remote": STRANGER[4],
                    "vni": 100,
                }
            )
        )
    assert (node.intent, table_bytes(node)) == (before, tables)
    ping(lab, "node1-c1", address_of(lab, "node2-c1"))


# ---- processes that are gone -----------------------------------------------------------------------------


def bpf_descriptors() -> int:
    """How many BPF objects this process holds; tests of other nodes may have some open."""
    found = (
        os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink() and each.exists()
    )
    return sum("bpf" in each for each in found)


def test_traffic_goes_on_when_every_process_of_mptm_is_gone(bare_lab: Lab, tmp_path: Path) -> None:
    lab, held_before = bare_lab, bpf_descriptors()
    for name in NODES:
        file = tmp_path / f"{name}.yaml"
        file.write_text(config.dump(lab.intent(name)))
        namespace = lab.namespace(name)
        done = mptm(lab, name, "--netns", namespace, "apply", "-f", str(file))
        assert done.returncode == 0, done.stderr
    assert bpf_descriptors() <= held_before
    for container in ("c1", "c2"):
        ping(lab, f"node1-{container}", address_of(lab, f"node2-{container}"))
    transfer(lab, "node1-c1", "node2-c1")


def two_intents(lab: Lab) -> tuple[Intent, Intent]:
    """Two that differ in everything: tunnels, routes, prefixes, flows, ports."""
    first = lab.intent("node1")
    second = carried_by(lab, "node1", "vxlan", network="blue", vni=77, ttl=7)
    for route in [route for route in second.routes.values() if route.network == "green"]:
        second = second.remove("route", route.key)
    second = second.remove("tunnel", "green-to-node2").remove("port", "veth-c2")
    added: list[Any] = [
        tunnel_from_dict(
            {
                "name": "new",
                "protocol": "geneve",
                "network": "blue",
                "remote": address_of(lab, "node2"),
                "vni": 9,
            }
        ),
        Route(network="blue", prefix="10.77.0.0/16", via="new"),
        Route(network="blue", prefix="fd00:77::/32", drop=True),
        Flow(network="blue", source="10.250.1.100", destination="10.250.1.101", via="new"),
        Flow(network="blue", source="fd00:250:1::100", destination="fd00:250:1::101", via="new"),
    ]
    for each in added:
        second = second.add(each)
    second.validate()
    return first, second


def in_child(action: Callable[[], object]) -> int:
    """Run it in a process of its own; the process's id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def end_of(child: int) -> int:
    """Exit status of a child, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_after_accident(node: Node, allowed: tuple[Intent, ...], number: int) -> None:
    """The next command works, finds one of the intents whole, and leaves the tables as that intent has them."""
    network = Network(name="next", id=1000 + number)
    node.add(network)
    found = node.intent.remove("network", "next")
    assert found in allowed
    assert not node.store.read().interrupted
    assert node.status().differences == 0
    assert meaning(node) == fresh_meaning(node)
    counters = [allocation.counter for allocation in node.store.read().allocations.tunnels.values()]
    assert len(set(counters)) == len(counters)
    with node.data_plane() as data_plane:
        at_tc = any(each.hook == "tc" for each in data_plane.attachments())
    segment_end = {segmenter.names(node.instance)[1]} if at_tc else set()
    running = {name for name in interfaces_with_programs(node) if not is_device_of(node.instance, name)}
    assert running == set(found.ports) | segment_end
    node.remove("network", "next")


WRITES: tuple[tuple[Any, str], ...] = (
    (Map, "update"),
    (Map, "delete"),
    (SlotTable, "update"),
    (SlotTable, "delete"),
    (HashTable, "update"),
    (HashTable, "delete"),
    (DataPlane, "attach"),
    (DataPlane, "detach"),
    (libbpf, "create_xdp_link"),
    (libbpf, "create_tcx_link"),
    (libbpf, "pin"),
    (segmenter, "ensure"),
    (segmenter, "remove"),
    (gro, "bring_to"),
)
"""What changes the kernel's state; beside these, the statements that end a transaction of the store."""


def dying_before_write(number: int, action: Callable[[], object]) -> Callable[[], None]:
    """The action in a process that kills itself instead of its write of that number."""

    def run() -> None:
        left = number

        def count() -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                count()
                return original(*arguments, **options)

            return call

        def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = open_database(*arguments, **options)
            connection.set_trace_callback(
                lambda statement: count() if statement == "COMMIT" and connection.total_changes else None
            )
            return connection

        open_database, sqlite3.connect = sqlite3.connect, connect
        for owner, name in WRITES:
            setattr(owner, name, counted(getattr(owner, name)))
        action()

    return run


@pytest.mark.parametrize("direction", ["there", "back"])
def test_apply_that_dies_before_any_of_its_writes_is_completed_or_undone(
    lab: Lab, node: Node, direction: str
) -> None:
    first, second = two_intents(lab)
    if direction == "back":
        first, second = second, first
    interrupted = 0
    for number in range(200):
        node.apply(first)
        ended = end_of(in_child(dying_before_write(number, lambda: node.apply(second))))
        interrupted += node.store.read().interrupted
        if number == 0:
            assert node.intent == first
        check_after_accident(node, (first, second), number)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert ended == 0
    assert number > 15
    assert interrupted > 10


def test_apply_that_is_killed_at_a_random_moment_is_completed_or_undone(lab: Lab, node: Node) -> None:
    intents = two_intents(lab)
    node.apply(intents[1])
    began = time.monotonic()
    assert end_of(in_child(lambda: node.apply(intents[0]))) == 0
    usual_seconds = time.monotonic() - began
    chance = random.Random(2026)
    killed = 0
    for number in range(40):
        child = in_child(lambda number=number: node.apply(intents[(number + 1) % 2]))
        time.sleep(chance.uniform(0, usual_seconds * 1.1))
        os.kill(child, signal.SIGKILL)
        was_killed = end_of(child) == -signal.SIGKILL
        killed += was_killed
        # How long it takes changes with what else the machine does: aim so that few, but some, come to their end.
        usual_seconds *= 1.05 if was_killed else 0.8
        check_after_accident(node, intents, number)
    assert killed > 10


def test_a_command_that_is_killed_while_it_writes_the_store_is_undone(lab: Lab, node: Node) -> None:
    """SQLite has a part of the change in the file, and the journal to undo it beside it."""
    before = node.intent

    def write() -> None:
        connection = sqlite3.connect(node.store.path)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("UPDATE objects SET body = 'broken'")
        rows = [(str(number), "x" * 4000) for number in range(100)]
        connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", rows)
        os.kill(os.getpid(), signal.SIGKILL)

    for command in ("route list", "export", "status", "restore", "network add after --id 9"):
        size = node.store.path.stat().st_size
        assert end_of(in_child(write)) == -signal.SIGKILL
        assert node.store.path.stat().st_size > size
        done = mptm(lab, "node1", *command.split())
        assert done.returncode == 0, done.stderr
    assert node.intent == before.add(Network(name="after", id=9))
    assert meaning(node) == fresh_meaning(node)


def test_first_load_that_is_killed_at_a_random_moment_is_completed(bare_lab: Lab) -> None:
    """Programs and tables are being loaded and pinned for the first time."""
    node, intent = bare_lab.node("node1"), bare_lab.intent("node1")
    began = time.monotonic()
    assert end_of(in_child(lambda: node.apply(intent))) == 0
    usual_seconds = time.monotonic() - began
    chance = random.Random(2026)
    for _ in range(12):
        node.purge()
        child = in_child(lambda: node.apply(intent))
        time.sleep(chance.uniform(0, usual_seconds))
        os.kill(child, signal.SIGKILL)
        end_of(child)
        node.apply(intent)
        assert node.status().healthy
        assert meaning(node) == fresh_meaning(node)
    bare_lab.up()
    ping(bare_lab, "node1-c1", address_of(bare_lab, "node2-c1"))


@pytest.mark.parametrize(
    "command", ["status", "restore", "apply -f -", "counters", "route list", "purge --yes"]
)
def test_every_command_works_after_an_interrupted_one(lab: Lab, node: Node, command: str) -> None:
    """The interrupted one has stored what it wants, and written a part of it."""
    second = two_intents(lab)[1]
    assert end_of(in_child(dying_before_write(4, lambda: node.apply(second)))) == -signal.SIGKILL
    assert node.store.read().interrupted
    done = mptm(lab, "node1", *command.split(), stdin=config.dump(lab.intent("node1")))
    assert (done.returncode, "error" in done.stderr) == (0, False), done.stderr
    node.apply(lab.intent("node1"))
    assert meaning(node) == fresh_meaning(node)
    ping(lab, "node1-c1", address_of(lab, "node2-c1"))


@pytest.mark.parametrize("many", [2, 8])
def test_commands_at_the_same_time_lose_no_update(lab: Lab, node: Node, many: int) -> None:
    prefixes = [f"10.99.0.{number}/32" for number in range(many)]
    processes = [
        subprocess.Popen(
            mptm_command(lab, "node1", "route", "add", prefix, "--network", "blue", "--via", "blue-to-node2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for prefix in prefixes
    ]
    done = {}
    for prefix, process in zip(prefixes, processes, strict=True):
        _, errors = process.communicate(timeout=60)
        done[prefix] = process.returncode
        assert process.returncode == 0 or "holds instance" in errors, errors
    assert list(done.values()).count(0) >= 2
    stored = {prefix for prefix in prefixes if f"blue {prefix}" in node.intent.routes}
    assert stored == {prefix for prefix, status in done.items() if status == 0}
    assert meaning(node) == fresh_meaning(node)


def test_a_command_that_waits_too_long_says_who_holds_the_instance(lab: Lab, node: Node) -> None:
    before = node.intent
    with node.store.lock():
        listed = mptm(lab, "node1", "route", "list")
        done = mptm(lab, "node1", "network", "add", "late", "--id", "99")
    assert listed.returncode == 0
    assert done.returncode == 1
    assert f"(pid {os.getpid()})" in done.stderr
    assert node.intent == before


# ---- programs of others ----------------------------------------------------------------------------------


@pytest.fixture
def foreign_program(lab: Lab) -> Iterator[int]:
    """An interface other0 on node 1 that runs somebody else's XDP program; its id."""
    namespace = lab.namespace("node1")
    configure(namespace, ["link add other0 type veth peer name other1", "link set other0 up"])
    try:
        with libbpf.Object(object_path(EXTRAS)) as loaded:
            loaded.load()
            program = loaded.program_fds()["mptm_pass"]
            with netns.inside(namespace):
                ifindex = socket.if_nametoindex("other0")
                link = libbpf.create_xdp_link(program, ifindex, libbpf.XDP_FLAGS_DRV_MODE)
            assert link >= 0
            try:
                yield libbpf.program_info(program).id
            finally:
                os.close(link)
    finally:
        configure(namespace, ["link delete other0"])


def without_green(intent: Intent) -> Intent:
    for route in [route for route in intent.routes.values() if route.network == "green"]:
        intent = intent.remove("route", route.key)
    return intent.remove("tunnel", "green-to-node2").remove("port", "veth-c2")


def with_foreign_port(intent: Intent) -> Intent:
    """What the data plane refuses after it has taken all tables."""
    return intent.add(Port(name="other0", role="access", network="blue", hook="xdp"))


ADD_OTHER = ("port", "add", "other0", "--role", "access", "--network", "green")


def test_a_foreign_program_is_named_and_left_alone(lab: Lab, node: Node, foreign_program: int) -> None:
    done = mptm(lab, "node1", *ADD_OTHER, "--hook", "xdp")
    assert done.returncode == 1
    assert f"mptm_pass (id {foreign_program})" in done.stderr
    assert "--hook tc" in done.stderr, "where there is room beside it"
    with netns.inside(lab.namespace("node1")):
        attached = {state.name: state.program_id for state in xdp_states()}
    assert attached["other0"] == foreign_program
    assert node.intent == lab.intent("node1")


def test_at_tc_a_foreign_program_stays_before_ours(lab: Lab, node: Node, foreign_program: int) -> None:
    """It passes everything: so frames come to our program, which leaves one without a route to the kernel."""
    done = mptm(lab, "node1", *ADD_OTHER, "--hook", "tc")
    assert done.returncode == 0, done.stderr
    assert "other0 is attached at TC (tc" in done.stderr
    with netns.inside(lab.namespace("node1")):
        attached = {state.name: state.program_id for state in xdp_states()}
    assert attached["other0"] == foreign_program
    before = node.counters().ports["other0"].rx_packets
    configure(lab.namespace("node1"), ["link set other1 up"])
    with Capture(lab, "node1", "other1") as wire:
        wire.send(Ether(dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / bytes(50))
        deadline = time.monotonic() + 2
        while node.counters().ports["other0"].rx_packets == before and time.monotonic() < deadline:
            time.sleep(0.01)
    assert node.counters().ports["other0"].rx_packets > before
    assert not mptm(lab, "node1", "port", "del", "other0").returncode
    with netns.inside(lab.namespace("node1")):
        assert {state.name: state.program_id for state in xdp_states()}["other0"] == foreign_program


def test_an_apply_that_fails_at_the_end_changes_nothing(lab: Lab, node: Node, foreign_program: int) -> None:
    """Tunnels, routes, flows and ports of another intent are undone, tunnels that it doesn't have included."""
    before, tables = node.intent, table_bytes(node)
    with pytest.raises(ForeignProgram, match=f"mptm_pass .id {foreign_program}."):
        node.apply(with_foreign_port(two_intents(lab)[1]))
    assert (node.intent, table_bytes(node)) == (before, tables)
    assert node.status().healthy
    for container in ("c1", "c2"):
        ping(lab, f"node1-{container}", address_of(lab, f"node2-{container}"))


def test_an_apply_that_dies_while_it_fails_is_undone_by_the_next_command(
    lab: Lab, node: Node, foreign_program: int
) -> None:
    before, wanted = node.intent, with_foreign_port(two_intents(lab)[1])
    for number in range(200):
        ended = end_of(in_child(dying_before_write(number, lambda: node.apply(wanted))))
        assert node.status().differences == 0
        assert node.intent == before
        assert meaning(node) == fresh_meaning(node)
        if ended != -signal.SIGKILL:
            break
    assert ended == 1
    assert number > 20
    ping(lab, "node1-c1", address_of(lab, "node2-c1"))


@pytest.mark.parametrize("hook", ["xdp", "tc"])
@pytest.mark.parametrize("ours", ["xdp", "tc"])
def test_another_instances_port_is_refused_and_the_instance_named(
    lab: Lab, node: Node, ours: str, hook: str
) -> None:
    """Also at the other hook, where both could be attached: each would take the other's packets."""
    node.apply(at_hook(lab.intent("node1"), ours))
    other = Node(f"{node.instance}-other", netns=lab.namespace("node1"))
    try:
        other.add(Network(name="red", id=1))
        with pytest.raises(ForeignProgram, match=node.instance) as refused:
            other.add(Port(name="veth-c1", role="access", network="red", hook=hook))
        assert f"mptm --instance {node.instance} port del veth-c1" in str(refused.value.hint)
        assert list(other.intent.ports) == []
    finally:
        other.purge()
    ping(lab, "node1-c1", address_of(lab, "node2-c1"))


# ---- files that are wrong --------------------------------------------------------------------------------

BROKEN = {
    "no YAML": ("networks: [", "line 1"),
    "unknown section": ("network:\n  - {name: blue, id: 1}\n", "network"),
    "unknown field": ("networks:\n  - {name: blue, id: 1, colour: 7}\n", "colour"),
    "wrong type": ("networks:\n  - {name: blue, id: one}\n", "line 2"),
    "twice": ("networks:\n  - {name: blue, id: 1}\n  - {name: blue, id: 2}\n", "line 3"),
    "same id": ("networks:\n  - {name: blue, id: 1}\n  - {name: green, id: 1}\n", "id"),
    "no such network": ("ports:\n  - {name: veth-c1, role: access, network: blue}\n", "blue"),
    "host bits": (
        "networks:\n  - {name: blue, id: 1}\nroutes:\n  - {network: blue, prefix: 10.0.0.1/8, drop: true}\n",
        "10.0.0.0/8",
    ),
    "silent remote": (
        "networks:\n  - {name: blue, id: 1}\ntunnels:\n"
        "  - {name: t, protocol: geneve, network: blue, remote: 10.30.30.66, vni: 1}\n",
        "10.30.30.66",
    ),
    "no route": (
        "networks:\n  - {name: blue, id: 1}\ntunnels:\n"
        "  - {name: t, protocol: geneve, network: blue, remote: 192.0.2.1, vni: 1}\n",
        "192.0.2.1",
    ),
    "no MAC": (
        "networks:\n  - {name: blue, id: 1}\nports:\n  - {name: dummy7, role: access, network: blue}\n"
        "routes:\n  - {network: blue, prefix: 10.0.0.1/32, port: dummy7}\n",
        "--mac",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_wrong_file_changes_nothing_and_says_what_is_wrong(lab: Lab, node: Node, what: str) -> None:
    text, told = BROKEN[what]
    namespace = lab.namespace("node1")
    configure(namespace, ["link add dummy7 type bridge"])
    try:
        before, generation = node.intent, node.store.read().generation
        tables = table_bytes(node)
        done = mptm(lab, "node1", "apply", "-f", "-", stdin=text)
        assert done.returncode == 1
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        assert "internal" not in done.stderr
        assert (node.intent, node.store.read().generation) == (before, generation)
        assert table_bytes(node) == tables
    finally:
        configure(namespace, ["link delete dummy7"])


# ---- tables that are full --------------------------------------------------------------------------------


def test_a_full_table_is_told_and_everything_put_back(lab: Lab, node: Node) -> None:
    """The kernel refuses the last of several writes: those before it are undone, traffic goes on."""
    before, tables = node.intent, table_bytes(node)
    with node.data_plane() as data_plane:
        table = data_plane.maps["hosts_v4"]
        free = table.max_entries - table.entry_count()
        keys = np.zeros((free, table.key.size), np.uint8)
        keys[:] = np.frombuffer(table.key.pack(HostKeyV4(9999, bytes(4))), np.uint8)
        keys[:, :4] = np.arange(free, dtype=">u4")[:, None].view(np.uint8)
        value = np.frombuffer(table.value.pack(NextHop(4, 0, bytes(6), 0)), np.uint8)
        table.update_many(keys, np.tile(value, (free, 1)))
    wanted = before.add(Network(name="more", id=50))
    for each in (
        tunnel_from_dict(
            {
                "name": "more",
                "protocol": "vxlan",
                "network": "more",
                "remote": address_of(lab, "node2"),
                "vni": 50,
            }
        ),
        Route(network="more", prefix="10.0.0.1/32", via="more"),
    ):
        wanted = wanted.add(each)
    with pytest.raises(TableFull, match=f"hosts_v4 is full: it has room for {table.max_entries}"):
        node.apply(wanted)
    assert node.intent == before
    assert table_bytes(node) == tables
    ping(lab, "node1-c1", address_of(lab, "node2-c1"))
    node.apply(wanted)
    assert meaning(node) == fresh_meaning(node)


# ---- traffic goes on -------------------------------------------------------------------------------------


def add_and_remove(lab: Lab, node: Node, number: int) -> None:
    intent = node.intent
    tunnel = {
        "name": "aside",
        "protocol": "vxlan",
        "network": "blue",
        "remote": address_of(lab, "node2"),
        "vni": 51,
    }
    node.apply(
        intent.add(tunnel_from_dict(tunnel))
        .add(Route(network="blue", prefix="10.98.0.0/24", via="aside"))
        .add(Route(network="blue", prefix=f"10.99.0.{number % 200}/32", via="aside"))
        .add(Flow(network="blue", source="10.1.1.1", destination="10.1.1.2", via="aside"))
    )
    node.apply(intent)


def change_ttl(lab: Lab, node: Node, number: int) -> None:
    node.apply(carried_by(lab, "node1", "geneve", vni=100, ttl=33 + number % 200))


def restore(lab: Lab, node: Node, number: int) -> None:
    node.restore()


def add_and_remove_port(lab: Lab, node: Node, number: int) -> None:
    node.apply(without_green(lab.intent("node1")))
    node.apply(lab.intent("node1"))


@pytest.mark.parametrize("change", [add_and_remove, change_ttl, restore, add_and_remove_port])
def test_no_ping_is_lost_meanwhile(lab: Lab, node: Node, change: Callable[[Lab, Node, int], None]) -> None:
    """A ping every 2 ms from node 1 to node 2, while node 1 is changed over and over."""
    running = flood(lab, "node1-c1", address_of(lab, "node2-c1"))
    changes = 0
    while running.is_running():
        change(lab, node, changes)
        changes += 1
    assert running.lost() == 0
    assert changes > 2


# ---- the end ---------------------------------------------------------------------------------------------


def test_purge_leaves_nothing(bare_lab: Lab) -> None:
    lab, node = bare_lab, bare_lab.node("node1")
    with netns.inside(lab.namespace("node1")):
        interfaces = {name for _, name in socket.if_nameindex()}
    lab.up()
    with node.data_plane() as data_plane:
        programs = [info.id for info in data_plane._program_infos.values()]
    assert len(programs) >= 2
    pins = instance_directory(node.instance)
    assert pins.is_dir()
    assert node.store.directory.is_dir()
    done = mptm(lab, "node1", "purge", "--yes")
    assert done.returncode == 0, done.stderr
    assert not pins.exists()
    assert not node.store.directory.exists()
    assert interfaces_with_programs(Node(netns=lab.namespace("node1"))) == set()
    with netns.inside(lab.namespace("node1")):
        assert {name for _, name in socket.if_nameindex()} == interfaces
    deadline = time.monotonic() + 5
    while any(libbpf.program_info_by_id(each) is not None for each in programs):
        assert time.monotonic() < deadline, "the programs are still loaded"
        time.sleep(0.02)
    other = lab.node("node2")
    assert other.status().loaded
    ping(lab, "node1", address_of(lab, "node2"))
    assert mptm(lab, "node1", "purge", "--yes").returncode == 0
    lab.up()
    ping(lab, "node1-c1", address_of(lab, "node2-c1"))
