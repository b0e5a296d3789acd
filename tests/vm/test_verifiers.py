# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernels take the programs, and do with every packet what the running kernel does with it.

What the running kernel does is what tests/program is about.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from machine import Machine
from packets import VARIANTS, carriers, carries, far_end, frame, inner_kinds, ip, tunnel
from scapy.layers.inet import UDP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from scenes import Outcome, Recorder, Recording, Scene, replay
from world import OUR_MAC, OURS, REMOTE, THEIRS, VERDICTS, least_len

from mptm.intent import Route

INNER = inner_kinds()
MANGLED_EACH = 12
HEADERS_LEN = 110
MINIMUM = 14
"""Bytes: kernels before 6.18 run no shorter packet, and neither does that one."""
VERIFYING_SECONDS = 120
REPLAY_SECONDS = 240
TEST_SECONDS = 600
"""Time limit of a test; one of them boots the guest, and one waits for all scenes."""

to_them = [Route(network="blue", prefix=THEIRS[version], via="to-node2") for version in (4, 6)]
to_us = [Route(network="blue", prefix=OURS[version], port="c1") for version in (4, 6)]
at_their_side = [Route(network="blue", prefix=THEIRS[version], port="c1") for version in (4, 6)]


@dataclass(frozen=True)
class Played:
    """Scenes by name, as the running kernel played them."""

    links: dict[str, int]
    recordings: dict[str, Recording]


def scene_names() -> list[str]:
    names = [
        f"{protocol} over IPv{underlay} {way}" for protocol, underlay in carriers() for way in ("out", "in")
    ]
    return [*names, "workload"]


def record_all() -> Played:
    found: dict[str, Recording] = {}
    chance = random.Random(6)
    with Recorder() as recorder:
        for protocol, underlay in carriers():
            name = f"{protocol} over IPv{underlay}"
            kinds = [
                kind for kind, packet in INNER.items() if carries(protocol, underlay, version_of(packet))
            ]
            there = tunnel(protocol, underlay, remotes=REMOTE)
            out = recorder.play(Scene([there, *to_them], [("c1", bytes(INNER[kind])) for kind in kinds]))
            assert all(VERDICTS[verdict] == "REDIRECT" for verdict, _ in out.outcome.results), name
            whole = [data for _, data in out.outcome.results]
            packets = [*whole, *(mangle(chance, chance.choice(whole)) for _ in range(MANGLED_EACH))]
            back = recorder.play(
                Scene(
                    [far_end(protocol, underlay), *at_their_side],
                    [("up0", data) for data in packets],
                    far=True,
                )
            )
            verdicts = [VERDICTS[verdict] for verdict, _ in back.outcome.results[: len(whole)]]
            assert set(verdicts) == {"REDIRECT"}, name
            found |= {f"{name} out": out, f"{name} in": back}
        found["workload"] = recorder.play(
            Scene(
                [tunnel("geneve", remotes=REMOTE), *to_them],
                [("c1", packet) for packet in of_workload(chance)],
            )
        )
        return Played(recorder.links(), found)


def version_of(packet) -> int:
    return 6 if IPv6 in packet else 4


def mangle(chance: random.Random, packet: bytes) -> bytes:
    """Other bytes in the headers, or an end too early, or both."""
    changed = bytearray(packet)
    for _ in range(chance.randint(1, 3)):
        changed[chance.randrange(min(len(changed), HEADERS_LEN))] = chance.randrange(256)
    end = chance.choice((len(changed), chance.randint(MINIMUM, len(changed))))
    return bytes(changed[: max(end, least_len(bytes(changed)))])


def of_workload(chance: random.Random) -> list[bytes]:
    """What has no tunnel, is too big, is answered on the spot, or is broken."""
    solicitation = IPv6(src=OURS[6], dst="ff02::1:ff00:101", hlim=255) / ICMPv6ND_NS(tgt=THEIRS[6])
    whole = [
        frame(ip(4, destination="192.0.2.1") / UDP()),
        frame(ip(6, destination="2001:db8::1") / UDP()),
        frame(ip(4, flags="DF") / UDP() / Raw(bytes(1470))),
        frame(ip(6) / UDP() / Raw(bytes(1450))),
        Ether(src=OUR_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=OUR_MAC, psrc=OURS[4], pdst=THEIRS[4]),
        Ether(src=OUR_MAC, dst="33:33:ff:00:01:01") / solicitation / ICMPv6NDOptSrcLLAddr(lladdr=OUR_MAC),
    ]
    data = [bytes(packet) for packet in whole]
    return data + [mangle(chance, bytes(chance.choice(list(INNER.values())))) for _ in range(200)]


@pytest.fixture(scope="module")
def played() -> Played:
    """What the running kernel does."""
    return record_all()


@pytest.fixture(scope="module")
def outcomes(guest: Machine, played: Played) -> dict[str, Outcome]:
    """What the guest's does, by scene."""
    found = replay(guest, played.links, list(played.recordings.values()), REPLAY_SECONDS)
    return dict(zip(played.recordings, found, strict=True))


@pytest.fixture(scope="module")
def outcomes_at_tc(guest: Machine, played: Played) -> dict[str, Outcome]:
    """What the guest's does at TC."""
    found = replay(guest, played.links, list(played.recordings.values()), REPLAY_SECONDS, "tc")
    return dict(zip(played.recordings, found, strict=True))


@pytest.mark.timeout(TEST_SECONDS)
def test_the_verifier_takes_every_program(guest: Machine) -> None:
    objects = Path(__file__).parents[2] / "build"
    for name in ("mptm.o", "mptm_tc.o", "mptm_extras.o", "mptm_trace.o"):
        said = guest.python(Path(__file__).with_name("load.py"), objects / name, timeout=VERIFYING_SECONDS)
        assert said.status == 0, said.stdout + said.stderr


@pytest.mark.timeout(TEST_SECONDS)
@pytest.mark.parametrize("name", scene_names())
def test_a_packet_gets_the_same_verdict_bytes_and_counts(
    name: str, played: Played, outcomes: dict[str, Outcome]
) -> None:
    compare(name, played.recordings[name], outcomes[name])


@pytest.mark.timeout(TEST_SECONDS)
@pytest.mark.parametrize("name", scene_names())
def test_and_at_tc_the_same_as_at_xdp(name: str, played: Played, outcomes_at_tc: dict[str, Outcome]) -> None:
    compare(name, played.recordings[name], outcomes_at_tc[name])


def compare(name: str, recording: Recording, outcome: Outcome) -> None:
    moving = moving_parts(name)
    for (_, _, packet), here, there in zip(
        recording.packets, recording.outcome.results, outcome.results, strict=True
    ):
        assert readable(there, moving) == readable(here, moving), packet.hex()
    assert outcome.counted == recording.outcome.counted


def readable(result: tuple[int, bytes], moving: Sequence[slice]) -> tuple[str, str]:
    data = bytearray(result[1])
    for part in moving:
        data[part] = b"\0" * len(data[part])
    return VERDICTS[result[0]], data.hex()


def moving_parts(name: str) -> list[slice]:
    """Bytes of what is sent that are by chance, or by the clock."""
    protocol, _, rest = name.partition(" over IPv")
    if not rest.endswith("out"):
        return []
    options = VARIANTS.get(protocol, ("", {}))[1]
    if protocol == "erspan III":
        stamp = 14 + (20 if rest[0] == "4" else 40) + 12
        return [slice(stamp, stamp + 4)]
    if not options.get("df", True) and rest[0] == "4":
        return [slice(18, 20), slice(24, 26)]  # identification, and the header checksum with it
    return []


TO_XDP = """
import sys
from msgspec.structs import replace
from mptm import Node
node = Node(sys.argv[1])
intent = node.intent
for port in intent.ports.values():
    intent = intent.replace(replace(port, hook="xdp"))
node.apply(intent)
"""


@pytest.mark.timeout(TEST_SECONDS)
def test_traffic_flows_through_programs_on_veths(guest: Machine) -> None:
    """The two-node lab, with all its processes, in the guest: GENEVE and VXLAN, at TC and then at XDP.

    A plain vxlan device of somebody else's shares the UDP port with the one that brings GRO.
    """
    at_tc = "tcx" if kernel_of(guest) >= (6, 6) else "clsact"
    nodes, interfaces = ("node1", "node2"), ("eth0", "veth-c1", "veth-c2")
    try:
        guest.python("-m", "mptm", "lab", "up", timeout=150).check()
        for node in nodes:
            assert attached(guest, node) == dict.fromkeys(interfaces, f"attached: {at_tc}")
        theirs = "ip link add theirs type vxlan id 300 dstport 4789", "ip link set theirs up"
        for command in theirs:
            inside(guest, "mptm-node1", *command.split()).check()
        ping_all(guest)
        for node in nodes:
            guest.python("-c", TO_XDP, node, timeout=150).check()
            assert attached(guest, node) == dict.fromkeys(interfaces, "attached: native")
            shown = inside(guest, f"mptm-{node}", "tc", "qdisc", "show").check().stdout
            assert "clsact" not in shown, "what was added for filters went with them"
        ping_all(guest)
    finally:
        guest.python("-m", "mptm", "lab", "down", timeout=150).check()


TCP_BY_SEGMENTS = """
import json, os, socket, sys, threading
from mptm import Node
from mptm.intent import tunnel_from_dict
from mptm.kernel import netns, segmenter
size, nodes = 1 << 22, ("node1", "node2")
for name in nodes:
    node = Node(name)
    (tunnel,) = [each for each in node.intent.tunnels.values() if each.network == "blue"]
    wanted = dict(name=tunnel.name, protocol="etherip", network="blue", remote=str(tunnel.remote))
    node.apply(node.intent.replace(tunnel_from_dict(wanted)))
with netns.inside("mptm-node2-c1"):
    listener = socket.create_server(("0.0.0.0", 7))
    listener.settimeout(20)
with netns.inside("mptm-node1-c1"):
    near = socket.create_connection((sys.argv[1], 7), timeout=20)
far = listener.accept()[0]
far.settimeout(20)
data, got = os.urandom(size), bytearray()
threading.Thread(target=lambda: (near.sendall(data), near.shutdown(socket.SHUT_WR))).start()
while chunk := far.recv(1 << 20):
    got += chunk
assert bytes(got) == data
with netns.inside("mptm-node1"):
    entry = segmenter.names("node1")[0]
    (link,) = json.load(os.popen(f"ip -json -statistics link show dev {entry}"))
assert link["stats64"]["tx"]["packets"] > size // 1500 // 2, link
assert not [each for each in Node("node1").drops() if "ROUTE" not in each.reason], Node("node1").drops()
"""


@pytest.mark.timeout(TEST_SECONDS)
def test_segments_are_made_and_known(guest: Machine) -> None:
    """What tells of which tunnel they are survives the kernel's making them, and the veth."""
    try:
        guest.python("-m", "mptm", "lab", "up", timeout=150).check()
        ping_all(guest)
        guest.python("-c", TCP_BY_SEGMENTS, "10.250.1.101", timeout=150).check()
    finally:
        guest.python("-m", "mptm", "lab", "down", timeout=150).check()


def kernel_of(guest: Machine) -> tuple[int, int]:
    major, minor, *_ = guest.run("uname", "-r").check().stdout.split(".")
    return int(major), int(minor)


def attached(guest: Machine, node: str) -> dict[str, str]:
    """State of each port of a node."""
    done = guest.python("-m", "mptm", "--instance", node, "status", "--json", timeout=150).check()
    return {
        each["key"]: each["state"] for each in json.loads(done.stdout)["objects"] if each["kind"] == "port"
    }


def ping_all(guest: Machine) -> None:
    for container in ("c1", "c2"):
        for address in ("10.250.1.101", "fd00:250:1::101"):
            command = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", address]
            inside(guest, f"mptm-node1-{container}", *command).check()


def inside(guest: Machine, namespace: str, *argv: str):
    return guest.run("nsenter", f"--net=/run/netns/{namespace}", *argv)
