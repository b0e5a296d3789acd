# SPDX-License-Identifier: GPL-2.0-only
"""A few packets between two containers through every protocol of the registry; both ends are MPTM."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from packets import carries
from traffic import NODES, address_of, carried_by, packet_of, ping

from mptm.lab.topology import Lab, configure
from mptm.protocols import PROTOCOLS


@pytest.fixture(scope="module")
def lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    """The containers' links could carry more than fits a tunnel."""
    with Lab(lab_prefix(), container_mtu=1600) as built:
        yield built


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_small_packets_and_the_largest_that_fit_are_answered(lab: Lab, protocol: str) -> None:
    underlay = (PROTOCOLS[protocol].underlays or (4,))[0]
    for name in NODES:
        lab.node(name).apply(carried_by(lab, name, protocol, underlay))
    mtu = lab.node("node1").inner_mtu("blue")
    assert mtu is not None
    for name in NODES:
        configure(lab.namespace(f"{name}-c1"), [f"link set eth0 mtu {mtu}"])
    for version in (4, 6):
        if carries(protocol, underlay, version):
            remote = address_of(lab, "node2-c1", version)
            ping(lab, "node1-c1", remote)
            ping(lab, "node1-c1", remote, *packet_of(version, mtu), count=1)
