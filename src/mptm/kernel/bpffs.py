# SPDX-License-Identifier: GPL-2.0-only
"""The BPF file system, where maps, programs and links live on when no process holds them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from mptm.errors import KernelError, MptmError

MOUNT_POINT = Path("/sys/fs/bpf")


def is_mounted() -> bool:
    """True when the BPF file system is what this process sees at /sys/fs/bpf."""
    kind = ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[4] == str(MOUNT_POINT):
                kind = fields[fields.index("-") + 1]
    return kind == "bpf"


def ensure_mounted() -> None:
    """Mount the BPF file system where it isn't mounted yet.

    Raises MptmError in a mount namespace that hides it (`ip netns exec` makes one): what is pinned there would
    vanish with the process. Raises KernelError when mount(2) fails.
    """
    if is_mounted():
        return
    if _is_hidden():
        raise MptmError(
            f"{MOUNT_POINT} is hidden from this process by its mount namespace",
            "`ip netns exec` does this: use nsenter --net=/run/netns/NAME instead",
        )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (ctypes.c_char_p,) * 3 + (ctypes.c_ulong, ctypes.c_char_p)
    if libc.mount(b"bpf", os.fsencode(MOUNT_POINT), b"bpf", 0, b"mode=0700") != 0:
        number = ctypes.get_errno()
        raise KernelError(
            f"the BPF file system can't be mounted on {MOUNT_POINT}",
            number,
            "run it as root" if os.geteuid() != 0 else "in a container, mount it from the host",
        )


def _is_hidden() -> bool:
    """Whether this mount namespace is one that hides what the machine has mounted."""
    try:
        return os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt")
    except OSError:  # a sandbox that doesn't show its first process
        return _is_of_ip_netns_exec()


def _is_of_ip_netns_exec() -> bool:
    """Whether /sys is what `ip netns exec NAME` mounts there: its source is NAME (iproute2, lib/namespace.c)."""
    source = ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[4] == "/sys":
                source = fields[fields.index("-") + 2]
    return Path("/run/netns", source).is_file() if source else False


def escape(name: str) -> str:
    """A name as it may stand in the BPF file system, which reserves dots: `eth0.100` -> `eth0:100`.

    Neither interfaces nor instances have a colon in their name, so `unescape` is exact.
    """
    return name.replace(".", ":")


def unescape(name: str) -> str:
    """The name that `escape` was given."""
    return name.replace(":", ".")
