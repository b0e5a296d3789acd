# SPDX-License-Identifier: GPL-2.0-only
"""What XDP at one end of a veth needs of the other end, what was set there for it, and how it is put back.

A veth hands over packets as they are in memory: with a checksum that hardware is to fill in, VLAN tags beside the
frame, many segments in one. XDP sees the bytes only. And it takes redirected frames only where its receiving end runs
NAPI. So what the other end offers is changed when a port is added, remembered in the store, and put back when the port
is removed. Plain data and decisions; `mptm.kernel.offloads` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from mptm.errors import MptmError

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
"""Turned on while a veth is up it gives it NAPI, which stays when it goes down and up; turned on while it is down it
does not (seen on Linux 6.18)."""

WORDS = {
    "tx": ("tx-checksum-ip-generic", "tx-checksum-sctp"),
    "tx-udp-segmentation": ("tx-udp-segmentation",),
    "txvlan": ("tx-vlan-hw-insert",),
    "tx-vlan-stag-hw-insert": ("tx-vlan-stag-hw-insert",),
    "gro": ("rx-gro",),
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
    from here.
    """

    ifindex: int
    name: str
    mtu: int
    up: bool = True
    has_xdp: bool = False
    namespace: str = ""
    features: Mapping[str, Feature] | None = None
    problem: str = ""

    @property
    def runs_napi(self) -> bool:
        """Whether it takes redirected frames. Only with `features`."""
        gro = (self.features or {}).get(NAPI_FEATURE)
        return self.has_xdp or (gro is not None and gro.active)

    def lacks(self) -> dict[str, bool]:
        """What has to be changed, feature by feature; nothing where features can't be read."""
        found = {}
        for name, needed in XDP_NEEDS.items():
            feature = (self.features or {}).get(name)
            if feature is None or (name == NAPI_FEATURE and self.has_xdp):
                continue
            if feature.active != needed or (feature.changeable and feature.wanted != needed):
                found[name] = needed
        return found

    def where(self) -> str:
        """In words: `eth0 in /run/netns/c1`."""
        return f"{self.name} in {self.namespace}" if self.namespace else self.name

    def command(self, words: str) -> str:
        """A command line that runs `words` where the interface is."""
        if self.namespace:
            return f"nsenter --net={self.namespace} {words}"
        return words


def ethtool_command(name: str, features: Mapping[str, bool]) -> str:
    """The command line that sets features: `ethtool -K eth0 tx off gro on`."""
    settings = {word: features[name] for word, names in WORDS.items() for name in names if name in features}
    return " ".join(
        ["ethtool -K", name, *(f"{word} {'on' if value else 'off'}" for word, value in settings.items())]
    )


class Settled(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was done for a port. `before`: feature -> whether it was asked for; `port_ifindex` tells its interface."""

    port_ifindex: int
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

    def settle(self, ports: Mapping[str, int], *, again: bool) -> dict[str, Settled]:
        """Change what these ports (name -> number of the interface) need; `again`: look at those, too, that are known.

        Returns what was found for the ports that were looked at. What can't be done is in `warnings`.
        """
        new = {
            name: ifindex
            for name, ifindex in ports.items()
            if again or name not in self.ports or self.ports[name].port_ifindex != ifindex
        }
        if not new:
            return {}
        self._release(
            {
                name: each
                for name, each in self.ports.items()
                if new.get(name, each.port_ifindex) != each.port_ifindex
            }
        )
        ends = self.machine.find_other_ends(new.values())
        found: dict[str, Settled] = {}
        changes: dict[str, dict[str, bool]] = {}
        for name, ifindex in new.items():
            end = ends.get(ifindex)
            known = self.ports.get(name)
            before = known.before if known is not None and known.port_ifindex == ifindex else {}
            if end is None:
                found[name] = Settled(ifindex)
                continue
            features = end.features or {}
            changes[name] = {
                each: needed
                for each, needed in end.lacks().items()
                if features[each].changeable
                and features[each].wanted != needed
                and (each != NAPI_FEATURE or end.up)
            }
            earlier = {each: features[each].wanted for each in changes[name]}
            found[name] = Settled(ifindex, end.name, end.namespace, earlier | before, end.problem)
            if end.features is None:
                self.warnings.append(_unreachable(name, end))
            elif not end.up and not end.runs_napi:
                self.warnings.append(
                    f"port {name}: its other end, {end.where()}, is down, and takes nothing from XDP until GRO is "
                    "turned on while it is up; then run: mptm restore"
                )
        self._note(self.ports | found)
        for name, wanted in changes.items():
            end = ends[new[name]]
            try:
                if wanted:
                    self.machine.set_features(end, wanted)
            except MptmError as error:
                found[name] = msgspec.structs.replace(found[name], problem=error.message)
                command = end.command(ethtool_command(end.name, wanted))
                self.warnings.append(f"port {name}: {end.where()}: {error.message}; run: {command}")
        self._note(self.ports | found)
        return found

    def release(self, ports: Mapping[str, int]) -> None:
        """Put back what was changed for all others than these ports."""
        self._release({name: settled for name, settled in self.ports.items() if name not in ports})

    def _release(self, gone: Mapping[str, Settled]) -> None:
        if not gone:
            return
        changed = {name: settled for name, settled in gone.items() if settled.before}
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
        self._note({name: settled for name, settled in self.ports.items() if name not in gone})

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


def _unreachable(port: str, end: OtherEnd) -> str:
    command = ethtool_command(end.name, XDP_NEEDS)
    return (
        f"port {port}: {end.problem}, so what XDP needs of {end.name} there is up to you; in that namespace run: "
        f"{command}"
    )
