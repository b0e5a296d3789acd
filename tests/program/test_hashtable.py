# SPDX-License-Identifier: GPL-2.0-only
"""Tables that the control plane lays out itself: what the writer writes, and what programs find."""

from __future__ import annotations

import gc
import ipaddress
import itertools
import os
import random
import re
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from world import GATEWAY_MAC, OUR_MAC, World

from mptm.errors import TableFull
from mptm.intent import Route
from mptm.kernel import hashtable, libbpf
from mptm.kernel.hashtable import TABLES, HashTable
from mptm.kernel.objects import DATA_PLANE, object_path

SMALL = 4
"""Segments that the tables of these tests may have, so that they are full soon."""


class Loaded:
    """The programs and maps of an object, not pinned."""

    def __init__(self) -> None:
        with libbpf.Object(object_path(DATA_PLANE)) as loading:
            loading.load()
            self.programs = loading.program_fds()
            self.maps = hashtable.open_maps(loading.map_fds())

    def table(self, name: str) -> HashTable:
        return cast(HashTable, self.maps[name])

    def again(self) -> dict[str, Any]:
        """The maps as another process has them."""
        return hashtable.open_maps({name: os.dup(each.fd) for name, each in self.maps.items()})


@pytest.fixture
def loaded() -> Loaded:
    return Loaded()


def numbered(table: HashTable, numbers: Any) -> np.ndarray:
    """A key for each number."""
    numbers = np.asarray(numbers, np.uint32)
    keys = np.zeros((len(numbers), table.key.size), np.uint8)
    halves = keys.view(np.uint32)
    halves[:, 0] = numbers.byteswap()
    halves[:, -1] = 7
    if "prefix" in table.name:
        halves[:, 1 if table.name.endswith("v4") else 4] = 32
    return keys


def hops(ids: Any) -> np.ndarray:
    ids = np.asarray(ids, np.uint32)
    values = np.zeros((len(ids), 12), np.uint8)
    values[:, 0] = 2
    values.view(np.uint32)[:, 2] = ids
    return values


def as_dict(keys: np.ndarray, values: np.ndarray) -> dict[bytes, bytes]:
    return {key.tobytes(): value.tobytes() for key, value in zip(keys, values, strict=True)}


@pytest.mark.parametrize("name", TABLES)
def test_many_entries_are_written_found_changed_and_deleted(loaded: Loaded, name: str) -> None:
    table = loaded.table(name)
    keys, values = numbered(table, range(30_000)), hops(np.arange(30_000) % 77)
    table.update_many(keys, values)
    assert table.items() == as_dict(keys, values)
    assert table.get(keys[12_345].tobytes()) == values[12_345].tobytes()
    assert table.get(numbered(table, [30_000])[0].tobytes()) is None
    table.update_many(keys[::2], hops(np.full(15_000, 99)))
    table.delete_many(keys[1::2])
    assert table.items() == as_dict(keys[::2], hops(np.full(15_000, 99)))
    assert loaded.again()[name].items() == table.items(), "another process sees the same"
    table.delete_many(keys)
    assert table.items() == {}


def test_a_table_grows_entry_by_entry(loaded: Loaded) -> None:
    table = loaded.table("flows_v6")
    keys, values = numbered(table, range(20_000)), hops(range(20_000))
    for start in range(0, 20_000, 500):
        table.update_many(keys[start : start + 500], values[start : start + 500])
    assert table.items() == as_dict(keys, values)


def test_slots_are_used_again_after_what_was_in_them_was_deleted(loaded: Loaded) -> None:
    table = loaded.table("hosts_v4")
    for start in range(0, 120_000, 4000):
        keys = numbered(table, range(start, start + 4000))
        table.update_many(keys, hops(np.full(4000, start)))
        assert table.items() == as_dict(keys, hops(np.full(4000, start)))
        table.delete_many(keys)
    assert int(table._head[0]) == 0, "4000 at a time fit one segment"


def test_next_hops_that_no_entry_has_any_more_make_room_for_others(loaded: Loaded) -> None:
    table = loaded.table("hosts_v4")
    keys = numbered(table, range(1000))
    for start in range(0, 140_000, 1000):
        table.update_many(keys, hops(range(start, start + 1000)))
        assert table.items() == as_dict(keys, hops(range(start, start + 1000)))
    assert table._next_hops._count == table._next_hops._segments.fixed, "there is room without a segment"


def test_next_hops_beyond_the_first_ones_stand_in_segments(loaded: Loaded) -> None:
    table = loaded.table("hosts_v4")
    keys = numbered(table, range(80_000))
    table.update_many(keys, hops(range(80_000)))
    assert table._next_hops._count > table._next_hops._segments.fixed
    assert table.items() == as_dict(keys, hops(range(80_000)))
    again = cast(HashTable, loaded.again()["hosts_v4"])
    assert again.items() == as_dict(keys, hops(range(80_000)))
    again.close()


def test_the_last_of_equal_keys_counts(loaded: Loaded) -> None:
    table = loaded.table("hosts_v6")
    keys = numbered(table, [1, 2, 1, 3, 1])
    table.update_many(keys, hops([10, 20, 30, 40, 50]))
    assert table.items() == as_dict(keys[[4, 1, 3]], hops([50, 20, 40]))


def test_a_full_table_says_so_and_keeps_what_it_has(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    table = loaded.table("flows_v6")
    table._open.capacity = SMALL
    table.max_entries = SMALL * 2048 * 3 * 3 // 4
    keys = numbered(table, range(table.max_entries))
    table.update_many(keys, hops(np.ones(len(keys))))
    with pytest.raises(TableFull, match=f"flows_v6 is full: it has room for {table.max_entries} entries"):
        table.update_many(numbered(table, range(1 << 20, (1 << 20) + 5000)), hops(np.ones(5000)))
    assert table.items().keys() >= {key.tobytes() for key in keys}


def keys_with_equal_hashes(table: HashTable, count: int) -> np.ndarray:
    """Keys that all belong into one bucket: words that the hash takes together are changed so that it stays."""
    first, second = hashtable._WORD_FACTORS[:2]
    inverse = pow(second, -1, 1 << 64)
    keys = np.zeros((count, table.key.size), np.uint8)
    for number in range(count):
        words = (number, -number * first * inverse % (1 << 64))
        keys[number, -4] = 7
        keys[number, :16] = np.frombuffer(struct.pack("=QQ", *words), np.uint8)
    return keys


def test_more_keys_of_one_hash_than_there_are_slots_are_refused_and_the_rest_is_found(loaded: Loaded) -> None:
    table = loaded.table("hosts_v6")
    keys = keys_with_equal_hashes(table, 11)
    assert len(np.unique(table._hash(*table._split_keys(keys)))) == 1
    table.update_many(keys[:10], hops(range(10)))
    assert table.items() == as_dict(keys[:10], hops(range(10)))
    table._open.capacity = SMALL
    with pytest.raises(TableFull):
        table.update_many(keys[10:], hops([10]))
    assert table.items() == as_dict(keys[:10], hops(range(10)))


@pytest.fixture(scope="module")
def fuzzed() -> Loaded:
    return Loaded()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(TABLES),
    st.lists(
        st.tuples(
            st.sampled_from(("update", "delete", "reopen")),
            st.lists(st.integers(0, 300), max_size=40),
            st.integers(0, 5),
        ),
        max_size=25,
    ),
)
def test_a_table_is_a_dict(fuzzed: Loaded, name: str, steps: list[tuple[str, list[int], int]]) -> None:
    table = fuzzed.table(name)
    table.delete(table.items())
    wanted: dict[bytes, bytes] = {}
    for step, numbers, hop in steps:
        keys = numbered(table, np.array(numbers, np.uint32))
        if step == "update":
            values = hops(np.full(len(keys), hop) + np.arange(len(keys)) % 3)
            table.update_many(keys, values)
            wanted |= as_dict(keys, values)
        elif step == "delete":
            table.delete_many(keys)
            for key in keys:
                wanted.pop(key.tobytes(), None)
        else:
            table = fuzzed.again()[name]
        assert table.items() == wanted
        for key in keys[:3]:
            assert table.get(key.tobytes()) == wanted.get(key.tobytes())


# ---- memory -----------------------------------------------------------------------------------------------

TABLES_MD = Path(__file__).resolve().parents[2] / "docs" / "tables.md"
MEMORY = [
    ([name.strip("` ") for name in names.split(",")], [float(cell.replace(" ", "")) for cell in cells])
    for row in re.findall(r"^\|(.*\| [\d.]+ to .*)\|$", TABLES_MD.read_text(), re.MULTILINE)
    for names, *cells in [row.replace(" to ", "|").split("|")]
]


@pytest.mark.parametrize(("names", "figures"), MEMORY, ids=[names[0] for names, _ in MEMORY])
def test_entries_take_the_memory_that_is_documented(
    loaded: Loaded, names: list[str], figures: list[float]
) -> None:
    """At each step of its growth, as a table is filled in small pieces and in large ones."""
    least, most, of_million, all_bytes, of_full, room = figures
    for name in names:
        table = loaded.table(name)
        full_bytes = table._open.capacity * table._open.layout.size
        assert (table.max_entries, round(full_bytes / table.max_entries, 1)) == (room, of_full)
    assert table.memory_bytes() == 0
    sizes = []
    for start in [*range(0, 40_000, 1000), 40_000, 100_000, 250_000]:
        end = {40_000: 100_000, 100_000: 250_000, 250_000: 10**6}.get(start, start + 1000)
        keys = numbered(table, range(start, end))
        before = table.memory_bytes()
        table.update_many(keys, hops(np.ones(len(keys))))
        if before not in (0, table.memory_bytes()):
            sizes += [before / start, table.memory_bytes() / end]
    assert least <= min(sizes[:-1]) and max(sizes) <= most
    assert (table.entry_count(), table.memory_bytes()) == (10**6, all_bytes)
    assert of_million == round(all_bytes / 10**6, 1)


def test_every_table_has_its_memory_documented() -> None:
    assert sorted(name for names, _ in MEMORY for name in names) == sorted(TABLES)


# ---- which lengths prefixes have --------------------------------------------------------------------------


def prefixes(table: HashTable, numbers: Any, lengths: Any) -> np.ndarray:
    """Keys of these lengths, which needn't be right addresses."""
    keys = numbered(table, numbers)
    keys.view(np.uint32)[:, cast(int, table._length_at) // 4] = lengths
    return keys


def lengths_looked_for(table: HashTable) -> set[int]:
    """What stands in the table's head, as lengths."""
    words = [int(word) for word in table._head[1:4]]
    return {table._address_bits - bit for bit in range(192) if words[bit // 64] >> bit % 64 & 1}


def lengths_there(table: HashTable) -> set[int]:
    """Those of the entries, one by one."""
    return {table.key.unpack(key)["prefix_len"] for key in table.items()}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(("prefixes_v4", "prefixes_v6")),
    st.lists(
        st.tuples(
            st.sampled_from(("add", "add", "delete", "delete", "grow", "reopen")),
            st.lists(st.tuples(st.integers(0, 3), st.sampled_from((0, 24, 31))), max_size=8),
            st.integers(0, 1),
        ),
        max_size=20,
    ),
)
def test_programs_look_for_the_lengths_that_there_are(
    fuzzed: Loaded, name: str, steps: list[tuple[str, list[tuple[int, int]], int]]
) -> None:
    """Whoever of two processes adds and removes them."""
    fuzzed.table(name).delete(fuzzed.table(name).items())
    writers = [fuzzed.table(name), cast(HashTable, fuzzed.again()[name])]
    for step, pairs, writer in steps:
        table = writers[writer]
        keys = prefixes(table, [number for number, _ in pairs], [length for _, length in pairs])
        if step == "add":
            table.update_many(keys, hops(np.full(len(keys), 1)))
        elif step == "delete":
            table.delete_many(keys)
        elif step == "grow":
            many = prefixes(table, range(1000, 10_000), np.arange(9000) % 3 + 20)
            table.update_many(many, hops(np.full(len(many), 1)))
            assert lengths_looked_for(table) == lengths_there(table)
            table.delete_many(many)
        else:
            writers[writer] = cast(HashTable, fuzzed.again()[name])
        assert lengths_looked_for(table) == lengths_there(table)


def test_a_prefix_of_many_is_removed_without_looking_at_all(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = loaded.table("prefixes_v4")
    keys = prefixes(table, range(60_000), 24)
    keys = np.concatenate((keys, prefixes(table, range(3), 16)))
    table.update_many(keys, hops(np.full(len(keys), 1)))
    looked_at: list[int] = []
    look = HashTable._lengths_in
    monkeypatch.setattr(
        HashTable, "_lengths_in", lambda self, segment: looked_at.append(segment) or look(self, segment)
    )
    table.delete_many(keys[:1])
    assert looked_at == [0], "another one is in the first segment"
    looked_at.clear()
    table.delete_many(keys[60_000:])
    assert looked_at == [*range(table._segment_count)], "that there is none is seen at the end"
    assert lengths_looked_for(table) == {24}


def test_a_length_that_a_killed_process_left_is_looked_for_no_longer_than_needed(loaded: Loaded) -> None:
    table = loaded.table("prefixes_v6")
    keys = prefixes(table, range(3), [64, 64, 48])
    table.update_many(keys, hops([1, 1, 1]))
    table._add_lengths(prefixes(table, [9], 0))
    assert lengths_looked_for(table) == {64, 48, 0}
    table.delete_many(keys[:1])
    table.delete_many(keys[2:])
    assert lengths_looked_for(table) == {64}


# ---- writers that were interrupted ------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(1, 7))
def test_growth_that_was_interrupted_is_no_loss_and_goes_on(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At every system call that growth makes."""
    table = loaded.table("flows_v6")
    keys = numbered(table, range(4000))
    table.update_many(keys, hops(range(4000)))
    calls = itertools.count(1)
    publish = type(table._open)._publish

    def dying(self: Any, entries: Any) -> None:
        if next(calls) == step:
            raise Killed
        publish(self, entries)

    monkeypatch.setattr(type(table._open), "_publish", dying)
    more = numbered(table, range(4000, 60_000))
    done = True
    try:
        table.update_many(more, hops(range(4000, 60_000)))
    except Killed:
        done = False
    monkeypatch.undo()
    survivor = loaded.again()["flows_v6"]
    found = survivor.items()
    assert as_dict(keys, hops(range(4000))).items() <= found.items()
    assert done or found.items() <= as_dict(np.concatenate((keys, more)), hops(range(60_000))).items()
    survivor.update_many(more, hops(range(4000, 60_000)))
    assert survivor.items() == as_dict(np.concatenate((keys, more)), hops(range(60_000)))
    survivor.delete_many(keys)
    assert survivor.items() == as_dict(more, hops(range(4000, 60_000)))


def test_a_table_that_was_never_opened_fully_is_let_go_of_in_silence(loaded: Loaded) -> None:
    half_made = HashTable.__new__(HashTable)
    del half_made
    window = hashtable.Window.__new__(hashtable.Window)
    del window
    gc.collect()


def test_stores_are_ordered_by_membarrier_where_the_machine_does_not(loaded: Loaded) -> None:
    libbpf.memory_barrier()
    libbpf.memory_barrier()


# ---- what programs find -------------------------------------------------------------------------------------


def packet(destination: str) -> Packet:
    address = ipaddress.ip_address(destination)
    network = (
        IP(src="10.250.1.100", dst=destination)
        if address.version == 4
        else IPv6(src="fd00:250:1::100", dst=destination)
    )
    return Ether(src=OUR_MAC, dst=GATEWAY_MAC) / network / UDP(sport=1, dport=2)


@pytest.mark.parametrize("version", [4, 6])
def test_programs_find_the_longest_prefix_that_covers_an_address(node: World, version: int) -> None:
    """Of random prefixes of every length, as Python's ipaddress says: dropped by a route, or left to the kernel."""
    rng = random.Random(version)
    bits = 32 if version == 4 else 128
    base = int(ipaddress.ip_address("10.0.0.0" if version == 4 else "fd00::"))
    network_type = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    routes: dict[Any, bool] = {}
    for length in [*range(bits + 1)] * 2:
        spread = rng.getrandbits(bits) & ((1 << (bits - 8)) - 1)
        if rng.random() < 0.7:
            spread &= 0b1011 << (bits - 20) | 0b101 << (bits // 2 - 4) | 0b11
        prefix = network_type(((base | spread) >> (bits - length) << (bits - length), length))
        routes[prefix] = rng.random() < 0.5
    node.apply(
        *(
            Route(network="blue", prefix=str(prefix), **({"drop": True} if drops else {"port": "c2"}))
            for prefix, drops in routes.items()
        )
    )
    for _ in range(300):
        near = rng.choice(list(routes))
        address = network_type((int(near.network_address), bits)).network_address + (
            rng.getrandbits(bits - near.prefixlen) if near.prefixlen < bits else 0
        )
        if (
            address.is_multicast
            or address.is_loopback
            or address.is_link_local
            or int(address) >> (bits - 4) >= 0xE
        ):
            continue
        covering = max((each for each in routes if address in each), key=lambda each: each.prefixlen)
        result = node.send("c1", packet(str(address)))
        assert result.verdict == ("DROP" if routes[covering] else "REDIRECT"), (address, covering)
