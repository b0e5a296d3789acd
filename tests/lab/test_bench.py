# SPDX-License-Identifier: GPL-2.0-only
"""The benchmark itself: every section measures, says what it can't measure, and leaves nothing behind. No times."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from bench import control, latency, packet_cost, packet_rate, throughput
from bench.chains import ORIGINAL, OVS, REDIRECT, TC, TC_REDIRECT, TITLES, VXLAN, XDP, Underlay, try_to_build
from bench.measurement import Budget, Effort, Row, Settings
from bench.namespaces import Namespaces

from mptm.kernel import netns

SMOKE = Settings(Effort.SMOKE)
ENOUGH_SECONDS = 90  # on a busy machine; nothing is measured for longer because of it
CHECKOUT = Path(__file__).resolve().parents[2]


def measured(section: ModuleType) -> dict[tuple[str, str, str], Row]:
    rows = section.measure(Budget(ENOUGH_SECONDS), SMOKE, lambda sentence: None)
    names = {part.name for part in section.PARTS}
    for row in rows:
        assert row.part in names
        assert row.values or row.reason, f"{row.line}, {row.column}: neither a number nor a reason"
    return {(row.part, row.line, row.column): row for row in rows}


def namespaces(process: int | None = None) -> set[str]:
    """Those of a run of the benchmark, by default of this process."""
    prefix = f"mptm-bench-{process or os.getpid()}-"
    try:
        return {name for name in os.listdir(netns.DIRECTORY) if name.startswith(prefix)}
    except FileNotFoundError:
        return set()


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPTM_STATE_DIR", str(tmp_path))


def test_nanoseconds_per_packet() -> None:
    rows = measured(packet_cost)
    for direction in ("encap", "decap"):
        for line in ("geneve / v4 / v4", "ipip / v4 / v4"):
            row = rows[packet_cost.COST, line, direction]
            assert row.values, row.reason
            assert row.details["samples"] == 1
    for line in packet_cost.SIZE_LINES:
        assert rows[packet_cost.SIZE, line, "10"].values, rows[packet_cost.SIZE, line, "10"].reason
    profiled = [row for row in rows.values() if row.part == packet_cost.PROFILE]
    assert profiled
    if shutil.which("perf") is not None:
        for direction in ("encap", "decap"):
            names = {row.line for row in profiled if row.column == direction and row.median}
            assert any(name.endswith(".h)") for name in names), names
    for direction, exits in packet_cost.EXITS.items():
        for line in exits:
            row = rows[packet_cost.WHERE, line, direction]
            assert row.values, row.reason
    assert not namespaces()


def test_packets_per_second() -> None:
    rows = measured(packet_rate)
    for kind in (XDP, TC, REDIRECT, TC_REDIRECT, VXLAN, OVS):
        row = rows[packet_rate.RATE, TITLES[kind], packet_rate.column_of(64, 1)]
        assert row.values, row.reason
        assert row.details["compared"] > 0
    assert not namespaces()


def test_throughput() -> None:
    rows = measured(throughput)
    part = throughput.part_of(throughput.UNDERLAYS[0])
    for kind in (XDP, VXLAN):
        for protocol in ("TCP", "UDP"):
            row = rows[part, TITLES[kind], throughput.column_of(protocol, 1)]
            assert row.values, row.reason
        row = rows[throughput.INTEGRITY, TITLES[kind], str(throughput.UNDERLAYS[0])]
        assert row.values, row.reason
        assert row.details["checksum_errors"] == 0
    assert not namespaces()


def test_latency() -> None:
    rows = measured(latency)
    for kind in (XDP, TC, VXLAN, OVS):
        for column in ("TCP p50", "TCP p99", "UDP p50", "UDP p99"):
            row = rows[latency.LATENCY, TITLES[kind], column]
            assert row.values, row.reason
        assert rows[latency.LATENCY, TITLES[kind], "TCP p50"].details["transactions"] == 100
    assert not namespaces()


def test_control_plane() -> None:
    rows = measured(control)
    assert rows[control.START, control.HELP, "time"].values
    for line in (
        control.APPLY,
        control.AGAIN,
        control.CHANGE,
        control.STATUS,
        control.RESTORE,
        control.IN_PROCESS,
    ):
        row = rows[control.CONTROL, line, "10"]
        assert row.values, row.reason
    for line in (control.FROM_ARRAYS, control.FROM_CSV, control.ONE_MORE):
        row = rows[control.FLOWS, line, "1 k"]
        assert row.values, row.reason
    assert not namespaces()


def test_an_object_that_is_not_the_original_is_a_row_that_says_so() -> None:
    with Namespaces() as made, contextlib.ExitStack() as stack:
        built = try_to_build((ORIGINAL,), made, stack, Underlay(), CHECKOUT / "build" / "mptm.o")
    assert "has no mptm_tunnel_info_map" in str(built[ORIGINAL])
    assert not namespaces()


def test_interrupted_it_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--only", "rate", "--output", str(tmp_path)]
    running = subprocess.Popen(
        command, cwd=CHECKOUT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    with running:
        deadline = time.monotonic() + ENOUGH_SECONDS
        while not namespaces(running.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert namespaces(running.pid), "it made no namespace"
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=ENOUGH_SECONDS)
    assert running.returncode == 1
    assert "stopped by SIGINT; everything was cleaned up" in said
    assert not namespaces(running.pid)
