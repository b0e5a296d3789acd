# SPDX-License-Identifier: GPL-2.0-only
"""What holds the data plane back, in sentences whose numbers come from a run's rows."""

from __future__ import annotations

import itertools
import statistics

from . import packet_rate
from .chains import REDIRECT, TC, TC_REDIRECT, TITLES, XDP
from .packet_cost import (
    CONFIGURED,
    COST,
    DECAP,
    ENCAP,
    EXITS,
    FLOOR_EXIT,
    OTHERS,
    PROFILE,
    SIZE,
    SIZE_LINES,
    SIZE_NAMES,
    WHERE,
)
from .profile import MACROS
from .targets import Results


def notes(results: Results) -> list[str]:
    """Those that can be told from what was measured."""
    return [
        *_where(results),
        *_checksum(results),
        *_extremes(results),
        *_sizes(results),
        *_configured(results),
        *_profile(results),
        *_rates(results),
    ]


def _median(results: Results, part: str, line: str, column: str) -> float | None:
    return results.row(part, line, column).median


def _where(results: Results) -> list[str]:
    """The differences between a program's exits."""
    found = []
    for direction in (ENCAP, DECAP):
        steps = [(name, _median(results, WHERE, name, direction)) for name in EXITS[direction]]
        known = [(name, value) for name, value in steps if value is not None]
        floor = _median(results, WHERE, FLOOR_EXIT, direction)
        if len(known) < 2 or floor is None:
            continue
        parts = [f"{known[0][0]}: {known[0][1]:.0f}"]
        parts += [
            f"{name}: {value - before:+.0f}" for (_, before), (name, value) in itertools.pairwise(known)
        ]
        found.append(
            f"{direction}, GENEVE over IPv4, ns from one exit of the program to the next: {'; '.join(parts)}. Of the "
            f"last step, adjust_head and redirect_map alone take {floor:.0f}"
        )
    return found


def _checksum(results: Results) -> list[str]:
    """UDP over IPv6 has a checksum, over IPv4 it has none."""
    differences = []
    for name in ("geneve", "vxlan", "gtpu", "fou", "gue", "mpls", "gre-udp"):
        for inner in ("v4", "v6"):
            over = [_median(results, COST, f"{name} / {outer} / {inner}", ENCAP) for outer in ("v4", "v6")]
            if over[0] is not None and over[1] is not None:
                differences.append(over[1] - over[0])
    if not differences:
        return []
    return [
        f"encap: the UDP checksum that IPv6 wants costs {statistics.median(differences):.0f} ns (median of "
        f"{len(differences)} protocols and inner versions, over IPv6 less over IPv4)"
    ]


def _extremes(results: Results) -> list[str]:
    found = []
    for direction in (ENCAP, DECAP):
        rows = [
            row
            for row in results.rows
            if (row.part, row.column) == (COST, direction) and row.median is not None
        ]
        if len(rows) < 3:
            continue
        rows.sort(key=lambda row: row.median or 0.0)
        middle = statistics.median(row.median or 0.0 for row in rows)
        found.append(
            f"{direction}: of {len(rows)} cases the cheapest is {rows[0].line} with {rows[0].median:.0f} ns over the "
            f"floor, the dearest {rows[-1].line} with {rows[-1].median:.0f}; the median is {middle:.0f}"
        )
    return found


def _sizes(results: Results) -> list[str]:
    found = []
    for line in SIZE_LINES:
        values = {size: _median(results, SIZE, line, name) for size, name in SIZE_NAMES.items()}
        measured = {size: value for size, value in values.items() if value is not None}
        if len(measured) < 2:
            continue
        told = ", ".join(f"{SIZE_NAMES[size]}: {value:.0f}" for size, value in measured.items())
        found.append(f"{line}, ns over the floor by how many there are: {told}")
    return found


def _profile(results: Results) -> list[str]:
    """The dearest functions, and how much of the time is in the kernel's helpers."""
    found = []
    for direction in (ENCAP, DECAP):
        rows = [
            row
            for row in results.rows
            if (row.part, row.column) == (PROFILE, direction) and row.median is not None
        ]
        if not rows:
            continue
        helpers = sum(
            row.median or 0.0 for row in rows if "(" not in row.line and row.line not in (MACROS, OTHERS)
        )
        own = sorted((row for row in rows if "(" in row.line), key=lambda row: -(row.median or 0.0))
        told = ", ".join(f"{row.line} {row.median:.0f}" for row in own[:5])
        found.append(
            f"{direction}: {helpers:.0f} % of the samples are in the kernel's helpers; of our own functions {told} % "
            "are the most"
        )
    return found


def _rates(results: Results) -> list[str]:
    """What two nodes' tunnels cost over two nodes' plain redirects, from packets per second."""
    column = packet_rate.column_of(packet_rate.SIZES[0], 1)
    found = []
    for mine, floor in ((XDP, REDIRECT), (TC, TC_REDIRECT)):
        pairs = [
            1000 / ours - 1000 / theirs
            for ours, theirs in zip(
                *(results.row(packet_rate.RATE, TITLES[kind], column).samples for kind in (mine, floor)),
                strict=False,
            )
            if ours and theirs
        ]
        if pairs:
            found.append(
                f"{TITLES[mine]}: encapsulation, decapsulation and what comes with them take "
                f"{statistics.median(pairs):.0f} ns a packet more than {TITLES[floor]} ({column}, both nodes together)"
            )
    return found


def _configured(results: Results) -> list[str]:
    found = []
    for direction in (ENCAP, DECAP):
        rows = [
            row
            for row in results.rows
            if (row.part, row.line) == (CONFIGURED, direction) and row.median is not None
        ]
        if len(rows) > 1:
            first, last = rows[0], rows[-1]
            found.append(
                f"{direction}: {first.median:.0f} ns over the floor with {first.column} protocol configured, "
                f"{last.median:.0f} with {last.column}"
            )
    return found
