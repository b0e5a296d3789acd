# SPDX-License-Identifier: GPL-2.0-only
"""The matrix of real peers: its size, its labs, and its results.

`--full` tries every case and, unless transfers are shortened, writes what came of it to build/interop/<peer>.json,
which interop_page.py makes docs/interop.md of. Without it only the quick cases are tried, with a short TCP transfer.
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
from results import PeerResults, Recorder, text_table

RESULTS = Path(__file__).parents[2] / "build" / "interop"
QUICK_TRANSFER_BYTES = 2_000_000
LAB_SECONDS = 600
"""Time limit of a test: the first with a guest boots it and sets all its places up."""
found: dict[str, PeerResults] = {}
"""By peer, while the tests run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the whole matrix of peers, not its quick part")
    parser.addoption("--transfer-megabytes", type=int, help="of a TCP transfer, each way")
    parser.addoption("--peer", choices=PEERS, help="no other peer than this")
    parser.addoption(
        "--hook",
        choices=["xdp", "tc", "auto"],
        default="auto",
        help="of our ports (default: auto, as MPTM's)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what isn't to be tried, and put tests with the same peer together."""
    full, peer = config.getoption("--full"), config.getoption("--peer")
    kept = [
        item
        for item in items
        if (full or not _is_for_full(item)) and peer in (None, _parameters(item).get("ground", peer))
    ]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    items.sort(key=_peer_number)
    for item in items:
        if _parameters(item).get("ground"):
            item.add_marker(pytest.mark.timeout(LAB_SECONDS))
        if os.geteuid() != 0 and "tests/interop" in item.path.as_posix() and "ground" in item.fixturenames:
            item.add_marker(pytest.mark.skip(reason="network namespaces and BPF need root"))


def _parameters(item: pytest.Item) -> dict[str, Any]:
    ours = "tests/interop" in item.path.as_posix()
    return (
        item.callspec.params
        if ours and isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )


def _is_for_full(item: pytest.Item) -> bool:
    parameters = _parameters(item)
    return "case" in parameters and not parameters["case"].quick


def _peer_number(item: pytest.Item) -> int:
    return [*PEERS, None].index(_parameters(item).get("ground"))


class Grounds:
    """The lab of one peer at a time: tests are sorted by peer."""

    def __init__(self, full: bool, hook: str) -> None:
        self._full = full
        self._hook = hook
        self._standing: Ground | None = None
        self._broken: dict[str, BaseException] = {}

    def of(self, name: str) -> Ground:
        """The lab of a peer with the cases that are tried. One that couldn't be built isn't tried again."""
        if self._standing is not None and self._standing.peer.name == name:
            return self._standing
        self.down()
        if name in self._broken:
            raise self._broken[name]
        peer = PEERS[name]
        cases = [case for case in peer.cases() if case.quick or self._full]
        built = Ground(f"mptmi{os.getpid()}-{name}", peer, cases, self._hook)
        try:
            built.up()
            unable = {each.protocol: each.reason for each in peer.unable()}
            found[name] = PeerResults(name, peer.title, built.peer.version(), unable)
        except (Exception, pytest.skip.Exception) as error:
            self._broken[name] = error
            built.down()
            raise
        self._standing = built
        return built

    def down(self) -> None:
        """Take away what stands."""
        if self._standing is not None:
            self._standing.down()
            self._standing = None


@pytest.fixture(scope="session")
def grounds(request: pytest.FixtureRequest) -> Iterator[Grounds]:
    """All labs of the matrix."""
    made = Grounds(request.config.getoption("--full"), request.config.getoption("--hook"))
    try:
        yield made
    finally:
        made.down()


@pytest.fixture
def ground(request: pytest.FixtureRequest, grounds: Grounds) -> Ground:
    """The lab of the peer that the test is for."""
    return grounds.of(request.param)


@pytest.fixture
def transfer_bytes(request: pytest.FixtureRequest, ground: Ground) -> int:
    """Bytes of a TCP transfer, each way."""
    megabytes = request.config.getoption("--transfer-megabytes")
    if megabytes is not None:
        return int(megabytes * 1_000_000)
    return ground.peer.transfer_bytes if request.config.getoption("--full") else QUICK_TRANSFER_BYTES


@pytest.fixture
def record(ground: Ground) -> Recorder:
    """Where the test says what came of its check."""
    return Recorder(found[ground.peer.name].results)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for results in found.values():
        terminalreporter.section(f"interop: {results.title}")
        terminalreporter.write_line(text_table(results))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Only what is whole is kept: every check, at the hook of the default, with transfers as docs/interop.md says."""
    option = session.config.getoption
    if not option("--full") or option("--transfer-megabytes") is not None or option("--hook") != "auto":
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, results in found.items():
        if len(results.results) == sum(len(case.checks()) for case in PEERS[name].cases()):
            (RESULTS / f"{name}.json").write_text(json.dumps(results.to_dict(), indent=1) + "\n")
