# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import math
import random
import time
from collections import Counter

import pytest
from c_headers import c_constant
from hypothesis import given, settings
from hypothesis import strategies as st

from mptm import hashing
from mptm.hashing import SLOTS, share_out
from mptm.intent import MEMBERS_MAX, WEIGHT_MAX

MEMBERS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.integers(1, WEIGHT_MAX), min_size=1, max_size=6
)


def test_slots_are_those_of_the_data_plane():
    assert c_constant("abi.h", "MPTM_GROUP_SLOTS") == SLOTS


def test_nobody_gets_nothing_and_one_gets_all():
    assert share_out([]) == (None,) * SLOTS
    assert share_out([("a", 7)]) == ("a",) * SLOTS


EXPECTED = "3232342223242432222233422422233222222322"


def test_where_every_node_puts_some_slots():
    """What another version or machine must share out the same way: else a flow moves at an upgrade."""
    shared = share_out([("to-node2", 3), ("to-node3", 1), ("to-node4", 1)])
    assert "".join(str(name)[-1] for name in shared[:40]) == EXPECTED


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1, "b": 1},
        {"a": 3, "b": 1},
        {"a": 1, "b": 2, "c": 3, "d": 4},
        {f"t{number}": 1 for number in range(16)},
        {"small": 1, "large": 256},
        {f"t{number}": 1 + number % 3 for number in range(12)},
    ],
)
def test_each_gets_what_its_weight_says_as_well_as_chance_allows(weights):
    """Within four standard deviations of so many draws: for two halves 3 percent."""
    got, total = Counter(share_out(weights.items())), sum(weights.values())
    for name, weight in weights.items():
        share = weight / total
        assert abs(got[name] - SLOTS * share) < 4 * math.sqrt(SLOTS * share * (1 - share)), (name, got)


def test_many_groups_together_are_shared_out_within_a_percent():
    got: Counter[str | None] = Counter()
    for number in range(100):
        names = {f"a{number}": 3, f"b{number}": 1}
        got.update(name and name[0] for name in share_out(names.items()))
    assert abs(got["a"] / (100 * SLOTS) - 0.75) < 0.0075


@settings(max_examples=60, deadline=None)
@given(MEMBERS, st.data())
def test_only_the_slots_of_a_member_that_goes_change_hands(weights, data):
    leaving = data.draw(st.sampled_from(sorted(weights)))
    before = share_out(weights.items())
    after = share_out((name, weight) for name, weight in weights.items() if name != leaving)
    assert all(new == old for old, new in zip(before, after, strict=True) if old != leaving)
    assert leaving not in after


@settings(max_examples=60, deadline=None)
@given(MEMBERS, st.data())
def test_more_weight_only_wins_slots(weights, data):
    growing = data.draw(st.sampled_from(sorted(weights)))
    before = share_out(weights.items())
    after = share_out((weights | {growing: weights[growing] + 1}).items())
    assert all(new in (old, growing) for old, new in zip(before, after, strict=True))


def test_the_order_of_members_does_not_matter():
    members = [(f"t{number}", 1 + number % 5) for number in range(20)]
    shuffled = random.Random(1).sample(members, len(members))
    hashing._share_out.cache_clear()
    first = share_out(members)
    hashing._share_out.cache_clear()
    assert share_out(shuffled) == first


def test_the_largest_group_is_shared_out_within_a_second():
    members = [(f"tunnel-{number}", 1 + number % WEIGHT_MAX) for number in range(MEMBERS_MAX)]
    started = time.process_time()
    hashing._share_out.cache_clear()
    share_out(members)
    assert time.process_time() - started < 2, "0.7 s on the slowest machine that was tried, and some room"
    started = time.process_time()
    share_out(members)
    assert time.process_time() - started < 0.05
