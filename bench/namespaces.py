# SPDX-License-Identifier: GPL-2.0-only
"""Throw-away network namespaces: gone when the block ends, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from mptm.errors import MptmError
from mptm.kernel import netns
from mptm.kernel.dataplane import instance_directory, remove_instance
from mptm.lab.topology import configure, run, run_in

_NAME = re.compile(r"mptm-bench-(\d+)-.*")


def instance_name(name: str) -> str:
    """Name of an instance (or namespace) of this run."""
    return f"mptm-bench-{os.getpid()}-{name}"


class Namespaces:
    """Makes namespaces `mptm-bench-<pid>-<name>`; a context manager that deletes them.

    What a killed run left behind is deleted first.
    """

    def __init__(self) -> None:
        self._made: list[str] = []

    def __enter__(self) -> Self:
        for name in _left_behind(netns.DIRECTORY):
            run(["ip", "netns", "delete", name])
        for name in _left_behind(instance_directory("any").parent):
            remove_instance(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._made:
            with contextlib.suppress(MptmError):
                run(["ip", "netns", "delete", self._made.pop()])

    def add(self, name: str) -> str:
        """A new namespace, without IPv6 of its own: nothing is sent in it but what is asked for."""
        full_name = instance_name(name)
        self._made.append(full_name)
        run(["ip", "netns", "add", full_name])
        with netns.inside(full_name):
            for links in ("all", "default"):
                Path(f"/proc/sys/net/ipv6/conf/{links}/disable_ipv6").write_text("1")
        ip(full_name, ["link set lo up"])
        return full_name


def _left_behind(directory: Path) -> list[str]:
    """Names in a directory that belong to runs that no longer run."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = ((name, _NAME.fullmatch(name)) for name in names)
    return sorted(name for name, match in found if match and not Path(f"/proc/{match[1]}").exists())


def ip(namespace: str, commands: Sequence[str]) -> None:
    """`ip` commands in a namespace, in one batch. Raises MptmError."""
    configure(namespace, commands)


def ethtool(namespace: str, *arguments: str) -> None:
    """`ethtool` in a namespace. Raises MptmError."""
    run_in(namespace, ["ethtool", *arguments])


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    """The last CPU that this thread may use, so that a run doesn't move in the middle."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
