# SPDX-License-Identifier: GPL-2.0-only
"""How far something is that takes long."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

AFTER_SECONDS = 1.0
"""Before, nobody wonders what takes so long."""

Advance = Callable[[str, int, int], None]
"""Is told what is being done, and how much of how much is."""


@contextlib.contextmanager
def saying_later(say: Callable[[], None]) -> Iterator[None]:
    """Call `say`, in another thread, if what is done within takes longer than AFTER_SECONDS."""
    timer = threading.Timer(AFTER_SECONDS, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
