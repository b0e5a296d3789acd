# SPDX-License-Identifier: GPL-2.0-only
"""Which member of a group gets which of its slots: weighted rendezvous hashing.

Each member draws a random number for each slot, from its name and the slot's number alone, and the highest wins. So a
member that goes loses its slots to the others and nothing else changes; when it comes back it gets the same ones; and
every node with the same names shares out the same way. (Thaler, Ravishankar: "Using Name-Based Mappings to Increase Hit
Rates", 1998; weights by -weight / ln(draw): Schindelhauer, Schomaker: "Weighted Distributed Hash Tables", 2005.)
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Iterable

SLOTS = 4096
"""MPTM_GROUP_SLOTS of bpf/abi.h; a unit test compares the two."""

_DRAW_BITS = 52
"""Of a draw's 64 bits those that a float holds with half a unit added: it is never 0 nor 1."""


def share_out(weights: Iterable[tuple[str, int]]) -> tuple[str | None, ...]:
    """The name that gets each slot, from names and weights (1 or more) in any order; None everywhere without names."""
    return _share_out(tuple(sorted(weights)))


@functools.lru_cache(maxsize=256)
def _share_out(weights: tuple[tuple[str, int], ...]) -> tuple[str | None, ...]:
    by_weight: dict[int, list[str]] = {}
    for name, weight in weights:
        by_weight.setdefault(weight, []).append(name)
    contests = [_winners(names, weight) for weight, names in sorted(by_weight.items())]
    if len(contests) < 2:
        return tuple(name for name, _ in contests[0]) if contests else (None,) * SLOTS
    return tuple(min(best, key=_score)[0] for best in zip(*contests, strict=True))


def _winners(names: list[str], weight: int) -> list[tuple[str, float]]:
    """Who of equals gets each slot, with -ln(draw) / weight: the least wins against other weights."""
    winners = []
    for draws in zip(*map(_draws, names), strict=True):
        highest = max(draws)
        draw = ((highest >> 64 - _DRAW_BITS) + 0.5) / (1 << _DRAW_BITS)
        winners.append((names[draws.index(highest)], -math.log(draw) / weight))
    return winners


def _score(winner: tuple[str, float]) -> float:
    return winner[1]


def _draws(name: str) -> tuple[int, ...]:
    """A number of 64 bits for each slot."""
    return struct.unpack(f"<{SLOTS}Q", hashlib.shake_128(name.encode()).digest(8 * SLOTS))
