# SPDX-License-Identifier: GPL-2.0-only
"""The whole matrix: each peer in a pytest of its own, one more at once than there are processors.

Arguments go to every pytest. What each said is in build/interop/<peer>.log, and printed when it has ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "build" / "interop"
SLOWEST_FIRST = ("linux-6.1", "linux-6.12", "ovs", "kernel")
"""So that none of the long ones is left alone at the end."""
NOTHING_SELECTED = 5
"""Exit status of pytest when its arguments leave no test."""

running: list[subprocess.Popen[bytes]] = []


def run(peer: str, arguments: list[str]) -> int:
    """Try one peer; pytest's exit status."""
    command = [sys.executable, "-m", "pytest", "tests/interop", "--full", "--peer", peer, *arguments]
    with (LOGS / f"{peer}.log").open("wb") as log:
        # In a session of its own, an interrupt reaches it once: a second would keep it from taking its lab down.
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        running.append(process)
        return process.wait()


def interrupt(number: int, frame: object) -> None:
    """Once; timeout(1), for one, sends its signal twice."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """The command; 1: something failed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    LOGS.mkdir(parents=True, exist_ok=True)
    failed, selected = False, False
    # Checks wait for pings, and for what must not come: one more finds time meanwhile.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1) as pool:
        futures = {pool.submit(run, peer, sys.argv[1:]): peer for peer in SLOWEST_FIRST}
        try:
            for future in as_completed(futures):
                status = future.result()
                print((LOGS / f"{futures[future]}.log").read_text(errors="replace"), flush=True)
                failed |= status not in (0, NOTHING_SELECTED)
                selected |= status != NOTHING_SELECTED
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.send_signal(signal.SIGINT)
            return 1
    if not selected:
        print("error: these arguments leave nothing to try", file=sys.stderr)
    return int(failed or not selected)


if __name__ == "__main__":
    sys.exit(main())
