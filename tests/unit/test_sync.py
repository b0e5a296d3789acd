# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import dataclasses

import pytest
from fake import FakeDataPlane, FakeKernel, link
from hypothesis import given, settings
from hypothesis import strategies as st

from mptm import sync
from mptm.compile import Allocations, Compiled, compile_tables
from mptm.errors import TableFull
from mptm.intent import (
    Flow,
    Group,
    Intent,
    Member,
    Network,
    Object,
    Port,
    Route,
    Tunnel,
    tunnel_from_dict,
)
from mptm.reasons import Reason

OBJECTS: list[Object] = [
    Network(name="blue", id=1, gateway=("10.1.0.254", "fd00::fe")),
    Network(name="red", id=2),
    Port(name="eth0", role="uplink"),
    Port(name="veth-a", role="access", network="blue"),
    Port(name="veth-b", role="access", network="red"),
    tunnel_from_dict(
        {"name": "g", "protocol": "geneve", "network": "blue", "remote": "10.30.30.2", "vni": 1}
    ),
    tunnel_from_dict(
        {
            "name": "x",
            "protocol": "vxlan",
            "network": "red",
            "remote": "10.30.30.3",
            "vni": 2,
            "accept": ["gre,key=5"],
        }
    ),
    tunnel_from_dict({"name": "v", "protocol": "vlan", "network": "red", "remote": "10.30.30.4", "vid": 7}),
    tunnel_from_dict(
        {
            "name": "h",
            "protocol": "geneve",
            "network": "blue",
            "remote": "10.30.30.5",
            "vni": 1,
            "split_horizon": 3,
        }
    ),
    Group(name="gh", network="blue", members=(Member(tunnel="g", weight=2), Member(tunnel="h"))),
    Group(name="only-g", network="blue", members=(Member(tunnel="g"),)),
    Route(network="blue", prefix="10.1.0.1/32", via="g", relay=True),
    Route(network="blue", prefix="10.1.0.3/32", group="gh"),
    Flow(network="blue", source="10.1.0.2", destination="10.1.0.3", group="only-g", relay=True),
    Route(network="blue", prefix="10.1.0.2/32", port="veth-a"),
    Route(network="blue", prefix="10.2.0.0/16", drop=True),
    Route(network="red", prefix="10.1.0.0/24", via="x"),
    Route(network="red", prefix="fd00::/64", via="v"),
    Flow(network="blue", source="10.1.0.2", destination="10.1.0.1", via="g"),
    Flow(network="red", source="fd00::1", destination="fd00::2", port="veth-b"),
]
FULL = Intent.of(OBJECTS)


def compiled(intent: Intent, kernel: FakeKernel, previous: Allocations | None = None) -> Compiled:
    facts = kernel.gather_facts(intent.tunnels.values(), resolve_timeout_seconds=0)
    return compile_tables(intent, facts, previous or Allocations())


def subsets() -> st.SearchStrategy[Intent]:
    """Valid parts of FULL: an object stays when everything that it refers to does."""

    def valid_part(chosen: set[int]) -> Intent:
        intent = Intent()
        for number, obj in enumerate(OBJECTS):
            if number in chosen and not list(intent.add(obj).problems()):
                intent = intent.add(obj)
        return intent

    return st.sets(st.integers(0, len(OBJECTS) - 1)).map(valid_part)


def test_an_empty_data_plane_gets_everything_and_a_second_run_nothing():
    plane, kernel = FakeDataPlane(), FakeKernel()
    made = compiled(FULL, kernel)
    first = sync.apply(plane, made)
    assert {change.table for change in first.changes} >= {
        "tunnels",
        "ports",
        "hosts_v4",
        "flows_v6",
        "prefixes_v6",
    }
    assert first.modes == {"eth0": "tcx", "veth-a": "tcx", "veth-b": "tcx"}
    assert first.moved == {}
    plane.log.clear()
    second = sync.apply(plane, made, made.allocations)
    assert second.changes == ()
    assert [step for step in plane.log if not step.startswith("attach")] == []


def test_what_is_pointed_at_is_written_first_and_attached_last():
    plane = FakeDataPlane()
    sync.apply(plane, compiled(FULL, FakeKernel()))
    log = [step for step in plane.log if "counters" not in step]
    assert log.index("update tunnels") < log.index("update terminations") < log.index("update hosts_v4")
    assert log.index("update hosts_v4") < log.index("update flows_v4") < log.index("attach eth0")


def test_removal_detaches_before_the_slots_are_freed_and_frees_what_is_pointed_at_last():
    plane, kernel = FakeDataPlane(), FakeKernel()
    made = compiled(FULL, kernel)
    sync.apply(plane, made)
    plane.log.clear()
    outcome = sync.apply(plane, compiled(Intent(), kernel, made.allocations), made.allocations)
    assert set(outcome.detached) == {"eth0", "veth-a", "veth-b"}
    assert plane.log.index("detach veth-a") < plane.log.index("delete flows_v4")
    assert plane.log.index("delete hosts_v4") < plane.log.index("delete terminations")
    assert plane.log.index("delete hosts_v4") < plane.log.index("delete tunnels")
    assert plane.log.index("delete ports") < plane.log.index("delete tunnels")
    assert not any(plane.bytes().values())


@settings(max_examples=60, deadline=None)
@given(st.lists(subsets(), min_size=1, max_size=4))
def test_no_entry_dangles_on_the_way_from_any_node_to_any_other(intents):
    plane, kernel, previous = FakeDataPlane(), FakeKernel(), Allocations()
    for intent in intents:
        made = compiled(intent, kernel, previous)
        sync.apply(plane, made, previous)
        previous = made.allocations
        fresh = FakeDataPlane()
        sync.apply(fresh, made, None)
        assert plane.bytes() == fresh.bytes()


@settings(max_examples=40, deadline=None)
@given(subsets(), subsets(), st.integers(0, 60))
def test_a_run_that_breaks_off_anywhere_is_completed_by_the_next(before, after, steps):
    plane, kernel = FakeDataPlane(), FakeKernel()
    old = compiled(before, kernel)
    sync.apply(plane, old)
    new = compiled(after, kernel, old.allocations)
    left = steps

    def fail(_: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise TableFull("no room")

    plane.fail = fail
    try:
        sync.apply(plane, new, old.allocations)
    except TableFull:
        plane.fail = None
        sync.apply(plane, new, old.allocations)
    fresh = FakeDataPlane()
    sync.apply(fresh, new)
    assert plane.bytes() == fresh.bytes()


def test_a_changed_template_gets_a_new_slot_before_the_old_one_is_freed():
    plane, kernel = FakeDataPlane(), FakeKernel()
    made = compiled(FULL, kernel)
    sync.apply(plane, made)
    tunnel = tunnel_from_dict(FULL.tunnels["g"].to_dict() | {"ttl": 9})
    again = compiled(FULL.replace(tunnel), kernel, made.allocations)
    old, new = (each.allocations.tunnels["g"] for each in (made, again))
    assert old.slot != new.slot and old.counter == new.counter
    changes = sync.apply(plane, again, made.allocations).changes
    touched = [change for change in changes if change.table == "tunnels"]
    assert [(change.old is None, change.new is None) for change in touched] == [(True, False), (False, True)]


def test_a_migration_never_leaves_what_is_sent_or_accepted_without_its_entries():
    """After every single write: what either node may send at that moment has a termination with a live tunnel."""
    plane, kernel = FakeDataPlane(), FakeKernel()
    previous = None
    values = {"name": "t", "network": "blue", "remote": "10.30.30.2", "vni": 1}
    steps = [
        ({"protocol": "vxlan"}, set()),
        ({"protocol": "vxlan", "accept": ["geneve,vni=1"]}, {"vxlan"}),
        ({"protocol": "geneve", "accept": ["vxlan,vni=1"]}, {"vxlan", "geneve"}),
        ({"protocol": "geneve"}, {"geneve"}),
    ]
    ports = {"vxlan": 4789, "geneve": 6081}
    route = Route(network="blue", prefix="10.1.0.1/32", via="t")
    needed: set[str] = set()

    def check() -> None:
        FakeDataPlane.check(plane)
        parsers = {
            at % 65536
            for row, record in plane.maps["listeners"].records()
            for at, parser in enumerate(record["parsers"], row["value"] * 8)
            if parser
        }
        accepted = {
            record["number"] for _, record in plane.maps["terminations"].records() if record["parser"]
        }
        assert {ports[name] for name in needed} <= parsers & accepted
        if needed:
            (host,) = (record for _, record in plane.maps["hosts_v4"].records() if record["kind"] == 2)
            templates = {key["value"]: record for key, record in plane.maps["tunnels"].records()}
            assert templates[host["id"]]["outer_len"]

    plane.check = check  # type: ignore[method-assign]
    for fields, accepted_throughout in steps:
        tunnel = tunnel_from_dict(values | fields)
        made = compiled(Intent.of([*OBJECTS[:5], tunnel, route]), kernel, previous)
        needed = accepted_throughout
        sync.apply(plane, made, previous)
        previous = made.allocations


def test_groups_lead_to_a_changed_template_before_the_old_one_is_freed():
    plane, kernel = FakeDataPlane(), FakeKernel()
    made = compiled(FULL, kernel)
    sync.apply(plane, made)
    tunnel = tunnel_from_dict(FULL.tunnels["g"].to_dict() | {"ttl": 9})
    again = compiled(FULL.replace(tunnel), kernel, made.allocations)
    assert again.allocations.groups == made.allocations.groups
    plane.log.clear()
    changes = sync.apply(plane, again, made.allocations).changes
    assert {change.table for change in changes} >= {"groups", "tunnels", "hosts_v4"}
    assert all(change.old and change.new for change in changes if change.table == "groups")
    groups = [number for number, step in enumerate(plane.log) if step == "update groups"]
    assert plane.log.index("update tunnels") < min(groups)
    assert max(groups) < plane.log.index("update hosts_v4") < plane.log.index("delete tunnels")


def test_counters_and_drops_of_a_new_tunnel_start_at_zero_and_those_of_others_stay():
    plane, kernel = FakeDataPlane(), FakeKernel()
    part = Intent.of([each for each in OBJECTS if not (isinstance(each, Tunnel) and each.name != "g")][:6])
    made = compiled(part, kernel)
    sync.apply(plane, made)
    counters, drops = plane.maps["tunnel_counters"], plane.maps["drops"]

    def count(counter: int) -> None:
        counters.entries[counters.key.pack(counter)] = b"\1" * counters.value.size
        scope = (sync.SCOPE_TUNNEL).to_bytes(2, "little")
        drops.entries[(4).to_bytes(2, "little") + scope + counter.to_bytes(4, "little")] = b"\1" * 16

    whole = compiled(FULL, kernel, made.allocations)
    kept, new = whole.allocations.tunnels["g"].counter, whole.allocations.tunnels["x"].counter
    count(kept)
    count(new)
    sequences = plane.maps["sequences"]
    sequences.update({sequences.key.pack(counter): b"\7\0\0\0" for counter in (kept, new)})
    sync.apply(plane, whole, made.allocations)
    assert set(counters.entries) == {counters.key.pack(kept)}
    assert set(sequences.entries) == {sequences.key.pack(kept)}
    assert {key["id"] for key, _ in drops.records() if key["scope"]} == {kept}


def drop_keys(plane: FakeDataPlane) -> set[tuple[int, int, int]]:
    return {(key["reason"], key["scope"], key["id"]) for key, _ in plane.maps["drops"].records()}


def test_every_reason_has_an_entry_for_drops_that_find_no_room_and_it_keeps_its_count():
    plane, kernel = FakeDataPlane(), FakeKernel()
    sync.apply(plane, compiled(Intent(), kernel))
    fallbacks = {(reason, sync.SCOPE_OTHER, 0) for reason in Reason}
    assert drop_keys(plane) == fallbacks
    drops = plane.maps["drops"]
    counted = drops.key.pack(sync.DropKey(Reason.REASON_NO_ROUTE, sync.SCOPE_OTHER, 0))
    drops.entries[counted] = b"\1" * 16
    del drops.entries[drops.key.pack(sync.DropKey(Reason.REASON_TOO_BIG, sync.SCOPE_OTHER, 0))]
    sync.apply(plane, compiled(FULL, kernel))
    assert drop_keys(plane) == fallbacks
    assert drops.entries[counted] == b"\1" * 16
    sync.reset_drops(drops)
    assert drop_keys(plane) == fallbacks
    assert drops.entries[counted] == bytes(16)


def test_drops_of_ports_and_tunnels_that_are_gone_make_room():
    plane, kernel = FakeDataPlane(), FakeKernel()
    made = compiled(FULL, kernel)
    sync.apply(plane, made)
    drops = plane.maps["drops"]
    counters = {name: held.counter for name, held in made.allocations.tunnels.items()}
    for scope, number in ((1, 10), (1, 11), (2, counters["g"]), (2, counters["x"])):
        drops.entries[drops.key.pack(sync.DropKey(4, scope, number))] = b"\1" * 16
    part = FULL.remove("flow", "red fd00::1 fd00::2").remove("port", "veth-b")
    part = part.remove("route", "red 10.1.0.0/24").remove("tunnel", "x")
    sync.apply(plane, compiled(part, kernel, made.allocations), made.allocations)
    assert {key for key in drop_keys(plane) if key[1]} == {(4, 1, 10), (4, 2, counters["g"])}


def test_a_table_of_drops_that_is_full_of_what_is_in_use_stops_no_change():
    plane, kernel = FakeDataPlane(), FakeKernel()

    def full(step: str) -> None:
        if step == "update drops":
            raise TableFull("the table drops is full")

    plane.fail = full
    sync.apply(plane, compiled(FULL, kernel))
    assert plane.attached.keys() == {"eth0", "veth-a", "veth-b"}


def test_links_are_switched_to_a_new_build_once_its_tables_are_filled():
    plane, kernel = FakeDataPlane(), FakeKernel()
    made = compiled(FULL, kernel)
    plane.upgrade_needed = True
    outcome = sync.apply(plane, made)
    assert outcome.upgraded
    assert (
        plane.log.index("update flows_v6") < plane.log.index("switch links") < plane.log.index("attach eth0")
    )


def test_an_interface_that_came_back_with_another_number_is_attached_again():
    plane, kernel = FakeDataPlane(), FakeKernel()
    made = compiled(FULL, kernel)
    sync.apply(plane, made)
    kernel.links["veth-a"] = link(77, "veth-a", kind="veth", peer_mac=b"\4" * 6)
    plane.attached.pop("veth-a")  # the link went with the interface
    again = compiled(FULL, kernel, made.allocations)
    sync.apply(plane, again, made.allocations)
    assert plane.attached["veth-a"].ifindex == 77


@pytest.mark.parametrize("name", sync.WRITE_ORDER)
def test_every_table_that_is_written_is_also_emptied(name):
    assert name in sync.DELETE_ORDER


@pytest.mark.parametrize("going_back", [False, True], ids=["emptied", "replaced by others in the same slots"])
def test_a_termination_never_has_its_key_without_its_own_value(going_back):
    plane, kernel = FakeDataPlane(), FakeKernel()
    table = plane.maps["terminations"]
    seen: list[tuple[bytes | None, bytes | None]] = []
    update, delete = table.update, table.delete

    def watched_update(entries):
        for key, value in entries.items():
            seen.append((table.entries.get(key), value))
            update({key: value})

    def watched_delete(keys):
        keys = list(keys)
        seen.extend((table.entries.get(key), None) for key in keys)
        delete(keys)

    table.update, table.delete = watched_update, watched_delete
    first = compiled(FULL, kernel)
    sync.apply(plane, first)
    if going_back:
        # As after a change that failed: what is put back was allotted its slots without a look at what came since.
        keys = sorted(first.tables.terminations)
        turned = dict(
            zip(keys, (first.tables.terminations[key] for key in [*keys[1:], keys[0]]), strict=True)
        )
        tables = dataclasses.replace(first.tables, terminations=turned)
        sync.apply(plane, dataclasses.replace(first, tables=tables), first.allocations)
        assert {key["value"]: value["number"] for key, value in table.records()} == {
            key: value.number for key, value in turned.items()
        }
    else:
        sync.apply(plane, compiled(Intent(), kernel, first.allocations), first.allocations)
    unpack = table.value.unpack
    assert len(seen) == (25 if going_back else 20)
    for old, new in seen:
        before = unpack(old) if old else None
        after = unpack(new) if new else None
        if after and after["parser"]:
            assert before is not None, "a key was written into an empty slot"
            assert {**before, "parser": after["parser"]} == after
        elif before and before["parser"]:
            assert after == {**before, "parser": 0}, "a value was changed while its key was there"
