# SPDX-License-Identifier: GPL-2.0-only
"""What reading a tunnel header yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Payload(NamedTuple):
    """What a tunnel header carries: an Ethernet frame, or an IP packet of the version that the header says.

    says: 4, 6, or 0 where the header leaves it to the packet; None: an Ethernet frame.
    """

    data: bytes
    says: int | None


class Name(NamedTuple):
    """Which tunnels take a packet: those of this kind of header with this identifier; then this is its payload."""

    header: str
    identifier: int
    payload: Payload | None


@dataclass(frozen=True)
class Reading:
    """A header whose tunnel can be told: by its more specific name first.

    fault    what is wrong with the rest, a reason; "": nothing
    summed   what the header's checksum covers; b"": there is none
    echo     the sequence number of a request that is to be answered; None: it is none
    """

    names: tuple[Name, ...]
    fault: str = ""
    summed: bytes = b""
    echo: int | None = None


class Unreadable(Exception):
    """A header with this fault (a reason), from which no tunnel can be told."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Control(Exception):
    """No data: for a daemon of the host."""


def of_one(header: str, identifier: int, payload: Payload | None = None, fault: str = "") -> Reading:
    return Reading((Name(header, identifier, payload),), fault)


IPV4_OR_6 = {0x0800: 4, 0x86DD: 6}
BRIDGED = 0x6558


def payload_by_ethertype(ethertype: int, data: bytes) -> Payload | None:
    """None: none that a tunnel carries."""
    if ethertype == BRIDGED:
        return Payload(data, None)
    return Payload(data, IPV4_OR_6[ethertype]) if ethertype in IPV4_OR_6 else None


def payload_by_protocol(protocol: int, data: bytes) -> Payload | None:
    """The same by an IP protocol number: 4, 41 or 143."""
    says = {4: 4, 41: 6, 143: None}
    return Payload(data, says[protocol]) if protocol in says else None
