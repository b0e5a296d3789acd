# SPDX-License-Identifier: GPL-2.0-only
"""Which hook a port's program runs at: XDP, for the most packets, or TC, for the most bytes.

docs/hooks.md has the reasons at length. `choose_hook` is pure: compile, and what `mptm port show` says, come here.
"""

from __future__ import annotations

from typing import NamedTuple

from mptm.facts import Facts
from mptm.intent import Intent, Port

WORKLOAD_KINDS = frozenset(("veth", "tun"))
"""Kinds of link (IFLA_INFO_KIND) behind which a TCP stack hands over GSO packets: containers, and VMs by a tap."""


NAMED = 3
"""Of many ports, so many are named."""


class HookChoice(NamedTuple):
    """`hook` is "xdp" or "tc"; `why` a sentence for people."""

    hook: str
    why: str


def choose_hook(port: Port, intent: Intent, facts: Facts) -> HookChoice:
    """The hook of a port; where it is left to us, by its kind, an uplink's by what its access ports have."""
    if port.hook != "auto":
        return HookChoice(port.hook, "as the port says")
    if port.mode != "auto":
        return HookChoice("xdp", f"mode {port.mode} is XDP's")
    if port.role == "access":
        return _choose_for_access(port, facts)
    others = [
        (other, choose_hook(other, intent, facts).hook)
        for other in intent.ports.values()
        if other.role == "access"
    ]
    at_tc, at_xdp = (sorted(other.name for other, hook in others if hook == each) for each in ("tc", "xdp"))
    if at_tc and at_xdp:
        return HookChoice("tc", f"it serves access ports at TC ({_some(at_tc)}) and at XDP ({_some(at_xdp)})")
    if at_tc:
        return HookChoice("tc", f"it serves access ports at TC ({_some(at_tc)})")
    if others:
        return HookChoice("xdp", "all access ports are at XDP")
    return HookChoice("xdp", "there is no access port; a relay is faster at XDP")


def _some(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _choose_for_access(port: Port, facts: Facts) -> HookChoice:
    link = facts.links.get(port.name)
    if link is None:
        return HookChoice("xdp", "there is no such interface yet")
    if link.kind in WORKLOAD_KINDS:
        kind = "tap" if link.kind == "tun" else link.kind
        return HookChoice("tc", f"a {kind} brings whole GSO packets, which TC keeps whole")
    return HookChoice("xdp", f"a {link.kind or 'physical'} interface brings packets one by one")
