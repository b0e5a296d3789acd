# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from typing import Any

import pytest
from packets import required_options

from mptm.change import carried_over, change_tunnel
from mptm.errors import InvalidIntent, NotFound
from mptm.intent import Tunnel, encapsulation_values, tunnel_from_dict
from mptm.protocols import PROTOCOLS


def tunnel(protocol: str = "vxlan", **fields: Any) -> Tunnel:
    values = {"name": "t", "protocol": protocol, "network": "blue", "remote": "10.30.30.2", **fields}
    if protocol in ("vxlan", "geneve"):
        values = {"vni": 100} | values
    return tunnel_from_dict(values)


def flat(changed: Tunnel) -> dict[str, Any]:
    values = changed.to_dict()
    for name in ("name", "network", "remote"):
        values.pop(name)
    return values


def test_the_three_steps_from_one_protocol_to_another():
    before = tunnel(ttl=9)
    accepting = change_tunnel(before, {}, accept=[{"protocol": "geneve", "vni": 200}])
    assert flat(accepting) == {
        "protocol": "vxlan", "vni": 100, "ttl": 9, "accept": [{"protocol": "geneve", "vni": 200, "ttl": 9}],
    }  # fmt: skip
    sending = change_tunnel(accepting, {"protocol": "geneve"})
    assert flat(sending) == {
        "protocol": "geneve", "vni": 200, "ttl": 9, "accept": [{"protocol": "vxlan", "vni": 100, "ttl": 9}],
    }  # fmt: skip
    after = change_tunnel(sending, {}, refuse=["vxlan"])
    assert flat(after) == {"protocol": "geneve", "vni": 200, "ttl": 9}


def test_and_back_again_it_is_as_it_was():
    before = tunnel(ttl=9, port=8472, annotations={"by": "me"}, local="10.30.30.1", split_horizon=3)
    sending = change_tunnel(before, {"protocol": "geneve"})
    assert sending.options.to_dict() == {"vni": 100, "ttl": 9}
    back = change_tunnel(sending, {"protocol": "vxlan"})
    assert change_tunnel(back, {}, refuse=["geneve"]) == before


def test_options_that_are_given_go_before_accepted_ones_and_these_before_carried_ones():
    accepting = tunnel(ttl=9, dscp=3, accept=[{"protocol": "geneve", "vni": 7, "ttl": 8, "port": 7777}])
    changed = change_tunnel(accepting, {"protocol": "geneve", "ttl": 5})
    assert changed.options.to_dict() == {"vni": 7, "ttl": 5, "port": 7777}


def test_within_a_protocol_only_what_is_given_changes():
    before = tunnel(ttl=9, port=8472, local="10.30.30.1")
    assert flat(change_tunnel(before, {"vni": 101})) == {
        "protocol": "vxlan", "vni": 101, "ttl": 9, "port": 8472, "local": "10.30.30.1",
    }  # fmt: skip


def test_an_identifier_changes_without_loss_by_accepting_the_same_protocol_twice_over():
    accepting = change_tunnel(tunnel(port=8472), {}, accept=[{"protocol": "vxlan", "vni": 200}])
    assert [each.to_dict() for each in accepting.accept] == [{"protocol": "vxlan", "vni": 200, "port": 8472}]
    sending = change_tunnel(accepting, {"vni": 200}, accept=[{"protocol": "vxlan", "vni": 100}])
    assert sending.options.to_dict() == {"vni": 200, "port": 8472}
    assert [each.to_dict() for each in sending.accept] == [{"protocol": "vxlan", "vni": 100, "port": 8472}]


def test_what_is_sent_may_not_get_lost_between_two_of_one_protocol():
    accepting = tunnel(accept=[{"protocol": "vxlan", "vni": 200}])
    with pytest.raises(InvalidIntent, match="stop accepting it first: --no-accept vxlan"):
        change_tunnel(accepting, {"protocol": "geneve"})


@pytest.mark.parametrize(
    ("protocol", "options", "other", "carried"),
    [
        ("vxlan", {"vni": 5}, "geneve", {"vni": 5, "payload": "l2"}),
        ("gre", {"key": 5, "checksum": True}, "gre-udp", {"key": 5, "checksum": True, "payload": "l3"}),
        ("gretap", {"key": 5}, "gre-udp", {"key": 5, "payload": "l2"}),
        ("gre", {"key": 5, "df": False}, "vxlan", {"df": False}),
        ("geneve", {"vni": 5, "port": 99, "tlvs": ["0102:80:00112233"]}, "vxlan", {"vni": 5}),
    ],
)
def test_options_are_carried_over_by_name_and_the_payload_by_what_it_is(protocol, options, other, carried):
    assert carried_over(tunnel(protocol, **options), other) == carried


def test_a_default_comes_back_and_what_has_none_is_named():
    before = tunnel(ttl=9, local="10.30.30.1", split_horizon=3)
    assert flat(change_tunnel(before, {}, defaults=["ttl", "local", "split-horizon"])) == {
        "protocol": "vxlan",
        "vni": 100,
    }
    for name in ("vni", "remotee", "name", "accept"):
        with pytest.raises(
            InvalidIntent, match=f"tunnel t: {name} has no default; these have one: remote, local"
        ):
            change_tunnel(before, {}, defaults=[name])


def test_notes_are_added_to_those_that_are_there():
    changed = change_tunnel(tunnel(annotations={"a": "1", "b": "2"}), {"annotations": {"b": "3"}})
    assert changed.annotations == {"a": "1", "b": "3"}


def test_what_is_not_accepted_can_not_be_refused():
    with pytest.raises(
        NotFound, match=r"doesn't accept vxlan beside what it sends\n  it accepts nothing else"
    ):
        change_tunnel(tunnel(), {}, refuse=["vxlan"])


REMOTES = {4: "10.30.30.2", 6: "fd00::2"}


def common_underlays(*protocols: str) -> list[int]:
    """IP versions that all of them run over; those without IP have a neighbour of either."""
    return [
        version
        for version in (4, 6)
        if all(version in (PROTOCOLS[each].underlays or (4, 6)) for each in protocols)
    ]


@pytest.mark.parametrize(
    ("protocol", "other", "version"),
    [
        (protocol, other, version)
        for protocol in PROTOCOLS
        for other in PROTOCOLS
        if other != protocol
        for version in common_underlays(protocol, other)
    ],
)
def test_from_any_protocol_to_any_other_only_what_must_be_given_is_asked_for(protocol, other, version):
    before = tunnel(protocol, **required_options(protocol) | {"remote": REMOTES[version]})
    changed = change_tunnel(before, {"protocol": other, **required_options(other)})
    assert (changed.protocol, [each.protocol for each in changed.accept]) == (other, [protocol])
    assert tunnel_from_dict(changed.to_dict()) == tunnel_from_dict(changed.to_dict(defaults=True)) == changed
    back = change_tunnel(changed, {"protocol": protocol}, refuse=[other])
    assert back == before


def test_the_command_lines_words_for_a_protocol_with_options():
    assert encapsulation_values("vxlan") == {"protocol": "vxlan"}
    assert encapsulation_values("mpls,labels=16,17,ttl=inherit,local-label=0x20") == {
        "protocol": "mpls", "labels": [16, 17], "ttl": "inherit", "local_label": 32,
    }  # fmt: skip
    with pytest.raises(
        InvalidIntent, match="'vxlan,100' is not a protocol with its options, such as vxlan,vni=100"
    ):
        encapsulation_values("vxlan,100")
    with pytest.raises(InvalidIntent, match="there is no protocol 'vxlam'"):
        encapsulation_values("vxlam,vni=1")
