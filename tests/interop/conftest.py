# SPDX-License-Identifier: GPL-2.0-only
"""The matrix of real peers: its size, its labs, and its results.

`--full` tries every case and writes what came of it to build/interop/<peer>.json, which table.py makes docs/interop.md
of. Without it only the quick cases are tried, with a short TCP transfer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ground import Ground
from peers import PEERS
from results import Result, Results, text_table

RESULTS = Path(__file__).parents[2] / "build" / "interop"
QUICK_TRANSFER_BYTES = 2_000_000
results: dict[str, Results] = {}
"""By peer."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the whole matrix of peers, not its quick part")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if "tests/interop" in item.path.as_posix() and "ground" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="network namespaces and BPF need root"))


@pytest.fixture(scope="session")
def transfer_bytes(request: pytest.FixtureRequest, ground: Ground) -> int:
    """Bytes of a TCP transfer, each way."""
    return ground.peer.transfer_bytes if request.config.getoption("--full") else QUICK_TRANSFER_BYTES


@pytest.fixture(scope="session")
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """The lab of a peer with the cases that are tried."""
    peer = PEERS[request.param]
    cases = [case for case in peer.cases() if case.quick or request.config.getoption("--full")]
    built = Ground(f"mptmi{os.getpid()}-{peer.name}", peer, cases)
    built.up()
    try:
        results.setdefault(peer.name, Results(peer.name, peer.title, built.peer.version()))
        yield built
    finally:
        built.down()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    found = dict(item.user_properties).get("result")
    if isinstance(found, Result) and (report.when == "call" or report.failed):
        outcome = found.outcome if report.passed else "failed"
        results[found.peer].add(found.with_outcome(outcome))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for found in results.values():
        terminalreporter.section(f"interop: {found.title}")
        terminalreporter.write_line(text_table(found))
    if not config.getoption("--full"):
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, found in results.items():
        (RESULTS / f"{name}.json").write_text(json.dumps(found.to_dict(), indent=1) + "\n")
