# SPDX-License-Identifier: GPL-2.0-only
"""A reference model of the data plane: slow, readable, written from the standards and docs/architecture.md.

It knows an intent, what the machine is (facts) and a frame that comes in at a port, and says what becomes of it. It
knows nothing of templates, patches, tables and slots: each outgoing header is built field by field, each checksum is
computed over all that it covers, each incoming header is read as its standard draws it.

    frames      bytes of Ethernet, IP and UDP headers; checksums
    parse       what forwarding sees of an inner frame
    flow        the hash that spreads flows
    ecn         RFC 6040
    neighbour   ARP and IPv6 neighbour discovery
    icmp        errors about packets that are too big, answers to pings
    encap       tunnel headers that are sent, one module per family
    decap       tunnel headers that are received, one module per family
    node        what the node is told: ports, networks, routes, groups, what tunnels accept and how they send
    forwarding  what becomes of a frame: `Model.receive`

Nothing here may import what makes the templates: mptm.template, mptm.headers, mptm.protocols or mptm.compile.
"""

from model.forwarding import Model, Outcome

__all__ = ["Model", "Outcome"]
