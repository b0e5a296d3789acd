# SPDX-License-Identifier: GPL-2.0-only
"""How far something is that takes long."""

from __future__ import annotations

from collections.abc import Callable

Advance = Callable[[str, int, int], None]
"""Is told what is being done, and how much of how much is."""
