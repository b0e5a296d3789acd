# SPDX-License-Identifier: GPL-2.0-only
"""The writer of the tables that programs look into without a call (bpf/table.h reads): flows, hosts and prefixes.

A table is a directory of segments (`mptm.kernel.segments`); a hash of the key says which segment an entry is in, and
which two of its buckets may have it. Programs look while we write:

- A new entry goes into a slot that was never used since its segment was made: first its key, then, in one store of
  eight bytes, its network and its next hop, without which it isn't there.
- Another value is another next hop: one store of four bytes. What stands in `next_hops` is never changed while an
  entry points at it, nor before an RCU grace period has passed since.
- A removed entry loses its next hop in one store, and its slot stays unused.
- Where there is no room, the segment is made anew, without what was removed, and takes the old one's place in the
  directory in one store. What is in the way of each other is arranged there, before anybody sees it.
- A table grows by doubling the number of segments: those behind the present ones are put in place, then programs are
  told of them, then, when none is left that hasn't heard, the halves of those before take their places.

So a process that is killed leaves a table that programs can read, and that has all entries but those being written:
all that the next writer needs is in the table itself. There is one writer at a time: who calls holds the node's lock.
"""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mptm.errors import TableFull
from mptm.kernel.btf import Layout, Types
from mptm.kernel.libbpf import order_stores
from mptm.kernel.maps import ARRAY_OF_MAPS, Map, types_of
from mptm.kernel.segments import Segments, Window
from mptm.kernel.slots import SlotTable, open_map

HEADS, FIRST_NEXT_HOPS, NEXT_HOPS, LAYOUTS = "table_heads", "first_next_hops", "next_hops", "table_layouts"

TABLES = ("flows_v4", "flows_v6", "hosts_v4", "hosts_v6", "prefixes_v4", "prefixes_v6")
"""The tables, each at its `enum table_number` of bpf/abi.h."""

PARTS = frozenset((*TABLES, HEADS, FIRST_NEXT_HOPS, NEXT_HOPS))
"""Maps that belong together: with one of them exchanged, all are."""

_Bytes = NDArray[np.uint8]
_Words = NDArray[np.uint64]
_Numbers = NDArray[np.uint32]
_Indexes = NDArray[np.int64]

_FREE, _REMOVED = 0, 0x80000000
"""ENTRY_FREE and ENTRY_REMOVED of bpf/abi.h."""

_NETWORK_FACTOR = np.uint64(0xC2B2AE3D27D4EB4F)
_WORD_FACTORS = (0x9E3779B97F4A7C15, 0x165667B19E3779F9, 0x27D4EB2F165667C5, 0x85EBCA77C2B2AE63)
"""hash_words of bpf/table.h."""

_COMFORTABLE = 0.5
"""Share of the slots in use above which a table grows: 4 of 100 entries stand in their second bucket then, and 3 of 100
new ones find both of theirs full, so that their segment is made anew."""

_FULL = 0.75
"""Share of the slots of as many segments as there may be that can be in use."""

_KICKS = 1000
_CHUNK = 1 << 16
_MANY = 1024


def open_maps(descriptors: Mapping[str, int]) -> dict[str, Map]:
    """The maps of an object by name, as far as they are ours with a driver for their kind."""
    maps: dict[str, Map] = {}
    try:
        for name, fd in descriptors.items():
            maps[name] = open_map(name, fd)
        directories = [maps[name] for name in (*TABLES, NEXT_HOPS) if name in maps]
        slots = [maps[name] for name in (HEADS, FIRST_NEXT_HOPS) if isinstance(maps.get(name), SlotTable)]
        if (
            len(directories) <= len(TABLES)
            or len(slots) < 2
            or {each.type for each in directories} != {ARRAY_OF_MAPS}
        ):
            return maps  # another build's
        like = maps["tunnel_counters"]
        heads = _Heads(cast(SlotTable, maps[HEADS]))
        layouts = table_layouts(maps[HEADS])
        next_hops = NextHops(
            maps[NEXT_HOPS], cast(SlotTable, maps[FIRST_NEXT_HOPS]), like, layouts[NEXT_HOPS].name
        )
        for number, name in enumerate(TABLES):
            table = HashTable(maps[name], like, layouts[name].name, heads, number, next_hops)
            maps[name] = table
    except BaseException:
        for each in maps.values():
            each.close()
        raise
    return maps


def table_layouts(heads: Map) -> dict[str, Layout]:
    """What a segment of each table is, for a data plane that has this map of heads."""
    return segment_layouts(types_of(heads.info.btf_id))


def segment_layouts(types: Types) -> dict[str, Layout]:
    """What a segment of each table is. Raises NotFound for a build that has no such tables."""
    return {field.name: field.layout for field in cast(Any, types.struct(LAYOUTS)).fields}


class _Heads:
    """`table_heads`: how programs look into each table."""

    def __init__(self, heads: SlotTable) -> None:
        self._window = Window(mmap.PAGESIZE, 1)  # its own, which lasts as long as the tables
        self._window.map(0, heads.fd)
        self._words = self._window.bytes.view(np.uint64)
        self._stride = heads.value.size // 8

    def of(self, number: int) -> _Words:
        """The words of a table's head: segment mask, then lengths; each is written in one store."""
        return self._words[number * self._stride : (number + 1) * self._stride]


class NextHops:
    """`next_hops`: each next hop once, for all tables. A slot is free again when no entry points at it any more."""

    def __init__(self, directory: Map, first: SlotTable, like: Map, struct: str) -> None:
        self.name = directory.name
        self.tables: list[HashTable] = []
        self._segments = Segments(directory, like, struct, first.fd, first.info.value_size)
        slots = cast(Any, self._segments.layout).fields[0].layout
        slot, self._per_segment = slots.element, slots.count
        self.value: Layout = slot.fields[0].layout
        assert slot.size == 16
        self._count = self._segments.fixed
        self._pairs = self._segments.bytes.view(np.uint64).reshape(-1, 2)
        self._used = self._segments.bytes.view(np.uint32).reshape(-1, 4)[:, 3]

    def close(self) -> None:
        """Let go of the mappings."""
        self._pairs = self._pairs[:0]
        self._used = self._used[:0]
        self._segments.close()

    def refresh(self) -> None:
        """Map what there is."""
        while self._count < self._segments.capacity and self._segments.refresh_one(self._count):
            self._count += 1

    def values(self, numbers: _Numbers) -> _Bytes:
        """The next hops that entries point at."""
        rows = self._segments.bytes.reshape(-1, 16)[numbers]
        return rows[:, : self.value.size]

    def intern(self, values: _Bytes) -> _Numbers:
        """Slots that have these values. They stay until the next call, and as long as an entry has them."""
        self.refresh()
        padded = np.zeros((len(values), 16), np.uint8)
        padded[:, : self.value.size] = values
        padded.view(np.uint32)[:, 3] = 1
        unique, inverse = _unique(padded.view(np.uint64))
        numbers = self._look_for(unique)
        missing = np.flatnonzero(numbers == 0)
        if len(missing):
            slots = self._allocate(len(missing), numbers)
            self._pairs[slots] = unique[missing]
            numbers[missing] = slots
        return numbers[inverse]

    def _look_for(self, wanted: _Words) -> _Numbers:
        """The slots of values, 0 for those that are nowhere."""
        known = self._pairs[: self._count * self._per_segment]
        found = np.zeros(len(wanted), np.uint32)
        if len(wanted) <= 16:
            for at, (first, second) in enumerate(wanted):
                same = np.flatnonzero((known[:, 1] == second) & (known[:, 0] == first))
                found[at] = same[0] if len(same) else 0
            return found
        used = np.flatnonzero(self._used[: len(known)])
        if not len(used):
            return found
        mixed = _mix(known[used])
        order = np.argsort(mixed)
        places = np.minimum(np.searchsorted(mixed[order], _mix(wanted)), len(order) - 1)
        candidates = used[order[places]]
        same_pairs = (known[candidates] == wanted).all(axis=1)
        found[same_pairs] = candidates[same_pairs]
        return found

    def _allocate(self, count: int, keep: _Numbers) -> _Indexes:
        free = self._free()
        if len(free) < count:
            self._collect(keep)
            free = self._free()
            total = self._count * self._per_segment
            if len(free) < max(count, total // 4):
                self._grow(-(-(count - len(free) + total // 4 + 1) // self._per_segment))  # 1: the empty one
                free = self._free()
        if len(free) < count:
            raise self._full()
        return free[:count]

    def _free(self) -> _Indexes:
        return np.flatnonzero(self._used[1 : self._count * self._per_segment] == 0) + 1

    def _collect(self, keep: _Numbers) -> None:
        """Free what no entry points at, and no program may have got from one that did."""
        wanted = np.zeros(self._count * self._per_segment, bool)
        wanted[keep] = True
        for table in self.tables:
            wanted[table.next_hops_in_use()] = True
        any(table.wait_for_programs() for table in self.tables)
        self._used[: len(wanted)][~wanted] = 0

    def _full(self) -> TableFull:
        room = self._count * self._per_segment - 1
        return TableFull(f"the table {self.name} is full: it has room for {room} different next hops")

    def _grow(self, count: int) -> None:
        count = min(count, self._segments.capacity - self._count)
        if not count:
            return
        with self._segments.create(count) as new:
            self._segments.publish({self._count + number: fd for number, fd in enumerate(new.descriptors)})
        self.refresh()


class HashTable(Map):
    """A table of entries key -> next hop, as bytes or as arrays of bytes; a `mptm.sync.Table`.

    Keys and values are laid out as bpf/abi.h has them (flow_key_v4, next_hop, ...), fields named reserved zero, and
    the bits of an address behind its prefix zero, too. Whatever fails raises KernelError, and TableFull.
    """

    def __init__(
        self, directory: Map, like: Map, struct: str, heads: _Heads, number: int, next_hops: NextHops
    ) -> None:
        super().__init__(directory.name, directory.fd)
        directory.fd = -1  # it is ours now
        self._next_hops = next_hops
        self._heads = heads
        self._head = heads.of(number)
        self._segments: Segments | None = Segments(self, like, struct)
        buckets = cast(Any, self._segments.layout).fields[0].layout
        entries = buckets.element.fields[0].layout
        self._key: Layout = entries.element.fields[0].layout
        self._buckets, self._slots = buckets.count, entries.count
        self._count = entries.element.size // 8 - 1  # words of a key, without its last half
        self._key_size, self._value_size = self._key.size, next_hops.value.size
        self._per_segment = self._buckets * self._slots
        self.max_entries = int(self._segments.capacity * self._per_segment * _FULL)
        shape = (self._segments.capacity * self._buckets, self._slots)
        stride, size = buckets.element.size, entries.element.size
        self._entries = np.lib.stride_tricks.as_strided(
            self._segments.bytes.view(np.uint64), (*shape, self._count + 1), (stride, size, 8)
        )
        names = {field.name: field for field in cast(Any, self._key).fields}
        self._length_at: int | None = names["prefix_len"].offset if "prefix_len" in names else None
        halves = self._segments.bytes.view(np.uint32)

        def column(at: int) -> _Numbers:
            found: _Numbers = np.lib.stride_tricks.as_strided(halves[at:], shape, (stride, size))
            return found

        self._networks, self._numbers = column(self._count * 2), column(self._count * 2 + 1)
        self._lengths = column((self._length_at or 0) // 4)
        self._address_bits = names["address"].layout.size * 8 if "address" in names else 0
        next_hops.tables.append(self)

    def close(self) -> None:
        """Let go of the table; it lives on where it is pinned or used by a program."""
        if getattr(self, "_segments", None) is not None:
            self._entries = self._entries[:0]
            self._networks = self._networks[:0]
            self._numbers = self._numbers[:0]
            self._lengths = self._lengths[:0]
            cast(Segments, self._segments).close()
            self._segments = None
            self._next_hops.tables.remove(self)
            if not self._next_hops.tables:
                self._next_hops.close()
        if hasattr(self, "fd"):
            super().close()

    @cached_property
    def key(self) -> Layout:
        """Layout of a key."""
        return self._key

    @cached_property
    def value(self) -> Layout:
        """Layout of a value."""
        return self._next_hops.value

    # ---- reading ----

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None when it isn't there."""
        keys = self._array([self._checked_key(key)], self._key_size)
        if not self._refresh():
            return None
        words, networks = self._split_keys(keys)
        buckets, slots = self._find(words, networks, self._hash(words, networks))
        if buckets[0] < 0:
            return None
        self._next_hops.refresh()
        value: bytes = self._next_hops.values(self._numbers[buckets, slots])[0].tobytes()
        return value

    def items(self) -> dict[bytes, bytes]:
        """All entries."""
        keys, values = self.arrays()
        return dict(zip(_cut(keys), _cut(values), strict=True))

    def arrays(self) -> tuple[_Bytes, _Bytes]:
        """All entries: n x key size and n x value size, in no order."""
        while True:
            if not self._refresh():
                return np.zeros((0, self._key_size), np.uint8), np.zeros((0, self._value_size), np.uint8)
            before = (int(self._head[0]), self._open.ids(self._segment_count))
            words, networks, numbers, _ = self._gather(np.arange(self._segment_count))
            self._next_hops.refresh()
            values = self._next_hops.values(numbers)
            if before == (int(self._head[0]), self._open.ids(self._segment_count)):
                break  # else it grew meanwhile, and what was read may be a part
        keys = np.empty((len(words), self._key_size), np.uint8)
        keys[:, :-4] = words.view(np.uint8)
        keys[:, -4:] = networks[:, None].view(np.uint8)
        return keys, values

    def next_hops_in_use(self) -> _Numbers:
        """Slots of `next_hops` that entries point at, one or more times each."""
        if not self._refresh():
            return np.zeros(0, np.uint32)
        numbers = self._numbers[: self._segment_count * self._buckets]
        return numbers[numbers.view(np.int32) > 0]

    def entry_count(self) -> int:
        """How many entries there are."""
        return len(self.next_hops_in_use())

    def memory_bytes(self) -> int:
        """What the segments take, without next hops."""
        return self._segment_count * self._open.layout.size if self._refresh() else 0

    # ---- writing ----

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        """Add or replace entries. When it raises, some may have been written."""
        keys = self._array([self._checked_key(key) for key in entries], self._key_size)
        values = self._array([self._checked_value(value) for value in entries.values()], self._value_size)
        self.update_many(keys, values)

    def update_many(self, keys: _Bytes, values: _Bytes) -> None:
        """`update` with n x key size and n x value size bytes. Of a key that is there twice, the last counts."""
        if keys.shape != (len(values), self._key_size) or values.shape[1:] != (self._value_size,):
            raise ValueError(
                f"{self.name}: keys have {self._key_size} bytes and values {self._value_size}, not "
                f"{keys.shape} and {values.shape}"
            )
        if not len(keys):
            return
        self._refresh_or_make()
        keys = np.ascontiguousarray(keys)
        words, networks = self._split_keys(keys)
        hashes = self._hash(words, networks)
        ordered = np.sort(hashes)
        if (ordered[1:] == ordered[:-1]).any() and len(last := _last_of_each(keys)) < len(keys):
            keys, values, hashes = keys[last], values[last], hashes[last]
            words, networks = words[last], networks[last]
        numbers = self._next_hops.intern(values)
        if self._length_at is not None:
            self._add_lengths(keys)
        buckets, slots = self._find(words, networks, hashes)
        there = buckets >= 0
        order_stores()  # next hops, and which lengths there are, before what makes programs look for them
        self._numbers[buckets[there], slots[there]] = numbers[there]
        new = np.flatnonzero(~there)
        if len(new):
            halves = np.empty((len(new), 2), np.uint32)
            halves[:, 0], halves[:, 1] = networks[new], numbers[new]
            self._add(words[new], halves.view(np.uint64)[:, 0], hashes[new])

    def delete(self, keys: Iterable[bytes]) -> None:
        """Delete entries; a key that isn't there is no error."""
        self.delete_many(self._array([self._checked_key(key) for key in keys], self._key_size))

    def delete_many(self, keys: _Bytes) -> None:
        """`delete` with n x key size bytes."""
        if keys.shape[1:] != (self._key_size,):
            raise ValueError(f"{self.name}: keys have {self._key_size} bytes, not {keys.shape}")
        if not len(keys) or not self._refresh():
            return
        words, networks = self._split_keys(np.ascontiguousarray(keys))
        buckets, slots = self._find(words, networks, self._hash(words, networks))
        there = buckets >= 0
        self._numbers[buckets[there], slots[there]] = _REMOVED
        if self._length_at is not None and there.any():
            self._drop_lengths(keys[there])

    # ---- inside ----

    def wait_for_programs(self) -> bool:
        """Wait until every program that runs now has ended; False: by this table, never written, it can't be done."""
        if not self._refresh():
            return False
        self._open.wait_for_programs()
        return True

    @property
    def _open(self) -> Segments:
        assert self._segments is not None, f"the table {self.name} is closed"
        return self._segments

    @property
    def _segment_count(self) -> int:
        return int(self._head[0]) + 1

    def _refresh(self) -> bool:
        """See the segments as they are now; False: nothing was ever written."""
        return self._open.refresh(self._segment_count)

    def _refresh_or_make(self) -> None:
        if not self._refresh():
            missing = [number for number, each in enumerate(self._open.ids(self._segment_count)) if not each]
            with self._open.create(len(missing)) as new:
                self._open.publish(dict(zip(missing, new.descriptors, strict=True)))
            self._refresh()

    @staticmethod
    def _array(rows: Sequence[bytes], size: int) -> _Bytes:
        if not rows:
            return np.zeros((0, size), np.uint8)
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, size)

    def _split_keys(self, keys: _Bytes) -> tuple[_Words, _Numbers]:
        words = np.ascontiguousarray(keys[:, :-4]).view(np.uint64).reshape(len(keys), self._count)
        networks = np.ascontiguousarray(keys[:, -4:]).view(np.uint32).reshape(len(keys))
        return words, networks

    def _hash(self, words: _Words, networks: _Numbers) -> _Words:
        """hash_words of bpf/table.h."""
        hashes = networks.astype(np.uint64) * _NETWORK_FACTOR
        for at in range(self._count):
            hashes += words[:, at] * np.uint64(_WORD_FACTORS[at])
        hashes ^= hashes >> np.uint64(32)
        hashes *= np.uint64(_WORD_FACTORS[0])
        hashes ^= hashes >> np.uint64(32)
        return hashes

    def _homes(self, hashes: _Words, segments: _Indexes) -> tuple[_Indexes, _Indexes]:
        """The two buckets of each key, counted from that of the first segment (FIRST_BUCKET, SECOND_BUCKET)."""
        mask = np.uint64(self._buckets - 1)
        first = (hashes & mask).astype(np.int64) + segments * self._buckets
        second = (hashes >> np.uint64(52) & mask).astype(np.int64) + segments * self._buckets
        return first, second

    @staticmethod
    def _segments_of(hashes: _Words, count: int) -> _Indexes:
        """SEGMENT_OF of bpf/table.h, in a table of `count` segments."""
        return (hashes >> np.uint64(12) & np.uint64(count - 1)).astype(np.int64)

    def _find(self, words: _Words, networks: _Numbers, hashes: _Words) -> tuple[_Indexes, _Indexes]:
        """Bucket and slot of each key's entry; bucket -1: it isn't there."""
        homes = self._homes(hashes, self._segments_of(hashes, self._segment_count))
        found = np.full(len(words), -1, np.int64)
        slots = np.zeros(len(words), np.int64)
        for start in range(0, len(words), _CHUNK):
            left = np.arange(start, min(start + _CHUNK, len(words)))
            for home in homes:
                buckets = home[left]
                same = (self._entries[buckets][:, :, :-1] == words[left][:, None]).all(axis=2)
                same &= self._networks[buckets] == networks[left][:, None]
                same &= self._numbers[buckets].view(np.int32) > 0
                hit = same.any(axis=1)
                found[left[hit]] = buckets[hit]
                slots[left[hit]] = same[hit].argmax(axis=1)
                left = left[~hit]
        return found, slots

    def _gather(self, segments: _Indexes) -> tuple[_Words, _Numbers, _Numbers, _Words]:
        """Words, network, next hop and hash of all entries of segments.

        Growth that was interrupted leaves entries behind which programs look for elsewhere: they don't count.
        """
        buckets = (segments[:, None] * self._buckets + np.arange(self._buckets)).reshape(-1)
        if len(buckets) == self._segment_count * self._buckets:
            here: Any = slice(0, len(buckets))
        else:
            here = buckets
        numbers = self._numbers[here]
        in_use = numbers.view(np.int32) > 0
        rows, slots = np.nonzero(in_use)
        places = buckets[rows]
        words = self._entries[places, slots, :-1]
        networks, numbers = self._networks[places, slots], numbers[rows, slots]
        hashes = self._hash(words, networks)
        right = self._segments_of(hashes, self._segment_count) == places // self._buckets
        if not right.all():
            words, networks, numbers, hashes = words[right], networks[right], numbers[right], hashes[right]
        return words, networks, numbers, hashes

    def _add(self, words: _Words, lasts: _Words, hashes: _Words) -> None:
        """New entries; `lasts` are their networks and next hops."""
        is_widest = self._segment_count == self._open.capacity
        if is_widest or len(words) > _MANY:
            entries = self.entry_count() + len(words)
            if entries > self.max_entries:
                raise self._full()
            if not is_widest and entries > self._segment_count * self._per_segment * _COMFORTABLE:
                self._grow(words, lasts, hashes)
                return
        left = self._add_in_place(words, lasts, hashes)
        if len(left):
            self._make_room(words[left], lasts[left], hashes[left])

    def _add_in_place(self, words: _Words, lasts: _Words, hashes: _Words) -> _Indexes:
        """Put entries into slots that were never used; those that found none are returned."""
        left = np.arange(len(words))
        for home in self._homes(hashes, self._segments_of(hashes, self._segment_count)):
            left = left[np.argsort(home[left], kind="stable")]
            buckets = home[left]
            free = self._numbers[buckets] == _FREE
            place = free & (np.cumsum(free, axis=1) == _ranks(buckets)[:, None] + 1)
            fits = place.any(axis=1)
            chosen, buckets = left[fits], buckets[fits]
            slots = place[fits].argmax(axis=1)
            self._entries[buckets, slots, :-1] = words[chosen]
            order_stores()
            self._entries[buckets, slots, -1] = lasts[chosen]
            left = left[~fits]
        return left

    def _make_room(self, words: _Words, lasts: _Words, hashes: _Words) -> None:
        """Add entries for which there is no room where they belong: their segments are made anew."""
        count = self._segment_count
        segments = self._segments_of(hashes, count)
        used, _dense = np.unique(segments, return_inverse=True)
        present = self._gather(used)
        all_words, all_lasts, all_hashes = _joined(present, words, lasts, hashes)
        where = np.searchsorted(used, self._segments_of(all_hashes, count))
        loads = np.bincount(where, minlength=len(used))
        is_widest = count == self._open.capacity
        if loads.max() <= self._per_segment * (1 if is_widest else _COMFORTABLE + 0.05):
            placed = self._place(all_hashes, where, len(used))
            if placed is not None:
                with self._open.create(len(used)) as new:
                    self._fill(new.bytes, placed, all_words, all_lasts)
                    self._open.publish(dict(zip(used.tolist(), new.descriptors, strict=True)))
                self._refresh()
                return
        if is_widest:
            raise self._full()
        self._grow(words, lasts, hashes)

    def _grow(self, words: _Words, lasts: _Words, hashes: _Words) -> None:
        """Add entries to a table that gets more segments for them."""
        before = self._segment_count
        present = self._gather(np.arange(before))
        words, lasts, hashes = _joined(present, words, lasts, hashes)
        if len(words) > self.max_entries:
            raise self._full()
        count = 1
        while count < before or len(words) > count * self._per_segment * _COMFORTABLE:
            if count == self._open.capacity:
                break
            count *= 2
        while (placed := self._place(hashes, self._segments_of(hashes, count), count)) is None:
            count *= 2
            if count > self._open.capacity:
                raise self._full()
        with self._open.create(count) as new:
            self._fill(new.bytes, placed, words, lasts)
            fds = dict(enumerate(new.descriptors))
            if count > before:
                self._open.publish({number: fd for number, fd in fds.items() if number >= before})
                self._head[0] = count - 1
                self._open.wait_for_programs()  # from here on all look among `count` segments
            self._open.publish({number: fd for number, fd in fds.items() if number < before})
        self._refresh()

    def _fill(
        self, segments: _Bytes, placed: tuple[_Indexes, _Indexes], words: _Words, lasts: _Words
    ) -> None:
        """Write entries into segments that nobody sees yet."""
        entries = np.lib.stride_tricks.as_strided(
            segments.view(np.uint64),
            (len(segments) // self._entries.strides[0], *self._entries.shape[1:]),
            self._entries.strides,
        )
        buckets, slots = placed
        entries[buckets, slots, :-1] = words
        entries[buckets, slots, -1] = lasts

    def _place(self, hashes: _Words, segments: _Indexes, count: int) -> tuple[_Indexes, _Indexes] | None:
        """A bucket and slot for each entry of empty segments; None: they don't all fit."""
        homes = self._homes(hashes, segments)
        owners = np.full((count * self._buckets, self._slots), -1, np.int64)
        fill = np.zeros(len(owners), np.int64)
        left = np.arange(len(hashes))
        for home in homes:
            left = left[np.argsort(home[left], kind="stable")]
            buckets = home[left]
            slots = fill[buckets] + _ranks(buckets)
            fits = slots < self._slots
            owners[buckets[fits], slots[fits]] = left[fits]
            fill += np.bincount(buckets[fits], minlength=len(fill))
            left = left[~fits]
        if len(left) > max(len(hashes) // 4, self._slots * 2) or not _move_in(owners, homes, left.tolist()):
            return None
        buckets, slots = np.nonzero(owners >= 0)
        placed = np.empty((2, len(hashes)), np.int64)
        placed[:, owners[buckets, slots]] = buckets, slots
        return placed[0], placed[1]

    # ---- prefix lengths ----

    def _shorter(self, keys: _Bytes) -> _Indexes:
        """By how many bits each prefix is shorter than an address."""
        at = cast(int, self._length_at)
        lengths = np.ascontiguousarray(keys[:, at : at + 4]).view(np.uint32).reshape(-1).astype(np.int64)
        if len(lengths) and lengths.max() > self._address_bits:
            raise ValueError(f"{self.name}: no prefix is {lengths.max()} bits long")
        return self._address_bits - lengths

    def _add_lengths(self, keys: _Bytes) -> None:
        for shorter in np.unique(self._shorter(keys)).tolist():
            self._head[1 + shorter // 64] |= np.uint64(1 << shorter % 64)

    def _drop_lengths(self, removed: _Bytes) -> None:
        """Let programs look for no length that is gone with these keys.

        Segments are looked at until there is another prefix of each length, which is soon where there are many; a
        count of them would have to be kept right by every writer. A superset, as a killed process leaves it, does no
        harm.
        """
        sought = {*np.unique(self._shorter(removed)).tolist()}
        found: set[int] = set()
        for segment in range(self._segment_count):
            found |= self._lengths_in(segment)
            if sought <= found:
                return
        words = [0, 0, 0]
        for shorter in found:
            words[shorter // 64] |= 1 << shorter % 64
        for at, word in enumerate(words):
            self._head[1 + at] = word

    def _lengths_in(self, segment: int) -> set[int]:
        """By how many bits the prefixes of a segment are shorter than an address."""
        buckets = slice(segment * self._buckets, (segment + 1) * self._buckets)
        in_use = self._numbers[buckets].view(np.int32) > 0
        lengths = np.flatnonzero(np.bincount(self._lengths[buckets][in_use]))
        return {*(self._address_bits - lengths).tolist()}


def _joined(
    present: tuple[_Words, _Numbers, _Numbers, _Words], words: _Words, lasts: _Words, hashes: _Words
) -> tuple[_Words, _Words, _Words]:
    halves = np.stack((present[1], present[2]), axis=1)
    return (
        np.concatenate((present[0], words)),
        np.concatenate((halves.view(np.uint64)[:, 0], lasts)),
        np.concatenate((present[3], hashes)),
    )


def _ranks(sorted_numbers: _Indexes) -> _Indexes:
    """How many equal ones are before each, in an array that is sorted."""
    at = np.arange(len(sorted_numbers))
    is_first = np.ones(len(at), bool)
    is_first[1:] = sorted_numbers[1:] != sorted_numbers[:-1]
    return at - np.maximum.accumulate(np.where(is_first, at, 0))


def _move_in(owners: _Indexes, homes: tuple[_Indexes, _Indexes], newcomers: Sequence[int]) -> bool:
    """Find places for entries whose two buckets are full, by moving others to their second ones (cuckoo hashing).

    False: one found none, and `owners` is of no use any more.
    """
    rng = random.Random(0)
    for newcomer in newcomers:
        moving, avoided = newcomer, -1
        for _ in range(_KICKS):
            both = [int(home[moving]) for home in homes]
            free = [(bucket, slot) for bucket in both for slot in np.flatnonzero(owners[bucket] < 0)]
            if free:
                owners[free[0]] = moving
                break
            bucket = rng.choice([each for each in both if each != avoided] or both)
            slot = rng.randrange(owners.shape[1])
            moving, owners[bucket, slot] = int(owners[bucket, slot]), moving
            avoided = bucket
        else:
            return False
    return True


def _mix(pairs: _Words) -> _Words:
    mixed: _Words = pairs[:, 0] * np.uint64(_WORD_FACTORS[0]) + pairs[:, 1] * np.uint64(_WORD_FACTORS[1])
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _unique(pairs: _Words) -> tuple[_Words, _Indexes]:
    """The different ones, and which of them each is."""
    if len(pairs) == 1:
        return pairs, np.zeros(1, np.int64)
    _, first, inverse = np.unique(_mix(pairs), return_index=True, return_inverse=True)
    unique = pairs[first]
    if not (unique[inverse] == pairs).all():  # two have the same hash
        unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
    return unique, inverse.reshape(-1)


def _last_of_each(keys: _Bytes) -> _Indexes:
    """Where each key stands last."""
    return np.array(sorted({key: at for at, key in enumerate(_cut(keys))}.values()), np.int64)


def _cut(rows: _Bytes) -> list[bytes]:
    data, size = rows.tobytes(), rows.shape[1]
    return [data[at : at + size] for at in range(0, len(data), size)]
