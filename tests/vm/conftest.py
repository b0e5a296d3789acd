# SPDX-License-Identifier: GPL-2.0-only
"""The guests: each of Debian's kernels is booted once, when a test first needs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from kernels import SERIES, Unavailable, get_kernel
from machine import Machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what one guest runs in one process (pytest-xdist's --dist loadgroup)."""
    for item in items:
        if "tests/vm" not in item.path.as_posix():
            continue
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="BPF and network namespaces need root"))
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            item.add_marker(pytest.mark.xdist_group(item.callspec.params.get("guest", "")))


@pytest.fixture(scope="session", params=SERIES, ids=[f"linux-{series}" for series in SERIES])
def guest(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A guest with one of Debian's kernels; skips with the reason where there is none."""
    try:
        kernel = get_kernel(request.param)
    except Unavailable as reason:
        pytest.skip(f"Linux {request.param}: {reason}")
    with Machine(kernel) as booted:
        yield booted
