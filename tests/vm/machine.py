# SPDX-License-Identifier: GPL-2.0-only
"""A guest with one of Debian's kernels in qemu, and commands in it.

The guest sees this machine's file system (read-only, a layer in memory takes what is written), so this checkout, its
virtual environment and the distribution's tools are there under the same paths.
"""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import PORT
from kernels import ROOT, Kernel

from mptm.lab.topology import NAMESPACES

_BOOT_TIMEOUT_S = 240
"""A boot takes ten seconds, and twenty times that on a machine that has much else to do."""
_AGENT = Path(__file__).with_name("agent.py")


class GuestError(Exception):
    """The guest died, or doesn't do what it was told."""


@dataclass(frozen=True)
class Tap:
    """A network interface of the guest's: the tap device `name` in the network namespace where qemu is started."""

    name: str
    mac: str


@dataclass(frozen=True)
class Result:
    """How a command ended. `status` is negative after a signal."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    timed_out: bool = False

    def check(self) -> Result:
        """This result; raises GuestError unless the command succeeded."""
        if self.status != 0 or self.timed_out:
            how = "ran into its time limit" if self.timed_out else f"ended with {self.status}"
            raise GuestError(f"{' '.join(self.argv)} {how}\n{self.stdout}{self.stderr}".rstrip())
        return self


class Machine:
    """A running guest; a context manager that shuts it down. Raises GuestError when it doesn't come up."""

    def __init__(
        self,
        kernel: Kernel,
        *,
        taps: Sequence[Tap] = (),
        namespace: str | None = None,
        memory_mib: int = 1024,
    ) -> None:
        self.kernel = kernel
        self._directory = tempfile.TemporaryDirectory(prefix="mptm-vm-")
        self._console = Path(self._directory.name) / "console"
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {0: queue.SimpleQueue()}
        self._last_id = 0
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        self._channel = ours
        try:
            self._process = subprocess.Popen(
                self._command(taps, namespace, memory_mib, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            self._directory.cleanup()
            raise
        finally:
            theirs.close()
        self._reader = threading.Thread(target=self._read_answers, daemon=True)
        self._reader.start()
        try:
            self._wait(0, _BOOT_TIMEOUT_S, "doesn't come up")
        except BaseException:
            self.kill()
            raise

    def _command(
        self, taps: Sequence[Tap], namespace: str | None, memory_mib: int, channel: int
    ) -> list[str | Path]:
        modules = self.kernel.modules / "lib" / "modules" / self.kernel.release
        parameters = (
            "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr random.trust_cpu=on net.ifnames=0"
            # On a busy machine the emulated timer may miss its test, and the kernel panics (seen with 6.12).
            " no_timer_check"
            f" agent.python={sys.executable} agent.script={_AGENT} agent.modules={modules}"
        )
        return [
            *(("nsenter", f"--net={NAMESPACES / namespace}", "--") if namespace else ()),
            # Whatever becomes of us, the guest goes with us.
            *("setpriv", "--pdeathsig", "KILL"),
            # One CPU: in emulation, another one may still meet the breakpoint of a static branch that was just
            # switched (by a ping that asks for timestamps, say), and the kernel panics (seen with 6.12 in qemu 7.2).
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "q35,accel=tcg,usb=off", "-cpu", "max", "-smp", "1", "-m", str(memory_mib)),
            *("-kernel", self.kernel.image, "-initrd", self.kernel.initramfs, "-append", parameters),
            *("-serial", f"file:{self._console}"),
            *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={channel}"),
            *("-device", f"virtserialport,chardev=agent,name={PORT}"),
            *(part for number, tap in enumerate(taps) for part in _network_card(number, tap)),
        ]

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.shut_down()
        else:
            self.kill()

    def run(
        self,
        *argv: str | Path,
        timeout: float = 20,
        input: str = "",
        environment: Mapping[str, str] | None = None,
        directory: Path | str = "/",
    ) -> Result:
        """Run a command in the guest to its end. Raises GuestError when the guest doesn't answer."""
        words = tuple(str(word) for word in argv)
        reply = self._ask(
            timeout + 10,
            do="run",
            argv=words,
            timeout=timeout,
            input=input,
            environment=dict(environment or {}),
            directory=str(directory),
        )
        return _result(words, reply)

    def python(self, *arguments: str | Path, **options: Any) -> Result:
        """Run the checkout's Python (its virtual environment) in the guest, in the checkout."""
        return self.run(sys.executable, *arguments, directory=ROOT, **options)

    def start(self, *argv: str | Path) -> Running:
        """Start a command in the guest. Raises GuestError."""
        words = tuple(str(word) for word in argv)
        reply = self._ask(10, do="start", argv=words)
        if "process" not in reply:
            _result(words, reply).check()
        return Running(self, words, reply["process"])

    def ask(self, do: str, patience: float = 10, **request: object) -> dict[str, Any]:
        """Another service of the agent's. Raises what went wrong there: OSError, else GuestError."""
        reply = self._ask(patience, do=do, **request)
        if reply.get("errno"):
            raise OSError(reply["errno"], f"{do}: {reply['stderr']}")
        if reply.get("status", 0) != 0:
            raise GuestError(f"{do}: {reply['stderr']}")
        return reply

    def ip(self, commands: Sequence[str]) -> None:
        """`ip` commands (without the leading "ip") in one batch. Raises GuestError."""
        self.run("ip", "-batch", "-", input="\n".join(commands) + "\n", timeout=60).check()

    def console(self) -> str:
        """What the guest's kernel said."""
        try:
            return self._console.read_text(errors="backslashreplace")
        except FileNotFoundError:
            return ""

    def shut_down(self) -> None:
        """Power off, or, when that takes too long, kill."""
        try:
            self._send({"id": -1, "do": "power-off"})
            self._process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        """Be rid of the guest at once."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._channel.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._directory.cleanup()

    def _ask(self, patience: float, **request: object) -> dict[str, Any]:
        with self._lock:
            self._last_id += 1
            number = self._last_id
            self._answers[number] = queue.SimpleQueue()
        try:
            self._send({"id": number, **request})
        except OSError as error:
            raise GuestError(f"the guest is gone: {error}\n{self._post_mortem()}") from None
        return self._wait(number, patience, "doesn't answer")

    def _send(self, message: dict[str, object]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            self._channel.sendall(data)

    def _wait(self, number: int, timeout: float, what: str) -> dict[str, Any]:
        try:
            reply = self._answers[number].get(timeout=timeout)
        except queue.Empty:
            raise GuestError(f"kernel {self.kernel.release} {what}\n{self._post_mortem()}") from None
        if reply is None:
            raise GuestError(f"the guest with {self.kernel.release} ended\n{self._post_mortem()}")
        del self._answers[number]
        return reply

    def _read_answers(self) -> None:
        with self._channel.makefile("rb") as answers:
            for line in answers:
                reply = json.loads(line)
                with self._lock:
                    waiting = self._answers.get(reply.pop("id", 0))
                if waiting is not None:
                    waiting.put(reply)
        with self._lock:
            for waiting in self._answers.values():
                waiting.put(None)

    def _post_mortem(self) -> str:
        said = ""
        if self._process.poll() is not None and self._process.stdout is not None:
            said = self._process.stdout.read().decode(errors="backslashreplace")
        return "\n".join([*said.splitlines()[-10:], *self.console().splitlines()[-30:]])


class Running:
    """A command that was started in the guest."""

    def __init__(self, machine: Machine, argv: tuple[str, ...], process: int) -> None:
        self._machine = machine
        self._argv = argv
        self._process = process

    def stop(self, timeout: float = 0) -> Result:
        """Wait for its end for a while, then kill it."""
        return _result(
            self._argv, self._machine._ask(timeout + 10, do="stop", process=self._process, timeout=timeout)
        )


def _result(argv: tuple[str, ...], reply: dict[str, Any]) -> Result:
    return Result(argv, reply["status"], reply["stdout"], reply["stderr"], reply["timed_out"])


def _network_card(number: int, tap: Tap) -> list[str]:
    """Without offloads: what is on the wire is what was sent."""
    offloads = ("csum", "gso", "guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo")
    offloads += ("host_tso4", "host_tso6", "host_ecn", "host_ufo")
    off = ",".join(f"{each}=off" for each in offloads)
    return [
        *("-netdev", f"tap,id=net{number},ifname={tap.name},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=net{number},mac={tap.mac},{off}"),
    ]
