# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios for hypothesis: tunnels of every protocol with every option, routes, flows, what the machine is."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import strategies as st
from msgspec import inspect
from scenario import Scenario, made_object
from world import LOCAL, REMOTE, STRANGER

from mptm.errors import MptmError
from mptm.protocols import PROTOCOLS

NETWORKS = {"blue": ("c1", "c2"), "green": ("c3",)}
REMOTES = {4: [REMOTE[4], "10.30.30.3", STRANGER[4]], 6: [REMOTE[6], "fd00:30:30::3", STRANGER[6]]}
LOCALS = {4: [LOCAL[4], "10.30.30.11"], 6: [LOCAL[6], "fd00:30:30::11"]}
SEGMENTS = ["fd00:5:1::1", "fd00:5:2::1", "fd00:5:3::1"]
MACS = ["02:00:00:00:77:01", "02:00:00:00:77:02"]
GATEWAYS = [[], ["10.250.1.1"], ["10.250.1.1", "fd00:250:1::1"], ["fd00:250:1::101"]]
PREFIXES = [
    *("10.250.1.100/32", "10.250.1.101/32", "10.250.1.110/32", "10.250.1.0/24", "10.250.0.0/16", "0.0.0.0/0"),
    *("10.250.1.128/25", "224.0.0.5/32", "169.254.1.1/32", "255.255.255.255/32", "10.250.1.96/28"),
    *(
        "fd00:250:1::100/128",
        "fd00:250:1::101/128",
        "fd00:250:1::/64",
        "fd00:250::/32",
        "::/0",
        "fe80::1/128",
    ),
    *("ff02::5/128", "fd00:250:1::100/124", "ff02::1:ff00:101/128"),
]
ADDRESSES = {
    4: ["10.250.1.100", "10.250.1.101", "10.250.1.110", "10.9.9.9", "224.0.0.5"],
    6: ["fd00:250:1::100", "fd00:250:1::101", "fd00:250:1::110", "fd09::9", "ff02::5"],
}
TEXTS: dict[str, st.SearchStrategy[str]] = {
    "tlvs": st.builds(
        lambda kind, type_, data: f"{kind:04x}:{type_:02x}:{data.hex()}",
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFF),
        st.sampled_from([b"", b"\x01\x02\x03\x04", bytes(range(12))]),
    ),
    "cookie": st.sampled_from(["", "01020304", "0102030405060708", "ffffffffffffffff"]),
    "segments": st.sampled_from(SEGMENTS),
    "local_sid": st.sampled_from(SEGMENTS),
}
TEXTS["peer_cookie"] = TEXTS["cookie"]
NUMBERS = [0, 1, 2, 7, 0x55, 0x1234, 0x123456, 0x12345678]
UDP_PORTS = [5000, 5001, 4789]


def _values(name: str, kind: Any) -> st.SearchStrategy[Any]:
    """What an option may be, by its type."""
    match kind:
        case inspect.Metadata(type=inner):
            return _values(name, inner)
        case inspect.LiteralType(values=values):
            return st.sampled_from(sorted(values, key=str))
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.UnionType(types=types):
            return st.one_of([_values(name, part) for part in types])
        case inspect.VarTupleType(item_type=item):
            return st.lists(_values(name, item), min_size=kind.min_length or 0, max_size=kind.max_length or 4)
        case inspect.StrType():
            return TEXTS[name]
        case inspect.IntType(ge=low, le=high):
            if name == "port":
                return st.sampled_from(UDP_PORTS)
            near = [number for number in NUMBERS if low <= number <= high]
            return st.one_of(st.sampled_from([low, high, *near]), st.integers(low, high))
    raise AssertionError(f"no values for option {name}, {kind}: add them here")


def _options(protocol: str) -> st.SearchStrategy[dict[str, Any]]:
    fields = inspect.type_info(PROTOCOLS[protocol].options).fields
    return st.fixed_dictionaries(
        {field.encode_name: _values(field.encode_name, field.type) for field in fields if field.required},
        optional={
            field.encode_name: _values(field.encode_name, field.type)
            for field in fields
            if not field.required
        },
    )


OPTIONS = {name: _options(name) for name in PROTOCOLS}


@st.composite
def tunnels(draw: st.DrawFn, name: str) -> dict[str, Any]:
    protocol = draw(st.sampled_from(sorted(PROTOCOLS)))
    version = draw(st.sampled_from(PROTOCOLS[protocol].underlays or (4, 6)))
    fields: dict[str, Any] = {
        "kind": "tunnel",
        "name": name,
        "protocol": protocol,
        "network": draw(st.sampled_from(sorted(NETWORKS))),
        "remote": draw(st.sampled_from([*REMOTES[version] * 3, "any"])),
    }
    if PROTOCOLS[protocol].over_ip and (fields["remote"] == "any" or draw(st.integers(0, 3)) == 0):
        fields["local"] = draw(st.sampled_from(LOCALS[version]))
    if not PROTOCOLS[protocol].over_ip:
        if draw(st.integers(0, 3)) == 0:
            fields["remote_mac"] = draw(st.sampled_from(MACS))
            fields |= draw(st.sampled_from([{}, {"remote": None}]))
        if fields["remote"] in ("any", None):
            fields["egress"] = draw(st.sampled_from(["up0", "up1"]))
    elif draw(st.integers(0, 9)) == 0:
        fields |= {"remote_mac": MACS[0], "local_mac": MACS[1]}
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        accepted = draw(st.sampled_from(sorted(PROTOCOLS)))
        variant = {"protocol": accepted, **draw(OPTIONS[accepted])}
        fields["accept"] = [*fields.get("accept", []), variant]
    if draw(st.integers(0, 3)) == 0:
        fields["split_horizon"] = draw(st.integers(1, 2))
    options = draw(OPTIONS[protocol])
    if draw(st.integers(0, 3)):
        options.pop("to_stack", None)
    if protocol != "fou" and draw(st.booleans()):
        options.pop("port", None)
    return fields | options


@st.composite
def _steered(draw: st.DrawFn, names: dict[str, list[str]]) -> dict[str, Any]:
    """Where to: `names` are the tunnels of each network."""
    network = draw(st.sampled_from(sorted(NETWORKS)))
    kinds = ["via"] * 5 + ["group"] * 2 + ["port"] * 4 + ["drop", "pass"]
    kind = draw(st.sampled_from([kind for kind in kinds if kind != "via" or names[network]]))
    fields: dict[str, Any] = {"network": network}
    if kind in ("drop", "pass"):
        return fields | {kind: True}
    chosen = {"via": names[network], "group": ["g0", "g1"], "port": NETWORKS[network]}
    fields[kind] = draw(st.sampled_from(chosen[kind]))
    if kind != "port" and draw(st.booleans()):
        fields["relay"] = True
    return fields | draw(st.sampled_from([{}, {}, {"mac": MACS[0]}]))


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """A valid intent: what doesn't go with what is there already is left out."""
    macs = draw(st.sampled_from([{}, {}, {"c1": MACS[1]}]))
    gateways = {name: draw(st.sampled_from(GATEWAYS)) for name in NETWORKS}
    intent, objects = Scenario((), macs=macs, gateways=gateways).intent, []

    def add(values: dict[str, Any]) -> None:
        nonlocal intent
        with contextlib.suppress(MptmError):
            more = intent.add(made_object(values))
            more.validate()
            intent = more
            objects.append(values)

    for number in range(draw(st.integers(2, 8))):
        add(draw(tunnels(f"t{number}")))
    names: dict[str, list[str]] = {network: [] for network in NETWORKS}
    for tunnel in intent.tunnels.values():
        names[tunnel.network].append(tunnel.name)
    for number in range(draw(st.integers(0, 2))):
        network = draw(st.sampled_from(sorted(NETWORKS)))
        weights = st.integers(1, 5)
        members = draw(
            st.dictionaries(st.sampled_from(names[network] or ["none"]), weights, min_size=1, max_size=4)
        )
        shares = [{"tunnel": name, "weight": weight} for name, weight in members.items()]
        add({"kind": "group", "name": f"g{number}", "network": network, "members": shares})
    for prefix in draw(st.lists(st.sampled_from(PREFIXES), min_size=8, max_size=24)):
        add({"kind": "route", "prefix": prefix, **draw(_steered(names))})
    for version in draw(st.lists(st.sampled_from([4, 6]), max_size=4)):
        ends = {end: draw(st.sampled_from(ADDRESSES[version])) for end in ("source", "destination")}
        add({"kind": "flow", **ends, **draw(_steered(names))})
    ports, mtus = st.sampled_from(["c1", "c2", "c3", "up0"]), st.sampled_from([600, 1400, 1450, 9000])
    return Scenario(
        tuple(objects),
        mtus=draw(st.dictionaries(ports, mtus, max_size=2)),
        paths={name: draw(_paths()) for name in intent.tunnels},
        macs=macs,
        gateways=gateways,
        missing=draw(st.sampled_from([(), (), (), (), (), ("c2",), ("up1",)])),
    )


@st.composite
def _paths(draw: st.DrawFn) -> dict[str, Any] | None:
    found: dict[str, Any] = {"egress": draw(st.sampled_from(["up0", "up1"]))}
    found["mtu"] = draw(st.sampled_from([1500, 1500, 1400, 1280, 9000, 300]))
    trouble = draw(st.integers(0, 15))
    if trouble == 0:
        return None
    return found | {1: {"is_silent": True}, 2: {"behind_router": True}}.get(trouble, {})
