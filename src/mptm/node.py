# SPDX-License-Identifier: GPL-2.0-only
"""A node: the library's front door, one call for each thing that the command line does.

Every change runs one path: lock, read the store, finish what an interrupted command left, change the intent, look at
the machine, compile, write the store, synchronise the data plane, mark it applied. When synchronisation fails, the
intent of before is put back and synchronised. A change of routes and flows alone goes the same way, but each step
reads, compiles and writes only them (`Node._steer`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mptm import sync
from mptm.errors import Busy, InvalidIntent, MptmError, NotFound, Unresolved
from mptm.facts import Facts, Link, Path
from mptm.fields import parts_of, suggestion
from mptm.progress import saying_later
from mptm.sections import changes_between
from mptm.store import Snapshot, Store, state_directory

if TYPE_CHECKING:
    from mptm.bundlefile import BundledFlow
    from mptm.bundles import BundleFlows
    from mptm.compile import Allocations, Compiled
    from mptm.gro import Listening
    from mptm.intent import Bundle, Flow, Intent, NextHop, Object, Port, Tunnel
    from mptm.offloads import Feature, Finding, Offloads, OtherEnd, PortNeeds, Settled
    from mptm.template import Template
    from mptm.trace import Trace, Tracer

RESOLVE_TIMEOUT_SECONDS = 3.0
"""How long a neighbour has to answer: three probes, a second apart (RFC 4861 §7.2.2; Linux does the same for ARP)."""

NOT_LOADED = "down: the data plane is not loaded"

KNOWN_RESOLVE_TIMEOUT_SECONDS = 0.5
"""The same for a tunnel that a change doesn't touch and whose last path is remembered."""

TABLE_FULL = "(table full)"
"""What stands for the port or tunnel of drops that there was no room to count apart."""

OFFLOADS = "offloads"
"""Where the store remembers what was set at other ends of veths."""

NETNS_IDENTITY = "netns_id"
"""Where the store remembers the network namespace of an instance that isn't bound to one by name."""

UNLIMITED_MTU = 65535

DOWN = "down"
"""Where the store remembers which tunnels and groups weren't up."""

CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
"""Bits of capabilities(7)."""


class Kernel(Protocol):
    """What a node needs of the machine. Tests bring their own."""

    def require_privileges(self) -> None:
        """Raise MptmError when the process may not change the data plane."""

    def open(self, instance: str, *, load: bool) -> Any:
        """The data plane (mptm.kernel.dataplane.DataPlane); None when it isn't loaded and `load` is False."""

    def remove_leftovers(self, instance: str) -> None:
        """Delete what there is of a data plane that isn't complete, and so can't be opened. Raises KernelError."""

    def load_traced(self, data_plane: Any) -> Any:
        """Programs that record what they do with a packet (mptm.kernel.tracing.TracedPrograms), on its tables."""

    def gather_facts(
        self, tunnels: Iterable[Tunnel], *, resolve_timeout_seconds: float, afresh: bool = False
    ) -> Facts:
        """Links, and the way to each tunnel's remote; `afresh`: ask neighbours that were silent for long again."""

    def find_other_ends(self, ifindexes: Iterable[int]) -> dict[int, OtherEnd]:
        """The other ends of those interfaces that are veths, by the interface's number."""

    def set_features(self, end: OtherEnd, features: Mapping[str, bool]) -> None:
        """Ask for features of an interface to be on or off. Raises KernelError."""

    def read_features(self, ifindex: int) -> dict[str, Feature]:
        """The features of an interface by name. Raises KernelError."""

    def can_send(self, ifindex: int) -> bool | None:
        """Whether XDP can send out of an interface; None: the kernel doesn't say."""

    def bring_gro_devices_to(self, instance: str, wanted: Iterable[Listening]) -> None:
        """Have idle tunnel devices for these UDP ports only, where nobody else has them. Raises KernelError."""

    def inside(self, netns: str) -> AbstractContextManager[None]:
        """Be in a network namespace for a while."""

    def netns_identity(self, netns: str | None = None) -> NetnsIdentity | None:
        """Which network namespace a name or path means, None: that of the process. None when that can't be told."""


class NetnsIdentity(NamedTuple):
    """Tells the network namespaces of a machine apart, for as long as it isn't booted again."""

    boot: str
    namespace: str

    def encode(self) -> str:
        """As it is stored."""
        return " ".join(self)

    @classmethod
    def decode(cls, text: str) -> NetnsIdentity:
        """What `encode` yielded."""
        boot, _, namespace = text.partition(" ")
        return cls(boot, namespace)


class SystemKernel:
    """The running machine."""

    def require_privileges(self) -> None:
        """Raise MptmError unless the process has CAP_NET_ADMIN and CAP_SYS_ADMIN.

        CAP_BPF is not enough: objects of the kernel are opened by their id (BPF_BTF_GET_FD_BY_ID and the like).
        """
        needed = 1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN
        if effective_capabilities() & needed != needed:
            raise MptmError("this needs root: it reads or changes the kernel's tables", "run it with sudo")

    def open(self, instance: str, *, load: bool) -> Any:
        """See Kernel."""
        from mptm.kernel.dataplane import DataPlane

        return DataPlane.open(instance, load=load)

    def remove_leftovers(self, instance: str) -> None:
        """See Kernel."""
        from mptm.kernel.dataplane import remove_instance

        remove_instance(instance)

    def load_traced(self, data_plane: Any) -> Any:
        """See Kernel."""
        from mptm.kernel.tracing import TracedPrograms

        return TracedPrograms.load(data_plane)

    def gather_facts(
        self, tunnels: Iterable[Tunnel], *, resolve_timeout_seconds: float, afresh: bool = False
    ) -> Facts:
        """See Kernel."""
        from mptm.kernel.netlink import gather_facts

        return gather_facts(tunnels, resolve_timeout_seconds=resolve_timeout_seconds, afresh=afresh)

    def find_other_ends(self, ifindexes: Iterable[int]) -> dict[int, OtherEnd]:
        """See Kernel."""
        from mptm.kernel.offloads import find_other_ends

        return find_other_ends(ifindexes)

    def set_features(self, end: OtherEnd, features: Mapping[str, bool]) -> None:
        """See Kernel."""
        from mptm.kernel.offloads import set_features

        set_features(end, features)

    def read_features(self, ifindex: int) -> dict[str, Feature]:
        """See Kernel."""
        from mptm.kernel.offloads import read_features

        return read_features(ifindex)

    def can_send(self, ifindex: int) -> bool | None:
        """See Kernel."""
        from mptm.kernel.offloads import can_send

        return can_send(ifindex)

    def bring_gro_devices_to(self, instance: str, wanted: Iterable[Listening]) -> None:
        """See Kernel."""
        from mptm.kernel.gro import bring_to

        bring_to(instance, wanted)

    def inside(self, netns: str) -> AbstractContextManager[None]:
        """See Kernel."""
        from mptm.kernel.netns import inside

        return inside(netns)

    def netns_identity(self, netns: str | None = None) -> NetnsIdentity | None:
        """See Kernel."""
        try:
            boot = FilePath("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            found = os.stat("/proc/thread-self/ns/net" if netns is None else _netns_path(netns))
        except OSError:
            return None
        return NetnsIdentity(boot, f"{found.st_dev}:{found.st_ino}")


def effective_capabilities() -> int:
    """The process's effective capabilities as a bit mask (capabilities(7))."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


@dataclass(frozen=True)
class ObjectChange:
    """An object that is added (`before` None), removed (`after` None) or changed."""

    before: Object | None
    after: Object | None

    @property
    def object(self) -> Object:
        """The object, as it will be or as it was."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def action(self) -> str:
        """`add`, `remove` or `change`."""
        return "add" if self.before is None else "remove" if self.after is None else "change"

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return f"{'+' if self.before is None else '-'} {describe(self.object)}"
        before, after = (_fields_of(obj, defaults=True) for obj in (self.before, self.after))
        differences = ", ".join(
            f"{name.replace('_', '-')} {_show(before.get(name))} -> {_show(after.get(name))}"
            for name in dict.fromkeys((*before, *after))
            if before.get(name) != after.get(name)
        )
        return f"~ {self.after.label()}: {differences}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "action": self.action,
            "kind": self.object.kind,
            "key": self.object.key,
            "before": self.before and self.before.to_dict(),
            "after": self.after and self.after.to_dict(),
        }


@dataclass(frozen=True)
class Plan:
    """What a change does (`Node.plan`) or did (everything else): objects, entries of the data plane, warnings.

    `states` says of each port and tunnel, by kind and key, how it is. `modes` are those of the attached ports.
    """

    changes: tuple[ObjectChange, ...] = ()
    warnings: tuple[str, ...] = ()
    states: dict[tuple[str, str], str] = field(default_factory=dict)
    outcome: sync.Outcome = field(default_factory=sync.Outcome)
    facts: Facts = field(default_factory=Facts)
    unresolved: tuple[str, ...] = ()
    """Names of tunnels that stay down because their remote can't be reached."""
    down: tuple[ObjectState, ...] = ()
    """What isn't as it is wanted: the tunnels above, ports whose interface is missing, ..."""
    offloads: dict[str, Settled] = field(default_factory=dict)
    """What was set at the other ends of ports that were looked at."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"changes": [change.to_dict() for change in self.changes], "warnings": list(self.warnings)}


@dataclass(frozen=True)
class TunnelCounters:
    """Packets and bytes of inner frames through a tunnel."""

    encap_packets: int = 0
    encap_bytes: int = 0
    decap_packets: int = 0
    decap_bytes: int = 0


@dataclass(frozen=True)
class PortCounters:
    """rx: what the port's program saw; tx: what MPTM sent out of the port."""

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0


@dataclass(frozen=True)
class Counters:
    """Counters by the name of the tunnel or port."""

    tunnels: dict[str, TunnelCounters]
    ports: dict[str, PortCounters]


@dataclass(frozen=True)
class Drop:
    """Packets that went no further for one reason, at one port or tunnel (`scope` and `name`).

    Where the table had no room to count them apart, `scope` is `other`.

    `left_to_kernel`: not dropped, but refused and passed on untouched.
    """

    reason: str
    caption: str
    scope: str
    name: str
    packets: int
    bytes: int
    left_to_kernel: bool


@dataclass(frozen=True)
class TunnelDetails:
    """A tunnel as `mptm tunnel show` has it: settings, state, what was found for it, its header."""

    settings: dict[str, Any]
    state: str
    found: dict[str, Any]
    header: str | None
    outer: bytes
    counters: TunnelCounters | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.settings,
            "state": self.state,
            "found": self.found,
            "header": self.header,
            "header_bytes": self.outer.hex(),
            "counters": None if self.counters is None else vars(self.counters),
        }


class MemberState(NamedTuple):
    """A member of a group: `share` of the flows that it has now, from 0 to 1; None: not known."""

    tunnel: str
    weight: int
    state: str
    share: float | None


@dataclass(frozen=True)
class GroupDetails:
    """A group as `mptm group show` has it."""

    name: str
    network: str
    state: str
    members: tuple[MemberState, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "members": [member._asdict() for member in self.members]}


def _handed_over(data_plane: Any) -> dict[int, bool]:
    """Whether the data plane hands packets for an access port over to its other end, by the port's ifindex."""
    from mptm.compile import PortFlag, PortRole

    table = data_plane.maps["ports"]
    records = [table.value.unpack(value) for value in table.items().values()]
    return {
        record["ifindex"]: bool(record["flags"] & PortFlag.HAS_PEER)
        for record in records
        if record["role"] == PortRole.ACCESS
    }


def _hand_over(port: Port, link: Link | None) -> str | None:
    """Of PortDetails."""
    if link is None or port.role != "access" or not link.has_far_peer:
        return None
    return (
        f"through the interface: {link.detour}" if link.detour else "by ports at TC straight to its other end"
    )


@dataclass(frozen=True)
class PortDetails:
    """A port's state, the hook it is meant to run at and why, and its counters, where they can be read."""

    state: str
    counters: PortCounters | None = None
    runs_at: str | None = None
    why: str | None = None
    offloads: Settled | None = None
    """What was set at the other end; None: nothing was to be."""
    hand_over: str | None = None
    """How packets get to a container, or VM, in words; None: they are sent out of the port."""


class ObjectState(NamedTuple):
    """How an object is."""

    kind: str
    key: str
    state: str


@dataclass(frozen=True)
class Status:
    """How a node is. `differences` counts entries of the data plane that aren't what they should be now."""

    instance: str
    netns: str | None
    loaded: bool
    generation: int
    interrupted: bool
    objects: tuple[ObjectState, ...]
    attached: dict[str, str]
    differences: int
    warnings: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Everything that is wanted is up, and nothing is to be warned of."""
        return (
            (self.loaded or not self.objects)
            and not (self.differences or self.interrupted or self.warnings)
            and all(is_healthy(each.state) for each in self.objects)
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "instance": self.instance,
            "netns": self.netns,
            "loaded": self.loaded,
            "healthy": self.healthy,
            "generation": self.generation,
            "interrupted": self.interrupted,
            "objects": [each._asdict() for each in self.objects],
            "differences": self.differences,
            "warnings": list(self.warnings),
        }


def worth_telling(intent: Intent, objects: Iterable[ObjectState]) -> list[ObjectState]:
    """All but networks; of routes and flows only those that don't work although what they lead to does."""
    objects = list(objects)
    states = {(each.kind, each.key): each.state for each in objects}

    def leads_to_trouble(kind: str, key: str) -> bool:
        for steered in next_hops_of(intent.get(kind, key)):
            next_hops = (("tunnel", steered.via), ("group", steered.group), ("port", steered.port))
            if not all(is_healthy(states.get(next_hop, "up")) for next_hop in next_hops):
                return True
        return False

    return [
        each
        for each in objects
        if each.kind in ("port", "tunnel", "group", "bundle")
        or (not is_healthy(each.state) and not leads_to_trouble(each.kind, each.key))
    ]


def next_hops_of(obj: Any) -> Sequence[Any]:
    """The next hops of a bundle; a route or flow is its own."""
    return obj.next_hops if obj.kind == "bundle" else (obj,)


def is_healthy(state: str) -> bool:
    """Whether an object in this state does what is wanted of it."""
    return state.split(":")[0] in ("up", "attached", "receive-only")


def describe(obj: Object) -> str:
    """An object on one line, as `plan` and the tables show it: `route blue 10.250.1.101/32 via to-node2`."""
    fields = _fields_of(obj)
    if obj.kind in ("route", "flow"):
        name = (
            obj.key
            if obj.kind == "route"
            else f"{fields['network']} {fields['source']} -> {fields['destination']}"
        )
        return f"{obj.kind} {name} {next_hop(obj)}"
    fields.pop("annotations", None)
    rest = " ".join(
        f"{name.replace('_', '-')} {_show(value)}" for name, value in fields.items() if name != "name"
    )
    return f"{obj.label()} {rest}"


def next_hop(obj: Any) -> str:
    """Where a route or flow leads: `via to-node2 mac 02:...`."""
    return str(obj.next_hop())


def _fields_of(obj: Object, *, defaults: bool = False) -> dict[str, Any]:
    """`to_dict`, but parts of the object as the command line writes them."""
    fields = obj.to_dict(defaults=defaults)
    parts = {name: list(map(str, items)) for name, items in parts_of(obj).items() if name in fields}
    return fields | parts


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        shown = list(map(_show, value))
        return ("; " if any("," in each for each in shown) else ",").join(shown) or "none"
    return "none" if value is None else str(value)


def difference(before: Intent, after: Intent) -> tuple[ObjectChange, ...]:
    """What tells two intents apart: removals first, users before what they use, then the rest the other way round."""
    from mptm.intent import KINDS

    removed = [
        ObjectChange(obj, None)
        for kind in reversed(KINDS)
        for key, obj in before.of_kind(kind).items()
        if key not in after.of_kind(kind)
    ]
    rest = [
        ObjectChange(before.of_kind(kind).get(key), obj)
        for kind in KINDS
        for key, obj in after.of_kind(kind).items()
        if before.of_kind(kind).get(key) != obj
    ]
    return (*removed, *rest)


def steering_changes(before: Intent, after: Intent) -> tuple[ObjectChange, ...] | None:
    """The same as `difference` where only routes and flows differ, and one was made of the other; else None."""
    from mptm.intent import KINDS, STEERING

    if any(
        before.of_kind(kind) is not after.of_kind(kind) for kind in KINDS if kind not in (*STEERING, "bundle")
    ):
        return None
    changes: list[ObjectChange] = []
    for kind in (*STEERING, "bundle"):
        section, other = before.of_kind(kind), after.of_kind(kind)
        between = (
            {key: other.get(key) for key in {*section, *other}}
            if kind == "bundle"
            else changes_between(section, other)
        )
        if between is None:
            return None
        found = [ObjectChange(section.get(key), obj) for key, obj in between.items()]
        changes += [change for change in found if change.before != change.after]
    return tuple(sorted(changes, key=lambda change: change.after is not None))


class Node:
    """One node of the overlay on this machine.

    `netns` binds a new instance to a network namespace (a name of `ip netns` or a path); it is remembered, and later
    uses may leave it out. `progress` gets a sentence when something takes longer than a second.
    Methods that change something raise Busy, InvalidIntent, NotFound, AlreadyExists, InUse, Unresolved,
    ForeignProgram, TableFull or KernelError, and then have changed nothing.
    """

    def __init__(
        self,
        instance: str = "default",
        *,
        netns: str | None = None,
        progress: Callable[[str], None] | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        self.instance = instance
        self.store = Store(state_directory(instance))
        self._netns = netns
        self._progress = progress
        self._kernel: Kernel = kernel or SystemKernel()

    # ---- intent ----------------------------------------------------------------------------------

    @property
    def intent(self) -> Intent:
        """What is stored. Raises MptmError for who may not read it."""
        return self.store.read().intent

    @property
    def netns(self) -> str | None:
        """The network namespace that the instance lives in; None: that of the process."""
        return self._bound_netns(self.store.read())

    def add(self, obj: Object) -> Plan:
        """Add an object. Raises AlreadyExists, Unresolved, ..."""
        return self.edit(lambda intent: intent.add(obj))

    def replace(self, obj: Object) -> Plan:
        """Put an object in place of the one of the same kind and key. Raises NotFound, ..."""
        return self.edit(lambda intent: intent.replace(obj))

    def remove(self, kind: str, key: str) -> Plan:
        """Remove an object. Raises NotFound, InUse, ..."""
        return self.edit(lambda intent: intent.remove(kind, key))

    def apply(self, intent: Intent) -> Plan:
        """Make the node what `intent` says: all of it or, when an error is raised, nothing."""
        return self.edit(lambda _: intent)

    def plan(self, intent: Intent) -> Plan:
        """What `apply` would change. Raises what apply would raise, as far as that is known beforehand.

        Without root the machine isn't looked at: whether interfaces and remotes are there is then not checked.
        """
        intent.validate()
        snapshot = self.store.read()
        changes = difference(snapshot.intent, intent)
        try:
            self._kernel.require_privileges()
        except MptmError:
            return Plan(changes, ("only the intent was compared: looking at the machine needs root",))
        with self._inside(snapshot):
            facts = self._gather_facts(intent, snapshot)
            compiled = self._compile(intent, facts, snapshot.allocations)
            self._refuse_unusable(intent, snapshot.applied, facts)
        return Plan(changes, tuple(compiled.warnings), dict(compiled.states), facts=facts)

    def edit(self, change: Callable[[Intent], Intent]) -> Plan:
        """Change the intent and bring the data plane to it; every other change is made of this one.

        `change` gets the stored intent and returns the wanted one.
        """
        self._kernel.require_privileges()
        with self.store.lock(progress=self._progress), self._tidying():
            snapshot = self.store.read(whole=False)
            with self._inside(snapshot):
                snapshot = self._finish_interrupted(snapshot)
                wanted = change(snapshot.intent)
                if (plan := self._steer(wanted, snapshot)) is not None:
                    return plan
                snapshot.load()
                wanted.validate()
                self._refuse_bundles(wanted, snapshot.applied)
                facts = self._gather_facts(wanted, snapshot)
                self._refuse_unusable(wanted, snapshot.applied, facts)
                return self._bring_to(wanted, snapshot, facts)

    @contextlib.contextmanager
    def _tidying(self) -> Iterator[None]:
        """Let no flows of bundles stay that no bundle has any more, nor any that have become no bundle.

        Where that fails after something else has, the first is what is to be told.
        """
        try:
            yield
        except BaseException as error:
            try:
                self.store.tidy_bundles()
            except MptmError as another:
                _add_hint(error, f"flows that are in no bundle are left, too ({another.message})")
            raise
        try:
            self.store.tidy_bundles()
        except MptmError as error:
            error.message = (
                f"the change is done, but flows that are in no bundle any more are left: {error.message}"
            )
            _add_hint(error, "the next change removes them")
            raise

    def load_flows(
        self,
        name: str,
        *,
        network: str,
        sources: Any,
        destinations: Any,
        next_hops: str | Sequence[str],
        next_hop_of: Any = None,
    ) -> Plan:
        """Have a bundle with very many flows, in place of the one of that name if there is one.

        sources, destinations   arrays: uint32 (IPv4, host byte order), uint8 of n x 4 or n x 16, or text
        next_hops               as `mptm flow list` writes them, or names of tunnels: one, or those there are
        next_hop_of             which of the next hops each flow has: indices from 0
        Flows of their own (`add`) go before those of bundles. Raises what `edit` does; InvalidIntent, too, where a flow
        is there twice or in another bundle already.
        """
        from mptm.bundles import make_flows

        return self.load_bundle(
            name, make_flows(network, sources, destinations, next_hops, next_hop_of=next_hop_of)
        )

    def load_bundle(self, name: str, flows: BundleFlows) -> Plan:
        """The same with flows that `mptm.bundles` read or made."""

        def change(intent: Intent) -> Intent:
            known = intent.bundles.get(name)
            if known is not None and not self._flows_of([known]):
                # Others may have got the same flows while its own couldn't be read.
                others = [each for each in intent.bundles.values() if each is not known]
                self._refuse_shared(known, flows, others, self._flows_of(others))
            bundle = flows.bundle(name, self.store.bundles.write(flows.encode()))
            return intent.replace(bundle) if known is not None else intent.add(bundle)

        return self.edit(change)

    def bundle_flows(self, name: str) -> BundleFlows:
        """The flows of a bundle. Raises NotFound."""
        from mptm.bundles import BundleFlows

        content = self.intent.get("bundle", name).content
        return BundleFlows.decode(self.store.bundles.read(content), str(self.store.bundles.path(content)))

    def bundled_flows(self, intent: Intent, name: str) -> Iterator[BundledFlow]:
        """The flows of a bundle of the stored intent, one by one, without those that a flow of its own goes before.

        However many there are, they take no memory. Raises NotFound and MptmError, before the first.
        """
        for each in self.store.bundles.flows(intent.get("bundle", name).content):
            if not intent.flows or f"{each.network} {each.source} {each.destination}" not in intent.flows:
                yield each

    def find_bundled(
        self, intent: Intent, network: str, source: str, destination: str, verified: set[str] | None = None
    ) -> tuple[Bundle, NextHop] | None:
        """The bundle of the stored intent that has a flow, and where it leads there; not looked at is whether a flow
        of its own goes before. MptmError: one that may have it can't be read, or is damaged.

        `verified`: contents that were seen to be whole; who looks for many flows has each looked at once.
        """
        from mptm.intent import NextHop

        problem = None
        verified = set() if verified is None else verified
        for bundle in intent.bundles.values():
            if network not in bundle.networks:
                continue
            try:
                if bundle.content not in verified:
                    self.store.bundles.verify(bundle.content)
                    verified.add(bundle.content)
                found = self.store.bundles.find(
                    bundle.content, network, ip_address(source), ip_address(destination)
                )
            except MptmError as error:
                problem = problem or error
                continue
            if found is not None:  # no other has it
                return bundle, NextHop.from_text(found)
        if problem is not None:
            raise problem
        return None

    def bind(self) -> None:
        """Remember the network namespace of this node before it has anything else. Harmless when it is known."""
        self._kernel.require_privileges()
        with self.store.lock(progress=self._progress):
            netns = self._bound_netns(self.store.read())
            if netns is not None:
                self.store.remember({"netns": netns})

    def restore(self) -> Plan:
        """Bring the data plane to the stored intent, after a reboot or whenever it may have changed.

        What can be brought up is; a tunnel whose remote doesn't answer stays down and is named in `unresolved`.
        """
        self._kernel.require_privileges()
        with self.store.lock(progress=self._progress):
            snapshot = self.store.read()
            with self._inside(snapshot):
                facts = self._gather_facts(snapshot.intent, snapshot, remembered=False, afresh=True)
                return self._bring_to(snapshot.intent, snapshot, facts, again=True)

    def purge(self) -> tuple[str, ...]:
        """Detach and unload everything of the instance and delete its state. Harmless when there is nothing.

        Returns warnings: what was set at the other ends of ports and can't be put back.
        """
        self._kernel.require_privileges()
        with self.store.lock(progress=self._progress):
            offloads, is_home = None, False
            warnings: list[str] = []
            with contextlib.suppress(MptmError):
                snapshot = self.store.read()
                self._netns = self._netns or snapshot.meta.get("netns")
                offloads = snapshot.meta.get(OFFLOADS)
                is_home = not self._netns and _home_of(snapshot) == self._kernel.netns_identity()
            with contextlib.ExitStack() as stack:
                if self._netns:
                    # A namespace that is gone has taken its interfaces along; the pins are still to be removed.
                    with contextlib.suppress(NotFound):
                        stack.enter_context(self._kernel.inside(self._netns))
                        is_home = True
                data_plane = stack.enter_context(self._opened_or_none())
                if data_plane is not None:
                    data_plane.remove()
                else:
                    self._kernel.remove_leftovers(self.instance)
                if is_home:
                    if offloads is not None:
                        settled = self._offloads(offloads)
                        settled.release({})
                        warnings = settled.warnings
                    self._kernel.bring_gro_devices_to(self.instance, ())
            self.store.delete()
            return tuple(warnings)

    # ---- what is going on ------------------------------------------------------------------------

    def status(self) -> Status:
        """How the node is now: each port and tunnel, and whether the data plane is what it should be."""
        self._kernel.require_privileges()
        snapshot = self._finished_snapshot()
        with self._inside(snapshot):
            facts = self._gather_facts(
                snapshot.intent, snapshot, remembered=False, timeout_seconds=KNOWN_RESOLVE_TIMEOUT_SECONDS
            )
            compiled = self._compile(snapshot.intent, facts, snapshot.allocations, lambda: [snapshot])
            with self._opened_or_none() as data_plane:
                attached = (
                    {each.name: each.mode for each in data_plane.attachments()}
                    if data_plane is not None
                    else {}
                )
                differences = (
                    sync.count_entries(
                        sync.plan(compiled.tables, data_plane.maps, compiled.bundled, compiled.unread)
                    )
                    if data_plane is not None
                    else 0
                )
                handed_over = _handed_over(data_plane) if data_plane is not None else {}
        moved = [
            f"port {name}: its other end has come to its own network namespace, where nothing is handed over to it; "
            "run: mptm restore"
            for name, link in facts.links.items()
            if handed_over.get(link.ifindex) and not link.has_far_peer
        ]
        objects = []
        for (kind, key), state in compiled.states.items():
            if kind == "port":
                state = _port_state(state, attached.get(key), data_plane is not None)
            elif data_plane is None:
                state = NOT_LOADED
            objects.append(ObjectState(kind, key, state))
        return Status(
            instance=self.instance,
            netns=self._bound_netns(snapshot),
            loaded=data_plane is not None,
            generation=snapshot.generation,
            interrupted=snapshot.interrupted,
            objects=tuple(worth_telling(snapshot.intent, objects)),
            attached=attached,
            differences=differences,
            warnings=(*compiled.warnings, *moved),
        )

    def port_details(self, name: str) -> PortDetails:
        """State and counters of one port. Without root: neither. Raises NotFound."""
        from mptm.hooks import choose_hook

        self.intent.get("port", name)
        try:
            self._kernel.require_privileges()
        except MptmError:
            return PortDetails("unknown: looking at the machine needs root")
        snapshot = self._finished_snapshot()
        with self._inside(snapshot), self._opened_or_none() as data_plane:
            if data_plane is None:
                return PortDetails(NOT_LOADED)
            attached = {each.name: each.mode for each in data_plane.attachments()}
            facts = self._kernel.gather_facts((), resolve_timeout_seconds=0)
            choice = choose_hook(snapshot.intent.get("port", name), snapshot.intent, facts)
            return PortDetails(
                _port_state("up" if name in facts.links else "missing interface", attached.get(name), True),
                self._read_counters(data_plane, snapshot.allocations).ports.get(name),
                choice.hook,
                choice.why,
                self._offloads(snapshot.meta.get(OFFLOADS)).ports.get(name),
                _hand_over(snapshot.intent.get("port", name), facts.links.get(name)),
            )

    def tunnel_details(self, name: str) -> TunnelDetails:
        """Everything about one tunnel. Without root: settings only. Raises NotFound."""
        from mptm.protocols import PROTOCOLS

        snapshot = self.store.read()
        tunnel = snapshot.intent.get("tunnel", name)
        settings = tunnel.to_dict(defaults=True)
        try:
            self._kernel.require_privileges()
        except MptmError:
            return TunnelDetails(settings, "unknown: looking at the machine needs root", {}, None, b"", None)
        snapshot = self._finished_snapshot()
        with self._inside(snapshot):
            facts = self._gather_facts(
                snapshot.intent, snapshot, timeout_seconds=KNOWN_RESOLVE_TIMEOUT_SECONDS, only=name
            )
            compiled = self._compile(snapshot.intent, facts, snapshot.allocations)
            state = compiled.states.get(("tunnel", name), "unknown")
            counters = None
            with self._opened_or_none() as data_plane:
                if data_plane is None:
                    state = NOT_LOADED
                else:
                    counters = self._read_counters(data_plane, snapshot.allocations).tunnels.get(name)
        path = facts.paths.get(name)
        links = {link.ifindex: link for link in facts.links.values()}
        found: dict[str, Any] = {}
        if path is not None:
            egress = links.get(path.egress_ifindex)
            found = {
                "egress": egress.name if egress is not None else str(path.egress_ifindex),
                "local": str(path.local),
                "local MAC": path.local_mac.hex(":"),
                "gateway": str(path.gateway) if path.gateway else None,
                "next hop MAC": path.next_hop_mac.hex(":") if path.next_hop_mac else None,
                "egress MTU": path.mtu,
            }
        template = compiled.templates.get(name)
        if template is not None:
            mtu = path.mtu if path is not None else facts.links[str(tunnel.egress)].mtu
            found |= {
                "egress MTU": mtu,
                "overhead": template.overhead(),
                "inner MTU": template.inner_mtu(mtu),
                "GSO at TC": template.gso_text,
            }
        elif (would_be := self._template(tunnel, _unresolved_path(tunnel))) is not None:
            found["overhead"] = would_be.overhead()
            if path is not None:
                found["inner MTU"] = would_be.inner_mtu(path.mtu)
        return TunnelDetails(
            settings=settings,
            state=state,
            found=found,
            header=PROTOCOLS[tunnel.protocol].describe(tunnel, template) if template is not None else None,
            outer=template.outer if template is not None else b"",
            counters=counters,
        )

    def group_details(self, name: str) -> GroupDetails:
        """State and members of one group. Without root: neither states nor shares. Raises NotFound."""
        group = self.intent.get("group", name)
        try:
            self._kernel.require_privileges()
        except MptmError:
            unknown = "unknown: looking at the machine needs root"
            members = tuple(MemberState(each.tunnel, each.weight, "unknown", None) for each in group.members)
            return GroupDetails(name, group.network, unknown, members)
        snapshot = self._finished_snapshot()
        group = snapshot.intent.get("group", name)
        with self._inside(snapshot):
            facts = self._gather_facts(
                snapshot.intent, snapshot, timeout_seconds=KNOWN_RESOLVE_TIMEOUT_SECONDS
            )
            compiled = self._compile(snapshot.intent, facts, snapshot.allocations)
            with self._opened_or_none() as data_plane:
                loaded = data_plane is not None
        held = compiled.allocations
        slots = compiled.tables.groups[held.groups[name]].tunnels
        return GroupDetails(
            name=name,
            network=group.network,
            state=compiled.states["group", name] if loaded else NOT_LOADED,
            members=tuple(
                MemberState(
                    each.tunnel,
                    each.weight,
                    compiled.states["tunnel", each.tunnel] if loaded else NOT_LOADED,
                    slots.count(held.tunnels[each.tunnel].slot + 1) / len(slots),
                )
                for each in group.members
            ),
        )

    def links(self) -> dict[str, Link]:
        """The interfaces of the node's network namespace, by name."""
        with self._inside(self.store.read()):
            return self._kernel.gather_facts((), resolve_timeout_seconds=0).links

    def other_end(self, port: str) -> OtherEnd | None:
        """The other end of a port's veth as it is now; None: it is no veth, or it isn't there. Needs root."""
        self._kernel.require_privileges()
        with self._inside(self.store.read()):
            link = self._kernel.gather_facts((), resolve_timeout_seconds=0).links.get(port)
            return None if link is None else self._kernel.find_other_ends([link.ifindex]).get(link.ifindex)

    def gro_devices(self) -> dict[str, str]:
        """Idle tunnel devices of the instance, with what they say of themselves: `UDP port 4789 over IPv4`."""
        from mptm import gro

        links = self.links()
        return {
            name: f"UDP port {link.gro_port} over IPv{name[len('mgro')]}"
            for name, link in sorted(links.items())
            if gro.is_device_of(self.instance, name)
        }

    def examine_ports(self) -> dict[str, list[Finding]]:
        """What makes packets vanish at ports although their programs are attached, by port. Needs root."""
        from mptm import gro
        from mptm.offloads import PortFacts, examine, examine_gro, needs_of
        from mptm.protocols import PROTOCOLS

        self._kernel.require_privileges()
        snapshot = self._finished_snapshot()
        intent = snapshot.intent
        with self._inside(snapshot):
            facts = self._gather_facts(
                intent, snapshot, remembered=False, timeout_seconds=KNOWN_RESOLVE_TIMEOUT_SECONDS
            )
            compiled = self._compile(intent, facts, snapshot.allocations)
            ports = {each.name: facts.links[each.name] for each in compiled.attachments}
            ends = self._kernel.find_other_ends([link.ifindex for link in ports.values()])
            handed_over, before, no_segments = self._ways_to(compiled)
            moved = self._moved_ends(snapshot, {name: ends.get(link.ifindex) for name, link in ports.items()})
            own = {
                name: self._kernel.read_features(link.ifindex)
                for name, link in ports.items()
                if intent.ports[name].role == "uplink" and link.ifindex not in ends
            }
            can_send = {name: self._kernel.can_send(ports[name].ifindex) for name in own}
        lacking = gro.lacking(self.instance, gro.wanted(intent, compiled.attachments), facts.links)
        bound, needs = self._bound_netns(snapshot), needs_of(compiled.attachments)
        fits: dict[str, int] = {}
        for name, template in compiled.templates.items():
            if name in facts.paths:
                network = intent.tunnels[name].network
                fits[network] = min(
                    template.inner_mtu(facts.paths[name].mtu), fits.get(network, UNLIMITED_MTU)
                )
        found = {}
        for name, link in ports.items():
            overlay = intent.ports[name].network
            found[name] = examine(
                PortFacts(
                    name,
                    link.mtu,
                    namespace=_netns_path(bound) if bound else "",
                    up=link.up,
                    is_far=link.has_far_peer,
                    detour=link.detour,
                    is_handed_over=handed_over.get(link.ifindex),
                    before=before.get(name, ()),
                    moved_from=moved.get(name, ""),
                    segmenter_problem=no_segments if name in before and overlay is not None else "",
                    needs=needs[name].needs,
                    end=ends.get(link.ifindex),
                    own=own.get(name, {}),
                    can_send=can_send.get(name),
                    fits=fits.get(overlay or ""),
                    is_told=overlay is not None and bool(intent.networks[overlay].gateway),
                    needs_tags=any(not PROTOCOLS[each.protocol].over_ip for each in intent.tunnels.values()),
                )
            )
        found |= {
            each.name: [*found[each.name], *examine_gro(each.name, sorted(lacking))]
            for each in compiled.attachments
            if each.hook == "tc" and each.role == "uplink"
        }
        return found

    def _ways_to(self, compiled: Compiled) -> tuple[dict[int, bool], dict[str, tuple[str, ...]], str]:
        """Of the data plane: whether packets are handed over, by ifindex, and whose programs are before ours, by port.

        And why no segments can be made. Of ports at TC; nothing where it isn't loaded.
        """
        at_tc = {each.name: each.ifindex for each in compiled.attachments if each.hook == "tc"}
        with self._opened_or_none() as data_plane:
            if data_plane is None:
                return {}, {}, ""
            before = {name: tuple(data_plane.programs_before(ifindex)) for name, ifindex in at_tc.items()}
            return _handed_over(data_plane), before, data_plane.segmenter_problem() if at_tc else ""

    def _moved_ends(self, snapshot: Snapshot, ends: Mapping[str, OtherEnd | None]) -> dict[str, str]:
        """Where the other ends of ports were that are in another network namespace now, as far as both can be found."""
        found = {}
        for name, settled in self._offloads(snapshot.meta.get(OFFLOADS)).ports.items():
            end = ends.get(name)
            if end is None or not settled.namespace or (not end.namespace and end.problem):
                continue
            was = self._kernel.netns_identity(settled.namespace)
            now = self._kernel.netns_identity(end.namespace or None)
            if settled.name and None not in (was, now) and was != now:
                found[name] = settled.namespace
        return found

    @contextlib.contextmanager
    def data_plane(self) -> Iterator[Any]:
        """The loaded maps and programs (mptm.kernel.dataplane.DataPlane), within the node's network namespace.

        For reading; what is written here `restore` undoes. Raises NotFound when nothing is loaded.
        """
        self._kernel.require_privileges()
        with self._inside(self._finished_snapshot()), self._opened() as data_plane:
            yield data_plane

    def inner_mtu(self, network: str) -> int | None:
        """Largest inner IP packet that fits every tunnel of a network, by the last paths; None without any."""
        snapshot = self.store.read()
        paths = {name: each.path for name, each in _remembered_paths(snapshot).items()}
        fits = [
            template.inner_mtu(paths[name].mtu)
            for name, tunnel in snapshot.intent.tunnels.items()
            if tunnel.network == network
            and name in paths
            and (template := self._template(tunnel, paths[name])) is not None
        ]
        return min(fits, default=None)

    def counters(self) -> Counters:
        """Packets and bytes of every tunnel and port, summed over the CPUs."""
        self._kernel.require_privileges()
        snapshot = self.store.read()
        with self._opened() as data_plane:
            return self._read_counters(data_plane, snapshot.allocations)

    def drops(self) -> list[Drop]:
        """What was dropped or refused, most packets first."""
        from mptm.reasons import caption_of, is_refusal, name_of

        self._kernel.require_privileges()
        snapshot = self.store.read()
        with self._opened() as data_plane:
            table = data_plane.maps["drops"]
            entries = [(table.key.unpack(key), totals) for key, totals in table.all_totals().items()]
        tunnels = {allocation.counter: name for name, allocation in snapshot.allocations.tunnels.items()}
        ports = {allocation.ifindex: name for name, allocation in snapshot.allocations.ports.items()}
        found = []
        for where, values in entries:
            scope, number = where["scope"], where["id"]
            if scope == sync.SCOPE_TUNNEL:
                kind, name = "tunnel", tunnels.get(number, f"counter {number}")
            elif scope == sync.SCOPE_PORT:
                kind, name = "port", ports.get(number, f"interface {number}")
            else:
                kind, name = "other", TABLE_FULL
            if not values["packets"]:
                continue
            reason = name_of(where["reason"])
            found.append(
                Drop(
                    reason=reason,
                    caption=caption_of(reason),
                    scope=kind,
                    name=name,
                    packets=values["packets"],
                    bytes=values["bytes"],
                    left_to_kernel=is_refusal(reason),
                )
            )
        return sorted(found, key=lambda drop: (-drop.packets, drop.reason, drop.name))

    def trace(self, port: str, packet: bytes) -> Trace:
        """What the data plane does with an Ethernet frame that comes in at a port: nothing is sent, nothing counted.

        Raises NotFound without such a port or without a data plane, InvalidPacket for a packet that can't be run.
        """
        with self.tracer(port) as tracer:
            return tracer.trace(packet)

    @contextlib.contextmanager
    def tracer(self, port: str) -> Iterator[Tracer]:
        """The same for many packets: they are traced one after another, as if they came in so.

        Within the block the calling thread is in the node's network namespace.
        """
        from mptm.trace import Tracer

        self._kernel.require_privileges()
        snapshot = self._finished_snapshot()
        with self._inside(snapshot), self._opened() as data_plane:
            traced = snapshot.intent.get("port", port)
            links = self._kernel.gather_facts((), resolve_timeout_seconds=0).links
            if port not in links or port not in snapshot.allocations.ports:
                raise NotFound(
                    f"there is no interface {port}, so nothing comes in there",
                    "`mptm restore` attaches it when it is back",
                )
            warnings = []
            if data_plane.upgrade_needed:
                warnings.append(
                    "the attached programs are of another build than the one that is traced; "
                    "`mptm restore` switches to this one"
                )
            if port not in {each.name for each in data_plane.attachments()}:
                warnings.append(
                    f"no program of ours is attached to {port}: real packets don't go this way; "
                    "`mptm restore` attaches it"
                )
            with self._kernel.load_traced(data_plane) as programs:
                yield Tracer(
                    traced,
                    intent=snapshot.intent,
                    allocations=snapshot.allocations,
                    links=links,
                    tables=data_plane.maps,
                    programs=programs,
                    warnings=warnings,
                )

    def reset_counters(self) -> None:
        """Set every counter to zero and forget the drops."""
        self._kernel.require_privileges()
        with self.store.lock(progress=self._progress):
            allocations = self.store.read().allocations
            with self._opened() as data_plane:
                maps = data_plane.maps
                for name, slots in (
                    ("tunnel_counters", [each.counter for each in allocations.tunnels.values()]),
                    ("port_counters", [each.slot for each in allocations.ports.values()]),
                ):
                    sync.zero_counters(maps[name], [maps[name].key.pack(slot) for slot in slots])
                sync.reset_drops(maps["drops"])

    # ---- the one path ----------------------------------------------------------------------------

    def _steer(self, wanted: Intent, snapshot: Snapshot) -> Plan | None:
        """The same for routes and flows, doing and looking at nothing else, where that is enough; else None."""
        from mptm.compile import compile_steering

        changes = steering_changes(snapshot.intent, wanted) if snapshot.stored else None
        if not changes or not wanted.steers_freely:
            return None
        pairs: list[tuple[Any, Any]] = [(change.before, change.after) for change in changes]
        new = [after for _, after in pairs if after is not None]
        wanted.validate(steering=new)
        self._refuse_bundles(wanted, snapshot.applied)
        next_hops = [each for obj in new for each in next_hops_of(obj)]
        down = _down_of(snapshot)
        if down is None or any(
            ("tunnel", each.via) in down or ("group", each.group) in down for each in next_hops
        ):
            return None  # looks again whether they are
        facts = Facts()
        if any(each.port for each in next_hops):
            facts = self._kernel.gather_facts((), resolve_timeout_seconds=0)
        for before, after in pairs:
            _refuse_unknown_macs(after, before, facts)
        changed_bundles = [obj for pair in pairs for obj in pair if obj is not None and obj.kind == "bundle"]
        verified: set[str] = set()
        compiled = compile_steering(
            wanted,
            pairs,
            facts,
            snapshot.allocations,
            self._flows_of(changed_bundles),
            lambda flow: self._next_hop_in_bundles(wanted, flow, verified),
        )
        if compiled is None:
            return None
        with self._opened_or_none() as data_plane:
            if data_plane is None or data_plane.upgrade_needed:
                return None
            generation = self.store.write_changes(
                {(change.object.kind, change.object.key): change.after for change in changes},
                compiled.allocations,
            )
            try:
                outcome = sync.apply_steering(data_plane, compiled)
            except BaseException as error:
                self._put_back(snapshot, error, self._offloads(snapshot.meta.get(OFFLOADS)))
                raise
        self._note_applied(generation, {})
        return Plan(changes, tuple(compiled.warnings), dict(compiled.states), outcome, facts)

    def _bring_to(self, wanted: Intent, snapshot: Snapshot, facts: Facts, *, again: bool = False) -> Plan:
        """Store, synchronise, mark applied; on failure put back what was. The caller holds the lock.

        `again`: look also at what ports that are known need of their other ends.
        """
        generation, plan = self._synchronise(wanted, snapshot, facts, again=again)
        self._note_applied(generation, _remembered(plan))
        return plan

    def _synchronise(
        self, wanted: Intent, snapshot: Snapshot, facts: Facts, *, again: bool = False
    ) -> tuple[int, Plan]:
        """Store and synchronise; on failure put back what was. Returns what is to be noted as applied."""
        compiled = self._compile(wanted, facts, snapshot.allocations, lambda: [snapshot])
        place = self._place(snapshot)
        offloads = self._offloads(snapshot.meta.get(OFFLOADS))
        with self._kernel.open(self.instance, load=True) as data_plane:
            generation = self.store.write(wanted, compiled.allocations, place)
            try:
                ports = _ports_with_offloads(wanted, compiled)
                settled = offloads.settle(ports, again=again)
                outcome = sync.apply(data_plane, compiled, snapshot.applied_allocations)
                offloads.release(ports)
                self._settle_gro(wanted, compiled, facts, offloads)
            except BaseException as error:
                self._put_back(snapshot, error, offloads)
                raise
        unresolved = tuple(sorted(set(_unresolved(facts)) & set(wanted.tunnels)))
        states = [ObjectState(kind, key, state) for (kind, key), state in compiled.states.items()]
        return generation, Plan(
            changes=difference(snapshot.intent, wanted),
            warnings=(*compiled.warnings, *offloads.warnings),
            states=dict(compiled.states),
            outcome=outcome,
            offloads={name: offloads.ports[name] for name in settled if name in offloads.ports},
            facts=facts,
            unresolved=unresolved,
            down=tuple(each for each in worth_telling(wanted, states) if not is_healthy(each.state)),
        )

    def _note_applied(self, generation: int, meta: dict[str, str]) -> None:
        try:
            self.store.mark_applied(generation, meta)
        except MptmError as error:
            error.message = f"the change is done, but not noted: {error.message}"
            _add_hint(error, "the next command completes it")
            raise

    def _put_back(self, snapshot: Snapshot, cause: BaseException, offloads: Offloads) -> None:
        """Return to what was last applied; what fails then is added to the error that led here.

        The store comes last: until then a command that is killed here counts as interrupted.
        """
        before = snapshot.applied_allocations
        try:
            facts = self._gather_facts(snapshot.applied, snapshot)
            compiled = self._compile(snapshot.applied, facts, before, lambda: [snapshot, self.store.read()])
            ports = _ports_with_offloads(snapshot.applied, compiled)
            with self._kernel.open(self.instance, load=True) as data_plane:
                offloads.settle(ports, again=False)
                sync.apply(data_plane, compiled, before)
                offloads.release(ports)
                self._settle_gro(snapshot.applied, compiled, facts, offloads)
        except MptmError as error:
            _add_hint(cause, f"going back failed, too ({error.message}): `mptm restore` tries again")
        finally:
            try:
                self.store.roll_back()
            except MptmError as error:
                _add_hint(
                    cause,
                    f"that the change is taken back couldn't be noted ({error.message}): "
                    "the next command tries it once more",
                )

    def _finish_interrupted(self, snapshot: Snapshot) -> Snapshot:
        """Complete what a command that didn't live wanted, or go back to what was before it."""
        if not snapshot.interrupted:
            return snapshot
        if self._progress is not None:
            self._progress("an earlier command was interrupted; completing what it began")
        facts = self._gather_facts(snapshot.intent, snapshot)
        try:
            generation, plan = self._synchronise(snapshot.intent, snapshot, facts)
        except MptmError as error:
            if self.store.read().interrupted:  # it failed before it wrote anything
                self._put_back(snapshot, error, self._offloads(snapshot.meta.get(OFFLOADS)))
            after = self.store.read()
            if after.interrupted:
                raise
            if self._progress is not None:
                self._progress(f"that failed ({error.message}); its change was taken back")
            return after
        self._note_applied(generation, _remembered(plan))
        return self.store.read()

    def _finished_snapshot(self) -> Snapshot:
        """The state, after completing what was interrupted, unless a command is at work right now."""
        snapshot = self.store.read()
        if not snapshot.interrupted:
            return snapshot
        try:
            with self.store.lock(progress=self._progress):
                snapshot = self.store.read()
                with self._inside(snapshot):
                    return self._finish_interrupted(snapshot)
        except Busy:
            return snapshot

    def _offloads(self, remembered: str | None) -> Offloads:
        """What is set at the other ends of ports, as it is remembered."""
        from mptm.offloads import Offloads

        here = self._kernel.netns_identity()
        return Offloads.load(self._kernel, self.store.remember, here.boot if here else "", remembered)

    def _settle_gro(self, intent: Intent, compiled: Compiled, facts: Facts, offloads: Offloads) -> None:
        """Have the idle tunnel devices that uplinks at TC want. Without one it is slower, no more: no failure."""
        from mptm import gro

        wanted = gro.wanted(intent, compiled.attachments)
        present = {name: link for name, link in facts.links.items() if gro.is_device_of(self.instance, name)}
        if present.keys() == {gro.device_of(self.instance, each) for each in wanted} and all(
            link.up for link in present.values()
        ):
            return
        try:
            self._kernel.bring_gro_devices_to(self.instance, wanted)
        except MptmError as error:
            offloads.warnings.append(f"GRO of tunnel packets: {error.message}")

    def _compile(
        self,
        intent: Intent,
        facts: Facts,
        previous: Allocations,
        held: Callable[[], Iterable[Snapshot]] = tuple,
    ) -> Compiled:
        """The tables for an intent; `held` yields what they may have been made of so far."""
        from mptm.compile import compile_tables

        flows = self._flows_of(intent.bundles.values())
        before = []
        if any(bundle.content not in flows for bundle in intent.bundles.values()):
            for each in held():
                before += [(each.intent, each.allocations), (each.applied, each.applied_allocations)]
            gone = (bundle for was, _ in before for bundle in was.bundles.values())
            flows |= self._flows_of(bundle for bundle in gone if bundle.content not in flows)
        return compile_tables(intent, facts, previous, flows, before)

    def _template(self, tunnel: Tunnel, path: Path | None) -> Template | None:
        from mptm.protocols import PROTOCOLS

        if path is None:
            return None
        try:
            return PROTOCOLS[tunnel.protocol].build(tunnel, path)
        except (MptmError, TypeError, ValueError):
            return None

    def _gather_facts(
        self,
        intent: Intent,
        snapshot: Snapshot,
        *,
        remembered: bool = True,
        afresh: bool = False,
        timeout_seconds: float = RESOLVE_TIMEOUT_SECONDS,
        only: str | None = None,
    ) -> Facts:
        """Look at the machine.

        A tunnel that is as it was last applied keeps its last path while its remote doesn't answer, so that a change
        elsewhere doesn't take it down; `remembered` False asks for the truth of now. `only`: that tunnel gets the
        whole timeout.
        """
        paths = _remembered_paths(snapshot) if remembered else {}
        applied = snapshot.applied.tunnels
        known = {
            name for name, tunnel in intent.tunnels.items() if name in paths and applied.get(name) == tunnel
        }
        known -= {only} if only else set()
        asked = [tunnel for name, tunnel in intent.tunnels.items() if name not in known]
        with self._telling(asked):
            facts = self._kernel.gather_facts(asked, resolve_timeout_seconds=timeout_seconds, afresh=afresh)
        if known:
            rest = self._kernel.gather_facts(
                [intent.tunnels[name] for name in sorted(known)],
                resolve_timeout_seconds=KNOWN_RESOLVE_TIMEOUT_SECONDS,
            )
            last = {
                name: paths[name].path
                for name in _unresolved(rest)
                if name in known and paths[name].is_passable(rest.links)
            }
            facts = Facts(
                links=rest.links,
                paths={**facts.paths, **rest.paths, **last},
                problems={
                    **facts.problems,
                    **{name: problem for name, problem in rest.problems.items() if name not in last},
                },
                addresses=rest.addresses,
            )
        return facts

    def _refuse_unusable(self, wanted: Intent, applied: Intent, facts: Facts) -> None:
        """Raise NotFound, Unresolved or InvalidIntent for what is new or changed and would be down."""
        for name, port in wanted.ports.items():
            if name not in facts.links and applied.ports.get(name) != port:
                raise NotFound(
                    f"there is no interface {name}", f"`ip link` lists them{_nearest(name, facts)}"
                )
        problems = _unresolved(facts)
        for name, tunnel in wanted.tunnels.items():
            if name in problems and applied.tunnels.get(name) != tunnel:
                silent = "doesn't answer" in problems[name]
                raise Unresolved(
                    f"tunnel {name}: {problems[name]}",
                    "check that the other end is up, or give --remote-mac (remote_mac in a file)"
                    if silent
                    else f"`ip route get {tunnel.remote}` shows what the kernel would do",
                )
        for kind in ("route", "flow", "bundle"):
            before = applied.of_kind(kind)
            for key, obj in wanted.of_kind(kind).items():
                if kind == "bundle" or obj.port is not None:
                    _refuse_unknown_macs(obj, before.get(key), facts)

    def _refuse_bundles(self, wanted: Intent, applied: Intent) -> None:
        """NotFound or InvalidIntent: the flows of a new or changed bundle aren't here, or are in another, too."""
        for name, bundle in wanted.bundles.items():
            before = applied.bundles.get(name)
            if before is not None and before.content == bundle.content:
                continue
            self.store.bundles.require(bundle.content)
            others = [each for each in wanted.bundles.values() if each is not bundle]
            flows = self._flows_of([bundle, *others])
            if (ours := flows.get(bundle.content)) is not None:
                self._refuse_shared(bundle, ours, others, flows)

    @staticmethod
    def _refuse_shared(
        bundle: Bundle, ours: BundleFlows, others: Iterable[Bundle], flows: Mapping[str, BundleFlows]
    ) -> None:
        """InvalidIntent: another bundle has a flow of a bundle, too, as far as `flows` has theirs."""
        for other in others:
            theirs = flows.get(other.content)
            if theirs is not None and (found := ours.first_shared(theirs)) is not None:
                raise InvalidIntent(
                    f"{bundle.label()} has the flow {found}, which {other.label()} has, too",
                    "take it out of one of them: `mptm flow save` writes the flows of a bundle to a file",
                )

    def _flows_of(self, bundles: Iterable[Bundle]) -> dict[str, BundleFlows]:
        """The flows of bundles by content, without those that can't be read (compile warns of them)."""
        found: dict[str, BundleFlows] = {}
        for bundle in bundles:
            from mptm.bundles import BundleFlows

            with contextlib.suppress(MptmError):
                data = self.store.bundles.read(bundle.content)
                found[bundle.content] = BundleFlows.decode(data, bundle.content)
        return found

    def _next_hop_in_bundles(self, intent: Intent, flow: Flow, verified: set[str]) -> NextHop | None:
        """What a bundle says of a flow."""
        found = self.find_bundled(intent, flow.network, flow.source, flow.destination, verified)
        return found and found[1]

    @contextlib.contextmanager
    def _telling(self, tunnels: Sequence[Tunnel]) -> Iterator[None]:
        """Say what is waited for when it takes longer than a second."""
        if self._progress is None or not tunnels:
            yield
            return
        remotes = list(dict.fromkeys(tunnel.remote or tunnel.name for tunnel in tunnels))
        shown = ", ".join(remotes[:3]) + (f" and {len(remotes) - 3} more" if len(remotes) > 3 else "")
        with saying_later(partial(self._progress, f"waiting for {shown} to answer")):
            yield

    # ---- helpers ---------------------------------------------------------------------------------

    def _bound_netns(self, snapshot: Snapshot) -> str | None:
        """The namespace that the instance is bound to. Raises InvalidIntent when another one was asked for."""
        stored = snapshot.meta.get("netns")
        if not snapshot.generation:
            return self._netns or stored
        if self._netns is None or self._netns == stored:
            return stored
        asked = self._kernel.netns_identity(self._netns)
        home = self._kernel.netns_identity(stored) if stored else _home_of(snapshot)
        if asked is not None and asked == home:
            return stored or self._netns
        where = f"network namespace {stored}" if stored else "another network namespace"
        raise InvalidIntent(
            f"instance {self.instance} lives in {where}, not in {self._netns}",
            "leave --netns out, or choose another --instance",
        )

    def _place(self, snapshot: Snapshot) -> dict[str, str]:
        """What is to be remembered of where the instance lives: a name or path, else which namespace this is."""
        netns = self._bound_netns(snapshot)
        if netns is not None:
            return {"netns": netns}
        here = self._kernel.netns_identity()
        return {NETNS_IDENTITY: here.encode()} if here is not None else {}

    def _check_home(self, snapshot: Snapshot) -> None:
        """Raise InvalidIntent where an instance without a name for its namespace is used in another one.

        Interfaces there are others, even those of the same name or number. After a reboot every namespace is new, so
        the one that is used first is the instance's.
        """
        home = _home_of(snapshot)
        here = self._kernel.netns_identity()
        if not snapshot.generation or home is None or here is None or home.boot != here.boot:
            return
        if home != here:
            raise InvalidIntent(
                f"instance {self.instance} lives in another network namespace",
                "run mptm in that one (nsenter, ip netns exec), name it with --netns, choose another --instance "
                "for this one, or `mptm purge` it",
            )

    @contextlib.contextmanager
    def _inside(self, snapshot: Snapshot) -> Iterator[None]:
        netns = self._bound_netns(snapshot)
        if netns is None:
            self._check_home(snapshot)
            yield
            return
        with self._kernel.inside(netns):
            yield

    @contextlib.contextmanager
    def _opened_or_none(self) -> Iterator[Any]:
        """The data plane as it is loaded, or None."""
        data_plane = self._kernel.open(self.instance, load=False)
        if data_plane is None:
            yield None
            return
        with data_plane:
            yield data_plane

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """The data plane as it is loaded. Raises NotFound."""
        with self._opened_or_none() as data_plane:
            if data_plane is None:
                raise NotFound(
                    f"instance {self.instance} has no data plane loaded",
                    "`mptm restore` loads it; `mptm network add` begins a new node",
                )
            yield data_plane

    def _read_counters(self, data_plane: Any, allocations: Allocations) -> Counters:
        tunnel_table, port_table = data_plane.maps["tunnel_counters"], data_plane.maps["port_counters"]
        return Counters(
            tunnels={
                name: TunnelCounters(**tunnel_table.totals(tunnel_table.key.pack(allocation.counter)))
                for name, allocation in sorted(allocations.tunnels.items())
            },
            ports={
                name: PortCounters(**port_table.totals(port_table.key.pack(allocation.slot)))
                for name, allocation in sorted(allocations.ports.items())
            },
        )


def _ports_with_offloads(intent: Intent, compiled: Compiled) -> dict[str, PortNeeds]:
    """Ports whose other ends are to be as they need them."""
    from mptm.offloads import needs_of

    return {
        name: needs for name, needs in needs_of(compiled.attachments).items() if intent.ports[name].offloads
    }


def _refuse_unknown_macs(obj: Any, before: Any, facts: Facts) -> None:
    """InvalidIntent: a new or changed route, flow or bundle leads to a workload without a known MAC address."""
    for next_hop in next_hops_of(obj) if obj is not None and obj != before else ():
        link = facts.links.get(next_hop.port or "")
        if link is not None and not (next_hop.mac or link.peer_mac):
            raise InvalidIntent(
                f"{obj.label()}: the MAC address of the workload behind {next_hop.port} can't be found out",
                "give it with --mac",
                field="mac",
            )


def _unresolved_path(tunnel: Tunnel) -> Path | None:
    """A path to the remote that has everything but what only the machine knows; None: nothing is sent there."""
    from mptm.protocols.base import NO_MAC, NOWHERE

    remote = tunnel.remote_address
    return None if remote is None else Path(0, NOWHERE[remote.version], NO_MAC, None, NO_MAC, 0)


def _port_state(compiled: str, mode: str | None, loaded: bool) -> str:
    """A port's state from that of its interface and how it is attached (None: not at all, empty: it was replaced)."""
    if not is_healthy(compiled):
        return compiled
    if not loaded:
        return NOT_LOADED
    return f"attached: {mode}" if mode else "down: no program of ours is attached"


def _netns_path(netns: str) -> str:
    """The file of a network namespace that is given by name or by path."""
    return netns if "/" in netns else f"/run/netns/{netns}"


def _home_of(snapshot: Snapshot) -> NetnsIdentity | None:
    """The namespace that an instance was last used in without a name for it."""
    stored = snapshot.meta.get(NETNS_IDENTITY)
    return NetnsIdentity.decode(stored) if stored else None


def _add_hint(error: BaseException, hint: str) -> None:
    if isinstance(error, MptmError):
        error.hint = "; ".join(filter(None, (error.hint, hint)))


def _nearest(name: str, facts: Facts) -> str:
    found = suggestion(name, facts.links)
    return f"; {found}" if found else ""


def _unresolved(facts: Facts) -> dict[str, str]:
    """Tunnels that can't send, with the reason in words."""
    return {
        **facts.problems,
        **{name: path.problem for name, path in facts.paths.items() if path.problem is not None},
    }


@dataclass(frozen=True)
class _RememberedPath:
    """A path as it once was found, and the interface that it left by."""

    path: Path
    egress: str
    egress_mac: bytes

    def is_passable(self, links: Mapping[str, Link]) -> bool:
        """Whether the number still means that interface: after a reboot, or a new one, it may be another's."""
        link = links.get(self.egress)
        return (
            link is not None
            and link.up
            and (link.ifindex, link.mac) == (self.path.egress_ifindex, self.egress_mac)
        )


def _remembered(plan: Plan) -> dict[str, str]:
    """What the store keeps of a synchronisation for the changes that come after it."""
    down = [
        [kind, key]
        for (kind, key), state in plan.states.items()
        if kind in ("tunnel", "group") and not is_healthy(state)
    ]
    return {"paths": _encode_paths(plan.facts), DOWN: json.dumps(down)}


def _down_of(snapshot: Snapshot) -> set[tuple[str, str]] | None:
    """Tunnels and groups that weren't up at the last synchronisation; None: an older version made it."""
    stored = snapshot.meta.get(DOWN)
    return None if stored is None else {(kind, key) for kind, key in json.loads(stored)}


def _encode_paths(facts: Facts) -> str:
    links = {link.ifindex: link for link in facts.links.values()}
    return json.dumps(
        {
            name: {
                "egress": links[path.egress_ifindex].name,
                "egress_mac": links[path.egress_ifindex].mac.hex(),
                "egress_ifindex": path.egress_ifindex,
                "local": str(path.local),
                "local_mac": path.local_mac.hex(),
                "gateway": str(path.gateway) if path.gateway else None,
                "next_hop_mac": path.next_hop_mac.hex() if path.next_hop_mac else None,
                "mtu": path.mtu,
            }
            for name, path in facts.paths.items()
            if path.problem is None and path.egress_ifindex in links
        }
    )


def _remembered_paths(snapshot: Snapshot) -> dict[str, _RememberedPath]:
    return {
        name: _RememberedPath(
            Path(
                egress_ifindex=path["egress_ifindex"],
                local=ip_address(path["local"]),
                local_mac=bytes.fromhex(path["local_mac"]),
                gateway=ip_address(path["gateway"]) if path["gateway"] else None,
                next_hop_mac=bytes.fromhex(path["next_hop_mac"]) if path["next_hop_mac"] else None,
                mtu=path["mtu"],
            ),
            egress=path["egress"],
            egress_mac=bytes.fromhex(path["egress_mac"]),
        )
        for name, path in json.loads(snapshot.meta.get("paths", "{}")).items()
        if "egress" in path
    }
