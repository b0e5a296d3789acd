# SPDX-License-Identifier: GPL-2.0-only
"""What tunnel headers are made from beside options and packet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fields:
    """What the packet alone doesn't say.

    flow_hash       of the inner flow: source port, flow label, FlowID
    destination     outer destination address, packed
    sequence        how many packets the tunnel numbered before
    identification  of an outer IPv4 packet that may be fragmented: any
    time            in units of 100 ns: the clock
    """

    flow_hash: int
    destination: bytes = b""
    sequence: int = 0
    identification: int = 0
    time: int = 0
