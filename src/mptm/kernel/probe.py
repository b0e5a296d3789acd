# SPDX-License-Identifier: GPL-2.0-only
"""Tries what a data plane needs, on links of a network namespace of its own that vanishes with the trial."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from mptm.errors import KernelError, MptmError
from mptm.kernel import libbpf, tc
from mptm.kernel.dataplane import NO_TCX
from mptm.kernel.maps import Map
from mptm.kernel.objects import DATA_PLANE, DATA_PLANE_TC, EXTRAS, object_path

_CLONE_NEWNET = 0x40000000
_BPF_PROG_TYPE_TRACING = 26
_NATIVE, _GENERIC = 1 << 2, 1 << 1  # XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE
_ETHERTYPE = 0x88B5  # IEEE 802 local experimental
_TIMEOUT_SECONDS = 2.0
_FRAME = bytes.fromhex("ffffffffffff 020000000001") + _ETHERTYPE.to_bytes(2) + b"mptm doctor".ljust(46, b"\0")


def try_xdp() -> dict[str, str | None]:
    """Try to load the data plane, to attach to a veth in both modes, and to redirect a frame.

    Returns None for what works and a sentence for what doesn't: by `load`, `tc`, `native`, `generic`, `redirect`; only
    `trial` when there is nowhere to try it. Needs root. Leaves nothing behind.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.write(writing, json.dumps(_trial()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    steps = ("load", "tc", "native", "generic", "redirect")
    found: dict[str, str | None] = (
        json.loads(answer) if answer else dict.fromkeys(steps, "the trial broke off")
    )
    return found


def can_trace() -> bool | None:
    """Whether the kernel loads fentry programs; None: can't be found out. Needs root. Raises NotSupported."""
    answer: int = libbpf.library().libbpf_probe_bpf_prog_type(_BPF_PROG_TYPE_TRACING, None)
    return None if answer < 0 else answer == 1


def _trial() -> dict[str, str | None]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        return {"trial": f"no network namespace to try it in: {os.strerror(ctypes.get_errno())}"}
    return {
        "load": _attempt(_load_data_plane),
        "tc": _attempt(_attach_at_tc),
        "native": _attempt(lambda: _attach("native", _NATIVE)),
        "generic": _attempt(lambda: _attach("generic", _GENERIC)),
        "redirect": _attempt(_redirect),
    }


def _attempt(step: Callable[[], None]) -> str | None:
    try:
        step()
    except MptmError as error:
        return error.message
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _load_data_plane() -> None:
    with libbpf.Object(object_path(DATA_PLANE)) as loading:
        loading.load()


def _attach_at_tc() -> None:
    """As it is done for a port: by a tcx link, or where the kernel has none by a filter."""
    index = _make_links(("tc0", "tc1"))["tc0"]
    with libbpf.Object(object_path(DATA_PLANE_TC)) as loading:
        loading.load()
        fd = loading.program_fds()["mptm_encap_tc"]
        link = libbpf.create_tcx_link(fd, index)
        if link >= 0:
            os.close(link)
        elif -link in NO_TCX:
            tc.set_filter(index, fd, "mptm_encap_tc")
        else:
            libbpf.check(link, "TC can't be attached to a veth")


def _make_links(*pairs: tuple[str, str]) -> dict[str, int]:
    """Veth pairs, up; the ifindex of each end by name."""
    from pyroute2.iproute.linux import IPRoute  # type: ignore[import-untyped]  # it has no type information

    netlink: Any
    with IPRoute() as netlink:
        for one, other in pairs:
            netlink.link("add", ifname=one, kind="veth", peer={"ifname": other})
        indexes = {name: netlink.link_lookup(ifname=name)[0] for pair in pairs for name in pair}
        for index in indexes.values():
            netlink.link("set", index=index, state="up")
    return indexes


def _attach(name: str, flag: int) -> None:
    index = _make_links((f"{name}0", f"{name}1"))[f"{name}0"]
    with libbpf.Object(object_path(EXTRAS)) as extras:
        extras.load()
        fd = libbpf.create_xdp_link(extras.program_fds()["mptm_pass"], index, flag)
    libbpf.check(fd, f"XDP can't be attached to a veth in {name} mode")
    os.close(fd)


def _redirect() -> None:
    """A frame into `in0` arrives at `out0` when mptm_redirect on `in1` sends it out of `out1`."""
    indexes = _make_links(("in0", "in1"), ("out0", "out1"))
    with libbpf.Object(object_path(EXTRAS)) as extras:
        extras.load()
        programs = extras.program_fds()
        ports = Map("redirect_ports", extras.map_fds()["redirect_ports"])
        ports.update({ports.key.pack(indexes["in1"]): ports.value.pack(indexes["out1"])})
        for name, program in (("in1", "mptm_redirect"), ("out0", "mptm_pass")):
            link = libbpf.create_xdp_link(programs[program], indexes[name], 0)
            libbpf.check(link, f"{program} can't be attached")
        if not _arrives("in0", "out0"):
            raise KernelError("a redirected frame didn't arrive", 0)


def _arrives(source: str, destination: str) -> bool:
    """Send frames into one interface until one comes out of the other, or the time is over."""
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE)) as receiving,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sending,
    ):
        receiving.bind((destination, _ETHERTYPE))
        receiving.settimeout(0.1)
        sending.bind((source, 0))
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            sending.send(_FRAME)
            try:
                if receiving.recv(2048).startswith(_FRAME):
                    return True
            except TimeoutError:
                continue
    return False
