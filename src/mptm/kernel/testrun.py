# SPDX-License-Identifier: GPL-2.0-only
"""One packet through one program, without a wire (BPF_PROG_TEST_RUN; Documentation/bpf/bpf_prog_run.rst)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import ClassVar

from mptm.kernel import libbpf

_GROWTH = 512
"""Bytes that a program may add."""

_LIVE_FRAMES = 1 << 1
"""BPF_F_TEST_XDP_LIVE_FRAMES (Linux 5.18)."""


class _Context(ctypes.Structure):
    """struct xdp_md (linux/bpf.h)."""

    _fields_: ClassVar = [
        ("data", ctypes.c_uint32),
        ("data_end", ctypes.c_uint32),
        ("data_meta", ctypes.c_uint32),
        ("ingress_ifindex", ctypes.c_uint32),
        ("rx_queue_index", ctypes.c_uint32),
        ("egress_ifindex", ctypes.c_uint32),
    ]


class _SkbContext(ctypes.Structure):
    """struct __sk_buff (linux/bpf.h), by what may be set and what is read."""

    _fields_: ClassVar = [
        ("before_mark", ctypes.c_uint32 * 2),
        ("mark", ctypes.c_uint32),
        ("before_ifindex", ctypes.c_uint32 * 7),
        ("ifindex", ctypes.c_uint32),
        ("tc_index", ctypes.c_uint32),
        ("cb", ctypes.c_uint32 * 5),
        ("before_gso_segs", ctypes.c_uint32 * 24),
        ("gso_segs", ctypes.c_uint32),
        ("socket", ctypes.c_uint64),
        ("gso_size", ctypes.c_uint32),
        ("rest", ctypes.c_uint32 * 3),
    ]


_TOLD_PASS = 0x4D50
"""TOLD_PASS of bpf/hook.h: a packet for the stack, which has to look at it anew."""

_DROP, _PASS, _REDIRECT = 1, 2, 4  # enum xdp_action
_TC_VERDICTS = {0xFFFFFFFF: _PASS, 0: _PASS, 2: _DROP, 7: _REDIRECT}


class _Options(ctypes.Structure):
    """struct bpf_test_run_opts (bpf/bpf.h)."""

    _fields_: ClassVar = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


@dataclass(frozen=True)
class Run:
    """What came out: the XDP verdict, the packet as the program left it, nanoseconds of one run on average.

    `mark` is that of the packet afterwards, at TC.
    """

    verdict: int
    data: bytes
    duration_ns: int
    mark: int = 0


def run(program_fd: int, packet: bytes, *, ifindex: int = 1, repeat: int = 1) -> Run:
    """Run an XDP program on a packet (14 bytes or more; from about 3500 on in several buffers) as if it came in at
    interface `ifindex`.

    With `repeat` > 1 each run gets the packet as the one before left it. A redirect is a verdict only: nothing is
    sent. Raises KernelError.
    """
    context = _Context(data_end=len(packet), ingress_ifindex=ifindex)
    options, data = _test_run(program_fd, packet, context, room=len(packet) + _GROWTH, repeat=repeat)
    return Run(options.retval, data, options.duration)


def run_at_tc(
    program_fd: int,
    packet: bytes,
    *,
    ifindex: int,
    gso_size: int = 0,
    gso_segs: int = 0,
    mark: int = 0,
    flags: int = 0,
) -> Run:
    """The same with a program for TC and a packet that is an skb; the verdict is that which XDP has for it.

    With `gso_size` it is a GSO packet with segments of that many bytes, `gso_segs` of them (0: not counted).
    `ifindex` is one of the thread's namespace. VLAN tags are in the data, where those beside it aren't seen
    afterwards. Raises KernelError.
    """
    context = _SkbContext(ifindex=ifindex, gso_size=gso_size, gso_segs=gso_segs, mark=mark)
    after = _SkbContext()
    options, data = _test_run(
        program_fd,
        packet,
        context,
        room=len(packet) + _GROWTH,
        failure=f"the kernel doesn't run a packet of {len(packet)} bytes at TC",
        ctx_out=ctypes.addressof(after),
        ctx_size_out=ctypes.sizeof(after),
        repeat=1,
        flags=flags,
    )
    verdict = _PASS if after.cb[0] == _TOLD_PASS else _TC_VERDICTS[options.retval]
    return Run(verdict, data, options.duration, after.mark)


def send(program_fd: int, packet: bytes, *, ifindex: int, count: int, batch_size: int = 64) -> None:
    """Run an XDP program on `count` live frames as if they came in at interface `ifindex`: what it says is done.

    XDP_TX sends out of that interface. Frames are used again and again, each as the last run left it, so the program
    has to write them. Returns when the last one was handed on. Raises KernelError.
    """
    _test_run(
        program_fd,
        packet,
        _Context(data_end=len(packet), ingress_ifindex=ifindex),
        failure="the kernel doesn't send live frames",
        repeat=count,
        flags=_LIVE_FRAMES,
        batch_size=batch_size,
    )


def _test_run(
    program_fd: int,
    packet: bytes,
    context: _Context | _SkbContext,
    *,
    room: int = 0,
    failure: str = "",
    **more: int,
) -> tuple[_Options, bytes]:
    """What the kernel says of a run, and the packet afterwards where there is room for it. Raises KernelError."""
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(room) if room else None
    options = _Options(
        sz=ctypes.sizeof(_Options),
        data_in=ctypes.addressof(data_in),
        data_out=data_out and ctypes.addressof(data_out),
        data_size_in=len(packet),
        data_size_out=room,
        ctx_in=ctypes.addressof(context),
        ctx_size_in=ctypes.sizeof(context),
        **more,
    )
    libbpf.check(
        libbpf.library().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)),
        failure or f"the kernel doesn't run a packet of {len(packet)} bytes",
    )
    return options, data_out.raw[: options.data_size_out] if data_out else b""
