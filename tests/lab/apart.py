# SPDX-License-Identifier: GPL-2.0-only
"""A process of its own ground: no name, link, pin or mount of it meets another's (unshare(2)).

Labs of several processes have different names, but share /run/netns, which the first namespace turns into a mount, and
the network namespace that all of them start from.
"""

from __future__ import annotations

import ctypes
import os
import subprocess

from mptm.lab.topology import NAMESPACES

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
MOUNTS = {"/run": "tmpfs", "/sys": "sysfs", "/sys/fs/bpf": "bpf"}
"""Directory -> type of the file system that the process gets there. sysfs shows the links of where it was mounted."""


def set_apart() -> None:
    """Give the calling thread, and what it starts, a network and a mount namespace with an own /run, /sys and bpffs.

    Needs root. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p)
    _check("unshare", libc.unshare(CLONE_NEWNS | CLONE_NEWNET))
    _check("mount /", libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    for directory, kind in MOUNTS.items():
        _check(f"mount {directory}", libc.mount(kind.encode(), directory.encode(), kind.encode(), 0, None))
    NAMESPACES.mkdir()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _check(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
