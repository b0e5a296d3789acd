# SPDX-License-Identifier: GPL-2.0-only
"""Programs at the TC ingress of an interface without tcx (before Linux 6.6): filters of a clsact qdisc (tc-bpf(8)).

A filter of ours has a priority and a handle of its own, so others' filters beside it stay as they are. It comes after
those with a smaller priority. Its name has the program's id, as pyroute2 doesn't read the kernel's word for it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mptm.errors import KernelError
from mptm.kernel import libbpf
from mptm.kernel.netlink import ask, open_netlink

PRIORITY = 44441
"""Of our filters: behind what others put there on purpose, before what has no priority given."""

_HANDLE = 0x4D50  # "MP"
_INGRESS = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
_EGRESS = 0xFFFFFFF3
_CLSACT_HANDLE = 0xFFFF0000
_CLSACT_PARENT = 0xFFFFFFF1
_ETH_P_ALL = 3
_DIRECT_ACTION = 1


@dataclass(frozen=True)
class Filter:
    """A filter of ours: the interface, and the program that it runs."""

    ifindex: int
    name: str
    program_id: int


def filters(of: int | None = None) -> list[Filter]:
    """The filters of ours, of whichever instance: of one interface, or of all in this network namespace.

    Raises KernelError.
    """
    found = []
    with open_netlink() as netlink:
        ifindexes = {of} if of is not None else _with_clsact(netlink)
        for ifindex in sorted(ifindexes):
            try:
                name = socket.if_indextoname(ifindex)
            except OSError:
                continue  # it has just gone
            for message in netlink.get_filters(index=ifindex, parent=_INGRESS):
                if message["handle"] != _HANDLE or message["info"] >> 16 != PRIORITY:
                    continue
                options = message.get_attr("TCA_OPTIONS")
                _, _, number = (
                    (options.get_attr("TCA_BPF_NAME") or "").partition(" ") if options else ("", "", "")
                )
                if number.isdecimal():
                    found.append(Filter(ifindex, name, int(number)))
    return found


def _with_clsact(netlink: Any) -> set[int]:
    return {message["index"] for message in netlink.get_qdiscs() if message.get_attr("TCA_KIND") == "clsact"}


def set_filter(ifindex: int, program_fd: int, name: str, on_qdisc: Callable[[], None] = lambda: None) -> None:
    """Let the interface run a program, in place of the one of ours that it may run already. Raises KernelError.

    `on_qdisc` is called when the interface had no clsact qdisc and has got one, before the filter is put there.
    """
    with open_netlink() as netlink:
        try:
            netlink.tc("add", "clsact", ifindex, _CLSACT_HANDLE)
        except Exception as error:
            if _number(error) != errno.EEXIST:
                raise
        else:
            on_qdisc()
        netlink.tc(
            "replace-filter",
            "bpf",
            ifindex,
            _HANDLE,
            fd=program_fd,
            name=f"{name} {libbpf.program_info(program_fd).id}",
            parent=_INGRESS,
            prio=PRIORITY,
            protocol=_ETH_P_ALL,
            classid=1,
            direct_action=True,
        )


def remove_filter(ifindex: int) -> None:
    """Take our filter off an interface; that it isn't there, or the interface is gone, is no error."""
    with open_netlink() as netlink:
        try:
            netlink.tc(
                "del-filter", "bpf", ifindex, _HANDLE, parent=_INGRESS, prio=PRIORITY, protocol=_ETH_P_ALL
            )
        except Exception as error:
            if _number(error) not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise


def remove_qdisc(ifindex: int) -> bool:
    """Take the clsact qdisc off an interface, unless there are filters on it; false: it stays. Raises KernelError.

    The kernel has no word for "if it is empty": a filter that somebody adds between the look and the removal goes with
    it. So it is looked for last, and whatever isn't clear leaves the qdisc where it is.
    """
    with open_netlink() as netlink:
        for parent in (_INGRESS, _EGRESS):
            found, number = ask(netlink.get_filters, index=ifindex, parent=parent)
            if found or number:
                return False
        try:
            netlink.tc("del", "clsact", ifindex, _CLSACT_HANDLE)
        except Exception as error:
            if _number(error) not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise
    return True


def _number(error: Exception) -> int:
    """The errno of pyroute2's NetlinkError or of ours; other exceptions are no answer of the kernel's."""
    if isinstance(error, KernelError):
        return error.errno
    code: Any = getattr(error, "code", 0)
    return int(code)
