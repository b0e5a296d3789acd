# SPDX-License-Identifier: GPL-2.0-only
"""Section 5, the control plane: how long commands take, from the shell's view, against the number of routes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import numpy as np

from mptm.errors import MptmError
from mptm.intent import Flow, Route
from mptm.kernel import netns
from mptm.kernel.dataplane import remove_instance
from mptm.node import Node

from .chains import MAC, OUTER
from .measurement import (
    FAILURES,
    OUT_OF_TIME,
    Budget,
    Contestant,
    Effort,
    Part,
    Progress,
    Row,
    Settings,
    missing,
    say,
    take_turns,
)
from .namespaces import Namespaces, instance_name, ip

NAME, TITLE, WEIGHT = "control", "Control plane", 2.0

CONTROL, START, FLOWS = "control", "control-start", "control-flows"
PARTS = (
    Part(
        START,
        "Starting the command line",
        "ms",
        "From starting the process until it ends.",
        heading="command",
        digits=0,
        better="less",
        plot="",
    ),
    Part(
        CONTROL,
        "Against the number of routes",
        "ms",
        "A node with one tunnel and so many /32 routes, from a YAML file; each command is a process of its own. "
        "Restore: the state is there, programs and tables are not, as after a reboot.",
        heading="what",
        digits=0,
        better="less",
        plot="lines",
    ),
    Part(
        FLOWS,
        "Many flows at once",
        "ms",
        "`mptm flow load`, from a file of numpy's arrays or a CSV file into a node with one tunnel, and then one flow "
        "more from Python.",
        heading="what",
        digits=0,
        better="less",
        plot="",
    ),
)

HELP, STATUS, VERSION = "mptm --help", "mptm status", "mptm --version"
APPLY, AGAIN, CHANGE, RESTORE = (
    "apply -f, onto an empty node",
    "apply -f, nothing to change",
    "route add, one route",
    "restore",
)
FROM_ARRAYS, FROM_CSV = "flow load, from numpy arrays", "flow load, from CSV"
ONE_MORE = "one flow more, from Python (Node.add)"
FLOW_COUNTS = {Effort.FULL: 1_000_000, Effort.QUICK: 100_000, Effort.SMOKE: 1_000}
COUNT_NAMES = {1_000: "1 k", 100_000: "100 k", 1_000_000: "1 M"}
IN_PROCESS = "one route, from Python (Node.add)"
SIZES = {
    Effort.FULL: (10, 1_000, 10_000, 100_000),
    Effort.QUICK: (10, 1_000),
    Effort.SMOKE: (10,),
}
SIZE_NAMES = {10: "10", 1_000: "1 k", 10_000: "10 k", 100_000: "100 k"}
STARTS = {Effort.FULL: 20, Effort.QUICK: 8, Effort.SMOKE: 1}
CHANGES = {Effort.FULL: 5, Effort.QUICK: 3, Effort.SMOKE: 1}
STEP_SECONDS = 4.0
"""A command isn't repeated once it has taken so much time with one number of routes."""
FIRST_ROUTE = int(ip_address("10.128.0.0"))
FLOW_SOURCE = "10.250.1.100"
ADDED_ROUTE = "10.250.9.9/32"


def measure(budget: Budget, settings: Settings, progress: Progress) -> list[Row]:
    """See Section."""
    with Namespaces() as namespaces, tempfile.TemporaryDirectory(prefix="mptm-bench-") as directory:
        namespace = namespaces.add("control")
        ip(
            namespace,
            [
                "link add port type veth peer name port-far",
                "link add eth0 type veth peer name eth0-far",
                "link set port up",
                f"link set eth0 address {MAC['node1']} up",
                "link set port-far up",
                "link set eth0-far up",
                f"address add {OUTER['node1']}/24 dev eth0",
                f"neighbour add {OUTER['node2']} lladdr {MAC['node2']} dev eth0",
            ],
        )
        commands = _Commands(namespace, Path(directory))
        shares = budget.shares((1, 4, 2))
        start_budget = next(shares)
        contestants = [
            Contestant(START, name, "time", _timed(commands, name.split()[1:])) for name in (HELP, VERSION)
        ]
        rows = take_turns(contestants, start_budget, rounds=STARTS[settings.effort], progress=progress)
        took: dict[str, list[tuple[int, float]]] = {}
        size_budget = next(shares)
        for size in SIZES[settings.effort]:
            try:
                rows += _measure_size(commands, size, took, size_budget, settings, progress)
            finally:
                commands.purge()
        flow_budget = next(shares)
        try:
            rows += _measure_flows(commands, FLOW_COUNTS[settings.effort], flow_budget)
        finally:
            commands.purge()
        progress("flows: done")
        return rows


def _timed(commands: _Commands, arguments: list[str]) -> Callable[[], float]:
    return lambda: commands.run(arguments, 30)


def _measure_size(
    commands: _Commands,
    size: int,
    took: dict[str, list[tuple[int, float]]],
    budget: Budget,
    settings: Settings,
    progress: Progress,
) -> list[Row]:
    """Every command with so many routes, in an order in which each finds what it needs.

    `took` is kept from call to call: routes and milliseconds, by command.
    """
    rows: list[Row] = []
    column = SIZE_NAMES[size]
    file = commands.write_node(size)
    changes = CHANGES[settings.effort]
    add = ["route", "add", ADDED_ROUTE, "--network", "blue", "--via", "tunnel"]
    remove = ["route", "del", ADDED_ROUTE, "--network", "blue"]
    steps: tuple[tuple[str, list[str], int, Callable[[], object]], ...] = (
        (APPLY, ["apply", "--quiet", "-f", str(file)], 1, lambda: None),
        (AGAIN, ["apply", "--quiet", "-f", str(file)], 2, lambda: None),
        (CHANGE, add, changes, lambda: commands.run(remove, budget.left())),
        (STATUS, ["status"], changes, lambda: None),
        (RESTORE, ["restore"], 1, lambda: None),
    )
    failed = ""
    for name, arguments, repeat, after in steps:
        expected = _expected_ms(took.get(name, []), size) / 1000
        if not failed and (budget.is_out() or expected > budget.left()):
            failed = (
                OUT_OF_TIME if budget.is_out() else f"there was no time: expected to take {expected:.0f} s"
            )
        if failed:
            rows.append(missing(CONTROL, name, column, failed))
            continue
        samples = []
        try:
            for _ in range(repeat):
                if name == RESTORE:
                    remove_instance(commands.instance)
                samples.append(commands.run(arguments, max(1.0, budget.left())))
                after()
                if sum(samples) > STEP_SECONDS * 1000:
                    break
        except FAILURES as error:
            failed = say(error)
        if samples:
            took.setdefault(name, []).append((size, min(samples)))
        rows.append(Row(CONTROL, name, column, tuple(samples), failed))
    rows.append(_change_in_process(commands, column, changes, budget, failed))
    progress(f"{size} routes: " + ", ".join(f"{row.line} {row.median or 0:.0f} ms" for row in rows))
    return rows


def _measure_flows(commands: _Commands, count: int, budget: Budget) -> list[Row]:
    """So many flows from one source, by file; each way starts with none."""
    column = COUNT_NAMES[count]
    rows = []
    node_file = str(commands.write_node(10))
    for line, write in ((FROM_ARRAYS, commands.write_arrays), (FROM_CSV, commands.write_csv)):
        try:
            file = str(write(count))
            commands.run(["apply", "--quiet", "-f", node_file], max(1.0, budget.left()))
            load = ["flow", "load", file, "--name", "many", "--network", "blue", "--via", "tunnel"]
            rows.append(Row(FLOWS, line, column, (commands.run(load, max(1.0, budget.left())),)))
        except FAILURES as error:
            rows.append(missing(FLOWS, line, column, say(error)))
    if not rows[-1].values:
        return [*rows, missing(FLOWS, ONE_MORE, column, rows[-1].reason)]
    node = Node(commands.instance, netns=commands.namespace)
    flow = Flow(network="blue", source="10.250.9.9", destination="10.250.9.10", via="tunnel")
    samples = []
    reason = ""
    try:
        for _ in range(3):
            began = time.monotonic()
            node.add(flow)
            samples.append((time.monotonic() - began) * 1000)
            node.remove(flow.kind, flow.key)
            if budget.is_out():
                break
    except FAILURES as error:
        reason = say(error)
    return [*rows, Row(FLOWS, ONE_MORE, column, tuple(samples), reason)]


def _expected_ms(took: list[tuple[int, float]], size: int) -> float:
    """On a straight line through the last two sizes; 0 where there aren't two."""
    if len(took) < 2:
        return 0.0
    (less, before), (more, after) = took[-2:]
    return max(0.0, after + (after - before) / (more - less) * (size - more))


def _change_in_process(commands: _Commands, column: str, changes: int, budget: Budget, failed: str) -> Row:
    """One route added by a program that has the library loaded; removing it again isn't counted."""
    if failed or budget.is_out():
        return missing(CONTROL, IN_PROCESS, column, failed or OUT_OF_TIME)
    node = Node(commands.instance, netns=commands.namespace)
    route = Route(network="blue", prefix=ADDED_ROUTE, via="tunnel")
    samples = []
    try:
        for _ in range(changes):
            began = time.monotonic()
            node.add(route)
            samples.append((time.monotonic() - began) * 1000)
            node.remove(route.kind, route.key)
            if budget.is_out() or sum(samples) > STEP_SECONDS * 1000:
                break
    except FAILURES as error:
        failed = say(error)
    return Row(CONTROL, IN_PROCESS, column, tuple(samples), failed)


class _Commands:
    """The command line, for a node of its own."""

    def __init__(self, namespace: str, directory: Path) -> None:
        self.instance = instance_name("control")
        self.namespace = namespace
        self._directory = directory
        script = Path(sys.executable).with_name("mptm")
        self._command = [str(script)] if script.is_file() else [sys.executable, "-m", "mptm"]

    def run(self, arguments: list[str], timeout_seconds: float) -> float:
        """Milliseconds of `mptm ...`. Raises SubprocessError when it fails or takes too long."""
        command = ["nsenter", f"--net={netns.DIRECTORY / self.namespace}", "--", *self._command]
        environment = os.environ | {"MPTM_INSTANCE": self.instance}
        began = time.monotonic()
        done = subprocess.run(
            [*command, "--instance", self.instance, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            env=environment,
        )
        took = (time.monotonic() - began) * 1000
        if done.returncode and arguments[0] != "status":
            raise MptmError(f"mptm {arguments[0]}: {done.stderr.strip()[-300:]}")
        return took

    def write_node(self, routes: int) -> Path:
        """A node's file."""
        path = self._directory / f"node-{routes}.yaml"
        with path.open("w") as file:
            file.write(
                "networks: [{name: blue, id: 1}]\n"
                "ports:\n"
                "  - {name: eth0, role: uplink}\n"
                "  - {name: port, role: access, network: blue}\n"
                "tunnels:\n"
                f"  - {{name: tunnel, protocol: geneve, network: blue, remote: {OUTER['node2']}, vni: 100}}\n"
                "routes:\n"
            )
            for number in range(routes):
                file.write(
                    f"  - {{network: blue, prefix: {ip_address(FIRST_ROUTE + number)}/32, via: tunnel}}\n"
                )
        return path

    def write_csv(self, flows: int) -> Path:
        """Flows as text."""
        path = self._directory / "flows.csv"
        with path.open("w") as file:
            file.write("source,destination\n")
            file.writelines(f"{FLOW_SOURCE},{ip_address(FIRST_ROUTE + number)}\n" for number in range(flows))
        return path

    def write_arrays(self, flows: int) -> Path:
        """The same flows as numpy's arrays."""
        path = self._directory / "flows.npz"
        first, source = np.uint32(FIRST_ROUTE), np.uint32(int(ip_address(FLOW_SOURCE)))
        destination = first + np.arange(flows, dtype=np.uint32)
        np.savez(path, source=np.full(flows, source), destination=destination)
        return path

    def purge(self) -> None:
        """Away with the node."""
        with contextlib.suppress(Exception):
            Node(self.instance, netns=self.namespace).purge()
