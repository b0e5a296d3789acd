# SPDX-License-Identifier: GPL-2.0-only
"""Bundles of flows on real tables and real traffic."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import numpy as np
from traffic import address_of, kept, mptm, ping, table_bytes, try_ping

from mptm.intent import Flow, Route, tunnel_from_dict
from mptm.kernel.dataplane import remove_instance
from mptm.lab.topology import Lab

OTHERS = 100_000
"""Flows that nobody sends packets of."""


def number_of(address: str) -> int:
    return int(ip_address(address))


def test_flows_of_a_bundle_steer_packets_and_come_back_after_a_reboot(lab: Lab, tmp_path: Path) -> None:
    node = lab.node("node1")
    with kept(node):
        network, tunnel = "blue", "blue-to-node2"
        here, there = address_of(lab, "node1-c1"), address_of(lab, "node2-c1")
        ping(lab, "node1-c1", there)
        sources = np.append(np.arange(OTHERS, dtype=np.uint32), np.uint32(number_of(here)))
        destinations = np.full(OTHERS + 1, number_of(there), dtype=np.uint32)
        path = tmp_path / "flows.npz"
        np.savez(path, source=sources, destination=destinations)
        loaded = mptm(lab, "node1", "flow", "load", str(path), "--network", network, "--drop")
        assert loaded.returncode == 0, loaded.stderr
        assert loaded.stderr.endswith(f"mptm: bundle flows has {OTHERS + 1} flows\n")
        assert "0 received" in try_ping(lab, "node1-c1", there)

        own = Flow(network=network, source=here, destination=there, via=tunnel)
        node.add(own)
        ping(lab, "node1-c1", there)
        listed = mptm(lab, "node1", "flow", "list", "--bundle", "flows")
        assert len(listed.stdout.splitlines()) == 1 + OTHERS, (
            "with a heading, and without the one that is replaced"
        )
        assert listed.stderr == f"mptm: {OTHERS} flows, {OTHERS} of bundle flows\n"
        assert f"via {tunnel}" in mptm(lab, "node1", "flow", "show", here, there).stdout
        node.remove("flow", own.key)
        shown = mptm(lab, "node1", "flow", "show", here, there).stdout.split()
        assert shown[-5:] == ["next", "hop", "drop", "bundle", "flows"]
        assert "0 received" in try_ping(lab, "node1-c1", there)

        before = table_bytes(node)["flows_v4"]
        assert len(before) == OTHERS + 1
        remove_instance(node.instance)
        restored = mptm(lab, "node1", "restore")
        assert restored.returncode == 0, restored.stderr
        assert table_bytes(node)["flows_v4"] == before
        assert "0 received" in try_ping(lab, "node1-c1", there)
        assert node.status().differences == 0

        saved = tmp_path / "saved.csv"
        assert mptm(lab, "node1", "flow", "save", "flows", str(saved)).returncode == 0
        with saved.open() as lines:
            assert sum(1 for _ in lines) == OTHERS + 2
        assert mptm(lab, "node1", "flow", "unload", "flows").returncode == 0
        assert table_bytes(node)["flows_v4"] == {}
        ping(lab, "node1-c1", there)


def test_flows_of_a_damaged_bundle_go_on_steering_packets(lab: Lab) -> None:
    node = lab.node("node1")
    with kept(node):
        tunnel = node.intent.tunnels["blue-to-node2"]
        here, there = address_of(lab, "node1-c1"), address_of(lab, "node2-c1")
        sources = np.append(np.arange(OTHERS, dtype=np.uint32), np.uint32(number_of(here)))
        destinations = np.full(OTHERS + 1, number_of(there), dtype=np.uint32)
        node.load_flows(
            "flows", network="blue", sources=sources, destinations=destinations, next_hops=tunnel.name
        )
        before = table_bytes(node)["flows_v4"]
        path = node.store.bundles.path(node.intent.bundles["flows"].content)
        path.write_bytes(path.read_bytes()[:-1])
        ping(lab, "node1-c1", there)  # has the neighbour's MAC address from here on
        route = node.intent.get("route", f"blue {there}/32")
        node.replace(Route(network="blue", prefix=route.prefix, drop=True))
        node.replace(tunnel_from_dict({**tunnel.to_dict(), "ttl": 9}))
        after = table_bytes(node)["flows_v4"]
        assert after.keys() == before.keys()
        assert set(after.values()) != set(before.values()), "the tunnel has another slot"
        ping(lab, "node1-c1", there)
        restored = mptm(lab, "node1", "restore")
        assert f"the file of its {OTHERS + 1} flows is damaged" in restored.stderr
        assert table_bytes(node)["flows_v4"] == after
        node.replace(route)
        assert mptm(lab, "node1", "flow", "unload", "flows").returncode == 0
        assert table_bytes(node)["flows_v4"] == {}
