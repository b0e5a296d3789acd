# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import ctypes
import random
import sys
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec
import pytest
from c_headers import c_constant, c_enum
from hypothesis import given
from hypothesis import strategies as st

from mptm import compile as compile_module
from mptm.compile import (
    Allocations,
    Compiled,
    LookupFlag,
    NextHopFlag,
    NextHopKind,
    PortAllocation,
    PortFlag,
    PortRole,
    TerminationFlag,
    TunnelFlag,
    allocate,
    compile_tables,
    termination_homes,
    termination_key,
)
from mptm.errors import TableFull
from mptm.facts import Facts, Link, Path
from mptm.hashing import share_out
from mptm.intent import Flow, Group, Intent, Member, Network, Port, Route, Tunnel, tunnel_from_dict
from mptm.protocols.base import ListenerKind, Parser
from mptm.tables import (
    Attachment,
    FlowKeyV4,
    FlowKeyV6,
    Gateway,
    HostKeyV4,
    HostKeyV6,
    ListenerRow,
    LocalKey,
    NextHop,
    PrefixKeyV4,
    PrefixKeyV6,
    Termination,
)
from mptm.template import OUTER_SIZE, PATCHES, FixedPatch, GsoKind, InnerFamily, PatchOp

ETH0 = Link(2, "eth0", bytes.fromhex("020000000e00"), 1500)
VETH = Link(7, "veth0", bytes.fromhex("020000000700"), 1500, "veth", peer_mac=bytes.fromhex("020000000701"))
NEXT_MAC = bytes.fromhex("020000000e02")
PATH = Path(2, IPv4Address("10.30.30.1"), ETH0.mac, None, NEXT_MAC, 1500)
PATH_V6 = Path(2, IPv6Address("fd00::1"), ETH0.mac, None, NEXT_MAC, 1500)
FACTS = Facts({"eth0": ETH0, "veth0": VETH}, {"to-node2": PATH})

BLUE = Network(name="blue", id=5)
UPLINK = Port(name="eth0", role="uplink")
ACCESS = Port(name="veth0", role="access", network="blue")
GENEVE = {"name": "to-node2", "protocol": "geneve", "network": "blue", "remote": "10.30.30.2", "vni": 100}
MAPPED = bytes(10) + b"\xff\xff"


def geneve(**changes: object) -> Tunnel:
    return tunnel_from_dict(GENEVE | changes)


def vlan(**changes: object) -> Tunnel:
    values = {"name": "leaf", "protocol": "vlan", "network": "blue", "remote": "10.30.30.2", "vid": 42}
    return tunnel_from_dict(values | changes)


def compiled(*objects, facts: Facts = FACTS, previous: Allocations | None = None) -> Compiled:
    intent = Intent.of([BLUE, UPLINK, ACCESS, *objects])
    intent.validate()
    return compile_tables(intent, facts, previous or Allocations())


# ---- one description of the C side ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mirror", "name", "prefix"),
    [
        (PortRole, "port_role", "PORT_"),
        (LookupFlag, "lookup_flag", "LOOKUP_"),
        (NextHopKind, "next_hop_kind", "NEXT_HOP_"),
        (NextHopFlag, "next_hop_flag", "NEXT_HOP_"),
        (PortFlag, "port_flag", "PORT_"),
        (TunnelFlag, "tunnel_flag", "TUNNEL_"),
        (GsoKind, "gso_kind", "GSO_"),
        (FixedPatch, "fixed_patch", "FIXED_"),
        (ListenerKind, "listener_kind", "LISTEN_"),
        (PatchOp, "patch_op", "PATCH_"),
        (InnerFamily, "inner_family", "INNER_"),
        (Parser, "parser", "PARSER_"),
        (TerminationFlag, "termination_flag", ""),
    ],
)
def test_enums_are_those_of_the_data_plane(mirror, name, prefix):
    theirs = {member.removeprefix(prefix): value for member, value in c_enum(name).items()}
    theirs.pop("NONE", None)
    assert {member.name: member.value for member in mirror} == theirs


def test_capacities_are_those_of_the_data_plane():
    for name in ("PORT_SLOTS", "PORT_PROBES", "LISTEN_ROW", "TERMINATION_SLOTS",
                 "TERMINATION_PROBES"):  # fmt: skip
        assert getattr(compile_module, name) == c_constant("abi.h", f"MPTM_{name}")
    assert c_constant("maps.h", "MPTM_TUNNELS") == compile_module.TUNNEL_SLOTS
    assert c_constant("abi.h", "MPTM_GROUPS") == compile_module.GROUP_SLOTS
    assert (
        c_constant("abi.h", "MPTM_OUTER_SIZE"),
        c_constant("abi.h", "MPTM_PATCHES"),
    ) == (OUTER_SIZE, PATCHES)


# ---- ports -------------------------------------------------------------------------------------------------


def test_ports_stand_at_their_home_slot_and_are_attached():
    made = compiled()
    access, uplink = made.tables.ports[7], made.tables.ports[2]
    assert (access.ifindex, access.network, access.mtu, access.role) == (7, 5, 1500, PortRole.ACCESS)
    assert access.mac == VETH.mac
    assert (uplink.ifindex, uplink.network, uplink.role, uplink.lookups) == (2, 0, PortRole.UPLINK, 0)
    assert made.tables.tx_ports == {2: 2, 7: 7}
    assert made.attachments == [
        Attachment(2, "eth0", "uplink", "auto", "tc"),
        Attachment(7, "veth0", "access", "auto", "tc"),
    ]
    assert made.states["port", "veth0"] == "up"


def test_a_ports_gateway_mac_may_be_given():
    made = compile_tables(
        Intent.of([BLUE, Port(name="veth0", role="access", network="blue", mac="02:00:00:00:00:fe")]),
        FACTS, Allocations(),
    )  # fmt: skip
    assert made.tables.ports[7].mac == bytes.fromhex("0200000000fe")


def test_a_port_whose_interface_is_missing_is_left_out_with_a_warning():
    made = compiled(facts=Facts({"eth0": ETH0}))
    assert list(made.tables.ports) == [2]
    assert made.states["port", "veth0"] == "missing interface"
    assert made.warnings == ["there is no interface veth0; its port is left out"]
    assert [attachment.name for attachment in made.attachments] == ["eth0"]


def test_a_port_whose_interface_is_down_is_attached_all_the_same():
    made = compiled(facts=Facts({"eth0": ETH0, "veth0": replace(VETH, up=False)}))
    assert made.states["port", "veth0"] == "down: the interface is down"
    assert 7 in made.tables.ports
    assert "interface veth0 is down" in made.warnings


def test_a_port_whose_home_is_taken_stands_in_the_next_slot():
    other = Port(name="veth1", role="access", network="blue")
    links = {**FACTS.links, "veth1": replace(VETH, name="veth1", ifindex=7 + 4096)}
    made = compiled(other, facts=Facts(links))
    assert {slot: port.ifindex for slot, port in made.tables.ports.items()} == {2: 2, 7: 7, 8: 7 + 4096}


def test_a_port_keeps_its_slot_when_its_home_becomes_free_and_gets_a_new_one_with_a_new_interface():
    previous = Allocations(ports={"veth0": PortAllocation(7, 9), "gone": PortAllocation(4103, 7)})
    assert compiled(previous=previous).allocations.ports["veth0"] == PortAllocation(7, 9)
    reborn = Facts({"eth0": ETH0, "veth0": replace(VETH, ifindex=8)})
    assert compiled(facts=reborn, previous=previous).allocations.ports["veth0"] == PortAllocation(8, 8)


def test_too_many_ports_around_one_home_are_refused():
    ports = [Port(name=f"v{i}", role="access", network="blue") for i in range(9)]
    links = {f"v{i}": replace(VETH, name=f"v{i}", ifindex=100 + 4096 * i) for i in range(9)}
    with pytest.raises(TableFull, match="table ports"):
        compile_tables(Intent.of([BLUE, *ports]), Facts(links), Allocations())


# ---- tunnels -----------------------------------------------------------------------------------------------


def test_a_tunnel_becomes_its_template_with_egress_and_longest_frame():
    made = compiled(geneve())
    held = made.allocations.tunnels["to-node2"]
    tunnel = made.tables.tunnels[held.slot]
    assert (tunnel.outer_len, len(tunnel.outer), tunnel.strip) == (50, 50, 0)
    assert (tunnel.max_len, tunnel.egress_ifindex, tunnel.flags) == (1514, 2, 0)
    assert (tunnel.counter, tunnel.tos_mask, tunnel.ttl_mask) == (held.counter, 3, 0)
    assert [tuple(patch) for patch in tunnel.patches] == [(2, 14, -14), (4, 34, 0), (1, 38, -34)]
    assert tunnel.patch_count == 3
    assert made.states["tunnel", "to-node2"] == "up"
    assert made.tables.listeners == {(65536 + 6081) // 8: ListenerRow(bytes((0, 1, 0, 0, 0, 0, 0, 0)))}
    assert made.tables.locals == {LocalKey(MAPPED + PATH.local.packed): 1}
    assert made.warnings == []


def test_a_vlan_may_be_as_long_as_the_mtu_and_a_tagged_header():
    made = compiled(vlan(), facts=replace(FACTS, paths={"leaf": PATH}))
    tunnel = next(iter(made.tables.tunnels.values()))
    assert (tunnel.outer_len, tunnel.strip, tunnel.max_len) == (16, 12, 1518)
    assert made.tables.locals == {}


def test_to_stack_is_a_flag_of_the_tunnel():
    made = compiled(geneve(to_stack=True))
    assert next(iter(made.tables.tunnels.values())).flags == TunnelFlag.TO_STACK


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (replace(FACTS, paths={}), "down: there is no route to 10.30.30.2"),
        (
            replace(FACTS, paths={}, problems={"to-node2": "the network is unreachable"}),
            "down: the network is unreachable",
        ),
        (
            replace(
                FACTS, paths={"to-node2": replace(PATH, next_hop_mac=None, problem="nobody answers ARP")}
            ),
            "down: nobody answers ARP",
        ),
    ],
)
def test_a_tunnel_that_cannot_send_has_an_empty_slot_and_says_why(facts, state):
    made = compiled(geneve(), Route(network="blue", prefix="10.0.0.0/8", via="to-node2"), facts=facts)
    held = made.allocations.tunnels["to-node2"]
    assert made.tables.tunnels[held.slot].outer_len == 0
    assert made.tables.tunnels[held.slot].counter == held.counter
    assert made.states["tunnel", "to-node2"] == state
    assert made.states["route", "blue 10.0.0.0/8"] == "down: tunnel to-node2 is down"
    assert made.warnings == [f"tunnel to-node2 is {state}"]


def test_an_unresolved_tunnel_still_receives():
    path = replace(PATH, next_hop_mac=None, problem="nobody answers ARP")
    made = compiled(geneve(), facts=replace(FACTS, paths={"to-node2": path}))
    (termination,) = made.tables.terminations.values()
    assert (termination.can_reply, termination.destination) == (0, MAPPED + PATH.local.packed)


def test_a_remote_mac_makes_a_silent_neighbour_good_enough():
    path = replace(PATH, next_hop_mac=None, problem="nobody answers ARP")
    made = compiled(geneve(remote_mac="02:00:00:00:00:09"), facts=replace(FACTS, paths={"to-node2": path}))
    assert next(iter(made.tables.tunnels.values())).outer[:6] == bytes.fromhex("020000000009")


def test_an_ip_tunnel_with_remote_any_receives_only():
    made = compiled(geneve(remote="any", local="10.30.30.1"), facts=replace(FACTS, paths={}))
    assert made.states["tunnel", "to-node2"] == "receive-only"
    assert next(iter(made.tables.tunnels.values())).outer_len == 0
    (termination,) = made.tables.terminations.values()
    assert (termination.source, termination.destination) == (bytes(16), MAPPED + bytes([10, 30, 30, 1]))
    assert made.warnings == []


def test_a_vlan_to_anyone_needs_nothing_but_its_egress_interface():
    made = compiled(vlan(remote="any", egress="eth0"), facts=Facts(FACTS.links))
    tunnel = next(iter(made.tables.tunnels.values()))
    assert (tunnel.outer_len, tunnel.egress_ifindex, tunnel.max_len) == (16, 2, 1518)
    (termination,) = made.tables.terminations.values()
    assert (termination.source, termination.destination) == (bytes(16), bytes(12) + interface_of(ETH0))
    assert termination.tunnel_id == 42
    assert (termination.number, termination.parser, termination.can_reply) == (0x8100, 3, 1)


def test_a_vlan_known_by_mac_alone_needs_nothing_but_its_egress_interface():
    made = compiled(
        vlan(remote=None, remote_mac="02:00:00:00:00:09", egress="eth0"), facts=Facts(FACTS.links)
    )
    (termination,) = made.tables.terminations.values()
    assert termination.source == bytes.fromhex("020000000009") + bytes(10)
    assert termination.destination == ETH0.mac + bytes(6) + interface_of(ETH0)


def interface_of(link: Link) -> bytes:
    return link.ifindex.to_bytes(4, sys.byteorder)


def test_vlans_of_one_vid_at_two_interfaces_are_told_apart_by_them():
    eth1 = replace(ETH0, ifindex=3, name="eth1")
    tunnels = [vlan(name=name, remote="any", egress=name) for name in ("eth0", "eth1")]
    made = compiled(*tunnels, facts=Facts(FACTS.links | {"eth1": eth1}))
    found = {each.destination: each.tunnel for each in made.tables.terminations.values()}
    assert found == {
        bytes(12) + interface_of(link): made.allocations.tunnels[link.name].slot for link in (ETH0, eth1)
    }
    assert {made.states["tunnel", name] for name in ("eth0", "eth1")} == {"up"}


def test_a_vlan_without_its_egress_interface_is_down_and_accepts_nothing():
    made = compiled(vlan(remote="any", egress="eth9"), facts=Facts(FACTS.links))
    assert made.tables.terminations == {}
    assert made.states["tunnel", "leaf"] == "down: there is no way to any through eth9"


def test_a_vlan_does_not_reach_beyond_a_gateway():
    path = replace(PATH, gateway=ip_address("10.30.30.254"))
    made = compiled(vlan(), facts=replace(FACTS, paths={"leaf": path}))
    assert (
        made.states["tunnel", "leaf"]
        == "down: 10.30.30.2 is behind 10.30.30.254; vlan reaches neighbours only"
    )


def test_sending_through_an_interface_that_is_no_uplink_is_warned_of():
    made = compile_tables(Intent.of([BLUE, geneve()]), FACTS, Allocations())
    assert made.warnings == [
        "tunnel to-node2 sends through eth0, which is no uplink: nothing that comes back is decapsulated "
        "(`mptm port add eth0 --role uplink`)"
    ]
    assert made.tables.tx_ports == {2: 2}


# ---- terminations -------------------------------------------------------------------------------------------


def test_a_termination_says_who_may_send_what_and_where_it_goes():
    made = compiled(geneve(), Route(network="blue", prefix="10.0.0.0/8", drop=True))
    held = made.allocations.tunnels["to-node2"]
    ((slot, termination),) = made.tables.terminations.items()
    assert termination == Termination(
        source=MAPPED + bytes([10, 30, 30, 2]), destination=MAPPED + bytes([10, 30, 30, 1]), tunnel_id=100,
        number=6081, parser=1, can_reply=1, network=5, tunnel=held.slot, counter=held.counter,
        lookups=LookupFlag.PREFIXES, cookie_len=0, sublayer_len=0, flags=TerminationFlag.ACCEPT_ETHERNET, cookie=b"",
    )  # fmt: skip
    key = termination_key(termination.source, termination.destination, 100, 6081, 1)
    assert slot == termination_homes(key)[0]
    assert made.allocations.terminations == {key.hex(): slot}


def test_the_key_is_the_start_of_struct_termination():
    key = termination_key(bytes(range(16)), bytes(range(16, 32)), 0x04030201, 0x0605, 7)
    assert key == bytes(range(32)) + bytes([1, 2, 3, 4, 5, 6, 7, 0])


@given(st.binary(min_size=40, max_size=40))
def test_the_two_homes_are_those_of_the_hash_in_64_bit_arithmetic(key):
    words = (ctypes.c_uint64 * 5).from_buffer_copy(key)
    number = ctypes.c_uint64(0)
    for word, factor in zip(
        words,
        (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5, 0x85EBCA77C2B2AE63),
        strict=True,
    ):
        number.value += word * factor
    number.value ^= number.value >> 32
    number.value *= 0x9E3779B97F4A7C15
    assert termination_homes(key) == (number.value >> 16 & 65535, number.value >> 40 & 65535)


def test_a_termination_keeps_its_slot_and_a_freed_one_is_not_used_at_once():
    made = compiled(geneve())
    ((key, slot),) = made.allocations.terminations.items()
    moved = Allocations(terminations={key: 999})
    assert compiled(geneve(), previous=moved).allocations.terminations == {key: 999}
    freed = Allocations(terminations={"00" * 40: slot})
    assert compiled(geneve(), previous=freed).allocations.terminations[key] != slot


def test_as_many_terminations_as_there_can_be_tunnels_find_room_near_their_homes():
    chooser = random.Random(1)
    keys = [chooser.randbytes(40).hex() for _ in range(compile_module.TUNNEL_SLOTS)]
    placed = compile_module._allocate_terminations(keys, Allocations())
    assert len(set(placed.values())) == len(keys)
    for key, slot in placed.items():
        assert min((slot - home) % 65536 for home in termination_homes(bytes.fromhex(key))) < 4


def test_what_is_accepted_beside_what_is_sent_has_terminations_and_listeners_of_its_own():
    made = compiled(geneve(accept=["vxlan,vni=200", "vlan,vid=42", "gre"]))
    held = made.allocations.tunnels["to-node2"]
    found = {each.parser: each for each in made.tables.terminations.values()}
    assert set(found) == {Parser.GENEVE, Parser.VXLAN, Parser.VLAN, Parser.GRE}
    assert {(each.network, each.tunnel, each.counter, each.can_reply) for each in found.values()} == {
        (5, held.slot, held.counter, 1)
    }
    sent, vxlan, vlan_ = found[Parser.GENEVE], found[Parser.VXLAN], found[Parser.VLAN]
    assert (vxlan.source, vxlan.destination) == (sent.source, sent.destination)
    assert (vxlan.tunnel_id, vxlan.number, vlan_.tunnel_id) == (200, 4789, 42)
    assert vlan_.source == NEXT_MAC.ljust(16, b"\0")
    assert found[Parser.GRE].flags == TerminationFlag.ACCEPT_IPV4 | TerminationFlag.ACCEPT_IPV6
    assert listening(made) == {(1, 6081): 1, (1, 4789): 2, (3, 0x8100): 3, (2, 47): 5}
    assert len(made.tables.locals) == 1
    assert made.tables.tunnels[held.slot] == next(iter(compiled(geneve()).tables.tunnels.values()))


def test_changing_what_is_sent_changes_no_termination_but_for_the_tunnels_slot():
    first = compiled(geneve(accept=["vxlan,vni=200"]))
    other = tunnel_from_dict(GENEVE | {"protocol": "vxlan", "vni": 200, "accept": ["geneve,vni=100"]})
    second = compiled(other, previous=first.allocations)
    assert second.allocations.terminations == first.allocations.terminations
    assert second.tables.listeners == first.tables.listeners
    slots = [made.allocations.tunnels["to-node2"].slot for made in (first, second)]
    for slot, before in first.tables.terminations.items():
        assert second.tables.terminations[slot] == before._replace(tunnel=slots[1])
    assert slots[0] != slots[1]


def test_headers_that_can_not_be_told_apart_may_carry_what_either_may():
    made = compiled(geneve(accept=["geneve,vni=100,payload=l3"]))
    (termination,) = made.tables.terminations.values()
    assert termination.flags == compile_module.ACCEPT_ANY
    made = compiled(geneve(accept=["geneve,vni=101,payload=l3"]))
    assert sorted(each.flags for each in made.tables.terminations.values()) == [
        TerminationFlag.ACCEPT_ETHERNET,
        TerminationFlag.ACCEPT_IPV4 | TerminationFlag.ACCEPT_IPV6,
    ]


@pytest.mark.parametrize(
    ("wanted", "flags"),
    [
        ("ignore", 0),
        ("verify", TerminationFlag.VERIFY_UDP_CHECKSUM),
        ("require", TerminationFlag.VERIFY_UDP_CHECKSUM | TerminationFlag.REQUIRE_UDP_CHECKSUM),
    ],
)
def test_what_is_done_with_received_udp_checksums_is_a_flag_of_what_comes_by_udp(wanted, flags):
    (termination,) = compiled(geneve(receive_checksum=wanted)).tables.terminations.values()
    assert termination.flags == TerminationFlag.ACCEPT_ETHERNET | flags
    over = {"udp": flags, "ip": 0}
    for encap, expected in over.items():
        values = {"protocol": "l2tp", "session_id": 7, "encap": encap, "receive_checksum": wanted}
        common = {name: value for name, value in GENEVE.items() if name not in ("protocol", "vni")}
        (termination,) = compiled(tunnel_from_dict(common | values)).tables.terminations.values()
        assert termination.flags == TerminationFlag.ACCEPT_ETHERNET | expected


def gtpu(name: str = "to-node2", **changes: object) -> Tunnel:
    values = {"name": name, "protocol": "gtpu", "network": "blue", "remote": "10.30.30.2", "teid": 7}
    return tunnel_from_dict(values | changes)


def echoes(made: Compiled) -> list[Termination]:
    return [each for each in made.tables.terminations.values() if each.parser == Parser.GTPU_ECHO]


def test_echo_requests_of_a_gtpu_remote_have_a_termination_of_their_own():
    made = compiled(gtpu(local_teid=9))
    data, echo = sorted(made.tables.terminations.values(), key=lambda each: each.parser)
    assert (data.parser, data.tunnel_id, echo.parser, echo.tunnel_id) == (Parser.GTPU, 9, Parser.GTPU_ECHO, 0)
    assert (echo.source, echo.destination, echo.number) == (data.source, data.destination, 2152)
    assert (echo.network, echo.tunnel, echo.counter) == (data.network, data.tunnel, data.counter)


def test_echo_requests_are_left_to_the_host_where_it_is_wanted_or_the_sender_is_anybody():
    assert not echoes(compiled(gtpu(echo="pass")))
    assert not echoes(compiled(gtpu(remote="any", local="10.30.30.1"), facts=replace(FACTS, paths={})))
    assert echoes(compiled(geneve(accept=["gtpu,teid=7"])))


def test_of_several_tunnels_on_one_path_the_first_by_name_that_answers_does_and_none_is_in_conflict():
    facts = replace(FACTS, paths={name: PATH for name in ("a", "b", "c")})
    tunnels = [gtpu("c", teid=1), gtpu("b", teid=2), gtpu("a", teid=3, echo="pass")]
    made = compiled(*tunnels, facts=facts)
    (echo,) = echoes(made)
    assert echo.counter == made.allocations.tunnels["b"].counter
    assert {made.states["tunnel", name] for name in ("a", "b", "c")} == {"up"}
    assert made.warnings == []
    assert len(made.tables.terminations) == 4


def test_a_receive_only_tunnel_may_accept_several_protocols():
    hub = geneve(remote="any", local="10.30.30.1", egress="eth0", accept=["vxlan,vni=1", "vlan,vid=7"])
    made = compiled(hub, facts=replace(FACTS, paths={}))
    assert {each.source for each in made.tables.terminations.values()} == {bytes(16)}
    assert len(made.tables.terminations) == 3
    assert made.states["tunnel", "to-node2"] == "receive-only"


def test_a_protocol_without_ip_is_not_accepted_from_beyond_a_gateway():
    path = replace(PATH, gateway=ip_address("10.30.30.254"))
    made = compiled(geneve(accept=["vlan,vid=7"]), facts=replace(FACTS, paths={"to-node2": path}))
    assert [each.parser for each in made.tables.terminations.values()] == [Parser.GENEVE]
    assert made.states["tunnel", "to-node2"] == "up"
    assert made.warnings == [
        "tunnel to-node2 accepts no vlan: 10.30.30.2 is behind 10.30.30.254; vlan reaches neighbours only"
    ]


def test_a_conflict_over_what_is_accepted_beside_what_is_sent_names_the_protocol():
    facts = replace(FACTS, paths={"a": PATH, "b": PATH})
    made = compiled(
        vlan(name="a", remote="10.30.30.2"),
        geneve(name="b", remote="10.30.30.3", accept=["vlan,vid=42"]),
        facts=facts,
    )
    problem = "accepts the same packets of vlan as tunnel a, which gets them"
    assert made.states["tunnel", "b"] == f"conflict: {problem}"
    assert f"tunnel b {problem}" in made.warnings


def test_tunnels_that_turn_out_to_accept_the_same_packets_are_told():
    facts = replace(FACTS, paths={"a": PATH, "b": PATH})
    made = compiled(vlan(name="a", remote="10.30.30.2"), vlan(name="b", remote="10.30.30.3"), facts=facts)
    assert made.states["tunnel", "a"] == "up"
    assert made.states["tunnel", "b"] == "conflict: accepts the same packets as tunnel a, which gets them"
    assert len(made.tables.terminations) == 1


@pytest.mark.parametrize(
    ("fields", "max_len"),
    [
        ({"protocol": "gretap", "checksum": True}, 16384),
        ({"protocol": "gretap"}, 65550),
        ({"protocol": "geneve", "vni": 1}, 65550),
        ({"protocol": "geneve", "vni": 1, "remote": "fd00:30::2"}, 16384),
        ({"protocol": "geneve", "vni": 1, "remote": "fd00:30::2", "udp_checksum": False}, 65550),
    ],
)
def test_a_frame_with_a_checksum_is_no_longer_than_what_can_be_summed_up(fields, max_len):
    tunnel = tunnel_from_dict({"name": "t", "network": "blue", "remote": "10.30.30.2"} | fields)
    local = "10.30.30.1" if tunnel.remote == "10.30.30.2" else "fd00:30::1"
    path = replace(PATH, mtu=65536, local=ip_address(local))
    made = compiled(tunnel, facts=replace(FACTS, paths={"t": path}))
    (record,) = made.tables.tunnels.values()
    assert record.max_len == max_len
    template = made.templates["t"]
    assert template.inner_mtu(65536) == max_len - 14 - template.overhead()


@pytest.mark.parametrize(
    ("fields", "mtu", "warning"),
    [
        ({"protocol": "gretap"}, 1318, None),
        (
            {"protocol": "gretap"},
            1317,
            "tunnel t has room for inner packets of 1279 bytes, but IPv6 needs 1280: "
            "give its egress interface an MTU of 1318 at least, not 1317",
        ),
        ({"protocol": "ipip"}, 88, None),
        (
            {"protocol": "ipip"},
            10,
            "tunnel t has room for inner packets of 0 bytes, but IPv4 needs 68: "
            "give its egress interface an MTU of 88 at least, not 10",
        ),
    ],
)
def test_an_mtu_that_leaves_less_than_every_link_has_is_told(fields, mtu, warning):
    tunnel = tunnel_from_dict({"name": "t", "network": "blue", "remote": "10.30.30.2"} | fields)
    made = compiled(tunnel, facts=replace(FACTS, paths={"t": replace(PATH, mtu=mtu)}))
    assert [each for each in made.warnings if "has room for" in each] == ([warning] if warning else [])


# ---- routes and flows ---------------------------------------------------------------------------------------


def test_single_addresses_are_hosts_and_the_rest_are_prefixes():
    made = compiled(
        geneve(),
        Route(network="blue", prefix="10.1.0.5/32", via="to-node2", mac="02:00:00:00:00:05"),
        Route(network="blue", prefix="fd00::5/128", via="to-node2"),
        Route(network="blue", prefix="10.1.0.0/16", drop=True),
        Route(network="blue", prefix="fd00::/64", pass_=True),
        Route(network="blue", prefix="0.0.0.0/0", port="veth0"),
    )
    slot = made.allocations.tunnels["to-node2"].slot
    tables = made.tables
    assert tables.hosts_v4 == {
        HostKeyV4(5, bytes([10, 1, 0, 5])): NextHop(
            NextHopKind.TUNNEL, 1, bytes.fromhex("020000000005"), slot
        )
    }
    assert tables.hosts_v6 == {
        HostKeyV6(5, ip_address("fd00::5").packed): NextHop(NextHopKind.TUNNEL, 0, bytes(6), slot)
    }
    assert tables.prefixes_v4 == {
        PrefixKeyV4(16, 5, bytes([10, 1, 0, 0])): NextHop(NextHopKind.DROP, 0, bytes(6), 0),
        PrefixKeyV4(0, 5, bytes(4)): NextHop(NextHopKind.PORT, 1, VETH.peer_mac, 7),
    }
    assert tables.prefixes_v6 == {
        PrefixKeyV6(64, 5, ip_address("fd00::").packed): NextHop(NextHopKind.PASS, 0, bytes(6), 0)
    }


def test_flows_go_by_both_addresses():
    made = compiled(
        Flow(network="blue", source="10.0.0.1", destination="10.0.0.2", drop=True),
        Flow(network="blue", source="fd00::1", destination="fd00::2", port="veth0", mac="02:00:00:00:00:05"),
    )
    drop = NextHop(NextHopKind.DROP, 0, bytes(6), 0)
    assert made.tables.flows_v4 == {FlowKeyV4(5, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])): drop}
    key = FlowKeyV6(5, ip_address("fd00::1").packed, ip_address("fd00::2").packed)
    assert made.tables.flows_v6 == {key: NextHop(NextHopKind.PORT, 1, bytes.fromhex("020000000005"), 7)}


@pytest.mark.parametrize(
    ("objects", "flags"),
    [
        ([], 0),
        ([Route(network="blue", prefix="10.0.0.1/32", drop=True)], 0),
        ([Route(network="blue", prefix="10.0.0.0/8", drop=True)], LookupFlag.PREFIXES),
        ([Flow(network="blue", source="10.0.0.1", destination="10.0.0.2", drop=True)], LookupFlag.FLOWS),
        ([Route(network="red", prefix="10.0.0.0/8", drop=True)], 0),
    ],
)
def test_lookups_are_those_that_the_network_needs(objects, flags):
    made = compiled(Network(name="red", id=6), geneve(), *objects)
    assert made.tables.ports[7].lookups == flags
    assert next(iter(made.tables.terminations.values())).lookups == flags


def test_a_route_to_a_port_without_a_known_workload_mac_drops_with_a_warning():
    links = {**FACTS.links, "veth0": replace(VETH, peer_mac=None)}
    made = compiled(Route(network="blue", prefix="10.1.0.5/32", port="veth0"), facts=Facts(links))
    assert list(made.tables.hosts_v4.values()) == [NextHop(NextHopKind.DROP, 0, bytes(6), 0)]
    problem = "the MAC address of the workload behind veth0 can't be found out"
    assert made.states["route", "blue 10.1.0.5/32"] == f"down: {problem}"
    assert f"route blue 10.1.0.5/32 drops its packets: {problem} (give it with --mac)" in made.warnings


def test_a_route_to_a_missing_interface_drops_with_a_warning():
    made = compiled(Route(network="blue", prefix="10.1.0.5/32", port="veth0"), facts=Facts({"eth0": ETH0}))
    assert list(made.tables.hosts_v4.values()) == [NextHop(NextHopKind.DROP, 0, bytes(6), 0)]
    assert made.states["route", "blue 10.1.0.5/32"] == "down: missing interface veth0"
    assert "route blue 10.1.0.5/32 drops its packets: there is no interface veth0" in made.warnings


# ---- relays and groups ---------------------------------------------------------------------------------------


def test_a_relay_is_a_flag_of_the_next_hop_and_split_horizon_one_of_the_tunnel():
    mac = "02:00:00:00:00:05"
    made = compiled(
        geneve(split_horizon=7),
        Route(network="blue", prefix="10.1.0.5/32", via="to-node2", relay=True, mac=mac),
        Flow(network="blue", source="10.0.0.1", destination="10.0.0.2", via="to-node2", relay=True),
    )
    both = NextHopFlag.MAC | NextHopFlag.RELAY
    assert [next_hop.flags for next_hop in made.tables.hosts_v4.values()] == [both]
    assert [next_hop.flags for next_hop in made.tables.flows_v4.values()] == [NextHopFlag.RELAY]
    assert [tunnel.split_horizon for tunnel in made.tables.tunnels.values()] == [7]


def test_what_a_receive_only_tunnel_brings_has_its_split_horizon_too():
    hub = geneve(remote="any", local="10.30.30.1", split_horizon=7)
    made = compiled(hub, facts=replace(FACTS, paths={}))
    (tunnel,) = made.tables.tunnels.values()
    assert (tunnel.outer_len, tunnel.split_horizon) == (0, 7)
    assert tunnel.counter == made.allocations.tunnels["to-node2"].counter


NAMES = ("a", "b", "c")
TO_THREE = [geneve(name=name, remote=f"10.30.30.{number}") for number, name in enumerate(NAMES, 2)]
SHARED = Group(
    name="exits", network="blue", members=tuple(Member(tunnel=n, weight=w) for w, n in enumerate(NAMES, 1))
)
TO_GROUP = Route(network="blue", prefix="10.9.0.0/16", group="exits", relay=True)


def to_three(*down: str, previous: Allocations | None = None, group: Group = SHARED) -> Compiled:
    silent = replace(PATH, next_hop_mac=None, problem="nobody answers ARP")
    facts = replace(FACTS, paths={name: silent if name in down else PATH for name in NAMES})
    return compiled(*TO_THREE, group, TO_GROUP, facts=facts, previous=previous)


def names_in(made: Compiled) -> list[str | None]:
    """Who has each slot of the group."""
    named = {held.slot + 1: name for name, held in made.allocations.tunnels.items()} | {0: None}
    ((slot, group),) = made.tables.groups.items()
    assert slot == made.allocations.groups["exits"]
    return [named[each] for each in group.tunnels]


def test_a_groups_slots_are_those_of_its_members_tunnels_by_weight():
    made = to_three()
    assert tuple(names_in(made)) == share_out([("a", 1), ("b", 2), ("c", 3)])
    slot = made.allocations.groups["exits"]
    next_hop = NextHop(NextHopKind.GROUP, NextHopFlag.RELAY, bytes(6), slot)
    assert list(made.tables.prefixes_v4.values()) == [next_hop]
    assert made.states["group", "exits"] == made.states["route", TO_GROUP.key] == "up"


def test_a_member_that_is_down_gives_its_flows_away_and_only_those_and_gets_them_back():
    whole = to_three()
    without = to_three("b", previous=whole.allocations)
    again = to_three(previous=without.allocations)
    before, after = names_in(whole), names_in(without)
    assert [new for old, new in zip(before, after, strict=True) if old != "b"] == [
        n for n in before if n != "b"
    ]
    assert set(after) == {"a", "c"}
    assert names_in(again) == before
    assert without.states["group", "exits"] == "degraded: b is down"
    assert without.states["route", TO_GROUP.key] == "up"
    assert to_three("a", "c").states["group", "exits"] == "degraded: a, c are down"


def test_a_group_none_of_whose_members_is_up_has_nobody():
    made = to_three(*NAMES)
    assert set(names_in(made)) == {None}
    assert made.states["group", "exits"] == "down: all members are down"
    assert made.states["route", TO_GROUP.key] == "down: group exits is down"


def test_a_changed_group_keeps_its_slot_and_another_gets_the_next():
    first = to_three()
    fewer = Group(name="exits", network="blue", members=SHARED.members[:2])
    second = to_three(previous=first.allocations, group=fewer)
    assert second.allocations.groups == first.allocations.groups == {"exits": 0}
    assert set(names_in(second)) == {"a", "b"}
    third = compiled(
        geneve(), Group(name="new", network="blue", members=(Member(tunnel="to-node2"),)),
        previous=second.allocations,
    )  # fmt: skip
    assert third.allocations.groups == {"new": 1}


def test_more_groups_than_slots_are_refused(monkeypatch):
    monkeypatch.setattr(compile_module, "GROUP_SLOTS", 1)
    groups = [Group(name=name, network="blue", members=(Member(tunnel="to-node2"),)) for name in NAMES]
    with pytest.raises(TableFull, match="table groups is full: it has room for 1 groups"):
        compiled(geneve(), *groups)


# ---- gateways -----------------------------------------------------------------------------------------------


def with_gateway(*gateway: str) -> Intent:
    return Intent.of([Network(name="blue", id=5, gateway=gateway), UPLINK, ACCESS])


def test_a_gateway_has_an_entry_for_its_network_and_one_among_the_hosts():
    tables = compile_tables(with_gateway("10.1.0.1", "fd00::1"), FACTS, Allocations()).tables
    v4, v6 = bytes([10, 1, 0, 1]), ip_address("fd00::1").packed
    assert tables.gateways == {5: Gateway(v4, v6, 1, 1)}
    answers = NextHop(NextHopKind.GATEWAY, 0, bytes(6), 0)
    assert tables.hosts_v4 == {HostKeyV4(5, v4): answers}
    assert tables.hosts_v6 == {HostKeyV6(5, v6): answers}


def test_a_gateway_of_one_ip_version_says_that_there_is_none_of_the_other():
    tables = compile_tables(with_gateway("fd00::1"), FACTS, Allocations()).tables
    assert tables.gateways == {5: Gateway(bytes(4), ip_address("fd00::1").packed, 0, 1)}
    assert not tables.hosts_v4
    assert not compile_tables(with_gateway(), FACTS, Allocations()).tables.gateways


@pytest.mark.parametrize(("prefix", "kind"), [("10.1.0.1/32", "DROP"), ("10.1.0.0/24", "GATEWAY")])
def test_a_route_for_just_the_gateways_address_goes_before_it(prefix, kind):
    intent = with_gateway("10.1.0.1").add(Route(network="blue", prefix=prefix, drop=True))
    tables = compile_tables(intent, FACTS, Allocations()).tables
    assert [next_hop.kind for next_hop in tables.hosts_v4.values()] == [NextHopKind[kind]]
    assert set(tables.gateways) == {5}


# ---- what stays and what moves ------------------------------------------------------------------------------


def test_compiling_again_changes_nothing():
    objects = [geneve(), vlan(), Route(network="blue", prefix="10.0.0.0/8", via="to-node2")]
    facts = replace(FACTS, paths={"to-node2": PATH, "leaf": PATH})
    first = compiled(*objects, facts=facts)
    again = compiled(*objects, facts=facts, previous=first.allocations)
    assert (again.tables, again.allocations) == (first.tables, first.allocations)


def test_the_order_of_objects_does_not_move_what_has_a_slot():
    facts = replace(FACTS, paths={"to-node2": PATH, "leaf": PATH})
    first = compiled(geneve(), vlan(), facts=facts)
    again = compiled(vlan(), geneve(), facts=facts, previous=first.allocations)
    assert again.tables == first.tables


def test_a_changed_template_gets_a_new_slot_and_keeps_its_counter():
    first = compiled(geneve())
    second = compiled(geneve(ttl=9), previous=first.allocations)
    before, after = first.allocations.tunnels["to-node2"], second.allocations.tunnels["to-node2"]
    assert after.slot != before.slot
    assert after.counter == before.counter
    assert list(second.tables.tunnels) == [after.slot]
    assert next(iter(second.tables.terminations.values())).tunnel == after.slot


def test_a_tunnel_that_goes_down_gets_a_new_slot_too():
    first = compiled(geneve())
    second = compiled(geneve(), facts=replace(FACTS, paths={}), previous=first.allocations)
    assert second.allocations.tunnels["to-node2"].slot != first.allocations.tunnels["to-node2"].slot


def test_a_freed_slot_is_used_last():
    allocations = Allocations()
    slots = []
    for ttl in range(1, 8):
        allocations = compiled(geneve(ttl=ttl), previous=allocations).allocations
        slots.append(allocations.tunnels["to-node2"].slot)
    assert slots == list(range(7))


def test_slots_are_given_out_round_and_round():
    last = compile_module.TUNNEL_SLOTS - 1
    first = compiled(geneve(), previous=Allocations(next_slot=last))
    second = compiled(geneve(ttl=9), previous=first.allocations)
    assert first.allocations.tunnels["to-node2"].slot == last
    assert second.allocations.tunnels["to-node2"].slot == 0


def test_a_new_tunnel_does_not_get_the_counter_of_one_that_goes():
    first = compiled(geneve())
    second = compiled(
        geneve(name="other"), facts=replace(FACTS, paths={"other": PATH}), previous=first.allocations
    )
    assert second.allocations.tunnels["other"].counter != first.allocations.tunnels["to-node2"].counter


def test_more_tunnels_than_slots_are_refused_by_name_of_the_table(monkeypatch):
    monkeypatch.setattr(compile_module, "TUNNEL_SLOTS", 2)
    tunnels = [geneve(name=f"t{i}", vni=i) for i in range(3)]
    with pytest.raises(TableFull, match="table tunnel_counters is full: it has room for 2 tunnels"):
        compiled(*tunnels)


def test_a_full_table_of_tunnels_can_still_be_emptied(monkeypatch):
    monkeypatch.setattr(compile_module, "TUNNEL_SLOTS", 2)
    full = compiled(geneve(name="a", vni=1), geneve(name="b", vni=2))
    left = compiled(geneve(name="a", vni=1), previous=full.allocations)
    assert left.allocations.tunnels["a"] == full.allocations.tunnels["a"]


def test_allocations_survive_their_storage():
    made = compiled(geneve(), vlan(), facts=replace(FACTS, paths={"to-node2": PATH, "leaf": PATH}))
    text = msgspec.json.encode(made.allocations)
    assert msgspec.json.decode(text, type=Allocations) == made.allocations
    assert msgspec.json.decode(b"{}", type=Allocations) == Allocations()


def test_allocate_alone_gives_what_compile_gives():
    from mptm.protocols import PROTOCOLS

    intent = Intent.of([BLUE, UPLINK, ACCESS, geneve()])
    template = PROTOCOLS["geneve"].build(geneve(), PATH)
    assert allocate(intent, FACTS, {"to-node2": template}, Allocations()) == compiled(geneve()).allocations


def test_tunnels_share_a_listener_and_every_number_can_have_one():
    facts = replace(FACTS, paths={"to-node2": PATH, "other": PATH_V6})
    made = compiled(geneve(), geneve(name="other", remote="fd00::2", vni=7), facts=facts)
    assert listening(made) == {(1, 6081): Parser.GENEVE}
    ports = (1, *range(4789, 4821), 65535)
    many = [geneve(name=f"t{port}", protocol="geneve", port=port) for port in ports]
    ethertypes = (0x8100, 0x88A8)
    tagged = [
        tunnel_from_dict({"name": f"v{tpid}", "network": "blue", "protocol": "vlan", "remote": "any",
                          "egress": "eth0", "vid": 42, "tpid": tpid})
        for tpid in ethertypes
    ]  # fmt: skip
    found = listening(compiled(*many, *tagged))
    assert found == {(1, port): Parser.GENEVE for port in ports} | {
        (3, number): Parser.VLAN for number in ethertypes
    }


def listening(made: Compiled) -> dict[tuple[int, int], int]:
    """Parsers by kind and number of the listener."""
    return {
        (at // 65536, at % 65536): parser
        for row, record in made.tables.listeners.items()
        for at, parser in enumerate(record.parsers, row * 8)
        if parser
    }


def test_an_own_address_that_the_node_does_not_have_is_told():
    intent = Intent.of([BLUE, UPLINK, tunnel_from_dict(GENEVE | {"local": "10.30.30.77"})])
    for addresses, warned in (
        (frozenset({ip_address("10.30.30.1")}), True),
        (frozenset({ip_address("10.30.30.77")}), False),
    ):
        made = compile_tables(intent, replace(FACTS, addresses=addresses), Allocations())
        assert any("10.30.30.77 is no address of this node" in each for each in made.warnings) is warned
