# SPDX-License-Identifier: GPL-2.0-only
"""What is sent, byte for byte as the specifications draw it (tests/program/test_vectors.py has the programs do it)."""

from __future__ import annotations

import re
from ipaddress import ip_address

import pytest
from patching import encapsulate
from vectors import (
    FLOW_HASH,
    FRAMES,
    LOCAL,
    LOCAL_MAC,
    REMOTE,
    REMOTE_MAC,
    SEQUENCE,
    SOURCE_PORT,
    TIME,
    VECTORS,
    Vector,
    label,
)

from mptm.facts import Path
from mptm.fields import fields_of
from mptm.intent import tunnel_from_dict
from mptm.protocols import PROTOCOLS


def fields_for(vector: Vector) -> dict[str, object]:
    """Fields of node 1's tunnel."""
    known = {field.name for field in fields_of(PROTOCOLS[vector.protocol].options)}
    fixed = {"source_port": SOURCE_PORT} if "source_port" in known else {}
    common = {"name": "t", "protocol": vector.protocol, "network": "n", "remote": REMOTE[vector.underlay]}
    return common | fixed | vector.options


@pytest.mark.parametrize("vector", [each for each in VECTORS if each.is_sent], ids=label)
def test_what_is_sent_is_what_the_specification_says(vector):
    made = tunnel_from_dict(fields_for(vector))
    path = Path(
        egress_ifindex=1,
        local=ip_address(LOCAL[vector.underlay]),
        local_mac=bytes.fromhex(LOCAL_MAC.replace(":", "")),
        gateway=None,
        next_hop_mac=bytes.fromhex(REMOTE_MAC.replace(":", "")),
        mtu=1500,
    )
    template = PROTOCOLS[vector.protocol].build(made, path)
    sent = encapsulate(template, FRAMES[vector.inner], flow_hash=FLOW_HASH, sequence=SEQUENCE, time=TIME)
    at = vector.header_at
    assert sent[:at].hex(" ") == vector.wire[:at].hex(" ")
    assert sent[at:].hex(" ") == vector.wire[at:].hex(" ")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_has_vectors_of_what_is_sent_and_accepted(name):
    of_protocol = [each for each in VECTORS if each.protocol == name]
    assert {each.underlay for each in of_protocol if each.is_sent} == set(PROTOCOLS[name].underlays or (4,))
    assert any(each.arrives and not each.reason for each in of_protocol)
    assert all(re.search("§|802.1|Linux fou", each.claim) for each in of_protocol), "where it is specified"


def test_no_vector_is_there_twice():
    assert len({label(each) for each in VECTORS}) == len(VECTORS)
