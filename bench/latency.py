# SPDX-License-Identifier: GPL-2.0-only
"""Section 4, how long an answer takes: one byte there and one back, again and again, by TCP and by UDP.

Both workloads and the nodes share one CPU: what is measured is the work on the way, without waking another CPU.
The two ends are in Python, the same for all chains; what they add is the same, too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import time
from collections.abc import Iterator
from typing import Any

from mptm.errors import MptmError
from mptm.kernel import netns

from .chains import KINDS, TITLES, VXLAN, Chain, Underlay, addresses, try_to_build
from .measurement import Budget, Contestant, Effort, Part, Progress, Row, Settings, missing, take_turns
from .namespaces import Namespaces

NAME, TITLE, WEIGHT = "latency", "Latency", 1.0

LATENCY = "latency"
PARTS = (
    Part(
        LATENCY,
        "Request and response",
        "microseconds",
        "One byte there, one byte back, on one connection; both ends and the nodes on one CPU, without busy polling. "
        "Each sample is the percentile of one run.",
        heading="chain",
        digits=1,
        baseline=TITLES[VXLAN],
        better="less",
    ),
)

TCP, UDP = "TCP", "UDP"
PERCENTILES = ("p50", "p99")
TRANSACTIONS = {Effort.FULL: 4000, Effort.QUICK: 2000, Effort.SMOKE: 100}
ROUNDS = {Effort.FULL: 30, Effort.QUICK: 5, Effort.SMOKE: 1}
WARM_UP = 50
TIMEOUT_SECONDS = 3.0
PORT = 5354


def measure(budget: Budget, settings: Settings, progress: Progress) -> list[Row]:
    """See Section."""
    rows = []
    with Namespaces() as namespaces, contextlib.ExitStack() as stack:
        built = try_to_build(KINDS, namespaces, stack, Underlay())
        cpu = max(os.sched_getaffinity(0))
        contestants: list[Contestant] = []
        for protocol in (TCP, UDP):
            for kind, chain in built.items():
                columns = [f"{protocol} {percentile}" for percentile in PERCENTILES]
                if not isinstance(chain, str):
                    try:
                        chain.fit_for_stacks()
                        for switch in chain.switches:
                            switch.pin({cpu})
                    except MptmError as error:
                        chain = str(error)
                if isinstance(chain, str):
                    rows += [missing(LATENCY, TITLES[kind], column, chain) for column in columns]
                else:
                    contestants += _contestants(chain, protocol, TRANSACTIONS[settings.effort], cpu)
        return rows + take_turns(contestants, budget, rounds=ROUNDS[settings.effort], progress=progress)


def _contestants(chain: Chain, protocol: str, count: int, cpu: int) -> list[Contestant]:
    """One for each percentile: the second tells what the first has measured in the same run."""
    details: dict[str, Any] = {"transactions": 0}
    last: list[float] = []

    def median() -> float:
        last.clear()
        with echo(chain, protocol, cpu):
            found = ping_pong(chain, protocol, count)
        details["transactions"] += len(found)
        last.append(statistics.quantiles(found, n=100)[98])
        return statistics.median(found)

    def high() -> float:
        if not last:
            raise MptmError("there was no run")
        return last[0]

    line = TITLES[chain.kind]
    return [
        Contestant(LATENCY, line, f"{protocol} {PERCENTILES[0]}", median, details=details),
        Contestant(LATENCY, line, f"{protocol} {PERCENTILES[1]}", high, details=details),
    ]


@contextlib.contextmanager
def echo(chain: Chain, protocol: str, cpu: int) -> Iterator[None]:
    """A process at the right end that sends back what it gets; this one runs on the same CPU for as long."""
    _, right = addresses(chain)
    with netns.inside(chain.namespace["right"]):
        server = _socket(protocol)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((right, PORT))
    if protocol == TCP:
        server.listen(1)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _serve(server, protocol)
        os._exit(0)
    server.close()
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)
        os.waitpid(child, 0)
        os.sched_setaffinity(0, before)


def _serve(server: socket.socket, protocol: str) -> None:
    if protocol == UDP:
        while True:
            data, sender = server.recvfrom(16)
            server.sendto(data, sender)
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(16):
        connection.send(data)


def ping_pong(chain: Chain, protocol: str, count: int) -> list[float]:
    """Microseconds of each transaction. Raises OSError when an answer doesn't come."""
    left, right = addresses(chain)
    with netns.inside(chain.namespace["left"]):
        client = _socket(protocol)
    with client:
        client.settimeout(TIMEOUT_SECONDS)
        client.bind((left, 0))
        client.connect((right, PORT))
        client.settimeout(None)
        seconds = int(TIMEOUT_SECONDS)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds.to_bytes(8, "little") + bytes(8))
        if protocol == TCP:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found = []
        send, receive, now = client.send, client.recv, time.perf_counter_ns
        for _ in range(WARM_UP + count):
            began = now()
            send(b"x")
            if not receive(16):
                raise MptmError("the connection was closed")
            found.append((now() - began) / 1000)
    return found[WARM_UP:]


def _socket(protocol: str) -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM)
