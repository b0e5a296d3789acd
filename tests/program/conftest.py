# SPDX-License-Identifier: GPL-2.0-only
"""The data plane under test, loaded once into an instance of its own. All tests of this directory need root."""

from __future__ import annotations

import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from world import World, world

from mptm.kernel.dataplane import DataPlane, remove_instance
from mptm.kernel.testrun import Run
from mptm.kernel.testrun import run as run_program


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if "tests/program" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="loading BPF programs needs root"))


@pytest.fixture(scope="session")
def dataplane() -> Iterator[DataPlane]:
    """build/mptm.o, loaded and pinned, nothing attached; removed at the end. Tests leave its tables empty."""
    instance = f"test-program-{os.getpid()}"
    try:
        loaded = DataPlane.open(instance, load=True)
        assert loaded is not None
        yield loaded
        loaded.close()
    finally:
        remove_instance(instance)


@pytest.fixture(scope="session")
def run(dataplane: DataPlane) -> Callable[..., Run]:
    """run("mptm_encap_xdp", packet, ifindex=1, repeat=1) -> Run: one packet through one program."""

    def run_named(program: str, packet: bytes, *, ifindex: int = 1, repeat: int = 1) -> Run:
        return run_program(dataplane.program_fd(program), packet, ifindex=ifindex, repeat=repeat)

    return run_named


@pytest.fixture(scope="session")
def node() -> Iterator[World]:
    """Node 1 of two; each test applies what it needs."""
    with world("node1") as made:
        yield made


@pytest.fixture(scope="session")
def peer() -> Iterator[World]:
    """Node 2: where node 1 is the remote."""
    with world("node2", is_far=True) as made:
        yield made


@pytest.fixture(scope="session")
def clang() -> Callable[..., Path]:
    """Compiles C text to an object."""
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")

    def compile_object(path: Path, text: str, *flags: str) -> Path:
        machine = f"-I/usr/include/{os.uname().machine}-linux-gnu"
        options = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", machine, *flags, "-x", "c", "-c", "-"]
        subprocess.run(
            ["clang", *options, "-o", str(path)],
            input=textwrap.dedent(text),
            text=True,
            check=True,
        )
        return path

    return compile_object
