# SPDX-License-Identifier: GPL-2.0-only
"""What a benchmark ran on, and what else ran there."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path

BUSY = 0.05
"""Share of the CPUs' time from which on a machine isn't idle."""
WATCHED_SECONDS = 2.0


def describe() -> dict[str, str]:
    """CPUs, kernel, mitigations, frequency governor, versions of the peers: by name, in words."""
    found = {
        "CPU": f"{os.cpu_count()} x {_cpu_model()}{_hypervisor()}",
        "caches": _caches(),
        "memory": _memory(),
        "kernel": f"Linux {platform.release()}, {platform.machine()}",
        "BPF JIT": _jit(),
        "mitigations": _mitigations(),
        "frequency governor": _governor(),
        "Open vSwitch": _version(["ovs-vswitchd", "--version"]),
        "iperf3": _version(["iperf3", "--version"]),
        "Python": platform.python_version(),
    }
    return {name: value for name, value in found.items() if value}


def load() -> tuple[float, str]:
    """The load average of the last minute; and, watching for a moment, a warning when the machine isn't idle."""
    average = os.getloadavg()[0]
    busy, total = _cpu_time()
    time.sleep(WATCHED_SECONDS)
    busy_after, total_after = _cpu_time()
    share = (busy_after - busy) / max(1, total_after - total)
    if share <= BUSY:
        return average, ""
    return average, (
        f"the machine was not idle when the run began (others took {share:.0%} of the CPUs' time, load "
        f"{average:.2f} on {os.cpu_count()} CPUs): single numbers mean little, and even ratios less than they should"
    )


def _cpu_time() -> tuple[int, int]:
    """Ticks that the CPUs were busy, those taken by the hypervisor included, and all ticks (proc_stat(5))."""
    user, nice, system, idle, iowait, *rest = map(int, _read("/proc/stat").split("\n")[0].split()[1:9])
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + iowait


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _cpu_model() -> str:
    model = re.search(r"^(?:model name|Processor)\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return model[1] if model else platform.machine()


def _hypervisor() -> str:
    return ", virtual" if re.search(r"^flags.*\bhypervisor\b", _read("/proc/cpuinfo"), re.MULTILINE) else ""


def _caches() -> str:
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(str(index / name)) for name in ("level", "type", "size"))
        if kind != "Instruction" and size:
            found.append(f"L{level} {size}")
    return ", ".join(found)


def _memory() -> str:
    total = re.search(r"^MemTotal:\s*(\d+)", _read("/proc/meminfo"), re.MULTILINE)
    return f"{int(total[1]) / 1024**2:.1f} GiB" if total else ""


def _jit() -> str:
    enabled = _read("/proc/sys/net/core/bpf_jit_enable")
    return {"0": "off", "1": "on", "2": "on, debugging"}.get(enabled, "")


def _mitigations() -> str:
    """The CPU's weaknesses that this kernel does something about, and those it doesn't."""
    found = []
    for path in sorted(Path("/sys/devices/system/cpu/vulnerabilities").glob("*")):
        state = _read(str(path))
        if state and not state.startswith("Not affected"):
            found.append(f"{path.name}: {state}")
    return "; ".join(found)


def _governor() -> str:
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not visible"


def _version(command: list[str]) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return "not installed"
    version = re.search(r"\d+(\.\d+)+", said)
    return version[0] if version else "not installed"
