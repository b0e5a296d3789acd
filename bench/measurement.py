# SPDX-License-Identifier: GPL-2.0-only
"""What every section of the benchmark has in common: time budgets, rows of results, and taking turns."""

from __future__ import annotations

import enum
import itertools
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from mptm.errors import MptmError

FAILURES = (MptmError, OSError, subprocess.SubprocessError)
"""What ends the measuring of one contestant, not the run."""

OUT_OF_TIME = "out of time"


class Budget:
    """Seconds from now on, by the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the deadline; never less than 0."""
        return max(0.0, self.deadline - time.monotonic())

    def is_out(self) -> bool:
        """Whether the deadline has passed."""
        return self.left() == 0

    def part(self, share: float) -> Budget:
        """A budget of this share (0 to 1) of what is left now. What it doesn't use stays with this one."""
        return Budget(self.left() * share)

    def shares(self, weights: Sequence[float]) -> Iterator[Budget]:
        """One budget for each weight, made when its turn comes: what one left over goes to those that follow."""
        for number, weight in enumerate(weights):
            yield self.part(weight / sum(weights[number:]))


@dataclass(frozen=True)
class Part:
    """A table of the report, with its plot: lines (who or what) and columns (under which conditions).

    `baseline` names the line that the others are divided by, column by column. `plot` is "bars", "lines" (columns are
    numbers) or "". `better` is "more" or "less".
    """

    name: str
    title: str
    unit: str
    text: str = ""
    heading: str = ""
    baseline: str = ""
    digits: int = 1
    better: str = "more"
    plot: str = "bars"


@dataclass(frozen=True)
class Row:
    """One cell of a part: the samples of one contestant, one for each round that it took part in.

    Samples of the same round, in the same part, were taken right after one another; None: that round has none.
    `reason` says why there is nothing, or why it broke off. `details` are more numbers, by name.
    """

    part: str
    line: str
    column: str
    samples: tuple[float | None, ...] = ()
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> list[float]:
        """The samples that there are."""
        return [sample for sample in self.samples if sample is not None]

    @property
    def median(self) -> float | None:
        """None without samples."""
        return statistics.median(self.values) if self.values else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The lower and the upper one; the same number twice for a single sample, None without any."""
        if not self.values:
            return None
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def ratio_to(self, other: Row) -> float | None:
        """Median of the ratios of samples of the same round; None where no round has both."""
        pairs = [
            mine / theirs
            for mine, theirs in zip(self.samples, other.samples, strict=False)
            if mine is not None and theirs
        ]
        return statistics.median(pairs) if pairs else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the statistics."""
        return asdict(self) | {"median": self.median, "quartiles": self.quartiles}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `to_dict` yielded."""
        return cls(
            data["part"],
            data["line"],
            data["column"],
            tuple(data["samples"]),
            data["reason"],
            dict(data["details"]),
        )


def missing(part: str, line: str, column: str, reason: str) -> Row:
    """A row of something that can't be measured here."""
    return Row(part, line, column, reason=reason)


def say(error: BaseException) -> str:
    """An error on one line, for a row's reason."""
    if isinstance(error, subprocess.TimeoutExpired):
        words = error.cmd if isinstance(error.cmd, list) else [error.cmd]
        tool = words[words.index("--") + 1] if "--" in words else words[0]
        return f"{Path(tool).name} took longer than {error.timeout:.3g} s"
    return " ".join(str(error).split()) or type(error).__name__


@dataclass
class Contestant:
    """Somebody who takes turns: `once` yields one sample, and may add to `details`.

    It takes part in every `every`-th round, from the first on.
    """

    part: str
    line: str
    column: str
    once: Callable[[], float]
    every: int = 1
    details: dict[str, Any] = field(default_factory=dict)
    samples: list[float | None] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0
    """What its last turn took."""

    def take_turn(self) -> None:
        """One sample, or the reason why there are no more from now on."""
        began = time.monotonic()
        try:
            self.samples.append(self.once())
        except FAILURES as error:
            self.samples.append(None)
            self.reason = say(error)
        self.seconds = time.monotonic() - began

    def row(self) -> Row:
        """What came of it."""
        return Row(self.part, self.line, self.column, tuple(self.samples), self.reason, self.details)


def _fit(contestants: Sequence[Contestant], budget: Budget) -> bool:
    """Whether another turn of each is likely to end in time."""
    return sum(each.seconds for each in contestants) <= budget.left()


def take_turns(
    contestants: Sequence[Contestant], budget: Budget, *, rounds: int, progress: Callable[[str], None]
) -> list[Row]:
    """Rounds in which everybody has a turn, one after another, until there is no time for another round.

    The first round is broken off where the budget ends; every later one begins only when it is likely to end in time,
    if need be with those alone who take part in each round.
    """
    for number in itertools.count():
        taking_part = [each for each in contestants if not each.reason and number % each.every == 0]
        if number and not _fit(taking_part, budget):
            taking_part = [each for each in taking_part if each.every == 1]
        if number >= rounds or not taking_part or (number and not _fit(taking_part, budget)):
            break
        if number == 0:
            progress(f"{len(taking_part)} contestants")
        for each in contestants:
            if each not in taking_part:
                each.samples.append(None)
            elif number == 0 and budget.is_out():
                each.reason = OUT_OF_TIME
            else:
                each.take_turn()
    told = max((len(each.samples) for each in contestants), default=0)
    progress(f"{told} rounds")
    return [each.row() for each in contestants]


class Effort(enum.Enum):
    """How much of everything is measured: SMOKE shows that the benchmark itself works, and no more."""

    FULL = "full"
    QUICK = "quick"
    SMOKE = "smoke"


@dataclass(frozen=True)
class Settings:
    """What a run was asked for. `original` is the object of the program that MPTM started from, if there is one."""

    effort: Effort = Effort.FULL
    original: Path | None = None


Progress = Callable[[str], None]


class Section(Protocol):
    """One section of the benchmark: a module."""

    NAME: str
    TITLE: str
    PARTS: tuple[Part, ...]
    WEIGHT: float
    """Its share of the run's time, relative to the others'."""

    def measure(self, budget: Budget, settings: Settings, progress: Progress) -> list[Row]:
        """What could be measured within the budget; what couldn't is a row that says why."""
