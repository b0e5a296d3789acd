# SPDX-License-Identifier: GPL-2.0-only
"""The demo: GENEVE and VXLAN side by side between two nodes, on real traffic, told step by step."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from mptm.errors import MptmError, NotSupported
from mptm.lab.topology import Lab, check_machine, locked

PREFIX = "mptm-demo"
TOOLS = {"ping": "iputils-ping", "iperf3": "iperf3", "tcpdump": "tcpdump", "tshark": "tshark"}
IPERF_SECONDS = 2
ADDRESSES = {"node1": ("10.250.1.100", "fd00:250:1::100"), "node2": ("10.250.1.101", "fd00:250:1::101")}
UDP_PORTS = {"geneve": 6081, "vxlan": 4789}


def run_demo() -> int:
    """Run the demo and return its exit status: 0, or 1 after saying what failed. Leaves nothing behind."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(TOOLS[tool] for tool in missing)
        raise NotSupported(f"the demo needs {', '.join(missing)}", hint=f"apt-get install {packages}")
    check_machine()
    lab = Lab(PREFIX)
    started = time.monotonic()
    with locked("demo.lock", "another demo is running", wait_seconds=0), _interruptible():
        lab.down()  # what a killed demo left
        try:
            _show(lab)
        except MptmError as error:
            click.secho(f"FAILED: {error}", fg="red", err=True)
            return 1
        except KeyboardInterrupt:
            click.secho("interrupted", fg="red", err=True)
            return 1
        finally:
            _say("Cleaning up")
            lab.down()
    click.secho(f"Done in {time.monotonic() - started:.0f} s: everything worked.", fg="green", bold=True)
    return 0


def _show(lab: Lab) -> None:
    _say("Building two nodes and four containers in network namespaces, and applying a file on each node")
    lab.up()
    for node in lab.topology.nodes:
        _command(lab, node.name, "tunnel", "list")

    _say("Blue, by GENEVE: the containers c1 ping each other, both ways, IPv4 and IPv6")
    _ping_both_ways(lab, "c1")

    _say("What one of these packets looks like between the nodes (captured on the underlay)")
    _capture(lab, "c1", "geneve", vni=100)

    _say(f"Blue, by GENEVE: TCP for {IPERF_SECONDS} s")
    _transfer(lab, ["c1"])

    _say("Green, by VXLAN, at the same time: the containers c2 have the same addresses, in another network")
    _ping_both_ways(lab, "c2")
    _capture(lab, "c2", "vxlan", vni=200)
    _say(f"TCP for {IPERF_SECONDS} s in both networks at once")
    _transfer(lab, ["c1", "c2"])

    _say("The counters of both nodes, and what was dropped")
    for node in lab.topology.nodes:
        _command(lab, node.name, "counters")
        _command(lab, node.name, "drops")
    _check_counters(lab)


def _say(text: str) -> None:
    click.secho(f"\n==> {text}", bold=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """A SIGTERM ends the demo as Ctrl-C does, so that it cleans up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _command(lab: Lab, node: str, *arguments: str) -> str:
    """Run `mptm` on a node as a user would, and show command and what it says; raises MptmError when it fails."""
    options = ["--instance", lab.topology.node(node).instance, *arguments]
    click.secho(f"$ mptm {' '.join(options)}", fg="cyan")
    done = subprocess.run(
        [sys.executable, "-m", "mptm", *options], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:
        raise MptmError(f"mptm {' '.join(options)} failed: {done.stderr.strip()}")
    for said in (done.stdout, done.stderr):
        if said.strip():
            click.echo(said.rstrip())
    return done.stdout


def _ping_both_ways(lab: Lab, container: str) -> None:
    for source, destination in (("node1", "node2"), ("node2", "node1")):
        for address in ADDRESSES[destination]:
            ping = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", address]
            output = lab.exec(f"{source}-{container}", ping).stdout
            received = re.search(r"(\d+) received", output)
            times = re.search(r"= [\d.]+/([\d.]+)/", output)
            if received is None or times is None or received[1] != "3":
                raise MptmError(f"{source}-{container} lost pings to {address}:\n{output}")
            click.echo(f"{source}-{container} -> {address}: 3 of 3 answered, {times[1]} ms on average")


def _capture(lab: Lab, container: str, protocol: str, vni: int) -> None:
    """Capture one outer packet on its way to node2 and let tshark decode it."""
    with tempfile.TemporaryDirectory(prefix="mptm-demo-") as directory:
        capture = Path(directory) / "underlay.pcap"
        port = UDP_PORTS[protocol]
        # By standard output: tcpdump gives up root before it opens a file.
        tcpdump = ["tcpdump", "-nUi", "node2", "-c", "1", "-w", "-", f"udp dst port {port}"]
        with capture.open("wb") as output:
            process = lab.popen("underlay", tcpdump, output=output)
        _wait_for(process, "listening", "tcpdump")
        lab.exec(f"node1-{container}", ["ping", "-n", "-c", "1", "-W", "2", ADDRESSES["node2"][0]])
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            raise MptmError(f"no {protocol} packet (UDP port {port}) on the underlay in 5 s") from None
        tshark = ["tshark", "-n", "-r", str(capture), "-O", f"ip,udp,{protocol}"]
        click.secho(f"$ tshark -n -r underlay.pcap -O ip,udp,{protocol}", fg="cyan")
        decoded = subprocess.run(tshark, capture_output=True, text=True, timeout=30, check=False)
    click.echo("\n".join(_essential(decoded.stdout)))
    if decoded.returncode or not re.search(rf"\(VNI\): (0x0*{vni:x}|{vni})\b", decoded.stdout):
        raise MptmError(f"tshark sees no {protocol} packet with VNI {vni}: {decoded.stderr.strip()}")


def _wait_for(process: subprocess.Popen[str], word: str, name: str) -> None:
    """Read the process's output until a line has `word`; raises MptmError with that output when it ends before."""
    said = []
    for line in process.stdout or process.stderr or ():
        if word in line:
            return
        said.append(line)
    raise MptmError(f"{name} didn't start: {''.join(said).strip()}")


def _essential(decoded: str) -> list[str]:
    """tshark's lines without those that repeat the value above (bits, time stamps, empty ones)."""
    noise = re.compile(r"^\s*$|^\s+[01. ]+ = |^\s+\[|^\s+(Flags: 0x00$|\.\.\.)")
    return [line for line in decoded.splitlines() if not noise.search(line)]


def _transfer(lab: Lab, containers: list[str]) -> None:
    """TCP from node1 to node2 in each container's network, all at once; raises MptmError when one moves nothing."""
    servers = [
        lab.popen(f"node2-{container}", ["iperf3", "-s", "-1", "--forceflush"]) for container in containers
    ]
    for server in servers:
        _wait_for(server, "listening", "the iperf3 server")
    iperf = [
        "iperf3",
        "-c",
        ADDRESSES["node2"][0],
        "-t",
        str(IPERF_SECONDS),
        "-J",
        "--connect-timeout",
        "3000",
    ]
    clients = {container: lab.popen(f"node1-{container}", iperf) for container in containers}
    for container, client in clients.items():
        try:
            output, _ = client.communicate(timeout=IPERF_SECONDS + 15)
        except subprocess.TimeoutExpired:
            raise MptmError(f"iperf3 between the containers {container} hangs") from None
        report = json.loads(output or "{}")
        if client.returncode or "error" in report:
            raise MptmError(f"iperf3 between the containers {container}: {report.get('error', 'failed')}")
        received = report["end"]["sum_received"]
        click.echo(
            f"node1-{container} -> node2-{container}: {received['bytes'] / 1e6:.0f} MB received, "
            f"{received['bits_per_second'] / 1e9:.2f} Gbit/s"
        )
        if received["bytes"] == 0:
            raise MptmError(f"TCP moved nothing between the containers {container}")


def _check_counters(lab: Lab) -> None:
    """Raises MptmError when a tunnel carried nothing, or delivered more than the other end sent."""
    counters = {node.name: lab.node(node.name).counters().tunnels for node in lab.topology.nodes}
    lost = 0
    for sender, receiver in (("node1", "node2"), ("node2", "node1")):
        for network in ("blue", "green"):
            sent = counters[sender][f"{network}-to-{receiver}"].encap_packets
            received = counters[receiver][f"{network}-to-{sender}"].decap_packets
            summary = f"{network}: {sender} encapsulated {sent} packets, {receiver} decapsulated {received}"
            if not 0 < received <= sent:
                raise MptmError(summary)
            click.echo(summary)
            lost += sent - received
    if lost:
        # Equals xdp_xmit_errors of the senders' eth0 (ethtool -S): a veth's ring holds 256 frames.
        click.echo(f"({lost} found no room in the underlay's queue, and TCP sent them again)")
