# SPDX-License-Identifier: GPL-2.0-only
"""For which UDP ports the kernel is to join tunnel packets (GRO) before a program at TC sees them.

The kernel does so only for ports that a tunnel device of its own listens on; `mptm.kernel.gro` makes idle ones, unless
an uplink is told not to (`outer_gro: false`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mptm.facts import Link
from mptm.intent import Intent, find_protocol
from mptm.protocols.base import ListenerKind
from mptm.tables import Attachment

PROTOCOLS = ("vxlan", "vxlan-gbp", "geneve")
"""Those that the kernel's GRO for VXLAN joins: a header of 8 bytes, and an Ethernet frame behind it."""


class Listening(NamedTuple):
    """What packets are joined for: a UDP port, over IPv4 or IPv6."""

    port: int
    version: int


def device_of(instance: str, listening: Listening) -> str:
    """The name of an instance's idle tunnel device: `mgro4` or `mgro6`, 4 digits of the instance, the UDP port."""
    return f"mgro{listening.version}{_digest(instance)}-{listening.port}"


def is_device_of(instance: str, name: str) -> bool:
    """Whether an interface of that name is an idle tunnel device of an instance."""
    return name.startswith((f"mgro4{_digest(instance)}-", f"mgro6{_digest(instance)}-"))


def _digest(instance: str) -> str:
    return hashlib.sha256(instance.encode()).hexdigest()[:4]


def wanted(intent: Intent, attachments: Iterable[Attachment]) -> set[Listening]:
    """What uplinks at TC want GRO for; nothing where these are to be left alone (`offloads: false`).

    A UDP port is the whole node's: where one of these uplinks has `outer_gro: false`, it stays free.
    """
    uplinks = [intent.ports[each.name] for each in attachments if each.hook == "tc" and each.role == "uplink"]
    if not any(uplink.offloads for uplink in uplinks) or not all(uplink.outer_gro for uplink in uplinks):
        return set()
    found = set()
    for tunnel in intent.tunnels.values():
        address = tunnel.remote_address or tunnel.local_address
        for each in tunnel.variants():
            protocol = find_protocol(each.protocol)
            has_frames = protocol.inner_families(each.options) is None
            if (
                each.protocol in PROTOCOLS
                and has_frames
                and not getattr(each.options, "tlvs", ())
                and address
            ):
                found |= {
                    Listening(listener.number, address.version)
                    for listener in protocol.listeners(each.options)
                    if listener.kind is ListenerKind.UDP
                }
    return found


def lacking(instance: str, wanted: Iterable[Listening], links: Mapping[str, Link]) -> set[int]:
    """UDP ports among the wanted for which neither a device of ours nor another of the kernel's joins packets."""
    joined = {link.gro_port for link in links.values() if link.up}
    return {
        each.port for each in wanted if device_of(instance, each) not in links and each.port not in joined
    }
