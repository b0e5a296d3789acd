# SPDX-License-Identifier: GPL-2.0-only
"""Directories of segments: ARRAY_OF_MAPS of ARRAYs with one element each, which are written through mmap.

A segment that is in use can be written in place, word by word, or be exchanged for another one as a whole. The
kernel frees the old one when no program can be looking at it any more.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mptm.kernel import libbpf
from mptm.kernel.maps import ARRAY, Map, types_of

_PROT_NONE, _PROT_READ_WRITE = 0, 3
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NO_RESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
_FAILED = ctypes.c_void_p(-1).value
_MMAPABLE = 1 << 10  # BPF_F_MMAPABLE
_AT_ONCE = 16
_BATCH = 16


class _CreateOptions(ctypes.Structure):
    """struct bpf_map_create_opts (bpf/bpf.h)."""

    _fields_: ClassVar = [
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    ]


@cache
def _c_library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return library


class Window:
    """Address space in which maps are mapped one behind the other, so that numpy sees them as one array.

    Only what `map` was called for may be touched.
    """

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        self._length = size * count
        self._address: int | None = None
        flags = _PRIVATE | _ANONYMOUS | _NO_RESERVE
        address = _c_library().mmap(None, self._length, _PROT_NONE, flags, -1, 0)
        if address == _FAILED:
            raise libbpf.failure("there is no address space for a table", ctypes.get_errno())
        self._address = address
        self.bytes: NDArray[np.uint8] = np.frombuffer(
            memoryview((ctypes.c_uint8 * self._length).from_address(address)), np.uint8
        )

    def map(self, number: int, fd: int, size: int = 0) -> None:
        """Map the map of a descriptor, of the usual size or that many bytes, from the place of that number on."""
        assert self._address is not None
        at = self._address + number * self.size
        if _c_library().mmap(at, size or self.size, _PROT_READ_WRITE, _SHARED | _FIXED, fd, 0) != at:
            raise libbpf.failure("a segment of a table can't be mapped", ctypes.get_errno())

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the address space back: nothing may look into it any more."""
        address = getattr(self, "_address", None)
        if address is not None:
            self._address = None
            self.bytes = np.zeros(0, np.uint8)
            _c_library().munmap(address, self._length)


class Segments:
    """The directory of one table. `directory` stays the caller's, who closes it after this.

    The first segments may be one map of their own, that of `fixed_fd`, which has no place in the directory.
    `like` is a map of the same object whose keys are of type __u32, and `struct` the name of the struct that a
    segment is: this is what the kernel is told of new ones, so that bpftool names their fields.
    Whatever fails raises KernelError.
    """

    def __init__(
        self, directory: Map, like: Map, struct: str, fixed_fd: int = -1, fixed_size: int = 0
    ) -> None:
        self.directory = directory
        self._types = types_of(like.info.btf_id)
        self.layout = self._types.struct(struct)
        self.capacity = directory.max_entries
        self._struct = struct
        self._like = like.info
        self._library: Any = libbpf.library()
        self._window: Window | None = Window(self.layout.size, self.capacity)
        self._mapped = [0] * self.capacity
        self.fixed = fixed_size // self.layout.size
        if self.fixed:
            self._window.map(0, fixed_fd, fixed_size)

    def close(self) -> None:
        """Let go of the mappings; the segments live on."""
        if self._window is not None:
            self._window.close()
        self._window = None

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """All segments, one behind the other. Only those that `refresh` found may be touched."""
        assert self._window is not None, f"the table {self.directory.name} is closed"
        return self._window.bytes

    def ids(self, count: int) -> list[int]:
        """The kernel's ids of the first `count` segments; 0 where there is none."""
        return [self._id(number) for number in range(count)]

    def _id(self, number: int) -> int:
        key, value = ctypes.c_uint32(number), ctypes.c_uint32()
        result = self._library.bpf_map_lookup_elem(self.directory.fd, ctypes.byref(key), ctypes.byref(value))
        if result != -errno.ENOENT:
            libbpf.check(result, f"the directory of the table {self.directory.name} can't be read")
        return value.value

    def refresh(self, count: int) -> bool:
        """Map the first `count` segments as they are now; False: one of them isn't there."""
        return all([self._map(number, map_id) for number, map_id in enumerate(self.ids(count))])

    def refresh_one(self, number: int) -> bool:
        """Map one segment; False: it isn't there."""
        return self._map(number, self._id(number))

    def _map(self, number: int, map_id: int) -> bool:
        assert self._window is not None, f"the table {self.directory.name} is closed"
        if map_id and self._mapped[number] != map_id:
            fd = libbpf.open_map(map_id)
            try:
                self._window.map(number, fd)
            finally:
                os.close(fd)
            self._mapped[number] = map_id
        return bool(map_id)

    def create(self, count: int) -> NewSegments:
        """Segments full of zeroes that nobody sees yet."""
        return NewSegments(self, count)

    def publish(self, segments: Mapping[int, int]) -> None:
        """Put segments (number -> descriptor) in place, in any order.

        When this returns no program looks at those that were there before (the kernel's maybe_wait_bpf_programs:
        whoever changes a map of maps waits for an RCU grace period).
        """
        entries = list(segments.items())
        chunks = [entries[at : at + _BATCH] for at in range(0, len(entries), _BATCH)]
        # Kernels before 6.8 wait anew for each entry of a batch: the threads wait together.
        with ThreadPoolExecutor(min(_AT_ONCE, len(chunks)) or 1) as threads:
            for done in [threads.submit(self._publish, chunk) for chunk in chunks]:
                done.result()

    def _publish(self, entries: list[tuple[int, int]]) -> None:
        failed = f"the directory of the table {self.directory.name} can't be written"
        if len(entries) > 1:
            keys = (ctypes.c_uint32 * len(entries))(*(number for number, _ in entries))
            values = (ctypes.c_int * len(entries))(*(fd for _, fd in entries))
            count = ctypes.c_uint32(len(entries))
            result = self._library.bpf_map_update_batch(
                self.directory.fd, keys, values, ctypes.byref(count), None
            )
            if result == 0:
                return
        for number, fd in entries:  # without batches, or all once more
            key, value = ctypes.c_uint32(number), ctypes.c_int(fd)
            result = self._library.bpf_map_update_elem(
                self.directory.fd, ctypes.byref(key), ctypes.byref(value), 0
            )
            libbpf.check(result, failed)

    def wait_for_programs(self) -> None:
        """Wait until every program that runs now has ended: an RCU grace period, some 20 ms.

        What waits for it is a write to a map of maps; here what is there is written once more.
        """
        (map_id,) = self.ids(1)
        fd = libbpf.open_map(map_id)
        try:
            self._publish([(0, fd)])
        finally:
            os.close(fd)

    def make(self) -> int:
        """Descriptor of a new segment."""
        btf_fd = libbpf.check(
            self._library.bpf_btf_get_fd_by_id(self._like.btf_id), "the type information can't be opened"
        )
        try:
            options = _CreateOptions(
                sz=ctypes.sizeof(_CreateOptions),
                btf_fd=btf_fd,
                btf_key_type_id=self._like.btf_key_type_id,
                btf_value_type_id=self._types.struct_id(self._struct),
                map_flags=_MMAPABLE,
            )
            fd = self._library.bpf_map_create(
                ARRAY, self.directory.name.encode(), 4, self.layout.size, 1, ctypes.byref(options)
            )
            return libbpf.check(fd, f"there is no memory for a segment of the table {self.directory.name}")
        finally:
            os.close(btf_fd)


class NewSegments:
    """Segments that nobody sees yet; a context manager, after which those live on that were published."""

    def __init__(self, segments: Segments, count: int) -> None:
        self.descriptors: list[int] = []
        self._window = Window(segments.layout.size, max(count, 1))
        try:
            for number in range(count):
                self.descriptors.append(segments.make())
                self._window.map(number, self.descriptors[-1])
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> NewSegments:
        return self

    def __exit__(self, *_exception: object) -> None:
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = []
        self._window.close()

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """All of them, one behind the other."""
        return self._window.bytes
