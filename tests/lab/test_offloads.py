# SPDX-License-Identifier: GPL-2.0-only
"""What XDP needs of the other end of a veth: set when a port is added, put back when it goes, told where it can't be.

The lab sets nothing by hand, so all its traffic tests at XDP show that the settings do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from traffic import address_of, at_hook, mptm, open_socket, packet_of, ping, try_ping

from mptm.intent import Network, Port
from mptm.kernel import netns
from mptm.kernel.offloads import read_features
from mptm.lab.topology import NAMESPACES, Lab, configure
from mptm.offloads import XDP_NEEDS

CONTAINER, OTHER_CONTAINER = "node1-c1", "node2-c1"
PORT = "veth-c1"
TCP_SECONDS = 2.0
"""How long a transfer that takes milliseconds is given."""

ADD = ("port", "add", PORT, "--role", "access", "--network", "blue", "--hook", "xdp")
ADD_STOLEN = ("port", "add", "veth-stolen", "--role", "access", "--network", "blue", "--hook", "xdp")


@pytest.fixture(scope="module", autouse=True)
def at_xdp() -> Iterator[None]:
    """All ports are at XDP: at TC they need nothing of this."""
    with pytest.MonkeyPatch.context() as patch:
        as_it_is = Lab.intent
        patch.setattr(Lab, "intent", lambda lab, name: at_hook(as_it_is(lab, name), "xdp"))
        yield


@pytest.fixture
def prepared(bare_lab: Lab) -> Lab:
    """Node 2 is up; node 1 has everything but the port of its container."""
    bare_lab.node("node2").apply(bare_lab.intent("node2"))
    intent = bare_lab.intent("node1")
    for key in [key for key, route in intent.routes.items() if route.port == PORT]:
        intent = intent.remove("route", key)
    bare_lab.node("node1").apply(intent.remove("port", PORT))
    return bare_lab


def offered(lab: Lab, target: str, interface: str = "eth0") -> dict[str, bool]:
    """What is asked for at an interface, feature by feature."""
    with netns.inside(lab.namespace(target)):
        features = read_features(socket.if_nametoindex(interface))
    return {name: feature.wanted for name, feature in features.items()}


def is_ready(lab: Lab, target: str, interface: str = "eth0") -> bool:
    """Whether everything that XDP needs is in force."""
    with netns.inside(lab.namespace(target)):
        features = read_features(socket.if_nametoindex(interface))
    return all(features[name].active == needed for name, needed in XDP_NEEDS.items())


def add_route(lab: Lab) -> None:
    done = mptm(lab, "node1", "route", "add", "10.250.1.100/32", "--network", "blue", "--port", PORT)
    assert not done.returncode, done.stderr


def tcp_passes(lab: Lab, source: str = CONTAINER, sink: str = OTHER_CONTAINER) -> bool:
    """Whether 100 KB get through from one container to another."""
    with (
        open_socket(lab, sink, socket.AF_INET, socket.SOCK_STREAM) as server,
        open_socket(lab, source, socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.settimeout(TCP_SECONDS)
        client.settimeout(TCP_SECONDS)
        server.bind((address_of(lab, sink), 0))
        server.listen()
        try:
            client.connect(server.getsockname())
            client.sendall(bytes(100_000))
            connection, _ = server.accept()
            with connection:
                connection.settimeout(TCP_SECONDS)
                got = 0
                while got < 100_000:
                    got += len(connection.recv(1 << 16)) or 1 << 30
        except TimeoutError:
            return False
        return got == 100_000


def test_a_port_is_made_ready_and_its_removal_puts_everything_back(prepared: Lab) -> None:
    before = offered(prepared, CONTAINER)
    assert not is_ready(prepared, CONTAINER)
    added = mptm(prepared, "node1", *ADD)
    assert added.returncode == 0, added.stderr
    assert "set at its other end, eth0 in /run/netns/" in added.stderr
    assert is_ready(prepared, CONTAINER)
    shown = mptm(prepared, "node1", "port", "show", PORT).stdout
    assert "gro on" in shown and f"eth0 in {NAMESPACES / prepared.namespace(CONTAINER)}" in shown
    add_route(prepared)
    ping(prepared, CONTAINER, address_of(prepared, OTHER_CONTAINER))
    assert tcp_passes(prepared)
    assert tcp_passes(prepared, OTHER_CONTAINER, CONTAINER)
    assert not mptm(prepared, "node1", "route", "del", "10.250.1.100/32", "--network", "blue").returncode
    assert not mptm(prepared, "node1", "port", "del", PORT).returncode
    assert offered(prepared, CONTAINER) == before


def test_what_was_set_before_stays_after(prepared: Lab) -> None:
    prepared.exec(CONTAINER, ["ethtool", "-K", "eth0", "tx", "off", "gro", "on"])
    before = offered(prepared, CONTAINER)
    assert not mptm(prepared, "node1", *ADD).returncode
    assert is_ready(prepared, CONTAINER)
    assert not mptm(prepared, "node1", "port", "del", PORT).returncode
    assert offered(prepared, CONTAINER) == before


def test_a_refused_port_leaves_nothing_set(prepared: Lab) -> None:
    before = offered(prepared, CONTAINER)
    program = Path(__file__).parents[2] / "build" / "mptm_extras.o"
    configure(prepared.namespace("node1"), [f"link set dev {PORT} xdp object {program} section xdp.frags"])
    added = mptm(prepared, "node1", *ADD)
    assert added.returncode == 1
    assert "already has an XDP program" in added.stderr
    configure(prepared.namespace("node1"), [f"link set dev {PORT} xdp off"])
    assert offered(prepared, CONTAINER) == before


def test_purge_puts_everything_back(prepared: Lab) -> None:
    places = [(CONTAINER, "eth0"), ("node1-c2", "eth0"), ("underlay", "node1")]
    assert not mptm(prepared, "node1", "purge", "--yes").returncode
    before = [offered(prepared, *place) for place in places]
    prepared.node("node1").apply(prepared.intent("node1"))
    assert all(is_ready(prepared, *place) for place in places)
    assert not mptm(prepared, "node1", "purge", "--yes").returncode
    assert [offered(prepared, *place) for place in places] == before


def test_a_kill_in_the_middle_is_taken_back_with_the_values_of_before(prepared: Lab) -> None:
    before = offered(prepared, CONTAINER)
    killed = kill_at_attach(prepared)
    assert killed == -signal.SIGKILL
    assert is_ready(prepared, CONTAINER)
    completed = mptm(prepared, "node1", "port", "list")
    assert completed.returncode == 0
    assert not mptm(prepared, "node1", "restore").returncode
    assert not mptm(prepared, "node1", "port", "del", PORT).returncode
    assert offered(prepared, CONTAINER) == before


def test_purge_after_a_kill_puts_everything_back(prepared: Lab) -> None:
    before = offered(prepared, CONTAINER)
    assert kill_at_attach(prepared) == -signal.SIGKILL
    assert not mptm(prepared, "node1", "purge", "--yes").returncode
    assert offered(prepared, CONTAINER) == before


def kill_at_attach(lab: Lab) -> int:
    """Add the port in a process that is killed when all is set, and the program isn't attached yet."""
    script = (
        "import os, signal, sys\n"
        "from mptm.kernel.dataplane import DataPlane\n"
        "from mptm.intent import Port\n"
        "from mptm.node import Node\n"
        "DataPlane.attach = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Node(sys.argv[1]).add(Port(name=sys.argv[2], role='access', network='blue', hook='xdp'))\n"
    )
    instance = lab.topology.node("node1").instance
    return subprocess.run([sys.executable, "-c", script, instance, PORT], check=False).returncode


def test_restore_sets_again_what_somebody_changed(prepared: Lab) -> None:
    before = offered(prepared, CONTAINER)
    assert not mptm(prepared, "node1", *ADD).returncode
    prepared.exec(CONTAINER, ["ethtool", "-K", "eth0", "tx", "on"])
    assert not is_ready(prepared, CONTAINER)
    assert not mptm(prepared, "node1", "restore").returncode
    assert is_ready(prepared, CONTAINER)
    assert not mptm(prepared, "node1", "port", "del", PORT).returncode
    assert offered(prepared, CONTAINER) == before


def test_a_new_interface_of_the_same_name_is_made_ready_by_restore(prepared: Lab) -> None:
    assert not mptm(prepared, "node1", *ADD).returncode
    namespace = prepared.namespace("node1")
    configure(namespace, [f"link delete {PORT}"])
    configure(
        namespace,
        [
            f"link add {PORT} type veth peer name eth0 netns {prepared.namespace(CONTAINER)}",
            f"link set {PORT} up",
        ],
    )
    configure(prepared.namespace(CONTAINER), ["link set eth0 up"])
    before = offered(prepared, CONTAINER)
    assert not mptm(prepared, "node1", "restore").returncode
    assert is_ready(prepared, CONTAINER)
    assert not mptm(prepared, "node1", "port", "del", PORT).returncode
    assert offered(prepared, CONTAINER) == before


def test_an_end_that_is_down_is_told_and_made_ready_by_restore_when_it_is_up(prepared: Lab) -> None:
    before = offered(prepared, CONTAINER)
    configure(prepared.namespace(CONTAINER), ["link set eth0 down"])
    added = mptm(prepared, "node1", *ADD)
    assert "is down, and takes nothing from XDP" in added.stderr
    assert not is_ready(prepared, CONTAINER)
    add_route(prepared)
    configure(prepared.namespace(CONTAINER), ["link set eth0 up"])
    assert not mptm(prepared, "node1", "restore").returncode
    assert is_ready(prepared, CONTAINER)
    ping(prepared, CONTAINER, address_of(prepared, OTHER_CONTAINER))
    assert tcp_passes(prepared)
    assert not mptm(prepared, "node1", "route", "del", "10.250.1.100/32", "--network", "blue").returncode
    assert not mptm(prepared, "node1", "port", "del", PORT).returncode
    assert offered(prepared, CONTAINER) == before


def test_gro_that_was_turned_on_while_the_end_was_down_is_turned_on_again(prepared: Lab) -> None:
    """It looks as if it were on, but nothing that XDP sends there arrives."""
    assert not mptm(prepared, "node1", *ADD).returncode
    add_route(prepared)
    prepared.exec(CONTAINER, ["ethtool", "-K", "eth0", "gro", "off"])
    configure(prepared.namespace(CONTAINER), ["link set eth0 down"])
    prepared.exec(CONTAINER, ["ethtool", "-K", "eth0", "gro", "on"])
    configure(prepared.namespace(CONTAINER), ["link set eth0 up"])
    said = try_ping(prepared, CONTAINER, address_of(prepared, OTHER_CONTAINER), wait_seconds=0.3)
    if " 0 received" not in said:
        pytest.skip(f"this kernel tells the port: {said}")
    assert not mptm(prepared, "node1", "restore").returncode
    ping(prepared, CONTAINER, address_of(prepared, OTHER_CONTAINER))


def test_without_offloads_nothing_is_touched_and_the_command_that_is_told_mends_it(prepared: Lab) -> None:
    before = offered(prepared, CONTAINER)
    added = mptm(prepared, "node1", *ADD, "--no-offloads")
    assert added.returncode == 0, added.stderr
    assert offered(prepared, CONTAINER) == before
    add_route(prepared)
    (command,) = (
        line.partition("other end: ")[2] for line in added.stderr.splitlines() if "XDP needs" in line
    )
    prepared.exec(CONTAINER, ["ethtool", "-K", "eth0", "gro", "on"])  # without it, nothing at all arrives
    ping(prepared, CONTAINER, address_of(prepared, OTHER_CONTAINER))
    assert not tcp_passes(prepared)
    assert not tcp_passes(prepared, OTHER_CONTAINER, CONTAINER)
    subprocess.run(command.split(), check=True)
    assert tcp_passes(prepared)
    assert tcp_passes(prepared, OTHER_CONTAINER, CONTAINER)


@contextmanager
def stolen_end(lab: Lab, name: str) -> Iterator[int]:
    """veth-stolen on node 1, whose other end is in a namespace that a descriptor of this process alone refers to."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    fd = os.open(NAMESPACES / name, os.O_RDONLY)
    try:
        configure(
            lab.namespace("node1"),
            [f"link add veth-stolen type veth peer name inside netns {name}", "link set veth-stolen up"],
        )
        subprocess.run(["ip", "netns", "delete", name], check=True)
        yield fd
    finally:
        configure(lab.namespace("node1"), ["link delete veth-stolen"])
        os.close(fd)


def test_a_namespace_that_isnt_found_is_told_with_the_command(prepared: Lab) -> None:
    with stolen_end(prepared, f"{prepared.topology.prefix}-stolen") as fd:
        added = mptm(prepared, "node1", *ADD_STOLEN)
        assert added.returncode == 0, added.stderr
        assert (
            "warning: port veth-stolen: the network namespace of its other end can't be found" in added.stderr
        )
        command = added.stderr.partition("in that namespace run: ")[2].splitlines()[0]
        assert command.startswith("ethtool -K inside tx off ")
        inside = f"--net=/proc/{os.getpid()}/fd/{fd}"
        subprocess.run(["nsenter", inside, "--", *command.split()], check=True)
        with netns.inside(f"/proc/{os.getpid()}/fd/{fd}"):
            features = read_features(socket.if_nametoindex("inside"))
        assert all(features[name].active == needed for name, needed in XDP_NEEDS.items())
        assert not mptm(prepared, "node1", "port", "del", "veth-stolen").returncode


def test_a_namespace_that_only_a_process_has_is_found(prepared: Lab) -> None:
    holder = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        home, deadline = os.stat("/proc/self/ns/net").st_ino, time.monotonic() + 5
        place = Path(f"/proc/{holder.pid}/ns/net")
        while place.stat().st_ino == home and time.monotonic() < deadline:
            time.sleep(0.01)
        configure(
            prepared.namespace("node1"),
            [
                f"link add veth-stolen type veth peer name inside netns {holder.pid}",
                "link set veth-stolen up",
            ],
        )
        subprocess.run(["nsenter", f"--net={place}", "ip", "link", "set", "inside", "up"], check=True)
        added = mptm(prepared, "node1", *ADD_STOLEN)
        assert added.returncode == 0, added.stderr
        assert f"inside in /proc/{holder.pid}/ns/net" in added.stderr
        with netns.inside(str(place)):
            features = read_features(socket.if_nametoindex("inside"))
        assert all(features[name].active == needed for name, needed in XDP_NEEDS.items())
        assert not mptm(prepared, "node1", "port", "del", "veth-stolen").returncode
    finally:
        holder.terminate()
        holder.wait()


def test_an_end_in_the_same_namespace_is_made_ready(prepared: Lab) -> None:
    configure(
        prepared.namespace("node1"),
        ["link add veth-stolen type veth peer name inside", "link set veth-stolen up", "link set inside up"],
    )
    added = mptm(prepared, "node1", *ADD_STOLEN)
    assert added.returncode == 0, added.stderr
    assert is_ready(prepared, "node1", "inside")
    assert not mptm(prepared, "node1", "port", "del", "veth-stolen").returncode
    assert not is_ready(prepared, "node1", "inside")


# ---- doctor ----------------------------------------------------------------------------------------------


@pytest.fixture
def standing(lab: Lab) -> Iterator[Lab]:
    """The module's lab, both nodes up, put back afterwards."""
    yield lab
    for name in ("node1", "node2"):
        namespace, node = lab.namespace(name), lab.node(name)
        configure(namespace, [f"link set {PORT} mtu {lab.topology.container_mtu} up"])
        configure(lab.namespace(f"{name}-c1"), [f"link set eth0 mtu {lab.topology.container_mtu} up"])
        node.apply(lab.intent(name))
        node.restore()


def complaints(lab: Lab, node: str = "node1") -> list[dict[str, str]]:
    """What doctor has to say of a node's ports."""
    done = mptm(lab, node, "doctor", "--json")
    checks = json.loads(done.stdout)["checks"]
    found = [each for each in checks if each["name"].startswith("port ") and each["status"] != "ok"]
    if any(each["status"] == "missing" for each in found):
        assert done.returncode == 1
    return found


def answers(lab: Lab) -> bool:
    said = try_ping(lab, CONTAINER, address_of(lab, OTHER_CONTAINER), count=2, wait_seconds=0.3)
    return " 0 received" not in said


def comes_to_answer(lab: Lab) -> bool:
    """The same, soon: after a time without answers the container's kernel first asks for the MAC address again."""
    return any(answers(lab) for _ in range(10))


def follow(complaint: dict[str, str]) -> None:
    subprocess.run(complaint["hint"], shell=True, check=True)


def test_doctor_has_nothing_to_say_of_a_sound_node(standing: Lab) -> None:
    assert not complaints(standing)
    checks = json.loads(mptm(standing, "node1", "doctor", "--json").stdout)["checks"]
    assert {each["name"] for each in checks} > {"port eth0", "port veth-c1", "port veth-c2"}


def test_doctor_finds_checksums_left_to_hardware(standing: Lab) -> None:
    standing.exec(CONTAINER, ["ethtool", "-K", "eth0", "tx", "on"])
    assert comes_to_answer(standing)
    assert not tcp_passes(standing)
    (complaint,) = complaints(standing)
    assert (complaint["name"], complaint["status"]) == (f"port {PORT}", "missing")
    assert "ping works, TCP gets nothing" in complaint["detail"]
    follow(complaint)
    assert tcp_passes(standing)
    assert not complaints(standing)


def test_doctor_finds_an_end_without_napi(standing: Lab) -> None:
    standing.exec(CONTAINER, ["ethtool", "-K", "eth0", "gro", "off"])
    assert not answers(standing)
    (complaint,) = complaints(standing)
    assert "takes no frames from XDP" in complaint["detail"]
    follow(complaint)
    assert comes_to_answer(standing)
    assert not complaints(standing)


def test_doctor_finds_gro_that_is_on_in_vain(standing: Lab) -> None:
    standing.exec(CONTAINER, ["ethtool", "-K", "eth0", "gro", "off"])
    configure(standing.namespace(CONTAINER), ["link set eth0 down"])
    standing.exec(CONTAINER, ["ethtool", "-K", "eth0", "gro", "on"])
    configure(standing.namespace(CONTAINER), ["link set eth0 up"])
    if answers(standing):
        pytest.skip("this kernel lets GRO that was turned on while an end was down count")
    (complaint,) = complaints(standing)
    assert "takes no frames from XDP" in complaint["detail"]
    follow(complaint)
    assert comes_to_answer(standing)
    assert not complaints(standing)


def test_doctor_finds_an_mtu_that_nobody_is_told_of(standing: Lab) -> None:
    for name in ("node1", "node2"):
        intent = standing.intent(name)
        standing.node(name).apply(intent.replace(Network(name="blue", id=intent.networks["blue"].id)))
        configure(standing.namespace(name), [f"link set {PORT} mtu 1500"])
        standing.node(name).restore()
        configure(standing.namespace(f"{name}-c1"), ["link set eth0 mtu 1500"])
    assert comes_to_answer(standing)
    assert not tcp_passes(standing)
    for name in ("node1", "node2"):
        (complaint,) = complaints(standing, name)
        assert complaint["status"] == "missing"
        assert "an MTU of 1500, and what fits its tunnels is 1450" in complaint["detail"]
        follow(complaint)
    assert tcp_passes(standing)
    assert not complaints(standing)


def test_doctor_finds_an_mtu_that_senders_are_told_of_no_great_harm(standing: Lab) -> None:
    configure(standing.namespace("node1"), [f"link set {PORT} mtu 1500"])
    standing.node("node1").restore()
    configure(standing.namespace(CONTAINER), ["link set eth0 mtu 1500"])
    (complaint,) = complaints(standing)
    assert complaint["status"] == "optional"
    assert tcp_passes(standing)


def test_doctor_finds_an_end_that_sends_more_than_its_port_takes(standing: Lab) -> None:
    configure(standing.namespace("node1"), [f"link set {PORT} mtu 1000"])
    remote = address_of(standing, OTHER_CONTAINER)
    assert " 0 received" in try_ping(standing, CONTAINER, remote, *packet_of(4, 1400), wait_seconds=0.3)
    (complaint,) = complaints(standing)
    assert "larger packets are lost" in complaint["detail"]
    follow(complaint)
    standing.node("node1").restore()
    ping(standing, CONTAINER, remote, *packet_of(4, 1400))
    assert not complaints(standing)


def test_doctor_finds_an_uplink_that_xdp_cant_send_out_of(standing: Lab) -> None:
    configure(standing.namespace("node1"), ["link add br7 type bridge", "link set br7 up"])
    try:
        standing.node("node1").add(Port(name="br7", role="uplink", hook="xdp"))
        (complaint,) = complaints(standing)
        assert complaint["name"] == "port br7"
        assert "takes no frames from XDP" in complaint["detail"]
    finally:
        standing.node("node1").apply(standing.intent("node1"))
        configure(standing.namespace("node1"), ["link delete br7"])
