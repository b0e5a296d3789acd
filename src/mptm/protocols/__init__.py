# SPDX-License-Identifier: GPL-2.0-only
"""The tunnel protocols, one module each: its header, its options, and what it accepts.

A module of this package that has a `PROTOCOL` is a protocol; a module that doesn't import is an error, not a gap.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from mptm.protocols.base import IpOptions, Protocol, UdpOptions

__all__ = ["PROTOCOLS", "IpOptions", "Protocol", "UdpOptions"]


def _load() -> dict[str, Protocol[Any]]:
    found: dict[str, Protocol[Any]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        protocol = getattr(module, "PROTOCOL", None)
        if isinstance(protocol, Protocol):
            found[protocol.name] = protocol
    return dict(sorted(found.items()))


PROTOCOLS: dict[str, Protocol[Any]] = _load()
"""Every protocol by name."""
