# SPDX-License-Identifier: GPL-2.0-only
"""Build hook of the wheel: compiles the BPF objects into mptm/bpf/ and adds the lab's node files.

An editable install finds both in the checkout (build/ and examples/two-nodes/) and only gets the objects built.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent / "scripts"))

import compile_bpf

NODE_FILES = ("node1.yaml", "node2.yaml")


class BpfBuildHook(BuildHookInterface[Any]):
    """Compiles bpf/*.bpf.c; the wheel is tagged with the platform, as BPF objects have a byte order."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Hatchling calls this before a wheel is built; `version` is "standard" or "editable"."""
        root = Path(self.root)
        editable = version == "editable"
        try:
            objects = compile_bpf.compile_objects(root / "build" if editable else root / "build" / "wheel")
        except compile_bpf.CompileError as error:
            self.app.abort(f"error: {error}")
        if editable:
            return
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["force_include"].update({str(path): f"mptm/bpf/{path.name}" for path in objects})
        examples = root / "examples" / "two-nodes"
        build_data["force_include"].update(
            {str(examples / name): f"mptm/lab/two-nodes/{name}" for name in NODE_FILES}
        )
