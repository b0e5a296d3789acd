# SPDX-License-Identifier: GPL-2.0-only
"""Which function of the data plane's source a program spends its time in, by perf's samples of the CPU's clock.

A compiled BPF program knows which of its instructions came from which source line, inlined functions included
(Documentation/bpf/btf.rst, "BPF_PROG_LOAD"); so addresses that were sampled become lines, and lines functions.
"""

from __future__ import annotations

import bisect
import ctypes
import re
import shutil
import struct
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from mptm.errors import NotSupported
from mptm.kernel import libbpf

FREQUENCY_HZ = 5000
TOOL_SECONDS = 30.0
OTHER = "(between functions)"
MACROS = "macros"
HELPERS = ("bpf_xdp_", "bpf_skb_", "bpf_get_", "bpf_ktime_", "dev_", "htab_", "__htab_", "trie_")
"""How the kernel's functions begin that programs call; whatever else was sampled is the benchmark's own."""
_DEFINITION = re.compile(
    r"^(?:static |__noinline |SEC\(|HOOK_PROGRAM\(|__attribute__)[^;]*?(\w+)\((?!\")[^;]*$"
)
_PROGRAM = re.compile(r"bpf_prog_[0-9a-f]{16}_")


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info (linux/bpf.h), with where its lines are."""

    _fields_: ClassVar = [
        ("before_ksyms", ctypes.c_uint8 * 104),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64),
        ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("rest", ctypes.c_uint32 * 16),
    ]


def profile(program_fd: int, work: Callable[[], None], seconds: float) -> dict[str, float]:
    """Percent of the samples by function, while `work` runs again and again in this thread for so many seconds.

    Functions are the program's own as `name (file)`, and those of the kernel that it calls. Raises NotSupported where
    there is no perf, and SubprocessError when it fails.
    """
    if shutil.which("perf") is None:
        raise NotSupported("perf isn't installed: apt-get install linux-perf")
    lines = _Lines(program_fd)
    with tempfile.TemporaryDirectory(prefix="mptm-bench-perf-") as directory:
        data = f"{directory}/perf.data"
        command = [
            "perf",
            "record",
            "-q",
            "-e",
            "cpu-clock",
            "-F",
            str(FREQUENCY_HZ),
            "-t",
            str(threading.get_native_id()),
        ]
        recorder = subprocess.Popen(
            [*command, "-o", data, "--", "sleep", f"{seconds:.2f}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while recorder.poll() is None:
                work()
        finally:
            recorder.kill()
            recorder.wait()
        said = subprocess.run(
            ["perf", "script", "-i", data, "-F", "ip,sym"],
            capture_output=True,
            text=True,
            timeout=TOOL_SECONDS,
            check=False,
        ).stdout
    found: Counter[str] = Counter()
    for line in said.splitlines():
        address, _, symbol = line.strip().partition(" ")
        if not address:
            continue
        if _PROGRAM.match(symbol):
            found[lines.function_at(int(address, 16))] += 1
        elif symbol.startswith(HELPERS):
            found[symbol] += 1
    total = sum(found.values())
    if not total:
        raise NotSupported("perf took no samples of a BPF program on this machine")
    return {name: 100 * number / total for name, number in found.most_common()}


class _Lines:
    """Addresses of a program's compiled instructions -> functions of its source."""

    def __init__(self, program_fd: int) -> None:
        counts = _ProgramInfo()
        _read(program_fd, counts)
        info = _ProgramInfo()
        lines = ctypes.create_string_buffer(max(1, counts.nr_line_info * counts.line_info_rec_size))
        addresses = (ctypes.c_uint64 * max(1, counts.nr_jited_line_info))()
        info.nr_line_info, info.line_info = counts.nr_line_info, ctypes.addressof(lines)
        info.line_info_rec_size = counts.line_info_rec_size
        info.nr_jited_line_info, info.jited_line_info = (
            counts.nr_jited_line_info,
            ctypes.addressof(addresses),
        )
        info.jited_line_info_rec_size = counts.jited_line_info_rec_size
        _read(program_fd, info)
        blob = libbpf.btf_of_id(counts.btf_id)
        header_len, strings_offset = (
            struct.unpack_from("<I", blob, 4)[0],
            struct.unpack_from("<I", blob, 16)[0],
        )
        strings = blob[header_len + strings_offset :]
        self._places: list[tuple[int, str, int]] = []
        for number in range(min(counts.nr_line_info, counts.nr_jited_line_info)):
            _, file, _, position = struct.unpack_from("<IIII", lines.raw, number * counts.line_info_rec_size)
            name = strings[file : strings.index(b"\0", file)].decode()
            self._places.append((addresses[number], name, position >> 10))
        self._places.sort()
        self._sources: dict[str, list[tuple[int, str]]] = {}

    def function_at(self, address: int) -> str:
        """`name (file)` of the function that an instruction came from."""
        at = bisect.bisect_right(self._places, (address, "\U0010ffff", 0)) - 1
        if at < 0:
            return OTHER
        _, file, line = self._places[at]
        functions = self._functions(file)
        before = bisect.bisect_right(functions, (line, "\U0010ffff")) - 1
        name = functions[before][1] if before >= 0 else MACROS
        return name if name == MACROS else f"{name} ({Path(file).name})"

    def _functions(self, file: str) -> list[tuple[int, str]]:
        """Lines at which functions begin in a source file, with their names."""
        if file not in self._sources:
            found = []
            try:
                text = Path(file).read_text(encoding="utf-8", errors="replace")
            except OSError:
                text = ""
            for number, line in enumerate(text.splitlines(), 1):
                if match := _DEFINITION.match(line):
                    found.append((number, match[1]))
            self._sources[file] = found
        return self._sources[file]


def _read(fd: int, info: ctypes.Structure) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    libbpf.check(
        libbpf.library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)),
        "the kernel doesn't describe a program",
    )
