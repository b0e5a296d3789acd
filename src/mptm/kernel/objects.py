# SPDX-License-Identifier: GPL-2.0-only
"""Where the compiled BPF objects are."""

from __future__ import annotations

import os
from pathlib import Path

from mptm.errors import MptmError

DATA_PLANE = "mptm.o"
"""The object with the data plane's programs and tables."""

DATA_PLANE_TC = "mptm_tc.o"
"""The same programs for TC, on the same tables."""

TRACED = "mptm_trace.o"
"""The same programs, built to record what they do with a packet."""

EXTRAS = "mptm_extras.o"
"""The object with `mptm_redirect` and `mptm_pass`."""


def object_path(name: str) -> Path:
    """Path of a compiled object, such as `mptm.o`.

    Looked for in $MPTM_OBJECT_DIR where that is set, else in the installed package, else in the build directory
    of the source tree. Raises MptmError when it isn't there.
    """
    override = os.environ.get("MPTM_OBJECT_DIR")
    package = Path(__file__).resolve().parent.parent
    directories = [Path(override)] if override else [package / "bpf", package.parent.parent / "build"]
    for directory in directories:
        if (path := directory / name).is_file():
            return path
    looked = " or ".join(str(directory) for directory in directories)
    raise MptmError(f"the compiled data plane {name} is not in {looked}", "run: make build")
