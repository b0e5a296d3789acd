# SPDX-License-Identifier: GPL-2.0-only
"""`mptm doctor`: what this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from mptm.cli.common import current_node, json_option, print_json
from mptm.errors import MptmError
from mptm.kernel.libbpf import KERNEL_BTF

if TYPE_CHECKING:
    from mptm.node import Node

OLDEST_KERNEL = (5, 18)
"""Programs for frames in several buffers (xdp.frags) need it."""
MEMCG_ACCOUNTING_KERNEL = (5, 11)
"""From here on BPF memory isn't counted against RLIMIT_MEMLOCK."""
NEEDED_MEMLOCK_BYTES = 256 << 20
OLDEST_LIBBPF = (1, 0)

TOOLS = {
    "ip": ("iproute2", "the lab, the demo and the tests"),
    "ethtool": ("ethtool", "the lab, and to set what a workload's veth needs"),
    "ping": ("iputils-ping", "the lab, the demo and the tests"),
    "iperf3": ("iperf3", "the demo and the tests"),
    "tshark": ("tshark", "the demo and the tests"),
    "bpftool": ("bpftool", "to look at tables by hand, and the tests"),
    "xdpdump": ("xdp-tools", "to see packets at a port"),
    "clang": ("clang", "to build the data plane from source"),
}
"""Tool -> its Debian package, and what it is for."""

COLOURS = {"ok": "green", "missing": "red", "unknown": "yellow", "optional": "yellow"}


class Check(NamedTuple):
    """One line: `status` is ok, missing (something required), optional (missing, not required) or unknown."""

    name: str
    status: str
    detail: str
    hint: str = ""


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show what this machine can do, what is missing and how to get it.

    With root it also tries it: loads the data plane, attaches to a veth in a namespace of its own, at TC and at XDP,
    and redirects a frame; nothing is left behind. Then it looks at the instance's ports, at what makes TCP die while
    pings pass and at MTUs, and at the files of its bundles. The exit status is 1 when something required is missing.

    \b
    Example:
      sudo mptm doctor
    """
    node = current_node()
    checks = [*examine(), *examine_ports(node), *examine_bundles(node)]
    healthy = all(check.status != "missing" for check in checks)
    if as_json:
        print_json({"ok": healthy, "checks": [check._asdict() for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            status = click.style(check.status.ljust(8), fg=COLOURS[check.status])
            click.echo(f"{check.name.ljust(width)}  {status}  {check.detail}")
            if check.hint:
                click.echo(f"{' ' * (width + 12)}{check.hint}")
    if not healthy:
        raise click.exceptions.Exit(1)


def examine() -> Iterator[Check]:
    """All checks, in the order in which one thing needs another."""
    yield _kernel()
    privileged = _is_privileged()
    yield _privileges(privileged)
    yield _type_information()
    yield _jit()
    yield _memlock()
    yield _bpf_file_system()
    yield _libbpf()
    yield _objects()
    yield from _xdp(privileged)
    for tool, (package, purpose) in TOOLS.items():
        path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
        if path is None:
            yield Check(tool, "optional", f"not installed; for {purpose}", f"apt-get install {package}")
        elif tool == "xdpdump" and not privileged:
            yield Check(
                tool,
                "unknown",
                f"{path}, but only root can tell whether this kernel loads the fentry programs that it needs",
            )
        elif tool == "xdpdump" and not _can_trace():
            yield Check(
                tool, "optional", "installed, but this kernel loads no fentry programs, which xdpdump needs"
            )
        else:
            yield Check(tool, "ok", path)


def _can_trace() -> bool:
    """False only where the kernel refuses for certain."""
    from mptm.kernel.probe import can_trace

    try:
        return can_trace() is not False
    except MptmError:
        return True


def _kernel_version() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _kernel() -> Check:
    release = f"Linux {platform.release()} on {platform.machine()}"
    if _kernel_version() >= OLDEST_KERNEL:
        return Check("kernel", "ok", release)
    oldest = ".".join(map(str, OLDEST_KERNEL))
    return Check("kernel", "missing", release, f"Linux {oldest} or newer is required: upgrade the kernel")


def _is_privileged() -> bool:
    from mptm.node import SystemKernel

    try:
        SystemKernel().require_privileges()
    except MptmError:
        return False
    return True


def _privileges(privileged: bool) -> Check:
    if privileged:
        return Check("privileges", "ok", "CAP_NET_ADMIN and CAP_SYS_ADMIN")
    if os.geteuid() != 0:
        return Check("privileges", "unknown", "not root: some checks are left out", "run it with sudo")
    return Check(
        "privileges",
        "missing",
        "root, but without CAP_NET_ADMIN and CAP_SYS_ADMIN",
        "give the container these capabilities (docker run --cap-add NET_ADMIN --cap-add SYS_ADMIN)",
    )


def _type_information(path: Path = KERNEL_BTF) -> Check:
    """Without it, libbpf loads no program that looks at a kernel's type or names one of its functions (frame_len)."""
    if path.exists():
        return Check("kernel BTF", "ok", str(path))
    return Check(
        "kernel BTF", "missing", f"no {path}: the data plane isn't loaded", "CONFIG_DEBUG_INFO_BTF=y"
    )


def _jit(path: Path = Path("/proc/sys/net/core/bpf_jit_enable")) -> Check:
    """Only with it, the kernel loads a program that calls one of its functions."""
    try:
        value = path.read_text().strip()
    except PermissionError:
        return Check("BPF JIT", "unknown", "only root may look")
    except OSError:
        if not path.with_name("netdev_budget").exists():  # nor is that, which every kernel has
            return Check("BPF JIT", "unknown", "only the machine's own network namespace tells")
        return Check(
            "BPF JIT", "missing", "this kernel has none: the data plane isn't loaded", "CONFIG_BPF_JIT=y"
        )
    if value != "0":
        return Check("BPF JIT", "ok", f"net.core.bpf_jit_enable = {value}")
    return Check(
        "BPF JIT", "missing", "off: the data plane isn't loaded", "sysctl -w net.core.bpf_jit_enable=1"
    )


def _memlock() -> Check:
    if _kernel_version() >= MEMCG_ACCOUNTING_KERNEL:
        return Check("memlock", "ok", "not limited (BPF memory is counted by the memory control group)")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= NEEDED_MEMLOCK_BYTES:
        return Check("memlock", "ok", "high enough")
    return Check("memlock", "missing", f"{soft} bytes are too few for the tables", "ulimit -l unlimited")


def _bpf_file_system() -> Check:
    from mptm.kernel import bpffs

    if bpffs.is_mounted():
        return Check("bpffs", "ok", str(bpffs.MOUNT_POINT))
    return Check("bpffs", "optional", "not mounted; mptm mounts it", f"mount -t bpf bpf {bpffs.MOUNT_POINT}")


def _libbpf() -> Check:
    from mptm.kernel import libbpf

    hint = "apt-get install libbpf1 (Debian 12, Ubuntu 22.10 or newer)"
    try:
        library = libbpf.library()
        version = (int(library.libbpf_major_version()), int(library.libbpf_minor_version()))
    except MptmError as error:
        return Check("libbpf", "missing", error.message, error.hint or hint)
    if version < OLDEST_LIBBPF:
        return Check("libbpf", "missing", "{}.{} is too old".format(*version), hint)
    return Check("libbpf", "ok", "{}.{}".format(*version))


def _objects() -> Check:
    from mptm.kernel.objects import DATA_PLANE, EXTRAS, object_path

    try:
        paths = [object_path(name) for name in (DATA_PLANE, EXTRAS)]
    except MptmError as error:
        return Check("data plane", "missing", error.message, error.hint or "make build")
    return Check("data plane", "ok", ", ".join(map(str, paths)))


def examine_ports(node: Node) -> Iterator[Check]:
    """What is wrong at the ports of the instance, one line for each thing."""
    if not _is_privileged():
        return
    try:
        examined = node.examine_ports()
    except MptmError as error:
        yield Check("ports", "unknown", f"not examined: {error.message}", error.hint or "")
        return
    for port, findings in examined.items():
        for finding in findings:
            status = "missing" if finding.is_serious else "optional"
            yield Check(f"port {port}", status, finding.problem, finding.command)
        if not findings:
            yield Check(f"port {port}", "ok", "what is behind it sends and takes whole frames")
    for device, served in node.gro_devices().items():
        yield Check(
            "outer GRO",
            "ok",
            f"{device}, an idle device of ours, lets the kernel join tunnel packets to {served}",
            'where that is in the way ("Address already in use"): mptm port set UPLINK --no-outer-gro',
        )


def examine_bundles(node: Node) -> Iterator[Check]:
    """Whether the flows of each bundle of the instance are kept as they were loaded."""
    if not _is_privileged():
        return
    try:
        bundles = node.intent.bundles
    except MptmError as error:
        yield Check("bundles", "unknown", f"not examined: {error.message}", error.hint or "")
        return
    for name, bundle in bundles.items():
        try:
            node.store.bundles.verify(bundle.content)
        except MptmError as error:
            again = f"mptm flow load FILE --name {name}, or mptm flow unload {name}"
            yield Check(f"bundle {name}", "missing", f"{bundle.flows} flows: {error.message}", again)
        else:
            yield Check(f"bundle {name}", "ok", f"{bundle.flows} flows")


def _xdp(privileged: bool) -> Iterator[Check]:
    steps = {
        "load": ("loading", "the kernel takes the data plane", True),
        "tc": ("TC", "attaches to a veth; where containers and VMs are by default (--hook)", False),
        "native": ("native XDP", "attaches to a veth", False),
        "generic": ("generic XDP", "attaches to a veth", True),
        "redirect": ("redirect", "a frame went from one veth to another", True),
    }
    if not privileged:
        yield Check("XDP", "unknown", "not tried: needs root", "run it with sudo")
        return
    from mptm.kernel.probe import try_xdp

    found = try_xdp()
    if "trial" in found:
        yield Check("XDP", "unknown", f"not tried: {found['trial']}")
        return
    for step, (name, detail, required) in steps.items():
        problem = found.get(step)
        if problem is None:
            yield Check(name, "ok", detail)
        else:
            yield Check(name, "missing" if required else "optional", problem)
