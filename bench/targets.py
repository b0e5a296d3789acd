# SPDX-License-Identifier: GPL-2.0-only
"""What is to be reached, and what a run reached: told from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import control, packet_cost, packet_rate, throughput
from .chains import REDIRECT, TC, TITLES, VXLAN, XDP, Underlay
from .measurement import Row

ENCAP_LINE = DECAP_LINE = str(packet_cost.REFERENCE[packet_cost.ENCAP])


@dataclass(frozen=True)
class Target:
    """`limit` and `reached` in `unit`; `reached` None: not measured, for this `reason`."""

    name: str
    limit: float
    unit: str
    is_maximum: bool
    reached: float | None
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """Reached, of what is wanted."""
        return None if self.reached is None or not self.limit else self.reached / self.limit

    @property
    def is_met(self) -> bool | None:
        """None: not measured."""
        if self.reached is None:
            return None
        return self.reached <= self.limit if self.is_maximum else self.reached >= self.limit


class Results:
    """The rows of a run, by what they are about."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {(row.part, row.line, row.column): row for row in rows}
        self.rows = rows

    def row(self, part: str, line: str, column: str) -> Row:
        """One without samples where it wasn't measured."""
        return self._rows.get((part, line, column), Row(part, line, column, reason="not in this run"))

    def worst(self, part: str, column: str) -> Row:
        """The row of a column with the highest median."""
        found = [
            row for row in self.rows if (row.part, row.column) == (part, column) and row.median is not None
        ]
        return max(found, key=lambda row: row.median or 0.0) if found else self.row(part, "", column)


def targets(results: Results) -> list[Target]:
    """All of them."""
    return [
        *_costs(results),
        *_rates(results),
        *_throughputs(results),
        *_integrity(results),
        *_control(results),
    ]


def _of(row: Row, name: str, limit: float, unit: str, *, scale: float = 1.0) -> Target:
    """At most so much."""
    reached = None if row.median is None else row.median * scale
    return Target(name, limit, unit, True, reached, row.reason)


def _ratio(mine: Row, theirs: Row, name: str, limit: float) -> Target:
    """At least so many times as much as a peer in the same rounds."""
    return Target(name, limit, "x", False, mine.ratio_to(theirs), mine.reason or theirs.reason)


def _costs(results: Results) -> list[Target]:
    found = []
    for direction, line in ((packet_cost.ENCAP, ENCAP_LINE), (packet_cost.DECAP, DECAP_LINE)):
        row = results.row(packet_cost.COST, line, direction)
        found.append(_of(row, f"{direction} over the floor, one tunnel: {row.line}", 25, "ns"))
        worst = results.worst(packet_cost.COST, direction)
        name = f"{direction} over the floor, one tunnel, worst protocol: {worst.line or '-'}"
        found.append(_of(worst, name, 25, "ns"))
    for line in packet_cost.SIZE_LINES:
        row = results.row(packet_cost.SIZE, line, packet_cost.SIZE_NAMES[1_000_000])
        found.append(_of(row, f"over the floor, 1 M {line}", 150, "ns"))
    return found


def _rates(results: Results) -> list[Target]:
    column = packet_rate.column_of(packet_rate.SIZES[0], 1)

    def row(kind: str) -> Row:
        return results.row(packet_rate.RATE, TITLES[kind], column)

    return [
        _ratio(row(XDP), row(REDIRECT), f"packets per second, XDP of plain redirect ({column})", 0.90),
        _ratio(row(XDP), row(VXLAN), f"packets per second, XDP of kernel vxlan ({column})", 7.0),
        _ratio(row(TC), row(VXLAN), f"packets per second, TC of kernel vxlan ({column})", 2.4),
    ]


def _throughputs(results: Results) -> list[Target]:
    found = []
    wanted: tuple[tuple[Underlay, str, str, float], ...] = (
        (Underlay(1500, True), TC, VXLAN, 1.15),
        (Underlay(1500, False), TC, VXLAN, 1.10),
        (Underlay(1500, True), XDP, REDIRECT, 0.95),
    )
    names = {TC: "TC", XDP: "XDP", VXLAN: "kernel vxlan", REDIRECT: "plain redirect with GRO"}
    for underlay, mine, theirs, limit in wanted:
        for streams in (1, 4):
            part, column = throughput.part_of(underlay), throughput.column_of(throughput.TCP, streams)
            found.append(
                _ratio(
                    results.row(part, TITLES[mine], column),
                    results.row(part, TITLES[theirs], column),
                    f"TCP, streams: {streams}, {names[mine]} of {names[theirs]}, {underlay}",
                    limit,
                )
            )
    return found


def _integrity(results: Results) -> list[Target]:
    found = []
    for kind, name in ((XDP, "XDP"), (TC, "TC")):
        for underlay in (Underlay(1500, True), Underlay(1500, False)):
            row = results.row(throughput.INTEGRITY, TITLES[kind], str(underlay))
            errors = None if row.median is None else float(row.details.get("checksum_errors", 0))
            found.append(
                Target(f"checksum errors, SHA-256 equal: {name}, {underlay}", 0, "", True, errors, row.reason)
            )
    return found


def _control(results: Results) -> list[Target]:
    size = control.SIZE_NAMES[100_000]
    return [
        _of(results.row(control.START, control.HELP, "time"), "mptm --help", 150, "ms"),
        _of(
            results.row(control.CONTROL, control.APPLY, size),
            "100 k routes from YAML onto an empty node",
            10,
            "s",
            scale=1e-3,
        ),
        _of(
            results.row(control.CONTROL, control.IN_PROCESS, size),
            "one change among 100 k routes, from Python",
            20,
            "ms",
        ),
        *(
            _of(
                results.row(control.FLOWS, line, control.COUNT_NAMES[1_000_000]),
                f"1 M flows: {line}",
                5,
                "s",
                scale=1e-3,
            )
            for line in (control.FROM_ARRAYS, control.FROM_CSV)
        ),
        _of(
            results.row(control.FLOWS, control.ONE_MORE, control.COUNT_NAMES[1_000_000]),
            "one flow more, beside 1 M flows, from Python",
            20,
            "ms",
        ),
    ]
