# SPDX-License-Identifier: GPL-2.0-only
"""Brings the tables of the data plane to what `compile` yielded: a diff of bytes, written in a safe order.

At no time does an entry that a packet can reach point at something that isn't there: what is pointed at
(templates, groups, redirect targets, ports, listeners) is written first, then what points (terminations, hosts,
prefixes, flows); removal goes the other way round. A group is changed in place: each of its slots is written in one
piece. Programs are attached once the tables are right and detached before their port's slot is freed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mptm.errors import TableFull
from mptm.reasons import Reason
from mptm.tables import Attachment, FlowKeyV4, FlowKeyV6, NextHop, Tables, Termination

if TYPE_CHECKING:
    import numpy
    import numpy.typing

    from mptm.compile import Allocations, Compiled, CompiledBundle, CompiledSteering, Unread

    Bytes = numpy.typing.NDArray[numpy.uint8]

POINTED_AT = ("tunnels", "groups", "tx_ports", "gateways", "ports", "locals", "listeners")
"""Tables that others refer to, in the order of writing."""

POINTING = (
    "terminations",
    "hosts_v4",
    "hosts_v6",
    "prefixes_v4",
    "prefixes_v6",
    "flows_v4",
    "flows_v6",
)
"""Tables that refer to others, in the order of writing."""

WRITE_ORDER = POINTED_AT + POINTING
DELETE_ORDER = (*reversed(POINTING), *reversed(POINTED_AT))
ARRAYS = frozenset(("tunnels", "groups", "ports", "listeners", "terminations"))
"""Tables with a slot per number, where all zeroes means free: they are freed by writing zeroes."""

TABLES_OF_FLOWS = {4: "flows_v4", 6: "flows_v6"}
"""By IP version."""

BULK = 10_000
"""Removed entries of flows from which on they are one change."""

KEYED_ARRAY = "terminations"
"""The ARRAY whose entries are found by a key inside them. A slot isn't written in one stroke: so that a reader never
sees a key with another's value, its value is written before its key, and its key is removed before its value."""

TERMINATION_KEY = ("source", "destination", "tunnel_id", "number", "parser")
"""The fields by which it is found."""

SCOPE_OTHER, SCOPE_PORT, SCOPE_TUNNEL = 0, 1, 2
"""`enum drop_scope` of bpf/abi.h."""


class DropKey(NamedTuple):
    """`struct drop_key` of bpf/abi.h."""

    reason: int
    scope: int
    id: int


class Layout(Protocol):
    """How a record lies in memory (`mptm.kernel.btf.Layout`)."""

    @property
    def size(self) -> int:
        """Bytes."""

    def pack(self, record: Any) -> bytes:
        """Bytes of a record of `mptm.tables`, or of an int."""

    def unpack(self, data: bytes) -> Any:
        """The fields by name, or an int."""


class Table(Protocol):
    """A table of the data plane (`mptm.kernel.maps.Map`)."""

    @property
    def name(self) -> str:
        """As in bpf/maps.h."""

    @property
    def key(self) -> Layout:
        """Layout of a key."""

    @property
    def value(self) -> Layout:
        """Layout of a value; of one CPU's value in a per-CPU table."""

    def get(self, key: bytes) -> bytes | None:
        """The value; None where there is none."""

    def items(self) -> dict[bytes, bytes]:
        """All entries; of an array, the slots that aren't all zeroes."""

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        """Add or replace; in a per-CPU table on every CPU. Raises TableFull or KernelError."""

    def delete(self, keys: Iterable[bytes]) -> None:
        """Remove; a key that isn't there is no error, a slot of an array becomes zeroes."""

    def update_many(self, keys: Bytes, values: Bytes) -> None:
        """`update` of entries in two arrays, n x key size and n x value size."""

    def delete_many(self, keys: Bytes) -> None:
        """`delete` of the keys in an array, n x key size."""

    def totals(self, key: bytes) -> dict[str, int]:
        """The fields of a per-CPU table's value, summed over the CPUs."""

    def all_totals(self) -> dict[bytes, dict[str, int]]:
        """`totals` of every entry."""


class AttachmentState(Protocol):
    """One interface that has a program of ours (`mptm.kernel.dataplane.Attached`)."""

    @property
    def ifindex(self) -> int:
        """0: the interface is gone."""

    @property
    def name(self) -> str:
        """The interface's name when it was attached."""

    @property
    def mode(self) -> str:
        """Native, generic or adopted, tcx or clsact; empty when the interface is gone."""

    @property
    def hook(self) -> str:
        """The hook: xdp or tc."""


class DataPlane(Protocol):
    """Maps and programs of an instance, as far as synchronisation needs them (`mptm.kernel.dataplane`)."""

    @property
    def maps(self) -> Mapping[str, Table]:
        """By name."""

    @property
    def upgrade_needed(self) -> bool:
        """The attached programs are of another build than the loaded ones."""

    def switch_links(self) -> None:
        """Let every attached interface run the loaded programs from now on."""

    def attach(self, attachment: Attachment) -> str:
        """Attach, or leave what is right already; returns the mode. Raises ForeignProgram, NotFound, NotSupported."""

    def detach(self, name: str) -> None:
        """Detach from an interface; one that is gone is no error."""

    def attachments(self) -> Sequence[AttachmentState]:
        """What is attached."""


@dataclass(frozen=True)
class Change:
    """One entry of one table: `old` None adds it, `new` None removes it."""

    table: str
    key: bytes
    old: bytes | None
    new: bytes | None


@dataclass(frozen=True, eq=False)
class BulkChange:
    """Very many entries of one table: n x key size bytes, and n x value size, or None: they are removed."""

    table: str
    keys: Bytes
    new: Bytes | None

    def __len__(self) -> int:
        return len(self.keys)


def count_entries(changes: Iterable[Change | BulkChange]) -> int:
    """How many entries change."""
    return sum(len(change) if isinstance(change, BulkChange) else 1 for change in changes)


@dataclass(frozen=True)
class Outcome:
    """What a synchronisation did: entries changed, the mode of each attached port, interfaces detached.

    `upgraded`: the attached programs were exchanged for those of another build. `moved`: ports that were at another
    hook, and the one that they are at now.
    """

    changes: tuple[Change | BulkChange, ...] = ()
    modes: dict[str, str] = field(default_factory=dict)
    detached: tuple[str, ...] = ()
    upgraded: bool = False
    moved: dict[str, str] = field(default_factory=dict)


def plan(
    desired: Tables,
    tables: Mapping[str, Table],
    bundled: Sequence[CompiledBundle] = (),
    unread: Unread | None = None,
) -> list[Change | BulkChange]:
    """What has to change so that `tables` hold `desired`: in the order in which `apply` does it.

    `bundled` are flows that are in `tables`, too, where those of `desired` don't stand; `unread` says which stay.
    """
    writes: dict[str, list[Change | BulkChange]] = {}
    deletes: dict[str, list[Change | BulkChange]] = {}
    for table_field in fields(Tables):
        name = table_field.name
        table = tables[name]
        wanted = {
            table.key.pack(key): table.value.pack(value) for key, value in getattr(desired, name).items()
        }
        actual = table.items()
        if name in ARRAYS:
            free = bytes(table.value.size)
            wanted = {key: value for key, value in wanted.items() if value != free}
        writes[name] = [
            Change(name, key, actual.get(key), value)
            for key, value in wanted.items()
            if actual.get(key) != value
        ]
        in_bundles: set[bytes] = set()
        for keys, values in _bundled_entries(name, table, bundled):
            rows = _rows(keys)
            writes[name] += _bulk_writes(name, keys, values, rows, wanted, actual)
            if actual:
                in_bundles.update(rows)
        gone = [key for key in actual if key not in wanted and key not in in_bundles]
        if unread is not None and name in TABLES_OF_FLOWS.values():
            kept = _kept(name, table, gone, actual, unread)
            moved = {key: value for key, value in kept.items() if actual[key] != value}
            if moved:
                writes[name].append(BulkChange(name, _array([*moved]), _array([*moved.values()])))
            gone = [key for key in gone if key not in kept]
        deletes[name] = _removals(name, table, gone, actual)
    return [change for name in WRITE_ORDER for change in writes[name]] + [
        change for name in DELETE_ORDER for change in deletes[name]
    ]


def _kept(
    name: str, table: Table, gone: Sequence[bytes], actual: Mapping[bytes, bytes], unread: Unread
) -> dict[bytes, bytes]:
    """Those entries that may be of bundles which can't be read, and what they lead to from now on."""
    key_type, zero = (FlowKeyV4, bytes(4)) if name == TABLES_OF_FLOWS[4] else (FlowKeyV6, bytes(16))

    def key_in(network: int) -> bytes:
        return table.key.pack(key_type(network, zero, zero))

    @functools.cache
    def without_mac(value: bytes) -> bytes:
        next_hop = NextHop(**table.value.unpack(value))
        return table.value.pack(next_hop._replace(mac=bytes(len(next_hop.mac))))

    start = key_in(0xFFFFFFFF).index(b"\xff")
    numbers = slice(start, start + 4)
    now = {
        (key_in(network)[numbers], table.value.pack(was)): table.value.pack(value)
        for network, next_hops in unread.next_hops.items()
        for was, value in next_hops.items()
    }
    others = {table.key.pack(key) for key in unread.removed.get(name, ())}
    for keys, _ in _bundled_entries(name, table, unread.unbundled):
        others.update(_rows(keys))
    found = {
        key: now.get((key[numbers], actual[key])) or now.get((key[numbers], without_mac(actual[key])))
        for key in gone
        if key not in others
    }
    return {key: value for key, value in found.items() if value is not None}


def _removals(
    name: str, table: Table, gone: Sequence[bytes], actual: Mapping[bytes, bytes]
) -> list[Change | BulkChange]:
    if len(gone) < BULK or table.name not in TABLES_OF_FLOWS.values():
        return [Change(name, key, actual[key], None) for key in gone]
    return [BulkChange(name, _array(gone), None)]


def _bulk_writes(
    name: str,
    keys: Bytes,
    values: Bytes,
    rows: Sequence[bytes],
    wanted: Mapping[bytes, bytes],
    actual: Mapping[bytes, bytes],
) -> list[BulkChange]:
    """The entries of a bundle that aren't there yet; those that a flow of its own goes before are left out."""
    if actual:
        pairs = zip(rows, _rows(values), strict=True)
        take = [at for at, (key, value) in enumerate(pairs) if key not in wanted and actual.get(key) != value]
    else:
        take = [at for at, key in enumerate(rows) if key not in wanted] if wanted else []
        if len(take) == len(rows) or not wanted:
            return [BulkChange(name, keys, values)] if rows else []
    return [BulkChange(name, keys[take], values[take])] if take else []


def _bundled_entries(
    name: str, table: Table, bundled: Sequence[CompiledBundle]
) -> Iterator[tuple[Bytes, Bytes]]:
    """Keys and values, as they lie in a table, of those flows of bundles that belong there."""
    version = next((version for version, flows in TABLES_OF_FLOWS.items() if flows == name), None)
    for bundle in bundled if version else ():
        records = bundle.records[version or 0]
        if not len(records):
            continue
        import numpy as np

        key_type = FlowKeyV4 if version == 4 else FlowKeyV6
        size = records.dtype["source"].shape[0]
        zero, ones = bytes(size), b"\xff" * size
        packed = [table.key.pack(key_type(network, zero, zero)) for network in bundle.networks]
        keys = np.frombuffer(b"".join(packed), np.uint8).reshape(len(packed), -1)[records["network"]]
        for name_of_field, marked in (("source", (ones, zero)), ("destination", (zero, ones))):
            places = np.flatnonzero(np.frombuffer(table.key.pack(key_type(0, *marked)), np.uint8))
            keys[:, places] = records[name_of_field]
        next_hops = b"".join(map(table.value.pack, bundle.next_hops))
        values = np.frombuffer(next_hops, np.uint8).reshape(-1, table.value.size)
        yield keys, values[records["next_hop"]] if len(values) else values


def _rows(array: Bytes) -> list[bytes]:
    data, size = array.tobytes(), array.shape[1]
    return [data[at : at + size] for at in range(0, len(data), size)]


def _array(rows: Sequence[bytes]) -> Bytes:
    import numpy as np

    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


def apply(data_plane: DataPlane, compiled: Compiled, previous: Allocations | None = None) -> Outcome:
    """Make the data plane do what was compiled.

    `previous` are the allocations of the last completed synchronisation: counters of what is new since are zeroed
    before use, so nobody reads another tunnel's packets.
    Raises TableFull, ForeignProgram, NotFound, NotSupported, KernelError; the data plane is then part old, part new,
    and the caller synchronises again with what was before.
    """
    maps = data_plane.maps
    changes = plan(compiled.tables, maps, compiled.bundled, compiled.unread)
    _zero_new_counters(maps, compiled.allocations, previous)
    _write(maps, (change for change in changes if change.new is not None))
    upgraded = data_plane.upgrade_needed
    if upgraded:
        data_plane.switch_links()

    wanted = {attachment.name: attachment for attachment in compiled.attachments}
    before = {state.name: state.hook for state in data_plane.attachments()}
    detached = [name for name in before if name not in wanted]
    for name in detached:
        data_plane.detach(name)
    modes = {name: data_plane.attach(attachment) for name, attachment in wanted.items()}
    removed = [change for change in changes if change.new is None]
    _delete(maps, (change for change in removed if change.table in POINTING))
    _delete(maps, (change for change in removed if change.table not in POINTING))
    _tidy_drops(maps["drops"], compiled.allocations)
    moved = {name: each.hook for name, each in wanted.items() if before.get(name, each.hook) != each.hook}
    return Outcome(tuple(changes), modes, tuple(detached), upgraded, moved)


def apply_steering(data_plane: DataPlane, compiled: CompiledSteering) -> Outcome:
    """Make the data plane do what was compiled of changed routes and flows, where it does all the rest already.

    Raises TableFull and KernelError, as `apply` does; neither the number of entries nor that of ports matters.
    """
    maps = data_plane.maps
    changes = _plan_steering(compiled, maps)
    _write(maps, (change for change in changes if change.new is not None))
    removed = [change for change in changes if change.new is None]
    _delete(maps, removed)
    return Outcome(tuple(changes))


def _plan_steering(compiled: CompiledSteering, tables: Mapping[str, Table]) -> list[Change | BulkChange]:
    changes: list[Change | BulkChange] = []
    for name in POINTING:
        table = tables[name]
        for key, value in getattr(compiled.tables, name).items():
            packed, new = table.key.pack(key), table.value.pack(value)
            if (old := table.get(packed)) != new:
                changes.append(Change(name, packed, old, new))
        kept = {table.key.pack(key) for key in compiled.kept.get(name, ())}
        for keys, values in _bundled_entries(name, table, compiled.bundled):
            take = _all_but(keys, kept)
            changes.append(BulkChange(name, keys[take], values[take]))
    for name in reversed(POINTING):
        table = tables[name]
        kept = {table.key.pack(key) for key in compiled.kept.get(name, ())}
        for keys, _ in _bundled_entries(name, table, compiled.unbundled):
            changes.append(BulkChange(name, keys[_all_but(keys, kept)], None))
        for packed in map(table.key.pack, compiled.removed.get(name, ())):
            if (old := table.get(packed)) is not None:
                changes.append(Change(name, packed, old, None))
    return changes


def _all_but(keys: Bytes, kept: set[bytes]) -> Any:
    """What takes the rows of an array out of it that aren't among some."""
    return [at for at, key in enumerate(_rows(keys)) if key not in kept] if kept else slice(None)


def _write(maps: Mapping[str, Table], changes: Iterable[Change | BulkChange]) -> None:
    for name, (entries, bulk) in _by_table(changes).items():
        table = maps[name]
        for each in bulk:
            if each.new is not None:
                table.update_many(each.keys, each.new)
        if name == KEYED_ARRAY:
            # A key whose slot another takes may have got a slot elsewhere: that one is written first.
            replaced = [change for change in entries if _has_another_key(table, change)]
            entries = [change for change in entries if change not in replaced]
            _write_keyed(table, entries)
            table.update({change.key: _hidden(table, change.old) for change in replaced if change.old})
            _write_keyed(table, [replace(change, old=None) for change in replaced])
            continue
        table.update({change.key: change.new for change in entries if change.new is not None})


def _write_keyed(table: Table, entries: Sequence[Change]) -> None:
    """Entries of KEYED_ARRAY in slots that are free, or have the same key."""
    added = [change for change in entries if not change.old or not table.value.unpack(change.old)["parser"]]
    table.update({change.key: _hidden(table, change.new) for change in added if change.new})
    table.update({change.key: change.new for change in entries if change.new})


def _has_another_key(table: Table, change: Change) -> bool:
    """Whether a termination takes the place of one that packets find by another key."""
    if not change.old or not change.new:
        return False
    old, new = table.value.unpack(change.old), table.value.unpack(change.new)
    return bool(old["parser"]) and any(old[name] != new[name] for name in TERMINATION_KEY)


def _delete(maps: Mapping[str, Table], changes: Iterable[Change | BulkChange]) -> None:
    for name, (entries, bulk) in _by_table(changes).items():
        table = maps[name]
        for each in bulk:
            table.delete_many(each.keys)
        if name == KEYED_ARRAY:
            table.update({change.key: _hidden(table, change.old) for change in entries if change.old})
        table.delete([change.key for change in entries])


def _hidden(table: Table, value: bytes) -> bytes:
    """A termination that no packet finds, but whose value is already, or still, the right one."""
    return table.value.pack(Termination(**table.value.unpack(value))._replace(parser=0))


def _by_table(
    changes: Iterable[Change | BulkChange],
) -> dict[str, tuple[list[Change], list[BulkChange]]]:
    grouped: dict[str, tuple[list[Change], list[BulkChange]]] = {}
    for change in changes:
        single, bulk = grouped.setdefault(change.table, ([], []))
        if isinstance(change, BulkChange):
            bulk.append(change)
        else:
            single.append(change)
    return grouped


def zero_counters(table: Table, keys: Iterable[bytes]) -> None:
    """Set values to zero, of a per-CPU table on all CPUs.

    A packet that is counted at that moment may be lost to the count.
    """
    table.update(dict.fromkeys(keys, bytes(table.value.size)))


def reset_drops(drops: Table) -> None:
    """Forget all drops."""
    fallbacks = _drop_fallbacks(drops)
    drops.delete([key for key in drops.items() if key not in fallbacks])
    zero_counters(drops, fallbacks)


def _drop_fallbacks(drops: Table) -> list[bytes]:
    """Keys of the entries that the data plane counts on, but doesn't make: for when it has no room for a new one."""
    return [drops.key.pack(DropKey(reason, SCOPE_OTHER, 0)) for reason in Reason]


def _tidy_drops(drops: Table, now: Allocations) -> None:
    """Remove what nothing can be counted for any more, and have the fallbacks."""
    used = {
        SCOPE_PORT: {port.ifindex for port in now.ports.values()},
        SCOPE_TUNNEL: {tunnel.counter for tunnel in now.tunnels.values()},
    }
    present = drops.items()
    stale = []
    for key in present:
        where = drops.key.unpack(key)
        if where["scope"] in used and where["id"] not in used[where["scope"]]:
            stale.append(key)
    drops.delete(stale)
    with contextlib.suppress(TableFull):  # full of what is in use: then only new drops stay uncounted
        zero_counters(drops, [key for key in _drop_fallbacks(drops) if key not in present])


def _zero_new_counters(maps: Mapping[str, Table], now: Allocations, before: Allocations | None) -> None:
    tunnels_before = before.tunnels if before else {}
    ports_before = before.ports if before else {}
    counters = {
        allocation.counter
        for name, allocation in now.tunnels.items()
        if name not in tunnels_before or tunnels_before[name].counter != allocation.counter
    }
    new_ports = [allocation for name, allocation in now.ports.items() if ports_before.get(name) != allocation]
    key = maps["tunnel_counters"].key
    zero_counters(maps["tunnel_counters"], [key.pack(counter) for counter in sorted(counters)])
    # RFC 2890 §2.2: sequence numbers of a tunnel start at 0.
    key = maps["sequences"].key
    zero_counters(maps["sequences"], [key.pack(counter) for counter in sorted(counters)])
    key = maps["port_counters"].key
    zero_counters(maps["port_counters"], [key.pack(port.slot) for port in new_ports])
    ifindexes = {port.ifindex for port in new_ports}
    if not counters and not ifindexes:
        return
    drops = maps["drops"]
    stale = []
    for drop in drops.items():
        where = drops.key.unpack(drop)
        renewed = {SCOPE_TUNNEL: counters, SCOPE_PORT: ifindexes}.get(where["scope"], set())
        if where["id"] in renewed:
            stale.append(drop)
    drops.delete(stale)
