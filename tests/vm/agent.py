# SPDX-License-Identifier: GPL-2.0-only
"""In the guest: runs the commands that come over a virtio-serial port, one JSON object a line each way.

    {"id": 1, "do": "run", "argv": [...], "timeout": 10, "input": "", "environment": {}, "directory": "/"}
        -> {"id": 1, "status": 0, "stdout": "", "stderr": "", "timed_out": false}
    {"id": 2, "do": "start", "argv": [...]}  -> {"id": 2, "process": 17}
    {"id": 3, "do": "stop", "process": 17}   -> as for run
    {"id": 4, "do": "listen", "address": "10.0.0.2", "size": 1000}  -> {"id": 4, "port": 4711}
        One TCP connection: `size` random bytes each way at once
    {"id": 5, "do": "received", "port": 4711, "timeout": 10}
        -> {"id": 5, "sent": SHA-256, "received_bytes": 1000, "received": SHA-256}
    {"id": 6, "do": "send-datagram", "source": "10.0.0.2", "destination": "10.0.0.1", "port": 9, "data": HEX}
        -> {"id": 6}  UDP, the packet not fragmented
    {"id": 7, "do": "power-off"}             no answer

Whatever fails is answered as by run, with status 127, and errno where there is one. Sockets (4, 6) are made in the
network namespace "namespace" of /run/netns, where given.

It is process 1, so it also takes up orphans. Needs nothing but Python's standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import socket
import subprocess
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

PORT = "mptm.agent"
CHUNK = 1 << 20
CLONE_NEWNET = 0x40000000
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_PROBE = 10, 23, 3
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LC_ALL": "C.UTF-8",
}


class Agent:
    """Answers requests, each in a thread of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writing = threading.Lock()
        self._started: dict[int, subprocess.Popen[str]] = {}
        self._pool = ThreadPoolExecutor(16)
        self._transfers: dict[int, Future[dict[str, object]]] = {}

    def serve(self) -> None:
        self.answer({"ready": os.uname().release})
        with os.fdopen(os.dup(self._port), "rb") as requests:
            while line := requests.readline():
                request = json.loads(line)
                threading.Thread(target=self._handle, args=(request,), daemon=True).start()

    def answer(self, reply: dict[str, object]) -> None:
        data = json.dumps(reply).encode() + b"\n"
        with self._writing:
            while data:
                data = data[os.write(self._port, data) :]

    def _handle(self, request: dict) -> None:
        try:
            reply = getattr(self, "_" + request["do"].replace("-", "_"))(request)
        except OSError as error:
            reply = {
                "status": 127,
                "errno": error.errno,
                "stdout": "",
                "stderr": str(error),
                "timed_out": False,
            }
        except Exception:
            reply = {"status": 127, "stdout": "", "stderr": traceback.format_exc(), "timed_out": False}
        self.answer({"id": request["id"], **reply})

    def _popen(self, request: dict) -> subprocess.Popen[str]:
        return subprocess.Popen(
            request["argv"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            env=_ENVIRONMENT | request.get("environment", {}),
            cwd=request.get("directory", "/"),
            start_new_session=True,
        )

    def _run(self, request: dict) -> dict[str, object]:
        process = self._popen(request)
        timed_out = False
        try:
            stdout, stderr = process.communicate(request.get("input", ""), timeout=request["timeout"])
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, 9)
            stdout, stderr = process.communicate()
        return {"status": process.returncode, "stdout": stdout, "stderr": stderr, "timed_out": timed_out}

    def _start(self, request: dict) -> dict[str, object]:
        process = self._popen(request)
        self._started[process.pid] = process
        return {"process": process.pid}

    def _stop(self, request: dict) -> dict[str, object]:
        process = self._started.pop(request["process"])
        timed_out = False
        try:
            stdout, stderr = process.communicate(timeout=request.get("timeout", 0) or 0.01)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, 9)
            stdout, stderr = process.communicate()
        return {"status": process.returncode, "stdout": stdout, "stderr": stderr, "timed_out": timed_out}

    def _listen(self, request: dict) -> dict[str, object]:
        _enter_namespace(request)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(_family(request["address"]), socket.SOCK_STREAM))
            listener.settimeout(request.get("timeout", 30))
            listener.bind((request["address"], 0))
            listener.listen(1)
            stack.pop_all()
        port = listener.getsockname()[1]
        self._transfers[port] = self._pool.submit(_serve, listener, request["size"])
        return {"port": port}

    def _received(self, request: dict) -> dict[str, object]:
        return self._transfers.pop(request["port"]).result(request["timeout"])

    def _send_datagram(self, request: dict) -> dict[str, object]:
        _enter_namespace(request)
        with socket.socket(_family(request["source"]), socket.SOCK_DGRAM) as sender:
            if sender.family == socket.AF_INET:
                sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
            else:
                sender.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            sender.bind((request["source"], 0))
            sender.sendto(bytes.fromhex(request["data"]), (request["destination"], request["port"]))
        return {}

    def _power_off(self, _request: dict) -> dict[str, object]:
        Path("/proc/sysrq-trigger").write_text("o")
        return {}


def _enter_namespace(request: dict) -> None:
    """Move this thread, which answers one request and ends, to the request's namespace."""
    if name := request.get("namespace"):
        with open(f"/run/netns/{name}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), f"namespace {name} can't be entered")


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _serve(listener: socket.socket, size: int) -> dict[str, object]:
    with listener:
        end, _ = listener.accept()
    with end, ThreadPoolExecutor(1) as pool:
        end.settimeout(listener.gettimeout())
        sent = pool.submit(_send, end, size)
        digest, received = hashlib.sha256(), 0
        while chunk := end.recv(CHUNK):
            digest.update(chunk)
            received += len(chunk)
        return {"sent": sent.result(), "received_bytes": received, "received": digest.hexdigest()}


def _send(end: socket.socket, size: int) -> str:
    digest = hashlib.sha256()
    while size:
        chunk = os.urandom(min(size, CHUNK))
        digest.update(chunk)
        end.sendall(chunk)
        size -= len(chunk)
    end.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def open_port() -> int:
    for port in Path("/sys/class/virtio-ports").iterdir():
        if (port / "name").read_text().strip() == PORT:
            return os.open(f"/dev/{port.name}", os.O_RDWR)
    raise SystemExit(f"no virtio-serial port {PORT}")


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], env=_ENVIRONMENT, check=True)
    Agent(open_port()).serve()
