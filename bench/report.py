# SPDX-License-Identifier: GPL-2.0-only
"""A run's results as JSON, and as Markdown made of that alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from .measurement import Part, Row
from .notes import notes
from .targets import Results, Target, targets

MADE_BY = "`make bench` makes this page; [README.md](README.md) says how things are measured."


@dataclass(frozen=True)
class SectionResult:
    """What a section measured; `problem` says why it broke off, if it did."""

    name: str
    title: str
    parts: tuple[Part, ...]
    rows: tuple[Row, ...]
    seconds: float
    problem: str = ""


@dataclass(frozen=True)
class Report:
    """A run: where and when, and what each section found."""

    date: str
    effort: str
    seconds: float
    load: float
    warning: str
    machine: Mapping[str, str]
    sections: tuple[SectionResult, ...] = field(default_factory=tuple)

    @property
    def rows(self) -> list[Row]:
        """Of all sections."""
        return [row for section in self.sections for row in section.rows]

    def targets(self) -> list[Target]:
        """What was to be reached."""
        return targets(Results(self.rows))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        data = asdict(self)
        for section, found in zip(data["sections"], self.sections, strict=True):
            section["rows"] = [row.to_dict() for row in found.rows]
        data["targets"] = [
            asdict(target) | {"ratio": target.ratio, "is_met": target.is_met} for target in self.targets()
        ]
        data["notes"] = notes(Results(self.rows))
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` yielded."""
        sections = tuple(
            SectionResult(
                section["name"],
                section["title"],
                tuple(Part(**part) for part in section["parts"]),
                tuple(Row.from_dict(row) for row in section["rows"]),
                section["seconds"],
                section["problem"],
            )
            for section in data["sections"]
        )
        known = {name: data[name] for name in ("date", "effort", "seconds", "load", "warning", "machine")}
        return cls(**known, sections=sections)


def to_markdown(report: Report, plots: Mapping[str, str], plot_directory: str = "plots") -> str:
    """The page; `plots` are file names by part, in `plot_directory` as seen from the page."""
    blocks = [
        "# Benchmark results",
        MADE_BY,
        _machine(report),
    ]
    if report.warning:
        blocks.append(f"**Warning:** {report.warning}.")
    blocks += ["## Targets", targets_table(report.targets())]
    if told := notes(Results(report.rows)):
        blocks += ["## What holds it back", "\n".join(f"- {note}" for note in told)]
    for section in report.sections:
        blocks.append(f"## {section.title}")
        if section.problem:
            blocks.append(f"**This section broke off:** {section.problem}")
        for part in section.parts:
            rows = [row for row in section.rows if row.part == part.name]
            if not rows:
                continue
            blocks += [f"### {part.title}", f"In {part.unit}. {part.text}".strip()]
            if part.name in plots:
                blocks.append(f"![{part.title}: {part.unit}]({plot_directory}/{plots[part.name]})")
            blocks += _part(part, rows)
    return "\n\n".join(blocks) + "\n"


def _machine(report: Report) -> str:
    facts = {
        "date": report.date,
        "run": f"{report.effort}, {report.seconds:.0f} s",
        "load when it began": f"{report.load:.2f}",
        **report.machine,
    }
    return table(["machine", ""], [[name, value] for name, value in facts.items()])


def targets_table(found: Sequence[Target]) -> str:
    """What was wanted and what was reached."""
    return table(
        ["target", "wanted", "reached", "reached / wanted", "met"],
        [
            [
                target.name,
                f"{'at most' if target.is_maximum else 'at least'} {number(target.limit)} {target.unit}".strip(),
                f"not measured: {target.reason}"
                if target.reached is None
                else f"{number(target.reached)} {target.unit}".strip(),
                "-" if target.ratio is None else f"{target.ratio:.2f}",
                {None: "-", True: "yes", False: "**no**"}[target.is_met],
            ]
            for target in found
        ],
    )


def number(value: float) -> str:
    """With as many digits as it has to say."""
    return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def _part(part: Part, rows: Sequence[Row]) -> list[str]:
    """A part's table, and why some of its cells are empty."""
    lines = list(dict.fromkeys(row.line for row in rows))
    columns = list(dict.fromkeys(row.column for row in rows))
    cells = {(row.line, row.column): row for row in rows}
    reasons: list[str] = []

    def show(line: str, column: str) -> str:
        row = cells.get((line, column))
        if row is None:
            return ""
        mark = ""
        if row.reason:
            if row.reason not in reasons:
                reasons.append(row.reason)
            mark = f" [{reasons.index(row.reason) + 1}]"
        if row.median is None or row.quartiles is None:
            return f"-{mark}"
        low, high = row.quartiles
        digits = part.digits
        text = f"**{row.median:.{digits}f}** ({low:.{digits}f}-{high:.{digits}f})"
        if part.baseline and part.baseline != line and (baseline := cells.get((part.baseline, column))):
            ratio = row.ratio_to(baseline)
            text += f", {ratio:.2f} x" if ratio is not None else ""
        return text + mark

    shown = [[line, *(show(line, column) for column in columns)] for line in lines]
    blocks = [table([part.heading, *columns], shown)]
    explanation = "Medians and quartiles"
    if part.baseline:
        explanation += f"; x: of {part.baseline}, median of the ratios within a round"
    if extras := _extras(rows):
        explanation += f". {extras}"
    blocks.append(f"{explanation}.")
    if reasons:
        blocks.append("\n".join(f"- [{number}] {reason}" for number, reason in enumerate(reasons, 1)))
    return blocks


def _extras(rows: Sequence[Row]) -> str:
    """What else the rows' details say of all of them together."""
    said = []
    sent = sum(row.details.get("sent", 0) for row in rows)
    if sent:
        losers = sorted(
            {row.line for row in rows if row.details.get("lost", 0)},
        )
        lost = sum(row.details.get("lost", 0) for row in rows)
        compared = sum(row.details.get("compared", 0) for row in rows)
        said.append(f"{sent} packets sent, {lost} lost{f' ({chr(44).join(losers)})' if losers else ''}")
        said.append(f"{compared} compared byte by byte on arrival, none of them broken")
    checked = [row for row in rows if "checksum_errors" in row.details]
    if checked:
        errors = sum(row.details["checksum_errors"] for row in checked)
        said.append(f"checksum errors counted: {errors}")
    return "; ".join(said)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in the source, too."""
    every = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[column]) for line in every)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(every[0]), line(["-" * width for width in widths]), *map(line, every[1:])])
