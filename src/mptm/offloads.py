# SPDX-License-Identifier: GPL-2.0-only
"""What XDP at one end of a veth needs of the other end, what was set there for it, and how it is put back.

A veth hands over packets as they are in memory: with a checksum that hardware is to fill in, VLAN tags beside the
frame, many segments in one. XDP sees the bytes only. And it takes redirected frames only where its receiving end runs
NAPI. So what the other end offers is changed when a port is added, remembered in the store, and put back when the port
is removed. Plain data and decisions; `mptm.kernel.offloads` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import msgspec

from mptm.errors import MptmError
from mptm.tables import Attachment

XDP_NEEDS = {
    "tx-checksum-ip-generic": False,
    "tx-checksum-sctp": False,
    "tx-udp-segmentation": False,
    "tx-vlan-hw-insert": False,
    "tx-vlan-stag-hw-insert": False,
    "rx-gro": True,
}
"""Features of a veth (Documentation/networking/netdev-features.rst) as they have to be at the other end; TSO falls away
with the checksums."""

NAPI_FEATURE = "rx-gro"
"""Gives a veth NAPI. When it is turned on while the veth is down, the port isn't told that it may send there, even once
the veth is up again (seen on Linux 6.18)."""

NEEDS: dict[str, Mapping[str, bool]] = {
    "xdp": XDP_NEEDS,
    "frames": {NAPI_FEATURE: True},
    "nothing": {},
}
"""What a port may need of its other end: "xdp", one at XDP; "frames", one at TC to which others at XDP send."""

CONSEQUENCES = {
    (
        "tx-checksum-ip-generic",
        "tx-checksum-sctp",
    ): "leaves checksums to hardware: ping works, TCP gets nothing",
    ("tx-udp-segmentation",): "sends several UDP segments in one packet, which isn't carried",
    ("tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"): "keeps VLAN tags beside the frame: they are lost",
    (NAPI_FEATURE,): "takes no frames from XDP, as GRO is off, or was turned on while it was down",
}
"""What comes of features that aren't as they have to be, in words."""

STRIPPED_TAGS = ("rx-vlan-hw-parse", "rx-vlan-stag-hw-parse")
"""Features of an uplink that takes tags off."""

WORDS = {
    "tx": ("tx-checksum-ip-generic", "tx-checksum-sctp"),
    "tx-udp-segmentation": ("tx-udp-segmentation",),
    "txvlan": ("tx-vlan-hw-insert",),
    "tx-vlan-stag-hw-insert": ("tx-vlan-stag-hw-insert",),
    "gro": ("rx-gro",),
    "rxvlan": ("rx-vlan-hw-parse",),
    "rx-vlan-stag-hw-parse": ("rx-vlan-stag-hw-parse",),
}
"""What ethtool(8) -K calls them."""


@dataclass(frozen=True)
class Feature:
    """A feature of an interface: in force, asked for (what dependencies allow is in force), and open to change."""

    active: bool
    wanted: bool
    changeable: bool


@dataclass(frozen=True)
class OtherEnd:
    """The other end of a port's veth. `namespace`: a path to its network namespace, empty: that of the port.

    `features` None: the namespace can't be found or entered, `problem` says so; what else there is can be read
    from here. `takes_frames`: whether XDP can send from the port to here; None: this kernel doesn't say.
    """

    ifindex: int
    name: str
    mtu: int
    up: bool = True
    has_xdp: bool = False
    takes_frames: bool | None = None
    namespace: str = ""
    features: Mapping[str, Feature] | None = None
    problem: str = ""

    @property
    def runs_napi(self) -> bool:
        """Whether it takes frames that XDP sends there."""
        if self.takes_frames is not None:
            return self.takes_frames
        gro = (self.features or {}).get(NAPI_FEATURE)
        return self.has_xdp or (gro is not None and gro.active)

    def lacks(self, needs: str = "xdp") -> dict[str, bool]:
        """What has to be changed, feature by feature; nothing where features can't be read. `needs`: of NEEDS."""
        found = {}
        for name, needed in NEEDS[needs].items():
            feature = (self.features or {}).get(name)
            if feature is None:
                continue
            if name == NAPI_FEATURE:
                is_right = self.runs_napi
            else:
                is_right = feature.active == needed and not (feature.changeable and feature.wanted != needed)
            if not is_right:
                found[name] = needed
        return found

    def where(self) -> str:
        """In words: `eth0 in /run/netns/c1`."""
        return f"{self.name} in {self.namespace}" if self.namespace else self.name

    def command(self, words: str) -> str:
        """A command line that runs `words` where the interface is."""
        return command_in(self.namespace, words)


def command_in(namespace: str, words: str) -> str:
    """A command line that runs `words` in a network namespace, given by path; empty: the one at hand."""
    return f"nsenter --net={namespace} {words}" if namespace else words


def ethtool_command(name: str, features: Mapping[str, bool]) -> str:
    """The command line that sets features: `ethtool -K eth0 tx off gro on`."""
    settings = {word: features[name] for word, names in WORDS.items() for name in names if name in features}
    return " ".join(
        ["ethtool -K", name, *(f"{word} {'on' if value else 'off'}" for word, value in settings.items())]
    )


class PortNeeds(NamedTuple):
    """A port's interface and what it needs of its other end (of NEEDS)."""

    ifindex: int
    needs: str


def needs_of(attachments: Iterable[Attachment]) -> dict[str, PortNeeds]:
    """What ports need, by the hooks that their programs run at."""
    attachments = list(attachments)
    at_tc = "frames" if any(each.hook == "xdp" for each in attachments) else "nothing"
    return {
        each.name: PortNeeds(each.ifindex, "xdp" if each.hook == "xdp" else at_tc) for each in attachments
    }


class Settled(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was done for a port. `before`: feature -> whether it was asked for; `port_ifindex` tells its interface."""

    port_ifindex: int
    needs: str = "xdp"
    name: str = ""
    namespace: str = ""
    before: dict[str, bool] = {}
    problem: str = ""

    def describe(self) -> str:
        """What was changed, as ethtool -K would be told; empty: nothing."""
        changed = {name: not value for name, value in self.before.items()}
        return ethtool_command("", changed).removeprefix("ethtool -K ").strip() if changed else ""


class _Record(msgspec.Struct, frozen=True):
    boot: str
    ports: dict[str, Settled]


class Machine(Protocol):
    """What is needed of the machine (`mptm.node.Kernel`)."""

    def find_other_ends(self, ifindexes: Iterable[int]) -> dict[int, OtherEnd]:
        """The other ends of those interfaces that are veths, by the interface's number."""

    def set_features(self, end: OtherEnd, features: Mapping[str, bool]) -> None:
        """Ask for features to be on or off. Raises KernelError."""


@dataclass
class Offloads:
    """What is set for the ports of an instance, as it is remembered in the store.

    `remember` writes it there: before anything is changed, so that whoever comes after a kill knows what was before.
    `boot` tells boots of the machine apart: after another one there is nothing to put back.
    """

    machine: Machine
    remember: Any
    boot: str
    ports: dict[str, Settled] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, machine: Machine, remember: Any, boot: str, text: str | None) -> Offloads:
        """From what `encode` yielded, or None."""
        record = msgspec.json.decode(text, type=_Record) if text else _Record(boot, {})
        return cls(machine, remember, boot, dict(record.ports) if record.boot == boot else {})

    def encode(self) -> str:
        """As it is stored."""
        return msgspec.json.encode(_Record(self.boot, self.ports)).decode()

    def settle(self, ports: Mapping[str, PortNeeds], *, again: bool) -> dict[str, Settled]:
        """Change what these ports, by name, need; `again`: look at those, too, that are known.

        Returns what was found for the ports that were looked at. What can't be done is in `warnings`.
        """
        new = {
            name: port
            for name, port in ports.items()
            if again or name not in self.ports or port != _port_needs(self.ports[name])
        }
        if not new:
            return {}
        self._release(
            {
                name: settled
                for name, settled in self.ports.items()
                if name in new and new[name].ifindex != settled.port_ifindex
            }
        )
        ends = self.machine.find_other_ends([port.ifindex for port in new.values()])
        found: dict[str, Settled] = {}
        changes: dict[str, dict[str, bool]] = {}
        for name, (ifindex, needs) in new.items():
            end = ends.get(ifindex)
            known = self.ports.get(name)
            before = known.before if known is not None else {}
            if end is None:
                found[name] = Settled(ifindex, needs)
                continue
            features = end.features or {}
            lacks = end.lacks(needs)
            changes[name] = {
                each: needed
                for each, needed in lacks.items()
                if features[each].changeable
                and (end.up if each == NAPI_FEATURE else features[each].wanted != needed)
            }
            earlier = {
                each: features[each].wanted
                for each, needed in changes[name].items()
                if features[each].wanted != needed
            }
            found[name] = Settled(ifindex, needs, end.name, end.namespace, earlier | before, end.problem)
            if end.features is None and NEEDS[needs]:
                self.warnings.append(_unreachable(name, end, NEEDS[needs]))
            elif NAPI_FEATURE in lacks and not end.up:
                self.warnings.append(
                    f"port {name}: its other end, {end.where()}, is down, and takes nothing from XDP until GRO is "
                    "turned on while it is up; then run: mptm restore"
                )
        self._note(self.ports | found)
        for name, wanted in changes.items():
            end = ends[new[name].ifindex]
            try:
                if NAPI_FEATURE in wanted and (end.features or {})[NAPI_FEATURE].wanted:
                    self.machine.set_features(end, {NAPI_FEATURE: False})
                if wanted:
                    self.machine.set_features(end, wanted)
            except MptmError as error:
                found[name] = msgspec.structs.replace(found[name], problem=error.message)
                command = end.command(ethtool_command(end.name, wanted))
                self.warnings.append(f"port {name}: {end.where()}: {error.message}; run: {command}")
        self._note(self.ports | found)
        return found

    def release(self, ports: Mapping[str, PortNeeds]) -> None:
        """Put back what was changed and isn't needed any more: all of ports that aren't among these."""
        self._release({name: settled for name, settled in self.ports.items() if name not in ports})
        less = {
            name: msgspec.structs.replace(settled, before=unneeded)
            for name, settled in self.ports.items()
            if (
                unneeded := {
                    each: before
                    for each, before in settled.before.items()
                    if each not in NEEDS[ports[name].needs]
                }
            )
        }
        self._put_back_all(less)
        kept = {
            name: msgspec.structs.replace(
                settled,
                before={
                    each: before
                    for each, before in settled.before.items()
                    if each in NEEDS[ports[name].needs]
                },
            )
            for name, settled in self.ports.items()
        }
        self._note(kept)

    def _release(self, gone: Mapping[str, Settled]) -> None:
        self._put_back_all({name: settled for name, settled in gone.items() if settled.before})
        self._note({name: settled for name, settled in self.ports.items() if name not in gone})

    def _put_back_all(self, changed: Mapping[str, Settled]) -> None:
        """Put back what `before` says of each."""
        if not changed:
            return
        ends = self.machine.find_other_ends([settled.port_ifindex for settled in changed.values()])
        for name, settled in changed.items():
            end = ends.get(settled.port_ifindex)
            if end is None:
                continue  # the interface is gone, and the other end with it
            try:
                self._put_back(end, settled)
            except MptmError as error:
                command = end.command(ethtool_command(end.name, settled.before))
                self.warnings.append(
                    f"port {name}: what was set at {end.where()} can't be put back: {error.message}; run: {command}"
                )

    def _put_back(self, end: OtherEnd, settled: Settled) -> None:
        if end.features is None:
            raise MptmError(end.problem)
        wanted = {
            name: before
            for name, before in settled.before.items()
            if name in end.features and end.features[name].wanted != before and end.features[name].changeable
        }
        if wanted:
            self.machine.set_features(end, wanted)

    def _note(self, ports: dict[str, Settled]) -> None:
        if ports != self.ports:
            self.ports = ports
            self.remember({"offloads": self.encode()})


def _port_needs(settled: Settled) -> PortNeeds:
    return PortNeeds(settled.port_ifindex, settled.needs)


def _unreachable(port: str, end: OtherEnd, needs: Mapping[str, bool]) -> str:
    command = ethtool_command(end.name, needs)
    return (
        f"port {port}: {end.problem}, so what XDP needs of {end.name} there is up to you; in that namespace run: "
        f"{command}"
    )


class Finding(NamedTuple):
    """Something about a port that isn't as it should be, and the command that mends it.

    `is_serious`: packets are lost, not only larger than they should be.
    """

    port: str
    problem: str
    command: str
    is_serious: bool = True


@dataclass(frozen=True)
class PortFacts:
    """What is looked at to examine a port.

    `up`, `is_far` and `detour` are the interface's (Link: up, has_far_peer and detour); `is_handed_over`: what the data
    plane does with packets to it, None: it isn't loaded; `before`: programs that see packets before ours. `moved_from`:
    the namespace in which the other end was, and isn't any more. `segmenter_problem`: of DataPlane, where the port is
    an access port at TC.
    `own` are the features of the interface itself. `can_send`: whether XDP can send out of it, None: not known.
    `fits`: the largest IP packet that fits every tunnel of the port's network; `is_told`: senders are told so.
    `needs_tags`: VLAN tags have to be in the frames that come in. `namespace`: as that of OtherEnd, empty: where the
    commands will be typed.
    """

    name: str
    mtu: int
    namespace: str = ""
    up: bool = True
    is_far: bool = False
    detour: str = ""
    is_handed_over: bool | None = None
    before: tuple[str, ...] = ()
    moved_from: str = ""
    segmenter_problem: str = ""
    needs: str = "xdp"
    end: OtherEnd | None = None
    own: Mapping[str, Feature] = field(default_factory=dict)
    can_send: bool | None = None
    fits: int | None = None
    is_told: bool = False
    needs_tags: bool = False


def examine(facts: PortFacts) -> list[Finding]:
    """What makes packets of a port with XDP vanish although its program is attached."""
    end = facts.end
    if end is not None:
        end = replace(end, namespace=end.namespace or facts.namespace)
    found = [*_examine_way(facts, end), *([] if end is None else _examine_end(facts.name, end, facts.needs))]
    if end is None and facts.can_send is False and facts.needs != "nothing":
        found.append(
            Finding(
                facts.name,
                "its driver takes no frames from XDP: nothing is sent out of it by ports in native mode",
                "mptm port del each access port that sends there, and add it again with --mode generic",
            )
        )
    if end is None and facts.needs_tags and facts.needs == "xdp":
        tags = {name: False for name in STRIPPED_TAGS if name in facts.own and facts.own[name].active}
        if tags:
            found.append(
                Finding(
                    facts.name,
                    "it takes VLAN tags off before XDP sees them: frames of VLAN tunnels aren't found",
                    command_in(facts.namespace, ethtool_command(facts.name, tags)),
                )
            )
    if end is not None and end.mtu > facts.mtu:
        found.append(
            Finding(
                facts.name,
                f"its other end, {end.where()}, has an MTU of {end.mtu}, it has {facts.mtu}: larger packets are lost",
                command_in(facts.namespace, f"ip link set {facts.name} mtu {end.mtu}"),
            )
        )
    if end is not None and facts.fits is not None and end.mtu > facts.fits:
        consequence = (
            "senders of larger packets are told"
            if facts.is_told
            else "nobody is told, as the network has no gateway address: small transfers work, large ones hang"
        )
        found.append(
            Finding(
                facts.name,
                f"its other end, {end.where()}, has an MTU of {end.mtu}, and what fits its tunnels is {facts.fits}: "
                + consequence,
                end.command(f"ip link set {end.name} mtu {facts.fits}"),
                is_serious=not facts.is_told,
            )
        )
    return found


def _examine_way(facts: PortFacts, end: OtherEnd | None) -> list[Finding]:
    """What is wrong with how packets get to and from the port."""
    port, found = facts.name, []
    if not facts.up:
        found.append(Finding(port, "it is down", command_in(facts.namespace, f"ip link set {port} up")))
    if end is not None and not end.up and NAPI_FEATURE not in end.lacks(facts.needs):
        found.append(
            Finding(port, f"its other end, {end.where()}, is down", end.command(f"ip link set {end.name} up"))
        )
    if facts.is_handed_over and not facts.is_far:
        found.append(
            Finding(
                port,
                "its other end has come to its own network namespace: what is handed over to it is lost",
                "mptm restore",
            )
        )
    elif end is not None and facts.moved_from:
        found.append(
            Finding(
                port,
                f"its other end, {end.where()}, was in {facts.moved_from} when it was last looked at",
                "mptm restore",
                is_serious=False,
            )
        )
    if facts.is_handed_over and facts.is_far and facts.detour:
        found.append(
            Finding(
                port,
                f"{facts.detour}, which packets go past, as they are handed over to its other end",
                "mptm restore",
            )
        )
    elif facts.is_handed_over is False and facts.is_far and not facts.detour:
        found.append(
            Finding(
                port,
                "packets go to its other end through the interface, though they could be handed over",
                "mptm restore",
                is_serious=False,
            )
        )
    if facts.segmenter_problem:
        found.append(
            Finding(
                port,
                f"{facts.segmenter_problem}: packets are lost that can't go whole (docs/hooks.md)",
                "mptm restore",
            )
        )
    if facts.before:
        found.append(
            Finding(
                port,
                f"at its TC ingress {', '.join(facts.before)} sees packets before ours, and may keep them from us",
                f"bpftool net show dev {port}; packets that it answers with TC_ACT_OK aren't seen by those behind it",
                is_serious=False,
            )
        )
    return found


def _examine_end(port: str, end: OtherEnd, needs: str) -> list[Finding]:
    found = []
    lacks = end.lacks(needs)
    for names, consequence in CONSEQUENCES.items():
        wrong = {name: needed for name, needed in lacks.items() if name in names}
        if not wrong:
            continue
        if NAPI_FEATURE in wrong and (end.features or {})[NAPI_FEATURE].wanted and end.up:
            # It is on, but not where it counts: only another change brings it there.
            command = (
                f"{ethtool_command(end.name, {NAPI_FEATURE: False})} && {ethtool_command(end.name, wrong)}"
            )
            command = end.command(f'sh -c "{command}"')
        else:
            command = end.command(ethtool_command(end.name, wrong))
        if NAPI_FEATURE in wrong and not end.up:
            command = f"bring {end.where()} up, then: {command}"
        found.append(Finding(port, f"its other end, {end.where()}, {consequence}", command))
    if end.features is None and NEEDS[needs]:
        found.append(
            Finding(
                port,
                f"{end.problem}, so it isn't known whether {end.name} there is as XDP needs it",
                f"in that namespace: {ethtool_command(end.name, NEEDS[needs])}",
                is_serious=False,
            )
        )
    return found


def examine_gro(port: str, lacking: Iterable[int]) -> list[Finding]:
    """What comes of UDP ports for which an uplink at TC has no GRO."""
    return [
        Finding(
            port,
            f"the kernel doesn't join the packets to UDP port {number} (GRO), so TCP through tunnels is slower: "
            "our idle device is gone, or a program has the port",
            "mptm restore; where that doesn't help: who has it, ss -ulnp",
            is_serious=False,
        )
        for number in lacking
    ]
