# SPDX-License-Identifier: GPL-2.0-only
"""tshark, which nobody here wrote, reads what is sent: nothing malformed, no wrong length or checksum."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packets import VARIANTS, carriers, carries, inner_kinds, protocol_of, tunnel
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap
from world import REMOTE, THEIRS, World

from mptm.intent import Route

TSHARK = shutil.which("tshark")
INNER = {
    name: packet
    for name, packet in inner_kinds().items()
    if name not in ("fragment4", "fragment6", "smallest4", "padded4")
}
"""Fragments and what has no transport header have nothing that could be verified."""

LAYERS = {
    "erspan": "erspan", "etherip": "etherip", "fou": "udp", "geneve": "geneve", "gre": "gre", "gre-udp": "gre",
    "gretap": "gre", "gtpu": "gtp", "gue": "gue", "ip4ip6": "ipv6", "ip6ip6": "ipv6", "ipip": "ip", "l2tp": "l2tp",
    "mpls": "mpls", "nsh": "nsh", "nvgre": "gre", "qinq": "vlan", "sit": "ipv6", "srv6": "ipv6.routing.type",
    "gue 1": "udp", "vlan 802.1ad": "ieee8021ad", "srv6 reduced": "ipv6", "vlan": "vlan",
    "vxlan": "vxlan", "vxlan-gbp": "vxlan", "vxlan-gpe": "vxlan",
}  # fmt: skip
"""What tshark calls the header."""

DECODE_AS = {
    "fou": "udp.port==4660,{ip}",
    "gre-udp": "udp.port==4754,gre",
    "gue 1": "udp.port==6080,{ip}",
    "l2tp": "l2tp.pw_type==0,eth",
}
SETTINGS = (
    "ip.check_checksum:TRUE",
    "udp.check_checksum:TRUE",
    "udp.ignore_ipv6_zero_checksum:TRUE",
    "tcp.check_checksum:TRUE",
)
UNKNOWN = ("gue",)
"""Variants that tshark 4.0 has no dissector for: it judges what is in front of them."""


def settings_of(variant: str) -> list[str]:
    """tshark can't know how long an L2TPv3 cookie and sublayer are."""
    if protocol_of(variant).name != "l2tp":
        return []
    options = VARIANTS.get(variant, ("", {}))[1]
    cookie = {0: "0 Byte Cookie (None)", 4: "4 Byte Cookie", 8: "8 Byte Cookie"}[
        len(options.get("cookie", "")) // 2
    ]
    sublayer = "Default L2-Specific" if options.get("l2spec_type", "default") == "default" else "None"
    return [f"l2tp.cookie_size:{cookie}", f"l2tp.l2_specific:{sublayer}"]


def dissect(path: Path, variant: str, version: int) -> list[dict[str, Any]]:
    command = [
        str(TSHARK),
        "-r",
        str(path),
        "-T",
        "json",
        "--no-duplicate-keys",
        "-n",
        "--disable-protocol",
        "dns",
    ]
    for setting in (*SETTINGS, *settings_of(variant)):
        command += ["-o", setting]
    if decode := DECODE_AS.get(variant, DECODE_AS.get(protocol_of(variant).name)):
        command += ["-d", decode.format(ip="ip" if version == 4 else "ipv6")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [packet["_source"]["layers"] for packet in json.loads(done.stdout)]


def complaints(layers: Any, where: str = "") -> list[str]:
    """Names of fields that say that something is wrong."""
    found: list[str] = []
    if isinstance(layers, dict):
        for name, value in layers.items():
            if "malformed" in name or name == "_ws.short":
                found.append(name)
            if name == "_ws.expert.message" and "checksum" in str(value).lower():
                found.append(str(value))
            if name.endswith((".checksum.status", ".checksum.calculated")) and value == "0":
                found.append(f"{where}.{name}")
            if name == "_ws.expert" and "8388608" in json.dumps(value):
                found.append(json.dumps(value))
            found += complaints(value, name)
    elif isinstance(layers, list):
        for each in layers:
            found += complaints(each, where)
    return found


@pytest.mark.skipif(TSHARK is None, reason="tshark is not installed")
@pytest.mark.parametrize(("protocol", "underlay"), carriers())
def test_tshark_finds_nothing_wrong(node: World, tmp_path: Path, protocol: str, underlay: int):
    for version in (4, 6):
        if not carries(protocol, underlay, version):
            continue
        kinds = {name: sent for name, sent in INNER.items() if (IPv6 in sent) == (version == 6)}
        node.apply(
            tunnel(protocol, underlay, remotes=REMOTE),
            Route(network="blue", prefix=THEIRS[version], via="to-node2"),
        )
        path = tmp_path / "sent.pcap"
        wrpcap(str(path), [Ether(node.send("c1", sent).data) for sent in kinds.values()])
        packets = dissect(path, protocol, version)
        for kind, layers in zip(kinds, packets, strict=True):
            assert complaints(layers) == [], kind
            if protocol in UNKNOWN:
                continue
            layer = LAYERS.get(protocol, LAYERS[protocol_of(protocol).name])
            assert holds(layers, layer), (kind, list(layers))
            assert holds(layers, "ip.src" if version == 4 else "ipv6.src"), (kind, list(layers))


def holds(layers: Any, name: str) -> bool:
    if isinstance(layers, dict):
        return name in layers or any(holds(value, name) for value in layers.values())
    return isinstance(layers, list) and any(holds(each, name) for each in layers)
