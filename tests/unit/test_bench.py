# SPDX-License-Identifier: GPL-2.0-only
"""The benchmark's bookkeeping: budgets, turns, ratios, targets, and the page that is made of a run's JSON."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import control, latency, packet_cost, packet_rate, throughput
from bench.chains import REDIRECT, TC, TITLES, VXLAN, XDP, Underlay
from bench.measurement import OUT_OF_TIME, Budget, Contestant, Part, Row, missing, take_turns
from bench.notes import notes
from bench.report import Report, SectionResult, to_markdown
from bench.targets import Results, targets

from mptm.errors import MptmError

COLUMN = packet_rate.column_of(64, 1)


def silent(_sentence: str) -> None:
    pass


def rate(kind: str, *samples: float | None, reason: str = "") -> Row:
    return Row(
        packet_rate.RATE, TITLES[kind], COLUMN, samples, reason, {"sent": 1000, "lost": 0, "compared": 4}
    )


def report(*rows: Row) -> Report:
    """A small run, as it was recorded."""
    section = SectionResult("rate", "Packets per second", packet_rate.PARTS, rows, 12.5)
    machine = {"CPU": "2 x Some CPU", "kernel": "Linux 6.18"}
    return Report("2026-11-28 12:00 UTC", "quick", 61.0, 1.5, "the machine was busy", machine, (section,))


def test_what_a_section_leaves_of_its_time_goes_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("bench.measurement.time.monotonic", lambda: now[0])
    shares = Budget(60).shares((1, 1, 1))
    assert next(shares).left() == pytest.approx(20)
    now[0] += 5  # a third of the time, of which 5 s were used
    assert next(shares).left() == pytest.approx(27.5)
    now[0] += 50  # much too long
    assert next(shares).left() == pytest.approx(5)
    now[0] += 10
    assert Budget(0).is_out()


def test_every_share_begins_when_it_is_asked_for() -> None:
    """What is made of all shares at once would run side by side."""
    for section in (packet_cost, packet_rate, throughput, latency, control):
        for line in inspect.getsource(section).splitlines():
            unpacked = ", " in line.partition(" = ")[0] and ".shares(" in line.partition(" = ")[2]
            assert not unpacked, f"{section.NAME}: {line.strip()}"


def counting(log: list[str], name: str, value: Callable[[], float] = lambda: 1.0) -> Contestant:
    def once() -> float:
        log.append(name)
        return value()

    return Contestant("part", name, "column", once)


def test_everybody_takes_turns() -> None:
    log: list[str] = []
    seldom = counting(log, "c")
    seldom.every = 2
    rows = take_turns([counting(log, "a"), counting(log, "b"), seldom], Budget(60), rounds=3, progress=silent)
    assert log == list("abcababc")
    assert [len(row.values) for row in rows] == [3, 3, 2]
    assert rows[2].samples == (1.0, None, 1.0)


def test_who_fails_is_out_and_says_why() -> None:
    def fail() -> float:
        raise MptmError("no such tool", "install it")

    log: list[str] = []
    rows = take_turns([counting(log, "a", fail), counting(log, "b")], Budget(60), rounds=2, progress=silent)
    assert log == list("abb")
    assert rows[0].values == []
    assert "no such tool" in rows[0].reason
    assert rows[1].values == [1.0, 1.0]


def test_no_turn_begins_after_the_deadline() -> None:
    log: list[str] = []
    (row,) = take_turns([counting(log, "a")], Budget(0), rounds=5, progress=silent)
    assert log == []
    assert row.reason == OUT_OF_TIME


def test_no_round_begins_that_would_not_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("bench.measurement.time.monotonic", lambda: now[0])

    def slow() -> float:
        now[0] += 10
        return 1.0

    (row,) = take_turns([counting([], "a", slow)], Budget(35), rounds=9, progress=silent)
    assert len(row.values) == 3


def test_where_a_round_of_all_has_no_time_those_of_each_round_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("bench.measurement.time.monotonic", lambda: now[0])

    def lasting(seconds: float) -> Callable[[], float]:
        def once() -> float:
            now[0] += seconds
            return 1.0

        return once

    always, seldom = counting([], "a", lasting(1)), counting([], "b", lasting(20))
    seldom.every = 2
    rows = take_turns([always, seldom], Budget(25), rounds=9, progress=silent)
    assert [len(row.values) for row in rows] == [5, 1]


def test_a_ratio_is_of_samples_of_the_same_round() -> None:
    mine, theirs = rate(XDP, 2.0, None, 9.0, 8.0), rate(VXLAN, 1.0, 1.0, 3.0, None)
    assert mine.ratio_to(theirs) == pytest.approx(2.5)  # of 2/1 and 9/3, not of the medians
    assert mine.ratio_to(rate(VXLAN, None, 1.0)) is None


def test_a_row_survives_json() -> None:
    row = rate(XDP, 1.0, None, 3.0, reason="half way")
    assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row


def test_targets_are_told_from_rows_only() -> None:
    found = {
        target.name: target
        for target in targets(Results([rate(XDP, 8.0), rate(VXLAN, 1.0), rate(REDIRECT, 16.0)]))
    }
    vxlan = found[f"packets per second, XDP of kernel vxlan ({COLUMN})"]
    assert (vxlan.reached, vxlan.is_met) == (8.0, True)
    redirect = found[f"packets per second, XDP of plain redirect ({COLUMN})"]
    assert (redirect.reached, redirect.is_met) == (0.5, False)
    assert redirect.ratio == pytest.approx(0.5 / 0.9)
    at_tc = found[f"packets per second, TC of kernel vxlan ({COLUMN})"]
    assert at_tc.is_met is None
    assert at_tc.reason == "not in this run"


def test_the_worst_protocol_counts() -> None:
    rows = [
        Row(packet_cost.COST, line, "encap", (value,))
        for line, value in (("geneve / v4 / v4", 20.0), ("nsh / v6 / v6", 40.0))
    ]
    found = {target.name: target for target in targets(Results(rows))}
    assert found["encap over the floor, one tunnel: geneve / v4 / v4"].is_met is True
    assert found["encap over the floor, one tunnel, worst protocol: nsh / v6 / v6"].is_met is False


def test_the_tc_targets_are_about_both_underlays() -> None:
    rows = [
        Row(throughput.part_of(underlay), TITLES[kind], "TCP 1", (value,))
        for underlay, kind, value in (
            (Underlay(1500, True), TC, 12.0),
            (Underlay(1500, True), VXLAN, 10.0),
            (Underlay(1500, False), TC, 10.0),
            (Underlay(1500, False), VXLAN, 10.0),
        )
    ]
    found = {target.name: target for target in targets(Results(rows))}
    assert found["TCP, streams: 1, TC of kernel vxlan, MTU 1500, GSO whole"].is_met is True
    assert found["TCP, streams: 1, TC of kernel vxlan, MTU 1500, segmented"].is_met is False


def test_the_page_is_made_of_the_json_alone() -> None:
    made = report(rate(XDP, 2.0, 2.2, 2.1), rate(VXLAN, 0.3, 0.2, 0.25))
    again = Report.from_dict(json.loads(json.dumps(made.to_dict())))
    assert to_markdown(again, {}) == to_markdown(made, {})


def test_a_cell_has_median_quartiles_and_the_ratio_to_the_baseline() -> None:
    page = to_markdown(
        report(rate(XDP, 2.0, 2.0, 2.0), rate(VXLAN, 0.5, 0.5, 0.5)), {packet_rate.RATE: "rate.svg"}
    )
    assert "| MPTM at XDP, VXLAN      | **2.000** (2.000-2.000), 4.00 x |" in page
    assert "| kernel vxlan and bridge | **0.500** (0.500-0.500)         |" in page
    assert "![Through two nodes and a tunnel: million packets per second](plots/rate.svg)" in page
    assert "**Warning:** the machine was busy." in page
    assert "2000 packets sent, 0 lost; 8 compared byte by byte" in page


def test_what_could_not_be_measured_says_why() -> None:
    page = to_markdown(
        report(missing(packet_rate.RATE, TITLES[TC], COLUMN, "not available: no hook"), rate(XDP, 1.0)), {}
    )
    assert "| MPTM at TC, VXLAN  | - [1]" in page
    assert "- [1] not available: no hook" in page
    assert "not measured: not available: no hook" in page  # among the targets


def test_what_holds_it_back_is_worked_out_of_the_rows() -> None:
    rows = [
        *(
            Row(packet_cost.WHERE, line, "encap", (value,))
            for line, value in zip(packet_cost.EXITS["encap"], (5.0, 6.0, 11.0, 36.0), strict=True)
        ),
        Row(packet_cost.WHERE, packet_cost.FLOOR_EXIT, "encap", (10.0,)),
        Row(packet_cost.COST, "geneve / v4 / v4", "encap", (30.0,)),
        Row(packet_cost.COST, "geneve / v6 / v4", "encap", (52.0,)),
        Row(packet_cost.PROFILE, "lookup_port (lookup.h)", "encap", (60.0,)),
        Row(packet_cost.PROFILE, "bpf_xdp_adjust_head", "encap", (40.0,)),
        rate(XDP, 4.0),
        rate(REDIRECT, 5.0),
    ]
    told = "\n".join(notes(Results(rows)))
    assert (
        "left to the kernel: +5; into the tunnel: +25. Of the last step, adjust_head and redirect_map" in told
    )
    assert "alone take 10" in told
    assert "the UDP checksum that IPv6 wants costs 22 ns" in told
    assert (
        "40 % of the samples are in the kernel's helpers; of our own functions lookup_port (lookup.h) 60 %"
        in told
    )
    assert "take 50 ns a packet more than plain redirect in XDP" in told


def test_a_section_that_broke_off_is_told() -> None:
    section = SectionResult("rate", "Packets per second", packet_rate.PARTS, (), 1.0, "out of time")
    page = to_markdown(Report("now", "full", 1.0, 0.0, "", {}, (section,)), {})
    assert "**This section broke off:** out of time" in page


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "results.json"


def test_the_committed_page_is_that_of_the_committed_numbers() -> None:
    recorded = Report.from_dict(json.loads(RESULTS.read_text()))
    plots = {path.stem: path.name for path in (RESULTS.parent / "plots").glob("*.svg")}
    assert RESULTS.with_name("results.md").read_text() == to_markdown(recorded, plots), (
        "run: python -m bench --render docs/benchmarks/results.json"
    )


def test_parts_have_names_of_their_own() -> None:
    from bench.__main__ import SECTIONS

    names = [part.name for section in SECTIONS for part in section.PARTS]
    assert len(names) == len(set(names))
    assert all(isinstance(part, Part) for section in SECTIONS for part in section.PARTS)
