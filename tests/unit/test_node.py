# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake import FakeDataPlane, FakeKernel, link

from mptm.errors import (
    AlreadyExists,
    Busy,
    ForeignProgram,
    InUse,
    InvalidIntent,
    KernelError,
    MptmError,
    NotFound,
    TableFull,
    Unresolved,
)
from mptm.facts import Facts
from mptm.intent import Flow, Group, Intent, Member, Network, Port, Route, Tunnel, tunnel_from_dict
from mptm.node import NetnsIdentity, Node, SystemKernel
from mptm.reasons import Reason

BLUE = Network(name="blue", id=1)
UPLINK = Port(name="eth0", role="uplink")
ACCESS = Port(name="veth-a", role="access", network="blue")
THERE = Route(network="blue", prefix="10.1.0.1/32", via="t")
HERE = Route(network="blue", prefix="10.1.0.2/32", port="veth-a")


def tunnel(name: str = "t", **fields: object) -> Tunnel:
    common = {"protocol": "geneve", "network": "blue", "remote": "10.30.30.2", "vni": 100}
    return tunnel_from_dict({"name": name, **common, **fields})


FALLBACKS = {(reason, 0, 0) for reason in Reason}
FULL = Intent.of([BLUE, UPLINK, ACCESS, tunnel(), THERE, HERE])


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def node(kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setenv("MPTM_STATE_DIR", str(tmp_path))
    return Node(kernel=kernel)


def test_objects_are_added_one_by_one_and_removed_in_reverse(node, kernel):
    for obj in FULL.objects():
        node.add(obj)
    assert node.intent == FULL
    assert set(kernel.planes["default"].attached) == {"eth0", "veth-a"}
    for obj in reversed(list(FULL.objects())):
        node.remove(obj.kind, obj.key)
    assert node.intent == Intent()
    assert not any(kernel.planes["default"].bytes().values())


def test_step_by_step_and_all_at_once_give_the_same_tables(node, kernel):
    for obj in FULL.objects():
        node.add(obj)
    other = Node("other", kernel=kernel)
    other.apply(FULL)
    assert kernel.planes["default"].bytes() == kernel.planes["other"].bytes()


def test_applying_twice_changes_nothing_the_second_time(node, kernel):
    assert len(node.apply(FULL).changes) == 6
    before = kernel.planes["default"].bytes()
    again = node.apply(FULL)
    assert (again.changes, again.outcome.changes) == ((), ())
    assert kernel.planes["default"].bytes() == before


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda node: node.add(BLUE), AlreadyExists),
        (lambda node: node.remove("network", "blue"), InUse),
        (lambda node: node.remove("route", "blue 9.9.9.9/32"), NotFound),
        (lambda node: node.replace(tunnel("nowhere")), NotFound),
        (lambda node: node.add(tunnel("u", network="red")), InvalidIntent),
        (lambda node: node.apply(FULL.add(Network(name="red", id=1))), InvalidIntent),
    ],
)
def test_a_change_that_makes_no_sense_changes_nothing(node, kernel, change, error):
    node.apply(FULL)
    before = kernel.planes["default"].bytes()
    with pytest.raises(error):
        change(node)
    assert node.intent == FULL
    assert kernel.planes["default"].bytes() == before


SHARED = Group(name="both", network="blue", members=(Member(tunnel="t", weight=3), Member(tunnel="u")))
TO_BOTH = Route(network="blue", prefix="10.9.0.0/16", group="both")


def test_the_details_of_a_group_are_its_members_with_what_they_get(node, kernel):
    node.apply(Intent.of([*FULL.objects(), tunnel("u", remote="10.30.30.3"), SHARED, TO_BOTH]))
    details = node.group_details("both")
    assert (details.name, details.network, details.state) == ("both", "blue", "up")
    first, second = details.members
    assert (first.tunnel, first.weight, first.state) == ("t", 3, "up")
    assert first.share is not None and 0.72 < first.share < 0.78
    assert second.share == 1 - first.share
    kernel.silent.add("10.30.30.3")
    node.restore()
    details = node.group_details("both")
    assert details.state == "degraded: u is down"
    assert [member.share for member in details.members] == [1, 0]
    assert details.members[1].state.startswith("down: 10.30.30.3 is on-link")
    assert details.to_dict()["members"][1]["tunnel"] == "u"
    kernel.root = False
    without_root = node.group_details("both")
    assert [member.share for member in without_root.members] == [None, None]
    with pytest.raises(NotFound, match="there is no group none"):
        node.group_details("none")


def test_status_names_a_group_without_a_member_and_not_each_route_to_it(node, kernel):
    node.apply(Intent.of([*FULL.objects(), tunnel("u", remote="10.30.30.3"), SHARED, TO_BOTH]))
    assert node.status().healthy
    kernel.silent.add("10.30.30.3")
    status = node.status()
    assert ("group", "both", "degraded: u is down") in status.objects
    assert not status.healthy
    kernel.silent.add("10.30.30.2")
    states = {(kind, key): state for kind, key, state in node.status().objects}
    assert states["group", "both"] == "down: all members are down"
    assert not [key for kind, key in states if kind == "route"]


def test_a_remote_that_does_not_answer_is_refused_in_words_and_changes_nothing(node, kernel):
    node.apply(FULL)
    kernel.silent.add("10.30.30.9")
    with pytest.raises(
        Unresolved, match=r"tunnel u: 10\.30\.30\.9 is on-link at eth0 but doesn't answer ARP"
    ):
        node.add(tunnel("u", remote="10.30.30.9"))
    assert node.intent == FULL


def test_a_port_of_an_interface_that_is_not_there_is_refused_and_changes_nothing(node, kernel):
    with pytest.raises(NotFound, match="there is no interface veth-z") as caught:
        node.add(Port(name="veth-z", role="uplink"))
    assert "did you mean veth-b?" in str(caught.value)
    assert "veth-z" not in node.intent.ports


def test_with_a_mac_no_answer_is_needed(node, kernel):
    node.apply(FULL)
    kernel.silent.add("10.30.30.9")
    plan = node.add(tunnel("u", remote="10.30.30.9", remote_mac="02:00:00:00:00:99"))
    assert plan.states["tunnel", "u"] == "up"


def test_a_neighbour_that_falls_silent_does_not_take_a_tunnel_down_when_something_else_changes(node, kernel):
    node.apply(FULL)
    before = kernel.planes["default"].bytes()["tunnels"]
    kernel.silent.add("10.30.30.2")
    plan = node.add(Network(name="red", id=2))
    assert kernel.planes["default"].bytes()["tunnels"] == before
    assert plan.unresolved == ()


@pytest.mark.parametrize(
    "other",
    [
        link(2, "eth1"),
        replace(link(2, "eth0"), mac=b"\2\0\0\0\0\xee"),
        replace(link(3, "eth0"), mac=link(2, "").mac),
    ],
    ids=["name", "mac", "number"],
)
def test_a_remembered_path_is_not_used_through_an_interface_that_is_another_one(node, kernel, other):
    node.apply(Intent.of([BLUE, tunnel("spare", remote="10.30.30.8"), tunnel(), THERE]))
    kernel.links = {other.name: other, "lo": link(1, "lo")}
    kernel.gather_facts = lambda tunnels, **_: Facts(
        links=kernel.links, problems={each.name: "there is no route" for each in tunnels}
    )
    plan = node.add(Network(name="red", id=2))
    assert plan.unresolved == ("spare", "t")
    assert plan.states["tunnel", "t"] == "down: there is no route"


def test_a_path_that_an_older_version_remembered_is_not_used(node, kernel):
    node.apply(Intent.of([BLUE, tunnel("spare", remote="10.30.30.8"), tunnel(), THERE]))
    node.store.remember({"paths": '{"t": {"egress_ifindex": 2, "local": "10.30.30.1", "mtu": 1500}}'})
    kernel.silent.add("10.30.30.2")
    assert node.add(Network(name="red", id=2)).unresolved == ("t",)


def test_a_route_whose_workload_has_no_known_mac_is_refused_when_new_and_blocks_nothing_later(node, kernel):
    node.apply(FULL)
    known = kernel.links["veth-a"]
    kernel.links["veth-a"] = replace(known, peer_mac=None)
    plan = node.add(Network(name="red", id=2))
    assert plan.states["route", HERE.key].startswith("down: the MAC address of the workload behind veth-a")
    assert any("give it with --mac" in warning for warning in plan.warnings)
    assert ("route", HERE.key) in [(each.kind, each.key) for each in node.restore().down]
    assert not node.status().healthy
    for new in (
        Route(network="blue", prefix="10.1.0.3/32", port="veth-a"),
        Flow(network="blue", source="10.1.0.1", destination="10.1.0.2", port="veth-a"),
    ):
        with pytest.raises(InvalidIntent, match="workload behind veth-a can't be found out") as caught:
            node.add(new)
        assert caught.value.field == "mac"
        with pytest.raises(InvalidIntent, match="can't be found out"):
            node.plan(node.intent.add(new))
    node.replace(Route(network="blue", prefix=HERE.prefix, port="veth-a", mac="02:00:00:00:00:77"))
    assert node.status().healthy


def test_changing_that_tunnel_itself_is_refused(node, kernel):
    node.apply(FULL)
    kernel.silent.add("10.30.30.2")
    with pytest.raises(Unresolved):
        node.replace(tunnel(ttl=9))
    assert node.intent == FULL


def test_restore_after_a_reboot_brings_up_what_it_can_and_names_the_rest(node, kernel):
    node.apply(FULL.add(tunnel("u", remote="10.30.30.3")))
    kernel.planes.clear()
    kernel.silent.add("10.30.30.3")
    plan = node.restore()
    assert plan.unresolved == ("u",)
    assert plan.states["tunnel", "t"] == "up"
    assert plan.states["tunnel", "u"].startswith("down: 10.30.30.3")
    assert set(kernel.planes["default"].attached) == {"eth0", "veth-a"}
    kernel.silent.clear()
    assert node.restore().unresolved == ()


def test_restore_uses_numbers_of_now_when_interfaces_came_back_in_another_order(node, kernel):
    node.apply(FULL)
    kernel.planes.clear()
    links = kernel.links
    links["veth-a"], links["veth-b"] = (
        type(links["veth-a"])(**{**vars(links["veth-a"]), "ifindex": 11}),
        type(links["veth-b"])(**{**vars(links["veth-b"]), "ifindex": 10}),
    )
    node.restore()
    assert kernel.planes["default"].attached["veth-a"].ifindex == 11


def test_a_foreign_program_is_refused_and_everything_is_as_before(node, kernel):
    node.apply(FULL)
    plane = kernel.planes["default"]
    before = plane.bytes()
    plane.foreign.add("veth-b")
    with pytest.raises(ForeignProgram, match="theirs"):
        node.add(Port(name="veth-b", role="access", network="blue"))
    assert node.intent == FULL
    assert plane.bytes() == before
    assert not node.store.read().interrupted


@pytest.mark.parametrize("step", ["update hosts_v4", "update tunnels", "attach veth-a", "delete hosts_v4"])
def test_a_failure_at_any_step_puts_back_what_was(node, kernel, step):
    node.apply(FULL)
    plane = kernel.planes["default"]
    before = plane.bytes()
    failed = False

    def fail(now: str) -> None:
        nonlocal failed
        if now == step and not failed:
            failed = True
            raise TableFull("the table is full")

    plane.fail = fail
    other = FULL.replace(tunnel(ttl=9)).remove("route", HERE.key)
    with pytest.raises(TableFull):
        node.apply(other.add(Route(network="blue", prefix="10.1.0.3/32", via="t")))
    assert failed
    assert (node.intent, plane.bytes()) == (FULL, before)


def test_a_first_change_that_fails_leaves_no_state_behind(node, kernel, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise MptmError("the kernel doesn't take mptm.o")

    monkeypatch.setattr(kernel, "open", refuse)
    with pytest.raises(MptmError, match="doesn't take"):
        node.add(BLUE)
    assert list(tmp_path.iterdir()) == []


def test_going_back_that_fails_too_is_said_and_restore_repairs_it(node, kernel):
    node.apply(FULL)
    plane = kernel.planes["default"]

    def fail(step: str) -> None:
        raise TableFull("the table is full")

    plane.fail = fail
    with pytest.raises(TableFull) as caught:
        node.add(Route(network="blue", prefix="10.1.0.3/32", via="t"))
    assert "mptm restore" in str(caught.value)
    plane.fail = None
    node.restore()
    assert node.intent == FULL


class Killed(BaseException):
    """Stands for SIGKILL: nothing that the process would still do is done."""


def kill_at(node: Node, kernel: FakeKernel, step: str, change: Intent) -> None:
    def die(now: str) -> None:
        if now == step:
            raise Killed

    plane = kernel.planes["default"]
    plane.fail = die
    node._put_back = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(Killed):
        node.apply(change)
    plane.fail = None
    del node._put_back


@pytest.mark.parametrize("step", ["update tunnels", "update hosts_v4", "attach veth-b"])
def test_the_next_command_completes_what_a_killed_one_began(node, kernel, step):
    node.apply(FULL)
    more = FULL.add(Port(name="veth-b", role="access", network="blue")).add(
        Route(network="blue", prefix="10.1.0.3/32", port="veth-b")
    )
    more = more.add(tunnel("u", remote="10.30.30.3"))
    kill_at(node, kernel, step, more)
    assert node.store.read().interrupted
    Node(kernel=kernel).add(Network(name="red", id=2))
    assert node.intent == more.add(Network(name="red", id=2))
    whole = Node("whole", kernel=kernel)
    whole.apply(node.intent)
    assert set(kernel.planes["whole"].attached) == set(kernel.planes["default"].attached)
    assert not node.store.read().interrupted


def test_or_takes_it_back_when_it_can_not_be_completed(node, kernel):
    node.apply(FULL)
    kill_at(node, kernel, "attach veth-b", FULL.add(Port(name="veth-b", role="access", network="blue")))
    kernel.planes["default"].foreign.add("veth-b")
    said: list[str] = []
    Node(kernel=kernel, progress=said.append).add(Network(name="red", id=2))
    assert node.intent == FULL.add(Network(name="red", id=2))
    assert "taken back" in said[-1]


@pytest.mark.parametrize("place", ["compile", "open"])
def test_or_takes_it_back_when_it_fails_before_anything_is_written(node, kernel, monkeypatch, place):
    node.apply(FULL)
    before = kernel.planes["default"].bytes()
    more = FULL.add(Route(network="blue", prefix="10.1.0.3/32", via="t"))
    kill_at(node, kernel, "attach eth0", more)
    assert kernel.planes["default"].bytes() != before
    said: list[str] = []
    later = Node(kernel=kernel, progress=said.append)
    if place == "compile":
        compiling = later._compile

        def no_room(intent, facts, previous, *held):
            if intent == more:
                raise TableFull("table listeners has no room left")
            return compiling(intent, facts, previous, *held)

        later._compile = no_room
    else:
        opening, failures = kernel.open, iter([KernelError("out of memory", 12)])

        def fail_once(instance, *, load):
            for error in failures:
                raise error
            return opening(instance, load=load)

        monkeypatch.setattr(kernel, "open", fail_once)
    assert later.status().healthy
    assert "taken back" in said[-1]
    assert (node.intent, kernel.planes["default"].bytes()) == (FULL, before)
    assert not node.store.read().interrupted


def locked(*_: object, **__: object) -> None:
    raise Busy("another process has state.db locked", "try again")


def test_a_change_that_is_done_but_can_not_be_noted_says_so_and_is_completed_later(node, kernel, monkeypatch):
    node.apply(FULL)
    with monkeypatch.context() as patch, pytest.raises(Busy) as caught:
        patch.setattr(node.store, "mark_applied", locked)
        node.add(Network(name="red", id=2))
    assert "done, but not noted" in caught.value.message
    assert "the next command completes it" in str(caught.value)
    assert node.store.read().interrupted
    node.add(Network(name="green", id=3))
    assert set(node.intent.networks) == {"blue", "red", "green"}
    assert not node.store.read().interrupted


def test_completing_that_can_not_be_noted_is_not_called_taken_back(node, kernel, monkeypatch):
    node.apply(FULL)
    kill_at(node, kernel, "update hosts_v4", FULL.add(Route(network="blue", prefix="10.1.0.3/32", via="t")))
    said: list[str] = []
    later = Node(kernel=kernel, progress=said.append)
    monkeypatch.setattr(later.store, "mark_applied", locked)
    with pytest.raises(Busy, match="done, but not noted"):
        later.add(Network(name="red", id=2))
    assert not any("taken back" in each for each in said)


def test_an_error_stays_the_first_one_when_going_back_can_not_be_noted(node, kernel, monkeypatch):
    node.apply(FULL)
    before = kernel.planes["default"].bytes()
    kernel.planes["default"].foreign.add("veth-b")
    with monkeypatch.context() as patch, pytest.raises(ForeignProgram, match="theirs") as caught:
        patch.setattr(node.store, "roll_back", locked)
        node.add(Port(name="veth-b", role="access", network="blue"))
    assert "state.db locked" in str(caught.value.hint)
    assert kernel.planes["default"].bytes() == before
    Node(kernel=kernel).add(Network(name="red", id=2))
    assert node.intent == FULL.add(Network(name="red", id=2))


def test_an_interrupted_change_that_can_neither_be_completed_nor_taken_back_is_an_error(
    node, kernel, monkeypatch
):
    node.apply(FULL)
    kill_at(node, kernel, "attach veth-b", FULL.add(Port(name="veth-b", role="access", network="blue")))
    kernel.planes["default"].foreign.add("veth-b")
    later = Node(kernel=kernel)
    monkeypatch.setattr(later.store, "roll_back", locked)
    with pytest.raises(ForeignProgram):
        later.add(Network(name="red", id=2))
    assert "red" not in node.intent.networks


def test_status_completes_it_too(node, kernel):
    node.apply(FULL)
    kill_at(node, kernel, "update hosts_v4", FULL.add(Route(network="blue", prefix="10.1.0.3/32", via="t")))
    status = node.status()
    assert not status.interrupted
    assert status.healthy


def test_status_tells_what_is_not_as_it_should_be(node, kernel):
    node.apply(FULL)
    assert node.status().healthy
    plane = kernel.planes["default"]
    plane.maps["hosts_v4"].entries.clear()
    plane.attached.pop("eth0")
    status = node.status()
    assert not status.healthy
    assert status.differences == 2
    assert ("port", "eth0", "down: no program of ours is attached") in status.objects
    node.restore()
    assert node.status().healthy


def test_an_interface_that_is_gone_is_named_by_status(node, kernel):
    node.apply(FULL)
    del kernel.links["veth-a"]
    states = {(each.kind, each.key): each.state for each in node.status().objects}
    assert states["port", "veth-a"] == "missing interface"


def test_a_plan_changes_nothing_and_says_what_apply_would_do(node, kernel):
    node.apply(FULL)
    before = kernel.planes["default"].bytes()
    wanted = FULL.remove("route", HERE.key).replace(tunnel(vni=7)).add(Network(name="red", id=2))
    plan = node.plan(wanted)
    assert [str(change) for change in plan.changes] == [
        "- route blue 10.1.0.2/32 port veth-a",
        "+ network red id 2",
        "~ tunnel t: vni 100 -> 7",
    ]
    assert (node.intent, kernel.planes["default"].bytes()) == (FULL, before)


def test_a_plan_without_root_compares_the_intent_only_and_says_so(node, kernel):
    kernel.root = False
    plan = node.plan(FULL)
    assert len(plan.changes) == 6
    assert "needs root" in plan.warnings[0]


def test_without_root_a_change_is_refused_in_one_sentence(node, kernel):
    kernel.root = False
    with pytest.raises(MptmError, match="this needs root"):
        node.add(BLUE)


def test_an_instance_remembers_its_network_namespace(node, kernel):
    Node("n1", netns="ns1", kernel=kernel).apply(FULL)
    Node("n1", kernel=kernel).status()
    assert kernel.entered == ["ns1", "ns1"]
    with pytest.raises(InvalidIntent, match="lives in network namespace ns1"):
        Node("n1", netns="ns2", kernel=kernel).status()
    node.apply(FULL)
    with pytest.raises(InvalidIntent, match="lives in another network namespace, not in ns1"):
        Node(netns="ns1", kernel=kernel).add(Network(name="red", id=2))


def test_a_command_in_another_namespace_is_refused_before_it_touches_anything(node, kernel):
    node.apply(FULL)
    plane = kernel.planes["default"]
    before = plane.bytes()
    plane.log.clear()
    kernel.here = "another"
    for command in (
        lambda: node.add(Network(name="red", id=2)),
        node.restore,
        node.status,
        node.links,
        lambda: node.plan(FULL),
    ):
        with pytest.raises(InvalidIntent, match="default lives in another network namespace") as caught:
            command()
        assert "nsenter" in str(caught.value) and "--netns" in str(caught.value)
    assert (plane.log, plane.bytes()) == ([], before)
    kernel.here = "the machine's"
    assert node.status().healthy


def test_an_instance_made_within_a_namespace_can_be_named_later(node, kernel):
    kernel.here = "ns1"
    node.apply(FULL)
    kernel.here = "the machine's"
    Node(netns="ns1", kernel=kernel).add(Network(name="red", id=2))
    assert Node(kernel=kernel).netns == "ns1"
    assert Node(kernel=kernel).status().healthy


def test_after_a_reboot_the_namespace_is_learnt_anew(node, kernel):
    node.apply(FULL)
    kernel.boot, kernel.here = "second", "the machine's new one"
    kernel.planes.clear()
    node.restore()
    assert node.status().healthy
    kernel.here = "another"
    with pytest.raises(InvalidIntent, match="another network namespace"):
        node.restore()


def test_purge_is_possible_from_another_namespace(node, kernel, tmp_path):
    node.apply(FULL)
    kernel.here = "another"
    node.purge()
    assert kernel.planes["default"].removed
    assert list(tmp_path.iterdir()) == []


def test_a_namespace_is_not_remembered_by_a_change_that_failed(node, kernel):
    kernel.planes["default"] = FakeDataPlane()
    kernel.planes["default"].foreign.add("eth0")
    with pytest.raises(ForeignProgram):
        node.add(UPLINK)
    kernel.here = "another"
    kernel.planes["default"].foreign.clear()
    node.add(UPLINK)


def test_the_identity_of_a_namespace_is_that_of_its_file():
    here = SystemKernel().netns_identity()
    assert here is not None
    assert here == SystemKernel().netns_identity("/proc/self/ns/net")
    assert here == NetnsIdentity.decode(here.encode())
    assert SystemKernel().netns_identity("/nowhere/at/all") is None


def test_purge_leaves_nothing_and_can_be_repeated(node, kernel, tmp_path):
    node.apply(FULL)
    node.purge()
    assert kernel.planes["default"].removed
    assert list(tmp_path.iterdir()) == []
    node.purge()
    assert list(tmp_path.iterdir()) == []


def test_purge_works_when_the_namespace_is_gone(kernel, tmp_path, node):
    Node("n1", netns="ns1", kernel=kernel).apply(FULL)
    store = Node("n1", kernel=kernel).store
    store.write(FULL, store.read().allocations, {"netns": "gone"})
    Node("n1", kernel=kernel).purge()
    assert kernel.planes["n1"].removed


def test_counters_and_drops_go_by_names_and_reset_zeroes_them(node, kernel):
    node.apply(FULL)
    maps = kernel.planes["default"].maps
    counter = node.store.read().allocations.tunnels["t"].counter
    table = maps["tunnel_counters"]
    table.entries[table.key.pack(counter)] = b"".join(n.to_bytes(8, "little") for n in (1, 2, 3, 4))
    for reason, scope, number, packets in ((4, 2, counter, 5), (64, 1, 2, 9), (1, 0, 0, 1), (1, 1, 10, 0)):
        key = reason.to_bytes(2, "little") + scope.to_bytes(2, "little") + number.to_bytes(4, "little")
        maps["drops"].entries[key] = packets.to_bytes(8, "little") + (100).to_bytes(8, "little")
    assert vars(node.counters().tunnels["t"]) == {
        "encap_packets": 1,
        "encap_bytes": 2,
        "decap_packets": 3,
        "decap_bytes": 4,
    }
    drops = [(each.reason, each.scope, each.name, each.packets, each.left_to_kernel) for each in node.drops()]
    assert drops == [
        ("REFUSED_SENDER_OR_ID", "port", "eth0", 9, True),
        ("REASON_TUNNEL_DOWN", "tunnel", "t", 5, False),
        ("REASON_ROUTE_DROP", "other", "(table full)", 1, False),
    ]
    node.reset_counters()
    assert node.drops() == []
    assert {(key["reason"], key["scope"], key["id"]) for key, _ in maps["drops"].records()} == FALLBACKS
    assert not any(vars(node.counters().tunnels["t"]).values())


def test_reading_counters_of_a_node_that_is_not_loaded_says_what_to_do(node):
    with pytest.raises(NotFound, match="no data plane loaded") as caught:
        node.counters()
    assert "mptm restore" in str(caught.value)


def test_the_overhead_of_a_tunnel_that_is_down_is_known_and_that_of_one_that_only_receives_is_none(
    node, kernel
):
    node.apply(Intent.of([BLUE, UPLINK, tunnel(tlvs=["0102:01:00112233"])]))
    found = node.tunnel_details("t").found
    assert (found["overhead"], found["inner MTU"]) == (58, 1442)
    kernel.silent.add("10.30.30.2")
    node.restore()
    details = node.tunnel_details("t")
    assert details.state.startswith("down: ")
    assert (details.found["overhead"], details.found["inner MTU"]) == (58, 1442)
    assert (details.header, details.outer) == (None, b"")
    node.apply(Intent.of([BLUE, UPLINK, tunnel(remote="any", local="10.30.30.1")]))
    assert node.tunnel_details("t").found == {}


def test_the_inner_mtu_of_a_network_is_that_of_its_narrowest_tunnel(node):
    assert node.inner_mtu("blue") is None
    node.apply(FULL)
    assert node.inner_mtu("blue") == 1450
    node.add(tunnel("six", remote="fd30::2", local="fd30::1"))
    assert node.inner_mtu("blue") == 1430


def test_what_takes_long_is_told(kernel, tmp_path, monkeypatch):
    import time

    monkeypatch.setenv("MPTM_STATE_DIR", str(tmp_path))
    monkeypatch.setattr("mptm.progress.AFTER_SECONDS", 0.01)
    slow = kernel.gather_facts

    def gather(tunnels, *, resolve_timeout_seconds, afresh=False):
        time.sleep(0.2)
        return slow(tunnels, resolve_timeout_seconds=resolve_timeout_seconds)

    kernel.gather_facts = gather
    said: list[str] = []
    Node(kernel=kernel, progress=said.append).apply(FULL)
    assert said == ["waiting for 10.30.30.2 to answer"]
