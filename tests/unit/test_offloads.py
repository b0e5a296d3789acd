# SPDX-License-Identifier: GPL-2.0-only
"""What is set at the other ends of veths, what is remembered of it, and what goes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake import FakeKernel, link, other_end

from mptm import gro
from mptm.errors import ForeignProgram, InvalidIntent, MptmError
from mptm.intent import Intent, Network, Port, tunnel_from_dict
from mptm.node import Node
from mptm.offloads import XDP_NEEDS, Feature, Offloads, OtherEnd, PortFacts, ethtool_command, examine
from mptm.tables import Attachment

PORT = Port(name="veth-a", role="access", network="blue", hook="xdp")
BLUE = Network(name="blue", id=1)


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def node(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Node:
    monkeypatch.setenv("MPTM_STATE_DIR", str(tmp_path))
    node = Node(kernel=kernel)
    node.add(BLUE)
    return node


def test_a_command_names_each_word_of_ethtool_once() -> None:
    assert ethtool_command("eth0", XDP_NEEDS) == (
        "ethtool -K eth0 tx off tx-udp-segmentation off txvlan off tx-vlan-stag-hw-insert off gro on"
    )
    assert ethtool_command("eth0", {"rx-gro": False}) == "ethtool -K eth0 gro off"


def test_a_program_at_the_other_end_is_napi_enough(kernel: FakeKernel, node: Node) -> None:
    kernel.ends[10] = replace(kernel.ends[10], has_xdp=True)
    node.add(PORT)
    assert "rx-gro" not in kernel.set[0][1]
    assert "tx-checksum-ip-generic" in kernel.set[0][1]


def test_only_a_new_port_is_looked_at_and_restore_looks_at_all(kernel: FakeKernel, node: Node) -> None:
    node.add(PORT)
    assert [name for name, _ in kernel.set] == ["end-a"]
    end = kernel.ends[10]
    kernel.ends[10] = replace(
        end, features={**(end.features or {}), "rx-gro": Feature(active=False, wanted=False, changeable=True)}
    )
    node.add(Port(name="veth-b", role="access", network="blue", hook="xdp"))
    assert [name for name, _ in kernel.set] == ["end-a", "end-b"]
    node.restore()
    assert kernel.set[2:] == [("end-a", {"rx-gro": True})]


def test_what_goes_back_is_what_was_before_even_after_a_second_change(kernel: FakeKernel, node: Node) -> None:
    before = kernel.ends[10].features
    node.add(PORT)
    node.restore()
    node.remove("port", "veth-a")
    assert kernel.ends[10].features == before


def test_a_change_of_somebody_else_back_to_before_is_no_reason_to_do_anything(
    kernel: FakeKernel, node: Node
) -> None:
    end = kernel.ends[10]
    node.add(PORT)
    kernel.ends[10] = end
    kernel.set.clear()
    node.remove("port", "veth-a")
    assert not kernel.set


def test_what_is_changed_was_remembered_before(kernel: FakeKernel, node: Node) -> None:
    """Whoever is killed in set_features leaves a record of what was before."""
    remembered: list[str] = []

    class Watching(FakeKernel):
        def set_features(self, end, features):
            remembered.append(node.store.read().meta["offloads"])
            super().set_features(end, features)

    node._kernel = Watching()
    node.add(PORT)
    (text,) = remembered
    before = Offloads.load(kernel, None, "first", text).ports["veth-a"].before
    assert before == {name: not needed for name, needed in XDP_NEEDS.items()}


def test_a_port_that_cant_be_attached_leaves_nothing_set(kernel: FakeKernel, node: Node) -> None:
    kernel.planes["default"].foreign.add("veth-a")
    before = kernel.ends[10].features
    with pytest.raises(ForeignProgram):
        node.add(PORT)
    assert kernel.set
    assert kernel.ends[10].features == before


def test_an_end_that_refuses_is_told_with_the_command_and_the_port_is_there(
    kernel: FakeKernel, node: Node
) -> None:
    kernel.stubborn.add("end-a")
    plan = node.add(PORT)
    (warning,) = plan.warnings
    assert "end-a can't be changed; run: nsenter --net=/run/netns/c ethtool -K end-a tx off" in warning
    assert node.port_details("veth-a").offloads.problem == "end-a can't be changed"
    kernel.stubborn.clear()
    assert not node.restore().warnings
    assert node.port_details("veth-a").offloads.problem == ""


def test_an_end_that_cant_be_put_back_is_told(kernel: FakeKernel, node: Node) -> None:
    node.add(PORT)
    kernel.stubborn.add("end-a")
    (warning,) = node.remove("port", "veth-a").warnings
    assert "can't be put back" in warning
    assert "ethtool -K end-a tx on" in warning


def test_purge_tells_of_an_end_that_cant_be_put_back(kernel: FakeKernel, node: Node) -> None:
    node.add(PORT)
    kernel.stubborn.add("end-a")
    (warning,) = node.purge()
    assert "can't be put back" in warning
    assert "ethtool -K end-a tx on" in warning


def test_offloads_switched_off_later_puts_everything_back(kernel: FakeKernel, node: Node) -> None:
    before = kernel.ends[10].features
    node.add(PORT)
    node.replace(Port(name="veth-a", role="access", network="blue", hook="xdp", offloads=False))
    assert kernel.ends[10].features == before
    assert node.port_details("veth-a").offloads is None


@pytest.mark.parametrize("boot", ["first", "second"])
def test_after_a_reboot_nothing_of_before_is_put_back(kernel: FakeKernel, node: Node, boot: str) -> None:
    node.add(PORT)
    kernel.boot = boot
    kernel.set.clear()
    node.remove("port", "veth-a")
    assert bool(kernel.set) == (boot == "first")


@pytest.mark.parametrize("is_renamed", [False, True], ids=["the first is gone", "the first was renamed"])
def test_another_interface_of_the_same_name_is_another_port(
    kernel: FakeKernel, node: Node, is_renamed: bool
) -> None:
    node.add(PORT)
    first, end = kernel.links["veth-a"], kernel.ends[10]
    kernel.links["veth-a"] = link(20, "veth-a", kind="veth", peer_mac=bytes((2, 0, 0, 0, 1, 20)))
    kernel.ends = {20: other_end(120, "end-new")}
    kernel.set.clear()
    if is_renamed:
        kernel.links["renamed"] = replace(first, name="renamed")
        kernel.ends[10] = end
    node.restore()
    assert [name for name, _ in kernel.set] == [*(["end-a"] * is_renamed), "end-new"]
    node.remove("port", "veth-a")
    assert kernel.ends[20] == other_end(120, "end-new")
    assert not is_renamed or kernel.ends[10] == other_end(110, "end-a")


@pytest.mark.parametrize("here", ["the machine's", "another"])
def test_purge_puts_everything_back_but_not_from_another_namespace(
    kernel: FakeKernel, node: Node, here: str
) -> None:
    before = kernel.ends[10].features
    node.add(PORT)
    kernel.here = here
    kernel.set.clear()
    node.purge()
    assert (kernel.ends[10].features == before) == (here == "the machine's")
    assert bool(kernel.set) == (here == "the machine's")


def test_an_error_in_the_middle_of_setting_goes_back_to_nothing(kernel: FakeKernel, node: Node) -> None:
    def fail(step: str) -> None:
        if step.startswith("attach"):
            raise MptmError("no")

    before = kernel.ends[10].features
    kernel.planes["default"].fail = fail
    with pytest.raises(MptmError):
        node.add(PORT)
    assert kernel.ends[10].features == before
    assert node.store.read().meta["offloads"].endswith('"ports":{}}')


def test_a_port_that_moves_to_tc_needs_no_more_than_frames_that_others_send_it(
    kernel: FakeKernel, node: Node
) -> None:
    before = kernel.ends[10].features
    node.add(PORT)
    node.add(Port(name="veth-b", role="access", network="blue", hook="tc"))
    assert kernel.set[-1] == ("end-b", {"rx-gro": True})
    node.replace(Port(name="veth-a", role="access", network="blue", hook="tc"))
    assert kernel.ends[10].features == before
    assert kernel.ends[11] == other_end(111, "end-b"), "nobody sends there from XDP any more"
    node.replace(PORT)
    assert not kernel.ends[10].lacks()
    assert kernel.set[-1] == ("end-b", {"rx-gro": True})


# ---- what doctor has to say ------------------------------------------------------------------------------

END = other_end(110, "end-a")
RIGHT = replace(END, features={name: Feature(on, on, True) for name, on in XDP_NEEDS.items()})
TAGS = {"rx-vlan-hw-parse": Feature(active=True, wanted=True, changeable=True)}


def features(**wrong: bool) -> OtherEnd:
    assert RIGHT.features is not None
    changed = {name.replace("_", "-"): Feature(on, on, True) for name, on in wrong.items()}
    return replace(RIGHT, features={**RIGHT.features, **changed})


@pytest.mark.parametrize(
    ("facts", "problem", "command"),
    [
        (
            PortFacts("p", 1500, end=features(tx_checksum_ip_generic=True)),
            "ping works, TCP gets nothing",
            "nsenter --net=/run/netns/c ethtool -K end-a tx off",
        ),
        (
            PortFacts("p", 1500, end=features(tx_udp_segmentation=True)),
            "several UDP segments",
            "nsenter --net=/run/netns/c ethtool -K end-a tx-udp-segmentation off",
        ),
        (
            PortFacts("p", 1500, end=features(tx_vlan_hw_insert=True, tx_vlan_stag_hw_insert=True)),
            "VLAN tags beside the frame",
            "nsenter --net=/run/netns/c ethtool -K end-a txvlan off tx-vlan-stag-hw-insert off",
        ),
        (
            PortFacts("p", 1500, end=features(rx_gro=False)),
            "takes no frames from XDP",
            "nsenter --net=/run/netns/c ethtool -K end-a gro on",
        ),
        (
            PortFacts("p", 1500, end=replace(features(rx_gro=False), up=False)),
            "takes no frames from XDP",
            "bring end-a in /run/netns/c up, then: nsenter --net=/run/netns/c ethtool -K end-a gro on",
        ),
        (
            PortFacts("p", 1500, end=replace(RIGHT, takes_frames=False)),
            "turned on while it was down",
            'nsenter --net=/run/netns/c sh -c "ethtool -K end-a gro off && ethtool -K end-a gro on"',
        ),
        (
            PortFacts("p", 1400, namespace="/run/netns/n", end=RIGHT),
            "an MTU of 1500, it has 1400",
            "nsenter --net=/run/netns/n ip link set p mtu 1500",
        ),
        (
            PortFacts("p", 1500, end=RIGHT, fits=1450),
            "large ones hang",
            "nsenter --net=/run/netns/c ip link set end-a mtu 1450",
        ),
        (
            PortFacts("p", 1500, end=RIGHT, fits=1450, is_told=True),
            "senders of larger packets are told",
            "nsenter --net=/run/netns/c ip link set end-a mtu 1450",
        ),
        (
            PortFacts("p", 1500, end=replace(RIGHT, namespace="", features=None, problem="no such place")),
            "no such place, so it isn't known",
            "in that namespace: ethtool -K end-a tx off",
        ),
        (PortFacts("p", 1500, own=TAGS, needs_tags=True), "takes VLAN tags off", "ethtool -K p rxvlan off"),
        (PortFacts("p", 1500, can_send=False), "its driver takes no frames", "--mode generic"),
        (
            PortFacts("p", 1500, up=False, namespace="/run/netns/n"),
            "it is down",
            "nsenter --net=/run/netns/n ip link set p up",
        ),
        (
            PortFacts("p", 1500, needs="nothing", end=replace(END, up=False)),
            "its other end, end-a in /run/netns/c, is down",
            "nsenter --net=/run/netns/c ip link set end-a up",
        ),
        (
            PortFacts("p", 1500, is_far=True, is_handed_over=True, detour="it has a qdisc tbf"),
            "it has a qdisc tbf, which packets go past",
            "mptm restore",
        ),
        (
            PortFacts("p", 1500, is_handed_over=True),
            "come to its own network namespace",
            "mptm restore",
        ),
    ],
)
def test_doctor_names_what_is_wrong_and_the_command(facts: PortFacts, problem: str, command: str) -> None:
    (finding,) = examine(facts)
    assert problem in finding.problem
    assert command in finding.command
    assert finding.is_serious == (not facts.is_told and "isn't known" not in problem)


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        (PortFacts("p", 1500, is_far=True, is_handed_over=False), "could be handed over"),
        (PortFacts("p", 1500, before=("theirs (id 7)",)), "theirs (id 7) sees packets before ours"),
    ],
)
def test_doctor_names_what_may_be_meant_so(facts: PortFacts, problem: str) -> None:
    (finding,) = examine(facts)
    assert problem in finding.problem
    assert not finding.is_serious


@pytest.mark.parametrize(
    "facts",
    [
        PortFacts("p", 1500, end=RIGHT, fits=1500),
        PortFacts("p", 1500, own=TAGS, can_send=True),
        PortFacts("p", 1500, end=replace(features(rx_gro=False), takes_frames=True)),
        PortFacts("p", 1500, is_far=True, is_handed_over=True),
        PortFacts("p", 1500, is_far=True, is_handed_over=False, detour="it has a qdisc tbf"),
        PortFacts("p", 1500, is_handed_over=False),
    ],
)
def test_doctor_has_nothing_to_say_of_what_is_right(facts: PortFacts) -> None:
    assert examine(facts) == []


# ---- GRO of tunnel packets -------------------------------------------------------------------------------

TUNNELS = {
    "vxlan": {"protocol": "vxlan", "vni": 1},
    "gbp": {"protocol": "vxlan-gbp", "vni": 2, "port": 4790},
    "geneve": {"protocol": "geneve", "vni": 3},
    "geneve l3": {"protocol": "geneve", "vni": 4, "payload": "l3", "port": 6082},
    "geneve tlvs": {"protocol": "geneve", "vni": 5, "tlvs": ["0102:01:00112233"], "port": 6083},
    "gtpu": {"protocol": "gtpu", "teid": 6},
    "gre": {"protocol": "gre"},
}
UPLINK = Port(name="eth0", role="uplink", hook="tc")


def at_tc(*names: str, uplink: Port = UPLINK) -> Intent:
    tunnels = [
        tunnel_from_dict({"name": f"t{number}", "network": "blue", "remote": "10.30.30.2", **TUNNELS[name]})
        for number, name in enumerate(names)
    ]
    return Intent.of([BLUE, uplink, *tunnels])


def listening(version: int, *ports: int) -> set[gro.Listening]:
    return {gro.Listening(port, version) for port in ports}


@pytest.mark.parametrize(
    ("names", "ports"),
    [
        (("vxlan",), {4789}),
        (("geneve", "gbp"), {6081, 4790}),
        (("geneve l3", "geneve tlvs", "gtpu", "gre"), set()),
    ],
)
def test_gro_is_wanted_for_frames_behind_8_bytes_of_header(names: tuple[str, ...], ports: set[int]) -> None:
    for uplink, wanted in (
        (UPLINK, listening(4, *ports)),
        (Port(name="eth0", role="uplink", hook="xdp"), set()),
        (Port(name="eth0", role="uplink", hook="tc", offloads=False), set()),
        (Port(name="eth0", role="uplink", hook="tc", outer_gro=False), set()),
    ):
        attachments = [Attachment(2, "eth0", "uplink", "auto", uplink.hook)]
        assert gro.wanted(at_tc(*names, uplink=uplink), attachments) == wanted


@pytest.mark.parametrize(
    ("remote", "version"),
    [
        ({"remote": "10.30.30.2"}, 4),
        ({"remote": "fd00::2"}, 6),
        ({"remote": "any", "local": "fd00::1"}, 6),
        ({"remote_mac": "02:00:00:00:00:02", "egress": "eth0", "protocol": "vlan", "vid": 1}, None),
    ],
)
def test_what_a_tunnel_accepts_is_joined_too_where_its_remote_is(
    remote: dict[str, object], version: int | None
) -> None:
    fields = {"name": "t", "network": "blue", "protocol": "gretap"} | remote
    if version is not None:
        fields["accept"] = ["vxlan,vni=7"]
    attachments = [Attachment(2, "eth0", "uplink", "auto", "tc")]
    wanted = gro.wanted(Intent.of([BLUE, UPLINK, tunnel_from_dict(fields)]), attachments)
    assert wanted == (listening(version, 4789) if version else set())


def test_one_uplink_that_is_to_leave_ports_free_leaves_them_free_on_the_node() -> None:
    """A socket is for all interfaces."""
    other = Port(name="eth1", role="uplink", hook="tc", outer_gro=False)
    intent = at_tc("vxlan").add(other)
    attachments = [
        Attachment(2, "eth0", "uplink", "auto", "tc"),
        Attachment(3, "eth1", "uplink", "auto", "tc"),
    ]
    assert gro.wanted(intent, attachments) == set()
    assert gro.wanted(intent.remove("port", "eth1"), attachments[:1]) == listening(4, 4789)


def test_an_access_port_has_no_outer_gro() -> None:
    with pytest.raises(InvalidIntent, match="outer_gro is an uplink's"):
        Port(name="veth-a", role="access", network="blue", outer_gro=False)


def test_instances_have_devices_of_their_own() -> None:
    names = {
        gro.device_of(name, each) for name in ("a", "b") for each in listening(4, 65535) | listening(6, 65535)
    }
    assert len(names) == 4
    assert all(len(name) <= 15 for name in names)  # IFNAMSIZ, with the null byte behind it
    assert [name for name in names if gro.is_device_of("a", name) and gro.is_device_of("b", name)] == []


def test_a_node_has_the_devices_that_it_wants_and_says_where_it_cant(kernel: FakeKernel, node: Node) -> None:
    def devices() -> set[int]:
        return {link.gro_port for name, link in kernel.links.items() if gro.is_device_of("default", name)}

    node.apply(at_tc("vxlan", "geneve"))
    assert devices() == {4789, 6081}
    assert [served.split()[2] for served in node.gro_devices().values()] == ["4789", "6081"]
    assert not any(node.examine_ports().values())
    node.apply(at_tc("geneve"))
    assert devices() == {6081}
    kernel.taken_ports = {4789}
    assert not node.apply(at_tc("vxlan", "geneve")).warnings
    (finding,) = node.examine_ports()["eth0"]
    assert "UDP port 4789 (GRO)" in finding.problem
    assert not finding.is_serious
    kernel.links["theirs"] = link(77, "theirs", kind="vxlan", gro_port=4789)
    assert not any(node.examine_ports().values()), "that device has the kernel join them just as well"
    node.purge()
    assert devices() == set()
