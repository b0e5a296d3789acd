# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel's verifier says of an object's programs, one by one: `load.py --kernel 6.1 build/mptm.o`.

Prints for each program how much work it was to verify, or how the verifier refused it; exit status 1 when it refused
one. Without --kernel it is the running kernel. With --log a refusal comes with the last instructions walked.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
from pathlib import Path

from kernels import SERIES, Unavailable, get_kernel
from machine import GuestError, Machine

from mptm.errors import MptmError
from mptm.kernel import libbpf

_STATISTICS = 4  # BPF_LOG_STATS: the verdict and the totals, no instructions
_INSTRUCTIONS = 1  # BPF_LOG_LEVEL1
_TAIL_LINES = 60


def load_one(path: Path, name: str, log_level: int, log_size: int) -> tuple[MptmError | None, str]:
    """Let the running kernel verify one program of an object; the error, if it refused, and the verifier's log."""
    library = libbpf.library()
    for function, arguments in {
        "bpf_program__set_autoload": (ctypes.c_void_p, ctypes.c_bool),
        "bpf_program__set_log_level": (ctypes.c_void_p, ctypes.c_uint32),
        "bpf_program__set_log_buf": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
    }.items():
        getattr(library, function).argtypes = arguments
    log = ctypes.create_string_buffer(log_size)
    error = None
    with libbpf.Object(path) as loading:
        for each, handle in _programs(loading):
            library.bpf_program__set_autoload(handle, each == name)
            if each == name:
                library.bpf_program__set_log_level(handle, log_level)
                library.bpf_program__set_log_buf(handle, log, log_size)
        try:
            loading.load()
        except MptmError as refused:
            error = refused
    return error, log.value.decode(errors="replace")


def _programs(loading: libbpf.Object) -> list[tuple[str, int]]:
    library = libbpf.library()
    found = []
    handle = library.bpf_object__next_program(loading._handle, None)
    while handle:
        found.append((library.bpf_program__name(handle).decode(), handle))
        handle = library.bpf_object__next_program(loading._handle, handle)
    return found


def load_here(path: Path, with_log: bool) -> int:
    """Report on the running kernel; the exit status."""
    with libbpf.Object(path) as opened:
        names = [name for name, _ in _programs(opened)]
    print(f"kernel {os.uname().release}, {path.name}")
    refused = 0
    for name in names:
        started = time.monotonic()
        error, log = load_one(path, name, _STATISTICS, 1 << 20)
        seconds = time.monotonic() - started
        print(f"{'refused' if error else 'ok     '} {name} ({seconds:.1f} s)", flush=True)
        if error is not None:
            refused += 1
            print(f"  {str(error).splitlines()[0]}")
            if with_log:
                _, log = load_one(path, name, _INSTRUCTIONS | _STATISTICS, 256 << 20)
        for line in log.splitlines()[-_TAIL_LINES:]:
            print(f"  {line}", flush=True)
    return 1 if refused else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("object", type=Path, help="such as build/mptm.o")
    parser.add_argument(
        "--kernel", choices=SERIES, action="append", help="boot this one; may be given several times"
    )
    parser.add_argument("--log", action="store_true", help="with the last instructions of what is refused")
    parser.add_argument("--timeout", type=float, default=300, help="seconds (default %(default)s)")
    given = parser.parse_args()
    path = given.object.resolve()
    if not path.is_file():
        parser.error(f"{given.object} isn't there: make build")
    status = 0
    try:
        if not given.kernel:
            return load_here(path, given.log)
        for series in given.kernel:
            with Machine(get_kernel(series), memory_mib=2048 if given.log else 1024) as guest:
                words = ["--log"] if given.log else []
                result = guest.python(Path(__file__), *words, path, timeout=given.timeout)
            print(result.stdout + result.stderr, end="", flush=True)
            if result.timed_out:
                print(f"kernel {series} took longer than {given.timeout:.0f} s")
            status = status or (1 if result.timed_out else result.status)
    except (MptmError, Unavailable, GuestError) as error:
        print(f"load.py: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
