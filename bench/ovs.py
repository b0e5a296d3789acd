# SPDX-License-Identifier: GPL-2.0-only
"""Open vSwitch with its datapath in user space, in a namespace, with a database and sockets of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from mptm.errors import MptmError, NotSupported
from mptm.kernel import netns
from mptm.lab.topology import run_in

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
READY_SECONDS = 10
STOP_SECONDS = 3
INTEGRATION = "br-int"
PORT, TUNNEL = 1, 2


class Switch:
    """A database and a daemon, which end with `stack`. Raises NotSupported where Open vSwitch isn't installed."""

    physical = "br-phy"
    """The bridge with the uplink, whose interface has the node's address."""

    def __init__(self, namespace: str, stack: contextlib.ExitStack) -> None:
        if not SCHEMA.is_file() or shutil.which("ovs-vswitchd") is None:
            raise NotSupported("Open vSwitch isn't installed: apt-get install openvswitch-switch")
        self._namespace = namespace
        self._directory = Path(tempfile.mkdtemp(prefix="mptm-bench-ovs-"))
        stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        self._daemons: list[subprocess.Popen[bytes]] = []
        stack.callback(self._stop)
        database = self._directory / "conf.db"
        run_in(namespace, ["ovsdb-tool", "create", str(database), str(SCHEMA)])
        self._start("ovsdb-server", str(database), f"--remote=punix:{self._directory}/db.sock")
        self._start("ovs-vswitchd", f"unix:{self._directory}/db.sock")

    def add_bridges(self, mac: str, uplink: str) -> None:
        """The one with the uplink, and the one with workloads."""
        netdev = "datapath_type=netdev"
        self._vsctl(
            *("--", "add-br", self.physical, "--", "set", "bridge", self.physical, netdev),
            *(f"other_config:hwaddr={mac}", "--", "add-port", self.physical, uplink),
            *("--", "add-br", INTEGRATION, "--", "set", "bridge", INTEGRATION, netdev, "fail_mode=secure"),
        )

    def add_tunnel(self, port: str, local: str, remote: str, remote_mac: str, vni: int) -> None:
        """All frames of a port into a VXLAN tunnel, and all of the tunnel to the port."""
        self._vsctl(
            *("--", "add-port", INTEGRATION, port, "--", "set", "interface", port),
            f"ofport_request={PORT}",
            *(
                "--",
                "add-port",
                INTEGRATION,
                "t0",
                "--",
                "set",
                "interface",
                "t0",
                f"ofport_request={TUNNEL}",
            ),
            *("type=vxlan", f"options:remote_ip={remote}", f"options:local_ip={local}", f"options:key={vni}"),
        )
        bridge = f"unix:{self._directory}/{INTEGRATION}.mgmt"
        for source, destination in ((PORT, TUNNEL), (TUNNEL, PORT)):
            flow = f"in_port={source},actions=output:{destination}"
            run_in(self._namespace, ["ovs-ofctl", "-O", "OpenFlow15", "add-flow", bridge, flow])
        self._appctl("ovs-vswitchd", "tnl/neigh/set", self.physical, remote, remote_mac)

    def pin(self, cpus: set[int]) -> None:
        """Let all threads of the daemons run on these CPUs."""
        for daemon in self._daemons:
            for task in os.listdir(f"/proc/{daemon.pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task), cpus)

    def _start(self, program: str, *arguments: str) -> None:
        environment = {name: str(self._directory) for name in ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR")}
        log = self._directory / f"{program}.log"
        command = [program, *arguments, f"--unixctl={self._directory}/{program}.ctl", f"--log-file={log}"]
        daemon = subprocess.Popen(
            ["nsenter", f"--net={netns.DIRECTORY / self._namespace}", "--", *command, "-vconsole:off"],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._daemons.append(daemon)
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(MptmError):
                self._appctl(program, "version")
                return
            if daemon.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-500:] if log.exists() else ""
                raise MptmError(f"{program} doesn't run: {said}")
            time.sleep(0.05)

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _vsctl(self, *arguments: str) -> None:
        run_in(
            self._namespace,
            ["ovs-vsctl", f"--db=unix:{self._directory}/db.sock", "--timeout=10", *arguments],
        )

    def _appctl(self, program: str, *arguments: str) -> None:
        run_in(
            self._namespace,
            ["ovs-appctl", f"--target={self._directory}/{program}.ctl", "--timeout=5", *arguments],
        )
