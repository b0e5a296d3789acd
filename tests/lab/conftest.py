# SPDX-License-Identifier: GPL-2.0-only
"""Labs for tests: real namespaces, links and traffic. All tests of this directory need root."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest
from apart import set_apart
from traffic import HOOK, at_hook

from mptm.lab.topology import Lab

_numbers = itertools.count(1)
TEST_SECONDS = 480
"""Time limit of a test. The longest make hundreds of changes: 216 s were seen on a busy machine."""


def pytest_configure(config: pytest.Config) -> None:
    """Several at once (pytest-xdist) have nothing in common but the machine."""
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        set_apart()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab" not in item.path.as_posix():
            continue
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="network namespaces and BPF need root"))
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session", autouse=True)
def hook_of_ports() -> Iterator[None]:
    """MPTM_TEST_HOOK=tc, or auto: the ports of all labs are at that hook, whatever the lab's files say."""
    with pytest.MonkeyPatch.context() as patch:
        if HOOK is not None:
            as_in_file = Lab.intent
            patch.setattr(Lab, "intent", lambda lab, name: at_hook(as_in_file(lab, name), HOOK))
        yield


@pytest.fixture(scope="session")
def lab_prefix() -> Callable[[], str]:
    """Gives a prefix that no other lab on this machine has."""
    return lambda: f"mptmt{os.getpid()}-{next(_numbers)}"


@pytest.fixture(scope="module")
def lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    """The two-node lab with both nodes up, shared by the tests of a module: they leave it as they found it."""
    with Lab(lab_prefix()) as built:
        yield built


@pytest.fixture
def bare_lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    """Namespaces and links of the two-node lab, nothing configured in MPTM, for one test."""
    built = Lab(lab_prefix())
    built.up(bare=True)
    try:
        yield built
    finally:
        built.down()
