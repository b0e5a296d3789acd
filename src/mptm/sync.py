# SPDX-License-Identifier: GPL-2.0-only
"""Brings the tables of the data plane to what `compile` yielded: a diff of bytes, written in a safe order.

At no time does an entry that a packet can reach point at something that isn't there: what is pointed at
(templates, groups, redirect targets, ports, listeners) is written first, then what points (terminations, hosts,
prefixes, flows); removal goes the other way round. A group is changed in place: each of its slots is written in one
piece. Programs are attached once the tables are right and detached before their port's slot is freed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mptm.errors import TableFull
from mptm.reasons import Reason
from mptm.tables import Attachment, Tables, Termination

if TYPE_CHECKING:
    from mptm.compile import Allocations, Compiled

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
        """Native, generic or adopted; empty when the interface is gone."""


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


@dataclass(frozen=True)
class Outcome:
    """What a synchronisation did: entries changed, the mode of each attached port, interfaces detached.

    `upgraded`: the attached programs were exchanged for those of another build.
    """

    changes: tuple[Change, ...] = ()
    modes: dict[str, str] = field(default_factory=dict)
    detached: tuple[str, ...] = ()
    upgraded: bool = False


def plan(desired: Tables, tables: Mapping[str, Table]) -> list[Change]:
    """What has to change so that `tables` hold `desired`: in the order in which `apply` does it."""
    writes: dict[str, list[Change]] = {}
    deletes: dict[str, list[Change]] = {}
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
        deletes[name] = [Change(name, key, value, None) for key, value in actual.items() if key not in wanted]
    return [change for name in WRITE_ORDER for change in writes[name]] + [
        change for name in DELETE_ORDER for change in deletes[name]
    ]


def apply(data_plane: DataPlane, compiled: Compiled, previous: Allocations | None = None) -> Outcome:
    """Make the data plane do what was compiled.

    `previous` are the allocations of the last completed synchronisation: counters of what is new since are zeroed
    before use, so nobody reads another tunnel's packets.
    Raises TableFull, ForeignProgram, NotFound, NotSupported, KernelError; the data plane is then part old, part new,
    and the caller synchronises again with what was before.
    """
    maps = data_plane.maps
    changes = plan(compiled.tables, maps)
    _zero_new_counters(maps, compiled.allocations, previous)
    _write(maps, (change for change in changes if change.new is not None))
    upgraded = data_plane.upgrade_needed
    if upgraded:
        data_plane.switch_links()

    wanted = {attachment.name: attachment for attachment in compiled.attachments}
    detached = [state.name for state in data_plane.attachments() if state.name not in wanted]
    for name in detached:
        data_plane.detach(name)
    modes = {name: data_plane.attach(attachment) for name, attachment in wanted.items()}
    removed = [change for change in changes if change.new is None]
    _delete(maps, (change for change in removed if change.table in POINTING))
    _delete(maps, (change for change in removed if change.table not in POINTING))
    _tidy_drops(maps["drops"], compiled.allocations)
    return Outcome(tuple(changes), modes, tuple(detached), upgraded)


def _write(maps: Mapping[str, Table], changes: Iterable[Change]) -> None:
    for name, entries in _by_table(changes).items():
        table = maps[name]
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


def _delete(maps: Mapping[str, Table], changes: Iterable[Change]) -> None:
    for name, entries in _by_table(changes).items():
        table = maps[name]
        if name == KEYED_ARRAY:
            table.update({change.key: _hidden(table, change.old) for change in entries if change.old})
        table.delete([change.key for change in entries])


def _hidden(table: Table, value: bytes) -> bytes:
    """A termination that no packet finds, but whose value is already, or still, the right one."""
    return table.value.pack(Termination(**table.value.unpack(value))._replace(parser=0))


def _by_table(changes: Iterable[Change]) -> dict[str, list[Change]]:
    grouped: dict[str, list[Change]] = {}
    for change in changes:
        grouped.setdefault(change.table, []).append(change)
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
