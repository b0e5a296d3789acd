# SPDX-License-Identifier: GPL-2.0-only
"""Section 3, TCP and UDP between the workloads' stacks, by iperf3; and whether the bytes arrive as they were sent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

from mptm.errors import MptmError, NotSupported
from mptm.kernel import netns
from mptm.lab.topology import run_in

from .chains import (
    KINDS,
    REDIRECT,
    SMOKE_KINDS,
    TC,
    TITLES,
    VXLAN,
    WORKLOADS,
    XDP,
    Chain,
    Underlay,
    addresses,
    try_to_build,
)
from .measurement import Budget, Contestant, Effort, Part, Progress, Row, Settings, missing, take_turns
from .namespaces import Namespaces

NAME, TITLE, WEIGHT = "throughput", "TCP and UDP throughput", 5.0

UNDERLAYS = (Underlay(1500, True), Underlay(1500, False), Underlay(9000, True), Underlay(9000, False))
WEIGHTS = (3, 3, 2, 2)
STREAMS = (1, 4, 16)
TCP, UDP = "TCP", "UDP"
TEXT = (
    "One workload's stack sends to the other's, both CPUs take part. "
    "Whole: the veth between the nodes takes GSO packets as they are; segmented: it has no segmentation offloads, "
    "like a network card without offloads for tunnels, and receives with GRO."
)


def part_of(underlay: Underlay) -> str:
    """The name of the part with the results over an underlay."""
    return f"throughput-{underlay.mtu}-{'whole' if underlay.whole else 'segmented'}"


INTEGRITY = "integrity"
PARTS = (
    *(
        Part(
            part_of(underlay),
            f"{underlay}",
            "Gbit/s",
            TEXT if underlay == UNDERLAYS[0] else "",
            heading="chain",
            digits=2,
            baseline=TITLES[VXLAN],
        )
        for underlay in UNDERLAYS
    ),
    Part(
        INTEGRITY,
        "Do the bytes arrive as they were sent?",
        "MB",
        "TCP, one stream of random bytes; its SHA-256 on both sides, and the checksum errors that both workloads have "
        "counted in the whole section (`InCsumErrors`).",
        heading="chain",
        digits=0,
        better="more",
        plot="",
    ),
)

START_SECONDS = 5.0
RUN_SECONDS = 1
RUN_TIMEOUT_SECONDS = 15.0
ROUNDS = {Effort.FULL: 30, Effort.QUICK: 3, Effort.SMOKE: 1}
SOMETIMES = 4
"""What no target is about takes part in each round of so many."""
INTEGRITY_BYTES = {Effort.FULL: 100_000_000, Effort.QUICK: 50_000_000, Effort.SMOKE: 2_000_000}
PORT = 5353
CHUNK = 1 << 18


def column_of(protocol: str, streams: int) -> str:
    """The column of a protocol and a number of streams."""
    return f"{protocol} {streams}"


def measure(budget: Budget, settings: Settings, progress: Progress) -> list[Row]:
    """See Section."""
    underlays, streams = UNDERLAYS, STREAMS
    if settings.effort is Effort.QUICK:
        underlays, streams = UNDERLAYS[:2], STREAMS[:2]
    if settings.effort is Effort.SMOKE:
        underlays, streams = UNDERLAYS[:1], STREAMS[:1]
    rows = []
    for underlay, share in zip(underlays, budget.shares(WEIGHTS[: len(underlays)]), strict=True):
        rows += _measure_underlay(underlay, streams, share, settings, progress)
    return rows


def _measure_underlay(
    underlay: Underlay, streams: tuple[int, ...], budget: Budget, settings: Settings, progress: Progress
) -> list[Row]:
    rows: list[Row] = []
    part = part_of(underlay)
    with Namespaces() as namespaces, contextlib.ExitStack() as stack:
        kinds = SMOKE_KINDS if settings.effort is Effort.SMOKE else KINDS
        built = try_to_build(kinds, namespaces, stack, underlay)
        contestants = []
        usable: dict[str, Chain] = {}
        for kind, chain in built.items():
            if not isinstance(chain, str):
                try:
                    chain.fit_for_stacks()
                    usable[kind] = chain
                except MptmError as error:
                    built[kind] = str(error)
        protocols = (TCP,) if settings.effort is Effort.QUICK else (TCP, UDP)
        for protocol in protocols:
            for count in streams:
                for kind, chain in built.items():
                    where = part, TITLES[kind], column_of(protocol, count)
                    if isinstance(chain, str):
                        rows.append(missing(*where, chain))
                        continue
                    is_target = protocol == TCP and count <= 4 and kind in (XDP, TC, VXLAN, REDIRECT)
                    contestants.append(
                        _contestant(where, chain, protocol, count, 1 if is_target else SOMETIMES)
                    )
        progress(f"{underlay}: {', '.join(usable)}")
        size = INTEGRITY_BYTES[settings.effort]
        integrity = {
            kind: missing(INTEGRITY, TITLES[kind], str(underlay), chain)
            if isinstance(chain, str)
            else _check_integrity(chain, size)
            for kind, chain in built.items()
            if kind in (XDP, TC) or underlay == UNDERLAYS[0]
        }
        rows += take_turns(contestants, budget, rounds=ROUNDS[settings.effort], progress=progress)
        for kind in usable.keys() & integrity.keys():
            chain = usable[kind]
            errors = sum(_checksum_errors(chain, name) for name in WORKLOADS)
            integrity[kind].details["checksum_errors"] = errors
    return [*rows, *integrity.values()]


def _contestant(
    where: tuple[str, str, str], chain: Chain, protocol: str, streams: int, every: int
) -> Contestant:
    details: dict[str, Any] = {}

    def once() -> float:
        rate, extra = transfer(chain, protocol, streams)
        details.update(extra)
        return rate / 1e9

    return Contestant(*where, once, every=every, details=details)


def transfer(
    chain: Chain, protocol: str, streams: int, seconds: int = RUN_SECONDS
) -> tuple[float, dict[str, float]]:
    """Bits per second that arrive from the left end at the right one, and what iperf3 says of losses.

    Raises MptmError.
    """
    left, right = addresses(chain)
    command = ["iperf3", "-c", right, "-B", left, "-t", str(seconds), "-P", str(streams), "--json"]
    if protocol == UDP:
        payload = chain.workload_mtu - 28
        command += ["--udp", "--bitrate", "0", "--length", str(payload)]
    with _server(chain):
        answer = json.loads(
            subprocess.run(
                ["nsenter", f"--net={netns.DIRECTORY / chain.namespace['left']}", "--", *command],
                capture_output=True,
                text=True,
                timeout=RUN_TIMEOUT_SECONDS,
                check=False,
            ).stdout
            or "{}"
        )
    if "error" in answer or "end" not in answer:
        raise MptmError(f"iperf3: {answer.get('error', 'no answer')}")
    end = answer["end"]
    if protocol == TCP:
        return float(end["sum_received"]["bits_per_second"]), {"retransmits": end["sum_sent"]["retransmits"]}
    total = end["sum"]
    lost = total["lost_packets"] / total["packets"] if total["packets"] else 0.0
    return float(total["bits_per_second"]) * (1 - lost), {"lost_percent": round(100 * lost, 1)}


@contextlib.contextmanager
def _server(chain: Chain) -> Iterator[None]:
    namespace = netns.DIRECTORY / chain.namespace["right"]
    command = ["nsenter", f"--net={namespace}", "--", "iperf3", "--server", "--one-off", "--forceflush"]
    try:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError:
        raise NotSupported("iperf3 isn't installed: apt-get install iperf3") from None
    with server:
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


def _check_integrity(chain: Chain, size: int) -> Row:
    """How many MB of random bytes arrive as they were sent; the reason says what is wrong where they don't."""
    line, column = TITLES[chain.kind], f"{chain.underlay}"
    try:
        sent, received = send_random(chain, size)
    except (MptmError, OSError) as error:
        return missing(INTEGRITY, line, column, str(error))
    if sent != received:
        return missing(INTEGRITY, line, column, "the bytes that arrived are not those that were sent")
    return Row(INTEGRITY, line, column, (size / 1e6,), details={"sha256": sent})


def send_random(chain: Chain, size: int) -> tuple[str, str]:
    """SHA-256 of what the left workload sent by TCP, and of what the right one received. Raises OSError."""
    left, right = addresses(chain)
    received = hashlib.sha256()
    failures: list[BaseException] = []
    with netns.inside(chain.namespace["right"]):
        listener = socket.create_server((right, PORT))
    with netns.inside(chain.namespace["left"]):
        sender = socket.socket()
    with listener, sender:
        for each in (listener, sender):
            each.settimeout(START_SECONDS)

        def receive() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(START_SECONDS)
                    while data := connection.recv(CHUNK):
                        received.update(data)
            except OSError as error:
                failures.append(error)

        receiver = threading.Thread(target=receive)
        receiver.start()
        sent = hashlib.sha256()
        try:
            sender.bind((left, 0))
            sender.connect((right, PORT))
            for start in range(0, size, CHUNK):
                data = os.urandom(min(CHUNK, size - start))
                sent.update(data)
                sender.sendall(data)
            sender.shutdown(socket.SHUT_WR)
        finally:
            sender.close()
            receiver.join()
    if failures:
        raise failures[0]
    return sent.hexdigest(), received.hexdigest()


def _checksum_errors(chain: Chain, name: str) -> int:
    """TCP segments and UDP datagrams with a wrong checksum that a namespace has received."""
    said = run_in(chain.namespace[name], ["cat", "/proc/net/snmp"]).splitlines()
    found = 0
    for header, values in zip(said[::2], said[1::2], strict=False):
        names, numbers = header.split(), values.split()
        if names[0] in ("Tcp:", "Udp:") and "InCsumErrors" in names:
            found += int(numbers[names.index("InCsumErrors")])
    return found
