# SPDX-License-Identifier: GPL-2.0-only
"""What an instance may be called: its name is that of directories, below the state directory and in bpffs."""

from __future__ import annotations

import re

from mptm.errors import InvalidIntent

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def check_instance_name(name: str) -> None:
    """Raise InvalidIntent for a name that no instance can have."""
    if not _NAME.fullmatch(name):
        raise InvalidIntent(
            f"{name!r} is no name for an instance",
            "up to 64 of A-Z a-z 0-9 _ . - beginning with a letter, digit or _",
        )
