# SPDX-License-Identifier: GPL-2.0-only
"""Packets through the programs of the running kernel, and the same packets through those of a guest's.

A scene is what a node is told and the packets that then come in. `Recorder` plays scenes here, with the control plane
and all, and writes down the tables that it made. `replay` brings a guest's tables to the same bytes and runs the same
packets: what comes out must be the same. The guest is slow and does no more than it must, so it compiles nothing.
"""

from __future__ import annotations

import base64
import pickle
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machine import Machine

COUNTERS = ("tunnel_counters", "port_counters", "drops")
Table = dict[bytes, bytes]
Sums = dict[bytes, tuple[int, ...]]


@dataclass(frozen=True)
class Scene:
    """`objects` as `World.apply` takes them; `packets` are (port, frame)."""

    objects: Sequence[object]
    packets: Sequence[tuple[str, bytes]]
    far: bool = False
    """At node 2 instead of node 1."""


@dataclass(frozen=True)
class Outcome:
    """What came of a scene: verdict (`enum xdp_action`) and frame of each packet, and what was counted."""

    results: tuple[tuple[int, bytes], ...]
    counted: dict[str, Sums]
    """Table -> key -> its numbers, added up over the CPUs; entries that are all zero are left out."""


@dataclass(frozen=True)
class Recording:
    """A scene in the data plane's terms, and what came of it."""

    tables: dict[str, Table]
    packets: tuple[tuple[str, int, bytes], ...]
    """(program without its hook, interface index, frame)."""
    outcome: Outcome


class Recorder:
    """Plays scenes on the running kernel. A context manager: takes its two nodes away at the end."""

    def __enter__(self) -> Recorder:
        from world import World

        self._stack = ExitStack()
        self._worlds: dict[bool, World] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def play(self, scene: Scene) -> Recording:
        """Play a scene; sequence numbers go on from the scene before."""
        from world import VERDICTS

        from mptm.sync import WRITE_ORDER

        node = self._world(scene.far)
        node.apply(*scene.objects)
        maps = node.data_plane.maps
        tables = {name: maps[name].items() for name in (*WRITE_ORDER, "sequences")}
        results = [node.send(port, packet) for port, packet in scene.packets]
        return Recording(
            tables,
            tuple(
                (
                    "mptm_decap" if port in node.UPLINKS else "mptm_encap",
                    node.links[port].ifindex,
                    packet,
                )
                for port, packet in scene.packets
            ),
            Outcome(
                tuple((VERDICTS.index(result.verdict), result.data) for result in results), _counted(maps)
            ),
        )

    def _world(self, far: bool) -> Any:
        from world import world

        if far not in self._worlds:
            made = world("far" if far else "near", is_far=far)
            self._worlds[far] = self._stack.enter_context(made)
        return self._worlds[far]

    def links(self) -> dict[str, int]:
        """Interfaces of a node: name -> index."""
        node = self._world(False)
        return {name: node.links[name].ifindex for name in node.PORTS}


def replay(
    guest: Machine,
    links: Mapping[str, int],
    recordings: Sequence[Recording],
    timeout: float,
    hook: str = "xdp",
) -> list[Outcome]:
    """What comes of recorded scenes in a guest, whose kernel loads build/mptm.o for it, or for hook tc build/mptm_tc.o.

    Raises GuestError.
    """
    job = (dict(links), [(each.tables, each.packets) for each in recordings], hook)
    played = guest.python(Path(__file__), input=_packed(job) + "\n", timeout=timeout).check()
    outcomes: list[Outcome] = _unpacked(played.stdout.splitlines()[-1])
    return outcomes


def _replay_here(
    links: Mapping[str, int],
    scenes: Iterable[tuple[dict[str, Table], Sequence[tuple[str, int, bytes]]]],
    hook: str,
) -> list[Outcome]:
    """In the guest, whose interfaces are made for it."""
    from mptm.kernel import libbpf
    from mptm.kernel.hashtable import open_maps
    from mptm.kernel.objects import DATA_PLANE, DATA_PLANE_TC, object_path
    from mptm.kernel.testrun import run, run_at_tc

    _make_veths(links)
    run_one = run_at_tc if hook == "tc" else run
    with libbpf.Object(object_path(DATA_PLANE_TC if hook == "tc" else DATA_PLANE)) as loading:
        loading.load()
        programs = {name.removesuffix(f"_{hook}"): fd for name, fd in loading.program_fds().items()}
        maps = open_maps(loading.map_fds())
    outcomes = []
    standing: dict[str, Table] = {}
    before = _counted(maps)
    for tables, packets in scenes:
        for name, wanted in tables.items():
            there = standing.get(name, {})
            maps[name].delete([key for key in there if key not in wanted])
            maps[name].update({key: value for key, value in wanted.items() if there.get(key) != value})
        standing = tables
        results = [run_one(programs[program], packet, ifindex=index) for program, index, packet in packets]
        now = _counted(maps)
        counted = {name: _difference(now[name], before[name]) for name in COUNTERS}
        outcomes.append(Outcome(tuple((each.verdict, each.data) for each in results), counted))
        before = now
        standing = standing | {"sequences": maps["sequences"].items()}  # packets counted on
    return outcomes


def _make_veths(links: Mapping[str, int]) -> None:
    """Interfaces by name and index, unless a replay before made them: packets of test runs leave nothing on them."""
    present = {name for _, name in socket.if_nameindex()}
    commands = "".join(
        f"link add {name} index {index} type veth peer name {name}p\nlink set {name} up\n"
        for name, index in links.items()
        if name not in present
    )
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)


def _counted(maps: Mapping[str, Any]) -> dict[str, Sums]:
    return {
        name: {key: _sum(values) for key, values in maps[name].percpu_items().items()} for name in COUNTERS
    }


def _difference(now: Sums, before: Sums) -> Sums:
    found = {}
    for key, numbers in now.items():
        grown = tuple(
            new - old for new, old in zip(numbers, before.get(key, (0,) * len(numbers)), strict=True)
        )
        if any(grown):
            found[key] = grown
    return found


def _sum(values: Sequence[bytes]) -> tuple[int, ...]:
    numbers = (struct.unpack(f"={len(value) // 8}Q", value) for value in values)
    return tuple(map(sum, zip(*numbers, strict=True)))


def _packed(data: object) -> str:
    return base64.b64encode(pickle.dumps(data)).decode()


def _unpacked(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import scenes  # by its name, so that what is pickled here is known there

    print(scenes._packed(scenes._replay_here(*scenes._unpacked(sys.stdin.readline()))))
