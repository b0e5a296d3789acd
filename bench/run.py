#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What MPTM costs and carries on this machine; `make bench` runs it. See docs/benchmarks/README.md.

Needs root. All that it makes is in network namespaces of its own, which are gone when it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chain
import cost
import tcp

from mptm.errors import MptmError
from mptm.node import SystemKernel

OVER_FLOOR_NS = 55
OF_REDIRECT = 0.75
OF_VXLAN = 5.0

NAMES = {
    chain.TUNNEL: "MPTM, XDP, VXLAN tunnel",
    chain.REDIRECT: "redirects, no tunnel",
    chain.VXLAN: "kernel vxlan and bridge",
}
PARTS = ("cost", "chain", "tcp")


@dataclass(frozen=True)
class Effort:
    """How long is measured: the seconds are limits on when the last round of a part begins."""

    limit_seconds: int
    cost_seconds: int
    cost_rounds: int
    cost_samples: int
    cost_repeat: int
    chain_seconds: int
    chain_rounds: int
    chain_run_seconds: float
    tcp_seconds: int
    tcp_rounds: int
    tcp_run_seconds: int


FULL = Effort(240, 90, 10, 5, 50_000, 50, 25, 0.4, 30, 2, 2)
QUICK = Effort(60, 20, 5, 4, 20_000, 10, 9, 0.2, 5, 1, 1)


@dataclass(frozen=True)
class Target:
    """Something to reach, and how it stands."""

    name: str
    wanted: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Results:
    """Everything that was measured; a part that was left out is None."""

    machine: str
    costs: list[cost.Cost] | None = None
    comparison: chain.Comparison | None = None
    transfers: list[tcp.Transfer] | None = None

    def targets(self) -> list[Target]:
        """Those that can be told from what was measured."""
        found = []
        if self.costs is not None:
            for direction in (cost.ENCAP, cost.DECAP):
                worst = max((each for each in self.costs if each.case.direction == direction), key=_over)
                found.append(
                    Target(
                        f"{direction}, worst case ({describe(worst.case)})",
                        f"at most {OVER_FLOOR_NS} ns over the floor",
                        f"{worst.over_ns:.0f} ns",
                        worst.over_ns <= OVER_FLOOR_NS,
                    )
                )
        if self.comparison is not None:
            of_redirect, of_vxlan = self.comparison.of_redirect, self.comparison.of_vxlan
            found += [
                Target(
                    "packets per second, of bare redirects",
                    f"at least {OF_REDIRECT:g}",
                    f"{of_redirect:.2f}",
                    of_redirect >= OF_REDIRECT,
                ),
                Target(
                    "packets per second, of kernel vxlan",
                    f"at least {OF_VXLAN:g} x",
                    f"{of_vxlan:.1f} x",
                    of_vxlan >= OF_VXLAN,
                ),
            ]
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {
            "targets": [dataclasses.asdict(target) for target in self.targets()]
        }

    def to_markdown(self) -> str:
        """Tables."""
        parts = [f"Machine: {self.machine}."]
        if self.costs is not None:
            rows = [
                [
                    describe(each.case),
                    each.case.direction,
                    f"{each.floor_ns:.0f}",
                    f"{each.program_ns:.0f}",
                    f"**{each.over_ns:.0f}** ({each.low_ns:.0f}-{each.high_ns:.0f})",
                    f"{each.over_all_ns:.0f}",
                    f"{each.undisturbed} of {each.samples}",
                ]
                for each in self.costs
            ]
            header = [
                "protocol / underlay / inner",
                "direction",
                "floor, ns",
                "program, ns",
                "over the floor, ns",
                "all samples",
                "undisturbed",
            ]
            parts += ["### Nanoseconds per packet", _table(header, rows)]
        if self.comparison is not None:
            rows = [
                [
                    NAMES[each.kind],
                    f"**{each.packets_per_second / 1e6:.2f}** ({each.low / 1e6:.2f}-{each.high / 1e6:.2f})",
                    f"{each.sent}",
                    f"{each.lost}",
                    f"{each.samples}",
                ]
                for each in self.comparison.chains
            ]
            header = ["chain", "million packets per second", "sent", "lost", "compared byte by byte"]
            parts += ["### Packets per second, 64-byte frames, one CPU for everything", _table(header, rows)]
        if self.transfers is not None:
            rates = {(each.kind, each.streams): each.bits_per_second / 1e9 for each in self.transfers}
            kinds = dict.fromkeys(kind for kind, _ in rates)
            rows = [
                [NAMES[kind], *(f"{rates[kind, streams]:.1f}" for streams in tcp.STREAMS)] for kind in kinds
            ]
            header = [
                "chain",
                *(f"{streams} TCP stream{'s' * (streams > 1)}, Gbit/s" for streams in tcp.STREAMS),
            ]
            parts += ["### TCP, for information", _table(header, rows)]
        if targets := self.targets():
            rows = [
                [each.name, each.wanted, each.measured, "yes" if each.met else "**no**"] for each in targets
            ]
            parts += ["### Targets", _table(["what", "wanted", "measured", "met"], rows)]
        return "\n\n".join(parts) + "\n"


def _over(measured: cost.Cost) -> float:
    return measured.over_ns


def describe(case: cost.Case) -> str:
    """A case in short: `geneve / v4 / v6`."""
    return f"{case.protocol} / {f'v{case.underlay}' if case.underlay else '-'} / v{case.inner}"


def describe_machine() -> str:
    """CPUs and kernel."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    version = re.match(r"[\d.]*\d", platform.release())
    kernel = version[0] if version else platform.release()
    return f"{os.cpu_count()} vCPU, {model[1] if model else platform.machine()}, Linux {kernel}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in rows)])


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    """The last CPU that this process may use, so that a run doesn't move in the middle."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(effort: Effort, parts: list[str]) -> Results:
    """Measure these parts. Raises MptmError."""

    def progress(sentence: str) -> None:
        print(f"  {sentence}", file=sys.stderr, flush=True)

    def begin(title: str, seconds: int) -> float:
        print(f"{title} (about {seconds} s at most)", file=sys.stderr, flush=True)
        return time.monotonic() + seconds

    results = Results(describe_machine())
    if "cost" in parts:
        deadline = begin("nanoseconds per packet", effort.cost_seconds)
        with on_one_cpu():
            costs = cost.measure(
                effort.cost_rounds, effort.cost_samples, effort.cost_repeat, deadline, progress
            )
        results = dataclasses.replace(results, costs=costs)
    if "chain" in parts:
        deadline = begin("packets per second", effort.chain_seconds)
        with on_one_cpu():
            comparison = chain.compare(effort.chain_rounds, effort.chain_run_seconds, deadline, progress)
        results = dataclasses.replace(results, comparison=comparison)
    if "tcp" in parts:
        deadline = begin("TCP", effort.tcp_seconds)
        transfers = tcp.measure(effort.tcp_rounds, effort.tcp_run_seconds, deadline, progress)
        results = dataclasses.replace(results, transfers=transfers)
    return results


def _stop(number: int, _frame: object) -> None:
    raise SystemExit(f"error: stopped by {signal.Signals(number).name}; everything was cleaned up")


def _out_of_time(_number: int, _frame: object) -> None:
    raise MptmError("it took longer than it may: is the machine very busy?", "try again, or with --quick")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Exits with status 2 when they make no sense."""
    parser = argparse.ArgumentParser(
        prog="bench/run.py",
        description="Measure MPTM on this machine: nanoseconds per packet over the floor of adjust_head and "
        "redirect_map, packets per second end to end beside bare redirects and the kernel's vxlan device, and TCP. "
        "Needs root. Tables go to standard output, progress to standard error.",
        epilog="example: bench/run.py --quick --only chain --json chain.json",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a minute at most, and less exact (otherwise four minutes at most)",
    )
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="one part instead of all; may be given several times"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to FILE")
    options = parser.parse_args(arguments)
    for path in (options.json, options.markdown):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no directory {path.parent}")
    return options


def main() -> int:
    """Exit status 0 when everything could be measured, whether targets are met or not; 1 otherwise."""
    options = parse_arguments()
    effort = QUICK if options.quick else FULL
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _stop)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(effort.limit_seconds)
    try:
        SystemKernel().require_privileges()
        with tempfile.TemporaryDirectory(prefix="mptm-bench-") as state:
            os.environ["MPTM_STATE_DIR"] = state
            results = measure(effort, options.only or list(PARTS))
    except MptmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tables = results.to_markdown()
    print(tables, end="")
    try:
        if options.json is not None:
            options.json.write_text(json.dumps(results.to_dict(), indent=2) + "\n")
        if options.markdown is not None:
            options.markdown.write_text(tables)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
