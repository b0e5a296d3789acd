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

LOOKUPS = 64
REPEAT = 500

PROGRAM = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "table.h"
char LICENSE[] SEC("license") = "GPL";

struct verdicts {
	__u64 found, absent, wrong, missed;
};
TABLE_ARRAY(verdicts, BPF_MAP_TYPE_PERCPU_ARRAY, 1, struct verdicts);

SEC("xdp") int look(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct verdicts *verdicts = bpf_map_lookup_elem(&verdicts_map, &zero);

	if (!verdicts)
		return XDP_ABORTED;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < LOOKUPS; i++) {
		__u32 random = bpf_get_prandom_u32(), number = random % (random >> 31 ? STABLE : ALL), found;
		struct ip_address address = {{bpf_htonl(number)}}, nowhere = {};
		struct next_hop *next_hop;

		found = FIND_IT;
		next_hop = next_hop_at(found);
		if (!next_hop) {
			if (found)
				verdicts->wrong++;
			else if (number < STABLE)
				verdicts->missed++;
			else
				verdicts->absent++;
			continue;
		}
		if (next_hop->id >> 12 != number || *(volatile __u32 *)&next_hop->mac[2] >> 12 != number)
			verdicts->wrong++;
		else
			verdicts->found++;
		(void)address;
		(void)nowhere;
	}
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
            self.program = loading.program_fds()["look"]
            self.maps = hashtable.open_maps(loading.map_fds())
        table = self.maps[name]
        assert isinstance(table, HashTable)
        self.table = table
        self.verdicts: Map = self.maps["race_verdicts"]
        self.version = 0

    def look(self, stop: threading.Event) -> None:
        """On any CPU but the writer's."""
        others = os.sched_getaffinity(0) - {WRITER}
        os.sched_setaffinity(0, others or {WRITER})
        while not stop.is_set():
            testrun.run(self.program, bytes(64), repeat=REPEAT)

    def write(self, numbers: np.ndarray) -> None:
        self.version += 1
        self.table.update_many(keys_of(self.table, numbers), values_of(numbers, self.version))

    def remove(self, numbers: np.ndarray) -> None:
        self.table.delete_many(keys_of(self.table, numbers))

    def counts(self) -> dict[str, int]:
        return self.verdicts.totals(bytes(4))

    def close(self) -> None:
        for each in self.maps.values():
            each.close()
        os.close(self.program)


WRITER = min(os.sched_getaffinity(0))


@pytest.fixture
def checker(tmp_path: Path, clang: Callable[..., Path]) -> Callable[[str], Path]:
    """The program that looks into one table, with segments of 16 KB."""

    def build(name: str) -> Path:
        for header in ("abi.h", "maps.h", "table.h"):
            text = (ROOT / "bpf" / header).read_text()
            small = text.replace(
                "#define MPTM_SEGMENT_BYTES (1 << 18)", "#define MPTM_SEGMENT_BYTES (1 << 14)"
            )
            small = small.replace("4096 /* next hops of a segment */", "512")
            assert (small != text) == (header == "abi.h")
            (tmp_path / header).write_text(small)
        flags = [f"-DFIND_IT={FIND[name]}", f"-DSTABLE={STABLE}", f"-DALL={ALL}", f"-DLOOKUPS={LOOKUPS}"]
        return clang(tmp_path / "check.o", PROGRAM, *flags, f"-I{tmp_path}")

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
    grown = renewed = 0
    try:
        while time.monotonic() < end:
            race, stop = Race(path, name), threading.Event()
            race.write(np.arange(STABLE))
            looking = threading.Thread(target=race.look, args=(stop,))
            looking.start()
            try:
                until = min(end, time.monotonic() + 1)
                while time.monotonic() < until:
                    present = race.table._segment_count
                    ids = race.table._open.ids(1)
                    size = rng.choice((1, 10, 100, 1000))
                    volatile = np.array(rng.sample(range(STABLE, ALL), size))
                    race.write(volatile)
                    race.write(np.array(rng.sample(range(STABLE), min(size, 100))))
                    race.remove(volatile[: size * 2 // 3])
                    grown += race.table._segment_count > present
                    renewed += race.table._open.ids(1) != ids
            finally:
                stop.set()
                looking.join()
            for verdict, count in race.counts().items():
                total[verdict] += count
            race.close()
    finally:
        os.sched_setaffinity(0, affinity)
    print(f"{name}: {total}, grown {grown} times, segments renewed {renewed} times")
    assert (total["wrong"], total["missed"]) == (0, 0), total
    assert total["found"] > 1000 * SECONDS
    assert total["absent"] > 1000 * SECONDS
    assert grown
    assert renewed
    assert struct.calcsize("P") == 8
