# SPDX-License-Identifier: GPL-2.0-only
"""`mptm_user`: the command of the original MPTM, its flags and its output, on today's tables.

One entry says how packets of one inner address to another are tunnelled. It becomes a flow, a tunnel (shared by
entries with the same outer header), the two ports and a route back to the workload, all of them ordinary objects that
`mptm` shows and changes, too. What an entry needed and nobody else does goes away with it.
"""

from __future__ import annotations

import getopt
import hashlib
import ipaddress
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import msgspec

from mptm.cli import (
    discard_output,
    explain,
    netns_of_environment,
    occupy_closed_streams,
    remark_on,
)
from mptm.errors import InvalidIntent, MptmError, NotFound

if TYPE_CHECKING:
    from mptm.facts import Link
    from mptm.intent import Intent, Object, Tunnel
    from mptm.node import Node

NETWORK = "mptm_user"
"""Network of access ports that don't belong to one yet."""

NETWORK_LEN = 4
"""Bytes of a flow's key behind the two addresses."""

CREATED = "created"
"""Annotation of a flow: the objects that mptm_user made for it and others like it, as `kind key; kind key`."""

OPTIONS = {
    "help": "h",
    "enable_logs": "l",
    "redirect": "r",
    "eth0_iface": "Z",
    "veth_iface": "Y",
    "vpeer_iface": "X",
    "flags": "f",
    "tunnel": "t",
    "vlid": "v",
    "source_port": "p",
    "source_ip": "s",
    "source_mac": "S",
    "dest_ip": "d",
    "dest_mac": "D",
    "inner_dest_mac": "M",
    "inner_src_ip": "x",
    "inner_dst_ip": "y",
    "action": "a",
    "instance": "",
    "netns": "",
}
"""Long option -> short one; all but help take an argument. The last two are new."""

LIMITS = {"enable_logs": 1, "redirect": 1, "flags": 2**32 - 1, "vlid": 2**24 - 1, "source_port": 65535}
"""Options that are whole numbers, and the largest that each takes."""

MAX_DIGITS = 40

USAGE = """\
Usage: mptm_user -a ADD|GET|DEL -x ADDRESS -y ADDRESS [OPTION]...

Say how packets of one inner address to another are tunnelled; show or delete what was said.

  -a, --action ADD|GET|DEL     what to do
  -x, --inner_src_ip ADDRESS   the workload's address
  -y, --inner_dst_ip ADDRESS   the address that it sends to

ADD needs as well:
  -t, --tunnel GENEVE|VLAN     protocol (VXLAN works, too)
  -v, --vlid N                 VNI, or VLAN identifier
  -Z, --eth0_iface INTERFACE   the uplink: number or name
  -Y, --veth_iface INTERFACE   the access port, the node's end of the workload's veth: number or name
  -d, --dest_ip ADDRESS        the other node (VLAN: or --dest_mac)

ADD may have:
  -s, --source_ip ADDRESS      our underlay address (default: by the routing table)
  -S, --source_mac MAC         outer source MAC (default: the uplink's)
  -D, --dest_mac MAC           outer destination MAC (default: by the neighbour table)
  -p, --source_port N          UDP source port (default: from a hash of the inner flow)
  -M, --inner_dest_mac MAC     inner destination MAC to write
  -X, --vpeer_iface INTERFACE  the workload's end of the veth, where it is visible
  -r, --redirect 0|1           1 (default): send it; 0: hand the encapsulated packet to the kernel
  -l, --enable_logs 0|1        kept, and shown by GET
  -f, --flags N                kept, and shown by GET
      --instance NAME          as in `mptm --instance` (or MPTM_INSTANCE)
      --netns NAME             as in `mptm --netns` (or MPTM_NETNS)

Example:
  mptm_user --redirect 1 --eth0_iface 2 --veth_iface 146 --tunnel GENEVE --vlid 0 --source_port 51234 \\
            --source_ip 10.30.30.1 --source_mac 68:05:ca:d4:7c:ac --dest_ip 10.30.30.2 \\
            --dest_mac 68:05:ca:d4:5c:28 --inner_dest_mac 9e:5c:c2:da:ee:5b \\
            --inner_src_ip 10.250.1.100 --inner_dst_ip 10.250.1.101 -a ADD
  mptm_user --inner_src_ip 10.250.1.100 --inner_dst_ip 10.250.1.101 -a GET

Exit status: 0 done, 1 failed or not found, 2 wrong usage."""


class Usage(Exception):
    """The flags make no sense; the message says which and why."""


@dataclass(frozen=True)
class Entry:
    """What GET found in the tables of the data plane, and the annotations that aren't there."""

    debug: str
    redirect: int
    flags: str
    eth0_iface: int
    veth_iface: int
    tunnel_type: str
    vlan_id: int
    source_port: str
    source_mac: str
    outer_dest_mac: str
    inner_dest_mac: str
    dest_ip: str
    source_ip: str

    def __str__(self) -> str:
        lines = "".join(f"        {name} = {value}\n" for name, value in vars(self).items())
        return (
            f"Tunnel info element - {{\n{lines}}}\n"
            f"Ingrese redirect is from iface {self.veth_iface} to {self.eth0_iface}\n"
            f"Egrese redirect is from iface {self.eth0_iface} to {self.veth_iface}"
        )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `mptm_user`. Never returns."""
    occupy_closed_streams()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Do what the flags say and return the exit status; errors have been printed."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except Usage as error:
        _complain(f"{error}\n  `mptm_user --help` lists the flags")
        return 2
    except MptmError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return explain(error, "mptm_user", _complain)


def _complain(text: str) -> None:
    """An error on standard error, after what was printed before it, wherever the two go."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
    print(f"mptm_user: error: {text}", file=sys.stderr)


def _run(arguments: Sequence[str]) -> int:
    from mptm.node import Node

    values = parse(arguments)
    if "help" in values:
        print(USAGE)
        return 0
    action = verify(values)
    print("Arguments verified")
    instance = values.get("instance") or os.environ.get("MPTM_INSTANCE") or "default"
    try:
        node = Node(
            instance,
            netns=values.get("netns") or netns_of_environment(instance),
            progress=lambda text: print(f"mptm_user: {text}", file=sys.stderr),
        )
    except InvalidIntent as error:
        raise Usage(str(error)) from error
    if remark := remark_on(node):
        print(f"mptm_user: {remark}", file=sys.stderr)
    source, destination = values["inner_src_ip"], values["inner_dst_ip"]
    if action == "ADD":
        add(node, values)
        with node.data_plane() as data_plane:
            flows, redirects = _open_maps(data_plane, source)
            print("Creating tunnel info object......created")
            print(f"action is add, map fd {flows.fd} adding {flows.name} entry")
            for _ in ("ingress", "egress"):
                print(f"action is add, map fd {redirects.fd} adding {redirects.name} entry")
    elif action == "DEL":
        with node.data_plane() as data_plane:
            flows, _ = _open_maps(data_plane, source)
            print(f"action is delete, map fd {flows.fd} deleting {flows.name} entry")
        node.edit(lambda intent: delete(intent, source, destination))
    else:
        with node.data_plane() as data_plane:
            _open_maps(data_plane, source)
            print(get(data_plane, node.intent, source, destination))
    return 0


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """The flags by their long names; each is printed as it is read. Raises Usage."""
    short = "".join(letter + (":" if letter != "h" else "") for letter in OPTIONS.values() if letter)
    long = [name + ("=" if name != "help" else "") for name in OPTIONS]
    try:
        found, rest = getopt.gnu_getopt(list(arguments), short, long)
    except getopt.GetoptError as error:
        raise Usage(error.msg) from error
    if rest:
        raise Usage(f"{rest[0]!r} belongs to no flag")
    names = {f"-{letter}": name for name, letter in OPTIONS.items() if letter}
    values: dict[str, str] = {}
    for flag, value in found:
        name = names.get(flag, flag.removeprefix("--"))
        values[name] = value
        if OPTIONS[name] and name != "help":
            print(f"opt: {OPTIONS[name]} arg: {value} ")
    return values


def verify(values: dict[str, str]) -> str:
    """The action, when everything that it needs is there and each value makes sense by itself. Raises Usage."""
    action = values.get("action", "").upper()
    if action not in ("ADD", "GET", "DEL"):
        raise Usage(
            f"-a must be ADD, GET or DEL, not {values['action']!r}" if action else "-a ADD|GET|DEL is missing"
        )
    needed = ["inner_src_ip", "inner_dst_ip"]
    if action == "ADD":
        needed += ["tunnel", "vlid", "eth0_iface", "veth_iface"]
        if values.get("tunnel", "").upper() != "VLAN" or "dest_mac" not in values:
            needed.append("dest_ip")
    missing = [f"--{name}" for name in needed if not values.get(name)]
    if missing:
        raise Usage(f"{action} needs {', '.join(missing)}")
    for name in ("inner_src_ip", "inner_dst_ip", "source_ip", "dest_ip"):
        if name in values:
            try:
                values[name] = str(ipaddress.ip_address(values[name]))
            except ValueError:
                raise Usage(f"--{name}: {values[name]!r} is no IP address") from None
    for name in ("source_mac", "dest_mac", "inner_dest_mac"):
        if name in values:
            values[name] = _padded_mac(name, values[name])
    for name, highest in LIMITS.items():
        digits = values.get(name, "0")
        # Python refuses to read numbers of thousands of digits.
        if not (digits.isdecimal() and len(digits) <= MAX_DIGITS and int(digits) <= highest):
            raise Usage(f"--{name}: {values[name]!r} is no number from 0 to {highest}")
    if action == "ADD":
        if not _has_vlid(values["tunnel"].lower()):
            raise Usage(f"--tunnel: {values['tunnel']!r} is none of GENEVE, VLAN and VXLAN")
        try:
            _tunnel(values, NETWORK, values["eth0_iface"])
        except InvalidIntent as error:
            raise Usage(str(error)) from error
    return action


def _has_vlid(protocol: str) -> bool:
    """Whether --vlid says what tells a protocol's tunnels apart: a VNI or a VLAN identifier."""
    from mptm.protocols import PROTOCOLS

    found = PROTOCOLS.get(protocol)
    return found is not None and any(hasattr(found.options, name) for name in ("vni", "vid"))


def _padded_mac(name: str, text: str) -> str:
    """A MAC address with two digits per byte; the original printed (so people have) 68:5:ca:... as well."""
    try:
        octets = [int(part, 16) for part in text.split(":") if 1 <= len(part) <= 2]
    except ValueError:
        octets = []
    if len(octets) != 6 or text.count(":") != 5:
        raise Usage(f"--{name}: {text!r} is no MAC address")
    return bytes(octets).hex(":")


# ---- ADD -----------------------------------------------------------------------------------------


def add(node: Node, values: dict[str, str]) -> None:
    """Add the entry, or put it in place of the one for the same pair of addresses. Raises Usage, MptmError."""
    links = node.links()
    uplink = _find_link(links, "eth0_iface", values["eth0_iface"])
    access = _find_link(links, "veth_iface", values["veth_iface"])
    if uplink.name == access.name:
        raise Usage(f"--eth0_iface and --veth_iface are both {uplink.name}")
    workload_mac = access.peer_mac or _visible_mac(links, values.get("vpeer_iface"))
    at_xdp = {link.name for link in (uplink, access) if link.xdp_prog_id is not None}
    node.edit(lambda intent: with_entry(intent, values, uplink.name, access.name, workload_mac, at_xdp))
    if values.get("redirect") == "0":
        print(
            f"mptm_user: the kernel routes what {access.name} hands it only with these settings (sysctl):\n"
            f"  net.ipv4.ip_forward=1 net.ipv4.conf.{access.name}.accept_local=1\n"
            f"  net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{access.name}.rp_filter=0",
            file=sys.stderr,
        )


def with_entry(
    intent: Intent,
    values: dict[str, str],
    uplink: str,
    access: str,
    workload_mac: bytes | None,
    at_xdp: Collection[str] = (),
) -> Intent:
    """The intent with the entry that the flags describe; everything that it needs is there or is made.

    Interfaces `at_xdp` have a program there already, such as bpftool attached, and stay there.
    """
    from mptm.intent import Flow, Network, Port, Route

    source, destination = values["inner_src_ip"], values["inner_dst_ip"]
    for port in (intent.ports.get(access), intent.ports.get(uplink)):
        role = "access" if port is not None and port.name == access else "uplink"
        if port is not None and port.role != role:
            raise InvalidIntent(
                f"{port.name} is a port of role {port.role}, not {role}", f"mptm port del {port.name}"
            )
    known = intent.ports.get(access)
    network = known.network if known is not None and known.network is not None else NETWORK
    if f"{network} {source} {destination}" in intent.flows:
        intent = without_flow(intent, f"{network} {source} {destination}")

    created: list[str] = []
    earlier = {obj for flow in intent.flows.values() for obj in _created(flow.annotations)}

    def ensure(kind: str, key: str, make: Callable[[], Object]) -> None:
        nonlocal intent
        name = f"{kind} {key}"
        if key not in intent.of_kind(kind):
            intent = intent.add(make())
            created.append(name)
        elif name in earlier:
            created.append(name)

    def new_network() -> Network:
        taken = {each.id for each in intent.networks.values()}
        return Network(
            name=NETWORK, id=next(number for number in range(1, len(taken) + 2) if number not in taken)
        )

    ensure("network", network, new_network)
    hook_of: dict[str, Literal["xdp", "auto"]] = {
        name: "xdp" if name in at_xdp else "auto" for name in (uplink, access)
    }
    ensure("port", uplink, lambda: Port(name=uplink, role="uplink", hook=hook_of[uplink]))
    ensure("port", access, lambda: Port(name=access, role="access", network=network, hook=hook_of[access]))
    tunnel = _tunnel(values, network, uplink)
    shared = _tunnel_to_share(intent, tunnel)
    if shared is not None and _outer(shared) != _outer(tunnel):
        print(
            f"mptm_user: tunnel {shared.name} gets this entry's outer header for all its entries",
            file=sys.stderr,
        )
        intent = intent.replace(msgspec.structs.replace(tunnel, name=shared.name))
    if shared is not None:
        tunnel = intent.tunnels[shared.name]
    ensure("tunnel", tunnel.name, lambda: tunnel)
    # The flow alone steers; the route lets the workload's ARP and neighbour solicitations be answered.
    prefix = str(ipaddress.ip_network(destination))
    # What goes to the kernel must come to the port's own MAC: a veth marks other frames as another host's before XDP.
    to_stack = values.get("redirect") == "0"
    answer_mac = None if to_stack else values.get("inner_dest_mac")
    there = Route(network=network, prefix=prefix, via=tunnel.name, mac=answer_mac)
    ensure("route", there.key, lambda: there)
    if to_stack:
        intent = _without_answer_macs(intent, tunnel.name, there.key, {*earlier, *created})
    if workload_mac is not None:
        prefix = str(ipaddress.ip_network(source))
        here = Route(network=network, prefix=prefix, port=access, mac=workload_mac.hex(":"))
        ensure("route", here.key, lambda: here)
    return intent.add(
        Flow(
            network=network,
            source=source,
            destination=destination,
            via=tunnel.name,
            mac=values.get("inner_dest_mac"),
            annotations={
                "enable_logs": values.get("enable_logs", "0"),
                "flags": values.get("flags", "0"),
                CREATED: "; ".join(created),
            },
        )
    )


def _without_answer_macs(intent: Intent, tunnel: str, key: str, ours: set[str]) -> Intent:
    """The intent in which routes of ours, that of this key and those via the tunnel, answer the port's own MAC."""
    for route in intent.routes.values():
        if (
            f"route {route.key}" in ours
            and route.mac
            and route.via
            and (key == route.key or tunnel == route.via)
        ):
            intent = intent.replace(msgspec.structs.replace(route, mac=None))
    return intent


def _tunnel(values: dict[str, str], network: str, uplink: str) -> Tunnel:
    """The tunnel of an entry, named by what makes its outer header. Raises InvalidIntent."""
    from mptm.intent import tunnel_from_dict

    protocol = values["tunnel"].lower()
    fields: dict[str, Any] = {
        "protocol": protocol,
        "network": network,
        "remote": values.get("dest_ip"),
        "remote_mac": values.get("dest_mac"),
        "local_mac": values.get("source_mac"),
        "egress": uplink,
    }
    number = int(values["vlid"])
    if protocol == "vlan":
        if fields["remote_mac"]:
            fields["remote"] = None
        fields["vid"] = number
        if values.get("redirect") == "0":
            raise InvalidIntent("--redirect 0 needs a tunnel over IP, VLAN has no IP header to route by")
    else:
        fields |= {"vni": number, "local": values.get("source_ip"), "to_stack": values.get("redirect") == "0"}
        if int(values.get("source_port", "0")):
            fields["source_port"] = int(values["source_port"])
    parameters = " ".join(f"{name}={value}" for name, value in sorted(fields.items()))
    digest = hashlib.sha256(parameters.encode()).hexdigest()[:8]
    return tunnel_from_dict(
        {
            "name": f"mptm_user-{protocol}-{number}-{digest}",
            **{name: value for name, value in fields.items() if value is not None},
        }
    )


def _outer(tunnel: Tunnel) -> dict[str, Any]:
    """What makes the outer header: everything but the name and notes."""
    return {name: value for name, value in tunnel.to_dict().items() if name not in ("name", "annotations")}


def _tunnel_to_share(intent: Intent, wanted: Tunnel) -> Tunnel | None:
    """A tunnel with the same outer header, or one of mptm_user that would accept the same packets.

    The second is because a packet that comes in can be for one tunnel only.
    """
    from mptm.protocols import PROTOCOLS

    def accepts(tunnel: Tunnel) -> tuple[object, ...]:
        number = PROTOCOLS[tunnel.protocol].tunnel_id(tunnel.options)
        return tunnel.protocol, tunnel.network, number, tunnel.remote or tunnel.remote_mac

    def may_meet(tunnel: Tunnel) -> bool:
        if not PROTOCOLS[tunnel.protocol].over_ip:
            return tunnel.egress == wanted.egress
        return tunnel.local == wanted.local or None in (tunnel.local, wanted.local)

    for tunnel in intent.tunnels.values():
        if _outer(tunnel) == _outer(wanted):
            return tunnel
        ours = tunnel.name.startswith("mptm_user-")
        if ours and accepts(tunnel) == accepts(wanted) and may_meet(tunnel):
            return tunnel
    return None


def _find_link(links: dict[str, Link], flag: str, text: str) -> Link:
    for link in links.values():
        if text in (link.name, str(link.ifindex)):
            return link
    raise NotFound(f"--{flag}: there is no interface {text}", "`ip link` lists numbers and names")


def _visible_mac(links: dict[str, Link], text: str | None) -> bytes | None:
    return next((link.mac for link in links.values() if text in (link.name, str(link.ifindex))), None)


# ---- DEL -----------------------------------------------------------------------------------------


def delete(intent: Intent, source: str, destination: str) -> Intent:
    """The intent without the entry. Raises NotFound."""
    keys = [f"{network} {source} {destination}" for network in (NETWORK, *intent.networks)]
    key = next((key for key in keys if key in intent.flows), None)
    if key is None:
        raise NotFound(f"there is no entry for {source} to {destination}")
    return without_flow(intent, key)


def without_flow(intent: Intent, key: str) -> Intent:
    """Remove a flow, and of what mptm_user created for it what nothing else uses."""
    from mptm.intent import Route

    removed = intent.flows[key]
    created = _created(removed.annotations)
    intent = intent.remove("flow", key)
    needed = {obj for flow in intent.flows.values() for obj in _created(flow.annotations)}
    there = Route(
        network=removed.network, prefix=str(ipaddress.ip_network(removed.destination)), drop=True
    ).key
    if f"route {there}" in needed and intent.routes[there].via == removed.via:
        heirs = (flow for flow in intent.flows.values() if f"route {there}" in _created(flow.annotations))
        heir = next((flow for flow in heirs if flow.destination == removed.destination), None)
        if heir is not None:
            mac = None if _any_to_stack(intent, removed.network, removed.destination) else heir.mac
            intent = intent.replace(msgspec.structs.replace(intent.routes[there], via=heir.via, mac=mac))
    for obj in reversed(created):
        kind, _, name = obj.partition(" ")
        if obj in needed or name not in intent.of_kind(kind) or intent.users(kind, name):
            continue
        if kind == "port" and intent.ports[name].role == "uplink" and intent.tunnels:
            continue
        intent = intent.remove(kind, name)
    return intent


def _any_to_stack(intent: Intent, network: str, destination: str) -> bool:
    """Whether a flow to an address hands its packets to the kernel."""
    return any(
        getattr(intent.tunnels[flow.via].options, "to_stack", False)
        for flow in intent.flows.values()
        if (flow.network, flow.destination) == (network, destination) and flow.via is not None
    )


def _created(annotations: dict[str, str]) -> list[str]:
    """In the order of creation: what refers to something comes after it."""
    return [obj for obj in annotations.get(CREATED, "").split("; ") if obj]


# ---- GET -----------------------------------------------------------------------------------------


def get(data_plane: Any, intent: Intent, source: str, destination: str) -> Entry:
    """The entry as the data plane has it. Raises NotFound, for a flow that leads into no tunnel, too."""
    from mptm.compile import NextHopKind
    from mptm.tables import HostKeyV4, HostKeyV6

    maps = data_plane.maps
    version = ipaddress.ip_address(source).version
    addresses = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    flows, hosts = maps[f"flows_v{version}"], maps[f"hosts_v{version}"]
    names = {network.id: network.name for network in intent.networks.values()}
    of_pair = [
        (flows.key.unpack(key), flows.value.unpack(value))
        for key, value in flows.items().items()
        if key[:-NETWORK_LEN] == addresses
    ]
    found = [each for each in of_pair if each[1]["kind"] == NextHopKind.TUNNEL]
    if not found:
        raise NotFound(
            f"there is no entry for {source} to {destination}",
            "the flow there leads into no tunnel; `mptm flow list` shows it" if of_pair else None,
        )
    key, next_hop = min(found, key=lambda each: names.get(each[0]["network"]) != NETWORK)
    stored = intent.flows.get(f"{names.get(key['network'])} {source} {destination}")
    notes = stored.annotations if stored is not None else {}
    host_key = (HostKeyV4 if version == 4 else HostKeyV6)(key["network"], ipaddress.ip_address(source).packed)
    host = hosts.get(hosts.key.pack(host_key))
    workload = hosts.value.unpack(host) if host is not None else {"kind": NextHopKind.DROP}
    slot = maps["tunnels"].key.pack(next_hop["id"])
    record = maps["tunnels"].value.unpack(maps["tunnels"].get(slot))
    outer = _decode_outer(record["outer"], _parsers(maps["listeners"]))
    return Entry(
        debug=notes.get("enable_logs", "0"),
        redirect=0 if record["flags"] & 1 else 1,
        flags=notes.get("flags", "0"),
        eth0_iface=record["egress_ifindex"],
        veth_iface=workload["id"] if workload["kind"] == NextHopKind.PORT else 0,
        inner_dest_mac=next_hop["mac"].hex(":"),
        **outer,
    )


def _parsers(listeners: Any) -> dict[tuple[int, int], str]:
    """Protocol names by kind and number of the listener."""
    from mptm.protocols import PROTOCOLS

    names: dict[int, str] = {}
    for name, protocol in PROTOCOLS.items():
        if name.upper() == protocol.parser.name:
            names[protocol.parser] = name
        names.setdefault(protocol.parser, name)
    found: dict[tuple[int, int], str] = {}
    for key, value in listeners.items().items():
        row, parsers = listeners.key.unpack(key)["value"], listeners.value.unpack(value)["parsers"]
        for at, parser in enumerate(parsers, row * len(parsers)):
            if parser:
                found[at // 65536, at % 65536] = names.get(parser, "?").upper()
    return found


def _decode_outer(outer: bytes, parsers: dict[tuple[int, int], str]) -> dict[str, Any]:
    """What the original shows of an outer header. RFC 791, 8200, 768; VNI: RFC 8926 §3.4, RFC 7348 §5."""
    ethertype = int.from_bytes(outer[12:14])
    fields: dict[str, Any] = {"outer_dest_mac": outer[0:6].hex(":"), "source_mac": outer[6:12].hex(":")}
    if ethertype not in (0x0800, 0x86DD):
        return fields | {
            "tunnel_type": parsers.get((3, ethertype), "VLAN"),
            "vlan_id": int.from_bytes(outer[14:16]) & 0xFFF,
            "source_port": "0",
            "dest_ip": "0.0.0.0",
            "source_ip": "0.0.0.0",
        }
    source, end, udp = (26, 34, 34) if ethertype == 0x0800 else (22, 54, 54)
    middle = (source + end) // 2
    port = int.from_bytes(outer[udp : udp + 2])
    return fields | {
        "tunnel_type": parsers.get((1, int.from_bytes(outer[udp + 2 : udp + 4])), "?"),
        "vlan_id": int.from_bytes(outer[udp + 12 : udp + 15]),
        "source_port": str(port) if port else "flow",
        "source_ip": str(ipaddress.ip_address(outer[source:middle])),
        "dest_ip": str(ipaddress.ip_address(outer[middle:end])),
    }


def _open_maps(data_plane: Any, source: str) -> tuple[Any, Any]:
    """The tables of entries and of redirects, telling where they are pinned."""
    from mptm.kernel.dataplane import instance_directory

    flows = data_plane.maps[f"flows_v{ipaddress.ip_address(source).version}"]
    redirects = data_plane.maps["tx_ports"]
    for each in (flows, redirects):
        pin = instance_directory(data_plane.instance) / "maps" / each.name
        print(f"Opened bpf map file {pin} at fd {each.fd}")
    return flows, redirects


if __name__ == "__main__":
    main()
