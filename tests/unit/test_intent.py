# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptm.errors import AlreadyExists, InUse, InvalidIntent, NotFound
from mptm.fields import Checked, Field, fields_of, mac_bytes, mac_text, value_from_text
from mptm.intent import (
    KINDS,
    Bundle,
    Flow,
    Group,
    Intent,
    Member,
    Network,
    Port,
    Route,
    Tunnel,
    flow_key,
    object_from_dict,
    route_key,
    tunnel_from_dict,
)
from mptm.protocols import PROTOCOLS
from mptm.protocols.geneve import GeneveOptions
from mptm.protocols.vlan import VlanOptions

GENEVE = {"name": "to-node2", "protocol": "geneve", "network": "blue", "remote": "10.30.30.2", "vni": 100}
VLAN = {"name": "leaf", "protocol": "vlan", "network": "blue", "remote": "10.30.30.2", "vid": 42}
BLUE, RED = Network(name="blue", id=1), Network(name="red", id=2)
ACCESS = Port(name="veth0", role="access", network="blue")
TUNNEL = tunnel_from_dict(GENEVE)
ROUTE = Route(network="blue", prefix="10.1.0.0/16", via="to-node2")
GROUP = Group(
    name="exits", network="blue", members=(Member(tunnel="to-node2", weight=3), Member(tunnel="other"))
)


def geneve(**changes: object) -> Tunnel:
    return tunnel_from_dict(GENEVE | changes)


def error_of(make, *arguments, **keywords) -> InvalidIntent:
    with pytest.raises(InvalidIntent) as raised:
        make(*arguments, **keywords)
    return raised.value


# ---- one object --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        (
            "network", {"name": "blue", "id": 0},
            "id: network blue: 0 is not a whole number from 1 to 4294967295",
        ),
        (
            "network", {"name": "bl ue", "id": 1},
            "name: network bl ue: 'bl ue' is not a name of 1 to 64 letters, digits, dots, dashes and underscores",
        ),
        (
            "network", {"name": "blue", "id": 1, "gateway": ["10.0.0.1", "10.0.0.2"]},
            "gateway: network blue: 10.0.0.1 and 10.0.0.2 are both IPv4; "
            "a network has one gateway address of each version",
        ),
        (
            "network", {"name": "blue", "id": 1, "gateway": "10.0.0.1/24"},
            "gateway: network blue: '10.0.0.1/24' is not an IPv4 or IPv6 address",
        ),
        (
            "network", {"name": "blue", "id": 1, "gateway": ["ff02::1"]},
            "gateway: network blue: ff02::1 is no address of a single machine",
        ),
        (
            "network", {"name": "blue", "id": 1, "gateway": ["127.0.0.1"]},
            "gateway: network blue: 127.0.0.1 is a loopback address, which no workload can reach",
        ),
        ("network", {"name": "blue"}, "id: network blue: a network needs id: a whole number from 1 to 4294967295"),
        (
            "network", {"name": "blue", "idd": 1},
            "idd: network blue: a network has no field idd; it has name, id, gateway\n  did you mean id?",
        ),
        (
            "port", {"name": "an-interface-name", "role": "uplink"},
            "name: port an-interface-name: 'an-interface-name' is not an interface name of 1 to 15 bytes such as eth0",
        ),
        ("port", {"name": "eth0", "role": "both"}, "role: port eth0: 'both' is not access or uplink"),
        (
            "port", {"name": "eth0", "role": "access"},
            "network: port eth0: an access port needs network, the one of its workload",
        ),
        (
            "port", {"name": "eth0", "role": "uplink", "network": "blue"},
            "network: port eth0: an uplink has no network, only access ports do; found blue",
        ),
        (
            "port", {"name": "eth0", "role": "uplink", "mac": "02:00:00:00:00:01"},
            "mac: port eth0: an uplink has no mac, only access ports do; found 02:00:00:00:00:01",
        ),
        (
            "tunnel", GENEVE | {"vni": 2**24},
            "vni: tunnel to-node2: 16777216 is not a whole number from 0 to 16777215",
        ),
        ("tunnel", GENEVE | {"vni": True}, "vni: tunnel to-node2: true is not a whole number from 0 to 16777215"),
        ("tunnel", GENEVE | {"vni": "100"}, "vni: tunnel to-node2: '100' is not a whole number from 0 to 16777215"),
        ("tunnel", GENEVE | {"ttl": 0}, "ttl: tunnel to-node2: 0 is not a whole number from 1 to 255 or inherit"),
        (
            "tunnel", GENEVE | {"source_port": "hash"},
            "source_port: tunnel to-node2: 'hash' is not a whole number from 1 to 65535 or flow",
        ),
        (
            "tunnel", GENEVE | {"vid": 3},
            "vid: tunnel to-node2: geneve has no option vid; "
            "it has df, dscp, payload, port, receive_checksum, source_port, tlvs, to_stack, ttl, udp_checksum, vni"
            "\n  did you mean vni?",
        ),
        (
            "tunnel", GENEVE | {"protocol": "vxlan-ng"},
            f"protocol: tunnel to-node2: there is no protocol 'vxlan-ng'; there are {', '.join(PROTOCOLS)}"
            "\n  did you mean vxlan-gpe?",
        ),
        ("tunnel", {"name": "x"}, f"protocol: tunnel x: needs protocol: {', '.join(PROTOCOLS)}"),
        ("tunnel", VLAN | {"vid": 0}, "vid: tunnel leaf: 0 is not a whole number from 1 to 4094"),
        ("tunnel", VLAN | {"tpid": 0x9100}, "tpid: tunnel leaf: 0x9100 is not 0x8100 or 0x88a8"),
        (
            "tunnel", GENEVE | {"remote": "10.30.30.300"},
            "remote: tunnel to-node2: '10.30.30.300' is not an IPv4 or IPv6 address, or any",
        ),
        (
            "tunnel", GENEVE | {"remote": "224.0.0.1"},
            "remote: tunnel to-node2: 224.0.0.1 is no address of a single machine",
        ),
        (
            "tunnel", GENEVE | {"remote": "::ffff:10.0.0.1"},
            "remote: tunnel to-node2: ::ffff:10.0.0.1 is an IPv4 address in IPv6 clothes; write 10.0.0.1",
        ),
        (
            "tunnel", GENEVE | {"remote": "fe80::1%eth0"},
            "remote: tunnel to-node2: fe80::1%eth0 carries a zone; write fe80::1 and name the interface as egress",
        ),
        (
            "tunnel", GENEVE | {"remote_mac": "ff:ff:ff:ff:ff:ff"},
            "remote_mac: tunnel to-node2: ff:ff:ff:ff:ff:ff is a multicast MAC address; "
            "one of a single station is needed",
        ),
        (
            "tunnel", GENEVE | {"local_mac": "02:00:00:00:01"},
            "local_mac: tunnel to-node2: '02:00:00:00:01' is not a MAC address such as 02:00:00:00:00:01",
        ),
        (
            "tunnel", GENEVE | {"annotations": {"a": 1}},
            "annotations: tunnel to-node2: {'a': 1} is not a mapping of text to text",
        ),
        (
            "route", {"network": "blue", "prefix": "10.1.1.1/24", "via": "t"},
            "prefix: route blue 10.1.1.1/24: 10.1.1.1/24 has host bits set; "
            "the prefix is 10.1.1.0/24, the single address 10.1.1.1/32",
        ),
        (
            "route", {"network": "blue", "prefix": "10.1.1.0/33", "via": "t"},
            "prefix: route blue 10.1.1.0/33: '10.1.1.0/33' is not an IPv4 or IPv6 prefix "
            "such as 10.1.0.0/16 or fd00::/64",
        ),
        (
            "route", {"network": "blue", "prefix": "10.1.1.0/24"},
            "via: route blue 10.1.1.0/24: exactly one of via, group, port, drop and pass says where it leads; "
            "none is given",
        ),
        (
            "route", {"network": "blue", "prefix": "10.1.1.0/24", "via": "t", "pass": True},
            "pass: route blue 10.1.1.0/24: exactly one of via, group, port, drop and pass says where it leads; "
            "via and pass are given",
        ),
        (
            "route", {"network": "blue", "prefix": "10.1.1.0/24", "drop": True, "mac": "02:00:00:00:00:01"},
            "mac: route blue 10.1.1.0/24: 02:00:00:00:00:01 can't be used with drop; mac goes with via, group or port",
        ),
        (
            "route", {"network": "blue", "prefix": "10.1.1.0/24", "port": "veth0", "relay": True},
            "relay: route blue 10.1.1.0/24: relay can't be used with port; it goes with via or group",
        ),
        (
            "route", {"network": "blue", "prefix": "10.1.1.0/24", "via": "t", "group": "g"},
            "group: route blue 10.1.1.0/24: exactly one of via, group, port, drop and pass says where it leads; "
            "via and group are given",
        ),
        (
            "tunnel", GENEVE | {"split_horizon": 0},
            "split_horizon: tunnel to-node2: 0 is not a whole number from 1 to 255",
        ),
        (
            "tunnel", GENEVE | {"accept": [{"protocol": "vxlan", "vni": 2**24}]},
            "accept: tunnel to-node2: vni: vxlan: 16777216 is not a whole number from 0 to 16777215",
        ),
        (
            "tunnel", GENEVE | {"accept": [{"protocol": "vxlan", "vnl": 1}]},
            "accept: tunnel to-node2: vnl: vxlan: vxlan has no option vnl; "
            "it has df, dscp, port, receive_checksum, source_port, to_stack, ttl, udp_checksum, vni"
            "\n  did you mean vni?",
        ),
        (
            "tunnel", GENEVE | {"accept": [{"vni": 1}]},
            f"accept: tunnel to-node2: protocol: needs protocol: {', '.join(PROTOCOLS)}",
        ),
        (
            "tunnel", GENEVE | {"accept": "vxlan,vni"},
            "accept: tunnel to-node2: 'vxlan,vni' is not a protocol with its options, such as vxlan,vni=100",
        ),
        (
            "tunnel", GENEVE | {"accept": ["vxlan,vni=1", "vxlan,vni=2"]},
            "accept: tunnel to-node2: vxlan is accepted twice",
        ),
        (
            "tunnel", GENEVE | {"accept": ["ip4ip6"]},
            "accept: tunnel to-node2: 10.30.30.2 is IPv4, but ip4ip6 runs over IPv6 only",
        ),
        (
            "tunnel",
            {"name": "l", "protocol": "l2tp", "network": "blue", "remote": "10.30.30.2", "session_id": 7,
             "accept": ["l2tp,session-id=7,cookie=01020304"]},
            "accept: tunnel l: identifier 7 of l2tp can't have two cookies or sublayers"
            "\n  give what is accepted another identifier",
        ),
        ("group", {"name": "g", "network": "blue"}, "members: group g: a group needs members: a list, each a tunnel "
         "with a weight from 1 to 256, such as to-node2 or to-node2:3"),
        (
            "group", {"name": "g", "network": "blue", "members": []},
            "members: group g: a group needs one member at least",
        ),
        (
            "group", {"name": "g", "network": "blue", "members": ["a", {"tunnel": "a", "weight": 2}]},
            "members: group g: a is a member twice\n  a weight says how much it gets",
        ),
        (
            "group", {"name": "g", "network": "blue", "members": [{"tunnel": "a", "weight": 257}]},
            "members: group g: weight: member a: 257 is not a whole number from 1 to 256",
        ),
        (
            "group", {"name": "g", "network": "blue", "members": ["a:0"]},
            "members: group g: weight: member a: 0 is not a whole number from 1 to 256",
        ),
        (
            "group", {"name": "g", "network": "blue", "members": ["a:3.5"]},
            "members: group g: 'a:3.5' is not a tunnel with a weight from 1 to 256, such as to-node2 or to-node2:3",
        ),
        (
            "group", {"name": "g", "network": "blue", "members": [{"tunnel": "a", "wieght": 2}]},
            "members: group g: wieght: member: a member has no field wieght; it has tunnel, weight"
            "\n  did you mean weight?",
        ),
        (
            "group", {"name": "g", "network": "blue", "members": [7]},
            "members: group g: 7 is not a tunnel with a weight from 1 to 256, such as to-node2 or to-node2:3",
        ),
        (
            "group", {"name": "g", "network": "blue", "members": [f"t{number}" for number in range(257)]},
            "members: group g: 257 members are given; 256 is the most",
        ),
        (
            "flow", {"network": "blue", "source": "10.0.0.1", "destination": "fd00::1", "drop": True},
            "destination: flow blue 10.0.0.1 fd00::1: fd00::1 is IPv6, but the source is IPv4",
        ),
    ],
)  # fmt: skip
def test_an_error_names_field_object_value_and_what_would_be_right(kind, values, text):
    assert str(error_of(object_from_dict, kind, values)) == text


def test_objects_made_in_python_are_checked_like_those_of_a_file():
    assert error_of(Network, name="blue", id=2**32).field == "id"
    assert error_of(GeneveOptions, vni=-1).field == "vni"
    assert error_of(Network, name=7, id=1).message == "network 7: 7 is not " + fields_of(Network)[0].expected


def test_options_of_another_protocol_are_refused():
    error = error_of(
        Tunnel, name="x", protocol="geneve", network="blue", remote="10.0.0.1", options=VlanOptions(vid=1)
    )
    assert error.message == "tunnel x: VlanOptions are no options of geneve; it takes GeneveOptions"


def test_addresses_and_macs_take_one_form():
    made = geneve(remote="FD00:0::1", remote_mac="02-00-00-AB-CD-EF")
    assert (made.remote, made.remote_mac) == ("fd00::1", "02:00:00:ab:cd:ef")
    assert Route(network="b", prefix="FD00::/64", drop=True).prefix == "fd00::/64"
    assert Route(network="b", prefix="10.0.0.1", drop=True).prefix == "10.0.0.1/32"


def test_a_tunnel_says_what_it_accepts_beside_what_it_sends():
    made = geneve(accept=[{"protocol": "vxlan", "vni": 7, "port": 8472}, "mpls,labels=16,17"])
    assert made.to_dict()["accept"] == [
        {"protocol": "vxlan", "vni": 7, "port": 8472}, {"protocol": "mpls", "labels": [16, 17]},
    ]  # fmt: skip
    assert [each.from_value(str(each)) for each in made.accept] == list(made.accept)
    assert tunnel_from_dict(made.to_dict()) == tunnel_from_dict(made.to_dict(defaults=True)) == made
    first, second, third = made.variants()
    assert first is made
    assert (second.protocol, second.remote, second.accept) == ("vxlan", "10.30.30.2", ())
    assert third.options == made.accept[1].options
    assert TUNNEL.variants() == (TUNNEL,)


def test_members_of_a_group_may_be_written_in_short():
    values = {"name": "exits", "network": "blue", "members": ["to-node2:3", "other"]}
    assert object_from_dict("group", values) == GROUP
    assert GROUP.to_dict()["members"] == [{"tunnel": "to-node2", "weight": 3}, {"tunnel": "other"}]
    assert list(map(str, GROUP.members)) == ["to-node2:3", "other"]
    assert object_from_dict("group", values | {"members": {"tunnel": "a"}}).members == (Member(tunnel="a"),)
    assert Group(name="g", network="blue", members="a:2").members[0].weight == 2  # type: ignore[arg-type]
    with pytest.raises(InvalidIntent, match="is not a tunnel with a weight"):
        Member.from_value("a:" + "9" * 5000)


def test_a_list_of_one_may_be_written_without_brackets():
    one = object_from_dict("network", {"name": "blue", "id": 1, "gateway": "FD00::1"})
    assert one == Network(name="blue", id=1, gateway=("fd00::1",))
    assert one.to_dict() == {"name": "blue", "id": 1, "gateway": ["fd00::1"]}
    assert set(Network(name="b", id=1, gateway=("fd00::1", "10.0.0.1")).gateways) == {4, 6}


def test_keys_are_text_and_can_be_had_from_what_an_operator_types():
    assert route_key("blue", "FD00::1") == "blue fd00::1/128"
    assert flow_key("blue", "10.0.0.1", "10.0.0.2") == "blue 10.0.0.1 10.0.0.2"
    assert error_of(route_key, "blue", "10.0.0.1/8").field == "prefix"


def test_objects_are_immutable():
    with pytest.raises(AttributeError):
        BLUE.id = 2  # type: ignore[misc]


def test_a_tunnel_is_flat_in_a_file():
    assert geneve(ttl="inherit", annotations={"by": "me"}).to_dict() == {
        **GENEVE, "ttl": "inherit", "annotations": {"by": "me"},
    }  # fmt: skip
    assert TUNNEL.to_dict(defaults=True)["source_port"] == "flow"
    assert "options" not in TUNNEL.to_dict(defaults=True)


def test_pass_is_the_word_in_files_though_not_in_python():
    route = Route(network="blue", prefix="10.0.0.0/8", pass_=True)
    assert route.to_dict() == {"network": "blue", "prefix": "10.0.0.0/8", "pass": True}
    assert object_from_dict("route", route.to_dict()) == route


BUNDLE = Bundle(
    name="many",
    flows=3,
    next_hops=("blue via t relay", "blue port veth0 mac 02:00:00:00:00:09"),
    content="ab" * 32,
)


@pytest.mark.parametrize("kind", KINDS)
def test_to_dict_with_defaults_is_read_back_as_the_same_object(kind):
    samples = {
        "network": BLUE, "port": ACCESS, "tunnel": TUNNEL, "route": ROUTE, "group": GROUP,
        "flow": Flow(network="blue", source="10.0.0.1", destination="10.0.0.2", port="veth0", annotations={"a": "b"}),
        "bundle": BUNDLE,
    }  # fmt: skip
    for defaults in (False, True):
        assert object_from_dict(kind, samples[kind].to_dict(defaults=defaults)) == samples[kind]


def test_no_option_of_a_protocol_has_the_name_of_a_common_field():
    common = {field.name for field in fields_of(Tunnel)}
    for protocol in PROTOCOLS.values():
        assert not common & {field.name for field in fields_of(protocol.options)}


# ---- values ----------------------------------------------------------------------------------------------


def field_of(cls: type[Checked], name: str) -> Field:
    return next(field for field in fields_of(cls) if field.name == name)


@pytest.mark.parametrize(
    ("cls", "name", "text", "value"),
    [
        (GeneveOptions, "vni", "100", 100),
        (GeneveOptions, "vni", "0x64", 100),
        (GeneveOptions, "vni", "12x", "12x"),
        (GeneveOptions, "vni", "9" * 5000, "9" * 5000),
        (GeneveOptions, "vni", "0x" + "f" * 5000, "0x" + "f" * 5000),
        (GeneveOptions, "ttl", "inherit", "inherit"),
        (GeneveOptions, "ttl", "9", 9),
        (GeneveOptions, "df", "no", False),
        (VlanOptions, "tpid", "0x88a8", 0x88A8),
        (Network, "name", "7", "7"),
    ],
)
def test_a_word_of_the_command_line_becomes_what_the_field_takes(cls, name, text, value):
    assert value_from_text(field_of(cls, name), text) == value


def test_a_field_says_what_a_help_text_needs():
    port = field_of(GeneveOptions, "port")
    assert (port.default, port.required, port.expected) == (6081, False, "a whole number from 1 to 65535")
    assert port.description == "UDP destination port, also listened on"
    assert field_of(GeneveOptions, "vni").required


@given(st.binary(min_size=6, max_size=6))
def test_mac_addresses_survive_text(mac):
    assert mac_bytes(mac_text(mac)) == mac
    assert mac_bytes(mac_text(mac).upper().replace(":", "-")) == mac


@given(st.text(max_size=20))
def test_no_text_makes_anything_but_an_object_or_an_error_in_words(text):
    for make in (
        lambda: Network(name=text, id=1),
        lambda: Port(name=text, role="uplink"),
        lambda: geneve(remote=text),
        lambda: geneve(remote_mac=text),
        lambda: Route(network="blue", prefix=text, drop=True),
    ):
        try:
            make()
        except InvalidIntent as error:
            assert error.field and error.message


@given(st.ip_addresses(), st.integers(0, 128))
def test_a_prefix_with_host_bits_is_refused_with_the_right_one(address, length):
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return
    length = min(length, address.max_prefixlen)
    right = ipaddress.ip_network(f"{address}/{length}", strict=False)
    try:
        assert Route(network="b", prefix=f"{address}/{length}", drop=True).prefix == str(right)
        assert right.network_address == address
    except InvalidIntent as error:
        assert f"the prefix is {right}," in error.message


# ---- objects together ------------------------------------------------------------------------------------


def base(*more) -> Intent:
    return Intent.of([BLUE, RED, ACCESS, TUNNEL, *more])


def test_add_replace_and_remove_return_a_new_intent():
    empty = Intent()
    one = empty.add(BLUE)
    other = one.replace(Network(name="blue", id=9))
    assert (len(empty.networks), one.networks["blue"].id, other.networks["blue"].id) == (0, 1, 9)
    assert other.remove("network", "blue") == empty


def test_intents_with_the_same_objects_are_equal_whatever_their_order():
    assert Intent.of([BLUE, RED]) == Intent.of([RED, BLUE])


def test_a_taken_key_is_refused():
    with pytest.raises(AlreadyExists, match="network blue already exists"):
        Intent.of([BLUE]).add(BLUE)
    with pytest.raises(AlreadyExists, match="network blue is there twice"):
        Intent.of([BLUE, BLUE])


def test_what_is_not_there_is_refused_with_what_is_near():
    with pytest.raises(NotFound, match=r"there is no tunnel to-node3\n  did you mean to-node2\?"):
        base().remove("tunnel", "to-node3")
    with pytest.raises(NotFound, match="there are blue, red"):
        base().get("network", "xyz")
    with pytest.raises(NotFound, match="there are no flows yet; `mptm flow add --help` says how to make one"):
        base().get("flow", "xyz")
    with pytest.raises(
        NotFound, match="there are no bundles yet; `mptm flow load --help` says how to make one"
    ):
        base().get("bundle", "xyz")
    with pytest.raises(NotFound, match=r"there is blue$"):
        Intent.of([BLUE]).get("network", "xyz")


@pytest.mark.parametrize(
    ("kind", "key", "users"),
    [
        ("network", "blue", "port veth0, tunnel to-node2, route blue 10.1.0.0/16 and 1 more"),
        ("tunnel", "to-node2", "route blue 10.1.0.0/16"),
        ("port", "veth0", "flow blue 10.0.0.1 10.0.0.2"),
    ],
)
def test_what_is_in_use_is_not_removed_and_its_users_are_named(kind, key, users):
    intent = base(ROUTE, Flow(network="blue", source="10.0.0.1", destination="10.0.0.2", port="veth0"))
    intent.validate()
    with pytest.raises(InUse, match=f"{kind} {key} is in use by {users}\n  remove those first"):
        intent.remove(kind, key)


def test_a_right_intent_has_no_problems():
    intent = base(
        ROUTE,
        Port(name="eth0", role="uplink"),
        tunnel_from_dict(VLAN),
        Route(network="blue", prefix="10.1.0.5/32", port="veth0", mac="02:00:00:00:00:05"),
        Route(network="red", prefix="10.1.0.0/16", drop=True),
        Flow(network="red", source="10.0.0.1", destination="10.0.0.2", pass_=True),
    )
    assert list(intent.problems()) == []


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        (Network(name="green", id=1), "id: network green: id 1 is taken by network blue\n  3 is free"),
        (
            Port(name="veth1", role="access", network="blu"),
            "network: port veth1: there is no network blu\n  did you mean blue?",
        ),
        (
            Route(network="green", prefix="10.0.0.0/8", drop=True),
            "network: route green 10.0.0.0/8: there is no network green\n  there are blue, red",
        ),
        (
            Route(network="blue", prefix="10.0.0.0/8", via="to-node3"),
            "via: route blue 10.0.0.0/8: there is no tunnel to-node3\n  did you mean to-node2?",
        ),
        (
            Route(network="red", prefix="10.0.0.0/8", via="to-node2"),
            "via: route red 10.0.0.0/8: tunnel to-node2 is of network blue, not red",
        ),
        (
            Route(network="red", prefix="10.0.0.0/8", port="veth0"),
            "port: route red 10.0.0.0/8: port veth0 is of network blue, not red",
        ),
        (
            Route(network="red", prefix="10.0.0.0/8", port="eth0"),
            "port: route red 10.0.0.0/8: port eth0 is an uplink; packets are delivered to access ports",
        ),
        (
            Route(network="red", prefix="10.0.0.0/8", via="hub"),
            "via: route red 10.0.0.0/8: tunnel hub has remote any: it only receives\n  "
            "give the tunnel a remote to send to",
        ),
        (
            Group(name="g", network="blue", members=(Member(tunnel="to-node2"), Member(tunnel="to-node3"))),
            "members: group g: there is no tunnel to-node3\n  did you mean to-node2?",
        ),
        (
            Group(name="g", network="red", members=(Member(tunnel="to-node2"),)),
            "members: group g: tunnel to-node2 is of network blue, not red",
        ),
        (
            Group(name="g", network="red", members=(Member(tunnel="hub"),)),
            "members: group g: tunnel hub has remote any: it only receives\n  give the tunnel a remote to send to",
        ),
        (
            Group(name="g", network="green", members=(Member(tunnel="hub"),)),
            "network: group g: there is no network green\n  there are blue, red",
        ),
        (
            Route(network="red", prefix="10.0.0.0/8", group="g"),
            "group: route red 10.0.0.0/8: there is no group g\n  "
            "there are no groups yet; `mptm group add --help` says how to make one",
        ),
        (
            geneve(name="again", network="red"),
            "remote: tunnel again: accepts the same packets as tunnel to-node2 of network blue "
            "(geneve, identifier 100, from 10.30.30.2)\n  let them differ in identifier, remote, local or port",
        ),
        (
            tunnel_from_dict(GENEVE | {"name": "other", "protocol": "vxlan", "port": 6081}),
            "port: tunnel other: port 6081 is taken by geneve (tunnel to-node2)\n  one UDP port carries one protocol",
        ),
        (
            tunnel_from_dict(GENEVE | {"name": "other", "vni": 101, "accept": ["vxlan,vni=1,port=6081"]}),
            "accept: tunnel other: port 6081 is taken by geneve (tunnel to-node2)\n  one UDP port carries one protocol",
        ),
        (
            tunnel_from_dict(GENEVE | {"name": "other", "protocol": "vxlan", "accept": ["geneve,vni=100"]}),
            "accept: tunnel other: accepts the same packets as tunnel to-node2 of network blue "
            "(geneve, identifier 100, from 10.30.30.2)\n  let them differ in identifier, remote, local or port",
        ),
        (
            tunnel_from_dict(GENEVE | {"name": "other", "vni": 101, "accept": ["vxlan,vni=1,port=6081"]}),
            "accept: tunnel other: port 6081 is taken by geneve (tunnel to-node2)\n  one UDP port carries one protocol",
        ),
        (
            tunnel_from_dict(
                GENEVE | {"name": "two", "vni": 1, "port": 99, "accept": ["vxlan,vni=1,port=99"]}
            ),
            "accept: tunnel two: port 99 is taken by geneve (tunnel two)\n  one UDP port carries one protocol",
        ),
    ],
)
def test_objects_that_are_wrong_together_are_named(obj, text):
    hub = geneve(name="hub", network="red", remote="any", local="10.30.30.9", vni=7)
    intent = base(Port(name="eth0", role="uplink"), hub, obj)
    assert str(error_of(intent.validate)) == text


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        ({}, {"vni": 101}, False),
        ({}, {"remote": "10.30.30.3"}, False),
        ({}, {"port": 6082}, False),
        ({}, {"remote": "any", "local": "10.30.30.1"}, False),
        ({"local": "10.30.30.1"}, {"local": "10.30.30.4"}, False),
        ({"local": "10.30.30.1"}, {}, True),
        ({}, {"ttl": 9}, True),
    ],
)
def test_two_ip_tunnels_meet_when_one_packet_could_be_for_both(first, second, meet):
    intent = Intent.of([BLUE, geneve(**first), geneve(name="other", **second)])
    assert bool(list(intent.problems())) is meet


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        ({"local_sid": "fd00:9::1"}, {"local_sid": "fd00:9::2"}, False),
        ({"local_sid": "fd00:9::1"}, {"local": "fd00:8::2"}, False),
        ({"local_sid": "fd00:9::1"}, {"local": "fd00:8::2", "local_sid": "fd00:9::1"}, True),
        ({"local_sid": "fd00:9::1"}, {}, True),
    ],
)
def test_two_srv6_tunnels_meet_where_their_segments_may_be_the_same(first, second, meet):
    values = {"protocol": "srv6", "network": "blue", "remote": "fd00:8::9"}
    tunnels = (
        tunnel_from_dict(values | {"name": name} | more) for name, more in (("a", first), ("b", second))
    )
    intent = Intent.of([BLUE, *tunnels])
    assert bool(list(intent.problems())) is meet


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        ({}, {"vid": 43}, False),
        ({}, {"tpid": 0x88A8}, False),
        ({"egress": "eth0"}, {"egress": "eth1"}, False),
        ({"remote": "any", "egress": "eth0"}, {"remote": "any", "egress": "eth1"}, False),
        ({"remote": "any", "egress": "eth0"}, {"remote": "any", "egress": "eth0"}, True),
        ({"egress": "eth0"}, {}, True),
        ({"egress": "eth0", "local": "10.30.30.1"}, {"egress": "eth0", "local": "10.30.30.4"}, True),
        ({"local": "10.30.30.1"}, {"local": "10.30.30.4"}, False),
        ({}, {}, True),
    ],
)
def test_two_vlans_meet_when_one_frame_could_be_for_both(first, second, meet):
    intent = Intent.of(
        [BLUE, tunnel_from_dict(VLAN | first), tunnel_from_dict(VLAN | {"name": "other"} | second)]
    )
    assert bool(list(intent.problems())) is meet


SHADOW_HINTS = {
    "nvgre": "let them differ in remote or local, or key and VSID in the upper 24 bits",
    "srv6": "let them differ in remote or local, or give the srv6 tunnel a local_sid of its own",
}


@pytest.mark.parametrize(
    ("winner", "loser", "meet"),
    [
        ({"protocol": "gretap", "key": 0x123405}, {"protocol": "nvgre", "vsid": 0x1234}, True),
        ({"protocol": "gre", "key": 0x1234FF}, {"protocol": "nvgre", "vsid": 0x1234}, True),
        ({"protocol": "gretap", "key": 0x123505}, {"protocol": "nvgre", "vsid": 0x1234}, False),
        ({"protocol": "gretap"}, {"protocol": "nvgre", "vsid": 0x1234}, False),
        ({"protocol": "gre-udp", "key": 0x123405}, {"protocol": "nvgre", "vsid": 0x1234}, False),
        (
            {"protocol": "gretap", "key": 0x123405, "remote": "fd00:8::8"},
            {"protocol": "nvgre", "vsid": 0x1234},
            False,
        ),
        (
            {"protocol": "gretap", "key": 0x123405, "remote": "any", "local": "fd00:8::1"},
            {"protocol": "nvgre", "vsid": 0x1234},
            True,
        ),
        (
            {"protocol": "gretap", "key": 0x123405},
            {"protocol": "nvgre", "vsid": 0x1234, "remote": "any", "local": "fd00:8::1"},
            True,
        ),
        (
            {"protocol": "gretap", "key": 0x123405, "local": "fd00:8::2"},
            {"protocol": "nvgre", "vsid": 0x1234, "local": "fd00:8::1"},
            False,
        ),
        ({"protocol": "ip6ip6"}, {"protocol": "srv6", "mode": "reduced"}, True),
        ({"protocol": "ip4ip6"}, {"protocol": "srv6"}, True),
        ({"protocol": "ip6ip6"}, {"protocol": "srv6", "mode": "l2"}, False),
        ({"protocol": "ip6ip6", "local": "fd00:8::1"}, {"protocol": "srv6", "local_sid": "fd00:9::1"}, False),
        ({"protocol": "ip6ip6"}, {"protocol": "srv6", "local_sid": "fd00:9::1"}, True),
        ({"protocol": "fou", "port": 5555}, {"protocol": "srv6"}, False),
        ({"protocol": "vxlan", "vni": 1, "accept": ["ip6ip6"]}, {"protocol": "srv6"}, True),
        ({"protocol": "ip6ip6"}, {"protocol": "vxlan", "vni": 1, "accept": ["srv6"]}, True),
    ],
)
def test_packets_that_two_protocols_would_read_are_for_one_tunnel(winner, loser, meet):
    common = {"network": "blue", "remote": "fd00:8::9"}
    first = tunnel_from_dict(common | {"name": "a"} | winner)
    second = tunnel_from_dict(common | {"name": "b", "network": "red"} | loser)
    for objects in ([first, second], [second, first]):
        intent = Intent.of([BLUE, RED, *objects])
        problems = list(intent.problems())
        assert len(problems) == meet
        if not meet:
            continue
        lost = "srv6" if "srv6" in repr(loser) else "nvgre"
        (problem,) = problems
        assert (problem.key, problem.hint) == ("b", SHADOW_HINTS[lost])
        assert problem.field == ("accept" if "accept" in loser else "remote")
        assert f"packets of {lost} from {second.remote} may be taken for those of " in problem.message
        assert problem.message.endswith("for tunnel a of network blue")


def test_a_tunnel_accepts_no_two_protocols_of_which_one_would_lose_its_packets_to_the_other():
    values = {"name": "t", "network": "blue", "remote": "10.30.30.2", "protocol": "nvgre", "vsid": 0x1234}
    assert tunnel_from_dict(values | {"accept": ["gretap,key=0x123405"]})
    assert tunnel_from_dict(values | {"accept": ["gre,key=0x123505"]})
    with pytest.raises(InvalidIntent, match="packets of nvgre may be taken for those of gre") as error:
        tunnel_from_dict(values | {"accept": ["gre,key=0x123405"]})
    assert error.value.hint == "let them differ, key and VSID in the upper 24 bits"


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        (
            {"protocol": "srv6", "remote": "fd00:8::9"},
            "(srv6, from fd00:8::9)",
            "let them differ in remote, local or local_sid",
        ),
        (
            {"protocol": "gre", "remote": "10.30.30.2"},
            "identifier 0",
            "let them differ in identifier, remote or local",
        ),
        ({"protocol": "ipip", "remote": "10.30.30.2"}, "(ipip, from", "let them differ in remote or local"),
        (
            {"protocol": "fou", "remote": "10.30.30.2", "port": 5555},
            "(fou, from",
            "let them differ in remote, local or port",
        ),
    ],
)
def test_tunnels_that_meet_are_told_what_can_tell_them_apart(values, message, hint):
    pair = [tunnel_from_dict(values | {"name": name, "network": "blue"}) for name in "ab"]
    error = error_of(Intent.of([BLUE, *pair]).validate)
    assert message in error.message
    assert error.hint == hint


def test_of_vlans_that_meet_the_error_names_what_can_tell_them_apart():
    error = error_of(
        Intent.of([BLUE, tunnel_from_dict(VLAN), tunnel_from_dict(VLAN | {"name": "b"})]).validate
    )
    assert error.hint == "let them differ in identifier, remote or egress"


def test_groups_keep_what_they_are_made_of_and_are_kept_by_what_leads_to_them():
    group = Group(name="g", network="blue", members=(Member(tunnel="to-node2"),))
    intent = base(group, Route(network="blue", prefix="10.0.0.0/8", group="g"))
    intent.validate()
    with pytest.raises(InUse, match="tunnel to-node2 is in use by group g"):
        intent.remove("tunnel", "to-node2")
    with pytest.raises(InUse, match=r"group g is in use by route blue 10\.0\.0\.0/8"):
        intent.remove("group", "g")
    with pytest.raises(
        InUse, match="network blue is in use by port veth0, tunnel to-node2, group g and 1 more"
    ):
        intent.remove("network", "blue")
    assert intent.remove("route", "blue 10.0.0.0/8").remove("group", "g").remove("tunnel", "to-node2")
    other = Route(network="red", prefix="10.0.0.0/8", group="g")
    error = error_of(base(group, other).validate)
    assert str(error) == "group: route red 10.0.0.0/8: group g is of network blue, not red"


# ---- what the kernel's stack would silently discard -----------------------------------------------------


MAC = "02:00:00:00:00:99"
STACK = geneve(name="stack", to_stack=True, vni=7)
TO_STACK = Route(network="blue", prefix="10.2.0.0/16", via="stack")
FLOW_TO_STACK = Flow(network="blue", source="10.1.0.1", destination="10.2.0.1", via="stack", mac=MAC)
REASON = (
    "tunnel stack hands packets to the kernel (to_stack), which takes only those that are addressed "
    "to the access port's own MAC address, but "
)
GATEWAY_PORT = Port(name="veth1", role="access", network="blue", mac=MAC)


@pytest.mark.parametrize(
    ("objects", "text"),
    [
        (
            [Route(network="blue", prefix="10.2.0.0/16", via="stack", mac=MAC)],
            f"mac: route blue 10.2.0.0/16: {REASON}it tells workloads {MAC}"
            "\n  leave out mac, or to_stack of tunnel stack",
        ),
        (
            [TO_STACK, GATEWAY_PORT],
            f"via: route blue 10.2.0.0/16: {REASON}port veth1 tells workloads {MAC}"
            "\n  leave out mac of port veth1, or to_stack of tunnel stack",
        ),
        (
            [FLOW_TO_STACK, GATEWAY_PORT],
            f"via: flow blue 10.1.0.1 10.2.0.1: {REASON}port veth1 tells workloads {MAC}"
            "\n  leave out mac of port veth1, or to_stack of tunnel stack",
        ),
        (
            [FLOW_TO_STACK, Route(network="blue", prefix="10.2.0.0/24", via="to-node2", mac=MAC)],
            f"via: flow blue 10.1.0.1 10.2.0.1: {REASON}route blue 10.2.0.0/24 tells workloads {MAC}"
            "\n  leave out mac of route blue 10.2.0.0/24, or to_stack of tunnel stack",
        ),
        (
            [
                Group(name="g", network="blue", members=(Member(tunnel="to-node2"), Member(tunnel="stack"))),
                Route(network="blue", prefix="10.2.0.0/16", group="g"),
                GATEWAY_PORT,
            ],
            f"group: route blue 10.2.0.0/16: {REASON}port veth1 tells workloads {MAC}"
            "\n  leave out mac of port veth1, or to_stack of tunnel stack",
        ),
    ],
)
def test_what_would_reach_the_stack_under_another_mac_is_refused(objects, text):
    assert str(error_of(base(STACK, *objects).validate)) == text


@pytest.mark.parametrize(
    "objects",
    [
        [TO_STACK, FLOW_TO_STACK],
        [TO_STACK, Port(name="veth1", role="access", network="red", mac=MAC)],
        [Route(network="blue", prefix="10.2.0.0/16", via="to-node2", mac=MAC), GATEWAY_PORT],
        [FLOW_TO_STACK, TO_STACK, Route(network="blue", prefix="10.0.0.0/8", via="to-node2", mac=MAC)],
        [Route(network="blue", prefix="10.2.0.0/16", pass_=True), GATEWAY_PORT],
    ],
    ids=["flow's own mac", "another network", "another tunnel", "a longer prefix answers", "pass"],
)
def test_what_reaches_the_stack_under_the_ports_own_mac_is_right(objects):
    assert list(base(STACK, *objects).problems()) == []


def test_a_thousand_tunnels_and_ten_thousand_routes_are_checked_in_a_moment():
    tunnels = [geneve(name=f"t{i}", remote=f"10.9.{i // 250}.{i % 250 + 1}") for i in range(1000)]
    routes = [
        Route(network="blue", prefix=f"10.{i // 62500}.{i // 250 % 250}.{i % 250}/32", via=f"t{i % 1000}")
        for i in range(10000)
    ]
    intent = Intent.of([BLUE, *tunnels, *routes])
    assert list(intent.problems()) == []
