# SPDX-License-Identifier: GPL-2.0-only
"""The programs do what the reference model says: verdict, bytes, counters and reason, for whatever packet.

What `make fuzz` finds is pasted at the end.
"""

from __future__ import annotations

import pytest
from differential import BURST, Bench, check
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from strategies import scenarios

from mptm.protocols import PROTOCOLS
from mptm.reasons import Reason

SCENARIOS = 450
NUMBERS = st.lists(st.integers(0, 2**32 - 1), min_size=100, max_size=100)

ELSEWHERE = {
    "NONE",
    "EGRESS_GONE",  # interfaces that go away: test_encap.py, test_decap.py
    "PORT_GONE",
    "NO_HEADROOM",  # drivers that leave little of it: BPF_PROG_TEST_RUN leaves plenty
    "ANSWER",  # drivers that leave no room behind a packet: test_no_room.py
    "GSO",  # at TC only: test_tc.py
    "CHECKSUM_SPAN",  # longer frames than BPF_PROG_TEST_RUN makes: test_long_frames.py
}
"""Reasons that no packet here comes to."""


@pytest.mark.timeout(900)
def test_program_and_model_agree(node):
    bench = Bench(node)

    # The same packets every time, so that a commit is to blame and not the dice; `make fuzz` throws new ones.
    @settings(
        max_examples=SCENARIOS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(scenarios(), NUMBERS)
    def compare(scenario, numbers):
        check(bench, scenario, numbers)

    compare()
    assert bench.cases >= SCENARIOS * 100 * BURST * 0.9
    names = {reason.name.partition("_")[2] for reason in Reason} - ELSEWHERE
    wanted = {("drop", name) for name in names}
    wanted |= {(way, protocol) for way in ("encap", "decap") for protocol in PROTOCOLS}
    missing = {what: bench.happened[what] for what in wanted if bench.happened[what] < 3}
    assert not missing, f"packets that would show it are missing: {missing}"
    assert len(bench.identifications) > 100, "identifications of packets that may be fragmented are random"
