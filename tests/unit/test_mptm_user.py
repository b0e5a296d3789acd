# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake import FakeKernel

from mptm.cli import mptm_user
from mptm.intent import Flow, Intent, Network, Port, Route, tunnel_from_dict
from mptm.node import Node

ADD = """\
--enable_logs 0 --redirect 1 --eth0_iface 2 --veth_iface 10 --vpeer_iface 145 --flags 0 --tunnel GENEVE --vlid 0
--source_port 51234 --source_ip 10.30.30.1 --source_mac 68:05:ca:d4:7c:ac --dest_ip 10.30.30.2
--dest_mac 68:05:ca:d4:5c:28 --inner_dest_mac 9e:5c:c2:da:ee:5b
--inner_src_ip 10.250.1.100 --inner_dst_ip 10.250.1.101 -a ADD"""
"""The call of the original page, with the interface numbers of the fake machine."""

PAIR = "--inner_src_ip 10.250.1.100 --inner_dst_ip 10.250.1.101"

OTHER = ADD.replace("--veth_iface 10", "--veth_iface 11").replace("10.250.1.100", "10.250.1.110")
"""The same for another workload on the node."""

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeKernel:
    made = FakeKernel()
    monkeypatch.setattr("mptm.node.SystemKernel", lambda: made)
    monkeypatch.setenv("MPTM_STATE_DIR", str(tmp_path))
    for name in ("MPTM_INSTANCE", "MPTM_NETNS", "MPTM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def node(kernel: FakeKernel) -> Node:
    return Node()


@pytest.fixture
def run(kernel: FakeKernel, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(line: str) -> tuple[int, str, str]:
        status = mptm_user.run(line.split())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_add_prints_what_the_original_printed(run):
    status, out, err = run(ADD)
    assert (status, err) == (0, "")
    assert out == (
        "opt: l arg: 0 \nopt: r arg: 1 \nopt: Z arg: 2 \nopt: Y arg: 10 \nopt: X arg: 145 \nopt: f arg: 0 \n"
        "opt: t arg: GENEVE \nopt: v arg: 0 \nopt: p arg: 51234 \nopt: s arg: 10.30.30.1 \n"
        "opt: S arg: 68:05:ca:d4:7c:ac \nopt: d arg: 10.30.30.2 \nopt: D arg: 68:05:ca:d4:5c:28 \n"
        "opt: M arg: 9e:5c:c2:da:ee:5b \nopt: x arg: 10.250.1.100 \nopt: y arg: 10.250.1.101 \nopt: a arg: ADD \n"
        "Arguments verified\n"
        "Opened bpf map file /sys/fs/bpf/mptm/default/maps/flows_v4 at fd 4\n"
        "Opened bpf map file /sys/fs/bpf/mptm/default/maps/tx_ports at fd 14\n"
        "Creating tunnel info object......created\n"
        "action is add, map fd 4 adding flows_v4 entry\n"
        "action is add, map fd 14 adding tx_ports entry\n"
        "action is add, map fd 14 adding tx_ports entry\n"
    )


def test_get_reads_it_back_without_the_faults_of_the_original(run):
    run(ADD)
    status, out, _ = run(f"{PAIR} -a GET")
    assert status == 0
    assert out.endswith(
        """\
Tunnel info element - {
        debug = 0
        redirect = 1
        flags = 0
        eth0_iface = 2
        veth_iface = 10
        tunnel_type = GENEVE
        vlan_id = 0
        source_port = 51234
        source_mac = 68:05:ca:d4:7c:ac
        outer_dest_mac = 68:05:ca:d4:5c:28
        inner_dest_mac = 9e:5c:c2:da:ee:5b
        dest_ip = 10.30.30.2
        source_ip = 10.30.30.1
}
Ingrese redirect is from iface 10 to 2
Egrese redirect is from iface 2 to 10
"""
    )


def test_short_flags_do_the_same(run, node):
    run(ADD)
    long = node.intent
    node.apply(Intent())
    letters = {f"--{name}": f"-{letter}" for name, letter in mptm_user.OPTIONS.items() if letter}
    assert run(" ".join(letters.get(word, word) for word in ADD.split()))[0] == 0
    assert node.intent == long


def test_an_entry_is_made_of_ordinary_objects(run, node):
    run(ADD)
    intent = node.intent
    (tunnel,) = intent.tunnels.values()
    (flow,) = intent.flows.values()
    assert intent.networks["mptm_user"].id == 1
    assert (intent.ports["eth0"].role, intent.ports["veth-a"].network) == ("uplink", "mptm_user")
    assert flow.via == tunnel.name and flow.mac == "9e:5c:c2:da:ee:5b"
    assert intent.routes["mptm_user 10.250.1.100/32"].port == "veth-a"
    assert intent.routes["mptm_user 10.250.1.100/32"].mac == "02:00:00:00:01:0a"
    assert intent.routes["mptm_user 10.250.1.101/32"].via == tunnel.name


def test_del_removes_the_entry_and_all_that_it_alone_needed(run, node, kernel):
    run(ADD)
    status, out, _ = run(f"{PAIR} -a DEL")
    assert status == 0
    assert "deleting flows_v4 entry" in out
    assert node.intent == Intent()
    assert not any(kernel.planes["default"].bytes().values())


def test_del_keeps_what_others_made_or_use(run, node):
    blue = Network(name="blue", id=5)
    node.apply(
        Intent.of(
            [blue, Port(name="veth-a", role="access", network="blue"), Port(name="eth0", role="uplink")]
        )
    )
    before = node.intent
    run(ADD)
    assert "blue 10.250.1.100 10.250.1.101" in node.intent.flows
    assert "mptm_user" not in node.intent.networks
    run(f"{PAIR} -a DEL")
    assert node.intent == before


def test_two_workloads_share_an_uplink_and_a_tunnel_and_go_one_by_one(run, node):
    run(ADD)
    assert run(OTHER)[0] == 0
    assert len(node.intent.tunnels) == 1
    assert len(node.intent.flows) == 2
    run(f"{PAIR} -a DEL")
    assert run(f"{PAIR.replace('10.250.1.100', '10.250.1.110')} -a GET")[0] == 0
    run(f"{PAIR.replace('10.250.1.100', '10.250.1.110')} -a DEL")
    assert node.intent == Intent()


@pytest.mark.parametrize("first", [0, 1])
def test_entries_by_way_of_two_nodes_to_one_address_leave_nothing_in_either_order(run, node, first):
    run(ADD)
    run(OTHER.replace("10.30.30.2", "10.30.30.3"))
    assert len(node.intent.tunnels) == 2
    sources = ["10.250.1.100", "10.250.1.110"]
    run(f"-x {sources[first]} -y 10.250.1.101 -a DEL")
    assert len(node.intent.tunnels) == len(node.intent.flows) == 1
    run(f"-x {sources[1 - first]} -y 10.250.1.101 -a DEL")
    assert node.intent == Intent()


def test_the_same_remote_with_another_source_port_is_one_tunnel_with_the_newer_header(run, node):
    run(ADD)
    status, _, err = run(OTHER.replace("51234", "40000"))
    assert status == 0
    assert "for all its entries" in err
    (tunnel,) = node.intent.tunnels.values()
    assert tunnel.to_dict()["source_port"] == 40000


def test_add_again_puts_the_new_entry_in_place_of_the_old(run, node):
    run(ADD)
    assert run(ADD.replace("--vlid 0", "--vlid 7"))[0] == 0
    (tunnel,) = node.intent.tunnels.values()
    assert tunnel.to_dict()["vni"] == 7
    assert "vlan_id = 7" in run(f"{PAIR} -a GET")[1]


def test_a_tunnel_that_the_node_has_already_is_used(run, node):
    wanted = {
        "name": "mine",
        "protocol": "geneve",
        "network": "mptm_user",
        "remote": "10.30.30.2",
        "local": "10.30.30.1",
        "remote_mac": "68:05:ca:d4:5c:28",
        "local_mac": "68:05:ca:d4:7c:ac",
        "egress": "eth0",
        "vni": 0,
        "source_port": 51234,
    }
    node.apply(Intent.of([Network(name="mptm_user", id=3), tunnel_from_dict(wanted)]))
    before = node.intent
    run(ADD)
    assert set(node.intent.tunnels) == {"mine"}
    run(f"{PAIR} -a DEL")
    assert node.intent.networks == before.networks
    assert node.intent.tunnels == before.tunnels


def test_vlan_goes_by_mac_addresses(run, node):
    line = (
        "-Z eth0 -Y veth-a -t VLAN -v 42 -S 68:05:ca:d4:7c:ac -D 68:5:ca:d4:5c:28 -M 9e:5c:c2:da:ee:5b "
        "-x 10.250.1.100 -y 10.250.1.101 -a ADD"
    )
    assert run(line)[0] == 0
    (tunnel,) = node.intent.tunnels.values()
    assert tunnel.to_dict()["vid"] == 42
    _, out, _ = run(f"{PAIR} -a GET")
    assert "tunnel_type = VLAN\n        vlan_id = 42\n" in out
    assert "outer_dest_mac = 68:05:ca:d4:5c:28" in out


def test_ipv6_outside_and_inside(run):
    line = "-Z eth0 -Y veth-a -t GENEVE -v 9 -s fd30::1 -d fd30::2 -D 02:00:00:00:00:77 -x fd01::1 -y fd01::2 -a ADD"
    assert run(line)[0] == 0
    _, out, _ = run("-x fd01::1 -y fd01::2 -a GET")
    assert "dest_ip = fd30::2\n        source_ip = fd30::1\n" in out
    assert "source_port = flow" in out
    assert "vlan_id = 9" in out


def test_redirect_0_hands_the_packet_to_the_kernel_and_notes_are_kept(run, node):
    line = ADD.replace("--redirect 1", "--redirect 0")
    run(line.replace("--enable_logs 0", "--enable_logs 1").replace("--flags 0", "--flags 6"))
    (tunnel,) = node.intent.tunnels.values()
    assert tunnel.to_dict()["to_stack"] is True
    assert node.intent.routes["mptm_user 10.250.1.101/32"].mac is None, (
        "the workload must address the port itself"
    )
    _, out, _ = run(f"{PAIR} -a GET")
    assert "debug = 1\n        redirect = 0\n        flags = 6\n" in out


def test_an_entry_for_the_kernel_leaves_no_answer_that_the_kernel_would_discard(run, node):
    run(ADD)
    route = "mptm_user 10.250.1.101/32"
    assert node.intent.routes[route].mac == "9e:5c:c2:da:ee:5b"
    other_node = OTHER.replace("10.30.30.2", "10.30.30.3").replace("--redirect 1", "--redirect 0")
    assert run(other_node)[0] == 0
    assert node.intent.routes[route].mac is None
    run(f"{PAIR} -a DEL")
    assert run(OTHER.replace("10.250.1.110", "10.250.1.120"))[0] == 0
    assert run("-x 10.250.1.110 -y 10.250.1.101 -a DEL")[0] == 0
    assert node.intent.routes[route].mac == "9e:5c:c2:da:ee:5b"


def test_a_tunnel_that_turns_to_the_kernel_takes_its_routes_along(run, node):
    run(ADD)
    assert run(OTHER.replace("--redirect 1", "--redirect 0").replace("10.250.1.101", "10.250.1.102"))[0] == 0
    assert {route.mac for route in node.intent.routes.values() if route.via} == {None}


def test_get_knows_an_entry_by_its_addresses_alone(run, node):
    """A key is network, source, destination: this network's number is the source that is asked for."""
    source, number = "10.250.1.100", int.from_bytes(bytes([10, 250, 1, 100]), sys.byteorder)
    run(ADD)
    (tunnel,) = node.intent.tunnels.values()
    node.add(Network(name="alike", id=number))
    node.add(tunnel_from_dict(tunnel.to_dict() | {"name": "alike", "network": "alike", "vni": 5}))
    node.add(Flow(network="alike", source="10.250.1.111", destination="10.9.9.9", via="alike"))
    status, out, err = run(f"-x {source} -y 10.250.1.111 -a GET")
    assert (status, "Tunnel info" in out) == (1, False)
    assert f"there is no entry for {source} to 10.250.1.111" in err


@pytest.mark.parametrize("steered", [{"drop": True}, {"pass_": True}, {"port": "veth-a"}])
def test_get_shows_no_flow_that_leads_into_no_tunnel(run, node, steered):
    run(ADD)
    node.add(Flow(network="mptm_user", source="10.250.1.100", destination="10.250.1.102", **steered))
    status, out, err = run("-x 10.250.1.100 -y 10.250.1.102 -a GET")
    assert (status, "Tunnel info" in out) == (1, False)
    assert "there is no entry for 10.250.1.100 to 10.250.1.102" in err
    assert "leads into no tunnel" in err


def test_get_names_no_access_port_where_the_source_is_behind_none(run, node):
    run(ADD)
    route = node.intent.routes["mptm_user 10.250.1.100/32"]
    (tunnel,) = node.intent.tunnels.values()
    node.add(tunnel_from_dict(tunnel.to_dict() | {"name": "second", "vni": 5}))
    node.replace(Route(network=route.network, prefix=route.prefix, via="second"))
    assert "veth_iface = 0\n" in run(f"{PAIR} -a GET")[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "-a ADD|GET|DEL is missing"),
        (f"{PAIR} -a FOO", "must be ADD, GET or DEL"),
        ("--foo 1", "option --foo not recognized"),
        ("-a", "option -a requires argument"),
        ("GET", "'GET' belongs to no flag"),
        ("-a GET -x 10.0.0.1", "GET needs --inner_dst_ip"),
        (f"{PAIR} -a ADD", "ADD needs --tunnel, --vlid, --eth0_iface, --veth_iface, --dest_ip"),
        (ADD.replace("GENEVE", "STT"), "--tunnel: 'STT' is none of GENEVE, VLAN and VXLAN"),
        (ADD.replace("GENEVE", "GRE"), "--tunnel: 'GRE' is none of GENEVE, VLAN and VXLAN"),
        (ADD.replace("--vlid 0", "--vlid x"), "--vlid: 'x' is no number"),
        (ADD.replace("--vlid 0", "--vlid 99999999"), "--vlid: '99999999' is no number"),
        (ADD.replace("--vlid 0", f"--vlid {'9' * 5000}"), "is no number from 0 to 16777215"),
        (ADD.replace("GENEVE --vlid 0", "VLAN --vlid 0"), "0 is not a whole number from 1 to 4094"),
        (ADD.replace("51234", "70000"), "--source_port"),
        (ADD.replace("10.30.30.2", "10.30.30"), "--dest_ip: '10.30.30' is no IP address"),
        (ADD.replace("68:05:ca:d4:5c:28", "68:05:ca"), "--dest_mac"),
        (ADD.replace("--veth_iface 10", "--veth_iface 2"), "both eth0"),
        ("--instance a/b -a GET " + PAIR, "no name for an instance"),
    ],
)
def test_wrong_flags_are_status_2(run, node, line, message):
    status, _, err = run(line)
    assert status == 2
    assert err.startswith("mptm_user: error: ")
    assert message in err
    assert node.intent == Intent()


@pytest.mark.parametrize("action", ["GET", "DEL"])
def test_an_entry_that_is_not_there_is_status_1(run, action):
    run(ADD)
    status, _, err = run(f"-x 10.250.1.1 -y 10.250.1.2 -a {action}")
    assert status == 1
    assert "there is no entry for 10.250.1.1 to 10.250.1.2" in err


@pytest.mark.parametrize("wrong", [("GENEVE", "STT"), ("GENEVE --vlid 0", "VLAN --vlid 5000")])
def test_a_wrong_tunnel_is_told_before_anything_is_looked_up(run, kernel, wrong):
    kernel.root = False
    status, out, err = run(ADD.replace(*wrong).replace("--veth_iface 10", "--veth_iface 99"))
    assert status == 2
    assert "Arguments verified" not in out
    assert "interface" not in err


def test_an_instance_that_is_not_there_is_remarked_on_where_others_are(run):
    run(ADD)
    assert run(f"--instance defualt {PAIR} -a GET")[2].splitlines()[0] == (
        "mptm_user: there is no instance defualt yet; there is default"
    )


def test_the_namespace_of_the_environment_belongs_to_the_instance_beside_it(run, node, monkeypatch):
    monkeypatch.setenv("MPTM_INSTANCE", "one")
    monkeypatch.setenv("MPTM_NETNS", "place")
    run(ADD)
    assert Node("one").netns == "place"
    assert run(f"--instance two {ADD}")[0] == 0
    assert Node("two").netns is None


def test_an_interface_that_is_not_there_is_status_1(run):
    status, _, err = run(ADD.replace("--veth_iface 10", "--veth_iface 99"))
    assert status == 1
    assert "--veth_iface: there is no interface 99" in err


def test_without_root_it_says_so(run, kernel):
    kernel.root = False
    status, _, err = run(ADD)
    assert status == 1
    assert "this needs root" in err


def test_help_is_printed(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "Example:" in out
    for name in mptm_user.OPTIONS:
        assert f"--{name}" in out or name == "help"
