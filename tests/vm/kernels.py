# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernels as files: the newest package that apt offers, fetched once, with the modules that a guest needs."""

from __future__ import annotations

import functools
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "vm"

SERIES = ("6.1", "6.12")

_WANTED_MODULES = re.compile(
    r"kernel/(net/|lib/|crypto/|arch/x86/crypto/|drivers/virtio/|drivers/char/virtio_console"
    r"|drivers/net/(\w+\.|vxlan/)|fs/(9p|netfs|fscache|overlayfs)/)"
)
_BOOT_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
"""What must be there before the root file system is."""


class Unavailable(Exception):
    """This machine can't boot that kernel; the message says why."""


@dataclass(frozen=True)
class Kernel:
    """A kernel ready to boot. `release` is what uname says; `modules` is a tree with lib/modules/<release> in it."""

    series: str
    release: str
    image: Path
    initramfs: Path
    modules: Path


@functools.cache
def get_kernel(series: str) -> Kernel:
    """The newest of Debian's kernels of a series such as 6.1. Raises Unavailable."""
    for tool in ("qemu-system-x86_64", "apt-get", "dpkg-deb", "depmod", "setpriv", "cpio"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} isn't installed: make packages")
    _busybox()
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked():
        for package in _known_packages(series):
            if (CACHE / _release(package) / "complete").exists():
                return _kernel(series, _release(package))
        found = _fetch(series)
        if not isinstance(found, Kernel):
            # What apt knows may be out of date, or nothing yet.
            subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True, timeout=300)
            found = _fetch(series)
    if isinstance(found, Kernel):
        return found
    raise Unavailable(found)


def _fetch(series: str) -> Kernel | str:
    """The newest kernel that apt can download; else why there is none."""
    known = _known_packages(series)
    if not known:
        return f"apt knows no linux-image-{series}* (amd64, unsigned): not offered by this distribution"
    reason = ""
    for package in known:
        try:
            archive = _download(package)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            reason = str(error.stderr or error).strip().splitlines()[-1]
            continue
        release = _unpack(archive, _release(package))
        archive.unlink()
        return _kernel(series, release)
    return f"apt-get can't download any of {', '.join(known)}: {reason}"


def _kernel(series: str, release: str) -> Kernel:
    base = CACHE / release
    return Kernel(series, release, base / "vmlinuz", base / "initramfs", base)


@contextmanager
def _locked() -> Iterator[None]:
    """Two runs at a time don't unpack into each other's files."""
    with (CACHE / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


def _known_packages(series: str) -> list[str]:
    """Packages with a kernel of a series that apt could download, the newest first."""
    names = subprocess.run(
        ["apt-cache", "pkgnames", f"linux-image-{series}"], check=True, capture_output=True, text=True
    ).stdout.split()
    fitting = re.compile(rf"linux-image-{re.escape(series)}\.[\d.+a-z-]*?-amd64-unsigned")
    names = [
        name for name in names if fitting.fullmatch(name) and "-cloud-" not in name and "-rt-" not in name
    ]
    return sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)], reverse=True)


def _release(package: str) -> str:
    return package.removeprefix("linux-image-").removesuffix("-unsigned")


def _download(package: str) -> Path:
    downloads = CACHE / "downloads"
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir()
    subprocess.run(
        ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package],
        cwd=downloads,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return next(downloads.glob("*.deb"))


def _unpack(archive: Path, release: str) -> str:
    base = CACHE / release
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as files,
    ):
        for each in files:
            name = each.name.removeprefix("./").removeprefix("usr/")
            if name == f"boot/vmlinuz-{release}":
                target = base / "vmlinuz"
            elif each.isfile() and (
                name.startswith(f"lib/modules/{release}/modules.")
                or _WANTED_MODULES.match(name.removeprefix(f"lib/modules/{release}/"))
            ):
                target = base / name
            else:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(files.extractfile(each), out)
    subprocess.run(["depmod", "-b", base, release], check=True, capture_output=True)
    _build_initramfs(base, release)
    (base / "complete").touch()
    return release


def _build_initramfs(base: Path, release: str) -> None:
    """busybox, and the modules that it takes to mount the machine's own file system; see `init`."""
    tree = base / "initramfs.tree"
    for directory in ("bin", "dev", "proc", "modules", "host", "changes", "root"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(_busybox(), tree / "bin" / "busybox")
    for number, module in enumerate(_boot_modules(base / "lib" / "modules" / release)):
        data = module.read_bytes()
        if module.suffix == ".xz":
            data = lzma.decompress(data)
        (tree / "modules" / f"{number:02}-{module.name.split('.')[0]}").write_bytes(data)
    init = tree / "init"
    shutil.copy(Path(__file__).with_name("init"), init)
    init.chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with (base / "initramfs").open("wb") as out:
        subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
            cwd=tree,
            input=names.encode(),
            stdout=out,
            check=True,
        )
    shutil.rmtree(tree)


def _boot_modules(directory: Path) -> list[Path]:
    """Files of the boot modules and of what they need, in the order in which they can be loaded."""
    needs, files = {}, {}
    for line in (directory / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        name = Path(path).name.split(".")[0].replace("-", "_")
        files[name] = directory / path
        needs[name] = [directory / each for each in reversed(needed.split())]
    ordered: list[Path] = []
    for name in _BOOT_MODULES:
        if name in files:
            ordered += [each for each in (*needs[name], files[name]) if each not in ordered]
        elif f"/{name}.ko" not in (directory / "modules.builtin").read_text():
            raise Unavailable(f"the kernel package of {directory.name} has no module {name}")
    return ordered


def _busybox() -> Path:
    """The statically linked busybox of Debian's and Ubuntu's busybox-static."""
    for candidate in ("/bin/busybox", "/usr/bin/busybox"):
        if os.access(candidate, os.X_OK):
            return Path(candidate)
    raise Unavailable("busybox-static isn't installed: make packages")
