# SPDX-License-Identifier: GPL-2.0-only
"""The tunnel protocols, one module each: its header, its options, and what it accepts.

A module of this package that has a `PROTOCOL` is a protocol; a module that doesn't import is an error, not a gap.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, NamedTuple, cast

from msgspec import Struct

from mptm.fields import fields_of
from mptm.protocols.base import IpOptions, Protocol, UdpOptions

__all__ = ["PROTOCOLS", "IpOptions", "Protocol", "Row", "UdpOptions", "table"]


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


class Row(NamedTuple):
    """A protocol as a table of all of them shows it."""

    name: str
    title: str
    reference: str
    outer: str
    """IPv4, IPv6, both, or Ethernet where there is no IP header."""
    options: tuple[str, ...]
    """Names of its own options; those with an exclamation mark must be given."""


def table() -> list[Row]:
    """All protocols, for documents."""
    shared = {field.name for field in fields_of(UdpOptions)} - {"port"}
    return [
        Row(
            name=protocol.name,
            title=protocol.title,
            reference=protocol.reference,
            outer=", ".join(f"IPv{version}" for version in protocol.underlays) or "Ethernet",
            options=tuple(
                field.name + "!" * field.required
                for field in fields_of(cast("type[Struct]", protocol.options))
                if field.name not in shared
            ),
        )
        for protocol in PROTOCOLS.values()
    ]
