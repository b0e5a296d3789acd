# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from fake import FakeDataPlane, FakeKernel

from mptm import cli, config
from mptm.cli.common import ProgressBars
from mptm.cli.root import COMMANDS, mptm
from mptm.intent import Intent
from mptm.node import Node
from mptm.protocols import PROTOCOLS

NODE = """\
networks:
- {name: blue, id: 1}
ports:
- {name: eth0, role: uplink}
- {name: veth-a, role: access, network: blue}
tunnels:
- {name: to-node2, protocol: geneve, network: blue, remote: 10.30.30.2, vni: 100}
routes:
- {network: blue, prefix: 10.250.1.101/32, via: to-node2}
- {network: blue, prefix: 10.250.1.100/32, port: veth-a}
flows:
- {network: blue, source: 10.250.1.100, destination: 10.250.1.101, via: to-node2}
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeKernel:
    made = FakeKernel()
    monkeypatch.setattr("mptm.node.SystemKernel", lambda: made)
    monkeypatch.setenv("MPTM_STATE_DIR", str(tmp_path / "state"))
    for name in ("MPTM_INSTANCE", "MPTM_NETNS", "MPTM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def run(kernel: FakeKernel, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        status = cli.run(arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def node_file(tmp_path: Path) -> str:
    path = tmp_path / "node.yaml"
    path.write_text(NODE)
    return str(path)


@pytest.fixture
def up(run: Run, node_file: str) -> Run:
    assert run("apply", "-f", node_file)[0] == 0
    return run


def paths(command: click.Command, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [prefix]
    context = click.Context(command)
    children = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [prefix] + [path for name, child in children if child for path in paths(child, (*prefix, name))]


EVERY_COMMAND = paths(mptm)


def test_the_commands_of_the_page_build_a_node(run):
    for line in (
        "network add blue --id 1",
        "port add veth-a --role access --network blue",
        "port add eth0 --role uplink",
        "tunnel add to-node2 --protocol geneve --network blue --remote 10.30.30.2 --vni 100",
        "route add 10.250.1.101/32 --network blue --via to-node2",
        "route add 10.250.1.100/32 --network blue --port veth-a",
        "flow add 10.250.1.100 10.250.1.101 --network blue --via to-node2",
    ):
        status, out, _ = run(*line.split())
        assert (status, out) == (0, ""), line
    _, out, _ = run("export")
    assert config.load(out) == config.load(NODE)


def test_a_networks_gateway_is_given_changed_shown_and_taken_away(run):
    def networks() -> list[dict[str, object]]:
        found = json.loads(run("export", "--json")[1])["networks"]
        assert isinstance(found, list)
        return found

    assert run("network", "add", "blue", "--gateway", "10.0.0.1", "--gateway", "FD00::1")[0] == 0
    assert networks() == [{"name": "blue", "id": 1, "gateway": ["10.0.0.1", "fd00::1"]}]
    assert "10.0.0.1, fd00::1" in run("network", "list")[1]
    assert "gateway  10.0.0.1, fd00::1\n" in run("network", "show", "blue")[1]
    assert run("network", "set", "blue", "--gateway", "10.0.0.2")[0] == 0
    assert networks() == [{"name": "blue", "id": 1, "gateway": ["10.0.0.2"]}]
    assert run("network", "set", "blue", "--no-gateway")[0] == 0
    assert networks() == [{"name": "blue", "id": 1}]


def test_a_tunnel_goes_from_one_protocol_to_another_in_three_steps(up):
    def tunnel() -> dict[str, object]:
        (found,) = json.loads(up("tunnel", "list", "--json")[1])
        return {key: found.get(key) for key in ("protocol", "vni", "accept")}

    for line, expected in (
        (
            "--accept vxlan,vni=200",
            {"protocol": "geneve", "vni": 100, "accept": [{"protocol": "vxlan", "vni": 200}]},
        ),
        (
            "--protocol vxlan --vni 200",
            {"protocol": "vxlan", "vni": 200, "accept": [{"protocol": "geneve", "vni": 100}]},
        ),
        ("--no-accept geneve", {"protocol": "vxlan", "vni": 200, "accept": None}),
    ):
        assert up(*f"tunnel set to-node2 {line}".split()) == (0, "", "")
        assert tunnel() == expected


def test_what_a_tunnel_accepts_is_shown_and_survives_the_file(up, tmp_path):
    line = "tunnel set to-node2 --accept vxlan,vni=0xc8 --accept vlan,vid=7,tpid=0x88a8"
    assert up(*line.split()) == (0, "", "")
    assert "accept            vxlan,vni=200, vlan,vid=7,tpid=0x88a8\n" in up("tunnel", "show", "to-node2")[1]
    assert re.search(r"^to-node2 +geneve +vxlan, vlan +blue", up("tunnel", "list")[1], re.MULTILINE)
    _, exported, _ = up("export")
    assert "tpid: 0x88a8" in exported
    path = tmp_path / "again.yaml"
    path.write_text(exported)
    assert up("apply", "-f", str(path))[2] == "mptm: nothing to change\n"
    path.write_text(exported.replace("vni: 200", "vni: 201"))
    _, planned, _ = up("plan", "-f", str(path))
    assert planned == (
        "~ tunnel to-node2: accept vxlan,vni=200; vlan,vid=7,tpid=0x88a8 "
        "-> vxlan,vni=201; vlan,vid=7,tpid=0x88a8\n"
    )


def test_tunnel_set_changes_what_is_given_and_nothing_else(up):
    line = "tunnel set to-node2 --ttl 9 --local 10.30.30.1 --split-horizon 4 --note a=b --vni 0x65"
    assert up(*line.split())[0] == 0
    (found,) = json.loads(up("tunnel", "list", "--json")[1])
    assert found == {
        "name": "to-node2", "protocol": "geneve", "network": "blue", "remote": "10.30.30.2", "vni": 101, "ttl": 9,
        "local": "10.30.30.1", "split_horizon": 4, "annotations": {"a": "b"},
    }  # fmt: skip
    line = "tunnel set to-node2 --default local --default split-horizon --default ttl"
    assert up(*line.split()) == (0, "", "")
    (found,) = json.loads(up("tunnel", "list", "--json")[1])
    assert not found.keys() & {"local", "split_horizon", "ttl"}


def test_a_group_is_made_changed_shown_and_taken_away(up):
    for line in (
        "tunnel add other --protocol geneve --network blue --remote 10.30.30.3 --vni 100 --split-horizon 1",
        "group add exits --network blue --member to-node2:3 --member other",
        "route add 10.9.0.0/16 --network blue --group exits --relay",
    ):
        assert up(*line.split()) == (0, "", ""), line
    _, out, _ = up("group", "show", "exits")
    assert re.search(r"^to-node2 +3  up +7\d\.\d %$", out, re.MULTILINE)
    assert "group exits relay" in up("route", "list")[1]
    assert "to-node2:3, other" in up("group", "list")[1]
    assert "  group exits network blue members to-node2:3,other\n" in up("network", "show", "blue")[1]
    assert up("group", "set", "exits", "--member", "other:5", "--no-member", "to-node2")[0] == 0
    assert json.loads(up("group", "list", "--json")[1]) == [
        {"name": "exits", "network": "blue", "members": [{"tunnel": "other", "weight": 5}]}
    ]
    status, _, err = up("group", "set", "exits", "--no-member", "other")
    assert (status, err.splitlines()[1]) == (
        2,
        "mptm: error: group exits: a group needs one member at least",
    )
    status, _, err = up("group", "set", "exits", "--no-member", "to-node2")
    assert (status, err) == (
        1,
        "mptm: error: to-node2 is no member of group exits\n  members: other:5\n",
    )
    assert up("group", "del", "exits")[0] == 1
    assert up("route", "del", "10.9.0.0/16")[0] == 0
    assert up("group", "del", "exits")[0] == 0


@pytest.mark.parametrize(
    ("kind", "what", "steered"),
    [
        ("route", "10.250.1.101/32", {"prefix": "10.250.1.101/32"}),
        ("flow", "10.250.1.100 10.250.1.101", {"source": "10.250.1.100", "destination": "10.250.1.101"}),
    ],
)
def test_a_route_or_flow_gets_another_next_hop_in_one_write(up, kernel, kind, what, steered):
    """All of it: the MAC address that it had before is gone."""
    for line in (
        "tunnel add other --protocol geneve --network blue --remote 10.30.30.3 --vni 1",
        f"{kind} set {what} --via to-node2 --mac 02:00:00:00:00:05",
    ):
        assert up(*line.split()) == (0, "", "")
    plane = kernel.planes["default"]
    plane.log.clear()
    assert up(*f"{kind} set {what} --network blue --via other --relay".split()) == (0, "", "")
    table = "hosts_v4" if kind == "route" else "flows_v4"
    assert [step for step in plane.log if "_v4" in step] == [f"update {table}"]
    shown = json.loads(up(kind, "show", *what.split(), "--json")[1])
    assert shown == {"network": "blue", **steered, "via": "other", "relay": True}
    assert up(kind, "set", *what.split(), "--drop") == (0, "", "")
    assert re.search(r"^next hop +drop$", up(kind, "show", *what.split())[1], re.MULTILINE)


def test_and_their_reverse_takes_it_down_again(up):
    for line in (
        "flow del 10.250.1.100 10.250.1.101 --network blue",
        "route del 10.250.1.101/32 --network blue",
        "route del 10.250.1.100/32",
        "tunnel del to-node2",
        "port del eth0",
        "port del veth-a",
        "network del blue",
    ):
        assert up(*line.split())[0] == 0, line
    assert config.load(up("export")[1]) == Intent()


@pytest.mark.parametrize("path", EVERY_COMMAND, ids=" ".join)
def test_every_command_has_a_help_page_with_an_example(run, path):
    status, out, _ = run(*path, "--help")
    assert status == 0
    assert "Example" in out
    assert "mptm " + " ".join(path[:1]) in out


@pytest.mark.parametrize(
    "line",
    [
        "network list",
        "network show blue",
        "port list",
        "port show eth0",
        "tunnel list",
        "tunnel show to-node2",
        "route list",
        "route show 10.250.1.101/32",
        "flow list",
        "flow show 10.250.1.100 10.250.1.101",
        "counters",
        "drops",
        "status",
        "export",
    ],
)
def test_json_is_exactly_one_document_and_the_table_is_for_people(up, line):
    status, out, err = up(*line.split(), "--json")
    assert (status, err) == (0, "")
    json.loads(out)
    status, out, _ = up(*line.split())
    assert status == 0
    assert not out.startswith(("{", "["))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("rote list", "Did you mean 'route'?"),
        ("network add", "Missing argument 'NAME'"),
        ("network add bl/ue", "a name of 1 to 64"),
        ("network add blue --id 0", "--id"),
        ("network add blue --gateway 10.0.0.1 --gateway 10.0.0.2", "--gateway: network blue: "),
        ("network set blue", "give either --gateway or --no-gateway"),
        ("port add eth0", "--role"),
        ("port add eth0 --role access", "an access port needs network"),
        ("port add eth0 --role uplink --mac 1:2", "--mac: "),
        ("tunnel add t --protocol foo --network blue", "there are erspan, etherip, fou, geneve, gre,"),
        ("tunnel add t --protocol geneve --network blue --remote 10.0.0.1", "vni"),
        ("tunnel add t --protocol geneve --network blue --remote 10.0.0.1 --vni 16777216", "--vni: "),
        (
            "tunnel add t --protocol vlan --network blue --remote 10.0.0.1 --vid 2 --vni 7",
            "vlan has no option vni; it has pcp, tpid, vid",
        ),
        ("tunnel add t --protocol geneve --network blue --remote 10.0.0 --vni 1", "--remote: "),
        ("route add 10.0.0.1/24 --network blue --drop", "the prefix is 10.0.0.0/24"),
        ("route add 10.0.0.0/24 --network blue", "exactly one of --via"),
        ("route add 10.0.0.0/24 --network blue --via t --drop", "exactly one of --via"),
        (
            "route add 10.0.0.0/24 --network blue --drop --relay",
            "--relay: route blue 10.0.0.0/24: relay can't",
        ),
        ("tunnel set t", "nothing to change is given"),
        (
            "tunnel add t --protocol gre --network blue --remote 10.0.0.1 --accept vxlan",
            "a vxlan tunnel needs vni",
        ),
        (
            "tunnel add t --protocol gre --network blue --remote 10.0.0.1 --accept vxlan,vni=3,vni=4",
            "'vxlan,vni=3,vni=4' says vni twice",
        ),
        ("group add g --network blue", "a group needs one member at least"),
        ("group add g --network blue --member a:x", "'a:x' is not a tunnel with a weight from 1 to 256"),
        ("group set g --member a:300", "300 is not a whole number from 1 to 256"),
        ("group set g", "give --member or --no-member"),
        ("route show nowhere", "'nowhere'"),
        ("route set 10.9.0.0/16 --via a --drop", "exactly one of --via"),
        ("flow set 10.0.0.1 10.0.0.2", "exactly one of --via"),
        ("flow add 10.0.0.1 fd00::1 --network blue --drop", "the source is IPv4"),
        ("counters --watch --json", "exclude each other"),
        ("--instance a/b status", "no name for an instance"),
        ("completion tcsh", "tcsh"),
    ],
)
def test_wrong_usage_is_status_2_and_says_what_is_wrong(run, line, message):
    status, out, err = run(*line.split())
    assert (status, out) == (2, "")
    assert message in err
    assert "mptm: error: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("network add blue --id 1", "network blue already exists"),
        ("network add red --id 1", "id 1 is taken by network blue"),
        ("network del blue", "in use by"),
        ("tunnel show to-node3", "there is no tunnel to-node3"),
        ("tunnel set to-node3 --ttl 7", "there is no tunnel to-node3"),
        ("tunnel set to-node2 --no-accept vxlan", "tunnel to-node2 doesn't accept vxlan"),
        ("route show 1.2.3.4/32", "there is no route 1.2.3.4/32"),
        ("route set 1.2.3.4/32 --drop", "there is no route 1.2.3.4/32"),
        ("flow set 1.2.3.4 1.2.3.5 --network blue --drop", "there is no flow blue 1.2.3.4 1.2.3.5"),
        ("route set 10.250.1.101/32 --via to-nowhere", "there is no tunnel to-nowhere"),
        ("route add 10.9.0.0/16 --network blue --via to-nowhere", "there is no tunnel to-nowhere"),
        ("route add 10.9.0.0/16 --network nowhere --drop", "there is no network nowhere"),
        ("apply -f /nonexistent.yaml", "/nonexistent.yaml: No such file"),
        ("--netns elsewhere status", "lives in"),
    ],
)
def test_what_fails_is_status_1_with_the_reason(up, line, message):
    status, out, err = up(*line.split())
    assert (status, out) == (1, "")
    assert err.startswith("mptm: error: ")
    assert message in err


def test_an_error_has_its_hint_on_the_next_line(up):
    _, _, err = up("tunnel", "show", "to-node3")
    assert err == "mptm: error: there is no tunnel to-node3\n  did you mean to-node2?\n"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (NODE.replace("vni: 100", "vnii: 100"), "line 7: tunnels[0].vnii: "),
        (NODE.replace("vni: 100", "vni: lots"), "line 7: tunnels[0].vni: "),
        (NODE.replace("101/32, via: to-node2", "101/32, via: x"), "line 9: routes[0].via: "),
        ("networks: [", "line "),
    ],
)
def test_a_wrong_file_changes_nothing_and_the_error_names_the_place(up, tmp_path, text, where):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    before = up("export")
    for command in ("apply", "plan"):
        status, out, err = up(command, "-f", str(path))
        assert (status, out) == (1, "")
        assert where in err
    assert up("export") == before


def test_a_file_comes_from_standard_input(run, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(NODE))
    assert run("apply", "-f", "-")[0] == 0
    assert config.load(run("export")[1]) == config.load(NODE)


def test_plan_prints_a_diff_and_apply_prints_it_again(up, node_file, tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text(
        NODE.replace("vni: 100", "vni: 200")
        + "- {network: blue, source: 1.1.1.1, destination: 2.2.2.2, drop: true}\n"
    )
    expected = ["~ tunnel to-node2: vni 100 -> 200", "+ flow blue 1.1.1.1 -> 2.2.2.2 drop"]
    assert up("plan", "-f", str(path))[1].splitlines() == expected
    assert up("apply", "-f", str(path))[1].splitlines() == expected
    assert up("plan", "-f", node_file)[1].splitlines()[0] == "- flow blue 1.1.1.1 -> 2.2.2.2 drop"
    status, out, err = up("apply", "-f", str(path))
    assert (status, out, err) == (0, "", "mptm: nothing to change\n")
    assert up("plan", "-f", node_file)[0] == 0


def test_a_new_node_shows_every_object_as_added(run, node_file):
    _, out, _ = run("plan", "-f", node_file)
    assert "+ route blue 10.250.1.101/32 via to-node2" in out.splitlines()
    assert "+ port veth-a role access network blue" in out.splitlines()


def test_adding_a_veth_says_what_the_workloads_end_needs(up):
    _, _, err = up("port", "add", "veth-b", "--role", "access", "--network", "blue", "--hook", "xdp")
    assert "set at its other end, end-b in /run/netns/c:\n  tx off tx-udp-segmentation off" in err
    assert "up to 1450 bytes: nsenter --net=/run/netns/c ip link set end-b mtu 1450" in err
    _, _, err = up("port", "add", "dummy0", "--role", "access", "--network", "blue")
    assert "ethtool" not in err


def test_tunnel_show_has_the_header_as_text_and_16_bytes_a_line(up):
    _, out, _ = up("tunnel", "show", "to-node2")
    assert "geneve(vni=0x64" in out
    assert "  0000  02 00 00 00 09 02 02 00  00 00 00 02 08 00 45 00" in out.splitlines()
    assert out.count("\n  00") == 4
    for line in (
        "state         up",
        "next hop MAC  02:00:00:00:09:02",
        "overhead      50",
        "inner MTU     1450",
    ):
        assert line in out.splitlines()


def test_a_hexadecimal_number_and_words_are_taken_for_protocol_options(up):
    options = "--vni 0x10 --ttl inherit --no-df --source-port 99"
    line = f"tunnel add t --protocol vxlan --network blue --remote 10.30.30.4 {options}"
    assert up(*line.split())[0] == 0
    shown = json.loads(up("tunnel", "show", "t", "--json")[1])
    assert (shown["vni"], shown["ttl"], shown["df"], shown["source_port"]) == (16, "inherit", False, 99)


def test_every_option_of_every_protocol_is_an_option_of_tunnel_add(run):
    from mptm.fields import fields_of

    _, out, _ = run("tunnel", "add", "--help")
    for protocol in PROTOCOLS.values():
        for field in fields_of(protocol.options):
            assert f"--{field.name.replace('_', '-')}" in out


def test_a_port_moves_to_another_hook_and_says_which_and_why(up, kernel):
    _, out, _ = up("port", "show", "veth-a")
    assert re.search(r"^hook +auto$", out, re.MULTILINE)
    assert re.search(r"^runs at +tc: a veth brings whole GSO packets", out, re.MULTILINE)
    status, _, err = up("port", "set", "veth-a", "--hook", "tc")
    assert status == 0
    assert "veth-a is attached at TC (tcx)" in err
    assert "tx off" not in err, "that is for XDP"
    assert kernel.planes["default"].attached["veth-a"].hook == "tc"
    _, out, _ = up("port", "show", "veth-a")
    assert re.search(r"^hook +tc$", out, re.MULTILINE)
    assert re.search(r"^runs at +tc: as the port says$", out, re.MULTILINE)
    _, _, err = up("port", "set", "veth-a", "--hook", "xdp")
    assert "veth-a is attached at XDP (native)" in err
    assert "tx off" in err
    assert kernel.planes["default"].attached["veth-a"].hook == "xdp"
    assert "eth0 is at XDP now: `mptm port show eth0` says why" in err, "it serves no port at TC any more"
    status, _, err = up("port", "set", "veth-a")
    assert (status, "nothing to change" in err) == (2, True)


def test_that_the_kernel_runs_xdp_instead_of_the_driver_is_said(up, kernel, monkeypatch):
    monkeypatch.setattr(FakeDataPlane, "attach", lambda plane, attachment: "generic")
    _, _, err = up("port", "add", "veth-b", "--role", "access", "--network", "blue", "--hook", "xdp")
    assert "veth-b is attached at XDP (generic)" in err
    assert "the driver of veth-b, as it is set now (MTU, queues), doesn't run XDP" in err


def test_doctor_names_the_devices_that_have_udp_ports(up, kernel, monkeypatch):
    from mptm.cli import doctor

    monkeypatch.setattr(doctor, "examine", lambda: iter(()))
    monkeypatch.setattr(doctor, "_is_privileged", lambda: True)
    assert up("port", "set", "eth0", "--hook", "tc")[0] == 0
    found = json.loads(up("doctor", "--json")[1])["checks"]
    (told,) = (check for check in found if check["name"] == "outer GRO")
    assert "UDP port 6081 over IPv4" in told["detail"]
    assert "--no-outer-gro" in told["hint"]
    assert up("port", "set", "eth0", "--no-outer-gro")[0] == 0
    assert "outer GRO" not in up("doctor", "--json")[1]


def test_what_an_option_defaults_to_is_said_for_each_protocol(run):
    _, out, _ = run("tunnel", "add", "--help")
    words = " ".join(out.split())
    (port,) = re.findall(r"--port N .*? \[(.*?)\]", words)
    assert port.startswith("required (fou); default: 6081 (geneve), 4754 (gre-udp)")
    (group,) = re.findall(r"--group-policy-id N .*? \[(.*?)\]", words)
    assert group == "default: 0"
    (vsid,) = re.findall(r"--vsid N .*? \[(.*?)\]", words)
    assert vsid == "required"
    assert not re.search(r"default: (None|\(\)|\])", words)


def test_lists_shows_export_and_plan_need_no_root(up, kernel, node_file):
    kernel.root = False
    for line in (
        "network list",
        "port show eth0",
        "tunnel show to-node2",
        "route list",
        "export",
        f"plan -f {node_file}",
    ):
        assert up(*line.split())[0] == 0, line


@pytest.mark.parametrize(
    "line", ["network add red --id 2", "status", "counters", "drops", "reset", "restore", "purge --yes"]
)
def test_what_needs_root_says_so_in_one_sentence(up, kernel, line):
    kernel.root = False
    status, _, err = up(*line.split())
    assert status == 1
    assert (
        err == "mptm: error: this needs root: it reads or changes the kernel's tables\n  run it with sudo\n"
    )


def test_an_address_that_several_networks_have_must_be_told_apart(up):
    assert up("network", "add", "red")[0] == 0
    assert up("route", "add", "10.250.1.101/32", "--network", "red", "--drop")[0] == 0
    status, _, err = up("route", "del", "10.250.1.101/32")
    assert status == 2
    assert "networks blue, red have route 10.250.1.101/32" in err
    assert up("route", "del", "10.250.1.101/32", "--network", "red")[0] == 0


def test_networks_are_numbered_when_no_number_is_given(up):
    assert up("network", "add", "red")[0] == 0
    assert json.loads(up("network", "show", "red", "--json")[1])["id"] == 2


def test_drops_print_caption_scope_and_whether_the_kernel_got_them(up, kernel):
    table = kernel.planes["default"].maps["drops"]
    key = (64).to_bytes(2, "little") + (1).to_bytes(2, "little") + (2).to_bytes(4, "little")
    table.entries[key] = (3).to_bytes(8, "little") + (180).to_bytes(8, "little")
    _, out, _ = up("drops")
    assert out.splitlines()[1].split()[:4] == ["3", "180", "port", "eth0"]
    assert "left to the kernel" in out
    assert json.loads(up("drops", "--json")[1])[0]["reason"] == "REFUSED_SENDER_OR_ID"
    assert up("reset")[0] == 0
    assert json.loads(up("drops", "--json")[1]) == []


def test_status_is_1_when_something_is_down_and_restore_repairs_it(up, kernel):
    assert up("status")[0] == 0
    kernel.planes.clear()
    status, out, _ = up("status")
    assert status == 1
    assert "not loaded" in out
    assert up("restore")[0] == 0
    assert up("status")[0] == 0


def test_status_is_1_with_a_warning(up):
    assert up("port", "del", "eth0")[0] == 0
    status, out, err = up("status")
    assert "to-node2  up" in out
    assert "mptm: warning: tunnel to-node2 sends through eth0, which is no uplink" in err
    assert status == 1


def test_restore_is_1_while_a_remote_is_silent_and_names_the_tunnel(up, kernel):
    line = "tunnel add to-node3 --protocol vxlan --network blue --remote 10.30.30.3 --vni 7"
    assert up(*line.split())[0] == 0
    kernel.planes.clear()
    kernel.silent.add("10.30.30.3")
    status, _, err = up("restore")
    assert status == 1
    assert "tunnel to-node3" in err
    assert "to-node2" not in err


def test_purge_forgets_everything(up, tmp_path):
    assert up("purge", "--yes")[0] == 0
    assert list((tmp_path / "state").iterdir()) == []
    assert config.load(up("export")[1]) == Intent()


def test_a_new_instance_is_remarked_on_where_others_are_as_its_name_may_be_mistyped(run):
    assert run("--instance", "one", "network", "add", "blue") == (0, "", "")
    assert run("--instance", "one", "network", "add", "green") == (0, "", "")
    remark = "mptm: there is no instance eno yet; there is one\n"
    assert run("--instance", "eno", "export") == (0, "networks: []\n", remark)
    assert run("--instance", "eno", "network", "add", "blue") == (0, "", remark)
    assert run("--instance", "eno", "network", "add", "red") == (0, "", "")


def test_the_namespace_of_the_environment_belongs_to_the_instance_beside_it(run, monkeypatch):
    monkeypatch.setenv("MPTM_NETNS", "place")
    run("--instance", "alone", "network", "add", "blue")
    assert Node("alone").netns == "place"
    monkeypatch.setenv("MPTM_INSTANCE", "one")
    run("network", "add", "blue")
    assert Node("one").netns == "place"
    run("--instance", "two", "network", "add", "blue")
    assert Node("two").netns is None
    run("--instance", "three", "--netns", "other", "network", "add", "blue")
    assert Node("three").netns == "other"


def test_instances_are_apart(up):
    assert up("--instance", "two", "network", "add", "red", "--id", "9")[0] == 0
    assert [each["name"] for each in json.loads(up("network", "list", "--json")[1])] == ["blue"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed_for(run, shell):
    status, out, _ = run("completion", shell)
    assert status == 0
    assert "_MPTM_COMPLETE" in out


def test_names_of_objects_are_completed(up, monkeypatch, capsys):
    monkeypatch.setenv("_MPTM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "mptm tunnel show to")
    monkeypatch.setenv("COMP_CWORD", "3")
    with pytest.raises(SystemExit):
        mptm.main(prog_name="mptm")
    assert capsys.readouterr().out.split(",")[-1].strip() == "to-node2"


def test_a_fault_of_mptm_itself_is_no_traceback(run, kernel, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(kernel, "gather_facts", broken)
    status, _, err = run("network", "add", "blue")
    assert status == 1
    assert err.startswith("mptm: error: internal error: ZeroDivisionError: oops\n")


@pytest.mark.parametrize("command", ["mptm", "mptm_user"])
def test_an_output_that_is_full_is_told_in_one_line(command):
    module = "mptm.cli" if command == "mptm" else "mptm.cli.mptm_user"
    script = f"from {module} import main; main(['--help'])"
    with open("/dev/full", "wb") as full:  # a device of Linux: full(4)
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    problem = "error: standard output can't be written: No space left on device"
    assert (done.returncode, done.stderr) == (1, f"{command}: {problem}\n")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("-m mptm version >&-", 1),
        ("-m mptm network list >&-", 1),
        ("-m mptm.cli.mptm_user --help >&-", 1),
        ("-m mptm export <&-", 0),
        ("-m mptm version 2>&-", 0),
        ("-m mptm nonsense 2>&-", 2),
    ],
)
def test_a_closed_standard_stream_is_no_fault_of_mptm(command, status, tmp_path):
    done = subprocess.run(
        f"{sys.executable} {command}",
        shell=True,
        env={**os.environ, "MPTM_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == status
    name = "mptm_user" if "mptm_user" in command else "mptm"
    complaint = f"{name}: error: standard output can't be written: it is closed\n" if ">&-" in command else ""
    assert done.stderr == (complaint if status == 1 else "")


def test_nothing_that_is_opened_gets_the_number_of_a_closed_stream():
    program = (
        "import os, sys; from mptm.cli import occupy_closed_streams; occupy_closed_streams(); "
        "sys.exit(os.open(os.devnull, os.O_RDONLY))"
    )
    done = subprocess.run(
        f"{sys.executable} -c '{program}' <&- >&- 2>&-", shell=True, timeout=30, check=False
    )
    assert done.returncode == 3


def test_the_version_is_printed(run):
    assert run("version")[1] == run("--version")[1] == "mptm 0.1.0\n"


def test_doctor_prints_a_line_per_check_and_one_document(run, monkeypatch):
    from mptm.cli import doctor

    checks = [
        doctor.Check("kernel", "ok", "Linux 6.1"),
        doctor.Check("libbpf", "missing", "none", "apt-get install libbpf1"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    status, out, _ = run("doctor")
    assert status == 1
    assert "apt-get install libbpf1" in out
    status, out, _ = run("doctor", "--json")
    assert (status, json.loads(out)["ok"]) == (1, False)
    checks.pop()
    assert run("doctor")[0] == 0


def test_doctor_really_looks(run):
    checks = {each["name"]: each for each in json.loads(run("doctor", "--json")[1])["checks"]}
    assert {"kernel", "privileges", "bpffs", "libbpf", "data plane", "ip", "tshark", "iperf3"} <= set(checks)


def test_a_heading_may_be_empty_where_an_empty_cell_is_a_dash(capsys):
    from mptm.cli.common import print_table

    print_table(["TUNNEL", "", "PACKETS"], [["t", "", 3]], right="PACKETS")
    assert capsys.readouterr().out == "TUNNEL     PACKETS\nt       -        3\n"


def test_doctor_calls_missing_what_the_data_plane_isnt_loaded_without(tmp_path):
    from mptm.cli import doctor

    assert doctor._jit(tmp_path / "jit").status == "unknown"  # as in a network namespace of its own
    (tmp_path / "netdev_budget").touch()
    for text, status in ((None, "missing"), ("0", "missing"), ("1", "ok")):
        if text is not None:
            (tmp_path / "jit").write_text(text)
        assert doctor._jit(tmp_path / "jit").status == status
    for path, status in ((tmp_path / "vmlinux", "missing"), (tmp_path / "jit", "ok")):
        assert doctor._type_information(path).status == status


@pytest.mark.parametrize(
    ("answer", "status"), [(1, "ok"), (0, "optional"), (-1, "ok")], ids=["loads", "refuses", "can't tell"]
)
def test_doctor_says_where_the_kernel_has_no_use_for_xdpdump(monkeypatch, answer, status):
    from mptm.cli import doctor
    from mptm.kernel import libbpf, probe

    class Library:
        def libbpf_probe_bpf_prog_type(self, number, options):
            assert (number, options) == (26, None)
            return answer

    monkeypatch.setattr(libbpf, "library", Library)
    monkeypatch.setattr(probe, "try_xdp", dict)
    monkeypatch.setattr(doctor, "_libbpf", lambda: doctor.Check("libbpf", "ok", "1.0"))
    monkeypatch.setattr(doctor, "_is_privileged", lambda: True)
    monkeypatch.setattr(doctor.shutil, "which", lambda tool, path=None: f"/usr/bin/{tool}")
    checks = {check.name: check for check in doctor.examine()}
    assert checks["xdpdump"].status == status
    refused = "installed, but this kernel loads no fentry programs, which xdpdump needs"
    assert (checks["xdpdump"].detail == refused) is (status == "optional")


def test_doctor_without_root_does_not_promise_that_xdpdump_works(monkeypatch):
    from mptm.cli import doctor

    monkeypatch.setattr(doctor, "_is_privileged", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda tool, path=None: f"/usr/bin/{tool}")
    checks = {check.name: check for check in doctor.examine()}
    assert checks["xdpdump"].status == "unknown"
    assert "only root can tell" in checks["xdpdump"].detail


def test_help_imports_nothing_heavy():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    script = (
        "import sys; from mptm.cli import run; run(['--help'])\n"
        "heavy = {'pyroute2', 'rich', 'yaml', 'msgspec', 'sqlite3', 'ctypes'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, stdout=subprocess.DEVNULL)


def test_every_line_of_the_command_table_leads_to_a_command():
    context = click.Context(mptm)
    for name in COMMANDS:
        assert mptm.get_command(context, name) is not None


class Terminal(io.StringIO):
    """Standard error, as a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_bars_show_how_far_each_thing_is(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBars() as bars:
        bars("reading few", 1, 10)
        assert (terminal.getvalue(), bars.are_shown) == ("", False)
        for done in (0, 50_000, 100_000):
            bars("reading many", done, 100_000)
        bars("writing many", 20_000, 20_000)
    shown = terminal.getvalue()
    assert "reading many" in shown and " 50%" in shown and "writing many" in shown
    assert shown.count("100%") == 2 and shown.endswith("\x1b[?25h\n")
    assert "few" not in shown


def test_where_nobody_looks_no_bars_are_shown(capsys):
    with ProgressBars() as bars:
        bars("reading many", 50_000, 100_000)
    assert capsys.readouterr().err == ""


def test_a_large_file_tells_how_far_it_is_read_and_checked():
    told: list[tuple[str, int, int]] = []
    routes = "".join(
        f"- {{network: blue, prefix: 10.{n >> 8}.{n & 255}.0/24, drop: true}}\n" for n in range(2500)
    )
    text = f"networks: [{{name: blue, id: 1}}]\nroutes:\n{routes}"
    config.load(text, "node.yaml", lambda *far: told.append(far))
    read = [(done, total) for doing, done, total in told if doing == "reading node.yaml"]
    assert read == sorted(read) and read[-1] == (len(text), len(text)) and len(read) > 2
    assert [done for doing, done, _ in told if doing == "checking routes"] == [0, 1000, 2000]
