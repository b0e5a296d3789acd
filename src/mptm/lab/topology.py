# SPDX-License-Identifier: GPL-2.0-only
"""Two nodes with containers in network namespaces: what stands where (plain data), and `Lab`, which builds it.

    <prefix>-node1-c1   <prefix>-node1            <prefix>-underlay           <prefix>-node2   <prefix>-node2-c1
    eth0 ────────────── veth-c1       eth0 ────── node1  br0  node2 ────── eth0       veth-c1 ────────────── eth0
    10.250.1.100                10.30.30.1                            10.30.30.2                    10.250.1.101

The underlay is a bridge in a namespace of its own, as frames that XDP redirects are invisible to tcpdump on
the nodes but visible there. Container c2 of each node has the same addresses as c1: it is in another network.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TextIO

from mptm import config
from mptm.errors import AlreadyExists, Busy, InvalidIntent, MptmError, NotFound, NotSupported
from mptm.intent import Intent
from mptm.kernel.dataplane import instance_directory
from mptm.node import Node

RUN_DIRECTORY = Path("/run/mptm/lab")
NAMESPACES = Path("/run/netns")
LOCK_WAIT_SECONDS = 10.0

UNDERLAY_MTU = 1500
CONTAINER_MTU = 1400
"""Bytes; leaves 100 for a tunnel: GENEVE or VXLAN over IPv6 takes 70, and an inner VLAN tag 4."""


@dataclass(frozen=True)
class Container:
    """A workload: its `eth0` in `namespace` is the other end of the node's access port `port`."""

    name: str
    namespace: str
    port: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class LabNode:
    """A node: `eth0` in `namespace` is its uplink; `instance` is what `mptm --instance` calls it."""

    name: str
    namespace: str
    instance: str
    addresses: tuple[str, ...]
    containers: tuple[Container, ...]


@dataclass(frozen=True)
class Topology:
    """The whole lab; `underlay` is the namespace of the bridge between the nodes, MTUs in bytes."""

    prefix: str
    underlay: str
    nodes: tuple[LabNode, ...]
    underlay_mtu: int
    container_mtu: int

    def namespaces(self) -> dict[str, str]:
        """Target as the command line names it ("node1", "node1-c1", "underlay") -> network namespace."""
        found = {"underlay": self.underlay}
        for node in self.nodes:
            found[node.name] = node.namespace
            found |= {f"{node.name}-{container.name}": container.namespace for container in node.containers}
        return found

    def node(self, name: str) -> LabNode:
        """The node called `name`; raises NotFound."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise NotFound(f"the lab has no node {name}", f"nodes are: {', '.join(n.name for n in self.nodes)}")


def two_nodes(
    prefix: str = "mptm", *, underlay_mtu: int = UNDERLAY_MTU, container_mtu: int = CONTAINER_MTU
) -> Topology:
    """The lab's plan. With the default prefix the instances are node1 and node2, else <prefix>-node1 and so on.

    Raises InvalidIntent for a prefix that doesn't make a good namespace name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", prefix):
        raise InvalidIntent(f"{prefix!r} is no prefix for namespaces", "letters, digits, _ . - (at most 32)")
    nodes = []
    for number in (1, 2):
        name, namespace = f"node{number}", f"{prefix}-node{number}"
        inner = (f"10.250.1.{99 + number}/24", f"fd00:250:1::{99 + number}/64")
        containers = tuple(
            Container(container, f"{namespace}-{container}", f"veth-{container}", inner)
            for container in ("c1", "c2")
        )
        outer = (f"10.30.30.{number}/24", f"fd00:30:30::{number}/64")
        instance = name if prefix == "mptm" else namespace
        nodes.append(LabNode(name, namespace, instance, outer, containers))
    return Topology(prefix, f"{prefix}-underlay", tuple(nodes), underlay_mtu, container_mtu)


def node_file(name: str) -> Path:
    """examples/two-nodes/<name>.yaml, of the installed package or of the checkout; raises NotFound."""
    here = Path(__file__).resolve()
    places = (here.parent / "two-nodes", here.parents[3] / "examples" / "two-nodes")
    for place in places:
        if (path := place / f"{name}.yaml").is_file():
            return path
    raise NotFound(f"{name}.yaml isn't in {places[0]}", "install the package again, or run from a checkout")


def run(argv: Sequence[str], *, stdin: str | None = None, timeout_seconds: float = 30) -> str:
    """Run a tool and return its standard output; raises MptmError with what the tool said."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    except FileNotFoundError:
        raise NotSupported(f"{argv[0]} isn't installed", hint="apt-get install iproute2 util-linux") from None
    except subprocess.TimeoutExpired:
        raise MptmError(f"{' '.join(argv)} took longer than {timeout_seconds:g} s") from None
    if done.returncode:
        raise MptmError(f"{' '.join(argv)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def run_in(namespace: str, argv: Sequence[str], *, stdin: str | None = None) -> str:
    """`run` in a network namespace. (`ip -netns` would not do: it remounts /sys, which a chroot forbids.)"""
    return run(["nsenter", f"--net={NAMESPACES / namespace}", "--", *argv], stdin=stdin)


def configure(namespace: str, commands: Sequence[str]) -> None:
    """Run `ip` commands (without the leading "ip") in a namespace, all in one batch; raises MptmError."""
    run_in(namespace, ["ip", "-batch", "-"], stdin="\n".join(commands) + "\n")


@contextlib.contextmanager
def locked(name: str, busy: str, *, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock /run/mptm/lab/<name>, which goes with its holder; raises Busy with the sentence `busy`."""
    RUN_DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = RUN_DIRECTORY / name
    deadline = time.monotonic() + wait_seconds
    while (lock := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise Busy(busy)
        time.sleep(0.05)
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _try_lock(path: Path) -> TextIO | None:
    """The locked file, or None. The holder of before deletes it: only a lock on the file that is there counts."""
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    lock.close()
    return None


@dataclass(frozen=True)
class NodeStatus:
    """What `Lab.status` says of one node: `up` when its namespace and its containers' are there."""

    name: str
    instance: str
    namespace: str
    up: bool
    containers: tuple[Container, ...]


@dataclass(frozen=True)
class Record:
    """What a lab has written down of itself in /run/mptm/lab/<prefix>.json, to know later what it made.

    `namespaces` -> inode number (None: it was interrupted while making them). `mounted`: /run/netns became a mount
    point with the lab's first namespace.
    """

    namespaces: dict[str, int | None]
    mounted: bool
    complete: bool = False

    def owns(self, namespace: str) -> bool:
        """Whether a namespace of that name exists and is the one that the lab made."""
        try:
            return namespace in self.namespaces and self.namespaces[namespace] in (None, _inode(namespace))
        except FileNotFoundError:
            return False


class Lab:
    """The two-node lab in network namespaces that begin with `prefix`; several with other prefixes can stand at once.

    Which namespaces are the lab's is kept in /run/mptm/lab/<prefix>.json, so that no namespace of anybody
    else is ever changed or deleted. As a context manager: up at the start, down at the end.
    """

    def __init__(
        self, prefix: str = "mptm", *, underlay_mtu: int = UNDERLAY_MTU, container_mtu: int = CONTAINER_MTU
    ) -> None:
        self.topology = two_nodes(prefix, underlay_mtu=underlay_mtu, container_mtu=container_mtu)
        self._record_path = RUN_DIRECTORY / f"{prefix}.json"
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # ---- building and taking down ----

    def up(self, *, bare: bool = False) -> list[LabNode]:
        """Build the namespaces and, unless `bare`, bring up both nodes from their files.

        Harmless when the lab is up: a node that has been configured stays as it is, and is returned when that isn't
        what was asked for. What was begun is taken down again when anything fails or is interrupted. Raises
        AlreadyExists when a namespace or an instance of that name is somebody else's, NotSupported when root or a tool
        is missing.
        """
        check_machine()
        with self._lock():
            stands = self.is_up()
            try:
                if not stands:
                    self._take_down()
                    self._refuse_foreign()
                    self._build()
                for node in self.topology.nodes:
                    self.node(node.name).bind()
                return self._configure_nodes(bare)
            except BaseException:
                if not stands:
                    # What resists stays on record for the next `up` or `down`: the cause is what to report.
                    with contextlib.suppress(MptmError):
                        self._take_down()
                raise

    def down(self) -> None:
        """Take the lab down: instances, namespaces and the processes in them. Harmless when there is none."""
        check_machine()
        with self._lock():
            self._take_down()

    def _build(self) -> None:
        topology = self.topology
        namespaces = list(topology.namespaces().values())
        record = Record(dict.fromkeys(namespaces), mounted=not NAMESPACES.is_mount())
        self._write_record(record)
        for name in namespaces:
            run(["ip", "netns", "add", name])
        record = replace(record, namespaces={name: _inode(name) for name in namespaces})
        self._write_record(record)

        underlay = ["link set lo up", "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"]
        for node in topology.nodes:
            configure(
                node.namespace, [f"link add eth0 type veth peer name {node.name} netns {topology.underlay}"]
            )
            underlay += [f"link set {node.name} master br0 mtu {topology.underlay_mtu} addrgenmode none up"]
        configure(topology.underlay, [*underlay, "link set br0 addrgenmode none up"])
        for node in topology.nodes:
            self._build_node(node)
        self._write_record(replace(record, complete=True))

    def _build_node(self, node: LabNode) -> None:
        topology = self.topology
        commands = ["link set lo up", f"link set eth0 mtu {topology.underlay_mtu} up"]
        commands += [f"address add {address} dev eth0{_without_dad(address)}" for address in node.addresses]
        for container in node.containers:
            commands += [
                f"link add {container.port} type veth peer name eth0 netns {container.namespace}",
                f"link set {container.port} mtu {topology.container_mtu} up",
            ]
        configure(node.namespace, commands)
        for container in node.containers:
            configure(
                container.namespace,
                [
                    "link set lo up",
                    f"link set eth0 mtu {topology.container_mtu} up",
                    *(
                        f"address add {address} dev eth0{_without_dad(address)}"
                        for address in container.addresses
                    ),
                ],
            )

    def _configure_nodes(self, bare: bool) -> list[LabNode]:
        """Apply the files of the nodes that have nothing yet. Returns those that have something else."""
        others = []
        for place in self.topology.nodes:
            node, wanted = self.node(place.name), Intent() if bare else self.intent(place.name)
            if node.intent == Intent() != wanted:
                node.apply(wanted)
            elif node.intent != wanted:
                others.append(place)
        return others

    def _take_down(self) -> None:
        """Remove what the record says is ours; what fails is reported at the end, after the rest is gone."""
        while self._processes:
            _stop(self._processes.pop())
        record = self._read_record()
        if record is None:
            return
        problems: list[str] = []
        for node in self.topology.nodes:
            try:
                Node(node.instance).purge()
            except MptmError as error:
                problems.append(f"{node.instance}: {error}")
        for name in filter(record.owns, record.namespaces):
            try:
                _delete_namespace(name)
            except MptmError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise MptmError(f"the lab couldn't be taken down: {'; '.join(problems)}")
        if record.mounted and not any(NAMESPACES.iterdir()):
            with contextlib.suppress(MptmError):  # a namespace that was made just now keeps it busy
                run(["umount", str(NAMESPACES)])
        self._record_path.unlink(missing_ok=True)

    def _refuse_foreign(self) -> None:
        """Raise AlreadyExists unless every name that the lab will take is free."""
        for name in self.topology.namespaces().values():
            if (NAMESPACES / name).exists():
                raise AlreadyExists(
                    f"network namespace {name} exists, and this lab didn't make it",
                    f"delete it (ip netns delete {name}) or choose another --prefix",
                )
        for node in self.topology.nodes:
            instance = Node(node.instance)
            if instance.store.exists() and instance.netns == node.namespace:
                instance.purge()  # of a lab that a reboot ended
            if instance.store.exists() or instance_directory(node.instance).exists():
                raise AlreadyExists(
                    f"instance {node.instance} exists, and this lab didn't make it",
                    f"remove it (mptm --instance {node.instance} purge) or choose another --prefix",
                )

    # ---- the record of what is ours ----

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        prefix = self.topology.prefix
        return locked(f"{prefix}.lock", f"another command is building or removing the lab {prefix}")

    def _write_record(self, record: Record) -> None:
        partial = self._record_path.with_suffix(".new")
        partial.write_text(json.dumps(asdict(record)))
        partial.replace(self._record_path)

    def _read_record(self) -> Record | None:
        try:
            return Record(**json.loads(self._record_path.read_text()))
        except FileNotFoundError:
            return None

    # ---- using it ----

    def is_up(self) -> bool:
        """Whether the lab was built and all its namespaces are still there."""
        record = self._read_record()
        return record is not None and record.complete and all(map(record.owns, record.namespaces))

    def intent(self, name: str) -> Intent:
        """What the file of node `name` says."""
        path = node_file(name)
        return config.load(path.read_text(), str(path))

    def node(self, name: str) -> Node:
        """The node `name` ("node1") as the library's `Node`, bound to its namespace."""
        node = self.topology.node(name)
        return Node(node.instance, netns=node.namespace)

    def container(self, name: str) -> Container:
        """The container `name` ("node1-c1"); raises NotFound."""
        for node in self.topology.nodes:
            for container in node.containers:
                if name == f"{node.name}-{container.name}":
                    return container
        raise NotFound(f"the lab has no container {name}")

    def namespace(self, target: str) -> str:
        """The network namespace of "node1", "node1-c1" or "underlay"; raises NotFound."""
        namespaces = self.topology.namespaces()
        if target not in namespaces:
            raise NotFound(f"the lab has no {target}", f"there are: {', '.join(sorted(namespaces))}")
        return namespaces[target]

    def command(self, target: str, argv: Sequence[str]) -> list[str]:
        """`argv` as it is run in the namespace of `target`. (`ip netns exec` would hide the BPF file system.)"""
        return ["nsenter", f"--net={NAMESPACES / self.namespace(target)}", "--", *argv]

    def exec(
        self, target: str, argv: Sequence[str], *, check: bool = True, timeout_seconds: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a node, a container or the underlay, and wait for it.

        Raises MptmError with the command's output when it fails (unless `check` is False) or takes too long.
        """
        command = self.command(target, argv)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise MptmError(f"{target}: {' '.join(argv)} took longer than {timeout_seconds:g} s") from None
        if check and done.returncode:
            said = (done.stdout + done.stderr).strip()
            raise MptmError(f"{target}: {' '.join(argv)} failed with status {done.returncode}: {said}")
        return done

    def popen(
        self, target: str, argv: Sequence[str], *, output: BinaryIO | None = None
    ) -> subprocess.Popen[str]:
        """Start a command (a server, a capture) in the namespace of `target`; `down` ends what is left of it.

        Output and errors come by the process's `stdout`; with `output` given, output goes there and errors come by
        `stderr`.
        """
        process = subprocess.Popen(
            self.command(target, argv),
            stdout=output or subprocess.PIPE,
            stderr=subprocess.PIPE if output else subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        return process

    def status(self) -> list[NodeStatus]:
        """What stands, node by node."""
        record = self._read_record() or Record({}, mounted=False)
        return [
            NodeStatus(
                node.name,
                node.instance,
                node.namespace,
                all(map(record.owns, (node.namespace, *(each.namespace for each in node.containers)))),
                node.containers,
            )
            for node in self.topology.nodes
        ]


def check_machine() -> None:
    """Raise NotSupported when root or a tool that the lab needs is missing."""
    if os.geteuid() != 0:
        raise NotSupported("the lab needs root, for network namespaces and BPF", hint="run it with sudo")
    missing = [tool for tool in ("ip", "nsenter") if shutil.which(tool) is None]
    if missing:
        raise NotSupported(f"the lab needs {', '.join(missing)}", hint="apt-get install iproute2 util-linux")


def _without_dad(address: str) -> str:
    return " nodad" if ":" in address else ""


def _inode(namespace: str) -> int:
    return (NAMESPACES / namespace).stat().st_ino


def _delete_namespace(namespace: str) -> None:
    """End the processes in the namespace, delete its links, delete it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 2
        while (processes := _processes_in(namespace)) and time.monotonic() < deadline:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            time.sleep(0.02)
    for link in json.loads(run_in(namespace, ["ip", "-json", "link", "show"])):
        with contextlib.suppress(MptmError):  # lo and the like can't be deleted
            configure(namespace, [f"link delete {link['ifname']}"])
    run(["ip", "netns", "delete", namespace])


def _processes_in(namespace: str) -> list[int]:
    """Processes in the namespace, but for those that this one descends from (and itself)."""
    family, process = set(), os.getpid()
    while process > 1:
        family.add(process)
        status = Path(f"/proc/{process}/stat").read_text()
        process = int(status.rpartition(")")[2].split()[1])
    found = [int(number) for number in run(["ip", "netns", "pids", namespace]).split()]
    return [number for number in found if number not in family]


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()
