# SPDX-License-Identifier: GPL-2.0-only
"""Open vSwitch with its datapath in user space, in a namespace, with a database and sockets of its own.

    workloads in node2-c1: w1, w2, ... ── br-int ── t1, t2, ... (tunnels) ── br-phy ── uplink ══ underlay
                                          br-int ── trunk ══ underlay, for what has no outer IP header

Each place has two flows in br-int: from its workload into its tunnel and back; nothing else passes. There are
several such switches, as one process takes all packets of IP protocol 47 for the same type of tunnel; and a namespace
holds no more than one.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import local
from ground import with_containers, workload_commands
from matrix import ETHERNET, WORKLOAD_LINK_MTU, Case, Peer, Place, Server, Unable

from mptm.errors import MptmError
from mptm.lab.topology import Lab, Topology, configure

MAIN = "main"
HOSTS = {MAIN: "node2", "ip6gre": "node2-c2", "erspan": "node2-c3", "ip6erspan": "node2-c4"}
"""Namespaces of the switches, as the lab names them; all but one have tunnels of this type."""
WORKLOADS, UNDERLAY = "node2-c1", "underlay"
PHY, INT = "br-phy", "br-int"
UPLINK, TRUNK = "uplink", "trunk"
MTU = {UPLINK: 1500, TRUNK: 1508}
"""Bytes. A raw socket, as the switch sends by, has no room for two tags beyond the MTU, nor for one of 802.1ad."""
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
READY_SECONDS = 10
NOBODYS_MAC = "02:00:00:00:00:01"
"""Where workloads send what goes into a tunnel without Ethernet."""
TUNNEL_PORT = 1000
"""What is added to a place's number for the OpenFlow port of its tunnel; its workload's port is the number."""
TRUNK_PORT = 999


class Switch:
    """A database, a daemon and two bridges in a namespace; `number` tells it from others in the underlay."""

    def __init__(self, lab: Lab, host: str, number: int) -> None:
        self.host = host
        self._lab = lab
        self._number = number
        self._mac = f"02:00:00:03:00:{number:02x}"
        self._directory: Path | None = None

    def start(self) -> None:
        """Bring it up, with bridges and interfaces, but no flow."""
        self._directory = Path(tempfile.mkdtemp(prefix="mptm-ovs-"))
        database = self._directory / "conf.db"
        self._lab.exec(self.host, ["ovsdb-tool", "create", str(database), SCHEMA])
        self._daemon("ovsdb-server", str(database), f"--remote=punix:{self._path('db.sock')}")
        self._daemon("ovs-vswitchd", f"unix:{self._path('db.sock')}")
        underlay = self._lab.namespace(UNDERLAY)
        for name in (UPLINK, TRUNK):
            there = f"{name}{self._number}"
            configure(
                self._lab.namespace(self.host),
                [
                    f"link add {name} type veth peer name {there} netns {underlay}",
                    f"link set {name} mtu {MTU[name]} addrgenmode none up",
                ],
            )
            configure(underlay, [f"link set {there} master br0 mtu {MTU[name]} addrgenmode none up"])
            switch_off_offloads(self._lab, self.host, name)
            switch_off_offloads(self._lab, UNDERLAY, there)
        # The kernel sees what comes by these, too, but mustn't take it: so addresses are the bridge's, which has a
        # MAC address of its own, and questions that come by another interface aren't answered.
        self._lab.exec(self.host, ["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"])
        netdev = "datapath_type=netdev"
        self.set(
            *("--", "set", "Open_vSwitch", ".", "other_config:vlan-limit=2"),
            *("--", "add-br", PHY, "--", "set", "bridge", PHY, netdev),
            *(f"other_config:hwaddr={self._mac}", "--", "add-port", PHY, UPLINK),
            *("--", "add-br", INT, "--", "set", "bridge", INT, netdev, "fail_mode=secure"),
            *("--", "add-port", INT, TRUNK),
            *("--", "set", "interface", TRUNK, f"ofport_request={TRUNK_PORT}"),
        )
        configure(self._lab.namespace(self.host), [f"link set {PHY} addrgenmode none up"])

    def stop(self) -> None:
        """Remove what isn't in a namespace; the lab ends the daemons."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def set_up(self, places: Sequence[Place]) -> None:
        """Tunnels and flows of places; their workloads' links are there."""
        commands: list[str] = []
        ports: list[str] = []
        for place in places:
            if place.case.underlay != ETHERNET:
                commands += place.outer_commands(place.peer_outer, PHY)
            ports += self._ports(place)
        configure(self._lab.namespace(self.host), commands)
        self.set(*ports)
        for tlv_map in sorted({place.case.at_peer.get("tlv_map") for place in places} - {None}):
            self._ofctl("add-tlv-map", tlv_map)
        path = self._path("flows")
        path.write_text("".join(f"{flow}\n" for place in places for flow in _flows(place)))
        self._ofctl("add-flows", str(path))

    def set(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ovs-vsctl."""
        command = ["ovs-vsctl", f"--db=unix:{self._path('db.sock')}", "--timeout=10", *arguments]
        return self._lab.exec(self.host, command)

    def try_interface(self, *settings: str) -> str:
        """What is said of a port with these settings; `[]` when there is nothing to say."""
        self.set("add-port", INT, "x0", "--", "set", "interface", "x0", *settings)
        said = self.set("get", "interface", "x0", "error").stdout.strip()
        self.set("del-port", "x0")
        return said

    def complaints(self, place: Place) -> str:
        """See OvsPeer."""
        flow = f"in_port={place.number},{'ip' if 4 in place.case.inner else 'ipv6'}"
        traced = self._appctl("ovs-vswitchd", "ofproto/trace", INT, flow).stdout
        return self._path("ovs-vswitchd.log").read_text() + traced

    def _appctl(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["ovs-appctl", f"--target={self._path(f'{program}.ctl')}", "--timeout=10", *arguments]
        return self._lab.exec(self.host, command, check=False)

    def _path(self, name: str) -> Path:
        assert self._directory is not None, "the switch isn't started"
        return self._directory / name

    def _daemon(self, program: str, *arguments: str) -> None:
        """Start a daemon, and wait until it answers."""
        control, log = self._path(f"{program}.ctl"), self._path(f"{program}.log")
        environment = [f"{name}={self._directory}" for name in ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR")]
        options = [f"--unixctl={control}", f"--log-file={log}", "-vconsole:off"]
        process = self._lab.popen(self.host, ["env", *environment, program, *arguments, *options])
        deadline = time.monotonic() + READY_SECONDS
        while self._appctl(program, "version").returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise MptmError(f"{program} doesn't run: {log.read_text()[-2000:] if log.exists() else ''}")
            time.sleep(0.05)

    def _ofctl(self, command: str, *arguments: str) -> str:
        bridge = f"unix:{self._path(f'{INT}.mgmt')}"
        return self._lab.exec(
            self.host, ["ovs-ofctl", "-O", "OpenFlow15", command, bridge, *arguments]
        ).stdout

    def _ports(self, place: Place) -> list[str]:
        """Arguments of ovs-vsctl that add the place's ports."""
        name, number, at_peer = place.interface, place.number, place.case.at_peer
        ports = ["--", "add-port", INT, name]
        ports += ["--", "set", "interface", name, f"ofport_request={number}"]
        if place.case.underlay == ETHERNET:
            return ports
        tunnel = f"t{number}"
        options = {"remote_ip": place.node_outer, "local_ip": place.peer_outer, **at_peer.get("options", {})}
        return [
            *ports,
            *("--", "add-port", INT, tunnel, "--", "set", "interface", tunnel),
            f"ofport_request={TUNNEL_PORT + number}",
            f"type={at_peer['type']}",
            *(f"options:{key}={value}" for key, value in options.items()),
        ]


class OvsPeer(Peer):
    """The switches, taken as one."""

    name = "ovs"
    title = "Open vSwitch, userspace datapath"

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._switches = {
            name: Switch(lab, host, number) for number, (name, host) in enumerate(HOSTS.items(), 1)
        }

    @classmethod
    def topology(cls, topology: Topology) -> Topology:
        return with_containers(topology, "node2", ("c3", "c4"))

    @classmethod
    def cases(cls) -> list[Case]:
        return CASES

    @classmethod
    def unable(cls) -> list[Unable]:
        return UNABLE

    def start(self) -> None:
        self._switches[MAIN].start()

    def stop(self) -> None:
        for switch in self._switches.values():
            switch.stop()

    def version(self) -> str:
        said = self.lab.exec(WORKLOADS, ["ovs-vswitchd", "--version"]).stdout
        return said.splitlines()[0].rpartition(" ")[2]

    def set_up(self, places: Sequence[Place]) -> None:
        workloads = self.lab.namespace(WORKLOADS)
        at_workload: list[str] = []
        for place in places:
            name = place.interface
            at_workload += workload_commands(
                name, place.peer_mac, place.peer_inner, place.node_inner, place.mtu
            )
            if place.is_l3:
                at_workload += [
                    f"neighbour add {address} lladdr {NOBODYS_MAC} nud permanent dev {name}"
                    for address in place.node_inner.values()
                ]
        for name, switch in self._switches.items():
            its = [place for place in places if _switch_of(place.case) == name]
            configure(
                self.lab.namespace(switch.host),
                [
                    command
                    for place in its
                    for command in (
                        f"link add {place.interface} type veth peer name {place.interface} netns {workloads}",
                        f"link set {place.interface} mtu {WORKLOAD_LINK_MTU} addrgenmode none up",
                    )
                ],
            )
        configure(workloads, at_workload)
        for place in places:
            switch_off_offloads(self.lab, WORKLOADS, place.interface)
        for name, switch in self._switches.items():
            its = [place for place in places if _switch_of(place.case) == name]
            if its and name != MAIN:
                switch.start()
            if its:
                switch.set_up(its)

    def attempt(self, unable: Unable) -> str:
        """`attempt` is what ovs-vsctl would set at an interface."""
        said = self._switches[MAIN].try_interface(*unable.attempt)
        assert said != "[]", f"{unable.protocol}: the port could be added"
        return said

    def ping(self, place: Place, version: int, *options: str, count: int = 3) -> str:
        return local.ping(
            self.lab, WORKLOADS, place.peer_inner[version], place.node_inner[version], *options, count=count
        )

    def serving(self, place: Place, version: int, size: int) -> AbstractContextManager[Server]:
        return local.serving(self.lab, WORKLOADS, place.peer_inner[version], version, size)

    def send_oversized(self, place: Place, data: bytes) -> None:
        local.send_oversized(self.lab, WORKLOADS, place, data)

    def complaints(self, place: Place) -> str:
        """What the daemon has logged, and what it says of a packet on its way into the tunnel."""
        return self._switches[_switch_of(place.case)].complaints(place)


def switch_off_offloads(lab: Lab, target: str, interface: str) -> None:
    """The switch sees frames as they are in the kernel: one each, with tags in them and checksums filled in."""
    features = ("tx", "gro", "txvlan", "tx-vlan-stag-hw-insert")
    lab.exec(
        target, ["ethtool", "-K", interface, *(word for feature in features for word in (feature, "off"))]
    )


def _switch_of(case: Case) -> str:
    type_ = case.at_peer["type"]
    return type_ if type_ in HOSTS else MAIN


def _flows(place: Place) -> list[str]:
    """The place's flows, as ovs-ofctl takes them. What the peer must have read of ours is in the match."""
    at_peer = place.case.at_peer
    tunnel = TRUNK_PORT if place.case.underlay == ETHERNET else TUNNEL_PORT + place.number
    into = [*at_peer.get("into", ()), f"output:{tunnel}"]
    flows = [f"in_port={place.number},actions={','.join(into)}"]
    stages = [at_peer, at_peer["inside"]] if "inside" in at_peer else [at_peer]
    for table, stage in enumerate(stages):
        match = ",".join([f"table={table}", f"in_port={tunnel}", *stage.get("match", ())])
        actions = [*stage.get("out", ())]
        if stage is not stages[-1]:
            actions.append(f"resubmit(,{table + 1})")
        else:
            actions += [f"set_field:{place.peer_mac}->eth_dst"] * place.is_l3 + [f"output:{place.number}"]
        flows.append(f"{match},actions={','.join(actions)}")
    return flows


# ---- what is tried -----------------------------------------------------------------------------------------------


def _over(
    protocol: str, type_: str, options: Mapping[str, Any], *, underlays: Sequence[int] = (4, 6), **more: Any
) -> list[Case]:
    """A case per underlay; `options` are the port's, `into`, `match`, `out`, `inside` (what is
    looked at and done after `out`) and `tlv_map` the flows', the rest
    Case's."""
    flows = {name: more.pop(name) for name in ("into", "out", "match", "inside", "tlv_map") if name in more}
    mine, types = more.pop("mine", {}), more.pop("types", {})
    return [
        Case(
            peer="ovs",
            protocol=protocol,
            underlay=underlay,
            options=mine,
            at_peer={"type": types.get(underlay, type_), "options": dict(options), **flows},
            **more,
        )
        for underlay in underlays
    ]


IP6GRE, IP6ERSPAN = {6: "ip6gre"}, {6: "ip6erspan"}
"""The names over IPv6; IP packets in GRE have only one name."""
TLV_MAP = (
    "{class=0x0102,type=0x01,len=4}->tun_metadata0,"
    "{class=0x0103,type=0x02,len=8}->tun_metadata1,"
    "{class=0x0104,type=0x83,len=4}->tun_metadata2"
)
"""Options that OVS can name: two that whoever doesn't know them may skip, one that is critical."""

GTPU_VERSION = (
    "it looks for the version of the inner IP header 8 bytes too far, at the TTL of IPv4 and the source address of "
    "IPv6: what it takes is IPv4 with a TTL of 64 to 79"
)
CASES = [
    *_over("geneve", "geneve", {"key": 100}, mine={"vni": 100}, quick=True),
    *_over(
        "geneve",
        "geneve",
        {"key": 101},
        form="options both ways",
        mine={"vni": 101, "tlvs": ["0102:01:00112233", "0103:02:0123456789abcdef"]},
        tlv_map=TLV_MAP,
        into=["set_field:0xfeedf00d->tun_metadata0", "set_field:0xdeadbeef->tun_metadata1"],
        match=["tun_metadata0=0x00112233", "tun_metadata1=0x0123456789abcdef"],
    ),
    *_over(
        "geneve",
        "geneve",
        {"key": 102},
        form="critical option",
        mine={"vni": 102},
        tlv_map=TLV_MAP,
        into=["set_field:0x1->tun_metadata2"],
        refused="REASON_GENEVE_CRITICAL",
    ),
    *_over("vxlan", "vxlan", {"key": 200}, mine={"vni": 200}, quick=True),
    *_over(
        "vxlan",
        "vxlan",
        {"key": 206, "csum": "true"},
        form="UDP checksum required",
        mine={"vni": 206, "receive_checksum": "require"},
    ),
    *_over(
        "vxlan-gbp",
        "vxlan",
        {"key": 201, "exts": "gbp", "dst_port": 4799},
        mine={"vni": 201, "group_policy_id": 0x1234, "policy_applied": True, "port": 4799},
        into=["set_field:0x4321->tun_gbp_id"],
        match=["tun_gbp_id=0x1234", "tun_gbp_flags=0x08"],
        unanswered="the userspace datapath knows no groups: it sends none, and takes no packet that has one",
        complaint="invalid vxlan flags=0x88081234",
    ),
    *_over("vxlan-gpe", "vxlan", {"key": 202, "exts": "gpe", "dst_port": 4790}, mine={"vni": 202}),
    *_over(
        "vxlan-gpe",
        "vxlan",
        {"key": 203, "exts": "gpe", "dst_port": 4790, "packet_type": "legacy_l3"},
        form="IP",
        mine={"vni": 203, "payload": "l3"},
    ),
    *(
        case
        for md_type, key in ((1, 204), (2, 205))
        for case in _over(
            "nsh",
            "vxlan",
            {"key": key, "exts": "gpe", "dst_port": 4790, "packet_type": "ptap"},
            form=f"MD type {md_type}",
            mine={"vni": key, "spi": 0x1234, "si": 254, "md_type": md_type},
            into=[f"encap(nsh(md_type={md_type}))", "set_field:0x4321->nsh_spi", "set_field:253->nsh_si"],
            match=["packet_type=(1,0x894f)", "nsh_spi=0x1234", "nsh_si=254"],
            out=["decap()"],
        )
    ),
    *_over(
        "vlan",
        "",
        {},
        underlays=[ETHERNET],
        mine={"remote": "any", "egress": "eth0", "vid": 42, "pcp": 5},
        into=["push_vlan:0x8100", f"set_field:{0x1000 | 42}->vlan_vid"],
        match=["dl_vlan=42", "dl_vlan_pcp=5"],
        out=["pop_vlan"],
        quick=True,
    ),
    *_over(
        "vlan",
        "",
        {},
        form="802.1ad",
        underlays=[ETHERNET],
        mine={"remote": "any", "egress": "eth0", "vid": 43, "tpid": 0x88A8},
        into=["push_vlan:0x88a8", f"set_field:{0x1000 | 43}->vlan_vid"],
        match=["dl_vlan=43"],
        out=["pop_vlan"],
    ),
    *_over(
        "qinq",
        "",
        {},
        underlays=[ETHERNET],
        mine={"remote": "any", "egress": "eth0", "outer_vid": 300, "inner_vid": 44},
        into=[
            *("push_vlan:0x8100", f"set_field:{0x1000 | 44}->vlan_vid"),
            *("push_vlan:0x88a8", f"set_field:{0x1000 | 300}->vlan_vid"),
        ],
        match=["dl_vlan=300"],
        out=["pop_vlan"],
        inside={"match": ["dl_vlan=44"], "out": ["pop_vlan"]},
    ),
    *_over("gre", "gre", {"packet_type": "legacy_l3"}, quick=True),
    *_over(
        "gre",
        "gre",
        {"packet_type": "legacy_l3", "key": 0xFFFFFFFF, "csum": "true"},
        form="key, checksum",
        mine={"key": 0xFFFFFFFF, "checksum": True},
    ),
    *_over("gretap", "gre", {}, types=IP6GRE),
    *_over(
        "gretap",
        "gre",
        {"key": 7, "seq": "true"},
        types=IP6GRE,
        form="key, sequence",
        mine={"key": 7, "sequence": True},
    ),
    *_over(
        "gretap",
        "gre",
        {"key": 8, "csum": "true", "seq": "true"},
        types=IP6GRE,
        form="key, checksum, sequence",
        mine={"key": 8, "checksum": True, "sequence": True, "verify_checksum": False},
    ),
    *_over(
        "gretap",
        "gre",
        {"key": 9, "csum": "true", "seq": "true"},
        types=IP6GRE,
        form="wrong checksum",
        mine={"key": 9},
        refused="REASON_GRE_CHECKSUM",
    ),
    *_over(
        "nvgre",
        "gre",
        {"key": "flow"},
        types=IP6GRE,
        mine={"vsid": 0x123456},
        into=[f"set_field:{0x12345678}->tun_id"],
        match=["tun_id=0x12345600/0xffffff00"],
    ),
    *_over(
        "erspan",
        "erspan",
        {"key": 5, "erspan_ver": 1, "erspan_idx": 3},
        types=IP6ERSPAN,
        form="type II",
        mine={"session": 5, "index": 77},
        match=["tun_erspan_ver=1", "tun_erspan_idx=77"],
    ),
    *_over(
        "erspan",
        "erspan",
        {"key": 6, "erspan_ver": 2, "erspan_dir": 1, "erspan_hwid": 4},
        types=IP6ERSPAN,
        form="type III",
        mine={"session": 6, "version": 3, "direction": "egress", "hardware_id": 5},
        match=["tun_erspan_ver=2", "tun_erspan_dir=1", "tun_erspan_hwid=5"],
    ),
    *_over(
        "gtpu",
        "gtpu",
        {"key": 0x12345678},
        mine={"teid": 0x12345678},
        match=["tun_gtpu_flags=0x30", "tun_gtpu_msgtype=255"],
        inner=(4,),
    ),
    *_over(
        "gtpu",
        "gtpu",
        {"key": 0x12345677, "csum": "true"},
        form="wrong UDP checksum",
        mine={"teid": 0x12345677, "receive_checksum": "verify"},
        inner=(4,),
        refused="REASON_UDP_CHECKSUM",
        until="3.3",
    ),
    *_over(
        "gtpu",
        "gtpu",
        {"key": 0x12345679},
        form="IPv6",
        mine={"teid": 0x12345679},
        inner=(6,),
        unanswered=GTPU_VERSION,
        complaint="GTP-U: Receive non-IP packet",
    ),
    *_over(
        "gtpu",
        "gtpu",
        {"key": 0x12345680},
        form="QFI",
        mine={"teid": 0x12345680, "qfi": 9},
        inner=(4,),
        unanswered="it knows no extension headers, and takes them for the inner packet",
        complaint="GTP-U: Receive non-IP packet",
    ),
    *_over(
        "mpls",
        "bareudp",
        {"payload_type": "mpls", "dst_port": 6635},
        mine={"labels": [0x1234]},
        into=["push_mpls:0x8847", f"set_field:{0x1234}->mpls_label"],
        match=["eth_type=0x8847"],
        out=["pop_mpls:0x0800"],
        inner=(4,),
        unanswered="it has bareudp tunnels, but not in user space",
        complaint="native tunnel header build failed",
    ),
]
NO_TYPE = "Address family not supported by protocol"
UNABLE = [
    Unable(
        protocol,
        reason,
        (f"type={type_}", "options:remote_ip=10.30.30.1"),
        "Address family not supported by protocol",
        until,
    )
    for protocol, type_, reason, until in (
        ("ipip", "ipip", "no such type of tunnel", ""),
        ("sit", "sit", "no such type of tunnel", ""),
        ("ip4ip6", "ip6tnl", "no such type of tunnel", ""),
        ("ip6ip6", "ip6tnl", "no such type of tunnel", ""),
        ("fou", "fou", "no such type of tunnel", ""),
        ("gue", "gue", "no such type of tunnel", ""),
        ("gre-udp", "gre-udp", "no such type of tunnel", ""),
        ("srv6", "srv6", "not before version 3.2", "3.2"),
        ("l2tp", "l2tp", "no such type of tunnel", ""),
        ("etherip", "etherip", "no such type of tunnel", ""),
    )
]
