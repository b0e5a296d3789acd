# SPDX-License-Identifier: GPL-2.0-only
"""What came of a matrix: as data, as JSON, and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

COLUMNS = {
    "ping": ("ping4", "ping6"),
    "TCP": ("tcp4", "tcp6"),
    "largest packet": ("largest4", "largest6"),
    "too big": ("too big4", "too big6"),
    "outer fragments": ("fragments",),
}
"""Heading -> the checks that it sums up."""
ALONE = ("refused", "unanswered")
"""Checks of which a case has only one; its note stands where else pings do."""
FAILS = "**fails**"
OVER = {4: "IPv4", 6: "IPv6", 0: "Ethernet"}


@dataclass(frozen=True)
class Result:
    """One check of one case."""

    protocol: str
    form: str
    underlay: int
    check: str
    outcome: str
    """passed, failed, or explained: it failed as was said before."""
    note: str = ""
    """What was seen, or why it can't work."""


@dataclass(frozen=True)
class PeerResults:
    """All that was found with one peer; `unable`: protocol -> why it hasn't got it."""

    name: str
    title: str
    version: str
    unable: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PeerResults:
        """From `to_dict`."""
        return cls(**(dict(values) | {"results": [Result(**each) for each in values["results"]]}))

    def of(self, protocol: str) -> list[Result]:
        """The results of one protocol."""
        return [result for result in self.results if result.protocol == protocol]


class Recorder:
    """Takes the result of a check; the last one counts."""

    def __init__(self, results: list[Result]) -> None:
        self._results = results
        self._at = len(results)

    def __call__(self, result: Result) -> None:
        self._results[self._at :] = [result]


class Notes:
    """Footnotes of a table: the same text has the same number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """The number of a text."""
        if text not in self._texts:
            self._texts.append(text)
        return str(self._texts.index(text) + 1)

    def lines(self) -> list[str]:
        """All texts, numbered."""
        return [f"{number}. {text}" for number, text in enumerate(self._texts, 1)]


def summary_cell(found: PeerResults, protocol: str, notes: Notes) -> str:
    """What a table of protocols says of one with one peer."""
    if protocol in found.unable:
        return f"no ({notes.mark(found.unable[protocol])})"
    results = found.of(protocol)
    if not results:
        return "not tried"
    if any(result.outcome == "failed" for result in results):
        return FAILS
    flaws = [result for result in results if result.outcome == "explained" or result.check == "unanswered"]
    if not flaws:
        return "yes"
    marks = _marks(flaws, notes)
    cases = {(result.form, result.underlay) for result in results}
    return f"partly ({marks})" if cases - {(flaw.form, flaw.underlay) for flaw in flaws} else f"no ({marks})"


def rows(found: PeerResults, notes: Notes) -> list[list[str]]:
    """A row per case: protocol, form, underlay, then what the columns' checks came to."""
    cases: dict[tuple[str, str, int], dict[str, Result]] = {}
    for result in found.results:
        cases.setdefault((result.protocol, result.form, result.underlay), {})[result.check] = result
    made = []
    for (protocol, form, underlay), results in cases.items():
        alone = next((results[check] for check in ALONE if check in results), None)
        cells = (
            [
                _cell([results[check] for check in checks if check in results], notes)
                for checks in COLUMNS.values()
            ]
            if alone is None
            else [_cell([alone], notes), *[""] * (len(COLUMNS) - 1)]
        )
        made.append([protocol, form, OVER[underlay], *cells])
    return made


def _cell(results: Sequence[Result], notes: Notes) -> str:
    if not results:
        return ""
    if any(result.outcome == "failed" for result in results):
        return FAILS
    flaws = [result for result in results if result.outcome == "explained" or result.check == "unanswered"]
    if flaws:
        return f"{'no' if len(flaws) == len(results) else 'partly'} ({_marks(flaws, notes)})"
    return next((result.note for result in results if result.note), "yes")


def _marks(results: Iterable[Result], notes: Notes) -> str:
    return ", ".join(sorted({notes.mark(result.note) for result in results}, key=int))


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


HEADER = ["protocol", "form", "over", *COLUMNS]


def text_table(found: PeerResults) -> str:
    """The table of one peer for a terminal."""
    notes = Notes()
    lines = [HEADER, *rows(found, notes)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    unable = [f"{protocol}: no: {reason}" for protocol, reason in found.unable.items()]
    return "\n".join([f"version {found.version}", *table, *unable, *notes.lines()])
