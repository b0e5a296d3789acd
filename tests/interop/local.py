# SPDX-License-Identifier: GPL-2.0-only
"""Ends of TCP connections in namespaces of the lab: our workloads', and those of peers that run on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from matrix import WORKLOAD_LINK_MTU, Place, Server, Transferred
from traffic import FAMILY, IP_HEADER_LEN, open_socket, receive_all, send_all

from mptm.lab.topology import Lab

CONNECT_TIMEOUT_SECONDS = 5
TRANSFER_TIMEOUT_SECONDS = 60
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_PROBE = 10, 23, 3
UDP_HEADER_LEN = 8
DISCARD_PORT = 9


def exchange(end: socket.socket, size: int) -> Transferred:
    """Send `size` random bytes and receive until the other end has sent all."""
    end.settimeout(TRANSFER_TIMEOUT_SECONDS)  # of sendall it is for all, not for each piece
    data = os.urandom(size)
    end.settimeout(TRANSFER_TIMEOUT_SECONDS)  # of sending all of it
    with ThreadPoolExecutor(2) as pool:
        sent, received = pool.submit(send_all, end, data), pool.submit(receive_all, end)
        return Transferred(sent.result(), *received.result())


class LocalServer(Server):
    """A server in the test's own process."""

    def __init__(self, listener: socket.socket, size: int, pool: ThreadPoolExecutor) -> None:
        self.port = listener.getsockname()[1]
        self._future: Future[Transferred] = pool.submit(self._serve, listener, size)

    @staticmethod
    def _serve(listener: socket.socket, size: int) -> Transferred:
        end, _ = listener.accept()
        with end:
            return exchange(end, size)

    def result(self, timeout_seconds: float) -> Transferred:
        return self._future.result(timeout_seconds)


@contextlib.contextmanager
def serving(lab: Lab, target: str, address: str, version: int, size: int) -> Iterator[LocalServer]:
    """A server at an address in the namespace of `target`; see Peer.serving."""
    with (
        ThreadPoolExecutor(1) as pool,
        open_socket(lab, target, FAMILY[version], socket.SOCK_STREAM) as listener,
    ):
        listener.settimeout(CONNECT_TIMEOUT_SECONDS)
        listener.bind((address, 0))
        listener.listen(1)
        yield LocalServer(listener, size, pool)


def connect(lab: Lab, target: str, source: str, destination: tuple[str, int], version: int) -> socket.socket:
    """A TCP connection from an address in the namespace of `target`."""
    end = open_socket(lab, target, FAMILY[version], socket.SOCK_STREAM)
    try:
        end.settimeout(CONNECT_TIMEOUT_SECONDS)
        end.bind((source, 0))
        end.connect(destination)
    except BaseException:
        end.close()
        raise
    return end


def send_oversized(lab: Lab, target: str, place: Place, data: bytes) -> None:
    """See Peer.send_oversized; nobody may fragment the inner packet, and the route's MTU doesn't count."""
    version = place.case.inner[0]
    size = WORKLOAD_LINK_MTU - IP_HEADER_LEN[version] - UDP_HEADER_LEN
    with open_socket(lab, target, FAMILY[version], socket.SOCK_DGRAM) as sender:
        if version == 4:
            sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
        else:
            sender.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
        sender.bind((place.peer_inner[version], 0))
        sender.sendto(data.ljust(size, b"\0"), (place.node_inner[version], DISCARD_PORT))


def ping(lab: Lab, target: str, source: str, destination: str, *options: str, count: int) -> str:
    """Ping from an address in the namespace of `target`; its output."""
    # With -W it would wait for the last answer no longer than 50 ms or twice the slowest so far.
    command = ["ping", "-n", "-I", source, "-c", str(count), "-i", "0.05", "-w", "2", *options, destination]
    return lab.exec(target, command, check=False).stdout
