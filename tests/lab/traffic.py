# SPDX-License-Identifier: GPL-2.0-only
"""Traffic for lab tests: pings, TCP with its payload compared, datagrams, captures and forged frames.

Sockets are opened in the namespace of a node or container and used from the test's own process: no server to wait
for, nothing left behind. Targets are named as the lab names them: node1, node1-c1, underlay.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msgspec.structs import replace
from packets import carriers, required_options
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from mptm.intent import Intent, tunnel_from_dict
from mptm.kernel import libbpf, netns, tc
from mptm.kernel.netlink import gather_facts, xdp_states
from mptm.lab.topology import Lab
from mptm.node import Node

NODES = ("node1", "node2")
HOOK = os.environ.get("MPTM_TEST_HOOK")
"""Where the ports of all labs are, whatever the lab's files say; None: where those say."""
THOROUGH = ("geneve", "vxlan", "vlan")
"""Protocols that all tests of the lab run with: with every one they would take hours. That the others talk to somebody
else is up to tests with peers; test_every_protocol.py sends some packets through each."""
CARRIERS = [carrier for carrier in carriers() if carrier[0] in THOROUGH]
MEGABYTE = 1 << 20
SOCKET_TIMEOUT_SECONDS = 10
ARRIVAL_SECONDS = 5
"""How long what must come is waited for. It takes less than a millisecond, unless the machine has much else to do."""
ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
SOL_PACKET, PACKET_AUXDATA, TAG_IS_VALID = 263, 8, 1 << 4
SO_RCVBUFFORCE = 33
SO_ATTACH_FILTER, SKF_AD_MARK = 26, 0xFFFFF000 + 20
IP_RECVTOS, IPV6_RECVTCLASS, IPV6_TCLASS = 13, 66, 67
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
IP_HEADER_LEN = {4: 20, 6: 40}
PING_HEADER_LEN = 8
UDP_HEADER_LEN = 8


def peer_of(node: str) -> str:
    return NODES[1 - NODES.index(node)]


def address_of(lab: Lab, target: str, version: int = 4) -> str:
    """Address of a node in the underlay, or of a container in its network."""
    owner = lab.topology.node(target) if target in NODES else lab.container(target)
    return owner.addresses[0 if version == 4 else 1].split("/")[0]


def mac_of(lab: Lab, target: str, interface: str = "eth0") -> str:
    shown = json.loads(lab.exec(target, ["ip", "-json", "link", "show", "dev", interface]).stdout)
    return str(shown[0]["address"])


# ---- configuration ---------------------------------------------------------------------------------------


def carried_by(
    lab: Lab, node: str, protocol: str, underlay: int = 4, *, network: str = "blue", **options: Any
) -> Intent:
    """The node's file, with another tunnel for a network; the tunnel's name stays."""
    intent, peer = lab.intent(node), peer_of(node)
    tunnel = {
        "name": f"{network}-to-{peer}",
        "protocol": protocol,
        "network": network,
        "remote": address_of(lab, peer, underlay),
        **required_options(protocol),
        **options,
    }
    return intent.replace(tunnel_from_dict(tunnel))


def at_hook(intent: Intent, hook: str) -> Intent:
    """The intent with all its ports at a hook."""
    for port in intent.ports.values():
        intent = intent.replace(replace(port, hook=hook))
    return intent


def mptm(lab: Lab, node: str, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command line on a node, as a user has it."""
    return subprocess.run(
        mptm_command(lab, node, *arguments), input=stdin, capture_output=True, text=True, timeout=60
    )


def mptm_command(lab: Lab, node: str, *arguments: str) -> list[str]:
    instance = lab.topology.node(node).instance
    return [sys.executable, "-m", "mptm", "--instance", instance, *arguments]


@contextlib.contextmanager
def kept(*nodes: Node) -> Iterator[None]:
    """What the block changes on nodes is taken back."""
    before = [node.intent for node in nodes]
    try:
        yield
    finally:
        for node, intent in zip(nodes, before, strict=True):
            node.apply(intent)


def interfaces_with_programs(node: Node) -> set[str]:
    """Interfaces of the node's namespace that run somebody's program at XDP or at TC, as the kernel has it."""
    with netns.inside(node.netns or ""):
        at_xdp = {state.name for state in xdp_states()}
        at_tcx = {name for ifindex, name in socket.if_nameindex() if libbpf.tcx_programs(ifindex)}
        return at_xdp | at_tcx | {each.name for each in tc.filters()}


def drops(node: Node, reason: str, name: str) -> int:
    """Packets counted under a reason, for the tunnel or port of that name."""
    return sum(drop.packets for drop in node.drops() if (drop.reason, drop.name) == (reason, name))


# ---- pings -----------------------------------------------------------------------------------------------


def ping(lab: Lab, source: str, address: str, *options: str, count: int = 3) -> None:
    """All of `count` pings are answered."""
    said = try_ping(lab, source, address, *options, count=count)
    assert f"{count} received" in said, said


def try_ping(
    lab: Lab, source: str, address: str, *options: str, count: int = 1, wait_seconds: float = ARRIVAL_SECONDS
) -> str:
    command = ["ping", "-n", "-c", str(count), "-i", "0.05", "-W", str(wait_seconds), *options, address]
    return lab.exec(source, command, check=False).stdout


def packet_of(version: int, size: int) -> tuple[str, ...]:
    """Options that make ping send IP packets of `size` bytes that nobody may fragment."""
    return ("-M", "do", "-s", str(size - IP_HEADER_LEN[version] - PING_HEADER_LEN))


@dataclass
class Flood:
    """A ping every 2 ms that has been started; `lost` waits for its end."""

    process: subprocess.Popen[str]

    def is_running(self) -> bool:
        return self.process.poll() is None

    def lost(self) -> int:
        said, _ = self.process.communicate(timeout=30)
        found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
        assert found is not None, said
        assert int(found[1]) > 100, said
        return int(found[1]) - int(found[2])


def flood(lab: Lab, source: str, address: str, *, count: int = 1000) -> Flood:
    """Ping every 2 ms, in the background; the first has been answered."""
    ping(lab, source, address, count=1)
    command = ["ping", "-n", "-q", "-i", "0.002", "-c", str(count), "-W", "2", address]
    return Flood(lab.popen(source, command))


def set_switches(lab: Lab, names: Sequence[str], value: int) -> None:
    """Set sysctls, without their "net.", on both nodes."""
    for node in NODES:
        lab.exec(node, ["sysctl", "-qw", *(f"net.{name}={value}" for name in names)])


# ---- sockets ---------------------------------------------------------------------------------------------


def open_socket(lab: Lab, target: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    with netns.inside(lab.namespace(target)):
        return socket.socket(family, kind, protocol)


def transfer(
    lab: Lab,
    client: str,
    server: str,
    version: int = 4,
    *,
    address: str | None = None,
    size: int = 20 * MEGABYTE,
) -> None:
    """One TCP connection, `size` random bytes each way at once: both ends must have what the other sent.

    No segment may have arrived with a wrong checksum. `address` is the server's; default: the lab's.
    """
    errors = [checksum_errors(lab, target) for target in (client, server)]
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(open_socket(lab, server, FAMILY[version], socket.SOCK_STREAM))
        listener.settimeout(SOCKET_TIMEOUT_SECONDS)
        listener.bind((address or address_of(lab, server, version), 0))
        listener.listen(1)
        near = stack.enter_context(open_socket(lab, client, FAMILY[version], socket.SOCK_STREAM))
        near.settimeout(SOCKET_TIMEOUT_SECONDS)
        near.connect(listener.getsockname()[:2])
        far = stack.enter_context(listener.accept()[0])
        far.settimeout(SOCKET_TIMEOUT_SECONDS)
        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(send_all, end, os.urandom(size)) for end in (near, far)]
            received = [pool.submit(receive_all, end) for end in (far, near)]
        for direction in (0, 1):
            assert received[direction].result() == (size, sent[direction].result())
    assert [checksum_errors(lab, target) for target in (client, server)] == errors


def send_all(end: socket.socket, data: bytes) -> str:
    end.sendall(data)
    end.shutdown(socket.SHUT_WR)
    return hashlib.sha256(data).hexdigest()


def receive_all(end: socket.socket) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while chunk := end.recv(MEGABYTE):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def checksum_errors(lab: Lab, target: str) -> int:
    """TCP segments and UDP datagrams that arrived with a wrong checksum."""
    with netns.inside(lab.namespace(target)):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        lines6 = Path("/proc/thread-self/net/snmp6").read_text().split()
    named = [
        dict(zip(a.split(), b.split(), strict=True)) for a, b in zip(lines[::2], lines[1::2], strict=True)
    ]
    ipv4 = sum(int(each["InCsumErrors"]) for each in named if "Tcp:" in each or "Udp:" in each)
    return ipv4 + int(lines6[lines6.index("Udp6InCsumErrors") + 1])


def iperf3(lab: Lab, client: str, server: str) -> int:
    """Bytes that iperf3 moved from client to server in half a second or so."""
    process = lab.popen(server, ["iperf3", "-s", "-1", "--forceflush"])
    assert process.stdout is not None
    while "listening" not in (line := process.stdout.readline()):
        assert line, "the iperf3 server ended"
    command = ["iperf3", "-c", address_of(lab, server), "-n", "30M", "-J", "--connect-timeout", "3000"]
    report = json.loads(lab.exec(client, command).stdout)
    process.communicate(timeout=10)
    return int(report["end"]["sum_received"]["bytes"])


class Datagrams:
    """A pair of UDP sockets, one in each of two containers or nodes, that know each other's address."""

    def __init__(
        self, lab: Lab, source: str, destination: str, version: int = 4, *, port: int = 7777
    ) -> None:
        self.version = version
        self.sender = open_socket(lab, source, FAMILY[version], socket.SOCK_DGRAM)
        self.receiver = open_socket(lab, destination, FAMILY[version], socket.SOCK_DGRAM)
        self._to = (address_of(lab, destination, version), port)
        self.receiver.bind(self._to)
        if version == 4:
            self.receiver.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        else:
            self.receiver.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.sender.close()
        self.receiver.close()

    def send(self, data: bytes, *, tos: int = 0, ttl: int = 64) -> None:
        if self.version == 4:
            self.sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
            self.sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        else:
            self.sender.setsockopt(socket.IPPROTO_IPV6, IPV6_TCLASS, tos)
            self.sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        self.sender.sendto(data, self._to)

    def receive(self, *, wait_seconds: float = ARRIVAL_SECONDS) -> tuple[bytes, int] | None:
        """Data and TOS of the next datagram; None: nothing came."""
        if not select.select([self.receiver], [], [], wait_seconds)[0]:
            return None
        data, control, _, _ = self.receiver.recvmsg(65536, 64)
        # The TOS comes as one byte, the traffic class as an int.
        return data, next(value[0] for _, _, value in control)


@dataclass(frozen=True)
class Arrived:
    """What became of a stream's datagrams."""

    sent: int
    lost: int
    duplicated: int
    missing: tuple[int, ...]
    """The first of the lost ones."""


class Stream:
    """Numbered datagrams from one container to another, `rate` a second, from its making until `finish`.

    What comes waits in the receiver's buffer, which takes all of it: the test's own slowness loses nothing.
    """

    BUFFER_BYTES = 256 * MEGABYTE
    PAYLOAD_BYTES = 200
    AT_ONCE = 8
    """More in a row would only show how few frames a veth's ring holds while a busy machine looks elsewhere."""
    SILENCE_SECONDS = 1.0

    def __init__(
        self, lab: Lab, source: str, destination: str, version: int = 4, *, rate: int = 3000, port: int = 7778
    ) -> None:
        self._rate = rate
        self._sender = open_socket(lab, source, FAMILY[version], socket.SOCK_DGRAM)
        self._receiver = open_socket(lab, destination, FAMILY[version], socket.SOCK_DGRAM)
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, self.BUFFER_BYTES)
        self._to = (address_of(lab, destination, version), port)
        self._receiver.bind(self._to)
        self._over = threading.Event()
        self._sent = 0
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self._sender.close()
        self._receiver.close()

    def _send(self) -> None:
        padding = bytes(self.PAYLOAD_BYTES - 4)
        started = time.monotonic()
        behind = 0.0
        while not self._over.is_set():
            due = int((time.monotonic() - started - behind) * self._rate)
            if due - self._sent > self.AT_ONCE:  # what a pause left undone isn't made up for
                behind += (due - self._sent - self.AT_ONCE) / self._rate
                due = self._sent + self.AT_ONCE
            while self._sent < due:
                self._sender.sendto(struct.pack("!I", self._sent) + padding, self._to)
                self._sent += 1
            time.sleep(0.0005)

    def sent(self) -> int:
        """Datagrams so far."""
        return self._sent

    def finish(self) -> Arrived:
        """End the stream, wait until nothing comes any more, and count."""
        self._over.set()
        self._thread.join()
        numbers = []
        while select.select([self._receiver], [], [], self.SILENCE_SECONDS)[0]:
            numbers.append(struct.unpack_from("!I", self._receiver.recv(65536))[0])
        counted = Counter(numbers)
        lost, duplicated = self._sent - len(counted), len(numbers) - len(counted)
        missing = sorted(set(range(self._sent)) - counted.keys())
        return Arrived(self._sent, lost, duplicated, tuple(missing[:20]))


# ---- frames ----------------------------------------------------------------------------------------------


class Capture:
    """Frames on an interface, in and out, from its making on; a VLAN tag that the kernel took off is put back."""

    def __init__(self, lab: Lab, target: str, interface: str = "eth0") -> None:
        self._socket = open_socket(lab, target, socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MEGABYTE)
        self._socket.bind((interface, ALL_PROTOCOLS))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def only_marked(self, mark: int) -> None:
        """From now on only packets with this mark (a filter of the socket: filter.txt of the kernel)."""
        code = [(0x20, 0, 0, SKF_AD_MARK), (0x15, 0, 1, mark), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)]
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
        described = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)
        while select.select([self._socket], [], [], 0)[0]:
            self._socket.recv(1)

    def send(self, frame: Packet | bytes) -> None:
        """Send a frame out of the interface."""
        self._socket.send(bytes(frame))

    def frames(self, *, wait_seconds: float) -> Iterator[bytes]:
        """Frames one by one as they come, until the time is over."""
        deadline = time.monotonic() + wait_seconds
        while select.select([self._socket], [], [], max(0, deadline - time.monotonic()))[0]:
            frame, control, _, _ = self._socket.recvmsg(65536, 256)
            for _, _, value in control:
                status, _, _, _, _, tci, tpid = struct.unpack("<IIIHHHH", value[:20])
                if status & TAG_IS_VALID:
                    frame = frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
            yield frame

    def find(self, wanted: Callable[[bytes], bool], *, wait_seconds: float = ARRIVAL_SECONDS) -> bytes | None:
        """The next frame that is wanted; None: it didn't come in time."""
        return next((frame for frame in self.frames(wait_seconds=wait_seconds) if wanted(frame)), None)

    def carrying(self, data: bytes, *, wait_seconds: float = ARRIVAL_SECONDS) -> Packet:
        """The next frame that has these bytes in it, dissected."""
        frame = self.find(lambda each: data in each, wait_seconds=wait_seconds)
        assert frame is not None, f"no frame with {data!r} in {wait_seconds} s"
        return Ether(frame)


def with_outer_ecn(frame: bytes, ecn: int) -> bytes:
    """An untagged IP frame with another ECN field, and the IPv4 checksum right again."""
    packet = Ether(frame)
    layer = packet.getlayer(1)
    if isinstance(layer, IP):
        layer.tos = layer.tos & ~3 | ecn
        del layer.chksum
    else:
        assert isinstance(layer, IPv6)
        layer.tc = layer.tc & ~3 | ecn
    return bytes(packet)


def with_finished_sum(frame: bytes, data: bytes, version: int) -> bytes:
    """A frame with a datagram of `data` in it, as a sender without checksum offload makes it.

    One that is captured on its way between veths may have only the beginning of its inner UDP checksum.
    """
    end = frame.index(data) + len(data)
    start = end - len(data) - UDP_HEADER_LEN - IP_HEADER_LEN[version]
    inner = (IP if version == 4 else IPv6)(frame[start:end])
    del inner[UDP].chksum
    return frame[:start] + bytes(inner) + frame[end:]


# ---- what the data plane holds ---------------------------------------------------------------------------

Bytes = dict[str, dict[bytes, bytes]]


def table_bytes(node: Node) -> Bytes:
    """Every table that the control plane writes, as it is in the kernel."""
    from mptm.sync import WRITE_ORDER

    with node.data_plane() as data_plane:
        return {name: data_plane.maps[name].items() for name in WRITE_ORDER}


def meaning(node: Node, tables: Bytes | None = None) -> dict[str, list[str]]:
    """What tables say, whichever slots they say it with: comparable with tables that were made from nothing."""
    with node.data_plane() as data_plane:
        maps = data_plane.maps
        if tables is None:
            tables = {name: maps[name].items() for name in table_bytes(node)}
        readable = {
            name: [
                (maps[name].key.unpack(key), maps[name].value.unpack(value)) for key, value in entries.items()
            ]
            for name, entries in tables.items()
        }
    templates = {
        slot["value"]: {name: value for name, value in template.items() if name != "counter"}
        for slot, template in readable["tunnels"]
    }
    for name, entries in readable.items():
        for _, value in entries:
            if name == "terminations":
                value["tunnel"] = templates.get(value["tunnel"])
                del value["counter"]
            elif name == "groups":
                value["tunnels"] = [slot and templates[slot - 1] for slot in value["tunnels"]]
    groups = {slot["value"]: value for slot, value in readable["groups"]}
    for entries in readable.values():
        for _, value in entries:
            if isinstance(value, dict) and value.get("kind") == 2 and "id" in value:  # NEXT_HOP_TUNNEL
                value["id"] = templates[value["id"]]
            elif isinstance(value, dict) and value.get("kind") == 5 and "id" in value:  # NEXT_HOP_GROUP
                value["id"] = groups[value["id"]]
    by_slot = ("tunnels", "groups", "ports", "listeners", "terminations")
    readable["tunnels"] = list(templates.items())
    return {
        name: sorted(repr(value) if name in by_slot else repr((key, value)) for key, value in entries)
        for name, entries in readable.items()
    }


def fresh_meaning(node: Node) -> dict[str, list[str]]:
    """The meaning of the tables that the node's intent compiles to when nothing was there before."""
    from mptm.compile import Allocations, compile_tables

    intent, namespace = node.intent, node.netns
    assert namespace is not None
    with netns.inside(namespace):
        facts = gather_facts(intent.tunnels.values())
    compiled = compile_tables(intent, facts, Allocations()).tables
    with node.data_plane() as data_plane:
        packed = {
            name: {
                data_plane.maps[name].key.pack(key): data_plane.maps[name].value.pack(value)
                for key, value in getattr(compiled, name).items()
            }
            for name in table_bytes(node)
        }
    return meaning(node, packed)
