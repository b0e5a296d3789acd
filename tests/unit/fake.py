# SPDX-License-Identifier: GPL-2.0-only
"""A machine in memory: the seams `mptm.node.Kernel` and `mptm.sync.DataPlane`, with the real layouts.

The fake data plane checks after every single operation that no entry which a packet can reach points at nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from ipaddress import ip_address
from typing import Any

from mptm.compile import NextHopKind
from mptm.errors import ForeignProgram, MptmError, NotFound
from mptm.facts import Facts, Link, Path
from mptm.gro import Listening, device_of, is_device_of
from mptm.intent import Tunnel
from mptm.kernel.btf import IntegerLayout, Layout, Types, load_types
from mptm.kernel.objects import object_path
from mptm.kernel.tracing import TracedRun
from mptm.node import NetnsIdentity
from mptm.offloads import XDP_NEEDS, Feature, OtherEnd
from mptm.tables import Attachment

ARRAYS = (
    "ports",
    "tunnels",
    "groups",
    "listeners",
    "terminations",
    "tunnel_counters",
    "port_counters",
    "sequences",
)
STRUCTS = {
    "ports": ("", "port"),
    "flows_v4": ("flow_key_v4", "next_hop"),
    "flows_v6": ("flow_key_v6", "next_hop"),
    "hosts_v4": ("host_key_v4", "next_hop"),
    "hosts_v6": ("host_key_v6", "next_hop"),
    "prefixes_v4": ("prefix_key_v4", "next_hop"),
    "prefixes_v6": ("prefix_key_v6", "next_hop"),
    "tunnels": ("", "tunnel"),
    "listeners": ("", "listener_row"),
    "terminations": ("", "termination"),
    "locals": ("local_key", ""),
    "tx_ports": ("", ""),
    "tunnel_counters": ("", "tunnel_counters"),
    "port_counters": ("", "port_counters"),
    "drops": ("drop_key", "drop_value"),
    "gateways": ("", "gateway"),
    "groups": ("", "group"),
    "sequences": ("", ""),
}
STEERING = ("flows_v4", "flows_v6", "hosts_v4", "hosts_v6", "prefixes_v4", "prefixes_v6")


@cache
def types() -> Types:
    return load_types(object_path("mptm.o"))


def _layout(struct: str) -> Layout:
    return types().struct(struct) if struct else IntegerLayout("", 4)


class FakeTable:
    """A table as `mptm.kernel.maps.Map` has it; a per-CPU table has one CPU."""

    def __init__(self, name: str, plane: FakeDataPlane) -> None:
        key, value = STRUCTS[name]
        self.name = name
        self.fd = 3 + list(STRUCTS).index(name)
        self.key = _layout(key)
        self.value = _layout(value)
        self.entries: dict[bytes, bytes] = {}
        self._plane = plane

    def get(self, key: bytes) -> bytes | None:
        return self.entries.get(key, bytes(self.value.size) if self.name in ARRAYS else None)

    def items(self) -> dict[bytes, bytes]:
        return dict(self.entries)

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        for key, value in entries.items():
            assert len(key) == self.key.size and len(value) == self.value.size
            self._plane.trip(f"update {self.name}")
            self.entries[key] = value
            if self.name in ARRAYS and not any(value):
                del self.entries[key]
            self._plane.check()

    def delete(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._plane.trip(f"delete {self.name}")
            self.entries.pop(key, None)
            self._plane.check()

    def update_many(self, keys: Any, values: Any) -> None:
        assert (keys.shape[1], values.shape[1]) == (self.key.size, self.value.size)
        self._plane.trip(f"update many {self.name}")
        for key, value in zip(keys, values, strict=True):
            self.entries[key.tobytes()] = value.tobytes()
        self._plane.check()

    def delete_many(self, keys: Any) -> None:
        self._plane.trip(f"delete many {self.name}")
        for key in keys:
            self.entries.pop(key.tobytes(), None)
        self._plane.check()

    def totals(self, key: bytes) -> dict[str, int]:
        return self.value.unpack(self.get(key) or bytes(self.value.size))

    def all_totals(self) -> dict[bytes, dict[str, int]]:
        return {key: self.totals(key) for key in self.entries}

    def records(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(self.key.unpack(key), self.value.unpack(value)) for key, value in self.entries.items()]


@dataclass(frozen=True)
class FakeAttached:
    ifindex: int
    name: str
    mode: str
    program: str
    hook: str = "xdp"


class FakeDataPlane:
    """Everything that happens is in `log`; `fail` may raise at a step such as `update hosts_v4`."""

    def __init__(self, instance: str = "default") -> None:
        self.instance = instance
        self.maps = {name: FakeTable(name, self) for name in STRUCTS}
        self.upgrade_needed = False
        self.attached: dict[str, FakeAttached] = {}
        self.foreign: set[str] = set()
        self.before: dict[int, list[str]] = {}
        self.log: list[str] = []
        self.fail: Callable[[str], None] | None = None
        self.removed = False

    def __enter__(self) -> FakeDataPlane:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def trip(self, step: str) -> None:
        if self.fail is not None:
            self.fail(step)
        self.log.append(step)

    def attach(self, attachment: Attachment) -> str:
        self.trip(f"attach {attachment.name}")
        if attachment.name in self.foreign:
            raise ForeignProgram(f"{attachment.name} already has an XDP program: theirs (id 7)")
        assert any(value["ifindex"] == attachment.ifindex for _, value in self.maps["ports"].records())
        mode = "native" if attachment.mode == "auto" else attachment.mode
        if attachment.hook == "tc":
            mode = "tcx"
        self.attached[attachment.name] = FakeAttached(
            attachment.ifindex, attachment.name, mode, attachment.role, attachment.hook
        )
        return mode

    def detach(self, name: str) -> None:
        self.trip(f"detach {name}")
        self.attached.pop(name, None)

    def attachments(self) -> list[FakeAttached]:
        return list(self.attached.values())

    def programs_before(self, ifindex: int) -> list[str]:
        return self.before.get(ifindex, [])

    def segmenter_problem(self) -> str:
        return ""

    def switch_links(self) -> None:
        self.trip("switch links")
        self.upgrade_needed = False

    def remove(self) -> None:
        self.removed = True

    def check(self) -> None:
        """No dangling reference: of next hops to tunnels, groups and redirect targets; of groups and terminations
        to tunnels.
        """
        slots = {key["value"] for key, _ in self.maps["tunnels"].records()}
        targets = {key["value"] for key, _ in self.maps["tx_ports"].records()}
        groups = {key["value"] for key, _ in self.maps["groups"].records()}
        for key, group in self.maps["groups"].records():
            assert {slot - 1 for slot in set(group["tunnels"]) if slot} <= slots, (
                f"group {key} has a free slot"
            )
        for name in STEERING:
            for key, next_hop in self.maps[name].records():
                if next_hop["kind"] == NextHopKind.TUNNEL:
                    assert next_hop["id"] in slots, f"{name} {key} points at a free tunnel slot"
                if next_hop["kind"] == NextHopKind.GROUP:
                    assert next_hop["id"] in groups, f"{name} {key} points at a free group"
                if next_hop["kind"] == NextHopKind.PORT:
                    assert next_hop["id"] in targets, f"{name} {key} points at no redirect target"
        for _, termination in self.maps["terminations"].records():
            if termination["can_reply"]:
                assert termination["tunnel"] in slots, "a termination points at a free tunnel slot"
        for attached in self.attached.values():
            ports = {port["ifindex"] for _, port in self.maps["ports"].records()}
            assert attached.ifindex in ports, f"{attached.name} runs a program, but has no slot"

    def bytes(self) -> dict[str, dict[bytes, bytes]]:
        """Everything that the control plane writes."""
        counted = ("tunnel_counters", "port_counters", "sequences", "drops")
        return {name: dict(table.entries) for name, table in self.maps.items() if name not in counted}


@dataclass
class FakeTraced:
    """Programs that record steps as they are told to; what was run is in `packets`."""

    answers: list[TracedRun] = field(default_factory=list)
    packets: list[tuple[str, bytes, int, int]] = field(default_factory=list)

    def __enter__(self) -> FakeTraced:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, role: str, packet: bytes, *, ifindex: int, slot: int) -> TracedRun:
        self.packets.append((role, packet, ifindex, slot))
        return self.answers.pop(0) if self.answers else TracedRun(2, packet, ())


def link(ifindex: int, name: str, **more: Any) -> Link:
    mac = bytes((2, 0, 0, 0, 0, ifindex % 256))
    return Link(ifindex=ifindex, name=name, mac=mac, mtu=1500, **more)


def other_end(ifindex: int, name: str) -> OtherEnd:
    """A veth's other end as it is made: everything offered, GRO off."""
    features = {each: Feature(not on, not on, True) for each, on in XDP_NEEDS.items()}
    return OtherEnd(ifindex, name, 1500, namespace="/run/netns/c", features=features)


@dataclass
class FakeKernel:
    """A machine with an uplink and two veth ends; remotes in `silent` don't answer."""

    links: dict[str, Link] = field(
        default_factory=lambda: {
            "eth0": link(2, "eth0"),
            "veth-a": link(10, "veth-a", kind="veth", peer_mac=bytes((2, 0, 0, 0, 1, 10))),
            "veth-b": link(11, "veth-b", kind="veth", peer_mac=bytes((2, 0, 0, 0, 1, 11))),
            "dummy0": link(12, "dummy0", kind="dummy"),
        }
    )
    silent: set[str] = field(default_factory=set)
    planes: dict[str, FakeDataPlane] = field(default_factory=dict)
    root: bool = True
    entered: list[str] = field(default_factory=list)
    here: str = "the machine's"
    boot: str = "first"
    asked: list[tuple[list[str], float]] = field(default_factory=list)
    traced: FakeTraced = field(default_factory=FakeTraced)
    ends: dict[int, OtherEnd] = field(
        default_factory=lambda: {10: other_end(110, "end-a"), 11: other_end(111, "end-b")}
    )
    own: dict[str, Feature] = field(default_factory=dict)
    sends: bool | None = None
    taken_ports: set[int] = field(default_factory=set)
    stubborn: set[str] = field(default_factory=set)
    set: list[tuple[str, dict[str, bool]]] = field(default_factory=list)

    def require_privileges(self) -> None:
        if not self.root:
            raise MptmError("this needs root: it reads or changes the kernel's tables", "run it with sudo")

    def open(self, instance: str, *, load: bool) -> FakeDataPlane | None:
        plane = self.planes.get(instance)
        if (plane is None or plane.removed) and not load:
            return None
        if plane is None or plane.removed:
            plane = self.planes[instance] = FakeDataPlane(instance)
        return plane

    def remove_leftovers(self, instance: str) -> None:
        pass

    def load_traced(self, data_plane: FakeDataPlane) -> FakeTraced:
        return self.traced

    def gather_facts(
        self, tunnels: Iterable[Tunnel], *, resolve_timeout_seconds: float, afresh: bool = False
    ) -> Facts:
        tunnels = list(tunnels)
        self.asked.append(([tunnel.name for tunnel in tunnels], resolve_timeout_seconds))
        paths = {
            tunnel.name: self._path(tunnel)
            for tunnel in tunnels
            if tunnel.remote_address is not None and "eth0" in self.links
        }
        return Facts(links=dict(self.links), paths=paths)

    def _path(self, tunnel: Tunnel) -> Path:
        remote = str(tunnel.remote)
        answers = remote not in self.silent or tunnel.remote_mac is not None
        version = ip_address(remote).version
        return Path(
            egress_ifindex=self.links["eth0"].ifindex,
            local=tunnel.local_address or ip_address("10.30.30.1" if version == 4 else "fd30::1"),
            local_mac=self.links["eth0"].mac,
            gateway=None,
            next_hop_mac=bytes((2, 0, 0, 0, 9, ip_address(remote).packed[-1])) if answers else None,
            mtu=1500,
            problem=None if answers else f"{remote} is on-link at eth0 but doesn't answer ARP",
        )

    def find_other_ends(self, ifindexes: Iterable[int]) -> dict[int, OtherEnd]:
        return {ifindex: self.ends[ifindex] for ifindex in ifindexes if ifindex in self.ends}

    def set_features(self, end: OtherEnd, features: Mapping[str, bool]) -> None:
        self.set.append((end.name, dict(features)))
        if end.name in self.stubborn:
            raise MptmError(f"{end.name} can't be changed")
        ((number, known),) = ((key, each) for key, each in self.ends.items() if each.name == end.name)
        assert known.features is not None
        changed = {name: replace(known.features[name], active=on, wanted=on) for name, on in features.items()}
        self.ends[number] = replace(known, features={**known.features, **changed})

    def read_features(self, ifindex: int) -> dict[str, Feature]:
        return self.own

    def bring_gro_devices_to(self, instance: str, wanted: Iterable[Listening]) -> None:
        for name in [name for name in self.links if is_device_of(instance, name)]:
            del self.links[name]
        for each in wanted:
            name = device_of(instance, each)
            if each.port not in self.taken_ports:
                number = 10000 + each.port % 200 + 200 * each.version
                self.links[name] = link(number, name, kind="vxlan", gro_port=each.port)

    def can_send(self, ifindex: int) -> bool | None:
        return self.sends

    def netns_identity(self, netns: str | None = None) -> NetnsIdentity | None:
        return NetnsIdentity(self.boot, netns or self.here) if netns != "gone" else None

    @contextlib.contextmanager
    def inside(self, netns: str) -> Iterator[None]:
        if netns == "gone":
            raise NotFound(f"there is no network namespace {netns}")
        self.entered.append(netns)
        yield
