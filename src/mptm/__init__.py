# SPDX-License-Identifier: GPL-2.0-only
"""MPTM, the Multi Protocol Tunnel Multiplexer: tunnels in XDP, programmed from Python.

    from mptm import Network, Node, Port

    node = Node()
    node.add(Network(name="blue", id=1))
    node.add(Port(name="veth-node1", role="access", network="blue"))

`Node` is the front door: what the command line does is one call of it. Names are imported when they are first
used, so that `import mptm` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "mptm.config": ("dump", "load"),
    "mptm.errors": (
        "AlreadyExists",
        "Busy",
        "ForeignProgram",
        "InUse",
        "InvalidIntent",
        "InvalidPacket",
        "KernelError",
        "MptmError",
        "NotFound",
        "NotSupported",
        "TableFull",
        "Unresolved",
    ),
    "mptm.intent": (
        "Flow",
        "Group",
        "Intent",
        "Member",
        "Network",
        "Port",
        "Route",
        "Tunnel",
        "tunnel_from_dict",
    ),
    "mptm.node": ("Node", "Plan"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "AlreadyExists",
    "Busy",
    "Flow",
    "ForeignProgram",
    "Group",
    "InUse",
    "Intent",
    "InvalidIntent",
    "InvalidPacket",
    "KernelError",
    "Member",
    "MptmError",
    "Network",
    "Node",
    "NotFound",
    "NotSupported",
    "Plan",
    "Port",
    "Route",
    "TableFull",
    "Tunnel",
    "Unresolved",
    "__version__",
    "dump",
    "load",
    "tunnel_from_dict",
]

if TYPE_CHECKING:
    from mptm.config import dump, load
    from mptm.errors import (
        AlreadyExists,
        Busy,
        ForeignProgram,
        InUse,
        InvalidIntent,
        InvalidPacket,
        KernelError,
        MptmError,
        NotFound,
        NotSupported,
        TableFull,
        Unresolved,
    )
    from mptm.intent import (
        Flow,
        Group,
        Intent,
        Member,
        Network,
        Port,
        Route,
        Tunnel,
        tunnel_from_dict,
    )
    from mptm.node import Node, Plan


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'mptm' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
