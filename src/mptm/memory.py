# SPDX-License-Identifier: GPL-2.0-only
"""Python's search for reference cycles, which looks at every object again and again while many are made."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Don't look for cycles for a while: where a million objects are made, that takes longer than the rest."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
