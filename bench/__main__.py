# SPDX-License-Identifier: GPL-2.0-only
"""The benchmark, section by section; `make bench` runs it. See docs/benchmarks/README.md.

Needs root. All that it makes is in network namespaces of its own, which are gone when it ends.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType

from mptm.errors import MptmError
from mptm.node import SystemKernel

from . import control, latency, machine, packet_cost, packet_rate, throughput
from .measurement import FAILURES, OUT_OF_TIME, Budget, Effort, Part, Progress, Row, Settings, say
from .report import Report, SectionResult, targets_table, to_markdown

SECTIONS: tuple[ModuleType, ...] = (packet_cost, packet_rate, throughput, latency, control)
LIMIT_SECONDS = {Effort.FULL: 900, Effort.QUICK: 120, Effort.SMOKE: 30}
RESERVE = 0.1
"""Share of the limit that is kept for building and cleaning up, and for what takes longer than it was expected to."""
ROOT = Path(__file__).resolve().parent.parent
OUTPUT = {Effort.FULL: ROOT / "docs" / "benchmarks", Effort.QUICK: ROOT / "build" / "benchmarks"}


class OutOfTime(Exception):
    """The whole run took longer than it may."""


def run(settings: Settings, sections: list[ModuleType], seconds: float, progress: Progress) -> Report:
    """Measure these sections within about so many seconds; a section that fails is told in the report."""
    load, warning = machine.load()
    if warning:
        progress(f"warning: {warning}")
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    began = time.monotonic()
    budget = Budget(seconds * (1 - RESERVE))
    found: list[SectionResult] = []
    shares = budget.shares([section.WEIGHT for section in sections])
    for section, share in zip(sections, shares, strict=True):
        if share.is_out() or any(each.problem == OUT_OF_TIME for each in found):
            found.append(SectionResult(section.NAME, section.TITLE, section.PARTS, (), 0.0, OUT_OF_TIME))
            continue
        progress(f"{section.TITLE}: {share.left():.0f} s")
        found.append(_run_section(section, share, settings, progress))
    return Report(
        date,
        settings.effort.value,
        time.monotonic() - began,
        load,
        warning,
        machine.describe(),
        tuple(found),
    )


def _run_section(
    section: ModuleType, budget: Budget, settings: Settings, progress: Progress
) -> SectionResult:
    began = time.monotonic()
    rows: list[Row] = []
    problem = ""
    try:
        rows = section.measure(budget, settings, lambda sentence: progress(f"  {sentence}"))
    except OutOfTime:
        problem = OUT_OF_TIME
    except FAILURES as error:
        problem = say(error)
    except Exception as error:  # a fault of the benchmark itself: what the others measured is kept
        traceback.print_exc()
        problem = f"{type(error).__name__}: {say(error)}"
    parts: tuple[Part, ...] = section.PARTS
    if problem:
        progress(f"  {problem}")
    return SectionResult(section.NAME, section.TITLE, parts, tuple(rows), time.monotonic() - began, problem)


def write(report: Report, directory: Path) -> tuple[Path, str]:
    """Page, JSON and plots into a directory; the page's path, and why there are no plots. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = [part for section in report.sections for part in section.parts]
    problem = ""
    try:
        from .plots import draw

        plots = draw(parts, report.rows, directory / "plots")
    except ImportError as error:
        plots, problem = {}, f"no plots: {error}; `make bench` installs matplotlib"
    page = directory / "results.md"
    page.write_text(to_markdown(report, plots))
    (directory / "results.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    return page, problem


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Exits with status 2 when they make no sense."""
    names = [section.NAME for section in SECTIONS]
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure MPTM on this machine, beside its peers: nanoseconds per packet, packets per second, "
        "TCP and UDP, latency, the control plane. Needs root. The report goes to docs/benchmarks (with --quick to "
        "build/benchmarks), a summary to standard output, progress to standard error.",
        epilog="example: python -m bench --quick --only rate --only latency",
    )
    parser.add_argument(
        "--quick", action="store_true", help="two minutes at most, and less of everything (else fifteen)"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        help="one section instead of all; may be given several times",
    )
    parser.add_argument(
        "--original",
        type=Path,
        metavar="OBJECT",
        help="mptm.o of the program that MPTM started from: it takes part in the packets per second",
    )
    parser.add_argument(
        "--render",
        type=Path,
        metavar="JSON",
        help="measure nothing: make the page and plots of these results again, beside them",
    )
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="where the report goes")
    options = parser.parse_args(arguments)
    for path in (options.original, options.render):
        if path is not None and not path.is_file():
            parser.error(f"{path}: there is no such file")
    return options


def _stop(number: int, _frame: object) -> None:
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # cleaning up takes a moment
    raise SystemExit(f"error: stopped by {signal.Signals(number).name}; everything was cleaned up")


def _out_of_time(_number: int, _frame: object) -> None:
    raise OutOfTime


def main() -> int:
    """Exit status 0 when every section could be measured, whether targets are met or not; 1 otherwise."""
    options = parse_arguments()
    if options.render is not None:
        recorded = Report.from_dict(json.loads(options.render.read_text()))
        return _write_and_tell(recorded, options.output or options.render.parent)
    effort = Effort.QUICK if options.quick else Effort.FULL
    chosen = [section for section in SECTIONS if not options.only or section.NAME in options.only]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _stop)
    signal.signal(signal.SIGALRM, _out_of_time)
    try:
        SystemKernel().require_privileges()
    except MptmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="mptm-bench-") as state:
        os.environ["MPTM_STATE_DIR"] = state
        signal.alarm(LIMIT_SECONDS[effort])
        report = run(
            Settings(effort, options.original),
            chosen,
            LIMIT_SECONDS[effort],
            lambda sentence: print(sentence, file=sys.stderr, flush=True),
        )
        signal.alarm(0)
    return _write_and_tell(report, options.output or OUTPUT[effort])


def _write_and_tell(report: Report, directory: Path) -> int:
    print(targets_table(report.targets()))
    try:
        page, problem = write(report, directory)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    if problem:
        print(problem, file=sys.stderr)
    print(f"the whole report: {page}", file=sys.stderr)
    return int(any(section.problem for section in report.sections))


if __name__ == "__main__":
    sys.exit(main())
