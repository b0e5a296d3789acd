# SPDX-License-Identifier: GPL-2.0-only
"""libbpf.so.1, by ctypes: only functions of version 1.0, each with its prototype.

The library is loaded when it is first used. What libbpf prints (the verifier's log among it) is kept, and its last
lines go into the error that is raised.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
import threading
from collections import deque
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mptm.errors import KernelError, NotSupported
from mptm.kernel.btf import Types

XDP = 37
"""`enum bpf_attach_type`: BPF_XDP."""

TCX_INGRESS = 46
"""`enum bpf_attach_type`: BPF_TCX_INGRESS (Linux 6.6)."""

TCX_EGRESS = 47
"""`enum bpf_attach_type`: BPF_TCX_EGRESS."""

_LINK_TYPE_TCX = 11  # enum bpf_link_type
_REPLACE = 1 << 2  # BPF_F_REPLACE

XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2
XDP_FLAGS_REPLACE = 1 << 4

ENOTSUPP = 524
"""What the kernel says where it means EOPNOTSUPP, and no C library has a word for."""

_NOT_PERMITTED = (errno.EPERM, errno.EACCES)
_LOG_LINES = 8

_HANDLE = ctypes.c_void_p
_TEXT = ctypes.c_char_p
_INT = ctypes.c_int
_U32 = ctypes.c_uint32
_U64 = ctypes.c_uint64
_BUFFER = ctypes.c_void_p
_COUNT = ctypes.POINTER(ctypes.c_uint32)

_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_object__open_file": (_HANDLE, (_TEXT, _BUFFER)),
    "bpf_object__load": (_INT, (_HANDLE,)),
    "bpf_object__close": (None, (_HANDLE,)),
    "bpf_object__next_map": (_HANDLE, (_HANDLE, _HANDLE)),
    "bpf_object__next_program": (_HANDLE, (_HANDLE, _HANDLE)),
    "bpf_object__btf": (_HANDLE, (_HANDLE,)),
    "btf__raw_data": (_BUFFER, (_HANDLE, _COUNT)),
    "bpf_map__name": (_TEXT, (_HANDLE,)),
    "bpf_map__is_internal": (ctypes.c_bool, (_HANDLE,)),
    "bpf_map__type": (_INT, (_HANDLE,)),
    "bpf_map__key_size": (_U32, (_HANDLE,)),
    "bpf_map__value_size": (_U32, (_HANDLE,)),
    "bpf_map__max_entries": (_U32, (_HANDLE,)),
    "bpf_map__map_flags": (_U32, (_HANDLE,)),
    "bpf_map__btf_key_type_id": (_U32, (_HANDLE,)),
    "bpf_map__btf_value_type_id": (_U32, (_HANDLE,)),
    "bpf_map__reuse_fd": (_INT, (_HANDLE, _INT)),
    "bpf_map__fd": (_INT, (_HANDLE,)),
    "bpf_program__name": (_TEXT, (_HANDLE,)),
    "bpf_program__fd": (_INT, (_HANDLE,)),
    "bpf_obj_pin": (_INT, (_INT, _TEXT)),
    "bpf_obj_get": (_INT, (_TEXT,)),
    "bpf_obj_get_info_by_fd": (_INT, (_INT, _BUFFER, _COUNT)),
    "bpf_prog_get_fd_by_id": (_INT, (_U32,)),
    "bpf_map_get_fd_by_id": (_INT, (_U32,)),
    "bpf_map_create": (_INT, (_INT, _TEXT, _U32, _U32, _U32, _BUFFER)),
    "bpf_btf_get_fd_by_id": (_INT, (_U32,)),
    "bpf_link_create": (_INT, (_INT, _INT, _INT, _BUFFER)),
    "bpf_link_update": (_INT, (_INT, _INT, _BUFFER)),
    "bpf_link_detach": (_INT, (_INT,)),
    "bpf_link_get_next_id": (_INT, (_U32, _COUNT)),
    "bpf_link_get_fd_by_id": (_INT, (_U32,)),
    "bpf_prog_attach_opts": (_INT, (_INT, _INT, _INT, _BUFFER)),
    "bpf_prog_detach2": (_INT, (_INT, _INT, _INT)),
    "bpf_prog_query": (_INT, (_INT, _INT, _U32, _BUFFER, _BUFFER, _COUNT)),
    "bpf_xdp_attach": (_INT, (_INT, _INT, _U32, _BUFFER)),
    "bpf_xdp_detach": (_INT, (_INT, _U32, _BUFFER)),
    "bpf_map_lookup_elem": (_INT, (_INT, _BUFFER, _BUFFER)),
    "bpf_map_update_elem": (_INT, (_INT, _BUFFER, _BUFFER, _U64)),
    "bpf_map_delete_elem": (_INT, (_INT, _BUFFER)),
    "bpf_map_get_next_key": (_INT, (_INT, _BUFFER, _BUFFER)),
    "bpf_map_lookup_batch": (_INT, (_INT, _BUFFER, _BUFFER, _BUFFER, _BUFFER, _COUNT, _BUFFER)),
    "bpf_map_update_batch": (_INT, (_INT, _BUFFER, _BUFFER, _COUNT, _BUFFER)),
    "bpf_map_delete_batch": (_INT, (_INT, _BUFFER, _COUNT, _BUFFER)),
    "bpf_prog_test_run_opts": (_INT, (_INT, _BUFFER)),
    "libbpf_num_possible_cpus": (_INT, ()),
    "libbpf_probe_bpf_prog_type": (_INT, (_INT, _BUFFER)),
}

KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
"""The kernel's own types, which frame_len of bpf/hook.h looks at."""

_LOGGER = ctypes.CFUNCTYPE(_INT, _INT, _TEXT, ctypes.c_void_p)
_log = threading.local()


@cache
def library() -> ctypes.CDLL:
    """libbpf itself. Raises NotSupported where it isn't installed or is older than 1.0."""
    try:
        loaded = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NotSupported(
            f"libbpf 1.0 or newer is required ({error})",
            hint="install it: apt install libbpf1, dnf install libbpf",
        ) from None
    set_print = loaded.libbpf_set_print
    set_print.restype, set_print.argtypes = ctypes.c_void_p, (_LOGGER,)
    set_print(_collect)
    return loaded


@cache
def _vsnprintf() -> Any:
    function = ctypes.CDLL(None).vsnprintf
    function.restype, function.argtypes = _INT, (_BUFFER, ctypes.c_size_t, _TEXT, ctypes.c_void_p)
    return function


def _collect_line(level: int, template: bytes, arguments: int) -> int:
    """libbpf's print callback. A va_list is, or is passed as, one pointer on every 64-bit ABI of Linux."""
    if level > 1:
        return 0
    buffer = ctypes.create_string_buffer(16384)
    _vsnprintf()(buffer, len(buffer), template, arguments)
    if not hasattr(_log, "lines"):
        _log.lines = deque(maxlen=200)
    _log.lines.extend(buffer.value.decode(errors="replace").splitlines())
    return 0


_collect = _LOGGER(_collect_line)


def take_log() -> list[str]:
    """What libbpf printed in this thread since the last call, warnings and information, oldest first."""
    lines = list(getattr(_log, "lines", ()))
    if lines:
        _log.lines.clear()
    return lines


def failure(message: str, number: int, *, with_log: bool = False) -> KernelError:
    """The error to raise for a failed call: `number` is its errno."""
    number = abs(number)
    if number in _NOT_PERMITTED and os.geteuid() != 0:
        return KernelError(message, number, "run it as root")
    hint = None
    if with_log and (lines := take_log()):
        hint = "the kernel's log ends with:\n    " + "\n    ".join(lines[-_LOG_LINES:])
    if number in (ENOTSUPP, errno.EOPNOTSUPP):
        return NotSupported(message, errno.EOPNOTSUPP, hint)
    return KernelError(message, number, hint)


def check(result: int, message: str) -> int:
    """`result` of a libbpf call that yields a negative errno on failure; then KernelError."""
    if result < 0:
        raise failure(message, result)
    return result


class _MapInfo(ctypes.Structure):
    """struct bpf_map_info, as far as it is read (linux/bpf.h)."""

    _fields_: ClassVar = [
        ("type", _U32),
        ("id", _U32),
        ("key_size", _U32),
        ("value_size", _U32),
        ("max_entries", _U32),
        ("map_flags", _U32),
        ("name", ctypes.c_char * 16),
        ("ifindex", _U32),
        ("btf_vmlinux_value_type_id", _U32),
        ("netns_dev", _U64),
        ("netns_ino", _U64),
        ("btf_id", _U32),
        ("btf_key_type_id", _U32),
        ("btf_value_type_id", _U32),
    ]


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info, as far as it is read (linux/bpf.h)."""

    _fields_: ClassVar = [
        ("type", _U32),
        ("id", _U32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", _U32),
        ("xlated_prog_len", _U32),
        ("jited_prog_insns", _U64),
        ("xlated_prog_insns", _U64),
        ("load_time", _U64),
        ("created_by_uid", _U32),
        ("nr_map_ids", _U32),
        ("map_ids", _U64),
        ("name", ctypes.c_char * 16),
    ]


class _LinkInfo(ctypes.Structure):
    """struct bpf_link_info of an XDP or tcx link (linux/bpf.h)."""

    _fields_: ClassVar = [
        ("type", _U32),
        ("id", _U32),
        ("prog_id", _U32),
        ("padding", _U32),
        ("ifindex", _U32),
        ("rest", ctypes.c_uint8 * 60),
    ]


class _BtfInfo(ctypes.Structure):
    """struct bpf_btf_info, as far as it is read (linux/bpf.h)."""

    _fields_: ClassVar = [("btf", _U64), ("btf_size", _U32), ("id", _U32)]


class MapInfo(NamedTuple):
    """What the kernel says of a map. `type` is `enum bpf_map_type`; the BTF ids are 0 where it has none."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str
    btf_id: int
    btf_key_type_id: int
    btf_value_type_id: int


class ProgramInfo(NamedTuple):
    """What the kernel says of a program. `name` is cut to 15 characters; `tag` is a hash of its instructions."""

    id: int
    name: str
    tag: bytes
    map_ids: tuple[int, ...]


class LinkInfo(NamedTuple):
    """What the kernel says of an XDP or tcx link. `ifindex` 0: its interface is gone."""

    id: int
    program_id: int
    ifindex: int


def _read_info(fd: int, info: ctypes.Structure) -> None:
    size = _U32(ctypes.sizeof(info))
    check(
        library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)),
        "the kernel doesn't describe a BPF object",
    )


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map."""
    info = _MapInfo()
    _read_info(fd, info)
    return MapInfo(
        info.type,
        info.id,
        info.key_size,
        info.value_size,
        info.max_entries,
        info.map_flags,
        info.name.decode(),
        info.btf_id,
        info.btf_key_type_id,
        info.btf_value_type_id,
    )


def open_map(map_id: int) -> int:
    """Descriptor of the map with this id. Raises KernelError."""
    return check(library().bpf_map_get_fd_by_id(map_id), f"map {map_id} can't be opened")


def program_info(fd: int) -> ProgramInfo:
    """What the kernel says of a program."""
    info = _ProgramInfo()
    _read_info(fd, info)
    again = _ProgramInfo()
    again.nr_map_ids = info.nr_map_ids
    map_ids = (_U32 * info.nr_map_ids)()
    again.map_ids = ctypes.addressof(map_ids) if info.nr_map_ids else 0
    _read_info(fd, again)
    return ProgramInfo(again.id, again.name.decode(), bytes(again.tag), tuple(map_ids))


def program_info_by_id(program_id: int) -> ProgramInfo | None:
    """What the kernel says of the program with this id; None when it is gone by now."""
    fd = library().bpf_prog_get_fd_by_id(program_id)
    if fd == -errno.ENOENT:
        return None
    check(fd, f"program {program_id} can't be opened")
    try:
        return program_info(fd)
    finally:
        os.close(fd)


def link_info(fd: int) -> LinkInfo:
    """What the kernel says of an XDP or tcx link."""
    info = _LinkInfo()
    _read_info(fd, info)
    return LinkInfo(info.id, info.prog_id, info.ifindex)


def btf_of_id(btf_id: int) -> bytes:
    """Type information that was loaded along with a map."""
    fd = check(library().bpf_btf_get_fd_by_id(btf_id), "the type information of a table can't be opened")
    try:
        info = _BtfInfo()
        _read_info(fd, info)
        blob = ctypes.create_string_buffer(info.btf_size)
        again = _BtfInfo(ctypes.addressof(blob), info.btf_size)
        _read_info(fd, again)
        return blob.raw
    finally:
        os.close(fd)


def pin(fd: int, path: Path) -> None:
    """Give a map, program or link a name in bpffs, which keeps it alive. Raises KernelError."""
    check(library().bpf_obj_pin(fd, os.fsencode(path)), f"{path} can't be pinned")


def open_pin(path: Path) -> int:
    """Descriptor of what is pinned at `path`. Raises KernelError."""
    return check(library().bpf_obj_get(os.fsencode(path)), f"{path} can't be opened")


class _LinkCreateOptions(ctypes.Structure):
    _fields_: ClassVar = [("sz", ctypes.c_size_t), ("flags", _U32), ("padding", _U32)]


def create_xdp_link(program_fd: int, ifindex: int, flags: int) -> int:
    """Descriptor of a new link, or a negative errno."""
    options = _LinkCreateOptions(ctypes.sizeof(_LinkCreateOptions), flags)
    return int(library().bpf_link_create(program_fd, ifindex, XDP, ctypes.byref(options)))


def create_tcx_link(program_fd: int, ifindex: int) -> int:
    """Descriptor of a new link, behind the programs that are there; or a negative errno (-EINVAL before Linux 6.6)."""
    options = _LinkCreateOptions(ctypes.sizeof(_LinkCreateOptions), 0)
    return int(library().bpf_link_create(program_fd, ifindex, TCX_INGRESS, ctypes.byref(options)))


def tcx_programs(ifindex: int, where: int = TCX_INGRESS) -> list[int]:
    """Ids of the programs at the tcx of an interface, in order; none where the kernel has none."""
    ids, count = (_U32 * 64)(), _U32(64)
    result = library().bpf_prog_query(ifindex, where, 0, None, ids, ctypes.byref(count))
    if result in (-errno.EINVAL, -errno.ENOENT, -errno.ENODEV):
        return []
    check(result, f"the TC programs of interface {ifindex} can't be listed")
    return list(ids[: count.value])


def find_tcx_link(ifindex: int, program_id: int) -> int | None:
    """Descriptor of the link, pinned or not, that has a program at the tcx ingress of an interface; None without one.

    The kernel doesn't tell links of different network namespaces apart: where two fit, KernelError is raised.
    """
    found: list[int] = []
    number = _U32()
    while library().bpf_link_get_next_id(number.value, ctypes.byref(number)) == 0:
        fd = library().bpf_link_get_fd_by_id(number.value)
        if fd < 0:
            continue  # it has just gone
        info = _LinkInfo()
        try:
            _read_info(fd, info)
        except KernelError:
            os.close(fd)
            continue
        where = int.from_bytes(bytes(info.rest)[:4], sys.byteorder)
        is_wanted = (info.type, where, info.ifindex) == (_LINK_TYPE_TCX, TCX_INGRESS, ifindex)
        if is_wanted and info.prog_id == program_id:
            found.append(fd)
        else:
            os.close(fd)
    if len(found) > 1:
        for fd in found:
            os.close(fd)
        raise KernelError(f"program {program_id} has several links to an interface {ifindex}", errno.EEXIST)
    return found[0] if found else None


class _ProgramAttachOptions(ctypes.Structure):
    _fields_: ClassVar = [("sz", ctypes.c_size_t), ("flags", _U32), ("replace_prog_fd", _INT)]


def replace_tcx(ifindex: int, old_program_id: int, new_program_fd: int | None) -> None:
    """Exchange (or, without a new one, detach) a program that is at a tcx ingress without a link.

    Raises KernelError.
    """
    old = check(library().bpf_prog_get_fd_by_id(old_program_id), f"program {old_program_id} can't be opened")
    try:
        if new_program_fd is None:
            result = library().bpf_prog_detach2(old, ifindex, TCX_INGRESS)
        else:
            options = _ProgramAttachOptions(ctypes.sizeof(_ProgramAttachOptions), _REPLACE, old)
            result = library().bpf_prog_attach_opts(
                new_program_fd, ifindex, TCX_INGRESS, ctypes.byref(options)
            )
        check(result, f"the TC program of interface {ifindex} can't be replaced")
    finally:
        os.close(old)


class _XdpAttachOptions(ctypes.Structure):
    _fields_: ClassVar = [("sz", ctypes.c_size_t), ("old_prog_fd", _INT), ("padding", _U32)]


def attach_xdp(ifindex: int, program_fd: int, mode_flag: int) -> None:
    """Attach a program without a link: it stays for as long as there is the interface. Raises KernelError."""
    result = library().bpf_xdp_attach(ifindex, program_fd, mode_flag, None)
    check(result, f"an XDP program can't be attached to interface {ifindex}")


def replace_xdp(ifindex: int, old_program_id: int, new_program_fd: int | None, mode_flag: int) -> None:
    """Exchange (or, without a new one, detach) a program that is attached without a link.

    It is done only while the old program is the one attached. Raises KernelError.
    """
    old = check(library().bpf_prog_get_fd_by_id(old_program_id), f"program {old_program_id} can't be opened")
    try:
        options = _XdpAttachOptions(ctypes.sizeof(_XdpAttachOptions), old)
        if new_program_fd is None:
            result = library().bpf_xdp_detach(ifindex, mode_flag, ctypes.byref(options))
        else:
            result = library().bpf_xdp_attach(
                ifindex, new_program_fd, mode_flag | XDP_FLAGS_REPLACE, ctypes.byref(options)
            )
        check(result, f"the XDP program of interface {ifindex} can't be replaced")
    finally:
        os.close(old)


class ObjectMap(NamedTuple):
    """One map of an object that is open but not yet loaded."""

    name: str
    handle: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    btf_key_type_id: int
    btf_value_type_id: int


class Object:
    """A compiled object: opened, then (after maps were told to be re-used) loaded. A context manager.

    Raises KernelError where libbpf or the kernel refuses, with the end of the verifier's log as the hint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = library()
        take_log()
        ctypes.set_errno(0)
        self._handle: int | None = self._library.bpf_object__open_file(os.fsencode(path), None)
        if not self._handle:
            raise failure(f"{path} can't be opened", ctypes.get_errno(), with_log=True)

    def __enter__(self) -> Object:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the object and of descriptors that weren't duplicated; what is pinned stays."""
        if self._handle:
            self._library.bpf_object__close(self._handle)
        self._handle = None

    def maps(self) -> list[ObjectMap]:
        """The maps, without those that the compiler makes for constants and variables."""
        found = []
        handle = self._library.bpf_object__next_map(self._handle, None)
        while handle:
            if not self._library.bpf_map__is_internal(handle):
                found.append(
                    ObjectMap(
                        self._library.bpf_map__name(handle).decode(),
                        handle,
                        self._library.bpf_map__type(handle),
                        self._library.bpf_map__key_size(handle),
                        self._library.bpf_map__value_size(handle),
                        self._library.bpf_map__max_entries(handle),
                        self._library.bpf_map__map_flags(handle),
                        self._library.bpf_map__btf_key_type_id(handle),
                        self._library.bpf_map__btf_value_type_id(handle),
                    )
                )
            handle = self._library.bpf_object__next_map(self._handle, handle)
        return found

    @cached_property
    def types(self) -> Types:
        """The object's type information: what the type ids of `maps` refer to. Raises MptmError."""
        size = _U32()
        data = self._library.btf__raw_data(self._library.bpf_object__btf(self._handle), ctypes.byref(size))
        return Types(ctypes.string_at(data, size.value) if data else b"", self.path.name)

    def reuse_map(self, declared: ObjectMap, fd: int) -> None:
        """Use an existing map in place of a new one. Only before `load`."""
        check(self._library.bpf_map__reuse_fd(declared.handle, fd), f"map {declared.name} can't be re-used")

    def load(self) -> None:
        """Create the maps and hand the programs to the verifier."""
        take_log()
        if (result := self._library.bpf_object__load(self._handle)) < 0:
            if not KERNEL_BTF.exists():
                raise NotSupported(
                    f"the kernel doesn't take {self.path.name}: it has no type information ({KERNEL_BTF})",
                    hint="boot a kernel built with CONFIG_DEBUG_INFO_BTF, as those of distributions are",
                )
            raise failure(f"the kernel doesn't take {self.path.name}", result, with_log=True)

    def program_fds(self) -> dict[str, int]:
        """Descriptors of the loaded programs by name; the caller's to close."""
        found = {}
        handle = self._library.bpf_object__next_program(self._handle, None)
        while handle:
            name = self._library.bpf_program__name(handle).decode()
            found[name] = os.dup(self._library.bpf_program__fd(handle))
            handle = self._library.bpf_object__next_program(self._handle, handle)
        return found

    def map_fds(self) -> dict[str, int]:
        """Descriptors of the loaded maps by name; the caller's to close."""
        return {each.name: os.dup(self._library.bpf_map__fd(each.handle)) for each in self.maps()}


_ORDERED = ("x86_64", "i686")
"""Machines on which others see stores in the order in which they were made."""

_PRIVATE_EXPEDITED, _REGISTER_PRIVATE_EXPEDITED = 1 << 3, 1 << 4
_MEMBARRIER_X86_64, _MEMBARRIER = 324, 283  # system call numbers: x86_64, and what has the generic ones


@cache
def _membarrier() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    number = _MEMBARRIER_X86_64 if platform.machine() == "x86_64" else _MEMBARRIER
    return lambda command: library.syscall(number, command, 0, 0)


def memory_barrier() -> None:
    """Let all CPUs see what this process stored up to here before what it stores after this: membarrier(2)."""
    if _membarrier()(_PRIVATE_EXPEDITED) == 0:
        return
    _membarrier()(_REGISTER_PRIVATE_EXPEDITED)
    if _membarrier()(_PRIVATE_EXPEDITED):
        raise failure("memory can't be written in order (membarrier)", ctypes.get_errno())


def order_stores() -> None:
    """Let no CPU see what we store from here on before what we stored up to here. x86 keeps the order anyhow."""
    if platform.machine() not in _ORDERED:
        memory_barrier()
