# SPDX-License-Identifier: GPL-2.0-only
"""Processes that run lab tests at the same time don't see each other's namespaces, links and pins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import subprocess
from pathlib import Path
from apart import set_apart

set_apart()
subprocess.run(["ip", "link", "add", "apart0", "type", "veth", "peer", "name", "apart1"], check=True)
subprocess.run(["ip", "netns", "add", "apart"], check=True)
Path("/sys/fs/bpf/apart").mkdir()
print(*(path.exists() for path in map(Path, PLACES)))
"""
PLACES = ["/sys/class/net/apart0", "/run/netns/apart", "/sys/fs/bpf/apart"]


def test_a_process_set_apart_has_links_namespaces_and_pins_of_its_own() -> None:
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("PLACES", repr(PLACES))],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    ).stdout
    assert said.split() == ["True"] * len(PLACES)
    assert not [place for place in PLACES if Path(place).exists()]
