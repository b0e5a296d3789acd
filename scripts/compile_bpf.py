# SPDX-License-Identifier: GPL-2.0-only
"""Compile the BPF objects with clang: `compile_bpf.py OUTPUT_DIRECTORY [SOURCE...]`.

Both `make build` and the wheel's build hook come here, so an object is built in one way only.
Needs the standard library alone.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "bpf"
FLAGS = ["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v3"]
INSTALL_HINT = "apt-get install clang libbpf-dev linux-libc-dev"


class CompileError(Exception):
    """The objects can't be built; the message says what is missing and how to get it."""


def multiarch_directories(include: Path = Path("/usr/include")) -> list[Path]:
    """Where Debian keeps asm/types.h, which `-target bpf` doesn't look for; empty on other distributions."""
    found = sorted(include.glob("*-linux-gnu*/asm/types.h"))
    machine = platform.machine()
    found.sort(key=lambda header: not header.relative_to(include).parts[0].startswith(machine))
    return [header.parent.parent for header in found[:1]]


def compile_objects(output: Path, sources: list[Path] | None = None) -> list[Path]:
    """Compile bpf/<name>.bpf.c (all by default) to <output>/<name>.o; an object appears whole or not at all.

    Raises CompileError when clang or a header is missing, or when the source doesn't compile.
    """
    clang = os.environ.get("CLANG", "clang")
    if shutil.which(clang) is None:
        raise CompileError(
            f"{clang} isn't installed, and the BPF objects are built with it.\n  {INSTALL_HINT}"
        )
    includes = [f"-I{directory}" for directory in multiarch_directories()]
    output.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in sources or sorted(SOURCES.glob("*.bpf.c")):
        target = output / source.name.replace(".bpf.c", ".o")
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        command = [clang, *FLAGS, *includes, "-c", str(source), "-o", str(partial)]
        run = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        sys.stderr.write(run.stderr)
        if run.returncode != 0:
            partial.unlink(missing_ok=True)
            if "bpf/bpf_helpers.h" in run.stderr or "asm/types.h" in run.stderr:
                raise CompileError(f"headers that {source.name} needs are missing.\n  {INSTALL_HINT}")
            raise CompileError(f"{source.name} doesn't compile; clang's messages are above.")
        partial.replace(target)
        objects.append(target)
    if not objects:
        raise CompileError(f"no BPF source in {SOURCES}")
    return objects


def main(arguments: list[str]) -> int:
    """Exit status 0 when every object was built, else 1 with one message on stderr."""
    try:
        for built in compile_objects(Path(arguments[0]), [Path(source) for source in arguments[1:]]):
            print(f"built {built}")
    except CompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
