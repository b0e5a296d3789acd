# SPDX-License-Identifier: GPL-2.0-only
"""Throws packets at the programs and the reference model until the time is up, or they differ. Needs root.

    fuzz.py [--minutes N] [--seed N]

Exit status 1: a difference was found; a test that shows it is printed, and the seed that leads there again.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS), str(TESTS / "program")]

from differential import Bench, DifferenceFound, check  # noqa: E402 (the path comes first)
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from strategies import scenarios  # noqa: E402
from world import world  # noqa: E402

SCENARIOS_PER_ROUND = 20
NUMBERS_PER_SCENARIO = 100
REPORT_EVERY_SECONDS = 30


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="compare the programs with the reference model, at random")
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, help="where to begin (default: anywhere)")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes must be more than 0, not {arguments.minutes:g}")
    if os.geteuid() != 0:
        parser.error("loading BPF programs needs root")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is taken down on Ctrl-C
    start = secrets.randbits(32) if arguments.seed is None else arguments.seed
    return fuzz(start, time.monotonic() + 60 * arguments.minutes)


def fuzz(number: int, deadline: float) -> int:
    """Round after round from seed `number` on; the exit status."""
    began = reported = time.monotonic()
    with world("fuzz") as node:
        bench = Bench(node)
        try:
            while time.monotonic() < deadline:
                run_round(bench, number)
                number += 1
                if time.monotonic() - reported > REPORT_EVERY_SECONDS:
                    reported = time.monotonic()
                    print(f"{bench.cases} packets in {reported - began:.0f} s", flush=True)
        except DifferenceFound as found:
            print(f"{bench.cases} packets, the last of which was one too many (seed {number}).\n")
            print(found.difference.as_test(f"found_by_fuzzing_{number}"))
            print(f"Again: make fuzz SEED={number}")
            return 1
        except KeyboardInterrupt:
            print("interrupted")
            return 130
        print(f"{bench.cases} packets in {time.monotonic() - began:.0f} s: program and model agree")
        return 0


def run_round(bench: Bench, number: int) -> None:
    """Some scenarios with some packets each. DifferenceFound."""

    @seed(number)
    @settings(
        max_examples=SCENARIOS_PER_ROUND,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(
        scenarios(),
        st.lists(st.integers(0, 2**32 - 1), min_size=NUMBERS_PER_SCENARIO, max_size=NUMBERS_PER_SCENARIO),
    )
    def compare(scenario, numbers):
        check(bench, scenario, numbers)

    compare()


if __name__ == "__main__":
    sys.exit(main())
