# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces: enter one by name or path (setns(2))."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mptm.errors import KernelError, NotFound

DIRECTORY = Path("/run/netns")
"""Where `ip netns` keeps its namespaces."""

_CLONE_NEWNET = 0x40000000


def enter(name_or_path: str) -> None:
    """Move the calling thread into a network namespace, for good.

    A name without a slash is one of `ip netns`. Raises NotFound, or KernelError when setns(2) fails.
    """
    path = Path(name_or_path) if "/" in name_or_path else DIRECTORY / name_or_path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(
            f"there is no network namespace {name_or_path}", "`ip netns list` shows them"
        ) from None
    except OSError as error:
        raise KernelError(f"network namespace {name_or_path} can't be opened", error.errno or 0) from None
    try:
        _set(fd, name_or_path)
    finally:
        os.close(fd)


@contextmanager
def inside(name_or_path: str) -> Iterator[None]:
    """The calling thread is in the namespace within the `with` block, and back in its own after it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(name_or_path)
        try:
            yield
        finally:
            _set(home, "of before")
    finally:
        os.close(home)


def _set(fd: int, name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise KernelError(
            f"network namespace {name} can't be entered", number, "run it as root" if os.geteuid() else None
        )
