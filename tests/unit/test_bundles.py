# SPDX-License-Identifier: GPL-2.0-only
"""Flows by the million: what files and arrays mean, and that a node's tables have them."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake import FakeKernel
from hypothesis import given, settings
from hypothesis import strategies as st

from mptm import config
from mptm.bundlefile import BundleFiles
from mptm.bundles import BundleFlows, make_flows, read_flows, write_flows
from mptm.cli import bundles as bundles_cli
from mptm.cli import run
from mptm.cli.bundles import _Flows
from mptm.cli.doctor import examine_bundles
from mptm.compile import NextHopKind
from mptm.errors import InUse, InvalidIntent, MptmError, NotFound, TableFull
from mptm.intent import Bundle, Flow, Group, Intent, Member, Network, NextHop, Port, tunnel_from_dict
from mptm.node import Node


def tunnel(name: str, remote: str, **more: object):
    common = {"protocol": "geneve", "network": "blue", "vni": 100}
    return tunnel_from_dict({"name": name, "remote": remote, **common, **more})


BASE = Intent.of(
    [
        Network(name="blue", id=1),
        Network(name="red", id=2),
        Port(name="eth0", role="uplink"),
        Port(name="veth-a", role="access", network="blue"),
        tunnel("t", "10.30.30.2"),
        tunnel("u", "10.30.30.3"),
        tunnel("r", "10.30.30.4", network="red", vni=7),
        Group(name="both", network="blue", members=(Member(tunnel="t"), Member(tunnel="u"))),
    ]
)


def listed(flows: BundleFlows) -> dict[tuple[str, str, str], str]:
    """Every flow with its next hop, in words."""
    return {
        (
            flows.networks[record["network"]],
            str(ip_address(record["source"].tobytes())),
            str(ip_address(record["destination"].tobytes())),
        ): str(flows.next_hops[record["next_hop"]])
        for records in flows.records.values()
        for record in records
    }


# ---- files and arrays ------------------------------------------------------------------------------------

CSV = """# made by hand
source, destination, next_hop, network

10.0.0.2,10.0.0.9,t,blue
10.0.0.1,10.0.0.9,group both relay,blue\r
fd00::1,fd00::2,port veth-a mac 02:00:00:00:00:07,blue
10.0.0.1,10.0.0.9,drop,red
"""
MEANT = {
    ("blue", "10.0.0.2", "10.0.0.9"): "blue via t",
    ("blue", "10.0.0.1", "10.0.0.9"): "blue group both relay",
    ("blue", "fd00::1", "fd00::2"): "blue port veth-a mac 02:00:00:00:00:07",
    ("red", "10.0.0.1", "10.0.0.9"): "red drop",
}


def csv(tmp_path: Path, text: str, name: str = "flows.csv") -> str:
    path = tmp_path / name
    path.write_text(text, newline="")
    return str(path)


def test_a_csv_file_says_what_its_columns_are(tmp_path):
    flows = read_flows(csv(tmp_path, CSV))
    assert listed(flows) == MEANT
    assert (len(flows), flows.networks) == (4, ("blue", "red"))


def test_what_is_the_same_for_all_flows_is_given_once(tmp_path):
    path = csv(tmp_path, "destination,source\n10.0.0.9,10.0.0.1\n")
    assert listed(read_flows(path, network="red", next_hop="pass")) == {
        ("red", "10.0.0.1", "10.0.0.9"): "red pass"
    }


HEAD = "source,destination,next_hop\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "10.0.0.1,10.0.0.2,t\n\n10.0.0.1,10.0.0,t\n", "line 4: destination '10.0.0' is not an IPv4"),
        (HEAD + "10.0.0.1,10.0.0.2,t\nhost,10.0.0.2,t\n", "line 3: source 'host' is not an IPv4 or IPv6 address"),
        (HEAD + "10.0.0.1,fd00::2,t\n", "line 2: one address is of IPv4, the other of IPv6"),
        (HEAD + "::ffff:1.2.3.4,fd00::2,t\n", "line 2: source ::ffff:1.2.3.4 is an IPv4 address in IPv6 clothes"),
        (HEAD + "fe80::1%eth0,fd00::2,t\n", "line 2: source fe80::1%eth0 carries a zone"),
        (HEAD + "10.0.0.1,10.0.0.2\n", "line 2: there are 2 fields, not 3 (source,destination,next_hop)"),
        (HEAD + "10.0.0.1\n", "line 2: there is 1 field, not 3"),
        (HEAD + "10.0.0.1,10.0.0.2,t,\n", "line 2: there are 4 fields, not 3"),
        (HEAD + "10.0.0.1,10.0.0.2,t\n10.0.0.1,10.0.0.2,u\n",
         "line 3: 10.0.0.1 -> 10.0.0.2 of network blue is there already, line 2"),
        (HEAD + "10.0.0.1,10.0.0.2,t\n10.0.0.1,10.0.0.3,over t\n", "line 3: 'over t' is no next hop"),
        (HEAD + "10.0.0.1,10.0.0.2,\n", "line 2: "),
        (HEAD + "10.0.0.1,10.0.0.2,drop mac 02:00:00:00:00:01\n", "line 2: next hop in blue: "),
        ("10.0.0.1,10.0.0.2,t\n", "line 1: the first line must name the columns"),
        ("source,source\n", "line 1: the first line must name the columns, each once"),
        ("source,next_hop\n1.1.1.1,t\n", "there is no column destination in it"),
        (HEAD, "there are no flows in it"),
        ("", "there are no flows in it"),
        ("# nothing\n", "there are no flows in it"),
        ("source,destination\n10.0.0.1,10.0.0.2\n", "there is no column next_hop in it"),
        ("network," + HEAD + "blue,10.0.0.1,10.0.0.2,t\n", "the file has a column network"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_csv_file_is_named_with_its_line(tmp_path, text, message):
    path = csv(tmp_path, text)
    with pytest.raises(InvalidIntent) as caught:
        read_flows(path, network="blue")
    assert caught.value.message.startswith(f"{path}: {message}")


def test_a_file_that_can_not_be_read_is_an_error_in_words(tmp_path):
    with pytest.raises(MptmError, match="No such file"):
        read_flows(str(tmp_path / "none.csv"))
    (tmp_path / "bad.csv").write_bytes(b"source,destination\n\xff\n")
    with pytest.raises(InvalidIntent, match=r"bad\.csv: this is no UTF-8 text \(byte 19\)"):
        read_flows(str(tmp_path / "bad.csv"))
    for content in (b"PK but no archive", b"\xff neither"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(InvalidIntent, match="no file of numpy arrays"):
            read_flows(str(tmp_path / "bad.npz"))


SOURCES = np.array([0x0A000002, 0x0A000001], dtype=np.uint32)
AS_BYTES = np.array([[10, 0, 0, 2], [10, 0, 0, 1]], dtype=np.uint8)


@pytest.mark.parametrize(
    "sources",
    [SOURCES, SOURCES.astype(np.int64), AS_BYTES, ["10.0.0.2", "10.0.0.1"],
     np.array(["10.0.0.2", "10.0.0.1"]), np.array([b"10.0.0.2", b"10.0.0.1"])],
    ids=["uint32", "int64", "bytes", "list", "text", "ascii"],
)  # fmt: skip
def test_arrays_of_every_type_mean_the_same(sources):
    flows = make_flows("blue", sources, SOURCES, ["via t", "u"], next_hop_of=np.array([1, 0]))
    assert listed(flows) == {
        ("blue", "10.0.0.2", "10.0.0.2"): "blue via u",
        ("blue", "10.0.0.1", "10.0.0.1"): "blue via t",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blue", SOURCES, SOURCES[:1], "t"), "there are 2 sources, but 1 destinations"),
        (("blue", SOURCES, SOURCES, ["t", "u"]), "there are 2 next hops: which flow has which"),
        (("blue", SOURCES.astype(float), SOURCES, "t"), "it must be uint32"),
        (("blue", np.array([1, -1]), SOURCES, "t"), "flow 1: source -1 is no number of 32 bits"),
        (("blue", np.array([2**32, 1]), SOURCES, "t"), "flow 0: source 4294967296 is no number of 32 bits"),
        (("blue", SOURCES[:0], SOURCES[:0], "t"), "there are no flows in it"),
        (("", SOURCES, SOURCES, "t"), "'' is no network"),
        (
            ("blue", np.zeros(2, np.uint32), np.zeros(2, np.uint32), "t"),
            "flow 1: .* is there already, flow 0",
        ),
    ],
)
def test_arrays_that_make_no_sense_are_refused_in_words(arguments, message):
    with pytest.raises(InvalidIntent, match=message):
        make_flows(*arguments)


def test_an_index_of_a_next_hop_that_is_not_there_is_refused():
    with pytest.raises(InvalidIntent, match="flow 1: there is no next hop 2; there are 2, from 0"):
        make_flows("blue", SOURCES, SOURCES, ["t", "u"], next_hop_of=np.array([1, 2]))


@pytest.mark.parametrize("name", ["saved.csv", "saved.npz"])
def test_what_is_saved_is_loaded_again_as_it_was(tmp_path, name):
    text = "".join(
        line for line in CSV.splitlines(keepends=True) if name.endswith("csv") or "fd00" not in line
    )
    flows = read_flows(csv(tmp_path, text))
    write_flows(flows, str(tmp_path / name))
    assert read_flows(str(tmp_path / name)).encode() == flows.encode()


def test_a_file_of_arrays_may_have_no_next_hops_of_its_own(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, source=SOURCES, destination=AS_BYTES)
    assert set(listed(read_flows(str(path), network="blue", next_hop="t")).values()) == {"blue via t"}
    np.savez(path, source=SOURCES, destination=AS_BYTES, extra=SOURCES)
    with pytest.raises(InvalidIntent, match="there is an array extra in it"):
        read_flows(str(path), network="blue", next_hop="t")
    np.savez(
        path,
        source=SOURCES,
        destination=AS_BYTES,
        next_hops=np.array(["t", "drop"]),
        next_hop=np.array([0, 1]),
    )
    assert set(listed(read_flows(str(path), network="blue")).values()) == {"blue via t", "blue drop"}


ADDRESSES = st.one_of(
    st.integers(0, 40).map(lambda number: f"10.0.0.{number}"),
    st.sampled_from(["fd00::1", "fd00::2", "::", "ff02::1", "0.0.0.0", "255.255.255.255"]),
)
FLOWS = st.dictionaries(
    st.tuples(st.sampled_from(["blue", "red"]), ADDRESSES, ADDRESSES).filter(
        lambda flow: (":" in flow[1]) == (":" in flow[2])
    ),
    st.sampled_from(["drop", "pass"]),
    min_size=1,
    max_size=12,
)


def made(flows: dict[tuple[str, str, str], str]) -> BundleFlows:
    return make_flows(
        ["red", "blue"],
        [source for _, source, _ in flows],
        [destination for _, _, destination in flows],
        ["pass", "drop"],
        network_of=[["red", "blue"].index(network) for network, _, _ in flows],
        next_hop_of=[["pass", "drop"].index(next_hop) for next_hop in flows.values()],
    )


@settings(max_examples=100, deadline=None)
@given(FLOWS, FLOWS)
def test_flows_are_kept_found_and_compared_like_those_of_a_dict(tmp_path_factory, one, other):
    flows, others = made(one), made(other)
    meant = {key: f"{key[0]} {next_hop}" for key, next_hop in one.items()}
    assert listed(flows) == meant
    files = BundleFiles(tmp_path_factory.mktemp("bundles"))
    content = files.write(flows.encode())
    assert listed(BundleFlows.decode(files.read(content), content)) == meant
    for network, source, destination in {**one, **other}:
        found = files.find(content, network, ip_address(source), ip_address(destination))
        assert found == meant.get((network, source, destination))
    assert listed(flows.without(others)).keys() == one.keys() - other.keys()
    assert (flows.first_shared(others) is None) == one.keys().isdisjoint(other)


def test_a_damaged_file_is_not_taken_for_flows(tmp_path):
    files = BundleFiles(tmp_path / "bundles")
    content = files.write(made({("blue", "10.0.0.1", "10.0.0.2"): "drop"}).encode())
    files.path(content).write_bytes(files.path(content).read_bytes()[:-1])
    with pytest.raises(MptmError, match="is damaged"):
        files.read(content)
    with pytest.raises(MptmError, match="or not all of them"):
        files.find(content, "blue", ip_address("10.0.0.1"), ip_address("10.0.0.2"))


# ---- a node ----------------------------------------------------------------------------------------------


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def node(kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setenv("MPTM_STATE_DIR", str(tmp_path / "state"))
    node = Node(kernel=kernel)
    node.apply(BASE)
    return node


def load(node: Node, name: str, sources: list[str], next_hop: str = "t", network: str = "blue"):
    destinations = ["10.9.9.9" if "." in source else "fd00::9" for source in sources]
    return node.load_flows(
        name, network=network, sources=sources, destinations=destinations, next_hops=next_hop
    )


def replace_name(bundle: Bundle, name: str) -> Bundle:
    return msgspec.structs.replace(bundle, name=name)


def entries(kernel: FakeKernel, table: str = "flows_v4") -> dict[str, int]:
    """Next hops' kinds and ids by source."""
    return {
        str(ip_address(key["source"])): value["kind"] * 1000 + value["id"]
        for key, value in kernel.planes["default"].maps[table].records()
    }


def same_as_whole(node: Node, kernel: FakeKernel) -> None:
    """The tables are those of a node that was brought up from what is stored."""
    assert node.restore().outcome.changes == ()
    assert node.status().differences == 0
    before = kernel.planes["default"].bytes()
    kernel.planes.clear()
    node.restore()
    assert kernel.planes["default"].bytes() == before


def test_a_bundle_is_in_the_tables_and_gone_when_it_is_unloaded(node, kernel):
    empty = kernel.planes["default"].bytes()
    plan = load(node, "many", ["10.0.0.1", "10.0.0.2", "fd00::1"])
    assert (node.intent.bundles["many"].flows, plan.states["bundle", "many"]) == (3, "up")
    assert (entries(kernel).keys(), entries(kernel, "flows_v6").keys()) == (
        {"10.0.0.1", "10.0.0.2"},
        {"fd00::1"},
    )
    assert {value for value in entries(kernel).values()} == {2000}
    same_as_whole(node, kernel)
    node.remove("bundle", "many")
    assert kernel.planes["default"].bytes() == empty
    assert not list(node.store.bundles.directory.iterdir())


def test_what_changes_while_a_network_has_bundles_writes_only_that(node, kernel):
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    plane = kernel.planes["default"]
    plane.log.clear()
    load(node, "more", ["10.0.1.1"], "u")
    load(node, "more", ["10.0.1.2", "10.0.1.3"], "u")
    node.remove("bundle", "more")
    assert set(plane.log) == {
        "update many flows_v4",
        "delete many flows_v4",
    }
    assert entries(kernel).keys() == {"10.0.0.1", "10.0.0.2"}
    same_as_whole(node, kernel)


def test_flows_of_their_own_go_before_those_of_bundles(node, kernel):
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    own = Flow(network="blue", source="10.0.0.1", destination="10.9.9.9", via="u")
    node.add(own)
    assert entries(kernel) == {"10.0.0.1": 2001, "10.0.0.2": 2000}
    load(node, "many", ["10.0.0.1", "10.0.0.3"])
    assert entries(kernel) == {"10.0.0.1": 2001, "10.0.0.3": 2000}
    same_as_whole(node, kernel)
    node.remove("flow", own.key)
    assert entries(kernel) == {"10.0.0.1": 2000, "10.0.0.3": 2000}
    node.add(own)
    node.remove("bundle", "many")
    assert entries(kernel) == {"10.0.0.1": 2001}
    same_as_whole(node, kernel)


def test_a_flow_in_two_bundles_is_refused_and_both_are_named(node, kernel):
    load(node, "many", ["10.0.0.1", "fd00::2"])
    load(node, "elsewhere", ["10.0.0.1"], "r", "red")
    before = node.intent, kernel.planes["default"].bytes()
    for sources, flow in ((["10.0.0.7", "10.0.0.1"], "10.0.0.1"), (["fd00::1", "fd00::2"], "fd00::2")):
        with pytest.raises(
            InvalidIntent, match=f"bundle more has the flow {flow} -> .* of network blue, which bundle many"
        ):
            load(node, "more", sources)
    assert (node.intent, kernel.planes["default"].bytes()) == before
    assert {path.name for path in node.store.bundles.directory.iterdir()} == {
        bundle.content for bundle in node.intent.bundles.values()
    }


def test_what_a_bundle_leads_to_is_in_use(node):
    load(node, "many", ["10.0.0.1"], "group both")
    load(node, "red", ["10.0.0.1"], "r", "red")
    for kind, key in (("group", "both"), ("network", "red"), ("tunnel", "r")):
        with pytest.raises(InUse, match=r"in use by .*bundle"):
            node.remove(kind, key)


@pytest.mark.parametrize(
    ("next_hop", "network", "message"),
    [
        ("nowhere", "blue", "bundle many: there is no tunnel nowhere"),
        ("r", "blue", "bundle many: tunnel r is of network red, not blue"),
        ("drop", "green", "bundle many: there is no network green"),
        ("port eth0", "blue", "bundle many: port eth0 is an uplink"),
        ("stack", "blue", "bundle many: tunnel stack hands packets to the kernel"),
    ],
)
def test_a_bundle_that_leads_nowhere_is_refused_and_leaves_nothing_behind(node, next_hop, network, message):
    gre = {"protocol": "gre", "network": "blue", "remote": "10.30.30.9", "to_stack": True}
    node.add(tunnel_from_dict({"name": "stack", **gre}))
    with pytest.raises(InvalidIntent, match=message):
        load(node, "many", ["10.0.0.1"], next_hop, network)
    assert not list(node.store.bundles.directory.iterdir())


def test_a_tunnel_that_changes_under_a_bundle_takes_its_flows_along(node, kernel):
    load(node, "many", ["10.0.0.1"])
    node.replace(tunnel("t", "10.30.30.2", ttl=9))
    assert entries(kernel) == {"10.0.0.1": 2003}
    same_as_whole(node, kernel)


def test_a_bundle_of_which_a_tunnel_is_down_is_told_so(node, kernel):
    load(node, "many", ["10.0.0.1"], "u")
    kernel.silent.add("10.30.30.3")
    assert node.restore().states["bundle", "many"] == "down: tunnel u is down"
    assert ("bundle", "many", "down: tunnel u is down") in node.status().objects


def test_a_workload_without_a_known_mac_is_refused(node, kernel):
    kernel.links["veth-a"] = replace(kernel.links["veth-a"], peer_mac=None)
    with pytest.raises(InvalidIntent, match="the workload behind veth-a can't be found out"):
        load(node, "many", ["10.0.0.1"], "port veth-a")
    load(node, "many", ["10.0.0.1"], "port veth-a mac 02:00:00:00:00:07")


@pytest.mark.parametrize("first", [True, False])
def test_a_full_table_puts_back_what_was(node, kernel, first):
    if not first:
        load(node, "many", ["10.0.0.1"])
    before = node.intent, kernel.planes["default"].bytes()
    failed = []

    def fail(step: str) -> None:
        if step == "update many flows_v4" and not failed:
            failed.append(step)
            raise TableFull("the table is full")

    kernel.planes["default"].fail = fail
    with pytest.raises(TableFull):
        load(node, "more", ["10.0.0.2"])
    assert (node.intent, kernel.planes["default"].bytes()) == before
    assert len(list(node.store.bundles.directory.iterdir())) == (not first)


def test_what_failed_first_is_what_is_told(node, kernel):
    """A directory stands where files of flows are, so tidying up after the change fails, too."""
    load(node, "many", ["10.0.0.1"])
    (node.store.bundles.directory / "stranger").mkdir()

    def fail(step: str) -> None:
        if step == "update many flows_v4":
            raise TableFull("the table is full")

    kernel.planes["default"].fail = fail
    with pytest.raises(TableFull, match="the table is full") as caught:
        load(node, "more", ["10.0.0.2"])
    assert "can't tidy" in (caught.value.hint or "")
    kernel.planes["default"].fail = None
    with pytest.raises(MptmError, match=r"^the change is done, but .*can't tidy"):
        load(node, "more", ["10.0.0.2"])
    assert "10.0.0.2" in entries(kernel)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("first", [True, False])
def test_the_next_command_completes_a_load_that_was_killed(node, kernel, first, monkeypatch):
    if not first:
        load(node, "many", ["10.0.0.1"])

    def die(step: str) -> None:
        if step == "update many flows_v4":
            raise Killed

    kernel.planes["default"].fail = die
    with monkeypatch.context() as patch:
        patch.setattr(node, "_put_back", lambda *_: None)
        patch.setattr(node.store, "tidy_bundles", lambda: None)
        with pytest.raises(Killed):
            load(node, "more", ["10.0.0.2"])
    kernel.planes["default"].fail = None
    Node(kernel=kernel).add(Network(name="green", id=3))
    assert "more" in node.intent.bundles
    assert "10.0.0.2" in entries(kernel)
    same_as_whole(node, kernel)


def test_a_bundle_whose_file_is_gone_takes_nothing_else_down(node, kernel):
    load(node, "many", ["10.0.0.1"])
    node.store.bundles.path(node.intent.bundles["many"].content).unlink()
    kernel.planes.clear()
    plan = node.restore()
    assert plan.states["bundle", "many"] == "degraded: its flows can't be read"
    assert plan.states["tunnel", "t"] == "up"
    with pytest.raises(NotFound, match="are not on this machine"):
        node.bundle_flows("many")
    load(node, "many", ["10.0.0.1"])
    assert node.status().healthy


DAMAGE = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-1],
    "a bit turned": lambda data: data[:-1] + bytes([data[-1] ^ 0x80]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_bundle_can_be_loaded_again_unloaded_and_does_not_hold_up_others(node, kernel, damage):
    """As the hint of the error says."""
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    load(node, "more", ["10.0.0.3"])
    path = node.store.bundles.path(node.intent.bundles["many"].content)
    node.add(Flow(network="blue", source="10.0.0.2", destination="10.9.9.9", via="u"))
    whole = path.read_bytes()

    path.write_bytes(DAMAGE[damage](whole))
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    assert path.read_bytes() == whole
    assert entries(kernel).keys() == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    same_as_whole(node, kernel)

    path.write_bytes(DAMAGE[damage](whole))
    node.remove("flow", "blue 10.0.0.2 10.9.9.9")
    node.remove("bundle", "many")
    assert entries(kernel).keys() == {"10.0.0.3"}
    same_as_whole(node, kernel)


def damage_file(node: Node, name: str, damage: str = "cut short") -> None:
    path = node.store.bundles.path(node.intent.bundles[name].content)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))


def turned_next_hop(data: bytes) -> bytes:
    """Of the first of two flows of IPv4."""
    at = len(data) - 17
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [*DAMAGE, "gone"])
def test_flows_of_a_damaged_bundle_stay_in_the_tables_and_it_is_told(node, kernel, damage):
    load(node, "many", ["10.0.0.1", "10.0.0.2", "fd00::1"], "group both")
    load(node, "more", ["10.0.0.3"])
    if damage == "gone":
        node.store.bundles.path(node.intent.bundles["many"].content).unlink()
    else:
        damage_file(node, "many", damage)
    before = kernel.planes["default"].bytes()
    told = (
        "bundle many: the file of its 3 flows is damaged or gone; those that are in the tables stay, but can't be put "
        "there: `mptm flow load FILE --name many` makes them whole"
    )
    for _ in range(2):
        status = node.status()
        assert (status.warnings, status.differences, status.healthy) == ((told,), 0, False)
        assert ("bundle", "many", "degraded: its flows can't be read") in status.objects
        assert node.restore().warnings == (told,)
        assert kernel.planes["default"].bytes() == before
    node.add(Network(name="green", id=3))
    assert kernel.planes["default"].bytes()["flows_v4"] == before["flows_v4"]
    kernel.planes.clear()
    node.restore()
    assert entries(kernel).keys() == {"10.0.0.3"}, "as after a reboot"
    load(node, "many", ["10.0.0.1", "10.0.0.2", "fd00::1"], "group both")
    assert entries(kernel).keys() == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    same_as_whole(node, kernel)


def test_a_tunnel_that_changes_under_a_damaged_bundle_takes_its_flows_along(node, kernel):
    load(node, "many", ["10.0.0.1", "fd00::1"])
    load(node, "more", ["10.0.0.3"], "u")
    damage_file(node, "many")
    node.replace(tunnel("t", "10.30.30.2", ttl=9))
    assert entries(kernel) == {"10.0.0.1": 2003, "10.0.0.3": 2001}
    assert entries(kernel, "flows_v6") == {"fd00::1": 2003}
    assert node.status().differences == 0


def next_hops(kernel: FakeKernel) -> dict[str, tuple[int, int, bytes]]:
    """Kind, id and MAC address by source."""
    return {
        str(ip_address(key["source"])): (value["kind"], value["id"], value["mac"])
        for key, value in kernel.planes["default"].maps["flows_v4"].records()
    }


@pytest.mark.parametrize("sources", [["10.0.0.1", "10.0.0.2"], ["10.0.0.1"]], ids=["as it was", "another"])
def test_a_damaged_bundle_does_not_come_back_with_flows_that_another_got_meanwhile(node, kernel, sources):
    """Both would have them in the tables, now one and now the other."""
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    damage_file(node, "many")
    load(node, "more", ["10.0.0.1"], "u")
    for _ in range(2):
        with pytest.raises(
            InvalidIntent, match=r"bundle many has the flow 10.0.0.1 -> .*, which bundle more has, too"
        ):
            load(node, "many", sources)
    assert entries(kernel) == {"10.0.0.1": 2001, "10.0.0.2": 2000}
    node.remove("bundle", "more")
    load(node, "many", sources)
    assert entries(kernel) == dict.fromkeys(sources, 2000)
    same_as_whole(node, kernel)


@pytest.mark.parametrize("change", [lambda data: data.replace(b"via t", b"via x"), turned_next_hop])
def test_a_damaged_bundle_is_not_asked_where_a_flow_leads_whose_own_is_deleted(node, kernel, change):
    """It would name a tunnel that there isn't, or another one than it was."""
    node.load_flows(
        "many", network="blue", sources=["10.0.0.1", "10.0.0.2"], destinations=["10.9.9.9"] * 2,
        next_hops=["t", "u"], next_hop_of=np.array([0, 1]),
    )  # fmt: skip
    own = Flow(network="blue", source="10.0.0.1", destination="10.9.9.9", drop=True)
    node.add(own)
    path = node.store.bundles.path(node.intent.bundles["many"].content)
    path.write_bytes(change(path.read_bytes()))
    node.remove("flow", own.key)
    assert entries(kernel) == {"10.0.0.2": 2001}


def test_a_bundle_is_read_once_however_many_flows_are_deleted_before_it(node, kernel, monkeypatch):
    load(node, "many", ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    own = [Flow(network="blue", source=f"10.0.0.{n}", destination="10.9.9.9", drop=True) for n in (1, 2, 3)]
    node.edit(lambda intent: functools.reduce(Intent.add, own, intent))
    looked: list[str] = []
    verify = BundleFiles.verify
    monkeypatch.setattr(BundleFiles, "verify", lambda self, each: looked.append(each) or verify(self, each))
    node.edit(lambda intent: functools.reduce(lambda rest, each: rest.remove("flow", each.key), own, intent))
    assert looked == [node.intent.bundles["many"].content]
    assert entries(kernel) == {"10.0.0.1": 2000, "10.0.0.2": 2000, "10.0.0.3": 2000}


@pytest.mark.parametrize("mac", [None, "02:00:00:00:00:07"])
@pytest.mark.parametrize("is_seen_gone", [False, True])
def test_flows_of_a_damaged_bundle_follow_the_interface_of_a_port(node, kernel, mac, is_seen_gone):
    """Which is made anew, with another number and another MAC address behind it, as a container's is."""
    load(node, "many", ["10.0.0.1"], "port veth-a" + (f" mac {mac}" if mac else ""))
    load(node, "more", ["10.0.0.3"], "port veth-a mac 02:00:00:00:00:99")
    damage_file(node, "many")
    link = kernel.links.pop("veth-a")
    if is_seen_gone:
        node.restore()
        assert next_hops(kernel)["10.0.0.1"] == (NextHopKind.DROP, 0, bytes(6))
    peer_mac = bytes.fromhex("020000000055")
    kernel.links["veth-a"] = replace(link, ifindex=99, peer_mac=peer_mac)
    node.restore()
    assert next_hops(kernel) == {
        "10.0.0.1": (NextHopKind.PORT, 99, bytes.fromhex("020000000007") if mac else peer_mac),
        "10.0.0.3": (NextHopKind.PORT, 99, bytes.fromhex("020000000099")),
    }
    assert node.status().differences == 0


def test_dropped_flows_of_a_damaged_bundle_are_not_taken_for_those_of_a_port(node, kernel):
    load(node, "many", ["10.0.0.1"], "port veth-a")
    load(node, "more", ["10.0.0.3"], "drop")
    damage_file(node, "many")
    damage_file(node, "more")
    link = kernel.links.pop("veth-a")
    node.restore()
    kernel.links["veth-a"] = link
    node.restore()
    assert entries(kernel) == {"10.0.0.1": 4000, "10.0.0.3": 4000}, "whose is whose can't be told"
    assert node.status().differences == 0


def test_what_is_removed_beside_a_damaged_bundle_is_not_taken_for_its_flows(node, kernel):
    """Although it leads where that leads, and the whole way is gone."""
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    load(node, "more", ["10.0.0.3", "10.0.0.4"])
    load(node, "elsewhere", ["10.0.0.1"], "r", "red")
    for source in ("10.0.0.2", "10.0.0.5"):
        node.add(Flow(network="blue", source=source, destination="10.9.9.9", via="t"))
    damage_file(node, "many")
    node.edit(
        lambda intent: (
            intent.remove("flow", "blue 10.0.0.2 10.9.9.9")
            .remove("flow", "blue 10.0.0.5 10.9.9.9")
            .remove("bundle", "more")
            .remove("bundle", "elsewhere")
        )
    )
    assert entries(kernel) == {"10.0.0.1": 2000}
    load(node, "many", ["10.0.0.7"])
    assert entries(kernel) == {"10.0.0.7": 2000}
    same_as_whole(node, kernel)


def test_a_damaged_bundle_that_is_unloaded_beside_another_leaves_nothing_behind(node, kernel):
    """Whose an entry is can't be told then: what was to go is gone, and the other is to be loaded again."""
    load(node, "many", ["10.0.0.1"])
    load(node, "more", ["10.0.0.3"])
    load(node, "red", ["10.0.0.1", "10.0.0.2"], "r", "red")
    for name in ("many", "more", "red"):
        damage_file(node, name)
    node.remove("bundle", "many")
    assert [key["network"] for key, _ in kernel.planes["default"].maps["flows_v4"].records()] == [2, 2]


@pytest.mark.parametrize("step", ["update many flows_v4", "delete tunnels", "update tunnels"])
@pytest.mark.parametrize("is_killed", [False, True])
def test_flows_of_a_damaged_bundle_outlive_a_change_that_fails(node, kernel, monkeypatch, step, is_killed):
    load(node, "many", ["10.0.0.1", "fd00::1"])
    damage_file(node, "many")
    before = node.intent, kernel.planes["default"].bytes()
    failed = []

    def fail(at: str) -> None:
        if at == step and not failed:
            failed.append(at)
            raise Killed if is_killed else TableFull("the table is full")

    kernel.planes["default"].fail = fail
    with monkeypatch.context() as patch:
        if is_killed:
            patch.setattr(node, "_put_back", lambda *_: None)
        with pytest.raises(Killed if is_killed else TableFull):
            node.replace(tunnel("t", "10.30.30.2", ttl=9))
    if not is_killed:
        assert (node.intent, kernel.planes["default"].bytes()) == before
    node.add(Network(name="green", id=3))
    assert entries(kernel) == {"10.0.0.1": 2003 if is_killed else 2000}
    assert entries(kernel, "flows_v6") == {"fd00::1": 2003 if is_killed else 2000}
    assert node.status().differences == 0


def test_doctor_looks_at_the_files_of_bundles(node, monkeypatch):
    monkeypatch.setattr("mptm.cli.doctor._is_privileged", lambda: True)
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    load(node, "more", ["10.0.0.3"])
    load(node, "gone", ["10.0.0.4"])
    path = node.store.bundles.path(node.intent.bundles["many"].content)
    path.write_bytes(path.read_bytes()[:-1])
    node.store.bundles.path(node.intent.bundles["gone"].content).unlink()
    found = {each.name: each for each in examine_bundles(node)}
    assert {name: each.status for name, each in found.items()} == {
        "bundle many": "missing", "bundle more": "ok", "bundle gone": "missing",
    }  # fmt: skip
    assert found["bundle many"].detail == f"2 flows: {path} is damaged"
    assert found["bundle many"].hint == "mptm flow load FILE --name many, or mptm flow unload many"
    assert "are not on this machine" in found["bundle gone"].detail


@pytest.mark.parametrize("names", [("a", "z"), ("z", "a")])
def test_flows_that_change_over_to_another_bundle_stay(node, kernel, names):
    """As a bundle gets another name, or two exchange theirs."""
    old, new = names
    load(node, old, ["10.0.0.1", "10.0.0.2"])
    renamed = replace_name(node.intent.bundles[old], new)
    node.edit(lambda intent: intent.remove("bundle", old).add(renamed))
    assert entries(kernel).keys() == {"10.0.0.1", "10.0.0.2"}
    same_as_whole(node, kernel)

    load(node, old, ["10.0.0.3"], "u")
    before = entries(kernel)
    one, other = node.intent.bundles[old], node.intent.bundles[new]
    node.edit(lambda intent: intent.replace(replace_name(one, new)).replace(replace_name(other, old)))
    assert entries(kernel) == before
    same_as_whole(node, kernel)


def test_a_node_file_names_bundles_and_keeps_them(node, kernel):
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    text = config.dump(node.intent)
    assert config.load(text) == node.intent
    assert node.apply(config.load(text)).changes == ()
    other = Node("other", kernel=kernel)
    with pytest.raises(NotFound, match="are not on this machine") as caught:
        other.apply(config.load(text))
    assert "mptm flow load" in str(caught.value)
    node.apply(BASE)
    assert entries(kernel) == {}


def test_purge_leaves_nothing_behind(node):
    load(node, "many", ["10.0.0.1"])
    node.purge()
    assert not node.store.directory.exists()


SOURCES_OF = st.sets(st.sampled_from([*(f"10.0.0.{n}" for n in range(5)), "fd00::1", "fd00::2"]), max_size=5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["a", "b"]), SOURCES_OF, st.sampled_from(["t", "u", "group both", "drop"])),
        st.tuples(st.just("own"), SOURCES_OF, st.sampled_from(["t", "u"])),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_after_any_loads_and_flows_the_tables_are_those_of_the_whole(tmp_path_factory, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPTM_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        kernel = FakeKernel()
        node = Node(kernel=kernel)
        node.apply(BASE)
        for what, sources, next_hop in steps:
            if what == "own":
                for source in sorted(sources):
                    destination = "10.9.9.9" if "." in source else "fd00::9"
                    flow = Flow(network="blue", source=source, destination=destination, via=next_hop)
                    node.remove("flow", flow.key) if flow.key in node.intent.flows else node.add(flow)
            elif sources:
                try:
                    load(node, what, sorted(sources), next_hop)
                except InvalidIntent as error:
                    assert "which bundle" in error.message
            elif what in node.intent.bundles:
                node.remove("bundle", what)
            assert node.restore().outcome.changes == ()
        before = kernel.planes["default"].bytes()
        kernel.planes.clear()
        node.restore()
        assert kernel.planes["default"].bytes() == before


DAMAGED_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("own"), SOURCES_OF, st.sampled_from(["t", "u"])),
        st.tuples(
            st.just("b"),
            st.sets(st.sampled_from(["10.0.1.1", "10.0.1.2", "fd00:1::1"])),
            st.sampled_from(["t", "drop"]),
        ),
        st.tuples(st.just("ttl"), st.just(set()), st.sampled_from(["t", "u"])),
        st.tuples(st.just("restore"), st.just(set()), st.just("")),
    ),
    max_size=8,
)


@settings(max_examples=30, deadline=None)
@given(SOURCES_OF.filter(len), st.sampled_from(["t", "group both", "drop"]), DAMAGED_STEPS)
def test_a_node_with_a_damaged_bundle_does_what_one_without_does(tmp_path_factory, sources, next_hop, steps):
    """But for flows of the bundle that one of their own took the place of since, and left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPTM_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        kernel = FakeKernel()
        damaged, whole = Node("damaged", kernel=kernel), Node("whole", kernel=kernel)
        for each in (damaged, whole):
            each.apply(BASE)
            load(each, "a", sorted(sources), next_hop)
        damage_file(damaged, "a")
        ttl, replaced = 1, set()
        for what, names, where in steps:
            ttl += 1
            for each in (damaged, whole):
                if what == "restore":
                    each.restore()
                elif what == "ttl":
                    each.replace(tunnel(where, each.intent.tunnels[where].remote, ttl=ttl))
                elif what == "b" and names:
                    load(each, "b", sorted(names), where)
                elif what == "b":
                    each.edit(
                        lambda intent: intent.remove("bundle", "b") if "b" in intent.bundles else intent
                    )
                for source in sorted(names) if what == "own" else ():
                    replaced.add(ip_address(source).packed)
                    destination = "10.9.9.9" if "." in source else "fd00::9"
                    flow = Flow(network="blue", source=source, destination=destination, via=where)
                    each.remove("flow", flow.key) if flow.key in each.intent.flows else each.add(flow)
            found, meant = (kernel.planes[each.instance].bytes() for each in (damaged, whole))
            for table in ("flows_v4", "flows_v6"):
                layout = kernel.planes["damaged"].maps[table].key
                lost = meant[table].keys() - found[table].keys()
                assert {ip_address(layout.unpack(key)["source"]).packed for key in lost} <= replaced
                assert found[table] == {key: meant[table][key] for key in meant[table].keys() - lost}
            assert damaged.status().differences == 0


# ---- the command line ------------------------------------------------------------------------------------


@pytest.fixture
def command(
    node: Node, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("mptm.node.SystemKernel", lambda: kernel)

    def call(*words: str) -> tuple[int, str, str]:
        status = run(list(words))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_the_commands_load_list_save_and_unload(command, tmp_path, kernel):
    path = csv(tmp_path, "source,destination\n10.0.0.1,10.0.0.2\n10.0.0.3,10.0.0.2\n", "subscribers.csv")
    assert command("flow", "load", path, "--network", "blue", "--via", "t") == (
        0, "", "mptm: bundle subscribers has 2 flows\n",
    )  # fmt: skip
    assert command("flow", "bundles")[1].splitlines()[1].split() == ["subscribers", "2", "blue", "via", "t"]
    assert command("flow", "save", "subscribers", str(tmp_path / "out.csv")) == (0, "", "")
    assert (tmp_path / "out.csv").read_text() == (
        "network,source,destination,next_hop\nblue,10.0.0.1,10.0.0.2,via t\nblue,10.0.0.3,10.0.0.2,via t\n"
    )
    assert "  bundle subscribers" in command("network", "show", "blue")[1]
    listed = json.loads(command("network", "list", "--json")[1])
    assert {each["name"]: (each["flows"], each["bundles"]) for each in listed} == {
        "blue": (0, 1),
        "red": (0, 0),
    }
    assert command("network", "list")[1].splitlines()[0].endswith("FLOWS  BUNDLES")
    assert command("flow", "unload", "subscribers") == (0, "", "")
    assert entries(kernel) == {}


def test_flow_list_has_the_flows_of_bundles_and_names_them(command, node):
    load(node, "many", ["10.0.0.1", "10.0.0.2", "fd00::1"], "group both relay")
    load(node, "red", ["10.0.0.1"], "drop", "red")
    node.add(Flow(network="blue", source="10.0.0.2", destination="10.9.9.9", via="u"))
    status, listed, said = command("flow", "list")
    assert (status, said) == (0, "mptm: 4 flows, 2 of bundle many, 1 of bundle red\n")
    assert [line.split() for line in listed.splitlines()] == [
        ["NETWORK", "SOURCE", "DESTINATION", "NEXT", "HOP", "BUNDLE"],
        ["blue", "10.0.0.2", "10.9.9.9", "via", "u", "-"],
        ["blue", "10.0.0.1", "10.9.9.9", "group", "both", "relay", "many"],
        ["blue", "fd00::1", "fd00::9", "group", "both", "relay", "many"],
        ["red", "10.0.0.1", "10.9.9.9", "drop", "red"],
    ]
    heading, first, *_ = listed.splitlines()
    assert heading.index("BUNDLE") == len(first) - 1
    assert json.loads(command("flow", "list", "--json")[1]) == [
        {"network": "blue", "source": "10.0.0.2", "destination": "10.9.9.9", "via": "u"},
        {"network": "blue", "source": "10.0.0.1", "destination": "10.9.9.9", "group": "both", "relay": True,
         "bundle": "many"},
        {"network": "blue", "source": "fd00::1", "destination": "fd00::9", "group": "both", "relay": True,
         "bundle": "many"},
        {"network": "red", "source": "10.0.0.1", "destination": "10.9.9.9", "drop": True, "bundle": "red"},
    ]  # fmt: skip
    printed = command("flow", "list", "--json")[1]
    assert printed == json.dumps(json.loads(printed), indent=2) + "\n"


def test_flow_list_is_narrowed_to_a_network_or_a_bundle(command, node):
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    node.load_bundle(
        "mixed", made({("blue", "10.0.0.7", "10.9.9.9"): "drop", ("red", "10.0.0.7", "10.9.9.9"): "pass"})
    )
    own = Flow(network="blue", source="10.0.0.2", destination="10.9.9.9", via="u")
    node.add(own)

    def sources(*options: str) -> tuple[list[tuple[str, str]], str]:
        status, listed, said = command("flow", "list", "--json", *options)
        assert status == 0
        return [(each["source"], each.get("bundle", "")) for each in json.loads(listed)], said

    assert sources("--bundle", "many") == ([("10.0.0.1", "many")], "mptm: 1 flow, 1 of bundle many\n")
    assert sources("--network", "red") == ([("10.0.0.7", "mixed")], "mptm: 1 flow, 1 of bundle mixed\n")
    assert sources("--network", "red", "--bundle", "many") == ([], "")
    assert sources("--network", "blue")[0] == [
        ("10.0.0.2", ""), ("10.0.0.1", "many"), ("10.0.0.7", "mixed"),
    ]  # fmt: skip
    assert "there is no bundle none" in command("flow", "list", "--bundle", "none")[2]
    for kind in ("tunnel", "group", "route", "flow"):
        assert "there is no network none" in command(kind, "list", "--network", "none")[2]
    assert (
        "there is no network none" in command("flow", "show", "10.9.9.9", "10.9.9.8", "--network", "none")[2]
    )
    assert (
        "`mptm flow list` shows them"
        in command("flow", "show", "10.9.9.9", "10.9.9.8", "--network", "blue")[2]
    )
    assert "bundle a/b: 'a/b' is not a name" in command("flow", "load", "f.csv", "--name", "a/b")[2]
    node.remove("flow", own.key)
    assert sources("--bundle", "many")[0] == [("10.0.0.1", "many"), ("10.0.0.2", "many")]
    node.apply(BASE)
    assert command("flow", "list", "--json") == (0, "[]\n", "")


@settings(max_examples=25, deadline=None)
@given(FLOWS, FLOWS, st.data())
def test_what_is_listed_is_what_the_tables_have(tmp_path_factory, one, other, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPTM_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        node = Node(kernel=FakeKernel())
        node.apply(BASE)
        node.load_bundle("one", made(one))
        if rest := {key: next_hop for key, next_hop in other.items() if key not in one}:
            node.load_bundle("other", made(rest))
        for network, source, destination in data.draw(st.sets(st.sampled_from([*one, *other]), max_size=5)):
            via = {"blue": "t", "red": "r"}[network]
            node.add(Flow(network=network, source=source, destination=destination, via=via))
        meant = {" ".join(key): next_hop for key, next_hop in {**other, **one}.items()}
        meant |= {key: each.next_hop() for key, each in node.intent.flows.items()}
        listed = {
            f"{network} {source} {destination}": next_hop
            for network, source, destination, next_hop, _ in _Flows(node, None, None).rows()
        }
        assert listed == meant
        maps = node._kernel.open("default", load=False).maps
        assert len(listed) == sum(len(maps[table].items()) for table in ("flows_v4", "flows_v6"))


def test_flow_show_finds_a_flow_in_its_bundle(command, node):
    load(node, "many", ["10.0.0.1", "fd00::1"], "group both")
    load(node, "red", ["10.0.0.1"], "drop", "red")
    status, shown, _ = command("flow", "show", "10.0.0.1", "10.9.9.9", "--network", "blue")
    assert [line.split() for line in shown.splitlines()] == [
        ["network", "blue"],
        ["source", "10.0.0.1"],
        ["destination", "10.9.9.9"],
        ["next", "hop", "group", "both"],
        ["bundle", "many"],
    ]
    status, _, said = command("flow", "show", "10.0.0.1", "10.9.9.9")
    assert (status, "networks blue, red have flow 10.0.0.1 10.9.9.9" in said) == (2, True)
    assert json.loads(command("flow", "show", "FD00:0::1", "fd00::9", "--json")[1]) == {
        "network": "blue", "source": "fd00::1", "destination": "fd00::9", "group": "both", "bundle": "many",
    }  # fmt: skip
    node.add(Flow(network="blue", source="10.0.0.1", destination="10.9.9.9", via="u"))
    assert json.loads(command("flow", "show", "10.0.0.1", "10.9.9.9", "--network", "blue", "--json")[1]) == {
        "network": "blue", "source": "10.0.0.1", "destination": "10.9.9.9", "via": "u",
    }  # fmt: skip
    for words in (("10.0.0.1", "10.9.9.8"), ("10.0.0.1", "10.9.9.8", "--network", "blue")):
        status, _, said = command("flow", "show", *words)
        assert (status, "there is no flow" in said) == (1, True)


@pytest.mark.parametrize("word", ["show", "del"])
def test_a_bundle_is_read_once_however_many_networks_it_is_in(command, node, monkeypatch, word):
    node.load_bundle(
        "mixed", made({("blue", "10.0.0.1", "10.9.9.9"): "drop", ("red", "10.0.0.1", "10.9.9.9"): "drop"})
    )
    looked: list[str] = []
    verify = BundleFiles.verify
    monkeypatch.setattr(BundleFiles, "verify", lambda self, each: looked.append(each) or verify(self, each))
    assert "there is no flow" in command("flow", word, "10.0.0.2", "10.9.9.9")[2]
    assert looked == [node.intent.bundles["mixed"].content]


@pytest.mark.parametrize("network", [(), ("--network", "blue")])
def test_a_flow_of_a_bundle_is_not_changed_by_itself_and_the_bundle_is_named(command, node, network):
    load(node, "many", ["10.0.0.1"])
    for words in (("del",), ("set", "--via", "u")):
        status, _, said = command("flow", words[0], "10.0.0.1", "10.9.9.9", *words[1:], *network)
        assert (status, "of network blue wasn't added by itself: it is one of bundle many" in said) == (
            1,
            True,
        )


def test_a_bundle_that_is_replaced_while_it_is_listed_is_no_damaged_one(command, node, monkeypatch):
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    rows = bundles_cli._Flows.rows

    def rows_later(flows):
        load(node, "many", ["10.0.0.3"])
        return rows(flows)

    monkeypatch.setattr(bundles_cli._Flows, "rows", rows_later)
    status, _, said = command("flow", "list")
    assert (status, "bundle many can't be listed: it was replaced or unloaded meanwhile" in said) == (1, True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_bundle_is_told_when_the_others_are_listed(command, node, damage):
    load(node, "many", ["10.0.0.1", "10.0.0.2"])
    load(node, "more", ["10.0.0.3"])
    path = node.store.bundles.path(node.intent.bundles["many"].content)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    status, listed, said = command("flow", "list", "--json")
    assert (status, [each["source"] for each in json.loads(listed)]) == (1, ["10.0.0.3"])
    assert "error: bundle many can't be listed: " in said and "is damaged" in said
    status, listed, _ = command("flow", "list")
    assert (status, len(listed.splitlines())) == (1, 2)
    assert command("flow", "show", "10.0.0.3", "10.9.9.9")[0] == 0
    status, _, said = command("flow", "show", "10.0.0.2", "10.9.9.9")
    assert (status, "is damaged" in said) == (1, True)


def test_a_long_list_is_read_piece_by_piece_and_ends_with_its_reader(node):
    """`mptm flow list | head`: nothing is said, and the flows are never all in memory."""
    count = 50_000
    sources = np.arange(count, dtype=np.uint32)
    node.load_flows("many", network="blue", sources=sources, destinations=sources, next_hops="t")
    flows = _Flows(node, None, None).rows()
    tracemalloc.start()
    try:
        assert next(flows)[1] == "0.0.0.0"
        assert sum(1 for _ in flows) == count - 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20  # a tuple for each would be more than twice that
    environment = dict(os.environ, MPTM_STATE_DIR=str(node.store.directory.parent))
    with subprocess.Popen(
        [sys.executable, "-m", "mptm", "flow", "list"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
    ) as listing:  # fmt: skip
        assert listing.stdout is not None and listing.stderr is not None
        assert listing.stdout.readline().split()[0] == "NETWORK"
        listing.stdout.close()
        assert listing.stderr.read() == ""
        listing.wait(60)


def test_wrong_use_of_the_commands_is_told(command, tmp_path):
    path = csv(tmp_path, "source,destination\n10.0.0.1,10.0.0.2\nx,10.0.0.2\n")
    assert command("flow", "load", path, "--network", "blue", "--via", "t", "--drop")[0] == 2
    assert command("flow", "load", path, "--name", "a b", "--network", "blue", "--drop")[0] == 2
    status, _, said = command("flow", "load", path, "--network", "blue", "--drop")
    assert (status, "line 3: source 'x' is not an IPv4 or IPv6 address" in said) == (1, True)
    status, _, said = command("flow", "load", path, "--drop")
    assert "give --network for all of its flows" in said
    status, _, said = command("flow", "unload", "none")
    assert (status, "there is no bundle none" in said) == (1, True)


def test_a_next_hop_is_written_as_it_is_read():
    for text in (
        "blue via t",
        "blue group g relay mac 02:00:00:00:00:01",
        "red port eth0",
        "red drop",
        "red pass",
    ):
        assert str(NextHop.from_text(text)) == text
