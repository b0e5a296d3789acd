# SPDX-License-Identifier: GPL-2.0-only
"""Programs look into tables on one CPU while they are written on another: nobody gets what is another key's.

The value of every key tells the key, twice. A program looks for keys at random, as fast as it can, and compares.
Segments are small here, so that they are made anew, and tables grow, many times a second.
MPTM_RACE_SECONDS=60 makes it longer.
"""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mptm.kernel import hashtable, libbpf, testrun
from mptm.kernel.hashtable import HashTable
from mptm.kernel.maps import Map

ROOT = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("MPTM_RACE_SECONDS", "3"))
NETWORK = 7
STABLE, ALL = 1 << 10, 1 << 15
"""Keys below the first are always there, and change; others come and go."""

WRITER = min(os.sched_getaffinity(0))
READERS = os.sched_getaffinity(0) - {WRITER} or {WRITER}
LOOKUPS = 64
HELD_UP_NS = 200_000_000
REPEAT = 500

PROGRAM = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "maps.h"
char LICENSE[] SEC("license") = "GPL";

/* Where a program stops for a while, once, and whether it did. */
struct gate {
	__u32 where, key, reached;
};
TABLE_ARRAY(gates, BPF_MAP_TYPE_ARRAY, 1, struct gate);

static long wait_until(__u32 index, __u64 *until)
{
	return bpf_ktime_get_ns() > *until;
}

static __noinline int stop_at(__u32 where)
{
	__u32 zero = 0;
	struct gate *gate = bpf_map_lookup_elem(&gates, &zero);
	__u64 until = bpf_ktime_get_ns() + HELD_UP_NS;

	if (!gate || gate->where != where)
		return 0;
	gate->where = 0;
	gate->reached = 1;
	bpf_loop(1 << 22, wait_until, &until, 0);
	return 0;
}

#include "table.h"

struct verdicts {
	__u64 found, absent, wrong, missed;
};
TABLE_ARRAY(verdicts, BPF_MAP_TYPE_PERCPU_ARRAY, 1, struct verdicts);

/* A global function: the verifier goes through it once, not once for each turn of a loop. */
__noinline int check(__u32 number)
{
	__u32 zero = 0;
	struct verdicts *verdicts = bpf_map_lookup_elem(&verdicts_map, &zero);
	struct ip_address address = {{bpf_htonl(number)}}, nowhere = {};
	struct next_hop *next_hop;
	__u32 found;

	(void)address;
	(void)nowhere;
	if (!verdicts)
		return 0;
	found = FIND_IT;
	stop_at(5);
	next_hop = next_hop_at(found);
	if (!next_hop) {
		if (found)
			verdicts->wrong++;
		else if (number < STABLE)
			verdicts->missed++;
		else
			verdicts->absent++;
		return 0;
	}
	if (next_hop->id >> 12 != number || *(volatile __u32 *)&next_hop->mac[2] >> 12 != number)
		verdicts->wrong++;
	else
		verdicts->found++;
	return 0;
}

/* Many keys at random. */
SEC("xdp") int look(struct xdp_md *ctx)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < LOOKUPS; i++) {
		__u32 random = bpf_get_prandom_u32();

		check(random % (random >> 31 ? STABLE : ALL));
	}
	return XDP_PASS;
}

/* The key in `gates`. */
SEC("xdp") int look_once(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct gate *gate = bpf_map_lookup_elem(&gates, &zero);

	if (gate)
		check(gate->key);
	return XDP_PASS;
}
""".replace("verdicts_map", "race_verdicts").replace("TABLE_ARRAY(verdicts,", "TABLE_ARRAY(race_verdicts,")

FIND = {
    "hosts_v4": "find_host_v4(7, address.words[0])",
    "flows_v4": "find_flow_v4(7, address.words[0], 0)",
    "prefixes_v4": "find_prefix_v4(address.words[0], 7)",
    "flows_v6": "find_flow_v6(&address, &nowhere, 7)",
}


def keys_of(table: HashTable, numbers: np.ndarray) -> np.ndarray:
    keys = np.zeros((len(numbers), table.key.size), np.uint8)
    halves = keys.view(np.uint32)
    halves[:, 0] = numbers.astype(np.uint32).byteswap()
    halves[:, -1] = NETWORK
    if "prefix" in table.name:
        halves[:, 1] = 32
    return keys


def values_of(numbers: np.ndarray, version: int) -> np.ndarray:
    """The number in two fields, each with bits that differ from one version to the next."""
    values = np.zeros((len(numbers), 12), np.uint8)
    values[:, 0] = 2
    halves = values.view(np.uint32)
    halves[:, 1] = halves[:, 2] = numbers.astype(np.uint32) << 12 | version & 0xFFF
    return values


class Race:
    """One object's tables, written here and looked into by a thread in the kernel."""

    def __init__(self, path: Path, name: str) -> None:
        with libbpf.Object(path) as loading:
            loading.load()
            self.programs = loading.program_fds()
            self.maps = hashtable.open_maps(loading.map_fds())
        table = self.maps[name]
        assert isinstance(table, HashTable)
        self.table = table
        self.verdicts: Map = self.maps["race_verdicts"]
        self.version = 0

    def look(self, stop: threading.Event) -> None:
        """On any CPU but the writer's."""
        os.sched_setaffinity(0, READERS)
        while not stop.is_set():
            testrun.run(self.programs["look"], bytes(64), repeat=REPEAT)

    def write(self, numbers: np.ndarray) -> None:
        self.version += 1
        self.table.update_many(keys_of(self.table, numbers), values_of(numbers, self.version))

    def remove(self, numbers: np.ndarray) -> None:
        self.table.delete_many(keys_of(self.table, numbers))

    def look_once(self, number: int, where: int = 0) -> dict[str, int]:
        """Let a program look for a key, and stop for a while at `where`; returns what it found."""
        before = self.counts()
        self.maps["gates"].update({bytes(4): struct.pack("=III", where, number, 0)})
        testrun.run(self.programs["look_once"], bytes(64))
        return {verdict: count - before[verdict] for verdict, count in self.counts().items()}

    def is_stopped(self) -> bool:
        return struct.unpack("=III", self.maps["gates"].get(bytes(4)) or bytes(12))[2] == 1

    def counts(self) -> dict[str, int]:
        return self.verdicts.totals(bytes(4))

    def close(self) -> None:
        for each in self.maps.values():
            each.close()
        for fd in self.programs.values():
            os.close(fd)


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory, clang: Callable[..., Path]) -> Callable[[str], Path]:
    """The program that looks into one table, with segments of 64 KB."""

    @cache
    def build(name: str) -> Path:
        tmp_path = tmp_path_factory.mktemp(name)
        for header in ("abi.h", "maps.h", "table.h"):
            text = (ROOT / "bpf" / header).read_text()
            small = text.replace(
                "#define MPTM_SEGMENT_BYTES (1 << 18)", "#define MPTM_SEGMENT_BYTES (1 << 16)"
            )
            small = small.replace("last = entry[count];", "stop_at(3); last = entry[count]; stop_at(4);")
            directory = "void *directory = LOOKUP(&(table), &at);"
            small = small.replace(directory, f"__u32 unused = stop_at(1); {directory} unused += stop_at(2);")
            assert (small != text) == (header != "maps.h")
            (tmp_path / header).write_text(small)
        flags = [f"-DFIND_IT={FIND[name]}", f"-DSTABLE={STABLE}", f"-DALL={ALL}", f"-DLOOKUPS={LOOKUPS}"]
        flags.append(f"-DHELD_UP_NS={HELD_UP_NS}")
        return clang(tmp_path / "check.o", PROGRAM, *flags, f"-I{tmp_path}", f"-I{ROOT / 'bpf'}")

    return build


@pytest.mark.parametrize("name", FIND)
def test_no_key_gets_the_next_hop_of_another_and_none_that_stays_is_missed(
    checker: Callable[[str], Path], name: str
) -> None:
    path, rng, total = (
        checker(name),
        random.Random(0),
        dict.fromkeys(("found", "absent", "wrong", "missed"), 0),
    )
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {WRITER})
    end = time.monotonic() + SECONDS
    grown = renewed = cycles = 0
    try:
        while time.monotonic() < end:
            race, stop = Race(path, name), threading.Event()
            race.write(np.arange(STABLE))
            looking = threading.Thread(target=race.look, args=(stop,))
            looking.start()
            try:
                until = min(end, time.monotonic() + 1)
                while time.monotonic() < until:
                    ids = race.table._open.ids(1)
                    size = rng.choice((1, 3, 10, 30, 100))
                    volatile = np.array(rng.sample(range(STABLE, ALL), size))
                    race.write(volatile)
                    race.write(np.array(rng.sample(range(STABLE), min(size, 100))))
                    race.remove(volatile[: size * 2 // 3])
                    cycles += 1
                    renewed += race.table._open.ids(1) != ids
                race.write(np.arange(STABLE, ALL))
                grown += race.table._segment_count > 1
            finally:
                stop.set()
                looking.join()
            for verdict, count in race.counts().items():
                total[verdict] += count
            race.close()
    finally:
        os.sched_setaffinity(0, affinity)
    print(f"{name}: {total}, {cycles} cycles, {grown} tables grown, segments renewed {renewed} times")
    assert (total["wrong"], total["missed"]) == (0, 0), total
    assert total["found"] > 1000 * SECONDS
    assert total["absent"] > 1000 * SECONDS
    assert grown


GATES = {
    1: "where the segment is looked up, as many as there were when it began",
    2: "with a segment in hand",
    3: "at an entry with the key, without its next hop",
    4: "at an entry with its next hop",
    5: "with the number of the next hop",
}


def neighbours_of(table: HashTable, number: int, count: int) -> np.ndarray:
    """Numbers whose first bucket is that of a number, while there is one segment."""
    numbers = np.append(np.uint32(number), np.arange(STABLE, ALL * 2, dtype=np.uint32))
    hashes = table._hash(*table._split_keys(keys_of(table, numbers)))
    homes, _ = table._homes(hashes, np.zeros(len(numbers), np.int64))
    return numbers[1:][homes[1:] == homes[0]][:count]


@pytest.mark.parametrize("removes", [False, True], ids=["stays", "removed"])
@pytest.mark.parametrize("gate", GATES, ids=GATES.get)
@pytest.mark.parametrize("name", ["hosts_v4", "flows_v6"])
def test_a_program_that_is_held_up_anywhere_gets_its_own_next_hop(
    checker: Callable[[str], Path], name: str, gate: int, removes: bool
) -> None:
    """While it is, its entry changes or goes, its neighbours take the room, next hops turn over, the table grows."""
    race = Race(checker(name), name)
    key, others = 5, np.arange(STABLE, STABLE + 900)
    neighbours = neighbours_of(race.table, key, 4)
    race.write(np.array([key]))
    race.write(others)
    verdicts: list[dict[str, int]] = []
    looking = threading.Thread(target=lambda: verdicts.append(race.look_once(key, gate)))
    looking.start()
    try:
        while looking.is_alive() and not race.is_stopped():
            time.sleep(0.001)
        assert race.is_stopped(), "it came to where it is to stop"
        if removes:
            race.remove(np.array([key]))
            race.write(neighbours)
        else:
            race.write(np.array([key]))
        for _ in range(5):
            race.write(others)
        race.write(np.arange(STABLE, ALL))
    finally:
        looking.join()
    (verdict,) = verdicts
    assert (verdict["wrong"], verdict["missed"] if not removes else 0) == (0, 0), verdict
    assert verdict["found"] or removes
    race.close()


def test_an_entry_is_found_when_it_is_complete_and_not_before(
    checker: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key 0, which looks at the same place, is what a slot has in which nothing was written yet."""
    race = Race(checker("hosts_v4"), "hosts_v4")
    race.write(np.array([1]))
    (key,) = neighbours_of(race.table, 0, 1).tolist()
    seen = []
    monkeypatch.setattr(
        hashtable, "order_stores", lambda: seen.append((race.look_once(0), race.look_once(key)))
    )
    race.write(np.array([key]))
    assert seen
    assert all(first["missed"] == 1 for first, _ in seen), seen
    assert seen[1][1]["absent"] == 1, "after its key was written, before its next hop was"
    assert race.look_once(key)["found"] == 1
    race.close()


def test_growth_waits_for_programs_that_began_when_there_were_fewer_segments(
    checker: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is held up after it read how many there are, its key's half of a segment is about to go elsewhere."""
    race = Race(checker("hosts_v4"), "hosts_v4")
    race.write(np.arange(STABLE))
    hashes = race.table._hash(*race.table._split_keys(keys_of(race.table, np.arange(STABLE))))
    key = int(np.flatnonzero(race.table._segments_of(hashes, 2) == 1)[0])
    verdicts: list[dict[str, int]] = []
    looking = threading.Thread(target=lambda: verdicts.append(race.look_once(key, 1)))
    segments = race.table._open
    publish = segments.publish

    def publish_and_look(entries: dict[int, int]) -> None:
        publish(entries)
        if not looking.ident:
            looking.start()
            while looking.is_alive() and not race.is_stopped():
                time.sleep(0.001)

    monkeypatch.setattr(segments, "publish", publish_and_look)
    race.write(np.arange(STABLE, STABLE + 3000))
    looking.join()
    assert verdicts == [{"found": 1, "absent": 0, "wrong": 0, "missed": 0}]
    race.close()
