# SPDX-License-Identifier: GPL-2.0-only
"""TCP between the ends of a chain, by iperf3: for information, as it depends on offloads more than on the tunnel."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chain import ADDRESS, TUNNEL, VXLAN, WORKLOADS, Chain
from namespaces import Namespaces, ethtool

from mptm.errors import MptmError
from mptm.kernel import netns
from mptm.lab.topology import run_in

START_SECONDS = 5.0
STREAMS = (1, 4)


@dataclass(frozen=True)
class Transfer:
    """Bits per second of TCP through a chain: the median of all rounds."""

    kind: str
    streams: int
    bits_per_second: float


def measure(rounds: int, seconds: int, deadline: float, progress: Callable[[str], None]) -> list[Transfer]:
    """MPTM's XDP tunnel and the kernel's vxlan in turns, `seconds` each; no round begins after the deadline.

    Each chain has the offloads that suit it: XDP wants frames with their checksum filled in, whole GSO packets would
    be cut before it; vxlan keeps what a veth has by default. Raises MptmError.
    """
    found: dict[tuple[str, int], list[float]] = {
        (kind, streams): [] for kind in (TUNNEL, VXLAN) for streams in STREAMS
    }
    with Namespaces() as namespaces, contextlib.ExitStack() as stack:
        chains = {kind: Chain(kind, namespaces, stack) for kind in (TUNNEL, VXLAN)}
        for name in WORKLOADS:
            ethtool(chains[TUNNEL].namespace[name], "-K", "eth0", "tx", "off", "gro", "on")
        for number in range(rounds):
            if number and time.monotonic() > deadline:
                progress("out of time: no further rounds")
                break
            for (kind, streams), rates in found.items():
                rates.append(transfer(chains[kind], streams, seconds))
                progress(f"{kind}, TCP streams: {streams}: {rates[-1] / 1e9:.1f} Gbit/s")
    return [Transfer(kind, streams, statistics.median(rates)) for (kind, streams), rates in found.items()]


def transfer(chain: Chain, streams: int, seconds: int) -> float:
    """Bits per second that arrive from the left end at the right one. Raises MptmError."""
    with _server(chain):
        answer = run_in(
            chain.namespace["left"],
            ["iperf3", "-c", ADDRESS["right"], "-t", str(seconds), "-P", str(streams), "--json"],
        )
    return float(json.loads(answer)["end"]["sum_received"]["bits_per_second"])


@contextlib.contextmanager
def _server(chain: Chain) -> Iterator[None]:
    namespace = netns.DIRECTORY / chain.namespace["right"]
    command = ["nsenter", f"--net={namespace}", "--", "iperf3", "--server", "--one-off", "--forceflush"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            timeout = time.monotonic() + START_SECONDS
            for line in server.stdout:
                if "listening" in line.lower():
                    break
                if time.monotonic() > timeout:
                    raise MptmError("iperf3 doesn't listen")
            yield
        finally:
            server.kill()
