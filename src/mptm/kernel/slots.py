# SPDX-License-Identifier: GPL-2.0-only
"""Tables of slots that programs index without a look-up (TABLE_SLOTS of bpf/maps.h), written through mmap."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mptm.kernel import libbpf
from mptm.kernel.btf import ArrayLayout, IntegerLayout, Layout, StructLayout
from mptm.kernel.maps import ARRAY, Map
from mptm.kernel.segments import Window

_Bytes = NDArray[np.uint8]
_KEY_SIZE = 4


def open_map(name: str, fd: int) -> Map:
    """The driver of a map, by what the kernel says of it. Raises KernelError."""
    found = Map(name, fd)
    is_one = found.type == ARRAY and found.max_entries == 1 and found.info.btf_key_type_id
    if not is_one or _slots_of(found.value) is None:
        return found
    found.fd = -1  # it is the other one's now
    return SlotTable(name, fd)


def _slots_of(value: Layout) -> ArrayLayout | None:
    """The slots, where a value is a struct of nothing else."""
    if isinstance(value, StructLayout) and [each.name for each in value.fields] == ["slots"]:
        (slots,) = value.fields
        return slots.layout if isinstance(slots.layout, ArrayLayout) else None
    return None


class SlotTable(Map):
    """A table slot number -> value, as any ARRAY is; to the kernel it is an ARRAY with one element of all slots.

    What is written is there for programs when the method returns, in the order of the calls. A slot is not written in
    one stroke: who changes one that is in use writes it so that each step makes sense.
    """

    def __init__(self, name: str, fd: int) -> None:
        super().__init__(name, fd)
        slots = _slots_of(self._layout(self.info.btf_value_type_id, self.info.value_size))
        assert slots is not None
        self._slot = slots.element
        self.max_entries = slots.count
        self._key_size, self._value_size = _KEY_SIZE, self._slot.size
        self._window: Window | None = Window(-(-slots.size // mmap.PAGESIZE) * mmap.PAGESIZE, 1)
        self._window.map(0, fd)
        self._rows = self._window.bytes[: slots.size].reshape(slots.count, self._slot.size)

    def close(self) -> None:
        """Let go of the map; it lives on where it is pinned or used by a program."""
        if (window := getattr(self, "_window", None)) is not None:
            self._rows = self._rows[:0]
            window.close()
            self._window = None
        super().close()

    @cached_property
    def key(self) -> Layout:
        """Layout of a slot's number."""
        return IntegerLayout("", _KEY_SIZE)

    @cached_property
    def value(self) -> Layout:
        """Layout of a slot."""
        return self._slot

    def get(self, key: bytes) -> bytes | None:
        """The value of a slot; None where there is no such slot."""
        number = self._number(key)
        return self._rows[number].tobytes() if number < self.max_entries else None

    def items(self) -> dict[bytes, bytes]:
        """The slots that aren't all zeroes."""
        used = np.flatnonzero(self._rows.any(axis=1))
        return {self.key.pack(number): self._rows[number].tobytes() for number in used.tolist()}

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        """Write slots, in the mapping's order."""
        for key, value in entries.items():
            self._write(self._number(key), np.frombuffer(self._checked_value(value), np.uint8))

    def delete(self, keys: Iterable[bytes]) -> None:
        """Set slots to zeroes."""
        for key in keys:
            self._write(self._number(key), np.zeros(self._slot.size, np.uint8))

    def update_many(self, keys: _Bytes, values: _Bytes) -> None:
        """`update` of entries in two arrays: n x key size and n x value size."""
        numbers = np.ascontiguousarray(keys).view(np.uint32).reshape(-1)
        for number, value in zip(numbers.tolist(), values, strict=True):
            self._write(number, value)

    def delete_many(self, keys: _Bytes) -> None:
        """`delete` of the keys in an array: n x key size."""
        self.update_many(keys, np.zeros((len(keys), self._slot.size), np.uint8))

    def _write(self, number: int, value: _Bytes) -> None:
        if number >= self.max_entries:
            raise self._full()
        self._rows[number] = value
        libbpf.order_stores()

    def _number(self, key: bytes) -> int:
        return int.from_bytes(self._checked_key(key), sys.byteorder)
