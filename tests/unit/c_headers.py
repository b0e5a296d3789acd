# SPDX-License-Identifier: GPL-2.0-only
"""Facts of the C side that unit tests compare with: its enums and constants."""

from __future__ import annotations

import re
from pathlib import Path

BPF = Path(__file__).parents[2] / "bpf"


def c_enum(name: str) -> dict[str, int]:
    """Members of an enum of bpf/abi.h."""
    body = re.search(rf"enum {name} \{{(.*?)\}};", _without_comments("abi.h"), re.DOTALL)
    assert body, f"bpf/abi.h has no enum {name}"
    return {member: int(value) for member, value in re.findall(r"(\w+)\s+=\s+(\d+)", body[1])}


def c_constant(header: str, name: str) -> int:
    """Value of a #define that is a number or `(1 << n)`."""
    value = re.search(rf"#define {name}\s+(\d+|\(1 << (\d+)\))", _without_comments(header))
    assert value, f"bpf/{header} has no {name}"
    return 1 << int(value[2]) if value[2] else int(value[1])


def _without_comments(header: str) -> str:
    return re.sub(r"/\*.*?\*/", "", (BPF / header).read_text(), flags=re.DOTALL)
