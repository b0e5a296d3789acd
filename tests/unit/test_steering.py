# SPDX-License-Identifier: GPL-2.0-only
"""Changes of routes and flows read, compile and write only them, and come to the same as doing everything again."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from fake import FakeKernel
from hypothesis import given, settings
from hypothesis import strategies as st

from mptm.compile import Allocations, compile_steering, compile_tables
from mptm.errors import InvalidIntent, KernelError, MptmError, NotFound, TableFull
from mptm.facts import Facts
from mptm.intent import Flow, Group, Intent, Member, Network, Port, Route, tunnel_from_dict
from mptm.node import Node, steering_changes
from mptm.sections import Changed, changed


def tunnel(name: str, remote: str, **more: object):
    common = {"protocol": "geneve", "network": "blue", "vni": 100}
    return tunnel_from_dict({"name": name, "remote": remote, **common, **more})


BASE = Intent.of(
    [
        Network(name="blue", id=1, gateway=("10.1.0.254", "fd01::fe")),
        Network(name="red", id=2),
        Port(name="eth0", role="uplink"),
        Port(name="veth-a", role="access", network="blue"),
        Port(name="veth-b", role="access", network="red"),
        tunnel("t", "10.30.30.2"),
        tunnel("u", "10.30.30.3"),
        tunnel("r", "10.30.30.4", network="red", vni=7),
        Group(name="both", network="blue", members=(Member(tunnel="t"), Member(tunnel="u"))),
    ]
)
NEXT_HOPS = {
    "blue": (
        {"via": "t"},
        {"via": "u", "relay": True},
        {"group": "both", "mac": "02:00:00:00:00:09"},
        {"port": "veth-a"},
        {"drop": True},
        {"pass_": True},
    ),
    "red": ({"via": "r"}, {"port": "veth-b"}, {"drop": True}),
}
PREFIXES = ("10.1.0.1/32", "10.1.0.254/32", "10.1.0.0/24", "fd01::1/128", "fd01::fe/128", "fd01::/64", "::/0")
PAIRS = (("10.1.0.1", "10.1.0.2"), ("10.1.0.2", "10.1.0.1"), ("fd01::1", "fd01::2"))


@st.composite
def steered(draw):
    network = draw(st.sampled_from(sorted(NEXT_HOPS)))
    next_hop = draw(st.sampled_from(NEXT_HOPS[network]))
    if draw(st.booleans()):
        return Route(network=network, prefix=draw(st.sampled_from(PREFIXES)), **next_hop)
    source, destination = draw(st.sampled_from(PAIRS))
    return Flow(network=network, source=source, destination=destination, **next_hop)


def put(intent: Intent, obj: Route | Flow, remove: bool) -> Intent:
    """The object added, replaced, or, where it is there and that is wanted, removed."""
    if obj.key not in intent.of_kind(obj.kind):
        return intent.add(obj)
    return intent.remove(obj.kind, obj.key) if remove else intent.replace(obj)


CHANGES = st.lists(st.lists(st.tuples(steered(), st.booleans()), min_size=1, max_size=4), max_size=6)


@settings(max_examples=30, deadline=None)
@given(CHANGES)
def test_tables_after_any_changes_are_those_of_the_whole(edits):
    kernel = FakeKernel()
    facts = kernel.gather_facts(BASE.tunnels.values(), resolve_timeout_seconds=0)
    intent = BASE
    whole = compile_tables(intent, facts, Allocations())
    for edit in edits:
        wanted = replace_sections(intent)
        before = wanted
        for obj, remove in edit:
            wanted = put(wanted, obj, remove)
        changes = steering_changes(before, wanted)
        assert changes is not None
        pairs = [(change.before, change.after) for change in changes]
        steering = compile_steering(wanted, pairs, facts, whole.allocations)
        after = compile_tables(wanted, facts, whole.allocations)
        if steering is None:
            assert after.tables.ports != whole.tables.ports  # they know which tables are looked at
        else:
            assert steering.allocations == after.allocations
            for name, entries in vars(whole.tables).items():
                removed = steering.removed.get(name, [])
                kept = {key: value for key, value in entries.items() if key not in removed}
                assert {**kept, **getattr(steering.tables, name)} == getattr(after.tables, name), name
            assert all(after.states[key] == state for key, state in steering.states.items())
        intent = Intent.of(wanted.objects())
        whole = compile_tables(intent, facts, whole.allocations)


def replace_sections(intent: Intent) -> Intent:
    """The same, as if its routes and flows were read from the store when they are needed."""
    fields = {name: getattr(intent, name) for name in Intent.__struct_fields__}
    return Intent(
        **fields | {"routes": MappingProxyType(intent.routes), "flows": MappingProxyType(intent.flows)}
    )


@settings(max_examples=8, deadline=None)
@given(CHANGES)
def test_a_node_is_after_any_changes_what_it_is_by_the_whole_path(edits):
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPTM_STATE_DIR", directory)
        kernel = FakeKernel()
        node, other = Node("steered", kernel=kernel), Node("whole", kernel=kernel)
        other._steer = lambda *_: None  # type: ignore[method-assign]
        for each in (node, other):
            each.apply(BASE)
        for edit in edits:
            plans = []
            for each in (node, other):

                def change(intent: Intent, edit=edit) -> Intent:
                    for obj, remove in edit:
                        intent = put(intent, obj, remove)
                    return intent

                plans.append(each.edit(change))
            assert set(map(str, plans[0].changes)) == set(map(str, plans[1].changes))
            assert kernel.planes["steered"].bytes() == kernel.planes["whole"].bytes()
            one, two = node.store.read(), other.store.read()
            assert (one.intent, one.applied, one.allocations) == (two.intent, two.applied, two.allocations)
            assert not one.interrupted
            assert node.restore().outcome.changes == ()


HERE = Route(network="blue", prefix="10.1.0.1/32", via="t")
WIDE = Route(network="blue", prefix="10.2.0.0/16", via="t")
FLOW = Flow(network="blue", source="10.1.0.1", destination="10.1.0.2", via="u")


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def node(kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setenv("MPTM_STATE_DIR", str(tmp_path))
    node = Node(kernel=kernel)
    node.apply(BASE.add(HERE).add(FLOW))
    return node


def log_of(kernel: FakeKernel, doing) -> list[str]:
    plane = kernel.planes["default"]
    plane.log.clear()
    doing()
    return plane.log


def test_a_change_of_a_route_touches_nothing_but_its_entry(node, kernel):
    kernel.asked.clear()
    new = Route(network="blue", prefix="10.1.0.7/32", via="u")
    assert log_of(kernel, lambda: node.add(new)) == ["update hosts_v4"]
    assert log_of(kernel, lambda: node.remove("route", new.key)) == ["delete hosts_v4"]
    assert kernel.asked == []


def test_other_routes_are_not_even_read(node, monkeypatch):
    monkeypatch.setattr("mptm.store.StoredObjects.load", lambda _: pytest.fail("everything was read"))
    node.replace(Route(network="blue", prefix=HERE.prefix, drop=True))
    node.add(Route(network="blue", prefix="10.1.0.7/32", port="veth-a"))
    with pytest.raises(MptmError):
        node.add(HERE)
    node.remove("route", HERE.key)


def test_the_first_entry_of_a_table_tells_the_ports_to_look_there(node, kernel):
    assert "update ports" in log_of(kernel, lambda: node.add(WIDE))
    assert "update ports" not in log_of(
        kernel, lambda: node.add(Route(network="blue", prefix="10.3.0.0/16", drop=True))
    )


def test_what_leads_into_a_tunnel_that_is_down_looks_whether_it_still_is(node, kernel):
    kernel.silent.add("10.30.30.3")
    node.restore()
    plan = node.add(Route(network="blue", prefix="10.1.0.7/32", via="u"))
    assert any("tunnel u is down" in warning for warning in plan.warnings)
    kernel.silent.clear()
    plan = node.add(Route(network="blue", prefix="10.1.0.8/32", group="both"))
    assert plan.states["tunnel", "u"] == "up"
    kernel.asked.clear()
    node.add(Route(network="blue", prefix="10.1.0.9/32", via="u"))
    assert kernel.asked == []


def test_an_interface_that_is_another_one_by_now_is_seen_where_something_leads_to_it(node, kernel):
    kernel.links["veth-a"] = replace(kernel.links["veth-a"], ifindex=40)
    node.add(Route(network="blue", prefix="10.1.0.7/32", port="veth-a"))
    assert kernel.planes["default"].attached["veth-a"].ifindex == 40


@pytest.mark.parametrize("lost", ["unloaded", "upgrade"])
def test_a_data_plane_that_is_not_as_it_was_is_brought_up_whole(node, kernel, lost):
    if lost == "unloaded":
        kernel.planes.clear()
    else:
        kernel.planes["default"].upgrade_needed = True
    node.add(Route(network="blue", prefix="10.1.0.7/32", via="t"))
    assert set(kernel.planes["default"].attached) == {"eth0", "veth-a", "veth-b"}
    assert not kernel.planes["default"].upgrade_needed
    assert node.restore().outcome.changes == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Route(network="blue", prefix="10.5.0.0/16", via="nowhere"), "there is no tunnel nowhere"),
        (Route(network="green", prefix="10.5.0.0/16", drop=True), "there is no network green"),
        (
            Flow(network="red", source="1.1.1.1", destination="1.1.1.2", via="t"),
            "is of network blue, not red",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(node, kernel, change, message):
    before = node.intent, kernel.planes["default"].bytes()
    with pytest.raises(InvalidIntent, match=message):
        node.add(change)
    assert (node.intent, kernel.planes["default"].bytes()) == before


def test_a_route_that_is_not_there_is_not_found(node):
    with pytest.raises(NotFound, match=r"there is no route blue 10\.9\.9\.9/32"):
        node.remove("route", "blue 10.9.9.9/32")


def test_a_route_that_makes_a_flow_into_the_stack_wrong_is_refused(node):
    gre = {"protocol": "gre", "network": "red", "remote": "10.30.30.9", "to_stack": True}
    node.add(tunnel_from_dict({"name": "stack", **gre}))
    node.add(Flow(network="red", source="10.1.0.1", destination="10.1.0.2", via="stack"))
    with pytest.raises(InvalidIntent, match="to_stack"):
        node.add(Route(network="red", prefix="10.1.0.2/32", via="r", mac="02:00:00:00:00:01"))


@pytest.mark.parametrize("step", ["update flows_v4", "update hosts_v4", "delete hosts_v4"])
def test_a_failure_at_any_step_puts_back_what_was(node, kernel, step):
    plane = kernel.planes["default"]
    before = node.intent, plane.bytes()
    steps: list[str] = []

    def fail(now: str) -> None:
        steps.append(now)
        if now == step and steps.count(step) == 1:
            raise TableFull("the table is full")

    plane.fail = fail
    with pytest.raises(TableFull):
        node.edit(
            lambda intent: (
                intent.remove("route", HERE.key)
                .add(Route(network="blue", prefix="10.1.0.7/32", via="u"))
                .replace(Flow(network="blue", source="10.1.0.1", destination="10.1.0.2", via="t"))
            )
        )
    assert (node.intent, plane.bytes()) == before
    assert not node.store.read().interrupted


class Killed(BaseException):
    """Stands for SIGKILL: nothing that the process would still do is done."""


@pytest.mark.parametrize("step", ["update hosts_v4", "mark"])
def test_the_next_command_completes_what_a_killed_one_began(node, kernel, step, monkeypatch):
    def die(now: str) -> None:
        if now == step:
            raise Killed

    new = Route(network="blue", prefix="10.1.0.7/32", via="u")
    kernel.planes["default"].fail = die
    with monkeypatch.context() as patch:
        patch.setattr(node, "_put_back", lambda *_: None)
        patch.setattr(node.store, "mark_applied", lambda *_: die("mark"))
        with pytest.raises(Killed):
            node.add(new)
    kernel.planes["default"].fail = None
    assert node.store.read().interrupted
    again = Route(network="blue", prefix="10.1.0.8/32", via="u")
    Node(kernel=kernel).add(again)
    assert node.intent == BASE.add(HERE).add(FLOW).add(new).add(again)
    assert not node.store.read().interrupted
    assert node.restore().outcome.changes == ()


def test_a_state_of_an_older_version_goes_the_whole_way_once(node, kernel):
    snapshot = node.store.read()
    older = Allocations(
        **{
            name: getattr(snapshot.allocations, name)
            for name in Allocations.__struct_fields__
            if name != "uses"
        }
    )
    node.store.mark_applied(node.store.write(snapshot.intent, older))
    assert "attach eth0" in log_of(kernel, lambda: node.add(replace_prefix("10.1.0.7/32")))
    assert "attach eth0" not in log_of(kernel, lambda: node.add(replace_prefix("10.1.0.8/32")))


def replace_prefix(prefix: str) -> Route:
    return Route(network="blue", prefix=prefix, via="t")


def test_when_the_store_fails_nothing_is_written_to_the_tables(node, kernel, monkeypatch):
    def refuse(*_: object) -> int:
        raise KernelError("no space", 28)

    monkeypatch.setattr(node.store, "write_changes", refuse)
    before = kernel.planes["default"].bytes()
    with pytest.raises(KernelError):
        node.add(replace_prefix("10.1.0.7/32"))
    assert kernel.planes["default"].bytes() == before


def test_sections_hide_what_was_removed_and_show_what_was_changed():
    base = Changed({"a": 1, "b": 2, "c": 3}, {})
    section = changed(changed(base, {"a": None, "b": 20}), {"d": 4, "e": None})
    assert dict(section) == {"b": 20, "c": 3, "d": 4}
    assert (len(section), "a" in section, "d" in section, section.get("a")) == (3, False, True, None)
    assert section == {"b": 20, "c": 3, "d": 4}
    with pytest.raises(KeyError):
        section["a"]
    assert changed({"a": 1, "b": 2}, {"a": None, "c": 3}) == {"b": 2, "c": 3}


def test_facts_of_links_are_enough(kernel):
    whole = compile_tables(
        BASE, kernel.gather_facts(BASE.tunnels.values(), resolve_timeout_seconds=0), Allocations()
    )
    new = Route(network="blue", prefix="10.1.0.7/32", via="t")
    found = compile_steering(BASE.add(new), [(None, new)], Facts(), whole.allocations)
    assert found is not None
    assert [value.id for value in found.tables.hosts_v4.values()] == [whole.allocations.tunnels["t"].slot]
