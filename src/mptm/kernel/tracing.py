# SPDX-License-Identifier: GPL-2.0-only
"""The programs that say what the data plane does with a packet: mptm_trace.o on the tables of a loaded data plane.

They are built of the same source and run by BPF_PROG_TEST_RUN only: never attached, never pinned, gone with their
descriptors. Tables that the control plane writes are the data plane's own; what the programs write they have for
themselves, so that a traced packet changes no counter, no sequence number and no rate limit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Self

from mptm.errors import MptmError
from mptm.kernel import hashtable, libbpf, testrun
from mptm.kernel.dataplane import PROGRAM_OF_ROLE, DataPlane, compatible_maps
from mptm.kernel.maps import Map
from mptm.kernel.objects import TRACED, object_path
from mptm.kernel.slots import open_map
from mptm.tables import Tables

SHARED = frozenset(each.name for each in fields(Tables)) | hashtable.PARTS
"""Tables of the data plane that the traced programs read; all others are their own."""

RECORDS = "trace_records"


@dataclass(frozen=True)
class Record:
    """`struct trace_record` of bpf/abi.h: what the values and the address are depends on the step."""

    step: int
    values: tuple[int, ...]
    address: bytes


@dataclass(frozen=True)
class TracedRun:
    """What became of a packet: the XDP verdict, the packet as the program left it, the steps in between.

    `lost` steps had no room.
    """

    verdict: int
    data: bytes
    records: tuple[Record, ...]
    lost: int = 0


class TracedPrograms:
    """The traced programs of one data plane, made by `load`; a context manager that lets go of them.

    Sequence numbers go on from where those of the data plane are when it is loaded.
    """

    def __init__(self, maps: dict[str, Map], programs: dict[str, int]) -> None:
        self._maps = maps
        self._programs = programs
        records = maps[RECORDS]
        self._record_keys = [records.key.pack(slot) for slot in range(records.max_entries)]

    @classmethod
    def load(cls, data_plane: DataPlane) -> Self:
        """Load them beside a data plane.

        Raises MptmError when its tables are laid out in another way than this build's or the object isn't there, and
        KernelError.
        """
        path = object_path(TRACED)
        with libbpf.Object(path) as loading:
            types = loading.types
            shared = [each for each in loading.maps() if each.name in SHARED]
            theirs = {name: each.fd for name, each in data_plane.maps.items()}
            fitting = compatible_maps(shared, types, theirs)
            for declared in shared:
                if declared.name not in fitting:
                    raise MptmError(
                        f"the loaded data plane is of another build, whose table {declared.name} this one can't read",
                        "`mptm restore` switches to this build",
                    )
                loading.reuse_map(declared, theirs[declared.name])
            loading.load()
            maps = {name: open_map(name, fd) for name, fd in loading.map_fds().items()}
            loaded = cls(maps, loading.program_fds())
        try:
            loaded.take_sequences(data_plane)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all descriptors, and with them of everything that was loaded."""
        for each in self._maps.values():
            each.close()
        for fd in self._programs.values():
            os.close(fd)
        self._programs = {}

    def take_sequences(self, data_plane: DataPlane) -> None:
        """Go on from the sequence numbers that the data plane has now."""
        ours, theirs = self._maps["sequences"], data_plane.maps.get("sequences")
        now = theirs.items() if theirs is not None else {}
        ours.delete(ours.items().keys() - now.keys())
        ours.update(now)

    def run(self, role: str, packet: bytes, *, ifindex: int, slot: int) -> TracedRun:
        """Run a packet as if it came in at a port of that role: interface `ifindex`, with its slot in `ports`.

        A port's limit of answers starts anew with each packet. Raises KernelError.
        """
        records, answer_times = self._maps[RECORDS], self._maps["answer_times"]
        records.delete(self._record_keys)
        answer_times.delete([answer_times.key.pack(slot)])
        done = testrun.run(self._programs[PROGRAM_OF_ROLE[role]], packet, ifindex=ifindex)
        count = records.value.unpack(records.get(self._record_keys[0]) or b"")["step"]
        recorded = []
        for key in self._record_keys[1 : count + 1]:
            held = records.value.unpack(records.get(key) or b"")
            recorded.append(
                Record(
                    held["step"],
                    tuple(held["values"]),
                    held["address"],
                )
            )
        return TracedRun(done.verdict, done.data, tuple(recorded), lost=count - len(recorded))
