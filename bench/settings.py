# SPDX-License-Identifier: GPL-2.0-only
"""The global variables of a loaded BPF object."""

from __future__ import annotations

import os

from mptm.errors import MptmError
from mptm.kernel import libbpf
from mptm.kernel.maps import Map


def variables(program_fd: int) -> Map:
    """The map with the variables (section .bss) that a program uses. Raises MptmError when it has none."""
    for map_id in libbpf.program_info(program_fd).map_ids:
        fd = libbpf.check(libbpf.library().bpf_map_get_fd_by_id(map_id), "a map can't be opened")
        if libbpf.map_info(fd).name.endswith(".bss"):
            return Map("variables", fd)
        os.close(fd)
    raise MptmError("the benchmark's objects are of another build", "run: make build")
