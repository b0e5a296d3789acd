# SPDX-License-Identifier: GPL-2.0-only
"""What mptm_encap_xdp does with a packet of a workload."""

from __future__ import annotations

import pytest
from packets import (
    VARIANTS,
    as_carried,
    carried,
    carriers,
    carries,
    frame,
    inner_kinds,
    ip,
    ip_packet,
    journeys,
    over_ip,
    tunnel,
)
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw
from world import (
    GATEWAY_MAC,
    LOCAL,
    LOCAL_MAC,
    NEIGHBOUR,
    NEIGHBOUR_MAC,
    OUR_MAC,
    REMOTE,
    REMOTE_MAC,
    THEIR_MAC,
    THEIRS,
)

from model.frames import ones_complement
from mptm.headers import checksum
from mptm.intent import Flow, Route

INNER = inner_kinds()


def to(version: int = 4, **more):
    """The route to their workload."""
    return Route(network="blue", prefix=THEIRS[version], **({"via": "to-node2"} | more))


def geneve(underlay: int = 4, **more):
    return tunnel("geneve", underlay, remotes=REMOTE, **more)


def udp(version: int = 4, size: int = 64, **fields):
    return frame(ip(version, **fields) / UDP(sport=1111, dport=53) / Raw(b"d" * size))


@pytest.mark.parametrize("underlay", [4, 6])
def test_geneve_stands_on_the_wire_as_rfc_8926_draws_it(node, underlay):
    node.apply(geneve(underlay, vni=0xABCDEF), to())
    sent = udp()
    got = node.send("c1", sent)
    assert got.verdict == "REDIRECT"
    outer = got.packet
    assert (outer.src, outer.dst) == (LOCAL_MAC, REMOTE_MAC)
    assert (outer.payload.src, outer.payload.dst) == (LOCAL[underlay], REMOTE[underlay])
    assert outer[UDP].dport == 6081
    assert outer[UDP].sport >= 49152
    assert (outer[UDP].chksum == 0) == (underlay == 4)
    assert outer[GENEVE].vni == 0xABCDEF
    assert outer[GENEVE].proto == 0x6558
    assert bytes(outer[GENEVE])[:8] == bytes.fromhex("00006558abcdef00")
    assert bytes(outer[GENEVE].payload) == bytes(sent)


def test_vxlan_stands_on_the_wire_as_rfc_7348_draws_it(node):
    node.apply(tunnel("vxlan", remotes=REMOTE, vni=0xABCDEF), to())
    outer = node.send("c1", udp()).packet
    assert outer[UDP].dport == 4789
    assert bytes(outer[VXLAN])[:8] == bytes.fromhex("08000000abcdef00")
    assert bytes(outer[VXLAN].payload) == bytes(udp())


def test_vlan_pushes_one_tag_and_the_nodes_mac_addresses(node):
    node.apply(tunnel("vlan", remotes=REMOTE, vid=100, pcp=5), to())
    outer = node.send("c1", udp()).packet
    assert (outer.src, outer.dst) == (LOCAL_MAC, REMOTE_MAC)
    assert (outer[Dot1Q].vlan, outer[Dot1Q].prio, outer[Dot1Q].type) == (100, 5, 0x0800)
    assert bytes(outer[IP]) == bytes(udp()[IP])


def test_vlan_for_anyone_keeps_the_frames_own_mac_addresses(node):
    node.apply(
        {
            "name": "to-node2",
            "protocol": "vlan",
            "network": "blue",
            "remote": "any",
            "egress": "up0",
            "vid": 7,
        },
        to(mac=THEIR_MAC),
    )
    outer = node.send("c1", udp()).packet
    assert (outer.src, outer.dst, outer[Dot1Q].vlan) == (OUR_MAC, THEIR_MAC, 7)


@pytest.mark.parametrize(("protocol", "underlay", "kind"), journeys(INNER))
def test_every_length_and_checksum_is_right(node, protocol, underlay, kind):
    sent = INNER[kind]
    version = 6 if IPv6 in sent else 4
    node.apply(tunnel(protocol, underlay, remotes=REMOTE), to(version))
    got = node.send("c1", sent)
    assert got.verdict == "REDIRECT"
    outer = got.packet
    if not over_ip(protocol):
        assert got.data.endswith(bytes(sent)[12:])
        return
    is_l3 = carried(protocol, underlay) is not None
    assert got.data.endswith(ip_packet(bytes(sent)) if is_l3 else as_carried(protocol, sent))
    if underlay == 4:
        assert outer[IP].len == len(got.data) - 14
        assert checksum(got.data[14:34]) == 0
        if "inherit" not in VARIANTS.get(protocol, ("", {}))[1].values():
            assert outer[IP].ttl == 64
        if VARIANTS.get(protocol, ("", {}))[1].get("df", True):
            assert (outer[IP].flags, outer[IP].id) == ("DF", 0)
    else:
        assert outer[IPv6].plen == len(got.data) - 54
        assert outer[IPv6].fl != 0
    if isinstance(outer.payload.payload, UDP):
        at = 34 if underlay == 4 else 54
        assert outer[UDP].len == len(got.data) - at
        has_checksum = underlay == 6 and protocol != "geneve no checksum"
        assert (outer[UDP].chksum != 0) == has_checksum
        if has_checksum:
            pseudo = got.data[at - 32 : at] + got.data[at + 4 : at + 6] + bytes([0, 17])
            assert ones_complement(pseudo + got.data[at:]) == 0


@pytest.mark.parametrize("underlay", [4, 6])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ecn", range(4))
@pytest.mark.parametrize(("dscp", "outer_dscp"), [(0, 0), (46, 46), ("inherit", 34)])
def test_ecn_is_always_the_inner_one_and_dscp_as_configured(node, underlay, version, ecn, dscp, outer_dscp):
    node.apply(geneve(underlay, dscp=dscp), to(version))
    tos = {"tos" if version == 4 else "tc": 34 << 2 | ecn}
    got = node.send("c1", udp(version, **tos))
    outer = got.packet.payload
    assert (outer.tos if underlay == 4 else outer.tc) == outer_dscp << 2 | ecn
    if underlay == 4:
        assert checksum(got.data[14:34]) == 0


@pytest.mark.parametrize("underlay", [4, 6])
@pytest.mark.parametrize(("ttl", "outer_ttl"), [(64, 64), (1, 1), (255, 255), ("inherit", 17)])
def test_ttl_is_fixed_or_the_inner_one(node, underlay, ttl, outer_ttl):
    node.apply(geneve(underlay, ttl=ttl), to())
    got = node.send("c1", udp(ttl=17))
    outer = got.packet.payload
    assert (outer.ttl if underlay == 4 else outer.hlim) == outer_ttl
    if underlay == 4:
        assert checksum(got.data[14:34]) == 0


def test_without_df_the_packet_has_an_id_and_a_right_checksum(node):
    node.apply(geneve(df=False), to())
    runs = [node.send("c1", udp()) for _ in range(8)]
    assert all(run.packet[IP].flags == 0 and checksum(run.data[14:34]) == 0 for run in runs)
    assert len({run.packet[IP].id for run in runs}) > 1


def test_a_flow_has_one_source_port_and_flows_have_many(node):
    node.apply(geneve(), to())
    ports = {}
    for inner_port in range(2000, 2200):
        for _ in range(2):
            packet = frame(ip(4) / UDP(sport=inner_port, dport=53))
            ports.setdefault(inner_port, set()).add(node.send("c1", packet).packet[UDP].sport)
    assert all(len(seen) == 1 for seen in ports.values())
    values = {port for seen in ports.values() for port in seen}
    assert len(values) > 180
    assert all(49152 <= port <= 65535 for port in values)


def test_all_fragments_of_a_packet_are_one_flow(node):
    node.apply(geneve(), to())
    first = frame(ip(4, flags="MF", id=9) / UDP(sport=1111, dport=53) / Raw(b"x" * 56))
    last = frame(ip(4, frag=8, id=9, proto=17) / Raw(b"\x12\x34\x56\x78" * 10))
    assert node.send("c1", first).packet[UDP].sport == node.send("c1", last).packet[UDP].sport


def test_a_fixed_source_port_stays(node):
    node.apply(geneve(source_port=51234, port=7000), to())
    outer = node.send("c1", udp()).packet
    assert (outer[UDP].sport, outer[UDP].dport) == (51234, 7000)


def test_a_next_hop_with_a_mac_is_addressed_by_it(node):
    node.apply(geneve(), to(mac=THEIR_MAC))
    got = node.send("c1", udp())
    inner = Ether(got.data[50:])
    assert (inner.dst, inner.src) == (THEIR_MAC, OUR_MAC)


def test_flows_go_before_hosts_and_hosts_before_prefixes(node):
    tunnels = [geneve(name=name, vni=vni) for name, vni in [("by-flow", 1), ("by-host", 2), ("by-prefix", 3)]]
    flow = Flow(network="blue", source="10.250.1.100", destination="10.250.1.101", via="by-flow")
    host = Route(network="blue", prefix="10.250.1.101/32", via="by-host")
    prefix = Route(network="blue", prefix="10.250.0.0/16", via="by-prefix")
    wider = Route(network="blue", prefix="10.0.0.0/8", drop=True)
    for objects, vni in [((flow, host, prefix, wider), 1), ((host, prefix, wider), 2), ((prefix, wider), 3)]:
        node.apply(*tunnels, *objects)
        assert node.send("c1", udp()).packet[GENEVE].vni == vni
    node.apply(*tunnels, flow, wider)
    assert node.send("c1", udp(source="10.250.1.99")).verdict == "DROP"


@pytest.mark.parametrize("version", [4, 6])
def test_the_longest_prefix_wins(node, version):
    prefixes = {
        4: ["0.0.0.0/0", "10.250.1.0/24", "10.250.1.96/28"],
        6: ["::/0", "fd00:250::/32", "fd00:250:1::100/124"],
    }
    tunnels = [geneve(name=f"t{vni}", vni=vni) for vni in range(3)]
    routes = [Route(network="blue", prefix=p, via=f"t{i}") for i, p in enumerate(prefixes[version])]
    node.apply(*tunnels, *routes)
    assert node.send("c1", udp(version)).packet[GENEVE].vni == 2
    node.apply(*tunnels, *routes[:2])
    assert node.send("c1", udp(version)).packet[GENEVE].vni == 1
    node.apply(*tunnels, *routes[:1])
    assert node.send("c1", udp(version)).packet[GENEVE].vni == 0


def test_equal_addresses_in_two_networks_never_meet(node):
    green = {**geneve(name="green", vni=2), "network": "green"}
    node.apply(geneve(vni=1), green, to(), Route(network="green", prefix=THEIRS[4], via="green"))
    assert node.send("c1", udp()).packet[GENEVE].vni == 1
    assert node.send("c3", udp()).packet[GENEVE].vni == 2
    node.apply(geneve(vni=1), to())
    assert node.send("c3", udp()).verdict == "PASS"


@pytest.mark.parametrize("version", [4, 6])
def test_two_workloads_of_a_node_reach_each_other(node, version):
    node.apply(Route(network="blue", prefix=NEIGHBOUR[version], port="c2"))
    sent = udp(version, destination=NEIGHBOUR[version])
    got = node.send("c1", sent)
    assert got.verdict == "REDIRECT"
    assert (got.packet.dst, got.packet.src) == (NEIGHBOUR_MAC, OUR_MAC)
    assert got.data[12:] == bytes(sent)[12:]
    assert node.port_counters("c2")["tx_packets"] == node.port_counters("c1")["rx_packets"] == 1


@pytest.mark.parametrize(
    "packet",
    [
        udp(destination="192.0.2.1"),
        udp(6, destination="2001:db8::1"),
        frame(ip(4, version=5) / UDP()),
        frame(ip(4, len=2000) / UDP()),
        frame(ip(6, plen=2000) / UDP()),
        frame(ARP(op=2, psrc="10.250.1.100", pdst="10.250.1.101")),
        Ether(src=OUR_MAC, dst=GATEWAY_MAC, type=0x88CC) / Raw(b"lldp" * 15),
        frame(ip(4, destination="10.9.9.9") / TCP()),
    ],
    ids=lambda packet: packet.summary(),
)
def test_what_the_network_does_not_know_stays_as_it_came(node, packet):
    node.apply(geneve(), to(), to(6), Route(network="blue", prefix="10.9.0.0/16", pass_=True))
    got = node.send("c1", packet)
    assert (got.verdict, got.data, node.drops()) == ("PASS", bytes(packet), {})


def test_a_route_that_says_drop_is_counted_on_the_port(node):
    node.apply(Route(network="blue", prefix=THEIRS[4], drop=True))
    assert node.send("c1", udp()).verdict == "DROP"
    assert node.drop_scopes() == {("ROUTE_DROP", "SCOPE_PORT", node.links["c1"].ifindex)}


@pytest.mark.parametrize(("protocol", "underlay"), carriers())
@pytest.mark.parametrize("version", [4, 6])
def test_the_largest_packet_goes_and_one_byte_more_is_counted(node, protocol, underlay, version):
    if not carries(protocol, underlay, version):
        return
    compiled = node.apply(tunnel(protocol, underlay, remotes=REMOTE), to(version))
    (record,) = compiled.tables.tunnels.values()
    stripped = record.strip if carried(protocol, underlay) is None else 14
    largest = record.max_len - record.outer_len + stripped
    payload = largest - len(frame(ip(version) / UDP()))
    assert node.send("c1", udp(version, payload)).verdict == "REDIRECT"
    got = node.send("c1", udp(version, payload + 1))
    assert (got.verdict, got.data) == ("DROP", bytes(udp(version, payload + 1)))
    assert node.drop_scopes() == {("TOO_BIG", "SCOPE_TUNNEL", record.counter)}


def test_a_tunnel_without_a_neighbour_drops_with_that_reason(node):
    node.apply(geneve(), to(), down=["to-node2"])
    assert node.send("c1", udp()).verdict == "DROP"
    assert node.drops() == {"TUNNEL_DOWN": 1}
    assert node.drop_scopes() == {
        ("TUNNEL_DOWN", "SCOPE_TUNNEL", node.allocations.tunnels["to-node2"].counter)
    }


def test_a_tunnel_that_has_just_gone_is_not_taken_for_another(node):
    """A packet whose next hop was read before the change meets a slot of zeros: no tunnel's, so it is the port's."""
    node.apply(geneve(), to())
    slot = node.allocations.tunnels["to-node2"].slot
    tunnels = node.data_plane.maps["tunnels"]
    key = tunnels.key.pack(slot)
    tunnels.update({key: bytes(len(tunnels.get(key)))})
    assert node.send("c1", udp()).verdict == "DROP"
    assert node.drop_scopes() == {("TUNNEL_DOWN", "SCOPE_PORT", node.IFINDEX["c1"])}


def test_an_interface_that_is_gone_drops_with_that_reason(node):
    node.apply(geneve(), to(), Route(network="blue", prefix=NEIGHBOUR[4], port="c2"))
    devices = node.data_plane.maps["tx_ports"]
    devices.delete(list(devices.items()))
    assert node.send("c1", udp()).verdict == "DROP"
    assert node.send("c1", udp(destination=NEIGHBOUR[4])).verdict == "DROP"
    assert node.drops() == {"EGRESS_GONE": 1, "PORT_GONE": 1}


def test_counters_tell_packets_and_inner_bytes(node):
    node.apply(geneve(), to())
    before = node.port_counters("up0")["tx_bytes"]
    for _ in range(3):
        node.send("c1", udp(size=100))
    length = len(udp(size=100))
    assert node.tunnel_counters("to-node2") == {
        "encap_packets": 3,
        "encap_bytes": 3 * length,
        "decap_packets": 0,
        "decap_bytes": 0,
    }
    assert node.port_counters("up0")["tx_bytes"] - before == 3 * (length + 50)


def test_a_tunnel_to_the_stack_hands_the_outer_packet_to_the_kernel(node):
    node.apply(geneve(to_stack=True), to())
    got = node.send("c1", udp())
    assert (got.verdict, got.packet.dst) == ("PASS", GATEWAY_MAC)
    assert got.packet[GENEVE].vni == 0x1234


NOT_ROUTED = {
    "mDNS": frame(ip(4, destination="224.0.0.251", ttl=1) / UDP(), destination="01:00:5e:00:00:fb"),
    "DHCP": frame(
        ip(4, "0.0.0.0", "255.255.255.255") / UDP(sport=68, dport=67), destination="ff:ff:ff:ff:ff:ff"
    ),
    "subnet broadcast": frame(ip(4, destination="10.250.1.255") / UDP(), destination="ff:ff:ff:ff:ff:ff"),
    "link-local": frame(ip(6, "fe80::1", "fe80::2") / UDP()),
    "IPv4 link-local": frame(ip(4, destination="169.254.1.1") / UDP()),
    "router solicitation": frame(ip(6, "fe80::1", "ff02::2") / UDP(), destination="33:33:00:00:00:02"),
}


@pytest.mark.parametrize("packet", NOT_ROUTED.values(), ids=NOT_ROUTED)
def test_what_is_for_the_link_does_not_take_a_default_route(node, packet):
    node.apply(
        geneve(), *(Route(network="blue", prefix=prefix, via="to-node2") for prefix in ("0.0.0.0/0", "::/0"))
    )
    assert node.send("c1", udp()).verdict == "REDIRECT"
    got = node.send("c1", packet)
    assert (got.verdict, got.data) == ("PASS", bytes(packet))


def test_a_changed_route_holds_for_the_next_packet(node):
    """What was found for an address is remembered per CPU, but never beyond a change."""
    tunnels = [geneve(name=f"t{vni}", vni=vni) for vni in (1, 2)]
    prefix = Route(network="blue", prefix="10.250.1.0/24", via="t1")
    for objects, vni in [((prefix,), 1), ((prefix, to(via="t2")), 2), ((prefix,), 1), ((to(via="t2"),), 2)]:
        node.apply(*tunnels, *objects)
        assert node.send("c1", udp()).packet[GENEVE].vni == vni
        assert node.send("c1", udp()).packet[GENEVE].vni == vni
    node.apply(*tunnels)
    assert node.send("c1", udp()).verdict == "PASS"


def test_addresses_that_share_a_place_in_memory_are_told_apart(node):
    node.apply(
        geneve(),
        *(
            Route(
                network="blue",
                prefix=f"10.250.{i >> 8}.{i & 255}",
                via="to-node2",
                mac=f"02:00:00:00:{i >> 8:02x}:{i & 255:02x}",
            )
            for i in range(1, 10000)
        ),
    )
    for i in (*range(1, 10000, 7), *range(1, 10000, 7)):
        got = node.send("c1", udp(destination=f"10.250.{i >> 8}.{i & 255}"))
        assert got.data[50:56] == bytes([2, 0, 0, 0, i >> 8, i & 255])
