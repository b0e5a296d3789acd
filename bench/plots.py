# SPDX-License-Identifier: GPL-2.0-only
"""The parts of a report as pictures, by matplotlib, which only `make bench` installs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .measurement import Part, Row

LOGARITHMIC = 30
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""


def draw(parts: Sequence[Part], rows: Sequence[Row], directory: Path) -> dict[str, str]:
    """An SVG for each part that has one, into a directory; file names by part. Raises ImportError."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "mptm", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3})
    found = {}
    for part in parts:
        its = [row for row in rows if row.part == part.name and row.median is not None]
        if not part.plot or not its:
            continue
        directory.mkdir(parents=True, exist_ok=True)
        name = f"{part.name}.svg"
        {"bars": _bars, "lines": _lines}[part.plot](part, its, directory / name)
        found[part.name] = name
    return found


def _bars(part: Part, rows: Sequence[Row], path: Path) -> None:
    import matplotlib.pyplot as plt

    lines = list(dict.fromkeys(row.line for row in rows))
    columns = list(dict.fromkeys(row.column for row in rows))
    height = 0.8 / len(columns)
    figure, axes = plt.subplots(figsize=(8, 1 + 0.14 * max(len(lines) * max(1.4, len(columns)), 6)))
    for number, column in enumerate(columns):
        its = {row.line: row for row in rows if row.column == column}
        places = [place + height * number for place, line in enumerate(lines) if line in its]
        values, below, above = _spread([its[line] for line in lines if line in its])
        axes.barh(places, values, height, label=column, xerr=(below, above), error_kw={"elinewidth": 0.6})
    axes.set_yticks([place + height * (len(columns) - 1) / 2 for place in range(len(lines))], lines)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(part.unit)
    if _is_wide(rows):
        axes.set_xscale("log")
    _finish(figure, axes, part, path, len(columns))


def _lines(part: Part, rows: Sequence[Row], path: Path) -> None:
    import matplotlib.pyplot as plt

    columns = list(dict.fromkeys(row.column for row in rows))
    figure, axes = plt.subplots(figsize=(8, 4))
    lines = list(dict.fromkeys(row.line for row in rows))
    for line in lines:
        its = [row for row in rows if row.line == line]
        values, below, above = _spread(its)
        axes.errorbar(
            [columns.index(row.column) for row in its],
            values,
            yerr=(below, above),
            marker="o",
            capsize=2,
            label=line,
        )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylabel(part.unit)
    if _is_wide(rows):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    _finish(figure, axes, part, path, len(lines))


def _spread(rows: Sequence[Row]) -> tuple[list[float], list[float], list[float]]:
    """Medians, and how far the quartiles are below and above them."""
    values, below, above = [], [], []
    for row in rows:
        middle = row.median or 0.0
        low, high = row.quartiles or (middle, middle)
        values.append(middle)
        below.append(max(0.0, middle - low))
        above.append(max(0.0, high - middle))
    return values, below, above


def _is_wide(rows: Sequence[Row]) -> bool:
    values = [row.median for row in rows if row.median and row.median > 0]
    return len(values) == len(rows) and max(values) / min(values) > LOGARITHMIC


def _finish(figure: object, axes: object, part: Part, path: Path, entries: int) -> None:
    import matplotlib.pyplot as plt

    axes.set_title(part.title)  # type: ignore[attr-defined]
    if entries > 1:
        axes.legend(fontsize=7)  # type: ignore[attr-defined]
    figure.tight_layout()  # type: ignore[attr-defined]
    figure.savefig(path, metadata={"Date": None, "Creator": None})  # type: ignore[attr-defined]
    plt.close(figure)  # type: ignore[arg-type]
