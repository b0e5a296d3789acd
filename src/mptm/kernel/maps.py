# SPDX-License-Identifier: GPL-2.0-only
"""Tables of the data plane, as bytes: look up, list, write and delete, many entries per system call."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from mptm.errors import KernelError, MptmError, TableFull
from mptm.kernel import libbpf
from mptm.kernel.btf import IntegerLayout, Layout, Types

if TYPE_CHECKING:
    import numpy
    import numpy.typing

    Bytes = numpy.typing.NDArray[numpy.uint8]

ARRAY, PERCPU_HASH, PERCPU_ARRAY, ARRAY_OF_MAPS, DEVMAP, DEVMAP_HASH = 2, 5, 6, 12, 14, 25
"""`enum bpf_map_type`, the ones that behave in a way of their own."""

_ARRAYS = frozenset((ARRAY, PERCPU_ARRAY))
_PER_CPU = frozenset((PERCPU_HASH, PERCPU_ARRAY))
_DEVMAPS = frozenset((DEVMAP, DEVMAP_HASH))
_FULL = frozenset((-errno.E2BIG, -errno.ENOSPC))
_NO_BATCHES = frozenset((-libbpf.ENOTSUPP, -errno.EOPNOTSUPP, -errno.EINVAL))
_BATCH_BYTES = 1 << 18
_BLOCK = 64


@cache
def types_of(btf_id: int) -> Types:
    """Types that were loaded along with a map; the kernel uses an id only once."""
    return Types(libbpf.btf_of_id(btf_id), "the loaded data plane")


@cache
def possible_cpus() -> int:
    """How many values a per-CPU table has for a key: one for each CPU that there could be."""
    return libbpf.check(libbpf.library().libbpf_num_possible_cpus(), "the CPUs can't be counted")


class Map:
    """One map of the kernel; owns its descriptor.

    Keys and values are bytes; `key` and `value` pack and unpack them (of a per-CPU map, one CPU's value).
    `type` is `enum bpf_map_type`. Whatever fails raises KernelError, and TableFull when there is no room.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.info = libbpf.map_info(fd)
        self.type = self.info.type
        self.max_entries = self.info.max_entries
        self._key_size = self.info.key_size
        self._stride = self.info.value_size
        self._value_size = self.info.value_size
        if self.type in _PER_CPU:
            self._stride = -(-self.info.value_size // 8) * 8
            self._value_size = self._stride * possible_cpus()
        self._library: Any = libbpf.library()

    def __repr__(self) -> str:
        return f"Map({self.name!r}, id={self.info.id})"

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the map; it lives on where it is pinned or used by a program."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    @cached_property
    def key(self) -> Layout:
        """Layout of a key, from the type information that the kernel has of the map."""
        return self._layout(self.info.btf_key_type_id, self.info.key_size)

    @cached_property
    def value(self) -> Layout:
        """Layout of a value, from the type information that the kernel has of the map."""
        return self._layout(self.info.btf_value_type_id, self.info.value_size)

    def _layout(self, type_id: int, size: int) -> Layout:
        if self.info.btf_id and type_id:
            return types_of(self.info.btf_id).layout(type_id)
        if size in (1, 2, 4, 8):  # the kernel keeps no type information of device maps
            return IntegerLayout("", size)
        raise MptmError(f"the table {self.name} was loaded without type information")

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, of a per-CPU map those of all CPUs in a row; None when it isn't there."""
        value = ctypes.create_string_buffer(self._value_size)
        result = self._library.bpf_map_lookup_elem(self.fd, self._checked_key(key), value)
        if result == -errno.ENOENT:
            return None
        libbpf.check(result, f"an entry of the table {self.name} can't be read")
        return value.raw

    def percpu(self, key: bytes) -> list[bytes]:
        """The value of a key on each possible CPU; empty when it isn't there."""
        value = self.get(key)
        return [] if value is None else self._split(value)

    def items(self) -> dict[bytes, bytes]:
        """All entries; of an array, the slots that aren't all zeroes. Values are as `get` returns them."""
        found = self._items_by_batch()
        if found is None:
            found = self._items_one_by_one()
        if self.type in _ARRAYS:
            zero = bytes(self._value_size)
            return {key: value for key, value in found.items() if value != zero}
        return found

    def percpu_items(self) -> dict[bytes, list[bytes]]:
        """All entries of a per-CPU map, of an array the slots that aren't all zeroes: the value on each CPU."""
        return {key: self._split(value) for key, value in self.items().items()}

    def totals(self, key: bytes) -> dict[str, int]:
        """Every field of a per-CPU struct of integers, summed over the CPUs; zeroes when the key isn't there."""
        return self._sum(self.percpu(key))

    def all_totals(self) -> dict[bytes, dict[str, int]]:
        """`totals` of all entries."""
        return {key: self._sum(values) for key, values in self.percpu_items().items()}

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        """Add or replace entries. In a per-CPU map a value of one CPU's size is written for every CPU.

        When it raises, entries before the failing one (in the mapping's order) have been written.
        """
        pending = iter(entries.items())
        size = max(1, _BATCH_BYTES // (self._key_size + self._value_size))
        while chunk := list(islice(pending, size)):
            keys = b"".join(self._checked_key(key) for key, _ in chunk)
            values = b"".join(self._checked_value(value) for _, value in chunk)
            count = ctypes.c_uint32(len(chunk))
            result = self._library.bpf_map_update_batch(self.fd, keys, values, ctypes.byref(count), None)
            if result in _FULL:
                raise self._full()
            if result < 0:
                self._update_one_by_one(chunk if result in _NO_BATCHES else chunk[count.value :])

    def delete(self, keys: Iterable[bytes]) -> None:
        """Delete entries; a key that isn't there is no error. A slot of an array is set to zeroes."""
        if self.type in _ARRAYS:
            self.update(dict.fromkeys(keys, bytes(self._value_size)))
            return
        pending = iter(keys)
        size = max(1, _BATCH_BYTES // self._key_size)
        while chunk := [self._checked_key(key) for key in islice(pending, size)]:
            while chunk:
                count = ctypes.c_uint32(len(chunk))
                result = self._library.bpf_map_delete_batch(
                    self.fd, b"".join(chunk), ctypes.byref(count), None
                )
                if result == 0:
                    break
                if result == -errno.ENOENT:
                    chunk = chunk[count.value + 1 :]
                    continue
                self._delete_one_by_one(chunk if result in _NO_BATCHES else chunk[count.value :])
                break

    def update_many(self, keys: Bytes, values: Bytes) -> None:
        """`update` of entries in two arrays: n x key size and n x value size."""
        if keys.shape[1:] != (self._key_size,) or values.shape != (len(keys), self._value_size):
            raise ValueError(
                f"{self.name}: entries have {self._key_size} and {self._value_size} bytes, "
                f"not {keys.shape} and {values.shape}"
            )
        size = max(1, _BATCH_BYTES // (self._key_size + self._value_size))
        for at in range(0, len(keys), size):
            some_keys, some_values = keys[at : at + size].tobytes(), values[at : at + size].tobytes()
            count = ctypes.c_uint32(len(some_keys) // self._key_size)
            result = self._library.bpf_map_update_batch(
                self.fd, some_keys, some_values, ctypes.byref(count), None
            )
            if result in _FULL:
                raise self._full()
            if result < 0:
                self._update_one_by_one(self._cut(some_keys, some_values, len(keys[at : at + size])))

    def delete_many(self, keys: Bytes) -> None:
        """`delete` of the keys in an array: n x key size."""
        data, size = keys.tobytes(), self._key_size
        self.delete(data[at : at + size] for at in range(0, len(data), size))

    def _items_by_batch(self) -> dict[bytes, bytes] | None:
        """All entries by BPF_MAP_LOOKUP_BATCH (5.6, LPM tries and per-CPU arrays later); None without it."""
        found: dict[bytes, bytes] = {}
        capacity = min(self.max_entries, max(64, _BATCH_BYTES // (self._key_size + self._value_size)))
        position = None
        while True:
            keys = ctypes.create_string_buffer(capacity * self._key_size)
            values = ctypes.create_string_buffer(capacity * self._value_size)
            next_position = ctypes.create_string_buffer(max(8, self._key_size))
            count = ctypes.c_uint32(capacity)
            result = self._library.bpf_map_lookup_batch(
                self.fd, position, next_position, keys, values, ctypes.byref(count), None
            )
            if result == -errno.ENOSPC:  # one bucket of a hash holds more than fits
                capacity *= 2
                continue
            if result in _NO_BATCHES:
                return None
            if result not in (0, -errno.ENOENT):
                raise libbpf.failure(f"the table {self.name} can't be read", result)
            found.update(self._cut(keys.raw, values.raw, count.value))
            if result == -errno.ENOENT:
                return found
            position = next_position

    def _cut(self, keys: bytes, values: bytes, count: int) -> Iterator[tuple[bytes, bytes]]:
        """The entries of a batch, without blocks of an array that are all zeroes: most of them are."""
        key_size, value_size = self._key_size, self._value_size
        zeroes = bytes(_BLOCK * value_size)
        for block in range(0, count, _BLOCK):
            end = min(block + _BLOCK, count)
            if self.type in _ARRAYS and values[block * value_size : end * value_size] == zeroes:
                continue
            for at in range(block, end):
                yield (
                    keys[at * key_size : (at + 1) * key_size],
                    values[at * value_size : (at + 1) * value_size],
                )

    def _items_one_by_one(self) -> dict[bytes, bytes]:
        found = {}
        key = None
        following = ctypes.create_string_buffer(self._key_size)
        while (result := self._library.bpf_map_get_next_key(self.fd, key, following)) == 0:
            key = following.raw
            if (value := self.get(key)) is not None:
                found[key] = value
        if result != -errno.ENOENT:
            raise libbpf.failure(f"the table {self.name} can't be read", result)
        return found

    def _update_one_by_one(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        for key, value in entries:
            result = self._library.bpf_map_update_elem(self.fd, key, self._checked_value(value), 0)
            if result in _FULL:
                raise self._full()
            if result == -errno.EINVAL and self.type in _DEVMAPS:
                raise KernelError(
                    f"interface {self.value.unpack(value)['value']} is not in this network namespace",
                    errno.ENODEV,
                )
            libbpf.check(result, f"entry {key.hex()} of the table {self.name} can't be written")

    def _delete_one_by_one(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            result = self._library.bpf_map_delete_elem(self.fd, key)
            if result != -errno.ENOENT:
                libbpf.check(result, f"entry {key.hex()} of the table {self.name} can't be deleted")

    def _checked_key(self, key: bytes) -> bytes:
        if len(key) != self._key_size:
            raise ValueError(f"{self.name}: a key has {self._key_size} bytes, not {len(key)}")
        return key

    def _checked_value(self, value: bytes) -> bytes:
        if self.type in _PER_CPU and len(value) == self.info.value_size:
            value = value.ljust(self._stride, b"\0") * possible_cpus()
        if len(value) != self._value_size:
            raise ValueError(f"{self.name}: a value has {self._value_size} bytes, not {len(value)}")
        return value

    def _split(self, value: bytes) -> list[bytes]:
        if self.type not in _PER_CPU:
            raise ValueError(f"{self.name} has no value per CPU")
        return [value[at : at + self.info.value_size] for at in range(0, self._value_size, self._stride)]

    def _sum(self, values: Iterable[bytes]) -> dict[str, int]:
        sums = self.value.unpack(bytes(self.info.value_size))
        for value in values:
            for name, number in self.value.unpack(value).items():
                sums[name] += number
        return sums

    def _full(self) -> TableFull:
        return TableFull(f"the table {self.name} is full: it has room for {self.max_entries} entries")
