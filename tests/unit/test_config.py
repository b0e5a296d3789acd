# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import json
import textwrap
from ipaddress import IPv4Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mptm.config import dump, load
from mptm.errors import InvalidIntent
from mptm.intent import KINDS, Flow, Group, Intent, Member, Network, Port, Route, tunnel_from_dict

NODE = """\
networks:
  - name: blue
    id: 1
ports:
  - {name: eth0, role: uplink, mode: generic}
  - {name: veth-node1, role: access, network: blue}
tunnels:
  - name: to-node2
    protocol: geneve
    network: blue
    remote: 10.30.30.2
    vni: 100
    ttl: inherit
  - {name: leaf, protocol: vlan, network: blue, remote: 10.30.30.3, vid: 42, tpid: 0x88a8}
groups:
  - name: exits
    network: blue
    members: [{tunnel: to-node2, weight: 3}, leaf]
routes:
  - {network: blue, prefix: 10.250.1.101/32, via: to-node2}
  - {network: blue, prefix: fd00::/64, pass: true}
flows:
  - {network: blue, source: 10.250.1.100, destination: 10.250.1.101, via: to-node2}
"""

INTENT = Intent.of(
    [
        Network(name="blue", id=1),
        Port(name="eth0", role="uplink", mode="generic"),
        Port(name="veth-node1", role="access", network="blue"),
        tunnel_from_dict(
            {
                "name": "to-node2", "protocol": "geneve", "network": "blue", "remote": "10.30.30.2", "vni": 100,
                "ttl": "inherit",
            }
        ),
        tunnel_from_dict(
            {
                "name": "leaf", "protocol": "vlan", "network": "blue", "remote": "10.30.30.3", "vid": 42,
                "tpid": 0x88A8,
            }
        ),
        Group(
            name="exits", network="blue", members=(Member(tunnel="to-node2", weight=3), Member(tunnel="leaf"))
        ),
        Route(network="blue", prefix="10.250.1.101/32", via="to-node2"),
        Route(network="blue", prefix="fd00::/64", pass_=True),
        Flow(network="blue", source="10.250.1.100", destination="10.250.1.101", via="to-node2"),
    ]
)  # fmt: skip


def error_of(text: str) -> InvalidIntent:
    with pytest.raises(InvalidIntent) as raised:
        load(textwrap.dedent(text), "node.yaml")
    return raised.value


def changed(old: str, new: str) -> str:
    assert NODE.count(old) == 1
    return NODE.replace(old, new)


def test_a_node_file_is_read():
    assert load(NODE) == INTENT


def test_json_is_read_as_well():
    sections = {f"{kind}s": [] for kind in KINDS}
    for obj in INTENT.objects():
        sections[f"{obj.kind}s"].append(obj.to_dict())
    assert load(json.dumps(sections)) == load(json.dumps(sections, indent="\t")) == INTENT


def test_what_is_dumped_is_read_back_and_stays_the_same():
    text = dump(INTENT)
    assert load(text) == INTENT
    assert dump(load(text)) == text
    assert "tpid: 0x88a8" in text


def test_the_order_of_a_dump_does_not_depend_on_that_of_the_objects():
    assert dump(Intent.of(reversed(list(INTENT.objects())))) == dump(INTENT)


def test_json_escapes_are_read():
    flow = Flow(
        network="blue",
        source="10.0.0.1",
        destination="10.0.0.2",
        drop=True,
        annotations={"by": "\N{GRINNING FACE}/\t"},
    )
    text = json.dumps({"networks": [{"name": "blue", "id": 1}], "flows": [flow.to_dict()]})
    assert load(text).flows[flow.key] == flow


@pytest.mark.parametrize("text", ["networks: []\n", "{}"])
def test_an_empty_node_can_be_written(text):
    assert load(text) == Intent()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "networks:\n", "ports: ~\n"])
def test_a_file_with_nothing_in_it_is_a_mistake_not_an_empty_node(text):
    with pytest.raises(InvalidIntent, match=r"is empty|must be a list"):
        load(text)


def test_an_empty_node_is_dumped_and_read():
    assert load(dump(Intent())) == Intent()


@pytest.mark.parametrize("word", ["on", "no", "yes", "off", "y", "1e5", "2024-01-01", "1_000", ".5"])
def test_plain_words_that_older_yaml_takes_for_something_else_are_names(word):
    assert load(f"networks: [{{name: {word}, id: 1}}]").networks[word].name == word


def test_a_mac_address_of_digits_only_is_no_number():
    text = changed("ttl: inherit", "remote_mac: 10:20:30:40:50:55")
    intent = load(text)
    assert intent.tunnels["to-node2"].remote_mac == "10:20:30:40:50:55"
    assert load(dump(intent)) == intent


NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
NOTES = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=20), st.text(st.characters(codec="utf-8"))
)


@settings(deadline=None)
@example(name="099", other="0", notes={}, vni=0, address=IPv4Address("0.0.0.0"))
@given(name=NAMES, other=NAMES, notes=NOTES, vni=st.integers(0, 2**24 - 1), address=st.ip_addresses(v=4))
def test_whatever_an_intent_holds_survives_the_file(name, other, notes, vni, address):
    flow = Flow(network=name, source=str(address), destination="10.0.0.1", via=other, annotations=notes)
    tunnel = tunnel_from_dict(
        {
            "name": other, "protocol": "vxlan", "network": name, "remote": "10.30.30.2", "vni": vni,
            "annotations": notes,
        }
    )  # fmt: skip
    intent = Intent.of([Network(name=name, id=1), tunnel, flow])
    assert load(dump(intent)) == intent


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            "vni: 100", "vni: 16777216",
            "line 12: tunnels[0].vni: tunnel to-node2: 16777216 is not a whole number from 0 to 16777215",
        ),
        (
            "vni: 100", "vnl: 100",
            "line 12: tunnels[0].vnl: tunnel to-node2: geneve has no option vnl; "
            "it has df, dscp, payload, port, receive_checksum, source_port, tlvs, to_stack, ttl, udp_checksum, vni"
            "\n  did you mean vni?",
        ),
        (
            "    vni: 100\n", "",
            "line 8: tunnels[0].vni: tunnel to-node2: a geneve tunnel needs vni: a whole number from 0 to 16777215",
        ),
        (
            "vni: 100", "vni: 100\n    vni: 101",
            "line 13: tunnels[0].vni: vni is given twice, first in line 12",
        ),
        ("vni: 100", "vni: 1.5", "line 12: tunnels[0].vni: tunnel to-node2: '1.5' is not a whole number "
         "from 0 to 16777215"),
        ("vni: 100", "vni: [1]", "line 12: tunnels[0].vni: tunnel to-node2: [1] is not a whole number "
         "from 0 to 16777215"),
        ("vni: 100", "vni:", "line 12: tunnels[0].vni: tunnel to-node2: nothing is not a whole number "
         "from 0 to 16777215"),
        ("    id: 1\n", "    id: blue\n", "line 3: networks[0].id: network blue: 'blue' is not a whole number "
         "from 1 to 4294967295"),
        (
            "prefix: 10.250.1.101/32", "prefix: 10.250.1.101/24",
            "line 20: routes[0].prefix: route blue 10.250.1.101/24: 10.250.1.101/24 has host bits set; "
            "the prefix is 10.250.1.0/24, the single address 10.250.1.101/32",
        ),
        (
            "10.250.1.101/32, via: to-node2", "10.250.1.101/32, via: to-node3",
            "line 20: routes[0].via: route blue 10.250.1.101/32: there is no tunnel to-node3\n  "
            "did you mean to-node2?",
        ),
        (
            "pass: true", "pass: maybe",
            "line 21: routes[1].pass: route blue fd00::/64: 'maybe' is not true or false",
        ),
        (
            "fd00::/64, pass: true", "10.250.1.101, drop: true",
            "line 21: routes[1]: route blue 10.250.1.101/32 is there twice: first as routes[0] in line 20",
        ),
        (
            "routes:", "route:",
            "line 19: route: there is no section route; there are networks, ports, tunnels, groups, routes, flows, "
            "bundles\n  "
            "did you mean routes?",
        ),
        (
            "flows:\n  - {", "flows:\n  {",
            "line 23: flows: flows must be a list; found a mapping\n  each begins with a dash",
        ),
        (
            "    id: 1\n", "    id: 1\n  - red\n",
            "line 4: networks[1]: a network must be a mapping of fields; found 'red'",
        ),
        ("flows:", "ports:", "line 22: ports: ports is given twice, first in line 4"),
        (
            "role: uplink", "role: uplink, mac: '00:00:00:00:00:00'",
            "line 5: ports[0].mac: port eth0: 00:00:00:00:00:00 is no station's MAC address",
        ),
        (
            "role: access, network: blue", "role: access",
            "line 6: ports[1].network: port veth-node1: an access port needs network, the one of its workload",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_line_field_object_value_and_what_would_be_right(old, new, text):
    assert str(error_of(changed(old, new))) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("networks: [", "line 1: node.yaml is no YAML or JSON: "),
        ("a:\n\tb: 1\n", "line 2: node.yaml is no YAML or JSON: "),
        ("networks:\n  - {name: a, id: 1\nports: []\n", "line 3: node.yaml is no YAML or JSON: "),
        (
            "just words",
            "line 1: the file must be a mapping of networks, ports, tunnels, groups, routes, flows, bundles; "
            "found ",
        ),
        (
            "- a\n- b",
            "line 1: the file must be a mapping of networks, ports, tunnels, groups, routes, flows, bundles; "
            "found a list",
        ),
        (
            "networks: &n []\nports: *n",
            "line 2: node.yaml is no YAML or JSON: aliases (*name) are not supported",
        ),
        ("networks: [{name: !!python/name:os.system , id: 1}]", "line 1: networks[0].name: "),
        ("networks: [{? [a] : 1}]", "line 1: networks[0]: a field's name must be a word; found a list"),
        ("networks: []\n---\nports: []\n", "line 2: node.yaml is no YAML or JSON: "),
        ("\0", "node.yaml is no text: "),
        ("[" * 5000, "node.yaml is nested too deep to be a node file"),
        ("networks: [{name: a, id: " + "9" * 5000 + "}]", "line 1: networks[0].id: "),
        (
            "networks: [{name: " + "[" * 50 + "]" * 50 + ", id: 1}]",
            "line 1: networks[0].name[0][0][0][0][0][0][0][0][0]: nested too deep",
        ),
    ],
)
def test_what_is_no_node_file_at_all_is_refused_in_words(text, message):
    error = error_of(text)
    assert str(error).startswith(message)
    assert len(str(error)) < 400


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_makes_anything_but_an_intent_or_an_error_in_words(text):
    for whole in (text, f"networks: [{{name: {text}, id: 1}}]", f"networks:\n- name: blue\n  id: {text}\n"):
        try:
            assert isinstance(load(whole), Intent)
        except InvalidIntent as error:
            assert error.message
